//! What is played: pods as people write them, with sidecars from `weft inject`, and what the control plane reads of them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};
use weft_tests::binary;

/// The namespace of the members. Podman has none; the control plane is told.
pub(super) const NAMESPACE: &str = "shop";
/// The control plane's container, as podman names it.
pub(super) const CONTROL_PLANE: &str = "weft-control-plane-control-plane";
/// The control plane's address.
pub(super) const CONTROL_ADDRESS: &str = "10.89.77.10";
/// The cluster address of `orders`: routed nowhere, because every call to it is intercepted.
const ORDERS_ADDRESS: &str = "10.96.0.10";
const PORT: u16 = 8080;
/// The user of apps.
const APPS: u32 = 65532;
/// How long a pod has to end. A classic sidecar, which nobody tells that its app has ended unless a test does, waits almost as long.
pub(super) const GRACE_SECONDS: u64 = 10;

const IMAGE: &str = concat!("localhost/weft:", env!("CARGO_PKG_VERSION"));
const PROXY_IMAGE: &str = concat!("localhost/weft-proxy:", env!("CARGO_PKG_VERSION"));
const CONTROL_IMAGE: &str = concat!("localhost/weft-control-plane:", env!("CARGO_PKG_VERSION"));

/// A pod with a program of the demo's shop.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) program: &'static str,
    /// A program that runs to its end before.
    pub(super) first: Option<&'static str>,
    pub(super) address: &'static str,
}

impl Member {
    /// What an API server would have called its pod.
    fn uid(&self) -> String {
        format!("uid-of-{}", self.name)
    }
}

/// What the control plane reads: everybody takes mutual TLS only.
pub(super) fn source(members: &[&Member], pods: impl Fn(&Member) -> Value) -> anyhow::Result<String> {
    let strict = json!({
        "apiVersion": "weft.dev/v1alpha1",
        "kind": "AccessPolicy",
        "metadata": { "name": "strict", "namespace": NAMESPACE },
        "spec": { "mtls": { "mode": "strict" } },
    });
    let mut objects = vec![strict, service()];
    for member in members {
        objects.push(pods(member));
        if member.program == "orders" {
            objects.push(endpoint_slice(member));
        }
    }
    documents(&objects)
}

/// The control plane, as `k8s/control-plane.yaml` has it, but with files in `source`, and history that ends with the pod.
pub(super) fn control_plane(source: &Path) -> anyhow::Result<String> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "weft-control-plane" },
        "spec": {
            "containers": [{
                "name": "control-plane",
                "image": CONTROL_IMAGE,
                "args": ["--source=/etc/weft/source", "--data-dir=/var/lib/weft", "--metrics-listen=[::]:15020"],
                "securityContext": restricted(2102),
                "volumeMounts": [
                    { "name": "source", "mountPath": "/etc/weft/source", "readOnly": true },
                    { "name": "data", "mountPath": "/var/lib/weft" },
                ],
            }],
            "volumes": [
                { "name": "source", "hostPath": { "path": source, "type": "Directory" } },
                { "name": "data", "emptyDir": {} },
            ],
        },
    });
    documents(&[pod])
}

/// A member's pod as people write it.
pub(super) fn app(member: &Member) -> Value {
    let run = |name: &str, program: &str| {
        json!({
            "name": name,
            "image": IMAGE,
            "args": ["demo-app", program],
            "securityContext": restricted(APPS),
        })
    };
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": member.name, "namespace": NAMESPACE },
        "spec": {
            "serviceAccountName": member.name,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "hostAliases": [
                { "ip": CONTROL_ADDRESS, "hostnames": ["weft-control-plane.weft-system.svc"] },
                { "ip": ORDERS_ADDRESS, "hostnames": ["orders"] },
            ],
            "containers": [run("app", member.program)],
        },
    });
    if let Some(first) = member.first {
        pod["spec"]["initContainers"] = json!([run("first", first)]);
    }
    match member.program {
        "orders" => {
            pod["spec"]["containers"][0]["readinessProbe"] =
                json!({ "httpGet": { "path": "/reports/daily", "port": PORT } });
        }
        "report" => pod["spec"]["restartPolicy"] = "Never".into(),
        _ => {}
    }
    pod
}

