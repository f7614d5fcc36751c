//! `/api/proxies`, `/api/config/errors`, `/api/overview` and `/metrics`.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::{Encoder as _, TextEncoder};
use serde::Serialize;

use super::{Api, uncached};
use crate::ca::clock_in_words;
use crate::graph::analysis::{Diagnosis, Health, Outcomes};
use crate::graph::circuit::Tally;
use crate::graph::view::Latency;
use crate::graph::{Inventory, Kind, Problem, Proxy, Timestamp, View, Window};
use crate::ingest::metrics::Totals;
use crate::ingest::{Ingest, Reporter};

#[derive(Serialize)]
struct Proxies {
    at: Timestamp,
    proxies: Vec<KnownProxy>,
}

#[derive(Serialize)]
struct KnownProxy {
    #[serde(flatten)]
    proxy: Proxy,
    /// `null` until its first report is counted.
    reports: Option<Reporter>,
    /// In words, when it is wrong.
    clock: Option<String>,
    /// Whether it acknowledged the trust bundle that everybody should have; `null` where there is no authority.
    trusts_bundle: Option<bool>,
}

impl KnownProxy {
    fn new(proxy: Proxy, ingest: &Ingest, bundle: Option<&str>) -> Self {
        let reports = ingest.reporter(&proxy.instance);
        let name = proxy.workload.as_ref().map_or("the sidecar", |workload| workload.name());
        let clock = reports.as_ref().and_then(|reports| clock_in_words(name, reports.clock_behind_ms));
        let trusts_bundle = bundle.map(|current| proxy.bundle.as_deref() == Some(current));
        Self { proxy, reports, clock, trusts_bundle }
    }
}

/// Every connected sidecar.
pub(super) async fn proxies(State(api): State<Api>) -> Response {
    let bundle = api.authority.as_deref().and_then(|(ca, _)| ca.bundle_version());
    let known = |proxy| KnownProxy::new(proxy, &api.ingest, bundle.as_deref());
    let mut proxies: Vec<KnownProxy> = api.mesh.proxies().into_iter().map(known).collect();
    proxies.sort_by(|left, right| {
        (&left.proxy.workload, &left.proxy.instance).cmp(&(&right.proxy.workload, &right.proxy.instance))
    });
    uncached(Json(Proxies { at: Timestamp::now(), proxies }))
}

#[derive(Serialize)]
struct ConfigErrors {
    errors: Vec<Problem>,
    notices: Vec<String>,
}

/// What is wrong in the configuration.
pub(super) async fn problems(State(api): State<Api>) -> Response {
    uncached(Json(ConfigErrors { errors: api.mesh.problems(), notices: api.mesh.notices() }))
}

#[derive(Serialize)]
struct Overview {
    at: Timestamp,
    version: &'static str,
    window: Window,
    diagnosis: Option<Diagnosis>,
    proxies: ProxyCounts,
    inventory: Inventory,
    nodes: NodeCounts,
    edges: EdgeCounts,
    requests_per_second: f64,
    success_rate: Option<f64>,
    /// Of the slowest edge.
    worst_latency_ms: Option<Latency>,
    /// By the worst state that a sidecar sees.
    circuits: Tally,
    config_errors: usize,
    ingest: Totals,
    event_streams: usize,
}

#[derive(Serialize)]
struct ProxyCounts {
    connected: usize,
    synced: usize,
    reporting: usize,
}

#[derive(Serialize)]
struct NodeCounts {
    total: usize,
    workloads: usize,
    failing: usize,
    degraded: usize,
    healthy: usize,
    idle: usize,
}

#[derive(Serialize)]
struct EdgeCounts {
    total: usize,
    active: usize,
    unprotected: usize,
}

/// Counts at a glance, over the last minute.
pub(super) async fn overview(State(api): State<Api>) -> Response {
    let view = api.live.view(Window::Minute).await;
    let proxies = api.mesh.proxies();
    let synced = proxies.iter().filter(|proxy| proxy.synced).count();
    let counts =
        ProxyCounts { connected: proxies.len(), synced, reporting: api.ingest.reporting(Timestamp::now()) };
    let requested = || view.edges.iter().filter(|edge| edge.requests > 0);
    let all = requested().fold(Outcomes::default(), |sum, edge| sum.and(edge.outcomes));
    // Not `sum`: of nothing it is -0.0, and JSON has a sign for that.
    let rate = requested().fold(0.0, |sum, edge| sum + edge.requests_per_second);
    let latencies = requested().filter_map(|edge| edge.latency_ms);
    uncached(Json(Overview {
        at: view.at,
        version: env!("CARGO_PKG_VERSION"),
        window: view.window,
        diagnosis: view.diagnosis.clone(),
        proxies: counts,
        inventory: api.mesh.inventory(),
        nodes: node_counts(&view),
        edges: EdgeCounts {
            total: view.edges.len(),
            active: view.edges.iter().filter(|edge| !edge.idle).count(),
            unprotected: view.edges.iter().filter(|edge| matches!(edge.tls, Some("none" | "mixed"))).count(),
        },
        requests_per_second: (rate * 1e3).round() / 1e3,
        success_rate: all.success_rate(),
        worst_latency_ms: latencies.max_by(|left, right| left.p99.total_cmp(&right.p99)),
        circuits: api.ingest.circuits().with(|circuits| Tally::of(circuits.states().map(|(_, state)| state))),
        config_errors: api.mesh.problems().len(),
        ingest: api.ingest.totals(),
        event_streams: api.live.subscribers(),
    }))
}

fn node_counts(view: &View) -> NodeCounts {
    let with = |health: Health| view.nodes.iter().filter(|node| node.health == health).count();
    NodeCounts {
        total: view.nodes.len(),
        workloads: view.nodes.iter().filter(|node| node.kind == Kind::Workload).count(),
        failing: with(Health::Failing),
        degraded: with(Health::Degraded),
        healthy: with(Health::Healthy),
        idle: with(Health::Idle),
    }
}

/// This program's own numbers in Prometheus text format.
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    api.ingest.refresh_metrics();
    api.event_streams.set(i64::try_from(api.live.subscribers()).unwrap_or(i64::MAX));
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    if let Err(error) = encoder.encode(&api.registry.gather(), &mut text) {
        tracing::error!(%error, "the metrics could not be written");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response()
}
