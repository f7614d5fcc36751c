use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Request, StatusCode};
use weft_wire::{DecidedBy, Reason};

use super::*;

fn telemetry(config: Config) -> Arc<Telemetry> {
    let identity = Identity {
        workload: "shop/web".parse().expect("valid"),
        version: None,
        pod: None,
        instance: "i".into(),
    };
    Telemetry::new(config, identity)
}

fn spec(service: &str) -> EdgeSpec {
    EdgeSpec {
        direction: Direction::Outbound,
        service: service.parse().ok(),
        server_address: service.into(),
        server_port: 8080,
        tls: Tls::None,
        client: None,
        caller: None,
    }
}

fn parts(path: &str) -> http::request::Parts {
    Request::get(path).body(()).expect("valid").into_parts().0
}

fn grpc(path: &str) -> http::request::Parts {
    Request::post(path).header("content-type", "application/grpc").body(()).expect("valid").into_parts().0
}

fn serve(edge: &Rc<Edge>, path: &str) {
    let mut record = edge.request(&parts(path));
    record.response(StatusCode::OK, &HeaderMap::new());
    record.complete();
}

#[test]
fn probes_are_counted_and_not_logged() {
    let config = Config { access_log: access_log::Mode::All, ..Config::standard() };
    let telemetry = telemetry(config);
    let edge = telemetry.shard().edge(&EdgeSpec { direction: Direction::Inbound, ..spec("web.shop") });
    let ask = |agent: &'static str| {
        let request = Request::get("/healthz").header("user-agent", agent).body(()).expect("valid");
        let mut record = edge.request(&request.into_parts().0);
        record.response(StatusCode::OK, &HeaderMap::new());
        record.complete();
    };
    ask("kube-probe/1.36");
    ask("curl/8");
    assert_eq!(sample(&telemetry, "http_server_request_duration_seconds_count", &[]), Some(2.0));
    let mut lines = telemetry.access_log_queue.lock().expect("not poisoned").take().expect("not taken");
    assert!(lines.try_recv().is_ok());
    assert!(lines.try_recv().is_err());
}

/// The value of the only sample of `name` whose labels contain all of `labels`.
fn sample(telemetry: &Telemetry, name: &str, labels: &[&str]) -> Option<f64> {
    let page = String::from_utf8(telemetry.encode()).expect("utf-8");
    let mut found = page.lines().filter(|line| {
        line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|label| line.contains(label))
    });
    let value = found.next()?.rsplit(' ').next()?.parse().ok();
    assert!(found.next().is_none(), "more than one {name} {labels:?} in\n{page}");
    value
}

const COUNT: &str = "http_client_request_duration_seconds_count";

