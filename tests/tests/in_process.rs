//! The mesh in one process: the control plane and sidecars by their libraries, on loopback, without privileges.
//!
//! What needs no kernel is said here, because it is fast here and a debugger sees both ends: names, routes, edges,
//! refusals. Each test has a mesh of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::routing::any;
use bytes::Bytes;
use clap::Parser as _;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use weft_control_plane::app::App;
use weft_tests::poll;

/// Longest wait for anything; only reached when the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A service that exists and that nobody serves.
const EMPTY: &str = "\
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec:
  clusterIP: 10.96.0.9
  ports: [{name: main, port: 8080, protocol: TCP, appProtocol: http}]
";

/// The control plane on free ports.
async fn plane(directory: &Path) -> anyhow::Result<App> {
    let source = directory.join("source");
    std::fs::create_dir(&source)?;
    std::fs::write(source.join("empty.yaml"), EMPTY)?;
    let flags = ["--insecure", "--control-listen=127.0.0.1:0", "--api-listen=127.0.0.1:0"];
    let off = ["--otlp-grpc-listen=off", "--otlp-http-listen=off", "--drain-deadline=1s"];
    let source = format!("--source={}", source.display());
    let program = ["weft-control-plane", &source];
    let config =
        weft_control_plane::config::Config::try_parse_from(program.iter().chain(&flags).chain(&off))?;
    App::start(config).await
}

/// A sidecar on a thread of this process; it ends with this value.
struct Sidecar {
    bound: Value,
    thread: Option<(oneshot::Sender<()>, JoinHandle<anyhow::Result<()>>)>,
}

impl Sidecar {
    async fn start(
        directory: &Path,
        control: SocketAddr,
        workload: &str,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        #[derive(clap::Parser)]
        struct CommandLine {
            #[command(flatten)]
            arguments: weft_proxy::config::Arguments,
        }
        let ready = directory.join(format!("{workload}.json"));
        let own = [
            "weft-proxy".to_owned(),
            format!("--control-plane=http://{control}"),
            format!("--workload={workload}"),
            format!("--ready-file={}", ready.display()),
        ];
        let fixed = [
            "--namespace=shop",
            "--inbound-listen=127.0.0.1:0",
            "--outbound-listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0",
            "--admin-listen=off",
            "--workers=1",
        ];
        let words = own.iter().map(String::as_str).chain(fixed).chain(flags.iter().copied());
        let config = weft_proxy::config::Config::try_from(CommandLine::try_parse_from(words)?.arguments)?;
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(workload.to_owned())
            .spawn(move || weft_proxy::app::run_embedded(config, ended))?;
        let bound = poll::until("the sidecar serves", PATIENCE, async || {
            anyhow::Ok(serde_json::from_slice(&tokio::fs::read(&ready).await?)?)
        });
        Ok(Self { bound: bound.await?, thread: Some((end, thread)) })
    }

    fn address(&self, listener: &str) -> anyhow::Result<SocketAddr> {
        let address = self.bound.pointer(listener).and_then(Value::as_str);
        Ok(address.with_context(|| format!("no {listener} in {}", self.bound))?.parse()?)
    }

    /// Drains it; what its end says.
    async fn stop(mut self) -> anyhow::Result<()> {
        let (end, thread) = self.thread.take().context("it runs")?;
        drop(end);
        let joined = tokio::task::spawn_blocking(move || thread.join());
        let ended = tokio::time::timeout(PATIENCE, joined).await.context("the sidecar does not end")??;
        ended.map_err(|_| anyhow::anyhow!("the sidecar panicked"))?
    }
}

/// An app that tells the caller what it was asked, in headers.
async fn app() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let answer = any(async |headers: HeaderMap| {
        let told = |name: &str| headers.get_all(name).iter().count().to_string();
        ([("x-traceparents", told("traceparent")), ("x-hosts", told("host"))], "an order\n")
    });
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/{*path}", answer)).await });
    Ok(address)
}

/// One request on a connection of its own.
async fn get(to: SocketAddr, uri: &str, host: &str) -> anyhow::Result<Response<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(to).await?);
    let (mut sender, connection) = http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = Request::get(uri).header("host", host).body(Empty::<Bytes>::new())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

