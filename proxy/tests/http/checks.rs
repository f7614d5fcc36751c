//! Active health checks: who fails them gets no traffic, and gets it again.

use std::cell::Cell;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_local};
use weft_proxy::balance::breaker::health::{Probe, Settings};
use weft_proxy::balance::policy::Algorithm;
use weft_proxy::check;
use weft_proxy::http::Target;
use weft_proxy::http::Version::Http1;
use weft_proxy::xds::{Cluster, ClusterSpec, Endpoint};

use crate::harness::{App, GET, Mesh, OK, Raw, answering, app, nobody, story, until};
use crate::policy::{listener, rule};

const NAME: &str = "orders.shop:80";

/// Checks so often that a test does not wait, and believes the first answer.
fn settings(probe: Probe) -> Settings {
    let often = Duration::from_millis(10);
    Settings {
        probe,
        timeout: Duration::from_secs(1),
        interval: often,
        unhealthy_interval: often,
        healthy_edge_interval: often,
        unhealthy_edge_interval: often,
        no_traffic_interval: often,
        no_traffic_healthy_interval: often,
        initial_jitter: Duration::ZERO,
        interval_jitter: Duration::ZERO,
        interval_jitter_percent: 0,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
    }
}

fn checked(probe: Probe, endpoints: &[SocketAddr]) -> Arc<Cluster> {
    let mut spec = ClusterSpec::new(NAME);
    spec.breaking.checks = vec![settings(probe)];
    // So that everybody gets its share, however slow its first answer was.
    spec.balancing.algorithm = Algorithm::RoundRobin;
    Cluster::new(spec, endpoints.iter().map(|&address| Endpoint::new(address)).collect())
}

/// Checks that end when the first part is dropped.
type Checking = (oneshot::Sender<()>, JoinHandle<()>);

/// A sidecar in front of `cluster` that checks.
async fn start(mesh: &Mesh, cluster: &Arc<Cluster>) -> (SocketAddr, Checking) {
    let (end, ended) = oneshot::channel();
    let (circuits, telemetry) = (Arc::clone(&mesh.circuits), Arc::clone(&mesh.telemetry));
    let nobody = weft_proxy::tls::Mesh::new(weft_proxy::identity::Slot::default());
    let checking = spawn_local(check::run(circuits, telemetry, nobody, None, async { drop(ended.await) }));
    let target = Target::Listener(listener(rule(|_| {}), Arc::clone(cluster), vec![]));
    (mesh.sidecar(Http1, target).await, (end, checking))
}

fn available(mesh: &Mesh, address: SocketAddr) -> bool {
    mesh.circuits.cluster(NAME).endpoint(address).available()
}

/// An app that is as well as the test says, and what it was called and checked.
struct Replica {
    app: App,
    well: Rc<Cell<bool>>,
    calls: Rc<Cell<usize>>,
    checks: Rc<Cell<usize>>,
}

async fn replica() -> Replica {
    let (well, calls, checks) = (Rc::new(Cell::new(true)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (is_well, called, asked) = (Rc::clone(&well), Rc::clone(&calls), Rc::clone(&checks));
    let app = app(move |mut raw, _| {
        let (is_well, called, asked) = (Rc::clone(&is_well), Rc::clone(&called), Rc::clone(&asked));
        async move {
            while let Some(head) = raw.try_head().await {
                if !head.starts_with("get /healthz ") {
                    called.set(called.get() + 1);
                    raw.write(OK).await;
                    continue;
                }
                asked.set(asked.get() + 1);
                assert!(head.contains("host: health.example\r\n"), "{head}");
                let status = if is_well.get() { "200 OK" } else { "500 Sick" };
                raw.write(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")).await;
            }
        }
    })
    .await;
    Replica { app, well, calls, checks }
}

#[test]
fn an_endpoint_that_fails_its_checks_gets_no_traffic_until_it_passes_again() {
    story(|mesh| async move {
        let replicas = [replica().await, replica().await, replica().await];
        let probe = Probe::Http {
            method: Method::GET,
            host: Some("health.example".into()),
            path: "/healthz".into(),
            http2: false,
            expected: vec![Range { start: 200, end: 201 }],
            retriable: vec![],
        };
        let addresses = [0, 1, 2].map(|number: usize| replicas[number].app.address);
        let (sidecar, _checking) = start(&mesh, &checked(probe, &addresses)).await;
        let mut client = Raw::connect(sidecar).await;
        let mut calls = 0;
        while replicas.iter().any(|replica| replica.calls.get() == 0) {
            assert_eq!(client.call(GET).await.1, "ok");
            calls += 1;
        }

        let [sick, ..] = &replicas;
        sick.well.set(false);
        let address = format!("endpoint=\"{}\"", sick.app.address);
        mesh.recorded(&["weft_circuit_state{", &address, "} 2"]).await;
        let before = sick.calls.get();
        for _ in 0..50 {
            assert_eq!(client.call(GET).await.1, "ok");
        }
        calls += 50;
        assert_eq!(sick.calls.get(), before);

        sick.well.set(true);
        while sick.calls.get() == before {
            assert_eq!(client.call(GET).await.1, "ok");
            calls += 1;
        }
        assert!(replicas.iter().all(|replica| replica.checks.get() > 1));
        mesh.recorded(&["http_client_request_duration_seconds_count{", &format!("}} {calls}")]).await;
        mesh.recorded(&["weft_health_checks_total", "result=\"failed\""]).await;
        mesh.recorded(&["weft_circuit_transitions_total{kind=\"endpoint\"", "to=\"open\"} 1"]).await;
    });
}

/// `grpc.health.v1.Health`, which says what the test says.
async fn grpc_app(serving: Rc<Cell<bool>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serving = Rc::clone(&serving);
            spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let mut answer = respond.send_response(Response::new(()), false).unwrap();
                    let status = if serving.get() { 1 } else { 2 };
                    answer.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]), false).unwrap();
                    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), 0.into())]);
                    answer.send_trailers(trailers).unwrap();
                }
            });
        }
    });
    address
}

