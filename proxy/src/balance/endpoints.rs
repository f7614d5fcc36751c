//! The endpoints of one cluster on one worker, with what the worker has learned about each.
//!
//! In: the control plane's list, whenever its generation changed. Out: the endpoints that may be chosen.
//! Invariant: an address that stays keeps its load and its connections; one that goes gives up its idle
//! connections at once and every other when its request ends. Non-goal: choosing (`balance`).

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::load::Load;
use crate::pool::Pool;
use crate::record::PeerIndex;
use crate::xds;

/// One address and this worker's state of it.
pub struct Endpoint {
    /// Where to connect to.
    pub address: SocketAddr,
    /// Its name in telemetry.
    pub peer: Cell<PeerIndex>,
    /// Open connections to it.
    pub pool: Pool,
    load: Cell<Load>,
    healthy: Cell<bool>,
}

impl Endpoint {
    /// An endpoint nothing is known about.
    #[must_use]
    pub fn new(address: SocketAddr, weight: u32, healthy: bool, peer: PeerIndex) -> Rc<Self> {
        Rc::new(Self {
            address,
            peer: Cell::new(peer),
            pool: Pool::default(),
            load: Cell::new(Load::new(weight)),
            healthy: Cell::new(healthy),
        })
    }

    /// The load now.
    #[must_use]
    pub fn load(&self) -> Load {
        self.load.get()
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

/// All endpoints of a cluster on one worker.
#[derive(Default)]
pub struct Set {
    generation: Option<u64>,
    all: Vec<Rc<Endpoint>>,
    ready: Vec<Rc<Endpoint>>,
}

impl Set {
    /// Whether `list` is what this set was last made from.
    #[must_use]
    pub fn is_current(&self, list: &xds::Endpoints) -> bool {
        self.generation == Some(list.generation)
    }

    /// Endpoints that may be chosen.
    #[must_use]
    pub fn ready(&self) -> &[Rc<Endpoint>] {
        &self.ready
    }

    /// Every endpoint, ready or not.
    #[must_use]
    pub fn all(&self) -> &[Rc<Endpoint>] {
        &self.all
    }

    /// Takes over a new list; `peer` resolves an endpoint's name for telemetry.
    pub fn apply(&mut self, list: &xds::Endpoints, mut peer: impl FnMut(&xds::Endpoint) -> PeerIndex) {
        let mut known: HashMap<SocketAddr, Rc<Endpoint>> =
            self.all.drain(..).map(|endpoint| (endpoint.address, endpoint)).collect();
        self.all.extend(list.list.iter().map(|new| match known.remove(&new.address) {
            Some(kept) => {
                let mut load = kept.load.get();
                load.set_weight(new.weight);
                kept.load.set(load);
                kept.healthy.set(new.healthy);
                kept.peer.set(peer(new));
                kept
            }
            None => Endpoint::new(new.address, new.weight, new.healthy, peer(new)),
        }));
        for gone in known.into_values() {
            gone.pool.close();
        }
        self.ready.clear();
        self.ready.extend(self.all.iter().filter(|endpoint| endpoint.healthy.get()).cloned());
        self.generation = Some(list.generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn list(of: &[u8]) -> xds::Endpoints {
        xds::Endpoints::new(of.iter().map(|&last| xds::Endpoint::new(address(last))).collect())
    }

    fn unnamed(_: &xds::Endpoint) -> PeerIndex {
        PeerIndex::UNKNOWN
    }

    #[test]
    fn state_survives_an_update_of_others() {
        let mut set = Set::default();
        set.apply(&list(&[1, 2]), unnamed);
        let working = set.ready()[1].start();
        working.observe(Instant::now(), Duration::from_millis(7));
        set.apply(&list(&[3, 2]), unnamed);
        let kept = &set.ready()[1];
        assert!(Rc::ptr_eq(kept, working.endpoint()));
        assert_eq!(kept.load().in_flight(), 1);
        drop(working);
        assert_eq!(set.ready()[1].load().in_flight(), 0);
    }

    #[test]
    fn an_endpoint_that_went_takes_no_connection_back() {
        let mut set = Set::default();
        set.apply(&list(&[1]), unnamed);
        let gone = Rc::clone(&set.ready()[0]);
        set.apply(&list(&[2]), unnamed);
        assert!(gone.pool.is_closed());
        set.apply(&list(&[1]), unnamed);
        assert!(!set.ready()[0].pool.is_closed(), "came back as a new one");
    }

    #[test]
    fn unhealthy_endpoints_are_not_ready() {
        let sick = xds::Endpoint { healthy: false, ..xds::Endpoint::new(address(1)) };
        let mut set = Set::default();
        set.apply(&xds::Endpoints::new(vec![sick, xds::Endpoint::new(address(2))]), unnamed);
        assert_eq!(set.all().len(), 2);
        assert_eq!(set.ready().len(), 1);
        assert_eq!(set.ready()[0].address, address(2));
    }
}
