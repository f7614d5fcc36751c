//! The circuit of one service: [`circuit::State`] and its window, changed by all threads at once.
//!
//! In: calls that come and end, time. Out: leave or a refusal, and transitions. Invariant: whoever wins the
//! compare-and-swap tells of the transition. Surprise: a closed circuit is only read, which is what nearly every call does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use weft_wire::Reason;

use super::super::breaker::circuit::{self, Era, Verdict};
use super::super::breaker::window::Tally;
use super::super::breaker::{Cause, Kind, Outcome, Position};
use super::cluster::Core;
use super::journal::Transition;
use super::window::Window;

/// The circuit of a service.
#[derive(Debug, Default)]
pub(crate) struct Service {
    /// A packed [`circuit::State`].
    word: AtomicU64,
    /// The last [`Cause`] plus one; 0 = none yet.
    cause: AtomicU32,
    /// Millisecond of the last transition.
    since: AtomicU64,
    window: Window,
}

impl Service {
    pub(crate) fn state(&self) -> circuit::State {
        circuit::State::unpack(self.word.load(Ordering::Acquire))
    }

    pub(crate) fn since(&self) -> u64 {
        self.since.load(Ordering::Relaxed)
    }

    pub(crate) fn cause(&self) -> Option<Cause> {
        let number = self.cause.load(Ordering::Relaxed).checked_sub(1)?;
        Cause::ALL.get(number as usize).copied()
    }

    pub(crate) fn tally(&self, settings: &circuit::Settings, now: u64) -> Tally {
        self.window.tally(now, settings.window)
    }

    pub(super) fn admit(
        &self,
        core: &Arc<Core>,
        settings: &circuit::Settings,
        now: Instant,
    ) -> Result<Option<Era>, Reason> {
        // The common case changes nothing and writes nothing.
        if self.state().position == Position::Closed {
            return Ok(None);
        }
        let now = core.shared.clock.millis(now);
        let mut verdict = Verdict::Refuse;
        self.change(core, settings, now, None, |state| {
            let (next, says) = state.admit(settings, now);
            verdict = says;
            next
        });
        match verdict {
            Verdict::Pass => Ok(None),
            Verdict::Probe(era) => Ok(Some(era)),
            Verdict::Refuse => Err(Reason::CircuitOpen),
        }
    }

    pub(super) fn settle(
        &self,
        core: &Arc<Core>,
        settings: &circuit::Settings,
        probe: Option<Era>,
        (outcome, elapsed): (Outcome, Duration),
        now: Instant,
    ) {
        let slow = settings.is_slow(elapsed);
        let now = core.shared.clock.millis(now);
        if let Some(failed) = outcome.failed() {
            self.window.add(now, settings.window, failed, slow);
            if failed || slow {
                self.judge(core, settings, now);
            }
        }
        if let Some(era) = probe {
            self.change(core, settings, now, Some(Cause::ProbeFailed), |state| {
                state.probed(settings, era, outcome, slow, now)
            });
        }
    }

    /// Opens a closed circuit if its window says so.
    pub(crate) fn judge(&self, core: &Arc<Core>, settings: &circuit::Settings, now: u64) {
        if self.state().position == Position::Closed
            && let Some(cause) = settings.judge(self.tally(settings, now))
        {
            self.change(core, settings, now, Some(cause), |state| state.trip(settings, now));
        }
    }

    /// What time alone changes.
    pub(crate) fn tick(&self, core: &Arc<Core>, settings: &circuit::Settings, now: u64) {
        self.change(core, settings, now, Some(Cause::ProbeFailed), |state| state.tick(settings, now));
        self.judge(core, settings, now);
    }

    /// The circuit was taken out of the cluster's settings.
    pub(crate) fn remove(&self, core: &Arc<Core>, now: u64) {
        self.change(core, &circuit::Settings::default(), now, None, |_| circuit::State::default());
    }

    /// Applies `next` atomically, and tells if the position changed. `opens`: why, should it open.
    fn change(
        &self,
        core: &Arc<Core>,
        settings: &circuit::Settings,
        now: u64,
        opens: Option<Cause>,
        mut next: impl FnMut(circuit::State) -> circuit::State,
    ) {
        let mut word = self.word.load(Ordering::Acquire);
        let (before, after) = loop {
            let before = circuit::State::unpack(word);
            let after = next(before);
            if after == before {
                return;
            }
            match self.word.compare_exchange_weak(word, after.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break (before, after),
                Err(found) => word = found,
            }
        };
        if before.position == after.position {
            return;
        }
        self.since.store(now, Ordering::Relaxed);
        if let Some(cause) = opens.filter(|_| after.position == Position::Open) {
            self.cause.store(cause as u32 + 1, Ordering::Relaxed);
        }
        let tally = self.tally(settings, now);
        if after.position == Position::Closed {
            // What opened it is over.
            self.window.clear();
        }
        core.shared.changed.notify_one();
        core.shared.journal.tell(Transition {
            kind: Kind::Service,
            address: None,
            from: before.position,
            to: after.position,
            cause: self.cause(),
            at: now,
            next_probe: (after.position == Position::Open).then_some(after.until),
            tally,
            core: Arc::clone(core),
        });
    }
}
