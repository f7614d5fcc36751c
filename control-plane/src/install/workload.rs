//! What runs and how it is reached: Deployment, Services, NetworkPolicy, PodDisruptionBudget, webhook configuration.

use serde_json::{Value, json};
use weft_wire::annotation::{INJECT, LEADER};
use weft_wire::port;

use crate::inject::{certificate, keeper, webhook};

use super::values::{Api, CLIENT_SECRET_KEY, ControlPlane, Oidc, Sidecar, TOKENS_KEY, Values};
use super::{INSTALLED_WITH, NAME, NAMESPACE, Object, labels, selector};

/// Of the webhook's listener.
const WEBHOOK_PORT: u16 = 9443;
/// The uid and gid of both images.
const UID: u32 = port::PROXY_UID;
/// What the journal and its write-ahead log may take.
const HISTORY: &str = "3Gi";
/// Where the Secret with tokens of the API is mounted.
const TOKENS_DIRECTORY: &str = "/etc/weft/api-tokens";
/// Where the Secret that the OpenID provider gave is mounted.
const OIDC_DIRECTORY: &str = "/etc/weft/oidc";
/// Readable by the pod's group only, as the control plane wants it of tokens.
const SECRET_MODE: i32 = 0o440;
/// Namespaces whose pods never get a sidecar: what a cluster needs to run at all must not wait for anybody.
const SYSTEM_NAMESPACES: [&str; 4] = ["kube-node-lease", "kube-public", "kube-system", NAMESPACE];

pub(super) fn service_account(values: &Values) -> Object {
    let mut account = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "name": NAME, "namespace": NAMESPACE, "labels": labels() },
        "automountServiceAccountToken": false,
    });
    if !values.image.pull_secrets.is_empty() {
        account["imagePullSecrets"] = json!(values.image.pull_secrets);
    }
    Object::new("serviceaccount", "", account)
}

pub(super) fn services() -> [Object; 2] {
    let service = |name: &str, selector: Value, ports: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": NAMESPACE, "labels": labels() },
            "spec": { "ipFamilyPolicy": "PreferDualStack", "selector": selector, "ports": ports },
        })
    };
    let of = |name: &str, port: u16, protocol: &str| json!({ "name": name, "port": port, "targetPort": name, "appProtocol": protocol });
    let mut leads = selector();
    leads[LEADER] = "true".into();
    let leader = service(
        NAME,
        leads,
        json!([
            of("grpc-control", port::CONTROL_TLS, "grpc"),
            of("grpc-otlp", port::OTLP_GRPC, "grpc"),
            of("http-otlp", port::OTLP_HTTP, "http"),
            of("http-api", port::API, "http"),
        ]),
    );
    let injector = service(
        certificate::SERVICE,
        selector(),
        json!([{ "name": "https-webhook", "port": 443, "targetPort": "https-webhook", "appProtocol": "https" }]),
    );
    [
        Object::new(
            "service",
            "The replica that leads and has the live graph, for sidecars and for apps that report by themselves. The API listens on \
             its pod's loopback, unless it is exposed (api.expose):\n\
             kubectl -n weft-system port-forward service/weft-control-plane 8080",
            leader,
        ),
        Object::new(
            "service",
            "Every replica that is ready, for the API server's questions about new pods.",
            injector,
        ),
    ]
}

pub(super) fn network_policy(values: &Values) -> Object {
    let ports = |names: &[&str]| names.iter().map(|name| json!({ "port": name })).collect::<Value>();
    let anybody: &[&str] = match values.api.expose {
        // Ingress controllers may be on a node's network; who comes in is asked for by the API itself.
        true => &["https-webhook", "http-metrics", "http-api"],
        false => &["https-webhook", "http-metrics"],
    };
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": NAME, "namespace": NAMESPACE, "labels": labels() },
        "spec": {
            "podSelector": { "matchLabels": selector() },
            "policyTypes": ["Ingress"],
            "ingress": [
                { "from": [{ "namespaceSelector": {} }], "ports": ports(&["grpc-control", "grpc-otlp", "http-otlp"]) },
                { "ports": ports(anybody) },
            ],
        },
    });
    let about = "Pods of the cluster reach what is for them. The API server and the kubelet, who call the webhook and the probes, are \
                 no pods and have addresses that nobody knows beforehand.";
    Object::new("networkpolicy", about, policy).when("networkPolicy.enabled")
}

pub(super) fn disruption_budget() -> Object {
    let budget = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": { "name": NAME, "namespace": NAMESPACE, "labels": labels() },
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": { "matchLabels": selector() },
        },
    });
    Object::new("poddisruptionbudget", "Nodes are drained one after the other.", budget).when("ha")
}

