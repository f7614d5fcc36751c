//! Whom nobody is sent to: ejected endpoints, and services whose circuit is open.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::spawn_local;
use weft_proxy::balance::breaker::{self, Position, circuit, outlier};
use weft_proxy::balance::circuits::Gauge;
use weft_proxy::balance::{ClusterState, policy};
use weft_proxy::http::Target;
use weft_proxy::http::Version::{Http1, Http2};
use weft_proxy::policy::fault::FaultPolicy;
use weft_proxy::policy::mirror::Mirror;
use weft_proxy::route::fraction::Fraction;
use weft_proxy::route::rule::Rule;
use weft_proxy::xds::{Cluster, ClusterSpec, Endpoint};

use crate::harness::{App, GET, Mesh, OK, Raw, app, nobody, story, until};
use crate::policy::{cluster, forward, listener, retrying, rule};

const BROKEN: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nsick";
const NAME: &str = "orders.shop:80";

/// How an app is, as the test says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Well,
    Sick,
    /// Answers nothing.
    Silent,
    /// Answers after this.
    Slow(Duration),
}

/// An app whose state the test changes, and that counts its calls.
struct Patient {
    app: App,
    state: Rc<Cell<State>>,
}

impl Patient {
    async fn new(state: State) -> Self {
        let (state, calls) = (Rc::new(Cell::new(state)), Rc::new(Cell::new(0)));
        let (now, count) = (Rc::clone(&state), Rc::clone(&calls));
        let serve = move |mut raw: Raw, _| {
            let (now, count) = (Rc::clone(&now), Rc::clone(&count));
            async move {
                while raw.try_head().await.is_some() {
                    count.set(count.get() + 1);
                    match now.get() {
                        State::Well => raw.write(OK).await,
                        State::Sick => raw.write(BROKEN).await,
                        State::Slow(time) => {
                            tokio::time::sleep(time).await;
                            raw.write(OK).await;
                        }
                        State::Silent => return drop(raw.rest().await),
                    }
                }
            }
        };
        Self { app: app(serve).await.counting(calls), state }
    }

    fn address(&self) -> SocketAddr {
        self.app.address
    }

    fn calls(&self) -> usize {
        self.app.calls()
    }
}

fn service(rule: Rule, endpoints: &[SocketAddr], breaking: breaker::Settings) -> Target {
    let mut spec = ClusterSpec::new(NAME);
    spec.breaking = breaking;
    // In turn, so that everybody is asked.
    spec.balancing = policy::Policy { algorithm: policy::Algorithm::RoundRobin, ..policy::Policy::default() };
    let endpoints = endpoints.iter().map(|&address| Endpoint::new(address)).collect();
    Target::Listener(listener(rule, Cluster::new(spec, endpoints), vec![]))
}

/// Ejection after so many failures in a row, of half of the endpoints, for a very long time.
fn judging(failures: u32, change: impl FnOnce(&mut outlier::Settings)) -> breaker::Settings {
    let mut outlier = outlier::Settings {
        interval: Duration::from_millis(10),
        base_ejection_time: Duration::from_secs(3600),
        max_ejection_percent: 50,
        consecutive_5xx: failures,
        consecutive_local_origin_failure: failures,
        split: true,
        ..outlier::Settings::default()
    };
    change(&mut outlier);
    breaker::Settings { outlier: Some(outlier), ..breaker::Settings::default() }
}

/// A circuit that four failures open for a very long time.
fn guarded(change: impl FnOnce(&mut circuit::Settings)) -> breaker::Settings {
    let open = Duration::from_secs(3600);
    let mut circuit = circuit::Settings {
        minimum_calls: 4,
        open,
        open_max: open,
        probes: 1,
        ..circuit::Settings::default()
    };
    change(&mut circuit);
    breaker::Settings { circuit: Some(circuit), ..breaker::Settings::default() }
}

fn state(mesh: &Mesh) -> Arc<ClusterState> {
    mesh.circuits.cluster(NAME)
}

async fn status(client: &mut Raw) -> String {
    client.call(GET).await.0[9..12].to_owned()
}

/// Calls until the circuit is open; the refusal.
async fn until_refused(client: &mut Raw) -> String {
    loop {
        let (head, _) = client.call(GET).await;
        if head.contains("x-weft-reason") {
            return head;
        }
    }
}

