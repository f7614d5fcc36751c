//! On the cluster that `KUBECONFIG` names.
//!
//! One test, because there is one cluster: installs what `k8s/` holds, tells the stories with the rights of the control plane's
//! own ServiceAccount, takes everything away again, and then begins anew as a platform team would, if there are [`nodes`].

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use serde_json::Value;
use weft_tests::poll;

use super::place::{OWN, PATIENCE, Place, documents_of};
use super::{nodes, stories};

/// Namespaces of the stories.
const NAMESPACES: [&str; 4] = ["shop", "weft-shop", "weft-tools", "weft-theirs"];

#[tokio::test(flavor = "multi_thread")]
async fn everything_on_a_real_cluster() -> anyhow::Result<()> {
    let Some(kubeconfig) = std::env::var_os("KUBECONFIG").map(PathBuf::from) else {
        println!("skipped: KUBECONFIG names no cluster that this may install to and take away from");
        return Ok(());
    };
    let files = tempfile::tempdir()?;
    let client = kube::Client::try_default().await.context("use KUBECONFIG")?;
    let version = client.apiserver_version().await.context("reach the cluster of KUBECONFIG")?;
    println!("Kubernetes {}.{}", version.major, version.minor);
    let mut place = Place { client, kubeconfig: files.path().join("kubeconfig") };
    let manifests = manifests()?;
    install(&place, &manifests).await?;
    let token = token(&place, OWN, "weft-control-plane", None).await?;
    place.kubeconfig = as_account(&kubeconfig, files.path(), &token)?;

    bad_objects_are_refused(&place).await.context("bad objects are refused")?;
    stories::the_lead_goes_on(&place).await.context("the lead goes on")?;
    stories::the_authority_is_shared(&place).await.context("the authority is shared")?;
    stories::objects_say_how_they_fare(&place, || {}).await.context("objects say how they fare")?;
    stories::pods_find_whom_to_trust(&place, || {}).await.context("pods find whom to trust")?;
    place.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").await?;
    place.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}}").await?;
    let web = self::token(&place, "shop", "web", Some("weft")).await?;
    let other = self::token(&place, "shop", "web", Some("vault")).await?;
    let api = self::token(&place, "shop", "web", Some("weft-api")).await?;
    stories::tokens_say_who_is_there(&place, &web, &other, &api).await.context("tokens say who is there")?;

    place
        .delete(
            &documents_of(&manifests)?.iter().rev().map(Value::to_string).collect::<Vec<_>>().join("\n---\n"),
        )
        .await?;
    the_bundles_are_gone(&place).await.context("trust bundles")?;
    nothing_is_left(&place).await.context("nothing is left")?;

    nodes::a_platform_team(&place, &kubeconfig).await?;
    nothing_is_left(&place).await.context("nothing is left of what ran")
}

fn manifests() -> anyhow::Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s/weft.yaml");
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// Installs it; nothing runs of it, because the control planes of the stories are its pods.
async fn install(place: &Place, manifests: &str) -> anyhow::Result<()> {
    for mut object in documents_of(manifests)? {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        match &*kind {
            "Deployment" => object["spec"]["replicas"] = 0.into(),
            // Nobody answers it here, and it must not hold up the pods of others.
            "MutatingWebhookConfiguration" => continue,
            _ => {}
        }
        let applied =
            poll::until("the kinds are known", PATIENCE, async || place.apply(&object.to_string()).await);
        applied.await.with_context(|| format!("install {kind}"))?;
    }
    Ok(())
}

/// A token of a service account, made for an audience or for the API server.
async fn token(place: &Place, namespace: &str, name: &str, audience: Option<&str>) -> anyhow::Result<String> {
    let api = Api::<ServiceAccount>::namespaced(place.client.clone(), namespace);
    let audiences = audience.map(|audience| vec![audience.to_owned()]);
    let spec = TokenRequestSpec { audiences, expiration_seconds: Some(3_600), ..Default::default() };
    let request = TokenRequest { spec: Some(spec), ..Default::default() };
    let made = api.create_token_request(name, &PostParams::default(), &request).await?;
    made.status.and_then(|status| status.token).context("it was made")
}

/// The same cluster, with nothing but a token.
fn as_account(kubeconfig: &Path, directory: &Path, token: &str) -> anyhow::Result<PathBuf> {
    let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(kubeconfig)?)?;
    config["users"] = serde_json::json!([{ "name": "account", "user": { "token": token } }]);
    for context in config["contexts"].as_array_mut().into_iter().flatten() {
        context["context"]["user"] = "account".into();
    }
    let path = directory.join("kubeconfig");
    std::fs::write(&path, config.to_string())?;
    Ok(path)
}

/// What the definitions of our kinds say no to, and the field that the answer must name.
async fn bad_objects_are_refused(place: &Place) -> anyhow::Result<()> {
    place.apply(stories::SHOP).await?;
    let bad = [
        (
            "TrafficPolicy",
            "{targetRefs: [{group: '', kind: Service, name: orders}], timeouts: {request: soon}}",
            "timeouts",
        ),
        (
            "TrafficPolicy",
            "{targetRefs: [{group: '', kind: Service, name: orders}], retries: {attempts: -1}}",
            "retries",
        ),
        ("TrafficPolicy", "{timeouts: {request: 1s}}", "targetRefs"),
        ("CircuitBreaker", "{targetRefs: []}", "targetRefs"),
        ("AccessPolicy", "{action: Perhaps}", "action"),
    ];
    for (kind, spec, field) in bad {
        let object = format!(
            "{{apiVersion: weft.dev/v1alpha1, kind: {kind}, metadata: {{name: bad, namespace: weft-shop}}, spec: {spec}}}"
        );
        let refused = place.apply(&object).await;
        let error = format!("{:#}", refused.err().with_context(|| format!("{object} was taken"))?);
        ensure!(error.contains(field), "{kind} {spec}: {error}");
    }
    Ok(())
}

/// What is not installed goes with the Namespace that owns it; what somebody else made stays.
async fn the_bundles_are_gone(place: &Place) -> anyhow::Result<()> {
    poll::until("the trust bundles go", PATIENCE, async || {
        for namespace in ["weft-shop", "weft-tools"] {
            let found = place.get("v1", "ConfigMap", (namespace, "weft-trust-bundle")).await?;
            ensure!(found.is_none(), "{namespace} has one");
        }
        anyhow::Ok(())
    })
    .await?;
    let theirs = place.get("v1", "ConfigMap", ("weft-theirs", "weft-trust-bundle")).await?;
    ensure!(theirs.is_some(), "what somebody else made went too");
    for namespace in NAMESPACES {
        place
            .delete(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"))
            .await?;
    }
    for namespace in NAMESPACES {
        place.gone("Namespace", namespace).await?;
    }
    Ok(())
}

/// Looks whether anything is there that bears our name.
async fn nothing_is_left(place: &Place) -> anyhow::Result<()> {
    place.gone("Namespace", OWN).await?;
    for (version, kind) in [
        ("rbac.authorization.k8s.io/v1", "ClusterRole"),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ] {
        poll::until(&format!("every {kind} goes"), PATIENCE, async || {
            let found = place.list(version, kind, "").await?;
            let left: Vec<&str> =
                found.iter().filter_map(|object| object["metadata"]["name"].as_str()).collect();
            let left: Vec<&&str> = left.iter().filter(|name| name.contains("weft")).collect();
            ensure!(left.is_empty(), "{left:?}");
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(())
}
