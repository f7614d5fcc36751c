//! `/metrics`: what workers counted, in Prometheus' words.
//!
//! In: the ledger's totals. Out: metric families. Names follow OpenTelemetry's rules for Prometheus: dots become
//! underscores, the unit and `_total` are appended. Labels are attribute names with underscores; a label without
//! a value is left out, which Prometheus reads as the same thing. Invariant: as many series as the ledger has
//! label sets, which is bounded; nothing here creates one.

use std::sync::Weak;
use std::sync::atomic::Ordering;

use prometheus::core::Desc;
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use weft_wire::attribute;
use weft_wire::histogram::BOUNDS_SECONDS;

use super::access::AccessLabels;
use super::cell::Totals;
use super::handshake::Handshake;
use super::rules::RuleLabels;
use super::series::{FlowLabels, RequestLabels, Sum as _};
use super::{Detected, Direction, EdgeSpec, Limit, Origin, PeerSpec, Telemetry};
use crate::exposition::{self, Described, counter, gauge, label};

/// The families; [`family`] names their positions.
const FAMILIES: [Described; 21] = [
    ("http_client_request_duration_seconds", "Outbound HTTP and gRPC requests.", MetricType::HISTOGRAM),
    ("http_server_request_duration_seconds", "Inbound HTTP and gRPC requests.", MetricType::HISTOGRAM),
    ("weft_client_io_bytes_total", "Bytes of outbound edges, as the caller sees them.", MetricType::COUNTER),
    ("weft_server_io_bytes_total", "Bytes of inbound edges, as the server sees them.", MetricType::COUNTER),
    ("weft_client_connections_total", "Outbound connections opened that are not HTTP.", MetricType::COUNTER),
    ("weft_server_connections_total", "Inbound connections opened that are not HTTP.", MetricType::COUNTER),
    (
        "weft_client_connection_duration_seconds",
        "Outbound connections that were not HTTP, from accept to close.",
        MetricType::HISTOGRAM,
    ),
    (
        "weft_server_connection_duration_seconds",
        "Inbound connections that were not HTTP, from accept to close.",
        MetricType::HISTOGRAM,
    ),
    (
        "weft_route_folded_total",
        "Requests recorded as __other__ because the cap on route templates was reached.",
        MetricType::COUNTER,
    ),
    ("weft_detect_duration_seconds", "Protocol detection, from accept to verdict.", MetricType::HISTOGRAM),
    ("weft_limit_total", "Times that a bound of this proxy was reached.", MetricType::COUNTER),
    (
        "weft_balance_panic_total",
        "Endpoints chosen whatever their health, because too few were available.",
        MetricType::COUNTER,
    ),
    (
        "weft_report_dropped_total",
        "Label sets with unreported events that were dropped in a long outage of the control plane.",
        MetricType::COUNTER,
    ),
    (
        "weft_client_retries_total",
        "Attempts beyond a request's first: sent, or not allowed by the budget.",
        MetricType::COUNTER,
    ),
    (
        "weft_client_route_duration_seconds",
        "Outbound requests by the configured rule that routed them and the backend it chose.",
        MetricType::HISTOGRAM,
    ),
    (
        "weft_tls_handshakes_total",
        "TLS handshakes between sidecars by how they ended: with a new session, a resumed one, or none.",
        MetricType::COUNTER,
    ),
    (
        "weft_access_decisions_total",
        "What rules of access said to calls: let in, kept out, or what they would have done if they were not only audited.",
        MetricType::COUNTER,
    ),
    (
        "weft_trace_requests_total",
        "Outbound requests by where their trace came from: carried on by the app from a request that it was sent, its own, new here, or sent before anybody had called the app.",
        MetricType::COUNTER,
    ),
    ("weft_telemetry_series", "Label sets alive in this proxy.", MetricType::GAUGE),
    ("weft_build_info", "The version of this proxy; the value is 1.", MetricType::GAUGE),
    ("process_start_time_seconds", "When this process started, in Unix time.", MetricType::GAUGE),
];

/// Positions in [`FAMILIES`].
mod family {
    pub(super) const REQUESTS: usize = 0;
    pub(super) const IO: usize = 2;
    pub(super) const CONNECTIONS: usize = 4;
    pub(super) const CONNECTION_DURATION: usize = 6;
    pub(super) const FOLDED: usize = 8;
    pub(super) const DETECT: usize = 9;
    pub(super) const LIMIT: usize = 10;
    pub(super) const PANIC: usize = 11;
    pub(super) const DROPPED: usize = 12;
    pub(super) const RETRIES: usize = 13;
    pub(super) const RULES: usize = 14;
    pub(super) const HANDSHAKES: usize = 15;
    pub(super) const ACCESS: usize = 16;
    pub(super) const TRACES: usize = 17;
    pub(super) const SERIES: usize = 18;
    pub(super) const BUILD: usize = 19;
    pub(super) const START: usize = 20;
}

