//! What rules say beyond where a request goes: retries, timeouts, faults, limits, mirrors.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use weft_proxy::balance::policy::{Algorithm, Policy};
use weft_proxy::http::Target;
use weft_proxy::http::Version::Http1;
use weft_proxy::http::class::GrpcStatus;
use weft_proxy::policy::fault::{Abort, FaultPolicy};
use weft_proxy::policy::limit::TokenBucket;
use weft_proxy::policy::mirror::Mirror;
use weft_proxy::policy::retry::{Backoff, RetryOn, RetryPolicy};
use weft_proxy::route::fraction::Fraction;
use weft_proxy::route::matcher::{Matches, VirtualHost};
use weft_proxy::route::policies::{LimitSpec, RateLimit};
use weft_proxy::route::rule::{Action, Backend, Forward, Route, Rule};
use weft_proxy::xds::{Cluster, ClusterSpec, Endpoint, Listener, ListenerSpec, RouteTable};

use crate::harness::{App, GET, OK, Raw, answering, app, nobody, story, until};

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nsick";

pub(crate) fn cluster(name: &str, endpoints: &[SocketAddr]) -> Arc<Cluster> {
    Cluster::new(ClusterSpec::new(name), endpoints.iter().map(|&address| Endpoint::new(address)).collect())
}

/// A destination with one rule.
pub(crate) fn listener(rule: Rule, to: Arc<Cluster>, mirrors: Vec<Mirror>) -> Arc<Listener> {
    let route = Route::of(Arc::new(rule), vec![Backend::new(to, 1)], mirrors).unwrap();
    let host = VirtualHost { name: "all".into(), domains: vec!["*".into()], routes: vec![route] };
    let spec = ListenerSpec::new("outbound/10.96.0.1:80".parse().unwrap());
    Listener::new(spec, RouteTable::new(vec![host]).unwrap(), None)
}

fn service(rule: Rule, endpoints: &[SocketAddr]) -> Target {
    Target::Listener(listener(rule, cluster("orders.shop:80", endpoints), vec![]))
}

pub(crate) fn rule(change: impl FnOnce(&mut Rule)) -> Rule {
    let mut rule = Rule::to_backend("HTTPRoute/shop/orders/0", Matches::all());
    change(&mut rule);
    rule
}

pub(crate) fn forward(change: impl FnOnce(&mut Forward)) -> Rule {
    rule(|rule| {
        let mut forward = Forward { timeout: None, ..Forward::default() };
        change(&mut forward);
        rule.action = Action::Forward(forward);
    })
}

pub(crate) fn retrying(words: &str, retries: u32) -> RetryPolicy {
    RetryPolicy { retries, ..RetryPolicy::new(RetryOn::parse(words).unwrap()) }
}

fn retry(words: &str, retries: u32) -> Rule {
    forward(|forward| forward.retry = Some(retrying(words, retries)))
}

fn timeout(after: Duration) -> Rule {
    forward(|forward| forward.timeout = Some(after))
}

/// An app that answers the first request of all its connections with a 503, and then `OK`.
async fn recovering() -> App {
    let first = Cell::new(true);
    let first = Rc::new(first);
    app(move |mut raw, _| {
        let first = Rc::clone(&first);
        async move {
            while raw.try_head().await.is_some() {
                raw.write(if first.replace(false) { UNAVAILABLE } else { OK }).await;
            }
        }
    })
    .await
}

/// An app that never answers.
async fn silent() -> App {
    app(|mut raw, _| async move {
        raw.rest().await;
    })
    .await
}

#[test]
fn a_failure_is_retried_at_another_endpoint() {
    story(|mesh| async move {
        let asked = Rc::new(RefCell::new(Vec::new()));
        let mut replicas = Vec::new();
        for replica in 0..3 {
            let asked = Rc::clone(&asked);
            let serve = move |mut raw: Raw, _| {
                let asked = Rc::clone(&asked);
                async move {
                    while raw.try_head().await.is_some() {
                        asked.borrow_mut().push(replica);
                        let sick = asked.borrow().len() < 3;
                        raw.write(if sick { UNAVAILABLE } else { OK }).await;
                    }
                }
            };
            replicas.push(app(serve).await.address);
        }
        let mut client = Raw::connect(mesh.sidecar(Http1, service(retry("5xx", 2), &replicas)).await).await;
        assert_eq!(client.call(GET).await.1, "ok");
        let mut asked = asked.take();
        asked.sort_unstable();
        assert_eq!(asked, [0, 1, 2], "each once");
        mesh.recorded(&["weft_client_retries_total", "outcome=\"sent\""]).await;
        mesh.recorded(&["http_client_request_duration_seconds_count", "\"200\"", " 1"]).await;
    });
}

