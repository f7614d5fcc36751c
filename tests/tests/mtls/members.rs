//! Two members of a mesh, and calls between them that go on whatever happens.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::StatusCode;
use serde_json::Value;
use tokio::task::JoinHandle;
use weft_tests::backend::Troupe;
use weft_tests::client::{self, Ask, Client};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

/// Connections that call at a time: half of them by HTTP/1.1, half by HTTP/2.
const CALLERS: usize = 4;
/// Between two calls of one of them.
const PAUSE: Duration = Duration::from_millis(5);

/// Two members: `web` calls `orders` by way of both sidecars.
pub(crate) struct Pair {
    directory: tempfile::TempDir,
    pub(crate) callee: Sidecar,
    pub(crate) caller: Sidecar,
    _app: Troupe,
}

impl Pair {
    pub(crate) async fn join(plane: &Plane) -> anyhow::Result<Self> {
        Self::join_by(plane, plane.control).await
    }

    /// As [`Pair::join`]; the caller finds the control plane at `control`.
    pub(crate) async fn join_by(plane: &Plane, control: SocketAddr) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let app = Troupe::start(1)?;
        let forward = format!("--inbound-forward={}", app.backends[0].address);
        let admin = "--admin-listen=127.0.0.1:0";
        let flags = ["--register=orders.shop:8080/http", &forward, admin];
        let callee = Sidecar::join(directory.path(), plane, "orders", &flags).await?;
        let caller = caller(directory.path(), control, "web", &plane.token("web").await?).await?;
        let pair = Self { directory, callee, caller, _app: app };
        poll::until("orders is called by mutual TLS", PATIENCE, async || {
            let answer = client::once(pair.door()?, &Ask::get("/", "orders")).await?;
            ensure!(answer.status == StatusCode::OK, "{answer:?}");
            let graph = client::json(plane.api, "/api/graph?window=1m").await?;
            let edges = graph["edges"].as_array().context("no edges")?;
            let mutual = |edge: &Value| edge["target"] == "workload:shop/orders" && edge["tls"] == "mutual";
            ensure!(edges.iter().any(mutual), "{edges:#?}");
            anyhow::Ok(())
        })
        .await?;
        Ok(pair)
    }

    /// Where `web` calls `orders`.
    pub(crate) fn door(&self) -> anyhow::Result<SocketAddr> {
        self.caller.address("/forwards/0")
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.caller.stop().await?;
        self.callee.stop().await?;
        drop(self.directory);
        Ok(())
    }
}

/// A member that calls `orders` at `/forwards/0`.
pub(crate) async fn caller(
    directory: &Path,
    control: SocketAddr,
    workload: &str,
    token: &str,
) -> anyhow::Result<Sidecar> {
    let token = format!("--join-token={token}");
    let flags = ["--outbound-forward=127.0.0.1:0=orders.shop:8080", "--admin-listen=127.0.0.1:0", &token];
    Sidecar::run(directory, &format!("--control-plane=https://{control}"), workload, &flags).await
}

/// A number on a sidecar's own page.
pub(crate) async fn metric(sidecar: &Sidecar, name: &str) -> anyhow::Result<f64> {
    let page = client::once(sidecar.address("/metrics")?, &Ask::get("/metrics", "localhost")).await?;
    let text = String::from_utf8_lossy(&page.body).into_owned();
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let number = line.and_then(|line| line.rsplit(' ').next()).and_then(|number| number.parse().ok());
    number.with_context(|| format!("no {name} in {text}"))
}

/// Calls that go on until they are stopped; every answer counts.
pub(crate) struct Load {
    served: Arc<AtomicUsize>,
    end: Arc<AtomicBool>,
    callers: Vec<JoinHandle<Tally>>,
}

/// What became of them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) served: usize,
    pub(crate) failed: Vec<String>,
}

impl Load {
    pub(crate) fn start(to: SocketAddr) -> Self {
        let (served, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let call = |number: usize| {
            let (served, end) = (Arc::clone(&served), Arc::clone(&end));
            tokio::spawn(async move {
                let mut client = Client::new(to);
                let mut tally = Tally::default();
                while !end.load(Ordering::Relaxed) {
                    // One in ten on a connection of its own, so that there are handshakes all the time.
                    let ask = Ask { h2: number.is_multiple_of(2), ..Ask::get("/", "orders") };
                    if (tally.served + number).is_multiple_of(10) {
                        client = Client::new(to);
                    }
                    match client.send(&ask).await {
                        Ok(answer) if answer.status == StatusCode::OK => {
                            tally.served += 1;
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => tally.failed.push(format!("{answer:?}")),
                        Err(error) => tally.failed.push(format!("{error:#}")),
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                tally
            })
        };
        let callers = (0..CALLERS).map(call).collect();
        Self { served, end, callers }
    }

    /// How many calls have been served.
    pub(crate) fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Ends it, and says how it went.
    pub(crate) async fn stop(self) -> anyhow::Result<Tally> {
        self.end.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for caller in self.callers {
            let Tally { served, failed } = caller.await?;
            all.served += served;
            all.failed.extend(failed);
        }
        Ok(all)
    }
}
