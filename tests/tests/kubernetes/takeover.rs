//! A control plane that was cut off from the API server lives on while another takes over: it serves its sidecars as long as
//! it sees nobody else lead, and then sends them there.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use http::{Method, StatusCode};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use weft_tests::client::{self, Ask};
use weft_tests::process::Guarded;
use weft_tests::relay::Relay;
use weft_tests::{binary, poll};

use super::place::{PATIENCE, Place, Replica};
use super::simulated::simulated;

/// A sidecar, in a process of its own.
struct Sidecar {
    _process: Guarded,
    metrics: SocketAddr,
    /// Where its app would call another.
    forward: SocketAddr,
}

/// A stream that asks for nothing, as a program that is no sidecar would open it.
struct Stream {
    _requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_go_to_the_one_that_leads_when_the_other_lives_on() -> anyhow::Result<()> {
    let simulated = simulated().await?;
    let place = &simulated.place;
    let files = tempfile::tempdir()?;
    let to_server = Relay::start(simulated.server.url().trim_start_matches("http://").parse()?).await?;
    let known = std::fs::read_to_string(&place.kubeconfig)?;
    let kubeconfig = files.path().join("kubeconfig");
    let through = format!("http://{}", to_server.address);
    std::fs::write(&kubeconfig, known.replace(&simulated.server.url(), &through))?;
    let apart = Place { client: place.client.clone(), kubeconfig };
    let plain = ["--insecure", "--control-listen=127.0.0.1:0"];
    let one = apart.start("cp-one", &plain).await?;
    place.led_by("cp-one").await?;
    let two = place.start("cp-two", &plain).await?;
    let refused = open(&two).await.err().context("it does not lead, and sees who does")?;
    ensure!(sends_to(&refused, "cp-one"), "{refused:?}");

    let (secure_one, secure_two) = (secure(&one)?, secure(&two)?);
    let service = Relay::start(secure_one).await?;
    let sidecar = Sidecar::start(files.path(), service.address, &token(&one).await?).await?;
    connected(&one, &["web-1"]).await?;
    sidecar.is_heard(0.0).await?;

    // It cannot renew, and nobody else leads as far as it sees: it serves on.
    to_server.cut();
    poll::until("cp-one leads no more", PATIENCE, async || {
        let leads = one.metric("weft_leader").await?;
        ensure!(leads == 0.0, "it leads");
        anyhow::Ok(())
    })
    .await?;
    let mut held = open(&one).await.map_err(anyhow::Error::new).context("a new stream, too")?;
    place.led_by("cp-two").await?;
    service.lead_to(secure_two);
    ensure!(proxies(&one).await?.contains(&"web-1".to_owned()), "nobody has told it");
    ensure!(!proxies(&two).await?.contains(&"web-1".to_owned()), "a Service moves no connection");

    // It sees who leads.
    let taken = sidecar.reports().await?;
    to_server.lead_to(simulated.server.url().trim_start_matches("http://").parse()?);
    connected(&two, &["web-1"]).await?;
    connected(&one, &[]).await?;
    let told = loop {
        match held.responses.message().await {
            Ok(Some(_)) => {}
            Ok(None) => anyhow::bail!("it ended without a word"),
            Err(status) => break status,
        }
    };
    ensure!(sends_to(&told, "cp-two"), "{told:?}");
    poll::until("its connections are ended too", PATIENCE, async || {
        for listener in ["control", "control_tls"] {
            let name =
                format!("weft_listener_sent_away_total{{listener=\"{listener}\",what=\"connection\"}}");
            ensure!(one.metric(&name).await? >= 1.0, "{listener}");
        }
        anyhow::Ok(())
    })
    .await?;
    // One may have been under way to the other.
    sidecar.is_heard(taken + 1.0).await?;

    // New ones are sent there at once.
    let refused = open(&one).await.err().context("it does not lead")?;
    ensure!(sends_to(&refused, "cp-two"), "{refused:?}");
    for address in [one.bound.control, one.bound.otlp_grpc] {
        let address = format!("http://{}", address.context("it listens")?);
        let mut otlp = MetricsServiceClient::connect(address).await?;
        let refused = otlp.export(ExportMetricsServiceRequest::default()).await.err().context("nor here")?;
        ensure!(sends_to(&refused, "cp-two"), "{refused:?}");
    }
    let refused = export(&one).await?;
    ensure!(refused.status == StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
    ensure!(refused.headers.get("retry-after").is_some(), "{refused:?}");
    ensure!(export(&two).await?.status == StatusCode::OK);
    drop(open(&two).await?);

    drop(sidecar);
    one.stop().await?;
    two.stop().await
}

impl Sidecar {
    async fn start(files: &std::path::Path, control: SocketAddr, token: &str) -> anyhow::Result<Self> {
        let ready = files.join("web.json");
        let mut command = Command::new(binary::weft());
        command.args(["proxy", "--workload=web", "--namespace=shop", "--instance=web-1", "--workers=1"]);
        command.args(["--inbound-listen=127.0.0.1:0", "--outbound-listen=127.0.0.1:0"]);
        command.args(["--metrics-listen=127.0.0.1:0", "--admin-listen=off"]);
        command.arg("--outbound-forward=127.0.0.1:0=orders.shop:8080");
        command.arg(format!("--control-plane=https://{control}"));
        command.arg(format!("--join-token={token}")).arg(format!("--ready-file={}", ready.display()));
        // Its access log is long, and its complaints are on the other.
        let process = Guarded::spawn(command.stdout(Stdio::null()))?;
        let bound: Value = poll::until("the sidecar serves", PATIENCE, async || {
            anyhow::Ok(serde_json::from_slice(&tokio::fs::read(&ready).await?)?)
        })
        .await?;
        let address = |listener: &str| -> anyhow::Result<SocketAddr> {
            let address = bound.pointer(listener).and_then(Value::as_str);
            Ok(address.with_context(|| format!("no {listener} in {bound}"))?.parse()?)
        };
        Ok(Self { _process: process, metrics: address("/metrics")?, forward: address("/forwards/0")? })
    }

    /// Waits until more than `before` of its reports are taken, of calls that its app makes. What becomes of those is no matter.
    async fn is_heard(&self, before: f64) -> anyhow::Result<()> {
        poll::until("its reports are taken", PATIENCE, async || {
            client::once(self.forward, &Ask::get("/", "orders.shop")).await.ok();
            let now = self.reports().await?;
            ensure!(now > before, "{before} then {now}");
            anyhow::Ok(())
        })
        .await
    }

    /// How many of its reports somebody has taken.
    async fn reports(&self) -> anyhow::Result<f64> {
        let answer = client::once(self.metrics, &Ask::get("/metrics", "localhost")).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("weft_report_acknowledged_total "));
        Ok(line.context("it counts them")?.parse()?)
    }
}

fn secure(replica: &Replica) -> anyhow::Result<SocketAddr> {
    replica.bound.control_tls.context("it listens")
}

async fn token(replica: &Replica) -> anyhow::Result<String> {
    let mut ask = Ask::get("/api/tokens", "localhost").header("content-type", "application/json");
    (ask.method, ask.body) = (Method::POST, json!({ "name": "web", "namespace": "shop" }).to_string().into());
    let answer = replica.ask(&ask).await?;
    let made: Value = serde_json::from_slice(&answer.body).with_context(|| format!("{answer:?}"))?;
    Ok(made["token"].as_str().with_context(|| format!("no token in {made}"))?.to_owned())
}

/// The instances of sidecars that are connected.
async fn proxies(replica: &Replica) -> anyhow::Result<Vec<String>> {
    let answer = replica.ask(&Ask::get("/api/proxies", "localhost")).await?;
    let body: Value = serde_json::from_slice(&answer.body).with_context(|| format!("{answer:?}"))?;
    let proxies = body["proxies"].as_array().context("a list")?;
    let sidecars = proxies.iter().filter(|proxy| proxy["agent"] == "weft-proxy");
    Ok(sidecars.filter_map(|proxy| proxy["instance"].as_str().map(str::to_owned)).collect())
}

async fn connected(replica: &Replica, instances: &[&str]) -> anyhow::Result<()> {
    poll::until(&format!("{instances:?} are connected"), PATIENCE, async || {
        let found = proxies(replica).await?;
        ensure!(found == instances, "{found:?}");
        anyhow::Ok(())
    })
    .await
}

/// Opens a stream in plain text. An answer that is none comes with its first message.
async fn open(replica: &Replica) -> Result<Stream, Status> {
    let address = replica.bound.control.ok_or_else(|| Status::internal("it listens"))?;
    let connecting = AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await;
    let mut service = connecting.map_err(|error| Status::internal(error.to_string()))?;
    let (requests, receiver) = mpsc::channel(1);
    let node = Node { id: "onlooker".into(), cluster: "shop/onlooker".into(), ..Node::default() };
    let first = DeltaDiscoveryRequest {
        node: Some(node),
        type_url: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment".into(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await.map_err(|error| Status::internal(error.to_string()))?;
    let responses = service.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
    Ok(Stream { _requests: requests, responses })
}

async fn export(replica: &Replica) -> anyhow::Result<client::Answer> {
    let mut ask = Ask::get("/v1/metrics", "localhost").header("content-type", "application/json");
    (ask.method, ask.body) = (Method::POST, b"{}".as_slice().into());
    client::once(replica.bound.otlp_http.context("it listens")?, &ask).await
}

/// Whether a refusal tells to come again, and where.
fn sends_to(refusal: &Status, pod: &str) -> bool {
    refusal.code() == Code::Unavailable && refusal.message().starts_with(&format!("{pod} leads"))
}
