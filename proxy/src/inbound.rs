//! A connection to the app, stage by stage.
//!
//! accept → where to? → whose port is it? → what does it speak? → who is there? → serve it. In: a connection that the kernel
//! redirected here, or that came to the inbound listener itself (explicit mode). Out: the app, measured.
//! Invariants: only this file decides the order; whatever the control plane does not know still goes to where
//! it was going, unless `WEFT_DEFAULT_ACCESS=deny`. Surprise: the last stage is a task of its own, so that the state of detection does not stay
//! in memory for as long as the connection. Non-goal: requests; `http::server` has those.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use weft_wire::tls::{Mode, TRUST_DOMAIN_DEFAULT, server_name_suffix};
use weft_wire::xds::{ListenerName, Protocol};
use weft_wire::{Host, Reason, SpiffeId};

use crate::accept::Accepted;
use crate::config::DefaultAccess;
use crate::detect::{self, Detected, Prefixed, Sniff};
use crate::http;
use crate::policy::authorize::{Call, Verdict};
use crate::record::{self, Direction, EdgeSpec, Limit, Tls};
use crate::tcp::{self, Target, Upstream};
use crate::tls::accept::Secured;
use crate::tls::{self, Alpn, HANDSHAKE_TIME_MAX, Stream};
use crate::worker::{Permit, Worker};
use crate::xds::Listener;

/// Serves one inbound connection.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { stream, client, local, original, permit } = accepted;

    // Where to? The original destination; or, for a connection that was not redirected, the app we were told of.
    let asked = original.unwrap_or(local);
    let app = match original.or(worker.config.inbound_forward) {
        Some(app) if !worker.loops(Direction::Inbound, app) => app,
        _ => {
            let mut record =
                worker.shard.edge(&edge(None, asked, client, Tls::None)).connection(record::Protocol::Tcp);
            record.failed(Reason::RequestLoop);
            tracing::debug!(%client, %asked, "refused a connection that would come back to this sidecar");
            return tcp::reset(stream.socket());
        }
    };

    // Whose port is it? Names, declares and guards; the app is where it is in any case.
    let listener = worker.discover(ListenerName::Inbound(asked)).await;

    let mode = listener.as_ref().map_or(Mode::Permissive, |listener| listener.mode);
    let awaits = listener.is_none() && worker.config.control_plane.is_some();
    let unheard = awaits.then(|| Box::new(ListenerName::Inbound(asked)));
    let arrival = Arrival { worker, listener, unheard, app, client, mode };
    if arrival.is_closed() {
        arrival.worker.unheard.tell(asked, &arrival.worker.directory, Instant::now());
    }
    arrival.proceed(permit, stream).await;
}

/// A connection to a port that is known.
struct Arrival {
    worker: Rc<Worker>,
    listener: Option<Arc<Listener>>,
    /// The port, where the control plane may still say whose it is.
    unheard: Option<Box<ListenerName>>,
    app: SocketAddr,
    client: SocketAddr,
    mode: Mode,
}

impl Arrival {
    /// What is spoken at the port: by the control plane's word, else by what the pod's author wrote.
    fn declared(&self) -> Option<Protocol> {
        let known = self.listener.as_ref().and_then(|listener| listener.protocol);
        known.or_else(|| {
            let hints = self.worker.config.inbound_protocols.iter();
            hints.copied().find(|(port, _)| *port == self.app.port()).map(|(_, protocol)| protocol)
        })
    }

    /// Whether nobody may come, because nobody has said who may.
    fn is_closed(&self) -> bool {
        self.listener.is_none() && self.worker.config.default_access == DefaultAccess::Deny
    }

    /// The stages from the first byte on.
    ///
    /// Not an `async fn`: those keep their arguments beside what becomes of them.
    #[expect(clippy::manual_async_fn, reason = "see above")]
    fn proceed(self, permit: Permit, stream: Stream) -> impl Future<Output = ()> {
        async move {
            // What does it speak? Mutual TLS is the mesh's own, and looked for first.
            let (worker, mode) = (&self.worker, self.mode);
            let declared = self.declared();
            let open = || tcp::open(Rc::clone(worker), Target::Address(self.app), None);
            let meshed = mode == Mode::Strict || mode == Mode::Permissive && worker.mesh.has_identity();
            let detected = if meshed {
                detect::look(worker, &stream, declared, mode == Mode::Strict, open).await
            } else {
                detect::identify(worker, &stream, declared, open).await
            };
            let Ok(detected) = detected else {
                // The client reset the connection before it said what it wanted.
                return;
            };

            // Serve it, in a task that no longer holds the state of these stages.
            if detected.sniff == Sniff::Tls || mode == Mode::Strict {
                Box::pin(self.behind_tls(permit, stream, detected)).await;
            } else {
                self.start(permit, stream, None, detected.believing(declared));
            }
        }
    }

