//! Which endpoint serves a request, and this worker's state of every cluster.
//!
//! In: clusters as the control plane describes them ([`xds::Cluster`]), plain addresses, and names for the forward
//! proxy. Out: an [`Endpoint`], chosen as the cluster's [`policy`] says, that keeps its connections and its history when
//! its siblings change ([`set`]). [`spread`]: how much load goes to which priority. [`algorithm`]: to which endpoint.
//! [`load`]: how busy one is.
//!
//! Invariant: nothing else here is shared between threads; a worker's view of an endpoint's load is its own, which
//! two random choices are known to tolerate. Surprise: a cluster is found by *name*, so what was learned survives
//! a change of its other settings. Which endpoints are out for a while is shared by all threads ([`circuits`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_wire::{Reason, SpiffeId};

pub mod algorithm;
pub mod breaker;
pub mod circuits;
pub mod endpoints;
pub mod load;
pub mod policy;
pub mod set;
pub mod spread;

pub use circuits::{Circuits, ClusterState, EndpointState, Outcome};
pub use endpoints::{Endpoint, Names, Working};
pub use set::Set;

use policy::Policy;
use set::View;

use crate::record::{Limit, PeerIndex, PeerSpec, Shard};
use crate::xds;

/// Clusters of each kind kept at most. A sidecar subscribes to at most a few thousand destinations; beyond this
/// the ones not in use are dropped with their pools, and made anew when needed.
const CLUSTERS_MAX: usize = 4096;

/// How long a cluster nobody used keeps its state: as long as its xDS subscription would live.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// Every cluster this worker has sent to.
pub struct Clusters {
    shard: Rc<Shard>,
    circuits: Arc<Circuits>,
    zone: Option<Arc<str>>,
    named: RefCell<HashMap<Box<str>, Rc<Cluster>>>,
    addresses: RefCell<HashMap<SocketAddr, Rc<Cluster>>>,
    resolved: RefCell<HashMap<Box<str>, Rc<Cluster>>>,
}

impl Clusters {
    /// None yet, for a sidecar in this zone.
    #[must_use]
    pub fn new(shard: Rc<Shard>, circuits: Arc<Circuits>, zone: Option<Arc<str>>) -> Rc<Self> {
        Rc::new(Self {
            shard,
            circuits,
            zone,
            named: RefCell::default(),
            addresses: RefCell::default(),
            resolved: RefCell::default(),
        })
    }

    /// This worker's state of a cluster. A hash lookup: keep the result next to `cluster`.
    #[must_use]
    pub fn of(&self, cluster: &Arc<xds::Cluster>) -> Rc<Cluster> {
        let mut named = self.named.borrow_mut();
        if let Some(known) = named.get(&cluster.name) {
            let mut origin = known.origin.borrow_mut();
            if !matches!(&*origin, Some(same) if Arc::ptr_eq(same, cluster)) {
                known.circuit.adopt(cluster);
                let same = matches!(&*origin, Some(old) if old.balancing == cluster.balancing);
                known.regroup.set(known.regroup.get() || !same);
                *origin = Some(Arc::clone(cluster));
            }
            known.used.set(Instant::now());
            return Rc::clone(known);
        }
        self.make_room(&mut named);
        let circuit = self.circuits.cluster(&cluster.name);
        circuit.adopt(cluster);
        let new = Rc::new(Cluster::new(Some(Arc::clone(cluster)), circuit));
        named.insert(cluster.name.clone(), Rc::clone(&new));
        new
    }

