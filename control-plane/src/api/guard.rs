//! What every response and request of the API passes: security headers, and the check of the `Host` header.
//!
//! Invariant: nothing runs, is styled or is fetched in a browser that this program did not serve itself as a file.

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};

use super::Problem;

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
pub(super) fn protect(router: Router, hosts: HostPolicy) -> Router {
    router.layer(middleware::from_fn(move |request: Request, next: Next| check(hosts, request, next)))
}

async fn check(hosts: HostPolicy, request: Request, next: Next) -> Response {
    // HTTP/1.1 without a Host is a bad request anyway; an absolute-form target carries it in the URI.
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(Authority::as_str)).unwrap_or_default();
    let mut response = if hosts.admits(host) {
        next.run(request).await
    } else {
        let shown: String = host.chars().take(100).collect();
        let detail = format!("this listener answers to localhost, 127.0.0.1 and [::1], not to {shown:?}");
        Problem::wrong_host(detail).into_response()
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
}
