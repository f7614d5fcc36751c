//! A passage from end to end: what is sent, what comes back.

use std::time::Duration;

use super::*;
use crate::route::cors::Cors;
use crate::route::fraction::Fraction;
use crate::route::hash::{Cookie, HashOn, HashPolicy};
use crate::route::matcher::{Matches, PathMatch, ValueMatch};
use crate::route::mutation::{Existing, Group, Mutations, Put};
use crate::route::policies::Direct;
use crate::route::redirect::{Redirect, RedirectPath};
use crate::route::rewrite::PathRewrite;
use crate::route::rule::{BackendFilters, Filters, Forward, Rule};
use crate::xds::{Cluster, ClusterSpec};

fn rule() -> Rule {
    Rule::to_backend("r", Matches { path: PathMatch::Prefix("/a".into()), ..Matches::all() })
}

fn passage(rule: Rule, filters: BackendFilters) -> Passage {
    let backend = Backend { filters: Arc::new(filters), ..Backend::new(cluster(), 1) };
    Passage::new(Route::of(Arc::new(rule), vec![backend], vec![]).expect("valid"))
}

fn cluster() -> Arc<Cluster> {
    Cluster::new(ClusterSpec::new("a"), vec![])
}

fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn append(name: &'static str, value: &'static str) -> Mutations {
    let put = Put {
        name: HeaderName::from_static(name),
        value: HeaderValue::from_static(value),
        existing: Existing::Append,
    };
    Mutations::new([Group { put: [put].into(), ..Group::default() }])
}

fn values<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect()
}

fn host(host: &'static str, append_forwarded_host: bool) -> HostRewrite {
    HostRewrite { host: HeaderValue::from_static(host), append_forwarded_host }
}

#[test]
fn the_backend_changes_first_and_the_rule_after_it() {
    let filters =
        Filters { request: append("x-by", "rule"), response: append("x-by", "rule"), ..Filters::default() };
    let of_backend = BackendFilters {
        request: append("x-by", "backend"),
        response: append("x-by", "backend"),
        host: Some(HeaderValue::from_static("of-backend")),
    };
    let mut passage = passage(Rule { filters, ..rule() }, of_backend);
    let mut parts = request("/a", &[("host", "h"), ("x-by", "client")]);
    passage.request(&mut parts, None);
    assert_eq!(values(&parts.headers, "x-by"), ["client", "backend", "rule"]);
    assert_eq!(parts.headers[header::HOST], "of-backend");
    let mut headers = HeaderMap::new();
    passage.response(&mut headers);
    assert_eq!(values(&headers, "x-by"), ["backend", "rule"]);
}

#[test]
fn host_and_path_are_rewritten() {
    for (uri, sent, append, expected_uri, expected_host, forwarded) in [
        ("/a/b?q", "h:1", false, "/n/b?q", Some("new.shop"), vec![]),
        ("/a/b?q", "h:1", true, "/n/b?q", Some("new.shop"), vec!["h:1"]),
        ("http://h:1/a/b?q", "", true, "http://new.shop/n/b?q", None, vec!["h:1"]),
    ] {
        let filters = Filters {
            host: Some(host("new.shop", append)),
            path: Some(PathRewrite::Prefix("/n".into())),
            ..Filters::default()
        };
        let headers = if sent.is_empty() { vec![] } else { vec![("host", sent)] };
        let mut parts = request(uri, &headers);
        passage(Rule { filters, ..rule() }, BackendFilters::default()).request(&mut parts, None);
        assert_eq!(parts.uri, expected_uri);
        assert_eq!(parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()), expected_host);
        assert_eq!(values(&parts.headers, "x-forwarded-host"), forwarded);
    }
}

