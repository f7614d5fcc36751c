//! The kubelet's probes, sent by the sidecar.
//!
//! In: a pod's spec as JSON. Out: the same with every http, tcp and gRPC probe (and http hook) of the app pointing at the
//! sidecar's `/probe/<container>/<kind>`, and the JSON from which the sidecar knows what to ask instead ([`ENVIRONMENT`]).
//! Why: the kubelet has no identity, so a port that takes mutual TLS only would fail its probes.
//!
//! Invariant: the original handler is in that JSON as it was written, so [`restore`] gives back what was there. Surprise: a
//! probe that names a `host` is left alone: it asks somebody else than the pod. What is run inside (`exec`) needs no network.
//! A hook keeps its headers, because the sidecar wants to see them: it does something, and whoever reaches the sidecar's port
//! may ask. No secret of ours could do that: `weft inject` has none, and what is made up anew each time is another pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};
use weft_wire::annotation::Sidecar;
use weft_wire::pod::{self as names, ProbeKind};
use weft_wire::port;

use super::Refusal;

/// The sidecar's variable with what the kubelet would ask, as JSON.
pub const ENVIRONMENT: &str = "WEFT_PROBES";

/// Seconds until Kubernetes gives a probe up, where it does not say.
const TIMEOUT_DEFAULT: i64 = 1;

/// Points every probe at the sidecar; what it must know is the answer.
pub(super) fn rewrite(
    spec: &mut Value,
    typed: &PodSpec,
    sidecar: Sidecar,
    grace_seconds: i64,
    warnings: &mut Vec<String>,
) -> BTreeMap<String, Value> {
    let mut probes = BTreeMap::new();
    let mut open = Vec::new();
    // A classic sidecar is not there yet when these are asked.
    let init = match sidecar {
        Sidecar::Native => typed.init_containers.as_deref().unwrap_or_default(),
        Sidecar::Classic => &[],
    };
    let lists = [("initContainers", init), ("containers", &typed.containers)];
    for (list, containers) in lists {
        for (index, container) in containers.iter().enumerate() {
            let Some(json) = spec.get_mut(list).and_then(|list| list.get_mut(index)) else { continue };
            for kind in ProbeKind::ALL {
                let Some(handler) = handler_mut(json, kind) else { continue };
                let timeout = match kind.is_hook() {
                    // A hook has no time of its own; the pod has.
                    true => grace_seconds,
                    false => handler.get("timeoutSeconds").and_then(Value::as_i64).unwrap_or(TIMEOUT_DEFAULT),
                };
                match point_at_sidecar(handler, container, kind, timeout) {
                    Ok(None) => {}
                    Ok(Some(entry)) => {
                        if kind.is_hook() && !has_headers(&entry) {
                            open.push(format!("{}/{}", container.name, kind.word()));
                        }
                        probes.insert(format!("{}/{}", container.name, kind.word()), entry);
                    }
                    Err(port) => warnings.push(format!(
                        "the {} probe of container {} asks port {port:?}, which that container does not have; it is left alone",
                        kind.word(),
                        container.name
                    )),
                }
            }
        }
    }
    if !open.is_empty() {
        warnings.push(format!(
            "whoever reaches port {} of the pod can call its http hooks ({}); where that does harm, write them as exec, or give them a \
             header with a secret (httpGet.httpHeaders), which the sidecar wants to see",
            port::METRICS,
            open.join(", ")
        ));
    }
    probes
}

