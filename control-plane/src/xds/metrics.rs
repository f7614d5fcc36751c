//! What the configuration server counts about itself. Names follow Prometheus' conventions.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::Kind;

/// The counters; shared by all streams.
#[derive(Clone)]
pub struct Metrics {
    /// Streams that are open.
    pub(super) streams: IntGauge,
    /// Streams that were refused because there were too many.
    pub(super) refused: IntCounter,
    /// Streams that were refused because the client showed no valid certificate on a connection that needs one.
    pub(super) anonymous: IntCounter,
    /// Streams that were ended because the client broke the protocol or did not say who it is.
    pub(super) violations: IntCounter,
    /// Times a stream fell so far behind that everything it has was checked.
    pub(super) lagged: IntCounter,
    responses: IntCounterVec,
    resources: IntCounterVec,
    rejections: IntCounterVec,
}

impl Metrics {
    /// Makes the counters and shows them in `registry`.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("a valid name");
        let by_kind = |name: &str, help: &str| {
            IntCounterVec::new(Opts::new(name, help), &["kind"]).expect("a valid name")
        };
        let metrics = Self {
            streams: IntGauge::new("weft_xds_streams", "Open configuration streams.").expect("a valid name"),
            refused: counter("weft_xds_streams_refused_total", "Configuration streams refused: too many."),
            anonymous: counter(
                "weft_xds_streams_unauthenticated_total",
                "Configuration streams refused: no valid client certificate.",
            ),
            violations: counter(
                "weft_xds_violations_total",
                "Configuration streams ended: protocol violated.",
            ),
            lagged: counter(
                "weft_xds_lagged_total",
                "Times a configuration stream fell behind and was checked whole.",
            ),
            responses: by_kind("weft_xds_responses_total", "Configuration responses sent."),
            resources: by_kind("weft_xds_resources_total", "Resources sent or taken away."),
            rejections: by_kind(
                "weft_xds_rejections_total",
                "Configuration responses that a proxy rejected.",
            ),
        };
        let Self { streams, refused, anonymous, violations, lagged, responses, resources, rejections } =
            metrics.clone();
        let vectors = [responses, resources, rejections];
        for counter in [refused, anonymous, violations, lagged] {
            // Registered twice only in tests that share a registry; then it is only not exported twice.
            drop(registry.register(Box::new(counter)));
        }
        for vector in vectors {
            drop(registry.register(Box::new(vector)));
        }
        drop(registry.register(Box::new(streams)));
        metrics
    }

    pub(super) fn sent(&self, kind: Kind, resources: usize) {
        self.responses.with_label_values(&[kind.word()]).inc();
        self.resources.with_label_values(&[kind.word()]).inc_by(resources as u64);
    }

    pub(super) fn rejected(&self, kind: Kind) {
        self.rejections.with_label_values(&[kind.word()]).inc();
    }
}
