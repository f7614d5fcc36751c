//! What metric families for `/metrics` are put together from, whoever collects them.
//!
//! In: names, labels and values at the moment of a scrape. Out: Prometheus' own types. Invariant: a label's name follows
//! OpenTelemetry's rule for Prometheus, dots become underscores. Non-goal: which families there are; each collector has
//! a table of its own.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// A family's name, help and kind.
pub(crate) type Described = (&'static str, &'static str, MetricType);

/// `None` for a name that Prometheus does not allow.
pub(crate) fn description((name, help, _): &Described) -> Option<Desc> {
    Desc::new((*name).to_owned(), (*help).to_owned(), Vec::new(), HashMap::new()).ok()
}

pub(crate) fn family((name, help, kind): &Described, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name((*name).to_owned());
    family.set_help((*help).to_owned());
    family.set_field_type(*kind);
    family.set_metric(metrics);
    family
}

pub(crate) fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.replace('.', "_"));
    pair.set_value(value.to_owned());
    pair
}

/// Counts are far below 2⁵³, where `f64` would begin to skip.
pub(crate) fn counter(labels: Vec<LabelPair>, count: u64) -> Metric {
    value(MetricType::COUNTER, labels, count as f64)
}

pub(crate) fn gauge(labels: Vec<LabelPair>, now: f64) -> Metric {
    value(MetricType::GAUGE, labels, now)
}

/// A counter, or else a gauge.
pub(crate) fn value(kind: MetricType, labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut metric = Metric::from_label(labels);
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}
