//! `/api/audit`: who did what lately.

use axum::response::Response;
use axum::{Extension, Json};
use serde::Serialize;

use super::uncached;
use crate::audit::{Audit, Entry, KEPT_MAX};

#[derive(Serialize)]
struct Lately {
    /// Where all of it is.
    log: String,
    /// So many are kept here at most.
    kept: usize,
    /// The newest first.
    entries: Vec<Entry>,
}

/// The last deeds.
pub(super) async fn list(Extension(audit): Extension<Audit>) -> Response {
    uncached(Json(Lately { log: audit.target().shown(), kept: KEPT_MAX, entries: audit.entries() }))
}