/// What `weft inject` makes of a pod.
pub(super) fn injected(pod: &Value, sidecar: &str) -> anyhow::Result<Value> {
    let mut weft = Command::new(binary::weft());
    weft.args(["inject", "-f", "-", "--sidecar", sidecar, "--proxy-image", PROXY_IMAGE]);
    let mut weft = weft.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    serde_yaml::to_writer(weft.stdin.take().context("its input")?, pod)?;
    let done = weft.wait_with_output()?;
    ensure!(done.status.success(), "weft inject: {}", String::from_utf8_lossy(&done.stderr));
    let document = serde_yaml::Deserializer::from_slice(&done.stdout).next().context("no document")?;
    Ok(Value::deserialize(document)?)
}

/// The same for podman 4.3, which lacks an API server and some of the kubelet: who the sidecar is, is proved by a join token, which
/// also says whom to trust, and what the kubelet would fill in is filled in.
pub(super) fn for_podman(mut pod: Value, member: &Member, token: &str) -> anyhow::Result<String> {
    // Would be a Secret, but podman puts a Secret's values into files as they stand in the manifest, in base64.
    let name = format!("{}-token", member.name);
    let token = config_map(&name, "token", token);
    let uid = member.uid();
    // Podman takes no value longer than 63 characters, which is the limit of labels. And unless told so by one, it removes init
    // containers, and with them what they said.
    pod["metadata"]["annotations"] = json!({ "io.podman.annotations.init.container.type": "always" });
    let spec = &mut pod["spec"];
    // With `Always`, which is the default, it also starts init containers again and again.
    spec["restartPolicy"] = "Never".into();
    for volume in spec["volumes"].as_array_mut().into_iter().flatten() {
        if volume["name"] == "weft-token" {
            *volume = json!({ "name": "weft-token", "configMap": { "name": name } });
        }
    }
    keep(&mut spec["volumes"], |volume| volume["name"] != "weft-trust");
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            // Ports would be published on the node, and probes be asked by curl in the image; init containers may have none.
            if let Some(fields) = container.as_object_mut() {
                fields.retain(|name, _| name != "ports" && name != "lifecycle" && !name.ends_with("Probe"));
            }
            keep(&mut container["volumeMounts"], |mount| mount["name"] != "weft-trust");
            keep(&mut container["env"], |variable| variable["name"] != "WEFT_TRUST_BUNDLE");
            for variable in container["env"].as_array_mut().into_iter().flatten() {
                if variable["name"] == "WEFT_IDENTITY_TOKEN_FILE" {
                    variable["name"] = "WEFT_JOIN_TOKEN_FILE".into();
                }
                if let Some(path) = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                    let value = match path {
                        "metadata.namespace" => NAMESPACE,
                        "metadata.name" => member.name,
                        "metadata.uid" => &uid,
                        "status.podIPs" => member.address,
                        // Of a label that the pod does not bear.
                        _ => "",
                    };
                    *variable = json!({ "name": variable["name"], "value": value });
                }
            }
        }
    }
    documents(&[token, pod])
}

fn keep(list: &mut Value, wanted: impl Fn(&Value) -> bool) {
    if let Some(list) = list.as_array_mut() {
        list.retain(wanted);
    }
}

fn config_map(name: &str, key: &str, text: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { key: text } })
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

/// A pod as an API server shows it while it runs.
pub(super) fn running(member: &Member) -> Value {
    let mut pod = app(member);
    pod["metadata"]["uid"] = member.uid().into();
    pod["status"] = json!({ "podIP": member.address, "podIPs": [{ "ip": member.address }] });
    pod
}

/// The same when the kubelet has seen its app end well; its sidecar still runs.
pub(super) fn app_ended(member: &Member, injected: &Value) -> Value {
    let status = |name: &str, state: Value| json!({ "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state });
    let mut pod = running(member);
    pod["spec"] = injected["spec"].clone();
    pod["status"]["phase"] = "Running".into();
    pod["status"]["containerStatuses"] = json!([
        status("weft-proxy", json!({ "running": {} })),
        status("app", json!({ "terminated": { "exitCode": 0 } })),
    ]);
    pod
}

fn documents(all: &[Value]) -> anyhow::Result<String> {
    let texts = all.iter().map(serde_yaml::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("---\n"))
}
