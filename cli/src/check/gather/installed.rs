//! What is asked of the API server about an installation.

use http::{Request, header};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use weft_control_plane::install::crd;
use weft_wire::annotation::{INJECT, LEADER};
use weft_wire::pod::PROXY as SIDECAR;

use super::super::facts::{self, Crd, DryRun, Fact, Installed, Replica};
use super::super::judge::Plan;
use super::rights;
use crate::kubernetes::find::is_ready;
use crate::kubernetes::{CONTROL_PLANE, NAMESPACE, Trouble, ask};

/// The Secret with the authority's keys.
const CA_SECRET: &str = "weft-ca";

pub(super) async fn ask_all(client: &Client, plan: Plan, namespace: Option<&str>) -> Installed {
    let of_pods = async {
        let deployment = deployment(client).await;
        let pods = match &deployment {
            Ok(deployment) => replicas(client, deployment).await,
            Err(trouble) => Err(trouble.clone()),
        };
        (deployment.map(described), pods)
    };
    let unasked = || Err(Trouble::Refused("not asked before an installation".into()));
    let ((deployment, pods), crds, lease, secret, missing_rights, dry_run) = tokio::join!(
        of_pods,
        crds(client),
        lease(client),
        secret(client),
        async { if plan.before { unasked() } else { rights::of_control_plane(client).await } },
        async {
            if plan.before {
                Err(Trouble::Missing)
            } else {
                dry_run(client, namespace.unwrap_or("default")).await
            }
        },
    );
    Installed { crds, deployment, pods, lease, secret, missing_rights, dry_run }
}

async fn crds(client: &Client) -> Fact<Vec<Crd>> {
    let all: Api<CustomResourceDefinition> = Api::all(client.clone());
    let ours = crd::definitions();
    let mut found = Vec::new();
    for wanted in &ours {
        let name = wanted.metadata.name.as_deref().unwrap_or_default();
        match ask(all.get(name)).await {
            Ok(there) => found.push(compared(name, &there, wanted)),
            Err(Trouble::Missing) => {}
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(found)
}

fn compared(name: &str, there: &CustomResourceDefinition, wanted: &CustomResourceDefinition) -> Crd {
    let conditions =
        there.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let schema = |definition: &CustomResourceDefinition| {
        let versions = definition.spec.versions.iter();
        let version = versions.filter(|version| version.name == crd::VERSION);
        version.filter_map(|version| serde_json::to_value(&version.schema).ok()).next()
    };
    Crd {
        name: name.to_owned(),
        established: conditions.iter().any(|one| one.type_ == "Established" && one.status == "True"),
        served: there.spec.versions.iter().filter(|one| one.served).map(|one| one.name.clone()).collect(),
        ours: Some(schema(there) == schema(wanted)),
    }
}

async fn deployment(client: &Client) -> Fact<Deployment> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    ask(deployments.get(CONTROL_PLANE)).await
}

fn described(deployment: Deployment) -> facts::Deployment {
    let spec = deployment.spec.unwrap_or_default();
    let containers = spec.template.spec.map(|spec| spec.containers).unwrap_or_default();
    facts::Deployment {
        replicas: spec.replicas.unwrap_or(1),
        image: containers.into_iter().next().and_then(|container| container.image),
    }
}

async fn replicas(client: &Client, deployment: &Deployment) -> Fact<Vec<Replica>> {
    let labels = deployment.spec.as_ref().and_then(|spec| spec.selector.match_labels.as_ref());
    let selector: Vec<String> =
        labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let list = ask(pods.list(&ListParams::default().labels(&selector.join(",")))).await?;
    Ok(list.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(replica).collect())
}

fn replica(pod: &Pod) -> Replica {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let waiting = containers.iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let words = [waiting.reason.as_deref(), waiting.message.as_deref()];
        Some(words.into_iter().flatten().collect::<Vec<_>>().join(": "))
    });
    let conditions = status.conditions.unwrap_or_default();
    let unmet = conditions.iter().find(|one| one.status == "False" && one.message.is_some());
    let why = waiting.or_else(|| unmet.and_then(|one| one.message.clone())).or(status.phase);
    let restarted = containers
        .iter()
        .filter_map(|container| container.last_state.as_ref()?.terminated.as_ref()?.finished_at.as_ref())
        .map(|time| time.0)
        .max();
    Replica {
        name: pod.metadata.name.clone().unwrap_or_default(),
        ready: is_ready(pod),
        why,
        restarts: containers.iter().map(|container| container.restart_count).sum(),
        restarted,
        leads: pod
            .metadata
            .labels
            .as_ref()
            .is_some_and(|labels| labels.get(LEADER).is_some_and(|v| v == "true")),
    }
}

