//! What people and programs see: JSON, server-sent events, and the dashboard.
//!
//! In: the graph, the mesh's read handle, the ingest's. Out: one axum [`Router`] for one listener; its shape is
//! described in `api/openapi.json`, which it also serves. Errors are `application/problem+json` (RFC 9457),
//! everywhere.
//!
//! Invariants: views are computed at most once per [`live::AGE_MAX`] and window and shared by all clients, so a
//! hundred open dashboards cost what one costs; the graph's lock is never held while a view is serialised.
//! Surprise: on a loopback listener the `Host` header is checked, because a web page that a developer visits can
//! otherwise read the API by DNS rebinding.
//! Non-goal: authentication. The API only reads; who binds it beyond loopback decides who may look.

pub mod guard;
pub mod live;
pub mod problem;

mod dashboard;
mod graph;
mod mesh;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio_util::sync::CancellationToken;
use tower_http::compression::CompressionLayer;

use crate::graph::{Mesh, SharedGraph};
use crate::ingest::Ingest;
pub use guard::HostPolicy;
pub use live::Live;
pub use problem::Problem;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    graph: SharedGraph,
    mesh: Arc<dyn Mesh>,
    ingest: Ingest,
    live: Arc<Live>,
    registry: prometheus::Registry,
    event_streams: prometheus::IntGauge,
}

impl Api {
    /// The API over `ingest`'s graph and `mesh`; `/metrics` shows what is in `registry`. `shutdown` ends event
    /// streams, which would otherwise keep a graceful shutdown waiting. Run [`Live::run`] of [`Api::live`] on a
    /// task.
    #[must_use]
    pub fn new(
        ingest: Ingest,
        mesh: Arc<dyn Mesh>,
        registry: prometheus::Registry,
        shutdown: CancellationToken,
    ) -> Self {
        let graph = ingest.graph().clone();
        let live = Arc::new(Live::new(graph.clone(), mesh.clone(), shutdown));
        let event_streams = prometheus::IntGauge::new("weft_api_event_streams", "Open event streams.");
        let event_streams = event_streams.expect("a valid name");
        // Registered twice only in tests with several APIs on one registry; then it is only not exported.
        drop(registry.register(Box::new(event_streams.clone())));
        Self { graph, mesh, ingest, live, registry, event_streams }
    }

    /// Whoever keeps the views fresh.
    #[must_use]
    pub fn live(&self) -> Arc<Live> {
        self.live.clone()
    }

    /// The router for a listener with `hosts`.
    pub fn router(self, hosts: HostPolicy) -> Router {
        let api = Router::new()
            .route("/api/graph", get(graph::whole))
            .route("/api/graph/events", get(graph::events))
            .route("/api/edges/{id}", get(graph::edge))
            .route("/api/proxies", get(mesh::proxies))
            .route("/api/config/errors", get(mesh::problems))
            .route("/api/overview", get(mesh::overview))
            .route("/api/openapi.json", get(openapi))
            .route("/metrics", get(mesh::metrics))
            .route("/live", get(async || "live\n"))
            .fallback(fallback)
            .method_not_allowed_fallback(method_not_allowed)
            .with_state(self)
            .layer(CompressionLayer::new());
        guard::protect(api, hosts)
    }
}

/// The description of this API.
pub const OPENAPI: &str = include_str!("api/openapi.json");

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")], OPENAPI)
        .into_response()
}

async fn fallback(method: Method, uri: Uri) -> Response {
    if uri.path() == "/api" || uri.path().starts_with("/api/") {
        return Problem::not_found(format!("there is nothing at {}", uri.path())).into_response();
    }
    if method != Method::GET && method != Method::HEAD {
        return method_not_allowed(method, uri).await;
    }
    dashboard::serve(uri.path())
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let detail = format!("{} can be read with GET, not used with {method}", uri.path());
    let mut response = Problem::method_not_allowed(detail).into_response();
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
    response
}
