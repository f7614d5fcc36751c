//! Pods as a kubelet would run them, on Debian's podman, from images FROM scratch that were built here: `cargo test -p
//! weft-tests --test pods`.
//!
//! There is no API server: the control plane reads Services, EndpointSlices and Pods from a directory, and sidecars join by
//! tokens. Podman knows classic sidecars; for native ones, and for all that the kubelet does in order, `kubelet` stands in.

mod kubelet;
mod manifest;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tempfile::TempDir;
use weft_tests::podman::Podman;
use weft_tests::{binary, poll};

use kubelet::Kubelet;
use manifest::{CONTROL_PLANE, GRACE_SECONDS, Member};

/// What takes part, as images name it.
const IMAGES: [&str; 3] = ["weft-proxy", "weft-control-plane", "weft"];
/// How long pods may take until they do what they should, in debug builds on a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

const ORDERS: Member = Member { name: "orders", program: "orders", first: None, address: "10.89.77.11" };
/// Asks `orders` every second, and once more when it is told to end.
const CRON: Member = Member { name: "cron", program: "cron", first: None, address: "10.89.77.12" };
/// Asks `orders` before it starts, and once; then it has done its job.
const REPORT: Member =
    Member { name: "report", program: "report", first: Some("report"), address: "10.89.77.13" };

/// The same, without asking before.
const JOB: Member = Member { first: None, ..REPORT };

/// A node with a control plane on it.
struct Node {
    podman: Podman,
    source: TempDir,
}

impl Node {
    /// `None` where this machine runs no pods; that is said.
    fn start() -> anyhow::Result<Option<Self>> {
        let Some(podman) = Podman::start() else { return Ok(None) };
        podman.images(binary::of_images(&IMAGES), &IMAGES)?;
        let source = TempDir::with_prefix("weft-source-")?;
        // The control plane is not root.
        std::fs::set_permissions(source.path(), Permissions::from_mode(0o755))?;
        let manifest = manifest::control_plane(source.path())?;
        let mut node = Self { podman, source };
        node.tell(manifest::running)?;
        node.podman.play("weft-control-plane", &manifest, manifest::CONTROL_ADDRESS, true)?;
        poll::until_blocking("the control plane is ready", DEADLINE, || {
            node.ask(CONTROL_PLANE, "http://127.0.0.1:15020/ready")
        })
        .with_context(|| node.podman.account())?;
        Ok(Some(node))
    }

    /// Says to the control plane how pods are.
    fn tell(&self, pods: impl Fn(&Member) -> Value) -> anyhow::Result<()> {
        let (written, read) = (self.source.path().join(".new"), self.source.path().join("shop.yaml"));
        std::fs::write(&written, manifest::source(&[&ORDERS, &CRON, &REPORT], pods)?)?;
        Ok(std::fs::rename(written, read)?)
    }

    /// Asks inside a container's pod.
    fn ask(&self, container: &str, url: &str) -> anyhow::Result<String> {
        self.podman.beside(container, Path::new("curl"), ["-sSf", "--max-time", "5", url])
    }

    /// Plays a member with a sidecar, and a token for it; answers the pod. With a native sidecar nothing of it is started.
    fn play(&mut self, member: &Member, sidecar: &str) -> anyhow::Result<Value> {
        let token = self.token(member)?;
        self.play_with(member, sidecar, &token, sidecar == "classic")
    }

    fn token(&self, member: &Member) -> anyhow::Result<String> {
        let name = ["token", "create", "--namespace", manifest::NAMESPACE, "--name", member.name];
        Ok(self.podman.beside(CONTROL_PLANE, binary::weft(), name)?.trim().to_owned())
    }

    fn play_with(
        &mut self,
        member: &Member,
        sidecar: &str,
        token: &str,
        start: bool,
    ) -> anyhow::Result<Value> {
        let pod = manifest::injected(&manifest::app(member), sidecar)?;
        let text = manifest::for_podman(pod.clone(), member, token)?;
        self.podman.play(member.name, &text, member.address, start)?;
        Ok(pod)
    }

