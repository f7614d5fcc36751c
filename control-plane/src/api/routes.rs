//! `/api/routes`: what callers go by, and how that does.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::{Api, Problem, computed, uncached};
use crate::graph::Timestamp;
use crate::inspect::routes::Filter;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    window: Option<String>,
    namespace: Option<String>,
    service: Option<String>,
}

/// The tree of services, rules and backends.
pub(super) async fn tree(
    State(api): State<Api>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Parameters { window, namespace, service }) = query.map_err(|rejection| {
        Problem::bad_parameter(rejection.body_text()).allowing(["window", "namespace", "service"])
    })?;
    let window = super::graph::window(window.as_deref())?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let filter = Filter { namespace: given(namespace), service: given(service) };
    let made =
        computed(move || api.configuration.routes(&api.ingest, window, Timestamp::now(), &filter)).await?;
    Ok(uncached(Json(made)))
}
