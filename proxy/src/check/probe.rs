//! One check: connects, asks, understands the answer.
//!
//! In: a [`Job`]. Out: [`Checked`]. Invariants: ends within the check's timeout; reads at most [`ANSWER_MAX`] of what comes;
//! goes out with the sidecar's mark, so that interception leaves it alone. Which failures count at once and which by
//! the threshold is as in Envoy: an answer that says "no" counts at once, no answer by the threshold.

use std::net::SocketAddr;
use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, Method, Request, Version, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use weft_wire::Reason;

use super::schedule::Job;
use crate::balance::breaker::health::{Checked, Probe};
use crate::connect::{ConnectError, ConnectOptions, connect};
use crate::tls::{self, Alpn, Mesh, Stream};

/// Bytes of an answer that are read at most. A page about an app's health is smaller.
const ANSWER_MAX: usize = 64 * 1024;

/// How a check calls itself; the callee's sidecar keeps it out of its access log.
const USER_AGENT: &str = concat!("weft-health-check/", env!("CARGO_PKG_VERSION"));

const GRPC_PATH: &str = "/grpc.health.v1.Health/Check";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("not connected")]
    Connect(#[from] ConnectError),
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    #[error("no whole answer")]
    Http(#[from] hyper::Error),
    #[error("no whole answer")]
    H2(#[from] h2::Error),
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("no mutual TLS: {0}")]
    Tls(Reason),
    #[error("the answer is not one of grpc.health.v1.Health")]
    Grpc,
}

/// Asks an endpoint.
pub(super) async fn ask(job: &Job, mark: Option<u32>, mesh: &Mesh) -> Checked {
    let (address, timeout) = (job.address, job.settings.timeout);
    let asking = async {
        let socket = connect(address, &ConnectOptions { timeout, mark }).await?;
        let stream = match (&job.identity, mesh.credentials()) {
            (Some(id), Some(credentials)) => {
                let alpn = Some(alpn(&job.settings.probe));
                let secured = tls::connect::connect(&credentials, socket, id, alpn, timeout).await;
                secured.map_err(Broken::Tls)?.stream
            }
            _ => Stream::Plain(socket),
        };
        match &job.settings.probe {
            Probe::Http { method, host, path, http2, expected, retriable } => {
                let target = Target { cluster: &job.cluster, host: host.as_deref(), address };
                let status = http(stream, &target, method, path, *http2).await?;
                Ok(judge(status, expected, retriable))
            }
            Probe::Grpc { service, authority } => {
                let target = Target { cluster: &job.cluster, host: authority.as_deref(), address };
                grpc(stream, &target, service).await
            }
            Probe::Tcp { send, receive } => tcp(stream, send, receive).await,
        }
    };
    let checked: Result<Checked, Broken> = match tokio::time::timeout(timeout, asking).await {
        Ok(checked) => checked,
        Err(_elapsed) => {
            tracing::debug!(cluster = &*job.cluster, %address, ?timeout, "health check: no answer in time");
            return Checked::Failed;
        }
    };
    checked.unwrap_or_else(|error| {
        let cause = std::error::Error::source(&error).map(tracing::field::display);
        tracing::debug!(cluster = &*job.cluster, %address, %error, cause, "health check failed");
        Checked::Failed
    })
}

/// What is spoken inside of mutual TLS.
fn alpn(probe: &Probe) -> Alpn {
    match probe {
        Probe::Http { http2: false, .. } => Alpn::Http1,
        Probe::Http { http2: true, .. } | Probe::Grpc { .. } => Alpn::Http2,
        Probe::Tcp { .. } => Alpn::Opaque,
    }
}

/// What a status says.
fn judge(status: u16, expected: &[Range<u16>], retriable: &[Range<u16>]) -> Checked {
    let is_in = |ranges: &[Range<u16>]| ranges.iter().any(|range| range.contains(&status));
    if is_in(expected) {
        Checked::Passed
    } else if is_in(retriable) {
        Checked::Failed
    } else {
        Checked::FailedForGood
    }
}

/// Who is asked.
struct Target<'a> {
    cluster: &'a str,
    host: Option<&'a str>,
    address: SocketAddr,
}

impl Target<'_> {
    /// The configured host, the cluster's name, or the address where the name is none a host could have.
    fn host(&self) -> String {
        let is_host = |name: &&str| name.parse::<http::uri::Authority>().is_ok();
        match self.host.or(Some(self.cluster)).filter(is_host) {
            Some(host) => host.to_owned(),
            None => self.address.to_string(),
        }
    }
}

