//! `/api/objects`: everything that is configured, and how each of it fares.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::{Api, Problem, computed, uncached};
use crate::inspect::objects::{Filter, KINDS};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

/// The objects that are asked for.
pub(super) async fn list(
    State(api): State<Api>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Parameters { kind, namespace, name }) = query.map_err(|rejection| {
        Problem::bad_parameter(rejection.body_text()).allowing(["kind", "namespace", "name"])
    })?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let filter = Filter { kind: given(kind), namespace: given(namespace), name: given(name) };
    if let Some(kind) = filter.kind.as_deref().filter(|kind| !KINDS.contains(kind)) {
        let shown: String = kind.chars().take(40).collect();
        return Err(
            Problem::bad_parameter(format!("{shown:?} is not a kind of object that is kept")).allowing(KINDS)
        );
    }
    let made = computed(move || api.configuration.objects(&filter)).await?;
    Ok(uncached(Json(made)))
}
