//! Which checks are taken, when the next one comes, and how a refusal reads.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::health_check::CustomHealthCheck;

use super::super::tests::{ms, n, of};
use super::*;
use crate::balance::breaker::health;

fn checker(checker: HealthChecker) -> HealthCheck {
    HealthCheck {
        timeout: ms(1000),
        interval: ms(5000),
        unhealthy_threshold: n(3),
        healthy_threshold: n(2),
        health_checker: Some(checker),
        ..Default::default()
    }
}

fn checked(check: HealthCheck) -> Result<Settings, String> {
    let settings = of(&Cluster { health_checks: vec![check], ..Default::default() })?;
    Ok(settings.checks.into_iter().next().expect("one was asked for"))
}

fn http(change: impl FnOnce(&mut HttpHealthCheck)) -> Result<Probe, String> {
    let mut check = HttpHealthCheck { path: "/live".into(), ..Default::default() };
    change(&mut check);
    checked(checker(HealthChecker::HttpHealthCheck(check))).map(|check| check.probe)
}

fn tcp(change: impl FnOnce(&mut TcpHealthCheck)) -> Result<Probe, String> {
    let mut check = TcpHealthCheck::default();
    change(&mut check);
    checked(checker(HealthChecker::TcpHealthCheck(check))).map(|check| check.probe)
}

fn payload(payload: payload::Payload) -> Payload {
    Payload { payload: Some(payload) }
}

#[test]
fn a_checks_times_have_envoys_defaults() {
    let check = checked(checker(HealthChecker::TcpHealthCheck(TcpHealthCheck::default())));
    let check = check.expect("valid");
    let second = Duration::from_secs;
    assert_eq!((check.timeout, check.interval), (second(1), second(5)));
    assert_eq!((check.unhealthy_interval, check.unhealthy_edge_interval), (second(5), second(5)));
    assert_eq!(check.healthy_edge_interval, second(5));
    assert_eq!((check.no_traffic_interval, check.no_traffic_healthy_interval), (second(60), second(60)));
    assert_eq!((check.unhealthy_threshold, check.healthy_threshold), (3, 2));
    assert_eq!(check.probe, Probe::Tcp { send: vec![], receive: vec![] });

    let full = checked(HealthCheck {
        unhealthy_interval: ms(7),
        healthy_edge_interval: ms(8),
        no_traffic_interval: ms(9),
        initial_jitter: ms(10),
        interval_jitter: ms(11),
        interval_jitter_percent: 12,
        ..checker(HealthChecker::TcpHealthCheck(TcpHealthCheck::default()))
    });
    let full = full.expect("valid");
    let milli = Duration::from_millis;
    assert_eq!((full.unhealthy_interval, full.unhealthy_edge_interval), (milli(7), milli(7)));
    assert_eq!(full.healthy_edge_interval, milli(8));
    assert_eq!((full.no_traffic_interval, full.no_traffic_healthy_interval), (milli(9), milli(9)));
    assert_eq!(
        (full.initial_jitter, full.interval_jitter, full.interval_jitter_percent),
        (milli(10), milli(11), 12)
    );
}

#[test]
fn the_next_check_comes_when_the_latest_result_says() {
    let milli = Duration::from_millis;
    let settings = checked(HealthCheck {
        interval: ms(1),
        unhealthy_interval: ms(2),
        healthy_edge_interval: ms(3),
        unhealthy_edge_interval: ms(4),
        no_traffic_interval: ms(5),
        no_traffic_healthy_interval: ms(6),
        ..checker(HealthChecker::TcpHealthCheck(TcpHealthCheck::default()))
    })
    .expect("valid");
    use health::Checked::{Failed, FailedForGood, Passed};
    let table = [
        (vec![Passed], 1, 6),
        (vec![Failed], 4, 5),
        (vec![Failed, Failed, Failed], 2, 5),
        (vec![FailedForGood], 2, 5),
        (vec![FailedForGood, Passed], 3, 6),
        (vec![FailedForGood, Passed, Passed], 1, 6),
        (vec![FailedForGood, Passed, Failed], 2, 5),
    ];
    for (results, with_traffic, without) in table {
        let start = health::Verdict::default();
        let verdict = results.iter().fold(start, |verdict, result| verdict.after(&settings, *result));
        assert_eq!(settings.pause(verdict, true, 0.0), milli(with_traffic), "{results:?}");
        assert_eq!(settings.pause(verdict, false, 0.0), milli(without), "{results:?}");
    }
}

#[test]
fn no_time_is_so_long_that_a_pause_overflows() {
    let age = Some(ProtoDuration { seconds: i64::MAX, nanos: 0 });
    let settings = checked(HealthCheck {
        interval: age,
        interval_jitter: age,
        interval_jitter_percent: u32::MAX,
        ..checker(HealthChecker::TcpHealthCheck(TcpHealthCheck::default()))
    });
    let settings = settings.expect("long, but a time");
    assert!(settings.pause(health::Verdict::default(), true, 0.999) > settings.interval);
}

