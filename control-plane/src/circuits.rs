//! Every circuit of the mesh, as the sidecars that watch it see it.
//!
//! In: [`Sighting`]s (the gauge `weft.circuit.state` of each report) and [`Transition`]s (log records), with `now`
//! passed in. Out: the [`Document`] that `/api/circuits` shows, and [`Standing`]s for the graph.
//!
//! A circuit is one (kind, cluster, endpoint); each proxy instance that calls it keeps its own, so a circuit here
//! has *observers*. Its state is the worst of theirs, its counts are their sum.
//!
//! Invariants: nothing here does IO or reads a clock; of each observer the newest word counts, in whatever order
//! words arrive; a transition is shown once however often it is delivered; every table has a bound, and what does
//! not fit is counted.
//! Surprise: sidecars keep quiet about circuits that are closed and idle. So a closed circuit stays for
//! [`IDLE_MAX`] after its last traffic, but one that is *not* closed is taken away when its observer reports
//! without it for [`SILENT_MAX`]: the endpoint is gone.
//! Non-goal: history. Circuits are not journaled; after a restart the next report, a second later, tells all.

mod cause;
mod shared;
mod table;
mod view;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use weft_wire::WorkloadId;

use crate::graph::Timestamp;
pub use crate::graph::circuit::{Standing, State};
pub use shared::SharedCircuits;
pub use table::Circuits;
pub use view::Document;

/// An observer that said nothing for this long is not heard of any more: ten reports. A circuit that is not closed
/// and is not in its observer's reports for as long is gone.
pub const SILENT_MAX: Duration = Duration::from_secs(10);
/// The same for an observer whose configuration stream is gone as well: three reports.
pub const GONE_MAX: Duration = Duration::from_secs(3);
/// How long a circuit without traffic is shown as closed: the longest window in which traffic was there to see.
pub const IDLE_MAX: Duration = Duration::from_secs(300);

/// How long an observer is remembered after its last word, so that a transition that it repeats after an outage is
/// not shown twice.
pub const REMEMBERED: Duration = Duration::from_secs(3_600);

/// What the table holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Circuits with each of their observers, at about 400 bytes: 40 MB. A thousand sidecars that each call
    /// twenty services of five endpoints.
    pub observations: usize,
    /// Observers, at about 300 bytes: as many as there may be configuration streams.
    pub observers: usize,
    /// Transitions, at about 600 bytes: what the answer shows, and five times that for filters to come.
    pub events: usize,
}

impl Limits {
    /// What a control plane for a thousand sidecars needs.
    pub const STANDARD: Self = Self { observations: 100_000, observers: 50_000, events: 1_000 };
}

/// What the table had to leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Sightings for which there was no room.
    pub dropped: u64,
    /// Transitions that were delivered more than once.
    pub repeated: u64,
    /// Transitions that were shown.
    pub transitions: u64,
}

/// What a circuit guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One address.
    Endpoint,
    /// A cluster's concurrency.
    Limit,
    /// All of a cluster.
    Service,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Endpoint, Self::Limit, Self::Service];

    /// The word in reports and in the API.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Limit => "limit",
            Self::Service => "service",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// Names a circuit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// What it guards.
    pub kind: Kind,
    /// The cluster it belongs to.
    pub cluster: Arc<str>,
    /// The address it guards, of [`Kind::Endpoint`].
    pub endpoint: Option<SocketAddr>,
}

impl fmt::Display for Id {
    /// `endpoint|orders.shop:8080|10.0.0.7:8080`, `service|orders.shop:8080`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}", self.kind.word(), self.cluster)?;
        match self.endpoint {
            Some(endpoint) => write!(f, "|{endpoint}"),
            None => Ok(()),
        }
    }
}

/// Who answers at a circuit's address, when known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Callee {
    /// The workload.
    pub workload: Option<WorkloadId>,
    /// Its version.
    pub version: Option<Arc<str>>,
    /// The pod's name.
    pub pod: Option<Arc<str>>,
}

/// A proxy instance that watches circuits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observer {
    /// The instance.
    pub instance: Arc<str>,
    /// What it stands in front of.
    pub workload: WorkloadId,
    /// Its pod's name, when there is a pod.
    pub pod: Option<Arc<str>>,
}

/// A circuit at one moment, in the eyes of one observer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Which circuit.
    pub id: Id,
    /// Who answers there.
    pub callee: Callee,
    /// Its state.
    pub state: State,
    /// Why it is, or last was, not closed: a word of the sidecar's.
    pub cause: Option<Arc<str>>,
    /// What the cause's measure was compared with: errors in a row, percent.
    pub threshold: Option<u64>,
    /// When it came into its state.
    pub since: Option<Timestamp>,
    /// When it lets something through again.
    pub next_probe: Option<Timestamp>,
    /// Calls in its window.
    pub calls: u64,
    /// Failed calls in its window.
    pub errors: u64,
    /// Slow calls in its window.
    pub slow: u64,
    /// When it was seen like this.
    pub at: Timestamp,
}

/// A circuit that changed its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Position in its observer's series, from 1.
    pub sequence: u64,
    /// The state before.
    pub from: State,
    /// The circuit just after.
    pub sighting: Sighting,
}

/// The distance between a sender's clock and this program's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Skew(i64);

impl Skew {
    /// What was sent at `sent` by the sender's clock arrived at `received` by this program's.
    #[must_use]
    pub const fn between(sent: Timestamp, received: Timestamp) -> Self {
        Self(received.millis().wrapping_sub(sent.millis()) as i64)
    }

    /// A moment of the sender's clock by this program's. Moments to come stay to come.
    #[must_use]
    pub const fn place(self, at: Timestamp) -> Timestamp {
        Timestamp::from_millis(at.millis().saturating_add_signed(self.0))
    }
}

impl Sighting {
    /// The same by this program's clock. Nobody has seen anything that is still to come.
    #[must_use]
    pub fn placed(mut self, skew: Skew, received: Timestamp) -> Self {
        self.at = skew.place(self.at).min(received);
        self.since = self.since.map(|at| skew.place(at).min(received));
        self.next_probe = self.next_probe.map(|at| skew.place(at));
        self
    }
}

#[cfg(test)]
mod tests;
