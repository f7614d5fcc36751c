//! From a report on the wire to an edge in the API: the whole way of telemetry through the control plane, with a
//! small client in the sidecar's place.

#[path = "ingest/circuits.rs"]
mod circuits;
#[path = "ingest/client.rs"]
mod client;
#[path = "ingest/configuration.rs"]
mod configuration;

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode, header};
use futures_util::StreamExt as _;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use prost::Message as _;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use weft_control_plane::api::{Api, Gate, HostPolicy, OPENAPI};
use weft_control_plane::graph::EmptyMesh;
use weft_control_plane::ingest::{Config, Ingest};
use weft_control_plane::inspect::Configuration;
use weft_control_plane::lead::{Lead, Seen};
use weft_control_plane::store::Outcome;

use client::{Call, Sidecar};

struct Plane {
    ingest: Ingest,
    router: axum::Router,
    shutdown: CancellationToken,
}

impl Plane {
    fn open(data_dir: Option<&std::path::Path>) -> Self {
        Self::with(data_dir, Configuration::default())
    }

    fn with(data_dir: Option<&std::path::Path>, configuration: Configuration) -> Self {
        let registry = prometheus::Registry::new();
        let config = Config { data_dir: data_dir.map(ToOwned::to_owned) };
        let ingest = Ingest::open(&config, Arc::new(EmptyMesh), &registry).expect("a journal");
        let shutdown = CancellationToken::new();
        let api = Api::new(ingest.clone(), Arc::new(EmptyMesh), configuration, registry, shutdown.clone());
        let live = api.live();
        tokio::spawn(async move { live.run().await });
        Self { ingest, router: api.router(Gate::open(HostPolicy::Loopback)), shutdown }
    }

    async fn ask(&self, path: &str) -> Response<Body> {
        self.ask_with(Request::get(path)).await
    }

    async fn ask_with(&self, request: http::request::Builder) -> Response<Body> {
        let request = request.header(header::HOST, "localhost:8080").body(Body::empty()).expect("a request");
        self.router.clone().oneshot(request).await.expect("infallible")
    }

    async fn json(&self, path: &str) -> Value {
        let response = self.ask(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        json(response).await
    }

    /// Asks for the graph until `wanted` finds in it what it looks for. Views are up to half a second old.
    async fn graph_with<T>(&self, wanted: impl Fn(&Value) -> Option<T>) -> T {
        let search = async {
            loop {
                if let Some(found) = wanted(&self.json("/api/graph?window=1h").await) {
                    return found;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), search).await.expect("it never showed")
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn json(response: Response<Body>) -> Value {
    let body = to_bytes(response.into_body(), usize::MAX).await.expect("a body");
    serde_json::from_slice(&body).expect("JSON")
}

fn edge<'a>(graph: &'a Value, source: &str, target: &str) -> Option<&'a Value> {
    let edges = graph["edges"].as_array().expect("edges");
    edges.iter().find(|edge| edge["source"] == source && edge["target"] == target)
}

const WEB: &str = "workload:shop/web";
const ORDERS: &str = "workload:shop/orders";

/// Over gRPC, through a real socket; the control plane dies in the middle without closing anything.
#[tokio::test]
async fn ten_thousand_requests_are_ten_thousand_across_a_killed_control_plane() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut sidecar = Sidecar::new("shop/web", "web-1", "10.0.0.1");
    let call = Call::to("orders", 100);

    let before = Plane::open(Some(directory.path()));
    let mut channel = dial(&before.ingest).await;
    for _ in 0..50 {
        channel.export(sidecar.report(std::slice::from_ref(&call))).await.expect("acknowledged");
    }
    // What a killed process leaves: its files as they are, while it still holds them open.
    let remains = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(directory.path()).expect("readable") {
        let entry = entry.expect("readable");
        std::fs::copy(entry.path(), remains.path().join(entry.file_name())).expect("copied");
    }
    drop(before);

    let after = Plane::open(Some(remains.path()));
    let mut channel = dial(&after.ingest).await;
    // The acknowledgement of the last report was lost, so it comes again.
    channel.export(sidecar.again(std::slice::from_ref(&call))).await.expect("acknowledged");
    for _ in 0..50 {
        channel.export(sidecar.report(std::slice::from_ref(&call))).await.expect("acknowledged");
    }
    let edge = after.graph_with(|graph| {
        edge(graph, WEB, ORDERS).filter(|edge| edge["requests_total"] == 10_000).cloned()
    });
    let edge = edge.await;
    assert_eq!(edge["requests"], 10_000, "also in the window of an hour");
    assert_eq!(edge["services"][0], "orders.shop:8080");
    assert_eq!(edge["routes"][0]["route"], "/orders/{id}");
}

async fn dial(ingest: &Ingest) -> MetricsServiceClient<tonic::transport::Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = tonic::transport::Server::builder().add_service(ingest.grpc_service());
    tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    MetricsServiceClient::connect(format!("http://{address}")).await.expect("connected")
}

