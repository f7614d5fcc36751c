//! What the source counts about itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::kind::Kind;

/// The counters; shared by all conversations.
#[derive(Clone)]
pub(super) struct Metrics {
    objects: IntGaugeVec,
    events: IntCounterVec,
    restarts: IntCounterVec,
    heard: Arc<Heard>,
}

/// When the server was last heard of each kind, in milliseconds since the start; 0 is never.
struct Heard {
    start: Instant,
    last: BTreeMap<Kind, AtomicU64>,
    silence: GaugeVec,
}

impl Metrics {
    /// Makes the counters and shows them in `registry`.
    pub(super) fn new(registry: &Registry) -> Self {
        let options = |name: &str, help: &str| Opts::new(name, help);
        let objects = options("weft_kubernetes_objects", "Objects of the Kubernetes API that are known.");
        let events = options("weft_kubernetes_events_total", "Objects that the Kubernetes API has told of.");
        let restarts = options(
            "weft_kubernetes_restarts_total",
            "Times a list or a watch of the Kubernetes API ended, by why; closed is in good order.",
        );
        let silence = options(
            "weft_kubernetes_silence_seconds",
            "Time since the Kubernetes API was last heard; only of kinds that are there.",
        );
        let metrics = Self {
            objects: IntGaugeVec::new(objects, &["kind"]).expect("a valid name"),
            events: IntCounterVec::new(events, &["kind"]).expect("a valid name"),
            restarts: IntCounterVec::new(restarts, &["kind", "why"]).expect("a valid name"),
            heard: Arc::new(Heard {
                start: Instant::now(),
                last: Kind::ALL.into_iter().map(|kind| (kind, AtomicU64::new(0))).collect(),
                silence: GaugeVec::new(silence, &["kind"]).expect("a valid name"),
            }),
        };
        // Registered twice only in tests that share a registry; then they are only not exported twice.
        drop(registry.register(Box::new(metrics.objects.clone())));
        drop(registry.register(Box::new(metrics.events.clone())));
        drop(registry.register(Box::new(metrics.restarts.clone())));
        drop(registry.register(Box::new(Silence(Arc::clone(&metrics.heard)))));
        metrics
    }

    pub(super) fn objects(&self, kind: Kind, count: usize) {
        self.objects.with_label_values(&[kind.word()]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn events(&self, kind: Kind, count: usize) {
        self.events.with_label_values(&[kind.word()]).inc_by(count as u64);
    }

    pub(super) fn restarted(&self, kind: Kind, why: &str) {
        self.restarts.with_label_values(&[kind.word(), why]).inc();
    }

    pub(super) fn heard(&self, kind: Kind) {
        let Some(last) = self.heard.last.get(&kind) else { return };
        let since = u64::try_from(self.heard.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        last.store(since.max(1), Ordering::Relaxed);
    }
}

/// Computed when somebody looks.
struct Silence(Arc<Heard>);

impl Collector for Silence {
    fn desc(&self) -> Vec<&Desc> {
        self.0.silence.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = self.0.start.elapsed().as_secs_f64();
        for (kind, last) in &self.0.last {
            let last = last.load(Ordering::Relaxed);
            if last > 0 {
                let silence = now - std::time::Duration::from_millis(last).as_secs_f64();
                self.0.silence.with_label_values(&[kind.word()]).set(silence.max(0.0));
            }
        }
        self.0.silence.collect()
    }
}
