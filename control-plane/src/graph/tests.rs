//! Properties of the whole graph, and the golden JSON of its view.

use proptest::prelude::*;
use weft_wire::histogram::bucket;

use super::circuit::{Standing, Standings, State, Tally};
use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_795_219_200_500);

fn key(text: &str) -> NodeKey {
    text.parse().expect("a valid node id")
}

fn reporter() -> Arc<str> {
    "orders-1".into()
}

fn claim(address: IpAddr, since: Timestamp) -> Claim {
    Claim { reporter: "web-1".into(), address, since, until: NOW }
}

fn durations(seconds: f64, count: u32) -> Histogram {
    let mut durations = Histogram::default();
    durations.add(bucket(seconds), count);
    durations.add_sum(seconds * f64::from(count));
    durations
}

fn requests(source: &str, target: &str, ago_millis: u64, count: u32) -> Sample {
    Sample {
        source: key(source),
        target: key(target),
        protocol: Protocol::Http,
        tls: Tls::None,
        at: Timestamp::from_millis(NOW.millis() - ago_millis),
        service: None,
        source_version: None,
        target_version: None,
        provisional: None,
        measure: Measure::Requests {
            method: "GET".into(),
            route: "/".into(),
            status: Status::http(200),
            error: None,
            durations: durations(0.01, count),
        },
    }
}

fn failing(mut sample: Sample, reason: &str, code: i64) -> Sample {
    if let Measure::Requests { error, status, .. } = &mut sample.measure {
        (*error, *status) = (Some(reason.into()), Status::http(code));
    }
    sample
}

fn graph_of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Graph {
    let mut graph = Graph::new(Limits::STANDARD);
    for sample in samples {
        graph.apply(sample, &reporter(), NOW);
    }
    graph
}

const WEB: &str = "workload:shop/web";
const ORDERS: &str = "workload:shop/orders";
const PAYMENT: &str = "workload:shop/payment";

fn proxy(workload: &str) -> Proxy {
    Proxy {
        instance: format!("{workload}-1"),
        agent: "weft-proxy".to_owned(),
        workload: Some(workload.parse().expect("valid")),
        version: Some("v1".to_owned()),
        pod: None,
        identity: None,
        certificate_expires: None,
        certificate: None,
        bundle: None,
        addresses: Vec::new(),
        connected_since: NOW,
        agent_version: None,
        waiting_since: None,
        answered_at: None,
        subscriptions: 1,
        synced: true,
        rejected: None,
    }
}

#[test]
fn the_json_of_a_view_is_what_the_api_promises() {
    let mut order = requests(WEB, ORDERS, 2_000, 60);
    order.service = Some("orders.shop:8080".into());
    order.target_version = Some("v2".into());
    let refused = failing(requests(WEB, ORDERS, 3_000, 6), "connect_refused", 503);
    let stream = Sample {
        protocol: Protocol::Tls,
        tls: Tls::Simple,
        measure: Measure::Opened(2),
        ..requests(ORDERS, "external:api.example.com:443", 4_000, 0)
    };
    let bytes = Sample { measure: Measure::Bytes { sent: 5_000, received: 90_000 }, ..stream.clone() };
    let ended =
        Sample { measure: Measure::Closed { error: None, durations: durations(30.0, 1) }, ..stream.clone() };
    let retried = Sample { measure: Measure::Retries { sent: 11, denied: 2 }, ..order.clone() };
    let graph = graph_of([&order, &refused, &stream, &bytes, &ended, &retried]);
    let mut view = graph.view(Window::TenSeconds, NOW, &[proxy("shop/orders"), proxy("shop/idle")]);
    let standings = [
        standing("endpoint|1", Some("shop/orders"), State::Open),
        standing("service|1", None, State::Closed),
    ];
    Standings::new(&standings).mark_view(&mut view);
    insta::assert_json_snapshot!("view", view);
    let id = EdgeId::new(&key(WEB), &key(ORDERS), Protocol::Http);
    insta::assert_json_snapshot!("detail", graph.detail(id, Window::TenSeconds, NOW));
}

