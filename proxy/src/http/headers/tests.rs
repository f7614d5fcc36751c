use http::Request;
use proptest::prelude::*;

use super::*;

fn parts(method: &str, uri: &str, version: Version, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri).version(version);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("valid").into_parts().0
}

fn get(headers: &[(&str, &str)]) -> Parts {
    let with_host = [&[("host", "orders.shop:8080")], headers].concat();
    parts("GET", "/", Version::HTTP_11, &with_host)
}

fn request(parts: &mut Parts, form: Form, consume_proxy: bool) -> Result<Intent, Reason> {
    super::request(parts, form, consume_proxy).map(|said| said.intent)
}

fn names(parts: &Parts) -> Vec<&str> {
    let mut names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn what_connection_names_does_not_cross() {
    let mut parts = get(&[
        ("connection", "close, X-Secret"),
        ("connection", "keep-alive"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("x-secret", "1"),
        ("x-other", "2"),
    ]);
    assert_eq!(request(&mut parts, Form::Origin, false), Ok(Intent::Plain));
    assert_eq!(names(&parts), ["host", "x-other"]);
}

#[test]
fn nobody_says_in_a_header_whom_a_certificate_names() {
    let forged = "URI=spiffe://cluster.local/ns/shop/sa/admin";
    let mut parts =
        get(&[("x-forwarded-client-cert", forged), ("x-other", "2"), ("X-Forwarded-Client-Cert", forged)]);
    assert_eq!(request(&mut parts, Form::AsIs, false), Ok(Intent::Plain));
    assert_eq!(names(&parts), ["host", "x-other"]);
}

#[test]
fn framing_cannot_be_nominated_away() {
    let mut parts =
        get(&[("connection", "host, content-length, transfer-encoding"), ("content-length", "3")]);
    assert_eq!(request(&mut parts, Form::Origin, false), Ok(Intent::Plain));
    assert_eq!(names(&parts), ["content-length", "host"]);
}

#[test]
fn only_trailers_survives_of_te() {
    let mut parts = get(&[("te", "gzip, Trailers;q=0.5"), ("connection", "te")]);
    assert_eq!(request(&mut parts, Form::Origin, false), Ok(Intent::Plain));
    assert_eq!(parts.headers["te"], "trailers");
    let mut parts = get(&[("te", "gzip")]);
    assert_eq!(request(&mut parts, Form::Origin, false), Ok(Intent::Plain));
    assert_eq!(names(&parts), ["host"]);
}

#[test]
fn a_real_upgrade_keeps_its_headers() {
    let mut parts = get(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
    assert_eq!(request(&mut parts, Form::Origin, false), Ok(Intent::Upgrade));
    assert_eq!(parts.headers["connection"], "upgrade");
    assert_eq!(parts.headers["upgrade"], "websocket");
}

#[test]
fn what_only_looks_like_an_upgrade_loses_it() {
    for headers in [
        &[("upgrade", "websocket")][..],
        &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")],
        &[("connection", "upgrade"), ("upgrade", "websocket"), ("content-length", "5")],
    ] {
        let mut parts = get(headers);
        assert_eq!(request(&mut parts, Form::Origin, false), Ok(Intent::Plain), "{headers:?}");
        assert!(!parts.headers.contains_key("upgrade") && !parts.headers.contains_key("connection"));
        assert!(!parts.headers.contains_key("http2-settings"));
    }
}

#[test]
fn expect_is_told_apart() {
    let mut parts = get(&[("expect", "100-Continue"), ("content-length", "5")]);
    assert_eq!(request(&mut parts, Form::Origin, false), Ok(Intent::Continue));
    assert_eq!(parts.headers["expect"], "100-Continue", "end to end");
}

#[test]
fn credentials_for_a_proxy_end_at_the_proxy_they_are_for() {
    let mut parts = get(&[("proxy-authorization", "Basic x")]);
    request(&mut parts, Form::AsIs, false).expect("fine");
    assert!(parts.headers.contains_key("proxy-authorization"), "may be for the destination");
    request(&mut parts, Form::Origin, true).expect("fine");
    assert!(!parts.headers.contains_key("proxy-authorization"));
}

#[test]
fn an_absolute_target_wins_over_host() {
    let headers = [("host", "evil.example")];
    let mut parts = parts("GET", "http://orders.shop:8080/a?b=c", Version::HTTP_11, &headers);
    assert_eq!(request(&mut parts, Form::Origin, false), Ok(Intent::Plain));
    assert_eq!(parts.headers["host"], "orders.shop:8080");
    assert_eq!(parts.uri, "/a?b=c");
}

#[test]
fn an_absolute_target_stays_for_a_destination_that_may_be_a_proxy() {
    let mut parts = parts("GET", "http://orders.shop/a", Version::HTTP_11, &[("host", "orders.shop")]);
    request(&mut parts, Form::AsIs, false).expect("fine");
    assert_eq!(parts.uri, "http://orders.shop/a");
}

#[test]
fn a_target_without_path_is_the_root() {
    let mut parts = parts("GET", "http://orders.shop", Version::HTTP_11, &[("host", "orders.shop")]);
    request(&mut parts, Form::Origin, false).expect("fine");
    assert_eq!(parts.uri, "/");
}

#[test]
fn hosts_are_one_and_clean() {
    let refused = Err(Reason::ProtocolError);
    let mut none = parts("GET", "/", Version::HTTP_11, &[]);
    assert_eq!(request(&mut none, Form::Origin, false), refused);
    let mut two = parts("GET", "/", Version::HTTP_11, &[("host", "a"), ("host", "a")]);
    assert_eq!(request(&mut two, Form::Origin, false), refused);
    for host in ["a b", "a,b", "user@a", "a/b", "a?b", "a\\b"] {
        let mut parts = parts("GET", "/", Version::HTTP_11, &[("host", host)]);
        assert_eq!(request(&mut parts, Form::Origin, false), refused, "{host}");
    }
    let mut old = parts("GET", "/", Version::HTTP_10, &[]);
    assert_eq!(request(&mut old, Form::Origin, false), Ok(Intent::Plain));
}

#[test]
fn an_h2_authority_is_a_host_and_a_port() {
    for (authority, answer) in [
        ("orders.shop:80", Ok(Intent::Plain)),
        ("admin@orders.shop", Err(Reason::ProtocolError)),
        ("a:b@orders.shop:80", Err(Reason::ProtocolError)),
    ] {
        let mut parts = parts("GET", &format!("http://{authority}/"), Version::HTTP_2, &[]);
        assert_eq!(request(&mut parts, Form::Origin, false), answer, "{authority}");
    }
}

#[test]
fn h2_host_must_agree_with_the_authority() {
    let of = |host| parts("GET", "http://orders.shop/", Version::HTTP_2, &[("host", host)]);
    let mut same = of("Orders.shop");
    assert_eq!(request(&mut same, Form::Origin, false), Ok(Intent::Plain));
    assert!(!same.headers.contains_key("host"), "said once");
    assert_eq!(request(&mut of("other.shop"), Form::Origin, false), Err(Reason::ProtocolError));
}

#[test]
fn limits_bite_by_bytes_and_by_count() {
    let large = "x".repeat(HEADER_BYTES_MAX);
    assert_eq!(request(&mut get(&[("x-large", &large)]), Form::Origin, false), Err(Reason::HeaderTooLarge));
    let many: Vec<_> = (0..HEADER_FIELDS_MAX).map(|_| ("x-many", "1")).collect();
    assert_eq!(request(&mut get(&many), Form::Origin, false), Err(Reason::HeaderTooLarge));
}

#[test]
fn a_response_is_cleaned_too() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "close, x-hop"),
        ("keep-alive", "timeout=5"),
        ("x-hop", "1"),
        ("upgrade", "h2c"),
        ("content-length", "0"),
        ("transfer-encoding", "chunked"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response(StatusCode::OK, &mut headers);
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "transfer-encoding"]);
}

