//! What a route asks of a request: path, method, headers, query, and luck.
//!
//! In: a request's head and one random number. Out: whether all conditions hold. Pure; compares bytes and allocates nothing.
//! Of a header that came in several lines any may hold, as in Envoy since 1.39.
//! Non-goal: decoding. Path and query are compared as they stand on the wire, as Envoy does by default.

use std::fmt;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderName, Method};

use crate::http::headers;
use crate::route::fraction::Fraction;
use crate::route::pattern::Pattern;
use crate::route::redirect;

/// How a path must look; the query does not belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// Equal, byte by byte.
    Exact(Text),
    /// Starts with these bytes. `Prefix("/")` matches everything, `*` of `OPTIONS` included.
    Prefix(Text),
    /// Starts with these whole segments: `/a` matches `/a` and `/a/b` but not `/ab` (HTTPRoute's `PathPrefix`).
    Segments(Text),
    /// All of it matches a pattern.
    Pattern(Pattern),
}

/// A text to compare with, and whether case counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    text: Box<str>,
    ignore_case: bool,
}

/// How a header's or query parameter's value must look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    /// Equal.
    Exact(Text),
    /// Starts with.
    Prefix(Text),
    /// Ends with.
    Suffix(Text),
    /// Contains.
    Contains(Text),
    /// All of it matches a pattern.
    Pattern(Pattern),
    /// A number from `start` up to, but not including, `end`.
    Range {
        /// The smallest number.
        start: i64,
        /// The smallest number that is too large.
        end: i64,
    },
    /// Is there at all.
    Present,
}

/// What a condition looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A header. Of several lines of it each is a value.
    Header(HeaderName),
    /// `:method`.
    Method,
    /// `:path`, with the query.
    Path,
    /// `:authority`, or `Host`.
    Authority,
    /// `:scheme`.
    Scheme,
}

/// One condition on a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The header.
    pub field: Field,
    /// What its value must be.
    pub value: ValueMatch,
    /// Whether the condition is turned round. A header that is not there still fulfils no condition on its value.
    pub invert: bool,
    /// Whether a header that is not there counts as an empty one.
    pub missing_is_empty: bool,
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
    /// The share of requests.
    pub fraction: Fraction,
}

impl Matches {
    /// Matches every request.
    #[must_use]
    pub fn all() -> Self {
        Self {
            path: PathMatch::Prefix("/".into()),
            method: None,
            headers: [].into(),
            query: [].into(),
            fraction: Fraction::ALL,
        }
    }

    /// Whether the conditions hold for every request, so that nothing needs to be looked at.
    pub(in crate::route) fn is_all(&self) -> bool {
        self.path.is_any()
            && self.method.is_none()
            && self.headers.is_empty()
            && self.query.is_empty()
            && self.fraction.is_all()
    }

    /// Whether all conditions hold.
    pub(in crate::route) fn hold(&self, request: &Parts, draw: &mut Draw) -> bool {
        self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.path.holds(request.uri.path())
            && self.headers.iter().all(|header| header.holds(request))
            && self.query.iter().all(|query| query.holds(request.uri.query().unwrap_or_default()))
            && (self.fraction.is_all() || self.fraction.holds(draw.get()))
    }

    /// A header without which the conditions cannot hold, if there is one.
    pub(super) fn required(&self) -> Option<&HeaderName> {
        self.headers.iter().find_map(|header| match &header.field {
            Field::Header(name) if !header.verdict(None) => Some(name),
            _ => None,
        })
    }
}

/// One random number for all routes of a table, asked for only where a share is, so that shares of successive routes
/// add up: 30 % of the first and 50 % of the second leave 50 % for the third, as in Envoy.
#[derive(Debug, Default)]
pub(in crate::route) struct Draw(Option<u64>);

impl Draw {
    #[cfg(test)]
    pub(in crate::route) fn of(draw: u64) -> Self {
        Self(Some(draw))
    }

    fn get(&mut self) -> u64 {
        *self.0.get_or_insert_with(|| fastrand::u64(..))
    }
}

/// For people: `GET /a/** x-team=blue`.
impl fmt::Display for Matches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.method {
            write!(f, "{method} ")?;
        }
        match &self.path {
            PathMatch::Exact(path) => write!(f, "{path}")?,
            PathMatch::Prefix(path) => write!(f, "{path}*")?,
            PathMatch::Segments(path) => write!(f, "{}/**", path.text.trim_end_matches('/'))?,
            PathMatch::Pattern(pattern) => write!(f, "~{}", pattern.as_str())?,
        }
        for query in &self.query {
            write!(f, " ?{}{}", query.name, query.value)?;
        }
        for header in &self.headers {
            write!(f, " {}{}{}", if header.invert { "!" } else { "" }, header.field, header.value)?;
        }
        if !self.fraction.is_all() {
            write!(f, " {}%", self.fraction.share() * 100.0)?;
        }
        Ok(())
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header(name) => name.as_str(),
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Authority => ":authority",
            Self::Scheme => ":scheme",
        })
    }
}

impl fmt::Display for ValueMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "={text}"),
            Self::Prefix(text) => write!(f, "={text}*"),
            Self::Suffix(text) => write!(f, "=*{text}"),
            Self::Contains(text) => write!(f, "=*{text}*"),
            Self::Pattern(pattern) => write!(f, "~{}", pattern.as_str()),
            Self::Range { start, end } => write!(f, "={start}..{end}"),
            Self::Present => Ok(()),
        }
    }
}

