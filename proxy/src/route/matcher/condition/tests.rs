//! Conditions as tables: what is asked, what is sent, whether it holds.

use proptest::prelude::*;

use super::*;

fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::get(uri).header("host", "Orders.Shop:8080");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("valid")
}

fn on(field: Field, value: ValueMatch) -> HeaderMatch {
    HeaderMatch { field, value, invert: false, missing_is_empty: false }
}

fn team(value: ValueMatch) -> HeaderMatch {
    on(Field::Header(HeaderName::from_static("x-team")), value)
}

#[test]
fn paths() {
    let loud = |text| Text::new(text, true);
    for (matcher, path, expected) in [
        (PathMatch::Exact("/a".into()), "/a?x=1", true),
        (PathMatch::Exact("/a".into()), "/a/", false),
        (PathMatch::Exact("/a".into()), "/A", false),
        (PathMatch::Exact(loud("/a")), "/A", true),
        (PathMatch::Prefix("/ab".into()), "/abc", true),
        (PathMatch::Prefix("/ab".into()), "/a", false),
        (PathMatch::Prefix(loud("/AB")), "/abc", true),
        (PathMatch::Prefix("/a?x".into()), "/a?x", false),
        (PathMatch::Segments("/a".into()), "/a", true),
        (PathMatch::Segments("/a".into()), "/a?x", true),
        (PathMatch::Segments("/a".into()), "/a/b", true),
        (PathMatch::Segments("/a".into()), "/ab", false),
        (PathMatch::Segments("/a/".into()), "/a", true),
        (PathMatch::Segments("/".into()), "/x", true),
        (PathMatch::Segments(loud("/A")), "/a/b", true),
        (PathMatch::Pattern(pattern("/a+")), "/aaa?x=/b", true),
        (PathMatch::Pattern(pattern("/a+")), "/aaa/b", false),
    ] {
        let uri: http::Uri = path.parse().expect("a path");
        assert_eq!(matcher.holds(uri.path()), expected, "{matcher:?} {path}");
    }
}

#[test]
fn headers() {
    let loud = |text| Text::new(text, true);
    let blue = &[("x-team", "blue")][..];
    let none = &[][..];
    for (matcher, sent, expected) in [
        (team(ValueMatch::Exact("blue".into())), blue, true),
        (team(ValueMatch::Exact("blue".into())), &[("x-team", "red"), ("x-team", "blue")], true),
        (team(ValueMatch::Exact("red,blue".into())), &[("x-team", "red"), ("x-team", "blue")], false),
        (team(ValueMatch::Exact("red,blue".into())), &[("x-team", "red,blue"), ("x-team", "red")], true),
        (team(ValueMatch::Exact("BLUE".into())), blue, false),
        (team(ValueMatch::Exact(loud("BLUE"))), blue, true),
        (team(ValueMatch::Prefix("bl".into())), blue, true),
        (team(ValueMatch::Prefix(loud("BL"))), blue, true),
        (team(ValueMatch::Suffix("ue".into())), blue, true),
        (team(ValueMatch::Suffix("blue!".into())), blue, false),
        (team(ValueMatch::Contains("lu".into())), blue, true),
        (team(ValueMatch::Contains(loud("LU"))), blue, true),
        (team(ValueMatch::Contains("".into())), blue, true),
        (team(ValueMatch::Pattern(pattern("b.*"))), blue, true),
        (team(ValueMatch::Pattern(pattern("b"))), blue, false),
        (team(ValueMatch::Range { start: -1, end: 10 }), &[("x-team", "9")], true),
        (team(ValueMatch::Range { start: -1, end: 10 }), &[("x-team", "10")], false),
        (team(ValueMatch::Range { start: -1, end: 10 }), blue, false),
        (team(ValueMatch::Present), blue, true),
        (team(ValueMatch::Present), &[("x-team", "")], true),
        (team(ValueMatch::Present), none, false),
        (HeaderMatch { invert: true, ..team(ValueMatch::Present) }, none, true),
        (HeaderMatch { invert: true, ..team(ValueMatch::Exact("red".into())) }, blue, true),
        (HeaderMatch { invert: true, ..team(ValueMatch::Exact("blue".into())) }, blue, false),
        (HeaderMatch { invert: true, ..team(ValueMatch::Exact("red".into())) }, none, false),
        (HeaderMatch { missing_is_empty: true, ..team(ValueMatch::Exact("".into())) }, none, true),
        (
            HeaderMatch { missing_is_empty: true, invert: true, ..team(ValueMatch::Exact("red".into())) },
            none,
            true,
        ),
        (on(Field::Method, ValueMatch::Exact("GET".into())), none, true),
        (on(Field::Method, ValueMatch::Pattern(pattern("POST|PUT"))), none, false),
        (on(Field::Path, ValueMatch::Exact("/a?q=1".into())), none, true),
        (on(Field::Authority, ValueMatch::Prefix(loud("orders"))), none, true),
        (on(Field::Scheme, ValueMatch::Exact("http".into())), none, true),
        (on(Field::Scheme, ValueMatch::Exact("https".into())), &[("x-forwarded-proto", "https")], true),
    ] {
        assert_eq!(matcher.holds(&request("/a?q=1", sent)), expected, "{matcher:?} {sent:?}");
    }
}