/// Sends a request, waits until it has arrived at the app, and goes away.
async fn give_up(sidecar: SocketAddr, app: &Patient, held: impl Fn() -> u32) {
    let calls = app.calls();
    let mut client = Raw::connect(sidecar).await;
    client.write(GET).await;
    until(|| app.calls() > calls).await;
    drop(client);
    until(|| held() == 0).await;
}

#[test]
fn an_endpoint_that_fails_in_a_row_is_not_asked_again() {
    story(|mesh| async move {
        let (sick, well) = (Patient::new(State::Sick).await, Patient::new(State::Well).await);
        let to = service(rule(|_| {}), &[sick.address(), well.address()], judging(3, |_| {}));
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        let mut failed = 0;
        for _ in 0..40 {
            failed += usize::from(status(&mut client).await == "500");
        }
        assert_eq!((failed, sick.calls(), well.calls()), (3, 3, 37));
        assert_eq!(state(&mesh).ejected(), 1);
        mesh.recorded(&["weft_circuit_state", "kind=\"endpoint\"", &sick.address().to_string(), " 2"]).await;
        mesh.recorded(&["weft_circuit_transitions_total", "to=\"open\"", " 1"]).await;
    });
}

#[test]
fn an_ejected_endpoint_comes_back_after_its_time() {
    story(|mesh| async move {
        let (sick, well) = (Patient::new(State::Sick).await, Patient::new(State::Well).await);
        let time = Duration::from_millis(100);
        let breaking = judging(1, |outlier| outlier.base_ejection_time = time);
        let to = service(rule(|_| {}), &[sick.address(), well.address()], breaking);
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        while sick.calls() == 0 {
            status(&mut client).await;
        }
        let ejected = Instant::now();
        sick.state.set(State::Well);
        while sick.calls() == 1 {
            assert_eq!(status(&mut client).await, "200");
        }
        assert!(ejected.elapsed() >= time - Duration::from_millis(5), "{:?}", ejected.elapsed());
        assert_eq!(state(&mesh).ejected(), 0);
        for _ in 0..20 {
            assert_eq!(status(&mut client).await, "200");
        }
        assert!(sick.calls() >= 10, "it has its share again");
    });
}

#[test]
fn who_does_not_accept_is_ejected_for_what_never_got_there() {
    story(|mesh| async move {
        let (dead, well) = (nobody().await, Patient::new(State::Well).await);
        let breaking = judging(2, |outlier| outlier.consecutive_5xx = 0);
        let to = service(rule(|_| {}), &[dead, well.address()], breaking);
        let sidecar = mesh.sidecar(Http1, to).await;
        let mut client = Raw::connect(sidecar).await;
        while state(&mesh).endpoint(dead).available() {
            assert_eq!(status(&mut client).await, "200", "another is tried within the attempt");
        }
        assert_eq!(state(&mesh).ejected(), 1);
        mesh.recorded(&["weft_circuit_state", &dead.to_string(), " 2"]).await;
    });
}

#[test]
fn an_answer_that_does_not_come_in_time_counts_as_local_origin() {
    story(|mesh| async move {
        let (silent, well) = (Patient::new(State::Silent).await, Patient::new(State::Well).await);
        let breaking = judging(2, |outlier| outlier.consecutive_5xx = 0);
        let rule = forward(|forward| forward.timeout = Some(Duration::from_millis(30)));
        let to = service(rule, &[silent.address(), well.address()], breaking);
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        let mut late = 0;
        for _ in 0..10 {
            late += usize::from(status(&mut client).await == "504");
        }
        assert_eq!((late, silent.calls()), (2, 2));
    });
}

#[test]
fn an_answer_that_breaks_off_is_the_endpoints_failure() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
            raw.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it").await;
        })
        .await;
        let breaking = judging(0, |outlier| {
            outlier.consecutive_local_origin_failure = 1;
            outlier.max_ejection_percent = 100;
        });
        let sidecar = mesh.sidecar(Http1, service(rule(|_| {}), &[app.address], breaking)).await;
        let mut client = Raw::connect(sidecar).await;
        client.write(GET).await;
        assert!(!client.rest().await.0.contains("x-weft-reason"), "it had begun");
        assert_eq!(state(&mesh).ejected(), 1);
    });
}

