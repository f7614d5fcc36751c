//! Configuration streams and reports are of whom the certificate is of.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{Node, data_source};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::ResourceMetrics;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use weft_wire::node::{NodeMetadata, USER_AGENT};
use weft_wire::tls::TRUST_BUNDLE;

use super::client::{Config, Identity, Request, Run, until};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const FAR: Duration = Duration::from_secs(30);

struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    async fn open(run: &Run, own: Option<&Identity>, instance: &str, workload: &str) -> Result<Self, Status> {
        let metadata = NodeMetadata {
            workload: workload.parse().unwrap(),
            version: None,
            pod: None,
            zone: None,
            addresses: vec!["10.9.9.9".parse().unwrap()],
            registrations: Vec::new(),
        };
        let node = Node {
            id: instance.into(),
            cluster: workload.into(),
            metadata: Some(metadata.to_struct()),
            user_agent_name: USER_AGENT.into(),
            ..Default::default()
        };
        Self::open_as(run, own, node).await
    }

    async fn open_as(run: &Run, own: Option<&Identity>, node: Node) -> Result<Self, Status> {
        let mut client = AggregatedDiscoveryServiceClient::new(run.connect(own).await.unwrap());
        let (requests, receiver) = mpsc::channel(16);
        let subscribe = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: SECRET.into(),
            resource_names_subscribe: vec![TRUST_BUNDLE.into()],
            ..Default::default()
        };
        requests.send(subscribe).await.unwrap();
        let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    /// The next bundle: its roots, not acknowledged yet.
    async fn next(&mut self) -> Result<(Vec<Vec<u8>>, String), Status> {
        let response = tokio::time::timeout(FAR, self.responses.message()).await.expect("in time")?;
        let response = response.expect("not the end");
        let body = response.resources[0].resource.as_ref().unwrap();
        let secret = Secret::decode(&*body.value).unwrap();
        let Some(secret::Type::ValidationContext(context)) = secret.r#type else { panic!("{secret:?}") };
        let Some(data_source::Specifier::InlineBytes(pem)) = context.trusted_ca.unwrap().specifier else {
            panic!("not inline")
        };
        let roots = pem::parse_many(pem).unwrap().into_iter().map(pem::Pem::into_contents).collect();
        Ok((roots, response.nonce))
    }

    async fn acknowledge(&self, nonce: String) {
        let answer =
            DeltaDiscoveryRequest { type_url: SECRET.into(), response_nonce: nonce, ..Default::default() };
        self.requests.send(answer).await.unwrap();
    }

    async fn refused(run: &Run, own: Option<&Identity>, instance: &str, workload: &str) -> Status {
        match Self::open(run, own, instance, workload).await {
            Err(status) => status,
            Ok(mut stream) => stream.next().await.expect_err("refused"),
        }
    }
}