#[test]
fn the_lock_is_what_calls_were_on_the_wire() {
    let word = |samples: &[Sample]| {
        let view = graph_of(samples).view(Window::TenSeconds, NOW, &[]);
        let edge = view.edges.first().expect("an edge");
        (edge.tls, [edge.tls_calls.mutual, edge.tls_calls.simple, edge.tls_calls.none])
    };
    let plain = requests(WEB, ORDERS, 2_000, 3);
    let mutual = Sample { tls: Tls::Mutual, ..requests(WEB, ORDERS, 1_000, 9) };
    assert_eq!(word(std::slice::from_ref(&mutual)), (Some("mutual"), [9, 0, 0]));
    assert_eq!(word(&[mutual.clone(), plain.clone()]), (Some("mixed"), [9, 0, 3]));

    // What never had a connection was not plain text, and neither was the answer that the caller's own sidecar gave.
    let refused = failing(requests(WEB, ORDERS, 500, 4), "connect_refused", 503);
    let told = Sample { measure: Measure::Bytes { sent: 90, received: 80 }, ..plain.clone() };
    let retried = Sample { measure: Measure::Retries { sent: 3, denied: 0 }, ..plain.clone() };
    assert_eq!(word(&[mutual, refused.clone(), told.clone(), retried.clone()]), (Some("mutual"), [9, 0, 0]));
    assert_eq!(word(&[refused, told, retried]), (None, [0, 0, 0]));
    // An answer of the app's was on the wire, however bad.
    assert_eq!(word(&[failing(plain.clone(), "503", 503)]), (Some("none"), [0, 0, 3]));

    // Of a connection that lives long there are only bytes.
    let tcp = |measure, tls| Sample { protocol: Protocol::Tcp, tls, measure, ..plain.clone() };
    let bytes = Measure::Bytes { sent: 90, received: 80 };
    assert_eq!(word(&[tcp(bytes.clone(), Tls::Mutual)]), (Some("mutual"), [0, 0, 0]));
    assert_eq!(
        word(&[tcp(bytes, Tls::Mutual), tcp(Measure::Opened(2), Tls::Mutual)]),
        (Some("mutual"), [2, 0, 0])
    );
}

/// A circuit of `orders.shop:8080` in the eyes of `shop/web`.
fn standing(circuit: &str, callee: Option<&str>, state: State) -> Standing {
    Standing {
        circuit: circuit.into(),
        cluster: "orders.shop:8080".into(),
        callee: callee.map(|workload| workload.parse().expect("valid")),
        observer: "shop/web".parse().expect("valid"),
        state,
    }
}

#[test]
fn circuits_are_counted_where_they_lie_and_each_once() {
    let mut call = requests(WEB, ORDERS, 0, 1);
    call.service = Some("orders.shop:8080".into());
    let refused = requests(WEB, "service:shop/orders", 0, 1);
    let other = requests(PAYMENT, ORDERS, 0, 1);
    let mut view = graph_of([&call, &refused, &other]).view(Window::TenSeconds, NOW, &[]);
    let of_payment = Standing {
        observer: "shop/payment".parse().expect("valid"),
        ..standing("endpoint|1", Some("shop/orders"), State::HalfOpen)
    };
    let standings = [
        // Two instances of the caller see it differently: it is one circuit, and open.
        standing("endpoint|1", Some("shop/orders"), State::Closed),
        standing("endpoint|1", Some("shop/orders"), State::Open),
        standing("endpoint|2", Some("shop/orders"), State::Closed),
        standing("service|1", None, State::Closed),
        of_payment,
    ];
    Standings::new(&standings).mark_view(&mut view);
    let edge = |source: &str, target: &str| {
        let edge = view.edges.iter().find(|edge| edge.source == source && edge.target == target);
        edge.expect("an edge").circuits
    };
    assert_eq!(edge(WEB, ORDERS), Some(Tally { open: 1, half_open: 0, closed: 2 }));
    assert_eq!(edge(WEB, "service:shop/orders"), Some(Tally { open: 0, half_open: 0, closed: 1 }));
    assert_eq!(edge(PAYMENT, ORDERS), Some(Tally { open: 0, half_open: 1, closed: 0 }));
    let node = |id: &str| view.nodes.iter().find(|node| node.id == id).expect("a node").circuits;
    assert_eq!(node(ORDERS), Some(Tally { open: 1, half_open: 0, closed: 2 }), "as a callee");
    assert_eq!(node(WEB), None);
}

