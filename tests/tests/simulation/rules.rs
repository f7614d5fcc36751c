//! What must hold after every step of a story.
//!
//! In: what happened, as the caller saw it. The rules are counted here once more, from the outside: nothing is believed that
//! the sidecar says of itself, except where it stands.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use weft_proxy::balance::breaker::limits::{Retries, Settings};
use weft_proxy::balance::breaker::{Position, outlier};
use weft_proxy::balance::circuits::Gauge;
use weft_proxy::balance::{ClusterState, EndpointState};
use weft_proxy::xds::Cluster;

/// Watches one cluster.
pub(crate) struct Watch {
    cluster: Arc<ClusterState>,
    /// What any worker was told last.
    adopted: Arc<Cluster>,
    /// Generation of the list that `listed` was made from.
    generation: u64,
    /// Who is listed, and whether they are out.
    listed: BTreeMap<SocketAddr, (Arc<EndpointState>, bool)>,
    position: Position,
    /// Probes of this half-open phase that are under way or have ended, without those that were cancelled.
    probes: u32,
    /// Half-open phases so far.
    phase: u64,
    pub(crate) ejections: u64,
    pub(crate) returns: u64,
    pub(crate) opened: u64,
    pub(crate) closed: u64,
}

impl Watch {
    pub(crate) fn new(cluster: Arc<ClusterState>, adopted: Arc<Cluster>) -> Self {
        Self {
            cluster,
            adopted,
            generation: 0,
            listed: BTreeMap::new(),
            position: Position::Closed,
            probes: 0,
            phase: 0,
            ejections: 0,
            returns: 0,
            opened: 0,
            closed: 0,
        }
    }

    pub(crate) fn adopted(&mut self, cluster: &Arc<Cluster>) {
        self.adopted = Arc::clone(cluster);
    }

    /// Takes over the list, when it has changed or somebody may have been forgotten.
    fn relist(&mut self) {
        let list = self.adopted.endpoints();
        // Who comes back before it was forgotten may be out already.
        let state = |address| {
            let endpoint = self.cluster.endpoint(address);
            let out = self.listed.get(&address).map_or_else(|| endpoint.ejected(), |(_, out)| *out);
            (endpoint, out)
        };
        self.listed = list.list.iter().map(|endpoint| (endpoint.address, state(endpoint.address))).collect();
        self.generation = list.generation;
    }

    /// Looks at who is out and where the circuit stands, after every step.
    pub(crate) fn look(&mut self) {
        if self.adopted.endpoints().generation != self.generation {
            self.relist();
        }
        let mut ejected = false;
        for (endpoint, before) in self.listed.values_mut() {
            let out = endpoint.ejected();
            ejected |= out && !*before;
            self.ejections += u64::from(out && !*before);
            self.returns += u64::from(*before && !out);
            *before = out;
        }
        if ejected {
            self.within_the_cap();
        }
        self.turn();
    }

    /// Somebody was just ejected.
    fn within_the_cap(&self) {
        let settings: outlier::Settings =
            self.adopted.breaking.outlier.expect("nobody is ejected without a detection");
        let members = self.listed.len();
        let out = self.cluster.ejected();
        let share = out as usize * 100 <= usize::from(settings.max_ejection_percent) * members;
        let one = settings.always_eject_one && out == 1;
        assert!(share || one, "{out} of {members} are out: {settings:?}");
    }

    fn turn(&mut self) {
        let position = self.cluster.position();
        if position == self.position {
            return;
        }
        self.opened += u64::from(position == Position::Open);
        self.closed += u64::from(position == Position::Closed);
        if position == Position::HalfOpen {
            assert_eq!(self.position, Position::Open, "half open comes after open only");
            self.probes = 0;
            self.phase += 1;
        }
        self.position = position;
    }

    /// After a sweep that saw what all workers see: the number of those that are out is the number of those that are out.
    pub(crate) fn settled(&mut self) {
        self.relist();
        let out = self.listed.values().filter(|(endpoint, _)| endpoint.ejected()).count();
        assert_eq!(self.cluster.ejected() as usize, out, "places are neither lost nor given twice");
    }

    /// A call was let through; the half-open phase it belongs to, if it is a probe.
    pub(crate) fn passed(&mut self, probe: bool) -> Option<u64> {
        self.turn();
        let limits = self.limits();
        assert!(self.cluster.held(Gauge::Requests) <= limits.max_requests);
        let Some(circuit) = self.adopted.breaking.circuit else {
            assert!(!probe);
            return None;
        };
        if !probe {
            assert_eq!(self.position, Position::Closed, "what is no probe passes a closed circuit only");
            return None;
        }
        assert_eq!(self.position, Position::HalfOpen);
        self.probes += 1;
        // New settings may have come in the middle of a phase.
        assert!(self.probes <= u32::from(circuit.probes), "{} probes: {circuit:?}", self.probes);
        Some(self.phase)
    }

    /// A call was refused because the circuit is open.
    pub(crate) fn refused(&mut self) {
        self.turn();
        let circuit = self.adopted.breaking.circuit.expect("nobody is refused without a circuit");
        assert_ne!(self.position, Position::Closed);
        let all_out = self.probes >= u32::from(circuit.probes);
        assert!(self.position == Position::Open || all_out, "{} probes: {circuit:?}", self.probes);
    }

    /// A probe of this phase ended without a verdict.
    pub(crate) fn cancelled(&mut self, phase: u64) {
        if phase == self.phase && self.position == Position::HalfOpen {
            self.probes -= 1;
        }
    }

    /// A retry was allowed.
    pub(crate) fn retried(&self) {
        let in_progress = u64::from(self.cluster.held(Gauge::Requests) + self.cluster.held(Gauge::Pending));
        let allowed = match self.limits().retries {
            Retries::Max(max) => u64::from(max),
            Retries::Budget { min_concurrency, .. } => {
                // Counted by the proxy's own share, which has properties of its own.
                u64::from(self.limits().retries.allowed(in_progress as u32)).max(min_concurrency.into())
            }
        };
        assert!(u64::from(self.cluster.held(Gauge::Retries)) <= allowed, "{allowed} of {in_progress}");
    }

    pub(crate) fn waits(&self) {
        assert!(self.cluster.held(Gauge::Pending) <= self.limits().max_pending_requests);
    }

    fn limits(&self) -> Settings {
        self.adopted.breaking.limits
    }

    /// Nothing is under way any more.
    pub(crate) fn at_rest(&self) {
        assert_eq!(Gauge::ALL.map(|gauge| self.cluster.held(gauge)), [0; 4], "what was held came back");
    }

    /// Everybody has been well for long enough.
    pub(crate) fn recovered(&self) {
        for (endpoint, _) in self.listed.values() {
            assert!(endpoint.available(), "{endpoint:?} has not come back");
        }
        assert_eq!(self.cluster.ejected(), 0);
        assert_eq!(self.cluster.position(), Position::Closed, "the circuit has not closed");
    }
}