    fn kubelet<'a>(&'a self, member: &'a Member, pod: &'a Value) -> Kubelet<'a> {
        Kubelet { podman: &self.podman, pod, address: member.address }
    }

    /// Waits for the edge from `source` to `orders` that `holds`.
    fn edge(&self, source: &str, holds: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let wanted = (format!("workload:shop/{source}"), "workload:shop/orders");
        poll::until_blocking("an edge", DEADLINE, || {
            let graph = self.ask(CONTROL_PLANE, "http://127.0.0.1:8080/api/graph?window=5m")?;
            let graph: Value = serde_json::from_str(&graph)?;
            let edges = graph["edges"].as_array().context("no edges")?;
            let edge = edges
                .iter()
                .find(|edge| edge["source"] == *wanted.0 && edge["target"] == *wanted.1 && holds(edge));
            edge.cloned().with_context(|| format!("no such edge {wanted:?} in {edges:#?}"))
        })
        .with_context(|| self.podman.account())
    }

    /// As who the callers of `orders` proved themselves, if all did.
    fn callers(&self) -> anyhow::Result<Vec<String>> {
        let metrics = self.ask("orders-weft-proxy", "http://127.0.0.1:15020/metrics")?;
        let requests =
            metrics.lines().filter(|line| line.starts_with("http_server_request_duration_seconds_count"));
        let callers = requests.map(|line| {
            ensure!(line.contains(r#"weft_tls="mutual""#), "{line}");
            let (_, rest) = line.split_once(r#"weft_peer_identity=""#).context(line.to_owned())?;
            Ok(rest.split('"').next().unwrap_or_default().to_owned())
        });
        callers.collect()
    }
}

fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

#[test]
fn two_pods_speak_mutual_tls_and_the_graph_shows_who_called() -> anyhow::Result<()> {
    let Some(mut node) = Node::start()? else { return Ok(()) };
    let orders = node.play(&ORDERS, "classic")?;
    node.play(&CRON, "classic")?;
    node.edge("cron", |edge| edge["tls"] == "mutual" && edge["requests_total"].as_u64() > Some(0))?;
    // The callee's sidecar saw the caller's certificate, with every request that reached the app.
    let callers = node.callers()?;
    ensure!(!callers.is_empty() && callers.iter().all(|caller| *caller == identity("cron")), "{callers:?}");

    // Who has no identity is not let in; the kubelet's probe, which has none, is answered by the sidecar, and is no request.
    let kubelet = node.kubelet(&ORDERS, &orders);
    let app = kubelet.container("app")?;
    ensure!(app["readinessProbe"]["httpGet"]["port"] == 15020, "{app:#}");
    kubelet.probed(app, "readinessProbe").with_context(|| node.podman.account())?;
    let callers = node.callers()?;
    ensure!(callers.iter().all(|caller| *caller == identity("cron")), "{callers:?}");
    let direct = format!("http://{}:8080/reports/daily", ORDERS.address);
    let refused = node.podman.run("curl", ["-sSf", "--max-time", "5", &direct]);
    ensure!(refused.is_err(), "{direct} in plain text: {refused:?}");

    // A classic sidecar is told to end together with its app, which has one more call to make. As with a kubelet, the pod's
    // network outlives both.
    let grace = GRACE_SECONDS.to_string();
    node.podman.run("podman", ["stop", "--time", &grace, "cron-app", "cron-weft-proxy"])?;
    let (app, sidecar) = (node.podman.log("cron-app")?, node.podman.log("cron-weft-proxy")?);
    ensure!(app.contains(r#"{"orders":0}"#), "no last call: {app}\n{sidecar}");
    for container in ["cron-app", "cron-weft-proxy"] {
        let code = node.podman.inspect(container)?["State"]["ExitCode"].take();
        ensure!(code == 0, "{container} ended with {code}: {}", node.podman.log(container)?);
    }
    Ok(())
}

#[test]
fn native_sidecars_begin_before_and_end_after_all_that_needs_them() -> anyhow::Result<()> {
    let Some(mut node) = Node::start()? else { return Ok(()) };
    let orders = node.play(&ORDERS, "native")?;
    node.kubelet(&ORDERS, &orders).start().with_context(|| node.podman.account())?;

    // A job whose init container and app each have one call to make, at once: the sidecar was there before them.
    let job = node.play(&REPORT, "native")?;
    let kubelet = node.kubelet(&REPORT, &job);
    kubelet.start().with_context(|| node.podman.account())?;
    ensure!(kubelet.ended("report-app")? == 0, "{}", node.podman.account());
    // When its app has ended, a job's sidecars are ended, and it is complete.
    let codes = kubelet.end(GRACE_SECONDS)?;
    ensure!(
        codes.len() == 4 && codes.iter().all(|(_, code)| *code == 0),
        "{codes:?} {}",
        node.podman.account()
    );
    for container in ["report-first", "report-app"] {
        let said = node.podman.log(container)?;
        ensure!(said.contains(r#"{"orders":0}"#), "{container}: {said}");
    }
    // What the sidecar saw it told, although it lived for a moment only.
    node.edge("report", |edge| edge["tls"] == "mutual" && edge["requests_total"] == 2)?;

    // The app of a pod that is to end makes one more call, and its sidecar is there.
    let cron = node.play(&CRON, "native")?;
    let kubelet = node.kubelet(&CRON, &cron);
    kubelet.start().with_context(|| node.podman.account())?;
    node.edge("cron", |edge| edge["tls"] == "mutual" && edge["requests_total"].as_u64() > Some(0))?;
    let codes = kubelet.end(GRACE_SECONDS)?;
    ensure!(codes.iter().all(|(_, code)| *code == 0), "{codes:?} {}", node.podman.account());
    let said = node.podman.log("cron-app")?;
    ensure!(said.contains(r#"{"orders":0}"#), "no last call: {said}");

    let mut callers = node.callers()?;
    callers.sort();
    callers.dedup();
    ensure!(callers == [identity("cron"), identity("report")], "{callers:?}");
    Ok(())
}

#[test]
fn a_classic_job_is_held_until_its_sidecar_is_ready_and_completes() -> anyhow::Result<()> {
    let Some(mut node) = Node::start()? else { return Ok(()) };
    node.play(&ORDERS, "classic")?;
    let token = node.token(&JOB)?;
    // While the control plane does not answer, the start hook does not end.
    node.podman.run("podman", ["kill", "--signal", "STOP", CONTROL_PLANE])?;
    let job = node.play_with(&JOB, "classic", &token, false)?;
    let kubelet = node.kubelet(&JOB, &job);
    kubelet.initialize().with_context(|| node.podman.account())?;
    let (sidecar, app) = (kubelet.container("weft-proxy")?, kubelet.container("app")?);
    let name = kubelet.start_container(sidecar)?;
    let early = node.podman.run("podman", ["exec", &name, "/weft-proxy", "wait", "--timeout", "1s"]);
    let said = early.err().context("the sidecar was ready without its control plane")?.to_string();
    ensure!(said.contains("is not ready after 1s"), "{said}");
    node.podman.run("podman", ["kill", "--signal", "CONT", CONTROL_PLANE])?;
    kubelet.started(sidecar).with_context(|| node.podman.account())?;
    // The app's one call is made at once.
    kubelet.start_container(app)?;
    ensure!(kubelet.ended("report-app")? == 0, "{}", node.podman.account());
    ensure!(node.podman.inspect(&name)?["State"]["Running"] == true, "{}", node.podman.account());

    // The kubelet says that the app has ended, and nobody gives the sidecar a signal.
    node.tell(|member| match member.name == JOB.name {
        true => manifest::app_ended(&JOB, &job),
        false => manifest::running(member),
    })?;
    let code = kubelet.ended(&name).with_context(|| node.podman.account())?;
    ensure!(code == 0, "{name} ended with {code}: {}", node.podman.log(&name)?);
    node.edge("report", |edge| edge["tls"] == "mutual" && edge["requests_total"] == 1)?;
    Ok(())
}
