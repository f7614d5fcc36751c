//! What is added to a pod: the sidecar, the init container that redirects its connections, two volumes, one annotation.
//!
//! In: a pod without a sidecar, and what is wished. Out: the pod with one. Order of a native sidecar's pod: `weft-intercept`,
//! `weft-proxy` (which must have started), the app's own init containers (which so have network), the app. Of a classic one's:
//! the app's init containers, `weft-intercept`, then `weft-proxy` as the first container, whose start hook holds the app back
//! until it is ready.
//!
//! Invariant: everything passes Kubernetes' restricted Pod Security standard, but for `weft-intercept`, which is root with
//! `NET_ADMIN` and nothing else: a capability that is added reaches only root. Surprise: in a classic pod the app's init
//! containers run before interception and so outside of the mesh, because no sidecar is there yet; a warning says so.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Map, Value, json};
use weft_wire::annotation::{self as keys, Sidecar};
use weft_wire::{pod as names, port};

use super::strip::DEFAULT_CONTAINER;
use super::wishes::Wishes;
use super::{Refusal, Settings, Status, Subject, probes, reason};
use crate::resources::workload_name;

/// Seconds that a pod has to end, where it does not say.
const GRACE_DEFAULT: i64 = 30;
/// What the sidecar leaves of them for its last report and goodbye.
const GOODBYE_SECONDS: i64 = 3;
/// How long a new sidecar may take until it has heard of the control plane, in seconds; then it is started again.
const START_SECONDS: u32 = 120;
/// How long a service account token lives; the kubelet renews it at 80 % of it.
const TOKEN_SECONDS: u32 = 3600;

/// The pod with a sidecar.
pub(super) fn inject(
    mut pod: Value,
    typed: &Pod,
    subject: &Subject<'_>,
    wishes: &Wishes,
    settings: &Settings,
    warnings: &mut Vec<String>,
) -> Result<Value, Refusal> {
    let Some(spec) = typed.spec.as_ref().filter(|spec| !spec.containers.is_empty()) else {
        return Err(Refusal::new("spec.containers", "there is none; a pod has at least one"));
    };
    warn(spec, wishes, warnings);
    let grace = spec.termination_grace_period_seconds.unwrap_or(GRACE_DEFAULT).max(0);
    let Some(json) = pod.get_mut("spec") else { return Err(Refusal::new("spec", "is missing")) };
    let asked = match wishes.probes {
        true => probes::rewrite(json, spec, wishes.sidecar, grace, warnings),
        false => BTreeMap::new(),
    };
    let environment = environment(typed, subject, wishes, settings, grace, &asked)?;
    let proxy = proxy(wishes, environment);
    let intercept = intercept(wishes);
    let (init, containers) = match wishes.sidecar {
        Sidecar::Native => (vec![intercept, proxy], Vec::new()),
        Sidecar::Classic => (vec![intercept], vec![proxy]),
    };
    let volumes = volumes();
    let named = |items: &[Value]| {
        items.iter().filter_map(|item| Some(item.get("name")?.as_str()?.to_owned())).collect::<Vec<_>>()
    };
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sidecar: wishes.sidecar,
        containers: named(&containers),
        init_containers: named(&init),
        volumes: named(&volumes),
        annotations: Vec::new(),
    };
    match wishes.sidecar {
        Sidecar::Native => put(json, "initContainers", init, End::Front)?,
        Sidecar::Classic => put(json, "initContainers", init, End::Back)?,
    }
    put(json, "containers", containers, End::Front)?;
    put(json, "volumes", volumes, End::Back)?;
    annotate(&mut pod, spec, &mut status)?;
    Ok(pod)
}

/// What works, but not as its author may think.
fn warn(spec: &PodSpec, wishes: &Wishes, warnings: &mut Vec<String>) {
    let own = i64::from(port::PROXY_UID);
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    for container in reason::containers(spec) {
        let of_container = container.security_context.as_ref().and_then(|context| context.run_as_user);
        if of_container.or(of_pod) == Some(own) {
            warnings.push(format!(
                "container {} runs as user {own}, which is the sidecar's: its connections are not captured; let it run as another",
                container.name
            ));
        }
    }
    let plain_init = spec.init_containers.iter().flatten().any(|init| init.restart_policy.is_none());
    if wishes.sidecar == Sidecar::Classic && plain_init {
        warnings.push(
            "a classic sidecar starts after init containers: what they call is called without the mesh"
                .into(),
        );
    }
    let grace = spec.termination_grace_period_seconds.unwrap_or(GRACE_DEFAULT);
    if let Some((text, ms)) = &wishes.drain_deadline
        && i64::try_from(*ms).is_ok_and(|ms| ms > grace.saturating_mul(1000))
    {
        warnings.push(format!(
            "weft.dev/drain-deadline {text} is longer than terminationGracePeriodSeconds ({grace}): the kubelet ends the sidecar before"
        ));
    }
}

