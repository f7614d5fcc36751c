//! One client connection, from its first request to its end.
//!
//! In: a socket whose first bytes say HTTP, and a [`Scope`] that says what it stands for. Out: nothing; when
//! [`serve`] returns the connection is closed. Invariants: one task per HTTP/1 connection, which drives both its own
//! engine and the upstream's; a connection that says nothing for a moment gives its engine and buffers back (see
//! [`super::park`]). Surprise: what hyper answers by itself to bytes it cannot parse is replaced on its way out, so
//! that even then the caller reads a reason. Non-goal: requests ([`super::forward`]).

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use weft_wire::xds::ListenerName;
use weft_wire::{DecidedBy, Reason};

use super::forward::{self, Destination};
use super::park::{Engine, Place, Signal};
use super::upgrade::{self, Switch};
use super::{BUFFER_MAX, H2_CONNECTION_WINDOW, H2_FRAME_MAX, H2_STREAM_WINDOW, headers};
use crate::detect::Prefixed;
use crate::record::{Direction, EdgeSpec, Limit};
use crate::tcp::Upstream;
use crate::worker::Worker;
use crate::xds::Listener;

mod watched;

use watched::Watched;

/// Streams a client may have open on one connection: what Go's and nginx's servers allow, doubled for gRPC.
const H2_STREAMS_MAX: u32 = 256;

/// Streams a client may reset before they were even looked at, at any moment. The answer to "rapid reset"
/// (CVE-2023-44487); beyond it the connection is closed.
const H2_PENDING_RESETS_MAX: usize = 20;

/// Streams we reset for the client's errors before the connection is closed.
const H2_LOCAL_RESETS_MAX: usize = 1024;

/// Bytes of responses held for one stream.
const H2_SEND_BUFFER_MAX: usize = 256 * 1024;

/// How often a silent HTTP/2 connection is asked whether it is still there, and how long it may take to answer.
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Where a connection's requests go.
#[derive(Debug, Clone)]
pub enum Target {
    /// Outbound to a service: routed.
    Listener(Arc<Listener>),
    /// Outbound to an address the control plane does not know.
    PassThrough(SocketAddr),
    /// Inbound to the app, on a port of which the control plane has said nothing: `WEFT_DEFAULT_ACCESS` decides.
    App(SocketAddr),
    /// Inbound to the app, on a port that the control plane has rules for.
    Own {
        /// The app.
        app: SocketAddr,
        /// The port's rules.
        listener: Arc<Listener>,
    },
    /// Outbound to whatever each request names: the client uses this sidecar as its HTTP proxy.
    ForwardProxy,
    /// Nowhere: every request is answered with this reason.
    Nowhere(Reason),
}

/// What a connection stands for.
#[derive(Debug)]
pub struct Scope {
    /// What it is called in telemetry. A pass-through destination known only by its address is called by the `Host`
    /// of its requests instead; the forward proxy's by the authority of each.
    pub edge: EdgeSpec,
    /// Where its requests go.
    pub target: Target,
    /// The question that the control plane had not answered when the connection came. Its requests go where it was
    /// going until there is an answer, and not for as long as it lives; those to the app are guarded from then on.
    pub asked: Option<Box<ListenerName>>,
    /// A connection to the server that exists already (detection's race): the first request takes it.
    pub opened: Option<Upstream>,
    /// Who connected.
    pub client: IpAddr,
}

/// One client connection, as its requests see it.
pub(super) struct Session {
    pub worker: Rc<Worker>,
    pub target: Target,
    /// See [`Scope::asked`].
    pub asked: Option<Box<ListenerName>>,
    pub edge: EdgeSpec,
    /// Who connected.
    pub client: IpAddr,
    pub by: DecidedBy,
    /// Its place among the worker's connections, and its signs of life.
    pub place: Place,
    /// Destinations of this connection's requests: one, except for the forward proxy.
    pub destinations: RefCell<Vec<Rc<Destination>>>,
    /// A connection to the server that no request has taken yet.
    pub opened: RefCell<Option<Box<Upstream>>>,
    /// Left by a request that switched protocols.
    pub switch: Cell<Option<Switch>>,
    /// Who connected, as its certificate writes it: made when first asked for.
    caller: OnceCell<Option<Box<str>>>,
}

impl Session {
    /// Who connected, by its certificate.
    pub(super) fn caller(&self) -> Option<&str> {
        let write = || self.edge.caller.as_ref().map(|caller| caller.to_string().into());
        self.caller.get_or_init(write).as_deref()
    }
}

/// Serves a connection until it ends.
///
/// Not an `async fn`: those keep their arguments beside what becomes of them, for as long as the connection is open.
pub fn serve(worker: Rc<Worker>, io: Prefixed, version: Version, scope: Scope) -> impl Future<Output = ()> {
    let engine = match version {
        Version::Http1 => Engine::H1,
        Version::Http2 => Engine::H2,
    };
    let place = worker.http.lot.enter(engine);
    if io.stream().is_tls() {
        place.pulse.set_end(worker.connection_end());
    }
    let session = Rc::new(Session {
        by: match scope.edge.direction {
            Direction::Inbound => DecidedBy::ServerProxy,
            Direction::Outbound => DecidedBy::ClientProxy,
        },
        worker,
        target: scope.target,
        asked: scope.asked,
        edge: scope.edge,
        client: scope.client,
        place,
        destinations: RefCell::default(),
        opened: RefCell::new(scope.opened.map(Box::new)),
        switch: Cell::new(None),
        caller: OnceCell::new(),
    });
    let mut io = Some(io);
    async move {
        match version {
            Version::Http1 => {
                while let Some(ready) = io.take() {
                    // Boxed, so that an idle connection's task is no larger than what it needs.
                    match Box::pin(stretch(&session, ready)).await {
                        Stretch::Ended => {}
                        Stretch::Switched(client, switch) => {
                            Box::pin(upgrade::run(&session.worker, client, switch)).await;
                        }
                        Stretch::Idle(idle) => {
                            if wait(&session, &idle).await {
                                io = Some(idle);
                            }
                        }
                    }
                }
            }
            Version::Http2 => {
                if let Some(io) = io {
                    Box::pin(serve_h2(session, io)).await;
                }
            }
        }
    }
}

