//! One cluster: what is in progress, the service's circuit, its endpoints.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwapOption, Guard};
use weft_wire::Reason;

use super::super::breaker::circuit::Era;
use super::super::breaker::{Cause, Kind, Outcome, Position, limits};
use super::endpoint::EndpointState;
use super::limit::Limit;
use super::permit::{Admission, ConnectionPermit, Held, PendingPermit, RetryPermit};
use super::service::Service;
use super::{Shared, lock};
use crate::xds;

/// What is limited; also the position in [`Core::held`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauge {
    /// Open connections.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests in progress.
    Requests,
    /// Attempts beyond the first.
    Retries,
}

impl Gauge {
    /// All of them, in declaration order.
    pub const ALL: [Self; 4] = [Self::Connections, Self::Pending, Self::Requests, Self::Retries];

    pub(crate) fn cause(self) -> Cause {
        match self {
            Self::Connections => Cause::MaxConnections,
            Self::Pending => Cause::MaxPendingRequests,
            Self::Requests => Cause::MaxRequests,
            Self::Retries => Cause::MaxRetries,
        }
    }

    /// How much is allowed now.
    pub(crate) fn max(self, core: &Core, limits: &limits::Settings) -> u32 {
        match self {
            Self::Connections => limits.max_connections,
            Self::Pending => limits.max_pending_requests,
            Self::Requests => limits.max_requests,
            Self::Retries => {
                let in_progress = core.held(Self::Requests).saturating_add(core.held(Self::Pending));
                limits.retries.allowed(in_progress)
            }
        }
    }
}

/// A cluster's state, shared by workers and the admin thread.
pub struct ClusterState {
    core: Arc<Core>,
    endpoints: Mutex<HashMap<SocketAddr, Arc<EndpointState>>>,
    pub(super) swept: Swept,
}

impl ClusterState {
    pub(super) fn new(core: Core) -> Self {
        Self { core: Arc::new(core), endpoints: Mutex::default(), swept: Swept::default() }
    }

    /// Takes over a cluster's settings and list of endpoints; what was learned stays. Without it nothing is limited and
    /// nobody is judged.
    pub fn adopt(&self, cluster: &Arc<xds::Cluster>) {
        self.core.origin.store(Some(Arc::clone(cluster)));
        // New settings may make somebody available.
        self.core.availability_changed();
        self.core.shared.changed.notify_one();
        self.core.shared.adopted.notify_one();
    }

    /// Endpoints have left the cluster's list: what is known of them can be forgotten.
    pub fn shrunk(&self) {
        self.core.shared.changed.notify_one();
    }

    /// The state of an endpoint: the same for all who ask, for as long as the address is in the cluster. Ask again when
    /// the cluster's endpoints have changed: an address that had gone comes back as a new one.
    #[must_use]
    pub fn endpoint(&self, address: SocketAddr) -> Arc<EndpointState> {
        let mut endpoints = lock(&self.endpoints);
        let known = endpoints.entry(address).or_insert_with(|| {
            self.core.shared.adopted.notify_one();
            Arc::new(EndpointState::new(address, Arc::clone(&self.core)))
        });
        Arc::clone(known)
    }