/// Registers with a Prometheus registry; weak, because the telemetry owns the registry.
#[derive(Debug)]
pub(super) struct Collector {
    telemetry: Weak<Telemetry>,
    descriptions: Vec<Desc>,
}

impl Collector {
    pub(super) fn new(telemetry: Weak<Telemetry>) -> Self {
        Self { telemetry, descriptions: FAMILIES.iter().filter_map(exposition::description).collect() }
    }
}

impl prometheus::core::Collector for Collector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut metrics: [Vec<Metric>; FAMILIES.len()] = Default::default();
        if let Some(telemetry) = self.telemetry.upgrade() {
            collect(&telemetry, &mut metrics);
        }
        let families = FAMILIES.iter().zip(metrics).filter(|(_, metrics)| !metrics.is_empty());
        families.map(|(described, metrics)| exposition::family(described, metrics)).collect()
    }
}

fn collect(telemetry: &Telemetry, metrics: &mut [Vec<Metric>; FAMILIES.len()]) {
    let books = telemetry.settle();
    books.requests.totals(|labels, totals| {
        let family = family::REQUESTS + side(&labels.edge);
        metrics[family].push(histogram(request_labels(labels), totals));
    });
    books.flows.totals(|labels, totals| {
        let side = side(&labels.edge);
        let (transmit, receive) = match labels.edge.direction {
            Direction::Outbound => (totals.to_server, totals.to_client),
            Direction::Inbound => (totals.to_client, totals.to_server),
        };
        for (word, bytes) in [(attribute::IO_TRANSMIT, transmit), (attribute::IO_RECEIVE, receive)] {
            if bytes > 0 {
                let mut labels = flow_labels(labels);
                labels.push(label(attribute::NETWORK_IO_DIRECTION, word));
                metrics[family::IO + side].push(counter(labels, bytes));
            }
        }
        if totals.opened > 0 {
            metrics[family::CONNECTIONS + side].push(counter(flow_labels(labels), totals.opened));
        }
        for (word, retries) in [
            (attribute::RETRY_SENT, totals.retried),
            (attribute::RETRY_BUDGET_EXHAUSTED, totals.retry_denied),
        ] {
            if retries > 0 {
                let mut labels = flow_labels(labels);
                labels.push(label("outcome", word));
                metrics[family::RETRIES].push(counter(labels, retries));
            }
        }
        if totals.folded > 0 {
            metrics[family::FOLDED].push(counter(flow_labels(labels), totals.folded));
        }
    });
    books.connections.totals(|labels, totals| {
        let family = family::CONNECTION_DURATION + side(&labels.flow.edge);
        let mut pairs = flow_labels(&labels.flow);
        pairs.extend(labels.reason.map(|reason| label(attribute::ERROR_TYPE, reason.word())));
        metrics[family].push(histogram(pairs, totals));
    });
    books.rules.totals(|labels, totals| {
        metrics[family::RULES].push(histogram(rule_labels(labels), totals));
    });
    books.access.totals(|labels, totals| {
        metrics[family::ACCESS].push(counter(access_labels(labels), totals.0));
    });
    let series = books.requests.len()
        + books.flows.len()
        + books.connections.len()
        + books.rules.len()
        + books.access.len();
    metrics[family::DROPPED].push(counter(Vec::new(), books.dropped));
    drop(books);

    metrics[family::SERIES].push(gauge(Vec::new(), series as f64));
    for (result, totals) in Detected::ALL.into_iter().zip(telemetry.detected()) {
        if totals.activity() > 0 {
            metrics[family::DETECT].push(histogram(vec![label("result", result.word())], &totals));
        }
    }
    for (origin, count) in Origin::ALL.into_iter().zip(telemetry.traces()) {
        metrics[family::TRACES].push(counter(vec![label("origin", origin.word())], count));
    }
    // All of them from the start: a rate needs the zero before the first.
    for (limit, count) in Limit::ALL.iter().zip(telemetry.limits()) {
        metrics[family::LIMIT].push(counter(vec![label("limit", limit.word())], count));
    }
    for (direction, counts) in ["outbound", "inbound"].into_iter().zip(telemetry.handshakes()) {
        for (end, count) in Handshake::all().zip(counts) {
            let labels = vec![label("direction", direction), label("result", end.word())];
            metrics[family::HANDSHAKES].push(counter(labels, count));
        }
    }
    metrics[family::PANIC].push(counter(Vec::new(), telemetry.panics()));
    metrics[family::BUILD].push(gauge(vec![label("version", env!("CARGO_PKG_VERSION"))], 1.0));
    metrics[family::START].push(gauge(Vec::new(), telemetry.started.load(Ordering::Relaxed) as f64 / 1e9));
}

