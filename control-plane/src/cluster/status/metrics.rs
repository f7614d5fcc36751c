//! What the writing of statuses counts about itself.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

use super::write::Outcome;

#[derive(Clone)]
pub(super) struct Metrics {
    writes: IntCounterVec,
    waiting: IntGauge,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let writes =
            Opts::new("weft_status_writes_total", "Objects whose status was to be written, by outcome.");
        let metrics = Self {
            writes: IntCounterVec::new(writes, &["outcome"]).expect("a valid name"),
            waiting: IntGauge::new("weft_status_waiting", "Objects whose status is to be written.")
                .expect("a valid name"),
        };
        for word in Outcome::WORDS.iter().chain(&["error"]) {
            metrics.writes.with_label_values(&[word]).inc_by(0);
        }
        // Registered twice only in tests that share a registry; then it is only not exported twice.
        drop(registry.register(Box::new(metrics.writes.clone())));
        drop(registry.register(Box::new(metrics.waiting.clone())));
        metrics
    }

    pub(super) fn count(&self, outcome: &str) {
        self.writes.with_label_values(&[outcome]).inc();
    }

    pub(super) fn waiting(&self, objects: usize) {
        self.waiting.set(i64::try_from(objects).unwrap_or(i64::MAX));
    }
}
