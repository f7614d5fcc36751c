//! What people and programs see: JSON, server-sent events, and the dashboard.
//!
//! In: the mesh's read handle, the ingest's (and through it the graph, the circuits). Out: one axum [`Router`] for one listener; its shape is
//! described in `api/openapi.json`, which it also serves. Errors are `application/problem+json` (RFC 9457),
//! everywhere.
//!
//! Invariants: views are computed at most once per [`live::AGE_MAX`] and window and shared by all clients, so a
//! hundred open dashboards cost what one costs; the graph's lock is never held while a view is serialised.
//! Surprise: on a loopback listener the `Host` header is checked, because a web page that a developer visits can
//! otherwise read the API by DNS rebinding.
//! Who may ask is decided by `guard`, before any handler, from what `auth` says.

pub mod guard;
pub mod live;
pub mod problem;

mod access;
mod audit;
mod authority;
mod circuits;
mod dashboard;
mod dry_run;
mod graph;
mod injection;
mod mesh;
mod objects;
mod routes;
mod seats;
mod session;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Uri, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures_util::Stream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::compression::CompressionLayer;

use crate::ca::Ca;
use crate::graph::Mesh;
use crate::ingest::Ingest;
use crate::inject::reconcile::Latest;
use crate::inspect::Configuration;
use crate::xds::Status;
pub use dry_run::BODY_MAX as DRY_RUN_BYTES_MAX;
pub(crate) use guard::is_loopback;
pub use guard::{Gate, HostPolicy};
pub use live::Live;
pub use problem::Problem;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    mesh: Arc<dyn Mesh>,
    ingest: Ingest,
    configuration: Configuration,
    dry_runs: Arc<Semaphore>,
    live: Arc<Live>,
    registry: prometheus::Registry,
    event_streams: prometheus::IntGauge,
    authority: Option<Arc<(Ca, Status)>>,
    census: Latest,
}

impl Api {
    /// The API over `ingest`'s graph, `mesh` and `configuration`; `/metrics` shows what is in `registry`. `shutdown` ends event
    /// streams, which would otherwise keep a graceful shutdown waiting. Run [`Live::run`] of [`Api::live`] on a
    /// task.
    #[must_use]
    pub fn new(
        ingest: Ingest,
        mesh: Arc<dyn Mesh>,
        configuration: Configuration,
        registry: prometheus::Registry,
        shutdown: CancellationToken,
    ) -> Self {
        let live = Arc::new(Live::new(ingest.clone(), mesh.clone(), shutdown));
        let event_streams = prometheus::IntGauge::new("weft_api_event_streams", "Open event streams.");
        let event_streams = event_streams.expect("a valid name");
        // Registered twice only in tests with several APIs on one registry; then it is only not exported.
        drop(registry.register(Box::new(event_streams.clone())));
        let dry_runs = Arc::new(Semaphore::new(dry_run::PLACES));
        Self {
            mesh,
            ingest,
            configuration,
            dry_runs,
            live,
            registry,
            event_streams,
            authority: None,
            census: Latest::default(),
        }
    }

    /// The same with a certificate authority; `status` tells which sidecars have what of it.
    #[must_use]
    pub fn with_authority(self, ca: Ca, status: Status) -> Self {
        Self { authority: Some(Arc::new((ca, status))), ..self }
    }

    /// The same with what is known of pods without sidecars.
    #[must_use]
    pub fn with_census(self, census: Latest) -> Self {
        Self { census, ..self }
    }

    /// Whoever keeps the views fresh.
    #[must_use]
    pub fn live(&self) -> Arc<Live> {
        self.live.clone()
    }

    /// The router for a listener behind `gate`.
    pub fn router(self, gate: Gate) -> Router {
        let api = Router::new()
            .route("/api/graph", get(graph::whole))
            .route("/api/graph/events", get(graph::events))
            .route("/api/edges/{id}", get(graph::edge))
            .route("/api/access", get(access::overview))
            .route("/api/access/check", get(access::check))
            .route("/api/ca", get(authority::overview))
            .route("/api/ca/rotate", post(authority::rotate))
            .route("/api/tokens", get(authority::tokens).post(authority::create))
            .route("/api/tokens/{id}", delete(authority::revoke))
            .route("/api/circuits", get(circuits::whole))
            .route("/api/circuits/events", get(circuits::events))
            .route("/api/proxies", get(mesh::proxies))
            .route("/api/config/errors", get(mesh::problems))
            .route("/api/dry-run", post(dry_run::plan))
            .route("/api/injection", get(injection::census))
            .route("/api/objects", get(objects::list))
            .route("/api/routes", get(routes::tree))
            .route("/api/overview", get(mesh::overview))
            .route("/api/openapi.json", get(openapi))
            .route("/api/audit", get(audit::list))
            .route("/metrics", get(mesh::metrics))
            .route("/live", get(async || "live\n"))
            .fallback(fallback)
            .method_not_allowed_fallback(method_not_allowed)
            .with_state(self)
            .merge(session::routes(gate.clone()))
            .layer(CompressionLayer::new());
        guard::protect(api, gate)
    }
}

/// The description of this API.
pub const OPENAPI: &str = include_str!("api/openapi.json");

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")], OPENAPI)
        .into_response()
}

/// A comment at least this often keeps proxies between client and server from closing an idle stream.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// An answer that goes on as an event stream.
fn stream_of(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive")).into_response();
    // Tells buffering reverse proxies to let events through.
    let headers = response.headers_mut();
    headers.insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

/// An answer that is only true now.
fn uncached(json: impl IntoResponse) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], json).into_response()
}

/// What `make` makes, on a thread where it may take its time.
async fn computed<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    // Only a panic or the end of the runtime fails it.
    let made = tokio::task::spawn_blocking(make).await;
    made.map_err(|_| Problem::unavailable("the answer could not be computed".to_owned()))
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
    let (detail, allowed) = match uri.path() {
        path @ "/api/dry-run" => (format!("{path} is used with POST, not with {method}"), "POST"),
        path @ "/api/ca/rotate" => (format!("{path} is used with POST, not with {method}"), "POST"),
        path @ "/api/tokens" => {
            (format!("{path} is used with GET and POST, not with {method}"), "GET, HEAD, POST")
        }
        path if path.starts_with("/api/tokens/") => {
            (format!("{path} is used with DELETE, not with {method}"), "DELETE")
        }
        path @ "/api/session" => {
            (format!("{path} knows GET, POST and DELETE, not {method}"), "GET, HEAD, POST, DELETE")
        }
        path => (format!("{path} can be read with GET, not used with {method}"), "GET, HEAD"),
    };
    let mut response = Problem::method_not_allowed(detail).into_response();
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allowed));
    response
}