async fn edge(api: SocketAddr, source: &str, target: &str) -> anyhow::Result<Value> {
    let response = get(api, "/api/graph?window=1m", "localhost").await?;
    ensure!(response.status() == StatusCode::OK, "{response:?}");
    let graph: Value = serde_json::from_slice(response.body())?;
    let edges = graph["edges"].as_array().context("no edges")?;
    let found = edges.iter().find(|edge| edge["source"] == source && edge["target"] == target);
    found.cloned().with_context(|| format!("no edge {source} -> {target} in {graph:#}"))
}

#[tokio::test]
async fn a_request_finds_its_way_by_name_and_becomes_an_edge() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let plane = plane(directory.path()).await?;
    let control = plane.bound().control.context("bound")?;
    let api = plane.bound().api.context("bound")?;
    let forward = format!("--inbound-forward={}", app().await?);
    let callee = ["--register=orders.shop:8080/http", &forward];
    let callee = Sidecar::start(directory.path(), control, "orders", &callee).await?;
    let caller = ["--outbound-forward=127.0.0.1:0=orders.shop:8080"];
    let caller = Sidecar::start(directory.path(), control, "web", &caller).await?;

    // The registration travels by itself; until it has arrived, there is no such service.
    let (as_proxy, as_service) = (caller.address("/outbound")?, caller.address("/forwards/0")?);
    let response = poll::until("orders is an endpoint", PATIENCE, async || {
        let response = get(as_service, "/orders/41", "orders").await?;
        ensure!(response.status() == StatusCode::OK, "{response:?}");
        anyhow::Ok(response)
    })
    .await?;
    assert_eq!(response.body(), "an order\n");
    assert_eq!(response.headers()["x-traceparents"], "1");
    assert_eq!(response.headers()["x-hosts"], "1");
    let response = get(as_proxy, "http://orders.shop:8080/orders/42", "orders.shop:8080").await?;
    assert_eq!((response.status(), &response.body()[..]), (StatusCode::OK, &b"an order\n"[..]));

    let seen = poll::until("the edge", PATIENCE, async || {
        let edge = edge(api, "workload:shop/web", "workload:shop/orders").await?;
        let routes = edge["routes"].as_array().context("no routes")?;
        let route = routes.iter().find(|route| route["route"] == "/orders/{id}").context("no such route")?;
        ensure!(route["statuses"].to_string().contains("200"), "{route:#}");
        ensure!(route["requests"].as_u64().is_some_and(|count| count >= 2), "{route:#}");
        anyhow::Ok(edge)
    })
    .await?;
    assert_eq!(seen["protocol"], "http");
    assert_eq!(seen["reported_by"], "client");

    // In the order of a rolling end: whoever calls first.
    caller.stop().await?;
    callee.stop().await?;
    plane.stop(std::future::pending()).await;
    Ok(())
}

#[tokio::test]
async fn a_service_without_endpoints_is_refused_with_the_reason() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let plane = plane(directory.path()).await?;
    let control = plane.bound().control.context("bound")?;
    let api = plane.bound().api.context("bound")?;
    let caller = ["--outbound-forward=127.0.0.1:0=empty.shop:8080"];
    let caller = Sidecar::start(directory.path(), control, "web", &caller).await?;
    let refused = poll::until("the service is known", PATIENCE, async || {
        let response = get(caller.address("/forwards/0")?, "/stock", "empty").await?;
        let reason = response.headers().get("x-weft-reason").context("no reason")?;
        ensure!(reason == "no_ready_endpoint; by=client_proxy", "{reason:?}");
        anyhow::Ok(response)
    })
    .await?;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);

    let seen = poll::until("the failed call", PATIENCE, async || {
        edge(api, "workload:shop/web", "service:shop/empty").await
    })
    .await?;
    ensure!(seen["failures"].to_string().contains("no_ready_endpoint"), "{seen:#}");
    assert_eq!(seen["success_rate"], 0.0, "{seen:#}");

    caller.stop().await?;
    plane.stop(std::future::pending()).await;
    Ok(())
}
