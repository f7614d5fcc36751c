//! Applies to the graph what the journal has committed, live and on replay.
//!
//! Surprise: provisional samples are checked a second time here. Between the decision in `resolve` and the
//! commit, the caller's own first report may have been committed; commits are in one order, so here it is final.

use std::sync::Arc;

use super::callers::Callers;
use crate::graph::{SharedGraph, Timestamp};
use crate::store::{Counter, KnownInstance, Report};

pub(super) struct IntoGraph {
    graph: SharedGraph,
    callers: Arc<Callers>,
}

impl IntoGraph {
    pub(super) fn new(graph: SharedGraph, callers: Arc<Callers>) -> Self {
        Self { graph, callers }
    }
}

impl Counter for IntoGraph {
    fn known(&mut self, instance: KnownInstance) {
        self.callers.known(instance);
    }

    fn count(&mut self, report: &Report) {
        let claims = self.callers.committed(report);
        let reported = |address, at: Timestamp| self.callers.reports_for(address, report, at);
        let counted: Vec<_> = report
            .samples
            .iter()
            .filter(|sample| sample.provisional.is_none_or(|address| !reported(address, sample.at)))
            .collect();
        let reporter = report.instance.clone().unwrap_or_default();
        self.graph.with(|graph| {
            for claim in &claims {
                graph.retract(claim);
            }
            for sample in counted {
                graph.apply(sample, &reporter, report.received_at);
            }
        });
    }
}
