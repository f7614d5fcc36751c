use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric, number_data_point};
use proptest::prelude::*;
use prost::Message as _;
use weft_wire::attribute;

use super::*;
use crate::record::{
    Config, Detected, Direction, Edge, EdgeSpec, Identity, PeerSpec, Protocol, Shard, Tls, access_log,
};

mod circuits;

fn reporter() -> (Reporter, Rc<Shard>) {
    let identity = Identity {
        workload: "shop/web".parse().expect("valid"),
        version: Some("v1".into()),
        pod: None,
        instance: "i".into(),
    };
    let config = Config { access_log: access_log::Mode::Off, ..Config::standard() };
    let telemetry = Telemetry::new(config, identity);
    telemetry.report_differences();
    let shard = telemetry.shard();
    (Reporter::new(telemetry, Watch::new(Circuits::new())), shard)
}

fn edge(shard: &Shard, service: &str) -> Rc<Edge> {
    shard.edge(&EdgeSpec {
        direction: Direction::Outbound,
        service: service.parse().ok(),
        server_address: service.into(),
        server_port: 8080,
        tls: Tls::None,
        client: None,
        caller: None,
    })
}

fn serve(edge: &Rc<Edge>, path: &str) {
    let parts = Request::get(path).body(()).expect("valid").into_parts().0;
    let mut record = edge.request(&parts);
    record.response(StatusCode::OK, &HeaderMap::new());
    record.response_bytes(100);
    record.complete();
}

fn metrics(bytes: &Bytes) -> Vec<Metric> {
    let message = ExportMetricsServiceRequest::decode(bytes.clone()).expect("decodes");
    let resource = message.resource_metrics.into_iter().next().expect("one resource");
    resource.scope_metrics.into_iter().next().expect("one scope").metrics
}

/// Sum of the counts or values of one metric.
fn total(metrics: &[Metric], name: &str) -> u64 {
    let of = |metric: &Metric| match metric.data.as_ref().expect("data") {
        metric::Data::ExponentialHistogram(histogram) => histogram
            .data_points
            .iter()
            .map(|point| {
                let buckets = point.positive.as_ref().expect("positive");
                assert_eq!(buckets.bucket_counts.iter().sum::<u64>(), point.count);
                assert_eq!((point.scale, point.zero_count), (weft_wire::histogram::SCALE, 0));
                assert!(point.start_time_unix_nano <= point.time_unix_nano);
                point.count
            })
            .sum(),
        metric::Data::Sum(sum) => sum
            .data_points
            .iter()
            .map(|point| match point.value {
                Some(number_data_point::Value::AsInt(value)) => value as u64,
                _ => panic!("an integer"),
            })
            .sum::<u64>(),
        _ => panic!("{} has another shape", metric.name),
    };
    metrics.iter().filter(|metric| metric.name == name).map(of).sum()
}

/// A receiver that counts a sequence once.
#[derive(Default)]
struct Receiver {
    counted: u64,
    requests: u64,
    bytes: u64,
}

impl Receiver {
    fn take(&mut self, report: &Report) {
        if report.sequence <= self.counted {
            return;
        }
        assert_eq!(report.sequence, self.counted + 1, "in order, without a gap");
        self.counted = report.sequence;
        let metrics = metrics(&report.bytes);
        self.requests += total(&metrics, attribute::HTTP_CLIENT_REQUEST_DURATION);
        self.bytes += total(&metrics, attribute::CLIENT_IO);
    }
}