#[test]
fn endpoints_take_turns_from_the_first_request_on() {
    story(|mesh| async move {
        let (one, other) = (answering(OK).await, answering(OK).await);
        let mut spec = ClusterSpec::new("orders.shop:80");
        spec.balancing = Policy { algorithm: Algorithm::RoundRobin, ..Policy::default() };
        let endpoints = [&one, &other].map(|app| Endpoint::new(app.address)).to_vec();
        let to = Target::Listener(listener(rule(|_| {}), Cluster::new(spec, endpoints), vec![]));
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        for expected in [1, 2] {
            assert_eq!(client.call(GET).await.1, "ok");
            assert_eq!(one.connections() + other.connections(), expected);
        }
    });
}

#[test]
fn the_last_answer_is_the_apps_own() {
    story(|mesh| async move {
        let app = answering(UNAVAILABLE).await;
        let sidecar = mesh.sidecar(Http1, service(retry("gateway-error", 3), &[app.address])).await;
        let (head, body) = Raw::connect(sidecar).await.call(GET).await;
        assert!(head.starts_with("http/1.1 503 ") && !head.contains("x-weft-reason"), "{head}");
        assert_eq!(body, "sick");
        mesh.recorded(&["weft_client_retries_total", "outcome=\"sent\"", " 3"]).await;
        mesh.recorded(&["http_client_request_duration_seconds_count", "\"503\"", " 1"]).await;
    });
}

