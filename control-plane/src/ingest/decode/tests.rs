//! What is taken, what is not, and that nothing panics.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::{ExponentialHistogram, ResourceMetrics, ScopeMetrics, Sum};
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use proptest::prelude::*;
use prost::Message as _;
use weft_wire::histogram as shape;

use super::*;

fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Any::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn number(key: &str, value: i64) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Any::IntValue(value)) }),
        ..KeyValue::default()
    }
}

fn request(metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
    let attributes = vec![text(attribute::SERVICE_NAME, "web"), text(attribute::SERVICE_NAMESPACE, "shop")];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_metrics: vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }],
            ..ResourceMetrics::default()
        }],
    }
}

fn metric(name: &str, data: Data) -> Metric {
    Metric { name: name.to_owned(), data: Some(data), ..Metric::default() }
}

fn histogram(points: Vec<ExponentialHistogramDataPoint>, temporality: AggregationTemporality) -> Data {
    Data::ExponentialHistogram(ExponentialHistogram {
        data_points: points,
        aggregation_temporality: temporality as i32,
    })
}

fn point(attributes: Vec<KeyValue>, offset: i32, bucket_counts: Vec<u64>) -> ExponentialHistogramDataPoint {
    ExponentialHistogramDataPoint {
        attributes,
        start_time_unix_nano: 1,
        time_unix_nano: 1_000_000_001,
        count: bucket_counts.iter().sum(),
        sum: Some(1.5),
        scale: shape::SCALE,
        positive: Some(Buckets { offset, bucket_counts }),
        ..ExponentialHistogramDataPoint::default()
    }
}

fn call() -> Vec<KeyValue> {
    vec![
        text(attribute::HTTP_REQUEST_METHOD, "GET"),
        text(attribute::HTTP_ROUTE, "/orders/{id}"),
        number(attribute::HTTP_RESPONSE_STATUS_CODE, 503),
        text(attribute::ERROR_TYPE, "no_ready_endpoint"),
        text(attribute::SERVER_ADDRESS, "Orders.shop"),
        number(attribute::SERVER_PORT, 8080),
        text(attribute::PEER_SERVICE, "orders.shop"),
        text(attribute::PEER_WORKLOAD, "orders"),
        text(attribute::PEER_NAMESPACE, "shop"),
        text(attribute::TLS, "none"),
    ]
}

fn delta(points: Vec<ExponentialHistogramDataPoint>) -> ExportMetricsServiceRequest {
    let data = histogram(points, AggregationTemporality::Delta);
    request(vec![metric(attribute::HTTP_CLIENT_REQUEST_DURATION, data)])
}

#[test]
fn a_request_metric_becomes_an_observation() {
    let decoded = decode(&delta(vec![point(call(), -3, vec![1, 0, 2])]), true);
    assert_eq!(decoded.dropped, Dropped::default());
    let observation = &decoded.groups[0].observations[0];
    assert_eq!(decoded.groups[0].reporter.workload.to_string(), "shop/web");
    assert_eq!(observation.side, Side::Client);
    assert_eq!(observation.host.as_ref().map(Host::as_str), Some("orders.shop"));
    let Measure::Requests { method, route, status, error, durations } = &observation.measure else {
        panic!("not requests: {observation:?}")
    };
    assert_eq!((&**method, &**route, status.word().as_str()), ("GET", "/orders/{id}", "503"));
    assert_eq!(error.as_deref(), Some("no_ready_endpoint"));
    assert_eq!(durations.buckets().collect::<Vec<_>>(), [(-3, 1), (-1, 2)]);
    assert_eq!(durations.sum_micros(), 1_500_000);
}

