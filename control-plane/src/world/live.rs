//! The world as the running program shares it: one writer at a time, many readers, and word of every change.
//!
//! In: batches of [`Event`]s from the sources and the xDS server. Out: [`Touched`] to every xDS stream, and
//! the [`Directory`] to whoever must know who an address is.
//!
//! Invariant: a receiver that hears of a change and then reads, reads a world that has the change.
//! Surprise: the word of changes is a ring of [`CHANGES_MAX`] batches. A stream that falls behind by more
//! hears "lagged" and checks everything it subscribed to, so a slow client never makes the ring grow.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use tokio::sync::{Notify, broadcast};
use weft_wire::{ServiceId, ServicePort};

use super::{Event, Lookup, Touched, Workload, World};

/// Batches of changes that a stream may fall behind: sources batch for 50 ms, so this is at least three
/// seconds of changes without a pause, far more than a stream needs to take the read lock once.
const CHANGES_MAX: usize = 64;

/// The shared world. Cheap to clone.
#[derive(Clone)]
pub struct Live {
    world: Arc<RwLock<World>>,
    changes: broadcast::Sender<Arc<Touched>>,
    deadline_moved: Arc<Notify>,
}

impl Default for Live {
    fn default() -> Self {
        Self::new(World::default())
    }
}

impl Live {
    /// Shares a world.
    #[must_use]
    pub fn new(world: World) -> Self {
        let (changes, _) = broadcast::channel(CHANGES_MAX);
        Self { world: Arc::new(RwLock::new(world)), changes, deadline_moved: Arc::default() }
    }

    /// Applies events as one change and tells every stream what it touched.
    pub fn apply(&self, events: impl IntoIterator<Item = Event>, now: Instant) {
        self.change(|world| world.apply_all(events, now));
        self.deadline_moved.notify_one();
    }

    /// Reads the world. The guard must not be held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, World> {
        // A panic while writing would be a bug in a pure core; serving what is there beats serving nothing.
        self.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of every change from now on.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Arc<Touched>> {
        self.changes.subscribe()
    }

    /// The reading half for those who only ask who an address is.
    #[must_use]
    pub fn directory(&self) -> Directory {
        Directory { live: self.clone() }
    }

    /// Ends the grace of lost sidecars when it is over. Runs until dropped.
    pub async fn expire(self) {
        loop {
            let deadline = self.read().next_deadline();
            let moved = self.deadline_moved.notified();
            match deadline {
                None => moved.await,
                Some(at) => tokio::select! {
                    () = moved => {}
                    () = tokio::time::sleep_until(at.into()) => {
                        self.change(|world| world.expire(tokio::time::Instant::now().into_std()));
                    }
                },
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut World) -> Touched) {
        let mut world: RwLockWriteGuard<'_, World> =
            self.world.write().unwrap_or_else(PoisonError::into_inner);
        let touched = change(&mut world);
        if !touched.is_empty() {
            // Sent under the lock, so that streams hear of changes in the order they happened. Nobody
            // listening is no error.
            let _nobody = self.changes.send(Arc::new(touched));
        }
    }
}

/// Who is who: the read handle for telemetry, which must turn addresses into workloads. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    live: Live,
}

impl Directory {
    /// Who is at an address.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Lookup {
        self.live.read().lookup(address)
    }

    /// The workload at an address, unless nobody or several are there.
    #[must_use]
    pub fn workload_of(&self, address: IpAddr) -> Option<Workload> {
        match self.lookup(address) {
            Lookup::Known(workload) => Some(workload),
            Lookup::Shared { .. } | Lookup::Unknown => None,
        }
    }

    /// The addresses of a connected proxy instance.
    #[must_use]
    pub fn addresses_of(&self, instance: &str) -> Option<Vec<IpAddr>> {
        self.live.read().addresses_of(instance)
    }

    /// The service that answers at an address: by virtual IP, else by endpoint.
    #[must_use]
    pub fn service_of(&self, address: SocketAddr) -> Option<ServicePort> {
        self.live.read().service_of(address)
    }

    /// Whether the service is known, declared or registered.
    #[must_use]
    pub fn has_service(&self, service: &ServiceId) -> bool {
        self.live.read().service(service).is_some()
    }

    /// Whether a proxy instance has a configuration stream (or lost it a moment ago).
    #[must_use]
    pub fn is_connected(&self, instance: &str) -> bool {
        self.live.read().is_connected(instance)
    }
}
