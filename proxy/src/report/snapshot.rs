//! The differences since the last time: what one report says.

use crate::balance::circuits::Circuit;
use crate::record::access::AccessLabels;
use crate::record::cell::{Growth, Totals};
use crate::record::rules::RuleLabels;
use crate::record::series::{ConnectionLabels, FlowLabels, FlowTotals, RequestLabels};
use crate::record::{Detected, Origin, Telemetry};

/// What happened between two moments, by label set.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// Unix nanoseconds.
    pub(super) start: u64,
    /// Unix nanoseconds.
    pub(super) end: u64,
    pub(super) requests: Vec<(RequestLabels, Growth)>,
    pub(super) flows: Vec<(FlowLabels, FlowTotals)>,
    pub(super) connections: Vec<(ConnectionLabels, Growth)>,
    pub(super) rules: Vec<(RuleLabels, Growth)>,
    pub(super) access: Vec<(AccessLabels, u64)>,
    pub(super) detected: Vec<(Detected, Growth)>,
    pub(super) traces: Vec<(Origin, u64)>,
    /// How circuits stand at the end.
    pub(super) circuits: Vec<Circuit>,
    /// Label sets lost to the ledger's bound, and transitions of circuits that nobody will be told of.
    pub(super) dropped: u64,
}

/// Up to where differences have been taken.
#[derive(Debug)]
pub(super) struct Taken {
    until: u64,
    detected: [Totals; Detected::ALL.len()],
    traces: [u64; Origin::ALL.len()],
    dropped: u64,
}

impl Taken {
    pub(super) fn new(now: u64) -> Self {
        Self { until: now, detected: Default::default(), traces: [0; Origin::ALL.len()], dropped: 0 }
    }

    /// Takes what has happened since. `now` may lie before the last one: clocks are set.
    pub(super) fn snapshot(&mut self, telemetry: &Telemetry, now: u64) -> Snapshot {
        let start = self.until.min(now);
        self.until = now;
        let mut snapshot = Snapshot { start, end: now, ..Snapshot::default() };
        let mut books = telemetry.settle();
        books.requests.differences(|labels, now, then| {
            snapshot.requests.extend(now.since(then).map(|growth| (labels.clone(), growth)));
        });
        books.connections.differences(|labels, now, then| {
            snapshot.connections.extend(now.since(then).map(|growth| (labels.clone(), growth)));
        });
        books.rules.differences(|labels, now, then| {
            snapshot.rules.extend(now.since(then).map(|growth| (labels.clone(), growth)));
        });
        books.access.differences(|labels, now, then| {
            snapshot.access.push((labels.clone(), now.0 - then.0));
        });
        books.flows.differences(|labels, now, then| {
            let difference = FlowTotals {
                to_server: now.to_server - then.to_server,
                to_client: now.to_client - then.to_client,
                opened: now.opened - then.opened,
                folded: now.folded - then.folded,
                retried: now.retried - then.retried,
                retry_denied: now.retry_denied - then.retry_denied,
            };
            snapshot.flows.push((labels.clone(), difference));
        });
        snapshot.dropped = books.dropped - self.dropped;
        self.dropped = books.dropped;
        drop(books);
        let detected = telemetry.detected();
        for ((result, now), then) in Detected::ALL.into_iter().zip(&detected).zip(&self.detected) {
            snapshot.detected.extend(now.since(then).map(|growth| (result, growth)));
        }
        self.detected = detected;
        let traces = telemetry.traces();
        for ((origin, now), then) in Origin::ALL.into_iter().zip(&traces).zip(&self.traces) {
            snapshot.traces.push((origin, now - then));
        }
        self.traces = traces;
        snapshot
    }
}
