//! What reports say of circuits.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::NumberDataPoint;

use super::*;
use crate::balance::breaker::{circuit, outlier};
use crate::balance::{ClusterState, Outcome};
use crate::xds;

const CLUSTER: &str = "orders.shop:8080";

/// Five endpoints with names; two server errors in a row eject one.
fn cluster(circuits: &Circuits, change: impl FnOnce(&mut xds::ClusterSpec)) -> Arc<ClusterState> {
    let mut spec = xds::ClusterSpec::new(CLUSTER);
    spec.breaking.outlier = Some(outlier::Settings {
        consecutive_5xx: 2,
        max_ejection_percent: 100,
        ..outlier::Settings::default()
    });
    change(&mut spec);
    let named = |last: u8| xds::Endpoint {
        pod: Some(format!("orders-{last}").into()),
        ..xds::Endpoint::new(([10, 0, 0, last], 8080).into())
            .of("shop/orders".parse().expect("valid"), Some("v2"))
    };
    let state = circuits.cluster(CLUSTER);
    state.adopt(&xds::Cluster::new(spec, (1..=5).map(named).collect()));
    state
}

fn fail(cluster: &ClusterState, last: u8, times: usize) {
    let endpoint = cluster.endpoint(([10, 0, 0, last], 8080).into());
    for _ in 0..times {
        endpoint.report(Outcome::ServerError, Duration::from_millis(3), std::time::Instant::now());
    }
}

fn circuits(reporter: &Reporter) -> Arc<Circuits> {
    Arc::clone(&reporter.watch.circuits)
}

/// Takes a report, and everything that waits.
fn take(reporter: &mut Reporter) -> (Vec<NumberDataPoint>, Vec<LogRecord>) {
    reporter.take(false);
    let (mut points, mut records) = (vec![], vec![]);
    while let Some(report) = reporter.queue.next() {
        match report.signal {
            Signal::Metrics => points.extend(states(&report.bytes)),
            Signal::Transitions(count) => {
                let told = told(&report.bytes);
                assert_eq!(told.len(), count);
                records.extend(told);
            }
        }
        reporter.queue.acknowledged(report.sequence);
    }
    (points, records)
}

fn states(bytes: &Bytes) -> Vec<NumberDataPoint> {
    let gauge = |metric: Metric| match metric.data {
        Some(metric::Data::Gauge(gauge)) if metric.name == attribute::CIRCUIT_STATE => gauge.data_points,
        _ => vec![],
    };
    metrics(bytes).into_iter().flat_map(gauge).collect()
}

fn told(bytes: &Bytes) -> Vec<LogRecord> {
    let message = ExportLogsServiceRequest::decode(bytes.clone()).expect("decodes");
    let resource = message.resource_logs.into_iter().next().expect("one resource");
    assert!(format!("{:?}", resource.resource).contains(attribute::SERVICE_INSTANCE_ID));
    resource.scope_logs.into_iter().next().expect("one scope").log_records
}

fn value(attributes: &[KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|pair| pair.key == key)?.value.clone()?.value
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Some(Value::StringValue(text)) => text,
        other => format!("{other:?}"),
    }
}

