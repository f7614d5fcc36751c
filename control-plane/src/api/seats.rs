//! Places at event streams: bounded, and given back by whoever leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Event streams of all kinds at a time: a team's dashboards. Each holds one view.
pub(super) const SEATS_MAX: usize = 256;

/// Counts the streams that are open.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<AtomicUsize>);

/// A place, for as long as it lives.
#[derive(Debug)]
pub(super) struct Seat(Seats);

impl Seats {
    /// A place; `None` when all are taken.
    pub(super) fn take(&self) -> Option<Seat> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < SEATS_MAX).then_some(taken + 1)
        });
        taken.ok().map(|_| Seat(self.clone()))
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
