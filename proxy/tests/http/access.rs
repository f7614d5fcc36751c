//! Who is let in to an app, and in which spelling its path arrives.

use std::sync::Arc;

use weft_proxy::http::Target;
use weft_proxy::http::Version::Http1;
use weft_proxy::policy::authorize::{Access, Action, Condition, Filter, Policy, Rules};
use weft_proxy::record::RuleName;
use weft_proxy::route::matcher::ValueMatch;
use weft_proxy::xds::{Guard, Listener, ListenerSpec, RouteTable};
use weft_wire::spelling::Spelling;

use crate::harness::{App, Raw, app, story};

async fn echoing() -> App {
    app(move |mut raw, _| async move {
        while let Some(head) = raw.try_head().await {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            raw.write(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len())).await;
        }
    })
    .await
}

fn filter(action: Action, path: &str, shadow: bool) -> Filter {
    let policy = Policy {
        name: RuleName::resolve(&Arc::from("AccessPolicy/shop/p/0"), ""),
        permissions: [Condition::Path(ValueMatch::Prefix(path.into()))].into(),
        principals: [Condition::Always].into(),
    };
    let rules = Some(Rules { action, policies: [policy].into() });
    if shadow { Filter { rules: None, shadow: rules } } else { Filter { rules, shadow: None } }
}

fn guard(filter: Filter) -> Guard {
    Guard { http: Access { filters: [filter].into() }, spelling: Spelling::SAFE, ..Guard::default() }
}

fn own(app: &App) -> (Target, Arc<Listener>) {
    let name = "inbound/10.0.0.1:80".parse().unwrap();
    let listener = Listener::new(ListenerSpec::new(name), RouteTable::empty(), None);
    (Target::Own { app: app.address, listener: Arc::clone(&listener) }, listener)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n")
}

#[test]
fn a_denied_request_reaches_no_app_and_says_why() {
    story(|mesh| async move {
        let app = echoing().await;
        let (target, listener) = own(&app);
        listener.set_guard(guard(filter(Action::Deny, "/admin", false)));
        let sidecar = mesh.sidecar(Http1, target).await;
        let (head, body) = Raw::connect(sidecar).await.call(&get("/x/..//%61dmin")).await;
        assert!(head.starts_with("http/1.1 403 "), "{head}");
        assert!(head.contains("x-weft-reason: policy_denied; by=server_proxy"), "{head}");
        assert!(body.contains("policy_denied"), "{body}");
        let (head, _) = Raw::connect(sidecar).await.call(&get("/a%2fb")).await;
        assert!(head.starts_with("http/1.1 400 "), "{head}");
        assert_eq!(app.connections(), 0);
        assert_eq!(Raw::connect(sidecar).await.call(&get("/a/../b//c?q=/../d")).await.1, "/b/c?q=/../d");
        mesh.recorded(&["weft_access_decisions_total", "AccessPolicy/shop/p/0", "\"denied\"", " 1"]).await;
    });
}

#[test]
fn a_change_is_obeyed_on_connections_that_stay() {
    story(|mesh| async move {
        let app = echoing().await;
        let (target, listener) = own(&app);
        let sidecar = mesh.sidecar(Http1, target).await;
        let mut raw = Raw::connect(sidecar).await;
        assert_eq!(raw.call(&get("//admin")).await.1, "//admin", "nobody looks at paths yet");
        listener.set_guard(guard(filter(Action::Deny, "/admin", false)));
        assert!(raw.call(&get("//admin")).await.0.starts_with("http/1.1 403 "));
        listener.set_guard(Guard::default());
        assert_eq!(raw.call(&get("//admin")).await.1, "//admin");
    });
}

#[test]
fn what_is_audited_is_counted_and_goes_through() {
    story(|mesh| async move {
        let app = echoing().await;
        let (target, listener) = own(&app);
        let audited = Guard { spelling: Spelling::default(), ..guard(filter(Action::Deny, "/admin", true)) };
        listener.set_guard(audited);
        let sidecar = mesh.sidecar(Http1, target).await;
        assert_eq!(Raw::connect(sidecar).await.call(&get("/admin//x")).await.1, "/admin//x");
        mesh.recorded(&["weft_access_decisions_total", "AccessPolicy/shop/p/0", "\"would_deny\"", " 1"])
            .await;
        let unmatched = guard(filter(Action::Allow, "/open", false));
        listener.set_guard(unmatched);
        assert!(Raw::connect(sidecar).await.call(&get("/admin")).await.0.starts_with("http/1.1 403 "));
        mesh.recorded(&["weft_access_decisions_total", "\"none\"", "\"denied\"", " 1"]).await;
    });
}

#[test]
fn a_port_that_becomes_strict_takes_nothing_more_on_a_plain_connection_that_stays() {
    story(|mesh| async move {
        let app = echoing().await;
        let (target, listener) = own(&app);
        let sidecar = mesh.sidecar(Http1, target).await;
        let mut raw = Raw::connect(sidecar).await;
        assert_eq!(raw.call(&get("/a")).await.1, "/a");
        listener.set_guard(Guard { strict: true, ..Guard::default() });
        let (head, _) = raw.call(&get("/a")).await;
        assert!(head.starts_with("http/1.1 403 "), "{head}");
        assert!(head.contains("x-weft-reason: tls_required; by=server_proxy"), "{head}");
    });
}
