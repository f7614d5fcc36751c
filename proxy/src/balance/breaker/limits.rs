//! How much of a cluster may be in progress at a time: Envoy's circuit breaker thresholds, priority DEFAULT.
//!
//! In: what is in progress. Out: whether one more may be. Surprise: retries are bounded by a share of what is in
//! progress when there is a budget, and by a number when there is none; never by both.

/// Connections to a cluster unless said otherwise. Source: Envoy, `CircuitBreakers.Thresholds.max_connections`. Far
/// above what one pod needs towards one service; it stops a leak, not a load.
pub const MAX_CONNECTIONS: u32 = 1024;

/// Requests that wait for a connection unless said otherwise. Source: Envoy, `Thresholds.max_pending_requests`.
pub const MAX_PENDING_REQUESTS: u32 = 1024;

/// Requests in progress unless said otherwise. Source: Envoy, `Thresholds.max_requests`. At 100 ms each that is ten
/// thousand requests per second from one pod to one service.
pub const MAX_REQUESTS: u32 = 1024;

/// Retries in progress unless said otherwise. Source: Envoy, `Thresholds.max_retries`.
pub const MAX_RETRIES: u32 = 3;

/// Retries as a share of what is in progress where a budget is asked for without one. Source: Envoy,
/// `RetryBudget.budget_percent`.
pub const BUDGET_PERCENT: f64 = 20.0;

/// Retries that are always allowed where a budget is asked for without a minimum. Source: Envoy,
/// `RetryBudget.min_retry_concurrency`.
pub const MIN_RETRY_CONCURRENCY: u32 = 3;

/// Thresholds of one cluster. `Default`: what xDS means by an unset message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Open connections, idle ones included.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending_requests: u32,
    /// Requests in progress.
    pub max_requests: u32,
    /// Attempts beyond the first that are in progress.
    pub retries: Retries,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: MAX_CONNECTIONS,
            max_pending_requests: MAX_PENDING_REQUESTS,
            max_requests: MAX_REQUESTS,
            retries: Retries::Max(MAX_RETRIES),
        }
    }
}

impl Settings {
    /// No limit on anything: destinations that no control plane describes.
    pub const UNLIMITED: Self = Self {
        max_connections: u32::MAX,
        max_pending_requests: u32::MAX,
        max_requests: u32::MAX,
        retries: Retries::Max(u32::MAX),
    };
}

/// A bound on retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retries {
    /// This many at a time.
    Max(u32),
    /// A share of what is in progress, and never less than a minimum.
    Budget {
        /// The share.
        share: Share,
        /// Always allowed.
        min_concurrency: u32,
    },
}

impl Retries {
    /// How many retries may be in progress while `in_progress` requests are active or wait for a connection.
    #[must_use]
    pub fn allowed(self, in_progress: u32) -> u32 {
        match self {
            Self::Max(max) => max,
            Self::Budget { share, min_concurrency } => share.of(in_progress).max(min_concurrency),
        }
    }
}

/// A share between nothing and all, in millionths: exact and comparable, which `f64` is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    const ALL: u32 = 1_000_000;

    /// A share in percent; `None` unless it lies between 0 and 100.
    #[must_use]
    pub fn percent(percent: f64) -> Option<Self> {
        let millionths = percent * f64::from(Self::ALL) / 100.0;
        (0.0..=100.0).contains(&percent).then_some(Self(millionths.round() as u32))
    }

    /// This share of `whole`, rounded down.
    #[must_use]
    pub fn of(self, whole: u32) -> u32 {
        // At most `whole`, so it fits.
        (u64::from(whole) * u64::from(self.0) / u64::from(Self::ALL)) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_budget_is_a_share_with_a_floor() {
        let budget = |percent| Retries::Budget {
            share: Share::percent(percent).expect("a share"),
            min_concurrency: 3,
        };
        let table = [
            (20.0, 0, 3),
            (20.0, 15, 3),
            (20.0, 19, 3),
            (20.0, 20, 4),
            (20.0, 1000, 200),
            (25.0, 100, 25),
            (0.0, 1000, 3),
            (100.0, 1000, 1000),
        ];
        for (percent, in_progress, allowed) in table {
            assert_eq!(budget(percent).allowed(in_progress), allowed, "{percent} % of {in_progress}");
        }
        assert_eq!(Retries::Max(7).allowed(1000), 7);
    }

    #[test]
    fn a_share_is_between_nothing_and_all() {
        for percent in [-1.0, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Share::percent(percent), None, "{percent}");
        }
    }

    proptest! {
        #[test]
        fn a_share_is_never_more_than_the_whole(percent in 0.0..=100.0_f64, whole: u32) {
            let share = Share::percent(percent).expect("a share").of(whole);
            prop_assert!(share <= whole);
            prop_assert!((f64::from(share) - f64::from(whole) * percent / 100.0).abs() <= 1.0 + f64::from(whole) / 1e6);
        }
    }
}
