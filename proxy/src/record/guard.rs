//! The guards: one per request or connection, recorded exactly once, on drop.
//!
//! Invariant: whatever way a request ends, by its last byte, an error, or because the future that served it was
//! dropped, its guard is dropped once, and that is the only place that counts it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode};
use weft_wire::{DecidedBy, Reason, header};

use super::access_log;
use super::series::{Method, Outcome, Rpc, version};
use super::shard::Edge;
use super::trace::{self, TraceContext};
use super::{Direction, PeerIndex, Protocol, RuleName};
use crate::http::class::{self, GrpcStatus};
use crate::route::template::{Kind, RouteId};

/// One request. Records itself exactly once, on drop; dropped before [`complete`](Self::complete) or
/// [`failed`](Self::failed) it records `client_cancelled`.
#[derive(Debug)]
#[must_use = "dropping the record ends the request as client_cancelled"]
pub struct RequestRecord {
    edge: Rc<Edge>,
    started: Instant,
    route: RouteId,
    peer: PeerIndex,
    method: Method,
    version: u8,
    is_grpc: bool,
    complete: bool,
    /// 0 until there is a response.
    status: u16,
    grpc: Option<GrpcStatus>,
    failure: Option<(Reason, DecidedBy)>,
    /// The rule and the backend, where a rule chose one.
    rule: Option<Arc<RuleName>>,
    /// The proxy that answered without a failure, because a rule says so.
    by: Option<DecidedBy>,
    request_bytes: u64,
    response_bytes: u64,
    trace: Option<TraceContext>,
    /// Only when it may be logged.
    path: Option<PathAndQuery>,
    /// Asked by the platform whether the app is well: counted, never logged.
    probe: bool,
    /// How often it was sent.
    attempts: u32,
    /// A copy that nobody waits for: neither counted nor logged.
    copied: bool,
}

impl RequestRecord {
    pub(crate) fn start(edge: Rc<Edge>, parts: &Parts) -> Self {
        let is_grpc = class::is_grpc(&parts.headers);
        let kind = if is_grpc { Kind::Grpc } else { Kind::Http };
        let route = edge.routes.borrow_mut().find(parts.uri.path(), kind);
        let logging = !edge.core.access_log.is_off();
        let path = if logging { parts.uri.path_and_query().cloned() } else { None };
        let probe = logging && edge.spec.direction == Direction::Inbound && is_probe(&parts.headers);
        Self {
            started: Instant::now(),
            route,
            peer: PeerIndex::UNKNOWN,
            method: Method::of(&parts.method),
            version: version(parts.version),
            is_grpc,
            complete: false,
            status: 0,
            grpc: None,
            failure: None,
            rule: None,
            by: None,
            request_bytes: 0,
            response_bytes: 0,
            trace: None,
            path,
            probe,
            attempts: 1,
            copied: false,
            edge,
        }
    }

    /// Rewrites trace headers and the request id, and remembers the trace for the access log.
    pub fn propagate(&mut self, headers: &mut HeaderMap) -> TraceContext {
        let context = trace::propagate(headers, self.edge.core.ratio);
        self.edge.core.traced(self.edge.spec.direction, &context);
        self.trace = Some(context);
        context
    }

    /// The endpoint that was chosen; call again when a retry chooses another. Bytes count for the endpoint that
    /// was chosen when they passed.
    pub fn peer(&mut self, peer: PeerIndex) {
        self.peer = peer;
    }

    /// When the request came.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// It is a copy of another request, whose caller does not wait for this one: it counts as no call.
    pub fn ignore(&mut self) {
        self.copied = true;
    }

    /// It is sent once more.
    pub fn retried(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
        self.edge.record_flow(self.peer, Protocol::Http, |flow| flow.retried.add(1));
    }

    /// It would have been sent once more, had the budget allowed it.
    pub fn retry_denied(&mut self) {
        self.edge.record_flow(self.peer, Protocol::Http, |flow| flow.retry_denied.add(1));
    }

    /// The response's head as the client will see it. [`failed`](Self::failed) wins over what it says.
    pub fn response(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = status.as_u16();
        // The other sidecar's reason is the reason here as well. Only towards the callee: what an app sends in
        // its own answers is not to be believed about this proxy.
        if self.failure.is_none()
            && (status.is_client_error() || status.is_server_error() || self.is_grpc)
            && self.edge.spec.direction == Direction::Outbound
        {
            self.failure = headers.get(header::REASON).and_then(decided);
        }
        if self.is_grpc {
            self.grpc = class::grpc_status(headers);
        }
    }

