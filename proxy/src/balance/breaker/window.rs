//! How many of the latest calls failed: a ring of buckets. Pure: one bucket is one `u64`.
//!
//! In: calls with their times. Out: a [`Tally`] of the calls that are not older than the window, to a tenth of it.
//! A bucket says in which turn of the ring it was written, so nobody has to empty one that is too old.
//! Surprise: a bucket that is full counts no more, so its ratio stays what it was.

use std::time::Duration;

/// Buckets of a window. Hystrix has ten: a window forgets in steps of a tenth of its length.
pub const BUCKETS: usize = 10;

/// What happened in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Calls that ended.
    pub calls: u64,
    /// Of these, how many failed.
    pub errors: u64,
    /// Of these, how many were slow.
    pub slow: u64,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            errors: self.errors + other.errors,
            slow: self.slow + other.slow,
        }
    }
}

/// Bits of each count in a bucket, and of its turn: 65,000 calls in a tenth of a window; a turn comes again after 65,000
/// windows, a week at the least.
const BITS: u32 = 16;
const FULL: u64 = (1 << BITS) - 1;

/// Turns that a call may be late by: threads look at the clock one after the other. Whatever is further off is not late, but
/// from so long ago that turns have come round.
const LATE: u16 = 8;

/// Other threads may add between a look and an add; this many places are left for them.
const SPARE: u64 = 512;

/// A tenth of a window: when a call happened, as coarsely as a window remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u64);

impl Epoch {
    /// When this millisecond of the caller's clock is.
    #[must_use]
    pub fn at(millis: u64, window: Duration) -> Self {
        let step = (window.as_millis() as u64 / BUCKETS as u64).max(1);
        // One turn ahead, so that an untouched bucket is from the turn before the first.
        Self(millis / step + BUCKETS as u64)
    }

    /// Position of its bucket in the ring.
    #[must_use]
    pub fn position(self) -> usize {
        (self.0 % BUCKETS as u64) as usize
    }

    fn turn(self) -> u16 {
        (self.0 / BUCKETS as u64) as u16
    }

    /// The turn in which the bucket at `position` was written if it is in the window that ends now.
    fn turn_of(self, position: usize) -> u16 {
        if position <= self.position() { self.turn() } else { self.turn().wrapping_sub(1) }
    }
}

/// What to do with a bucket to count a call in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Add this.
    Add(u64),
    /// It is from a former turn: this takes its place.
    Replace(u64),
}

/// Counts a call in `bucket`, which is the one at `now`'s position.
#[must_use]
pub fn count(bucket: u64, now: Epoch, failed: bool, slow: bool) -> Change {
    let one = 1 | u64::from(failed) << BITS | u64::from(slow) << (2 * BITS);
    let turn = (bucket >> (3 * BITS)) as u16;
    match now.turn().wrapping_sub(turn) {
        0 if bucket & FULL < FULL - SPARE => Change::Add(one),
        0 => Change::Add(0),
        // A late call must not bring back what is over.
        behind if behind.wrapping_neg() <= LATE => Change::Add(0),
        _ => Change::Replace(one | u64::from(now.turn()) << (3 * BITS)),
    }
}

/// What the bucket at `position` holds of the window that ends at `now`.
#[must_use]
pub fn tally(bucket: u64, position: usize, now: Epoch) -> Tally {
    if (bucket >> (3 * BITS)) as u16 != now.turn_of(position) {
        return Tally::default();
    }
    Tally { calls: bucket & FULL, errors: bucket >> BITS & FULL, slow: bucket >> (2 * BITS) & FULL }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply(bucket: u64, now: Epoch, failed: bool, slow: bool) -> u64 {
        match count(bucket, now, failed, slow) {
            Change::Add(one) => bucket + one,
            Change::Replace(bucket) => bucket,
        }
    }

    #[test]
    fn a_full_bucket_keeps_its_ratio() {
        let now = Epoch::at(5000, Duration::from_secs(10));
        let mut bucket = 0;
        for call in 0..FULL + 1000 {
            bucket = apply(bucket, now, call % 2 == 0, call % 4 == 0);
        }
        let Tally { calls, errors, slow } = tally(bucket, now.position(), now);
        assert_eq!(calls, FULL - SPARE);
        assert!(errors.abs_diff(calls / 2) <= 1 && slow.abs_diff(calls / 4) <= 1, "{errors} {slow} {calls}");
    }

    #[test]
    fn a_late_call_does_not_bring_back_what_is_over() {
        let window = Duration::from_secs(10);
        let bucket = apply(0, Epoch::at(15_000, window), true, false);
        assert_eq!(apply(bucket, Epoch::at(5_000, window), true, false), bucket);
    }

    #[test]
    fn a_window_counts_again_after_any_pause() {
        let window = Duration::from_secs(10);
        let second = 1000;
        let first = apply(0, Epoch::at(15 * second, window), true, false);
        for windows in [2, 100, 32_767, 32_768, 50_000, 65_000] {
            let later = Epoch::at((15 + 10 * windows) * second, window);
            for bucket in [0, first] {
                let bucket = apply(bucket, later, false, false);
                let expected = Tally { calls: 1, errors: 0, slow: 0 };
                assert_eq!(tally(bucket, later.position(), later), expected, "after {windows} windows");
            }
        }
    }

    proptest! {
        /// Against a list of all calls ever made.
        #[test]
        fn a_window_holds_what_is_not_too_old(
            length in 10..100_000_u64,
            calls in proptest::collection::vec((0..30_000_u64, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let window = Duration::from_millis(length);
            let step = (length / BUCKETS as u64).max(1);
            let mut ring = [0; BUCKETS];
            let mut made = vec![];
            let mut now = 0;
            for (later, failed, slow) in calls {
                now += later % (length / 3 + 1);
                let epoch = Epoch::at(now, window);
                let bucket = &mut ring[epoch.position()];
                *bucket = apply(*bucket, epoch, failed, slow);
                made.push((now / step, failed, slow));
                let tallied =
                    ring.iter().enumerate().map(|(at, bucket)| tally(*bucket, at, epoch)).fold(Tally::default(), Tally::plus);
                let recent = || made.iter().filter(|(then, ..)| then + BUCKETS as u64 > now / step);
                prop_assert_eq!(tallied.calls, recent().count() as u64);
                prop_assert_eq!(tallied.errors, recent().filter(|(_, failed, _)| *failed).count() as u64);
                prop_assert_eq!(tallied.slow, recent().filter(|(.., slow)| *slow).count() as u64);
            }
        }
    }
}
