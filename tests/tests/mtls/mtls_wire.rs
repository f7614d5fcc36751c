//! What a stranger on the wire sees between two sidecars, and what the callee knows of its caller.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, ensure};
use http::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weft_tests::backend::Troupe;
use weft_tests::client::{self, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

const SECRET: &str = "swordfish-in-plain-sight";
const FORGED: &str = "spiffe://cluster.local/ns/shop/sa/admin";

/// The callee's inbound listener as a service of its own: what is on loopback is known only by what it serves.
const DOOR: &str = "--register=door.shop:8080/http";

/// A wire between two sidecars that remembers what went over it.
struct Wire {
    address: SocketAddr,
    to: Arc<OnceLock<SocketAddr>>,
    seen: Seen,
}

type Seen = Arc<Mutex<Vec<u8>>>;

impl Wire {
    async fn lay() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let wire = Self { address: listener.local_addr()?, to: Arc::default(), seen: Arc::default() };
        let (to, seen) = (Arc::clone(&wire.to), Arc::clone(&wire.seen));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Some(to) = to.get().copied() else { continue };
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_in, far_out, &seen), carry(far_in, near_out, &seen));
                });
            }
        });
        Ok(wire)
    }

    /// What has gone over it, and nothing from now on unless it goes over it again.
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, seen: &Seen) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        seen.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // Whoever it was may have gone.
    drop(to.shutdown().await);
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// `orders`, whose pod is reached over `wire`.
fn objects(wire: &Wire, policy: &str) -> String {
    format!(
        "\
{{apiVersion: v1, kind: Service, metadata: {{name: orders, namespace: shop}}, spec: {{clusterIP: 10.96.0.1, ports: [{{name: web, port: 8080, appProtocol: http}}]}}}}
---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: orders, namespace: shop, labels: {{kubernetes.io/service-name: orders}}}}, addressType: IPv4, ports: [{{name: web, port: {}}}], endpoints: [{{addresses: [127.0.0.1]}}]}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: orders-1, namespace: shop, labels: {{app.kubernetes.io/name: orders}}}}, spec: {{serviceAccountName: orders}}, status: {{podIP: 127.0.0.1}}}}
{policy}",
        wire.address.port()
    )
}

struct Pair {
    directory: tempfile::TempDir,
    plane: Plane,
    wire: Wire,
    callee: Sidecar,
    caller: Sidecar,
    _app: Troupe,
}

impl Pair {
    /// Two members that have begun to speak mutual TLS.
    async fn join() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let wire = Wire::lay().await?;
        let plane = Plane::start_mutual(&objects(&wire, ""), &[]).await?;
        let app = Troupe::start(1)?;
        let forward = format!("--inbound-forward={}", app.backends[0].address);
        let callee =
            Sidecar::join(directory.path(), &plane, "orders", &[&forward, DOOR, "--pod-ips=127.0.0.1"])
                .await?;
        wire.to.set(callee.address("/inbound")?).ok().context("laid once")?;
        let flags = ["--outbound-forward=127.0.0.1:0=orders.shop:8080", "--pod-ips=127.0.0.9"];
        let caller = Sidecar::join(directory.path(), &plane, "web", &flags).await?;
        let pair = Self { directory, plane, wire, callee, caller, _app: app };
        poll::until("orders is called by mutual TLS", PATIENCE, async || {
            let answer = client::once(pair.door()?, &Ask::get("/", "orders")).await?;
            ensure!(answer.status == StatusCode::OK, "{answer:?}");
            let page = page(&pair.callee).await?;
            let full = r#"weft_tls_handshakes_total{direction="inbound",result="full"} 0"#;
            ensure!(!page.contains(full), "no handshake yet");
            anyhow::Ok(())
        })
        .await?;
        Ok(pair)
    }

    fn door(&self) -> anyhow::Result<SocketAddr> {
        self.caller.address("/forwards/0")
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.caller.stop().await?;
        self.callee.stop().await?;
        self.plane.stop().await;
        drop(self.directory);
        Ok(())
    }
}

/// A sidecar's metrics.
async fn page(sidecar: &Sidecar) -> anyhow::Result<String> {
    let page = client::once(sidecar.address("/metrics")?, &Ask::get("/metrics", "localhost")).await?;
    Ok(String::from_utf8(page.body.to_vec())?)
}

