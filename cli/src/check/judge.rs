//! From facts to findings. Pure.
//!
//! In: what is known, and which checks are to be made. Out: one finding per check, in the catalog's order. Invariants: one check
//! never hides another; a check whose condition does not hold is left out with the reason; what somebody may not know is neither
//! good nor bad.

pub(in crate::check) mod cluster;
pub(in crate::check) mod injector;
pub(in crate::check) mod mesh;
mod pods;
mod proxy;

use jiff::Timestamp;
use serde::Serialize;

use super::catalog::{Asks, Check, When};
use super::facts::{Fact, Facts};
use crate::kubernetes::Trouble;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// All is well.
    Pass {
        /// Worth a word beside it.
        remark: Option<String>,
    },
    /// Nothing is wrong, but somebody may want to know.
    Note { why: String, items: Vec<String> },
    /// It works, and should be seen to.
    Warn { why: String, items: Vec<String> },
    /// It does not work.
    Fail { why: String, items: Vec<String> },
    /// It was not made.
    Skip { why: String },
}

impl Outcome {
    pub(super) fn pass() -> Self {
        Self::Pass { remark: None }
    }

    pub(super) fn passed(remark: impl Into<String>) -> Self {
        Self::Pass { remark: Some(remark.into()) }
    }

    pub(super) fn note(why: impl Into<String>) -> Self {
        Self::Note { why: why.into(), items: Vec::new() }
    }

    pub(super) fn warn(why: impl Into<String>) -> Self {
        Self::Warn { why: why.into(), items: Vec::new() }
    }

    pub(super) fn fail(why: impl Into<String>) -> Self {
        Self::Fail { why: why.into(), items: Vec::new() }
    }

    pub(super) fn skip(why: impl Into<String>) -> Self {
        Self::Skip { why: why.into() }
    }

    /// The same, about these.
    pub(super) fn about(mut self, list: Vec<String>) -> Self {
        if let Self::Note { items, .. } | Self::Warn { items, .. } | Self::Fail { items, .. } = &mut self {
            *items = list;
        }
        self
    }

    /// Well if there is nothing to tell of.
    pub(super) fn unless_empty(items: Vec<String>, bad: impl FnOnce() -> Self) -> Self {
        if items.is_empty() { Self::pass() } else { bad().about(items) }
    }

    /// Whether what depends on it may be looked at.
    const fn holds(&self) -> bool {
        matches!(self, Self::Pass { .. } | Self::Note { .. } | Self::Warn { .. })
    }
}

/// A check and what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) check: Check,
    pub(crate) outcome: Outcome,
}

/// Which checks are to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Before an installation.
    pub(crate) before: bool,
    /// The data plane too.
    pub(crate) proxy: bool,
    /// Whether there is a cluster to look at.
    pub(crate) cluster: bool,
}

impl Plan {
    /// Whether `check` is one of them.
    pub(crate) fn includes(self, check: Check) -> bool {
        let now = match check.when() {
            When::Always => true,
            When::Before => self.before,
            When::After => !self.before,
            When::Proxy => !self.before && self.proxy,
        };
        now && (self.cluster || !check.asks().needs_cluster())
    }
}

/// Makes the checks.
pub(crate) fn judge(plan: Plan, facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for &check in Check::ALL.iter().filter(|check| plan.includes(**check)) {
        let holds =
            |need: &Check| findings.iter().any(|finding| finding.check == *need && finding.outcome.holds());
        // What cannot be asked here, a check that asks somebody else does without.
        let mut needs = check.needs().iter().filter(|need| plan.includes(**need));
        let outcome = match needs.find(|need| !holds(need)) {
            Some(need) => Outcome::skip(format!("needs {need}")),
            None => one(check, facts),
        };
        findings.push(Finding { check, outcome });
    }
    findings
}

fn one(check: Check, facts: &Facts) -> Outcome {
    match check.asks() {
        Asks::Cluster => match &facts.cluster {
            Some(cluster) => cluster::judge(check, cluster),
            None => Outcome::skip("no cluster is looked at"),
        },
        Asks::Api => match &facts.mesh {
            Some(mesh) if check.when() == When::Proxy => proxy::judge(check, mesh, facts),
            Some(mesh) => mesh::judge(check, mesh),
            None => Outcome::skip("the control plane is not asked"),
        },
        Asks::Both => pods::both(facts),
        Asks::Either => pods::uninjected(facts).unwrap_or_else(|outcome| outcome),
    }
}

/// What it means that there is no answer.
pub(super) fn unanswered(trouble: &Trouble) -> Outcome {
    match trouble {
        // Neither good nor bad: whoever may know can ask.
        Trouble::Forbidden(why) => Outcome::skip(format!("you may not know: {why}")),
        trouble => Outcome::fail(trouble.to_string()),
    }
}

/// The answer, or what it means that there is none.
pub(super) fn known<T>(fact: &Fact<T>) -> Result<&T, Outcome> {
    fact.as_ref().map_err(unanswered)
}

/// `2026-12-01`.
pub(super) fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| "?".into(), |at| at.strftime("%F").to_string())
}

#[cfg(test)]
mod tests;
