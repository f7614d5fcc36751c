//! Pods that have sidecars, that should have, and whose sidecars are lost: what cluster and control plane say of them.

use std::collections::HashSet;

use super::super::facts::{Facts, Pod};
use super::{Outcome, known};
use crate::kubernetes::Trouble;

/// Why a pod has no sidecar although it should.
const MISSED: &str =
    "these were made before they should have one, or while the injector was away: restart them";

/// Pods that should have a sidecar: as the API server shows them, else as the control plane counts them.
pub(super) fn uninjected(facts: &Facts) -> Result<Outcome, Outcome> {
    let Some(cluster) = &facts.cluster else { return counted(facts) };
    let Some(pods) = &cluster.pods else { return Ok(Outcome::skip("not asked")) };
    let pods = chosen(known(pods)?, facts);
    let without: Vec<String> = pods
        .iter()
        .filter(|pod| pod.runs && pod.wanted && pod.sidecar.is_none())
        .map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .collect();
    if without.is_empty() {
        let with = pods.iter().filter(|pod| pod.runs && pod.sidecar.is_some()).count();
        let running = pods.iter().filter(|pod| pod.runs).count();
        if with == 0 {
            return Ok(Outcome::skip(format!(
                "none of {running} running pods should have one: nothing to check"
            )));
        }
        return Ok(Outcome::passed(format!("{with} of {running} pods have one")));
    }
    Ok(Outcome::warn(MISSED).about(without))
}

/// The same by the control plane's own census.
fn counted(facts: &Facts) -> Result<Outcome, Outcome> {
    let census = facts.mesh.as_ref().and_then(|mesh| mesh.injection.as_ref());
    let census = match census {
        Some(Err(Trouble::Missing)) => {
            return Ok(Outcome::skip("this control plane is older, and does not say which pods it missed"));
        }
        Some(census) => known(census)?,
        None => return Ok(Outcome::skip("not asked")),
    };
    if !census.taken {
        return Ok(Outcome::skip(
            "this control plane reads files: nobody injects there, and no pod is missed",
        ));
    }
    let of = facts.namespace.as_deref();
    let here = census
        .missed
        .iter()
        .filter(|pod| of.is_none_or(|of| pod.split_once('/').is_some_and(|(n, _)| n == of)));
    let mut without: Vec<String> = here.cloned().collect();
    if census.unlisted > 0 {
        without.push(format!("{} more, which the control plane does not list", census.unlisted));
    }
    Ok(match (without.is_empty(), census.injected) {
        (false, _) => Outcome::warn(MISSED).about(without),
        (true, 0) => Outcome::skip("no pod has or should have a sidecar: nothing to check"),
        (true, with) => Outcome::passed(format!("{with} pods have one, says the control plane")),
    })
}

/// Checks that compare what the cluster and the control plane say.
pub(super) fn both(facts: &Facts) -> Outcome {
    lost(facts).unwrap_or_else(|outcome| outcome)
}

fn lost(facts: &Facts) -> Result<Outcome, Outcome> {
    let (Some(cluster), Some(mesh)) = (&facts.cluster, &facts.mesh) else {
        return Ok(Outcome::skip("no cluster is looked at"));
    };
    let (Some(pods), Some(sidecars)) = (&cluster.pods, &mesh.sidecars) else {
        return Ok(Outcome::skip("not asked"));
    };
    let (pods, sidecars) = (chosen(known(pods)?, facts), known(sidecars)?);
    if !sidecars.silent.is_empty() {
        return Ok(Outcome::skip("not every replica of the control plane could be asked"));
    }
    let connected: HashSet<(&str, &str)> = sidecars
        .all
        .iter()
        .filter_map(|sidecar| Some((sidecar.namespace.as_deref()?, sidecar.pod.as_deref()?)))
        .collect();
    let injected = || pods.iter().filter(|pod| pod.runs && pod.sidecar.is_some());
    if injected().next().is_none() {
        return Ok(Outcome::skip("no running pod has a sidecar: nothing to check"));
    }
    let lost: Vec<String> = injected()
        .filter(|pod| !connected.contains(&(pod.namespace.as_str(), pod.name.as_str())))
        .map(|pod| {
            let state = if pod.sidecar_ready { "runs what it had" } else { "its sidecar is not ready" };
            format!("{}/{}: {state}", pod.namespace, pod.name)
        })
        .collect();
    Ok(Outcome::unless_empty(lost, || Outcome::fail("these get no configuration and no new certificates")))
}

fn chosen<'a>(pods: &'a [Pod], facts: &Facts) -> Vec<&'a Pod> {
    let of = facts.namespace.as_deref();
    pods.iter().filter(|pod| of.is_none_or(|namespace| pod.namespace == namespace)).collect()
}
