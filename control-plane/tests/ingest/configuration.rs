//! What is configured, as the API tells it: routes, objects, and what a change would do.

use std::time::Instant;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use weft_control_plane::api::OPENAPI;
use weft_control_plane::inspect::Configuration;
use weft_control_plane::resources::{self, Content};
use weft_control_plane::sources::Report;
use weft_control_plane::world::Live;
use weft_control_plane::xds::Status;

use super::{Plane, client};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\n\
                       spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 8080, appProtocol: http}]}\n";

fn plane() -> Plane {
    let live = Live::default();
    let events = resources::parse(SERVICE).into_iter().map(|document| match document.content {
        Content::Object(object) => object.set(),
        other => panic!("{other:?}"),
    });
    live.apply(events.collect::<Vec<_>>(), Instant::now());
    let (_, sources) = tokio::sync::watch::channel(Report::default());
    Plane::with(None, Configuration::new(live, Status::default(), sources))
}

async fn dry_run(plane: &Plane, kind: &str, origin: Option<&str>, body: impl Into<Body>) -> Response<Body> {
    let mut request = Request::post("/api/dry-run")
        .header(header::HOST, "localhost:8080")
        .header(header::CONTENT_TYPE, kind);
    if let Some(origin) = origin {
        request = request.header(header::ORIGIN, origin);
    }
    let request = request.body(body.into()).expect("a request");
    plane.router.clone().oneshot(request).await.expect("infallible")
}

fn conforms(schema: &str, value: &Value) {
    let description = serde_json::from_str(OPENAPI).expect("JSON");
    let reference = json!({ "$ref": format!("#/components/schemas/{schema}") });
    client::conforms(&description, &reference, value, schema);
}

#[tokio::test]
async fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let plane = plane();
    let text = SERVICE.replace("8080", "9090");
    let answer = dry_run(&plane, "application/yaml", None, text).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let plan = super::json(answer).await;
    conforms("Plan", &plan);
    assert_eq!(plan["objects"], json!([{ "object": "Service shop/orders", "change": "update" }]));
    let change = |kind: &str, name: &str| {
        let resources = plan["resources"].as_array().expect("resources");
        let found = resources.iter().find(|resource| resource["kind"] == kind && resource["name"] == name);
        found.map(|resource| resource["change"].clone())
    };
    assert_eq!(change("Cluster", "orders.shop:8080"), Some("remove".into()));
    assert_eq!(change("Cluster", "orders.shop:9090"), Some("add".into()));
    let routes = plane.json("/api/routes").await;
    assert_eq!(routes["services"][0]["service"], "orders.shop:8080", "nothing is applied");
}

#[tokio::test]
async fn a_dry_run_is_for_programs_and_the_own_page() {
    let plane = plane();
    let yaml = "application/yaml";
    for (kind, origin, status) in [
        ("text/plain", None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (yaml, Some("https://evil.example"), StatusCode::FORBIDDEN),
        (yaml, Some("null"), StatusCode::FORBIDDEN),
        (yaml, Some("http://localhost:8080"), StatusCode::OK),
        ("application/yaml; charset=utf-8", None, StatusCode::OK),
    ] {
        let answer = dry_run(&plane, kind, origin, SERVICE).await;
        assert_eq!(answer.status(), status, "{kind} {origin:?}");
    }
    let long = dry_run(&plane, yaml, None, vec![b'#'; (1 << 20) + 1]).await;
    assert_eq!(long.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let no_text = dry_run(&plane, yaml, None, vec![0xff, 0xfe]).await;
    assert_eq!(no_text.status(), StatusCode::BAD_REQUEST);
    assert_eq!(no_text.headers()[header::CONTENT_TYPE], "application/problem+json");
    let read = plane.ask("/api/dry-run").await;
    assert_eq!(
        (read.status(), read.headers()[header::ALLOW].as_bytes()),
        (StatusCode::METHOD_NOT_ALLOWED, &b"POST"[..])
    );
}

#[tokio::test]
async fn objects_and_routes_are_found_by_filters() {
    let plane = plane();
    let objects = plane.json("/api/objects?kind=Service&namespace=shop&name=orders").await;
    conforms("Objects", &objects);
    assert_eq!(objects["objects_total"], 1);
    let conditions = objects["objects"][0]["conditions"].as_array().expect("conditions");
    assert_eq!(conditions[1]["message"], "no connected sidecar asks for it");
    assert_eq!(plane.json("/api/objects?namespace=other").await["objects_total"], 0);
    let routes = plane.json("/api/routes?service=orders.shop&window=5m").await;
    conforms("Routes", &routes);
    let route = &routes["services"][0]["routes"][0];
    assert_eq!((&route["name"], &route["matches"]), (&json!("default"), &json!(["/**"])));
    assert_eq!(route["backends"][0]["cluster"], "orders.shop:8080");
    for path in ["/api/objects?kind=Secret", "/api/objects?colour=red", "/api/routes?window=2m"] {
        let answer = plane.ask(path).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{path}");
        let allowed = super::json(answer).await["allowed"].as_array().map(Vec::len);
        assert!(allowed.is_some_and(|allowed| allowed > 0), "{path}");
    }
}
