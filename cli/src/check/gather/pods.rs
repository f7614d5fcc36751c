//! Pods of the data plane, in pages: who has a sidecar, and who should have one.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;
use kube::{Api, Client};

use super::super::facts::{self, Fact};
use super::cluster::INJECT;
use crate::kubernetes::{NAMESPACE, Trouble, ask};

/// The sidecar's container.
pub(super) const SIDECAR: &str = "weft-proxy";
/// What the injector writes on a pod.
const STATUS: &str = "weft.dev/status";
/// Pods of one answer.
const PAGE: u32 = 500;

pub(super) async fn ask_all(
    client: &Client,
    namespace: Option<&str>,
    spaces: &Fact<Vec<Namespace>>,
) -> Fact<Vec<facts::Pod>> {
    let spaces = spaces.as_ref().map_err(Trouble::clone)?;
    let wishes: BTreeMap<&str, &Namespace> =
        spaces.iter().filter_map(|space| Some((space.metadata.name.as_deref()?, space))).collect();
    let pods: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut known = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = ask(pods.list(&page)).await?;
        known.extend(list.items.iter().map(|pod| {
            let space = pod.metadata.namespace.as_deref().and_then(|name| wishes.get(name).copied());
            described(pod, space)
        }));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(known),
        }
    }
}

fn described(pod: &Pod, namespace: Option<&Namespace>) -> facts::Pod {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    let containers =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let has = containers.into_iter().any(|container| container.name == SIDECAR);
    let annotation = |key: &str| metadata.annotations.as_ref().and_then(|all| all.get(key));
    let version = || {
        let status: serde_json::Value = serde_json::from_str(annotation(STATUS)?).ok()?;
        status["version"].as_str().map(str::to_owned)
    };
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let statuses = status.into_iter().flat_map(|status| {
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten())
    });
    facts::Pod {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        runs: metadata.deletion_timestamp.is_none() && !matches!(phase, "Succeeded" | "Failed"),
        sidecar: has.then(version),
        sidecar_ready: statuses.into_iter().any(|container| container.name == SIDECAR && container.ready),
        wanted: is_wanted(pod, namespace),
    }
}

/// Whether the injector would give this pod a sidecar: what it says itself, else what its namespace says.
fn is_wanted(pod: &Pod, namespace: Option<&Namespace>) -> bool {
    let said = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        let label = metadata.labels.as_ref().and_then(|all| all.get(INJECT));
        let annotation = metadata.annotations.as_ref().and_then(|all| all.get(INJECT));
        label.or(annotation).cloned()
    };
    let wish = said(&pod.metadata).or_else(|| said(&namespace?.metadata));
    let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    wish.as_deref() == Some("enabled")
        && !host_network
        && pod.metadata.namespace.as_deref() != Some(NAMESPACE)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wanted(pod: Value, namespace: Value) -> bool {
        let pod = serde_json::from_value(pod).expect("a pod");
        let namespace = serde_json::from_value(json!({ "metadata": namespace })).expect("a namespace");
        is_wanted(&pod, Some(&namespace))
    }

    #[test]
    fn a_pod_says_itself_whether_it_wants_a_sidecar_else_its_namespace_does() {
        let space = json!({ "labels": { INJECT: "enabled" } });
        assert!(wanted(json!({ "metadata": {} }), space.clone()));
        assert!(!wanted(json!({ "metadata": { "annotations": { INJECT: "disabled" } } }), space.clone()));
        assert!(wanted(json!({ "metadata": { "labels": { INJECT: "enabled" } } }), json!({})));
        assert!(!wanted(json!({ "metadata": {} }), json!({})));
        let host = json!({ "metadata": {}, "spec": { "containers": [], "hostNetwork": true } });
        assert!(!wanted(host, space.clone()));
        assert!(!wanted(json!({ "metadata": { "namespace": "weft-system" } }), space));
    }

    #[test]
    fn a_sidecar_is_found_among_all_containers() {
        let pod = serde_json::from_value(json!({
            "metadata": { "name": "web-1", "namespace": "shop", "annotations": { STATUS: "{\"version\": \"0.1.0\"}" } },
            "spec": { "containers": [{ "name": "web" }], "initContainers": [{ "name": SIDECAR, "restartPolicy": "Always" }] },
            "status": { "phase": "Running", "initContainerStatuses": [
                { "name": SIDECAR, "ready": true, "restartCount": 0, "image": "", "imageID": "" }] },
        }));
        let known = described(&pod.expect("a pod"), None);
        assert_eq!(known.sidecar, Some(Some("0.1.0".into())));
        assert!(known.sidecar_ready && known.runs);
    }
}
