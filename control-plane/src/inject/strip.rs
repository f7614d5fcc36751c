//! The way back: a pod without what the injector added.
//!
//! In: a pod (or template) as JSON. Out: the pod as it was before it was injected. Invariant: only what the status annotation
//! names is removed, and only if its name is one that the injector gives: the annotation is text that anybody can write.
//! Surprise: lists and maps that become empty vanish, because nobody can tell whether they were there.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_wire::annotation::{self as keys, Sidecar};
use weft_wire::pod as names;

use super::{Refusal, probes};

/// What the injector did to a pod, as its annotation says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The injector's version, which is the sidecar's.
    pub version: String,
    /// Which kind of sidecar.
    #[serde(with = "word")]
    pub sidecar: Sidecar,
    /// Containers that were added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// Init containers that were added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init_containers: Vec<String>,
    /// Volumes that were added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Annotations that were added, besides the status itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<String>,
}

/// What tells `kubectl logs` and `kubectl exec` which container is meant.
pub(super) const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// How names of ours begin.
const PREFIX: &str = "weft-";

/// What was done to a pod; `None` if it is not injected, or nobody can tell.
#[must_use]
pub fn status(pod: &Value) -> Option<Status> {
    let text = pod.pointer("/metadata/annotations")?.get(keys::STATUS)?.as_str()?;
    serde_json::from_str(text).ok()
}

/// Removes what was injected.
///
/// # Errors
/// When the status annotation is there and cannot be read.
pub fn strip(pod: &Value) -> Result<Value, Refusal> {
    let mut pod = pod.clone();
    let annotation = pod.pointer("/metadata/annotations").and_then(|all| all.get(keys::STATUS));
    if annotation.is_none() {
        return Ok(pod);
    }
    let Some(status) = status(&pod) else {
        return Err(Refusal::new(
            format!("metadata.annotations[{}]", keys::STATUS),
            "is not what the injector wrote; remove the annotation and what was injected, or make the pod anew",
        ));
    };
    if let Some(spec) = pod.get_mut("spec") {
        if let Some(asked) = rewritten(spec) {
            probes::restore(spec, &asked);
        }
        remove(spec, "initContainers", &status.init_containers);
        remove(spec, "containers", &status.containers);
        remove(spec, "volumes", &status.volumes);
    }
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        let ours = |key: &str| key == keys::STATUS || key == DEFAULT_CONTAINER;
        let written = status.annotations.iter().map(String::as_str).chain([keys::STATUS]);
        let annotations = metadata.get_mut("annotations").and_then(Value::as_object_mut);
        if let Some(annotations) = annotations {
            for key in written.filter(|key| ours(key)) {
                annotations.remove(key);
            }
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
        if metadata.is_empty()
            && let Some(pod) = pod.as_object_mut()
        {
            pod.remove("metadata");
        }
    }
    Ok(pod)
}

/// What the sidecar's environment says of the probes that it took over.
fn rewritten(spec: &Value) -> Option<Map<String, Value>> {
    let lists = ["initContainers", "containers"].into_iter().filter_map(|list| spec.get(list)?.as_array());
    let proxy = lists.flatten().find(|container| name_of(container) == Some(names::PROXY))?;
    let environment = proxy.get("env")?.as_array()?;
    let variable = environment.iter().find(|variable| name_of(variable) == Some(probes::ENVIRONMENT))?;
    serde_json::from_str(variable.get("value")?.as_str()?).ok()
}

fn remove(spec: &mut Value, list: &str, written: &[String]) {
    let Some(spec) = spec.as_object_mut() else { return };
    let Some(items) = spec.get_mut(list).and_then(Value::as_array_mut) else { return };
    let before = items.len();
    items.retain(|item| {
        let name = name_of(item).unwrap_or_default();
        !(name.starts_with(PREFIX) && written.iter().any(|written| written == name))
    });
    if items.is_empty() && before > 0 {
        spec.remove(list);
    }
}

fn name_of(item: &Value) -> Option<&str> {
    item.get("name")?.as_str()
}

/// A sidecar's kind as the word that annotations use.
mod word {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use weft_wire::annotation::{Sidecar, sidecar};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
    pub(super) fn serialize<S: Serializer>(kind: &Sidecar, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind.word())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Sidecar, D::Error> {
        sidecar(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
