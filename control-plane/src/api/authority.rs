//! `/api/ca`, `/api/ca/rotate`, `/api/tokens`: the certificate authority and join tokens.
//!
//! These change something, so `guard` lets only operators in, refuses a page of another origin, and writes down what is done.
//! Bodies must be JSON: a content type that a browser does not send across origins without asking first.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weft_wire::{SpiffeId, WorkloadId};

use super::{Api, Problem, uncached};
use crate::audit::Remark;
use crate::ca::authority::RotateError;
use crate::ca::token::{Listed, TTL_DEFAULT, TTL_MAX, Wish, unix};
use crate::ca::{Ca, Clock, Refusal, clock_in_words};

/// Largest body.
const BODY_MAX: usize = 16 * 1024;
/// How long it may take to come.
const BODY_WAIT: Duration = Duration::from_secs(10);

/// What is wanted of a join token.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedToken {
    name: String,
    namespace: Option<String>,
    service_account: Option<String>,
    ttl_seconds: Option<u64>,
}

#[derive(Serialize)]
struct MadeToken {
    /// All of it: this is the only time it is told.
    token: String,
    id: String,
    namespace: String,
    name: String,
    identity: String,
    expires: u64,
}

#[derive(Serialize)]
struct Tokens {
    at: u64,
    tokens: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedRotation {
    #[serde(default)]
    force: bool,
}

/// The authority as it is now.
pub(super) async fn overview(State(api): State<Api>) -> Result<Response, Problem> {
    let (ca, status) = authority(&api)?;
    let mut overview = ca.overview(status, SystemTime::now());
    // Clocks are measured when a certificate is asked for, and with every report.
    for proxy in api.mesh.proxies() {
        let (Some(reports), Some(workload)) = (api.ingest.reporter(&proxy.instance), &proxy.workload) else {
            continue;
        };
        let behind_ms = reports.clock_behind_ms;
        let identity = proxy.identity.unwrap_or(proxy.instance);
        if let Some(text) = clock_in_words(workload.name(), behind_ms) {
            overview.clocks.retain(|known| known.identity != identity);
            overview.clocks.push(Clock { identity, behind_ms, text });
        }
    }
    Ok(uncached(Json(overview)))
}

/// Begins a rotation of the root, or forces its next step.
pub(super) async fn rotate(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let (ca, status) = authority(&api)?;
    let WantedRotation { force } = body(request).await?;
    ca.rotate(force).await.map_err(|error| match error {
        RotateError::Make(_) => {
            Problem::unavailable("the new root could not be made; see the log".to_owned())
        }
        error => Problem::conflict(error.to_string()),
    })?;
    Ok(uncached(Json(ca.overview(status, SystemTime::now()))))
}

/// Every join token, without secrets.
pub(super) async fn tokens(State(api): State<Api>) -> Result<Response, Problem> {
    let (ca, _) = authority(&api)?;
    let now = SystemTime::now();
    Ok(uncached(Json(Tokens { at: unix(now), tokens: ca.tokens(now) })))
}

/// Makes a join token.
pub(super) async fn create(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let (ca, _) = authority(&api)?;
    let WantedToken { name, namespace, service_account, ttl_seconds } = body(request).await?;
    let invalid =
        |error: weft_wire::InvalidName| Problem::bad_body(StatusCode::BAD_REQUEST, error.to_string());
    let namespace = namespace.as_deref().unwrap_or("default");
    let workload = WorkloadId::new(namespace, &name).map_err(invalid)?;
    let service_account = service_account.as_deref().unwrap_or(&name);
    let domain = ca.authority().domain().to_owned();
    let identity = SpiffeId::new(&domain, namespace, service_account).map_err(invalid)?;
    let ttl = ttl_seconds.map_or(TTL_DEFAULT, Duration::from_secs);
    if ttl.is_zero() || ttl > TTL_MAX {
        let detail = format!(
            "a token lives for 1 second to 30 days: ttl_seconds is between 1 and {}",
            TTL_MAX.as_secs()
        );
        return Err(Problem::bad_body(StatusCode::BAD_REQUEST, detail));
    }
    let now = SystemTime::now();
    let wish = Wish { workload, service_account: service_account.into(), ttl };
    let token = ca.create_token(&wish, now).await.map_err(refused)?;
    let made = MadeToken {
        token: token.reveal(),
        id: token.id.into(),
        namespace: namespace.to_owned(),
        name,
        identity: identity.to_string(),
        expires: unix(now + ttl),
    };
    let remark = Remark(format!("join token {} for {namespace}/{}, as {identity}", made.id, made.name));
    let mut response = (StatusCode::CREATED, uncached(Json(made))).into_response();
    // For the audit log: the path does not say whom the token is for.
    response.extensions_mut().insert(remark);
    Ok(response)
}

/// Takes a join token back.
pub(super) async fn revoke(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Problem> {
    let (ca, _) = authority(&api)?;
    if !ca.revoke_token(&id, SystemTime::now()).await.map_err(refused)? {
        let shown: String = id.chars().take(40).collect();
        return Err(Problem::not_found(format!("there is no join token {shown:?}")));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn authority(api: &Api) -> Result<(&Ca, &crate::xds::Status), Problem> {
    let known = api.authority.as_deref().map(|(ca, status)| (ca, status));
    known.ok_or_else(|| {
        Problem::not_found("there is no certificate authority here: --control-tls-listen is off".to_owned())
    })
}

fn refused(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::OwnIdentity(_) => Problem::bad_body(StatusCode::BAD_REQUEST, refusal.to_string()),
        _ => Problem::unavailable(refusal.to_string()),
    }
}

async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.and_then(|kind| kind.split(';').next()).map(str::trim) != Some("application/json") {
        return Err(Problem::unsupported_type("the body must be sent as application/json".to_owned()));
    }
    let reading = to_bytes(request.into_body(), BODY_MAX);
    let bytes = match tokio::time::timeout(BODY_WAIT, reading).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let detail = format!("the body is longer than {BODY_MAX} bytes, or broke off");
            return Err(Problem::bad_body(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        Err(_) => {
            let detail = format!("no whole body within {BODY_WAIT:?}");
            return Err(Problem::bad_body(StatusCode::REQUEST_TIMEOUT, detail));
        }
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| Problem::bad_body(StatusCode::BAD_REQUEST, error.to_string()))
}
