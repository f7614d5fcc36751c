//! `/api/session`: who you are here, how to sign in, and signing in and out.
//!
//! A browser signs in by sending a token once; from then on a cookie stands for it, that no script can read and no other
//! site can make the browser send. Event streams need that, because they cannot carry a token.
//!
//! Surprise: the browser's word is taken for how the page was reached (`Origin`), because nobody else knows it where
//! something in front of this program speaks TLS. Who lies about it harms their own session only.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Serialize;
use tracing::info;

use super::guard::{self, Gate, is_loopback};
use super::{Problem, method_not_allowed, uncached};
use crate::auth::sessions::Way;
use crate::auth::{How, Principal, Role, SignIn};

pub(super) fn routes(gate: Gate) -> Router {
    let session = get(show).post(sign_in).delete(sign_out).fallback(method_not_allowed);
    Router::new().route("/api/session", session).with_state(gate)
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

/// Coming and going changes nothing in the mesh, so it is written down if it can be, and happens anyway: who has to make room
/// on the disk for the audit log must be able to come in.
pub(super) async fn note(gate: &Gate, principal: &Principal, request: &Parts, now: Timestamp) {
    let peer = request.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    info!(who = %principal.name, role = principal.role.word(), ?peer, method = %request.method, "session");
    if let Ok(record) = gate.audit.begin(principal, guard::deed(request), now).await {
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
