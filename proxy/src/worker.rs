//! What one worker thread owns.
//!
//! Shared-nothing: each worker is one thread with its own runtime, listeners, upstream connections and metric
//! shard, so the request path takes no lock and needs no `Send`. A [`Worker`] is passed around as `Rc<Worker>`;
//! everything shared with other threads ([`Config`], [`Directory`], [`Bound`]) is immutable or behind
//! `arc-swap`. Non-goal: balancing between workers; the kernel spreads connections (`SO_REUSEPORT`).

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::accept::Bound;
use crate::config::Config;
use crate::connect::ConnectOptions;
use crate::drain;
use crate::record::{Direction, Shard};
use crate::xds::Directory;

/// Size of the buffer that all opaque connections of a worker share. What a socket's receive buffer usually
/// holds after one round trip at full speed; bigger ones showed no gain for loopback and veth.
const SCRATCH_SIZE: usize = 64 * 1024;

/// One worker's possessions.
pub struct Worker {
    /// The sidecar's settings.
    pub config: Arc<Config>,
    /// Where the sidecar listens.
    pub bound: Arc<Bound>,
    /// What the control plane said.
    pub directory: Arc<Directory>,
    /// This worker's telemetry.
    pub shard: Rc<Shard>,
    /// This worker's view of the shutdown.
    pub drain: drain::Watch,
    /// Connections of the inbound listener.
    pub inbound_permits: Permits,
    /// Connections of the outbound listeners.
    pub outbound_permits: Permits,
    /// Bytes in transit between two sockets; borrowed only between two awaits.
    pub(crate) scratch: RefCell<Box<[u8]>>,
}

impl Worker {
    /// Assembles a worker on its own thread. `connections_max` bounds each direction.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        bound: Arc<Bound>,
        directory: Arc<Directory>,
        shard: Rc<Shard>,
        drain: drain::Watch,
        connections_max: usize,
    ) -> Rc<Self> {
        Rc::new(Self {
            config,
            bound,
            directory,
            shard,
            drain,
            inbound_permits: Permits::new(connections_max),
            outbound_permits: Permits::new(connections_max),
            scratch: RefCell::new(vec![0; SCRATCH_SIZE].into()),
        })
    }

    /// How this sidecar connects: with its mark, within `timeout` or else the configured default.
    #[must_use]
    pub fn connect_options(&self, timeout: Option<Duration>) -> ConnectOptions {
        ConnectOptions {
            timeout: timeout.unwrap_or(self.config.connect_timeout),
            mark: self.config.socket_mark,
        }
    }

    /// Whether a connection of `direction` to `address` would come straight back to this sidecar.
    ///
    /// Outbound to the own inbound listener is no loop: that is an app calling its own service.
    #[must_use]
    pub fn loops(&self, direction: Direction, address: SocketAddr) -> bool {
        let outbound = || self.bound.outbound.iter().chain(&self.bound.forwards);
        let own_host = |ip: std::net::IpAddr| {
            ip.is_loopback() || ip.is_unspecified() || self.config.identity.addresses.contains(&ip)
        };
        let is = |listener: &SocketAddr| {
            listener.port() == address.port()
                && if listener.ip().is_unspecified() {
                    own_host(address.ip().to_canonical())
                } else {
                    listener.ip() == address.ip().to_canonical()
                }
        };
        match direction {
            Direction::Outbound => outbound().any(is),
            Direction::Inbound => outbound().chain(&self.bound.inbound).any(is),
        }
    }

    /// The permits of `direction`.
    #[must_use]
    pub fn permits(&self, direction: Direction) -> &Permits {
        match direction {
            Direction::Inbound => &self.inbound_permits,
            Direction::Outbound => &self.outbound_permits,
        }
    }
}

/// A bound on open connections and the means to wait for the last one. Worker-local: a `Cell`, not a semaphore.
#[derive(Debug, Clone)]
pub struct Permits(Rc<Counter>);

#[derive(Debug)]
struct Counter {
    used: Cell<usize>,
    max: usize,
    changed: Notify,
}

impl Permits {
    /// At most `max` at a time.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self(Rc::new(Counter { used: Cell::new(0), max, changed: Notify::new() }))
    }

    /// One permit, given back on drop; `None` when all are out.
    #[must_use]
    pub fn acquire(&self) -> Option<Permit> {
        let used = self.0.used.get();
        (used < self.0.max).then(|| {
            self.0.used.set(used + 1);
            Permit(Rc::clone(&self.0))
        })
    }

    /// Permits that are out.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.get()
    }

    /// Completes when no permit is out. Cancel safe.
    pub async fn idle(&self) {
        while self.0.used.get() > 0 {
            self.0.changed.notified().await;
        }
    }
}

/// One open connection.
#[derive(Debug)]
#[must_use = "the connection is counted for as long as its permit lives"]
pub struct Permit(Rc<Counter>);

impl Drop for Permit {
    fn drop(&mut self) {
        let used = self.0.used.get() - 1;
        self.0.used.set(used);
        if used == 0 {
            self.0.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn permits_are_bounded_and_come_back() {
        let permits = Permits::new(2);
        let first = permits.acquire().expect("free");
        let second = permits.acquire().expect("free");
        assert!(permits.acquire().is_none());
        drop(first);
        assert_eq!(permits.used(), 1);
        let waiting = permits.idle();
        drop(second);
        waiting.await;
        drop(permits.acquire().expect("free again"));
    }
}