#[test]
fn a_grpc_service_that_does_not_serve_is_out_until_it_does() {
    story(|mesh| async move {
        let serving = Rc::new(Cell::new(true));
        let addresses = [grpc_app(Rc::clone(&serving)).await, grpc_app(Rc::default()).await];
        let probe = Probe::Grpc { service: "shop.Orders".into(), authority: None };
        let cluster = checked(probe, &addresses);
        let (_, _checking) = start(&mesh, &cluster).await;
        let clusters = mesh.worker.clusters.of(&cluster);
        until(|| !available(&mesh, addresses[1])).await;
        assert!(available(&mesh, addresses[0]));
        serving.set(false);
        until(|| !available(&mesh, addresses[0])).await;
        serving.set(true);
        until(|| available(&mesh, addresses[0])).await;
        drop(clusters);
    });
}

#[test]
fn an_endpoint_that_does_not_accept_is_out_until_it_does() {
    story(|mesh| async move {
        let (well, sick) = (answering(OK).await, nobody().await);
        let probe = Probe::Tcp { send: vec![], receive: vec![] };
        let (sidecar, _checking) = start(&mesh, &checked(probe, &[well.address, sick])).await;
        assert_eq!(Raw::connect(sidecar).await.call(GET).await.1, "ok");
        until(|| !available(&mesh, sick)).await;
        let listener = TcpListener::bind(sick).await.unwrap();
        until(|| available(&mesh, sick)).await;
        drop(listener);
    });
}

#[test]
fn an_endpoint_that_leaves_is_not_checked_and_one_that_comes_is_at_once() {
    story(|mesh| async move {
        let replicas = [replica().await, replica().await];
        let probe = Probe::Http {
            method: Method::GET,
            host: Some("health.example".into()),
            path: "/healthz".into(),
            http2: false,
            expected: vec![Range { start: 200, end: 201 }],
            retriable: vec![],
        };
        let cluster = checked(probe, &[replicas[0].app.address]);
        let (sidecar, _checking) = start(&mesh, &cluster).await;
        assert_eq!(Raw::connect(sidecar).await.call(GET).await.1, "ok");
        until(|| replicas[0].checks.get() > 0).await;
        cluster.set_endpoints(vec![Endpoint::new(replicas[1].app.address)]);
        until(|| replicas[1].checks.get() > 0).await;
        let before = replicas[0].checks.get();
        let now = replicas[1].checks.get();
        until(|| replicas[1].checks.get() > now + 5).await;
        assert!(replicas[0].checks.get() <= before + 1, "one may have been under way");
    });
}

#[test]
fn checks_under_way_end_with_the_sidecar() {
    story(|mesh| async move {
        let ended = Rc::new(Cell::new(0));
        let count = Rc::clone(&ended);
        let silent = app(move |mut raw, _| {
            let count = Rc::clone(&count);
            async move {
                raw.rest().await;
                count.set(count.get() + 1);
            }
        })
        .await;
        let probe = Probe::Tcp { send: b"?".to_vec(), receive: vec![b"!".to_vec()] };
        let mut spec = ClusterSpec::new(NAME);
        let timeout = Duration::from_secs(600);
        spec.breaking.checks = vec![Settings { timeout, ..settings(probe) }];
        let cluster = Cluster::new(spec, vec![Endpoint::new(silent.address)]);
        let (_, (end, checking)) = start(&mesh, &cluster).await;
        let kept = mesh.worker.clusters.of(&cluster);
        until(|| silent.connections() == 1).await;
        drop(end);
        checking.await.unwrap();
        until(|| ended.get() == 1).await;
        drop(kept);
    });
}
