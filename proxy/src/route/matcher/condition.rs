//! What a route asks of a request: path, method, headers, query.
//!
//! In: a request's head. Out: whether all conditions hold. Pure; compares bytes, allocates nothing.
//! Non-goal: decoding. A path is compared as it stands on the wire, as Envoy does by default.

use std::fmt;

use http::request::Parts;
use http::{HeaderName, Method};

/// How a path must look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// Equal, byte by byte, without the query.
    Exact(Box<str>),
    /// Starts with these bytes. `Prefix("/")` matches everything, `*` of `OPTIONS` included.
    Prefix(Box<str>),
    /// Starts with these whole segments: `/a` matches `/a` and `/a/b` but not `/ab` (HTTPRoute's `PathPrefix`).
    Segments(Box<str>),
}

/// How a header's or query parameter's value must look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    /// Equal.
    Exact(Box<str>),
    /// Starts with.
    Prefix(Box<str>),
    /// Ends with.
    Suffix(Box<str>),
    /// Contains.
    Contains(Box<str>),
    /// Is there at all.
    Present,
}

/// One condition on a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The header.
    pub name: HeaderName,
    /// What its value must be. Several lines of one header are compared one by one: any may match.
    pub value: ValueMatch,
    /// Whether the condition is turned round.
    pub invert: bool,
}

/// One condition on a query parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryMatch {
    /// The parameter, as it stands in the URL (no percent decoding).
    pub name: Box<str>,
    /// What its first value must be.
    pub value: ValueMatch,
}

/// All conditions of one route; all must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matches {
    /// The path.
    pub path: PathMatch,
    /// The method; `None` = any.
    pub method: Option<Method>,
    /// Headers.
    pub headers: Box<[HeaderMatch]>,
    /// Query parameters.
    pub query: Box<[QueryMatch]>,
}

impl Matches {
    /// Matches every request.
    #[must_use]
    pub fn all() -> Self {
        Self { path: PathMatch::Prefix("/".into()), method: None, headers: [].into(), query: [].into() }
    }

    /// Whether the conditions hold for every request, so that nothing needs to be looked at.
    pub(super) fn is_all(&self) -> bool {
        matches!(&self.path, PathMatch::Prefix(prefix) if &**prefix == "/" || prefix.is_empty())
            && self.method.is_none()
            && self.headers.is_empty()
            && self.query.is_empty()
    }

    pub(super) fn hold(&self, request: &Parts) -> bool {
        self.path.holds(request.uri.path())
            && self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.headers.iter().all(|header| header.holds(request))
            && self.query.iter().all(|query| query.holds(request.uri.query().unwrap_or_default()))
    }
}

/// For people: `GET /a/* x-team=blue`.
impl fmt::Display for Matches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.method {
            write!(f, "{method} ")?;
        }
        match &self.path {
            PathMatch::Exact(path) => write!(f, "{path}")?,
            PathMatch::Prefix(path) => write!(f, "{path}*")?,
            PathMatch::Segments(path) => write!(f, "{}/**", path.trim_end_matches('/'))?,
        }
        for query in &self.query {
            write!(f, " ?{}{}", query.name, query.value)?;
        }
        for header in &self.headers {
            write!(f, " {}{}{}", if header.invert { "!" } else { "" }, header.name, header.value)?;
        }
        Ok(())
    }
}

impl fmt::Display for ValueMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "={text}"),
            Self::Prefix(text) => write!(f, "={text}*"),
            Self::Suffix(text) => write!(f, "=*{text}"),
            Self::Contains(text) => write!(f, "=*{text}*"),
            Self::Present => Ok(()),
        }
    }
}

impl PathMatch {
    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => &**prefix == "/" || path.starts_with(&**prefix),
            Self::Segments(prefix) => path
                .strip_prefix(prefix.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }
}

impl ValueMatch {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == text.as_bytes(),
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
            Self::Contains(text) => {
                text.is_empty() || value.windows(text.len()).any(|window| window == text.as_bytes())
            }
            Self::Present => true,
        }
    }
}

impl HeaderMatch {
    fn holds(&self, request: &Parts) -> bool {
        let mut values = request.headers.get_all(&self.name).iter();
        values.any(|value| self.value.holds(value.as_bytes())) != self.invert
    }
}

impl QueryMatch {
    fn holds(&self, query: &str) -> bool {
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs
            .find(|(name, _)| **name == *self.name)
            .is_some_and(|(_, value)| self.value.holds(value.as_bytes()))
    }
}
