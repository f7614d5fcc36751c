//! Every row of `docs/envoy-differences.md`, and what shows it at work: a row that is not true any more must go.
//!
//! Invariant: the page and this list have the same rows. Three kinds of them there are: what comparisons leave out, a
//! [`Row`] and a test that both sides still differ there; what a test of its own shows at both proxies; and what cannot be
//! seen from outside in a pair of one worker each, or is refused, which a test beside the code shows.

use std::collections::BTreeSet;

use anyhow::ensure;
use http::Method;
use serde_json::json;
use weft_tests::backend::{Arrival, KEY, PLAN, Troupe};
use weft_tests::client::{Answer, Ask};
use weft_tests::{binary, envoy};

use super::differences::{Row, arrival};
use super::objects::{self, NAMESPACE};
use super::pair::{Pair, Side};

const HERE: &str = "tests/tests/differential/rows.rs";
const TIMEOUTS: &str = "tests/tests/differential/policies/timeouts.rs";
const SHARES: &str = "tests/tests/differential/policies/shares.rs";
const EJECTION: &str = "tests/tests/differential/policies/ejection.rs";
const LIMITS: &str = "tests/tests/differential/policies/limits.rs";
const POLICIES: &str = "tests/tests/differential/policies/rows.rs";
const ACCESS: &str = "tests/tests/differential/policies/access.rs";
const SET: &str = "proxy/src/balance/set/tests.rs";
const CDS: &str = "proxy/src/xds/parse/cluster/balancing/tests.rs";

/// The heading of each row, the file and the name of a test.
const EVIDENCE: &[(&str, &str, &str)] = &[
    (Row::RequestHeaders.heading(), HERE, "each_says_what_it_is_in_its_own_words"),
    (Row::ResponseHeaders.heading(), HERE, "each_says_what_it_is_in_its_own_words"),
    (Row::OwnBody.heading(), HERE, "each_says_what_it_is_in_its_own_words"),
    (Row::Connections.heading(), HERE, "each_says_what_it_is_in_its_own_words"),
    ("`OPTIONS *`", HERE, "weft_takes_targets_that_envoy_does_not"),
    (
        "A request target with bytes beyond ASCII, or a URL whose host has an underscore",
        HERE,
        "weft_takes_targets_that_envoy_does_not",
    ),
    (Row::Lines.heading(), HERE, "envoy_joins_lines_of_headers_that_it_knows"),
    (Row::Unreachable.heading(), HERE, "nobody_there_is_a_bad_gateway_to_weft"),
    (Row::GrpcTimeout.heading(), TIMEOUTS, "timeouts_end_the_same_requests"),
    (Row::Copies.heading(), SHARES, "copies_are_like_their_requests"),
    (Row::GrpcEnd.heading(), EJECTION, "the_same_failures_eject"),
    (Row::AcceptsOnly.heading(), EJECTION, "the_same_failures_eject"),
    ("An endpoint that does not accept", POLICIES, "weft_passes_over_who_does_not_accept_without_a_policy"),
    (
        "An idempotent request without a body on a kept connection that the server closes at that moment",
        POLICIES,
        "weft_repeats_what_a_stale_connection_lost",
    ),
    ("`grpc-timeout` of a caller", POLICIES, "only_a_grpc_deadline_is_a_callers_word"),
    (
        "Headers by which a caller chooses retries and timeouts (`x-envoy-retry-on`, `x-envoy-upstream-rq-timeout-ms`, …)",
        HERE,
        "a_caller_cannot_make_weft_retry",
    ),
    ("gRPC status of a request over its rate", LIMITS, "a_burst_is_let_in_and_no_more"),
    ("A request that waits for a connection", POLICIES, "weft_does_not_wait_for_a_connection_for_ever"),
    (
        "An endpoint that no check has asked yet",
        "proxy/src/check/schedule/tests.rs",
        "a_new_endpoint_is_asked_at_once_and_then_in_intervals",
    ),
    (
        "Connections of health checks",
        "proxy/tests/http/checks.rs",
        "an_endpoint_that_does_not_accept_is_out_until_it_does",
    ),
    (
        "Adaptive concurrency",
        "proxy/tests/http/limits.rs",
        "an_app_gets_no_more_at_a_time_than_its_latency_allows",
    ),
    ("Zones", SET, "the_own_zone_comes_first_while_enough_of_it_is_there"),
    ("Another attempt's endpoint", SET, "those_that_failed_are_not_taken_again"),
    (
        "Requests in flight, as least request and slow start see them",
        SET,
        "work_in_flight_counts_against_an_endpoint",
    ),
    ("An endpoint that returns after an ejection", SET, "one_that_comes_back_is_a_newcomer"),
    (
        "Least request over endpoints of equal weight",
        "proxy/src/balance/algorithm/sample.rs",
        "two_choices_are_two",
    ),
    (
        "Hash rings of more than 262,144 and Maglev tables of more than 655,373 entries",
        CDS,
        "sizes_have_bounds",
    ),
    (
        "Weighted localities, priority health by weight, dropping a share of requests by EDS, hashing by host name, bounded-load hashing, Murmur hash",
        CDS,
        "panic_and_zones_are_taken_or_refused_by_place",
    ),
    (
        "Limits for each endpoint, a bound on pools, a retry budget over an interval, outlier detection by plugins and of endpoints that call themselves degraded, health checks with a body, headers, a port of their own or a look at the answer's body",
        "proxy/src/xds/parse/cluster/breaking/tests.rs",
        "what_makes_no_sense_of_circuit_breakers_is_named",
    ),
    (
        "An endpoint that has left the list and still passes its checks",
        "proxy/src/check/schedule/tests.rs",
        "who_has_left_is_asked_no_more_and_what_it_answers_counts_for_nothing",
    ),
    (
        "Paths that access depends on, where dots with parameters are escaped (`/%2e%2e;x`), or of nothing but slashes",
        ACCESS,
        "weft_resolves_what_some_servers_would",
    ),
    ("An opaque connection that access refuses", ACCESS, "weft_refuses_before_a_server_speaks"),
    (
        "Conditions of access on addresses, SNI, metadata and expressions, trees of rules, plugins, the action `LOG`",
        "proxy/src/xds/parse/listener/access.rs",
        "what_is_not_understood_is_refused_by_its_field",
    ),
];

