//! What every response and request of the API passes: security headers, the checks of `Host` and `Origin`, the question who
//! asks and whether they may, and the audit log.
//!
//! Invariants: nothing runs, is styled or is fetched in a browser that this program did not serve itself as a file. No other
//! page can make a browser change anything here. A route that nobody thought of here is closed: it reads for viewers, and does
//! everything else for operators, and is then in the audit log. A deed that is in the audit log runs to its end there,
//! whether or not somebody still waits for the answer.
//! Out, for handlers: the [`Principal`] and the [`Audit`] as extensions of the request. In: what a handler wants to have
//! written down, as a [`Remark`] in its response.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use jiff::Timestamp;

use super::Problem;
use crate::audit::{Audit, Deed, Remark, Target};
use crate::auth::{Auth, Principal, Refusal, Role};

/// An event stream is asked this often whether whoever follows it still may.
const STREAM_RECHECK: Duration = Duration::from_secs(5);

/// Who comes in at a listener.
#[derive(Clone)]
pub struct Gate {
    /// By which names it is reached.
    pub hosts: HostPolicy,
    /// Who may ask.
    pub auth: Auth,
    /// Where deeds are written down.
    pub audit: Audit,
}

impl Gate {
    /// Everybody, for everything; what they do is written to standard error.
    #[must_use]
    pub fn open(hosts: HostPolicy) -> Self {
        let audit = Audit::open(Target::Stderr, &prometheus::Registry::new());
        Self { hosts, auth: Auth::open(), audit: audit.expect("standard error needs no opening") }
    }
}

/// What is known of a request that may be answered.
enum Passed {
    /// Nobody needs to say who they are.
    Anybody,
    /// Somebody may, or not: what they are needs to be compared with what is needed.
    Somebody { principal: Principal, needed: Role },
}

impl Gate {
    async fn admit(&self, request: &Parts) -> Result<Passed, Problem> {
        let (headers, method) = (&request.headers, &request.method);
        let host = host(headers, &request.uri);
        if !self.hosts.admits(host) {
            let shown: String = host.chars().take(100).collect();
            let detail = format!("this listener answers to localhost, 127.0.0.1 and [::1], not to {shown:?}");
            return Err(Problem::wrong_host(detail));
        }
        let asked_by_page = if reads(method) {
            false
        } else {
            own_page(headers, host, self.auth.public_origin()).map_err(foreign_page)?
        };
        let Some(needed) = needed(method, route(request), request.uri.path()) else {
            return Ok(Passed::Anybody);
        };
        let principal = self.auth.authenticate(headers, Timestamp::now()).await.map_err(refused)?;
        // A cookie comes by itself with whatever another page makes the browser send, so that alone proves no intention.
        if principal.session && !reads(method) && !asked_by_page {
            return Err(foreign_page("that does not say which".to_owned()));
        }
        Ok(Passed::Somebody { principal, needed })
    }

    async fn answer(&self, request: Request, next: Next) -> Response {
        // A body is nothing that two threads may look at, so it stays aside while others are waited for.
        let (parts, body) = request.into_parts();
        let (principal, needed) = match self.admit(&parts).await {
            Ok(Passed::Anybody) => return next.run(Request::from_parts(parts, body)).await,
            Ok(Passed::Somebody { principal, needed }) => (principal, needed),
            Err(problem) => return problem.into_response(),
        };
        let may = principal.role >= needed;
        let deed = is_deed(&parts.method, route(&parts), needed).then(|| deed(&parts));
        let record = match deed {
            None => None,
            Some(deed) => match self.audit.begin(&principal, deed, Timestamp::now()).await {
                Ok(record) => Some(record),
                Err(unwritten) => return Problem::unavailable(unwritten.to_string()).into_response(),
            },
        };
        if !may {
            let Principal { name, role, .. } = &principal;
            let detail = format!("{name} is {} here, and this needs the role {}", role.word(), needed.word());
            if let Some(record) = record {
                record.end(403, Some(detail.clone())).await;
            }
            return Problem::forbidden(detail).into_response();
        }
        let headers = parts.headers.clone();
        let mut request = Request::from_parts(parts, body);
        request.extensions_mut().insert(principal);
        request.extensions_mut().insert(self.audit.clone());
        let Some(record) = record else {
            return self.while_allowed(next.run(request).await, headers, needed);
        };
        let done = tokio::spawn(async move {
            let mut response = next.run(request).await;
            let remark = response.extensions_mut().remove::<Remark>().map(|Remark(text)| text);
            record.end(response.status().as_u16(), remark).await;
            response
        });
        match done.await {
            Ok(response) => self.while_allowed(response, headers, needed),
            // The record stays without an end, which is what happened.
            Err(_) => {
                Problem::unavailable("this ended in the middle; the audit log has its begin".to_owned())
                    .into_response()
            }
        }
    }

    /// An event stream ends with the session or token that opened it.
    fn while_allowed(&self, response: Response, headers: HeaderMap, needed: Role) -> Response {
        let kind = response.headers().get(header::CONTENT_TYPE);
        let streams = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if !streams || !self.auth.is_configured() {
            return response;
        }
        let auth = self.auth.clone();
        let over = async move {
            loop {
                tokio::time::sleep(STREAM_RECHECK).await;
                if !auth.still_admits(&headers, needed, Timestamp::now()).await {
                    return;
                }
            }
        };
        response.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(over))))
    }
}

