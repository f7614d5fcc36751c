//! One attempt: an endpoint, a connection, the request out, the response's head in.
//!
//! In: a request fit to be sent, and a cluster. Out: an [`Answer`], or how the attempt ended without one
//! ([`Unanswered`]), which is what retries are decided by. Invariant: an endpoint that did not accept is not chosen
//! again for the same request while there is another. Non-goal: deciding on another attempt (`super::retry`).

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, Version};
use weft_wire::Reason;

use super::outgoing::Outgoing;
use super::{Destination, Refusal};
use crate::balance::{Ask, Cluster, Endpoint, Outcome};
use crate::detect::Prefixed;
use crate::http::body::{Exchange, Judged, Source};
use crate::http::class;
use crate::http::clock::Clock;
use crate::http::headers::Intent;
use crate::http::upgrade::Switch;
use crate::policy::retry::Ended;
use crate::pool::Open;
use crate::record;
use crate::reply::Fault;
use crate::route::filter::Passage;
use crate::tcp::Upstream;
use crate::tls::{self, Alpn, Stream};
use crate::worker::Worker;

/// Endpoints of one cluster that are tried for one attempt. Nothing has been sent to one that did not accept, so
/// trying another is safe; more than three in a row is not bad luck any more.
pub(super) const ENDPOINTS_MAX: usize = 3;

/// A response's head, and where the rest comes from.
pub(super) type Answer = Response<Arrived>;

/// What follows a response's head.
pub(super) enum Arrived {
    /// Its body.
    Body(Source),
    /// Another protocol.
    Switch(Box<Switch>),
}

/// An attempt without an answer.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// What the caller is told if this was the last attempt.
    pub refusal: Refusal,
    /// How it ended; `None`: another one would end alike.
    pub ended: Option<Ended>,
}

impl From<Reason> for Unanswered {
    fn from(reason: Reason) -> Self {
        Self { refusal: reason.into(), ended: None }
    }
}

impl Unanswered {
    pub(super) fn new(reason: Reason, ended: Ended) -> Self {
        Self { refusal: reason.into(), ended: Some(ended) }
    }

    /// What came is not what the protocol allows.
    pub(super) fn malformed() -> Self {
        let refusal = Refusal { reason: Reason::ProtocolError, fault: Fault::Upstream, told: None };
        Self { refusal, ended: Some(Ended::Reset { sent: true }) }
    }
}

/// What the proxy's own answer says about whoever was asked: nothing, if nobody was.
pub(super) fn judgement(reason: Reason, fault: Fault) -> Outcome {
    match reason {
        Reason::ConnectFailed
        | Reason::ConnectRefused
        | Reason::ConnectTimeout
        | Reason::RequestTimeout
        | Reason::TlsCertificateExpired
        | Reason::TlsCertificateMissing
        | Reason::TlsHandshakeFailed
        | Reason::TlsIdentityMismatch
        | Reason::TlsTrustDomain
        | Reason::TlsUnknownIssuer
        | Reason::UpstreamReset => Outcome::LocalOrigin(reason),
        Reason::ProtocolError if fault == Fault::Upstream => Outcome::LocalOrigin(reason),
        _ => Outcome::Cancelled,
    }
}

/// What the attempts of one request share.
pub(super) struct Way<'a> {
    pub worker: &'a Rc<Worker>,
    /// A connection to the server that exists already.
    pub opened: &'a RefCell<Option<Box<Upstream>>>,
    pub destination: &'a Rc<Destination>,
    pub cluster: &'a Cluster,
    pub exchange: &'a mut Option<Box<Exchange>>,
    pub outgoing: &'a mut Outgoing,
    pub intent: Intent,
    /// `CONNECT` asks for a tunnel of this proxy, not of the app.
    pub tunnels: bool,
    /// gRPC tells of its success in trailers.
    pub grpc: bool,
    /// Endpoints that failed this request.
    pub tried: Vec<Rc<Endpoint>>,
    /// How long an attempt may take from when it has a connection.
    pub per_try: Option<Duration>,
    /// What is left of that for this one.
    pub try_clock: Option<Clock>,
    /// How long all attempts may take together.
    pub whole: Option<Rc<Clock>>,
    /// Whether the next hop is told how much of that is left.
    pub told: bool,
}

/// What a head says about who sent it.
pub(super) fn outcome(status: StatusCode, headers: &HeaderMap) -> Outcome {
    match class::grpc_status(headers).filter(|_| class::is_grpc(headers)) {
        Some(status) => Outcome::of_status(status.as_http()),
        None => Outcome::of_status(status.as_u16()),
    }
}

