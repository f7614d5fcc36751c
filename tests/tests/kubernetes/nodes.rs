//! What a platform team does on a cluster that runs pods, with the `weft` command and what it prints: checks, installs, labels,
//! looks, restarts, upgrades, uninstalls.
//!
//! In: a cluster with a node that is ready, and on its nodes, or in `WEFT_TEST_IMAGE_REGISTRY`, the images of this version
//! (`k8s/image/build.sh`). The rest of `real` needs an API server only.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Command;
use weft_tests::{binary, poll};

use super::place::{OWN, Place, documents_of};

/// How long pods may take: images are large in debug builds, and nodes small.
const PATIENCE: Duration = Duration::from_secs(240);
/// What a caller reads when it was sent where nobody is any more. (A busy node may make sidecars shed a part of the calls.)
const MISSED: [&str; 5] =
    ["connect_refused", "connect_timeout", "connect_failed", "upstream_reset", "no_ready_endpoint"];
const DEPLOYMENT: (&str, &str) = ("apps/v1", "Deployment");
/// Deployments of the shop that get a sidecar and are restarted under load.
const RESTARTED: [&str; 4] = ["catalog-v1", "catalog-v2", "orders", "web"];

/// A cluster as somebody with `weft` and a kubeconfig has it.
struct Team<'a> {
    place: &'a Place,
    kubeconfig: &'a Path,
    registry: Option<String>,
}

