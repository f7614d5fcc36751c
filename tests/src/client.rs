//! A client that says exactly what a test wants said: one connection, HTTP/1.1 or HTTP/2 with prior knowledge, in plain text
//! or as a member of the mesh.
//!
//! In: an [`Ask`]. Out: the [`Answer`], whole. Invariant: nothing is added to what is asked but what the protocol
//! demands. Surprise: a connection that the server closed between two requests is opened again, because a proxy may
//! close one at any time; a request that was begun is never repeated.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;

use crate::member::Call;

/// Longest wait for an answer: no test asks for a longer delay, so only a hang reaches it.
const DEADLINE: Duration = Duration::from_secs(15);

/// A request in a test's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The method.
    pub method: Method,
    /// Path and query, as they go over the wire.
    pub path: String,
    /// `Host` or `:authority`.
    pub authority: String,
    /// Header fields, in order; names may repeat.
    pub headers: Vec<(String, String)>,
    /// The body; none when empty.
    pub body: Bytes,
    /// Pause in the middle of sending the body.
    pub pause: Duration,
    /// Whether over HTTP/2.
    pub h2: bool,
    /// The address to call from; a connection that is open already stays.
    pub from: Option<IpAddr>,
    /// By mutual TLS, as whom; a connection that is open already stays.
    pub member: Option<Call>,
}

type Body = BoxBody<Bytes, Infallible>;

impl Ask {
    /// `GET path`, with the name of the service as authority.
    #[must_use]
    pub fn get(path: &str, authority: &str) -> Self {
        Self {
            method: Method::GET,
            path: path.to_owned(),
            authority: authority.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
            pause: Duration::ZERO,
            h2: false,
            from: None,
            member: None,
        }
    }

    /// The same with one more header field.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    fn request(&self) -> anyhow::Result<Request<Body>> {
        let mut request = Request::new(self.sent());
        *request.method_mut() = self.method.clone();
        let headers = request.headers_mut();
        for (name, value) in &self.headers {
            headers.append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
        }
        if self.h2 {
            *request.version_mut() = http::Version::HTTP_2;
            let uri = Uri::builder().scheme("http").authority(self.authority.as_str());
            *request.uri_mut() = uri.path_and_query(self.path.as_str()).build()?;
        } else {
            request.headers_mut().insert(http::header::HOST, HeaderValue::try_from(&self.authority)?);
            *request.uri_mut() = Uri::try_from(&self.path)?;
        }
        Ok(request)
    }

    fn sent(&self) -> Body {
        if self.pause.is_zero() {
            return Full::new(self.body.clone()).boxed();
        }
        let (early, late) = self.body.split_at(self.body.len() / 2);
        let (early, late) = (Bytes::copy_from_slice(early), Bytes::copy_from_slice(late));
        let pause = self.pause;
        let rest = async move {
            tokio::time::sleep(pause).await;
            Ok(Frame::data(late))
        };
        BodyExt::boxed(StreamBody::new(stream::iter([Ok(Frame::data(early))]).chain(stream::once(rest))))
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Trailer fields; empty when there were none.
    pub trailers: HeaderMap,
}

impl Answer {
    /// The first value of a header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The gRPC status, wherever it stands.
    #[must_use]
    pub fn grpc_status(&self) -> Option<&str> {
        let value = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"));
        value?.to_str().ok()
    }
}

enum Sender {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

/// Connections to one address, one for each version.
pub struct Client {
    to: SocketAddr,
    h1: Option<Sender>,
    h2: Option<Sender>,
}

impl Client {
    /// A client that connects when it is first asked.
    #[must_use]
    pub fn new(to: SocketAddr) -> Self {
        Self { to, h1: None, h2: None }
    }

    /// Sends one request and reads its answer to the end.
    ///
    /// # Errors
    /// When the connection breaks or the answer is not complete in time.
    pub async fn send(&mut self, ask: &Ask) -> anyhow::Result<Answer> {
        let exchange = tokio::time::timeout(DEADLINE, self.exchange(ask)).await;
        let exchange = exchange.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {DEADLINE:?}")));
        if exchange.is_err() {
            // Whatever state it is in, the next request wants a fresh one.
            *(if ask.h2 { &mut self.h2 } else { &mut self.h1 }) = None;
        }
        exchange.with_context(|| format!("{} {} at {}", ask.method, ask.path, self.to))
    }

    async fn exchange(&mut self, ask: &Ask) -> anyhow::Result<Answer> {
        let request = ask.request()?;
        let slot = if ask.h2 { &mut self.h2 } else { &mut self.h1 };
        let usable = match slot {
            Some(Sender::H1(sender)) => sender.ready().await.is_ok(),
            Some(Sender::H2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            *slot = Some(connect(self.to, ask).await?);
        }
        let response = match slot {
            Some(Sender::H1(sender)) => sender.send_request(request).await?,
            Some(Sender::H2(sender)) => sender.send_request(request).await?,
            None => anyhow::bail!("not connected"),
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        if head.headers.get(http::header::CONNECTION).is_some_and(|value| value == "close") {
            *slot = None;
        }
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
    }
}

async fn connect(to: SocketAddr, ask: &Ask) -> anyhow::Result<Sender> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = ask.from {
        socket.bind((from, 0).into())?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    match &ask.member {
        None => speak(stream, ask.h2).await,
        Some(call) => speak(call.secure(stream, ask.h2).await?, ask.h2).await,
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    h2: bool,
) -> anyhow::Result<Sender> {
    let io = TokioIo::new(stream);
    if h2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(Sender::H2(sender))
    } else {
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Sender::H1(sender))
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// As [`Client::send`].
pub async fn once(to: SocketAddr, ask: &Ask) -> anyhow::Result<Answer> {
    Client::new(to).send(ask).await
}

/// Asks an API for JSON.
///
/// # Errors
/// When it does not answer 200 with JSON.
pub async fn json(to: SocketAddr, path: &str) -> anyhow::Result<serde_json::Value> {
    let answer = once(to, &Ask::get(path, "localhost")).await?;
    let text = String::from_utf8_lossy(&answer.body);
    anyhow::ensure!(answer.status == StatusCode::OK, "{path}: {} {text}", answer.status);
    serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
}