async fn lease(client: &Client) -> Fact<facts::Lease> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let spec = ask(leases.get(CONTROL_PLANE)).await?.spec.unwrap_or_default();
    Ok(facts::Lease {
        holder: spec.holder_identity,
        renewed: spec.renew_time.map(|time| time.0),
        seconds: spec.lease_duration_seconds.unwrap_or(15).into(),
    })
}

async fn secret(client: &Client) -> Fact<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    // Only that it is there: what is in it must not travel to whoever checks.
    ask(secrets.get_metadata(CA_SECRET)).await.map(drop)
}

/// A pod that asks for a sidecar, and that nobody could object to otherwise.
fn candidate() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "generateName": "weft-check-", "labels": { INJECT: "enabled" } },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "app", "image": "weft.invalid/never-pulled",
                "resources": { "requests": { "cpu": "1m", "memory": "1Mi" }, "limits": { "cpu": "1m", "memory": "1Mi" } },
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    })
}

/// What would come of it.
async fn dry_run(client: &Client, namespace: &str) -> Fact<DryRun> {
    let asking = async {
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(kube::client::Body::from(candidate().to_string().into_bytes()))
            .map_err(kube::Error::HttpError)?;
        let answer = client.send(request).await?;
        let warnings = answer.headers().get_all(header::WARNING).iter().filter_map(|one| one.to_str().ok());
        let warnings: Vec<String> = warnings.map(remark).collect();
        Ok((answer.status().as_u16(), warnings, answer.into_body().collect_bytes().await?))
    };
    let (status, warnings, body) = ask(asking).await?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = || answer["message"].as_str().unwrap_or("it gives no reason").to_owned();
    match status {
        401 | 403 => Err(Trouble::Forbidden(message())),
        code if code >= 400 => Err(Trouble::Refused(format!("the pod is refused: {}", message()))),
        _ => Ok(came_of(&answer, namespace, warnings)),
    }
}

fn came_of(pod: &Value, namespace: &str, warnings: Vec<String>) -> DryRun {
    let containers = ["containers", "initContainers"].into_iter().filter_map(|of| pod["spec"][of].as_array());
    match containers.flatten().any(|container| container["name"] == SIDECAR) {
        true => DryRun::Injected,
        false => DryRun::Plain { namespace: namespace.to_owned(), warnings },
    }
}

/// `299 - "what is remarked"` without what surrounds it.
fn remark(header: &str) -> String {
    let quoted = header.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"'));
    quoted.map_or(header, |(words, _)| words).replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_waits_says_for_what() {
        let pod = serde_json::from_value(json!({
            "metadata": { "name": "a", "labels": { LEADER: "true" } },
            "status": {
                "phase": "Pending",
                "conditions": [{ "type": "Ready", "status": "False" }],
                "containerStatuses": [{
                    "name": "control-plane", "ready": false, "restartCount": 4, "image": "", "imageID": "",
                    "state": { "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } },
                    "lastState": { "terminated": { "exitCode": 1, "finishedAt": "2026-11-28T17:00:00Z" } },
                }],
            },
        }));
        let known = replica(&pod.expect("a pod"));
        assert_eq!(known.why.as_deref(), Some("ImagePullBackOff: no such image"));
        assert!(!known.ready && known.leads && known.restarts == 4 && known.restarted.is_some(), "{known:?}");
    }

    #[test]
    fn a_dry_run_shows_whether_there_would_be_a_sidecar() {
        let with =
            json!({ "spec": { "containers": [{ "name": "app" }], "initContainers": [{ "name": SIDECAR }] } });
        assert_eq!(came_of(&with, "a", Vec::new()), DryRun::Injected);
        let plain = DryRun::Plain { namespace: "a".into(), warnings: vec!["why".into()] };
        assert_eq!(came_of(&candidate(), "a", vec!["why".into()]), plain);
        assert_eq!(remark(r#"299 - "it is \"so\"""#), r#"it is "so""#);
    }

    #[test]
    fn the_kinds_of_this_program_are_its_own() {
        for definition in crd::definitions() {
            let name = definition.metadata.name.clone().expect("a name");
            let crd = compared(&name, &definition, &definition);
            assert_eq!((crd.ours, crd.established), (Some(true), false));
            let mut other = definition.clone();
            other.spec.versions[0].schema = None;
            assert_eq!(compared(&name, &other, &definition).ours, Some(false));
        }
    }
}