    /// For a connection that is TLS, or should be.
    async fn behind_tls(self, permit: Permit, stream: Stream, mut detected: Detected<Upstream>) {
        let declared = self.declared();
        let timeout = self.worker.config.detect_timeout;
        if detected.sniff != Sniff::Tls {
            return self.refuse(permit, stream, detected, Reason::TlsRequired);
        }
        if self.mode != Mode::Strict {
            let name = detect::server_name(&stream, &mut detected.prefix, timeout).await;
            if self.mode == Mode::Disabled || !name.is_some_and(|name| self.is_of_mesh(&name)) {
                // The app's own.
                return self.start(permit, stream, None, detected.believing(declared));
            }
        }
        let Secured { stream, peer, alpn, resumed: _ } = match self.terminate(stream, &detected.prefix).await
        {
            Ok(secured) => secured,
            Err((stream, reason)) => {
                detected.sniff = Sniff::Tls;
                return match stream {
                    Some(stream) => self.refuse(permit, stream, detected, reason),
                    None => self.failed(reason),
                };
            }
        };
        detected.prefix = Bytes::new();
        detected.sniff = match alpn {
            Some(Alpn::Http1) => Sniff::Http1,
            Some(Alpn::Http2) => Sniff::Http2,
            Some(Alpn::Opaque) => Sniff::Opaque,
            None => {
                let open = || tcp::open(Rc::clone(&self.worker), Target::Address(self.app), None);
                let Ok(inside) = detect::identify(&self.worker, &stream, declared, open).await else {
                    return;
                };
                let opened = detected.opened.take();
                detected = Detected { opened: inside.opened.or(opened), ..inside };
                detected.sniff
            }
        };
        self.start(permit, stream, Some(peer), detected);
    }

    /// Whether a ClientHello's name is one of the mesh's own.
    fn is_of_mesh(&self, name: &Host) -> bool {
        let enrolment = self.worker.config.enrolment.as_ref();
        let domain = enrolment.map_or(TRUST_DOMAIN_DEFAULT, |enrolment| &enrolment.trust_domain);
        name.as_str().ends_with(&server_name_suffix(domain))
    }

    /// Finds out who is there. On failure the connection, if nothing was said on it yet.
    async fn terminate(&self, stream: Stream, hello: &[u8]) -> Result<Secured, (Option<Stream>, Reason)> {
        let worker = &self.worker;
        let Some(credentials) = worker.mesh.credentials() else {
            // Without an identity of our own there is nothing to answer with.
            worker.shard.handshake(Direction::Inbound, Err(Reason::TlsHandshakeFailed));
            return Err((Some(stream), Reason::TlsHandshakeFailed));
        };
        // Not reached: it has just come.
        let Stream::Plain(socket) = stream else { return Err((None, Reason::TlsHandshakeFailed)) };
        let Some(_handshake) = worker.handshakes.acquire() else {
            worker.shard.limit(Limit::Handshakes);
            worker.shard.handshake(Direction::Inbound, Err(Reason::Overloaded));
            return Err((Some(socket.into()), Reason::Overloaded));
        };
        let secured = tls::accept::accept(&credentials, socket, hello, HANDSHAKE_TIME_MAX).await;
        let result = secured.as_ref().map(|secured| secured.resumed).map_err(|reason| *reason);
        worker.shard.handshake(Direction::Inbound, result);
        secured.map_err(|reason| (None, reason))
    }

