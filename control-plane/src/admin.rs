//! What the platform asks: `/live`, `/ready`, `/metrics`.
//!
//! Ready means that sidecars can be served: the sources were read once, the journal was replayed, every
//! listener is bound, and the end has not begun. Reading the sources with problems is still ready: a mistake
//! in one file must not take the control plane of everybody else away.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{Registry, TextEncoder};
use tokio_util::sync::CancellationToken;

/// Refreshes gauges that are only worth computing when somebody looks.
pub type Refresh = Arc<dyn Fn() + Send + Sync>;

/// Everything, for an address of its own.
pub fn router(registry: Registry, refresh: Refresh, shutdown: CancellationToken) -> Router {
    let metrics = get(move || {
        let (registry, refresh) = (registry.clone(), Arc::clone(&refresh));
        async move {
            refresh();
            match TextEncoder::new().encode_to_string(&registry.gather()) {
                Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
                    .into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            }
        }
    });
    ready(shutdown).route("/live", get(async || "live\n")).route("/metrics", metrics)
}

/// `/ready` alone, to go beside the API's own routes.
pub fn ready(shutdown: CancellationToken) -> Router {
    Router::new().route(
        "/ready",
        get(move || {
            // Nothing listens before everything is ready, so only the end is left to tell.
            let ending = shutdown.is_cancelled();
            async move {
                match ending {
                    false => (StatusCode::OK, "ready\n"),
                    true => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
                }
            }
        }),
    )
}