/// Whether the kubelet shows something of its own with a hook.
fn has_headers(entry: &Value) -> bool {
    let headers = entry.pointer("/httpGet/httpHeaders").and_then(Value::as_array);
    let word = |header: &Value, field: &str| {
        header.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut headers = headers.into_iter().flatten();
    headers.any(|header| names::is_sent_as_written(&word(header, "name"), &word(header, "value")))
}

/// The sidecar's variable.
pub(super) fn encode(probes: &BTreeMap<String, Value>, pod: &ObjectMeta) -> Result<String, Refusal> {
    let json = serde_json::to_string(probes);
    let json = json.map_err(|error| Refusal::new("spec.containers", error.to_string()))?;
    let (count, bytes) = (probes.len(), json.len());
    let excess = if count > names::PROBES_MAX {
        format!("{count} probes and hooks, and a sidecar asks at most {}", names::PROBES_MAX)
    } else if bytes > names::PROBES_BYTES_MAX {
        format!("probes and hooks of {bytes} bytes, and a sidecar takes at most {}", names::PROBES_BYTES_MAX)
    } else {
        return Ok(json);
    };
    let name = pod.name.as_deref().or(pod.generate_name.as_deref()).unwrap_or("without a name");
    let fix = format!("pod {name} has {excess}; write some as exec, or set weft.dev/probes: disabled");
    Err(Refusal::new("spec.containers", fix))
}

/// Gives every probe back what it asked before.
pub(super) fn restore(spec: &mut Value, probes: &Map<String, Value>) {
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(name) = container.get("name").and_then(Value::as_str).map(str::to_owned) else {
                continue;
            };
            for kind in ProbeKind::ALL {
                let Some(entry) = probes.get(&format!("{name}/{}", kind.word())) else { continue };
                let Some(handler) = handler_mut(container, kind) else { continue };
                let asks_sidecar =
                    handler.get("httpGet").and_then(|get| get.get("path")).and_then(Value::as_str)
                        == Some(&names::probe_path(&name, kind));
                let original = HANDLERS.into_iter().find_map(|key| Some((key, entry.get(key)?.clone())));
                if let (true, Some((key, original))) = (asks_sidecar, original) {
                    handler.remove("httpGet");
                    handler.insert(key.to_owned(), original);
                }
            }
        }
    }
}

/// Handlers that need the network.
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// The object that holds the handler of a probe or hook.
fn handler_mut(container: &mut Value, kind: ProbeKind) -> Option<&mut Map<String, Value>> {
    let found = match kind {
        ProbeKind::Liveness => container.get_mut("livenessProbe"),
        ProbeKind::Readiness => container.get_mut("readinessProbe"),
        ProbeKind::Startup => container.get_mut("startupProbe"),
        ProbeKind::PostStart => container.get_mut("lifecycle").and_then(|all| all.get_mut("postStart")),
        ProbeKind::PreStop => container.get_mut("lifecycle").and_then(|all| all.get_mut("preStop")),
    };
    found?.as_object_mut()
}

/// Replaces the handler. `Err`: its port has a name that the container does not know.
fn point_at_sidecar(
    handler: &mut Map<String, Value>,
    container: &Container,
    kind: ProbeKind,
    timeout: i64,
) -> Result<Option<Value>, String> {
    let Some(key) = HANDLERS.into_iter().find(|key| handler.get(*key).is_some_and(Value::is_object)) else {
        return Ok(None);
    };
    // Kubernetes ignores a hook that opens a connection.
    if kind.is_hook() && key != "httpGet" {
        return Ok(None);
    }
    let Some(original) = handler.get(key).cloned() else { return Ok(None) };
    if original.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty()) {
        return Ok(None);
    }
    let port = match original.get("port") {
        Some(Value::String(name)) => resolve(container, name).ok_or_else(|| name.clone())?,
        // What is no port is Kubernetes' to refuse.
        Some(number) => match number.as_u64().and_then(|number| u16::try_from(number).ok()) {
            Some(number) => number,
            None => return Ok(None),
        },
        None => return Ok(None),
    };
    handler.remove(key);
    let path = names::probe_path(&container.name, kind);
    let mut get = json!({ "path": path, "port": port::METRICS });
    if let Some(headers) = original.get("httpHeaders").filter(|_| kind.is_hook()) {
        get["httpHeaders"] = headers.clone();
    }
    handler.insert("httpGet".to_owned(), get);
    let mut entry = Map::new();
    entry.insert(key.to_owned(), original);
    entry.insert("port".to_owned(), port.into());
    entry.insert("timeoutSeconds".to_owned(), timeout.into());
    Ok(Some(Value::Object(entry)))
}

/// A port by its name, in this container only, as the kubelet does it; or the number that the text is.
fn resolve(container: &Container, name: &str) -> Option<u16> {
    let mut ports = container.ports.iter().flatten();
    let named = ports.find(|port| port.name.as_deref() == Some(name));
    match named {
        Some(port) => u16::try_from(port.container_port).ok(),
        None => name.parse().ok(),
    }
}