#[test]
fn the_page_and_the_evidence_have_the_same_rows() {
    let page = std::fs::read_to_string(binary::workspace().join("docs/envoy-differences.md"));
    let page = page.expect("the page exists");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let written: BTreeSet<&str> = rows.filter(|heading| *heading != "What").collect();
    let shown: BTreeSet<&str> = EVIDENCE.iter().map(|(heading, ..)| *heading).collect();
    assert_eq!(written, shown);
    for row in Row::ALL {
        assert!(shown.contains(row.heading()), "{row:?}");
    }
}

#[test]
fn the_evidence_exists() {
    for (heading, file, test) in EVIDENCE {
        let text = std::fs::read_to_string(binary::workspace().join(file)).unwrap_or_default();
        assert!(text.contains(&format!("fn {test}(")), "{heading}: no test {test} in {file}");
    }
}

/// A service with one backend and routes, a service that nobody serves, and one with a backend and no route.
struct Stage {
    troupe: Troupe,
    pair: Pair,
    /// Bound and not listening, so that nobody else gets its address and nobody accepts.
    _dead: socket2::Socket,
}

const SERVED: usize = 0;
const DEAD: usize = 1;
const PLAIN: usize = 2;

impl Stage {
    async fn set(binary: &std::path::Path) -> anyhow::Result<Self> {
        let troupe = Troupe::start(1)?;
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        let dead = socket.local_addr()?.as_socket().ok_or_else(|| anyhow::anyhow!("no address"))?;
        let mut all = objects::service("served", &[troupe.backends[0].address]);
        all.extend(objects::service("dead", &[dead]));
        all.extend(objects::service("plain", &[troupe.backends[0].address]));
        let agent = json!({"name": "user-agent", "value": "two"});
        let matches = json!([
            {"path": {"value": "/routed"}},
            {"path": {"value": "/agent"}, "headers": [agent]},
        ]);
        all.push(json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "served", "namespace": NAMESPACE},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "served"}],
                "rules": [{"matches": matches, "backendRefs": [{"name": "served", "port": objects::PORT}]}],
            },
        }));
        let pair = Pair::start(binary, &all, &["served", "dead", "plain"].map(str::to_owned)).await?;
        Ok(Self { troupe, pair, _dead: socket })
    }

    /// What becomes of a request at Envoy and at Weft.
    async fn both(&self, service: usize, ask: &Ask) -> anyhow::Result<[Answer; 2]> {
        Ok([self.pair.ask(Side::Envoy, service, ask).await?, self.pair.ask(Side::Weft, service, ask).await?])
    }
}

