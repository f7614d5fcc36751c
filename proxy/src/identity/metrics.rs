//! The identity in numbers.
//!
//! In: what happened. Out: families for `/metrics`. Invariant: reasons are the words of
//! [`Failure::reason`](super::authority::Failure::reason) and `expired`. Surprise: without a certificate the expiry is absent, not 0, so that
//! an alert on what expires soon does not mean a sidecar that has none.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

/// Registers with a Prometheus registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    expiry: IntGaugeVec,
    pub(super) roots: IntGauge,
    renewals: IntCounter,
    pub(super) failures: IntCounterVec,
    pub(super) bundles: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        const VALID: &str = "constant names";
        Self {
            expiry: IntGaugeVec::new(
                Opts::new(
                    "weft_certificate_expiry_timestamp_seconds",
                    "Until when this sidecar's certificate is valid, in Unix time.",
                ),
                &[],
            )
            .expect(VALID),
            roots: IntGauge::new("weft_trust_bundle_roots", "Roots that peers' certificates may come from.")
                .expect(VALID),
            renewals: IntCounter::new(
                "weft_certificate_renewals_total",
                "Certificates that this sidecar has taken, the first included.",
            )
            .expect(VALID),
            failures: IntCounterVec::new(
                Opts::new(
                    "weft_certificate_failures_total",
                    "Attempts to get a certificate that failed, by reason; expired: a certificate ended before there was another.",
                ),
                &["reason"],
            )
            .expect(VALID),
            bundles: IntCounter::new(
                "weft_trust_bundle_updates_total",
                "Trust bundles taken from the control plane.",
            )
            .expect(VALID),
        }
    }
}

impl Metrics {
    /// A certificate was taken.
    pub(super) fn certificate(&self, not_after: SystemTime) {
        let until = not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.expiry.with_label_values::<&str>(&[]).set(i64::try_from(until).unwrap_or(i64::MAX));
        self.renewals.inc();
    }

    fn all(&self) -> [&dyn Collector; 5] {
        [&self.expiry, &self.roots, &self.renewals, &self.failures, &self.bundles]
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        // Not through `all`, whose borrow is the array's.
        [
            self.expiry.desc(),
            self.roots.desc(),
            self.renewals.desc(),
            self.failures.desc(),
            self.bundles.desc(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}
