//! What is counted apart: labels, the integers they are packed into, and the cells behind them.
//!
//! On a worker a request's labels are one `u64` ([`RequestKey`]); names appear when a series is created and
//! when somebody reads.

use std::borrow::Cow;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use weft_wire::{Reason, attribute};

use super::cell::{Counter, Histogram, Totals};
use super::{EdgeSpec, PeerIndex, PeerSpec, Protocol};
use crate::http::class::{self, GrpcStatus};
use crate::route::template::{Route, RouteId};

/// Cells that one worker writes and the ledger reads.
pub(crate) trait Series: Send + Sync + 'static {
    type Labels: Clone + Debug + Eq + Hash;
    type Totals: Clone + Debug + Default + Sum;
    /// What it is counted as now; a route can be folded into another.
    fn labels(&self) -> Self::Labels;
    /// Whether [`labels`](Self::labels) are no longer `old`. Cheap.
    fn moved(&self, old: &Self::Labels) -> bool;
    /// Whether no further event can belong here.
    fn closed(&self) -> bool {
        false
    }
    /// A number that grows with every event. Cheap.
    fn activity(&self) -> u64;
    /// Adds the cells to `totals`.
    fn add_to(&self, totals: &mut Self::Totals);
}

/// Totals that can be added up.
pub(crate) trait Sum {
    fn merge(&mut self, other: &Self);
    /// As [`Series::activity`], of the sum.
    fn activity(&self) -> u64;
}

impl Sum for Totals {
    fn merge(&mut self, other: &Self) {
        self.merge(other);
    }

    fn activity(&self) -> u64 {
        self.count()
    }
}

// --- requests --------------------------------------------------------------------------------------------

/// Request methods as telemetry tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Method {
    Connect,
    Delete,
    Get,
    Head,
    Options,
    Other,
    Patch,
    Post,
    Put,
    Trace,
}

impl Method {
    const WORDS: [&str; 10] = [
        "CONNECT",
        "DELETE",
        "GET",
        "HEAD",
        "OPTIONS",
        attribute::METHOD_OTHER,
        "PATCH",
        "POST",
        "PUT",
        "TRACE",
    ];

    pub(crate) fn of(method: &http::Method) -> Self {
        match method.as_str() {
            "GET" => Self::Get,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "HEAD" => Self::Head,
            "OPTIONS" => Self::Options,
            "CONNECT" => Self::Connect,
            "PATCH" => Self::Patch,
            "TRACE" => Self::Trace,
            _ => Self::Other,
        }
    }
}

/// Number of `network.protocol.version` in [`VERSIONS`].
pub(crate) fn version(version: http::Version) -> u8 {
    match version {
        http::Version::HTTP_2 => 2,
        http::Version::HTTP_3 => 3,
        http::Version::HTTP_11 => 1,
        _ => 0,
    }
}

const VERSIONS: [&str; 4] = ["1.0", "1.1", "2", "3"];

/// The gRPC side of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rpc {
    /// Not gRPC.
    None,
    /// gRPC that ended without a status, because there was no response.
    Unanswered,
    /// gRPC with its status.
    Status(GrpcStatus),
}

/// How a request was made and how it ended: 27 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Outcome(u32);

const RPC_NONE: u32 = 31;
const RPC_UNANSWERED: u32 = 30;
const REASON_NONE: u32 = 63;
const _: () = assert!(Reason::ALL.len() < REASON_NONE as usize);

impl Outcome {
    const BITS: u32 = 27;

    /// `status` is 0 when there was no response.
    pub(crate) fn new(method: Method, version: u8, status: u16, rpc: Rpc, reason: Option<Reason>) -> Self {
        let rpc = match rpc {
            Rpc::None => RPC_NONE,
            Rpc::Unanswered => RPC_UNANSWERED,
            Rpc::Status(status) => u32::from(status.code()),
        };
        let reason = reason.map_or(REASON_NONE, |reason| reason as u32);
        Self(
            method as u32
                | u32::from(version & 3) << 4
                | u32::from(status & 1023) << 6
                | rpc << 16
                | reason << 21,
        )
    }

    /// What is left of an outcome in an overflow series: whether it failed.
    pub(crate) fn folded(self) -> Self {
        let status = if self.error().is_some() { 500 } else { 200 };
        Self::new(Method::Other, 1, status, Rpc::None, None)
    }

