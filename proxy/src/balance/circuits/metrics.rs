//! Circuits for `/metrics` and for the admin page.
//!
//! In: the shared state at the moment somebody asks. Out: metric families, JSON. Invariant: as many states as
//! [`SHOWN_MAX`](super::SHOWN_MAX) at most, and of counters those that are not zero, which needs traffic to a cluster
//! that has a place. Surprise: the cause is no label; a series must not change its name when a circuit opens again.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Metric, MetricFamily, MetricType};
use serde_json::json;
use weft_wire::attribute;

use super::super::breaker::{Kind, Position};
use super::Circuits;
use super::cluster::{Core, Gauge};
use super::view::Circuit;
use crate::exposition::{Described, counter, description, family, gauge, label};

/// The families; [`collect`](Metrics::collect) fills them in this order.
const FAMILIES: [Described; 6] = [
    (
        "weft_circuit_state",
        "Where a circuit is: 0 closed, 1 half open, 2 open. Closed ones are shown while they have calls.",
        MetricType::GAUGE,
    ),
    ("weft_circuit_transitions_total", "Transitions of circuits, by where they went.", MetricType::COUNTER),
    ("weft_circuit_refused_total", "Times that a limit of a cluster refused something.", MetricType::COUNTER),
    ("weft_circuit_in_progress", "What counts against a limit of a cluster now.", MetricType::GAUGE),
    (
        "weft_health_checks_total",
        "Active checks of a cluster's endpoints, by how they ended.",
        MetricType::COUNTER,
    ),
    (
        "weft_circuit_untracked_total",
        "Clusters and endpoints that found no place among those whose circuits are shared.",
        MetricType::COUNTER,
    ),
];

/// Registers with a Prometheus registry. Weak, because whoever owns the registry may outlive the circuits.
#[derive(Debug)]
pub struct Metrics {
    circuits: Weak<Circuits>,
    descriptions: Vec<Desc>,
}

impl Circuits {
    /// For a Prometheus registry.
    #[must_use]
    pub fn metrics(self: &Arc<Self>) -> Metrics {
        let descriptions = FAMILIES.iter().filter_map(description).collect();
        Metrics { circuits: Arc::downgrade(self), descriptions }
    }

    /// For people: every circuit there is something to say about, and what counts against limits.
    #[must_use]
    pub fn dump(&self, now: Instant) -> serde_json::Value {
        let view = self.view(now);
        let mut limits = BTreeMap::new();
        for cluster in self.all() {
            let core = cluster.core();
            let origin = core.origin();
            let Some(origin) = &*origin else { continue };
            let gauges = Gauge::ALL.map(|gauge| {
                let (held, refused) = (core.held(gauge), core.refused(gauge));
                let max = gauge.max(core, &origin.breaking.limits);
                (gauge.cause().word(), json!({ "in_progress": held, "max": max, "refused": refused }))
            });
            limits.insert(core.name.to_string(), BTreeMap::from(gauges));
        }
        let circuits: Vec<_> = view.circuits.iter().map(describe).collect();
        json!({ "circuits": circuits, "left_out": view.left_out, "limits": limits })
    }
}

fn describe(circuit: &Circuit) -> serde_json::Value {
    let callee = &circuit.callee;
    let millis = |nanos: Option<u64>| nanos.map(|nanos| nanos / 1_000_000);
    json!({
        "kind": circuit.kind.word(),
        "cluster": &*circuit.cluster,
        "endpoint": circuit.address.map(|address| address.to_string()),
        "workload": callee.workload.as_ref().map(ToString::to_string),
        "version": callee.version.as_deref(),
        "pod": callee.pod.as_deref(),
        "state": circuit.position.word(),
        "cause": circuit.cause.map(|cause| cause.word()),
        "threshold": circuit.threshold,
        "since_unix_ms": millis(circuit.since),
        "next_probe_unix_ms": millis(circuit.next_probe),
        "calls": circuit.tally.calls,
        "errors": circuit.tally.errors,
        "slow": circuit.tally.slow,
    })
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(circuits) = self.circuits.upgrade() else { return vec![] };
        let states = circuits.view(Instant::now()).circuits.iter().map(state).collect();
        let (mut transitions, mut refused, mut held, mut checks) = (vec![], vec![], vec![], vec![]);
        for cluster in circuits.all() {
            let core = cluster.core();
            transitions.extend(counted(core));
            for (word, passed) in [("passed", true), ("failed", false)] {
                if core.checks(passed) > 0 {
                    let labels = vec![label("cluster", &core.name), label("result", word)];
                    checks.push(counter(labels, core.checks(passed)));
                }
            }
            for limit in Gauge::ALL {
                let labels = || vec![label("cluster", &core.name), label("limit", limit.cause().word())];
                if core.refused(limit) > 0 {
                    refused.push(counter(labels(), core.refused(limit)));
                }
                if core.held(limit) > 0 {
                    held.push(gauge(labels(), core.held(limit).into()));
                }
            }
        }
        let untracked = vec![counter(vec![], circuits.shared().overflowed.load(Ordering::Relaxed))];
        let families = FAMILIES.iter().zip([states, transitions, refused, held, checks, untracked]);
        families
            .filter(|(_, metrics)| !metrics.is_empty())
            .map(|(described, metrics)| family(described, metrics))
            .collect()
    }
}