fn seen(answer: &Answer) -> anyhow::Result<Arrival> {
    arrival(answer).ok_or_else(|| anyhow::anyhow!("not from a backend: {answer:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_says_what_it_is_in_its_own_words() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let stage = Stage::set(binary).await?;
    let [envoy, weft] = stage.both(SERVED, &Ask::get("/routed", "served")).await?;
    let (at_envoy, at_weft) = (seen(&envoy)?, seen(&weft)?);
    let scheme = "x-forwarded-proto";
    ensure!(at_envoy.header(scheme).is_some() && at_weft.header(scheme).is_none());
    let id = "x-request-id";
    ensure!(at_envoy.header(id).is_some() && at_envoy.header(id) != at_weft.header(id));
    ensure!(at_weft.header("traceparent").is_some() && at_envoy.header("traceparent").is_none());
    let time = "x-envoy-upstream-service-time";
    ensure!(envoy.header(time).is_some() && weft.header(time).is_none());
    let mut post = Ask::get("/elsewhere", "served");
    post.method = Method::POST;
    post.body = bytes::Bytes::from_static(b"text");
    let [envoy, weft] = stage.both(SERVED, &post).await?;
    ensure!((envoy.status.as_u16(), weft.status.as_u16()) == (404, 404));
    ensure!(envoy.body.is_empty() && envoy.header("x-weft-reason").is_none(), "{envoy:?}");
    ensure!(weft.body.starts_with(b"weft: route_not_found"), "{weft:?}");
    ensure!(weft.header("x-weft-reason") == Some("route_not_found; by=client_proxy"), "{weft:?}");
    ensure!(envoy.header("connection") == Some("close") && weft.header("connection").is_none());
    stage.pair.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_joins_lines_of_headers_that_it_knows() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let stage = Stage::set(binary).await?;
    let twice = |path: &str, name: &str| Ask::get(path, "served").header(name, "one").header(name, "two");
    let lines = |answer: &Answer, name: &str| -> anyhow::Result<Vec<String>> {
        let headers = seen(answer)?.headers.into_iter();
        Ok(headers.filter(|(known, _)| known == name).map(|(_, value)| value).collect())
    };
    let [envoy, weft] = stage.both(SERVED, &twice("/routed", "user-agent")).await?;
    ensure!(lines(&envoy, "user-agent")? == ["one,two"], "{envoy:?}");
    ensure!(lines(&weft, "user-agent")? == ["one", "two"], "{weft:?}");
    for answer in stage.both(SERVED, &twice("/routed", "x-unknown")).await? {
        ensure!(lines(&answer, "x-unknown")? == ["one", "two"], "{answer:?}");
    }
    let [envoy, weft] = stage.both(SERVED, &twice("/agent", "user-agent")).await?;
    ensure!((envoy.status.as_u16(), weft.status.as_u16()) == (404, 200));
    stage.pair.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_a_bad_gateway_to_weft() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let stage = Stage::set(binary).await?;
    let [envoy, weft] = stage.both(DEAD, &Ask::get("/", "dead")).await?;
    ensure!((envoy.status.as_u16(), weft.status.as_u16()) == (503, 502));
    ensure!(Row::Unreachable.status("connect_refused") == Some(502));
    stage.pair.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_cannot_make_weft_retry() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let stage = Stage::set(binary).await?;
    for (side, status, attempts) in [(Side::Envoy, 200, 2), (Side::Weft, 503, 1)] {
        let key = format!("caller/{side:?}");
        let ask = Ask::get("/routed", "served").header(KEY, key.as_str()).header(PLAN, "503,200");
        let ask = ask.header("x-envoy-retry-on", "5xx").header("x-envoy-max-retries", "1");
        let ask = ask.header("x-forwarded-for", "10.0.0.1");
        let answer = stage.pair.ask(side, SERVED, &ask).await?;
        ensure!(answer.status.as_u16() == status, "{side:?}: {answer:?}");
        ensure!(stage.troupe.arrivals(&key).len() == attempts, "{side:?}");
    }
    stage.pair.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weft_takes_targets_that_envoy_does_not() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let stage = Stage::set(binary).await?;
    for (method, target, refused) in
        [(Method::OPTIONS, "*", 404), (Method::GET, "/a?\u{e9}", 400), (Method::GET, "http://a_b/a", 400)]
    {
        let ask = Ask { method, ..Ask::get(target, "plain") };
        let [envoy, weft] = stage.both(PLAIN, &ask).await?;
        ensure!((envoy.status.as_u16(), weft.status.as_u16()) == (refused, 200), "{target}: {envoy:?}");
        let path = seen(&weft)?.path;
        ensure!(target.ends_with(&path), "{target} arrived as {path}");
    }
    stage.pair.stop().await
}
