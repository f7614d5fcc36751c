//! The mesh in one process: the control plane and sidecars by their libraries, on loopback, without privileges.
//!
//! What needs no kernel is said here, because it is fast here and a debugger sees both ends: names, routes, edges,
//! refusals. Each test has a mesh of its own.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::routing::any;
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weft_tests::client::{self, Answer, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

/// A service that exists and that nobody serves.
const EMPTY: &str = "\
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec:
  clusterIP: 10.96.0.9
  ports: [{name: main, port: 8080, protocol: TCP, appProtocol: http}]
";

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
async fn get(to: SocketAddr, uri: &str, host: &str) -> anyhow::Result<Answer> {
    client::once(to, &Ask::get(uri, host)).await
}

async fn edge(api: SocketAddr, source: &str, target: &str) -> anyhow::Result<Value> {
    let graph = client::json(api, "/api/graph?window=1m").await?;
    let edges = graph["edges"].as_array().context("no edges")?;
    let found = edges.iter().find(|edge| edge["source"] == source && edge["target"] == target);
    found.cloned().with_context(|| format!("no edge {source} -> {target} in {graph:#}"))
}

#[tokio::test]
async fn a_request_finds_its_way_by_name_and_becomes_an_edge() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let plane = Plane::start(EMPTY).await?;
    let (control, api) = (plane.control, plane.api);
    let forward = format!("--inbound-forward={}", app().await?);
    let callee = ["--register=orders.shop:8080/http", &forward];
    let callee = Sidecar::start(directory.path(), control, "orders", &callee).await?;
    let caller = ["--outbound-forward=127.0.0.1:0=orders.shop:8080"];
    let caller = Sidecar::start(directory.path(), control, "web", &caller).await?;

    // The registration travels by itself; until it has arrived, there is no such service.
    let (as_proxy, as_service) = (caller.address("/outbound")?, caller.address("/forwards/0")?);
    let response = poll::until("orders is an endpoint", PATIENCE, async || {
        let response = get(as_service, "/orders/41", "orders").await?;
        ensure!(response.status == StatusCode::OK, "{response:?}");
        anyhow::Ok(response)
    })
    .await?;
    assert_eq!(response.body, "an order\n");
    assert_eq!(response.headers["x-traceparents"], "1");
    assert_eq!(response.headers["x-hosts"], "1");
    let response = get(as_proxy, "http://orders.shop:8080/orders/42", "orders.shop:8080").await?;
    assert_eq!((response.status, &response.body[..]), (StatusCode::OK, &b"an order\n"[..]));

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
    plane.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_service_without_endpoints_is_refused_with_the_reason() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let plane = Plane::start(EMPTY).await?;
    let (control, api) = (plane.control, plane.api);
    let caller = ["--outbound-forward=127.0.0.1:0=empty.shop:8080"];
    let caller = Sidecar::start(directory.path(), control, "web", &caller).await?;
    let refused = poll::until("the service is known", PATIENCE, async || {
        let response = get(caller.address("/forwards/0")?, "/stock", "empty").await?;
        let reason = response.headers.get("x-weft-reason").context("no reason")?;
        ensure!(reason == "no_ready_endpoint; by=client_proxy", "{reason:?}");
        anyhow::Ok(response)
    })
    .await?;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);

    let seen = poll::until("the failed call", PATIENCE, async || {
        edge(api, "workload:shop/web", "service:shop/empty").await
    })
    .await?;
    ensure!(seen["failures"].to_string().contains("no_ready_endpoint"), "{seen:#}");
    assert_eq!(seen["success_rate"], 0.0, "{seen:#}");

    caller.stop().await?;
    plane.stop().await;
    Ok(())
}

/// A connection over which requests go one after the other.
struct Kept(TcpStream);

impl Kept {
    /// The head of the answer to `GET path`.
    async fn get(&mut self, path: &str) -> anyhow::Result<String> {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n").as_bytes()).await?;
        let mut bytes = Vec::new();
        loop {
            let read = tokio::time::timeout(PATIENCE, self.0.read_buf(&mut bytes)).await??;
            let text = String::from_utf8_lossy(&bytes);
            ensure!(read > 0, "closed after {text:?}");
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.with_context(|| head.to_owned())?.parse()? {
                return Ok(head.to_owned());
            }
        }
    }
}

/// What becomes of callers while the control plane has not said who may call, and of the same connection when it has.
async fn before_a_word(access: &str, status: &str) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let policy = "{apiVersion: weft.dev/v1alpha1, kind: AccessPolicy, metadata: {name: open, namespace: shop}, \
                  spec: {rules: [{to: [{paths: [{value: /open}]}]}]}}";
    let plane = Plane::start(policy).await?;
    let control = plane.control;
    let paused = plane.pause().await;
    let forward = format!("--inbound-forward={}", app().await?);
    let access = format!("--default-access={access}");
    let flags = ["--register=orders.shop:8080/http", &forward, &access, "--discovery-timeout=100ms"];
    let callee = Sidecar::start(directory.path(), control, "orders", &flags).await?;
    let inbound = callee.address("/inbound")?;

    let mut kept = Kept(TcpStream::connect(inbound).await?);
    let closed = kept.get("/closed").await?;
    ensure!(closed.starts_with(&format!("HTTP/1.1 {status} ")), "{closed}");
    let mut bytes = TcpStream::connect(inbound).await?;
    bytes.write_all(b"\x00\x01\x02 no HTTP\r\n\r\n").await?;
    let mut said = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, bytes.read_to_end(&mut said)).await?;
    let page = client::once(callee.address("/metrics")?, &Ask::get("/metrics", "localhost")).await?;
    let page = String::from_utf8(page.body.to_vec())?;
    let denied = page.lines().filter(|line| line.starts_with("weft_access_decisions_total{"));
    let denied: Vec<_> = denied.filter(|line| line.contains("\"denied\"")).collect();
    if status == "403" {
        ensure!(closed.contains("x-weft-reason: policy_denied; by=server_proxy"), "{closed}");
        ensure!(said.is_empty() && ended.is_err(), "bytes are cut off: {ended:?} after {said:?}");
        // The request and the bytes.
        ensure!(denied.len() == 1 && denied[0].ends_with(" 2"), "{denied:?}");
        ensure!(denied[0].contains("weft_access_rule=\"none\""), "{denied:?}");
    } else {
        ensure!(
            said.starts_with(b"HTTP/1.1 400 "),
            "the app's own answer: {:?}",
            String::from_utf8_lossy(&said)
        );
        ensure!(denied.is_empty(), "{denied:?}");
    }

    let plane = paused.resume().await?;
    poll::until("the policy is in force on the connection of before", PATIENCE, async || {
        let (open, closed) = (kept.get("/open").await?, kept.get("/closed").await?);
        ensure!(open.starts_with("HTTP/1.1 200 ") && closed.starts_with("HTTP/1.1 403 "), "{open}\n{closed}");
        anyhow::Ok(())
    })
    .await?;
    // Draining waits for both.
    drop((kept, bytes));
    callee.stop().await?;
    plane.stop().await;
    Ok(())
}

#[tokio::test]
async fn callers_are_let_in_until_the_control_plane_has_said_who_may_call() -> anyhow::Result<()> {
    before_a_word("allow", "200").await
}

#[tokio::test]
async fn callers_may_be_kept_out_until_the_control_plane_has_said_who_may_call() -> anyhow::Result<()> {
    before_a_word("deny", "403").await
}
