//! A snapshot as OTLP: names from `wire::attribute`, delta temporality, exponential histograms.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use weft_wire::{attribute, histogram};

use super::circuit;
use super::snapshot::Snapshot;
use crate::record::access::AccessLabels;
use crate::record::cell::Growth;
use crate::record::rules::RuleLabels;
use crate::record::series::{FlowLabels, RequestLabels};
use crate::record::{Direction, EdgeSpec, Identity, PeerSpec};

/// Data points per message, at some 400 bytes each: 800 kB, well below the 4 MiB that gRPC receivers take.
const POINTS_MAX: usize = 2000;

const DELTA: i32 = AggregationTemporality::Delta as i32;

/// Encodes a snapshot; into more than one message if it is large, into none if nothing happened.
pub(super) fn encode(snapshot: &Snapshot, identity: &Identity) -> Vec<Bytes> {
    let points = points(snapshot);
    let message = |points: &[(Name, Point)]| {
        let metrics = metrics(points);
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() }];
        let resource = Some(resource(identity));
        let resource_metrics =
            vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }];
        ExportMetricsServiceRequest { resource_metrics }.encode_to_vec().into()
    };
    points.chunks(POINTS_MAX).map(message).collect()
}

/// Who speaks.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "weft-proxy".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    }
}

/// A metric's name and unit.
type Name = (&'static str, &'static str);

#[derive(Debug, Clone)]
enum Point {
    Histogram(ExponentialHistogramDataPoint),
    Sum(NumberDataPoint),
    Gauge(NumberDataPoint),
}

/// All points, those of one metric next to each other.
fn points(snapshot: &Snapshot) -> Vec<(Name, Point)> {
    let mut points = Vec::new();
    let at = At { start: snapshot.start, end: snapshot.end };
    for (labels, growth) in &snapshot.requests {
        let name = match labels.edge.direction {
            Direction::Outbound => attribute::HTTP_CLIENT_REQUEST_DURATION,
            Direction::Inbound => attribute::HTTP_SERVER_REQUEST_DURATION,
        };
        points.push(((name, "s"), at.histogram(request(labels), growth)));
    }
    for (labels, growth) in &snapshot.connections {
        let name = match labels.flow.edge.direction {
            Direction::Outbound => attribute::CLIENT_CONNECTION_DURATION,
            Direction::Inbound => attribute::SERVER_CONNECTION_DURATION,
        };
        let mut attributes = flow(&labels.flow);
        attributes.extend(labels.reason.map(|reason| text(attribute::ERROR_TYPE, reason.word())));
        points.push(((name, "s"), at.histogram(attributes, growth)));
    }
    for (labels, growth) in &snapshot.rules {
        points.push(((attribute::CLIENT_ROUTE_DURATION, "s"), at.histogram(rule(labels), growth)));
    }
    for (labels, count) in &snapshot.access {
        let point = at.sum(access(labels), *count);
        points.extend(point.map(|point| ((attribute::ACCESS_DECISIONS, "{decision}"), point)));
    }
    for (result, growth) in &snapshot.detected {
        let attributes = vec![text(attribute::DETECT_RESULT, result.word())];
        points.push(((attribute::DETECT_DURATION, "s"), at.histogram(attributes, growth)));
    }
    for (origin, count) in &snapshot.traces {
        let point = at.sum(vec![text(attribute::TRACE_ORIGIN, origin.word())], *count);
        points.extend(point.map(|point| ((attribute::TRACE_REQUESTS, "{request}"), point)));
    }
    for (labels, difference) in &snapshot.flows {
        let (io, connections, transmit, receive) = match labels.edge.direction {
            Direction::Outbound => (
                attribute::CLIENT_IO,
                attribute::CLIENT_CONNECTIONS,
                difference.to_server,
                difference.to_client,
            ),
            Direction::Inbound => (
                attribute::SERVER_IO,
                attribute::SERVER_CONNECTIONS,
                difference.to_client,
                difference.to_server,
            ),
        };
        for (word, bytes) in [(attribute::IO_TRANSMIT, transmit), (attribute::IO_RECEIVE, receive)] {
            let mut attributes = flow(labels);
            attributes.push(text(attribute::NETWORK_IO_DIRECTION, word));
            points.extend(at.sum(attributes, bytes).map(|point| ((io, "By"), point)));
        }
        points.extend(
            at.sum(flow(labels), difference.opened).map(|point| ((connections, "{connection}"), point)),
        );
        for (word, retries) in [
            (attribute::RETRY_SENT, difference.retried),
            (attribute::RETRY_BUDGET_EXHAUSTED, difference.retry_denied),
        ] {
            let mut attributes = flow(labels);
            attributes.push(text(attribute::RETRY_OUTCOME, word));
            let retries = at.sum(attributes, retries);
            points.extend(retries.map(|point| ((attribute::CLIENT_RETRIES, "{attempt}"), point)));
        }
        let folded = at.sum(flow(labels), difference.folded);
        points.extend(folded.map(|point| ((attribute::ROUTE_FOLDED, "{request}"), point)));
    }
    let dropped = at.sum(Vec::new(), snapshot.dropped);
    points.extend(dropped.map(|point| ((attribute::REPORT_DROPPED, "{point}"), point)));
    for circuit in &snapshot.circuits {
        let point = at.gauge(circuit::attributes(circuit), circuit.position as i64);
        points.push(((attribute::CIRCUIT_STATE, "{state}"), point));
    }
    // Stable: points of one metric stay in order.
    points.sort_by_key(|((name, _), _)| *name);
    points
}