    /// Grows whenever an endpoint's availability changes.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.core.generation.load(Ordering::Acquire)
    }

    /// Leave for a call. The guard counts as a request in progress until it is dropped.
    ///
    /// # Errors
    /// [`Reason::CircuitOpen`] or [`Reason::ConcurrencyLimited`].
    pub fn admit(&self, now: Instant) -> Result<Admission, Reason> {
        let core = &self.core;
        let (max, circuit) = match &*core.origin() {
            None => (u32::MAX, None),
            Some(origin) => {
                core.used(now);
                (origin.breaking.limits.max_requests, origin.breaking.circuit)
            }
        };
        let held = Held::take(core, Gauge::Requests, max).ok_or(Reason::ConcurrencyLimited)?;
        let probe = match circuit {
            None => None,
            Some(settings) => core.circuit.admit(core, &settings, now)?,
        };
        Ok(Admission::new(held, now, probe))
    }

    /// Leave for an attempt beyond the first, by budget or number.
    #[must_use]
    pub fn retry(&self) -> Option<RetryPermit> {
        let core = &self.core;
        let max = match &*core.origin() {
            None => u32::MAX,
            Some(origin) => {
                let in_progress = core.held(Gauge::Requests).saturating_add(core.held(Gauge::Pending));
                origin.breaking.limits.retries.allowed(in_progress)
            }
        };
        Held::take(core, Gauge::Retries, max).map(RetryPermit)
    }

    /// Leave to wait for a connection.
    #[must_use]
    pub fn pending(&self) -> Option<PendingPermit> {
        let max = self
            .core
            .origin()
            .as_ref()
            .map_or(u32::MAX, |origin| origin.breaking.limits.max_pending_requests);
        Held::take(&self.core, Gauge::Pending, max).map(PendingPermit)
    }

    /// Leave to open a connection.
    #[must_use]
    pub fn connection(&self) -> Option<ConnectionPermit> {
        self.core.used_once();
        Held::take(&self.core, Gauge::Connections, self.connections_max()).map(ConnectionPermit)
    }

    /// The same for one who was refused and looks again: that is no further refusal.
    #[must_use]
    pub fn connection_at_last(&self) -> Option<ConnectionPermit> {
        Held::take_quietly(&self.core, Gauge::Connections, self.connections_max()).map(ConnectionPermit)
    }

    fn connections_max(&self) -> u32 {
        self.core.origin().as_ref().map_or(u32::MAX, |origin| origin.breaking.limits.max_connections)
    }

    /// A connection where the limit does not apply: the first of a worker to an endpoint, without which its requests
    /// could never be sent (as in Envoy).
    pub fn first_connection(&self) -> Option<ConnectionPermit> {
        self.core.used_once();
        Held::take(&self.core, Gauge::Connections, u32::MAX).map(ConnectionPermit)
    }

    /// How many of a limited kind are held.
    #[must_use]
    pub fn held(&self, gauge: Gauge) -> u32 {
        self.core.held(gauge)
    }

    /// Whether anything is held.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        Gauge::ALL.into_iter().any(|gauge| self.held(gauge) > 0)
    }

    /// Endpoints that are ejected.
    #[must_use]
    pub fn ejected(&self) -> u32 {
        self.core.ejected.load(Ordering::Acquire)
    }

    /// Position of the service's circuit.
    #[must_use]
    pub fn position(&self) -> Position {
        self.core.circuit.state().position
    }

    /// Whether it ever had a call or a connection.
    pub(crate) fn has_traffic(&self) -> bool {
        self.core.used.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Every endpoint anybody asked for, in no order.
    pub(crate) fn endpoints(&self) -> Vec<Arc<EndpointState>> {
        lock(&self.endpoints).values().cloned().collect()
    }

    /// Every endpoint anybody asked for, by address: where not all may be ejected, not a map's mood decides who is.
    pub(super) fn in_order(&self) -> Vec<Arc<EndpointState>> {
        let mut endpoints = self.endpoints();
        endpoints.sort_unstable_by_key(|endpoint| endpoint.address());
        endpoints
    }

    /// Forgets endpoints that are not in the cluster any more. Costs nothing worth mentioning where there are none.
    pub(super) fn forget(&self, now: u64) {
        let mut endpoints = lock(&self.endpoints);
        // Read under the lock: whoever asked for an endpoint before had seen a list that is seen here, or an older one.
        let origin = self.core.origin();
        let Some(list) = origin.as_ref().map(|origin| origin.endpoints()) else { return };
        let changed = self.swept.list.swap(list.generation, Ordering::Relaxed) != list.generation;
        // Somebody who still sees an older list may have asked for one that has left.
        if !changed && endpoints.len() <= list.list.len() {
            return;
        }
        let listed: HashSet<SocketAddr> = list.list.iter().map(|endpoint| endpoint.address).collect();
        let before = endpoints.len();
        endpoints.retain(|address, endpoint| {
            let kept = listed.contains(address);
            if !kept {
                endpoint.leave(now);
            }
            kept
        });
        if endpoints.len() < before {
            self.core.availability_changed();
        }
    }
}

impl fmt::Debug for ClusterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterState").field("name", &self.core.name).finish_non_exhaustive()
    }
}

/// Where the admin thread's sweeps of a cluster stand.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Millisecond in which the outlier detection's current interval began, plus one; 0 = none has.
    pub(super) interval: AtomicU64,
    /// Generation of the list whose leavers are forgotten.
    list: AtomicU64,
}