    /// The cluster that is just this address: pass-through destinations and the app.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Rc<Cluster> {
        let mut addresses = self.addresses.borrow_mut();
        if let Some(known) = addresses.get(&address) {
            known.used.set(Instant::now());
            return Rc::clone(known);
        }
        self.make_room(&mut addresses);
        let new = Rc::new(Cluster::new(None, self.circuits.unguarded()));
        new.replace(vec![address]);
        addresses.insert(address, Rc::clone(&new));
        new
    }

    /// The cluster of a name that the control plane does not know, at the addresses it resolved to just now.
    #[must_use]
    pub fn resolved(&self, authority: &str, addresses: Vec<SocketAddr>) -> Rc<Cluster> {
        let mut resolved = self.resolved.borrow_mut();
        if let Some(known) = resolved.get(authority) {
            known.used.set(Instant::now());
            if !known.consists_of(&addresses) {
                known.replace(addresses);
            }
            return Rc::clone(known);
        }
        self.make_room(&mut resolved);
        let new = Rc::new(Cluster::new(None, self.circuits.unguarded()));
        new.replace(addresses);
        resolved.insert(authority.into(), Rc::clone(&new));
        new
    }

    /// An endpoint for one connection or request to `cluster`.
    ///
    /// # Errors
    /// [`Reason::NoReadyEndpoint`].
    pub fn pick(&self, cluster: &Arc<xds::Cluster>) -> Result<Rc<Endpoint>, Reason> {
        self.choose(&self.of(cluster), Ask::any())
    }

    /// An endpoint of `cluster`, if possible none of those that were tried already.
    ///
    /// # Errors
    /// [`Reason::NoReadyEndpoint`].
    pub fn choose(&self, cluster: &Cluster, ask: Ask<'_>) -> Result<Rc<Endpoint>, Reason> {
        self.refresh(cluster);
        let mut set = cluster.set.borrow_mut();
        if let [only] = set.ready()
            && !set.panics()
        {
            return Ok(Rc::clone(only));
        }
        let chosen = set.choose(ask, Instant::now(), random).ok_or(Reason::NoReadyEndpoint)?;
        if chosen.panic {
            self.shard.panic();
        }
        Ok(chosen.endpoint)
    }

    /// The endpoint at `address`, if it is one of the cluster's: for a connection that exists already.
    #[must_use]
    pub fn at_address(&self, cluster: &Cluster, address: SocketAddr) -> Option<Rc<Endpoint>> {
        self.refresh(cluster);
        cluster.set.borrow().ready().iter().find(|endpoint| endpoint.address == address).cloned()
    }

    /// Parks, probes and closes idle upstream connections, and forgets clusters nobody uses. Says whether
    /// anything is left that needs another sweep soon.
    pub fn sweep(&self, now: Instant) -> bool {
        let mut warm = false;
        let mut every = |cluster: &Rc<Cluster>| {
            for endpoint in cluster.set.borrow().all() {
                warm |= endpoint.pool.sweep(now, &self.shard);
            }
            Rc::strong_count(cluster) > 1
                || now.saturating_duration_since(cluster.used.get()) < IDLE_MAX
                // An opaque connection of hours keeps a permit; without the state that counts it there would be no limit.
                || cluster.circuit.is_busy()
        };
        self.named.borrow_mut().retain(|_, cluster| every(cluster));
        self.addresses.borrow_mut().retain(|_, cluster| every(cluster));
        self.resolved.borrow_mut().retain(|_, cluster| every(cluster));
        warm
    }

    /// Takes over what has changed since the last choice.
    fn refresh(&self, cluster: &Cluster) {
        let origin = cluster.origin.borrow();
        let Some(origin) = &*origin else { return };
        let list = origin.endpoints();
        let mut set = cluster.set.borrow_mut();
        let regroup = cluster.regroup.replace(false);
        let current = set.is_current(&list, origin.mutual);
        if current && !regroup && !set.is_outdated(&cluster.circuit, Instant::now) {
            return;
        }
        let view = View {
            policy: &origin.balancing,
            zone: self.zone.as_deref(),
            circuit: &cluster.circuit,
            now: Instant::now(),
            mutual: origin.mutual,
        };
        if current {
            set.regroup(view, random);
            return;
        }
        set.apply(&list, view, random, |endpoint| self.names(endpoint));
    }

    /// What an endpoint is called in telemetry.
    fn names(&self, endpoint: &xds::Endpoint) -> Names {
        let xds::Endpoint { workload, version, identity, .. } = endpoint;
        let named = |identity: Option<Arc<SpiffeId>>| match (workload, version, &identity) {
            (None, None, None) => PeerIndex::UNKNOWN,
            _ => {
                self.shard.peer(&PeerSpec { workload: workload.clone(), version: version.clone(), identity })
            }
        };
        let plain = named(None);
        Names { plain, mutual: identity.clone().map_or(plain, |identity| named(Some(identity))) }
    }

    fn make_room<K: Eq + Hash>(&self, map: &mut HashMap<K, Rc<Cluster>>) {
        if map.len() >= CLUSTERS_MAX {
            self.shard.limit(Limit::Pool);
            map.retain(|_, cluster| Rc::strong_count(cluster) > 1);
        }
    }
}

/// What is asked of a cluster: an endpoint for one request or connection.
#[derive(Clone, Copy, Default)]
pub struct Ask<'a> {
    /// Endpoints that failed this request already: not taken again while there is another.
    pub tried: &'a [Rc<Endpoint>],
    /// What the route's hash policy made of the request; equal hashes go to the same endpoint where the cluster
    /// balances by hash.
    pub hash: Option<u64>,
}

impl<'a> Ask<'a> {
    /// Any endpoint.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Any endpoint but these, which failed already.
    #[must_use]
    pub fn except(tried: &'a [Rc<Endpoint>]) -> Self {
        Self { tried, hash: None }
    }
}

/// One cluster on one worker.
pub struct Cluster {
    /// `None`: not from the control plane.
    origin: RefCell<Option<Arc<xds::Cluster>>>,
    set: RefCell<Set>,
    /// What all workers share of it.
    circuit: Arc<ClusterState>,
    /// The policy is another one than the set was made by.
    regroup: Cell<bool>,
    used: Cell<Instant>,
}

