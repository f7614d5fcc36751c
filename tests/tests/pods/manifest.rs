//! What is played: pods as people write them, their sidecars, and what the control plane reads of them.

use serde_json::{Value, json};

/// The namespace of the members. Podman has none; the control plane is told.
pub(super) const NAMESPACE: &str = "shop";
/// The control plane's container, as podman names it.
pub(super) const CONTROL_PLANE: &str = "weft-control-plane-control-plane";
/// The control plane's address.
pub(super) const CONTROL_ADDRESS: &str = "10.89.77.10";
/// The cluster address of `orders`: routed nowhere, because every call to it is intercepted.
const ORDERS_ADDRESS: &str = "10.96.0.10";
const PORT: u16 = 8080;
/// The user of all that is Weft's.
const OURS: u32 = 2102;
/// The user of apps.
const APPS: u32 = 65532;

/// A pod with a program of the demo's shop.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) program: &'static str,
    pub(super) address: &'static str,
    /// Whether it is a job's: ends, and is not started again.
    pub(super) once: bool,
}

/// The control plane, as `k8s/control-plane.yaml` has it, but with a source of files, and history that ends with the pod.
pub(super) fn control_plane(members: &[&Member]) -> anyhow::Result<String> {
    let mut objects = vec![service()];
    for member in members {
        objects.push(pod_object(member));
        if member.program == "orders" {
            objects.push(endpoint_slice(member));
        }
    }
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "weft-control-plane" },
        "spec": {
            "containers": [{
                "name": "control-plane",
                "image": concat!("localhost/weft-control-plane:", env!("CARGO_PKG_VERSION")),
                "args": ["--source=/etc/weft/source", "--data-dir=/var/lib/weft", "--metrics-listen=[::]:15020"],
                "securityContext": restricted(OURS),
                "volumeMounts": [
                    { "name": "source", "mountPath": "/etc/weft/source", "readOnly": true },
                    { "name": "data", "mountPath": "/var/lib/weft" },
                ],
            }],
            "volumes": [
                { "name": "source", "configMap": { "name": "weft-source" } },
                { "name": "data", "emptyDir": {} },
            ],
        },
    });
    let source = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "weft-source" },
        "data": { "shop.yaml": documents(&objects)? },
    });
    documents(&[source, pod])
}

/// A member's pod with its sidecar, and its token.
pub(super) fn member(member: &Member, token: &str) -> anyhow::Result<String> {
    // Would be a Secret, but podman 4.3 puts a Secret's values into files as they stand in the manifest, in base64.
    let token = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": format!("{}-token", member.name) },
        "data": { "token": token },
    });
    documents(&[token, meshed(app(member), member)])
}

fn app(member: &Member) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": member.name,
            // Else podman removes init containers, and with them what they said.
            "annotations": { "io.podman.annotations.init.container.type": "always" },
        },
        "spec": {
            // With `Always`, podman also starts init containers again and again.
            "restartPolicy": if member.once { "Never" } else { "OnFailure" },
            "hostAliases": [
                { "ip": CONTROL_ADDRESS, "hostnames": ["weft-control-plane.weft-system.svc"] },
                { "ip": ORDERS_ADDRESS, "hostnames": ["orders"] },
            ],
            "containers": [{
                "name": "app",
                "image": concat!("localhost/weft:", env!("CARGO_PKG_VERSION")),
                "args": ["demo-app", member.program],
                "securityContext": restricted(APPS),
            }],
        },
    })
}

/// The pod with a sidecar.
fn meshed(mut pod: Value, member: &Member) -> Value {
    let sidecar = json!({
        "name": "weft-proxy",
        "image": concat!("localhost/weft-proxy:", env!("CARGO_PKG_VERSION")),
        "env": [
            { "name": "WEFT_CONTROL_PLANE", "value": "https://weft-control-plane.weft-system.svc:15012" },
            { "name": "WEFT_JOIN_TOKEN_FILE", "value": "/var/run/secrets/weft/token/token" },
            { "name": "WEFT_WORKLOAD", "value": member.name },
            { "name": "WEFT_NAMESPACE", "value": NAMESPACE },
            { "name": "WEFT_POD", "value": member.name },
            { "name": "WEFT_POD_IPS", "value": member.address },
        ],
        "securityContext": restricted(OURS),
        "volumeMounts": [{ "name": "weft-token", "mountPath": "/var/run/secrets/weft/token", "readOnly": true }],
    });
    let mut capable = restricted(0);
    capable["runAsNonRoot"] = false.into();
    capable["capabilities"]["add"] = json!(["NET_ADMIN"]);
    let intercept = json!({
        "name": "weft-intercept",
        "image": concat!("localhost/weft-proxy:", env!("CARGO_PKG_VERSION")),
        "args": ["intercept"],
        "securityContext": capable,
    });
    let spec = &mut pod["spec"];
    spec["initContainers"] = json!([intercept]);
    spec["volumes"] =
        json!([{ "name": "weft-token", "configMap": { "name": format!("{}-token", member.name) } }]);
    if let Some(containers) = spec["containers"].as_array_mut() {
        containers.insert(0, sidecar);
    }
    pod
}

/// What the restricted Pod Security standard asks for, and a root that nobody writes to.
fn restricted(user: u32) -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": user,
        "runAsGroup": user,
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "orders", "namespace": NAMESPACE },
        "spec": {
            "clusterIP": ORDERS_ADDRESS,
            "clusterIPs": [ORDERS_ADDRESS],
            "ports": [{ "name": "http", "port": PORT, "targetPort": PORT, "protocol": "TCP" }],
        },
    })
}

fn endpoint_slice(member: &Member) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-1", member.name),
            "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": "orders" },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": PORT, "protocol": "TCP" }],
        "endpoints": [{
            "addresses": [member.address],
            "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "name": member.name, "namespace": NAMESPACE },
        }],
    })
}

fn pod_object(member: &Member) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": member.name,
            "namespace": NAMESPACE,
            "labels": { "app.kubernetes.io/name": member.name },
        },
        "spec": { "serviceAccountName": member.name, "containers": [{ "name": "app" }] },
        "status": { "podIP": member.address, "podIPs": [{ "ip": member.address }] },
    })
}

fn documents(all: &[Value]) -> anyhow::Result<String> {
    let texts = all.iter().map(serde_yaml::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("---\n"))
}
