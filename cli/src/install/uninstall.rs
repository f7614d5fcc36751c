//! `weft uninstall`: everything that an installation and its control plane have made, in the order in which it can go.

use std::fmt::Write as _;

use anyhow::bail;
use weft_control_plane::install::change::{Named, holds_policies, removal};
use weft_control_plane::install::{NAMESPACE, PART_OF};

use super::cluster::{Cluster, Injected};
use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft uninstall | kubectl delete -f -                    all of it, also what the control plane has made
  weft uninstall --keep-policies | kubectl delete -f -    but AccessPolicies, CircuitBreakers and TrafficPolicies

Pods that have a sidecar need their control plane. Take the label weft.dev/inject from their namespaces and restart them first;
as long as there are any, this refuses, or says what it would leave behind (--force). Namespace weft-system stays if claims or Secrets
are in it that Weft has not made.")]
pub(crate) struct UninstallArgs {
    /// Leave the kinds AccessPolicy, CircuitBreaker and TrafficPolicy, and everything of them
    #[arg(long)]
    keep_policies: bool,
    /// Even though there are pods with a sidecar
    #[arg(long)]
    force: bool,
}

/// `weft uninstall`.
pub(crate) async fn uninstall(arguments: UninstallArgs) -> anyhow::Result<()> {
    let UninstallArgs { keep_policies, force } = arguments;
    let cluster = Cluster::find().await?;
    let injected = cluster.injected().await?;
    if !injected.is_empty() {
        let words = left_alone(&injected);
        if !force {
            bail!("{words}");
        }
        output::note(words);
    }
    let mut there = Vec::new();
    for named in removal() {
        if keep_policies && holds_policies(&named) {
            continue;
        }
        // Secrets and the like hold what is nobody's business here: only whether they are there is asked.
        let Some(metadata) = cluster.metadata(&named).await? else { continue };
        let (key, ours) = PART_OF;
        let is_ours = metadata.labels.is_some_and(|labels| labels.get(key).is_some_and(|of| of == ours));
        if named.kind == "Namespace" && !is_ours {
            output::note(format_args!("{named} was not made by Weft, and stays"));
            continue;
        }
        if named.kind == "Namespace"
            && let Some(why) = stays(cluster.holders().await)
        {
            output::note(why);
            continue;
        }
        there.push(named);
    }
    // Before the kinds and the namespace, as everything that the control plane has made.
    let last =
        there.iter().position(|one| matches!(one.kind.as_str(), "CustomResourceDefinition" | "Namespace"));
    there.splice(last.unwrap_or(there.len())..last.unwrap_or(there.len()), cluster.bundles().await?);
    if there.is_empty() {
        output::note("nothing of Weft is there");
    }
    output::text(&text(&there));
    Ok(())
}

/// Why the namespace stays, if it does: because of what is in it that Weft has not made, or because nobody knows.
fn stays(holders: anyhow::Result<Vec<Named>>) -> Option<String> {
    /// More names than people read.
    const NAMES_MAX: usize = 10;
    let after = format!("To take it away with everything in it: kubectl delete namespace {NAMESPACE}");
    let holders = match holders {
        Ok(holders) => holders,
        Err(error) => {
            return Some(format!(
                "Namespace {NAMESPACE} stays, because nobody knows whether somebody's claims or Secrets are in it: {error:#}. {after}"
            ));
        }
    };
    let ours = removal();
    let others: Vec<String> =
        holders.iter().filter(|one| !ours.contains(one)).map(ToString::to_string).collect();
    if others.is_empty() {
        return None;
    }
    let more = match others.len().saturating_sub(NAMES_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let names = others.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    Some(format!(
        "Namespace {NAMESPACE} stays, because it holds what Weft has not made: {names}{more}. {after}"
    ))
}

/// What becomes of pods with a sidecar, and what to do about it.
fn left_alone(injected: &Injected) -> String {
    let count: usize = injected.values().sum();
    let mut words = format!(
        "{count} pods have a sidecar and would be left without a control plane. Take them out first:"
    );
    let mut namespaces: Vec<&str> = injected.keys().map(|(namespace, _)| namespace.as_str()).collect();
    namespaces.dedup();
    for namespace in namespaces {
        // Never fails on a string.
        write!(
            words,
            "\n  kubectl label namespace {namespace} weft.dev/inject-\n  \
             kubectl -n {namespace} rollout restart deployment,statefulset,daemonset"
        )
        .ok();
    }
    words
}

/// Objects by name, for `kubectl delete -f -`.
fn text(named: &[Named]) -> String {
    let documents = named.iter().map(|one| {
        let namespace = one.namespace.as_ref().map(|namespace| format!("  namespace: {namespace}\n"));
        format!(
            "apiVersion: {}\nkind: {}\nmetadata:\n  name: {}\n{}",
            one.api_version,
            one.kind,
            one.name,
            namespace.unwrap_or_default()
        )
    });
    documents.collect::<Vec<_>>().join("---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_and_nothing_more() {
        let text = text(&removal());
        let documents: Vec<serde_json::Value> =
            text.split("---\n").map(|one| serde_yaml::from_str(one).expect("YAML")).collect();
        assert_eq!(documents.len(), removal().len());
        assert!(documents.iter().all(|one| one["kind"].is_string() && one["metadata"]["name"].is_string()));
        assert!(documents.iter().all(|one| one.get("spec").is_none() && one.get("data").is_none()));
    }

    #[test]
    fn a_namespace_with_what_others_made_stays_and_says_for_what() {
        let of = |kind: &str, name: &str| Named {
            api_version: "v1".to_owned(),
            kind: kind.to_owned(),
            namespace: Some(NAMESPACE.to_owned()),
            name: name.to_owned(),
        };
        let ours: Vec<Named> = removal().into_iter().filter(|one| one.kind == "Secret").collect();
        assert!(ours.len() >= 3);
        assert_eq!(stays(Ok(ours.clone())), None);
        for other in [of("PersistentVolumeClaim", "weft-history"), of("Secret", "weft-api-tokens")] {
            let why = stays(Ok(ours.iter().cloned().chain([other.clone()]).collect())).expect("it stays");
            assert!(why.contains(&other.to_string()) && !why.contains(&ours[0].to_string()), "{why}");
        }
        // A claim is nobody's of Weft, whatever it is called.
        assert!(stays(Ok(vec![of("PersistentVolumeClaim", "weft-ca")])).is_some());
        let many = stays(Ok((0..12).map(|index| of("Secret", &format!("s{index}"))).collect()));
        assert!(many.expect("it stays").contains("and 2 more"));
        let unknown = stays(Err(anyhow::anyhow!("secrets is forbidden"))).expect("it stays");
        assert!(unknown.contains("secrets is forbidden"), "{unknown}");
    }

    #[test]
    fn every_namespace_with_sidecars_is_named_once() {
        let of = |namespace: &str, version: &str| (namespace.to_owned(), version.to_owned());
        let injected = Injected::from([(of("a", "0.1.0"), 2), (of("a", "0.2.0"), 1), (of("b", "0.1.0"), 1)]);
        let words = left_alone(&injected);
        assert!(words.starts_with("4 pods"), "{words}");
        assert_eq!(words.matches("kubectl -n a rollout").count(), 1, "{words}");
        assert_eq!(words.matches("kubectl label namespace b ").count(), 1, "{words}");
    }
}
