//! Circuits of clusters and endpoints, shared by all threads: what the pure rules of [`super::breaker`] act on.
//!
//! In: starts and outcomes of calls from workers, results of active checks, sweeps from the admin thread. Out: leave to
//! go on or a reason not to, endpoints' availability, and transitions for whoever watches.
//!
//! ```text
//! worker ── admit, report ──► atomics ◄── sweep, checks ── admin thread
//!                               └─ transitions ──► bounded queue ──► log, report
//! ```
//!
//! Invariants: the request path touches atomics only; whoever wins the compare-and-swap of a state tells of the
//! transition, so each is told once; a guard gives back on drop what it holds. A worker notices a change of availability
//! by one number ([`ClusterState::generation`]).
//! Surprise: the locks in here guard the *lists* of clusters and endpoints, which change when configuration does.
//! Non-goal: choosing among what is available, and what to do when nothing is (`balance`).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc};

mod cluster;
mod endpoint;
mod journal;
mod limit;
mod metrics;
mod permit;
mod service;
mod sweep;
mod view;
mod window;

pub use super::breaker::Outcome;
pub use cluster::{ClusterState, Gauge};
pub use endpoint::EndpointState;
pub use journal::Transition;
pub use metrics::Metrics;
pub use permit::{Admission, ConnectionPermit, PendingPermit, RetryPermit};
pub use view::{Callee, Change, Circuit, SHOWN_MAX, View};

use cluster::Core;
use journal::Journal;

/// Clusters that have state at most: two for each destination a sidecar may subscribe to. Beyond it a cluster is
/// guarded all the same, but by itself on each worker, and nobody sees it.
pub const CLUSTERS_MAX: usize = 4096;

/// All circuits of this process.
pub struct Circuits {
    clusters: Mutex<HashMap<Box<str>, Arc<ClusterState>>>,
    shared: Arc<Shared>,
}

/// What circuits need of their surroundings.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) journal: Journal,
    /// Wakes whoever sweeps: something new has an earlier time.
    pub(crate) changed: Notify,
    /// Wakes whoever checks: a cluster's settings or endpoints are other ones.
    pub(crate) adopted: Notify,
    /// Clusters and endpoints that found no place.
    pub(crate) overflowed: AtomicU64,
}

impl Circuits {
    /// None yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let shared = Shared {
            clock: Clock::start(),
            journal: Journal::new(),
            changed: Notify::new(),
            adopted: Notify::new(),
            overflowed: AtomicU64::new(0),
        };
        Arc::new(Self { clusters: Mutex::default(), shared: Arc::new(shared) })
    }

    /// The state of the cluster of this name: the same for all who ask, for as long as somebody keeps it.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Arc<ClusterState> {
        let mut clusters = lock(&self.clusters);
        if let Some(known) = clusters.get(name) {
            return Arc::clone(known);
        }
        let new = Arc::new(ClusterState::new(Core::new(name, &self.shared)));
        if clusters.len() >= CLUSTERS_MAX {
            clusters.retain(|_, cluster| Arc::strong_count(cluster) > 1);
        }
        if clusters.len() < CLUSTERS_MAX {
            clusters.insert(name.into(), Arc::clone(&new));
        } else {
            self.shared.overflowed.fetch_add(1, Ordering::Relaxed);
        }
        new
    }

    /// The state of a destination that no control plane describes: nothing is limited, nobody is judged.
    #[must_use]
    pub fn unguarded(&self) -> Arc<ClusterState> {
        Arc::new(ClusterState::new(Core::new("", &self.shared)))
    }

    /// Every cluster, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<ClusterState>> {
        lock(&self.clusters).values().cloned().collect()
    }

    /// Sees which limits bite, and tells of those that begin or cease to: once a second, from one thread.
    pub(crate) fn look_at_limits(&self, now: Instant) {
        let now = self.shared.clock.millis(now);
        for cluster in self.all() {
            let core = cluster.core();
            core.limit.look(core, now);
        }
    }

    /// What transitions are told to, once.
    pub(crate) fn listen(&self) -> Option<mpsc::Receiver<Transition>> {
        self.shared.journal.listen()
    }

    /// Transitions that found no room on their way to whoever listens.
    pub(crate) fn untold(&self) -> u64 {
        self.shared.journal.dropped()
    }

    /// A cluster's settings or endpoints have become other ones since the last time; for one who waits.
    pub(crate) async fn clusters_changed(&self) {
        self.shared.adopted.notified().await;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl fmt::Debug for Circuits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circuits").field("clusters", &lock(&self.clusters).len()).finish_non_exhaustive()
    }
}

/// Milliseconds since the process began to have circuits, and what time that was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    born: Instant,
    /// Unix nanoseconds.
    born_at: u64,
}

impl Clock {
    fn start() -> Self {
        let born_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        Self { born: Instant::now(), born_at }
    }

    /// Milliseconds at `now`.
    pub(crate) fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_millis() as u64
    }

    /// Unix nanoseconds of a time in milliseconds.
    pub(crate) fn unix_nanos(&self, millis: u64) -> u64 {
        self.born_at.saturating_add(millis.saturating_mul(1_000_000))
    }
}

/// What these locks guard is valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
