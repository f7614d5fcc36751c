//! `weft check` as a platform team meets it: before an installation, after it, and of the data plane; and without a cluster.
//!
//! The cluster is the small API server of our own, the control plane a real one, `weft` the real program. Nobody runs pods there, so
//! the control plane's Pod is written, and what a webhook does to a pod that is not really made.

use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use serde_json::{Value, json};
use weft_control_plane::app::{App, Bound};
use weft_control_plane::config::Config;
use weft_control_plane::install;
use weft_tests::apiserver::ApiServer;
use weft_tests::embedded::Plane;
use weft_tests::{binary, poll};

use super::place::{OWN, PATIENCE};

/// The control plane's pod.
const POD: &str = "weft-control-plane-6d4";

struct Cluster {
    server: ApiServer,
    files: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> anyhow::Result<Self> {
        let server = ApiServer::start().await?;
        let files = tempfile::tempdir()?;
        server.kubeconfig(files.path())?;
        Ok(Self { server, files })
    }

    /// `weft check` with these words.
    async fn check(&self, words: &[&str]) -> anyhow::Result<Output> {
        check(words, Some(&self.files.path().join("kubeconfig"))).await
    }

    /// What `weft check -o json` finds, and whether it says by its exit code that nothing failed.
    async fn found(&self, words: &[&str]) -> anyhow::Result<Found> {
        Found::of(&self.check(&[words, &["-o", "json"]].concat()).await?)
    }

    /// What `weft install` prints, and a pod of it as the kubelet would tell of it.
    fn install(&self) -> anyhow::Result<()> {
        self.server.apply(&install::text(&install::objects(&install::values::Values::default())))?;
        let deployment = self.server.get("Deployment", OWN, install::NAME).context("it is installed")?;
        self.server.set(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": POD, "namespace": OWN, "labels": deployment["spec"]["template"]["metadata"]["labels"] },
            "spec": deployment["spec"]["template"]["spec"],
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
        }))
    }

    /// The program in that pod.
    async fn control_plane(&self) -> anyhow::Result<App> {
        let kubeconfig = format!("--kubeconfig={}", self.files.path().join("kubeconfig").display());
        let pod = format!("--pod-name={POD}");
        let words = [
            "weft-control-plane",
            "--kubernetes",
            "--api-listen=127.0.0.1:0",
            "--control-tls-listen=127.0.0.1:0",
            "--inject-listen=127.0.0.1:0",
            "--otlp-grpc-listen=off",
            "--otlp-http-listen=off",
            "--drain-deadline=1s",
            &kubeconfig,
            &pod,
        ];
        App::start(Config::try_parse_from(words)?).await
    }
}

async fn check(words: &[&str], kubeconfig: Option<&Path>) -> anyhow::Result<Output> {
    let mut command = tokio::process::Command::new(binary::weft());
    command.arg("check").args(words);
    for variable in ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "WEFT_API", "WEFT_TOKEN", "WEFT_TOKEN_FILE"] {
        command.env_remove(variable);
    }
    match kubeconfig {
        Some(file) => command.env("KUBECONFIG", file),
        None => command.env("HOME", "/nonexistent"),
    };
    tokio::time::timeout(PATIENCE, command.output()).await?.context("start weft")
}

/// What was found, and the exit code.
struct Found {
    document: Value,
    success: bool,
}

