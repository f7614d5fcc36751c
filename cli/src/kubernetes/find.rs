//! Where in a cluster the control plane runs.
//!
//! In: a client. Out: a pod and a port of it, to be forwarded to. The Service says which of several pods has the live
//! graph; before there is a leader, or in an installation without that Service, any ready pod of the Deployment will do.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ListParams;
use kube::{Api, Client};

use super::forward::{self, Forward, Forwarded};
use super::{CONTROL_PLANE, Cluster, NAMESPACE, Trouble, ask};

/// Where the API listens in its pod, unless the Service says otherwise.
const API_PORT: u16 = weft_wire::port::API;
/// What the installation calls that port; its first one is the sidecars'.
const API_PORT_NAME: &str = "http-api";

/// Why no pod was found, in the order in which it was tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("its API server does not answer: {0}")]
    Unreachable(String),
    #[error("{0}")]
    Absent(String),
}

/// The control plane of a cluster, wherever it is at the moment.
pub(crate) struct ControlPlane {
    cluster: Cluster,
    current: Mutex<Found>,
}

/// One of its pods.
#[derive(Clone)]
struct Found {
    pod: Forward,
    /// Whether it is the one that leads.
    leads: bool,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.words())
    }
}

impl ControlPlane {
    /// Looks for it.
    pub(crate) async fn find(cluster: Cluster) -> Result<Self, Error> {
        let current = Mutex::new(control_plane(&cluster).await?);
        Ok(Self { cluster, current })
    }

    /// A connection to its API. Looks again if the pod that was found has gone.
    pub(crate) async fn connect(&self) -> Result<Forwarded, forward::Error> {
        let known = self.forward();
        let refused = match known.connect().await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match control_plane(&self.cluster).await {
            Ok(other) if other.pod.pod() != known.pod() => {
                let pod = other.pod.clone();
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = other;
                pod.connect().await
            }
            // The same pod again, or none: the first complaint says more.
            Ok(_) | Err(_) => Err(refused),
        }
    }

    /// Its other pods that are ready; none where that cannot be asked.
    pub(crate) async fn others(&self) -> Vec<Forward> {
        let known = self.forward();
        let client = &self.cluster.client;
        let pods = match deployment_selector(client).await {
            Ok(labels) => labelled(client, &labels).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
        let others = pods.iter().filter(|pod| is_ready(pod) && name(pod) != known.pod().1);
        others.map(|pod| Forward::new(client.clone(), NAMESPACE, &name(pod), known.port())).collect()
    }

    /// Where it was last.
    pub(crate) fn forward(&self) -> Forward {
        self.found().pod
    }

    /// Whether that pod leads, as far as the leader's Service says so.
    pub(crate) fn leads(&self) -> bool {
        self.found().leads
    }

    fn found(&self) -> Found {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `pod weft-system/weft-control-plane-6d4 (context kind-dev)`, for people.
    pub(crate) fn words(&self) -> String {
        format!("{} ({})", self.forward().words(), self.cluster.words())
    }
}

/// The pod with the API.
async fn control_plane(cluster: &Cluster) -> Result<Found, Error> {
    let client = &cluster.client;
    let service = match by_service(client).await {
        Ok(pod) => return Ok(Found { pod, leads: true }),
        Err(Trouble::Unreachable(words)) => return Err(Error::Unreachable(words)),
        Err(trouble) => trouble,
    };
    match by_deployment(client).await {
        Ok(pod) => Ok(Found { pod, leads: false }),
        Err(Trouble::Unreachable(words)) => Err(Error::Unreachable(words)),
        Err(Trouble::Missing) if service == Trouble::Missing => Err(Error::Absent(format!(
            "there is neither Service nor Deployment {CONTROL_PLANE} in namespace {NAMESPACE}; is Weft \
             installed there? (weft install | kubectl apply -f -)"
        ))),
        Err(trouble) => Err(Error::Absent(format!(
            "Service {CONTROL_PLANE} in {NAMESPACE}: {service}; Deployment {CONTROL_PLANE}: {trouble}"
        ))),
    }
}

async fn by_service(client: &Client) -> Result<Forward, Trouble> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let service = ask(services.get(CONTROL_PLANE)).await?;
    let spec = service.spec.unwrap_or_default();
    let ports = spec.ports.unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some(API_PORT_NAME));
    let target = named.and_then(|port| port.target_port.clone());
    by_labels(client, &spec.selector.unwrap_or_default(), target).await
}

async fn by_deployment(client: &Client) -> Result<Forward, Trouble> {
    let labels = deployment_selector(client).await?;
    by_labels(client, &labels, Some(IntOrString::String(API_PORT_NAME.into()))).await
}

async fn deployment_selector(client: &Client) -> Result<BTreeMap<String, String>, Trouble> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let deployment = ask(deployments.get(CONTROL_PLANE)).await?;
    Ok(deployment.spec.unwrap_or_default().selector.match_labels.unwrap_or_default())
}

async fn labelled(client: &Client, labels: &BTreeMap<String, String>) -> Result<Vec<Pod>, Trouble> {
    if labels.is_empty() {
        return Err(Trouble::Refused("it selects no pods".into()));
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let selector: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Ok(ask(pods.list(&ListParams::default().labels(&selector.join(",")))).await?.items)
}

async fn by_labels(
    client: &Client,
    labels: &BTreeMap<String, String>,
    port: Option<IntOrString>,
) -> Result<Forward, Trouble> {
    let pods = labelled(client, labels).await?;
    let pod =
        choose(&pods).ok_or_else(|| Trouble::Refused(format!("none of its {} pods is ready", pods.len())))?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    Ok(Forward::new(client.clone(), NAMESPACE, &name, resolve(pod, port)))
}

/// The first ready pod; by name, so that one asks the same again.
fn choose(pods: &[Pod]) -> Option<&Pod> {
    pods.iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none() && is_ready(pod))
        .min_by_key(|pod| pod.metadata.name.as_deref().unwrap_or_default())
}

/// Whether the pod says that it is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn resolve(pod: &Pod, port: Option<IntOrString>) -> u16 {
    let number = match port {
        Some(IntOrString::Int(number)) => Some(number),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let named = ports.find(|port| port.name.as_deref() == Some(name.as_str()));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
        None => None,
    };
    number.and_then(|number| u16::try_from(number).ok()).unwrap_or(API_PORT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "containers": [{ "name": "a", "ports": [{ "name": "api", "containerPort": 9000 }] }] },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .expect("a pod")
    }

    #[test]
    fn of_several_pods_a_ready_one_is_asked() {
        let mut pods = [pod("c", "True"), pod("a", "False"), pod("b", "True")];
        assert_eq!(choose(&pods).and_then(|pod| pod.metadata.name.as_deref()), Some("b"));
        pods[2].metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(choose(&pods).and_then(|pod| pod.metadata.name.as_deref()), Some("c"));
        assert!(choose(&pods[1..2]).is_none());
    }

    #[test]
    fn a_port_may_have_a_name() {
        let pod = pod("a", "True");
        assert_eq!(resolve(&pod, Some(IntOrString::String("api".into()))), 9000);
        assert_eq!(resolve(&pod, Some(IntOrString::String("8081".into()))), 8081);
        assert_eq!(resolve(&pod, Some(IntOrString::Int(8082))), 8082);
        assert_eq!(resolve(&pod, Some(IntOrString::String("other".into()))), API_PORT);
        assert_eq!(resolve(&pod, None), API_PORT);
    }
}