fn number(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match value(attributes, key)? {
        Value::IntValue(number) => Some(number),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_ejected_endpoint_is_told_with_everything_that_explains_it() {
    let (mut reporter, _shard) = reporter();
    let cluster = cluster(&circuits(&reporter), |_| {});
    fail(&cluster, 3, 2);
    let before = now();
    let (points, records) = take(&mut reporter);
    let ([point], [record]) = (&points[..], &records[..]) else { panic!("{points:?} {records:?}") };
    assert_eq!(point.value, Some(number_data_point::Value::AsInt(2)), "open");
    assert_eq!(record.event_name, attribute::CIRCUIT_TRANSITION);
    for attributes in [&point.attributes, &record.attributes] {
        let words = [
            (attribute::CIRCUIT_KIND, "endpoint"),
            (attribute::CIRCUIT_CLUSTER, CLUSTER),
            (attribute::NETWORK_PEER_ADDRESS, "10.0.0.3"),
            (attribute::PEER_WORKLOAD, "orders"),
            (attribute::PEER_NAMESPACE, "shop"),
            (attribute::PEER_VERSION, "v2"),
            (attribute::K8S_POD_NAME, "orders-3"),
            (attribute::CIRCUIT_CAUSE, "consecutive_5xx"),
        ];
        for (key, word) in words {
            assert_eq!(text(attributes, key), word);
        }
        let numbers = [
            (attribute::NETWORK_PEER_PORT, Some(8080)),
            (attribute::CIRCUIT_THRESHOLD, Some(2)),
            (attribute::CIRCUIT_CALLS, Some(2)),
            (attribute::CIRCUIT_ERRORS, Some(2)),
            (attribute::CIRCUIT_SLOW, None),
        ];
        for (key, expected) in numbers {
            assert_eq!(number(attributes, key), expected, "{key}");
        }
        let next = number(attributes, attribute::CIRCUIT_NEXT_PROBE).expect("it comes back");
        let wait = Duration::from_nanos((next as u64).saturating_sub(before));
        assert!((Duration::from_secs(25)..=Duration::from_secs(31)).contains(&wait), "{wait:?}");
    }
    assert_eq!(text(&record.attributes, attribute::CIRCUIT_FROM), "closed");
    assert_eq!(text(&record.attributes, attribute::CIRCUIT_TO), "open");
    assert_eq!(number(&record.attributes, attribute::EVENT_SEQUENCE), Some(1));
    assert!(record.time_unix_nano <= now());

    let (points, records) = take(&mut reporter);
    assert_eq!((points.len(), records.len()), (1, 0), "it still stands, and nothing has happened");
}

#[test]
fn closed_circuits_are_told_while_they_are_used() {
    let (mut reporter, _shard) = reporter();
    let cluster = cluster(&circuits(&reporter), |spec| {
        spec.breaking.circuit = Some(circuit::Settings::default());
    });
    let ok = cluster.endpoint(([10, 0, 0, 1], 8080).into());
    assert_eq!(take(&mut reporter).0.len(), 0, "nobody calls");
    let admission = cluster.admit(std::time::Instant::now()).expect("closed");
    ok.report(Outcome::Success, Duration::ZERO, std::time::Instant::now());
    admission.settle(Outcome::Success, Duration::ZERO, std::time::Instant::now());
    let (points, _) = take(&mut reporter);
    let mut kinds: Vec<_> =
        points.iter().map(|point| text(&point.attributes, attribute::CIRCUIT_KIND)).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["endpoint", "limit", "service"]);
    assert!(points.iter().all(|point| point.value == Some(number_data_point::Value::AsInt(0))));
    let later = std::time::Instant::now() + Duration::from_secs(12);
    assert!(circuits(&reporter).view(later).circuits.is_empty(), "nobody has called for long");
}

#[test]
fn a_limit_that_bites_is_open_until_it_has_not_for_a_while() {
    let (mut reporter, _shard) = reporter();
    let circuits = circuits(&reporter);
    let cluster = cluster(&circuits, |spec| spec.breaking.limits.max_requests = 1);
    let start = std::time::Instant::now();
    let _held = cluster.admit(start).expect("the first");
    for _ in 0..3 {
        cluster.admit(start).expect_err("one too many");
    }
    circuits.look_at_limits(start + Duration::from_secs(1));
    let (points, records) = take(&mut reporter);
    let limit = |points: &[NumberDataPoint]| {
        let mut limits = points
            .iter()
            .filter(|point| text(&point.attributes, attribute::CIRCUIT_KIND) == "limit")
            .cloned();
        limits.next().expect("a limit")
    };
    let point = limit(&points);
    assert_eq!(point.value, Some(number_data_point::Value::AsInt(2)));
    assert_eq!(text(&point.attributes, attribute::CIRCUIT_CAUSE), "max_requests");
    let counts = [attribute::CIRCUIT_THRESHOLD, attribute::CIRCUIT_CALLS, attribute::CIRCUIT_ERRORS];
    assert_eq!(counts.map(|key| number(&point.attributes, key)), [Some(1), Some(4), Some(3)]);
    assert_eq!(text(&records[0].attributes, attribute::CIRCUIT_TO), "open");
    for second in 2..11 {
        circuits.look_at_limits(start + Duration::from_secs(second));
    }
    assert_eq!(take(&mut reporter).1.len(), 0, "not long enough");
    circuits.look_at_limits(start + Duration::from_secs(11));
    let (_, records) = take(&mut reporter);
    assert_eq!(text(&records[0].attributes, attribute::CIRCUIT_TO), "closed");
    assert_eq!(number(&records[0].attributes, attribute::EVENT_SEQUENCE), Some(2));
}

/// An endpoint that leaves while it is out is out no more, from the moment it left.
#[test]
fn who_leaves_while_ejected_is_told_of_and_then_no_more() {
    let (mut reporter, _shard) = reporter();
    let circuits = circuits(&reporter);
    let cluster = cluster(&circuits, |_| {});
    fail(&cluster, 3, 2);
    let left = std::time::Instant::now() + Duration::from_secs(3);
    let spec = cluster.core().origin().as_ref().expect("adopted").spec().clone();
    cluster.adopt(&xds::Cluster::new(spec, vec![xds::Endpoint::new(([10, 0, 0, 1], 8080).into())]));
    circuits.sweep(left);
    let (points, records) = take(&mut reporter);
    assert_eq!(points.len(), 0);
    let [open, closed] = &records[..] else { panic!("{records:?}") };
    assert_eq!(text(&closed.attributes, attribute::CIRCUIT_TO), "closed");
    let later = Duration::from_nanos(closed.time_unix_nano - open.time_unix_nano);
    assert!(later >= Duration::from_secs(2), "{later:?}");
}

#[test]
fn an_outage_loses_no_transition_and_repeats_no_number() {
    let (mut reporter, shard) = reporter();
    let cluster = cluster(&circuits(&reporter), |_| {});
    let edge = edge(&shard, "orders.shop");
    let mut stands = vec![];
    for round in 0..QUEUE_MAX + 5 {
        serve(&edge, "/");
        if round == QUEUE_MAX {
            fail(&cluster, 1, 2);
        } else if round == 10 {
            fail(&cluster, 2, 2);
        }
        reporter.take(false);
    }
    let mut sequences = vec![];
    let mut drain = |reporter: &mut Reporter, stands: &mut Vec<usize>| {
        while let Some(report) = reporter.queue.next() {
            match report.signal {
                Signal::Metrics => stands.push(states(&report.bytes).len()),
                Signal::Transitions(_) => {
                    // A receiver that has it and could not say so gets the same again.
                    assert_eq!(reporter.queue.next().as_ref(), Some(&report));
                    sequences.extend(told(&report.bytes).iter().map(|record| {
                        number(&record.attributes, attribute::EVENT_SEQUENCE).expect("numbered")
                    }));
                }
            }
            reporter.queue.acknowledged(report.sequence);
        }
    };
    drain(&mut reporter, &mut stands);
    assert!(
        stands.iter().all(|count| *count == 0),
        "how circuits stood in an outage is not told: {stands:?}"
    );
    reporter.take(false);
    drain(&mut reporter, &mut stands);
    assert_eq!(stands.last(), Some(&2), "how they stand now is");
    assert_eq!(sequences, [1, 2]);
}

#[test]
fn a_receiver_that_knows_no_records_gets_measurements_all_the_same() {
    let (mut reporter, shard) = reporter();
    let cluster = cluster(&circuits(&reporter), |_| {});
    fail(&cluster, 3, 2);
    reporter.take(false);
    reporter.queue.acknowledged(1);
    assert_eq!(reporter.queue.next().map(|report| report.signal), Some(Signal::Transitions(1)));
    assert!(reporter.settle(Err(tonic::Status::unavailable("not now"))) > Duration::ZERO);
    assert_eq!(reporter.queue.len(), 1, "kept");
    assert_eq!(reporter.settle(Err(tonic::Status::unimplemented("what is it?"))), Duration::ZERO);
    assert_eq!(reporter.queue.len(), 0);
    serve(&edge(&shard, "orders.shop"), "/");
    reporter.take(false);
    let report = reporter.queue.next().expect("measurements");
    assert_eq!(total(&metrics(&report.bytes), attribute::REPORT_DROPPED), 1);
}
