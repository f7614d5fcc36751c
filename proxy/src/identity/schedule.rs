//! When to ask for a certificate.
//!
//! In: times and randomness. Out: times. Pure. At about half of what is left when it came: early enough that an authority
//! may be away for a long time, and spread, because a mesh that started together would otherwise ask together for ever.
//! Surprise: half of what is *left*, not of the whole life. Authorities back-date certificates for the sake of slow clocks,
//! and half of a back-dated life of seconds may be over before it begins.

use std::time::{Duration, SystemTime};

/// Never sooner than this after the last certificate, however short its life.
const SOONEST: Duration = Duration::from_secs(1);
/// The root that certificates come from has changed: everybody asks within this time, at most.
const HURRY: Duration = Duration::from_secs(30);
/// First wait after a failure, at most.
const FIRST: Duration = Duration::from_millis(500);
/// Without a certificate nothing works, so a sidecar asks at least this often.
const LONGEST_WITHOUT: Duration = Duration::from_secs(15);
/// With one there is time.
const LONGEST_WITH: Duration = Duration::from_secs(300);

/// When to renew a certificate that came at `came`; `random` is uniform in 0..1.
pub(super) fn renewal(came: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let left = not_after.duration_since(came).unwrap_or_default();
    came + left.mul_f64(0.4 + 0.2 * random.clamp(0.0, 1.0)).max(SOONEST)
}

/// When to renew although there is time: somewhere within half a minute, and well before the end.
pub(super) fn hurry(now: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + HURRY.min(left / 4).mul_f64(random.clamp(0.0, 1.0))
}

/// How long to wait after `failures` failures in a row. `left` is what is left of a certificate that is still valid.
pub(super) fn pause(failures: u32, left: Option<Duration>, random: f64) -> Duration {
    let longest = match left {
        Some(left) => (left / 10).clamp(SOONEST, LONGEST_WITH),
        None => LONGEST_WITHOUT,
    };
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let limit = FIRST.saturating_mul(doubled).min(longest);
    // At least half of it: an authority that refuses must not be asked again at once.
    limit.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);

    proptest! {
        #[test]
        fn a_renewal_is_at_about_half_life(random in 0.0..1.0_f64, life in 10_u64..1_000_000) {
            let (came, life) = (SystemTime::UNIX_EPOCH + DAY, Duration::from_secs(life));
            let at = renewal(came, came + life, random).duration_since(came).expect("later");
            prop_assert!(at >= life.mul_f64(0.4) && at <= life.mul_f64(0.6));
        }

        #[test]
        fn hurry_comes_before_the_end(random in 0.0..1.0_f64, left in 0_u64..1_000_000) {
            let now = SystemTime::UNIX_EPOCH + DAY;
            let at = hurry(now, now + Duration::from_secs(left), random);
            prop_assert!(at >= now && at <= now + HURRY && at <= now + Duration::from_secs(left));
        }

        #[test]
        fn pauses_have_a_floor_and_a_ceiling(failures in 1_u32..200, random in 0.0..1.0_f64) {
            let wait = pause(failures, None, random);
            prop_assert!(wait >= FIRST / 2 && wait <= LONGEST_WITHOUT);
            prop_assert!(pause(failures, Some(DAY), random) <= LONGEST_WITH);
            prop_assert!(pause(failures, Some(Duration::from_secs(1)), random) <= SOONEST);
        }
    }

    #[test]
    fn a_life_of_no_time_is_no_busy_loop() {
        let now = SystemTime::UNIX_EPOCH + DAY;
        assert_eq!(renewal(now, now, 0.0), now + SOONEST);
        assert_eq!(renewal(now, now - DAY, 1.0), now + SOONEST);
    }
}
