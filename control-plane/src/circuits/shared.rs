//! The one table of circuits of this program, shared by those who feed it and those who look at it.
//!
//! Invariant: the lock is held for arithmetic only, never across an `await`, a system call or serialisation.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Circuits, Limits};

/// A handle on the table.
#[derive(Debug, Clone)]
pub struct SharedCircuits(Arc<Mutex<Circuits>>);

impl SharedCircuits {
    /// A new, empty table.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Circuits::new(limits))))
    }

    /// Runs `work` on the table.
    pub fn with<R>(&self, work: impl FnOnce(&mut Circuits) -> R) -> R {
        // A panic in `work` cannot leave a torn invariant behind that matters more than an available table.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