impl Found {
    fn of(output: &Output) -> anyhow::Result<Self> {
        let document = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)))?;
        let found = Self { document, success: output.status.success() };
        ensure!(found.document["good"] == found.success, "{}", found.document);
        Ok(found)
    }

    fn checks(&self) -> &[Value] {
        self.document["checks"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn of_check(&self, check: &str) -> &Value {
        self.checks()
            .iter()
            .find(|one| one["check"] == check)
            .unwrap_or_else(|| panic!("{check} is not made"))
    }

    /// How a check ended, and why.
    fn outcome(&self, check: &str) -> (&str, &str) {
        let one = self.of_check(check);
        let text = |field: &str| one[field].as_str().unwrap_or_default();
        (text("outcome"), text("why"))
    }

    /// Checks that ended so.
    fn all(&self, outcome: &str) -> Vec<&str> {
        let found = self.checks().iter().filter(|one| one["outcome"] == outcome);
        found.filter_map(|one| one["check"].as_str()).collect()
    }
}

/// What programs may rely on.
fn has_its_shape(found: &Found) {
    let fields = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&found.document), ["checks", "counts", "good"]);
    assert_eq!(fields(&found.document["counts"]), ["failed", "left_out", "notes", "passed", "warnings"]);
    let counts = found.document["counts"].as_object().expect("an object");
    let sum: u64 = counts.values().filter_map(Value::as_u64).sum();
    assert_eq!(sum, found.checks().len() as u64);
    for one in found.checks() {
        let more: &[&str] = match one["outcome"].as_str() {
            Some("pass") => &["remark"],
            Some("skip") => &["why"],
            Some("note" | "warn" | "fail") => &["items", "why"],
            other => panic!("{other:?}"),
        };
        let mut wanted = [&["check", "group", "hint", "outcome", "sentence"], more].concat();
        wanted.sort_unstable();
        assert_eq!(fields(one), wanted, "{one}");
        assert_eq!(one["hint"], format!("docs/checks.md#{}", one["check"].as_str().expect("text")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_an_installation_what_is_missing_is_named() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let found = cluster.found(&["--pre"]).await?;
    has_its_shape(&found);
    assert!(found.success, "{}", found.document);
    assert_eq!(found.all("note"), ["gateway-api"], "{}", found.document);
    for check in ["api-server", "kubernetes-version", "other-meshes", "rights", "not-installed"] {
        assert_eq!(found.outcome(check).0, "pass", "{}", found.document);
    }
    cluster.server.deny("create", "clusterroles");
    let found = cluster.found(&["--pre"]).await?;
    assert!(!found.success);
    assert_eq!(found.of_check("rights")["items"], json!(["create clusterroles.rbac.authorization.k8s.io"]));
    cluster.server.allow_all();
    // It was installed in the meantime: that is no failure.
    cluster.install()?;
    let found = cluster.found(&["--pre"]).await?;
    assert!(found.success);
    assert_eq!(found.outcome("not-installed").0, "warn");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_it_each_thing_that_is_not_there_is_named_until_all_is_well() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.server.define_gateway_api()?;
    let nothing = cluster.found(&[]).await?;
    has_its_shape(&nothing);
    assert!(!nothing.success);
    assert_eq!(nothing.all("fail"), ["namespace", "api"], "{}", nothing.document);
    ensure!(
        nothing.outcome("namespace").1.contains("weft install | kubectl apply -f -"),
        "{}",
        nothing.document
    );
    assert_eq!(nothing.outcome("webhook"), ("skip", "needs namespace"));

    cluster.install()?;
    let asleep = cluster.found(&[]).await?;
    assert!(!asleep.success);
    assert_eq!(asleep.all("fail"), ["lease", "ca-secret", "webhook-ca", "api"], "{}", asleep.document);

    let plane = cluster.control_plane().await?;
    cluster.server.admit(|pod| {
        pod["spec"]["initContainers"] = json!([{ "name": "weft-proxy", "restartPolicy": "Always" }]);
    });
    let api = api(plane.bound())?;
    let there = ["--context", "test", "--api", &api];
    let output = cluster.check(&[&there[..], &["--wait", "60s", "-o", "json"]].concat()).await?;
    let found = Found::of(&output)?;
    assert!(found.success, "{}", found.document);
    assert_eq!(found.all("warn"), [""; 0], "{}", found.document);
    // What goes wrong later is named, and nothing else.
    cluster.server.delete("Secret", OWN, "weft-ca").ok();
    cluster.server.delete("MutatingWebhookConfiguration", "", "weft-injector")?;
    let found = cluster.found(&there).await?;
    assert!(!found.success);
    ensure!(found.all("fail").contains(&"webhook"), "{}", found.document);
    ensure!(found.outcome("webhook").1.contains("weft-injector"), "{}", found.document);
    assert_eq!(found.outcome("webhook-serves"), ("skip", "needs webhook-ca"));
    let table = cluster.check(&there).await?;
    assert_eq!(table.status.code(), Some(1));
    let table = String::from_utf8(table.stdout)?;
    ensure!(table.contains("see docs/checks.md#webhook, or: weft check --explain webhook"), "{table}");
    plane.stop(std::future::pending()).await;
    Ok(())
}

fn api(bound: Bound) -> anyhow::Result<String> {
    Ok(format!("http://{}", bound.api.context("it has an API")?))
}

/// A pod as its kubelet tells of it.
fn pod(name: &str, containers: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "containers": containers },
        "status": { "phase": "Running", "podIP": "10.0.0.7", "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_data_plane_pods_are_named_and_nothing_is_ticked_that_is_not_there() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.server.define_gateway_api()?;
    cluster.install()?;
    let plane = cluster.control_plane().await?;
    let api = api(plane.bound())?;
    let there = ["--context", "test", "--api", &api, "--proxy"];
    let found = cluster.found(&there).await?;
    has_its_shape(&found);
    let of_proxies = |found: &Found, outcome: &str| -> Vec<String> {
        let all =
            found.checks().iter().filter(|one| one["group"] == "data-plane" && one["outcome"] == outcome);
        all.filter_map(|one| Some(one["check"].as_str()?.to_owned())).collect()
    };
    assert_eq!(of_proxies(&found, "pass"), [""; 0], "{}", found.document);
    assert_eq!(of_proxies(&found, "warn"), ["sidecars"]);
    ensure!(
        found.outcome("sidecars").1.starts_with("no sidecar is connected: nothing to check"),
        "{}",
        found.document
    );
    assert_eq!(found.outcome("clocks"), ("skip", "no sidecar is connected: nothing to check"));
    let short = cluster.check(&[&there[..], &["-o", "short"]].concat()).await?;
    let short = String::from_utf8(short.stdout)?;
    ensure!(short.contains("no sidecar is connected: nothing to check"), "{short}");
    ensure!(!short.contains('✓'), "{short}");

    // A namespace is labelled, and its pods were not restarted.
    cluster.server.apply(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {weft.dev/inject: enabled}}}",
    )?;
    cluster.server.set(pod("cart-1", &json!([{ "name": "app", "image": "app" }])))?;
    let found = cluster.found(&there).await?;
    assert_eq!(found.outcome("uninjected").0, "warn");
    assert_eq!(found.of_check("uninjected")["items"], json!(["shop/cart-1"]));
    assert_eq!(found.outcome("injected-connected").0, "skip", "no pod has one");
    // One that was, whose sidecar is lost.
    let both = json!([{ "name": "app", "image": "app" }, { "name": "weft-proxy", "image": "weft-proxy" }]);
    let mut web = pod("web-1", &both);
    let status = json!({ "version": env!("CARGO_PKG_VERSION"), "sidecar": "classic" });
    web["metadata"]["annotations"] = json!({ "weft.dev/status": status.to_string() });
    cluster.server.set(web)?;
    let found = cluster.found(&there).await?;
    assert!(!found.success);
    assert_eq!(found.outcome("injected-connected").0, "fail");
    assert_eq!(
        found.of_check("injected-connected")["items"],
        json!(["shop/web-1: its sidecar is not ready"])
    );
    let elsewhere = cluster.found(&[&there[..], &["-n", "tools"]].concat()).await?;
    assert_eq!(of_proxies(&elsewhere, "pass"), [""; 0], "{}", elsewhere.document);
    // Whoever may not look at the cluster hears the same of the control plane.
    poll::until("the control plane misses the pod", PATIENCE, async || {
        let found = Found::of(&check(&["--proxy", "--api", &api, "-o", "json"], None).await?)?;
        ensure!(found.of_check("uninjected")["items"] == json!(["shop/cart-1"]), "{}", found.document);
        anyhow::Ok(())
    })
    .await?;
    plane.stop(std::future::pending()).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_files_nobody_is_missed_and_that_is_said() -> anyhow::Result<()> {
    let plane = Plane::start(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {weft.dev/inject: enabled}}}\n---\n\
         {apiVersion: v1, kind: Pod, metadata: {name: cart-1, namespace: shop}, spec: {containers: [{name: app}]}, status: {podIP: 10.0.0.7}}\n",
    )
    .await?;
    let address = format!("http://{}", plane.api);
    let found = Found::of(&check(&["--proxy", "--api", &address, "-o", "json"], None).await?)?;
    has_its_shape(&found);
    assert!(found.success, "{}", found.document);
    let (outcome, why) = found.outcome("uninjected");
    assert_eq!(outcome, "skip");
    ensure!(why.contains("reads files"), "{why}");
    assert_eq!(found.outcome("sidecars").0, "warn");
    plane.stop().await;
    Ok(())
}