#[test]
fn a_host_is_forwarded_once() {
    for (known, expected) in [(None, "h"), (Some("g"), "g,h"), (Some("g,h"), "g,h"), (Some(""), "h")] {
        let mut parts = request("/a", &[("host", "h")]);
        if let Some(known) = known {
            parts.headers.insert(FORWARDED_HOST, HeaderValue::from_static(known));
        }
        forward_host(&mut parts);
        assert_eq!(values(&parts.headers, "x-forwarded-host"), [expected]);
    }
}

#[test]
fn a_rule_can_answer_by_itself() {
    let redirect = Redirect {
        status: StatusCode::FOUND,
        scheme: None,
        host: Some("new.shop".into()),
        port: None,
        path: Some(RedirectPath::Prefix("/b".into())),
        strip_query: false,
    };
    let filters = Filters { response: append("x-by", "rule"), ..Filters::default() };
    let moved =
        passage(Rule { action: Action::Redirect(redirect), filters, ..rule() }, BackendFilters::default());
    let asked = request("/a/c?q", &[("host", "h")]);
    let response = moved.answer(&asked).expect("an answer");
    assert_eq!(response.status(), StatusCode::FOUND);
    assert_eq!(response.headers()[header::LOCATION], "http://new.shop/b/c?q");
    assert_eq!(values(response.headers(), "x-by"), ["rule"]);
    assert!(!response.headers().contains_key(header::CONTENT_TYPE));
    assert!(moved.backend().is_none());

    let direct = Direct { status: StatusCode::IM_A_TEAPOT, body: "short and stout".into() };
    let direct = passage(Rule { action: Action::Direct(direct), ..rule() }, BackendFilters::default());
    let response = direct.answer(&asked).expect("an answer");
    assert_eq!((response.status(), &**response.body()), (StatusCode::IM_A_TEAPOT, &b"short and stout"[..]));
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
    let response = direct.answer(&request("/a", &[("content-type", "application/grpc")])).expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-message"], "short and stout");
    assert!(response.body().is_empty());
    assert!(passage(rule(), BackendFilters::default()).answer(&asked).is_none());
}

fn cors() -> Cors {
    Cors {
        origins: [ValueMatch::Exact("https://shop.test".into())].into(),
        methods: Some(HeaderValue::from_static("GET")),
        headers: None,
        expose: None,
        max_age: None,
        credentials: false,
        private_network: false,
        forward_not_matching_preflights: true,
        enabled: Fraction::ALL,
    }
}

#[test]
fn every_answer_to_an_allowed_origin_says_so() {
    let filters = Filters { response: append("x-by", "rule"), ..Filters::default() };
    let mut passage = passage(Rule { cors: Some(cors()), filters, ..rule() }, BackendFilters::default());
    assert!(passage.preflight(&request("/a", &[("origin", "https://shop.test")])).is_none());
    let judge = |change: &dyn Fn(&mut HeaderMap)| {
        let mut headers = HeaderMap::new();
        change(&mut headers);
        (headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN), headers.contains_key("x-by"))
    };
    assert_eq!(judge(&|headers| passage.response(headers)), (true, true));
    assert_eq!(judge(&|headers| passage.refusal(headers)), (true, true));
}

#[test]
fn a_client_gets_its_cookie_with_the_apps_answer_only() {
    let cookie = Cookie {
        name: "sid".into(),
        ttl: Some(Duration::from_secs(9)),
        path: "".into(),
        attributes: [].into(),
    };
    let hash = [HashPolicy { on: HashOn::Cookie(cookie), terminal: false }].into();
    let action = Action::Forward(Forward { hash, ..Forward::default() });
    let mut passage = passage(Rule { action, ..rule() }, BackendFilters::default());
    passage.request(&mut request("/a", &[]), None);
    assert!(passage.hash().is_some());
    let (mut answered, mut refused) = (HeaderMap::new(), HeaderMap::new());
    passage.response(&mut answered);
    passage.refusal(&mut refused);
    assert!(answered.contains_key(header::SET_COOKIE) && !refused.contains_key(header::SET_COOKIE));
}