    pub(crate) fn method(self) -> &'static str {
        Method::WORDS[(self.0 & 15) as usize]
    }

    pub(crate) fn version(self) -> &'static str {
        VERSIONS[(self.0 >> 4 & 3) as usize]
    }

    pub(crate) fn status(self) -> Option<u16> {
        match (self.0 >> 6 & 1023) as u16 {
            0 => None,
            status => Some(status),
        }
    }

    pub(crate) fn is_rpc(self) -> bool {
        self.0 >> 16 & 31 != RPC_NONE
    }

    pub(crate) fn grpc(self) -> Option<GrpcStatus> {
        match self.0 >> 16 & 31 {
            RPC_NONE | RPC_UNANSWERED => None,
            code => Some(GrpcStatus::from_code(code as u8)),
        }
    }

    pub(crate) fn reason(self) -> Option<Reason> {
        Reason::ALL.get((self.0 >> 21 & 63) as usize).copied()
    }

    /// `error.type`: present iff the request failed.
    pub(crate) fn error(self) -> Option<Cow<'static, str>> {
        if let Some(reason) = self.reason() {
            return Some(reason.word().into());
        }
        if let Some(status) = self.grpc() {
            return status.failed().then(|| status.word().into());
        }
        let status = self.status()?;
        let failed = http::StatusCode::from_u16(status).is_ok_and(class::failed);
        failed.then(|| status.to_string().into())
    }

    /// Whether there is an [`error`](Self::error), without making its text.
    pub(crate) fn failed(self) -> bool {
        self.reason().is_some()
            || match self.grpc() {
                Some(status) => status.failed(),
                None => {
                    self.status().and_then(|s| http::StatusCode::from_u16(s).ok()).is_some_and(class::failed)
                }
            }
    }
}

/// A request's labels inside one edge of one worker: 22 bits of route, 14 of peer, 27 of outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestKey(pub(crate) u64);

impl RequestKey {
    pub(crate) fn new(route: RouteId, peer: PeerIndex, outcome: Outcome) -> Self {
        let peer_and_route = u64::from(peer.0) | u64::from(route.0) << PeerIndex::BITS;
        Self(peer_and_route << Outcome::BITS | u64::from(outcome.0))
    }
}

/// A request's labels, by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RequestLabels {
    pub(crate) edge: Arc<EdgeSpec>,
    pub(crate) peer: Arc<PeerSpec>,
    pub(crate) route: Arc<str>,
    pub(crate) outcome: Outcome,
}

#[derive(Debug)]
pub(crate) struct RequestSeries {
    pub(crate) edge: Arc<EdgeSpec>,
    pub(crate) peer: Arc<PeerSpec>,
    pub(crate) route: Arc<Route>,
    pub(crate) outcome: Outcome,
    pub(crate) duration: Histogram,
}

impl Series for RequestSeries {
    type Labels = RequestLabels;
    type Totals = Totals;

    fn labels(&self) -> RequestLabels {
        RequestLabels {
            edge: Arc::clone(&self.edge),
            peer: Arc::clone(&self.peer),
            route: Arc::clone(self.route.current().name()),
            outcome: self.outcome,
        }
    }

    fn moved(&self, old: &RequestLabels) -> bool {
        self.route.is_folded() && self.route.current().name() != &old.route
    }

    fn closed(&self) -> bool {
        self.route.is_folded()
    }

    fn activity(&self) -> u64 {
        self.duration.count()
    }

    fn add_to(&self, totals: &mut Totals) {
        self.duration.add_to(totals);
    }
}

// --- bytes and connections -------------------------------------------------------------------------------

/// What bytes and connections are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FlowLabels {
    pub(crate) edge: Arc<EdgeSpec>,
    pub(crate) peer: Arc<PeerSpec>,
    pub(crate) protocol: Protocol,
}

/// Bytes and other sums of one peer on one edge.
#[derive(Debug)]
pub(crate) struct FlowSeries {
    pub(crate) labels: FlowLabels,
    pub(crate) to_server: Counter,
    pub(crate) to_client: Counter,
    /// Connections opened that are not HTTP.
    pub(crate) opened: Counter,
    /// Requests whose route was folded.
    pub(crate) folded: Counter,
    /// Attempts beyond a request's first.
    pub(crate) retried: Counter,
    /// Further attempts that the budget did not allow.
    pub(crate) retry_denied: Counter,
}

impl FlowSeries {
    pub(crate) fn new(labels: FlowLabels) -> Self {
        Self {
            labels,
            to_server: Counter::default(),
            to_client: Counter::default(),
            opened: Counter::default(),
            folded: Counter::default(),
            retried: Counter::default(),
            retry_denied: Counter::default(),
        }
    }
}

/// What [`FlowSeries`] held at some time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FlowTotals {
    pub(crate) to_server: u64,
    pub(crate) to_client: u64,
    pub(crate) opened: u64,
    pub(crate) folded: u64,
    pub(crate) retried: u64,
    pub(crate) retry_denied: u64,
}