#[test]
fn an_empty_graph_says_why() {
    let graph = Graph::new(Limits::STANDARD);
    let nobody = graph.view(Window::Minute, NOW, &[]).diagnosis.expect("nothing to see");
    assert_eq!((nobody.code, nobody.text.as_str()), ("no_sidecar", "no sidecar is connected"));
    let three = [proxy("shop/a"), proxy("shop/b"), proxy("shop/c")];
    let view = graph.view(Window::Minute, NOW, &three);
    let quiet = view.diagnosis.expect("nothing to see");
    assert_eq!(quiet.text, "3 sidecars are connected, no request in the last minute");
    assert_eq!(view.nodes.len(), 3, "sidecars without traffic are shown");
}

#[test]
fn bytes_of_grpc_belong_to_the_grpc_edge() {
    let grpc = Sample { protocol: Protocol::Grpc, ..requests(WEB, ORDERS, 0, 3) };
    let bytes =
        Sample { measure: Measure::Bytes { sent: 100, received: 1_000 }, ..requests(WEB, ORDERS, 0, 0) };
    for order in [[&grpc, &bytes], [&bytes, &grpc]] {
        let view = graph_of(order).view(Window::TenSeconds, NOW, &[]);
        assert_eq!(view.edges.len(), 1);
        assert_eq!(view.edges[0].protocol, Protocol::Grpc);
        assert!(view.edges[0].bytes_received_per_second > 0.0);
    }
    let alone = graph_of([&bytes]).view(Window::TenSeconds, NOW, &[]);
    assert_eq!(alone.edges.len(), 1, "a request that is still running shows by its bytes");
    assert!(!alone.edges[0].idle);
}

#[test]
fn blame_goes_to_the_end_of_the_chain_of_failing_calls() {
    let first = failing(requests(WEB, ORDERS, 0, 20), "500", 500);
    let second = failing(requests(ORDERS, PAYMENT, 0, 20), "connect_refused", 503);
    let view = graph_of([&first, &second]).view(Window::TenSeconds, NOW, &[]);
    let node = |id: &str| view.nodes.iter().find(|node| node.id == id).expect("a node");
    assert_eq!(node(ORDERS).cause.as_deref(), Some(PAYMENT));
    assert_eq!(node(PAYMENT).cause, None);
    assert_eq!(node(PAYMENT).health, analysis::Health::Failing);
    assert!(
        node(PAYMENT).health_reason.starts_with("100.0 % of 20 failed"),
        "{}",
        node(PAYMENT).health_reason
    );
}

