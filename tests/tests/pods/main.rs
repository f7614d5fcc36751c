//! Pods as a kubelet would run them, on Debian's podman, from images FROM scratch that were built here: `cargo test -p
//! weft-tests --test pods`.
//!
//! There is no API server: the control plane reads Services, EndpointSlices and Pods from a ConfigMap, and sidecars join by
//! tokens from Secrets.

mod manifest;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use weft_tests::podman::Podman;
use weft_tests::{binary, poll};

use manifest::{CONTROL_PLANE, Member};

/// What takes part, as images name it.
const IMAGES: [&str; 3] = ["weft-proxy", "weft-control-plane", "weft"];
/// How long pods may take until they do what they should, in debug builds on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A node with a control plane on it.
struct Node {
    podman: Podman,
    curl: PathBuf,
}

impl Node {
    /// `None` where this machine runs no pods; that is said.
    fn start(members: &[&Member]) -> anyhow::Result<Option<Self>> {
        let Some(mut podman) = Podman::start() else { return Ok(None) };
        podman.images(&binary::of_images(&IMAGES), &IMAGES)?;
        podman.play("weft-control-plane", &manifest::control_plane(members)?, manifest::CONTROL_ADDRESS)?;
        let node = Self { podman, curl: "/usr/bin/curl".into() };
        poll::until_blocking("the control plane is ready", DEADLINE, || {
            node.ask(CONTROL_PLANE, "http://127.0.0.1:15020/ready")
        })
        .with_context(|| node.podman.account())?;
        Ok(Some(node))
    }

    /// Asks inside a container's pod.
    fn ask(&self, container: &str, url: &str) -> anyhow::Result<String> {
        self.podman.beside(container, &self.curl, ["-sSf", "--max-time", "5", url])
    }

    /// Makes a token for `member`, and plays its manifest.
    fn play(&mut self, member: &Member) -> anyhow::Result<()> {
        let name = ["token", "create", "--namespace", manifest::NAMESPACE, "--name", member.name];
        let token = self.podman.beside(CONTROL_PLANE, binary::weft(), name)?;
        self.podman.play(member.name, &manifest::member(member, token.trim())?, member.address)
    }

    fn edge(&self, source: &str, target: &str) -> anyhow::Result<Value> {
        let graph = self.ask(CONTROL_PLANE, "http://127.0.0.1:8080/api/graph?window=1m")?;
        let graph: Value = serde_json::from_str(&graph)?;
        let edges = graph["edges"].as_array().context("no edges")?;
        let edge = edges.iter().find(|edge| edge["source"] == source && edge["target"] == target);
        edge.cloned().with_context(|| format!("no edge {source} -> {target} in {edges:?}"))
    }
}

const ORDERS: Member = Member { name: "orders", program: "orders", address: "10.89.77.11", once: false };
const CRON: Member = Member { name: "cron", program: "cron", address: "10.89.77.12", once: false };

#[test]
fn two_pods_speak_mutual_tls_and_the_graph_shows_who_called() -> anyhow::Result<()> {
    let Some(mut node) = Node::start(&[&ORDERS, &CRON])? else { return Ok(()) };
    node.play(&ORDERS)?;
    node.play(&CRON)?;
    let edge = poll::until_blocking("the edge has its lock", DEADLINE, || {
        let edge = node.edge("workload:shop/cron", "workload:shop/orders")?;
        ensure!(edge["tls"] == "mutual", "{edge:#}");
        anyhow::Ok(edge)
    })
    .with_context(|| node.podman.account())?;
    ensure!(edge["requests_total"].as_u64() > Some(0), "{edge:#}");

    // The callee's sidecar saw the caller's certificate, with every request that reached the app.
    let metrics = node.ask("orders-weft-proxy", "http://127.0.0.1:15020/metrics")?;
    let requests: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("http_server_request_duration_seconds_count"))
        .collect();
    ensure!(!requests.is_empty(), "{metrics}");
    for line in requests {
        let verified = line.contains(r#"weft_peer_identity="spiffe://cluster.local/ns/shop/sa/cron""#);
        ensure!(verified && line.contains(r#"weft_tls="mutual""#), "{line}");
    }
    Ok(())
}
