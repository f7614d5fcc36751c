use super::*;

#[test]
fn only_names_of_this_machine_pass_a_loopback_listener() {
    for host in
        ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "weft.localhost:1", "127.0.0.1"]
    {
        assert!(HostPolicy::Loopback.admits(host), "{host}");
    }
    for host in [
        "",
        "evil.example",
        "localhost.evil.example:8080",
        "10.0.0.1:8080",
        "127.0.0.1.evil.example",
        "[::1].evil.example",
    ] {
        assert!(!HostPolicy::Loopback.admits(host), "{host}");
        assert!(HostPolicy::Any.admits(host), "{host}");
    }
}

#[test]
fn a_route_needs_what_it_does_and_one_that_nobody_thought_of_is_closed() {
    let route = |method: Method, path: &str| needed(&method, Some(path), path);
    assert_eq!(route(Method::GET, "/api/graph"), Some(Role::Viewer));
    assert_eq!(route(Method::HEAD, "/metrics"), Some(Role::Viewer));
    assert_eq!(route(Method::POST, "/api/dry-run"), Some(Role::Viewer));
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let needs = route(method.clone(), "/api/of-tomorrow");
        assert_eq!(needs, Some(Role::Operator));
        assert!(is_deed(&method, Some("/api/of-tomorrow"), Role::Operator), "{method}");
    }
    for path in ["/api/audit", "/api/tap", "/api/tap/{workload}"] {
        assert_eq!(route(Method::GET, path), Some(Role::Operator), "{path}");
    }
    assert!(is_deed(&Method::GET, Some("/api/tap/{workload}"), Role::Operator));
    assert!(!is_deed(&Method::GET, Some("/api/audit"), Role::Operator));
    assert!(!is_deed(&Method::POST, Some("/api/dry-run"), Role::Viewer));
    for path in ["/live", "/api/session", "/api/session/oidc"] {
        assert_eq!(route(Method::GET, path), None, "{path}");
    }
    for page in ["/", "/assets/index.js", "/apis"] {
        assert_eq!(needed(&Method::GET, None, page), None, "{page}");
    }
    for path in ["/api", "/api/", "/api/nothing"] {
        assert_eq!(needed(&Method::GET, None, path), Some(Role::Viewer), "{path}");
    }
}

#[test]
fn only_the_programs_own_page_and_programs_without_pages_may_change_anything() {
    let ask = |origin: Option<&'static str>, site: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        origin.map(|origin| headers.insert(header::ORIGIN, HeaderValue::from_static(origin)));
        site.map(|site| headers.insert("sec-fetch-site", HeaderValue::from_static(site)));
        own_page(&headers, "localhost:8080", Some("https://weft.example.com"))
    };
    assert_eq!(ask(None, None), Ok(false));
    assert_eq!(ask(None, Some("none")), Ok(false));
    assert_eq!(ask(None, Some("same-origin")), Ok(true));
    for origin in ["http://localhost:8080", "http://LOCALHOST:8080", "https://weft.example.com"] {
        assert_eq!(ask(Some(origin), None), Ok(true), "{origin}");
        assert_eq!(ask(Some(origin), Some("same-origin")), Ok(true), "{origin}");
        assert!(ask(Some(origin), Some("cross-site")).is_err(), "{origin}");
    }
    for origin in [
        "null",
        "",
        "http://",
        "http://localhost:8081",
        "http://evil.example",
        "localhost:8080",
        "http://weft.example.com",
    ] {
        assert!(ask(Some(origin), None).is_err(), "{origin}");
    }
    assert!(ask(None, Some("same-site")).is_err());
}