fn route(request: &Parts) -> Option<&str> {
    request.extensions.get::<MatchedPath>().map(MatchedPath::as_str)
}

fn reads(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}

/// The role that a request needs; `None`: everybody may.
fn needed(method: &Method, route: Option<&str>, path: &str) -> Option<Role> {
    match route {
        // The page itself holds no secret, and shows how to sign in.
        None => (path == "/api" || path.starts_with("/api/")).then_some(Role::Viewer),
        Some("/live" | "/ready" | "/api/openapi.json" | "/api/session") => None,
        Some(route) if route.starts_with("/api/session/") => None,
        // A dry run changes nothing.
        Some("/api/dry-run") => Some(Role::Viewer),
        Some("/api/audit") => Some(Role::Operator),
        // Who taps reads what others say to each other.
        Some(route) if is_tap(route) => Some(Role::Operator),
        Some(_) if reads(method) => Some(Role::Viewer),
        Some(_) => Some(Role::Operator),
    }
}

fn is_tap(route: &str) -> bool {
    route == "/api/tap" || route.starts_with("/api/tap/")
}

/// Whether the audit log wants to know: of everything that only operators may and that changes something, and of taps.
fn is_deed(method: &Method, route: Option<&str>, needed: Role) -> bool {
    route.is_some_and(is_tap) || (needed == Role::Operator && !reads(method))
}

pub(super) fn deed(request: &Parts) -> Deed {
    let path = request.uri.path_and_query().map_or_else(|| request.uri.path(), |path| path.as_str());
    let forwarded = request.headers.get("x-forwarded-for").and_then(|value| value.to_str().ok());
    Deed {
        action: format!("{} {path}", request.method),
        from: request.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer),
        forwarded_for: forwarded.map(str::to_owned),
    }
}

/// HTTP/1.1 without a `Host` is a bad request anyway; an absolute-form target carries it in the URI.
pub(super) fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> &'a str {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| uri.authority().map(Authority::as_str)).unwrap_or_default()
}

/// Whether a page of this program asks; `false` where no page does, as other programs than browsers do not say; an error
/// names the page that may not.
fn own_page(headers: &HeaderMap, host: &str, public: Option<&str>) -> Result<bool, String> {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    // `none`: somebody typed the address.
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return Err("another site".to_owned());
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(site == Some(b"same-origin")) };
    let origin = origin.to_str().unwrap_or_default();
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let own = authority.is_some_and(|asks| !asks.is_empty() && asks.eq_ignore_ascii_case(host));
    if own || public.is_some_and(|public| public.eq_ignore_ascii_case(origin)) {
        return Ok(true);
    }
    let shown: String = origin.chars().take(100).collect();
    Err(format!("{shown:?}"))
}

fn foreign_page(page: String) -> Problem {
    Problem::forbidden(format!(
        "a page of {page} may not ask this; if it is this dashboard behind a proxy, let the proxy keep the Host header, or \
         start the control plane with --api-public-url"
    ))
}

pub(super) fn refused(refusal: Refusal) -> Problem {
    if refusal == Refusal::Unavailable {
        return Problem::unavailable(refusal.to_string());
    }
    Problem::unauthenticated(format!(
        "{refusal}; send `Authorization: Bearer TOKEN` (weft: --token, WEFT_TOKEN or WEFT_TOKEN_FILE), or sign in with a \
         browser. An operator makes a token with `weft auth token --name NAME --role viewer`"
    ))
}

/// Which `Host` headers a listener answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPolicy {
    /// Any: the listener is reachable under names that this program cannot know.
    Any,
    /// Names of this machine's loopback only: a page on the web must not reach in by a name that resolves here.
    Loopback,
}

impl HostPolicy {
    /// The policy for a listener bound to `address`.
    #[must_use]
    pub fn for_listener(address: SocketAddr) -> Self {
        if address.ip().is_loopback() { Self::Loopback } else { Self::Any }
    }

    fn admits(self, host: &str) -> bool {
        self == Self::Any || is_loopback(host)
    }
}

/// Whether `host`, with or without a port, is a name of this machine for itself.
pub(crate) fn is_loopback(host: &str) -> bool {
    // Whole or not at all: what follows an address in brackets can only be a port.
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return false;
    }
    let name = name.to_ascii_lowercase();
    let is_loopback = name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback || name == "localhost" || name.ends_with(".localhost")
}

const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self'; \
         font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Wraps `router` in the checks and headers.
pub(super) fn protect(router: Router, gate: Gate) -> Router {
    router.layer(middleware::from_fn(move |request: Request, next: Next| check(gate.clone(), request, next)))
}

async fn check(gate: Gate, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_answer = path.starts_with("/api/") || path == "/metrics";
    let mut response = gate.answer(request, next).await;
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if is_answer {
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
    response
}

#[cfg(test)]
#[path = "guard/tests.rs"]
mod tests;