#[test]
fn what_the_policy_does_not_name_is_not_retried() {
    story(|mesh| async move {
        let app = answering("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        let sidecar = mesh.sidecar(Http1, service(retry("5xx,reset", 3), &[app.address])).await;
        assert!(Raw::connect(sidecar).await.call(GET).await.0.starts_with("http/1.1 404 "));
        assert!(!mesh.metrics().contains("weft_client_retries_total{"));
    });
}

#[test]
fn nobody_there_is_a_failure_to_connect() {
    story(|mesh| async move {
        let to = service(retry("connect-failure", 2), &[nobody().await]);
        let (head, _) = Raw::connect(mesh.sidecar(Http1, to).await).await.call(GET).await;
        assert!(head.contains("x-weft-reason: connect_refused; by=client_proxy"), "{head}");
        mesh.recorded(&["weft_client_retries_total", "outcome=\"sent\"", " 2"]).await;
    });
}

#[test]
fn a_body_is_sent_again_whole_with_its_trailers() {
    story(|mesh| async move {
        let bodies = Rc::new(RefCell::new(Vec::new()));
        let to = Rc::clone(&bodies);
        let app = app(move |mut raw, _| {
            let to = Rc::clone(&to);
            async move {
                while raw.try_head().await.is_some() {
                    let body = raw.until("x-sum: 7\r\n\r\n").await;
                    to.borrow_mut().push(body);
                    let first = to.borrow().len() == 1;
                    raw.write(if first { UNAVAILABLE } else { OK }).await;
                }
            }
        })
        .await;
        let sidecar = mesh.sidecar(Http1, service(retry("5xx", 1), &[app.address])).await;
        let mut client = Raw::connect(sidecar).await;
        client
            .write("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
            .await;
        client.write("5\r\nhello\r\n").await;
        tokio::task::yield_now().await;
        client.write("6\r\n world\r\n0\r\nX-Sum: 7\r\n\r\n").await;
        assert_eq!(client.response().await.1, "ok");
        let bodies = bodies.take();
        assert_eq!(bodies.len(), 2);
        for body in bodies {
            let lines: Vec<_> = body.lines().map(str::to_lowercase).collect();
            assert_eq!(lines.join("|"), "5|hello|6| world|0|x-sum: 7|");
        }
    });
}

#[test]
fn an_attempt_that_was_given_up_takes_no_more_of_the_body() {
    story(|mesh| async move {
        const LENGTH: usize = 100_000;
        let refused = Rc::new(Cell::new(false));
        let told = Rc::clone(&refused);
        let app = app(move |mut raw, connection| {
            let told = Rc::clone(&told);
            async move {
                raw.head().await;
                if connection == 1 {
                    // Answers before the body is here, and would go on reading.
                    raw.write(UNAVAILABLE).await;
                    told.set(true);
                    raw.rest().await;
                } else {
                    raw.exactly(LENGTH).await;
                    raw.write(OK).await;
                }
            }
        })
        .await;
        // Long enough for all of the body to come between the two attempts, nearly always.
        let backoff = Backoff::new(Duration::from_millis(500), None);
        let policy = RetryPolicy { backoff, ..retrying("5xx", 1) };
        let to = service(forward(|forward| forward.retry = Some(policy)), &[app.address]);
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        client.write(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
        until(|| refused.get()).await;
        client.write(vec![b'x'; LENGTH]).await;
        assert_eq!(client.response().await.1, "ok");
    });
}

#[test]
fn a_body_beyond_the_bound_is_sent_once() {
    story(|mesh| async move {
        const LENGTH: usize = 100_000;
        let app = app(|mut raw, _| async move {
            while raw.try_head().await.is_some() {
                raw.exactly(LENGTH).await;
                raw.write(UNAVAILABLE).await;
            }
        })
        .await;
        let sidecar = mesh.sidecar(Http1, service(retry("5xx", 3), &[app.address])).await;
        let mut client = Raw::connect(sidecar).await;
        client.write(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
        client.write(vec![b'x'; LENGTH]).await;
        assert!(client.response().await.0.starts_with("http/1.1 503 "));
        mesh.recorded(&["weft_limit_total", "\"buffered_body\"", " 1"]).await;
        assert!(!mesh.metrics().contains("weft_client_retries_total{"));
    });
}

#[test]
fn an_attempt_without_an_answer_in_time_is_followed_by_another() {
    story(|mesh| async move {
        let app = app(|mut raw, connection| async move {
            raw.head().await;
            if connection > 1 {
                raw.write(OK).await;
            }
            raw.rest().await;
        })
        .await;
        let per_try_timeout = Some(Duration::from_millis(50));
        let policy = RetryPolicy { per_try_timeout, ..retrying("reset", 1) };
        let to = service(forward(|forward| forward.retry = Some(policy)), &[app.address]);
        assert_eq!(Raw::connect(mesh.sidecar(Http1, to).await).await.call(GET).await.1, "ok");
        assert_eq!(app.connections(), 2);
    });
}

#[test]
fn an_attempts_time_begins_when_it_has_a_connection() {
    story(|mesh| async move {
        const WORK: Duration = Duration::from_millis(300);
        let app = app(|mut raw, _| async move {
            while raw.try_head().await.is_some() {
                tokio::time::sleep(WORK).await;
                raw.write(OK).await;
            }
        })
        .await;
        let per_try_timeout = Some(WORK * 3 / 2);
        let policy = RetryPolicy { per_try_timeout, ..retrying("reset", 1) };
        let mut spec = ClusterSpec::new("orders.shop:80");
        spec.breaking.limits.max_connections = 1;
        let cluster = Cluster::new(spec, vec![Endpoint::new(app.address)]);
        let to = listener(forward(|forward| forward.retry = Some(policy)), cluster, vec![]);
        let sidecar = mesh.sidecar(Http1, Target::Listener(to)).await;
        let mut clients = [Raw::connect(sidecar).await, Raw::connect(sidecar).await];
        for client in &mut clients {
            client.write(GET).await;
        }
        for client in &mut clients {
            assert_eq!(client.response().await.1, "ok");
        }
        assert!(!mesh.metrics().contains("weft_client_retries_total{"), "the second one only had to wait");
    });
}

#[test]
fn a_spent_budget_ends_the_attempts_and_changes_no_answer() {
    story(|mesh| async move {
        let app = answering(UNAVAILABLE).await;
        let mut spec = ClusterSpec::new("orders.shop:80");
        spec.breaking.limits.retries = weft_proxy::balance::breaker::limits::Retries::Max(0);
        let cluster = Cluster::new(spec, vec![Endpoint::new(app.address)]);
        let to = Target::Listener(listener(retry("5xx", 3), cluster, vec![]));
        let (head, body) = Raw::connect(mesh.sidecar(Http1, to).await).await.call(GET).await;
        assert!(head.starts_with("http/1.1 503 ") && !head.contains("x-weft-reason"), "{head}");
        assert_eq!(body, "sick");
        mesh.recorded(&["weft_client_retries_total", "outcome=\"budget_exhausted\"", " 1"]).await;
    });
}

#[test]
fn a_request_that_takes_too_long_is_answered_in_its_place() {
    story(|mesh| async move {
        let app = silent().await;
        let to = service(timeout(Duration::from_millis(50)), &[app.address]);
        let (head, _) = Raw::connect(mesh.sidecar(Http1, to).await).await.call(GET).await;
        assert!(head.starts_with("http/1.1 504 "), "{head}");
        assert!(head.contains("x-weft-reason: request_timeout; by=client_proxy"), "{head}");
        mesh.recorded(&["http_client_request_duration_seconds_count", "request_timeout", " 1"]).await;
    });
}

#[test]
fn the_timeout_covers_the_answers_last_byte() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
            raw.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart").await;
            raw.rest().await;
        })
        .await;
        let to = service(timeout(Duration::from_millis(100)), &[app.address]);
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        client.write(GET).await;
        assert!(client.head().await.starts_with("http/1.1 200 "));
        assert_eq!(client.rest().await.0, "part");
        mesh.recorded(&["http_client_request_duration_seconds_count", "request_timeout", " 1"]).await;
    });
}

