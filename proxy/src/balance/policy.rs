//! How one cluster balances: what the control plane said of it, in the balancer's words.
//!
//! In: values that `xds::parse` has checked. Out: the [`Policy`] that groups and algorithms are made from. Pure.
//! Invariant: every value is in the range its field says; nothing here can divide by zero or grow without bound.

use std::time::Duration;

/// Entries of a hash ring at most. Envoy allows 8 million (134 MB); a worker builds its ring by itself, and a quarter of
/// a million takes it milliseconds and 4 MB.
pub const RING_MAX: u32 = 262_144;

/// Entries of a Maglev table at most: 2.6 MB in each worker. The table should have a hundred entries for every endpoint,
/// so this serves a cluster of six thousand.
pub const MAGLEV_MAX: u32 = 655_373;

/// Share of an endpoint's weight below which slow start never goes: with nothing at all it would never be tried.
const FACTOR_MIN: f64 = 0.001;

/// How a cluster's endpoints are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Which of the endpoints that may be chosen.
    pub algorithm: Algorithm,
    /// How a newcomer's share grows, where the algorithm has shares.
    pub slow_start: Option<SlowStart>,
    /// Percentage of available endpoints below which availability is ignored: the rest would only be overrun. 0: never.
    pub panic_percent: u32,
    /// Whether endpoints in this sidecar's zone come first.
    pub zone: Option<ZonePreference>,
}

impl Default for Policy {
    /// Peak EWMA, and panic below half: what a cluster does that nobody configured.
    fn default() -> Self {
        Self { algorithm: Algorithm::PeakEwma, slow_start: None, panic_percent: 50, zone: None }
    }
}

/// Which of the endpoints that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Algorithm {
    /// The better of two at random, by response time and requests in flight.
    PeakEwma,
    /// The one with the fewest requests in flight.
    LeastRequest {
        /// Endpoints that are compared, at least 2; as many as there are: all.
        choices: u32,
        /// With unequal weights: how strongly requests in flight count against an endpoint; at least 0.
        bias: f64,
    },
    /// One after the other, by weight.
    RoundRobin,
    /// Any; weights do not count.
    Random,
    /// By hash, on a ring.
    RingHash {
        /// Entries at least.
        minimum: u32,
        /// Entries at most, up to [`RING_MAX`].
        maximum: u32,
    },
    /// By hash, in a table.
    Maglev {
        /// Entries: a prime up to [`MAGLEV_MAX`].
        size: u32,
    },
}

impl Algorithm {
    /// Whether equal hashes go to the same endpoint.
    #[must_use]
    pub fn by_hash(self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }
}

/// How a newcomer's share grows to what its weight says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// How long it takes; more than zero.
    pub window: Duration,
    /// 1: linearly with time; more: faster at first. More than zero.
    pub aggression: f64,
    /// Share of its weight from the start, percent.
    pub min_weight_percent: f64,
}

impl SlowStart {
    /// What an endpoint's weight is multiplied with when it has been available for `age`.
    #[must_use]
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let time = age.as_secs_f64().max(0.001) / self.window.as_secs_f64();
        let grown = if self.aggression == 1.0 { time } else { time.powf(1.0 / self.aggression) };
        grown.max(self.min_weight_percent / 100.0).clamp(FACTOR_MIN, 1.0)
    }
}

/// When the sidecar's own zone serves alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZonePreference {
    /// Available endpoints in all zones at least.
    pub min_cluster_size: u32,
    /// Available endpoints in the own zone at least; not 0.
    pub min_own: u32,
    /// Share of the own zone's endpoints that must be available, percent.
    pub min_healthy_percent: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(aggression: f64, min_weight_percent: f64) -> SlowStart {
        SlowStart { window: Duration::from_secs(60), aggression, min_weight_percent }
    }

    #[test]
    fn a_share_grows_with_age_up_to_the_whole() {
        let linear = slow(1.0, 10.0);
        let at = |seconds| linear.factor(Duration::from_secs(seconds));
        assert_eq!((at(0), at(3), at(30), at(60), at(600)), (0.1, 0.1, 0.5, 1.0, 1.0));
        let eager = slow(2.0, 10.0);
        assert!(
            (eager.factor(Duration::from_secs(15)) - 0.5).abs() < 1e-9,
            "a quarter to the power of one half"
        );
    }

    #[test]
    fn nobody_starts_with_nothing() {
        assert_eq!(slow(0.001, 0.0).factor(Duration::ZERO), FACTOR_MIN);
    }
}
