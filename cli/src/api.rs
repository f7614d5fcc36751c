//! Asking a running control plane.
//!
//! In: the API's address and a path. Out: typed answers, or an error that says what was tried and what to
//! do. Invariant: every request has a deadline, every answer a size limit. The types here are the CLI's
//! reading of the API's JSON: fields it does not show are ignored, fields that may be missing are optional.

pub(crate) mod locate;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::request::Builder;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::kubernetes::find::ControlPlane;
use crate::kubernetes::forward::{self, Forward, Forwarded};

/// Where the API is unless somebody says otherwise.
pub(crate) const DEFAULT: &str = "http://127.0.0.1:8080";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where the API server and a kubelet stand between.
const PATIENCE_FORWARDED: Duration = Duration::from_secs(15);
/// The largest answer accepted: a graph of 10,000 edges with 20 routes each is about 40 MB.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0:?} is not the address of an API; write it like {DEFAULT}")]
    Address(String),
    #[error(
        "no control plane answers at {url}\n  start one with `weft demo`, or say where it is: --api URL or WEFT_API=URL"
    )]
    Unreachable { url: String, source: std::io::Error },
    #[error("no answer from {url} within {} s", .after.as_secs())]
    Timeout { url: String, after: Duration },
    #[error(transparent)]
    Forward(#[from] forward::Error),
    #[error("{url} cannot be reached: {why}")]
    Forwarded { url: String, why: String },
    #[error("the conversation with {url} broke off")]
    Broken { url: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("a token is one word of printable characters, and this one is not")]
    Token,
    #[error("{url} answered {status}{}", .detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default())]
    Refused { url: String, status: StatusCode, detail: Option<String> },
    #[error("{url} does not answer like a Weft control plane")]
    Strange { url: String, source: serde_json::Error },
}

/// The live call graph as `GET /api/graph` tells it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Graph {
    pub(crate) window_seconds: f64,
    /// Why there is nothing to see.
    #[serde(default)]
    pub(crate) diagnosis: Option<Diagnosis>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) edges: Vec<Edge>,
}

/// Why a graph is empty, and what to do about it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Diagnosis {
    pub(crate) text: String,
    pub(crate) hint: String,
}

/// A workload, service, external host or caller without a sidecar.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) namespace: Option<String>,
}

/// Calls from one node to another in one protocol.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Edge {
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) protocol: String,
    #[serde(default)]
    pub(crate) tls: Option<String>,
    #[serde(default)]
    pub(crate) tls_calls: TlsCalls,
    #[serde(flatten)]
    pub(crate) signals: Signals,
    #[serde(default)]
    pub(crate) connections: Option<Connections>,
    #[serde(default)]
    pub(crate) retries: Option<Retries>,
    #[serde(default)]
    pub(crate) circuits: Option<CircuitCounts>,
    #[serde(default)]
    pub(crate) bytes_sent_per_second: Option<f64>,
    #[serde(default)]
    pub(crate) bytes_received_per_second: Option<f64>,
    #[serde(default)]
    pub(crate) routes: Vec<Route>,
    /// How many there are, also those that are not in `routes`.
    #[serde(default)]
    pub(crate) routes_total: usize,
}

/// Calls by how they were protected on the wire.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct TlsCalls {
    pub(crate) mutual: u64,
    pub(crate) simple: u64,
    pub(crate) none: u64,
}

/// Connections that are not HTTP.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Connections {
    /// Opened in the window.
    pub(crate) opened: u64,
}

/// How many circuits in front of a callee do not simply let calls through.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct CircuitCounts {
    pub(crate) open: u64,
    pub(crate) half_open: u64,
}

/// Attempts beyond the first.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Retries {
    /// All attempts per request.
    pub(crate) amplification: f64,
}

impl Edge {
    /// Both directions together.
    pub(crate) fn bytes_per_second(&self) -> Option<f64> {
        match (self.bytes_sent_per_second, self.bytes_received_per_second) {
            (None, None) => None,
            (sent, received) => Some(sent.unwrap_or_default() + received.unwrap_or_default()),
        }
    }
}

/// One route of an edge.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Route {
    #[serde(default)]
    pub(crate) method: Option<String>,
    pub(crate) route: String,
    #[serde(flatten)]
    pub(crate) signals: Signals,
}

/// The golden signals; `None` where there is nothing to say.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Signals {
    #[serde(default)]
    pub(crate) requests_per_second: Option<f64>,
    #[serde(default)]
    pub(crate) success_rate: Option<f64>,
    #[serde(default)]
    pub(crate) latency_ms: Option<Latency>,
}

/// Quantiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Latency {
    #[serde(default)]
    pub(crate) p50: Option<f64>,
    #[serde(default)]
    pub(crate) p95: Option<f64>,
    #[serde(default)]
    pub(crate) p99: Option<f64>,
}