#[test]
fn an_upload_may_take_longer_than_the_timeout() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
            raw.until("end").await;
            raw.write(OK).await;
        })
        .await;
        let to = service(timeout(Duration::from_millis(100)), &[app.address]);
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await;
        let begun = Instant::now();
        client.write("-").await;
        until(|| begun.elapsed() > Duration::from_millis(250)).await;
        client.write("end").await;
        assert_eq!(client.response().await.1, "ok");
    });
}

#[test]
fn an_aborted_request_never_reaches_the_app() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let fault = |abort| {
            rule(|rule| {
                let abort = Some((abort, Fraction::ALL));
                rule.fault = Some(FaultPolicy { delay: None, abort, headers: [].into() });
            })
        };
        let to = service(fault(Abort::Http(StatusCode::IM_A_TEAPOT)), &[app.address]);
        let (head, _) = Raw::connect(mesh.sidecar(Http1, to).await).await.call(GET).await;
        assert!(head.starts_with("http/1.1 418 "), "{head}");
        assert!(head.contains("x-weft-reason: fault_injected; by=client_proxy"), "{head}");
        let to = service(fault(Abort::Grpc(GrpcStatus::from_code(7))), &[app.address]);
        let grpc =
            "POST /a.B/C HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
        let (head, _) = Raw::connect(mesh.sidecar(Http1, to).await).await.call(grpc).await;
        assert!(head.starts_with("http/1.1 200 ") && head.contains("grpc-status: 7\r\n"), "{head}");
        assert_eq!(app.connections(), 0);
        mesh.recorded(&["http_client_request_duration_seconds_count", "fault_injected", "\"418\""]).await;
    });
}

#[test]
fn a_delayed_request_comes_late_and_its_timeout_begins_then() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let mut delayed = timeout(Duration::from_millis(200));
        let delay = Some((Duration::from_millis(300), Fraction::ALL));
        delayed.fault = Some(FaultPolicy { delay, abort: None, headers: [].into() });
        let mut client = Raw::connect(mesh.sidecar(Http1, service(delayed, &[app.address])).await).await;
        let begun = Instant::now();
        assert_eq!(client.call(GET).await.1, "ok");
        assert!(begun.elapsed() >= Duration::from_millis(300));
    });
}