#[test]
fn a_caller_that_goes_away_is_no_failure_of_the_callee() {
    let slow = |mut sample: Sample| {
        if let Measure::Requests { durations: took, .. } = &mut sample.measure {
            *took = durations(300.0, 1);
        }
        sample
    };
    let good = requests(WEB, ORDERS, 0, 20);
    let stream = slow(failing(requests(WEB, ORDERS, 0, 1), "client_cancelled", 200));
    let impatient = failing(requests(WEB, ORDERS, 0, 2), "client_cancelled", 0);
    let tunnel = Sample {
        protocol: Protocol::Tcp,
        measure: Measure::Closed { error: Some("client_cancelled".into()), durations: durations(60.0, 1) },
        ..requests(WEB, ORDERS, 0, 0)
    };
    let mut graph = graph_of([&good, &stream, &impatient, &tunnel]);
    let view = graph.view(Window::TenSeconds, NOW, &[]);
    let edge = |protocol| view.edges.iter().find(|edge| edge.protocol == protocol).expect("an edge");
    let http = edge(Protocol::Http);
    assert_eq!((http.requests, http.cancelled, http.success_rate), (23, 3, Some(1.0)));
    assert!(http.failures.is_empty() && http.health == analysis::Health::Healthy);
    assert!(http.latency_ms.expect("some ended").p99 < 100.0, "how long somebody listened is no latency");
    assert_eq!(edge(Protocol::Tcp).success_rate, Some(1.0));
    assert_eq!(http.routes[0].cancelled, 3);

    graph.apply(&failing(requests(WEB, ORDERS, 0, 1), "client_cancelled", 0), &reporter(), NOW);
    let view = graph.view(Window::TenSeconds, NOW, &[]);
    let node = view.nodes.iter().find(|node| node.id == ORDERS).expect("a node");
    assert_eq!(node.health, analysis::Health::Degraded, "{}", node.health_reason);
    assert_eq!(node.incoming.success_rate, Some(1.0));
}

#[test]
fn what_a_callee_counted_is_taken_back_when_the_caller_reports() {
    let address: IpAddr = "10.0.0.9".parse().expect("valid");
    let seen = |ago| Sample { provisional: Some(address), ..requests("unmeshed:10.0.0.9", ORDERS, ago, 5) };
    let own = requests(WEB, ORDERS, 1_000, 5);
    let (before, after) = (seen(8_000), seen(1_000));
    let mut graph = graph_of([&before, &after]);
    graph.retract(&claim(address, Timestamp::from_millis(NOW.millis() - 5_000)));
    graph.apply(&own, &reporter(), NOW);
    let view = graph.view(Window::TenSeconds, NOW, &[]);
    let count =
        |source: &str| view.edges.iter().find(|edge| edge.source == source).map(|edge| edge.requests_total);
    assert_eq!(count("unmeshed:10.0.0.9"), Some(5), "only what was counted before the sidecar began stays");
    assert_eq!(count(WEB), Some(5));
    graph.retract(&claim(address, Timestamp::default()));
    let view = graph.view(Window::TenSeconds, NOW, &[]);
    assert!(view.nodes.iter().all(|node| node.id != "unmeshed:10.0.0.9"), "nothing is left of a mistake");
    assert_eq!(graph.cell_count(), 3, "one route in three rings");
}

#[test]
fn edges_without_traffic_for_an_hour_are_forgotten() {
    let mut graph = graph_of([&requests(WEB, ORDERS, 0, 1), &requests(ORDERS, PAYMENT, 0, 1)]);
    let later = NOW.plus(Duration::from_secs(1_800));
    graph.apply(&Sample { at: later, ..requests(ORDERS, PAYMENT, 0, 1) }, &reporter(), later);
    let end = NOW.plus(IDLE_MAX + Duration::from_secs(1));
    graph.expire(end);
    let view = graph.view(Window::Hour, end, &[]);
    assert_eq!(view.edges.len(), 1);
    assert_eq!(view.edges[0].requests_total, 2);
    assert!(graph.view(Window::Minute, end, &[]).edges[0].idle);
    graph.expire(later.plus(IDLE_MAX + Duration::from_secs(1)));
    assert_eq!((graph.node_count(), graph.edge_count(), graph.cell_count()), (0, 0, 0));
}

