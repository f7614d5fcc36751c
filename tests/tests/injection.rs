//! Sidecars into pods, with real programs: the webhook as the API server meets it, the command line beside it, and what a
//! classic sidecar does when its app ends.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::routing::any;
use nix::sys::signal::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weft_tests::apiserver::ApiServer;
use weft_tests::client::{self, Ask};
use weft_tests::embedded::Plane;
use weft_tests::process::Guarded;
use weft_tests::{binary, poll};

/// Longest wait for anything; only reached when the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

const CLUSTER: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: weft-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/inject: enabled}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: weft-injector}
webhooks:
- name: injector.weft.dev
  admissionReviewVersions: [v1]
  sideEffects: None
  clientConfig: {service: {name: weft-injector, namespace: weft-system, path: /inject}}
";

/// A control plane that follows `server`, and where its webhook is.
async fn control_plane(server: &ApiServer, directory: &Path) -> anyhow::Result<(Guarded, SocketAddr)> {
    let ready = directory.join("ready.json");
    let child = Command::new(binary::weft())
        .arg("control-plane")
        .args(["--kubernetes", "--api-listen=127.0.0.1:0", "--inject-listen=127.0.0.1:0"])
        .args(["--control-tls-listen=127.0.0.1:0", "--otlp-grpc-listen=off", "--otlp-http-listen=off"])
        .arg(format!("--ready-file={}", ready.display()))
        .env("KUBECONFIG", server.kubeconfig(directory)?)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(directory.join("log"))?)
        .spawn();
    let child = Guarded::from(child.context("start a control plane")?);
    let bound = poll::until("the control plane serves", PATIENCE, async || {
        anyhow::Ok(serde_json::from_slice::<Value>(&tokio::fs::read(&ready).await?)?)
    });
    let bound = bound.await?;
    let address = bound["inject"].as_str().with_context(|| format!("no webhook in {bound}"))?.parse()?;
    Ok((child, address))
}

/// The bundle that the API server would trust the webhook by.
fn bundle(server: &ApiServer) -> anyhow::Result<String> {
    use base64_of_kubernetes as base64;
    let configuration =
        server.get("MutatingWebhookConfiguration", "", "weft-injector").context("it is there")?;
    let text =
        configuration["webhooks"][0]["clientConfig"]["caBundle"].as_str().context("no caBundle yet")?;
    Ok(String::from_utf8(base64::decode(text)?)?)
}

/// What Kubernetes writes bytes in.
mod base64_of_kubernetes {
    use k8s_openapi::ByteString;

    pub(super) fn decode(text: &str) -> anyhow::Result<Vec<u8>> {
        let bytes: ByteString = serde_json::from_value(serde_json::Value::String(text.to_owned()))?;
        Ok(bytes.0)
    }
}

/// Asks the webhook as the API server does: by its Service's name, trusting `bundle` and nothing else.
async fn ask(webhook: SocketAddr, bundle: &str, body: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("weft-injector.weft-system.svc")?;
    let mut stream = connector.connect(name, TcpStream::connect(webhook).await?).await?;
    let head = format!(
        "POST /inject?timeout=5s HTTP/1.1\r\nhost: weft-injector.weft-system.svc\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    // Some end without a farewell after the last byte; what is complete is looked at below.
    stream.read_to_end(&mut answer).await.ok();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no whole head")?;
    let status = std::str::from_utf8(&answer[..end])?.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, answer.split_off(end + 4)))
}

fn review(pod: &Value) -> Vec<u8> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5", "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "shop", "operation": "CREATE", "object": pod, "oldObject": null, "dryRun": false,
        },
    });
    review.to_string().into_bytes()
}

