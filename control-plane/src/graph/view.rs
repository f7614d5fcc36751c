//! The graph as the API shows it: plain values, made from a [`Graph`](super::Graph) for one window at one moment.
//!
//! In: the graph, `now`, the connected sidecars. Out: [`View`] (`/api/graph`), [`Diff`] of two views
//! (`/api/graph/events`) and [`Detail`] of one edge (`/api/edges/{id}`). The serde types of this module *are* the
//! API; its shape is fixed by a golden test and described in `api/openapi.json`.
//!
//! Invariant: nodes and edges are sorted by id, and numbers are rounded to what a screen can show, so equal
//! traffic gives equal text and small diffs.
//! Surprise: the sidecar reports the bytes of gRPC as bytes of HTTP. An HTTP edge that has bytes but never had a
//! request is folded into the gRPC edge beside it.

mod build;
mod diff;

use serde::Serialize;

use super::analysis::{Diagnosis, Health, Outcomes};
use super::circuit::Tally;
use super::{EdgeId, Kind, Protocol, Timestamp, Window};

pub use build::RoutesShown;
pub use diff::{Changes, Diff};

/// The whole graph in one window.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct View {
    /// Grows whenever anything in the view changes; only equality and order have a meaning.
    pub version: u64,
    /// When the view was made.
    pub at: Timestamp,
    /// The window's name.
    pub window: Window,
    /// The window's length.
    pub window_seconds: u64,
    /// How much of the window the numbers cover: less than its length while the graph is young.
    pub covered_seconds: f64,
    /// Why nothing is to be seen; absent when something is.
    pub diagnosis: Option<Diagnosis>,
    /// Nodes by id.
    pub nodes: Vec<Node>,
    /// Edges by id.
    pub edges: Vec<Edge>,
}

/// Who calls or is called.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    /// `workload:shop/orders`, `service:…`, `external:…`, `unmeshed:…`.
    pub id: String,
    /// The first part of the id.
    pub kind: Kind,
    /// The short name.
    pub name: String,
    /// The namespace, for nodes that live in one.
    pub namespace: Option<String>,
    /// Versions seen in the last hour.
    pub versions: Vec<String>,
    /// Number of connected sidecars.
    pub sidecars: usize,
    /// Pods of it that should have a sidecar and have none.
    pub uninjected: usize,
    /// How its callers find it.
    pub health: Health,
    /// Why, in words.
    pub health_reason: String,
    /// The id of the node whose failures are the probable cause of this one's.
    pub cause: Option<String>,
    /// Whether no edge of it had traffic in the window.
    pub idle: bool,
    /// Circuits that guard it, in whoever's hands; `null` when there is none.
    pub circuits: Option<Tally>,
    /// What others ask of it.
    pub incoming: Flow,
    /// What it asks of others.
    pub outgoing: Flow,
}

/// Requests of all edges of a node in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flow {
    /// Requests per second.
    pub requests_per_second: f64,
    /// Share of requests and ended connections that did not fail; `null` when nothing ended.
    pub success_rate: Option<f64>,
}

/// Source calls target in one protocol.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Edge {
    /// Stable, URL-safe.
    pub id: EdgeId,
    /// Id of the caller's node.
    pub source: String,
    /// Id of the callee's node.
    pub target: String,
    /// `http`, `grpc`, `tls` or `tcp`.
    pub protocol: Protocol,
    /// The services that were asked for, as `name.namespace:port`.
    pub services: Vec<String>,
    /// Who counted: `client`, or `server` for callers without a sidecar.
    pub reported_by: &'static str,
    /// Whether nothing happened in the window.
    pub idle: bool,
    /// How the edge is, by its share of failures.
    pub health: Health,
    /// `mutual`, `simple`, `none`, or `mixed`; `null` when nothing is known to have been on the wire.
    pub tls: Option<&'static str>,
    /// How many calls were protected in each way.
    pub tls_calls: TlsCalls,
    /// Requests in the window.
    pub requests: u64,
    /// Requests since the edge was first seen.
    pub requests_total: u64,
    /// Requests per second.
    pub requests_per_second: f64,
    /// Share of requests (without requests: of ended connections) that did not fail, of those that succeeded or
    /// failed; `null` when none did.
    pub success_rate: Option<f64>,
    /// Of requests, without those whose caller ended them within the answer; for `tls` and `tcp` of ended
    /// connections' life. `null` when there is none.
    pub latency_ms: Option<Latency>,
    /// Failures by reason, most first.
    pub failures: Vec<Failure>,
    /// Requests that the caller ended, before the answer or within it; no failures.
    pub cancelled: u64,
    /// What `success_rate` and `health` are made of.
    #[serde(skip)]
    pub outcomes: Outcomes,
    /// Connections that are not HTTP; `null` for `http` and `grpc`.
    pub connections: Option<Connections>,
    /// Attempts beyond the first; `null` for `tls` and `tcp`.
    pub retries: Option<Retries>,
    /// Circuits that the source keeps for the target; `null` when there is none.
    pub circuits: Option<Tally>,
    /// Bytes per second from source to target.
    pub bytes_sent_per_second: f64,
    /// Bytes per second from target to source.
    pub bytes_received_per_second: f64,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it was last seen.
    pub last_seen: Timestamp,
    /// The busiest routes; `/api/edges/{id}` has all of them.
    pub routes: Vec<Route>,
    /// Number of routes in the window, also those that are not in `routes`.
    pub routes_total: usize,
    /// Requests whose route the sidecar folded into `__other__` because its cap on routes was reached.
    pub routes_folded: u64,
}

