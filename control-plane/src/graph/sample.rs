//! One thing that was observed on one edge: the unit in which traffic enters the graph.
//!
//! In: ingest makes samples from reports once both ends are named; the journal stores and replays them. Out:
//! [`Graph::apply`](super::Graph::apply) and [`Graph::retract`](super::Graph::retract).
//! Invariant: applying samples in any order gives the same graph, so late reports and replays need no care.

use std::net::IpAddr;
use std::sync::Arc;

use weft_wire::Reason;

use super::window::small;
use super::{Histogram, NodeKey, Protocol, Timestamp, Tls};

/// One observation on one edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Who called.
    pub source: NodeKey,
    /// Who was called.
    pub target: NodeKey,
    /// What they spoke.
    pub protocol: Protocol,
    /// How the bytes were protected.
    pub tls: Tls,
    /// The end of the interval it was observed in, by this program's clock.
    pub at: Timestamp,
    /// The service that was asked for, `name.namespace:port`, where there is one.
    pub service: Option<Arc<str>>,
    /// The caller's version, when known.
    pub source_version: Option<Arc<str>>,
    /// The callee's version, when known.
    pub target_version: Option<Arc<str>>,
    /// The caller's address when the *callee* reported: the sample is taken back if it turns out that the
    /// caller reports for itself.
    pub provisional: Option<IpAddr>,
    /// What was observed.
    pub measure: Measure,
}

/// What was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Measure {
    /// Requests of one route with one outcome; there are as many as `durations` counts.
    Requests {
        /// Request method.
        method: Arc<str>,
        /// Path template, or `/package.Service/Method` for gRPC.
        route: Arc<str>,
        /// What the response said.
        status: Status,
        /// Why they did not end well, iff they did not; see [`Sample::verdict`].
        error: Option<Arc<str>>,
        /// How long they took.
        durations: Histogram,
    },
    /// Connections that were opened and are not HTTP.
    Opened(u32),
    /// Connections that ended and were not HTTP; there are as many as `durations` counts.
    Closed {
        /// Why they did not end well, iff they did not; see [`Sample::verdict`].
        error: Option<Arc<str>>,
        /// How long they lived.
        durations: Histogram,
    },
    /// Bytes, as the caller sees them.
    Bytes {
        /// From caller to callee.
        sent: u64,
        /// From callee to caller.
        received: u64,
    },
    /// Requests whose route the sidecar folded into the overflow route.
    Folded(u32),
    /// Attempts beyond the first.
    Retries {
        /// That were sent.
        sent: u32,
        /// That the retry budget kept back.
        denied: u32,
    },
}

/// What a sample proves about the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// So many requests, or connections, were protected in the sample's way.
    Calls(u32),
    /// Something was, but nothing that is counted in calls.
    Trace,
    /// Nothing: perhaps not a byte left the caller's sidecar.
    Nothing,
}

/// A response's status: HTTP's, or gRPC's where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(u16);

impl Status {
    /// No status: the request failed before a response came.
    pub const NONE: Self = Self(0);
    const GRPC: u16 = 10_000;

    /// An HTTP status; [`NONE`](Self::NONE) when it is not one.
    #[must_use]
    pub const fn http(code: i64) -> Self {
        if code >= 100 && code <= 999 { Self(code as u16) } else { Self::NONE }
    }

    /// A gRPC status code; [`NONE`](Self::NONE) when it is not one.
    #[must_use]
    pub const fn grpc(code: i64) -> Self {
        if code >= 0 && code <= 16 { Self(Self::GRPC + code as u16) } else { Self::NONE }
    }

    /// The number the journal stores.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0
    }

    /// Reads what [`code`](Self::code) gave.
    #[must_use]
    pub const fn from_code(code: u16) -> Self {
        if code >= Self::GRPC { Self::grpc((code - Self::GRPC) as i64) } else { Self::http(code as i64) }
    }

    /// The word in the API: `200`, `grpc unavailable`, `none`.
    #[must_use]
    pub fn word(self) -> String {
        const NAMES: [&str; 17] = [
            "ok",
            "cancelled",
            "unknown",
            "invalid_argument",
            "deadline_exceeded",
            "not_found",
            "already_exists",
            "permission_denied",
            "resource_exhausted",
            "failed_precondition",
            "aborted",
            "out_of_range",
            "unimplemented",
            "internal",
            "unavailable",
            "data_loss",
            "unauthenticated",
        ];
        match self.0 {
            0 => "none".to_owned(),
            code if code >= Self::GRPC => {
                let name = NAMES.get(usize::from(code - Self::GRPC)).copied().unwrap_or("unknown");
                format!("grpc {name}")
            }
            code => code.to_string(),
        }
    }
}

/// What an end says about the callee.
///
/// Whoever called may go away for reasons of its own (a closed tab, an event stream that nobody watches any more, a
/// hedged request that lost), so its going is never the callee's failure. What it says depends on whether the
/// callee had begun to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It went well.
    Success,
    /// It failed.
    Failure,
    /// The caller ended it in the middle of the answer, as event streams end. A success; but it took as long as the
    /// caller pleased, so it is no latency.
    CutShort,
    /// The caller did not wait for the answer. Neither a success nor a failure; but the callee was waited for, so
    /// the wait is a latency, and many of them are a reason to look.
    GivenUp,
}

impl Sample {
    /// What its end says about the callee. Connections that are not HTTP end as it pleases either side, so one that
    /// its caller broke off is a success.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        const CANCELLED: &str = Reason::ClientCancelled.word();
        let (error, status) = match &self.measure {
            Measure::Requests { error, status, .. } => (error, Some(*status)),
            Measure::Closed { error, .. } => (error, None),
            Measure::Opened(_) | Measure::Bytes { .. } | Measure::Folded(_) | Measure::Retries { .. } => {
                return Verdict::Success;
            }
        };
        match (error.as_deref(), status) {
            (None, _) | (Some(CANCELLED), None) => Verdict::Success,
            (Some(CANCELLED), Some(Status::NONE)) => Verdict::GivenUp,
            (Some(CANCELLED), Some(_)) => Verdict::CutShort,
            (Some(_), _) => Verdict::Failure,
        }
    }

    /// What it proves about the wire. A call that a sidecar ended for a reason of its own may never have got as far as a
    /// connection; it must not count as one in plain text.
    pub(crate) fn evidence(&self) -> Evidence {
        let unsent = |error: &Option<Arc<str>>| {
            self.tls != Tls::Mutual && error.as_deref().is_some_and(|error| error.parse::<Reason>().is_ok())
        };
        match &self.measure {
            Measure::Requests { error, .. } | Measure::Closed { error, .. } if unsent(error) => {
                Evidence::Nothing
            }
            Measure::Requests { durations, .. } => Evidence::Calls(small(durations.count())),
            Measure::Opened(count) => Evidence::Calls(*count),
            Measure::Closed { .. } => Evidence::Trace,
            Measure::Bytes { sent, received } if *sent > 0 || *received > 0 => Evidence::Trace,
            Measure::Bytes { .. } | Measure::Folded(_) | Measure::Retries { .. } => Evidence::Nothing,
        }
    }

    /// Number of requests in it.
    #[must_use]
    pub fn requests(&self) -> u64 {
        match &self.measure {
            Measure::Requests { durations, .. } => durations.count(),
            _ => 0,
        }
    }
}
