//! A request's passage through its rule: what happens to its head, and to its response's.
//!
//! In: a [`Route`] that was picked. Out: an answer of the proxy's own, or a head to be sent on; later the response's head as
//! the client may see it. Pure but for two draws, the backend's and a fresh cookie's.
//!
//! Order, as in Envoy: [`Passage::preflight`] · faults · rate limit · [`Passage::answer`] · [`Passage::request`] · … ·
//! [`Passage::response`]. Within a head: the backend's changes, the rule's, then host and path.
//! Invariant: everything is decided once per request; another attempt sends the same head.
//! Surprise: the proxy's own refusals get the rule's response headers as well, and for an allowed origin the CORS
//! headers, so that a page's script can read why.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header};

use super::cors::Verdict;
use super::rewrite::set_target;
use super::rule::{Action, Backend, HostRewrite, Route};
use crate::http::{class, headers};
use crate::record::RuleName;
use crate::reply;

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A request on its way through a rule.
#[derive(Debug)]
pub struct Passage {
    route: Arc<Route>,
    /// Position of the backend that was drawn.
    backend: Option<usize>,
    hash: Option<u64>,
    /// What few requests have.
    rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    /// The allowed origin that the response is for.
    origin: Option<HeaderValue>,
    /// A cookie that the client gets.
    cookie: Option<HeaderValue>,
}

impl Passage {
    /// Draws a backend.
    #[must_use]
    pub fn new(route: Arc<Route>) -> Self {
        Self { backend: route.draw(), route, hash: None, rare: None }
    }

    /// The rule.
    #[must_use]
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// Where the request goes; `None` when the proxy answers.
    #[must_use]
    pub fn backend(&self) -> Option<&Backend> {
        self.route.backends().get(self.backend?)
    }

    /// What the rule and the backend are called in telemetry.
    #[must_use]
    pub fn name(&self) -> Option<&Arc<RuleName>> {
        self.route.name_of(self.backend?)
    }

    /// What ring hash and maglev send by; known once the head is as it is sent.
    #[must_use]
    pub fn hash(&self) -> Option<u64> {
        self.hash
    }

    /// The answer to a CORS preflight. For any other request of a browser, notes what its response needs.
    pub fn preflight(&mut self, request: &Parts) -> Option<Response<Bytes>> {
        // A redirect or a direct answer is not a resource that a page could use.
        let cors = self.route.cors().filter(|_| self.backend.is_some())?;
        match cors.judge(request) {
            Verdict::Unconcerned => None,
            Verdict::Origin(origin) => {
                self.rare.get_or_insert_default().origin = Some(origin);
                None
            }
            Verdict::Preflight(headers) => {
                let mut response = Response::new(Bytes::new());
                *response.headers_mut() = headers;
                Some(response)
            }
        }
    }

    /// The rule's own answer, if it is one.
    #[must_use]
    pub fn answer(&self, request: &Parts) -> Option<Response<Bytes>> {
        let (status, body, location) = match self.route.action() {
            Action::Forward(_) => return None,
            Action::Redirect(redirect) => {
                let location = redirect.location(&self.route.matches().path, request);
                (redirect.status, Bytes::new(), location)
            }
            Action::Direct(direct) => (direct.status, direct.body.clone(), None),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        if let Some(location) = location {
            response.headers_mut().insert(header::LOCATION, location);
        }
        self.route.filters().response.apply(response.headers_mut());
        if class::is_grpc(&request.headers) {
            return Some(reply::trailers_only(response));
        }
        if response.body().is_empty() {
            response.headers_mut().remove(header::CONTENT_TYPE);
        } else {
            let text = HeaderValue::from_static("text/plain");
            response.headers_mut().entry(header::CONTENT_TYPE).or_insert(text);
        }
        Some(response)
    }

    /// Changes the head into what is sent, and hashes it.
    pub fn request(&mut self, parts: &mut Parts, client: Option<IpAddr>) {
        let filters = self.route.filters();
        if let Some(backend) = self.backend() {
            backend.filters.request.apply(&mut parts.headers);
        }
        filters.request.apply(&mut parts.headers);
        if let Some(host) = self.backend().and_then(|backend| backend.filters.host.as_ref()) {
            set_host(parts, host);
        }
        if let Some(HostRewrite { host, append_forwarded_host }) = &filters.host {
            if *append_forwarded_host {
                forward_host(parts);
            }
            set_host(parts, host);
        }
        if let Some(path) = &filters.path
            && let Some(target) = path.target(&self.route.matches().path, &parts.uri)
        {
            set_target(parts, target);
        }
        let affinity = self.route.affinity(parts, client);
        self.hash = affinity.hash;
        if affinity.cookie.is_some() {
            self.rare.get_or_insert_default().cookie = affinity.cookie;
        }
    }

    /// Changes the head of the app's response into what the client sees.
    pub fn response(&self, headers: &mut HeaderMap) {
        if let Some(cookie) = self.rare.as_ref().and_then(|rare| rare.cookie.as_ref()) {
            headers.append(header::SET_COOKIE, cookie.clone());
        }
        self.decorate(headers);
        self.allow(headers);
    }

    /// Changes the head of a refusal into what the client sees.
    pub fn refusal(&self, headers: &mut HeaderMap) {
        self.decorate(headers);
        self.allow(headers);
    }

    fn decorate(&self, headers: &mut HeaderMap) {
        if let Some(backend) = self.backend() {
            backend.filters.response.apply(headers);
        }
        self.route.filters().response.apply(headers);
    }

    fn allow(&self, headers: &mut HeaderMap) {
        let origin = self.rare.as_ref().and_then(|rare| rare.origin.as_ref());
        if let (Some(origin), Some(cors)) = (origin, self.route.cors()) {
            cors.allow(origin.clone(), headers);
        }
    }
}

/// The status that a request gets whose cluster does not exist.
#[must_use]
pub fn cluster_not_found(route: &Route) -> StatusCode {
    match route.action() {
        Action::Forward(forward) => forward.cluster_not_found,
        Action::Redirect(_) | Action::Direct(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Where the version has the host: in the target, or in `Host`.
fn set_host(parts: &mut Parts, host: &HeaderValue) {
    if parts.uri.authority().is_some() {
        // What the parser let through is an authority.
        if let Ok(authority) = Authority::try_from(host.as_bytes()) {
            let mut uri = std::mem::take(&mut parts.uri).into_parts();
            uri.authority = Some(authority);
            parts.uri = Uri::from_parts(uri).unwrap_or_default();
        }
        if !parts.headers.contains_key(header::HOST) {
            return;
        }
    }
    parts.headers.insert(header::HOST, host.clone());
}

/// Appends the present host to `x-forwarded-host`, unless it is the last one there.
fn forward_host(parts: &mut Parts) {
    let Some(host) = headers::authority(parts).filter(|host| !host.is_empty()) else { return };
    let value = match parts.headers.get(&FORWARDED_HOST).and_then(|known| known.to_str().ok()) {
        Some(known) if known.rsplit(',').next() == Some(host) => return,
        Some(known) if !known.is_empty() => HeaderValue::try_from(format!("{known},{host}")),
        Some(_) | None => HeaderValue::try_from(host),
    };
    if let Ok(value) = value {
        parts.headers.insert(FORWARDED_HOST, value);
    }
}

#[cfg(test)]
mod tests;
