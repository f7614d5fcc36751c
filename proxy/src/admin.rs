//! The sidecar's own HTTP: what probes, Prometheus and operators ask.
//!
//! Two faces: [`Face::Metrics`] on the pod's address answers `/live`, `/ready` and `/metrics`; [`Face::Admin`] on
//! loopback shows configuration and changes the log level or drains. In: requests on the admin thread. Out:
//! text and JSON. Invariant: readiness is a latch: once the sidecar had a control plane's answer it stays ready
//! without one, because stale configuration beats no traffic. Surprise: the admin face checks `Host`, because a
//! web page may resolve a name of its own to 127.0.0.1. Non-goal: authentication; it is loopback or read-only.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use weft_wire::pod::PROBE_PATH;

use crate::accept::Bound;
use crate::app::LogLevel;
use crate::balance::Circuits;
use crate::config::Config;
use crate::drain::{Phase, Trigger};
use crate::identity::Identity;
use crate::probe::Asker;
use crate::record::{Limit, Telemetry};
use crate::xds::Directory;

/// Connections at a time, for each face: a few Prometheus servers, the kubelet, a person.
const CONNECTIONS_MAX: usize = 256;
/// Of them for one address, so that nobody keeps the kubelet out.
const PEER_CONNECTIONS_MAX: usize = 32;

/// How long a request's head may take, and a kept connection stay silent.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// A log filter at most.
const BODY_MAX: usize = 4096;

/// Read buffer of a connection: these requests have a handful of headers.
const BUFFER_MAX: usize = 8192;

/// Which questions a listener answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// Probes and metrics, open to the pod's network.
    Metrics,
    /// Everything, loopback only.
    Admin,
}

/// What the answers are made of.
pub struct Admin {
    /// The settings.
    pub config: Arc<Config>,
    /// Where the sidecar listens.
    pub bound: Arc<Bound>,
    /// What the control plane said.
    pub directory: Arc<Directory>,
    /// What is open, and why.
    pub circuits: Arc<Circuits>,
    /// Who this sidecar is; `None` without TLS.
    pub identity: Option<Arc<Identity>>,
    /// Asks the app on behalf of the kubelet.
    pub probes: Asker,
    /// The numbers.
    pub telemetry: Arc<Telemetry>,
    /// Starts a drain.
    pub trigger: Trigger,
    /// The log's level.
    pub level: LogLevel,
}

