//! Serving a listener: connections come in under a bound, are served, and end in good order.
//!
//! In: a listener and what answers on it. Out: tasks in the [`Drain`]. Two kinds, because they fail
//! differently: gRPC for sidecars and apps (few long connections, kept alive by pings), HTTP/1.1 for people and
//! simple exporters (many short ones, each with a deadline for its headers).
//!
//! Invariants: no listener holds more connections than its bound; at the bound it stops accepting (the rest
//! waits in the kernel's queue) and counts it. Every connection sees the end: gRPC as GOAWAY, HTTP as
//! `Connection: close`. gRPC connections also end when another control plane is seen to lead: they lead here, and a client that
//! keeps one would be refused on it for ever.

mod counted;
mod led;
mod peer;
pub mod tls;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use futures_util::{Stream, StreamExt as _};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, error, warn};

use crate::drain::Drain;
use crate::lead::Lead;
use counted::{Counted, Stream as Wire};
pub use led::Led;
pub use peer::{Nobody, Peer, Verified};

/// gRPC connections: a sidecar has two (configuration and reports), so this is a mesh of 10,000.
const GRPC_CONNECTIONS_MAX: usize = 20_000;
/// HTTP connections: dashboards, scrapers, and apps that export by HTTP.
const HTTP_CONNECTIONS_MAX: usize = 4_096;
/// A connection that is silent for this long is asked whether it is still there …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and given up after this: a sidecar whose machine died is lost after 15 s at most.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams on one connection: a sidecar has one for configuration and one per report in flight.
const STREAMS_PER_CONNECTION: u32 = 64;
/// A request's headers must be complete by then; also how long an idle connection is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a gRPC call may take to be answered, its request's body included: a report waits for the journal for 11 s
/// at most. The configuration stream is answered at once and then lives for as long as it likes.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection stays after another control plane was seen to lead: time to be told so.
const SENT_AWAY_STAYS: Duration = Duration::from_millis(500);
/// After a failed accept (usually: no file descriptors left) it is pointless to try again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What listeners count.
#[derive(Clone)]
pub struct Metrics {
    full: IntCounterVec,
    accept_errors: IntCounterVec,
    handshake_failures: IntCounterVec,
    sent_away: IntCounterVec,
}

impl Metrics {
    /// Makes the counters and shows them in `registry`.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid name");
            // Registered twice only in tests that share a registry; then it is only not exported twice.
            drop(registry.register(Box::new(counter.clone())));
            counter
        };
        Self {
            full: counter(
                "weft_listener_full_total",
                "Times a listener stopped accepting: all connections taken.",
                &["listener"],
            ),
            accept_errors: counter(
                "weft_listener_accept_errors_total",
                "Connections that could not be accepted.",
                &["listener"],
            ),
            handshake_failures: counter(
                "weft_listener_tls_handshake_failures_total",
                "TLS handshakes that failed, by reason.",
                &["listener", "reason"],
            ),
            sent_away: counter(
                "weft_listener_sent_away_total",
                "Connections ended and requests refused because another control plane leads.",
                &["listener", "what"],
            ),
        }
    }

    /// Counts the requests that another control plane should have been asked.
    #[must_use]
    pub fn requests_sent_away(&self, listener: &str) -> IntCounter {
        self.sent_away.with_label_values(&[listener, "request"])
    }

    /// `service`, as long as no other control plane leads.
    #[must_use]
    pub fn led<S>(&self, listener: &str, lead: &Lead, service: S) -> Led<S> {
        Led::new(service, lead.clone(), self.requests_sent_away(listener))
    }
}

/// A gRPC server with the house's settings, to add services to.
#[must_use]
pub fn grpc_server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .timeout(CALL_TIMEOUT)
}

/// Serves gRPC until the drain. Connections end when another control plane leads.
pub fn grpc(
    name: &'static str,
    listener: TcpListener,
    router: tonic::transport::server::Router,
    lead: &Lead,
    metrics: &Metrics,
    drain: &Drain,
) {
    let gate = Gate::new(name, listener, GRPC_CONNECTIONS_MAX, metrics.clone());
    serve_grpc(name, gate.into_stream(), router, lead, metrics, drain);
}

/// Serves gRPC over TLS until the drain. Connections end when another control plane leads.
pub fn grpc_tls(
    name: &'static str,
    listener: TcpListener,
    settings: tls::Settings,
    router: tonic::transport::server::Router,
    lead: &Lead,
    metrics: &Metrics,
    drain: &Drain,
) {
    let failures = metrics.handshake_failures.clone();
    let gate = Gate::new(name, listener, GRPC_CONNECTIONS_MAX, metrics.clone());
    let shaken = gate.into_stream().map(move |counted| {
        let (settings, failures) = (settings.clone(), failures.clone());
        async move {
            let Counted { stream: Wire::Plain(stream), peer, place, closed, .. } = counted else {
                return None;
            };
            match settings.accept(stream, peer.address).await {
                Ok((stream, peer)) => {
                    let newcomer = peer.verified.is_none();
                    let ends = newcomer.then(|| Box::pin(tokio::time::sleep(tls::NEWCOMER_STAYS)));
                    Some(Counted { stream: Wire::Tls(Box::new(stream)), peer, place, ends, closed })
                }
                Err((reason, error)) => {
                    failures.with_label_values(&[name, reason]).inc();
                    debug!(listener = name, peer = %peer.address, reason, %error, "TLS handshake failed");
                    None
                }
            }
        }
    });
    let connections = shaken.buffer_unordered(tls::HANDSHAKES_MAX).filter_map(std::future::ready);
    serve_grpc(name, connections, router, lead, metrics, drain);
}