/// Gathers neighbours of the same name.
fn metrics(points: &[(Name, Point)]) -> Vec<Metric> {
    points
        .chunk_by(|(one, _), (other, _)| one == other)
        .map(|group| {
            let (name, unit) = group[0].0;
            let mut histograms = Vec::new();
            let mut numbers = Vec::new();
            for (_, point) in group {
                match point {
                    Point::Histogram(point) => histograms.push(point.clone()),
                    Point::Sum(point) | Point::Gauge(point) => numbers.push(point.clone()),
                }
            }
            let data = match &group[0].1 {
                Point::Histogram(_) => metric::Data::ExponentialHistogram(ExponentialHistogram {
                    data_points: histograms,
                    aggregation_temporality: DELTA,
                }),
                Point::Sum(_) => metric::Data::Sum(Sum {
                    data_points: numbers,
                    aggregation_temporality: DELTA,
                    is_monotonic: true,
                }),
                Point::Gauge(_) => metric::Data::Gauge(Gauge { data_points: numbers }),
            };
            Metric { name: name.into(), unit: unit.into(), data: Some(data), ..Metric::default() }
        })
        .collect()
}

/// The interval of all points.
struct At {
    start: u64,
    end: u64,
}

impl At {
    fn histogram(&self, attributes: Vec<KeyValue>, growth: &Growth) -> Point {
        Point::Histogram(ExponentialHistogramDataPoint {
            attributes,
            start_time_unix_nano: self.start,
            time_unix_nano: self.end,
            count: growth.count,
            sum: Some(growth.sum_nanos as f64 / 1e9),
            scale: histogram::SCALE,
            positive: Some(Buckets { offset: growth.offset, bucket_counts: growth.counts.clone() }),
            ..ExponentialHistogramDataPoint::default()
        })
    }

    fn gauge(&self, attributes: Vec<KeyValue>, value: i64) -> Point {
        Point::Gauge(NumberDataPoint {
            attributes,
            time_unix_nano: self.end,
            value: Some(number_data_point::Value::AsInt(value)),
            ..NumberDataPoint::default()
        })
    }

