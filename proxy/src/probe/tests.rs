use super::*;

#[test]
fn what_the_injector_writes_is_read() {
    let text = r#"{
        "app/liveness": {"httpGet": {"path": "/healthz", "port": "web", "scheme": "HTTPS", "httpHeaders": [{"name": "Host", "value": "a.example"}, {"name": "X-A", "value": "1"}], "newer": 1}, "port": 8443, "timeoutSeconds": 2},
        "app/readiness": {"tcpSocket": {"port": 5432}, "port": 5432, "timeoutSeconds": 1},
        "api/startup": {"grpc": {"port": 9000, "service": "orders"}, "port": 9000, "timeoutSeconds": 0}
    }"#;
    let probes: Probes = text.parse().expect("valid");
    let liveness = &probes.0["app/liveness"];
    assert_eq!((liveness.port, liveness.timeout), (8443, Duration::from_secs(2)));
    let Ask::Http(get) = &liveness.ask else { panic!("{liveness:?}") };
    assert_eq!((get.tls, get.path.as_str()), (true, "/healthz"));
    assert_eq!(get.host, Some(HeaderValue::from_static("a.example")));
    assert_eq!(get.headers.len(), 1);
    assert_eq!(probes.0["app/readiness"].ask, Ask::Tcp);
    assert_eq!(probes.0["api/startup"].timeout, Duration::from_secs(1), "at least Kubernetes' own default");
}

#[test]
fn what_is_not_understood_is_named() {
    let get = |key: &str, rest: &str| {
        let text =
            format!(r#"{{"{key}": {{"httpGet": {{"port": 1}}, "port": 1, "timeoutSeconds": 1{rest}}}}}"#);
        text.parse::<Probes>().map_err(|error| error.to_string())
    };
    assert!(get("app/liveness", "").is_ok());
    let said = [
        get("app/alive", ""),
        get("/liveness", ""),
        get("app/liveness", r#", "exec": {}"#),
        get("app/liveness", r#", "grpc": {}"#),
        "[]".parse::<Probes>().map_err(|error| error.to_string()),
        r#"{"a/startup": {"tcpSocket": {}, "port": 0, "timeoutSeconds": 1}}"#.parse::<Probes>().map_err(|error| error.to_string()),
        r#"{"a/startup": {"httpGet": {"httpHeaders": [{"name": "a b", "value": ""}]}, "port": 1, "timeoutSeconds": 1}}"#.parse::<Probes>().map_err(|error| error.to_string()),
    ];
    for (said, word) in
        said.into_iter().zip(["app/alive", "/liveness", "exec", "one of httpGet", "sequence", "port", "a b"])
    {
        let said = said.expect_err(word);
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn paths_can_be_sent_and_stay_what_they_are() {
    for (text, sent) in [
        ("", "/"),
        ("healthz", "/healthz"),
        ("/a?b=c&d=%20", "/a?b=c&d=%20"),
        ("/a b\u{e9}", "/a%20b%C3%A9"),
        ("/a#b", "/a%23b"),
    ] {
        assert_eq!(http_get::path(text), sent);
        assert!(sent.parse::<http::Uri>().is_ok(), "{sent}");
    }
}