#[test]
fn a_report_says_who_what_and_how_often() {
    let (mut reporter, shard) = reporter();
    let orders = edge(&shard, "orders.shop");
    serve(&orders, "/users/1");
    serve(&orders, "/users/2");
    let mut connection = edge(&shard, "db.shop").connection(Protocol::Tcp);
    connection.peer(shard.peer(&PeerSpec {
        workload: "shop/db".parse().ok(),
        version: Some("v9".into()),
        identity: None,
    }));
    connection.to_server(7);
    shard.detected(Detected::Http1, Duration::from_micros(80));
    reporter.take(false);
    let report = reporter.queue.next().expect("one");
    let metrics = metrics(&report.bytes);
    assert_eq!(total(&metrics, attribute::HTTP_CLIENT_REQUEST_DURATION), 2);
    assert_eq!(total(&metrics, attribute::CLIENT_CONNECTIONS), 1);
    assert_eq!(total(&metrics, attribute::CLIENT_IO), 207);
    assert_eq!(total(&metrics, attribute::DETECT_DURATION), 1);
    assert_eq!(total(&metrics, attribute::CLIENT_CONNECTION_DURATION), 0, "still open");
    let text = format!("{metrics:?}");
    for word in ["/users/{id}", "orders.shop", "shop", "\"db\"", "v9", "\"tcp\"", "transmit"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    // An open connection goes on counting.
    connection.to_client(5);
    drop(connection);
    reporter.take(false);
    reporter.queue.acknowledged(1);
    let metrics = self::metrics(&reporter.queue.next().expect("one").bytes);
    assert_eq!(total(&metrics, attribute::CLIENT_IO), 5);
    assert_eq!(total(&metrics, attribute::CLIENT_CONNECTIONS), 0);
    assert_eq!(total(&metrics, attribute::CLIENT_CONNECTION_DURATION), 1);
}

#[test]
fn nothing_happened_is_no_report() {
    let (mut reporter, _shard) = reporter();
    reporter.take(false);
    assert_eq!(reporter.queue.len(), 0);
}

#[test]
fn a_full_queue_makes_the_next_report_longer_and_loses_nothing() {
    let (mut reporter, shard) = reporter();
    let edge = edge(&shard, "orders.shop");
    for _ in 0..QUEUE_MAX + 100 {
        serve(&edge, "/");
        reporter.take(false);
    }
    assert_eq!(reporter.queue.len(), QUEUE_MAX);
    assert_eq!(reporter.telemetry.limits()[Limit::ReportQueue as usize], 100);
    let mut receiver = Receiver::default();
    while let Some(report) = reporter.queue.next() {
        receiver.take(&report);
        reporter.queue.acknowledged(report.sequence);
    }
    assert_eq!(receiver.requests, QUEUE_MAX as u64);
    reporter.take(false);
    receiver.take(&reporter.queue.next().expect("the rest"));
    assert_eq!(receiver.requests, QUEUE_MAX as u64 + 100);
}

#[test]
fn a_large_snapshot_becomes_several_reports() {
    let (mut reporter, shard) = reporter();
    let edges: Vec<_> = (0..900).map(|i| edge(&shard, &format!("s{i}.shop"))).collect();
    for edge in &edges {
        for path in ["/a", "/b", "/c"] {
            serve(edge, path);
        }
    }
    reporter.take(false);
    assert!(reporter.queue.len() > 1);
    let mut receiver = Receiver::default();
    while let Some(report) = reporter.queue.next() {
        assert!(report.bytes.len() < 2 * 1024 * 1024);
        receiver.take(&report);
        reporter.queue.acknowledged(report.sequence);
    }
    assert_eq!((receiver.requests, receiver.bytes), (2700, 270_000));
}

#[derive(Debug, Clone)]
enum Step {
    Serve(u8, u8),
    Take,
    /// The report arrives and its acknowledgement comes back, or does not.
    Send {
        acknowledged: bool,
    },
    /// Workers let go of what is idle.
    Sweep,
    Scrape,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4_u8, 0..50_u8).prop_map(|(service, path)| Step::Serve(service, path)),
        3 => Just(Step::Take),
        3 => any::<bool>().prop_map(|acknowledged| Step::Send { acknowledged }),
        1 => Just(Step::Sweep),
        1 => Just(Step::Scrape),
    ];
    proptest::collection::vec(step, 0..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_counted_is_what_happened(steps in steps()) {
        let (mut reporter, one) = reporter();
        let two = reporter.telemetry.shard();
        let mut receiver = Receiver::default();
        let mut served = 0;
        let mut clock = std::time::Instant::now();
        for step in steps {
            match step {
                Step::Serve(service, path) => {
                    let shard = if path % 2 == 0 { &one } else { &two };
                    let letters = [b'a' + path % 26, b'a' + path / 26].map(char::from);
                    // Fifty words in one place: routes are folded on the way.
                    serve(&edge(shard, &format!("s{service}.shop")), &format!("/x/{}{}", letters[0], letters[1]));
                    served += 1;
                }
                Step::Take => reporter.take(false),
                Step::Send { acknowledged } => {
                    if let Some(report) = reporter.queue.next() {
                        receiver.take(&report);
                        if acknowledged {
                            reporter.queue.acknowledged(report.sequence);
                        } else {
                            reporter.queue.failed(0.5);
                        }
                    }
                }
                Step::Sweep => {
                    clock += Duration::from_secs(601);
                    one.sweep_at(clock);
                    two.sweep_at(clock);
                    reporter.telemetry.tidy();
                }
                Step::Scrape => drop(reporter.telemetry.encode()),
            }
        }
        drop((one, two));
        reporter.take(true);
        while let Some(report) = reporter.queue.next() {
            receiver.take(&report);
            reporter.queue.acknowledged(report.sequence);
        }
        prop_assert_eq!(receiver.requests, served);
        prop_assert_eq!(receiver.bytes, served * 100);
    }
}
