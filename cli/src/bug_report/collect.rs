//! Asks for what goes into a report.
//!
//! In: a target of `weft check`. Out: parts, each with its content or with why it could not be had. Invariant: every question has a
//! deadline and an answer of bounded size; Secrets and ConfigMaps are not among them.

use futures_util::future::join_all;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, LogParams};
use kube::{Api as KubeApi, Client};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Content, Part};
use crate::api::Api;
use crate::args::ApiArgs;
use crate::check::Target;
use crate::kubernetes::forward::Forward;
use crate::kubernetes::{NAMESPACE, ask, chain};
use crate::proxy_config::{ADMIN_PORT, CONTAINER};

/// Bytes of one log.
const LOG_BYTES: i64 = 8 * 1024 * 1024;

/// What the control plane's API is asked for.
const QUESTIONS: [(&str, &str, &str); 10] = [
    ("overview", "/api/overview", "the mesh at a glance"),
    ("proxies", "/api/proxies", "connected sidecars and how their configuration fares"),
    ("config-errors", "/api/config/errors", "what could not be read"),
    ("objects", "/api/objects", "routes and policies with their conditions"),
    ("routes", "/api/routes", "services with their routes and backends"),
    ("circuits", "/api/circuits", "circuits and their transitions"),
    ("access", "/api/access", "rules of access and what they said"),
    ("ca", "/api/ca", "the certificate authority: certificates, no keys"),
    ("graph", "/api/graph?window=5m", "the call graph of the last five minutes"),
    ("metrics", "/metrics", "the control plane's own metrics"),
];

pub(super) async fn of_target(
    target: &Target,
    arguments: &ApiArgs,
    pods: &[(String, String)],
    lines: i64,
) -> anyhow::Result<Vec<Part>> {
    let (checks, api, cluster) = tokio::join!(checks(target, arguments), of_api(target, arguments), async {
        match &target.cluster {
            Some(cluster) => of_cluster(&cluster.client, pods, lines).await,
            None => Vec::new(),
        }
    },);
    let versions = json!({
        "weft": env!("CARGO_PKG_VERSION"),
        "cluster": target.cluster.as_ref().map(|cluster| &cluster.server),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
    });
    let mut parts = vec![
        Part {
            path: "weft.json".into(),
            about: "who made this report, and where",
            content: Ok(Content::Json(versions)),
        },
        Part { path: "check.json".into(), about: "what weft check --proxy finds", content: checks? },
    ];
    parts.extend(api?);
    parts.extend(cluster);
    Ok(parts)
}

async fn checks(target: &Target, arguments: &ApiArgs) -> anyhow::Result<Result<Content, String>> {
    Ok(Ok(Content::Json(target.report(arguments).await?)))
}

async fn of_api(target: &Target, arguments: &ApiArgs) -> anyhow::Result<Vec<Part>> {
    let api = target.api(arguments).await?;
    let part = async |(name, path, about): (&str, &str, &'static str)| {
        let is_text = path == "/metrics";
        let content = match &api {
            Ok(api) => api.get(path).await.map_err(|error| chain(&error)).and_then(|body| {
                let text = String::from_utf8_lossy(&body).into_owned();
                if is_text { Ok(Content::Text(text)) } else { parsed(&text) }
            }),
            Err(trouble) => Err(trouble.to_string()),
        };
        let end = if is_text { "txt" } else { "json" };
        Part { path: format!("api/{name}.{end}"), about, content }
    };
    let mut parts = Vec::new();
    // One after the other: each goes through the API server, and nobody is in a hurry.
    for question in QUESTIONS {
        parts.push(part(question).await);
    }
    Ok(parts)
}

fn parsed(text: &str) -> Result<Content, String> {
    serde_json::from_str(text).map(Content::Json).map_err(|error| format!("not JSON: {error}"))
}

async fn of_cluster(client: &Client, pods: &[(String, String)], lines: i64) -> Vec<Part> {
    let own = |kind: &str| format!("kubernetes/{kind}.json");
    let mut parts = vec![
        listed::<Deployment>(&own("deployments"), "the control plane's Deployment", spaced(client)).await,
        listed::<Pod>(&own("pods"), "the control plane's pods", spaced(client)).await,
        listed::<Service>(&own("services"), "the control plane's Services", spaced(client)).await,
        listed::<EndpointSlice>(&own("endpointslices"), "where these lead", spaced(client)).await,
        listed::<Lease>(&own("leases"), "who leads", spaced(client)).await,
        listed::<Event>(&own("events"), "what happened in the control plane's namespace", spaced(client))
            .await,
        listed::<MutatingWebhookConfiguration>(
            &own("webhooks"),
            "who changes objects on their way in",
            KubeApi::all(client.clone()),
        )
        .await,
        nodes(client).await,
    ];
    let found: KubeApi<Pod> = spaced(client);
    let list = ask(found.list(&ListParams::default())).await;
    for pod in list.iter().flat_map(|list| &list.items) {
        parts.extend(logs(client, NAMESPACE, pod, None, lines).await);
    }
    for (namespace, name) in pods {
        parts.extend(sidecar(client, namespace, name, lines).await);
    }
    parts
}

