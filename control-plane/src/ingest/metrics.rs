//! Ingest's own numbers, for the control plane's `/metrics`.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::Dropped;
use crate::circuits::{Circuits, State};
use crate::graph::Counters;
use crate::rules::Rules;
use crate::store::{Outcome, Unavailable};

/// What ingest and graph count about themselves.
#[derive(Debug, Clone)]
pub struct Metrics {
    reports: IntCounterVec,
    samples: IntCounter,
    deduplicated: IntCounter,
    dropped: IntCounterVec,
    nodes: IntGauge,
    edges: IntGauge,
    cells: IntGauge,
    folded: IntCounterVec,
    retracted: IntCounter,
    queued: IntGauge,
    records_dropped: IntCounterVec,
    circuits: IntGaugeVec,
    circuits_dropped: IntCounter,
    transitions: IntCounterVec,
    access: IntGauge,
    access_dropped: IntCounter,
    rules: IntGauge,
    rules_dropped: IntCounter,
}

impl Metrics {
    /// Registers everything in `registry`. Names that are taken already are only not exported.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            drop(registry.register(Box::new(counter.clone())));
            counter
        };
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid name");
            drop(registry.register(Box::new(counters.clone())));
            counters
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("a valid name");
            drop(registry.register(Box::new(gauge.clone())));
            gauge
        };
        let gauges = |name: &str, help: &str, label: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &[label]).expect("a valid name");
            drop(registry.register(Box::new(gauges.clone())));
            gauges
        };
        Self {
            reports: counters(
                "weft_ingest_reports_total",
                "OTLP requests by what became of them.",
                "outcome",
            ),
            samples: counter("weft_ingest_samples_total", "Samples that were counted on an edge."),
            deduplicated: counter(
                "weft_ingest_server_side_skipped_total",
                "Observations of callees that were left out because the caller reports for itself.",
            ),
            dropped: counters(
                "weft_ingest_points_dropped_total",
                "Data points not taken, by cause.",
                "cause",
            ),
            nodes: gauge("weft_graph_nodes", "Nodes of the live graph."),
            edges: gauge("weft_graph_edges", "Edges of the live graph, idle ones included."),
            cells: gauge("weft_graph_cells", "Route and slot cells of the live graph, which memory follows."),
            folded: counters(
                "weft_graph_folded_samples_total",
                "Samples counted on an overflow entry because a bound was reached.",
                "bound",
            ),
            retracted: counter(
                "weft_graph_retracted_samples_total",
                "Samples of callees that were taken back when the caller turned out to report for itself.",
            ),
            queued: gauge("weft_journal_queued_reports", "Reports waiting to be journaled."),
            records_dropped: counters(
                "weft_ingest_records_dropped_total",
                "Log records not taken, by cause.",
                "cause",
            ),
            circuits: gauges(
                "weft_circuits",
                "Circuits of the mesh by the worst state that a sidecar sees.",
                "state",
            ),
            circuits_dropped: counter(
                "weft_circuits_dropped_total",
                "Sightings of circuits for which there was no room.",
            ),
            transitions: counters(
                "weft_circuit_transitions_total",
                "Transitions of circuits that sidecars told, by what became of them.",
                "outcome",
            ),
            access: gauge("weft_access_series", "Series of rules of access and what they said."),
            access_dropped: counter(
                "weft_access_dropped_decisions_total",
                "Decisions without a place in the table of rules of access.",
            ),
            rules: gauge("weft_rules", "Series of rules and backends."),
            rules_dropped: counter(
                "weft_rules_dropped_requests_total",
                "Requests without a place in the table of rules.",
            ),
        }
    }

    pub(super) fn invalid(&self) {
        self.reports.with_label_values(&["invalid"]).inc();
    }

    pub(super) fn deduplicated(&self) {
        self.deduplicated.inc();
    }

    pub(super) fn report(&self, outcome: Result<Outcome, Unavailable>, samples: usize) {
        let word = match outcome {
            Ok(Outcome::Counted) => "counted",
            Ok(Outcome::Duplicate) => "duplicate",
            Err(Unavailable::Busy) => "busy",
            Err(Unavailable::Failed) => "journal_failed",
            Err(Unavailable::Closed) => "closing",
        };
        self.reports.with_label_values(&[word]).inc();
        if outcome == Ok(Outcome::Counted) {
            self.samples.inc_by(samples as u64);
        }
    }

    pub(super) fn dropped(&self, dropped: &Dropped) {
        let Dropped { cumulative, foreign, invalid, no_caller, too_many, by_sender } = *dropped;
        for (cause, count) in [
            ("cumulative", cumulative),
            ("foreign", foreign),
            ("invalid", invalid),
            ("no_caller", no_caller),
            ("too_many", too_many),
            ("by_sender", by_sender),
        ] {
            if count > 0 {
                self.dropped.with_label_values(&[cause]).inc_by(count);
            }
        }
    }

    pub(super) fn show_graph(
        &self,
        counters: Counters,
        nodes: usize,
        edges: usize,
        cells: usize,
        queued: usize,
    ) {
        let gauge = |gauge: &IntGauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge(&self.nodes, nodes);
        gauge(&self.edges, edges);
        gauge(&self.cells, cells);
        gauge(&self.queued, queued);
        raise(&self.retracted, counters.retracted);
        raise(&self.folded.with_label_values(&["edges"]), counters.folded_edges);
        raise(&self.folded.with_label_values(&["routes"]), counters.folded_routes);
        raise(&self.folded.with_label_values(&["provisional"]), counters.provisional_forgotten);
    }

    pub(super) fn dropped_records(&self, dropped: &Dropped) {
        for (cause, count) in
            [("foreign", dropped.foreign), ("invalid", dropped.invalid), ("too_many", dropped.too_many)]
        {
            if count > 0 {
                self.records_dropped.with_label_values(&[cause]).inc_by(count);
            }
        }
    }

    pub(super) fn show_circuits(&self, circuits: &Circuits) {
        let mut counts = [0i64; 3];
        for (_, state) in circuits.states() {
            counts[state as usize] += 1;
        }
        for (state, word) in
            [(State::Closed, "closed"), (State::HalfOpen, "half_open"), (State::Open, "open")]
        {
            self.circuits.with_label_values(&[word]).set(counts[state as usize]);
        }
        let counters = circuits.counters();
        raise(&self.circuits_dropped, counters.dropped);
        raise(&self.transitions.with_label_values(&["shown"]), counters.transitions);
        raise(&self.transitions.with_label_values(&["repeated"]), counters.repeated);
    }

    pub(super) fn show_access(&self, rules: &Rules) {
        self.access.set(i64::try_from(rules.len()).unwrap_or(i64::MAX));
        raise(&self.access_dropped, rules.dropped());
    }

    pub(super) fn show_rules(&self, rules: &Rules) {
        self.rules.set(i64::try_from(rules.len()).unwrap_or(i64::MAX));
        raise(&self.rules_dropped, rules.dropped());
    }

    /// Reports counted, recognised as repeated, and refused, since the start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let of = |word: &str| self.reports.with_label_values(&[word]).get();
        let dropped = ["cumulative", "foreign", "invalid", "no_caller", "too_many", "by_sender"];
        Totals {
            reports: of("counted"),
            duplicates: of("duplicate"),
            refused: of("busy") + of("journal_failed") + of("invalid"),
            points_dropped: dropped.iter().map(|cause| self.dropped.with_label_values(&[*cause]).get()).sum(),
        }
    }
}

/// Brings a counter to a value that only grows, so the difference is what happened since the last look.
fn raise(counter: &IntCounter, value: u64) {
    counter.inc_by(value.saturating_sub(counter.get()));
}

/// The ingest at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Reports counted.
    pub reports: u64,
    /// Reports that had been counted before.
    pub duplicates: u64,
    /// Reports that were refused.
    pub refused: u64,
    /// Data points not taken, for whatever cause.
    pub points_dropped: u64,
}