#[test]
fn every_attempt_is_charged_and_the_call_is_judged_by_its_last() {
    story(|mesh| async move {
        let (sick, well) = (Patient::new(State::Sick).await, Patient::new(State::Well).await);
        let breaking = breaker::Settings {
            circuit: guarded(|circuit| circuit.error_percent = 1).circuit,
            ..judging(4, |_| {})
        };
        let rule = forward(|forward| forward.retry = Some(retrying("5xx", 1)));
        let to = service(rule, &[sick.address(), well.address()], breaking);
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        for _ in 0..30 {
            assert_eq!(status(&mut client).await, "200");
        }
        assert_eq!(sick.calls(), 4, "ejected by attempts that no caller saw");
        assert_eq!(state(&mesh).position(), Position::Closed, "no call has failed");
    });
}

#[test]
fn a_caller_that_goes_away_says_nothing_about_the_endpoint() {
    story(|mesh| async move {
        let app = Patient::new(State::Silent).await;
        let breaking = breaker::Settings {
            circuit: guarded(|circuit| (circuit.minimum_calls, circuit.error_percent) = (1, 1)).circuit,
            ..judging(1, |outlier| outlier.max_ejection_percent = 100)
        };
        let sidecar = mesh.sidecar(Http1, service(rule(|_| {}), &[app.address()], breaking)).await;
        for _ in 0..5 {
            give_up(sidecar, &app, || state(&mesh).held(Gauge::Requests)).await;
        }
        assert_eq!((state(&mesh).ejected(), state(&mesh).position()), (0, Position::Closed));
        app.state.set(State::Well);
        assert_eq!(status(&mut Raw::connect(sidecar).await).await, "200");
    });
}

#[test]
fn a_service_that_fails_too_often_is_left_alone_until_a_probe_succeeds() {
    story(|mesh| async move {
        let app = Patient::new(State::Sick).await;
        let breaking = guarded(|circuit| (circuit.open, circuit.probes) = (Duration::from_millis(60), 2));
        let to = service(rule(|_| {}), &[app.address()], breaking);
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        let head = until_refused(&mut client).await;
        assert!(head.starts_with("http/1.1 503 "), "{head}");
        assert!(head.contains("x-weft-reason: circuit_open; by=client_proxy"), "{head}");
        assert_eq!(app.calls(), 4);
        mesh.recorded(&["http_client_request_duration_seconds_count", "circuit_open"]).await;
        // A probe that fails opens it again.
        until(|| state(&mesh).position() == Position::HalfOpen).await;
        assert_eq!(status(&mut client).await, "500");
        assert_eq!((state(&mesh).position(), app.calls()), (Position::Open, 5));
        app.state.set(State::Well);
        until(|| state(&mesh).position() == Position::HalfOpen).await;
        assert_eq!(status(&mut client).await, "200");
        assert_eq!(state(&mesh).position(), Position::HalfOpen, "both must succeed");
        assert_eq!(status(&mut client).await, "200");
        assert_eq!(state(&mesh).position(), Position::Closed);
        mesh.recorded(&["weft_circuit_transitions_total", "kind=\"service\"", "to=\"half_open\"", " 2"])
            .await;
        for _ in 0..10 {
            assert_eq!(status(&mut client).await, "200");
        }
    });
}

#[test]
fn a_service_that_is_slow_too_often_is_left_alone() {
    story(|mesh| async move {
        let threshold = Duration::from_millis(30);
        let app = Patient::new(State::Slow(threshold)).await;
        let slow = Some(circuit::Slow { threshold, percent: 100 });
        let breaking = guarded(|circuit| circuit.slow = slow);
        let to = service(rule(|_| {}), &[app.address()], breaking);
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        let head = until_refused(&mut client).await;
        assert!(head.contains("x-weft-reason: circuit_open; by=client_proxy"), "{head}");
        assert_eq!(app.calls(), 4);
    });
}

#[test]
fn a_delay_on_purpose_says_nothing_about_the_service() {
    story(|mesh| async move {
        let threshold = Duration::from_millis(200);
        let app = Patient::new(State::Well).await;
        let slow = Some(circuit::Slow { threshold, percent: 100 });
        let delayed = rule(|rule| {
            let delay = Some((threshold, Fraction::ALL));
            rule.fault = Some(FaultPolicy { delay, abort: None, headers: [].into() });
        });
        let to = service(delayed, &[app.address()], guarded(|circuit| circuit.slow = slow));
        let sidecar = mesh.sidecar(Http1, to).await;
        let mut clients = vec![];
        for _ in 0..8 {
            clients.push(Raw::connect(sidecar).await);
        }
        for client in &mut clients {
            client.write(GET).await;
        }
        for client in &mut clients {
            assert!(client.response().await.0.starts_with("http/1.1 200 "));
        }
        assert_eq!(state(&mesh).position(), Position::Closed);
        assert_eq!(status(&mut clients[0]).await, "200");
    });
}