/// The webhook's response about a pod.
async fn decide(webhook: SocketAddr, bundle: &str, pod: &Value) -> anyhow::Result<Value> {
    let (status, body) = ask(webhook, bundle, &review(pod)).await?;
    ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
    let answer: Value = serde_json::from_slice(&body)?;
    Ok(answer["response"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_and_command_line_make_the_same_of_every_shape() -> anyhow::Result<()> {
    let server = ApiServer::start().await?;
    server.define_weft()?;
    server.apply(CLUSTER)?;
    let directory = tempfile::tempdir()?;
    let (_control_plane, webhook) = control_plane(&server, directory.path()).await?;
    let bundle = poll::until("the API server trusts the webhook", PATIENCE, async || bundle(&server)).await?;
    let shapes = binary::workspace().join("control-plane/src/inject/shapes");
    let mut compared = 0;
    for entry in std::fs::read_dir(shapes)? {
        let path = entry?.path();
        // What a Namespace in the file says, only the command line hears.
        let text = std::fs::read_to_string(&path)?;
        if path.extension().is_none_or(|end| end != "yaml")
            || text.contains("kind: Namespace")
            || text.contains("kind: List")
        {
            continue;
        }
        let before = documents(&text)?;
        let output = Command::new(binary::weft()).arg("inject").arg("-f").arg(&path).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let after = documents(std::str::from_utf8(&output.stdout)?)?;
        for (index, document) in before.iter().enumerate().filter(|(_, document)| document["kind"] == "Pod") {
            if document["metadata"]["namespace"] != "shop" {
                continue;
            }
            let response =
                decide(webhook, &bundle, document).await.with_context(|| path.display().to_string())?;
            compared += 1;
            if output.status.success() {
                ensure!(response["allowed"] == true, "{}: {response}", path.display());
                let mut patched = document.clone();
                if let Some(patch) = response["patch"].as_str() {
                    let patch: json_patch::Patch =
                        serde_json::from_slice(&base64_of_kubernetes::decode(patch)?)?;
                    json_patch::patch(&mut patched, &patch)?;
                }
                assert_eq!(patched, after[index], "{}", path.display());
                for warning in response["warnings"].as_array().into_iter().flatten() {
                    let text = warning
                        .as_str()
                        .context("a text")?
                        .trim_start_matches("weft: ")
                        .trim_start_matches("no sidecar: ");
                    ensure!(said.contains(text), "{}: {text:?} is not in {said}", path.display());
                }
            } else {
                let message =
                    response["status"]["message"].as_str().with_context(|| format!("{response}"))?;
                let message = message.trim_start_matches("weft cannot inject this pod: ");
                ensure!(said.contains(message), "{message:?} is not in {said}");
            }
        }
    }
    ensure!(compared >= 20, "{compared}");
    // What is no question is told so, and the next one is answered.
    assert_eq!(ask(webhook, &bundle, b"[").await?.0, 400);
    assert_eq!(ask(webhook, &bundle, &vec![b' '; 5 << 20]).await?.0, 413);
    // A namespace that has just been made is known.
    server.apply(
        "{apiVersion: v1, kind: Namespace, metadata: {name: new, annotations: {weft.dev/inject: enabled}}}",
    )?;
    let pod =
        json!({ "metadata": { "name": "a" }, "spec": { "containers": [{ "name": "app", "image": "a" }] } });
    let question = String::from_utf8(review(&pod))?.replace("\"shop\"", "\"new\"");
    let (_, body) = ask(webhook, &bundle, question.as_bytes()).await?;
    ensure!(String::from_utf8_lossy(&body).contains("\"patch\""), "{}", String::from_utf8_lossy(&body));
    // A policy that closes the namespace closes its pods from their start.
    let patch = async || {
        let response = decide(webhook, &bundle, &pod).await?;
        let patch = response["patch"].as_str().with_context(|| response.to_string())?;
        anyhow::Ok(String::from_utf8(base64_of_kubernetes::decode(patch)?)?)
    };
    ensure!(!patch().await?.contains("WEFT_DEFAULT_ACCESS"), "open without a policy");
    server.apply(
        "{apiVersion: weft.dev/v1alpha1, kind: AccessPolicy, metadata: {name: closed, namespace: shop}, spec: {rules: []}}",
    )?;
    poll::until("pods start closed", PATIENCE, async || {
        let patch = patch().await?;
        ensure!(patch.contains(r#"{"name":"WEFT_DEFAULT_ACCESS","value":"deny"}"#), "{patch}");
        anyhow::Ok(())
    })
    .await?;
    Ok(())
}

fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    serde_yaml::Deserializer::from_str(text).map(|document| Ok(Value::deserialize(document)?)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_cluster_gets_ordinary_containers() -> anyhow::Result<()> {
    let server = ApiServer::start().await?;
    server.claim(28);
    server.apply(CLUSTER)?;
    let directory = tempfile::tempdir()?;
    let (_control_plane, webhook) = control_plane(&server, directory.path()).await?;
    let pod =
        json!({ "metadata": { "name": "a" }, "spec": { "containers": [{ "name": "app", "image": "a" }] } });
    let response =
        poll::until("the webhook answers", PATIENCE, async || decide(webhook, &bundle(&server)?, &pod).await);
    let response = response.await?;
    let patch = response["patch"].as_str().context("a patch")?;
    let patch = String::from_utf8(base64_of_kubernetes::decode(patch)?)?;
    // An init container that stays is none there: the pod would wait for its end.
    ensure!(!patch.contains("restartPolicy") && patch.contains("weft-proxy"), "{patch}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_comes_back_whoever_takes_it_away() -> anyhow::Result<()> {
    let server = ApiServer::start().await?;
    server.apply(CLUSTER)?;
    let directory = tempfile::tempdir()?;
    let (_control_plane, webhook) = control_plane(&server, directory.path()).await?;
    let pod =
        json!({ "metadata": { "name": "a" }, "spec": { "containers": [{ "name": "app", "image": "a" }] } });
    let answers = async || {
        let response = decide(webhook, &bundle(&server)?, &pod).await?;
        ensure!(response["patch"].is_string(), "{response}");
        anyhow::Ok(())
    };
    poll::until("the webhook answers", PATIENCE, answers).await?;
    let first = bundle(&server)?;
    // Somebody installs anew, without a bundle.
    server.apply(CLUSTER)?;
    poll::until("the webhook answers after an upgrade", PATIENCE, answers).await?;
    assert_eq!(bundle(&server)?, first, "the same root");
    // Somebody deletes the Secret: another root is made, told and served.
    server.delete("Secret", "weft-system", "weft-injector-certificate")?;
    poll::until("there is another root", PATIENCE, async || {
        ensure!(bundle(&server)? != first, "still the same");
        answers().await
    })
    .await?;
    Ok(())
}

// === a classic sidecar's end ===

/// The pod's uid.
const UID: &str = "6f1c3a52";

/// A pod with a classic sidecar at an address of loopback, and what its only other container is doing.
fn pod(policy: &str, state: &str, more: &str) -> String {
    format!(
        "\
apiVersion: v1
kind: Pod
metadata: {{name: migrate-x7k2p, namespace: shop, uid: {UID}, labels: {{app: migrate}}{more}}}
spec:
  restartPolicy: {policy}
  containers: [{{name: weft-proxy}}, {{name: app}}]
status:
  phase: Running
  podIPs: [{{ip: 127.9.8.7}}]
  containerStatuses:
  - {{name: app, image: a, imageID: a, ready: false, restartCount: 0, state: {{{state}}}}}
  - {{name: weft-proxy, image: a, imageID: a, ready: true, restartCount: 0, state: {{running: {{}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: shop}}
spec: {{clusterIP: 10.96.0.9, ports: [{{name: main, port: 80, appProtocol: http}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: db-1, namespace: shop, labels: {{kubernetes.io/service-name: db}}}}
addressType: IPv4
ports: [{{name: main, port: DB_PORT}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"
    )
}

struct Classic {
    process: Guarded,
    bound: Value,
    plane: Plane,
    db: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Classic {
    /// A control plane that knows the pod as running, and its sidecar as a process.
    async fn start(policy: &str, deadline: &str) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let db = listener.local_addr()?;
        let answer = any(async || "a row\n");
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/{*path}", answer)).await });
        let directory = tempfile::tempdir()?;
        let plane = Plane::start(&objects(&pod(policy, "running: {}", ""), db)).await?;
        let ready = directory.path().join("ready.json");
        let process = Command::new(binary::weft())
            .args([
                "proxy",
                "--workload=migrate",
                "--namespace=shop",
                "--pod-ips=127.9.8.7",
                "--pod=migrate-x7k2p",
                "--pod-uid",
                UID,
                "--sidecar=classic",
            ])
            .args([
                "--inbound-listen=127.0.0.1:0",
                "--outbound-listen=127.0.0.1:0",
                "--metrics-listen=127.0.0.1:0",
            ])
            .args(["--admin-listen=off", "--workers=1", "--outbound-forward=127.0.0.1:0=db.shop:80"])
            .arg(format!("--drain-deadline={deadline}"))
            .arg(format!("--control-plane=http://{}", plane.control))
            .arg(format!("--ready-file={}", ready.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = Guarded::from(process.context("start a sidecar")?);
        let bound = poll::until("the sidecar serves", PATIENCE, async || {
            anyhow::Ok(serde_json::from_slice(&tokio::fs::read(&ready).await?)?)
        });
        let classic = Self { process, bound: bound.await?, plane, db, _directory: directory };
        poll::until("the app's way out is open", PATIENCE, async || classic.call().await).await?;
        Ok(classic)
    }

    /// One call of the app to the database, on a connection of its own.
    async fn call(&self) -> anyhow::Result<()> {
        let out = self.bound["forwards"][0].as_str().context("a forward")?.parse()?;
        let answer = client::once(out, &Ask::get("/rows", "db.shop")).await?;
        ensure!(answer.body == "a row\n", "{answer:?}");
        Ok(())
    }

    async fn readiness(&self) -> anyhow::Result<u16> {
        let metrics = self.bound["metrics"].as_str().context("metrics")?.parse()?;
        Ok(client::once(metrics, &Ask::get("/ready", "localhost")).await?.status.as_u16())
    }

    async fn ended(mut self) -> anyhow::Result<()> {
        let waiting = tokio::task::spawn_blocking(move || {
            let status = self.process.wait(PATIENCE);
            (status, self)
        });
        let (status, _still_here) = waiting.await?;
        let status = status?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

fn objects(pod: &str, db: SocketAddr) -> String {
    pod.replace("DB_PORT", &db.port().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_classic_sidecar_completes() -> anyhow::Result<()> {
    let classic = Classic::start("OnFailure", "600s").await?;
    // A failure is tried again by the kubelet, so the sidecar stays.
    classic.plane.apply(&objects(&pod("OnFailure", "terminated: {exitCode: 1}", ""), classic.db))?;
    // The next state of the same pod has arrived when the end has been told of; so a short look in between must do.
    classic.call().await?;
    assert_eq!(classic.readiness().await?, 200);
    // The end of one that had this pod's name and address before is not its own.
    let other = pod("OnFailure", "terminated: {exitCode: 0}", "").replace(UID, "0d8e7f21");
    classic.plane.apply(&objects(&other, classic.db))?;
    classic.call().await?;
    assert_eq!(classic.readiness().await?, 200);
    classic.plane.apply(&objects(&pod("OnFailure", "terminated: {exitCode: 0}", ""), classic.db))?;
    classic.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classic_sidecar_is_its_apps_way_out_until_the_app_has_ended() -> anyhow::Result<()> {
    let classic = Classic::start("Always", "600s").await?;
    // The kubelet tells both at once; the app finishes its work.
    classic.process.signal(Signal::SIGTERM)?;
    poll::until("the sidecar drains", PATIENCE, async || {
        let readiness = classic.readiness().await?;
        ensure!(readiness == 503, "{readiness}");
        anyhow::Ok(())
    })
    .await?;
    // Longer than everything that would end a sidecar which nobody needs: lingering and quiet.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(7) {
        classic.call().await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let deleted = ", deletionTimestamp: \"2026-01-01T00:00:00Z\"";
    classic.plane.apply(&objects(&pod("Always", "terminated: {exitCode: 143}", deleted), classic.db))?;
    classic.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classic_sidecar_that_nobody_tells_ends_at_its_deadline() -> anyhow::Result<()> {
    let classic = Classic::start("Always", "2s").await?;
    classic.process.signal(Signal::SIGTERM)?;
    classic.ended().await
}