/// Tells all of it, if there is a node to tell it on.
pub(crate) async fn a_platform_team(place: &Place, kubeconfig: &Path) -> anyhow::Result<()> {
    let nodes = place.list("v1", "Node", "").await?;
    if !nodes.iter().any(is_ready) {
        println!("skipped: no node of the cluster is ready, so no pod can run");
        return Ok(());
    }
    let registry = std::env::var("WEFT_TEST_IMAGE_REGISTRY").ok();
    let team = Team { place, kubeconfig, registry };
    team.installs().await.context("install")?;
    team.meshes_the_shop().await.context("the shop")?;
    team.completes_jobs().await.context("jobs")?;
    team.restarts_without_a_failure().await.context("restart")?;
    team.misses_the_injector().await.context("the injector is away")?;
    team.loses_the_leader().await.context("the leader is lost")?;
    team.uninstalls().await.context("uninstall")
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Whether the pod has the sidecar as the kubelet runs it by itself, before the app.
fn has_sidecar(pod: &Value) -> bool {
    let first = pod["spec"]["initContainers"].as_array();
    first.is_some_and(|all| {
        all.iter().any(|one| one["name"] == "weft-proxy" && one["restartPolicy"] == "Always")
    })
}

/// A container that waits for an image that nobody has will wait for ever: better to say so.
fn images_are_there(pod: &Value) -> anyhow::Result<()> {
    for kind in ["initContainerStatuses", "containerStatuses"] {
        for container in pod["status"][kind].as_array().into_iter().flatten() {
            let waiting = &container["state"]["waiting"];
            if waiting["reason"] == "ImagePullBackOff" || waiting["reason"] == "ErrImageNeverPull" {
                bail!(
                    "{} has no image {}: give the nodes the images of k8s/image/build.sh, or name a registry in \
                     WEFT_TEST_IMAGE_REGISTRY: {}",
                    name(pod),
                    container["image"],
                    waiting["message"]
                );
            }
        }
    }
    Ok(())
}

impl Team<'_> {
    /// Runs `weft`; its exit code, what it printed, and what it said beside.
    async fn run(&self, words: &[&str]) -> anyhow::Result<(i32, String, String)> {
        let mut weft = Command::new(binary::weft());
        let output = weft.args(words).env("KUBECONFIG", self.kubeconfig).output().await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
    }

    /// Runs `weft`, which must succeed.
    async fn weft(&self, words: &[&str]) -> anyhow::Result<String> {
        let (code, out, error) = self.run(words).await?;
        ensure!(code == 0, "weft {words:?} ended with {code}: {out}\n{error}");
        Ok(out)
    }

    async fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.weft(words).await?)?)
    }

    /// What `kubectl apply -f -` would do with it.
    async fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        for object in documents_of(manifests)? {
            // Kinds of ours are served a moment after they are made.
            let applied = poll::until("apply", PATIENCE, async || {
                self.place.apply(&object.to_string()).await.map_err(|error| format!("{error:#}"))
            });
            applied.await?;
        }
        Ok(())
    }

    async fn install(&self, command: &str, wishes: &[&str]) -> anyhow::Result<()> {
        let registry = self.registry.as_ref().map(|registry| format!("--image-registry={registry}"));
        let words: Vec<&str> =
            [command].into_iter().chain(wishes.iter().copied()).chain(registry.as_deref()).collect();
        let manifests = self.weft(&words).await?;
        self.apply(&manifests).await?;
        self.rolled_out(OWN, "weft-control-plane").await
    }

    /// Waits until a Deployment runs as it was last said, and nothing else of it.
    async fn rolled_out(&self, namespace: &str, deployment: &str) -> anyhow::Result<()> {
        poll::until(&format!("{namespace}/{deployment} is rolled out"), PATIENCE, async || {
            let found = self.place.get(DEPLOYMENT.0, DEPLOYMENT.1, (namespace, deployment)).await?;
            let found = found.context("it is not there")?;
            let status = &found["status"];
            ensure!(status["observedGeneration"] == found["metadata"]["generation"], "{status}");
            let wanted = found["spec"]["replicas"].as_u64();
            for count in ["replicas", "updatedReplicas", "availableReplicas"] {
                // None is not written.
                ensure!(status[count].as_u64().or(Some(0)) == wanted, "{status}");
            }
            anyhow::Ok(())
        })
        .await
        .context(self.pods_of(namespace).await)
    }

    async fn scale(&self, replicas: u32) -> anyhow::Result<()> {
        let patch = json!({ "spec": { "replicas": replicas } });
        self.place.merge(DEPLOYMENT, (OWN, "weft-control-plane"), patch).await
    }

    /// `kubectl rollout restart`, and waits for it.
    async fn restart(&self, deployments: &[&str], when: &str) -> anyhow::Result<()> {
        let annotations = json!({ "kubectl.kubernetes.io/restartedAt": when });
        let patch = json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } });
        for deployment in deployments {
            self.place.merge(DEPLOYMENT, ("shop", deployment), patch.clone()).await?;
        }
        for deployment in deployments {
            self.rolled_out("shop", deployment).await?;
        }
        Ok(())
    }

    /// For a failure: how the pods of a namespace fare.
    async fn pods_of(&self, namespace: &str) -> String {
        let pods = self.place.list("v1", "Pod", namespace).await.unwrap_or_default();
        let lines = pods.iter().map(|pod| {
            let statuses = [&pod["status"]["initContainerStatuses"], &pod["status"]["containerStatuses"]];
            let states = statuses.into_iter().filter_map(Value::as_array).flatten().map(|container| {
                format!("{}={}", container["name"].as_str().unwrap_or_default(), container["state"])
            });
            format!("{} {}: {}", name(pod), pod["status"]["phase"], states.collect::<Vec<_>>().join(" "))
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The mesh's edges as the graph has them.
    async fn edges(&self) -> anyhow::Result<Vec<Value>> {
        let mut graph = self.json(&["graph", "--window", "5m", "-o", "json"]).await?;
        match graph["edges"].take() {
            Value::Array(edges) => Ok(edges),
            other => bail!("no edges: {other}"),
        }
    }

    async fn installs(&self) -> anyhow::Result<()> {
        self.weft(&["check", "--pre"]).await?;
        self.install("install", &[]).await?;
        // Everything green, by itself, within the time that people are willing to wait.
        self.weft(&["check", "--wait=120s"]).await?;
        let again = self.weft(&["check", "--pre", "-o", "short"]).await?;
        ensure!(again.contains("weft upgrade"), "it is installed, and --pre says: {again}");
        Ok(())
    }

    /// Every pod of the shop that wants a sidecar has one and is ready; the graph shows who calls whom, and that it is mutual TLS.
    async fn meshes_the_shop(&self) -> anyhow::Result<()> {
        for file in ["shop", "policies", "canary"] {
            let path = binary::workspace().join(format!("k8s/demo/{file}.yaml"));
            let text = std::fs::read_to_string(path)?;
            let text = match &self.registry {
                Some(registry) => text.replace("image: weft:", &format!("image: {registry}/weft:")),
                None => text,
            };
            self.apply(&text).await?;
        }
        let pods = poll::until("the shop is open", PATIENCE, async || {
            let pods = self.place.list("v1", "Pod", "shop").await?;
            ensure!(pods.len() >= 10 && pods.iter().all(is_ready), "{}", self.pods_of("shop").await);
            anyhow::Ok(pods)
        });
        let pods = match pods.await {
            Ok(pods) => pods,
            Err(error) => {
                for pod in self.place.list("v1", "Pod", "shop").await? {
                    images_are_there(&pod)?;
                }
                return Err(error);
            }
        };
        for pod in &pods {
            // The shop's cron asks for none.
            ensure!(has_sidecar(pod) != name(pod).starts_with("cron"), "{pod}");
            for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
                ensure!(container["restartCount"] == 0, "{} started anew: {container}", name(pod));
            }
        }
        poll::until("the graph shows the shop", PATIENCE, async || {
            let edges = self.edges().await?;
            let mutual = |source: &str, target: &str| {
                edges.iter().any(|edge| {
                    edge["source"] == format!("workload:shop/{source}")
                        && edge["target"] == format!("workload:shop/{target}")
                        && edge["tls"] == "mutual"
                })
            };
            ensure!(mutual("web", "orders") && mutual("orders", "inventory"), "{edges:?}");
            anyhow::Ok(())
        })
        .await?;
        self.weft(&["check", "--proxy", "--wait=120s"]).await?;
        let status = self.json(&["status", "-o", "json"]).await?;
        println!("weft status: {status}");
        let pod = pods.iter().find(|pod| name(pod).starts_with("orders")).context("orders run")?;
        let config = self.weft(&["proxy-config", &format!("shop/{}", name(pod)), "endpoints"]).await?;
        ensure!(config.contains("inventory"), "{config}");
        let policy = self.place.until(("weft.dev/v1alpha1", "CircuitBreaker"), ("shop", "cart"), |policy| {
            policy["status"]["conditions"].to_string().contains("Programmed")
        });
        policy.await.map(drop)
    }

    /// With a sidecar of either kind a Job is complete when its app is; a native one is there before its init containers.
    async fn completes_jobs(&self) -> anyhow::Result<()> {
        let registry = self.registry.as_ref().map(|registry| format!("{registry}/")).unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION");
        for kind in ["native", "classic"] {
            let app = json!({ "image": format!("{registry}weft:{version}"), "args": ["demo-app", "report"] });
            let named = |name: &str| {
                let mut container = app.clone();
                container["name"] = name.into();
                container
            };
            let first = if kind == "native" { json!([named("first")]) } else { json!([]) };
            let pod = json!({
                "restartPolicy": "Never", "initContainers": first, "containers": [named("app")],
            });
            let annotations = json!({ "weft.dev/sidecar": kind });
            let job = json!({
                "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": kind, "namespace": "shop" },
                "spec": {
                    "backoffLimit": 0,
                    "template": { "metadata": { "annotations": annotations }, "spec": pod },
                },
            });
            self.apply(&job.to_string()).await?;
        }
        for kind in ["native", "classic"] {
            let complete = self.place.until_within(PATIENCE, ("batch/v1", "Job"), ("shop", kind), |job| {
                job["status"]["succeeded"] == 1
            });
            complete.await.with_context(|| format!("the job with a {kind} sidecar"))?;
        }
        Ok(())
    }

    /// Callers with a sidecar see nothing of it when those whom they call are replaced.
    async fn restarts_without_a_failure(&self) -> anyhow::Result<()> {
        const CALLS: [(&str, &str); 3] = [("web", "catalog"), ("web", "orders"), ("shopper", "web")];
        self.restart(&RESTARTED, "2026-01-01T00:00:00Z").await?;
        for (source, target) in CALLS {
            self.calls_go_on(source, target).await?;
            let missed = self.missed(source, target).await?;
            ensure!(missed == 0, "{missed} calls of {source} found {target} gone: {:?}", self.edges().await?);
        }
        Ok(())
    }

    /// Waits for calls that are newer than this.
    async fn calls_go_on(&self, source: &str, target: &str) -> anyhow::Result<()> {
        let before = self.requests(source, target).await?;
        poll::until(&format!("{source} calls {target}"), PATIENCE, async || {
            let now = self.requests(source, target).await?;
            ensure!(now > before, "{now} after {before}");
            anyhow::Ok(())
        })
        .await
    }

    /// Calls between two workloads of the shop, which may be of several Deployments.
    async fn calls(&self, source: &str, target: &str) -> anyhow::Result<Vec<Value>> {
        let is = |node: &Value, name: &str| {
            let node = node.as_str().and_then(|id| id.strip_prefix("workload:shop/")).unwrap_or_default();
            node.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let mut edges = self.edges().await?;
        edges.retain(|edge| is(&edge["source"], source) && is(&edge["target"], target));
        Ok(edges)
    }

    async fn requests(&self, source: &str, target: &str) -> anyhow::Result<u64> {
        let edges = self.calls(source, target).await?;
        Ok(edges.iter().filter_map(|edge| edge["requests_total"].as_u64()).sum())
    }

    /// Calls that found nobody where they were sent.
    async fn missed(&self, source: &str, target: &str) -> anyhow::Result<u64> {
        let edges = self.calls(source, target).await?;
        let failures = edges
            .iter()
            .flat_map(|edge| edge["failures"].as_array().into_iter().flatten())
            .filter(|failure| MISSED.iter().any(|reason| failure["reason"] == *reason))
            .filter_map(|failure| failure["count"].as_u64());
        Ok(failures.sum())
    }

    /// Pods start without a sidecar rather than not at all; that is said, and made good where it is allowed.
    async fn misses_the_injector(&self) -> anyhow::Result<()> {
        self.install("upgrade", &["--set", "injector.mayRestart=true"]).await?;
        self.scale(0).await?;
        self.rolled_out(OWN, "weft-control-plane").await?;
        poll::until("its pods are gone", PATIENCE, async || {
            let pods = self.place.list("v1", "Pod", OWN).await?;
            ensure!(pods.is_empty(), "{}", self.pods_of(OWN).await);
            anyhow::Ok(())
        })
        .await?;
        self.restart(&["cache"], "2026-01-01T00:00:01Z").await?;
        let missed = self.cache().await?;
        ensure!(!has_sidecar(&missed), "who gave it one? {missed}");
        self.scale(1).await?;
        self.rolled_out(OWN, "weft-control-plane").await?;
        poll::until("it is said", PATIENCE, async || {
            let events = self.place.list("events.k8s.io/v1", "Event", "shop").await?;
            let said = events.iter().any(|event| {
                event["reason"] == "SidecarMissing"
                    && event["regarding"]["name"] == missed["metadata"]["name"]
            });
            ensure!(said, "{events:?}");
            let (_, out, _) = self.run(&["check", "--proxy", "-o", "short"]).await?;
            ensure!(out.contains(name(&missed)), "{out}");
            anyhow::Ok(())
        })
        .await?;
        let allowed = json!({ "metadata": { "annotations": { "weft.dev/restart": "enabled" } } });
        self.place.merge(("v1", "Namespace"), ("", "shop"), allowed).await?;
        poll::until("its owner is restarted", PATIENCE, async || {
            let pod = self.cache().await?;
            ensure!(has_sidecar(&pod), "{}", self.pods_of("shop").await);
            anyhow::Ok(())
        })
        .await
    }

    /// The one pod of the cache that is not about to go.
    async fn cache(&self) -> anyhow::Result<Value> {
        let pods = self.place.list("v1", "Pod", "shop").await?;
        let stays = |pod: &&Value| {
            name(pod).starts_with("cache-") && pod["metadata"]["deletionTimestamp"].is_null() && is_ready(pod)
        };
        pods.iter().find(stays).cloned().context("no pod of the cache is ready")
    }

    /// With three replicas another one leads when the leader's pod is deleted; sidecars find it, and apps saw nothing.
    async fn loses_the_leader(&self) -> anyhow::Result<()> {
        self.install("upgrade", &["--ha"]).await?;
        self.weft(&["check", "--proxy", "--wait=120s"]).await?;
        let before = self.place.holder().await?;
        self.place
            .delete(&format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {before}, namespace: {OWN}}}}}"))
            .await?;
        poll::until("another one leads", PATIENCE, async || {
            let now = self.place.holder().await?;
            ensure!(now != before && !now.is_empty(), "{now} leads");
            anyhow::Ok(())
        })
        .await?;
        self.rolled_out(OWN, "weft-control-plane").await?;
        self.weft(&["check", "--proxy", "--wait=120s"]).await?;
        // The new leader's graph begins anew, with what sidecars kept for it.
        self.calls_go_on("web", "orders").await?;
        let missed = self.missed("web", "orders").await?;
        ensure!(missed == 0, "{missed} calls failed because the leader was lost");
        Ok(())
    }

    /// It refuses as long as pods would be left alone, and leaves nothing.
    async fn uninstalls(&self) -> anyhow::Result<()> {
        let (code, out, error) = self.run(&["uninstall"]).await?;
        ensure!(code != 0 && out.is_empty() && error.contains("rollout restart"), "{code} {out} {error}");
        for namespace in ["shop", "bank"] {
            self.place
                .delete(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"))
                .await?;
        }
        for namespace in ["shop", "bank"] {
            self.place.gone("Namespace", namespace).await?;
        }
        let all = poll::until("it lets go", PATIENCE, async || self.weft(&["uninstall"]).await);
        self.place.delete(&all.await?).await?;
        self.place.gone("Namespace", OWN).await
    }
}