#[test]
fn switching_protocols_says_so() {
    let mut headers = HeaderMap::new();
    headers.insert("connection", HeaderValue::from_static("Upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    response(StatusCode::SWITCHING_PROTOCOLS, &mut headers);
    assert_eq!(headers["connection"], "upgrade");
    assert_eq!(headers["upgrade"], "websocket");
}

#[test]
fn h1_becomes_h2() {
    let mut parts = get(&[("transfer-encoding", "chunked"), ("x-kept", "1")]);
    to_h2(&mut parts).expect("fine");
    assert_eq!(parts.uri, "http://orders.shop:8080/");
    assert_eq!(names(&parts), ["x-kept"]);
    assert_eq!(parts.version, Version::HTTP_2);
}

proptest! {
    #[test]
    fn after_cleaning_nothing_is_left_to_clean(
        headers in proptest::collection::vec(
            (
                prop_oneof![
                    Just("connection"), Just("te"), Just("upgrade"), Just("keep-alive"), Just("x-a"), Just("expect"),
                    Just("proxy-connection"), Just("content-length"), Just("http2-settings"),
                ],
                "[ -~]{0,20}",
            ),
            0..12,
        ),
    ) {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut parts = get(&headers);
        if let Ok(intent) = request(&mut parts, Form::Origin, false) {
            let once = parts.headers.clone();
            prop_assert_eq!(request(&mut parts, Form::Origin, false), Ok(intent));
            prop_assert_eq!(&parts.headers, &once);
            prop_assert!(!parts.headers.contains_key(KEEP_ALIVE));
            prop_assert!(!parts.headers.contains_key(PROXY_CONNECTION));
        }
    }
}

#[test]
fn what_is_said_to_the_proxy_is_heard() {
    let said = |headers: &[_]| {
        let said = super::request(&mut get(headers), Form::Origin, false).expect("fine");
        (said.deadline, said.mirrored)
    };
    assert_eq!(said(&[]), (false, false));
    assert_eq!(said(&[("x-weft-deadline", "5")]), (true, false));
    assert_eq!(said(&[("grpc-timeout", "5S")]), (true, false));
    assert_eq!(said(&[("x-weft-mirrored", "1")]), (false, true));
    assert_eq!(said(&[("x-weft-deadlime", "5"), ("grpc-timeouT", "5S")]), (true, false));
}