impl Sum for FlowTotals {
    fn merge(&mut self, other: &Self) {
        self.to_server += other.to_server;
        self.to_client += other.to_client;
        self.opened += other.opened;
        self.folded += other.folded;
        self.retried += other.retried;
        self.retry_denied += other.retry_denied;
    }

    fn activity(&self) -> u64 {
        self.to_server + self.to_client + self.opened + self.folded + self.retried + self.retry_denied
    }
}

impl Series for FlowSeries {
    type Labels = FlowLabels;
    type Totals = FlowTotals;

    fn labels(&self) -> FlowLabels {
        self.labels.clone()
    }

    fn moved(&self, _: &FlowLabels) -> bool {
        false
    }

    fn activity(&self) -> u64 {
        let requests = self.folded.get() + self.retried.get() + self.retry_denied.get();
        self.to_server.get() + self.to_client.get() + self.opened.get() + requests
    }

    fn add_to(&self, totals: &mut FlowTotals) {
        totals.to_server += self.to_server.get();
        totals.to_client += self.to_client.get();
        totals.opened += self.opened.get();
        totals.folded += self.folded.get();
        totals.retried += self.retried.get();
        totals.retry_denied += self.retry_denied.get();
    }
}

/// What ended connections are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionLabels {
    pub(crate) flow: FlowLabels,
    pub(crate) reason: Option<Reason>,
}

/// Connections that were not HTTP and have ended.
#[derive(Debug)]
pub(crate) struct ConnectionSeries {
    pub(crate) labels: ConnectionLabels,
    pub(crate) duration: Histogram,
}

impl Series for ConnectionSeries {
    type Labels = ConnectionLabels;
    type Totals = Totals;

    fn labels(&self) -> ConnectionLabels {
        self.labels.clone()
    }

    fn moved(&self, _: &ConnectionLabels) -> bool {
        false
    }

    fn activity(&self) -> u64 {
        self.duration.count()
    }

    fn add_to(&self, totals: &mut Totals) {
        self.duration.add_to(totals);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_outcome_says_what_was_packed(
            method in 0_usize..10, version in 0_u8..4, status in 0_u16..1000, rpc in 0_u8..19, reason in 0..Reason::ALL.len() + 1,
        ) {
            let methods = [
                Method::Connect, Method::Delete, Method::Get, Method::Head, Method::Options, Method::Other,
                Method::Patch, Method::Post, Method::Put, Method::Trace,
            ];
            let reason = Reason::ALL.get(reason).copied();
            let packed = match rpc {
                17 => Rpc::None,
                18 => Rpc::Unanswered,
                code => Rpc::Status(GrpcStatus::from_code(code)),
            };
            let outcome = Outcome::new(methods[method], version, status, packed, reason);
            prop_assert_eq!(outcome.method(), Method::WORDS[method]);
            prop_assert_eq!(outcome.version(), VERSIONS[version as usize]);
            prop_assert_eq!(outcome.status().unwrap_or(0), status);
            prop_assert_eq!(outcome.grpc().map(GrpcStatus::code), (rpc < 17).then_some(rpc));
            prop_assert_eq!(outcome.is_rpc(), rpc != 17);
            prop_assert_eq!(outcome.reason(), reason);
            prop_assert_eq!(outcome.failed(), outcome.error().is_some());
            prop_assert_eq!(outcome.folded().failed(), outcome.failed());
            prop_assert!(outcome.0 < 1 << Outcome::BITS);
        }
    }

    #[test]
    fn the_error_is_named_by_who_knows_best() {
        let error = |status, rpc, reason| Outcome::new(Method::Get, 1, status, rpc, reason).error();
        let unavailable = Rpc::Status(GrpcStatus::from_code(14));
        assert_eq!(error(200, Rpc::None, None), None);
        assert_eq!(error(404, Rpc::None, None), None);
        assert_eq!(error(500, Rpc::None, None).as_deref(), Some("500"));
        assert_eq!(error(200, unavailable, None).as_deref(), Some("unavailable"));
        assert_eq!(error(200, Rpc::Status(GrpcStatus::from_code(5)), None), None);
        assert_eq!(error(503, Rpc::None, Some(Reason::CircuitOpen)).as_deref(), Some("circuit_open"));
        assert_eq!(
            error(0, Rpc::Unanswered, Some(Reason::ConnectRefused)).as_deref(),
            Some("connect_refused")
        );
    }

    #[test]
    fn keys_of_different_requests_differ() {
        let outcome = Outcome::new(Method::Get, 1, 200, Rpc::None, None);
        let key = |route, peer| RequestKey::new(RouteId(route), PeerIndex(peer), outcome).0;
        let last = (1 << 22) - 1;
        let keys = [
            key(0, 0),
            key(1, 0),
            key(0, 1),
            key(last, 0),
            key(0, PeerIndex::MAX),
            key(last, PeerIndex::MAX),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