/// A text where case counts.
impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self { text: text.into(), ignore_case: false }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Text {
    /// A text; with `ignore_case`, ASCII letters are equal in either case.
    #[must_use]
    pub fn new(text: &str, ignore_case: bool) -> Self {
        Self { text: text.into(), ignore_case }
    }

    /// The text where case counts, else nothing: what an index can be made of.
    pub(crate) fn literal(&self) -> Option<&str> {
        (!self.ignore_case).then_some(&self.text)
    }

    /// As configured.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn equals(&self, value: &[u8]) -> bool {
        let text = self.text.as_bytes();
        if self.ignore_case { text.eq_ignore_ascii_case(value) } else { text == value }
    }

    fn begins(&self, value: &[u8]) -> bool {
        value.get(..self.text.len()).is_some_and(|start| self.equals(start))
    }

    fn ends(&self, value: &[u8]) -> bool {
        let start = value.len().checked_sub(self.text.len());
        start.is_some_and(|start| self.equals(&value[start..]))
    }

    fn is_in(&self, value: &[u8]) -> bool {
        self.text.is_empty() || value.windows(self.text.len()).any(|window| self.equals(window))
    }
}

impl PathMatch {
    /// Whether every path matches.
    fn is_any(&self) -> bool {
        matches!(self, Self::Prefix(prefix) if matches!(&*prefix.text, "" | "/"))
    }

    /// The bytes that a path begins with if it matches, as far as they are known.
    pub(super) fn literal(&self) -> &str {
        match self {
            Self::Prefix(prefix) if &*prefix.text == "/" => "",
            Self::Exact(text) | Self::Prefix(text) => text.literal().unwrap_or_default(),
            Self::Segments(text) => text.literal().unwrap_or_default().trim_end_matches('/'),
            Self::Pattern(_) => "",
        }
    }

    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.equals(path.as_bytes()),
            Self::Prefix(prefix) => &*prefix.text == "/" || prefix.begins(path.as_bytes()),
            Self::Segments(prefix) => {
                let length = prefix.text.trim_end_matches('/').len();
                path.as_bytes().get(..length).is_some_and(|start| {
                    let segments = &prefix.text.as_bytes()[..length];
                    if prefix.ignore_case { segments.eq_ignore_ascii_case(start) } else { segments == start }
                }) && matches!(path.as_bytes().get(length), None | Some(b'/'))
            }
            Self::Pattern(pattern) => pattern.holds(path.as_bytes()),
        }
    }

    /// How many bytes of a matching path a prefix rewrite replaces.
    #[must_use]
    pub fn matched(&self, path: &str) -> usize {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Segments(text) => text.text.len().min(path.len()),
            Self::Pattern(_) => path.len(),
        }
    }
}

impl ValueMatch {
    /// Whether a value is as it must be.
    #[must_use]
    pub fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.equals(value),
            Self::Prefix(text) => text.begins(value),
            Self::Suffix(text) => text.ends(value),
            Self::Contains(text) => text.is_in(value),
            Self::Pattern(pattern) => pattern.holds(value),
            Self::Range { start, end } => std::str::from_utf8(value)
                .ok()
                .and_then(|value| value.trim().parse::<i64>().ok())
                .is_some_and(|value| (*start..*end).contains(&value)),
            Self::Present => true,
        }
    }
}

impl HeaderMatch {
    /// Whether a request fulfils the condition.
    #[must_use]
    pub fn holds(&self, request: &Parts) -> bool {
        self.verdict(self.look(request))
    }

    /// Whether something that is no request at all fulfils the condition.
    #[must_use]
    pub fn holds_for_none(&self) -> bool {
        self.verdict(None)
    }

    /// Whether any value of the field is as it must be; `None`: there is none.
    fn look(&self, request: &Parts) -> Option<bool> {
        let mut found = None;
        self.field.each(request, |value| found = Some(found == Some(true) || self.value.holds(value)));
        found
    }

    fn verdict(&self, found: Option<bool>) -> bool {
        match (&self.value, found) {
            (ValueMatch::Present, _) => found.is_some() != self.invert,
            (_, Some(holds)) => holds != self.invert,
            (_, None) => self.missing_is_empty && self.value.holds(b"") != self.invert,
        }
    }
}

impl Field {
    /// Shows every value of the field.
    fn each(&self, request: &Parts, mut show: impl FnMut(&[u8])) {
        let text = match self {
            Self::Header(name) => {
                return request.headers.get_all(name).iter().for_each(|value| show(value.as_bytes()));
            }
            Self::Method => Some(request.method.as_str()),
            Self::Path => request.uri.path_and_query().map(PathAndQuery::as_str),
            Self::Authority => headers::authority(request),
            Self::Scheme => Some(redirect::scheme(request)),
        };
        if let Some(text) = text {
            show(text.as_bytes());
        }
    }
}

impl QueryMatch {
    fn holds(&self, query: &str) -> bool {
        if query.is_empty() {
            return false;
        }
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs
            .find(|(name, _)| **name == *self.name)
            .is_some_and(|(_, value)| self.value.holds(value.as_bytes()))
    }
}

#[cfg(test)]
mod tests;
