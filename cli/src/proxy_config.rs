//! `weft proxy-config`: what one sidecar really runs, asked of the sidecar itself.
//!
//! In: the `/config` of its admin interface, which listens on its own loopback: in a cluster it is reached through the API server,
//! as `kubectl port-forward` does. Out: a summary, or its listeners, routes, clusters or endpoints, as a table or as JSON.
//!
//! Surprise: a sidecar knows what its app has asked for, and nothing else. What is missing here was never called.

mod show;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use k8s_openapi::api::core::v1::Pod;
use kube::Api as KubeApi;
use kube::api::ListParams;
use serde_json::Value;
pub(crate) use weft_wire::pod::PROXY as CONTAINER;

use crate::api::{self, Api};
use crate::kubernetes::find::is_ready;
use crate::kubernetes::forward::Forward;
use crate::kubernetes::{Cluster, Trouble, ask};
use crate::output;

/// Where a sidecar's admin interface listens, on loopback.
pub(crate) const ADMIN_PORT: u16 = weft_wire::port::ADMIN;
/// Pods that are named when the one that was asked for is not there.
const NAMES_TOLD: usize = 10;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft proxy-config web-6d4f -n shop               what the sidecar of a pod runs, in short
  weft proxy-config shop/web listeners             of a pod of `web`; whom its app has called
  weft proxy-config shop/web endpoints -o json     where its calls may go
  weft proxy-config --sidecar http://127.0.0.1:15000 routes    a sidecar outside Kubernetes

A sidecar knows what its app has asked for, and nothing else: what is not there was never called.")]
pub(crate) struct ProxyConfigArgs {
    /// The pod: its name, or how its name begins; `NAMESPACE/POD` too
    #[arg(value_name = "POD", required_unless_present = "sidecar")]
    pod: Option<String>,
    /// What of it
    #[arg(value_enum)]
    section: Option<Section>,
    /// The pod's namespace; without it the kubeconfig's
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// The sidecar's admin interface, where there is no pod
    #[arg(long, env = "WEFT_SIDECAR", value_name = "URL")]
    sidecar: Option<String>,
    /// Which cluster of the kubeconfig, where it has several
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// A part of a sidecar's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Who it is, and how its configuration fares
    Summary,
    /// Destinations that it was asked about
    Listeners,
    /// How it routes
    Routes,
    /// Groups of endpoints, and how it balances
    Clusters,
    /// Where calls may go
    Endpoints,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// As the sidecar says it
    Json,
}

pub(crate) async fn run(arguments: ProxyConfigArgs) -> anyhow::Result<ExitCode> {
    let ProxyConfigArgs { pod, section, namespace, sidecar, context, output: format } = arguments;
    let (admin, pod, section) = match (sidecar.filter(|url| !url.is_empty()), pod) {
        // There is no pod then: the first word is the section.
        (Some(url), word) => {
            let named = word.as_deref().map(|word| Section::from_str(word, true)).transpose();
            let named = named.map_err(|_| {
                anyhow::anyhow!("--sidecar says which sidecar: after it comes listeners, routes, clusters, endpoints or summary")
            })?;
            (Api::new(&url)?, None, named.or(section))
        }
        (None, Some(pod)) => {
            let cluster = Cluster::open(context.as_deref()).await?;
            let (space, name) = match pod.split_once('/') {
                Some((space, name)) => (space.to_owned(), name),
                None => (namespace.unwrap_or_else(|| cluster.client.default_namespace().to_owned()), &*pod),
            };
            let name = find(&cluster, &space, name).await?;
            let forward = Forward::new(cluster.client.clone(), &space, &name, ADMIN_PORT);
            (Api::at(forward), Some(format!("{space}/{name}")), section)
        }
        (None, None) => anyhow::bail!("name a pod, or say where a sidecar is: --sidecar URL"),
    };
    let body = admin.get("/config").await.map_err(|error| unanswered(&admin, error))?;
    let config: Value = admin.read(&body).map_err(|error| unanswered(&admin, error))?;
    anyhow::ensure!(config["directory"].is_object(), not_a_sidecar(&admin));
    let section = section.unwrap_or(Section::Summary);
    match format {
        Format::Json => output::line(format_args!("{:#}", show::json(section, &config))),
        Format::Table => output::text(&show::table(section, &config, pod.as_deref())),
    }
    Ok(ExitCode::SUCCESS)
}

/// The pod called `name`, or a ready one with a sidecar whose name begins so.
async fn find(cluster: &Cluster, namespace: &str, name: &str) -> anyhow::Result<String> {
    let pods: KubeApi<Pod> = KubeApi::namespaced(cluster.client.clone(), namespace);
    match ask(pods.get(name)).await {
        Ok(pod) => {
            anyhow::ensure!(
                has_sidecar(&pod),
                "pod {namespace}/{name} has no sidecar\n  see `weft check --proxy -n {namespace}` for who should have one"
            );
            return Ok(name.to_owned());
        }
        Err(Trouble::Missing) => {}
        Err(trouble) => {
            return Err(trouble).with_context(|| format!("cannot look for pod {namespace}/{name}"));
        }
    }
    let list = ask(pods.list(&ListParams::default())).await;
    let list = list.with_context(|| format!("cannot look for pods in namespace {namespace}"))?;
    let mut names: Vec<&str> = list
        .items
        .iter()
        .filter(|pod| has_sidecar(pod) && is_ready(pod))
        .filter_map(|pod| pod.metadata.name.as_deref())
        .collect();
    names.sort_unstable();
    let begin = format!("{name}-");
    if let Some(found) = names.iter().find(|known| known.starts_with(&begin)) {
        output::note(format_args!("pod {namespace}/{found}"));
        return Ok((*found).to_owned());
    }
    let there = match names.len() {
        0 => "none has a sidecar that is ready".to_owned(),
        _ => format!(
            "with sidecars there are {}",
            names.into_iter().take(NAMES_TOLD).collect::<Vec<_>>().join(", ")
        ),
    };
    anyhow::bail!("there is no pod {name} in namespace {namespace}\n  {there}")
}

fn has_sidecar(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.any(|container| container.name == CONTAINER)
}

fn not_a_sidecar(admin: &Api) -> String {
    format!(
        "what answers at {} is not the admin interface of a sidecar (usually at port {ADMIN_PORT})",
        admin.base()
    )
}

/// Why there is no answer, in words about sidecars.
fn unanswered(admin: &Api, error: api::Error) -> anyhow::Error {
    match error {
        api::Error::Strange { .. } | api::Error::Refused { .. } => anyhow::anyhow!(not_a_sidecar(admin)),
        api::Error::Unreachable { source, .. } => anyhow::Error::new(source).context(format!(
            "no sidecar answers at {}\n  it listens on its own loopback: run this where it runs, or name its pod",
            admin.base()
        )),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_native_sidecar_is_one_too() {
        let pod = |spec: Value| {
            serde_json::from_value::<Pod>(json!({ "metadata": {}, "spec": spec })).expect("a pod")
        };
        assert!(has_sidecar(&pod(json!({ "containers": [{ "name": "weft-proxy" }] }))));
        assert!(has_sidecar(&pod(json!({ "containers": [], "initContainers": [{ "name": "weft-proxy" }] }))));
        assert!(!has_sidecar(&pod(json!({ "containers": [{ "name": "web" }] }))));
    }
}