impl Graph {
    /// Nodes by id.
    pub(crate) fn by_id(&self) -> HashMap<&str, &Node> {
        self.nodes.iter().map(|node| (node.id.as_str(), node)).collect()
    }
}

impl Node {
    /// `shop/orders`, or just the name where there is no namespace.
    pub(crate) fn label(&self) -> String {
        match &self.namespace {
            Some(namespace) if !namespace.is_empty() => format!("{namespace}/{}", self.name),
            _ => self.name.clone(),
        }
    }
}

/// A control plane's API.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    base: String,
    way: Way,
    /// `Bearer` and a token; marked, so that nobody prints it.
    authorization: Option<HeaderValue>,
}

/// How it is reached.
#[derive(Debug, Clone)]
enum Way {
    /// At the address that `base` is.
    Tcp,
    /// Through a cluster, wherever the control plane is.
    ControlPlane(Arc<ControlPlane>),
    /// Through a cluster, to one pod.
    Pod(Forward),
}

impl Api {
    /// `http://host:port`, or `host:port`.
    pub(crate) fn new(address: &str) -> Result<Self, Error> {
        let base = match address.split_once("://") {
            Some(_) => address.trim_end_matches('/').to_owned(),
            None => format!("http://{}", address.trim_end_matches('/')),
        };
        match base.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => {
                Ok(Self { base, way: Way::Tcp, authorization: None })
            }
            _ => Err(Error::Address(address.into())),
        }
    }

    /// The control plane of a cluster.
    pub(crate) fn of(plane: ControlPlane) -> Self {
        Self { base: plane.words(), way: Way::ControlPlane(Arc::new(plane)), authorization: None }
    }

    /// Whatever answers at a port of a pod.
    pub(crate) fn at(pod: Forward) -> Self {
        Self { base: pod.words(), way: Way::Pod(pod), authorization: None }
    }

    /// The same API, asked by whoever has `token`.
    pub(crate) fn asking_as(mut self, token: Option<&str>) -> Result<Self, Error> {
        let bearer = |token: &str| {
            let usable = token.bytes().all(|byte| byte.is_ascii_graphic());
            let value = usable.then(|| HeaderValue::from_str(&format!("Bearer {token}")).ok()).flatten();
            let mut value = value.ok_or(Error::Token)?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        };
        self.authorization = token.map(bearer).transpose()?;
        Ok(self)
    }

    /// The other replicas of the same control plane, where there are any to be told apart.
    pub(crate) async fn others(&self) -> Vec<Self> {
        let Way::ControlPlane(plane) = &self.way else { return Vec::new() };
        let at = |pod| Self { authorization: self.authorization.clone(), ..Self::at(pod) };
        plane.others().await.into_iter().map(at).collect()
    }

    /// Whether the one that is asked leads, where that can be told.
    pub(crate) fn leads(&self) -> Option<bool> {
        match &self.way {
            Way::ControlPlane(plane) => Some(plane.leads()),
            Way::Tcp | Way::Pod(_) => None,
        }
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// The graph over a window such as `1m`.
    pub(crate) async fn graph(&self, window: &str) -> Result<Graph, Error> {
        self.json(&format!("/api/graph?window={window}")).await
    }

    /// The graph as the server wrote it.
    pub(crate) async fn graph_text(&self, window: &str) -> Result<Bytes, Error> {
        self.get(&format!("/api/graph?window={window}")).await
    }

    /// Any JSON answer.
    pub(crate) async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.read(&self.get(path).await?)
    }

    /// An answer as a type, or the error that says whose answer cannot be read.
    pub(crate) fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(body).map_err(|source| Error::Strange { url: self.base.clone(), source })
    }

    /// Any answer as the server wrote it.
    pub(crate) async fn get(&self, path: &str) -> Result<Bytes, Error> {
        self.ask(path, Request::get(path), Bytes::new()).await
    }

    /// The answer to something that is sent along.
    pub(crate) async fn post(&self, path: &str, content_type: &str, body: String) -> Result<Bytes, Error> {
        let request = Request::post(path).header(header::CONTENT_TYPE, content_type);
        self.ask(path, request, body.into()).await
    }

    /// Takes something away.
    pub(crate) async fn delete(&self, path: &str) -> Result<Bytes, Error> {
        self.ask(path, Request::delete(path), Bytes::new()).await
    }

    async fn ask(&self, path: &str, request: Builder, body: Bytes) -> Result<Bytes, Error> {
        let url = || self.base.clone();
        let (after, exchange) = match &self.way {
            Way::Tcp => (PATIENCE, self.ask_direct(path, request, body).boxed()),
            Way::ControlPlane(plane) => {
                let exchange = async move {
                    self.ask_forwarded(
                        path,
                        request,
                        body,
                        plane.connect().await?,
                        plane.forward().authority(),
                    )
                    .await
                };
                (PATIENCE_FORWARDED, exchange.boxed())
            }
            Way::Pod(pod) => {
                let exchange = async move {
                    self.ask_forwarded(path, request, body, pod.connect().await?, pod.authority()).await
                };
                (PATIENCE_FORWARDED, exchange.boxed())
            }
        };
        tokio::time::timeout(after, exchange).await.map_err(|_| Error::Timeout { url: url(), after })?
    }

    async fn ask_direct(&self, path: &str, request: Builder, body: Bytes) -> Result<Bytes, Error> {
        let uri: Uri = format!("{}{path}", self.base).parse().map_err(|_| Error::Address(path.into()))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let stream = weft_dns::connect(host, uri.port_u16().unwrap_or(80))
            .await
            .map_err(|source| Error::Unreachable { url: self.base.clone(), source })?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        self.exchange(stream, path, request.header(header::HOST, authority), body).await
    }

    async fn ask_forwarded(
        &self,
        path: &str,
        request: Builder,
        body: Bytes,
        forwarded: Forwarded,
        authority: String,
    ) -> Result<Bytes, Error> {
        let (stream, complaint) = forwarded.split();
        let answer = self.exchange(stream, path, request.header(header::HOST, authority), body).await;
        let Err(Error::Broken { url, source }) = answer else { return answer };
        // The stream only ends; why it was of no use comes beside it.
        match complaint.words().await {
            Some(why) => Err(Error::Forwarded { url, why }),
            None => Err(Error::Broken { url, source }),
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        path: &str,
        request: Builder,
        body: Bytes,
    ) -> Result<Bytes, Error> {
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| Error::Broken {
            url: self.base.clone(),
            source,
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(e.into()))?;
        // Ends with this exchange: `sender` is dropped at the end of it.
        let driver = tokio::spawn(connection);
        let request = request
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("weft/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body));
        let mut request = request.map_err(|e| broken(e.into()))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let response = sender.send_request(request).await.map_err(|e| broken(e.into()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(broken)?.to_bytes();
        drop(sender);
        driver.abort();
        if status.is_success() {
            return Ok(body);
        }
        Err(Error::Refused { url: format!("{}{path}", self.base), status, detail: problem(&body) })
    }
}

/// `?kind=HTTPRoute&namespace=shop` of what is wanted; nothing of nothing.
pub(crate) fn query(wanted: &[(&str, Option<&str>)]) -> String {
    let mut text = String::new();
    for (name, value) in wanted.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => text.push(byte.into()),
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    text
}

/// What an RFC 9457 problem says.
fn problem(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Problem {
        title: Option<String>,
        detail: Option<String>,
    }
    let problem: Problem = serde_json::from_slice(body).ok()?;
    problem.detail.or(problem.title)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_be_short() {
        for text in ["127.0.0.1:8080", "http://127.0.0.1:8080", "http://127.0.0.1:8080/"] {
            assert_eq!(Api::new(text).expect("valid").base(), "http://127.0.0.1:8080");
        }
        for text in ["", "https://x", "http://", "a b"] {
            assert!(Api::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_token_is_one_word_and_is_not_printed() {
        let api = || Api::new("127.0.0.1:8080").expect("valid");
        let asking = api().asking_as(Some("weft_api_abc")).expect("valid");
        assert_eq!(
            asking.authorization.as_ref().map(HeaderValue::as_bytes),
            Some(&b"Bearer weft_api_abc"[..])
        );
        assert!(!format!("{asking:?}").contains("weft_api_abc"));
        for token in ["two words", "line\nbreak", "ü"] {
            assert!(matches!(api().asking_as(Some(token)), Err(Error::Token)), "{token:?}");
        }
    }

    #[test]
    fn questions_are_written_so_that_nothing_reaches_out_of_its_value() {
        assert_eq!(query(&[("kind", None)]), "");
        let wanted = [("kind", Some("HTTPRoute")), ("name", None), ("namespace", Some("a&b=c d"))];
        assert_eq!(query(&wanted), "?kind=HTTPRoute&namespace=a%26b%3Dc%20d");
    }

    #[test]
    fn problems_are_read() {
        assert_eq!(
            problem(br#"{"title":"Bad window","detail":"window must be 10s"}"#),
            Some("window must be 10s".into())
        );
        assert_eq!(problem(b"<html>"), None);
    }

    #[tokio::test]
    async fn nobody_there_is_explained() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        drop(listener);
        let error = Api::new(&address).expect("valid").graph("1m").await.expect_err("nobody listens");
        assert!(error.to_string().contains("weft demo"), "{error}");
    }
}