#[test]
fn a_circuit_that_only_copies_reach_closes_again() {
    story(|mesh| async move {
        let (app, other) = (Patient::new(State::Sick).await, Patient::new(State::Well).await);
        let mut spec = ClusterSpec::new(NAME);
        spec.breaking = guarded(|circuit| {
            circuit.open = Duration::from_millis(20);
            circuit.open_max = circuit.open;
        });
        let copied = Cluster::new(spec, vec![Endpoint::new(app.address())]);
        let direct = Target::Listener(listener(rule(|_| {}), Arc::clone(&copied), vec![]));
        until_refused(&mut Raw::connect(mesh.sidecar(Http1, direct).await).await).await;
        app.state.set(State::Well);
        let mirror = Mirror { cluster: copied, share: Fraction::ALL, plain_host: false };
        let to = listener(rule(|_| {}), cluster("stable.shop:80", &[other.address()]), vec![mirror]);
        let mut client = Raw::connect(mesh.sidecar(Http1, Target::Listener(to)).await).await;
        while state(&mesh).position() != Position::Closed {
            assert_eq!(status(&mut client).await, "200");
        }
    });
}

#[test]
fn a_half_open_circuit_lets_one_probe_through_at_a_time() {
    story(|mesh| async move {
        let app = Patient::new(State::Sick).await;
        let breaking = guarded(|circuit| circuit.open = Duration::from_millis(20));
        let sidecar = mesh.sidecar(Http1, service(rule(|_| {}), &[app.address()], breaking)).await;
        let mut client = Raw::connect(sidecar).await;
        until_refused(&mut client).await;
        until(|| state(&mesh).position() == Position::HalfOpen).await;
        app.state.set(State::Silent);
        // A probe whose caller goes away gives its place to the next, as often as that happens.
        for _ in 0..3 {
            give_up(sidecar, &app, || state(&mesh).held(Gauge::Requests)).await;
            assert_eq!(state(&mesh).position(), Position::HalfOpen);
        }
        let calls = app.calls();
        let mut probe = Raw::connect(sidecar).await;
        app.state.set(State::Slow(Duration::from_millis(50)));
        probe.write(GET).await;
        until(|| app.calls() > calls).await;
        let (head, _) = client.call(GET).await;
        assert!(head.contains("x-weft-reason: circuit_open; by=client_proxy"), "{head}");
        assert_eq!(app.calls(), calls + 1, "the one probe");
        app.state.set(State::Well);
        assert_eq!(probe.response().await.1, "ok");
        assert_eq!(status(&mut client).await, "200");
        assert_eq!(state(&mesh).position(), Position::Closed);
    });
}

#[test]
fn a_refusal_of_the_proxys_own_says_nothing_about_the_service() {
    story(|mesh| async move {
        let app = Patient::new(State::Silent).await;
        let mut breaking = guarded(|circuit| circuit.minimum_calls = 1);
        breaking.limits.max_requests = 1;
        let sidecar = mesh.sidecar(Http1, service(rule(|_| {}), &[app.address()], breaking)).await;
        let mut first = Raw::connect(sidecar).await;
        first.write(GET).await;
        until(|| app.calls() == 1).await;
        let mut client = Raw::connect(sidecar).await;
        for _ in 0..5 {
            let (head, _) = client.call(GET).await;
            assert!(head.contains("x-weft-reason: concurrency_limited; by=client_proxy"), "{head}");
        }
        assert_eq!(state(&mesh).position(), Position::Closed);
    });
}

#[test]
fn who_waits_too_long_for_a_connection_is_refused() {
    story(|mesh| async move {
        let app = Patient::new(State::Silent).await;
        let mut spec = ClusterSpec::new(NAME);
        spec.connect_timeout = Duration::from_millis(50);
        spec.breaking.limits.max_connections = 1;
        let cluster = Cluster::new(spec, vec![Endpoint::new(app.address())]);
        let to = Target::Listener(listener(rule(|_| {}), cluster, vec![]));
        let sidecar = mesh.sidecar(Http1, to).await;
        let mut first = Raw::connect(sidecar).await;
        first.write(GET).await;
        until(|| app.calls() == 1).await;
        let (head, _) = Raw::connect(sidecar).await.call(GET).await;
        assert!(head.contains("x-weft-reason: concurrency_limited; by=client_proxy"), "{head}");
        mesh.recorded(&["weft_circuit_refused_total", "max_connections"]).await;
        drop(first);
        until(|| Gauge::ALL.iter().all(|gauge| state(&mesh).held(*gauge) == 0)).await;
    });
}