#[test]
fn what_does_not_fit_is_counted_on_the_overflow() {
    let limits = Limits { externals_per_source: 2, routes_per_edge: 3, ..Limits::STANDARD };
    let mut graph = Graph::new(limits);
    for host in 0..10 {
        graph.apply(&requests(WEB, &format!("external:host-{host}.example:443"), 0, 1), &reporter(), NOW);
    }
    for route in 0..10 {
        let mut sample = requests(WEB, ORDERS, 0, 1);
        if let Measure::Requests { route: path, .. } = &mut sample.measure {
            *path = format!("/{route}").into();
        }
        graph.apply(&sample, &reporter(), NOW);
    }
    let view = graph.view(Window::TenSeconds, NOW, &[]);
    let overflow = view.edges.iter().find(|edge| edge.target == "external:__other__:0").expect("an overflow");
    assert_eq!(overflow.requests_total, 8);
    let id = EdgeId::new(&key(WEB), &key(ORDERS), Protocol::Http);
    let detail = graph.detail(id, Window::TenSeconds, NOW).expect("an edge");
    let other = detail.edge.routes.iter().find(|route| route.route == "__other__").expect("an overflow");
    assert_eq!((other.requests, detail.edge.requests), (8, 10));
    assert_eq!(graph.counters().folded_routes, 8);
}

#[test]
fn a_bound_on_nodes_edges_and_cells_holds_and_loses_no_request() {
    let limits = Limits { nodes: 6, edges: 4, cells: 20, ..Limits::STANDARD };
    let mut graph = Graph::new(limits);
    for caller in 0..50 {
        graph.apply(
            &requests(&format!("unmeshed:10.0.1.{caller}"), ORDERS, caller * 700, 1),
            &reporter(),
            NOW,
        );
    }
    assert!(graph.node_count() <= limits.nodes + 1, "{}", graph.node_count());
    assert!(graph.edge_count() <= limits.edges + 1, "{}", graph.edge_count());
    let view = graph.view(Window::Minute, NOW, &[]);
    assert_eq!(view.edges.iter().map(|edge| edge.requests).sum::<u64>(), 50);
}

#[test]
fn a_namespace_is_shown_with_its_neighbours() {
    let inside = requests(WEB, ORDERS, 0, 1);
    let out = requests(ORDERS, "external:api.example.com:443", 0, 1);
    let elsewhere = requests("workload:bank/a", "workload:bank/b", 0, 1);
    let old = requests(WEB, PAYMENT, 30_000, 1);
    let view = graph_of([&inside, &out, &elsewhere, &old]).view(Window::TenSeconds, NOW, &[]);
    let shop = view.filtered(Some("shop"), false);
    assert_eq!(shop.edges.len(), 2);
    let ids: Vec<&str> = shop.nodes.iter().map(|node| node.id.as_str()).collect();
    assert_eq!(ids, ["external:api.example.com:443", ORDERS, WEB]);
    assert_eq!(view.filtered(Some("shop"), true).edges.len(), 3);
}

fn arbitrary_sample() -> impl Strategy<Value = Sample> {
    let nodes =
        prop::sample::select(vec![WEB, ORDERS, PAYMENT, "external:a.example:443", "unmeshed:10.0.0.9"]);
    (nodes.clone(), nodes, 0u64..4_000_000, 1u32..9, 0u8..8, 1e-4f64..2.0).prop_map(
        |(source, target, ago, count, kind, seconds)| {
            let mut sample = requests(source, target, ago, count);
            sample.measure = match kind {
                0 => Measure::Opened(count),
                1 => Measure::Closed {
                    error: Some("upstream_reset".into()),
                    durations: durations(seconds, count),
                },
                4 => Measure::Requests {
                    method: "GET".into(),
                    route: format!("/{}", count % 4).into(),
                    status: Status::http(if count % 2 == 0 { 200 } else { 0 }),
                    error: Some("client_cancelled".into()),
                    durations: durations(seconds, count),
                },
                2 => Measure::Bytes { sent: u64::from(count), received: 7 },
                3 => Measure::Folded(count),
                7 => Measure::Retries { sent: count, denied: count / 2 },
                _ => Measure::Requests {
                    method: "GET".into(),
                    route: format!("/{}", count % 4).into(),
                    status: Status::http(if kind == 5 { 200 } else { 503 }),
                    error: (kind != 5).then(|| "no_ready_endpoint".into()),
                    durations: durations(seconds, count),
                },
            };
            sample
        },
    )
}