/// What a worker's choices are made with.
fn random() -> u64 {
    fastrand::u64(..)
}

impl Cluster {
    fn new(origin: Option<Arc<xds::Cluster>>, circuit: Arc<ClusterState>) -> Self {
        Self {
            origin: RefCell::new(origin),
            set: RefCell::default(),
            circuit,
            regroup: Cell::new(false),
            used: Cell::new(Instant::now()),
        }
    }

    /// What all workers share of it: its circuit and its limits.
    #[must_use]
    pub fn circuit(&self) -> &Arc<ClusterState> {
        &self.circuit
    }

    /// Whether the control plane describes it, so that its circuits and limits mean something.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.origin.borrow().is_some()
    }

    /// Whether requests go out as HTTP/2 whatever the client spoke.
    #[must_use]
    pub fn http2(&self) -> bool {
        self.origin.borrow().as_ref().is_some_and(|origin| origin.http2)
    }

    /// How long an endpoint may take to accept, where the control plane says so.
    #[must_use]
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.origin.borrow().as_ref().map(|origin| origin.connect_timeout)
    }

    /// Whether another endpoint could be chosen instead of a failed one.
    #[must_use]
    pub fn has_alternatives(&self) -> bool {
        self.set.borrow().ready().len() > 1
    }

    fn replace(&self, addresses: Vec<SocketAddr>) {
        let list = xds::Endpoints::new(addresses.into_iter().map(xds::Endpoint::new).collect());
        let (policy, now) = (&Policy::default(), Instant::now());
        let view = View { policy, zone: None, circuit: &self.circuit, now, mutual: false };
        self.set.borrow_mut().apply(&list, view, random, |_| Names::default());
    }

    fn consists_of(&self, addresses: &[SocketAddr]) -> bool {
        let set = self.set.borrow();
        set.all().len() == addresses.len()
            && set.all().iter().all(|endpoint| addresses.contains(&endpoint.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::ClusterSpec;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn clusters() -> Rc<Clusters> {
        Clusters::new(Rc::clone(&crate::worker::tests::worker(&[]).shard), Circuits::new(), None)
    }

    fn cluster(of: &[u8]) -> Arc<xds::Cluster> {
        let endpoints = of.iter().map(|&last| xds::Endpoint::new(address(last))).collect();
        xds::Cluster::new(ClusterSpec::new("orders.shop:8080"), endpoints)
    }

    #[test]
    fn no_endpoint_is_a_reason() {
        let clusters = clusters();
        assert_eq!(clusters.pick(&cluster(&[])).err(), Some(Reason::NoReadyEndpoint));
    }

    #[test]
    fn a_change_of_endpoints_is_seen_by_the_next_pick() {
        let clusters = clusters();
        let cluster = cluster(&[1]);
        assert_eq!(clusters.pick(&cluster).unwrap().address, address(1));
        cluster.set_endpoints(vec![xds::Endpoint::new(address(2))]);
        assert_eq!(clusters.pick(&cluster).unwrap().address, address(2));
    }

    #[test]
    fn the_one_that_failed_is_not_taken_again() {
        let clusters = clusters();
        let source = cluster(&[1, 2]);
        let state = clusters.of(&source);
        let failed = clusters.choose(&state, Ask::any()).unwrap();
        for _ in 0..20 {
            assert_ne!(
                clusters.choose(&state, Ask::except(std::slice::from_ref(&failed))).unwrap().address,
                failed.address
            );
        }
    }

    #[test]
    fn work_in_flight_is_spread() {
        let clusters = clusters();
        let source = cluster(&[1, 2, 3, 4]);
        let working: Vec<_> = (0..400).map(|_| clusters.pick(&source).unwrap().start()).collect();
        for endpoint in clusters.of(&source).set.borrow().all() {
            let share = endpoint.load().in_flight();
            assert!((60..=140).contains(&share), "{share}");
        }
        drop(working);
    }

    #[test]
    fn a_cluster_is_forgotten_when_nobody_uses_it_but_not_while_a_connection_is_open() {
        let clusters = clusters();
        let source = cluster(&[1]);
        let later = Instant::now() + IDLE_MAX * 2;
        let open = clusters.of(&source).circuit().connection();
        clusters.sweep(later);
        clusters.circuits.sweep(later);
        assert_eq!(clusters.of(&source).circuit().held(circuits::Gauge::Connections), 1);
        drop(open);
        clusters.sweep(later);
        assert!(clusters.named.borrow().is_empty());
    }

    #[test]
    fn a_cluster_of_the_same_name_keeps_its_state() {
        let clusters = clusters();
        let first = clusters.of(&cluster(&[1]));
        let second = clusters.of(&cluster(&[1, 2]));
        assert!(Rc::ptr_eq(&first, &second));
        assert!(!first.has_alternatives(), "not looked at yet");
        let _ = clusters.choose(&second, Ask::any()).unwrap();
        assert!(first.has_alternatives());
    }
}