#[test]
fn what_is_over_the_rate_is_refused_with_a_reason() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let limited = rule(|rule| {
            let spec = LimitSpec {
                everybody: TokenBucket::new(2, 1, Duration::from_secs(3600)),
                caller: None,
                status: StatusCode::TOO_MANY_REQUESTS,
                enabled: Fraction::ALL,
            };
            rule.rate_limit = Some(RateLimit::new(spec, Instant::now()));
        });
        let listener = listener(limited, cluster("inbound/10.0.0.7:80", &[app.address]), vec![]);
        let to = Target::Own { app: app.address, listener };
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        assert_eq!(client.call(GET).await.1, "ok");
        assert_eq!(client.call(GET).await.1, "ok");
        let (head, _) = client.call(GET).await;
        assert!(head.starts_with("http/1.1 429 "), "{head}");
        assert!(head.contains("x-weft-reason: rate_limited; by=server_proxy"), "{head}");
        mesh.recorded(&["http_server_request_duration_seconds_count", "rate_limited", " 1"]).await;
    });
}

#[test]
fn an_app_cannot_call_its_own_requests_copies() {
    story(|mesh| async move {
        let heads = Rc::new(RefCell::new(Vec::new()));
        let to = Rc::clone(&heads);
        let app = app(move |mut raw, _| {
            let to = Rc::clone(&to);
            async move {
                while let Some(head) = raw.try_head().await {
                    to.borrow_mut().push(head);
                    raw.write(OK).await;
                }
            }
        })
        .await;
        let sidecar = mesh.sidecar(Http1, service(rule(|_| {}), &[app.address])).await;
        Raw::connect(sidecar).await.call("GET / HTTP/1.1\r\nHost: a\r\nX-Weft-Mirrored: 1\r\n\r\n").await;
        assert!(!heads.borrow()[0].contains("x-weft-mirrored"), "{heads:?}");
        mesh.recorded(&["http_client_request_duration_seconds_count", "\"200\"", " 1"]).await;
    });
}

#[test]
fn a_copy_goes_to_the_mirror_and_counts_nowhere() {
    story(|mesh| async move {
        let copies = Rc::new(RefCell::new(Vec::new()));
        let to = Rc::clone(&copies);
        let mirror = app(move |mut raw, _| {
            let to = Rc::clone(&to);
            async move {
                while let Some(head) = raw.try_head().await {
                    let body = raw.exactly(if head.starts_with("post") { 5 } else { 0 }).await;
                    to.borrow_mut().push((head, body));
                    raw.write(UNAVAILABLE).await;
                }
            }
        })
        .await;
        let (app, guard) = (app_of_five().await, mesh.inbound(mirror.address).await);
        let mirror =
            Mirror { cluster: cluster("mirror.shop:80", &[guard]), share: Fraction::ALL, plain_host: false };
        let plain = rule(|_| {});
        let to = Target::Listener(listener(plain, cluster("orders.shop:80", &[app.address]), vec![mirror]));
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        assert_eq!(client.call(GET).await.1, "ok");
        client.write("POST /a HTTP/1.1\r\nHost: orders.shop:8080\r\nContent-Length: 5\r\n\r\nhello").await;
        assert_eq!(client.response().await.1, "ok");
        until(|| copies.borrow().len() == 2).await;
        for (head, body) in copies.take() {
            assert!(head.contains("host: orders.shop-shadow:8080\r\n"), "{head}");
            assert!(head.contains("x-weft-mirrored: 1\r\n"), "{head}");
            assert_eq!(body, if head.starts_with("post") { "hello" } else { "" });
        }
        mesh.recorded(&["http_client_request_duration_seconds_count", "\"200\""]).await;
        let metrics = mesh.metrics();
        assert!(!metrics.contains("http_server_request_duration_seconds_count"), "the callee counts no copy");
        assert!(!metrics.contains("\"503\""), "nor does the caller");
    });
}

/// Answers `ok` to requests with five bytes of body, or none.
async fn app_of_five() -> App {
    app(|mut raw, _| async move {
        while let Some(head) = raw.try_head().await {
            raw.exactly(if head.starts_with("post") { 5 } else { 0 }).await;
            raw.write(OK).await;
        }
    })
    .await
}

#[test]
fn a_request_after_a_recovery_is_not_held_against_the_app() {
    story(|mesh| async move {
        let app = recovering().await;
        let sidecar =
            mesh.sidecar(Http1, service(retry("retriable-status-codes,5xx", 2), &[app.address])).await;
        assert_eq!(Raw::connect(sidecar).await.call(GET).await.1, "ok");
        mesh.recorded(&["weft_client_retries_total", "outcome=\"sent\"", " 1"]).await;
    });
}