/// How a stretch of HTTP/1 ended.
enum Stretch {
    /// The connection is over.
    Ended,
    /// Nothing in flight, nothing buffered but perhaps the beginning of a request.
    Idle(Prefixed),
    /// The protocol was switched.
    Switched(Prefixed, Switch),
}

/// Runs an engine on the connection until it is idle or over.
async fn stretch(session: &Rc<Session>, io: Prefixed) -> Stretch {
    let pulse = &session.place.pulse;
    let service = service_fn(|request| forward::forward(Rc::clone(session), request));
    let mut engine = http1::Builder::new()
        .max_buf_size(BUFFER_MAX)
        .max_header_size(headers::HEADER_BYTES_MAX)
        .serve_connection(Watched::new(io, session), service);
    let ended = std::future::poll_fn(|context| {
        pulse.listen(context);
        if let Poll::Ready(result) = Pin::new(&mut engine).poll(context) {
            return Poll::Ready(Some(result));
        }
        match pulse.signal() {
            Signal::None | Signal::Drain => Poll::Pending,
            Signal::Park | Signal::HeaderTimeout | Signal::Expire if pulse.may_park() => Poll::Ready(None),
            Signal::Park | Signal::HeaderTimeout | Signal::Expire => Poll::Pending,
        }
    })
    .await;
    let switch = session.switch.take();
    match (ended, switch) {
        (None, _) => Stretch::Idle(restored(engine.into_parts())),
        (Some(Ok(())), Some(switch)) => Stretch::Switched(restored(engine.into_parts()), switch),
        (Some(Ok(())), None) => Stretch::Ended,
        (Some(Err(error)), _) => {
            if error.is_parse_too_large() {
                session.worker.shard.limit(Limit::HeaderBytes);
            }
            tracing::debug!(%error, "a client's HTTP/1 connection ended");
            Stretch::Ended
        }
    }
}

fn restored<S>(parts: http1::Parts<Watched, S>) -> Prefixed {
    let mut io = parts.io.into_inner();
    // A copy, because even an empty slice would keep the engine's whole buffer.
    if !parts.read_buf.is_empty() {
        io.unread(Bytes::copy_from_slice(&parts.read_buf));
    }
    io
}

/// Waits without an engine until the client says something more; or not, and the connection is over.
async fn wait(session: &Session, io: &Prefixed) -> bool {
    let pulse = &session.place.pulse;
    let lot = &session.worker.http.lot;
    if !io.prefix().is_empty() {
        pulse.header_begun();
    }
    pulse.set_parked(true, lot);
    let awake = std::future::poll_fn(|context| {
        pulse.listen(context);
        match pulse.signal() {
            Signal::Expire => Poll::Ready(Err(None)),
            Signal::HeaderTimeout => Poll::Ready(Err(Some(Reason::HeaderTimeout))),
            // A dead socket is found out by the engine.
            _ => io.stream().poll_read_ready(context).map(|_| Ok(())),
        }
    })
    .await;
    pulse.set_parked(false, lot);
    match awake {
        Ok(()) => true,
        Err(reason) => {
            if let Some(reason) = reason {
                // One try: whoever is this slow may miss the explanation.
                drop(io.stream().try_write(&watched::raw_reply(reason, session.by)));
            }
            false
        }
    }
}

async fn serve_h2(session: Rc<Session>, io: Prefixed) {
    let pulse = &session.place.pulse;
    let service = service_fn(|request| forward::forward(Rc::clone(&session), request));
    let engine = http2::Builder::new(Local)
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_frame_size(H2_FRAME_MAX)
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(headers::HEADER_BYTES_MAX as u32)
        .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(H2_LOCAL_RESETS_MAX)
        .max_send_buf_size(H2_SEND_BUFFER_MAX)
        .keep_alive_interval(H2_PING_INTERVAL)
        .keep_alive_timeout(H2_PING_TIMEOUT)
        .serve_connection(io, service);
    let mut engine = pin!(engine);
    let mut leaving = false;
    let ended = std::future::poll_fn(|context| {
        pulse.listen(context);
        if !leaving && matches!(pulse.signal(), Signal::Drain | Signal::Expire) {
            leaving = true;
            engine.as_mut().graceful_shutdown();
        }
        engine.as_mut().poll(context)
    })
    .await;
    if let Err(error) = ended {
        let reason = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
        if reason.and_then(h2::Error::reason) == Some(h2::Reason::ENHANCE_YOUR_CALM) {
            session.worker.shard.limit(Limit::ResetRate);
        }
        tracing::debug!(%error, "a client's HTTP/2 connection ended");
    }
}

/// Streams are tasks of the worker's own thread.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, stream: F) {
        // Owned by its connection: hyper ends it when the connection ends.
        drop(tokio::task::spawn_local(stream));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        // What a parked connection's task holds, apart from the socket's own state.
        assert!(size(serve) <= 640, "{}", size(serve));
        assert!(size_of::<Session>() <= 400, "{}", size_of::<Session>());
    }
}
