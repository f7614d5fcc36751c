//! What a sidecar says of its app's habits, over the last minutes: how its connections begin, and whether it carries traces on.
//!
//! In: counts of one report. Out: their sum over [`MINUTES`], which `weft check` looks at. Pure. Invariant: bounded, however long a
//! sidecar lives; what is older is forgotten with the next report.

use crate::graph::Timestamp;

/// How far back.
const MINUTES: u64 = 5;
/// The minute that is going on, too.
const SLOTS: usize = MINUTES as usize + 1;

/// Counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Habits {
    /// Connections whose protocol was looked for.
    pub detected: u64,
    /// Of these, those that were held until the deadline.
    pub detect_timeouts: u64,
    /// Requests that the app sent to others once it had been called itself.
    pub outbound: u64,
    /// Of these, those in the trace of a request that the app was sent.
    pub outbound_carried: u64,
    /// Of these, those in a trace of the app's own.
    pub outbound_own: u64,
}

impl Habits {
    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            detected: self.detected.saturating_add(other.detected),
            detect_timeouts: self.detect_timeouts.saturating_add(other.detect_timeouts),
            outbound: self.outbound.saturating_add(other.outbound),
            outbound_carried: self.outbound_carried.saturating_add(other.outbound_carried),
            outbound_own: self.outbound_own.saturating_add(other.outbound_own),
        }
    }
}

/// Counts by the minute.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lately([(u64, Habits); SLOTS]);

impl Lately {
    /// Counts what a report says that came at `now`.
    pub(super) fn add(&mut self, habits: Habits, now: Timestamp) {
        let minute = minute(now);
        let slot = &mut self.0[(minute % SLOTS as u64) as usize];
        if slot.0 != minute {
            *slot = (minute, Habits::default());
        }
        slot.1 = slot.1.and(habits);
    }

    /// All of the last minutes.
    pub(super) fn sum(&self, now: Timestamp) -> Habits {
        let now = minute(now);
        let recent = self.0.iter().filter(|(minute, _)| now.abs_diff(*minute) <= MINUTES);
        recent.fold(Habits::default(), |sum, (_, habits)| sum.and(*habits))
    }
}

fn minute(at: Timestamp) -> u64 {
    at.millis() / 60_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_some_minutes_is_forgotten() {
        let at = |minute: u64| Timestamp::from_millis(minute * 60_000 + 1);
        let one = Habits { outbound: 1, ..Habits::default() };
        let mut lately = Lately::default();
        for minute in 100..=110 {
            lately.add(one, at(minute));
            lately.add(one, at(minute));
        }
        assert_eq!(lately.sum(at(110)).outbound, 12);
        assert_eq!(lately.sum(at(113)).outbound, 6);
        assert_eq!(lately.sum(at(200)), Habits::default());
    }
}