#[test]
fn an_http_check_asks_for_a_status() {
    let plain = Probe::Http {
        method: Method::GET,
        host: None,
        path: "/live".into(),
        http2: false,
        expected: std::iter::once(200..201).collect(),
        retriable: vec![],
    };
    assert_eq!(http(|_| {}), Ok(plain));
    let full = http(|check| {
        check.host = "orders.shop:8080".into();
        check.path = "/live?deep=1".into();
        check.method = RequestMethod::Head.into();
        check.codec_client_type = CodecClientType::Http2.into();
        check.expected_statuses =
            vec![Int64Range { start: 200, end: 300 }, Int64Range { start: 404, end: 405 }];
        check.retriable_statuses = vec![Int64Range { start: 500, end: 600 }];
    });
    let expected = Probe::Http {
        method: Method::HEAD,
        host: Some("orders.shop:8080".into()),
        path: "/live?deep=1".into(),
        http2: true,
        expected: vec![200..300, 404..405],
        retriable: std::iter::once(500..600).collect(),
    };
    assert_eq!(full, Ok(expected));
}

#[test]
fn other_checks_ask_what_their_protocol_has() {
    let grpc = GrpcHealthCheck {
        service_name: "shop.Orders".into(),
        authority: "orders".into(),
        ..Default::default()
    };
    assert_eq!(
        checked(checker(HealthChecker::GrpcHealthCheck(grpc))).map(|check| check.probe),
        Ok(Probe::Grpc { service: "shop.Orders".into(), authority: Some("orders".into()) })
    );
    let redis = tcp(|check| {
        check.send = Some(payload(payload::Payload::Text("50494E470d0a".into())));
        check.receive = vec![payload(payload::Payload::Binary(b"PONG".to_vec()))];
    });
    assert_eq!(redis, Ok(Probe::Tcp { send: b"PING\r\n".to_vec(), receive: vec![b"PONG".to_vec()] }));
}

#[test]
fn a_check_that_cannot_be_made_is_named() {
    let place = "health_checks[0]";
    let custom = HealthChecker::CustomHealthCheck(CustomHealthCheck::default());
    let one = || checker(HealthChecker::TcpHealthCheck(TcpHealthCheck::default()));
    let table = [
        (HealthCheck { timeout: None, ..one() }, "timeout is missing"),
        (HealthCheck { interval: ms(0), ..one() }, "interval: \"0s 0ns\" is not a positive duration"),
        (HealthCheck { healthy_threshold: None, ..one() }, "healthy_threshold is missing"),
        (HealthCheck { unhealthy_threshold: n(0), ..one() }, "unhealthy_threshold: \"0\" is never reached"),
        (
            HealthCheck { alt_port: n(1), ..one() },
            "alt_port: a port for checks only is not supported by this proxy",
        ),
        (HealthCheck { health_checker: None, ..one() }, "health_checker is missing"),
        (checker(custom), "custom_health_check: a plugin is not supported by this proxy"),
    ];
    for (check, text) in table {
        assert_eq!(checked(check), Err(format!("{place}.{text}")));
    }
    let two = Cluster { health_checks: vec![one(), one()], ..Default::default() };
    assert_eq!(of(&two), Err("health_checks[1]: more than one check is not supported by this proxy".into()));
}

#[test]
fn a_probe_that_cannot_be_sent_is_named() {
    type Change = fn(&mut HttpHealthCheck);
    let place = "health_checks[0].http_health_check";
    let table: [(Change, &str); 6] = [
        (|c| c.path = "live".into(), "path: \"live\" is not a path"),
        (|c| c.host = "a b".into(), "host: \"a b\" is not a host"),
        (|c| c.method = RequestMethod::Connect.into(), "method: \"CONNECT\" is no method of a check"),
        (
            |c| c.expected_statuses = vec![Int64Range { start: 200, end: 601 }],
            "expected_statuses[0]: \"200..601\" is not a range of statuses",
        ),
        (
            |c| c.retriable_statuses = vec![Int64Range { start: 300, end: 300 }],
            "retriable_statuses[0]: \"300..300\" is not a range of statuses",
        ),
        (
            |c| c.receive = vec![Payload::default()],
            "receive: a look at the answer's body is not supported by this proxy",
        ),
    ];
    for (change, text) in table {
        assert_eq!(http(change), Err(format!("{place}.{text}")));
    }
    let place = "health_checks[0].tcp_health_check";
    for (text, problem) in [
        ("abc", ".text: \"abc\" is not hexadecimal"),
        ("zz", ".text: \"zz\" is not hexadecimal"),
        ("", ": \"\" is empty"),
    ] {
        let sent = tcp(|check| check.send = Some(payload(payload::Payload::Text(text.into()))));
        assert_eq!(sent, Err(format!("{place}.send{problem}")));
    }
    assert_eq!(
        tcp(|check| check.receive = vec![Payload::default()]),
        Err(format!("{place}.receive[0] is missing"))
    );
}
