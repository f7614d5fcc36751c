//! What each step of the request path costs by itself: detection, route match with template, balancing, trace headers,
//! recording.
//!
//! `cargo bench -p weft-tests --bench core`

use std::hint::black_box;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Request, StatusCode};
use weft_proxy::balance::policy::{Algorithm, Policy};
use weft_proxy::balance::{Ask, Circuits, Clusters};
use weft_proxy::detect::sniff;
use weft_proxy::record::{self, Direction, Edge, EdgeSpec, PeerSpec, Shard, Telemetry, Tls};
use weft_proxy::route::matcher::RouteTable;
use weft_proxy::route::template::{Cache, Kind, Learner};
use weft_proxy::xds::{Cluster, ClusterSpec, Endpoint};

const REQUEST: &[u8] =
    b"GET /orders/42 HTTP/1.1\r\nHost: orders:8080\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

fn detection(criterion: &mut Criterion) {
    criterion.bench_function("detect/http1", |bencher| bencher.iter(|| sniff(black_box(REQUEST))));
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    criterion.bench_function("detect/http2", |bencher| bencher.iter(|| sniff(black_box(preface))));
    criterion.bench_function("detect/opaque", |bencher| {
        bencher.iter(|| sniff(black_box(b"*1\r\n$4\r\nPING\r\n")));
    });
}

fn request(path: &str) -> http::request::Parts {
    Request::get(path).body(()).expect("a valid request").into_parts().0
}

fn routing(criterion: &mut Criterion) {
    let table = RouteTable::to(Cluster::new(ClusterSpec::new("orders.shop:8080"), Vec::new()));
    let mut templates = Cache::new(Arc::new(Learner::new(200)));
    for path in ["/", "/orders", "/orders/1", "/orders/1/items", "/users/1/orders/7/items/3", "/healthz"] {
        templates.find(path, Kind::Http);
    }
    for path in ["/", "/orders/42", "/users/42/orders/0c7a7c4e-3b0e-4f7f-9c8e-1f0a6f1c2d3e/items/7"] {
        let parts = request(path);
        criterion.bench_function(&format!("route+template{path}"), |bencher| {
            bencher.iter(|| {
                let route = table.pick(black_box(&parts)).is_some();
                (route, templates.find(black_box(parts.uri.path()), Kind::Http))
            });
        });
    }
}

/// Choosing one of ten endpoints that have some work, as each policy does.
fn balancing(criterion: &mut Criterion) {
    let policies = [
        ("peak_ewma", Algorithm::PeakEwma),
        ("least_request", Algorithm::LeastRequest { choices: 2, bias: 1.0 }),
        ("round_robin", Algorithm::RoundRobin),
        ("random", Algorithm::Random),
        ("ring_hash", Algorithm::RingHash { minimum: 1024, maximum: 8192 }),
        ("maglev", Algorithm::Maglev { size: 65_537 }),
    ];
    for (name, algorithm) in policies {
        for (kind, weights) in [("", [1; 10]), ("/weighted", [1, 2, 3, 4, 5, 1, 2, 3, 4, 5])] {
            let clusters = Clusters::new(shard(), Circuits::new(), None);
            let balancing = Policy { algorithm, ..Policy::default() };
            let spec = ClusterSpec { balancing, ..ClusterSpec::new("orders.shop:8080") };
            let endpoints = weights.iter().zip(0..).map(|(&weight, last)| Endpoint {
                weight,
                ..Endpoint::new(SocketAddr::from(([10, 0, 0, last], 80)))
            });
            let cluster = clusters.of(&Cluster::new(spec, endpoints.collect()));
            let mut working = Vec::new();
            for _ in 0..20 {
                let chosen = clusters.choose(&cluster, Ask::any()).expect("ten are ready").start();
                chosen.observe(Instant::now(), Duration::from_millis(5));
                working.push(chosen);
            }
            let mut hash = 0_u64;
            criterion.bench_function(&format!("balance/{name}{kind}"), |bencher| {
                bencher.iter(|| {
                    hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    clusters.choose(&cluster, Ask { tried: &[], hash: Some(hash) })
                });
            });
        }
    }
}

fn shard() -> Rc<Shard> {
    let config = record::Config::standard();
    let identity = record::Identity {
        workload: "shop/web".parse().expect("a valid name"),
        version: None,
        pod: None,
        instance: "bench".into(),
    };
    Telemetry::new(config, identity).shard()
}

fn edge() -> Rc<Edge> {
    shard().edge(&EdgeSpec {
        direction: Direction::Outbound,
        service: "orders.shop".parse().ok(),
        server_address: "orders".into(),
        server_port: 8080,
        tls: Tls::None,
        client: None,
        caller: None,
    })
}

fn recording(criterion: &mut Criterion) {
    let edge = edge();
    let peer = edge.peer(&PeerSpec { workload: "shop/orders".parse().ok(), version: None, identity: None });
    let parts = request("/orders/42");
    let headers = HeaderMap::new();
    criterion.bench_function("record/request", |bencher| {
        bencher.iter(|| {
            let mut record = edge.request(black_box(&parts));
            record.peer(peer);
            record.response(StatusCode::OK, &headers);
            record.response_bytes(128);
            record.complete();
        });
    });
    criterion.bench_function("record/request+trace", |bencher| {
        bencher.iter(|| {
            let mut headers = HeaderMap::with_capacity(8);
            let mut record = edge.request(black_box(&parts));
            black_box(record.propagate(&mut headers));
            record.response(StatusCode::OK, &headers);
            record.complete();
        });
    });
}

criterion_group!(benches, detection, routing, balancing, recording);
criterion_main!(benches);