/// Requests in the window, or connections that were opened in it, by how they were protected on the wire. Those that failed
/// before they had a connection are in none of these numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TlsCalls {
    /// Mutual TLS: both sides proved who they are.
    pub mutual: u64,
    /// TLS of the application's own.
    pub simple: u64,
    /// Plain text.
    pub none: u64,
}

/// Quantiles in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// Ninetieth percentile.
    pub p90: f64,
    /// Ninety-fifth percentile.
    pub p95: f64,
    /// Ninety-ninth percentile.
    pub p99: f64,
    /// Arithmetic mean.
    pub mean: f64,
}

/// Failures of one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// A reason word, an HTTP status, or a gRPC status name.
    pub reason: String,
    /// How many in the window.
    pub count: u64,
}

/// Connections that are not HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Connections {
    /// Opened in the window.
    pub opened: u64,
    /// Ended in the window, failed ones included.
    pub ended: u64,
    /// Failed in the window.
    pub failed: u64,
    /// Opened since the edge was first seen.
    pub opened_total: u64,
    /// Opened per second.
    pub opened_per_second: f64,
}

/// Attempts beyond the first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Retries {
    /// Sent in the window.
    pub sent: u64,
    /// Kept back by the retry budget in the window.
    pub denied: u64,
    /// Attempts per request: 1 when nothing was tried again.
    pub amplification: f64,
}

/// One route of an edge.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Route {
    /// Request method; `_OTHER` for unregistered ones.
    pub method: String,
    /// Path template; `__other__` for what did not fit under the cap.
    pub route: String,
    /// Requests in the window.
    pub requests: u64,
    /// Requests per second.
    pub requests_per_second: f64,
    /// Share of requests that did not fail, of those that succeeded or failed.
    pub success_rate: Option<f64>,
    /// Of its requests, without those whose caller ended them within the answer.
    pub latency_ms: Option<Latency>,
    /// Failures by reason, most first.
    pub failures: Vec<Failure>,
    /// Requests that the caller ended, before the answer or within it; no failures.
    pub cancelled: u64,
    /// Responses by status, most first.
    pub statuses: Vec<StatusCount>,
}

/// Responses of one status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusCount {
    /// `200`, `grpc unavailable`, or `none` when no response came.
    pub status: String,
    /// How many in the window.
    pub count: u64,
}

/// One edge with everything that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detail {
    /// When it was made.
    pub at: Timestamp,
    /// The window's name.
    pub window: Window,
    /// The window's length.
    pub window_seconds: u64,
    /// How much of the window the numbers cover.
    pub covered_seconds: f64,
    /// The edge, with all its routes.
    pub edge: Edge,
    /// The window slot by slot.
    pub series: Series,
}

/// Numbers of an edge, slot by slot, oldest first. All lists have the same length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// When the first slot begins.
    pub start: Timestamp,
    /// The length of a slot.
    pub step_seconds: u64,
    /// Requests per second.
    pub requests_per_second: Vec<f64>,
    /// Failed requests or connections per second.
    pub failures_per_second: Vec<f64>,
    /// Share that did not fail; `null` where nothing ended.
    pub success_rate: Vec<Option<f64>>,
    /// Median latency in milliseconds; `null` where nothing ended.
    pub p50_ms: Vec<Option<f64>>,
    /// Ninety-ninth percentile in milliseconds; `null` where nothing ended.
    pub p99_ms: Vec<Option<f64>>,
    /// Bytes per second from source to target.
    pub bytes_sent_per_second: Vec<f64>,
    /// Bytes per second from target to source.
    pub bytes_received_per_second: Vec<f64>,
}

impl View {
    /// Everything equal but the version and the clock.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.diagnosis == other.diagnosis && self.nodes == other.nodes && self.edges == other.edges
    }

    /// The part of the view that touches `namespace`, without idle edges and nodes unless `idle`.
    ///
    /// A node outside the namespace stays when an edge connects it with the inside, so that no edge hangs loose.
    #[must_use]
    pub fn filtered(&self, namespace: Option<&str>, idle: bool) -> Self {
        let inside: std::collections::HashSet<&str> = self
            .nodes
            .iter()
            .filter(|node| namespace.is_none_or(|wanted| node.namespace.as_deref() == Some(wanted)))
            .map(|node| node.id.as_str())
            .collect();
        let touches =
            |edge: &&Edge| inside.contains(edge.source.as_str()) || inside.contains(edge.target.as_str());
        let edges: Vec<Edge> =
            self.edges.iter().filter(touches).filter(|edge| idle || !edge.idle).cloned().collect();
        let ends: std::collections::HashSet<&str> =
            edges.iter().flat_map(|edge| [edge.source.as_str(), edge.target.as_str()]).collect();
        let stays = |node: &&Node| {
            // A workload whose sidecar is connected is there, whether it has traffic or not.
            let present = inside.contains(node.id.as_str()) && (idle || !node.idle || node.sidecars > 0);
            present || ends.contains(node.id.as_str())
        };
        let nodes = self.nodes.iter().filter(stays).cloned().collect();
        Self { nodes, edges, diagnosis: self.diagnosis.clone(), ..*self }
    }
}
