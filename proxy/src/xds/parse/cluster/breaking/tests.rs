//! Which guards are taken, and how a refusal reads.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::BoolValue;

use super::super::super::super::plane;
use super::super::super::explain;
use super::*;

pub(super) fn of(cluster: &Cluster) -> Result<Settings, String> {
    let labels = Labels::of(cluster.metadata.as_ref(), "cluster");
    settings(cluster, &labels).map_err(|error| explain(&error))
}

pub(super) fn n(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn ms(millis: i64) -> Option<ProtoDuration> {
    Some(ProtoDuration { seconds: millis / 1000, nanos: (millis % 1000 * 1_000_000) as i32 })
}

fn judged(change: impl FnOnce(&mut OutlierDetection)) -> Result<outlier::Settings, String> {
    let mut message = OutlierDetection::default();
    change(&mut message);
    let cluster = Cluster { outlier_detection: Some(message), ..Default::default() };
    of(&cluster).map(|settings| settings.outlier.expect("was asked for"))
}

fn limited(change: impl FnOnce(&mut Thresholds)) -> Result<limits::Settings, String> {
    let mut message = Thresholds::default();
    change(&mut message);
    let breakers = CircuitBreakers { thresholds: vec![message], ..Default::default() };
    of(&Cluster { circuit_breakers: Some(breakers), ..Default::default() }).map(|settings| settings.limits)
}

fn guarded(labels: &[(&str, &str)]) -> Result<Option<circuit::Settings>, String> {
    of(&Cluster { metadata: plane::labels(labels), ..Default::default() }).map(|settings| settings.circuit)
}

#[test]
fn nothing_said_is_envoys_limits_and_nothing_else() {
    assert_eq!(of(&Cluster::default()), Ok(Settings::default()));
    assert_eq!(judged(|_| {}), Ok(outlier::Settings::default()));
    assert_eq!(limited(|_| {}), Ok(limits::Settings::default()));
}

#[test]
fn every_field_of_outlier_detection_counts() {
    let read = judged(|message| {
        message.consecutive_5xx = n(1);
        message.interval = ms(2000);
        message.base_ejection_time = ms(3000);
        message.max_ejection_time = ms(4000);
        message.max_ejection_time_jitter = ms(50);
        message.max_ejection_percent = n(60);
        message.enforcing_consecutive_5xx = n(7);
        message.enforcing_success_rate = n(8);
        message.success_rate_minimum_hosts = n(9);
        message.success_rate_request_volume = n(10);
        message.success_rate_stdev_factor = n(1100);
        message.consecutive_gateway_failure = n(12);
        message.enforcing_consecutive_gateway_failure = n(13);
        message.split_external_local_origin_errors = true;
        message.consecutive_local_origin_failure = n(0);
        message.enforcing_consecutive_local_origin_failure = n(15);
        message.enforcing_local_origin_success_rate = n(16);
        message.failure_percentage_threshold = n(17);
        message.enforcing_failure_percentage = n(18);
        message.enforcing_failure_percentage_local_origin = n(19);
        message.failure_percentage_minimum_hosts = n(20);
        message.failure_percentage_request_volume = n(21);
        message.successful_active_health_check_uneject_host = Some(BoolValue { value: false });
        message.always_eject_one_host = Some(BoolValue { value: true });
    });
    let expected = outlier::Settings {
        interval: Duration::from_secs(2),
        base_ejection_time: Duration::from_secs(3),
        max_ejection_time: Duration::from_secs(4),
        max_ejection_time_jitter: Duration::from_millis(50),
        max_ejection_percent: 60,
        always_eject_one: true,
        consecutive_5xx: 1,
        consecutive_gateway_failure: 12,
        consecutive_local_origin_failure: 0,
        split: true,
        success_rate: SuccessRate { minimum_hosts: 9, request_volume: 10, stdev_factor: 1100 },
        failure_percentage: FailurePercentage { threshold: 17, minimum_hosts: 20, request_volume: 21 },
        enforcing: Enforcing {
            consecutive_5xx: 7,
            consecutive_gateway_failure: 13,
            consecutive_local_origin_failure: 15,
            success_rate: 8,
            success_rate_local_origin: 16,
            failure_percentage: 18,
            failure_percentage_local_origin: 19,
        },
        health_check_unejects: false,
    };
    assert_eq!(read, Ok(expected));
}

#[test]
fn the_longest_ejection_is_at_least_the_first() {
    let read = judged(|message| message.base_ejection_time = ms(400_000));
    assert_eq!(read.map(|settings| settings.max_ejection_time), Ok(Duration::from_secs(400)));
    let refused = judged(|message| {
        message.base_ejection_time = ms(5000);
        message.max_ejection_time = ms(4000);
    });
    let text = "outlier_detection.max_ejection_time: \"4s\" is less than base_ejection_time";
    assert_eq!(refused, Err(text.into()));
}

#[test]
fn what_makes_no_sense_of_outlier_detection_is_named() {
    type Change = fn(&mut OutlierDetection);
    let table: [(Change, &str); 6] = [
        (|m| m.interval = ms(0), "interval: \"0s 0ns\" is not a positive duration"),
        (
            |m| m.base_ejection_time = Some(ProtoDuration { seconds: -1, nanos: 0 }),
            "base_ejection_time: \"-1s 0ns\" is not a positive duration",
        ),
        (|m| m.max_ejection_percent = n(101), "max_ejection_percent: \"101\" is more than 100"),
        (
            |m| m.enforcing_local_origin_success_rate = n(300),
            "enforcing_local_origin_success_rate: \"300\" is more than 100",
        ),
        (
            |m| m.monitors = vec![TypedExtensionConfig::default()],
            "monitors: a plugin is not supported by this proxy",
        ),
        (
            |m| m.detect_degraded_hosts = Some(BoolValue { value: true }),
            "detect_degraded_hosts: sparing endpoints that call themselves degraded is not supported by this proxy",
        ),
    ];
    for (change, text) in table {
        assert_eq!(judged(change), Err(format!("outlier_detection.{text}")));
    }
}

#[test]
fn a_budget_wins_over_a_number_of_retries() {
    let read = limited(|thresholds| {
        thresholds.max_connections = n(1);
        thresholds.max_pending_requests = n(2);
        thresholds.max_requests = n(3);
        thresholds.max_retries = n(4);
    });
    let numbers = limits::Settings {
        max_connections: 1,
        max_pending_requests: 2,
        max_requests: 3,
        retries: Retries::Max(4),
    };
    assert_eq!(read, Ok(numbers));
    let budget = RetryBudget {
        budget_percent: Some(Percent { value: 12.5 }),
        min_retry_concurrency: n(7),
        ..Default::default()
    };
    let share = Share::percent(12.5).expect("a share");
    let both = limited(|thresholds| {
        thresholds.max_retries = n(4);
        thresholds.retry_budget = Some(budget);
    });
    assert_eq!(both.map(|limits| limits.retries), Ok(Retries::Budget { share, min_concurrency: 7 }));
    let share = Share::percent(limits::BUDGET_PERCENT).expect("a share");
    let empty = limited(|thresholds| thresholds.retry_budget = Some(RetryBudget::default()));
    let min_concurrency = limits::MIN_RETRY_CONCURRENCY;
    assert_eq!(empty.map(|limits| limits.retries), Ok(Retries::Budget { share, min_concurrency }));
}

#[test]
fn thresholds_of_another_priority_are_passed_over() {
    let high =
        Thresholds { priority: RoutingPriority::High.into(), max_requests: n(1), ..Default::default() };
    let default = Thresholds { max_requests: n(2), ..Default::default() };
    let later = Thresholds { max_requests: n(3), ..Default::default() };
    let breakers = |thresholds| Cluster {
        circuit_breakers: Some(CircuitBreakers { thresholds, ..Default::default() }),
        ..Default::default()
    };
    let read = |thresholds| of(&breakers(thresholds)).map(|settings| settings.limits.max_requests);
    assert_eq!(read(vec![high, default, later]), Ok(2));
    assert_eq!(read(vec![high]), Ok(limits::MAX_REQUESTS));
}

#[test]
fn what_makes_no_sense_of_circuit_breakers_is_named() {
    let budget = |percent: f64, interval| {
        limited(move |thresholds| {
            thresholds.retry_budget = Some(RetryBudget {
                budget_percent: Some(Percent { value: percent }),
                budget_interval: interval,
                ..Default::default()
            });
        })
    };
    let place = "circuit_breakers.thresholds[0]";
    for percent in [-1.0, 100.5, f64::NAN] {
        let text = format!("{place}.retry_budget.budget_percent.value: \"{percent}\" is not a percentage");
        assert_eq!(budget(percent, None), Err(text));
    }
    assert!(budget(20.0, ms(0)).is_ok(), "0 is what there is without");
    assert_eq!(
        budget(20.0, ms(100)),
        Err(format!(
            "{place}.retry_budget.budget_interval: a budget of requests that have ended is not supported by this proxy"
        ))
    );
    assert_eq!(
        limited(|thresholds| thresholds.max_connection_pools = n(1)),
        Err(format!(
            "{place}.max_connection_pools: a bound on connection pools is not supported by this proxy"
        ))
    );
    let per_host = CircuitBreakers { per_host_thresholds: vec![Thresholds::default()], ..Default::default() };
    assert_eq!(
        of(&Cluster { circuit_breakers: Some(per_host), ..Default::default() }),
        Err("circuit_breakers.per_host_thresholds: limits for each endpoint is not supported by this proxy"
            .into())
    );
}

#[test]
fn a_service_circuit_is_read_from_metadata() {
    assert_eq!(guarded(&[("balancer", "peak_ewma")]), Ok(None));
    let window = Duration::from_secs(20);
    assert_eq!(
        guarded(&[("circuit_window_ms", "20000")]),
        Ok(Some(circuit::Settings { window, ..circuit::Settings::default() }))
    );
    let all = [
        ("circuit_window_ms", "20000"),
        ("circuit_minimum_calls", "3"),
        ("circuit_error_percent", "40"),
        ("circuit_slow_ms", "250"),
        ("circuit_slow_percent", "60"),
        ("circuit_open_ms", "1500"),
        ("circuit_open_max_ms", "9000"),
        ("circuit_probes", "63"),
    ];
    let expected = circuit::Settings {
        window,
        minimum_calls: 3,
        error_percent: 40,
        slow: Some(circuit::Slow { threshold: Duration::from_millis(250), percent: 60 }),
        open: Duration::from_millis(1500),
        open_max: Duration::from_secs(9),
        probes: 63,
    };
    assert_eq!(guarded(&all), Ok(Some(expected)));
    let long = guarded(&[("circuit_window_ms", "20000"), ("circuit_open_ms", "120000")]);
    assert_eq!(
        long.map(|circuit| circuit.map(|circuit| circuit.open_max)),
        Ok(Some(Duration::from_secs(120)))
    );
}

#[test]
fn nonsense_about_a_circuit_is_named() {
    let table = [
        ("circuit_window_ms", "0", "is out of range"),
        ("circuit_window_ms", "3600001", "is out of range"),
        ("circuit_window_ms", "ten", "is out of range"),
        ("circuit_minimum_calls", "0", "is out of range"),
        ("circuit_error_percent", "101", "is out of range"),
        ("circuit_slow_percent", "80", "has no circuit_slow_ms beside it"),
        ("circuit_open_ms", "-1", "is out of range"),
        ("circuit_open_max_ms", "10", "is less than circuit_open_ms"),
        ("circuit_probes", "64", "is out of range"),
    ];
    for (key, text, problem) in table {
        let window = ("circuit_window_ms", "1000");
        let labels = if key == window.0 { vec![(key, text)] } else { vec![window, (key, text)] };
        let expected = format!("cluster.metadata[weft.dev].{key}: {text:?} {problem}");
        assert_eq!(guarded(&labels), Err(expected));
    }
    assert_eq!(
        guarded(&[("circuit_probes", "3")]),
        Err("cluster.metadata[weft.dev].circuit_probes: \"3\" has no circuit_window_ms beside it".into())
    );
}
