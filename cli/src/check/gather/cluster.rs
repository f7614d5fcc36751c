//! What is asked of the API server about the cluster as a whole.

use http::{Request, header};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Deserialize;
use weft_control_plane::cluster::version::number;
use weft_wire::annotation::INJECT;

use super::super::facts::{self, Fact, ServerVersion, Webhook};
use super::super::judge::Plan;
use super::{installed, pods, rights};
use crate::kubernetes::{Cluster, Trouble, ask};

/// What a namespace says when it wants sidecars of other meshes: key and value, `*` for any.
const OTHERS_WANTED: [(&str, &str, &str); 6] = [
    ("istio-injection", "enabled", "Istio"),
    ("istio.io/rev", "*", "Istio"),
    ("istio.io/dataplane-mode", "ambient", "Istio"),
    ("linkerd.io/inject", "enabled", "Linkerd"),
    ("kuma.io/sidecar-injection", "enabled", "Kuma"),
    ("consul.hashicorp.com/connect-inject", "true", "Consul"),
];
/// Versions of the Gateway API that we look for, the newest first.
const GATEWAY: [&str; 2] = ["v1", "v1beta1"];

pub(super) async fn ask_all(cluster: &Cluster, plan: Plan, namespace: Option<&str>) -> facts::Cluster {
    let client = &cluster.client;
    let (version, webhooks, spaces, gateway, missing_rights, installed) = tokio::join!(
        version(client),
        webhooks(client),
        namespaces(client),
        gateway(client),
        async { if plan.before { Some(rights::of_installer(client).await) } else { None } },
        installed::ask_all(client, plan, namespace),
    );
    let pods = match (plan.proxy, &spaces) {
        (false, _) => None,
        (true, spaces) => Some(pods::ask_all(client, namespace, spaces).await),
    };
    let namespaces = spaces.map(|spaces| spaces.iter().map(described).collect());
    facts::Cluster {
        server: cluster.server.clone(),
        version,
        missing_rights,
        gateway,
        webhooks,
        namespaces,
        installed: Some(installed),
        pods,
    }
}

/// The part of `/version` that is read.
#[derive(Deserialize)]
struct Info {
    major: String,
    minor: String,
    #[serde(rename = "gitVersion")]
    git: String,
}

async fn version(client: &Client) -> Fact<ServerVersion> {
    let asking = async {
        let request =
            Request::get("/version").body(kube::client::Body::empty()).map_err(kube::Error::HttpError)?;
        let answer = client.send(request).await?;
        let status = answer.status();
        // Its clock, not ours, wrote the times that ours would be compared with.
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
        Ok((status, date, answer.into_body().collect_bytes().await?))
    };
    let (status, date, body) = ask(asking).await?;
    match status.as_u16() {
        401 | 403 => return Err(Trouble::Forbidden(format!("it answers {status}"))),
        code if code >= 400 => return Err(Trouble::Refused(format!("it answers {status}"))),
        _ => {}
    }
    let info: Info = serde_json::from_slice(&body)
        .map_err(|_| Trouble::Refused("what answers there is not an API server".into()))?;
    let part = |text: &str| number(text).unwrap_or_default();
    let now = date.and_then(|date| parse(&date));
    Ok(ServerVersion { major: part(&info.major), minor: part(&info.minor), text: info.git, now })
}

async fn webhooks(client: &Client) -> Fact<Vec<Webhook>> {
    let all: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let list = ask(all.list(&ListParams::default())).await?;
    Ok(list.items.into_iter().map(webhook).collect())
}

fn webhook(configuration: MutatingWebhookConfiguration) -> Webhook {
    let hooks = configuration.webhooks.unwrap_or_default();
    let served_by = hooks
        .iter()
        .filter_map(|hook| {
            let config = &hook.client_config;
            let service = config.service.as_ref();
            let service =
                service.map(|of| format!("{}/{}:{}", of.namespace, of.name, of.port.unwrap_or(443)));
            service.or_else(|| config.url.clone())
        })
        .collect();
    let bundles = hooks.into_iter().map(|hook| hook.client_config.ca_bundle.unwrap_or_default().0).collect();
    Webhook { name: configuration.metadata.name.unwrap_or_default(), bundles, served_by }
}

async fn namespaces(client: &Client) -> Fact<Vec<Namespace>> {
    let all: Api<Namespace> = Api::all(client.clone());
    Ok(ask(all.list(&ListParams::default())).await?.items)
}

fn described(namespace: &Namespace) -> facts::Namespace {
    let others = OTHERS_WANTED.iter().filter(|(key, wanted, _)| {
        said(namespace, key).is_some_and(|value| *wanted == "*" || value == *wanted)
    });
    let mut others: Vec<&'static str> = others.map(|(_, _, mesh)| *mesh).collect();
    others.dedup();
    facts::Namespace {
        name: namespace.metadata.name.clone().unwrap_or_default(),
        inject: said(namespace, INJECT).map(str::to_owned),
        others,
    }
}

/// A label or annotation.
fn said<'a>(namespace: &'a Namespace, key: &str) -> Option<&'a str> {
    let metadata = &namespace.metadata;
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let annotation = metadata.annotations.as_ref().and_then(|annotations| annotations.get(key));
    label.or(annotation).map(String::as_str)
}

async fn gateway(client: &Client) -> Fact<Vec<String>> {
    let mut found = Err(Trouble::Missing);
    for version in GATEWAY {
        let group = format!("gateway.networking.k8s.io/{version}");
        match ask(client.list_api_group_resources(&group)).await {
            Ok(list) => {
                let kinds = list.resources.into_iter().filter(|kind| !kind.name.contains('/'));
                let kinds: Vec<String> = kinds
                    .filter(|kind| matches!(kind.kind.as_str(), "HTTPRoute" | "GRPCRoute"))
                    .map(|kind| format!("{} {version}", kind.kind))
                    .collect();
                return Ok(kinds);
            }
            Err(trouble) => found = Err(trouble),
        }
    }
    found
}

/// The time of an answer: `Sat, 28 Nov 2026 18:00:00 GMT`.
fn parse(date: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(date.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_date_of_an_answer_is_read() {
        assert_eq!(parse("Sat, 28 Nov 2026 18:00:00 GMT"), "2026-11-28T18:00:00Z".parse().ok());
    }

    #[test]
    fn a_namespace_says_whose_sidecars_it_wants() {
        let namespace: Namespace = serde_json::from_value(json!({ "metadata": {
            "name": "shop",
            "labels": { "weft.dev/inject": "enabled", "istio.io/rev": "canary", "istio-injection": "disabled" },
            "annotations": { "linkerd.io/inject": "enabled" },
        }}))
        .expect("a namespace");
        let known = described(&namespace);
        assert_eq!((known.inject.as_deref(), &*known.others), (Some("enabled"), &["Istio", "Linkerd"][..]));
    }

    #[test]
    fn a_webhook_says_where_it_is_served_and_whom_to_trust() {
        let configuration = serde_json::from_value(json!({
            "metadata": { "name": "weft-injector" },
            "webhooks": [{
                "name": "inject.weft.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": { "caBundle": "YWJj", "service": { "name": "weft-injector", "namespace": "weft-system" } },
            }],
        }));
        let known = webhook(configuration.expect("a configuration"));
        assert_eq!(known.served_by, ["weft-system/weft-injector:443"]);
        assert_eq!(known.bundles, [b"abc"]);
    }
}