fn environment(
    typed: &Pod,
    subject: &Subject<'_>,
    wishes: &Wishes,
    settings: &Settings,
    grace: i64,
    asked: &BTreeMap<String, Value>,
) -> Result<Vec<Value>, Refusal> {
    let mut variables = vec![
        text("WEFT_CONTROL_PLANE", &settings.control_plane),
        text("WEFT_TRUST_DOMAIN", &settings.trust_domain),
        text("WEFT_TRUST_BUNDLE", &format!("{}/{}", names::TRUST_DIRECTORY, names::TRUST_KEY)),
        text("WEFT_IDENTITY_TOKEN_FILE", &format!("{}/{}", names::TOKEN_DIRECTORY, names::TOKEN_FILE)),
        field("WEFT_NAMESPACE", "metadata.namespace"),
        field("WEFT_POD", "metadata.name"),
        field("WEFT_POD_IPS", "status.podIPs"),
    ];
    // By which it asks whether its app has ended.
    variables.extend((wishes.sidecar == Sidecar::Classic).then(|| field("WEFT_POD_UID", "metadata.uid")));
    // Where nobody knows what the pod is of, it is itself.
    variables.push(match workload(&typed.metadata, subject) {
        Some(name) => text("WEFT_WORKLOAD", &name),
        None => field("WEFT_WORKLOAD", "metadata.name"),
    });
    let labels = typed.metadata.labels.as_ref();
    let version = ["app.kubernetes.io/version", "version"]
        .into_iter()
        .find(|key| labels.is_some_and(|labels| labels.contains_key(*key)));
    variables.extend(version.map(|key| field("WEFT_VERSION", &format!("metadata.labels['{key}']"))));
    // From Kubernetes 1.35 on pods bear their node's zone; before that it is empty, which says nothing.
    variables.push(field("WEFT_ZONE", "metadata.labels['topology.kubernetes.io/zone']"));
    let drain = match &wishes.drain_deadline {
        Some((text, _)) => text.clone(),
        None => format!("{}s", (grace - GOODBYE_SECONDS).clamp(1, 86_400)),
    };
    variables.push(text("WEFT_DRAIN_DEADLINE", &drain));
    let workers = wishes.workers.or_else(|| {
        let limit = wishes.cpu_limit.as_deref()?;
        let cpus = keys::millicores(limit).ok()?.div_ceil(1000);
        Some(u16::try_from(cpus).map_or(WORKERS_MAX, |cpus| cpus.clamp(1, WORKERS_MAX)))
    });
    let settings = [
        ("WEFT_LOG", wishes.log.clone()),
        ("WEFT_WORKERS", workers.map(|workers| workers.to_string())),
        ("WEFT_DEFAULT_ACCESS", wishes.default_access.clone()),
        ("WEFT_DETECT_TIMEOUT", wishes.detect_timeout.clone()),
        ("WEFT_INBOUND_PROTOCOLS", wishes.protocols.clone()),
        ("WEFT_SIDECAR", (wishes.sidecar == Sidecar::Classic).then(|| Sidecar::Classic.word().to_owned())),
    ];
    variables.extend(settings.into_iter().filter_map(|(name, value)| Some(text(name, &value?))));
    if !asked.is_empty() {
        variables.push(text(probes::ENVIRONMENT, &probes::encode(asked, &typed.metadata)?));
    }
    Ok(variables)
}

/// As many workers as a sidecar takes.
const WORKERS_MAX: u16 = 64;

fn text(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

fn field(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } })
}

/// What the pod is of, as the control plane will call it.
fn workload(metadata: &ObjectMeta, subject: &Subject<'_>) -> Option<String> {
    let mut metadata = metadata.clone();
    metadata.namespace = Some(subject.namespace.name.clone());
    if let Some((kind, name)) = subject.owner {
        let owner =
            OwnerReference { kind: kind.to_owned(), name: name.to_owned(), ..OwnerReference::default() };
        metadata.owner_references = Some(vec![owner]);
    }
    workload_name(&metadata)
}

fn proxy(wishes: &Wishes, environment: Vec<Value>) -> Value {
    let mut container = container(names::PROXY, wishes);
    let own = i64::from(port::PROXY_UID);
    let mut fields = json!({
        "env": environment,
        "ports": [{ "name": "weft-metrics", "containerPort": port::METRICS, "protocol": "TCP" }],
        "livenessProbe": probe("/live", 10, 3),
        "readinessProbe": probe("/ready", 2, 3),
        "resources": resources(wishes),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": own,
            "runAsGroup": own,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": names::TOKEN_VOLUME, "mountPath": names::TOKEN_DIRECTORY, "readOnly": true },
            { "name": names::TRUST_VOLUME, "mountPath": names::TRUST_DIRECTORY, "readOnly": true },
        ],
    });
    match wishes.sidecar {
        Sidecar::Native => {
            fields["restartPolicy"] = json!("Always");
            fields["startupProbe"] = probe("/ready", 1, START_SECONDS);
        }
        Sidecar::Classic => {
            // The kubelet starts the next container when this has ended.
            let command = [names::PROGRAM, "wait", "--timeout", &format!("{START_SECONDS}s")];
            fields["lifecycle"] = json!({ "postStart": { "exec": { "command": command } } });
        }
    }
    merge(&mut container, fields);
    container
}

fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": port::METRICS },
        "periodSeconds": period,
        "failureThreshold": failures,
    })
}

fn intercept(wishes: &Wishes) -> Value {
    let mut container = container(names::INTERCEPT, wishes);
    let mut arguments = vec!["intercept".to_owned()];
    let mut list = |flag: &str, values: Vec<String>| {
        if !values.is_empty() {
            arguments.push(format!("--{flag}={}", values.join(",")));
        }
    };
    let ports = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>();
    list("exclude-inbound-port", ports(&wishes.skip_inbound_ports));
    list("exclude-outbound-port", ports(&wishes.skip_outbound_ports));
    list("exclude-inbound-cidr", wishes.skip_inbound_cidrs.clone());
    list("exclude-cidr", wishes.skip_outbound_cidrs.clone());
    list("exclude-uid", wishes.skip_uids.iter().map(u32::to_string).collect());
    list("include-inbound-port", ports(&wishes.only_inbound_ports));
    list("include-outbound-port", ports(&wishes.only_outbound_ports));
    list("include-cidr", wishes.only_outbound_cidrs.clone());
    let fields = json!({
        "args": arguments,
        "resources": resources(wishes),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            // What is added reaches only root: Kubernetes has no ambient capabilities.
            "runAsNonRoot": false,
            "runAsUser": 0,
            "runAsGroup": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    merge(&mut container, fields);
    container
}

fn container(name: &str, wishes: &Wishes) -> Value {
    let mut container = json!({
        "name": name,
        "image": wishes.image,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if let Some(policy) = &wishes.pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    container
}

fn resources(wishes: &Wishes) -> Value {
    let list = |cpu: &Option<String>, memory: &Option<String>| {
        let amounts = [("cpu", cpu), ("memory", memory)];
        let amounts =
            amounts.into_iter().filter_map(|(name, amount)| Some((name.to_owned(), json!(amount.as_ref()?))));
        amounts.collect::<Map<String, Value>>()
    };
    let mut resources = Map::new();
    for (name, amounts) in [
        ("requests", list(&wishes.cpu_request, &wishes.memory_request)),
        ("limits", list(&wishes.cpu_limit, &wishes.memory_limit)),
    ] {
        if !amounts.is_empty() {
            resources.insert(name.to_owned(), Value::Object(amounts));
        }
    }
    Value::Object(resources)
}

fn volumes() -> Vec<Value> {
    vec![
        json!({
            "name": names::TOKEN_VOLUME,
            "projected": {
                "defaultMode": 420,
                "sources": [{ "serviceAccountToken": {
                    "audience": names::TOKEN_AUDIENCE,
                    "expirationSeconds": TOKEN_SECONDS,
                    "path": names::TOKEN_FILE,
                } }],
            },
        }),
        json!({
            "name": names::TRUST_VOLUME,
            "configMap": { "name": names::TRUST_CONFIG_MAP, "defaultMode": 420 },
        }),
    ]
}

fn merge(container: &mut Value, fields: Value) {
    if let (Some(container), Value::Object(fields)) = (container.as_object_mut(), fields) {
        container.extend(fields);
    }
}

#[derive(Clone, Copy)]
enum End {
    Front,
    Back,
}

fn put(spec: &mut Value, list: &str, mut items: Vec<Value>, end: End) -> Result<(), Refusal> {
    if items.is_empty() {
        return Ok(());
    }
    let wrong = || Refusal::new(format!("spec.{list}"), "is not a list");
    let found = spec.as_object_mut().ok_or_else(wrong)?.entry(list).or_insert_with(|| json!([]));
    if found.is_null() {
        *found = json!([]);
    }
    let found = found.as_array_mut().ok_or_else(wrong)?;
    match end {
        End::Front => {
            items.append(found);
            *found = items;
        }
        End::Back => found.append(&mut items),
    }
    Ok(())
}

/// Says in the pod what was done to it.
fn annotate(pod: &mut Value, spec: &PodSpec, status: &mut Status) -> Result<(), Refusal> {
    let wrong = || Refusal::new("metadata.annotations", "is not a map of texts");
    let metadata = pod.as_object_mut().ok_or_else(wrong)?.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    let annotations =
        metadata.as_object_mut().ok_or_else(wrong)?.entry("annotations").or_insert_with(|| json!({}));
    if annotations.is_null() {
        *annotations = json!({});
    }
    let annotations = annotations.as_object_mut().ok_or_else(wrong)?;
    if !annotations.contains_key(DEFAULT_CONTAINER)
        && let Some(first) = spec.containers.first()
        && status.sidecar == Sidecar::Classic
    {
        annotations.insert(DEFAULT_CONTAINER.to_owned(), json!(first.name));
        status.annotations.push(DEFAULT_CONTAINER.to_owned());
    }
    let text = serde_json::to_string(status)
        .map_err(|error| Refusal::new("metadata.annotations", error.to_string()))?;
    annotations.insert(keys::STATUS.to_owned(), json!(text));
    Ok(())
}
