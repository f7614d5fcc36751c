//! Where a redirected client is sent.
//!
//! In: a redirect as configured, the request, and what its path condition matched. Out: the `Location`. Pure.
//! Invariant: the outcome is Envoy's, byte by byte: what the rule does not name is taken from the request, and a port that
//! only said what the scheme says anyway goes when the scheme changes.

use http::request::Parts;
use http::{HeaderValue, StatusCode};

use super::matcher::PathMatch;
use super::pattern::Substitution;
use super::rewrite::PathRewrite;
use crate::http::headers;

/// A redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// The new scheme.
    pub scheme: Option<Box<str>>,
    /// The new host; may bring its own port.
    pub host: Option<Box<str>>,
    /// The new port.
    pub port: Option<u16>,
    /// The new path.
    pub path: Option<RedirectPath>,
    /// Whether the query is left out.
    pub strip_query: bool,
}

/// How a redirect changes the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    /// All of it. A query in it replaces the request's and is never stripped.
    Full(Box<str>),
    /// What the rule's path condition matched.
    Prefix(Box<str>),
    /// Every match in the path.
    Pattern(Substitution),
}

impl Redirect {
    /// The `Location` for a request; `None` when what comes out is no header.
    #[must_use]
    pub fn location(&self, matched: &PathMatch, request: &Parts) -> Option<HeaderValue> {
        let scheme = self.scheme.as_deref().unwrap_or_else(|| scheme(request));
        let mut location = String::with_capacity(128);
        location.push_str(scheme);
        location.push_str("://");
        location.push_str(match &self.host {
            Some(host) => host,
            None => host(request, scheme, self.port.is_some()),
        });
        if let Some(port) = self.port {
            location.push(':');
            location.push_str(&port.to_string());
        }
        self.push_target(&mut location, matched, request)?;
        HeaderValue::try_from(location).ok()
    }

    fn push_target(&self, location: &mut String, matched: &PathMatch, request: &Parts) -> Option<()> {
        let rewritten = match &self.path {
            Some(RedirectPath::Full(path)) if path.contains('?') => {
                location.push_str(path);
                return Some(());
            }
            Some(RedirectPath::Full(path)) => {
                location.push_str(path);
                if let Some(query) = request.uri.query().filter(|_| !self.strip_query) {
                    location.push('?');
                    location.push_str(query);
                }
                return Some(());
            }
            Some(RedirectPath::Prefix(prefix)) => {
                PathRewrite::Prefix(prefix.clone()).target(matched, &request.uri)
            }
            Some(RedirectPath::Pattern(substitution)) => {
                PathRewrite::Pattern(substitution.clone()).target(matched, &request.uri)
            }
            None => None,
        };
        let target = rewritten.as_ref().or_else(|| request.uri.path_and_query())?;
        location.push_str(if self.strip_query { target.path() } else { target.as_str() });
        Some(())
    }
}

/// The scheme a request came by: its own, else what a gateway in front said, else `http`, for an app speaks to its sidecar
/// in the clear.
#[must_use]
pub fn scheme(request: &Parts) -> &str {
    if let Some(scheme) = request.uri.scheme_str() {
        return scheme;
    }
    forwarded_proto(request).unwrap_or("http")
}

fn forwarded_proto(request: &Parts) -> Option<&str> {
    let proto = request.headers.get("x-forwarded-proto")?.to_str().ok()?;
    matches!(proto, "http" | "https").then_some(proto)
}

/// The request's host, without its port where a new one is named, or where a new scheme makes it wrong.
fn host<'a>(request: &'a Parts, scheme: &str, new_port: bool) -> &'a str {
    let host = headers::authority(request).unwrap_or_default();
    let end = if host.starts_with('[') { host.rfind("]:").map(|end| end + 1) } else { host.rfind(':') };
    let Some(end) = end else { return host };
    let came_by = forwarded_proto(request).unwrap_or("http");
    let implied = matches!((came_by, &host[end..]), ("https", ":443") | ("http", ":80"));
    if new_port || (scheme != came_by && implied) { &host[..end] } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect() -> Redirect {
        Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            host: None,
            port: None,
            path: None,
            strip_query: false,
        }
    }

    fn located(redirect: &Redirect, host: &str, target: &str, proto: Option<&str>) -> String {
        let mut request = http::Request::get(target).header("host", host);
        if let Some(proto) = proto {
            request = request.header("x-forwarded-proto", proto);
        }
        let parts = request.body(()).expect("a request").into_parts().0;
        let location = redirect.location(&PathMatch::Segments("/a".into()), &parts).expect("a location");
        location.to_str().expect("text").to_owned()
    }

    #[test]
    fn what_is_not_named_is_the_requests() {
        let https = Redirect { scheme: Some("https".into()), ..redirect() };
        let host = Redirect { host: Some("new.shop".into()), ..redirect() };
        let port = Redirect { port: Some(8443), ..redirect() };
        let full = Redirect { path: Some(RedirectPath::Full("/new".into())), ..redirect() };
        let with_query =
            Redirect { path: Some(RedirectPath::Full("/new?y".into())), strip_query: true, ..redirect() };
        let prefix = Redirect { path: Some(RedirectPath::Prefix("/b".into())), ..redirect() };
        let pattern = Substitution::new("^/a/(.*)$", r"/\1/a").expect("valid");
        let pattern = Redirect { path: Some(RedirectPath::Pattern(pattern)), ..redirect() };
        let strip = Redirect { strip_query: true, ..prefix.clone() };
        let strip_full = Redirect { strip_query: true, ..full.clone() };
        for (redirect, host, target, proto, expected) in [
            (&https, "a.shop", "/a?x=1", None, "https://a.shop/a?x=1"),
            (&https, "a.shop:80", "/a", None, "https://a.shop/a"),
            (&https, "a.shop:8080", "/a", None, "https://a.shop:8080/a"),
            (&https, "a.shop:80", "/a", Some("https"), "https://a.shop:80/a"),
            (&https, "[fd00::1]:80", "/", None, "https://[fd00::1]/"),
            (&https, "[fd00::1]", "/", None, "https://[fd00::1]/"),
            (&host, "a.shop:8080", "/a", None, "http://new.shop/a"),
            (&host, "a.shop", "/a", Some("https"), "https://new.shop/a"),
            (&host, "a.shop", "/a", Some("gopher"), "http://new.shop/a"),
            (&port, "a.shop:8080", "/a", None, "http://a.shop:8443/a"),
            (&port, "[fd00::1]:8080", "/a", None, "http://[fd00::1]:8443/a"),
            (&full, "a.shop", "/a?x=1", None, "http://a.shop/new?x=1"),
            (&strip_full, "a.shop", "/a?x=1", None, "http://a.shop/new"),
            (&with_query, "a.shop", "/a?x=1", None, "http://a.shop/new?y"),
            (&prefix, "a.shop", "/a/c?x=1", None, "http://a.shop/b/c?x=1"),
            (&strip, "a.shop", "/a/c?x=1", None, "http://a.shop/b/c"),
            (&pattern, "a.shop", "/a/c?x=1", None, "http://a.shop/c/a?x=1"),
        ] {
            assert_eq!(located(redirect, host, target, proto), expected, "{redirect:?}");
        }
    }
}
