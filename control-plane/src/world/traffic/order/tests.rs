use proptest::prelude::*;

use super::*;
use crate::world::route::ValueMatch;

fn values(count: usize) -> Vec<ValueMatch> {
    let one = |at| ValueMatch { name: format!("v{at}").into(), value: Pattern::Exact("1".into()) };
    (0..count).map(one).collect()
}

fn http(path: PathMatch, method: Option<&str>, headers: usize, query: usize) -> Match {
    Match { path, method: method.map(Into::into), headers: values(headers), query: values(query) }
}

fn exact(path: &str) -> PathMatch {
    PathMatch::Exact(path.into())
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.into())
}

fn grpc(service: Option<&str>, method: Option<&str>, headers: usize) -> Match {
    let pattern = |text: &str| match text.strip_prefix('~') {
        Some(regex) => Pattern::Regex(regex.into()),
        None => Pattern::Exact(text.into()),
    };
    let path = PathMatch::Grpc { service: service.map(pattern), method: method.map(pattern) };
    http(path, None, headers, 0)
}

#[test]
fn http_matches_are_tried_in_the_order_of_the_api() {
    let order = [
        // An exact path comes first, whatever else the others have.
        http(exact("/a"), Some("GET"), 1, 0),
        http(exact("/a"), Some("GET"), 0, 2),
        http(exact("/longer"), Some("GET"), 0, 0),
        http(exact("/a"), None, 16, 16),
        // Expressions come before prefixes: the prefix "/" would hide them.
        http(PathMatch::Regex("/[a-z]+/[0-9]+".into()), None, 0, 0),
        http(PathMatch::Regex("/[a-z]+".into()), Some("GET"), 3, 0),
        // The longest prefix wins over any number of other matches.
        http(prefix("/aaaa"), None, 0, 0),
        http(prefix("/aaa"), Some("GET"), 0, 0),
        // Then a method, then headers, then query parameters.
        http(prefix("/a"), Some("GET"), 0, 0),
        http(prefix("/a"), None, 2, 0),
        http(prefix("/a"), None, 1, 3),
        http(prefix("/a"), None, 1, 0),
        http(prefix("/a"), None, 0, 1),
        http(prefix("/a"), None, 0, 0),
        http(prefix("/"), Some("GET"), 9, 9),
    ];
    for pair in order.windows(2) {
        assert!(rank(&pair[0]) < rank(&pair[1]), "{} before {}", pair[0], pair[1]);
    }
}

#[test]
fn grpc_matches_are_tried_in_the_order_of_the_api() {
    let order = [
        grpc(Some("shop.v1.Orders"), Some("List"), 0),
        grpc(Some("shop.v1.Orders"), Some("Get"), 1),
        grpc(Some("shop.v1.Orders"), Some("Get"), 0),
        grpc(Some("shop.v1.Orders"), Some("~G.*"), 5),
        grpc(Some("shop.v1.Orders"), None, 9),
        grpc(Some("shop.Orders"), Some("ALongMethodName"), 0),
        grpc(Some("~shop\\..*"), Some("Get"), 0),
        grpc(None, Some("Get"), 0),
        grpc(None, None, 2),
        grpc(None, None, 0),
    ];
    for pair in order.windows(2) {
        assert!(rank(&pair[0]) < rank(&pair[1]), "{} before {}", pair[0], pair[1]);
    }
}

fn any_match() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        "/[a-c]{0,3}".prop_map(|text| exact(&text)),
        "/[a-c]{0,3}".prop_map(|text| prefix(&text)),
        "/[a-c]{0,3}".prop_map(|text| PathMatch::Regex(text.into())),
    ];
    (path, proptest::option::of("GET|POST"), 0usize..3, 0usize..3)
        .prop_map(|(path, method, headers, query)| http(path, method.as_deref(), headers, query))
}

/// The API's list of criteria, one after the other, written as it is written there.
fn precedes(one: &Match, other: &Match) -> bool {
    let is_exact = |m: &Match| matches!(m.path, PathMatch::Exact(_));
    if is_exact(one) != is_exact(other) {
        return is_exact(one);
    }
    let is_regex = |m: &Match| matches!(m.path, PathMatch::Regex(_));
    if is_regex(one) != is_regex(other) {
        return is_regex(one);
    }
    let characters = |m: &Match| match &m.path {
        PathMatch::Prefix(text) | PathMatch::Regex(text) => text.len(),
        _ => 0,
    };
    if characters(one) != characters(other) {
        return characters(one) > characters(other);
    }
    if one.method.is_some() != other.method.is_some() {
        return one.method.is_some();
    }
    if one.headers.len() != other.headers.len() {
        return one.headers.len() > other.headers.len();
    }
    one.query.len() > other.query.len()
}

proptest! {
    #[test]
    fn ranks_are_the_criteria_of_the_api(one in any_match(), other in any_match()) {
        prop_assert_eq!(rank(&one) < rank(&other), precedes(&one, &other), "{} and {}", one, other);
    }
}
