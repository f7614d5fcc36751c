//! What is known of sidecars, and what it means.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use weft_wire::node::USER_AGENT;

use super::super::catalog::Check;
use super::super::facts::{Cluster, Facts, Mesh, Pod, Sidecars};
use super::{Outcome, known};
use crate::proxies::{Sidecar, Sync, elapsed};
use crate::table;

/// A certificate should have been renewed when less than one of so many parts of its life is left.
const RENEWED_BY: i64 = 5;
/// Reports come every second; who is silent for longer lost its way.
const SILENT: u64 = 60;
/// Fewer requests say nothing about an app.
const TELLING: u64 = 100;
/// An app that carries on less than this share of traces breaks them.
const CARRIED: u64 = 80;

pub(super) fn judge(check: Check, mesh: &Mesh, facts: &Facts) -> Outcome {
    let Some(sidecars) = &mesh.sidecars else { return Outcome::skip("not asked") };
    let sidecars = match known(sidecars) {
        Ok(sidecars) => sidecars,
        Err(outcome) => return outcome,
    };
    let of = facts.namespace.as_deref();
    let chosen: Vec<&Sidecar> =
        sidecars.all.iter().filter(|sidecar| of.is_none() || sidecar.namespace.as_deref() == of).collect();
    let now = sidecars.at;
    match check {
        Check::Connected => connected(sidecars, &chosen),
        Check::ProxyVersion => version(&chosen, mesh.version.as_deref().unwrap_or_default()),
        Check::Nacked => nacked(&chosen, now),
        Check::Stale => stale(&chosen, now),
        Check::Certificates => certificates(&chosen, now),
        Check::TrustBundle => trust_bundle(&chosen),
        Check::Clocks => clocks(&chosen),
        Check::Reports => reports(&chosen, now),
        Check::Stalls => stalls(&chosen),
        Check::Propagation => propagation(&chosen),
        other => unreachable!("{other} is judged elsewhere"),
    }
}

fn names<'a>(sidecars: impl Iterator<Item = &'a Sidecar>) -> Vec<String> {
    let mut names: Vec<String> = sidecars.map(Sidecar::name).collect();
    names.sort_unstable();
    names
}

fn connected(known: &Sidecars, sidecars: &[&Sidecar]) -> Outcome {
    if !known.silent.is_empty() {
        return Outcome::warn("these replicas of the control plane could not be asked about their sidecars")
            .about(known.silent.clone());
    }
    match sidecars.len() {
        0 => Outcome::warn("none is: label a namespace with weft.dev/inject=enabled and restart its pods"),
        count => Outcome::passed(count.to_string()),
    }
}

fn version(sidecars: &[&Sidecar], wanted: &str) -> Outcome {
    let ours = || sidecars.iter().filter(|sidecar| sidecar.agent == USER_AGENT);
    let skewed: Vec<String> = ours()
        .filter_map(|sidecar| {
            let version = sidecar.agent_version.as_deref().filter(|version| *version != wanted)?;
            Some(format!("{}: {version}", sidecar.name()))
        })
        .collect();
    if !skewed.is_empty() {
        return Outcome::warn(format!("the control plane is {wanted}: restart these pods when it suits"))
            .about(skewed);
    }
    match ours().filter(|sidecar| sidecar.agent_version.is_none()).count() {
        0 => Outcome::passed(wanted),
        count => Outcome::note(format!("{count} of {} do not say which version they are", sidecars.len())),
    }
}

fn nacked(sidecars: &[&Sidecar], now: Timestamp) -> Outcome {
    let refusing = sidecars.iter().filter(|sidecar| sidecar.sync(now) == Sync::Nacked);
    let words = |sidecar: &&Sidecar| {
        format!("{}: {}", sidecar.name(), sidecar.rejected.as_deref().unwrap_or_default())
    };
    Outcome::unless_empty(refusing.map(words).collect(), || Outcome::fail("these run what they had before"))
}

fn stale(sidecars: &[&Sidecar], now: Timestamp) -> Outcome {
    let late = sidecars.iter().filter(|sidecar| sidecar.sync(now) == Sync::Stale);
    let items = late.filter_map(|sidecar| {
        Some(format!("{}: for {}", sidecar.name(), table::age(elapsed(sidecar.waiting_since?, now))))
    });
    Outcome::unless_empty(items.collect(), || Outcome::fail("these have not answered to what they were sent"))
}

fn certificates(sidecars: &[&Sidecar], now: Timestamp) -> Outcome {
    let (mut ended, mut late) = (Vec::new(), Vec::new());
    for sidecar in sidecars {
        let Some(certificate) = &sidecar.certificate else { continue };
        let (from, until) = (certificate.not_before.as_second(), certificate.not_after.as_second());
        let left = until.saturating_sub(now.as_second());
        let name = sidecar.name();
        if left <= 0 {
            ended.push(format!("{name}: ended {} ago", table::age(left.unsigned_abs())));
        } else if left.saturating_mul(RENEWED_BY) < until.saturating_sub(from) {
            late.push(format!("{name}: ends in {}", table::age(left.unsigned_abs())));
        }
    }
    if !ended.is_empty() {
        ended.extend(late);
        return Outcome::fail("nobody believes these who they are").about(ended);
    }
    if !late.is_empty() {
        return Outcome::warn("these should have been renewed by now").about(late);
    }
    let without = names(sidecars.iter().copied().filter(|sidecar| sidecar.identity.is_none()));
    let all = without.len() == sidecars.len();
    Outcome::unless_empty(without, || match all {
        true => Outcome::note("no sidecar has an identity: all calls are plain text"),
        false => Outcome::warn("these have no identity: their calls are plain text"),
    })
}

