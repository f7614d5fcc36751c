//! What the numbers mean: is a node well, why not, and why is there nothing to see.
//!
//! In: counts of a window. Out: a word and a sentence. Pure; the thresholds are constants, named in the sentence.
//! Non-goal: alerting. This is what a glance at the picture should tell.

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;

use super::{Proxy, Timestamp};

/// Share of failures from which a node or edge is degraded.
pub const DEGRADED_RATIO: f64 = 0.01;
/// Share of failures from which it is failing.
pub const FAILING_RATIO: f64 = 0.1;
/// Failures below this number never make "failing": one bad request in ten is no outage.
pub const FAILING_COUNT: u64 = 3;
/// Share of requests that their callers did not wait for from which a node or edge is degraded, if they are at
/// least [`FAILING_COUNT`]. Higher than [`DEGRADED_RATIO`]: closed tabs and hedged requests are everyday.
pub const GIVEN_UP_RATIO: f64 = 0.1;

/// How a node or an edge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing happened in the window.
    Idle,
    /// Fewer failures than [`DEGRADED_RATIO`].
    Healthy,
    /// At least [`DEGRADED_RATIO`], or [`GIVEN_UP_RATIO`] of what was asked.
    Degraded,
    /// At least [`FAILING_RATIO`] and [`FAILING_COUNT`].
    Failing,
}

/// Requests (or ended connections) and how many of them failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcomes {
    /// How many succeeded or failed.
    pub count: u64,
    /// How many of them failed.
    pub failed: u64,
    /// How many besides them were not waited for: neither a success nor a failure.
    pub given_up: u64,
    /// Whether something moved that is neither: a long connection's bytes.
    pub active: bool,
}

impl Outcomes {
    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_add(other.count),
            failed: self.failed.saturating_add(other.failed),
            given_up: self.given_up.saturating_add(other.given_up),
            active: self.active || other.active,
        }
    }

    /// The share that did not fail; `None` when nothing ended.
    #[must_use]
    pub fn success_rate(self) -> Option<f64> {
        (self.count > 0).then(|| 1.0 - self.failed.min(self.count) as f64 / self.count as f64)
    }

    /// How this looks.
    #[must_use]
    pub fn health(self) -> Health {
        let ratio = share(self.failed, self.count);
        match self {
            Self { count: 0, given_up: 0, active: false, .. } => Health::Idle,
            Self { failed, .. } if ratio >= FAILING_RATIO && failed >= FAILING_COUNT => Health::Failing,
            _ if ratio >= DEGRADED_RATIO || self.is_given_up() => Health::Degraded,
            _ => Health::Healthy,
        }
    }

    fn asked(self) -> u64 {
        self.count.saturating_add(self.given_up)
    }

    fn is_given_up(self) -> bool {
        self.given_up >= FAILING_COUNT && share(self.given_up, self.asked()) >= GIVEN_UP_RATIO
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// One sentence for a node's health, from what its callers saw of it.
#[must_use]
pub fn reason(incoming: Outcomes, calls: bool, window_seconds: u64) -> String {
    let within = within(window_seconds);
    match incoming.health() {
        Health::Idle if calls => "calls others, is not called".to_owned(),
        Health::Idle => format!("no traffic in the last {within}"),
        Health::Degraded if share(incoming.failed, incoming.count) < DEGRADED_RATIO => {
            let percent = 100.0 * share(incoming.given_up, incoming.asked());
            let threshold = GIVEN_UP_RATIO * 100.0;
            format!(
                "callers did not wait for {percent:.1} % of {} in the last {within}; degraded from {threshold:.0} %",
                incoming.asked()
            )
        }
        Health::Healthy if incoming.asked() == 0 => "connections are open, none has ended".to_owned(),
        Health::Healthy if incoming.failed == 0 => {
            format!("no failure among {} in the last {within}", incoming.count)
        }
        health => {
            let percent = 100.0 * share(incoming.failed, incoming.count);
            let threshold = match health {
                Health::Failing => format!("; failing from {:.0} %", FAILING_RATIO * 100.0),
                Health::Degraded => format!("; degraded from {:.0} %", DEGRADED_RATIO * 100.0),
                Health::Idle | Health::Healthy => String::new(),
            };
            format!("{percent:.1} % of {} failed in the last {within}{threshold}", incoming.count)
        }
    }
}

fn within(seconds: u64) -> String {
    match seconds {
        60 => "minute".to_owned(),
        3_600 => "hour".to_owned(),
        seconds if seconds % 60 == 0 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} seconds"),
    }
}