#[tokio::test]
async fn a_report_without_its_sequence_is_refused() {
    let plane = Plane::open(None);
    let mut channel = dial(&plane.ingest).await;
    let mut request = Sidecar::new("shop/web", "web-1", "10.0.0.1").report(&[Call::to("orders", 1)]);
    request.metadata_mut().remove(weft_wire::header::REPORT_SEQUENCE);
    let refused = channel.export(request).await.expect_err("it could be counted twice");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("weft-report-sequence"), "{}", refused.message());
}

/// The rule of who counts, in every order that start-up and restart can bring.
#[tokio::test]
async fn a_call_is_counted_once_whoever_reports_first() {
    let directory = tempfile::tempdir().expect("a directory");
    let plane = Plane::open(Some(directory.path()));
    let mut web = Sidecar::new("shop/web", "web-1", "10.0.0.9");
    let mut orders = Sidecar::new("shop/orders", "orders-1", "10.0.0.2");
    let from_web = Call::from("10.0.0.9", 5);
    let from_cron = Call::from("10.0.0.77", 3);

    // The callee is first: nobody is known to report for the caller, so its word counts for now.
    orders.deliver(&plane.ingest, &[from_web.clone(), from_cron.clone()]).await;
    plane
        .graph_with(|graph| {
            edge(graph, "unmeshed:10.0.0.9", ORDERS).map(|edge| assert_eq!(edge["reported_by"], "server"))
        })
        .await;
    // Then the caller reports the same calls itself.
    web.deliver(&plane.ingest, &[Call::to("orders", 5)]).await;
    plane.graph_with(|graph| edge(graph, WEB, ORDERS).map(|_| ())).await;
    let counts = async |plane: &Plane| {
        let graph = plane.json("/api/graph?window=1h").await;
        let of = |source: &str| {
            edge(&graph, source, ORDERS).map(|edge| edge["requests_total"].as_u64().expect("a number"))
        };
        (of(WEB), of("unmeshed:10.0.0.9"), of("unmeshed:10.0.0.77"))
    };
    plane.graph_with(|graph| edge(graph, "unmeshed:10.0.0.9", ORDERS).is_none().then_some(())).await;
    assert_eq!(counts(&plane).await, (Some(5), None, Some(3)));

    // From now on the callee's word on that caller is not used, and on others it is.
    orders.deliver(&plane.ingest, &[from_web.clone(), from_cron.clone()]).await;
    plane
        .graph_with(|graph| {
            let cron = edge(graph, "unmeshed:10.0.0.77", ORDERS)?;
            (cron["requests_total"] == 6).then_some(())
        })
        .await;
    assert_eq!(counts(&plane).await, (Some(5), None, Some(6)));

    // A restart forgets no caller: the callee's report comes first again, with nobody connected yet.
    tokio::task::spawn_blocking({
        let ingest = plane.ingest.clone();
        move || ingest.close()
    })
    .await
    .expect("closed");
    let plane = Plane::open(Some(directory.path()));
    orders.deliver(&plane.ingest, &[from_web, from_cron]).await;
    plane
        .graph_with(|graph| {
            let cron = edge(graph, "unmeshed:10.0.0.77", ORDERS)?;
            (cron["requests_total"] == 9).then_some(())
        })
        .await;
    assert_eq!(counts(&plane).await, (Some(5), None, Some(9)));
}

