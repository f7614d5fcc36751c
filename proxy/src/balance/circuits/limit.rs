//! Whether a cluster's limits bite: looked at once a second, because a limit is reached for milliseconds.
//!
//! In: how often each limit has refused, `now`. Out: a position, and transitions. Open from the first refusal that is
//! seen until none was seen for [`CALM`]. Invariant: one thread looks, any may read. Surprise: open does not mean
//! that nothing passes, but that something did not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::breaker::window::Tally;
use super::super::breaker::{Kind, Position};
use super::cluster::{Core, Gauge};
use super::journal::Transition;

/// A limit that refused nothing for this long is closed again: as long as other circuits look back, and long enough
/// that a limit which bites now and then is one event and not hundreds.
pub(crate) const CALM: Duration = Duration::from_secs(10);

/// The concurrency of one cluster, seen as a circuit.
#[derive(Debug, Default)]
pub(crate) struct Limit {
    /// What was counted at the last look.
    seen: [AtomicU64; Gauge::ALL.len()],
    /// Position of the limit that bites, or did last, in [`Gauge::ALL`], plus one; 0 = none ever did.
    gauge: AtomicU64,
    /// 1 = open.
    open: AtomicU64,
    /// Millisecond of the last look that saw a refusal.
    refused_at: AtomicU64,
    /// Refusals that the last look saw.
    refused: AtomicU64,
    /// Millisecond of the last transition.
    since: AtomicU64,
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) position: Position,
    /// What bites, or did last.
    pub(crate) gauge: Option<Gauge>,
}

/// Who is named first when several bite at once: whoever refuses most for good.
const BY_WEIGHT: [Gauge; Gauge::ALL.len()] =
    [Gauge::Requests, Gauge::Pending, Gauge::Connections, Gauge::Retries];

impl Limit {
    pub(crate) fn state(&self) -> State {
        let gauge = self.gauge.load(Ordering::Relaxed).checked_sub(1);
        let gauge = gauge.and_then(|position| Gauge::ALL.get(position as usize)).copied();
        let open = self.open.load(Ordering::Relaxed) == 1;
        State { position: if open { Position::Open } else { Position::Closed }, gauge }
    }

    pub(crate) fn since(&self) -> u64 {
        self.since.load(Ordering::Relaxed)
    }

    /// What is in progress and what was refused since the look before the last.
    pub(crate) fn tally(&self, held: u32) -> Tally {
        let errors = self.refused.load(Ordering::Relaxed);
        Tally { calls: u64::from(held) + errors, errors, slow: 0 }
    }

    /// Looks at what was refused since the last look, and tells of what that changes. Only one thread may look.
    pub(crate) fn look(&self, core: &Arc<Core>, now: u64) {
        let mut fresh = [0; Gauge::ALL.len()];
        for gauge in Gauge::ALL {
            let total = core.refused(gauge);
            fresh[gauge as usize] =
                total - self.seen[gauge as usize].swap(total, Ordering::Relaxed).min(total);
        }
        self.refused.store(fresh.iter().sum(), Ordering::Relaxed);
        let before = self.state();
        let biting = BY_WEIGHT.into_iter().find(|gauge| fresh[*gauge as usize] > 0);
        if let Some(gauge) = biting {
            self.refused_at.store(now, Ordering::Relaxed);
            self.gauge.store(gauge as u64 + 1, Ordering::Relaxed);
        }
        let calm = now.saturating_sub(self.refused_at.load(Ordering::Relaxed)) >= CALM.as_millis() as u64;
        let to = match (biting, before.position) {
            (Some(_), _) => Position::Open,
            (None, Position::Open) if !calm => Position::Open,
            _ => Position::Closed,
        };
        if to == before.position {
            return;
        }
        self.open.store((to == Position::Open).into(), Ordering::Relaxed);
        self.since.store(now, Ordering::Relaxed);
        let gauge = self.state().gauge;
        core.shared.journal.tell(Transition {
            kind: Kind::Limit,
            address: None,
            from: before.position,
            to,
            cause: gauge.map(Gauge::cause),
            at: now,
            next_probe: None,
            tally: self.tally(gauge.map_or(0, |gauge| core.held(gauge))),
            core: Arc::clone(core),
        });
    }
}