fn trust_bundle(sidecars: &[&Sidecar]) -> Outcome {
    let behind = sidecars.iter().copied().filter(|s| s.trusts_bundle == Some(false) && s.identity.is_some());
    Outcome::unless_empty(names(behind), || Outcome::warn("these have not taken the current roots over yet"))
}

fn clocks(sidecars: &[&Sidecar]) -> Outcome {
    let wrong = sidecars
        .iter()
        .filter_map(|sidecar| Some(format!("{}: {}", sidecar.name(), sidecar.clock.as_ref()?)))
        .collect();
    Outcome::unless_empty(wrong, || {
        Outcome::warn(
            "certificates seem to begin or end at other times, and the graph shows their past at the wrong time",
        )
    })
}

fn reports(sidecars: &[&Sidecar], now: Timestamp) -> Outcome {
    let fresh = |then: Option<Timestamp>| then.is_some_and(|then| elapsed(then, now) <= SILENT);
    let last = |sidecar: &Sidecar| sidecar.reports.as_ref().map(|reports| reports.last_report_at);
    let silent = sidecars
        .iter()
        // A foreign client reports where it likes; who has just come has not reported yet.
        .filter(|sidecar| sidecar.agent == USER_AGENT && !fresh(sidecar.connected_since))
        .filter(|sidecar| !fresh(last(sidecar)))
        .map(|sidecar| match last(sidecar) {
            Some(at) => format!("{}: silent for {}", sidecar.name(), table::age(elapsed(at, now))),
            None => format!("{}: never", sidecar.name()),
        })
        .collect();
    Outcome::unless_empty(silent, || Outcome::warn("what these carry is not in the graph"))
}

fn stalls(sidecars: &[&Sidecar]) -> Outcome {
    let mut counted = false;
    let mut stalled = Vec::new();
    for sidecar in sidecars {
        let Some(reports) = &sidecar.reports else { continue };
        let (Some(all), Some(timeouts)) = (reports.detected, reports.detect_timeouts) else { continue };
        counted = true;
        if timeouts > 0 {
            stalled.push(format!("{}: {timeouts} of {all} connections", sidecar.name()));
        }
    }
    if !counted {
        return Outcome::skip(
            "the control plane does not count how detection ends; see weft_detect_duration_seconds of the sidecars",
        );
    }
    Outcome::unless_empty(stalled, || {
        Outcome::warn(
            "these waited until the deadline; declare what the port speaks (its appProtocol or name) to spare them that",
        )
    })
}

fn propagation(sidecars: &[&Sidecar]) -> Outcome {
    let mut workloads: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for sidecar in sidecars {
        let Some(reports) = &sidecar.reports else { continue };
        let (Some(all), Some(traced)) = (reports.outbound, reports.outbound_traced) else { continue };
        let sum = workloads.entry(sidecar.workload()).or_default();
        *sum = (sum.0.saturating_add(all), sum.1.saturating_add(traced));
    }
    if workloads.is_empty() {
        return Outcome::skip("sidecars do not report which of their app's requests carried a trace on");
    }
    let share = |(all, traced): (u64, u64)| traced.saturating_mul(100).checked_div(all).unwrap_or(100);
    let breaking: Vec<String> = workloads
        .iter()
        .filter(|(_, sum)| sum.0 >= TELLING && share(**sum) < CARRIED)
        .map(|(workload, sum)| format!("{workload}: {} % of {} requests", share(*sum), sum.0))
        .collect();
    let total = workloads
        .values()
        .fold((0_u64, 0_u64), |sum, one| (sum.0.saturating_add(one.0), sum.1.saturating_add(one.1)));
    match breaking.is_empty() {
        true if total.0 < TELLING => Outcome::skip("too few requests to say"),
        true => Outcome::passed(format!("{} % of outbound requests", share(total))),
        false => {
            Outcome::note("these call others without passing trace headers on, so that their traces break")
                .about(breaking)
        }
    }
}

/// Pods that should have a sidecar.
pub(super) fn uninjected(cluster: &Cluster, facts: &Facts) -> Result<Outcome, Outcome> {
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
        return Ok(Outcome::passed(format!("{with} of {running} pods have one")));
    }
    let why = "these were made before they should have one, or while the injector was away: restart them";
    Ok(Outcome::warn(why).about(without))
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
    let lost: Vec<String> = pods
        .iter()
        .filter(|pod| pod.runs && pod.sidecar.is_some())
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