/// After a long outage both sides catch up, and the callee is faster.
#[tokio::test]
async fn a_callee_that_catches_up_first_does_not_count_for_its_caller() {
    let plane = Plane::open(None);
    let mut web = Sidecar::new("shop/web", "web-1", "10.0.0.9");
    let mut orders = Sidecar::new("shop/orders", "orders-1", "10.0.0.2");
    web.delay_seconds = 300;
    web.deliver(&plane.ingest, &[Call::to("orders", 1)]).await;
    for ago in [200, 100, 0] {
        orders.delay_seconds = ago;
        orders.deliver(&plane.ingest, &[Call::from("10.0.0.9", 5)]).await;
    }
    let unmeshed =
        |graph: &Value| edge(graph, "unmeshed:10.0.0.9", ORDERS).map(|edge| edge["requests_total"].clone());
    assert_eq!(plane.graph_with(unmeshed).await, 15, "nobody has reported for that time yet");
    for ago in [200, 100, 0] {
        web.delay_seconds = ago;
        web.deliver(&plane.ingest, &[Call::to("orders", 5)]).await;
    }
    plane.graph_with(|graph| (edge(graph, WEB, ORDERS)?["requests_total"] == 16).then_some(())).await;
    assert_eq!(unmeshed(&plane.json("/api/graph?window=1h").await), None);
}

#[tokio::test]
async fn callers_on_loopback_count_only_where_nobody_else_could_have_called() {
    let plane = Plane::open(None);
    let mut alone = Sidecar::new("shop/orders", "orders-1", "127.0.0.1");
    alone.deliver(&plane.ingest, &[Call::from("127.0.0.1", 2)]).await;
    let count =
        |graph: &Value| edge(graph, "unmeshed:127.0.0.1", ORDERS).map(|edge| edge["requests_total"].clone());
    assert_eq!(plane.graph_with(count).await, 2);
    // A neighbour begins to report; what came before it stands for what it did not make.
    let mut neighbour = Sidecar::new("shop/web", "web-1", "127.0.0.1");
    neighbour.deliver(&plane.ingest, &[Call::to("orders", 1)]).await;
    alone.deliver(&plane.ingest, &[Call::from("127.0.0.1", 1)]).await;
    plane.graph_with(|graph| edge(graph, WEB, ORDERS).map(|_| ())).await;
    let graph = plane.json("/api/graph?window=1h").await;
    let left = edge(&graph, "unmeshed:127.0.0.1", ORDERS)
        .map_or(0, |edge| edge["requests_total"].as_u64().unwrap_or(0));
    assert!(left <= 2, "the neighbour's call is not counted a second time");
}

#[tokio::test]
async fn a_late_report_is_placed_where_it_happened() {
    let plane = Plane::open(None);
    let mut sidecar = Sidecar::new("shop/web", "web-1", "10.0.0.1");
    // The sender's clock is a day off, and the report waited for half a minute.
    sidecar.clock_off_seconds = -86_400;
    sidecar.delay_seconds = 30;
    sidecar.deliver(&plane.ingest, &[Call::to("orders", 7)]).await;
    plane.graph_with(|graph| edge(graph, WEB, ORDERS).map(|_| ())).await;
    let count = async |window: &str| {
        let graph = plane.json(&format!("/api/graph?window={window}")).await;
        edge(&graph, WEB, ORDERS).expect("an edge")["requests"].clone()
    };
    assert_eq!(count("10s").await, 0);
    assert_eq!(count("1m").await, 7);
}

fn http_router(plane: &Plane, lead: Lead) -> axum::Router {
    let sent_away = prometheus::IntCounter::new("sent_away", "Requests refused.").expect("a valid name");
    plane.ingest.http_router(lead, sent_away)
}

#[tokio::test]
async fn otlp_over_http_is_sent_to_the_one_that_leads() {
    let plane = Plane::open(None);
    let (tells, hears) = tokio::sync::watch::channel(Seen::Nobody);
    let router = http_router(&plane, Lead::new(hears));
    let post = async || {
        let request = Request::post("/v1/metrics").header(header::CONTENT_TYPE, "application/json");
        router.clone().oneshot(request.body(Body::from("{}")).unwrap()).await.unwrap()
    };
    assert_eq!(post().await.status(), StatusCode::OK, "nobody else leads");
    tells.send_replace(Seen::Theirs("cp-two_1b2c".into()));
    let answer = post().await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()[header::RETRY_AFTER], "1");
    assert_eq!(answer.headers()[header::CONNECTION], "close", "on another it comes to the other");
    let body = to_bytes(answer.into_body(), 1024).await.unwrap();
    assert!(String::from_utf8_lossy(&body).contains("cp-two leads"), "{body:?}");
    tells.send_replace(Seen::Ours(tokio::time::Instant::now()));
    assert_eq!(post().await.status(), StatusCode::OK);
}

