//! What sidecars tell of circuits, rules and retries, and where it is to be seen.

use std::time::Duration;

use futures_util::StreamExt as _;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, NumberDataPoint, Sum, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::net::TcpListener;
use weft_control_plane::store::Outcome;
use weft_wire::attribute;

use super::client::{self, Call, Sidecar, number, text};
use super::{ORDERS, Plane, WEB, edge};

fn of_endpoint(address: &str) -> Vec<KeyValue> {
    vec![
        text(attribute::CIRCUIT_KIND, "endpoint"),
        text(attribute::CIRCUIT_CLUSTER, "orders.shop:8080"),
        text(attribute::NETWORK_PEER_ADDRESS, address),
        number(attribute::NETWORK_PEER_PORT, 8080),
        text(attribute::PEER_WORKLOAD, "orders"),
        text(attribute::PEER_NAMESPACE, "shop"),
        text(attribute::CIRCUIT_CAUSE, "consecutive_5xx"),
        number(attribute::CIRCUIT_THRESHOLD, 5),
        number(attribute::CIRCUIT_CALLS, 30),
        number(attribute::CIRCUIT_ERRORS, 15),
    ]
}

fn point(attributes: Vec<KeyValue>, value: i64) -> NumberDataPoint {
    let value = Some(number_data_point::Value::AsInt(value));
    NumberDataPoint { attributes, value, time_unix_nano: client::now(), ..NumberDataPoint::default() }
}

fn states(states: &[(&str, i64)]) -> Metric {
    let data_points = states.iter().map(|(address, state)| point(of_endpoint(address), *state)).collect();
    let data = Some(Data::Gauge(Gauge { data_points }));
    Metric { name: attribute::CIRCUIT_STATE.to_owned(), data, ..Metric::default() }
}

fn retries(outcome: &str, count: i64) -> Metric {
    let attributes = vec![
        text(attribute::RETRY_OUTCOME, outcome),
        text(attribute::NETWORK_PROTOCOL_NAME, "http"),
        text(attribute::PEER_WORKLOAD, "orders"),
        text(attribute::PEER_NAMESPACE, "shop"),
        text(attribute::PEER_SERVICE, "orders.shop"),
        number(attribute::SERVER_PORT, 8080),
    ];
    let data_points = vec![point(attributes, count)];
    let data = Some(Data::Sum(Sum { data_points, aggregation_temporality: 1, is_monotonic: true }));
    Metric { name: attribute::CLIENT_RETRIES.to_owned(), data, ..Metric::default() }
}

#[tokio::test]
async fn a_circuit_that_two_sidecars_see_is_one_in_its_worst_state() {
    let plane = Plane::open(None);
    let (mut one, mut two) =
        (Sidecar::new("shop/web", "web-1", "10.0.0.1"), Sidecar::new("shop/web", "web-2", "10.0.0.2"));
    let calls = [Call::to("orders", 4)];
    one.deliver_with(&plane.ingest, &calls, vec![states(&[("10.0.0.7", 2), ("10.0.0.8", 0)])]).await;
    two.deliver_with(&plane.ingest, &calls, vec![states(&[("10.0.0.7", 0)])]).await;
    let circuits = plane.json("/api/circuits").await;
    assert_eq!(circuits["circuits_total"], 2);
    let open = &circuits["circuits"][0];
    assert_eq!(open["id"], "endpoint|orders.shop:8080|10.0.0.7:8080");
    assert_eq!(
        (&open["state"], &open["open_on"], &open["observers_total"]),
        (&"open".into(), &1.into(), &2.into())
    );
    assert_eq!(
        (&open["calls"], &open["errors"], &open["error_ratio"]),
        (&60.into(), &30.into(), &0.5.into())
    );
    assert_eq!(open["cause_text"], "5 server errors in a row");
    let badge = serde_json::json!({ "open": 1, "half_open": 0, "closed": 1 });
    plane
        .graph_with(|graph| {
            let node = graph["nodes"].as_array()?.iter().find(|node| node["id"] == ORDERS)?;
            (edge(graph, WEB, ORDERS)?["circuits"] == badge && node["circuits"] == badge).then_some(())
        })
        .await;
    assert_eq!(plane.json("/api/overview").await["circuits"], badge);
}

