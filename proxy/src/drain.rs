//! Graceful shutdown: from the signal to the last connection.
//!
//! Three phases, only forward: *serving* → *draining* (finish what is in flight, take nothing new where a
//! caller can go elsewhere) → *expired* (the deadline passed or a second signal came: let go). One [`Trigger`]
//! in the process turns the phase; every worker holds a [`Watch`].
//!
//! Invariant: the request path reads a `Cell`; nobody polls. Surprise: a `Watch` is worker-local (`!Send`),
//! fed by one small task per worker ([`Watch::follow`]), because a token shared by all threads would take a
//! lock for every connection that opens or closes. Non-goal: deciding what draining means for a protocol;
//! `http` and `tcp` do that.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::{Notify, watch};

/// How far the shutdown is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not shutting down.
    Serving,
    /// Finish what is in flight.
    Draining,
    /// Let go of everything.
    Expired,
}

/// Turns the phase. One for the process, on the admin thread.
#[derive(Debug, Clone)]
pub struct Trigger(watch::Sender<Phase>);

impl Default for Trigger {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }
}

impl Trigger {
    /// Moves to `phase`; moving back does nothing.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|current| {
            let forward = phase > *current;
            *current = phase.max(*current);
            forward
        });
    }

    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// For another thread: feed it to [`Watch::follow`] there.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}

/// One worker's view of the shutdown. Cloning is cheap; all clones see the same.
#[derive(Debug, Clone)]
pub struct Watch(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    phase: Cell<Phase>,
    turned: Notify,
}

impl Default for Watch {
    fn default() -> Self {
        Self(Rc::new(Shared { phase: Cell::new(Phase::Serving), turned: Notify::new() }))
    }
}

impl Watch {
    /// Copies every turn of the process's phase to this worker. Runs until the phase is [`Phase::Expired`] or
    /// the trigger is gone.
    pub async fn follow(self, mut process: watch::Receiver<Phase>) {
        loop {
            let phase = *process.borrow_and_update();
            self.turn(phase);
            if phase == Phase::Expired || process.changed().await.is_err() {
                return;
            }
        }
    }

    /// Moves this worker's view; for tests and for [`follow`](Self::follow).
    pub fn turn(&self, phase: Phase) {
        if phase > self.0.phase.get() {
            self.0.phase.set(phase);
            self.0.turned.notify_waiters();
        }
    }

    /// Whether connections should finish. A `Cell` read: cheap enough for every request.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.0.phase.get() >= Phase::Draining
    }

    /// Completes when draining begins; at once if it has. Cancel safe.
    pub async fn signaled(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Completes when the deadline has passed: whoever is still here lets go. Cancel safe.
    pub async fn expired(&self) {
        self.reached(Phase::Expired).await;
    }

    async fn reached(&self, phase: Phase) {
        while self.0.phase.get() < phase {
            // Single thread: the phase cannot turn between the check and the first poll of `notified`.
            self.0.turned.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_worker_sees_each_phase_once_and_in_order() {
        let trigger = Trigger::default();
        let watch = Watch::default();
        let observer = watch.clone();
        let following = watch.clone().follow(trigger.subscribe());
        let story = async {
            assert!(!observer.draining());
            trigger.advance(Phase::Draining);
            observer.signaled().await;
            assert!(observer.draining());
            trigger.advance(Phase::Serving);
            assert_eq!(trigger.phase(), Phase::Draining, "never back");
            trigger.advance(Phase::Expired);
            observer.expired().await;
        };
        tokio::join!(following, story);
        watch.signaled().await;
    }
}