#[test]
fn time_that_runs_out_before_there_is_room_is_nobodys_failure() {
    story(|mesh| async move {
        let app = Patient::new(State::Silent).await;
        let mut spec = ClusterSpec::new(NAME);
        spec.breaking = judging(1, |outlier| outlier.max_ejection_percent = 100);
        spec.breaking.limits.max_connections = 1;
        let cluster = Cluster::new(spec, vec![Endpoint::new(app.address())]);
        let to = |rule| Target::Listener(listener(rule, Arc::clone(&cluster), vec![]));
        let unhurried = mesh.sidecar(Http1, to(rule(|_| {}))).await;
        let brief = forward(|forward| forward.timeout = Some(Duration::from_millis(60)));
        let hurried = mesh.sidecar(Http1, to(brief)).await;
        let mut first = Raw::connect(unhurried).await;
        first.write(GET).await;
        until(|| app.calls() == 1).await;
        let (head, _) = Raw::connect(hurried).await.call(GET).await;
        assert!(head.contains("x-weft-reason: request_timeout; by=client_proxy"), "{head}");
        assert_eq!((app.calls(), state(&mesh).ejected()), (1, 0));
        // With room it is the endpoint that does not answer.
        drop(first);
        let (head, _) = Raw::connect(hurried).await.call(GET).await;
        assert!(head.contains("x-weft-reason: request_timeout; by=client_proxy"), "{head}");
        assert_eq!(state(&mesh).ejected(), 1);
    });
}

#[test]
fn everything_held_is_given_back_whatever_ends_a_call() {
    story(|mesh| async move {
        let app = Patient::new(State::Well).await;
        let dead = nobody().await;
        let rule = forward(|forward| {
            forward.timeout = Some(Duration::from_millis(40));
            forward.retry = Some(retrying("5xx,connect-failure", 2));
        });
        let sidecar = mesh.sidecar(Http1, service(rule, &[app.address(), dead], judging(50, |_| {}))).await;
        for state in [State::Well, State::Sick, State::Silent, State::Slow(Duration::from_millis(20))] {
            app.state.set(state);
            let calls: Vec<_> = (0..8)
                .map(|_| spawn_local(async move { Raw::connect(sidecar).await.call(GET).await }))
                .collect();
            for call in calls {
                drop(call.await.unwrap());
            }
            let mut cancelled = Raw::connect(sidecar).await;
            cancelled.write(GET).await;
        }
        let busy = [Gauge::Requests, Gauge::Pending, Gauge::Retries];
        until(|| busy.iter().all(|gauge| state(&mesh).held(*gauge) == 0)).await;
    });
}

/// A gRPC app that says its status in trailers.
async fn grpc(status: &'static str) -> App {
    app(move |raw, _| async move {
        let mut connection = h2::server::handshake(raw.stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static(status));
            send.send_trailers(trailers).unwrap();
        }
    })
    .await
}

async fn grpc_status(sender: &mut h2::client::SendRequest<Bytes>) -> String {
    let request = http::Request::post("http://orders.shop/a.B/C").header("content-type", "application/grpc");
    let (response, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    let trailers = match body.data().await {
        Some(_) => None,
        None => body.trailers().await.unwrap(),
    };
    let headers = trailers.as_ref().unwrap_or(&head.headers);
    headers["grpc-status"].to_str().unwrap().to_owned()
}

#[test]
fn a_grpc_answer_is_judged_by_its_trailers() {
    story(|mesh| async move {
        let (sick, well) = (grpc("14").await, grpc("5").await);
        let breaking = judging(3, |outlier| {
            outlier.consecutive_5xx = 0;
            outlier.consecutive_gateway_failure = 3;
            outlier.enforcing.consecutive_gateway_failure = 100;
        });
        let to = service(rule(|_| {}), &[sick.address, well.address], breaking);
        let stream = tokio::net::TcpStream::connect(mesh.sidecar(Http2, to).await).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        spawn_local(connection);
        let mut unavailable = 0;
        for _ in 0..20 {
            unavailable += usize::from(grpc_status(&mut sender).await == "14");
        }
        assert_eq!(unavailable, 3, "and 5, not found, is no failure");
        assert!(!state(&mesh).endpoint(sick.address).available());
        assert!(state(&mesh).endpoint(well.address).available());
    });
}
