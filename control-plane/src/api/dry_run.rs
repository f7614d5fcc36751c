//! `POST /api/dry-run`: what applying some YAML would change. Nothing is applied.
//!
//! Surprise: although nothing is changed, a page of another origin is refused, because the answer tells what is
//! configured, and asking costs work. `guard` refuses its `Origin`; and the content type is one that a browser does not send
//! across origins without asking first.

use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;

use super::{Api, Problem, computed, uncached};

/// The largest text: a directory of a few hundred objects.
pub const BODY_MAX: usize = 1 << 20;
/// How long it may take to come.
const BODY_WAIT: Duration = Duration::from_secs(10);
/// Dry runs at a time. Each copies the world and compiles what changes: tens of megabytes in a large mesh.
pub(super) const PLACES: usize = 2;
/// How long one waits for its turn.
const PLACE_WAIT: Duration = Duration::from_secs(5);

/// The one content type that is taken.
const YAML: &str = "application/yaml";

/// What the body would change.
pub(super) async fn plan(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let headers = request.headers();
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some(YAML) {
        return Err(Problem::unsupported_type(format!("the body must be sent as {YAML}")));
    }
    let waited = tokio::time::timeout(PLACE_WAIT, api.dry_runs.clone().acquire_owned()).await;
    let Ok(Ok(place)) = waited else {
        return Err(Problem::unavailable("too many dry runs at a time; try again in a moment".to_owned()));
    };
    let text = text(request).await?;
    let made = computed(move || {
        let _place = place;
        api.configuration.plan(&text, Instant::now())
    });
    Ok(uncached(Json(made.await?)))
}

async fn text(request: Request) -> Result<String, Problem> {
    let reading = to_bytes(request.into_body(), BODY_MAX);
    let body: Bytes = match tokio::time::timeout(BODY_WAIT, reading).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let detail = format!("the body is longer than {BODY_MAX} bytes, or broke off");
            return Err(Problem::bad_body(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        Err(_) => {
            let detail = format!("no whole body within {BODY_WAIT:?}");
            return Err(Problem::bad_body(StatusCode::REQUEST_TIMEOUT, detail));
        }
    };
    String::from_utf8(body.into())
        .map_err(|_| Problem::bad_body(StatusCode::BAD_REQUEST, "the body is not UTF-8 text".to_owned()))
}
