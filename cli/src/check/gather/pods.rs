//! Pods of the data plane, in pages: who has a sidecar, and who should have one.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use weft_control_plane::inject::{self, Settings, Subject, Verdict};
use weft_wire::annotation::{INJECT, STATUS};
use weft_wire::pod::PROXY as SIDECAR;

use super::super::facts::{self, Fact};
use crate::kubernetes::{Trouble, ask};

/// Whose sidecars; it plays no part in whether there is one.
const TRUST_DOMAIN: &str = "cluster.local";
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
    let settings = Settings::new(&inject::Options::default(), TRUST_DOMAIN);
    let mut known = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = ask(pods.list(&page)).await?;
        known.extend(list.items.iter().map(|pod| {
            let space = pod.metadata.namespace.as_deref().and_then(|name| wishes.get(name).copied());
            described(pod, space, &settings)
        }));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(known),
        }
    }
}

fn described(pod: &Pod, namespace: Option<&Namespace>, settings: &Settings) -> facts::Pod {
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
        wanted: is_wanted(pod, namespace, settings),
    }
}

/// Whether the injector would give this pod a sidecar if it were made now: it is asked, so that there is one rule.
fn is_wanted(pod: &Pod, namespace: Option<&Namespace>, settings: &Settings) -> bool {
    let metadata = namespace.map(|namespace| namespace.metadata.clone()).unwrap_or_default();
    let space = inject::Namespace {
        name: pod.metadata.namespace.clone().unwrap_or_default(),
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        // How a sidecar begins does not matter here.
        closed: false,
    };
    // Most pods of most clusters: nobody says anything.
    let said = [&pod.metadata.labels, &pod.metadata.annotations].into_iter().flatten();
    if !said.chain([&space.labels, &space.annotations]).any(|all| all.contains_key(INJECT)) {
        return false;
    }
    let Ok(value) = serde_json::to_value(pod) else { return false };
    let subject = Subject { pod: &value, namespace: &space, owner: None, asked: false };
    let answer = inject::inject(subject, settings);
    answer.is_ok_and(|answer| matches!(answer.verdict, Verdict::Injected { .. } | Verdict::Unchanged))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings() -> Settings {
        Settings::new(&inject::Options::default(), TRUST_DOMAIN)
    }

    fn wanted(mut pod: Value, namespace: Value) -> bool {
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        if pod["spec"].is_null() {
            pod["spec"] = json!({ "containers": [{ "name": "app", "image": "app" }] });
        }
        let pod = serde_json::from_value(pod).expect("a pod");
        let namespace = serde_json::from_value(json!({ "metadata": namespace })).expect("a namespace");
        is_wanted(&pod, Some(&namespace), &settings())
    }

    #[test]
    fn a_pod_says_itself_whether_it_wants_a_sidecar_else_its_namespace_does() {
        let space = json!({ "labels": { INJECT: "enabled" } });
        assert!(wanted(json!({ "metadata": {} }), space.clone()));
        assert!(!wanted(json!({ "metadata": { "annotations": { INJECT: "disabled" } } }), space.clone()));
        assert!(wanted(json!({ "metadata": { "labels": { INJECT: "enabled" } } }), json!({})));
        assert!(!wanted(json!({ "metadata": {} }), json!({})));
        let host = json!({ "metadata": {}, "spec": { "containers": [{ "name": "app", "image": "app" }], "hostNetwork": true } });
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
        let known = described(&pod.expect("a pod"), None, &settings());
        assert_eq!(known.sidecar, Some(Some("0.1.0".into())));
        assert!(known.sidecar_ready && known.runs);
    }
}