#[test]
fn a_request_is_recorded_once_with_its_labels() {
    let telemetry = telemetry(Config::standard());
    let shard = telemetry.shard();
    let edge = shard.edge(&spec("orders.shop"));
    let peer = shard.peer(&PeerSpec {
        workload: "shop/orders".parse().ok(),
        version: Some("v2".into()),
        identity: None,
    });
    let mut record = edge.request(&parts("/users/42?q=1"));
    record.peer(peer);
    record.request_bytes(10);
    record.response(StatusCode::OK, &HeaderMap::new());
    record.response_bytes(1000);
    record.complete();
    assert_eq!(sample(&telemetry, COUNT, &[]), None, "not before the end");
    drop(record);
    let labels = [
        r#"http_route="/users/{id}""#,
        r#"http_request_method="GET""#,
        r#"http_response_status_code="200""#,
        r#"weft_peer_service="orders.shop""#,
        r#"weft_peer_workload="orders""#,
        r#"weft_peer_namespace="shop""#,
        r#"weft_peer_version="v2""#,
        r#"server_port="8080""#,
        r#"weft_tls="none""#,
        r#"network_protocol_version="1.1""#,
    ];
    assert_eq!(sample(&telemetry, COUNT, &labels), Some(1.0));
    assert_eq!(sample(&telemetry, COUNT, &["error_type"]), None);
    let bytes = |direction| sample(&telemetry, "weft_client_io_bytes_total", &[direction, r#"="http""#]);
    assert_eq!(bytes(r#"="transmit""#), Some(10.0));
    assert_eq!(bytes(r#"="receive""#), Some(1000.0));
}

#[test]
fn a_record_dropped_early_is_a_cancelled_request() {
    let telemetry = telemetry(Config::standard());
    let edge = telemetry.shard().edge(&spec("orders.shop"));
    drop(edge.request(&parts("/")));
    assert_eq!(sample(&telemetry, COUNT, &[r#"error_type="client_cancelled""#]), Some(1.0));
}

#[test]
fn a_failure_is_named_by_its_first_reason() {
    let telemetry = telemetry(Config::standard());
    let edge = telemetry.shard().edge(&spec("orders.shop"));
    let mut record = edge.request(&parts("/"));
    record.failed(Reason::ConnectRefused, DecidedBy::ClientProxy);
    record.failed(Reason::RetryBudgetExhausted, DecidedBy::ClientProxy);
    record.response(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new());
    drop(record);
    let labels = [r#"error_type="connect_refused""#, r#"http_response_status_code="503""#];
    assert_eq!(sample(&telemetry, COUNT, &labels), Some(1.0));
}

#[test]
fn the_other_sidecars_reason_is_the_reason_here_too() {
    let telemetry = telemetry(Config::standard());
    let shard = telemetry.shard();
    let mut headers = HeaderMap::new();
    headers.insert("x-weft-reason", HeaderValue::from_static("connect_refused; by=server_proxy"));
    let answer = |edge: &Rc<Edge>| {
        let mut record = edge.request(&parts("/"));
        record.response(StatusCode::BAD_GATEWAY, &headers);
        record.complete();
    };
    let outbound = shard.edge(&spec("orders.shop"));
    answer(&outbound);
    assert_eq!(sample(&telemetry, COUNT, &[r#"error_type="connect_refused""#]), Some(1.0));
    // An app's word about itself is not taken.
    let inbound = shard.edge(&EdgeSpec { direction: Direction::Inbound, ..spec("orders.shop") });
    answer(&inbound);
    let inbound = "http_server_request_duration_seconds_count";
    assert_eq!(sample(&telemetry, inbound, &[r#"error_type="502""#]), Some(1.0));
}

#[test]
fn grpc_is_judged_by_its_own_status() {
    let status = |code| {
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))])
    };
    let run = |finish: &dyn Fn(&mut RequestRecord)| {
        let telemetry = telemetry(Config::standard());
        let edge = telemetry.shard().edge(&spec("cart.shop"));
        let mut record = edge.request(&grpc("/shop.Cart/Add"));
        finish(&mut record);
        record.complete();
        drop(record);
        (telemetry, edge)
    };
    // In trailers.
    let (telemetry, _edge) = run(&|record| {
        record.response(StatusCode::OK, &HeaderMap::new());
        record.trailers(&status("14"));
    });
    let labels =
        [r#"error_type="unavailable""#, r#"rpc_grpc_status_code="14""#, r#"http_route="/shop.Cart/Add""#];
    assert_eq!(sample(&telemetry, COUNT, &labels), Some(1.0));
    // Trailers-only, and no failure of the server.
    let (telemetry, _edge) = run(&|record| record.response(StatusCode::OK, &status("5")));
    assert_eq!(sample(&telemetry, COUNT, &[r#"rpc_grpc_status_code="5""#]), Some(1.0));
    assert_eq!(sample(&telemetry, COUNT, &["error_type"]), None);
    // A response without any status.
    let (telemetry, _edge) = run(&|record| record.response(StatusCode::OK, &HeaderMap::new()));
    assert_eq!(sample(&telemetry, COUNT, &[r#"error_type="unknown""#]), Some(1.0));
}

#[test]
fn workers_add_up_and_idle_series_do_not_take_their_counts_along() {
    let telemetry = telemetry(Config::standard());
    let (one, two) = (telemetry.shard(), telemetry.shard());
    serve(&one.edge(&spec("orders.shop")), "/a");
    serve(&two.edge(&spec("orders.shop")), "/a");
    serve(&two.edge(&spec("orders.shop")), "/a");
    assert_eq!(sample(&telemetry, COUNT, &[]), Some(3.0));
    let now = Instant::now();
    one.sweep_at(now);
    one.sweep_at(now + Duration::from_secs(599));
    assert_eq!(telemetry.settle().requests.len(), 1);
    one.sweep_at(now + Duration::from_secs(601));
    assert_eq!(sample(&telemetry, COUNT, &[]), Some(3.0), "the other worker's series lives");
    two.sweep_at(now);
    two.sweep_at(now + Duration::from_secs(601));
    assert_eq!(sample(&telemetry, COUNT, &[]), None, "idle everywhere");
    assert_eq!(telemetry.settle().requests.len(), 0);
}

#[test]
fn learned_routes_replace_the_ones_they_came_from() {
    let telemetry = telemetry(Config::standard());
    let shard = telemetry.shard();
    let edge = shard.edge(&spec("users.shop"));
    for i in 0..100_u8 {
        let name: String = [b'a' + i % 26, b'k' + i / 26, b'x'].map(char::from).iter().collect();
        serve(&edge, &format!("/users/{name}"));
    }
    assert_eq!(sample(&telemetry, COUNT, &[]), Some(100.0));
    assert_eq!(sample(&telemetry, COUNT, &[r#"http_route="/users/{param}""#]), Some(100.0));
    let now = Instant::now();
    shard.sweep_at(now);
    shard.sweep_at(now);
    assert_eq!(
        sample(&telemetry, COUNT, &[]),
        Some(100.0),
        "folded series are let go at once, their counts stay"
    );
}

#[test]
fn a_scan_shows_as_overflow_and_stays_bounded() {
    let config = Config { route_cap: 20, access_log: access_log::Mode::Off, ..Config::standard() };
    let telemetry = telemetry(config);
    let shard = telemetry.shard();
    let edge = shard.edge(&spec("web.shop"));
    for i in 0..20_000 {
        serve(&edge, &format!("/a{}/b{}/c{}", i % 30, i / 30 % 30, i / 900));
    }
    let page = String::from_utf8(telemetry.encode()).expect("utf-8");
    let routes = page.lines().filter(|line| line.starts_with(COUNT)).count();
    assert_eq!(routes, 21, "the cap, and the overflow");
    let other = sample(&telemetry, COUNT, &[r#"http_route="__other__""#]);
    assert_eq!(other, Some(19_980.0));
    assert_eq!(sample(&telemetry, "weft_route_folded_total", &["web.shop"]), other);
}

#[test]
fn edges_and_series_are_bounded_and_nothing_is_lost() {
    let telemetry = telemetry(Config::standard());
    let shard = telemetry.shard();
    let callers = 3000_u32;
    for caller in 0..callers {
        let spec = EdgeSpec {
            direction: Direction::Inbound,
            client: Some(IpAddr::from(caller.to_be_bytes())),
            caller: None,
            ..spec("web.shop")
        };
        let edge = shard.edge(&spec);
        for path in ["/a", "/b", "/c", "/d", "/e"] {
            serve(&edge, path);
        }
    }
    let mut total = 0;
    telemetry.settle().requests.totals(|_, totals| total += totals.count());
    assert_eq!(total, u64::from(callers) * 5);
    assert!(telemetry.settle().requests.len() <= shard::SERIES_MAX + 1100);
    assert!(sample(&telemetry, "weft_limit_total", &[r#""edges""#]) > Some(0.0));
    assert!(sample(&telemetry, "weft_limit_total", &[r#""series""#]) > Some(0.0));
}

#[test]
fn connections_count_when_they_open_and_when_they_end() {
    let telemetry = telemetry(Config::standard());
    let shard = telemetry.shard();
    let edge = shard.edge(&EdgeSpec { direction: Direction::Inbound, ..spec("db.shop") });
    let mut record = edge.connection(Protocol::Tcp);
    record.peer(PeerIndex::UNKNOWN);
    record.to_server(5);
    record.to_client(7);
    assert_eq!(sample(&telemetry, "weft_server_connections_total", &[r#""tcp""#]), Some(1.0));
    // As the server sees it, what goes to the client is transmitted.
    assert_eq!(sample(&telemetry, "weft_server_io_bytes_total", &[r#""transmit""#]), Some(7.0));
    assert_eq!(sample(&telemetry, "weft_server_io_bytes_total", &[r#""receive""#]), Some(5.0));
    assert_eq!(sample(&telemetry, "weft_server_connection_duration_seconds_count", &[]), None);
    record.failed(Reason::UpstreamReset);
    drop(record);
    let failed = [r#"error_type="upstream_reset""#];
    assert_eq!(sample(&telemetry, "weft_server_connection_duration_seconds_count", &failed), Some(1.0));
    assert_eq!(sample(&telemetry, "weft_server_connections_total", &[]), Some(1.0));
}

#[test]
fn detection_and_limits_are_visible() {
    let telemetry = telemetry(Config::standard());
    let shard = telemetry.shard();
    shard.detected(Detected::ServerFirst, Duration::from_millis(3));
    shard.limit(Limit::Connections);
    telemetry.limit(Limit::Connections);
    let detected = "weft_detect_duration_seconds_count";
    assert_eq!(sample(&telemetry, detected, &[r#"result="server_first""#]), Some(1.0));
    assert_eq!(sample(&telemetry, "weft_limit_total", &[r#"limit="connections""#]), Some(2.0));
    assert_eq!(sample(&telemetry, "weft_limit_total", &[r#"limit="pool""#]), Some(0.0));
    assert_eq!(sample(&telemetry, "weft_build_info", &[]), Some(1.0));
}

#[test]
fn what_an_app_sends_counts_by_where_its_trace_came_from() {
    let telemetry = telemetry(Config::standard());
    let shard = telemetry.shard();
    let edge = shard.edge(&spec("x.y"));
    let (parts, ()) = Request::get("/").body(()).expect("valid").into_parts();
    let mut own = HeaderMap::new();
    // Nobody has called the app yet: a timer.
    edge.request(&parts).propagate(&mut own);
    let inbound = shard.edge(&EdgeSpec { direction: Direction::Inbound, ..spec("x.y") });
    let mut headers = HeaderMap::new();
    inbound.request(&parts).propagate(&mut headers);
    // Any worker may get what the app then sends.
    let elsewhere = telemetry.shard().edge(&spec("x.y"));
    elsewhere.request(&parts).propagate(&mut headers.clone());
    edge.request(&parts).propagate(&mut headers);
    edge.request(&parts).propagate(&mut own);
    edge.request(&parts).propagate(&mut HeaderMap::new());
    let count =
        |origin: &str| sample(&telemetry, "weft_trace_requests_total", &[&format!("origin=\"{origin}\"")]);
    assert_eq!(
        ["unprompted", "carried", "own", "new"].map(count),
        [Some(1.0), Some(2.0), Some(1.0), Some(1.0)]
    );
}

#[test]
fn label_values_of_strangers_are_escaped() {
    let telemetry = telemetry(Config::standard());
    let edge = EdgeSpec { server_address: "a\"b\\c\nd".into(), service: None, ..spec("x.y") };
    let edge = telemetry.shard().edge(&edge);
    serve(&edge, "/");
    assert_eq!(sample(&telemetry, COUNT, &[r#"server_address="a\"b\\c\nd""#]), Some(1.0));
}
