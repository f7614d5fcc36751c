//! One endpoint on one worker, with what the worker has learned about it.
//!
//! In: the control plane's description of it, and the requests given to it. Out: its load, its place among its siblings,
//! its open connections. Non-goal: choosing, which is the [`Set`](super::Set)'s.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::circuits::{ClusterState, EndpointState, Outcome};
use super::load::Load;
use crate::pool::Pool;
use crate::record::PeerIndex;
use crate::xds::{self, Health};

/// One address and this worker's state of it.
pub struct Endpoint {
    /// Where to connect to.
    pub address: SocketAddr,
    /// Its name in telemetry.
    pub peer: Cell<PeerIndex>,
    /// Open connections to it.
    pub pool: Pool,
    load: Cell<Load>,
    /// What all workers share of it.
    circuit: RefCell<Arc<EndpointState>>,
    place: Cell<Place>,
    hash_key: RefCell<Option<Arc<str>>>,
    /// Since when it may be chosen without a break; `None` while it may not.
    since: Cell<Option<Instant>>,
}

/// Where an endpoint stands among its siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What the control plane says of its health.
    pub health: Health,
    /// 0 serves first.
    pub priority: u32,
    /// Whether it is in this sidecar's zone.
    pub own_zone: bool,
}

impl Endpoint {
    /// An endpoint nothing is known about but what the control plane says.
    #[must_use]
    pub fn new(
        spec: &xds::Endpoint,
        zone: Option<&str>,
        peer: PeerIndex,
        circuit: Arc<EndpointState>,
        now: Instant,
    ) -> Rc<Self> {
        Rc::new(Self {
            address: spec.address,
            peer: Cell::new(peer),
            pool: Pool::default(),
            load: Cell::new(Load::new(spec.weight, now)),
            circuit: RefCell::new(circuit),
            place: Cell::new(Place::of(spec, zone)),
            hash_key: RefCell::new(spec.hash_key.clone()),
            since: Cell::new(None),
        })
    }

    /// Takes over what the control plane says now and keeps what was learned. `circuit` is another one, if the address
    /// had gone meanwhile and nobody called.
    pub(super) fn update(
        &self,
        spec: &xds::Endpoint,
        zone: Option<&str>,
        peer: PeerIndex,
        circuit: Arc<EndpointState>,
    ) {
        self.circuit.replace(circuit);
        let mut load = self.load.get();
        load.set_weight(spec.weight);
        self.load.set(load);
        self.place.set(Place::of(spec, zone));
        self.hash_key.replace(spec.hash_key.clone());
        self.peer.set(peer);
    }

    /// Takes part again in what all workers know, should it have been forgotten there: when two lists were about at once,
    /// the older one may have been believed last.
    pub(super) fn renew(&self, cluster: &ClusterState) {
        if self.circuit.borrow().is_gone() {
            self.circuit.replace(cluster.endpoint(self.address));
        }
    }

    /// The load now.
    #[must_use]
    pub fn load(&self) -> Load {
        self.load.get()
    }

    /// How one attempt ended, and how long its answer took.
    pub fn report(&self, outcome: Outcome, elapsed: Duration, now: Instant) {
        self.circuit.borrow().report(outcome, elapsed, now);
    }

    /// Where it stands among its siblings.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place.get()
    }

    /// What it is hashed by.
    #[must_use]
    pub fn hash_key(&self) -> String {
        self.hash_key.borrow().as_deref().map_or_else(|| self.address.to_string(), str::to_owned)
    }

    /// Notes whether requests may be sent to it from `now` on, and says so: neither called unhealthy by the control
    /// plane, nor ejected, nor failed by active checks.
    pub(super) fn judge(&self, now: Instant) -> bool {
        let available = self.place.get().health != Health::Unhealthy && self.circuit.borrow().available();
        self.since.set(available.then(|| self.since.get().unwrap_or(now)));
        available
    }

    /// Since when it may be chosen without a break; `None` while it may not.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.since.get()
    }

    /// Counts a request as being worked on until the guard is dropped.
    pub fn start(self: &Rc<Self>) -> Working {
        let mut load = self.load.get();
        load.start();
        self.load.set(load);
        Working(Rc::clone(self))
    }

    fn observe(&self, now: Instant, elapsed: Duration) {
        let mut load = self.load.get();
        load.observe(now, elapsed);
        self.load.set(load);
    }
}

impl Place {
    fn of(spec: &xds::Endpoint, zone: Option<&str>) -> Self {
        Self {
            health: spec.health,
            priority: spec.priority,
            own_zone: zone.is_some() && spec.zone.as_deref() == zone,
        }
    }
}

/// A request that an endpoint is working on.
#[must_use = "the request counts as in flight for as long as this lives"]
pub struct Working(Rc<Endpoint>);

impl Working {
    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Rc<Endpoint> {
        &self.0
    }

    /// The endpoint answered (or failed) after `elapsed`.
    pub fn observe(&self, now: Instant, elapsed: Duration) {
        self.0.observe(now, elapsed);
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut load = self.0.load.get();
        load.end();
        self.0.load.set(load);
    }
}