fn serve_grpc(
    name: &'static str,
    connections: impl Stream<Item = Counted> + Send + 'static,
    router: tonic::transport::server::Router,
    lead: &Lead,
    metrics: &Metrics,
    drain: &Drain,
) {
    let (Drain { token, tasks }, lead) = (drain.clone(), lead.clone());
    let sent_away = metrics.sent_away.with_label_values(&[name, "connection"]);
    drain.tasks.spawn(async move {
        let mut connections = pin!(connections);
        while let Some(Some(mut counted)) = token.run_until_cancelled(connections.next()).await {
            // A server for each: only so one can be told to go and not all.
            let (router, token, lead, sent_away) =
                (router.clone(), token.clone(), lead.clone(), sent_away.clone());
            let closed = CancellationToken::new();
            counted.closed = Some(closed.clone().drop_guard());
            let end = async move {
                let led = async {
                    lead.lost().await;
                    tokio::time::sleep(SENT_AWAY_STAYS).await;
                };
                tokio::select! {
                    () = token.cancelled() => {}
                    () = closed.cancelled() => {}
                    () = led => sent_away.inc(),
                }
            };
            let only =
                futures_util::stream::iter([io::Result::Ok(counted)]).chain(futures_util::stream::pending());
            tasks.spawn(async move {
                if let Err(error) = router.serve_with_incoming_shutdown(only, end).await {
                    error!(
                        listener = name,
                        error = &error as &dyn std::error::Error,
                        "connection not served"
                    );
                }
            });
        }
    });
}

/// Serves HTTP/1.1 until the drain.
pub fn http(name: &'static str, listener: TcpListener, router: Router, metrics: &Metrics, drain: &Drain) {
    let gate = Gate::new(name, listener, HTTP_CONNECTIONS_MAX, metrics.clone());
    let accepting = drain.clone();
    drain.tasks.spawn(async move {
        let Drain { token, tasks } = accepting;
        while let Some(counted) = token.run_until_cancelled(gate.accept()).await {
            let (router, token) = (router.clone(), token.clone());
            tasks.spawn(async move {
                let peer = counted.peer.address;
                if let Err(error) = connection(counted, router, token.cancelled()).await {
                    debug!(listener = name, %peer, error = &error as &dyn std::error::Error, "connection ended");
                }
            });
        }
    });
}

/// Serves HTTP/1.1 over TLS until the drain. `config` says with what, anew for each connection; as long as it says nothing,
/// connections are closed.
pub fn https(
    name: &'static str,
    listener: TcpListener,
    config: impl Fn() -> Option<Arc<rustls::ServerConfig>> + Clone + Send + Sync + 'static,
    router: Router,
    metrics: &Metrics,
    drain: &Drain,
) {
    let failures = metrics.handshake_failures.clone();
    let gate = Gate::new(name, listener, HTTP_CONNECTIONS_MAX, metrics.clone());
    let accepting = drain.clone();
    drain.tasks.spawn(async move {
        let Drain { token, tasks } = accepting;
        while let Some(counted) = token.run_until_cancelled(gate.accept()).await {
            let (config, router, token, failures) = (config.clone(), router.clone(), token.clone(), failures.clone());
            tasks.spawn(async move {
                let Counted { stream: Wire::Plain(stream), peer, place, ends, closed } = counted else { return };
                let address = peer.address;
                let shaken = match config() {
                    Some(config) => tls::shake(config, stream).await,
                    None => Err(("no_certificate", io::ErrorKind::NotConnected.into())),
                };
                let stream = match shaken {
                    Ok(stream) => Wire::Tls(Box::new(stream)),
                    Err((reason, error)) => {
                        failures.with_label_values(&[name, reason]).inc();
                        debug!(listener = name, peer = %address, reason, %error, "TLS handshake failed");
                        return;
                    }
                };
                let counted = Counted { stream, peer, place, ends, closed };
                if let Err(error) = connection(counted, router, token.cancelled()).await {
                    debug!(listener = name, peer = %address, error = &error as &dyn std::error::Error, "connection ended");
                }
            });
        }
    });
}

async fn connection(counted: Counted, router: Router, end: impl Future<Output = ()>) -> hyper::Result<()> {
    let peer = counted.peer.address;
    let service = router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(counted), TowerToHyperService::new(service))
    );
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = end => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// A listener that accepts as long as there is a place.
struct Gate {
    name: &'static str,
    listener: TcpListener,
    places: Arc<Semaphore>,
    metrics: Metrics,
}

impl Gate {
    fn new(name: &'static str, listener: TcpListener, places: usize, metrics: Metrics) -> Self {
        Self { name, listener, places: Arc::new(Semaphore::new(places)), metrics }
    }

    async fn accept(&self) -> Counted {
        if self.places.available_permits() == 0 {
            self.metrics.full.with_label_values(&[self.name]).inc();
            warn!(listener = self.name, "all connections are taken; not accepting");
        }
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    // A socket that cannot take an option is about to fail anyway.
                    drop(stream.set_nodelay(true));
                    let peer = Peer { address: peer, secure: false, verified: None };
                    return Counted { stream: Wire::Plain(stream), peer, place, ends: None, closed: None };
                }
                Err(error) => {
                    self.metrics.accept_errors.with_label_values(&[self.name]).inc();
                    warn!(listener = self.name, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn into_stream(self) -> impl Stream<Item = Counted> {
        futures_util::stream::unfold(self, |gate| async move { Some((gate.accept().await, gate)) })
    }
}