    /// The response's trailers (gRPC status).
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if self.is_grpc && self.grpc.is_none() {
            self.grpc = class::grpc_status(trailers);
        }
    }

    /// The request failed for a reason that a proxy decided, or the connection broke. The first reason counts:
    /// what follows is its consequence.
    pub fn failed(&mut self, reason: Reason, by: DecidedBy) {
        self.failure.get_or_insert((reason, by));
    }

    /// The rule that routed the request, and the backend it chose.
    pub fn rule(&mut self, name: &Arc<RuleName>) {
        self.rule = Some(Arc::clone(name));
    }

    /// A proxy answered because a rule says so; no failure in itself.
    pub fn decided(&mut self, by: DecidedBy) {
        self.by = Some(by);
    }

    /// Counts request body bytes, as they pass.
    pub fn request_bytes(&mut self, bytes: u64) {
        self.request_bytes += bytes;
        if self.copied {
            return;
        }
        self.edge.record_flow(self.peer, Protocol::Http, |flow| flow.to_server.add(bytes));
    }

    /// Counts response body bytes, as they pass.
    pub fn response_bytes(&mut self, bytes: u64) {
        self.response_bytes += bytes;
        if self.copied {
            return;
        }
        self.edge.record_flow(self.peer, Protocol::Http, |flow| flow.to_client.add(bytes));
    }

    /// The response ended cleanly. What the client does afterwards no longer matters.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    fn outcome(&self) -> Outcome {
        let cancelled = (!self.complete).then_some(Reason::ClientCancelled);
        let reason = self.failure.map(|(reason, _)| reason).or(cancelled);
        let rpc = match (self.is_grpc, self.grpc, StatusCode::from_u16(self.status)) {
            (false, ..) => Rpc::None,
            (true, Some(status), _) => Rpc::Status(status),
            // Only an answer that ended well can be said to lack its status.
            (true, None, Ok(status)) if reason.is_none() => Rpc::Status(GrpcStatus::from_http(status)),
            (true, ..) => Rpc::Unanswered,
        };
        Outcome::new(self.method, self.version, self.status, rpc, reason)
    }
}

/// The kubelet's probes, other sidecars' checks, and those of load balancers that call themselves health checkers.
fn is_probe(headers: &HeaderMap) -> bool {
    let agent = headers.get(http::header::USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
    let probes = [&b"kube-probe/"[..], b"weft-health-check/", b"GoogleHC/", b"ELB-HealthChecker/"];
    probes.iter().any(|probe| agent.starts_with(probe))
}

/// Reads `circuit_open; by=server_proxy`.
fn decided(value: &HeaderValue) -> Option<(Reason, DecidedBy)> {
    let (reason, by) = value.to_str().ok()?.split_once("; by=")?;
    let by = [DecidedBy::ClientProxy, DecidedBy::ServerProxy, DecidedBy::App]
        .into_iter()
        .find(|b| b.word() == by)?;
    Some((reason.parse().ok()?, by))
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if self.copied {
            return;
        }
        let elapsed = self.started.elapsed();
        let outcome = self.outcome();
        self.edge.record_request(self.route, self.peer, outcome, elapsed);
        let given_up = outcome.reason() == Some(Reason::ClientCancelled);
        // What was given up before there was an answer says nothing about the backend.
        if let Some(rule) = self.rule.as_ref().filter(|_| !given_up || self.status != 0) {
            self.edge.record_rule(rule, outcome.failed() && !given_up, elapsed);
        }
        if self.route == RouteId::OTHER {
            self.edge.record_flow(self.peer, Protocol::Http, |flow| flow.folded.add(1));
        }
        let log = &self.edge.core.access_log;
        if !self.probe && log.wants(outcome, elapsed, self.trace) {
            let core = &self.edge.core;
            let sent = log.send(|ended| access_log::Entry {
                ended,
                elapsed,
                edge: Arc::clone(&self.edge.spec),
                peer: core.peer(self.peer),
                route: self.edge.routes.borrow().learner().route(self.route),
                path: self.path.take(),
                outcome,
                decided_by: self.failure.map(|(_, by)| by).or(self.by),
                attempts: self.attempts,
                request_bytes: self.request_bytes,
                response_bytes: self.response_bytes,
                trace: self.trace,
            });
            if !sent {
                core.limit(super::Limit::AccessLog);
            }
        }
    }
}

/// One connection that is not HTTP. Dropping it records its end.
#[derive(Debug)]
#[must_use = "dropping the record ends the connection"]
pub struct ConnectionRecord {
    edge: Rc<Edge>,
    started: Instant,
    protocol: Protocol,
    peer: PeerIndex,
    counted: Cell<bool>,
    reason: Option<Reason>,
}

impl ConnectionRecord {
    pub(crate) fn start(edge: Rc<Edge>, protocol: Protocol) -> Self {
        Self {
            edge,
            started: Instant::now(),
            protocol,
            peer: PeerIndex::UNKNOWN,
            counted: Cell::new(false),
            reason: None,
        }
    }

    /// The endpoint that was chosen, or [`PeerIndex::UNKNOWN`]. Counts the connection as open, so call it also
    /// when nothing is known about the other side.
    pub fn peer(&mut self, peer: PeerIndex) {
        self.peer = peer;
        self.count_open();
    }

    /// Bytes from the client to the server, as they pass.
    pub fn to_server(&self, bytes: u64) {
        self.count_open();
        self.edge.record_flow(self.peer, self.protocol, |flow| flow.to_server.add(bytes));
    }

    /// Bytes from the server to the client, as they pass.
    pub fn to_client(&self, bytes: u64) {
        self.count_open();
        self.edge.record_flow(self.peer, self.protocol, |flow| flow.to_client.add(bytes));
    }

    /// The connection ended badly; the first reason counts.
    pub fn failed(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
    }

    /// How long it has been open.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn count_open(&self) {
        if !self.counted.replace(true) {
            self.edge.record_flow(self.peer, self.protocol, |flow| flow.opened.add(1));
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        self.count_open();
        self.edge.record_connection(self.peer, self.protocol, self.reason, self.started.elapsed());
    }
}
