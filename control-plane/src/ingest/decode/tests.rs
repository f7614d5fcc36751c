//! What is taken, what is not, and that nothing panics.

use opentelemetry_proto::tonic::common::v1::AnyValue;
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