pub(super) fn deployment(values: &Values) -> Object {
    let replicas = if values.ha { 3 } else { 1 };
    // One more comes before the old one goes, so that there is always somebody to inject new pods.
    let rolling = |unavailable: u8| {
        let update = json!({ "maxSurge": 1, "maxUnavailable": unavailable });
        json!({ "type": "RollingUpdate", "rollingUpdate": update })
    };
    let strategy = match (values.ha, has_claim(values)) {
        // Two programs must not write one history: the old one goes first.
        (_, true) => json!({ "type": "Recreate" }),
        (true, false) => rolling(1),
        (false, false) => rolling(0),
    };
    let wishes = serde_json::to_string(values).expect("values are JSON");
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": labels(),
            "annotations": { INSTALLED_WITH: wishes },
        },
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "strategy": strategy,
            "selector": { "matchLabels": selector() },
            "template": {
                "metadata": { "labels": labels() },
                "spec": pod(values),
            },
        },
    });
    Object::new("deployment", "", deployment)
}

/// Whether the history outlives the pod.
fn has_claim(values: &Values) -> bool {
    !values.control_plane.history.persistent_volume_claim.is_empty()
}

/// Secrets that are files of the control plane: what the volume is called, the Secret, where it is mounted.
fn secrets(values: &Values) -> Vec<(&'static str, &str, &'static str)> {
    let Api { tokens_secret, oidc, .. } = &values.api;
    let all = [
        ("api-tokens", tokens_secret, TOKENS_DIRECTORY, true),
        ("oidc", &oidc.client_secret, OIDC_DIRECTORY, !oidc.issuer.is_empty()),
    ];
    let wished = all.into_iter().filter(|(_, secret, _, wanted)| *wanted && !secret.is_empty());
    wished.map(|(volume, secret, directory, _)| (volume, secret.as_str(), directory)).collect()
}

fn volumes(values: &Values) -> Vec<Value> {
    let claim = &values.control_plane.history.persistent_volume_claim;
    let history = match has_claim(values) {
        true => json!({ "name": "history", "persistentVolumeClaim": { "claimName": claim } }),
        false => json!({ "name": "history", "emptyDir": { "sizeLimit": HISTORY } }),
    };
    let secret = |(volume, secret, _)| json!({ "name": volume, "secret": { "secretName": secret, "defaultMode": SECRET_MODE } });
    std::iter::once(history).chain(secrets(values).into_iter().map(secret)).collect()
}

fn mounts(values: &Values) -> Vec<Value> {
    let history = json!({ "name": "history", "mountPath": "/var/lib/weft" });
    let secret = |(volume, _, directory)| json!({ "name": volume, "mountPath": directory, "readOnly": true });
    std::iter::once(history).chain(secrets(values).into_iter().map(secret)).collect()
}

fn pod(values: &Values) -> Value {
    let ControlPlane { node_selector, tolerations, priority_class_name, .. } = &values.control_plane;
    let mut pod = json!({
        "serviceAccountName": NAME,
        "automountServiceAccountToken": true,
        // The drain deadline and a little.
        "terminationGracePeriodSeconds": 15,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container(values)],
        "volumes": volumes(values),
    });
    // What is not wished is not there.
    if values.ha {
        pod["affinity"] = affinity();
    }
    if !node_selector.is_empty() {
        pod["nodeSelector"] = json!(node_selector);
    }
    if !priority_class_name.is_empty() {
        pod["priorityClassName"] = json!(priority_class_name);
    }
    if !tolerations.is_empty() {
        pod["tolerations"] = json!(tolerations);
    }
    pod
}

/// Pods of it on different nodes, in different zones, where there are such.
fn affinity() -> Value {
    let apart = |weight: u8, topology: &str| {
        json!({
            "weight": weight,
            "podAffinityTerm": { "topologyKey": topology, "labelSelector": { "matchLabels": selector() } },
        })
    };
    json!({
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                apart(100, "kubernetes.io/hostname"),
                apart(50, "topology.kubernetes.io/zone"),
            ],
        },
    })
}