async fn joined(run: &Run, name: &str) -> Identity {
    let token = run.token("shop", name).await;
    run.ask(None, Request::new().bearer(&token)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_needs_a_certificate_and_is_of_the_workload_that_it_is_of() {
    let run = Run::start(Config::default()).await;
    let orders = joined(&run, "orders").await;
    let anonymous = Stream::refused(&run, None, "orders-1", "shop/orders").await;
    assert_eq!(anonymous.code(), Code::Unauthenticated, "{}", anonymous.message());
    assert!(anonymous.message().contains("client certificate"), "{}", anonymous.message());

    let mut stream = Stream::open(&run, Some(&orders), "orders-1", "shop/orders").await.unwrap();
    let (roots, nonce) = stream.next().await.unwrap();
    assert_eq!(roots.len(), 1);
    assert_eq!(roots[0], orders.chain.last().unwrap().to_vec());
    stream.acknowledge(nonce).await;

    for (instance, workload, word) in [
        ("x", "shop/payments", "workload"),
        ("x", "bank/orders", "namespace"),
        ("orders-1", "shop/web", "instance"),
    ] {
        let own = if word == "instance" { joined(&run, "web").await } else { joined(&run, "orders").await };
        let refusal = Stream::refused(&run, Some(&own), instance, workload).await;
        assert_eq!(refusal.code(), Code::PermissionDenied, "{word}: {}", refusal.message());
        let counted = format!("weft_control_identity_mismatch_total{{reason=\"{word}\",what=\"stream\"}}");
        assert_eq!(run.metric(&counted).await, 1.0, "{word}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_of_others_sees_the_mesh_through_its_own_namespace_only() {
    let run = Run::start(Config::default()).await;
    let orders = joined(&run, "orders").await;
    let envoy = |cluster: &str| Node {
        id: "envoy-1".into(),
        cluster: cluster.into(),
        user_agent_name: "envoy".into(),
        ..Default::default()
    };
    let mut stream = Stream::open_as(&run, Some(&orders), envoy("bank/orders")).await.unwrap();
    let refusal = stream.next().await.expect_err("of another namespace");
    assert_eq!(refusal.code(), Code::PermissionDenied, "{}", refusal.message());
    for cluster in ["shop/gateway", "edge"] {
        Stream::open_as(&run, Some(&orders), envoy(cluster)).await.unwrap().next().await.expect(cluster);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_for_a_workload_named_otherwise_than_its_account_lets_it_in() {
    let run = Run::start(Config::default()).await;
    let made = r#"{"namespace":"shop","name":"orders-v2","service_account":"orders"}"#;
    let made = run.api_post("/api/tokens", made).await;
    let made: serde_json::Value = serde_json::from_str(super::client::body(&made)).unwrap();
    let token = made["token"].as_str().unwrap();
    let own = run.ask(None, Request::new().bearer(token)).await.unwrap();
    assert_eq!(own.id(), "spiffe://cluster.local/ns/shop/sa/orders");
    Stream::open(&run, Some(&own), "i", "shop/orders-v2").await.unwrap().next().await.unwrap();
    let refusal = Stream::refused(&run, Some(&own), "j", "shop/orders-v3").await;
    assert_eq!(refusal.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_sidecars_says_until_when_each_is_and_whether_it_trusts_the_roots() {
    let run = Run::start(Config::default()).await;
    let orders = joined(&run, "orders").await;
    let mut stream = Stream::open(&run, Some(&orders), "orders-1", "shop/orders").await.unwrap();
    let (_, nonce) = stream.next().await.unwrap();
    let listed = async || -> serde_json::Value {
        let body = run.api_get("/api/proxies").await;
        let all: serde_json::Value = serde_json::from_str(super::client::body(&body)).unwrap();
        all["proxies"][0].clone()
    };
    let before = listed().await;
    assert_eq!(before["trusts_bundle"], false, "{before}");
    assert_eq!(before["identity"], "spiffe://cluster.local/ns/shop/sa/orders");
    let (shown, known) = (&before["certificate"], run.overview().await);
    assert_eq!(shown["root"], known["roots"][0]["fingerprint"], "{before}");
    assert_eq!(shown["issuer"], known["issuer"]["subject"], "{before}");
    assert_eq!(shown["not_after"], before["certificate_expires"]);
    let at = |name: &str| shown[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    assert!(at("not_after") - at("not_before") >= 86_400, "{before}");
    let leaf = weft_control_plane::ca::issue::Certificate::read(orders.chain[0].clone()).unwrap();
    assert_eq!(shown["serial"], *leaf.serial);

    stream.acknowledge(nonce).await;
    until(async || (listed().await["trusts_bundle"] == true).then_some(())).await;
}

async fn report(run: &Run, own: Option<&Identity>, namespace: &str, name: &str) -> Result<(), Status> {
    let pair = |key: &str, value: &str| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.into())) }),
        ..Default::default()
    };
    let attributes = vec![pair("service.namespace", namespace), pair("service.name", name)];
    let resource = Some(Resource { attributes, ..Default::default() });
    let metrics = ResourceMetrics { resource, ..Default::default() };
    let mut client = MetricsServiceClient::new(run.connect(own).await.unwrap());
    client.export(ExportMetricsServiceRequest { resource_metrics: vec![metrics] }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_are_taken_only_from_whom_they_are_of() {
    let run = Run::start(Config::default()).await;
    let orders = joined(&run, "orders").await;
    report(&run, Some(&orders), "shop", "orders").await.unwrap();
    let anonymous = report(&run, None, "shop", "orders").await.unwrap_err();
    assert_eq!(anonymous.code(), Code::Unauthenticated);
    let long = report(&run, None, "shop", &"x".repeat(20 << 20)).await.unwrap_err();
    assert_eq!(long.code(), Code::Unauthenticated, "a stranger's body is not read: {}", long.message());
    let forged = report(&run, Some(&orders), "bank", "orders").await.unwrap_err();
    assert_eq!(forged.code(), Code::PermissionDenied, "{}", forged.message());
    // Its stream might still come and vouch for it, so it may try again.
    let forged = report(&run, Some(&orders), "shop", "payments").await.unwrap_err();
    assert_eq!(forged.code(), Code::Unavailable, "{}", forged.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_says_nothing_does_not_count_as_another_instances() {
    let run = Run::start(Config::default()).await;
    let (orders, web) = (joined(&run, "orders").await, joined(&run, "web").await);
    let mut stream = Stream::open(&run, Some(&orders), "orders-1", "shop/orders").await.unwrap();
    stream.next().await.unwrap();
    let empty = async |own: &Identity| {
        let mut client = MetricsServiceClient::new(run.connect(Some(own)).await.unwrap());
        let mut request = tonic::Request::new(ExportMetricsServiceRequest::default());
        for (key, value) in [
            (weft_wire::header::REPORT_INSTANCE, "orders-1"),
            (weft_wire::header::REPORT_SEQUENCE, "9"),
            (weft_wire::header::REPORT_SENT_AT, "1800000000000000000"),
        ] {
            request.metadata_mut().insert(key, value.parse().unwrap());
        }
        client.export(request).await.map(drop)
    };
    let forged = empty(&web).await.unwrap_err();
    assert_eq!(forged.code(), Code::PermissionDenied, "{}", forged.message());
    empty(&orders).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_get_past_the_handshake() {
    let (run, elsewhere) = (Run::start(Config::default()).await, Run::start(Config::default()).await);
    let foreign = joined(&elsewhere, "orders").await;
    let refusal = run.ask(Some(&foreign), Request::new()).await.unwrap_err();
    assert_ne!(refusal.code(), Code::Unauthenticated, "no byte of the request was looked at");
    let counted =
        "weft_listener_tls_handshake_failures_total{listener=\"control_tls\",reason=\"tls_unknown_issuer\"}";
    until(async || (run.metric(counted).await >= 1.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_the_certificate_it_was_opened_with() {
    let arguments = ["--leaf-lifetime", "6s"].map(str::to_owned).to_vec();
    let run = Run::start(Config { arguments, ..Config::default() }).await;
    let orders = joined(&run, "orders").await;
    let mut stream = Stream::open(&run, Some(&orders), "orders-1", "shop/orders").await.unwrap();
    stream.next().await.unwrap();
    let ended = stream.next().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated, "{}", ended.message());
    assert!(ended.message().contains("has expired"), "{}", ended.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_is_replaced_when_every_sidecar_trusts_the_new_one_and_shows_how_far_it_is() {
    let kept = tempfile::tempdir().unwrap();
    let arguments = ["--leaf-lifetime", "25s"].map(str::to_owned).to_vec();
    let run = Run::start(Config { arguments, data_dir: Some(kept.path().to_owned()) }).await;
    let (orders, web) = (joined(&run, "orders").await, joined(&run, "web").await);
    let (waiting, pinned) = (run.token("shop", "late").await, run.token("shop", "late").await);
    let mut streams = [
        Stream::open(&run, Some(&orders), "orders-1", "shop/orders").await.unwrap(),
        Stream::open(&run, Some(&web), "web-1", "shop/web").await.unwrap(),
    ];
    for stream in &mut streams {
        let (_, nonce) = stream.next().await.unwrap();
        stream.acknowledge(nonce).await;
    }
    let begun = run.api_post("/api/ca/rotate", "{}").await;
    assert!(begun.contains("\"phase\":\"distributing\""), "{begun}");
    let again = run.api_post("/api/ca/rotate", "{}").await;
    assert!(again.starts_with("HTTP/1.1 409"), "{again}");

    // One has it, one does not: it waits, and says for whom.
    let old_root = orders.chain.last().unwrap().to_vec();
    let (roots, nonce) = streams[0].next().await.unwrap();
    assert_eq!(roots.len(), 2);
    assert_eq!(roots[0], old_root);
    streams[0].acknowledge(nonce).await;
    let (_, slow) = streams[1].next().await.unwrap();
    let text = "1 of 2 sidecars trust the new root";
    until(async || (run.overview().await["rotation"]["text"] == text).then_some(())).await;
    assert_eq!(run.overview().await["rotation"]["waiting"], serde_json::json!(["web-1"]));
    streams[1].acknowledge(slow).await;

    // Then the new one issues, and stands first.
    let (now_first, _) = streams[0].next().await.unwrap();
    assert_eq!(now_first, [roots[1].clone(), old_root.clone()]);
    let renewed = run.ask(Some(&orders), Request::new()).await.unwrap();
    assert_eq!(renewed.chain.last().unwrap().to_vec(), roots[1]);
    // A token that pins the old root is still good: the old root is in the chain, and has signed the new one.
    let late = run.ask(None, Request::new().bearer(&waiting)).await.unwrap();
    assert!(late.chain.iter().any(|one| one.to_vec() == old_root));

    // And in the end the old one is dropped, also after a restart in between.
    drop(streams);
    run.stop().await;
    let arguments = ["--leaf-lifetime", "25s"].map(str::to_owned).to_vec();
    let run = Run::start(Config { arguments, data_dir: Some(kept.path().to_owned()) }).await;
    assert_eq!(run.overview().await["rotation"]["phase"], "replacing");
    until(async || run.overview().await["rotation"].is_null().then_some(())).await;
    assert_eq!(run.overview().await["roots"].as_array().unwrap().len(), 1);
    let last = joined(&run, "orders").await;
    assert_eq!(last.root_pin(), renewed.root_pin());
    assert_eq!(last.chain.len(), 3, "nothing of the old root is left");
    let too_late = run.ask(None, Request::new().bearer(&pinned)).await.unwrap_err();
    assert!(too_late.message().contains("of no root of this one"), "{}", too_late.message());
}