/// What a cluster's guards and endpoints refer to.
pub(crate) struct Core {
    pub(crate) name: Arc<str>,
    pub(crate) shared: Arc<Shared>,
    /// Settings and the list of endpoints, as last seen by a worker.
    origin: ArcSwapOption<xds::Cluster>,
    held: [AtomicU32; Gauge::ALL.len()],
    /// How often each limit refused something.
    refused: [AtomicU64; Gauge::ALL.len()],
    /// Endpoints that are ejected, and reservations to eject one.
    pub(super) ejected: AtomicU32,
    generation: AtomicU64,
    pub(crate) circuit: Service,
    /// Whether its limits bite.
    pub(crate) limit: Limit,
    /// Second of the circuits' clock in which somebody last called, plus one; 0 = never.
    used: AtomicU64,
    /// Active checks that failed and that passed.
    checks: [AtomicU64; 2],
    /// Transitions by kind and new position.
    transitions: [[AtomicU64; 3]; 3],
}

impl Core {
    pub(super) fn new(name: &str, shared: &Arc<Shared>) -> Self {
        Self {
            name: name.into(),
            shared: Arc::clone(shared),
            origin: ArcSwapOption::empty(),
            held: Default::default(),
            refused: Default::default(),
            ejected: AtomicU32::new(0),
            generation: AtomicU64::new(0),
            circuit: Service::default(),
            limit: Limit::default(),
            used: AtomicU64::new(0),
            checks: Default::default(),
            transitions: Default::default(),
        }
    }

    pub(crate) fn origin(&self) -> Guard<Option<Arc<xds::Cluster>>> {
        self.origin.load()
    }

    pub(crate) fn held(&self, gauge: Gauge) -> u32 {
        self.held[gauge as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self, gauge: Gauge) -> u64 {
        self.refused[gauge as usize].load(Ordering::Relaxed)
    }

    /// One more, unless `max` are held already.
    pub(super) fn take(&self, gauge: Gauge, max: u32) -> bool {
        let held = &self.held[gauge as usize];
        // Adding first and looking then lets two who come at once both be refused, never both be let in.
        if held.fetch_add(1, Ordering::Relaxed) < max {
            return true;
        }
        held.fetch_sub(1, Ordering::Relaxed);
        false
    }

    pub(super) fn refuse(&self, gauge: Gauge) {
        self.refused[gauge as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, gauge: Gauge) {
        self.held[gauge as usize].fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn availability_changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn used(&self, now: Instant) {
        let second = self.shared.clock.millis(now) / 1000 + 1;
        // Written once a second, not by every request.
        if self.used.load(Ordering::Relaxed) != second {
            self.used.store(second, Ordering::Relaxed);
        }
    }

    /// Had a connection. When does not matter, but that it had.
    fn used_once(&self) {
        if self.used.load(Ordering::Relaxed) == 0 {
            self.used.fetch_max(1, Ordering::Relaxed);
        }
    }

    /// Milliseconds since the last call; `None` = there was none.
    pub(crate) fn idle_for(&self, now: u64) -> Option<u64> {
        let second = self.used.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_sub(second * 1000))
    }

    /// An active check has ended.
    pub(crate) fn count_check(&self, passed: bool) {
        self.checks[usize::from(passed)].fetch_add(1, Ordering::Relaxed);
    }

    /// Active checks that ended so.
    pub(crate) fn checks(&self, passed: bool) -> u64 {
        self.checks[usize::from(passed)].load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, kind: Kind, to: Position) {
        self.transitions[kind as usize][to as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn transitions(&self, kind: Kind, to: Position) -> u64 {
        self.transitions[kind as usize][to as usize].load(Ordering::Relaxed)
    }

    pub(super) fn settle(
        self: &Arc<Self>,
        probe: Option<Era>,
        outcome: Outcome,
        elapsed: Duration,
        now: Instant,
    ) {
        let settings = match &*self.origin() {
            Some(origin) => origin.breaking.circuit,
            None => None,
        };
        if let Some(settings) = settings {
            self.circuit.settle(self, &settings, probe, (outcome, elapsed), now);
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("name", &self.name).finish_non_exhaustive()
    }
}
