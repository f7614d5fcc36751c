//! How long to wait before the next attempt: exponential, with full jitter, for ever.
//!
//! In: randomness. Out: durations. Pure. Full jitter (anything between nothing and the limit) spreads a thousand
//! sidecars that lost one control plane at the same moment over the whole interval.

use std::time::Duration;

/// Limit of the first wait: a control plane that merely restarted is back within that order.
const FIRST: Duration = Duration::from_millis(100);
/// Limit of every later wait: after an outage of any length, config is fresh within this time.
const LONGEST: Duration = Duration::from_secs(10);
/// Never less, so that an immediate refusal cannot become a busy loop.
const SHORTEST: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait before the next attempt; `random` is uniform in 0..1.
    pub(super) fn next(&mut self, random: f64) -> Duration {
        let limit = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1).min(31);
        limit.mul_f64(random.clamp(0.0, 1.0)).max(SHORTEST)
    }

    /// After a stream that did something useful.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_stay_within_their_limits(randoms in proptest::collection::vec(0.0..1.0_f64, 1..80)) {
            let mut backoff = Backoff::default();
            for (attempt, random) in randoms.into_iter().enumerate() {
                let wait = backoff.next(random);
                let limit = FIRST * 2_u32.pow(u32::try_from(attempt).unwrap_or(20).min(20));
                prop_assert!(wait >= SHORTEST && wait <= limit.min(LONGEST));
            }
        }
    }

    #[test]
    fn success_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..40 {
            backoff.next(1.0);
        }
        assert_eq!(backoff.next(1.0), LONGEST);
        backoff.reset();
        assert_eq!(backoff.next(1.0), FIRST);
    }
}
