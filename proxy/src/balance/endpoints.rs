//! One endpoint on one worker, with what the worker has learned about it.
//!
//! In: the control plane's description of it, and the requests given to it. Out: its load, its place among its siblings,
//! its open connections. Non-goal: choosing, which is the [`Set`](super::Set)'s.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_wire::SpiffeId;

use super::circuits::{ClusterState, EndpointState, Outcome};
use super::load::Load;
use super::set::View;
use crate::pool::Pool;
use crate::record::PeerIndex;
use crate::tls::Mesh;
use crate::xds::{self, Health};

/// One address and this worker's state of it.
pub struct Endpoint {
    /// Where to connect to.
    pub address: SocketAddr,
    /// Its name in telemetry.
    names: Cell<Names>,
    /// Who must be there, where connections to it are mutual TLS.
    identity: RefCell<Option<Arc<SpiffeId>>>,
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

/// An endpoint's names in telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Names {
    /// Who is believed to be there.
    pub plain: PeerIndex,
    /// Who is known to be there.
    pub mutual: PeerIndex,
}

impl Names {
    fn of(self, mutual: bool) -> PeerIndex {
        if mutual { self.mutual } else { self.plain }
    }
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
    pub fn new(spec: &xds::Endpoint, view: View<'_>, names: Names) -> Rc<Self> {
        Rc::new(Self {
            address: spec.address,
            names: Cell::new(names),
            identity: RefCell::new(view.identity_of(spec)),
            pool: Pool::default(),
            load: Cell::new(Load::new(spec.weight, view.now)),
            circuit: RefCell::new(view.circuit.endpoint(spec.address)),
            place: Cell::new(Place::of(spec, view.zone)),
            hash_key: RefCell::new(spec.hash_key.clone()),
            since: Cell::new(None),
        })
    }

    /// Takes over what the control plane says now and keeps what was learned. Its circuit is another one, if the address
    /// had gone meanwhile and nobody called.
    pub(super) fn update(&self, spec: &xds::Endpoint, view: View<'_>, names: Names) {
        self.circuit.replace(view.circuit.endpoint(spec.address));
        let identity = view.identity_of(spec);
        if *self.identity.borrow() != identity {
            // Somebody else is there now.
            self.pool.forget();
            self.identity.replace(identity);
        }
        let mut load = self.load.get();
        load.set_weight(spec.weight);
        self.load.set(load);
        self.place.set(Place::of(spec, view.zone));
        self.hash_key.replace(spec.hash_key.clone());
        self.names.set(names);
    }

    /// Takes part again in what all workers know, should it have been forgotten there: when two lists were about at once,
    /// the older one may have been believed last.
    pub(super) fn renew(&self, cluster: &ClusterState) {
        if self.circuit.borrow().is_gone() {
            self.circuit.replace(cluster.endpoint(self.address));
        }
    }

    /// Who must be there, if connections to it shall be mutual TLS: when this sidecar can.
    #[must_use]
    pub fn identity(&self, mesh: &Mesh) -> Option<Arc<SpiffeId>> {
        let identity = self.identity.borrow();
        let identity = identity.as_ref().filter(|_| mesh.has_identity())?;
        Some(Arc::clone(identity))
    }

    /// Its name in telemetry, and whether connections to it are mutual TLS. The first time that they are, those that are
    /// not are let go of.
    pub fn enter(&self, mesh: &Mesh) -> PeerIndex {
        let mutual = self.identity.borrow().is_some() && mesh.has_identity();
        self.pool.secure(mutual);
        self.names.get().of(mutual)
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