/// Follows failing calls from `start` to where they end: the node that is probably to blame.
///
/// `worst` gives the target of a node's worst unhealthy call. `None` when `start` itself has no unhealthy call.
#[must_use]
pub fn culprit(start: usize, worst: impl Fn(usize) -> Option<usize>) -> Option<usize> {
    let mut seen = HashSet::from([start]);
    let mut at = start;
    // Ends at the first node that was seen before, so a cycle of calls cannot hold it.
    while let Some(next) = worst(at) {
        if !seen.insert(next) {
            break;
        }
        at = next;
    }
    (at != start).then_some(at)
}

/// Why the picture is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// A word for programs: `no_sidecar` or `no_traffic`.
    pub code: &'static str,
    /// A sentence for people.
    pub text: String,
    /// What to do about it.
    pub hint: String,
}

/// Says why there is no active edge.
#[must_use]
pub fn diagnose(proxies: &[Proxy], now: Timestamp, window_seconds: u64) -> Diagnosis {
    if proxies.is_empty() {
        return Diagnosis {
            code: "no_sidecar",
            text: "no sidecar is connected".to_owned(),
            hint: "start one with `weft run --name NAME --port PORT -- COMMAND`, or see `weft demo`"
                .to_owned(),
        };
    }
    let count = proxies.len();
    let (noun, verb) = if count == 1 { ("sidecar", "is") } else { ("sidecars", "are") };
    let youngest = proxies.iter().map(|proxy| proxy.connected_since).max().unwrap_or(now);
    let hint = if now.since(youngest) < Duration::from_secs(10) {
        "the newest connected a moment ago; a first request shows here about two seconds after it was made"
    } else {
        "send a request to one of the workloads; if it does not show, `/api/proxies` says what each sidecar does"
    };
    Diagnosis {
        code: "no_traffic",
        text: format!("{count} {noun} {verb} connected, no request in the last {}", within(window_seconds)),
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(count: u64, failed: u64) -> Outcomes {
        Outcomes { count, failed, given_up: 0, active: count > 0 }
    }

    #[test]
    fn callers_that_do_not_wait_are_a_reason_to_look_but_no_failure() {
        let left = |given_up| Outcomes { given_up, ..of(20, 0) };
        assert_eq!(left(2).health(), Health::Healthy);
        assert_eq!(left(3).health(), Health::Degraded);
        assert_eq!(left(3).success_rate(), Some(1.0));
        assert_eq!(
            reason(left(5), false, 60),
            "callers did not wait for 20.0 % of 25 in the last minute; degraded from 10 %"
        );
        let hanging = Outcomes { given_up: 9, active: true, ..Outcomes::default() };
        assert_eq!((hanging.health(), hanging.success_rate()), (Health::Degraded, None));
    }

    #[test]
    fn health_follows_the_share_of_failures() {
        for (count, failed, health) in [
            (0, 0, Health::Idle),
            (1_000, 9, Health::Healthy),
            (1_000, 10, Health::Degraded),
            (10, 1, Health::Degraded),
            (2, 2, Health::Degraded),
            (20, 3, Health::Failing),
        ] {
            assert_eq!(of(count, failed).health(), health, "{failed} of {count}");
        }
    }

    #[test]
    fn the_reason_names_numbers_and_threshold() {
        assert_eq!(
            reason(of(310, 13), false, 60),
            "4.2 % of 310 failed in the last minute; degraded from 1 %"
        );
        assert_eq!(reason(of(0, 0), true, 10), "calls others, is not called");
        assert_eq!(reason(of(0, 0), false, 10), "no traffic in the last 10 seconds");
    }

    #[test]
    fn blame_ends_where_calls_stop_failing_and_survives_cycles() {
        let chain = |at: usize| [Some(1), Some(2), None].get(at).copied().flatten();
        assert_eq!(culprit(0, chain), Some(2));
        assert_eq!(culprit(2, chain), None);
        assert_eq!(culprit(0, |at| Some(1 - at)), Some(1));
    }
}
