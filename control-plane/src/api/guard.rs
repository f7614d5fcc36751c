//! What every response and request of the API passes: security headers, the check of the `Host` header, and the question
//! who asks and whether they may.
//!
//! Invariants: nothing runs, is styled or is fetched in a browser that this program did not serve itself as a file. A route
//! that nobody thought of here is closed: it reads for viewers, and does everything else for operators.
//! Out, for handlers: the [`Principal`] as an extension of the request.

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};

use jiff::Timestamp;

use super::Problem;
use crate::auth::{Auth, Principal, Refusal, Role};

/// Who comes in at a listener.
#[derive(Clone)]
pub struct Gate {
    /// By which names it is reached.
    pub hosts: HostPolicy,
    /// Who may ask.
    pub auth: Auth,
}

impl Gate {
    /// Everybody, for everything.
    #[must_use]
    pub fn open(hosts: HostPolicy) -> Self {
        Self { hosts, auth: Auth::open() }
    }

    /// Whether this request may be answered; notes in it who asks.
    fn pass(&self, request: &mut Request) -> Result<(), Problem> {
        // HTTP/1.1 without a Host is a bad request anyway; an absolute-form target carries it in the URI.
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| request.uri().authority().map(Authority::as_str)).unwrap_or_default();
        if !self.hosts.admits(host) {
            let shown: String = host.chars().take(100).collect();
            let detail = format!("this listener answers to localhost, 127.0.0.1 and [::1], not to {shown:?}");
            return Err(Problem::wrong_host(detail));
        }
        let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let Some(needed) = needed(request.method(), matched, request.uri().path()) else { return Ok(()) };
        let principal = self.auth.authenticate(request.headers(), Timestamp::now()).map_err(refused)?;
        if principal.role < needed {
            return Err(Problem::forbidden(not_enough(&principal, needed)));
        }
        request.extensions_mut().insert(principal);
        Ok(())
    }
}

/// The role that a request needs; `None`: everybody may.
fn needed(method: &Method, matched: Option<&str>, path: &str) -> Option<Role> {
    let reads = *method == Method::GET || *method == Method::HEAD;
    match matched {
        // The page itself holds no secret, and shows how to sign in.
        None => (path == "/api" || path.starts_with("/api/")).then_some(Role::Viewer),
        Some("/live" | "/ready" | "/api/openapi.json") => None,
        // A dry run changes nothing.
        Some("/api/dry-run") => Some(Role::Viewer),
        Some(_) if reads => Some(Role::Viewer),
        Some(_) => Some(Role::Operator),
    }
}

fn refused(refusal: Refusal) -> Problem {
    Problem::unauthenticated(format!(
        "{refusal}; send `Authorization: Bearer TOKEN` (weft: --token, WEFT_TOKEN or WEFT_TOKEN_FILE). An operator makes one \
         with `weft auth token --name NAME --role viewer`"
    ))
}

fn not_enough(principal: &Principal, needed: Role) -> String {
    let Principal { name, role, .. } = principal;
    format!("{name} is {} here, and this needs the role {}", role.word(), needed.word())
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
        if self == Self::Any {
            return true;
        }
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
}

const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self'; \
         font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Wraps `router` in the checks and headers.
pub(super) fn protect(router: Router, gate: Gate) -> Router {
    router.layer(middleware::from_fn(move |request: Request, next: Next| check(gate.clone(), request, next)))
}

async fn check(gate: Gate, mut request: Request, next: Next) -> Response {
    let mut response = match gate.pass(&mut request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_pass_a_loopback_listener() {
        for host in
            ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "weft.localhost:1", "127.0.0.1"]
        {
            assert!(HostPolicy::Loopback.admits(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:8080",
            "10.0.0.1:8080",
            "127.0.0.1.evil.example",
            "[::1].evil.example",
        ] {
            assert!(!HostPolicy::Loopback.admits(host), "{host}");
            assert!(HostPolicy::Any.admits(host), "{host}");
        }
    }

    #[test]
    fn a_route_needs_what_it_does_and_one_that_nobody_thought_of_is_closed() {
        let needs = |method: Method, matched: Option<&str>, path: &str| needed(&method, matched, path);
        let route = |method: Method, path: &str| needed(&method, Some(path), path);
        assert_eq!(route(Method::GET, "/api/graph"), Some(Role::Viewer));
        assert_eq!(route(Method::HEAD, "/metrics"), Some(Role::Viewer));
        assert_eq!(route(Method::POST, "/api/dry-run"), Some(Role::Viewer));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            assert_eq!(route(method, "/api/of-tomorrow"), Some(Role::Operator));
        }
        assert_eq!(route(Method::GET, "/live"), None);
        assert_eq!(needs(Method::GET, None, "/"), None, "the page");
        assert_eq!(needs(Method::GET, None, "/assets/index.js"), None);
        for path in ["/api", "/api/", "/api/nothing"] {
            assert_eq!(needs(Method::GET, None, path), Some(Role::Viewer), "{path}");
        }
    }
}