#[test]
fn query_parameters() {
    for (name, value, query, expected) in [
        ("v", ValueMatch::Prefix("2".into()), "/?u=1&v=2.1", true),
        ("v", ValueMatch::Exact("2".into()), "/?v=1&v=2", false),
        ("v", ValueMatch::Exact("1".into()), "/?v=1&v=2", true),
        ("v", ValueMatch::Exact("".into()), "/?v", true),
        ("v", ValueMatch::Exact("a=b".into()), "/?v=a=b", true),
        ("v", ValueMatch::Exact("a b".into()), "/?v=a%20b", false),
        ("v", ValueMatch::Exact("a%20b".into()), "/?v=a%20b", true),
        ("v", ValueMatch::Pattern(pattern(r"\d+")), "/?v=12", true),
        ("v", ValueMatch::Present, "/?v=", true),
        ("v", ValueMatch::Present, "/?w", false),
        ("v", ValueMatch::Present, "/", false),
        ("", ValueMatch::Present, "/", false),
    ] {
        let matcher = QueryMatch { name: name.into(), value };
        assert_eq!(
            matcher.holds(request(query, &[]).uri.query().unwrap_or_default()),
            expected,
            "{matcher:?} {query}"
        );
    }
}

#[test]
fn shares_of_successive_routes_add_up() {
    let share =
        |numerator| Matches { fraction: Fraction::new(numerator, 100).expect("valid"), ..Matches::all() };
    let request = request("/", &[]);
    let first =
        |draw| [share(30), share(50)].iter().position(|route| route.hold(&request, &mut Draw::of(draw)));
    let count = |expected| (0..100).filter(|&draw| first(draw) == expected).count();
    assert_eq!((count(Some(0)), count(Some(1)), count(None)), (30, 20, 50));
}

#[test]
fn conditions_read_well() {
    let matches = Matches {
        path: PathMatch::Segments("/cart/".into()),
        method: Some(Method::POST),
        headers: [
            HeaderMatch { invert: true, ..team(ValueMatch::Exact("blue".into())) },
            on(Field::Authority, ValueMatch::Pattern(pattern("a.*"))),
        ]
        .into(),
        query: [QueryMatch { name: "v".into(), value: ValueMatch::Present }].into(),
        fraction: Fraction::new(5, 100).expect("valid"),
    };
    assert_eq!(matches.to_string(), "POST /cart/** ?v !x-team=blue :authority~a.* 5%");
}

proptest! {
    #[test]
    fn segments_are_a_prefix_up_to_a_slash(prefix in "/[ab/]{0,4}", path in "/[ab/]{0,6}") {
        let trimmed = prefix.trim_end_matches('/');
        let expected = path == trimmed || path.starts_with(&format!("{trimmed}/"));
        prop_assert_eq!(PathMatch::Segments(prefix.as_str().into()).holds(&path), expected);
    }
}

#[test]
fn without_a_required_header_no_condition_holds() {
    for value in [ValueMatch::Exact("blue".into()), ValueMatch::Exact("".into()), ValueMatch::Present] {
        for (invert, missing_is_empty) in [(false, false), (true, false), (false, true), (true, true)] {
            let header = HeaderMatch { invert, missing_is_empty, ..team(value.clone()) };
            let matches = Matches { headers: [header].into(), ..Matches::all() };
            let holds = matches.hold(&request("/", &[]), &mut Draw::default());
            assert_eq!(matches.required().is_some(), !holds, "{matches}");
        }
    }
}
