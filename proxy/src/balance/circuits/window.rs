//! The latest calls of one circuit, counted by all threads at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::breaker::window::{self, BUCKETS, Change, Epoch, Tally};

/// A ring of buckets.
#[derive(Debug, Default)]
pub(super) struct Window([AtomicU64; BUCKETS]);

impl Window {
    /// Counts one call.
    pub(super) fn add(&self, now: u64, length: Duration, failed: bool, slow: bool) {
        let epoch = Epoch::at(now, length);
        let bucket = &self.0[epoch.position()];
        let mut found = bucket.load(Ordering::Relaxed);
        loop {
            match window::count(found, epoch, failed, slow) {
                Change::Add(one) => {
                    bucket.fetch_add(one, Ordering::Relaxed);
                    return;
                }
                Change::Replace(new) => {
                    match bucket.compare_exchange_weak(found, new, Ordering::Relaxed, Ordering::Relaxed) {
                        Ok(_) => return,
                        Err(other) => found = other,
                    }
                }
            }
        }
    }

    /// What is in the window.
    pub(super) fn tally(&self, now: u64, length: Duration) -> Tally {
        let epoch = Epoch::at(now, length);
        let buckets = self.0.iter().enumerate();
        buckets
            .map(|(position, bucket)| window::tally(bucket.load(Ordering::Relaxed), position, epoch))
            .fold(Tally::default(), Tally::plus)
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for bucket in &self.0 {
            bucket.store(0, Ordering::Relaxed);
        }
    }
}