#[test]
fn bytes_are_seen_from_the_caller_on_both_sides() {
    let sum = |direction: &str| {
        let attributes = vec![text(attribute::NETWORK_IO_DIRECTION, direction), text(attribute::TLS, "none")];
        let value = Some(number_data_point::Value::AsInt(7));
        let data_points = vec![NumberDataPoint { attributes, value, ..NumberDataPoint::default() }];
        Data::Sum(Sum { data_points, aggregation_temporality: 1, is_monotonic: true })
    };
    for (name, direction, expected) in [
        (attribute::CLIENT_IO, "transmit", (7, 0)),
        (attribute::CLIENT_IO, "receive", (0, 7)),
        (attribute::SERVER_IO, "transmit", (0, 7)),
        (attribute::SERVER_IO, "receive", (7, 0)),
    ] {
        let decoded = decode(&request(vec![metric(name, sum(direction))]), true);
        let Measure::Bytes { sent, received } = decoded.groups[0].observations[0].measure else {
            panic!("no bytes")
        };
        assert_eq!((sent, received), expected, "{name} {direction}");
    }
}

fn sum(attributes: Vec<KeyValue>, value: i64) -> Data {
    let value = Some(number_data_point::Value::AsInt(value));
    let data_points = vec![NumberDataPoint { attributes, value, ..NumberDataPoint::default() }];
    Data::Sum(Sum { data_points, aggregation_temporality: 1, is_monotonic: true })
}

#[test]
fn retries_are_read_by_what_became_of_them() {
    let retries = |outcome: &str| {
        let attributes =
            vec![text(attribute::RETRY_OUTCOME, outcome), text(attribute::NETWORK_PROTOCOL_NAME, "http")];
        decode(&request(vec![metric(attribute::CLIENT_RETRIES, sum(attributes, 3))]), true)
    };
    let measure = |decoded: Decoded| decoded.groups[0].observations[0].measure.clone();
    assert_eq!(measure(retries("sent")), Measure::Retries { sent: 3, denied: 0 });
    assert_eq!(measure(retries("budget_exhausted")), Measure::Retries { sent: 0, denied: 3 });
    assert_eq!(retries("perhaps").dropped.invalid, 1);
}

#[test]
fn durations_by_rule_name_the_rule_and_its_backend() {
    let mut attributes = call();
    attributes.push(text(attribute::ROUTE_NAME, "HTTPRoute/shop/orders/0"));
    attributes.push(text(attribute::ROUTE_BACKEND, "orders-v2.shop:8080"));
    let data = histogram(vec![point(attributes, 0, vec![4])], AggregationTemporality::Delta);
    let decoded = decode(&request(vec![metric(attribute::CLIENT_ROUTE_DURATION, data)]), true);
    let rule = &decoded.groups[0].rules[0];
    assert_eq!((&*rule.name, &*rule.backend), ("HTTPRoute/shop/orders/0", "orders-v2.shop:8080"));
    assert_eq!((&*rule.service, rule.failed, rule.durations.count()), ("orders.shop:8080", true, 4));
    let data = histogram(vec![point(call(), 0, vec![4])], AggregationTemporality::Delta);
    let nameless = decode(&request(vec![metric(attribute::CLIENT_ROUTE_DURATION, data)]), true);
    assert_eq!((nameless.groups.len(), nameless.dropped.invalid), (0, 1));
}

/// What a sidecar says of the circuit of one endpoint.
fn circuit() -> Vec<KeyValue> {
    vec![
        text(attribute::CIRCUIT_KIND, "endpoint"),
        text(attribute::CIRCUIT_CLUSTER, "orders.shop:8080"),
        text(attribute::NETWORK_PEER_ADDRESS, "::ffff:10.0.0.7"),
        number(attribute::NETWORK_PEER_PORT, 8080),
        text(attribute::PEER_WORKLOAD, "orders"),
        text(attribute::PEER_NAMESPACE, "shop"),
        text(attribute::CIRCUIT_CAUSE, "consecutive_5xx"),
        number(attribute::CIRCUIT_SINCE, 1_000_000_000),
        number(attribute::CIRCUIT_NEXT_PROBE, 31_000_000_000),
        number(attribute::CIRCUIT_CALLS, 30),
        number(attribute::CIRCUIT_ERRORS, 15),
    ]
}

