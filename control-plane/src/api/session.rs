//! `/api/session`: who you are here, how to sign in, and signing in and out.
//!
//! A browser signs in by sending a token once; from then on a cookie stands for it, that no script can read and no other
//! site can make the browser send. Event streams need that, because they cannot carry a token.
//!
//! Surprise: the browser's word is taken for how the page was reached (`Origin`), because nobody else knows it where
//! something in front of this program speaks TLS. Who lies about it harms their own session only.

use std::net::SocketAddr;

use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Serialize;
use tracing::{info, warn};

use super::guard::{self, Gate, is_loopback};
use super::{Problem, method_not_allowed, uncached};
use crate::audit::Deed;
use crate::auth::oidc::{Back, Failure, Oidc};
use crate::auth::sessions::Way;
use crate::auth::{How, Principal, Role, SignIn};

pub(super) fn routes(gate: Gate) -> Router {
    let session = get(show).post(sign_in).delete(sign_out).fallback(method_not_allowed);
    Router::new()
        .route("/api/session", session)
        .route("/api/session/oidc", get(elsewhere))
        .route("/api/session/oidc/callback", get(back))
        .with_state(gate)
}

/// `GET /api/session`.
#[derive(Serialize)]
struct Session {
    /// Whether one has to sign in.
    required: bool,
    /// Who asks; `null` if they have to sign in.
    who: Option<Who>,
    /// How one can sign in.
    ways: SignIn,
}

#[derive(Serialize)]
struct Who {
    name: String,
    role: Role,
    how: How,
    /// Whether a cookie stands for them, so that they can sign out.
    session: bool,
}

impl Session {
    fn new(gate: &Gate, who: Option<&Principal>) -> Self {
        let who = who.map(|Principal { name, role, how, session }| Who {
            name: name.to_string(),
            role: *role,
            how: *how,
            session: *session,
        });
        Self { required: gate.auth.is_configured(), who, ways: gate.auth.ways() }
    }
}

async fn show(State(gate): State<Gate>, headers: HeaderMap) -> Response {
    let who = gate.auth.authenticate(&headers, Timestamp::now()).await.ok();
    uncached(Json(Session::new(&gate, who.as_ref())))
}

async fn sign_in(State(gate): State<Gate>, request: Parts) -> Result<Response, Problem> {
    if !gate.auth.is_configured() {
        return Err(Problem::not_found("nobody needs to sign in here".to_owned()));
    }
    let way = way(&gate, &request.headers, &request.uri)?;
    let now = Timestamp::now();
    let signed_in = gate.auth.sign_in(&request.headers, way, now).await.map_err(guard::refused)?;
    let (principal, cookie) = signed_in.map_err(|error| Problem::unavailable(error.to_string()))?;
    note(&gate, &principal, &request, now).await;
    let mut response = uncached(Json(Session::new(&gate, Some(&principal))));
    set_cookie(&mut response, &cookie);
    Ok(response)
}

async fn sign_out(State(gate): State<Gate>, request: Parts) -> Response {
    let now = Timestamp::now();
    if gate.auth.is_configured()
        && let Ok(principal) = gate.auth.authenticate(&request.headers, now).await
    {
        note(&gate, &principal, &request, now).await;
    }
    let mut response = uncached(Json(Session::new(&gate, None)));
    for cookie in gate.auth.sign_out(&request.headers) {
        set_cookie(&mut response, &cookie);
    }
    response
}

/// Sends the browser to the provider.
async fn elsewhere(State(gate): State<Gate>) -> Result<Response, Problem> {
    let oidc = oidc(&gate)?;
    Ok(match oidc.begin(Timestamp::now()).await {
        Ok(away) => {
            let mut response = see_other(&away.url);
            set_cookie(&mut response, &away.cookie);
            response
        }
        Err(failure) => {
            warn!(error = &failure as &dyn std::error::Error, "a login could not begin");
            see_other("../../?sign-in=failed")
        }
    })
}

/// Takes the browser back from the provider. What went wrong is told to the log; the page learns only what helps.
async fn back(
    State(gate): State<Gate>,
    query: Result<Query<Back>, QueryRejection>,
    request: Parts,
) -> Result<Response, Problem> {
    let oidc = oidc(&gate)?;
    let now = Timestamp::now();
    let Query(back) = query.map_err(|rejection| Problem::bad_parameter(rejection.body_text()))?;
    let finished = oidc.finish(back, &request.headers, now).await;
    let welcomed = finished.and_then(|principal| {
        let cookie = gate.auth.welcome(&principal, oidc.way(), now).map_err(Failure::Asking)?;
        Ok((principal, cookie))
    });
    match welcomed {
        Ok((principal, cookie)) => {
            note(&gate, &principal, &request, now).await;
            let mut response = see_other(HOME);
            set_cookie(&mut response, &cookie);
            Ok(response)
        }
        Err(failure) => {
            warn!(error = &failure as &dyn std::error::Error, "a login failed");
            let word = if matches!(failure, Failure::NoRole(_)) { "no-role" } else { "failed" };
            Ok(see_other(&format!("{HOME}?sign-in={word}")))
        }
    }
}

fn oidc(gate: &Gate) -> Result<&Oidc, Problem> {
    gate.auth.oidc().ok_or_else(|| Problem::not_found("no provider is configured (--oidc-issuer)".to_owned()))
}

/// The dashboard, from the callback's address: also behind a proxy that adds a path.
const HOME: &str = "../../../";

fn see_other(url: &str) -> Response {
    let location = HeaderValue::from_str(url).unwrap_or(HeaderValue::from_static(HOME));
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}

/// Coming and going changes nothing in the mesh, so it is written down if it can be, and happens anyway: who has to make room
/// on the disk for the audit log must be able to come in.
pub(super) async fn note(gate: &Gate, principal: &Principal, request: &Parts, now: Timestamp) {
    let peer = request.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    info!(who = %principal.name, role = principal.role.word(), ?peer, method = %request.method, "session");
    // Without the query: a provider's code is nobody's business.
    let action = format!("{} {}", request.method, request.uri.path());
    let deed = Deed { action, ..guard::deed(request) };
    if let Ok(record) = gate.audit.begin(principal, deed, now).await {
        record.end(200, None).await;
    }
}

/// How the cookie will travel.
fn way(gate: &Gate, headers: &HeaderMap, uri: &Uri) -> Result<Way, Problem> {
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    if origin.is_some_and(|origin| origin.starts_with("https://")) {
        return Ok(Way::Protected);
    }
    if gate.auth.is_insecure() || is_loopback(guard::host(headers, uri)) {
        return Ok(Way::Plain);
    }
    Err(Problem::forbidden(
        "a session that travels by plain HTTP can be taken over by whoever sees it; reach the dashboard by https:// (let \
         something in front of it speak TLS) or through `kubectl port-forward` or ssh, or start the control plane with \
         --insecure"
            .to_owned(),
    ))
}

fn set_cookie(response: &mut Response, cookie: &str) {
    // Made of hexadecimal digits and constants.
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}