/// A request that tells a secret and claims to come from somebody else.
fn told(h2: bool) -> Ask {
    let forged = format!("By=spiffe://cluster.local/ns/shop/sa/orders;URI={FORGED}");
    let ask = Ask::get("/orders/42", "orders.shop:8080").header("x-secret", SECRET);
    Ask { h2, ..ask.header("x-forwarded-client-cert", forged).header("x-weft-identity", FORGED) }
}

#[tokio::test]
async fn mtls_shows_nothing_on_the_wire_and_names_the_caller_as_verified() -> anyhow::Result<()> {
    let pair = Pair::join().await?;
    pair.wire.take();
    for h2 in [false, true] {
        for _ in 0..10 {
            let answer = client::once(pair.door()?, &told(h2)).await?;
            ensure!(answer.status == StatusCode::OK, "{answer:?}");
            // The app says what it was asked: the secret came through, and an answer came back.
            ensure!(contains(&answer.body, SECRET), "{:?}", answer.body);
        }
        let seen = pair.wire.take();
        ensure!(seen.len() > 1000, "the calls went over the wire: {} bytes", seen.len());
        for text in [SECRET, "orders/42", "HTTP/1.1", "PRI * HTTP/2.0", "x-secret", FORGED] {
            ensure!(!contains(&seen, text), "{text:?} is on the wire");
        }
    }

    let callee = page(&pair.callee).await?;
    let counted = |line: &&str| line.starts_with("http_server_request_duration_seconds_count");
    let mutual: Vec<_> =
        callee.lines().filter(counted).filter(|line| line.contains(r#"weft_tls="mutual""#)).collect();
    let verified = r#"weft_peer_identity="spiffe://cluster.local/ns/shop/sa/web""#;
    ensure!(!mutual.is_empty() && mutual.iter().all(|line| line.contains(verified)), "{mutual:?}");
    ensure!(!callee.contains(FORGED), "a header names nobody");
    let caller = page(&pair.caller).await?;
    let verified = r#"weft_peer_identity="spiffe://cluster.local/ns/shop/sa/orders""#;
    ensure!(
        caller.lines().any(|line| line.contains(verified) && line.contains(r#"weft_tls="mutual""#)),
        "{caller}"
    );

    // Until the caller's own report is there, its calls are known by the callee's alone, and by an address.
    let edges = poll::until("the edge has its lock and its caller", PATIENCE, async || {
        let graph = client::json(pair.plane.api, "/api/graph?window=1m").await?;
        let edges = graph["edges"].as_array().context("no edges")?.clone();
        let meant =
            |edge: &Value| edge["target"] == "workload:shop/orders" && edge["source"] == "workload:shop/web";
        let edge = edges.iter().find(|edge| meant(edge)).with_context(|| format!("{edges:#?}"))?;
        ensure!(edge["tls"] == "mutual", "{edge}");
        anyhow::Ok(edges)
    });
    ensure!(edges.await?.iter().all(|edge| !edge.to_string().contains("admin")), "a header names somebody");
    pair.stop().await
}

#[tokio::test]
async fn mtls_is_all_that_a_strict_port_takes() -> anyhow::Result<()> {
    let pair = Pair::join().await?;
    let inbound = pair.callee.address("/inbound")?;
    let plain = client::once(inbound, &Ask::get("/", "orders")).await?;
    assert_eq!(plain.status, StatusCode::OK, "permissive");

    let strict = "---\n{apiVersion: weft.dev/v1alpha1, kind: AccessPolicy, metadata: {name: strict, namespace: shop}, spec: {mtls: {mode: strict}}}\n";
    pair.plane.apply(&objects(&pair.wire, strict))?;
    let refused = poll::until("plain text is refused", PATIENCE, async || {
        let answer = client::once(inbound, &Ask::get("/", "orders")).await?;
        ensure!(answer.status != StatusCode::OK, "still served");
        anyhow::Ok(answer)
    })
    .await?;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(refused.header("x-weft-reason"), Some("tls_required; by=server_proxy"));
    let mut bytes = TcpStream::connect(inbound).await?;
    bytes.write_all(b"\x00\x01\x02 not HTTP").await?;
    let ended = bytes.read(&mut [0; 16]).await;
    ensure!(matches!(ended, Ok(0) | Err(_)), "bytes are cut off: {ended:?}");

    let meshed = client::once(pair.door()?, &Ask::get("/", "orders")).await?;
    assert_eq!(meshed.status, StatusCode::OK);
    let page = page(&pair.callee).await?;
    let none = r#"weft_tls_handshakes_total{direction="inbound",result="tls_required"} 0"#;
    ensure!(!page.contains(none), "counted");
    pair.stop().await
}