fn gauge(attributes: Vec<KeyValue>, state: i64) -> ExportMetricsServiceRequest {
    let value = Some(number_data_point::Value::AsInt(state));
    let data_points = vec![NumberDataPoint { attributes, value, ..NumberDataPoint::default() }];
    let data = Data::Gauge(opentelemetry_proto::tonic::metrics::v1::Gauge { data_points });
    request(vec![metric(attribute::CIRCUIT_STATE, data)])
}

#[test]
fn a_circuit_is_read_from_one_point() {
    let decoded = decode(&gauge(circuit(), 2), true);
    let sighting = &decoded.groups[0].circuits[0];
    assert_eq!(sighting.id.to_string(), "endpoint|orders.shop:8080|10.0.0.7:8080");
    assert_eq!((sighting.state, sighting.calls, sighting.errors), (crate::circuits::State::Open, 30, 15));
    assert_eq!(sighting.next_probe.map(|at| at.millis()), Some(31_000));
    assert_eq!(decode(&gauge(circuit(), 2), false).dropped.foreign, 1, "nobody knows whose it is");
    assert_eq!(decode(&gauge(circuit(), 7), true).dropped.invalid, 1, "no such state");
    let homeless = circuit().into_iter().filter(|pair| pair.key != attribute::NETWORK_PEER_PORT).collect();
    assert_eq!(decode(&gauge(homeless, 2), true).dropped.invalid, 1, "an endpoint has an address");
}

#[test]
fn only_whole_transitions_are_taken_from_logs() {
    let record = |name: &str, attributes: Vec<KeyValue>| LogRecord {
        event_name: name.to_owned(),
        time_unix_nano: 2_000_000_000,
        attributes,
        ..LogRecord::default()
    };
    let mut whole = circuit();
    whole.extend([
        text(attribute::CIRCUIT_FROM, "closed"),
        text(attribute::CIRCUIT_TO, "open"),
        number(attribute::EVENT_SEQUENCE, 7),
    ]);
    let records = vec![
        record("app.started", Vec::new()),
        record(attribute::CIRCUIT_TRANSITION, circuit()),
        record(attribute::CIRCUIT_TRANSITION, whole),
    ];
    let resource = |attributes| ResourceLogs {
        resource: Some(Resource { attributes, ..Resource::default() }),
        scope_logs: vec![ScopeLogs { log_records: records.clone(), ..ScopeLogs::default() }],
        ..ResourceLogs::default()
    };
    let known = vec![text(attribute::SERVICE_NAME, "web"), text(attribute::SERVICE_INSTANCE_ID, "web-1")];
    let unknown = vec![text(attribute::SERVICE_NAME, "web")];
    let request = ExportLogsServiceRequest { resource_logs: vec![resource(known), resource(unknown)] };
    let (told, dropped) = decode_logs(&request);
    assert_eq!(told.len(), 1, "without an instance nobody could tell a repetition");
    assert_eq!(told[0].transitions.len(), 1);
    assert_eq!((told[0].transitions[0].sequence, dropped.foreign, dropped.invalid), (7, 2, 3));
}

#[test]
fn scales_of_other_senders_are_converted() {
    let finer = ExponentialHistogramDataPoint { scale: 6, ..point(call(), 4, vec![1, 1, 1, 1, 5]) };
    let coarser = ExponentialHistogramDataPoint { scale: 3, ..point(call(), 2, vec![9]) };
    let decoded = decode(&delta(vec![finer, coarser]), true);
    let buckets: Vec<Vec<_>> = decoded.groups[0]
        .observations
        .iter()
        .map(|one| match &one.measure {
            Measure::Requests { durations, .. } => durations.buckets().collect(),
            _ => Vec::new(),
        })
        .collect();
    assert_eq!(buckets, [vec![(1, 4), (2, 5)], vec![(5, 9)]]);
}