impl Way<'_> {
    /// The one attempt that a request without a policy has, or one of several.
    pub(super) async fn attempt(&mut self) -> Result<Answer, Unanswered> {
        let h2 = self.outgoing.head.version == Version::HTTP_2;
        // Boxed, so that the common case is not moved about at the size of the rarer ones.
        if self.intent == Intent::Connect && (self.tunnels || h2) {
            Box::pin(self.tunnel()).await
        } else if h2 || self.cluster.http2() && self.intent != Intent::Upgrade {
            Box::pin(self.over_h2()).await
        } else {
            self.over_h1().await
        }
    }

    /// An endpoint that has not failed this request yet, if there is one.
    pub(super) fn choose(&mut self) -> Result<Rc<Endpoint>, Reason> {
        let passage = self.exchange.as_ref().and_then(|exchange| exchange.passage.as_ref());
        let ask = Ask { tried: &self.tried, hash: passage.and_then(Passage::hash) };
        let endpoint = self.worker.clusters.choose(self.cluster, ask)?;
        self.chosen(&endpoint);
        Ok(endpoint)
    }

    /// The endpoint of the connection that exists already, and the connection: if it leads to whom it must lead to now, which
    /// may be somebody else than when it was opened.
    pub(super) fn ahead(&mut self) -> Option<(Rc<Endpoint>, Stream, Open)> {
        let opened = *self.opened.borrow_mut().take()?;
        let endpoint = self.worker.clusters.at_address(self.cluster, opened.address)?;
        if opened.identity != endpoint.identity(&self.worker.mesh) {
            return None;
        }
        self.chosen(&endpoint);
        let mut open = endpoint.pool.adopt(opened.permit);
        if opened.stream.is_tls() {
            open.set_end(self.worker.connection_end());
        }
        Some((endpoint, opened.stream, open))
    }

    fn chosen(&mut self, endpoint: &Rc<Endpoint>) {
        if let Some(exchange) = self.exchange {
            exchange.record.peer(endpoint.enter(&self.worker.mesh));
            exchange.working = Some(endpoint.start());
        }
    }

    /// Nobody works on the request for now.
    pub(super) fn unchosen(&mut self) {
        if let Some(exchange) = self.exchange {
            exchange.working = None;
        }
    }

    /// How long an endpoint may take to accept.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.cluster.connect_timeout().unwrap_or(self.worker.config.connect_timeout)
    }

    /// A new connection, and `open` with the time that it may be used.
    pub(super) async fn connect(
        &mut self,
        endpoint: &Rc<Endpoint>,
        mut open: Open,
        alpn: Alpn,
    ) -> Result<(Stream, Open), Reason> {
        let options = self.worker.connect_options(Some(self.connect_timeout()));
        let begun = Instant::now();
        let reached = self.worker.reach(endpoint, &options, Some(alpn)).await;
        let stream = reached.inspect_err(|reason| {
            let now = Instant::now();
            // Counts as slow as a deadline would be, so that the balancer keeps away for a while.
            let elapsed = options.timeout.max(now.saturating_duration_since(begun));
            self.ended(elapsed, Outcome::LocalOrigin(*reason), now);
        })?;
        if stream.is_tls() {
            open.set_end(self.worker.connection_end());
        }
        Ok((stream, open))
    }

    /// Whether another endpoint is tried within this attempt, after `endpoint`, the `count`th, did not accept.
    pub(super) fn another(&mut self, endpoint: Rc<Endpoint>, count: usize) -> bool {
        let another = count < ENDPOINTS_MAX && self.cluster.has_alternatives();
        self.failed_at(&endpoint);
        another
    }

    /// When the attempt begins, if anybody wants to know how long it takes.
    pub(super) fn begin(&self) -> Option<Instant> {
        (self.cluster.is_named() || self.cluster.has_alternatives()).then(Instant::now)
    }

    /// The connection broke. In TLS 1.3 that is also how the other side says that it does not take our certificate: only
    /// when the handshake is over for us.
    pub(super) fn broken_off(&self, error: &std::io::Error, sent: bool) -> Unanswered {
        let refused = tls::reason(error);
        if let Some(reason) = refused {
            self.worker.shard.handshake(record::Direction::Outbound, Err(reason));
        }
        Unanswered::new(refused.unwrap_or(Reason::UpstreamReset), Ended::Reset { sent })
    }

    /// The response's head is here.
    pub(super) fn answered<B>(&mut self, begun: Option<Instant>, head: &Response<B>) {
        let Some(begun) = begun else { return };
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(begun);
        if self.grpc && head.status().is_success() && class::grpc_status(head.headers()).is_none() {
            // Whether it is a success is said at its end.
            if let Some(exchange) = self.exchange {
                exchange.judged = Some(Judged { elapsed });
                if let Some(working) = &exchange.working {
                    working.observe(now, elapsed);
                }
            }
            return;
        }
        let outcome = match class::grpc_status(head.headers()).filter(|_| self.grpc) {
            Some(status) => Outcome::of_status(status.as_http()),
            None => Outcome::of_status(head.status().as_u16()),
        };
        self.ended(elapsed, outcome, now);
    }

    /// There will be no head.
    pub(super) fn failed(&self, begun: Option<Instant>, unanswered: &Unanswered) {
        let Some(begun) = begun else { return };
        let now = Instant::now();
        let outcome = match unanswered.ended {
            Some(_) => Outcome::LocalOrigin(unanswered.refusal.reason),
            None => Outcome::Cancelled,
        };
        self.ended(now.saturating_duration_since(begun), outcome, now);
    }

    /// Tells the balancer and the breaker.
    pub(super) fn ended(&self, elapsed: Duration, outcome: Outcome, now: Instant) {
        if let Some(exchange) = &self.exchange {
            if let Some(working) = &exchange.working {
                working.observe(now, elapsed);
            }
            exchange.judge(outcome, elapsed, now);
        }
    }

    /// What `poll` comes to, within the time of an attempt that has a connection; `None`: not in time.
    pub(super) async fn in_time<T>(
        &mut self,
        begun: Option<Instant>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Option<T> {
        self.start_try_clock(begun);
        let came = std::future::poll_fn(|context| match poll(context) {
            Poll::Ready(came) => Poll::Ready(Some(came)),
            Poll::Pending => {
                self.try_clock.as_ref().map_or(Poll::Pending, |clock| clock.poll_over(context)).map(|()| None)
            }
        })
        .await;
        self.try_clock = None;
        if let Some(whole) = &self.whole {
            whole.rest(false);
        }
        came
    }

    /// The time begins as soon as the whole request is here. Where all of it is over sooner there is no other clock.
    fn start_try_clock(&mut self, begun: Option<Instant>) {
        let Some(each) = self.per_try else { return };
        let now = begun.map_or_else(tokio::time::Instant::now, tokio::time::Instant::from_std);
        if let Some(whole) = &self.whole {
            if whole.left(now) <= each {
                return;
            }
            whole.rest(true);
        }
        let upload = self.exchange.as_ref().and_then(|exchange| exchange.upload.clone());
        self.try_clock = Some(Clock::new(&self.worker.http.timers, each, upload, now));
    }

    pub(super) fn is_switch(&self, status: StatusCode) -> bool {
        match self.intent {
            Intent::Upgrade => status == StatusCode::SWITCHING_PROTOCOLS,
            Intent::Connect => status.is_success(),
            Intent::Continue | Intent::Plain => false,
        }
    }

    /// The request is over, its connection goes on as bytes.
    pub(super) fn switch(
        &self,
        head: Response<()>,
        endpoint: &Endpoint,
        server: Prefixed,
        open: Open,
    ) -> Answer {
        let mut record = self.destination.edge.connection(record::Protocol::Tcp);
        record.peer(endpoint.enter(&self.worker.mesh));
        head.map(|()| Arrived::Switch(Box::new(Switch { server, record, open })))
    }

    /// `CONNECT` to this sidecar as a proxy: bytes to wherever it says.
    async fn tunnel(&mut self) -> Result<Answer, Unanswered> {
        if self.outgoing.head.version == Version::HTTP_2 {
            // A stream cannot be handed to the copier of sockets; nobody tunnels through a sidecar by HTTP/2.
            return Err(Reason::ProtocolError.into());
        }
        let mut count = 1;
        loop {
            let endpoint = self.choose()?;
            let open = endpoint.pool.open(self.cluster.circuit(), false).ok_or(Reason::ConcurrencyLimited)?;
            match self.connect(&endpoint, open, Alpn::Opaque).await {
                Ok((stream, open)) => {
                    let server = Prefixed::new(stream, Bytes::new());
                    return Ok(self.switch(Response::new(()), &endpoint, server, open));
                }
                Err(_) if self.another(endpoint, count) => count += 1,
                Err(reason) => return Err(Unanswered::new(reason, Ended::Unconnected)),
            }
        }
    }
}