/// Offset of the server-side family behind the client-side one.
fn side(edge: &EdgeSpec) -> usize {
    match edge.direction {
        Direction::Outbound => 0,
        Direction::Inbound => 1,
    }
}

fn edge_labels(edge: &EdgeSpec, peer: &PeerSpec) -> Vec<LabelPair> {
    let mut labels = vec![
        label(attribute::SERVER_ADDRESS, &edge.server_address),
        label(attribute::SERVER_PORT, &edge.server_port.to_string()),
        label(attribute::TLS, peer.tls(edge).word()),
    ];
    if let Some(client) = edge.client {
        labels.push(label(attribute::CLIENT_ADDRESS, &client.to_string()));
    }
    let identity = edge.caller.as_ref().or(peer.identity.as_ref());
    labels.extend(identity.map(|identity| label(attribute::PEER_IDENTITY, &identity.to_string())));
    if let Some(service) = &edge.service {
        labels.push(label(attribute::PEER_SERVICE, &service.to_string()));
    }
    if let Some(workload) = &peer.workload {
        labels.push(label(attribute::PEER_WORKLOAD, workload.name()));
        labels.push(label(attribute::PEER_NAMESPACE, workload.namespace()));
    }
    if let Some(version) = &peer.version {
        labels.push(label(attribute::PEER_VERSION, version));
    }
    labels
}

fn flow_labels(flow: &FlowLabels) -> Vec<LabelPair> {
    let mut labels = edge_labels(&flow.edge, &flow.peer);
    labels.push(label(attribute::NETWORK_PROTOCOL_NAME, flow.protocol.word()));
    labels
}

fn request_labels(request: &RequestLabels) -> Vec<LabelPair> {
    let mut labels = edge_labels(&request.edge, &request.peer);
    let outcome = request.outcome;
    labels.push(label(attribute::HTTP_ROUTE, &request.route));
    labels.push(label(attribute::HTTP_REQUEST_METHOD, outcome.method()));
    labels.push(label(attribute::NETWORK_PROTOCOL_VERSION, outcome.version()));
    if let Some(status) = outcome.status() {
        labels.push(label(attribute::HTTP_RESPONSE_STATUS_CODE, &status.to_string()));
    }
    if let Some(status) = outcome.grpc() {
        labels.push(label(attribute::RPC_GRPC_STATUS_CODE, &status.code().to_string()));
    }
    if let Some(error) = outcome.error() {
        labels.push(label(attribute::ERROR_TYPE, &error));
    }
    labels
}

fn access_labels(access: &AccessLabels) -> Vec<LabelPair> {
    let mut labels = edge_labels(&access.edge, &PeerSpec::default());
    labels.push(label(attribute::ACCESS_RULE, &access.rule));
    labels.push(label(attribute::ACCESS_VERDICT, access.verdict.word()));
    labels
}

fn rule_labels(rule: &RuleLabels) -> Vec<LabelPair> {
    let mut labels = vec![
        label(attribute::ROUTE_NAME, &rule.route),
        label(attribute::ROUTE_BACKEND, &rule.backend),
        label(attribute::SERVER_PORT, &rule.port.to_string()),
    ];
    labels.extend(rule.service.as_ref().map(|service| label(attribute::PEER_SERVICE, &service.to_string())));
    if rule.failed {
        labels.push(label(attribute::ERROR_TYPE, attribute::ERROR_FAILED));
    }
    labels
}

fn histogram(labels: Vec<LabelPair>, totals: &Totals) -> Metric {
    let mut cumulative = 0;
    let mut buckets = Vec::with_capacity(BOUNDS_SECONDS.len());
    for (bound, count) in BOUNDS_SECONDS.iter().zip(&totals.explicit) {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(cumulative);
        buckets.push(bucket);
    }
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(totals.count());
    histogram.set_sample_sum(totals.sum_nanos as f64 / 1e9);
    let mut metric = Metric::from_label(labels);
    metric.set_histogram(histogram);
    metric
}
