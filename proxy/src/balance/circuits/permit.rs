//! Guards: what is counted for as long as it lives.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::breaker::Outcome;
use super::super::breaker::circuit::Era;
use super::cluster::{Core, Gauge};

/// One of something limited, given back on drop.
pub(super) struct Held {
    core: Arc<Core>,
    gauge: Gauge,
}

impl Held {
    /// One more, unless `max` are held already, which counts as a refusal.
    pub(super) fn take(core: &Arc<Core>, gauge: Gauge, max: u32) -> Option<Self> {
        let held = Self::take_quietly(core, gauge, max);
        if held.is_none() {
            core.refuse(gauge);
        }
        held
    }

    /// As [`take`](Self::take), without counting a refusal.
    pub(super) fn take_quietly(core: &Arc<Core>, gauge: Gauge, max: u32) -> Option<Self> {
        core.take(gauge, max).then(|| Self { core: Arc::clone(core), gauge })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.core.give_back(self.gauge);
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.gauge).finish()
    }
}

/// A call in progress. Tell it how the call ended with [`settle`](Self::settle).
#[derive(Debug)]
#[must_use = "the call counts as in progress for as long as this lives"]
pub struct Admission {
    held: Held,
    since: Instant,
    probe: Option<Era>,
    settled: Cell<bool>,
}

impl Admission {
    pub(super) fn new(held: Held, since: Instant, probe: Option<Era>) -> Self {
        Self { held, since, probe, settled: Cell::new(false) }
    }

    /// When the call was let through.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether it is one of the few that a half-open circuit lets through.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// How the call as a whole ended, retries included, and how long its answer took: once, the first word counts. A
    /// call that nobody settles was cancelled.
    pub fn settle(&self, outcome: Outcome, elapsed: Duration, now: Instant) {
        if !self.settled.replace(true) {
            self.held.core.settle(self.probe, outcome, elapsed, now);
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.probe.is_some() {
            self.settle(Outcome::Cancelled, Duration::ZERO, Instant::now());
        }
    }
}

/// An attempt beyond the first.
#[derive(Debug)]
#[must_use = "the retry counts as in progress for as long as this lives"]
pub struct RetryPermit(#[expect(dead_code, reason = "held for its drop")] pub(super) Held);

/// A request that waits for a connection.
#[derive(Debug)]
#[must_use = "the request counts as waiting for as long as this lives"]
pub struct PendingPermit(#[expect(dead_code, reason = "held for its drop")] pub(super) Held);

/// An open connection.
#[derive(Debug)]
#[must_use = "the connection counts as open for as long as this lives"]
pub struct ConnectionPermit(#[expect(dead_code, reason = "held for its drop")] pub(super) Held);