/// Takes over `listener`; the returned future accepts until it is dropped.
///
/// # Errors
/// When the runtime does not take the socket.
pub fn serve(
    admin: Arc<Admin>,
    listener: StdListener,
    face: Face,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let listener = TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let peers = Peers::default();
    Ok(async move {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok((stream, peer)) => (stream, peer.ip()),
                Err(error) => {
                    tracing::debug!(%error, ?face, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let places = Arc::clone(&permits).try_acquire_owned().ok().zip(Place::take(&peers, peer));
            let Some(places) = places else {
                admin.telemetry.limit(Limit::Connections);
                continue;
            };
            let admin = Arc::clone(&admin);
            tokio::spawn(async move {
                connection(admin, stream, face).await;
                drop(places);
            });
        }
    })
}

/// Connections by address; those that have none are not in it.
type Peers = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One connection of an address.
struct Place(Peers, IpAddr);

impl Place {
    fn take(peers: &Peers, peer: IpAddr) -> Option<Self> {
        let mut all = peers.lock().unwrap_or_else(PoisonError::into_inner);
        let held = all.entry(peer).or_default();
        if *held >= PEER_CONNECTIONS_MAX {
            return None;
        }
        *held += 1;
        Some(Self(Arc::clone(peers), peer))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = all.get_mut(&self.1) {
            *held -= 1;
            if *held == 0 {
                all.remove(&self.1);
            }
        }
    }
}

async fn connection(admin: Arc<Admin>, stream: TcpStream, face: Face) {
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(admin.answer(face, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, ?face, "connection");
    }
}

type Answer = Response<Full<Bytes>>;

impl Admin {
    async fn answer(&self, face: Face, request: Request<Incoming>) -> Answer {
        if face == Face::Admin && !is_local(request.headers().get(header::HOST)) {
            return text(StatusCode::FORBIDDEN, "ask for localhost or a loopback address\n");
        }
        let (parts, body) = request.into_parts();
        match (face, &parts.method, parts.uri.path()) {
            (_, &Method::GET | &Method::HEAD, "/live") => text(StatusCode::OK, "live\n"),
            (_, &Method::GET | &Method::HEAD, "/ready") => self.ready(),
            (_, &Method::GET, "/metrics") => self.metrics(),
            (_, &Method::GET, path) if path.starts_with(PROBE_PATH) => {
                self.probe(&path[PROBE_PATH.len()..], &parts.headers).await
            }
            (Face::Admin, &Method::GET, "/") => text(StatusCode::OK, INDEX),
            (Face::Admin, &Method::GET, "/config") => self.dump(),
            (Face::Admin, &Method::GET, "/circuits") => document(&self.circuits.dump(Instant::now())),
            (Face::Admin, &Method::GET, "/identity") => document(&self.identity()),
            (Face::Admin, &Method::POST, "/log-level") => self.log_level(body).await,
            (Face::Admin, &Method::POST, "/drain") => {
                self.trigger.advance(Phase::Draining);
                text(StatusCode::ACCEPTED, "draining\n")
            }
            (Face::Admin, _, "/log-level" | "/drain") => {
                let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n");
                answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
                answer
            }
            (Face::Metrics, _, _) => {
                text(StatusCode::NOT_FOUND, "there are /live, /ready, /metrics and /probe/CONTAINER/KIND\n")
            }
            (Face::Admin, _, _) => text(StatusCode::NOT_FOUND, INDEX),
        }
    }

    fn ready(&self) -> Answer {
        let status = self.directory.status();
        let heard = !status.configured || status.connected() || status.streams > 0;
        if self.trigger.phase() != Phase::Serving {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        } else if heard {
            text(StatusCode::OK, "ready\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "the control plane has not been reached yet\n")
        }
    }

    async fn probe(&self, key: &str, from: &HeaderMap) -> Answer {
        let Some(verdict) = self.probes.ask(key, from).await else {
            return text(
                StatusCode::NOT_FOUND,
                "this pod has no such probe, or nobody told the sidecar (WEFT_PROBES)\n",
            );
        };
        let mut answer = text(verdict.status, "");
        *answer.body_mut() = Full::new(format!("{}\n", verdict.words).into());
        answer
    }

    fn metrics(&self) -> Answer {
        let mut answer = Response::new(Full::new(self.telemetry.encode().into()));
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }

    fn dump(&self) -> Answer {
        let dump = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "phase": format!("{:?}", self.trigger.phase()).to_lowercase(),
            "listen": &*self.bound,
            "settings": self.config.describe(),
            "directory": self.directory.dump(),
        });
        document(&dump)
    }

    fn identity(&self) -> serde_json::Value {
        match &self.identity {
            Some(identity) => identity.describe(SystemTime::now()),
            // Says which of the two it is: not yet, or never.
            None => {
                json!({ "certificate": null, "roots": [], "enrolment": "off: the control plane is not asked over TLS" })
            }
        }
    }

    async fn log_level(&self, body: Incoming) -> Answer {
        let Ok(body) = Limited::new(body, BODY_MAX).collect().await else {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "a log filter has at most 4096 bytes\n");
        };
        let body = body.to_bytes();
        let filter = std::str::from_utf8(&body).unwrap_or_default().trim();
        if filter.is_empty() {
            return text(
                StatusCode::BAD_REQUEST,
                "write the filter in the body: curl -d debug …/log-level\n",
            );
        }
        match self.level.set(filter) {
            Ok(()) => {
                tracing::info!(filter, "log level changed");
                text(StatusCode::OK, "changed\n")
            }
            Err(error) => {
                let mut answer = text(StatusCode::BAD_REQUEST, "");
                *answer.body_mut() = Full::new(format!("{error:#}\n").into());
                answer
            }
        }
    }
}

const INDEX: &str = "\
weft-proxy
GET  /live       alive
GET  /ready      fit for traffic, or why not
GET  /metrics    Prometheus text format
GET  /probe/CONTAINER/KIND
                 what the app answers to the kubelet's probe
GET  /config     settings, listeners and what the control plane said, as JSON
GET  /circuits   circuits that are open or in use, and what counts against limits, as JSON
GET  /identity   certificate, trusted roots and how renewals go, as JSON
POST /log-level  the body is the filter: info, debug, weft_proxy::xds=debug,info
POST /drain      finish what is in flight, then exit
";

fn document(json: &serde_json::Value) -> Answer {
    let mut answer = text(StatusCode::OK, "");
    *answer.body_mut() = Full::new(format!("{json:#}\n").into());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn text(status: StatusCode, body: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// Whether a `Host` names this machine itself.
fn is_local(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host.and_then(|host| host.to_str().ok()) else { return false };
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host();
    let ip = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_hosts_are_served_by_the_admin_face() {
        let host = |text: &'static str| is_local(Some(&HeaderValue::from_static(text)));
        assert!(
            host("localhost:15000") && host("127.0.0.1:15000") && host("[::1]:15000") && host("LOCALHOST")
        );
        assert!(!host("attacker.example:15000") && !host("10.0.0.1") && !host("127.0.0.1.attacker.example"));
        assert!(!is_local(None));
    }
}
