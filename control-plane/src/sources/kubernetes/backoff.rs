//! How long to wait before the server is asked again.
//!
//! In: luck, and what the server said. Out: a time. Each failure doubles the longest wait; luck picks a moment within it,
//! so that what lost its server together does not come back together. What the server asks for is the least.

use std::time::Duration;

/// The longest first wait.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait of all: a server that is back is found again within it.
const LONGEST: Duration = Duration::from_secs(20);
/// The longest time that a server may ask for.
const ASKED_MAX: Duration = Duration::from_secs(120);

/// Failures in a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure; `luck` is from 0 to 1.
    pub(super) fn wait(&mut self, luck: f64, asked: Option<Duration>) -> Duration {
        let longest = FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // At least half of it, or it would be no wait.
        let own = longest.mul_f64(0.5 + luck.clamp(0.0, 1.0) / 2.0);
        match asked {
            // Spread behind what is asked for, not before.
            Some(asked) => asked.min(ASKED_MAX) + FIRST.mul_f64(luck.clamp(0.0, 1.0)),
            None => own,
        }
    }

    /// Something went well.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.wait(1.0, None).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 20_000, 20_000]);
        backoff.failures = u32::MAX;
        assert_eq!(backoff.wait(0.0, None), LONGEST / 2);
        backoff.reset();
        assert_eq!(backoff.wait(0.0, None), FIRST / 2);
    }

    #[test]
    fn the_server_is_not_asked_before_it_wants_to_be() {
        let mut backoff = Backoff::default();
        for luck in [0.0, 0.3, 1.0] {
            let wait = backoff.wait(luck, Some(Duration::from_secs(7)));
            assert!(wait >= Duration::from_secs(7) && wait <= Duration::from_millis(7500), "{wait:?}");
        }
        assert!(backoff.wait(1.0, Some(Duration::MAX)) <= ASKED_MAX + FIRST);
    }
}
