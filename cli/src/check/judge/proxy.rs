//! What is known of sidecars, and what it means.

use std::collections::BTreeMap;

use jiff::Timestamp;
use weft_wire::node::USER_AGENT;

use super::super::catalog::Check;
use super::super::facts::{Facts, Mesh, Sidecars};
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
/// Why the sidecars are not judged where there are none.
const NOTHING: &str = "no sidecar is connected: nothing to check";
/// The same of checks that only Weft's own sidecars can pass or fail.
const NONE_OF_OURS: &str = "no connected sidecar is weft-proxy: nothing to check";

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
    // No tick for nothing.
    if chosen.is_empty() && check != Check::Connected {
        return Outcome::skip(NOTHING);
    }
    match check {
        Check::Connected => connected(sidecars, &chosen, of),
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

fn connected(known: &Sidecars, sidecars: &[&Sidecar], namespace: Option<&str>) -> Outcome {
    if !known.silent.is_empty() {
        return Outcome::warn("these replicas of the control plane could not be asked about their sidecars")
            .about(known.silent.clone());
    }
    match sidecars.len() {
        0 => {
            let of = namespace.map(|name| format!(" of namespace {name}")).unwrap_or_default();
            let label = namespace.unwrap_or("NAME");
            Outcome::warn(format!(
                "no sidecar{of} is connected: nothing to check; kubectl label namespace {label} weft.dev/inject=enabled, then restart \
                 its pods"
            ))
        }
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
        _ if ours().next().is_none() => Outcome::skip(NONE_OF_OURS),
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
    if sidecars.iter().all(|sidecar| sidecar.agent != USER_AGENT) {
        return Outcome::skip(NONE_OF_OURS);
    }
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

/// Requests that apps sent once they had been called.
#[derive(Clone, Copy, Default)]
struct Sent {
    all: u64,
    /// In the trace of a request that the app was sent.
    carried: u64,
    /// In a trace of the app's own.
    own: u64,
}

impl Sent {
    fn of(sidecar: &Sidecar) -> Option<Self> {
        let reports = sidecar.reports.as_ref()?;
        let own = reports.outbound_own.unwrap_or_default();
        Some(Self { all: reports.outbound?, carried: reports.outbound_carried?, own })
    }

    const fn and(self, other: Self) -> Self {
        Self {
            all: self.all.saturating_add(other.all),
            carried: self.carried.saturating_add(other.carried),
            own: self.own.saturating_add(other.own),
        }
    }

    /// The share of those that carry a trace on, in percent.
    fn score(self) -> u64 {
        self.carried.saturating_mul(100).checked_div(self.all).unwrap_or(100)
    }
}

fn propagation(sidecars: &[&Sidecar]) -> Outcome {
    let mut workloads: BTreeMap<String, Sent> = BTreeMap::new();
    for sidecar in sidecars {
        let Some(sent) = Sent::of(sidecar) else { continue };
        let sum = workloads.entry(sidecar.workload()).or_default();
        *sum = sum.and(sent);
    }
    if workloads.is_empty() {
        return Outcome::skip("sidecars do not report which of their app's requests carried a trace on");
    }
    let breaking: Vec<String> = workloads
        .iter()
        .filter(|(_, sent)| sent.all >= TELLING && sent.score() < CARRIED)
        .map(|(workload, sent)| {
            let without = sent.all.saturating_sub(sent.carried).saturating_sub(sent.own);
            let (score, all, own) = (sent.score(), sent.all, sent.own);
            format!(
                "{workload}: {score} % of {all} requests ({without} without a trace, {own} in one of its own)"
            )
        })
        .collect();
    let total = workloads.values().fold(Sent::default(), |sum, sent| sum.and(*sent));
    match breaking.is_empty() {
        true if total.all < TELLING => Outcome::skip("too few requests of apps that are called to say"),
        true => Outcome::passed(format!("{} % of what apps that are called send", total.score())),
        false => Outcome::note(
            "these do not carry on the trace of the request that they answer, so that traces break there: have them copy \
             traceparent and tracestate (or b3, x-b3-*) from it to what they send",
        )
        .about(breaking),
    }
}
