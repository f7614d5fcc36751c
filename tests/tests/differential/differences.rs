//! What may differ between Envoy and Weft, and nothing else: the rows of `docs/envoy-differences.md` as code.
//!
//! In: what one request became at each of the two. Out: what differs beyond the rows. Invariant: whatever is left out of
//! a comparison is named by a [`Row`], which stands in the page under the same heading; see [`rows`](super::rows).

use std::collections::BTreeMap;

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue, StatusCode};
use weft_tests::backend::{Arrival, KEY};
use weft_tests::client::Answer;

/// An intended difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Row {
    /// What each proxy adds to requests about itself.
    RequestHeaders,
    /// What each proxy adds to responses about itself.
    ResponseHeaders,
    /// What a proxy that answers by itself writes in the body.
    OwnBody,
    /// What each proxy says about its own connections.
    Connections,
    /// Whether one header is one line or several.
    Lines,
    /// The status that stands for a call that reached nobody or broke.
    Unreachable,
    /// The gRPC status that stands for a call that took too long.
    GrpcTimeout,
    /// The version, headers and size of what mirrors get.
    Copies,
    /// Whether a gRPC status after a message counts for ejection.
    GrpcEnd,
    /// Whether an endpoint that accepts and then fails is ejected.
    AcceptsOnly,
}

impl Row {
    pub(crate) const ALL: [Self; 10] = [
        Self::RequestHeaders,
        Self::ResponseHeaders,
        Self::OwnBody,
        Self::Connections,
        Self::Lines,
        Self::Unreachable,
        Self::GrpcTimeout,
        Self::Copies,
        Self::GrpcEnd,
        Self::AcceptsOnly,
    ];

    /// The row's first column.
    pub(crate) const fn heading(self) -> &'static str {
        match self {
            Self::RequestHeaders => "Request headers of the proxy's own",
            Self::ResponseHeaders => "Response headers of the proxy's own",
            Self::OwnBody => "Body of an answer of the proxy's own",
            Self::AcceptsOnly => {
                "An endpoint that accepts connections, and then resets them or does not answer"
            }
            Self::GrpcEnd => "When a gRPC call counts for ejection",
            Self::Copies => "Copies of requests",
            Self::Connections => "What is said about a connection",
            Self::Lines => "Several lines of one header",
            Self::GrpcTimeout => "gRPC status of a request that took too long",
            Self::Unreachable => "Nobody accepts, or the connection breaks before an answer",
        }
    }

    /// What Weft answers where Envoy answers `UNAVAILABLE`.
    pub(crate) fn grpc_status(self) -> Option<String> {
        (self == Self::GrpcTimeout).then(|| "4".to_owned())
    }

    /// What Weft answers, by its reason, where Envoy answers 503.
    pub(crate) fn status(self, reason: &str) -> Option<u16> {
        match (self, reason) {
            (
                Self::Unreachable,
                "connect_failed" | "connect_refused" | "upstream_reset" | "protocol_error",
            ) => Some(502),
            (Self::Unreachable, "connect_timeout") => Some(504),
            _ => None,
        }
    }

    /// The header fields that the row is about; a name that ends in `-` stands for all that begin with it.
    const fn fields(self) -> &'static [&'static str] {
        match self {
            Self::RequestHeaders => {
                &["x-envoy-", "x-forwarded-proto", "x-request-id", "traceparent", "tracestate", "x-weft-"]
            }
            Self::ResponseHeaders => &["x-envoy-", "x-weft-", "date"],
            Self::OwnBody => &["content-type", "content-length", "transfer-encoding", "grpc-message"],
            Self::Connections => &["connection", "keep-alive"],
            Self::Copies => &["x-forwarded-for", "transfer-encoding"],
            Self::Lines | Self::Unreachable | Self::GrpcTimeout | Self::GrpcEnd | Self::AcceptsOnly => &[],
        }
    }

    fn covers(self, name: &str) -> bool {
        self.fields().iter().any(|field| match field.strip_suffix('-') {
            Some(_) => name.starts_with(field),
            None => name == *field,
        })
    }
}

/// What one request became: as far as both proxies must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    status: StatusCode,
    grpc_status: Option<String>,
    headers: BTreeMap<String, Vec<String>>,
    /// The request as the backend saw it; `None` when the proxy answered by itself.
    arrival: Option<Arrived>,
}

/// A request as a backend saw it, as far as both proxies must agree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrived {
    backend: String,
    method: String,
    path: String,
    authority: String,
    version: String,
    headers: BTreeMap<String, Vec<String>>,
    body: usize,
}

impl Outcome {
    /// Leaves the rows out.
    pub(crate) fn of(answer: &Answer) -> Self {
        let arrival = arrival(answer);
        let own = arrival.is_none();
        let left_out = |name: &str| {
            Row::ResponseHeaders.covers(name)
                || Row::Connections.covers(name)
                || own && Row::OwnBody.covers(name)
        };
        Self {
            status: answer.status,
            grpc_status: answer.grpc_status().map(str::to_owned),
            headers: collect(pairs(&answer.headers).filter(|(name, _)| !left_out(name))),
            arrival: arrival.map(Arrived::of),
        }
    }

    /// The backend that was chosen, if one was.
    pub(crate) fn backend(&self) -> Option<&str> {
        self.arrival.as_ref().map(|arrival| arrival.backend.as_str())
    }
}

impl Arrived {
    /// Leaves the rows out, and the key, which is the test's own.
    pub(crate) fn of(arrival: Arrival) -> Self {
        let Arrival { backend, method, path, authority, version, headers, body } = arrival;
        let copy = authority.contains("-shadow");
        let left_out = |name: &str| {
            name == KEY
                || Row::RequestHeaders.covers(name)
                || Row::Connections.covers(name)
                || copy && Row::Copies.covers(name)
        };
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let headers = collect(headers.filter(|(name, _)| !left_out(name)));
        // Which is in the row about copies, too.
        let version = if copy { String::new() } else { version };
        Self { backend, method, path, authority, version, headers, body }
    }

    /// Wherever it went.
    pub(crate) fn anywhere(self) -> Self {
        Self { backend: String::new(), ..self }
    }

    /// Bytes in its body.
    pub(crate) fn body(&self) -> usize {
        self.body
    }
}

/// What the backend saw, when the answer is a backend's.
pub(crate) fn arrival(answer: &Answer) -> Option<Arrival> {
    // A gRPC message has five bytes before it; JSON begins with a brace.
    let text = match answer.body.first() {
        Some(0) => answer.body.get(5..)?,
        _ => &answer.body[..],
    };
    serde_json::from_slice(text).ok()
}

/// Header fields by name, with the [`Row::Lines`] of each joined.
fn collect<'a>(headers: impl Iterator<Item = (&'a str, String)>) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let lines = all.entry(name.to_owned()).or_default();
        match lines.first_mut() {
            // An empty element of a list is none.
            Some(first) if name != SET_COOKIE.as_str() => {
                let comma = if first.is_empty() || value.is_empty() { "" } else { "," };
                *first = format!("{first}{comma}{value}");
            }
            _ => lines.push(value),
        }
    }
    all
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(move |(name, value)| (name.as_str(), text(value)))
}
