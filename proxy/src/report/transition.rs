//! Transitions of circuits on their way out: a line in the log at once, a record for the control plane with the next
//! report.
//!
//! In: what circuits tell, in order. Out: [`Numbered`] changes for [`super::encode`], and log lines. Invariants: a change
//! gets its number when it comes here and keeps it however often it is sent; at most [`WAITING_MAX`] wait, the oldest
//! go first and are counted; at most [`LINES_MAX`] lines in each interval. Pure but for the log.

use std::collections::VecDeque;
use std::time::Duration;

use crate::balance::breaker::{Cause, Kind, Position};
use crate::balance::circuits::{Change, Circuit};

/// Changes that wait for room in the queue of reports, some 600 bytes each. As many as circuits may tell at once.
const WAITING_MAX: usize = 1024;

/// Lines in one interval: a service of twenty endpoints may fall at once; more than a person reads says nothing new.
const LINES_MAX: u32 = 20;

/// A change and its place among those of this proxy, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) sequence: u64,
    pub(super) change: Change,
}

/// Changes that are not in a report yet.
#[derive(Debug, Default)]
pub(super) struct Transitions {
    waiting: VecDeque<Numbered>,
    last: u64,
    lines: u32,
    dropped: u64,
}

impl Transitions {
    /// One more, seen at `now` (Unix nanoseconds).
    pub(super) fn add(&mut self, change: Change, now: u64) {
        self.lines = self.lines.saturating_add(1);
        if self.lines <= LINES_MAX {
            write(&change, now);
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.last += 1;
        self.waiting.push_back(Numbered { sequence: self.last, change });
    }

    /// An interval has passed.
    pub(super) fn tick(&mut self) {
        if let more @ 1.. = self.lines.saturating_sub(LINES_MAX) {
            tracing::warn!(more, "more circuits changed their state than are written here");
        }
        self.lines = 0;
    }

    /// Those that wait; they are the caller's from now on.
    pub(super) fn take(&mut self) -> Vec<Numbered> {
        self.waiting.drain(..).collect()
    }

    /// Changes that nobody will be told of: found no room here, or the receiver does not take such records.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) fn drop_for_good(&mut self, count: u64) {
        self.dropped += count;
    }
}

/// The line in the log.
fn write(change: &Change, now: u64) {
    let Change { from, circuit, .. } = change;
    let cluster = &*circuit.cluster;
    let endpoint = circuit.address.map(tracing::field::display);
    let workload = circuit.callee.workload.as_ref().map(tracing::field::display);
    let (from, to) = (from.word(), circuit.position.word());
    let (kind, why) = (circuit.kind.word(), why(circuit));
    match circuit.position {
        Position::Open => {
            let next = next(circuit, now);
            tracing::warn!(kind, cluster, endpoint, workload, from, to, why, next, "circuit open");
        }
        Position::HalfOpen => {
            tracing::info!(kind, cluster, endpoint, workload, from, to, why, "circuit half open: probing");
        }
        Position::Closed => {
            tracing::info!(kind, cluster, endpoint, workload, from, to, was = why, "circuit closed");
        }
    }
}

