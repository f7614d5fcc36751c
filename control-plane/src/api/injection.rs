//! `/api/injection`: who has a sidecar, who should have one, and whose is of another version.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use super::{Api, uncached};
use crate::graph::Timestamp;
use crate::inject::census::Census;

#[derive(Serialize)]
struct Injection<'a> {
    at: Timestamp,
    /// Of the injector, and so of new sidecars.
    version: &'static str,
    #[serde(flatten)]
    census: &'a Census,
    /// How many more pods there are than are listed.
    left_out: usize,
}

/// The latest census.
pub(super) async fn census(State(api): State<Api>) -> Response {
    let census = api.census.get();
    let left_out = (census.uninjected + census.outdated).saturating_sub(census.pods.len());
    let at = Timestamp::now();
    uncached(Json(Injection { at, version: env!("CARGO_PKG_VERSION"), census: &census, left_out }))
}