fn spaced<K>(client: &Client) -> KubeApi<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    KubeApi::namespaced(client.clone(), NAMESPACE)
}

async fn listed<K>(path: &str, about: &'static str, objects: KubeApi<K>) -> Part
where
    K: Clone + std::fmt::Debug + Serialize + serde::de::DeserializeOwned,
{
    let content = match ask(objects.list(&ListParams::default().limit(500))).await {
        Ok(list) => serde_json::to_value(&list.items).map(Content::Json).map_err(|error| error.to_string()),
        Err(trouble) => Err(trouble.to_string()),
    };
    Part { path: path.to_owned(), about, content: content.map(trimmed) }
}

/// Without what only the API server needs.
fn trimmed(content: Content) -> Content {
    let Content::Json(mut value) = content else { return content };
    for item in value.as_array_mut().into_iter().flatten() {
        if let Some(metadata) = item["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
    }
    Content::Json(value)
}

/// Of nodes only what matters: which kubelet, kernel and runtime.
async fn nodes(client: &Client) -> Part {
    let all: KubeApi<Node> = KubeApi::all(client.clone());
    let content = match ask(all.list(&ListParams::default().limit(500))).await {
        Ok(list) => {
            let info = |node: Node| json!({ "name": node.metadata.name, "info": node.status.and_then(|status| status.node_info) });
            Ok(Content::Json(list.items.into_iter().map(info).collect::<Vec<Value>>().into()))
        }
        Err(trouble) => Err(trouble.to_string()),
    };
    Part { path: "kubernetes/nodes.json".into(), about: "kubelets, kernels and runtimes", content }
}

/// The logs of a pod's containers, and those of the run before if there was one.
async fn logs(client: &Client, namespace: &str, pod: &Pod, only: Option<&str>, lines: i64) -> Vec<Part> {
    let pods: KubeApi<Pod> = KubeApi::namespaced(client.clone(), namespace);
    let name = pod.metadata.name.clone().unwrap_or_default();
    let status = pod.status.as_ref();
    let statuses = status.into_iter().flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    });
    let runs =
        statuses.filter(|container| only.is_none_or(|only| container.name == only)).flat_map(|container| {
            let before = (container.restart_count > 0).then_some(true);
            std::iter::once(false).chain(before).map(|previous| (container.name.clone(), previous))
        });
    let part = async |(container, previous): (String, bool)| {
        let parameters = LogParams {
            container: Some(container.clone()),
            previous,
            tail_lines: Some(lines),
            limit_bytes: Some(LOG_BYTES),
            timestamps: true,
            ..LogParams::default()
        };
        let content = ask(pods.logs(&name, &parameters)).await.map(Content::Text);
        let end = if previous { ".previous" } else { "" };
        Part {
            path: format!("logs/{namespace}/{name}/{container}{end}.log"),
            about: if previous { "the last words of the run before" } else { "what it said" },
            content: content.map_err(|trouble| trouble.to_string()),
        }
    };
    join_all(runs.map(part)).await
}

/// A pod of the data plane: its object, its sidecar's log and configuration.
async fn sidecar(client: &Client, namespace: &str, name: &str, lines: i64) -> Vec<Part> {
    let place = format!("pods/{namespace}/{name}");
    let pods: KubeApi<Pod> = KubeApi::namespaced(client.clone(), namespace);
    let found = ask(pods.get(name)).await;
    let mut parts = match &found {
        Ok(pod) => logs(client, namespace, pod, Some(CONTAINER), lines).await,
        Err(_) => Vec::new(),
    };
    let object = found.map_err(|trouble| trouble.to_string());
    let object = object.and_then(|pod| serde_json::to_value([pod]).map_err(|error| error.to_string()));
    parts.push(Part {
        path: format!("{place}/pod.json"),
        about: "a pod of the data plane",
        content: object.map(|value| trimmed(Content::Json(value))),
    });
    let admin = Api::at(Forward::new(client.clone(), namespace, name, ADMIN_PORT));
    for (file, path, about) in [
        ("config", "/config", "what its sidecar runs"),
        ("circuits", "/circuits", "its circuits"),
        ("identity", "/identity", "its certificate, and how renewals go"),
    ] {
        let body = admin.get(path).await.map_err(|error| chain(&error));
        let content = body.and_then(|body| parsed(&String::from_utf8_lossy(&body)));
        parts.push(Part { path: format!("{place}/{file}.json"), about, content });
    }
    parts
}
