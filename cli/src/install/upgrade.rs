//! `weft upgrade`: the objects of this version with the wishes of the installation that is there, and what that changes.

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use weft_control_plane::install::change::{
    Named, Version, differences, holds_policies, remembered, removal, serves_old_sidecars, step,
};
use weft_control_plane::install::values::Values;
use weft_control_plane::install::{INSTALLED_WITH, NAME, NAMESPACE, Object, objects, text};

use super::Wishes;
use super::cluster::{Cluster, Injected};
use crate::output;

/// Fields of one object that are shown.
const FIELDS_MAX: usize = 8;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft upgrade > /dev/null                        only say what would change
  weft upgrade | kubectl apply -f -               to this program's version, as it was installed
  weft upgrade --ha | kubectl apply -f -          with one more wish

Standard error says what differs from what is installed, and which pods to restart afterwards: their sidecars stay of the old
version until then, which the new control plane serves.")]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    wishes: Wishes,
    /// Even if that step is not one that is known to work
    #[arg(long)]
    force: bool,
}

/// `weft upgrade`.
pub(crate) async fn upgrade(arguments: UpgradeArgs) -> anyhow::Result<()> {
    let UpgradeArgs { wishes, force } = arguments;
    let cluster = Cluster::find().await?;
    let deployment = Named {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        namespace: Some(NAMESPACE.to_owned()),
        name: NAME.to_owned(),
    };
    let installed = cluster.get(&deployment).await?;
    let installed = installed.context("nothing is installed; weft install | kubectl apply -f - does that")?;
    let (version, mut layers) = before(&installed)?;
    let ours = env!("CARGO_PKG_VERSION");
    if let Err(reason) = carried(&version, ours) {
        if !force {
            bail!("{reason} (--force does it anyway)");
        }
        output::note(reason);
    }
    layers.extend(wishes.layers()?);
    let objects = objects(&Values::layered(layers)?);

    output::note(format_args!("{version} is installed; this is {ours}"));
    let mut changes = 0;
    for object in &objects {
        changes += usize::from(told(object, cluster.get(&Named::from(object)).await?.as_ref())?);
    }
    let wanted: Vec<Named> = objects.iter().map(Named::from).collect();
    for named in removal() {
        let optional =
            !matches!(named.kind.as_str(), "Secret" | "Lease" | "Namespace") && !holds_policies(&named);
        if optional && !wanted.contains(&named) && cluster.get(&named).await?.is_some() {
            changes += 1;
            output::note(goes(&named));
        }
    }
    if changes == 0 {
        output::note("nothing differs");
    }
    for line in restarts(&cluster.injected().await?, ours) {
        output::note(line);
    }
    output::text(&text(&objects));
    Ok(())
}

/// What is said of an object that is no longer wished.
fn goes(named: &Named) -> String {
    let when = match serves_old_sidecars(named) {
        true => ", but not before every pod with a sidecar has been restarted: theirs still come in there",
        false => "",
    };
    format!("- {named}: no longer wished; kubectl delete it{when}")
}

/// Version and wishes of what is installed.
fn before(deployment: &Value) -> anyhow::Result<(String, Vec<Value>)> {
    let annotations = &deployment["metadata"]["annotations"];
    if let Some(release) = annotations["meta.helm.sh/release-name"].as_str() {
        bail!("Helm has installed it as {release}: use helm upgrade {release}");
    }
    let version = deployment["metadata"]["labels"]["app.kubernetes.io/version"].as_str();
    let version = version.context("the Deployment has no label app.kubernetes.io/version")?.to_owned();
    let wishes = annotations[INSTALLED_WITH].as_str().with_context(|| {
        format!(
            "the Deployment has no annotation {INSTALLED_WITH}; weft install with the same wishes as before"
        )
    })?;
    let wishes = serde_json::from_str(wishes).with_context(|| format!("cannot read {INSTALLED_WITH}"))?;
    let layer = remembered(wishes, &version);
    Ok((version, vec![layer]))
}

fn carried(from: &str, to: &str) -> Result<(), String> {
    let to: Version = to.parse()?;
    step(from.parse()?, to)
}

/// Says what would become of an object; whether anything.
fn told(object: &Object, live: Option<&Value>) -> anyhow::Result<bool> {
    let named = Named::from(object);
    let Some(live) = live else {
        output::note(format_args!("+ {named}"));
        return Ok(true);
    };
    let mut ours = serde_json::to_value(&object.value)?;
    // Wishes are compared by what they do.
    if let Some(annotations) = ours.pointer_mut("/metadata/annotations") {
        *annotations = json!({});
    }
    let differences = differences(&ours, live);
    if !differences.is_empty() {
        output::note(format_args!("~ {named}"));
    }
    for line in differences.iter().take(FIELDS_MAX) {
        output::note(format_args!("    {line}"));
    }
    if let Some(more) = differences.len().checked_sub(FIELDS_MAX).filter(|more| *more > 0) {
        output::note(format_args!("    and {more} more"));
    }
    Ok(!differences.is_empty())
}

/// Which pods have a sidecar of another version.
fn restarts(injected: &Injected, ours: &str) -> Vec<String> {
    let old = injected.iter().filter(|((_, version), _)| version != ours);
    old.map(|((namespace, version), count)| {
        format!(
            "{count} pods in {namespace} have a sidecar of {version}; afterwards: \
             kubectl -n {namespace} rollout restart deployment,statefulset,daemonset"
        )
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(annotations: Value) -> Value {
        json!({ "metadata": { "labels": { "app.kubernetes.io/version": "0.1.0" }, "annotations": annotations } })
    }

    #[test]
    fn an_installation_is_followed_as_it_was_wished() {
        let wishes = r#"{"ha":true,"image":{"tag":"0.1.0"}}"#;
        let (version, layers) = before(&deployment(json!({ INSTALLED_WITH: wishes }))).expect("ours");
        assert_eq!((version.as_str(), &layers[0]), ("0.1.0", &json!({ "ha": true, "image": {} })));
    }

    #[test]
    fn what_is_not_ours_to_upgrade_is_told() {
        for (annotations, word) in [
            (json!({ "meta.helm.sh/release-name": "mesh" }), "helm upgrade mesh"),
            (json!({}), INSTALLED_WITH),
            (json!({ INSTALLED_WITH: "{" }), "cannot read"),
        ] {
            let error = format!("{:#}", before(&deployment(annotations)).expect_err(word));
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn what_old_sidecars_need_goes_after_them() {
        let all = removal();
        let service = |name: &str| {
            let found = all.iter().find(|one| one.kind == "Service" && one.name == name);
            goes(found.expect("an installation has or had it"))
        };
        assert!(service("weft-control-plane-leader").contains("restarted"));
        assert!(!service("weft-injector").contains("restarted"));
    }

    #[test]
    fn pods_of_another_version_are_to_be_restarted() {
        let of = |namespace: &str, version: &str| (namespace.to_owned(), version.to_owned());
        let injected = Injected::from([(of("a", "0.1.0"), 2), (of("a", "0.2.0"), 1)]);
        let lines = restarts(&injected, "0.2.0");
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("2 pods in a have a sidecar of 0.1.0"), "{lines:?}");
    }
}
