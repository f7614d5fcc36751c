//! Transitions on their way from whoever caused them to whoever tells of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::super::breaker::window::Tally;
use super::super::breaker::{Cause, Kind, Position};
use super::cluster::Core;

/// Transitions that wait at most. A cluster of a thousand endpoints may fall at once; more than that says nothing new.
const WAITING_MAX: usize = 1024;

/// A circuit went from one position to another.
#[derive(Debug, Clone)]
pub struct Transition {
    /// What it guards.
    pub kind: Kind,
    /// The endpoint, for [`Kind::Endpoint`].
    pub address: Option<SocketAddr>,
    /// Where it was.
    pub from: Position,
    /// Where it is.
    pub to: Position,
    /// Why it is, or was, open.
    pub cause: Option<Cause>,
    /// When, in milliseconds of the circuits' clock.
    pub(crate) at: u64,
    /// When it lets something through again.
    pub(crate) next_probe: Option<u64>,
    /// Calls in the circuit's window.
    pub tally: Tally,
    pub(crate) core: Arc<Core>,
}

/// A bounded queue of transitions. Sending takes no lock.
#[derive(Debug)]
pub(crate) struct Journal {
    sender: mpsc::Sender<Transition>,
    receiver: Mutex<Option<mpsc::Receiver<Transition>>>,
    dropped: AtomicU64,
}

impl Journal {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)), dropped: AtomicU64::new(0) }
    }

    pub(super) fn tell(&self, transition: Transition) {
        transition.core.count(transition.kind, transition.to);
        if self.sender.try_send(transition).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The reading end, once.
    pub(crate) fn listen(&self) -> Option<mpsc::Receiver<Transition>> {
        super::lock(&self.receiver).take()
    }

    /// Transitions nobody was told of.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