/// The cause with its numbers.
fn why(circuit: &Circuit) -> String {
    let Some(cause) = circuit.cause else { return "never open before".to_owned() };
    let calls = circuit.tally.calls;
    let of = |part: u64, what: &str| format!("{part} of {calls} calls {what}");
    let threshold = circuit.threshold.unwrap_or_default();
    let in_a_row = |what: &str| format!("{threshold} {what} in a row");
    let limit = |what: &str| format!("no more than {threshold} {what} are allowed");
    match cause {
        Cause::Consecutive5xx => in_a_row("server errors"),
        Cause::ConsecutiveGatewayFailure => in_a_row("gateway errors"),
        Cause::ConsecutiveLocalOriginFailure => in_a_row("failures to connect, resets or timeouts"),
        Cause::SuccessRate => "fails far more often than its siblings".to_owned(),
        Cause::SuccessRateLocalOrigin => "fails to answer far more often than its siblings".to_owned(),
        Cause::FailurePercentage => format!("{threshold} % or more of its calls failed"),
        Cause::FailurePercentageLocalOrigin => format!("{threshold} % or more of its calls got no answer"),
        Cause::HealthCheck => "its health checks fail".to_owned(),
        Cause::ErrorRatio => of(circuit.tally.errors, &format!("failed, {threshold} % are too many")),
        Cause::SlowCalls => of(circuit.tally.slow, &format!("were slow, {threshold} % are too many")),
        Cause::ProbeFailed => "a probe failed".to_owned(),
        Cause::MaxConnections => limit("connections"),
        Cause::MaxPendingRequests => limit("waiting requests"),
        Cause::MaxRequests => limit("concurrent requests"),
        Cause::MaxRetries => limit("concurrent retries"),
    }
}

/// When something passes again.
fn next(circuit: &Circuit, now: u64) -> String {
    match circuit.next_probe {
        Some(at) => {
            let wait = Duration::from_nanos(at.saturating_sub(now));
            let what = match (circuit.kind, circuit.cause) {
                (Kind::Service, _) => "probes",
                (_, Some(Cause::HealthCheck)) => "checked again",
                _ => "back",
            };
            format!("{what} in {:.1} s", wait.as_secs_f64())
        }
        None if circuit.kind == Kind::Limit => "as soon as something ends".to_owned(),
        None => "when its health checks pass".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::breaker::window::Tally;

    fn change(cause: Cause, kind: Kind) -> Change {
        let circuit = Circuit {
            kind,
            cluster: "orders.shop:8080".into(),
            address: (kind == Kind::Endpoint).then(|| "10.0.0.7:8080".parse().unwrap()),
            callee: Default::default(),
            position: Position::Open,
            cause: Some(cause),
            threshold: Some(5),
            since: Some(7),
            next_probe: (kind != Kind::Limit).then_some(30_500_000_000),
            tally: Tally { calls: 30, errors: 15, slow: 3 },
        };
        Change { from: Position::Closed, circuit, at: 7 }
    }

    #[test]
    fn a_line_says_why_and_what_comes_next() {
        let table = [
            (Cause::Consecutive5xx, Kind::Endpoint, "5 server errors in a row", "back in 30.0 s"),
            (Cause::HealthCheck, Kind::Endpoint, "its health checks fail", "checked again in 30.0 s"),
            (Cause::ErrorRatio, Kind::Service, "15 of 30 calls failed, 5 % are too many", "probes in 30.0 s"),
            (
                Cause::MaxRequests,
                Kind::Limit,
                "no more than 5 concurrent requests are allowed",
                "as soon as something ends",
            ),
        ];
        for (cause, kind, says, comes) in table {
            let Change { circuit, .. } = change(cause, kind);
            assert_eq!((&*why(&circuit), &*next(&circuit, 500_000_000)), (says, comes));
        }
    }

    #[test]
    fn every_cause_has_words() {
        for cause in Cause::ALL {
            let said = why(&change(*cause, Kind::Endpoint).circuit);
            assert!(said.contains(' ') && !said.contains('_'), "{said}");
        }
    }

    #[test]
    fn numbers_go_on_and_the_oldest_goes_first() {
        let mut transitions = Transitions::default();
        for _ in 0..WAITING_MAX + 3 {
            transitions.add(change(Cause::Consecutive5xx, Kind::Endpoint), 0);
        }
        let taken = transitions.take();
        assert_eq!((taken.len(), transitions.dropped()), (WAITING_MAX, 3));
        let numbers = || taken.iter().map(|numbered| numbered.sequence);
        assert!(numbers().eq(4..=WAITING_MAX as u64 + 3));
        transitions.add(change(Cause::Consecutive5xx, Kind::Endpoint), 0);
        assert_eq!(transitions.take()[0].sequence, WAITING_MAX as u64 + 4);
    }
}
