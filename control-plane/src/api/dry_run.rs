//! `POST /api/dry-run`: what applying some YAML would change. Nothing is applied.
//!
//! Surprise: although nothing is changed, a page of another origin is refused, because the answer tells what is
//! configured, and asking costs work. The content type is one that a browser does not send across origins without
//! asking first, and an `Origin` that is not this program's own is refused outright.

use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};
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
    own_origin(headers, request.uri())?;
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

/// A browser says which page asks; other programs do not.
pub(super) fn own_origin(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| uri.authority().map(Authority::as_str)).unwrap_or_default();
    let origin = origin.to_str().unwrap_or_default();
    let asks = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    if asks.is_some_and(|asks| !asks.is_empty() && asks.eq_ignore_ascii_case(host)) {
        return Ok(());
    }
    let shown: String = origin.chars().take(100).collect();
    Err(Problem::forbidden(format!("a page of {shown:?} may not ask this")))
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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_the_programs_own_page_and_programs_without_pages_may_ask() {
        let ask = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("localhost:8080"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            own_origin(&headers, &Uri::from_static("/api/dry-run")).is_ok()
        };
        assert!(ask(None) && ask(Some("http://localhost:8080")) && ask(Some("http://LOCALHOST:8080")));
        for origin in
            ["null", "", "http://", "http://localhost:8081", "http://evil.example", "localhost:8080"]
        {
            assert!(!ask(Some(origin)), "{origin}");
        }
    }
}