async fn http(
    stream: Stream,
    target: &Target<'_>,
    method: &Method,
    path: &str,
    http2: bool,
) -> Result<u16, Broken> {
    let host = target.host();
    let request = Request::builder().method(method).header(header::USER_AGENT, USER_AGENT);
    if http2 {
        let request = request.uri(format!("http://{host}{path}")).version(Version::HTTP_2).body(())?;
        return Ok(exchange(stream, request, Bytes::new()).await?.head.status.as_u16());
    }
    let request = request.uri(path).header(header::HOST, host).body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Dropped with this future, and the connection with it.
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let mut response = sender.send_request(request).await?;
    let mut left = ANSWER_MAX;
    while let Some(frame) = response.body_mut().frame().await {
        match left.checked_sub(frame?.data_ref().map_or(0, Bytes::len)) {
            Some(less) => left = less,
            // Whoever has said that much is well enough to be judged by its status.
            None => break,
        }
    }
    Ok(response.status().as_u16())
}

/// An answer over HTTP/2.
struct Answer {
    head: Parts,
    /// As much of it as is read at most.
    body: BytesMut,
    trailers: Option<HeaderMap>,
}

/// One exchange on an HTTP/2 connection of its own.
async fn exchange(stream: Stream, request: Request<()>, body: Bytes) -> Result<Answer, Broken> {
    let (sender, connection) = h2::client::handshake(stream).await?;
    // Dropped with this future, and the connection with it.
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let mut sender = sender.ready().await?;
    let (response, mut upload) = sender.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        upload.send_data(body, true)?;
    }
    let (head, mut download) = response.await?.into_parts();
    let mut answer = Answer { head, body: BytesMut::new(), trailers: None };
    while let Some(data) = download.data().await {
        let data = data?;
        if answer.body.len() + data.len() > ANSWER_MAX {
            return Ok(answer);
        }
        download.flow_control().release_capacity(data.len())?;
        answer.body.put_slice(&data);
    }
    answer.trailers = download.trailers().await?;
    Ok(answer)
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

async fn grpc(stream: Stream, target: &Target<'_>, service: &str) -> Result<Checked, Broken> {
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let mut body = BytesMut::with_capacity(5 + message.len());
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.put_slice(&message);
    let request = Request::post(format!("http://{}{GRPC_PATH}", target.host()))
        .version(Version::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(())?;
    let answer = exchange(stream, request, body.freeze()).await?;
    if answer.head.status != http::StatusCode::OK {
        return Ok(Checked::FailedForGood);
    }
    let status = answer.trailers.as_ref().and_then(grpc_status).or_else(|| grpc_status(&answer.head.headers));
    match status {
        None => Err(Broken::Grpc),
        Some(0) => {
            // A flag (compressed or not), four bytes of length, the message.
            let (head, message) = answer.body.split_at_checked(5).ok_or(Broken::Grpc)?;
            if head[0] != 0 {
                return Err(Broken::Grpc);
            }
            let answer = HealthCheckResponse::decode(message).map_err(|_| Broken::Grpc)?;
            Ok(if answer.status == SERVING { Checked::Passed } else { Checked::FailedForGood })
        }
        Some(_) => Ok(Checked::FailedForGood),
    }
}

/// Whether a server behind a connection says that `service` is serving, by `grpc.health.v1.Health`.
///
/// # Errors
/// When there is no answer, or another.
pub(crate) async fn is_serving(
    stream: Stream,
    address: SocketAddr,
    service: &str,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    // Neither has a name: the address stands for both.
    let target = Target { cluster: "", host: None, address };
    Ok(grpc(stream, &target, service).await? == Checked::Passed)
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

async fn tcp(mut stream: Stream, send: &[u8], receive: &[Vec<u8>]) -> Result<Checked, Broken> {
    stream.write_all(send).await?;
    let mut came = BytesMut::new();
    while !contains(&came, receive) {
        if came.len() >= ANSWER_MAX || stream.read_buf(&mut came).await? == 0 {
            return Ok(Checked::Failed);
        }
    }
    Ok(Checked::Passed)
}

/// Whether all pieces are there, in this order, with anything between.
fn contains(mut bytes: &[u8], pieces: &[Vec<u8>]) -> bool {
    pieces.iter().all(|piece| {
        let found = bytes.windows(piece.len().max(1)).position(|window| window == piece);
        match found {
            Some(position) => {
                bytes = &bytes[position + piece.len()..];
                true
            }
            None => piece.is_empty(),
        }
    })
}

#[cfg(test)]
mod tests;