#[tokio::test]
async fn otlp_over_http_takes_protobuf_json_and_gzip() {
    let plane = Plane::open(None);
    let router = http_router(&plane, Lead::alone());
    let post = async |kind: &str, encoding: Option<&str>, body: Vec<u8>| {
        let mut request = Request::post("/v1/metrics").header(header::CONTENT_TYPE, kind);
        if let Some(encoding) = encoding {
            request = request.header(header::CONTENT_ENCODING, encoding);
        }
        router.clone().oneshot(request.body(Body::from(body)).expect("a request")).await.expect("infallible")
    };
    let report = || client::request("shop/web", &[Call::to("orders", 2)], 0, 0);
    let taken = post("application/x-protobuf", None, report().encode_to_vec()).await;
    assert_eq!(taken.status(), StatusCode::OK);
    let body = to_bytes(taken.into_body(), 1_024).await.expect("a body");
    assert_eq!(ExportMetricsServiceResponse::decode(body), Ok(ExportMetricsServiceResponse::default()));
    let packed = client::gzip(&report().encode_to_vec());
    assert_eq!(post("application/x-protobuf", Some("gzip"), packed).await.status(), StatusCode::OK);
    let text = serde_json::to_vec(&report()).expect("JSON");
    let taken = post("application/json; charset=utf-8", None, text).await;
    assert_eq!(taken.headers()[header::CONTENT_TYPE], "application/json");
    assert_eq!(json(taken).await["partialSuccess"], Value::Null);
    plane.graph_with(|graph| (edge(graph, WEB, ORDERS)?["requests_total"] == 6).then_some(())).await;

    assert_eq!(post("text/plain", None, Vec::new()).await.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let refused = post("application/json", None, b"{".to_vec()).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert_eq!(json(refused).await["code"], 3);
    let bomb = client::gzip(&vec![0; weft_control_plane::ingest::REQUEST_BYTES_MAX + 1]);
    assert_eq!(
        post("application/x-protobuf", Some("gzip"), bomb).await.status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );
}

#[tokio::test]
async fn an_edge_has_a_page_of_its_own() {
    let plane = Plane::open(None);
    Sidecar::new("shop/web", "web-1", "10.0.0.1").deliver(&plane.ingest, &[Call::to("orders", 4)]).await;
    let id = plane.graph_with(|graph| edge(graph, WEB, ORDERS).map(|edge| edge["id"].clone())).await;
    let detail = plane.json(&format!("/api/edges/{}?window=10s", id.as_str().expect("a text"))).await;
    assert_eq!(detail["edge"]["routes"][0]["statuses"][0]["status"], "200");
    assert_eq!(detail["series"]["requests_per_second"].as_array().map(Vec::len), Some(10));
}

#[tokio::test]
async fn the_event_stream_begins_with_the_graph_and_goes_on_with_diffs() {
    let plane = Plane::open(None);
    let response = plane.ask("/api/graph/events?window=10s").await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut events = client::events(response.into_body().into_data_stream().boxed());
    let (kind, snapshot) = events.next().await.expect("a snapshot");
    assert_eq!((kind.as_str(), &snapshot["diagnosis"]["code"]), ("snapshot", &"no_sidecar".into()));
    Sidecar::new("shop/web", "web-1", "10.0.0.1").deliver(&plane.ingest, &[Call::to("orders", 4)]).await;
    let (kind, diff) = events.next().await.expect("a diff");
    assert_eq!(kind, "diff");
    assert_eq!(diff["base_version"], snapshot["version"]);
    assert!(diff["version"].as_u64() > snapshot["version"].as_u64());
    assert_eq!(diff["edges"]["upsert"][0]["target"], ORDERS);
    assert_eq!(diff["diagnosis"], Value::Null);
    plane.shutdown.cancel();
    assert!(events.next().await.is_none(), "the stream ends when the program does");
}

#[tokio::test]
async fn errors_are_problems_that_say_what_to_do() {
    let plane = Plane::open(None);
    for (path, status) in [
        ("/api/graph?window=2m", StatusCode::BAD_REQUEST),
        ("/api/graph?windw=1m", StatusCode::BAD_REQUEST),
        ("/api/graph/events?idle=maybe", StatusCode::BAD_REQUEST),
        ("/api/edges/ffffffffffffffffffffffffffffffff", StatusCode::NOT_FOUND),
        ("/api/edges/what", StatusCode::NOT_FOUND),
        ("/api/nothing", StatusCode::NOT_FOUND),
        ("/assets/missing.js", StatusCode::NOT_FOUND),
    ] {
        let response = plane.ask(path).await;
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json", "{path}");
        let problem = json(response).await;
        assert_eq!(problem["status"], status.as_u16());
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
    }
    let window = json(plane.ask("/api/graph?window=2m").await).await;
    assert_eq!(window["allowed"], serde_json::json!(["10s", "1m", "5m", "1h"]));
    for path in ["/api/graph", "/", "/api/edges/x"] {
        let wrong = plane.ask_with(Request::delete(path)).await;
        assert_eq!(wrong.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(wrong.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert!(wrong.headers().contains_key(header::ALLOW), "{path}");
    }
    let request = Request::get("/api/graph").header(header::HOST, "rebound.example").body(Body::empty());
    let response = plane.router.clone().oneshot(request.expect("a request")).await.expect("infallible");
    assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn the_page_is_served_with_its_guards() {
    let plane = Plane::open(None);
    let page = plane.ask("/").await;
    assert_eq!(page.status(), StatusCode::OK);
    let headers = page.headers().clone();
    assert!(headers[header::CONTENT_TYPE].to_str().expect("text").starts_with("text/html"));
    assert_eq!(headers[header::CACHE_CONTROL], "no-cache");
    assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().expect("text");
    assert!(policy.contains("script-src 'self';") && policy.contains("frame-ancestors 'none'"), "{policy}");
    let page = to_bytes(page.into_body(), usize::MAX).await.expect("a body");
    let text = String::from_utf8_lossy(&page).into_owned();
    assert!(!text.contains("<script>"), "no inline script");
    // A view's own address gives the page too, and what the page refers to is there and cached for good.
    assert_eq!(plane.ask("/edges/abc").await.status(), StatusCode::OK);
    for asset in text.split('"').filter(|part| part.contains("assets/")) {
        let asset = plane.ask(&format!("/{}", asset.trim_start_matches("./").trim_start_matches('/'))).await;
        assert_eq!(asset.status(), StatusCode::OK);
        assert!(asset.headers()[header::CACHE_CONTROL].to_str().expect("text").contains("immutable"));
    }
    let packed =
        plane.ask_with(Request::get("/api/openapi.json").header(header::ACCEPT_ENCODING, "gzip")).await;
    assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
}

#[tokio::test]
async fn answers_are_what_the_description_says() {
    let plane = Plane::open(None);
    let calls = [Call::to("orders", 4), Call::failing("orders", 2, "connect_refused")];
    Sidecar::new("shop/web", "web-1", "10.0.0.1").deliver(&plane.ingest, &calls).await;
    let id = plane.graph_with(|graph| edge(graph, WEB, ORDERS).map(|edge| edge["id"].clone())).await;
    let description: Value = serde_json::from_str(OPENAPI).expect("JSON");
    let detail = format!("/api/edges/{}", id.as_str().expect("a text"));
    // A deed, so that the audit log has an entry to look at.
    plane.ask_with(Request::put("/api/graph")).await;
    for (path, schema) in [
        ("/api/graph", "Graph"),
        (detail.as_str(), "EdgeDetail"),
        ("/api/circuits", "Circuits"),
        ("/api/objects", "Objects"),
        ("/api/routes", "Routes"),
        ("/api/proxies", "Proxies"),
        ("/api/config/errors", "ConfigErrors"),
        ("/api/overview", "Overview"),
        ("/api/session", "Session"),
        ("/api/audit", "Audit"),
    ] {
        let reference = format!("#/components/schemas/{schema}");
        client::conforms(
            &description,
            &serde_json::json!({ "$ref": reference }),
            &plane.json(path).await,
            path,
        );
    }
    let metrics = to_bytes(plane.ask("/metrics").await.into_body(), usize::MAX).await.expect("a body");
    let metrics = String::from_utf8_lossy(&metrics);
    assert!(metrics.contains("weft_ingest_reports_total{outcome=\"counted\"} 1"), "{metrics}");
    assert!(metrics.contains("weft_graph_edges 1"), "{metrics}");
}

#[tokio::test]
async fn a_repetition_is_acknowledged_and_not_counted() {
    let plane = Plane::open(None);
    let mut sidecar = Sidecar::new("shop/web", "web-1", "10.0.0.1");
    assert_eq!(sidecar.deliver(&plane.ingest, &[Call::to("orders", 4)]).await, Outcome::Counted);
    assert_eq!(sidecar.deliver_again(&plane.ingest, &[Call::to("orders", 4)]).await, Outcome::Duplicate);
}
