//! `/api/access`: who may call what, what rules of access said, and what would become of a call.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::{Api, Problem, computed, uncached};
use crate::graph::Timestamp;
use crate::inspect::access::{Question, Unclear};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    window: Option<String>,
}

/// Every policy with the rates of its rules.
pub(super) async fn overview(
    State(api): State<Api>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Parameters { window }) =
        query.map_err(|rejection| Problem::bad_parameter(rejection.body_text()).allowing(["window"]))?;
    let window = super::graph::window(window.as_deref())?;
    let made = computed(move || api.configuration.access(&api.ingest, window, Timestamp::now())).await?;
    Ok(uncached(Json(made)))
}

/// What would become of a call.
pub(super) async fn check(
    State(api): State<Api>,
    query: Result<Query<Question>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(question) = query.map_err(|rejection| {
        Problem::bad_parameter(rejection.body_text()).allowing(["from", "to", "method", "path", "header"])
    })?;
    let made = computed(move || api.configuration.check(&question)).await?;
    made.map(|checked| uncached(Json(checked))).map_err(|unclear| match unclear {
        Unclear::NotFound(reason) => Problem::not_found(reason),
        Unclear::Malformed(reason) => Problem::bad_parameter(reason),
    })
}