/// What a client of the event stream does.
fn patched(base: &View, diff: &Diff) -> View {
    let mut view = base.clone();
    view.nodes.retain(|node| !diff.nodes.remove.contains(&node.id));
    view.edges.retain(|edge| !diff.edges.remove.contains(&edge.id));
    for node in &diff.nodes.upsert {
        view.nodes.retain(|old| old.id != node.id);
        view.nodes.push(node.clone());
    }
    for edge in &diff.edges.upsert {
        view.edges.retain(|old| old.id != edge.id);
        view.edges.push(edge.clone());
    }
    view.nodes.sort_by(|left, right| left.id.cmp(&right.id));
    view.edges.sort_by_key(|edge| edge.id);
    view.diagnosis.clone_from(&diff.diagnosis);
    view
}

proptest! {
    #[test]
    fn the_order_of_samples_does_not_matter(
        samples in prop::collection::vec(arbitrary_sample(), 0..60).prop_shuffle(),
    ) {
        let forward = graph_of(&samples);
        let mut sorted: Vec<&Sample> = samples.iter().collect();
        sorted.sort_by_key(|sample| sample.at);
        let sorted = graph_of(sorted);
        for window in Window::ALL {
            prop_assert_eq!(forward.view(window, NOW, &[]), sorted.view(window, NOW, &[]));
        }
        prop_assert_eq!(forward.cell_count(), forward.graph.edge_weights().map(Edge::cells).sum::<usize>());
    }

    #[test]
    fn every_request_is_in_its_window_and_in_the_total(
        samples in prop::collection::vec(arbitrary_sample(), 0..60),
    ) {
        let graph = graph_of(&samples);
        for window in Window::ALL {
            let start = window.span(NOW).start();
            let view = graph.view(window, NOW, &[]);
            let expected: u64 = samples.iter().filter(|one| one.at >= start).map(Sample::requests).sum();
            prop_assert_eq!(view.edges.iter().map(|edge| edge.requests).sum::<u64>(), expected);
            let total: u64 = samples.iter().map(Sample::requests).sum();
            prop_assert_eq!(view.edges.iter().map(|edge| edge.requests_total).sum::<u64>(), total);
        }
    }

    #[test]
    fn taking_back_is_as_if_it_had_never_been(
        kept in prop::collection::vec(arbitrary_sample(), 0..30),
        taken in prop::collection::vec(arbitrary_sample(), 0..30),
    ) {
        let address: IpAddr = "10.0.0.9".parse().expect("valid");
        let taken: Vec<Sample> =
            taken.into_iter().map(|sample| Sample { provisional: Some(address), ..sample }).collect();
        let mut graph = graph_of(kept.iter().chain(&taken));
        graph.retract(&claim(address, Timestamp::default()));
        let expected = graph_of(&kept);
        for window in Window::ALL {
            let (left, right) = (graph.view(window, NOW, &[]), expected.view(window, NOW, &[]));
            let counts = |view: &View| -> Vec<_> {
                view.edges.iter().map(|edge| (edge.id, edge.requests, edge.requests_total, edge.cancelled, edge.failures.clone())).collect()
            };
            prop_assert_eq!(counts(&left), counts(&right));
        }
        prop_assert_eq!(graph.cell_count(), graph.graph.edge_weights().map(Edge::cells).sum::<usize>());
    }

    #[test]
    fn a_diff_turns_one_view_into_the_next(
        first in prop::collection::vec(arbitrary_sample(), 0..20),
        more in prop::collection::vec(arbitrary_sample(), 0..20),
    ) {
        let base = graph_of(&first).view(Window::Minute, NOW, &[proxy("shop/web")]);
        let next = graph_of(&more).view(Window::Minute, NOW, &[]);
        prop_assert!(patched(&base, &Diff::between(&base, &next)).same_content(&next));
        let nothing = Diff::between(&base, &base);
        prop_assert!(nothing.nodes.upsert.is_empty() && nothing.edges.upsert.is_empty());
    }
}