#[tokio::test]
async fn the_stream_of_circuits_tells_at_once_and_when_something_changes() {
    let plane = Plane::open(None);
    let response = plane.ask("/api/circuits/events").await;
    let mut events = client::events(response.into_body().into_data_stream().boxed());
    let (kind, nothing) = events.next().await.expect("at once");
    assert_eq!((kind.as_str(), &nothing["circuits_total"]), ("circuits", &0.into()));
    let mut web = Sidecar::new("shop/web", "web-1", "10.0.0.1");
    web.deliver_with(&plane.ingest, &[], vec![states(&[("10.0.0.7", 2)])]).await;
    let (_, changed) = events.next().await.expect("a change");
    assert_eq!(changed["circuits"][0]["state"], "open");
    assert!(changed["version"].as_u64() > nothing["version"].as_u64());
    plane.shutdown.cancel();
    assert!(events.next().await.is_none(), "the stream ends when the program does");
}

#[tokio::test]
async fn a_transition_is_told_once_however_often_it_is_sent() {
    let plane = Plane::open(None);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = tonic::transport::Server::builder().add_service(plane.ingest.grpc_logs_service());
    tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    let mut channel = LogsServiceClient::connect(format!("http://{address}")).await.expect("connected");
    let request = || {
        let mut attributes = of_endpoint("10.0.0.7");
        attributes.extend([
            text(attribute::CIRCUIT_FROM, "closed"),
            text(attribute::CIRCUIT_TO, "open"),
            number(attribute::EVENT_SEQUENCE, 1),
        ]);
        let event_name = attribute::CIRCUIT_TRANSITION.to_owned();
        let time_unix_nano = client::now();
        let record = LogRecord { event_name, time_unix_nano, attributes, ..LogRecord::default() };
        let foreign = LogRecord { event_name: "app.started".to_owned(), ..LogRecord::default() };
        let attributes = vec![
            text(attribute::SERVICE_NAME, "web"),
            text(attribute::SERVICE_NAMESPACE, "shop"),
            text(attribute::SERVICE_INSTANCE_ID, "web-1"),
        ];
        ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(Resource { attributes, ..Resource::default() }),
                scope_logs: vec![ScopeLogs { log_records: vec![record, foreign], ..ScopeLogs::default() }],
                ..ResourceLogs::default()
            }],
        }
    };
    for _ in 0..2 {
        let answer = channel.export(request()).await.expect("taken").into_inner();
        assert_eq!(answer.partial_success.expect("said").rejected_log_records, 1, "the app's record");
    }
    let circuits = plane.json("/api/circuits").await;
    let events = circuits["events"].as_array().expect("events");
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["from"], &events[0]["to"]), (&"closed".into(), &"open".into()));
    assert_eq!(events[0]["observer"]["workload"], "web");
    assert_eq!(circuits["circuits"][0]["state"], "open", "the event comes before the gauge");
    let description = serde_json::from_str(weft_control_plane::api::OPENAPI).expect("JSON");
    let schema = serde_json::json!({ "$ref": "#/components/schemas/Circuits" });
    client::conforms(&description, &schema, &circuits, "/api/circuits");
}

/// Counts of retries are journaled like all others.
#[tokio::test]
async fn retries_show_on_the_edge_and_survive_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let plane = Plane::open(Some(directory.path()));
    let mut web = Sidecar::new("shop/web", "web-1", "10.0.0.1");
    let more = || vec![retries("sent", 12), retries("budget_exhausted", 3)];
    let outcome = web.deliver_with(&plane.ingest, &[Call::to("orders", 100)], more()).await;
    assert_eq!(outcome, Outcome::Counted);
    let expected = serde_json::json!({ "sent": 12, "denied": 3, "amplification": 1.12 });
    let shown = |graph: &serde_json::Value| (edge(graph, WEB, ORDERS)?["retries"] == expected).then_some(());
    plane.graph_with(shown).await;
    let ingest = plane.ingest.clone();
    tokio::task::spawn_blocking(move || ingest.close()).await.expect("closed");
    drop(plane);
    let plane = Plane::open(Some(directory.path()));
    tokio::time::timeout(Duration::from_secs(10), plane.graph_with(shown)).await.expect("it is still there");
}
