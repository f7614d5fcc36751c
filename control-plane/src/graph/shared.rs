//! The one graph of this program, shared by those who feed it and those who look at it.
//!
//! Invariant: the lock is held for arithmetic only, never across an `await`, a system call or serialisation.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Graph, Limits};

/// A handle on the graph.
#[derive(Debug, Clone)]
pub struct SharedGraph(Arc<Mutex<Graph>>);

impl SharedGraph {
    /// A new, empty graph.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Graph::new(limits))))
    }

    /// Runs `work` on the graph.
    pub fn with<R>(&self, work: impl FnOnce(&mut Graph) -> R) -> R {
        // A panic in `work` cannot leave a torn invariant behind that matters more than an available graph.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