fn state(circuit: &Circuit) -> Metric {
    let mut labels = vec![label("kind", circuit.kind.word()), label("cluster", &circuit.cluster)];
    labels.extend(circuit.address.map(|address| label("endpoint", &address.to_string())));
    let callee = &circuit.callee;
    if let Some(workload) = &callee.workload {
        labels.push(label(attribute::PEER_WORKLOAD, workload.name()));
        labels.push(label(attribute::PEER_NAMESPACE, workload.namespace()));
    }
    labels.extend(callee.version.as_ref().map(|version| label(attribute::PEER_VERSION, version)));
    gauge(labels, f64::from(circuit.position as u8))
}

/// A cluster's transitions. A cluster of many endpoints is one series for each place they went.
fn counted(core: &Core) -> Vec<Metric> {
    let mut metrics = vec![];
    for kind in [Kind::Endpoint, Kind::Service, Kind::Limit] {
        for to in [Position::Closed, Position::HalfOpen, Position::Open] {
            let count = core.transitions(kind, to);
            if count > 0 {
                let labels = [("kind", kind.word()), ("cluster", &*core.name), ("to", to.word())];
                metrics.push(counter(labels.map(|(name, value)| label(name, value)).into(), count));
            }
        }
    }
    metrics
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::{Encoder as _, Registry, TextEncoder};

    use super::super::super::breaker::outlier;
    use super::*;
    use crate::balance::Outcome;
    use crate::xds;

    #[test]
    fn a_scrape_and_the_admin_page_show_what_is_open_and_what_was_refused() {
        let circuits = Circuits::new();
        let mut spec = xds::ClusterSpec::new("orders.shop:8080");
        spec.breaking.limits.max_requests = 1;
        let settings = outlier::Settings { consecutive_5xx: 1, always_eject_one: true, ..Default::default() };
        spec.breaking.outlier = Some(settings);
        let address = ([10, 0, 0, 7], 8080).into();
        let named = xds::Endpoint::new(address).of("shop/orders".parse().expect("valid"), Some("v2"));
        let cluster = circuits.cluster("orders.shop:8080");
        cluster.adopt(&xds::Cluster::new(spec, vec![named]));
        let now = Instant::now();
        let _held = cluster.admit(now).expect("the first");
        cluster.admit(now).expect_err("one too many");
        cluster.endpoint(address).report(Outcome::ServerError, Duration::ZERO, now);

        let registry = Registry::new();
        registry.register(Box::new(circuits.metrics())).expect("good names, each once");
        let mut page = vec![];
        TextEncoder::new().encode(&registry.gather(), &mut page).expect("encodes");
        let page = String::from_utf8(page).expect("text");
        for line in [
            "weft_circuit_state{kind=\"endpoint\",cluster=\"orders.shop:8080\",endpoint=\"10.0.0.7:8080\",\
             weft_peer_workload=\"orders\",weft_peer_namespace=\"shop\",weft_peer_version=\"v2\"} 2",
            "weft_circuit_state{kind=\"limit\",cluster=\"orders.shop:8080\"} 0",
            "weft_circuit_transitions_total{kind=\"endpoint\",cluster=\"orders.shop:8080\",to=\"open\"} 1",
            "weft_circuit_refused_total{cluster=\"orders.shop:8080\",limit=\"max_requests\"} 1",
            "weft_circuit_in_progress{cluster=\"orders.shop:8080\",limit=\"max_requests\"} 1",
            "weft_circuit_untracked_total 0",
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line} is not in {page}");
        }

        let dump = circuits.dump(now);
        assert_eq!(dump["circuits"][0]["cause"], "consecutive_5xx", "{dump:#}");
        assert_eq!(dump["circuits"][0]["workload"], "shop/orders");
        let limit = &dump["limits"]["orders.shop:8080"]["max_requests"];
        assert_eq!(limit, &json!({ "in_progress": 1, "max": 1, "refused": 1 }));
    }
}
