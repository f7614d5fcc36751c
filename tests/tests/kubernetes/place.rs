//! A cluster, and control planes that follow it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use http::Method;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use weft_control_plane::app::{App, Bound};
use weft_control_plane::config::Config;
use weft_tests::client::{self, Ask};
use weft_tests::poll;

/// The control plane's namespace.
pub(crate) const OWN: &str = "weft-system";
/// Longest wait; only reached when the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster.
pub(crate) struct Place {
    /// With every right.
    pub(crate) client: kube::Client,
    /// With which the control plane comes.
    pub(crate) kubeconfig: PathBuf,
}

/// A control plane.
pub(crate) struct Replica {
    /// Absent only while it ends.
    running: Option<(Runtime, App)>,
    pub(crate) bound: Bound,
}

impl Place {
    async fn api(&self, version: &str, kind: &str, namespace: &str) -> anyhow::Result<Api<DynamicObject>> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let wanted = GroupVersionKind::gvk(group, version, kind);
        let (resource, capabilities) = kube::discovery::pinned_kind(&self.client, &wanted).await?;
        Ok(match capabilities.scope {
            kube::discovery::Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            kube::discovery::Scope::Namespaced => {
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
        })
    }

    async fn api_of(&self, object: &Value) -> anyhow::Result<(Api<DynamicObject>, String)> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let api = self.api(text("/apiVersion"), text("/kind"), text("/metadata/namespace")).await?;
        Ok((api, text("/metadata/name").to_owned()))
    }

    /// Applies YAML documents, in order.
    pub(crate) async fn apply(&self, documents: &str) -> anyhow::Result<()> {
        for object in documents_of(documents)? {
            let (api, name) = self.api_of(&object).await?;
            let params = PatchParams::apply("weft-tests").force();
            let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
            applied.with_context(|| format!("apply {} {name}", object["kind"]))?;
        }
        Ok(())
    }

    /// Deletes what YAML documents name, in order. What is not there is as good.
    pub(crate) async fn delete(&self, documents: &str) -> anyhow::Result<()> {
        for object in documents_of(documents)? {
            // A kind may have gone with its definition.
            let Ok((api, name)) = self.api_of(&object).await else { continue };
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error).context(name),
            }
        }
        Ok(())
    }

    /// An object as JSON, or nothing.
    pub(crate) async fn get(
        &self,
        version: &str,
        kind: &str,
        (namespace, name): (&str, &str),
    ) -> anyhow::Result<Option<Value>> {
        let found = self.api(version, kind, namespace).await?.get_opt(name).await?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    /// All objects of a kind in a namespace.
    pub(crate) async fn list(
        &self,
        version: &str,
        kind: &str,
        namespace: &str,
    ) -> anyhow::Result<Vec<Value>> {
        let found = self.api(version, kind, namespace).await?.list(&kube::api::ListParams::default()).await?;
        found.items.into_iter().map(|object| Ok(serde_json::to_value(object)?)).collect()
    }

    /// Waits until an object is as `look` wants it.
    pub(crate) async fn until(
        &self,
        what: (&str, &str),
        at: (&str, &str),
        look: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        self.until_within(PATIENCE, what, at, look).await
    }

    /// [`until`](Self::until), with a patience of one's own.
    pub(crate) async fn until_within(
        &self,
        patience: Duration,
        (version, kind): (&str, &str),
        at: (&str, &str),
        look: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        poll::until(&format!("{kind} {at:?}"), patience, async || {
            let found = self.get(version, kind, at).await?.context("it is not there")?;
            ensure!(look(&found), "{found}");
            anyhow::Ok(found)
        })
        .await
    }

    /// Waits until what belongs to no namespace is gone; a namespace takes its time.
    pub(crate) async fn gone(&self, kind: &str, name: &str) -> anyhow::Result<()> {
        poll::until(&format!("{kind} {name} goes"), 2 * PATIENCE, async || {
            let found = self.get("v1", kind, ("", name)).await?;
            ensure!(found.is_none(), "{found:?}");
            anyhow::Ok(())
        })
        .await
    }

    /// Changes a part of an object.
    pub(crate) async fn merge(
        &self,
        (version, kind): (&str, &str),
        at: (&str, &str),
        part: Value,
    ) -> anyhow::Result<()> {
        let api = self.api(version, kind, at.0).await?;
        api.patch(at.1, &PatchParams::default(), &Patch::Merge(part)).await?;
        Ok(())
    }

    /// Writes an object's status, as another controller would.
    pub(crate) async fn say(
        &self,
        (version, kind): (&str, &str),
        at: (&str, &str),
        status: Value,
    ) -> anyhow::Result<()> {
        let api = self.api(version, kind, at.0).await?;
        api.patch_status(at.1, &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await?;
        Ok(())
    }

    /// The pod whose control plane holds the Lease.
    pub(crate) async fn holder(&self) -> anyhow::Result<String> {
        let lease = self.get("coordination.k8s.io/v1", "Lease", (OWN, "weft-control-plane")).await?;
        let holder = lease.as_ref().and_then(|lease| lease.pointer("/spec/holderIdentity")?.as_str());
        Ok(holder.and_then(|holder| holder.split('_').next()).unwrap_or_default().to_owned())
    }

    /// Waits until this pod's control plane leads, and only its pod is labelled.
    pub(crate) async fn led_by(&self, pod: &str) -> anyhow::Result<()> {
        poll::until(&format!("{pod} leads"), PATIENCE, async || {
            let holder = self.holder().await?;
            ensure!(holder == pod, "{holder:?} leads");
            let is_labelled =
                |pod: &&Value| pod.pointer("/metadata/labels/weft.dev~1leader") == Some(&json!("true"));
            let pods = self.list("v1", "Pod", OWN).await?;
            let labelled: Vec<&Value> =
                pods.iter().filter(is_labelled).map(|labelled| &labelled["metadata"]["name"]).collect();
            ensure!(labelled == [pod], "labelled: {labelled:?}");
            anyhow::Ok(())
        })
        .await
    }

    /// Forgets what control planes of earlier stories left.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        let own = |version: &str, kind: &str, name: &str| {
            format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: {name}, namespace: {OWN}}}}}\n")
        };
        let all = [
            own("coordination.k8s.io/v1", "Lease", "weft-control-plane"),
            own("v1", "Secret", "weft-ca"),
            own("v1", "Secret", "weft-join-tokens"),
        ];
        self.delete(&all.join("---\n")).await
    }

    /// Starts a control plane as the pod `pod`, with more flags.
    pub(crate) async fn start(&self, pod: &'static str, flags: &[&str]) -> anyhow::Result<Replica> {
        // A namespace gets its service account a moment after it is made.
        let made = poll::until("its pod is made", PATIENCE, async || {
            self.apply(&pod_of(OWN, pod, "{}")).await.map_err(|error| format!("{error:#}"))
        });
        made.await?;
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig.display());
        let name = format!("--pod-name={pod}");
        let fixed = [
            "weft-control-plane",
            "--kubernetes",
            "--namespace=weft-system",
            "--api-listen=127.0.0.1:0",
            "--control-tls-listen=127.0.0.1:0",
            "--otlp-grpc-listen=127.0.0.1:0",
            "--otlp-http-listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0",
            "--inject-listen=off",
            "--drain-deadline=5s",
        ];
        let words = fixed.into_iter().chain([&*kubeconfig, &*name]).chain(flags.iter().copied());
        let config = Config::try_parse_from(words)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let started = runtime.spawn(App::start(config)).await;
        match started {
            Ok(Ok(app)) => Ok(Replica { bound: app.bound(), running: Some((runtime, app)) }),
            failed => {
                runtime.shutdown_background();
                failed??;
                unreachable!("one of both is an error")
            }
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some((runtime, _)) = self.running.take() {
            runtime.shutdown_background();
        }
    }
}