    fn sum(&self, attributes: Vec<KeyValue>, value: u64) -> Option<Point> {
        if value == 0 {
            return None;
        }
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        Some(Point::Sum(NumberDataPoint {
            attributes,
            start_time_unix_nano: self.start,
            time_unix_nano: self.end,
            value: Some(number_data_point::Value::AsInt(value)),
            ..NumberDataPoint::default()
        }))
    }
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

pub(super) fn number(key: &str, value: impl Into<i64>) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::IntValue(value.into())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

pub(super) fn resource(identity: &Identity) -> Resource {
    let mut attributes = vec![
        text(attribute::SERVICE_NAME, identity.workload.name()),
        text(attribute::SERVICE_NAMESPACE, identity.workload.namespace()),
        text(attribute::SERVICE_INSTANCE_ID, &identity.instance),
    ];
    attributes.extend(identity.version.as_ref().map(|version| text(attribute::SERVICE_VERSION, version)));
    attributes.extend(identity.pod.as_ref().map(|pod| text(attribute::K8S_POD_NAME, pod)));
    Resource { attributes, ..Resource::default() }
}

fn edge(edge: &EdgeSpec, peer: &PeerSpec) -> Vec<KeyValue> {
    let mut attributes = vec![
        text(attribute::SERVER_ADDRESS, &edge.server_address),
        number(attribute::SERVER_PORT, edge.server_port),
        text(attribute::TLS, peer.tls(edge).word()),
    ];
    attributes.extend(edge.client.map(|client| text(attribute::CLIENT_ADDRESS, &client.to_string())));
    let identity = edge.caller.as_ref().or(peer.identity.as_ref());
    attributes.extend(identity.map(|identity| text(attribute::PEER_IDENTITY, &identity.to_string())));
    attributes
        .extend(edge.service.as_ref().map(|service| text(attribute::PEER_SERVICE, &service.to_string())));
    if let Some(workload) = &peer.workload {
        attributes.push(text(attribute::PEER_WORKLOAD, workload.name()));
        attributes.push(text(attribute::PEER_NAMESPACE, workload.namespace()));
    }
    attributes.extend(peer.version.as_ref().map(|version| text(attribute::PEER_VERSION, version)));
    attributes
}

fn flow(labels: &FlowLabels) -> Vec<KeyValue> {
    let mut attributes = edge(&labels.edge, &labels.peer);
    attributes.push(text(attribute::NETWORK_PROTOCOL_NAME, labels.protocol.word()));
    attributes
}

fn access(labels: &AccessLabels) -> Vec<KeyValue> {
    let mut attributes = edge(&labels.edge, &PeerSpec::default());
    attributes.push(text(attribute::ACCESS_RULE, &labels.rule));
    attributes.push(text(attribute::ACCESS_VERDICT, labels.verdict.word()));
    attributes
}

fn rule(labels: &RuleLabels) -> Vec<KeyValue> {
    let mut attributes = vec![
        text(attribute::ROUTE_NAME, &labels.route),
        text(attribute::ROUTE_BACKEND, &labels.backend),
        number(attribute::SERVER_PORT, labels.port),
    ];
    attributes
        .extend(labels.service.as_ref().map(|service| text(attribute::PEER_SERVICE, &service.to_string())));
    if labels.failed {
        attributes.push(text(attribute::ERROR_TYPE, attribute::ERROR_FAILED));
    }
    attributes
}

fn request(labels: &RequestLabels) -> Vec<KeyValue> {
    let outcome = labels.outcome;
    let mut attributes = edge(&labels.edge, &labels.peer);
    attributes.push(text(attribute::NETWORK_PROTOCOL_NAME, "http"));
    attributes.push(text(attribute::NETWORK_PROTOCOL_VERSION, outcome.version()));
    attributes.push(text(attribute::HTTP_REQUEST_METHOD, outcome.method()));
    attributes.push(text(attribute::HTTP_ROUTE, &labels.route));
    attributes.extend(outcome.status().map(|status| number(attribute::HTTP_RESPONSE_STATUS_CODE, status)));
    if outcome.is_rpc() {
        attributes.push(text(attribute::RPC_SYSTEM, "grpc"));
    }
    attributes.extend(outcome.grpc().map(|status| number(attribute::RPC_GRPC_STATUS_CODE, status.code())));
    attributes.extend(outcome.error().map(|error| text(attribute::ERROR_TYPE, &error)));
    attributes
}