    /// Says no: in words where the client reads HTTP, by a reset elsewhere.
    fn refuse(self, permit: Permit, stream: Stream, detected: Detected<Upstream>, reason: Reason) {
        if reason == Reason::TlsRequired {
            self.worker.shard.handshake(Direction::Inbound, Err(reason));
        }
        let version = match detected.sniff {
            Sniff::Http1 => http::Version::Http1,
            Sniff::Http2 => http::Version::Http2,
            Sniff::Tls | Sniff::Opaque | Sniff::NeedMore => {
                tcp::reset(stream.socket());
                return self.failed(reason);
            }
        };
        let scope = http::Scope {
            edge: edge(self.listener.as_ref(), self.app, self.client, Tls::None),
            target: http::Target::Nowhere(reason),
            asked: None,
            opened: None,
            client: self.client.ip(),
        };
        let io = Prefixed::new(stream, detected.prefix);
        tokio::task::spawn_local(permit.during(http::serve(self.worker, io, version, scope)));
    }

    /// Records a connection that is not served.
    fn failed(&self, reason: Reason) {
        let edge = edge(self.listener.as_ref(), self.app, self.client, Tls::None);
        self.worker.shard.edge(&edge).connection(record::Protocol::Tcp).failed(reason);
        tracing::debug!(client = %self.client, app = %self.app, %reason, "refused");
    }

    /// Serves it. A TLS connection that is still one is the app's own: it is named by its port, whatever its SNI.
    fn start(
        self,
        permit: Permit,
        stream: Stream,
        peer: Option<Arc<SpiffeId>>,
        detected: Detected<Upstream>,
    ) {
        let Self { worker, listener, unheard, app, client, mode: _ } = self;
        let Detected { sniff, prefix, opened, failed, how: _ } = detected;
        let io = Prefixed::new(stream, prefix);
        let tls = match (&peer, sniff) {
            (Some(_), _) => Tls::Mutual,
            (None, Sniff::Tls) => Tls::Simple,
            (None, _) => Tls::None,
        };
        let edge = EdgeSpec { caller: peer, ..edge(listener.as_ref(), app, client, tls) };
        let version = match sniff {
            Sniff::Http1 => http::Version::Http1,
            Sniff::Http2 => http::Version::Http2,
            Sniff::Tls | Sniff::Opaque | Sniff::NeedMore => {
                let protocol =
                    if sniff == Sniff::Tls { record::Protocol::Tls } else { record::Protocol::Tcp };
                if !admits(&worker, listener.as_deref(), &edge, app) {
                    worker.shard.edge(&edge).connection(protocol).failed(Reason::PolicyDenied);
                    return tcp::reset(io.stream().socket());
                }
                let scope = tcp::Scope { edge, protocol, target: Target::Address(app), opened, failed };
                tokio::task::spawn_local(permit.during(tcp::serve(worker, io, scope)));
                return;
            }
        };
        let target = match listener {
            Some(listener) => http::Target::Own { app, listener },
            None => http::Target::App(app),
        };
        let scope = http::Scope { edge, target, asked: unheard, opened, client: client.ip() };
        tokio::task::spawn_local(permit.during(http::serve(worker, io, version, scope)));
    }
}

/// Whether an opaque connection may go on. It is judged once, before anything of it is passed on.
fn admits(worker: &Worker, listener: Option<&Listener>, edge: &EdgeSpec, app: SocketAddr) -> bool {
    let Some(listener) = listener else {
        let closed = worker.config.default_access == DefaultAccess::Deny;
        if closed {
            worker.shard.edge(edge).record_access(None, Verdict::Denied);
        }
        return !closed;
    };
    let guard = listener.guard();
    let Some(guard) = &*guard else { return true };
    let caller = edge.caller.as_ref().map(ToString::to_string);
    let call = Call { caller: caller.as_deref(), port: app.port(), request: None };
    let edge = worker.shard.edge(edge);
    guard.bytes.admits(&call, |verdict, rule| edge.record_access(rule, verdict))
}

/// What an inbound connection is called: the own service when it is known, else the address that was called.
fn edge(listener: Option<&Arc<Listener>>, asked: SocketAddr, client: SocketAddr, tls: Tls) -> EdgeSpec {
    let service = listener.and_then(|listener| listener.service.clone());
    EdgeSpec {
        direction: Direction::Inbound,
        server_address: match &service {
            Some(port) => port.service.to_string().into(),
            None => asked.ip().to_string().into(),
        },
        server_port: service.as_ref().map_or(asked.port(), |port| port.port),
        service: service.map(|port| port.service),
        tls,
        client: Some(client.ip()),
        caller: None,
    }
}

pub(crate) mod unheard;

#[cfg(test)]
mod tests;