impl Replica {
    /// Ends in good order.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let (runtime, app) = self.running.take().context("it runs")?;
        let stopped = runtime.spawn(async move { app.stop(std::future::pending()).await }).await;
        runtime.shutdown_background();
        Ok(stopped?)
    }

    /// Ends in the middle of whatever it does.
    pub(crate) fn crash(self) {
        drop(self);
    }

    fn api(&self) -> anyhow::Result<SocketAddr> {
        self.bound.api.context("it has an API")
    }

    pub(crate) async fn ask(&self, ask: &Ask) -> anyhow::Result<client::Answer> {
        client::once(self.api()?, ask).await
    }

    /// `/api/ca`.
    pub(crate) async fn authority(&self) -> anyhow::Result<Value> {
        client::json(self.api()?, "/api/ca").await
    }

    /// The roots it trusts.
    pub(crate) async fn roots(&self) -> anyhow::Result<Vec<String>> {
        let authority = self.authority().await?;
        let roots = authority["roots"].as_array().context("it has roots")?;
        Ok(roots.iter().map(|root| root["fingerprint"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// Begins a rotation of the root.
    pub(crate) async fn rotate(&self) -> anyhow::Result<()> {
        let mut ask = Ask::get("/api/ca/rotate", "localhost").header("content-type", "application/json");
        ask.method = Method::POST;
        ask.body = b"{}".as_slice().into();
        let answer = self.ask(&ask).await?;
        ensure!(answer.status.is_success(), "{answer:?}");
        Ok(())
    }

    /// A number of `/metrics`; 0 if it is not there.
    pub(crate) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let address = self.bound.metrics.context("it has metrics")?;
        let answer = client::once(address, &Ask::get("/metrics", "localhost")).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.map(str::parse).transpose()?.unwrap_or(0.0))
    }
}

/// A pod that nobody runs.
pub(crate) fn pod_of(namespace: &str, name: &str, annotations: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}, \
         spec: {{securityContext: {{runAsNonRoot: true, runAsUser: 2102, seccompProfile: {{type: RuntimeDefault}}}}, \
         containers: [{{name: app, image: app, \
         securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}}}]}}}}\n"
    )
}

pub(crate) fn documents_of(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents = serde_yaml::Deserializer::from_str(text).map(Value::deserialize);
    let documents = documents.collect::<Result<Vec<_>, _>>()?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}
