//! The configuration server as a sidecar meets it: a real control plane on port 0, a directory of YAML, and an
//! incremental xDS client that speaks the protocol by hand.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "xds/client.rs"]
mod client;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser as _;
use client::{Client, EDS, LDS, NodeOptions};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use prost::Message;
use weft_control_plane::app::App;
use weft_control_plane::config::{Config, Listen};

/// No test waits for this; it only ends one that would wait for ever.
const FAR: Duration = Duration::from_secs(15);

fn slice(addresses: &[&str]) -> String {
    let endpoints: String =
        addresses.iter().map(|address| format!("- {{addresses: [{address}]}}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: orders, namespace: shop}}\n\
         spec: {{clusterIP: 10.96.0.1, ports: [{{name: http, port: 8080}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: orders-1, namespace: shop, labels: {{kubernetes.io/service-name: orders}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints:\n{endpoints}"
    )
}

fn write(directory: &Path, text: &str) {
    let temporary = directory.join(".orders.tmp");
    std::fs::write(&temporary, text).unwrap();
    std::fs::rename(temporary, directory.join("orders.yaml")).unwrap();
}

fn config(source: &Path) -> Config {
    let any = || Listen::Address("127.0.0.1:0".parse().unwrap());
    Config {
        source: Some(source.to_owned()),
        insecure: true,
        control_listen: any(),
        control_tls_listen: Listen::Off,
        api_listen: any(),
        otlp_grpc_listen: Listen::Off,
        otlp_http_listen: Listen::Off,
        metrics_listen: any(),
        drain_deadline: FAR,
        ..Config::parse_from(["weft-control-plane"])
    }
}

async fn start(source: &Path) -> App {
    App::start(config(source)).await.unwrap()
}

async fn stop(app: App) {
    tokio::time::timeout(FAR, app.stop(std::future::pending()))
        .await
        .expect("ends although streams are open");
}

fn addresses(body: &[u8]) -> Vec<String> {
    use envoy_types::pb::envoy::config::core::v3::address::Address;
    use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
    let assignment = ClusterLoadAssignment::decode(body).unwrap();
    let endpoints = assignment.endpoints.into_iter().flat_map(|locality| locality.lb_endpoints);
    let address = endpoints.map(|endpoint| match endpoint.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => match endpoint.address.unwrap().address.unwrap() {
            Address::SocketAddress(address) => address.address,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    });
    address.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_change_reaches_a_subscriber_at_once_and_only_what_changed() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &slice(&["10.0.0.1"]));
    let app = start(directory.path()).await;
    let mut client = Client::connect(app.bound().control.unwrap(), NodeOptions::new("a")).await;

    client.subscribe(LDS, &["outbound/10.96.0.1:8080", "outbound/10.9.9.9:80"]).await;
    let response = client.next().await;
    assert_eq!(response.resources.len(), 1);
    assert_eq!(response.removed_resources, ["outbound/10.9.9.9:80"], "unknown is said at once");
    client.subscribe(EDS, &["orders.shop:8080"]).await;
    let response = client.next().await;
    assert_eq!(addresses(&response.resources[0].resource.as_ref().unwrap().value), ["10.0.0.1"]);

    let changed = Instant::now();
    write(directory.path(), &slice(&["10.0.0.1", "10.0.0.2"]));
    let response = client.next().await;
    let took = changed.elapsed();
    assert_eq!(response.type_url, EDS, "the listener did not change");
    assert_eq!(addresses(&response.resources[0].resource.as_ref().unwrap().value), ["10.0.0.1", "10.0.0.2"]);
    // 50 ms of it is waiting for the writer to finish. Typically 60 ms in all.
    assert!(took < Duration::from_secs(1), "{took:?}");

    write(directory.path(), "apiVersion: v1\nkind: Service\nmetadata: {nmae: orders}\n");
    let api = app.bound().api.unwrap();
    let errors = client::until(|| async {
        let text = client::get(api, "/api/config/errors").await;
        text.contains("nmae").then_some(text)
    })
    .await;
    assert!(errors.contains("\"file\":\"orders.yaml\"") && errors.contains("\"line\":3"), "{errors}");
    write(directory.path(), &slice(&["10.0.0.1"]));
    let response = client.next().await;
    assert_eq!(
        addresses(&response.resources[0].resource.as_ref().unwrap().value),
        ["10.0.0.1"],
        "the broken file changed nothing, the mended one did"
    );
    stop(app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_with_what_it_has_is_told_nothing() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &slice(&["10.0.0.1"]));
    let app = start(directory.path()).await;
    let mut client = Client::connect(app.bound().control.unwrap(), NodeOptions::new("a")).await;
    client.subscribe(EDS, &["orders.shop:8080"]).await;
    let version = client.next().await.resources.remove(0).version;
    stop(app).await;
    assert_eq!(client.ended().await.code(), tonic::Code::Unavailable);

    // Another control plane: versions are content, so it knows what the client has.
    let app = start(directory.path()).await;
    let mut client = Client::connect(app.bound().control.unwrap(), NodeOptions::new("a")).await;
    client.resume(EDS, &[("orders.shop:8080", &version)]).await;
    client.subscribe(LDS, &["outbound/orders:8080"]).await;
    let response = client.next().await;
    assert_eq!(response.type_url, LDS, "the first thing said is something new");

    write(directory.path(), &slice(&["10.0.0.7"]));
    let response = client.next().await;
    assert_eq!(addresses(&response.resources[0].resource.as_ref().unwrap().value), ["10.0.0.7"]);
    stop(app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_is_an_endpoint_for_as_long_as_its_sidecar_lives() {
    let directory = tempfile::tempdir().unwrap();
    let app = start(directory.path()).await;
    let control = app.bound().control.unwrap();
    let mut caller = Client::connect(control, NodeOptions::new("caller")).await;
    caller.subscribe(EDS, &["cart.shop:80"]).await;
    assert_eq!(caller.next().await.removed_resources, ["cart.shop:80"]);

    let registering = || NodeOptions { register: Some("cart.shop:80"), ..NodeOptions::new("cart") };
    let mut cart = Client::connect(control, registering()).await;
    cart.subscribe(LDS, &[]).await;
    let response = caller.next().await;
    assert_eq!(addresses(&response.resources[0].resource.as_ref().unwrap().value), ["127.0.0.1"]);

    let left = Instant::now();
    cart.leave();
    assert_eq!(caller.next().await.removed_resources, ["cart.shop:80"]);
    assert!(left.elapsed() < Duration::from_secs(1), "who leaves in good order is gone at once");

    // The same through a cable that can be cut.
    let (relay, cut) = client::relay(control).await;
    let mut cart = Client::connect(relay, registering()).await;
    cart.subscribe(LDS, &[]).await;
    assert_eq!(caller.next().await.resources.len(), 1);
    let lost = Instant::now();
    cut.abort();
    let mut back = Client::connect(control, registering()).await;
    back.subscribe(LDS, &[]).await;
    caller.subscribe(LDS, &["outbound/nobody:80"]).await;
    assert_eq!(caller.next().await.type_url, LDS, "a quick reconnect is not noticed");

    let (relay, cut) = client::relay(control).await;
    back.leave();
    assert_eq!(caller.next().await.removed_resources, ["cart.shop:80"]);
    let mut cart = Client::connect(relay, registering()).await;
    cart.subscribe(LDS, &[]).await;
    assert_eq!(caller.next().await.resources.len(), 1);
    cut.abort();
    assert_eq!(caller.next().await.removed_resources, ["cart.shop:80"], "in the end it is gone");
    assert!(lost.elapsed() >= Duration::from_secs(2), "but not before its grace is over");
    stop(app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_introduce_itself_is_told_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let app = start(directory.path()).await;
    let control = app.bound().control.unwrap();

    let mut client = Client::connect(control, NodeOptions { metadata: false, ..NodeOptions::new("x") }).await;
    client.subscribe(LDS, &[]).await;
    let status = client.ended().await;
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert_eq!(status.message(), "node metadata field \"weft.workload\" is missing or has the wrong type");

    let mut client = Client::connect(control, NodeOptions::new("")).await;
    client.subscribe(LDS, &[]).await;
    assert_eq!(client.ended().await.message(), "node.id must have 1 to 200 bytes");

    let status = client::state_of_the_world(control).await;
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    assert!(status.message().contains("DELTA_GRPC"), "{status:?}");
    stop(app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_can_see_who_is_connected() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &slice(&["10.0.0.1"]));
    let app = start(directory.path()).await;
    let (control, api, metrics) =
        (app.bound().control.unwrap(), app.bound().api.unwrap(), app.bound().metrics.unwrap());
    let mut client = Client::connect(control, NodeOptions::new("watched")).await;
    client.subscribe(EDS, &["orders.shop:8080"]).await;
    let response = client.next_unanswered().await;
    client.reject(&response, "no thanks").await;
    let proxies = client::until(|| async {
        let text = client::get(api, "/api/proxies").await;
        text.contains("no thanks").then_some(text)
    })
    .await;
    assert!(proxies.contains("watched"), "{proxies}");
    let text = client::get(metrics, "/metrics").await;
    assert!(text.contains("weft_xds_streams 1"), "{text}");
    assert!(text.contains("weft_xds_rejections_total{kind=\"EDS\"} 1"), "{text}");
    stop(app).await;
}