#[test]
fn what_is_not_taken_is_counted_by_cause() {
    let plain = vec![text(attribute::HTTP_REQUEST_METHOD, "GET")];
    let foreign = decode(&delta(vec![point(plain, 0, vec![1])]), false);
    assert_eq!((foreign.groups.len(), foreign.dropped.foreign), (0, 1), "its sidecar counts these calls");
    assert_eq!(decode(&delta(vec![point(call(), 0, vec![1])]), false).groups.len(), 1);

    let data = histogram(vec![point(call(), 0, vec![1])], AggregationTemporality::Cumulative);
    let cumulative = decode(&request(vec![metric(attribute::HTTP_CLIENT_REQUEST_DURATION, data)]), true);
    assert_eq!(cumulative.dropped.cumulative, 1);
    assert!(cumulative.dropped.message().contains("TEMPORALITY_PREFERENCE=delta"));

    let many = decode(&delta(vec![point(call(), 0, vec![1]); POINTS_MAX + 3]), true);
    assert_eq!(many.dropped.too_many, 3);
    let empty = decode(&delta(vec![point(call(), 0, vec![])]), true);
    assert_eq!(empty.dropped.invalid, 1);
}

#[test]
fn a_route_that_is_none_still_counts() {
    for strange in ["/x".repeat(TEXT_MAX), "/\u{1b}[2J".to_owned()] {
        let mut attributes = call();
        attributes[1] = text(attribute::HTTP_ROUTE, &strange);
        let decoded = decode(&delta(vec![point(attributes, 0, vec![4])]), true);
        let Measure::Requests { route, durations, .. } = &decoded.groups[0].observations[0].measure else {
            panic!()
        };
        assert_eq!((&**route, durations.count()), ("__other__", 4));
    }
}

proptest! {
    #[test]
    fn bytes_from_strangers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(request) = ExportMetricsServiceRequest::decode(bytes.as_slice()) {
            drop(decode(&request, true));
        }
        if let Ok(request) = ExportLogsServiceRequest::decode(bytes.as_slice()) {
            drop(decode_logs(&request));
        }
    }

    /// Mutated real reports reach deeper than random bytes do.
    #[test]
    fn damaged_reports_never_panic(
        positions in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut bytes = delta(vec![point(call(), -3, vec![1, 0, 2])]).encode_to_vec();
        for (position, byte) in positions {
            let position = position.index(bytes.len());
            bytes[position] = byte;
        }
        if let Ok(request) = ExportMetricsServiceRequest::decode(bytes.as_slice()) {
            drop(decode(&request, false));
        }
    }

    #[test]
    fn wild_numbers_never_panic(
        scale in any::<i32>(), offset in any::<i32>(), counts in prop::collection::vec(any::<u64>(), 0..8),
        sum in any::<f64>(), zero in any::<u64>(), start in any::<u64>(), end in any::<u64>(), port in any::<i64>(),
        status in any::<i64>(), bounds in prop::collection::vec(any::<f64>(), 0..8),
    ) {
        let mut attributes = call();
        attributes.push(number(attribute::SERVER_PORT, port));
        attributes.push(number(attribute::RPC_GRPC_STATUS_CODE, status));
        let wild = ExponentialHistogramDataPoint {
            scale, zero_count: zero, sum: Some(sum), start_time_unix_nano: start, time_unix_nano: end,
            positive: Some(Buckets { offset, bucket_counts: counts.clone() }),
            ..point(attributes.clone(), 0, Vec::new())
        };
        let explicit = HistogramDataPoint {
            attributes, bucket_counts: counts, explicit_bounds: bounds, sum: Some(sum), count: zero,
            ..HistogramDataPoint::default()
        };
        let explicit = Data::Histogram(opentelemetry_proto::tonic::metrics::v1::Histogram {
            data_points: vec![explicit], aggregation_temporality: 1,
        });
        let mut request = delta(vec![wild]);
        request.resource_metrics[0].scope_metrics[0].metrics.push(metric(attribute::HTTP_SERVER_REQUEST_DURATION, explicit));
        drop(decode(&request, true));
    }
}
