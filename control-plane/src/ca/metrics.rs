//! What the authority counts about itself. Names follow Prometheus' conventions.

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::Refusal;
use super::authority::{Adoption, Authority};
use super::issue::Certificate;
use super::token::unix;

#[derive(Clone)]
pub(super) struct Metrics {
    issued: IntCounterVec,
    refused: IntCounterVec,
    brought_failed: IntCounter,
    store_failed: IntCounter,
    expiry: GaugeVec,
    sidecars: IntGaugeVec,
    rotating: Gauge,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let by = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid name")
        };
        let metrics = Self {
            issued: by("weft_ca_issued_total", "Certificates issued, by proof.", "proof"),
            refused: by("weft_ca_refused_total", "Requests for a certificate refused, by reason.", "reason"),
            brought_failed: IntCounter::new(
                "weft_ca_dir_errors_total",
                "Times the issuer in --ca-dir could not be used.",
            )
            .expect("a valid name"),
            store_failed: IntCounter::new(
                "weft_ca_store_errors_total",
                "Times that what the authority keeps could not be read or written.",
            )
            .expect("a valid name"),
            expiry: GaugeVec::new(
                Opts::new("weft_ca_certificate_expiry_seconds", "When a certificate expires, Unix seconds."),
                &["certificate"],
            )
            .expect("a valid name"),
            sidecars: IntGaugeVec::new(
                Opts::new(
                    "weft_ca_sidecars",
                    "Connected sidecars with an identity: all, those that acknowledged the trust bundle, those whose \
                     certificate is of the issuing root.",
                ),
                &["state"],
            )
            .expect("a valid name"),
            rotating: Gauge::new("weft_ca_root_rotation", "1 while a rotation of the root goes on.")
                .expect("a valid name"),
        };
        for word in Refusal::WORDS {
            metrics.refused.with_label_values(&[word]).inc_by(0);
        }
        let Self { issued, refused, brought_failed, store_failed, expiry, sidecars, rotating } =
            metrics.clone();
        // Registered twice only in tests that share a registry; then it is only not exported twice.
        drop(registry.register(Box::new(issued)));
        drop(registry.register(Box::new(refused)));
        drop(registry.register(Box::new(brought_failed)));
        drop(registry.register(Box::new(store_failed)));
        drop(registry.register(Box::new(expiry)));
        drop(registry.register(Box::new(sidecars)));
        drop(registry.register(Box::new(rotating)));
        metrics
    }

    pub(super) fn issued(&self, proof: &'static str) {
        self.issued.with_label_values(&[proof]).inc();
    }

    pub(super) fn refused(&self, word: &'static str) {
        self.refused.with_label_values(&[word]).inc();
    }

    pub(super) fn brought_failed(&self) {
        self.brought_failed.inc();
    }

    pub(super) fn store_failed(&self) {
        self.store_failed.inc();
    }

    pub(super) fn show(&self, authority: &Authority, own: &Certificate, adoption: Adoption) {
        let expiry = |name: &str, certificate: &Certificate| {
            self.expiry.with_label_values(&[name]).set(unix(certificate.not_after) as f64);
        };
        if let Some(root) = authority.roots().first() {
            expiry("root", &root.certificate);
        }
        expiry("intermediate", &authority.issuer().certificate);
        expiry("own", own);
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.sidecars.with_label_values(&["connected"]).set(number(adoption.connected));
        self.sidecars.with_label_values(&["trusting"]).set(number(adoption.trusting));
        self.sidecars.with_label_values(&["renewed"]).set(number(adoption.renewed));
        self.rotating.set(f64::from(u8::from(authority.rotation().is_some())));
    }
}