fn container(values: &Values) -> Value {
    let field =
        |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let port = |name: &str, port: u16| json!({ "name": name, "containerPort": port });
    let probe = |path: &str, seconds: u8| json!({ "httpGet": { "path": path, "port": "http-metrics" }, "periodSeconds": seconds });
    // Listing a large cluster takes a while, and is no reason to begin again.
    let mut startup = probe("/live", 2);
    // Nor is an API server that is away: half an hour.
    startup["failureThreshold"] = 900.into();
    json!({
        "name": "control-plane",
        "image": values.image_of(NAME),
        "imagePullPolicy": values.image.pull_policy,
        "args": arguments(values),
        "env": [field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")],
        "ports": [
            port("grpc-control", port::CONTROL_TLS),
            port("grpc-otlp", port::OTLP_GRPC),
            port("http-otlp", port::OTLP_HTTP),
            port("http-metrics", port::METRICS),
            port("https-webhook", WEBHOOK_PORT),
            port("http-api", port::API),
        ],
        "startupProbe": startup,
        "readinessProbe": probe("/ready", 2),
        "livenessProbe": probe("/live", 10),
        "resources": values.control_plane.resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": mounts(values),
    })
}

/// The control plane's command line.
pub(super) fn arguments(values: &Values) -> Vec<String> {
    let Sidecar { kind, log_level, resources } = &values.sidecar;
    let (requests, limits) = (&resources.requests, &resources.limits);
    let api = if values.api.expose { "[::]" } else { "127.0.0.1" };
    let mut arguments = vec![
        "--kubernetes".into(),
        "--data-dir=/var/lib/weft".into(),
        format!("--trust-domain={}", values.trust_domain),
        format!("--control-tls-listen=[::]:{}", port::CONTROL_TLS),
        format!("--api-listen={api}:{}", port::API),
        format!("--metrics-listen=[::]:{}", port::METRICS),
        format!("--log={}", values.log),
        format!("--inject-listen=[::]:{WEBHOOK_PORT}"),
        format!("--proxy-image={}", values.image_of("weft-proxy")),
        format!("--proxy-image-pull-policy={}", values.image.pull_policy),
        format!("--proxy-cpu-request={}", requests.cpu),
        format!("--proxy-memory-request={}", requests.memory),
    ];
    let wished = [
        ("--proxy-cpu-limit", &limits.cpu),
        ("--proxy-memory-limit", &limits.memory),
        ("--proxy-log", log_level),
        ("--sidecar", kind),
    ];
    arguments.extend(optional(&wished));
    arguments.extend(signing_in(&values.api));
    arguments
}

/// What is not wished is not there.
fn optional<'a>(options: &'a [(&'a str, &'a String)]) -> impl Iterator<Item = String> + 'a {
    let given = options.iter().filter(|(_, value)| !value.is_empty());
    given.map(|(option, value)| format!("{option}={value}"))
}

/// How people and programs sign in to the API.
fn signing_in(api: &Api) -> Vec<String> {
    let Api { expose: _, public_url, tokens_secret, oidc } = api;
    let Oidc { issuer, client_id, client_secret, operator_groups, viewer_groups, groups_claim, scopes } =
        oidc;
    let mut arguments: Vec<String> = optional(&[("--api-public-url", public_url)]).collect();
    if !tokens_secret.is_empty() {
        arguments.push(format!("--api-tokens={TOKENS_DIRECTORY}/{TOKENS_KEY}"));
    }
    if !issuer.is_empty() {
        arguments.push(format!("--oidc-issuer={issuer}"));
        arguments.push(format!("--oidc-client-id={client_id}"));
        arguments.push(format!("--oidc-redirect-url={}", Oidc::redirect_url(public_url)));
        arguments.push(format!("--oidc-groups-claim={groups_claim}"));
        arguments.push(format!("--oidc-scopes={scopes}"));
        if !client_secret.is_empty() {
            arguments.push(format!("--oidc-client-secret-file={OIDC_DIRECTORY}/{CLIENT_SECRET_KEY}"));
        }
        let groups = [("--oidc-operator-group", operator_groups), ("--oidc-viewer-group", viewer_groups)];
        arguments.extend(optional(&groups));
    }
    arguments
}

pub(super) fn injector(values: &Values) -> Object {
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": keeper::CONFIGURATION, "labels": labels() },
        "webhooks": [{
            "name": "injector.weft.dev",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "service": { "name": certificate::SERVICE, "namespace": NAMESPACE, "path": webhook::PATH, "port": 443 },
            },
            "rules": [{
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }],
            "namespaceSelector": {
                "matchExpressions": [{
                    "key": "kubernetes.io/metadata.name",
                    "operator": "NotIn",
                    "values": SYSTEM_NAMESPACES,
                }],
            },
            "objectSelector": {
                "matchExpressions": [{ "key": INJECT, "operator": "NotIn", "values": ["disabled"] }],
            },
            "failurePolicy": values.injector.failure_policy,
            "matchPolicy": "Equivalent",
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "None",
            "timeoutSeconds": 5,
        }],
    });
    let about = "New pods are shown to the control plane, which gives them their sidecars. Not those of system namespaces, nor those that \
                 say by label that they want none: they wait for nobody. The control plane fills in the caBundle.";
    Object::new("webhook", about, configuration)
}
