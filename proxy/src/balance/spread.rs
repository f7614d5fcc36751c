//! How load spreads over priorities, and when availability is ignored. Pure; Envoy's arithmetic, in whole percent.
//!
//! In: how many endpoints of each priority are healthy, degraded, or there at all. Out: each priority's [`Share`].
//! The first priority serves as long as enough of it is available; "enough" is what the overprovisioning factor forgives
//! (1.4: down to 72 %). What is missing goes to the next priority, and to degraded endpoints only when healthy ones of
//! every priority do not suffice. When all of them together do not suffice, a priority with too few available endpoints
//! panics: it uses all its endpoints, because the few would be overrun.
//!
//! Invariant: shares add up to [`WHOLE`] whenever there is a priority.

/// All load, percent.
pub const WHOLE: u32 = 100;

/// What xDS means by an unset overprovisioning factor, percent.
pub const OVERPROVISIONING_DEFAULT: u32 = 140;

/// The endpoints of one priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Level {
    /// All of them.
    pub total: usize,
    /// Available and well.
    pub healthy: usize,
    /// Available, but better spared.
    pub degraded: usize,
}

impl Level {
    /// Percentage of load that so many of the endpoints carry.
    fn carries(self, count: usize, overprovisioning: u32) -> u32 {
        if self.total == 0 {
            return 0;
        }
        let percent = u64::from(overprovisioning) * count as u64 / self.total as u64;
        percent.min(u64::from(WHOLE)) as u32
    }

    fn available_percent(self) -> f64 {
        if self.total == 0 { 0.0 } else { 100.0 * (self.healthy + self.degraded) as f64 / self.total as f64 }
    }
}

/// One priority's share of load, percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// To healthy endpoints.
    pub healthy: u32,
    /// To degraded ones.
    pub degraded: u32,
    /// To all endpoints instead, whatever their health.
    pub panic: bool,
}

/// Spreads load over `levels`, most preferred first.
#[must_use]
pub fn spread(levels: &[Level], overprovisioning: u32, panic_percent: u32) -> Vec<Share> {
    let healthy: Vec<u32> =
        levels.iter().map(|level| level.carries(level.healthy, overprovisioning)).collect();
    let degraded: Vec<u32> =
        levels.iter().map(|level| level.carries(level.degraded, overprovisioning)).collect();
    let sum: u64 = healthy.iter().chain(&degraded).map(|&percent| u64::from(percent)).sum();
    let carried = sum.min(u64::from(WHOLE)) as u32;

    let mut shares = vec![Share::default(); levels.len()];
    if carried > 0 {
        distribute(&mut shares, &healthy, &degraded, carried);
    }
    for (share, level) in shares.iter_mut().zip(levels) {
        share.panic = carried < WHOLE && level.available_percent() < f64::from(panic_percent);
    }
    if shares.iter().all(|share| share.panic) {
        by_size(&mut shares, levels);
    } else if carried == 0
        && let Some(first) = shares.first_mut()
    {
        // Nobody is available and panic is off: to nobody.
        first.healthy = WHOLE;
    }
    shares
}

/// Fills priorities from the first on, healthy before degraded.
fn distribute(shares: &mut [Share], healthy: &[u32], degraded: &[u32], carried: u32) {
    let mut left = WHOLE;
    let mut give = |percent: u32| {
        let given = (percent * WHOLE / carried).min(left);
        left -= given;
        given
    };
    for (share, &percent) in shares.iter_mut().zip(healthy) {
        share.healthy = give(percent);
    }
    for (share, &percent) in shares.iter_mut().zip(degraded) {
        share.degraded = give(percent);
    }
    // What rounding left over goes to the first that can take it.
    if let Some(first) = healthy.iter().position(|&percent| percent > 0) {
        shares[first].healthy += left;
    } else if let Some(first) = degraded.iter().position(|&percent| percent > 0) {
        shares[first].degraded += left;
    }
}

/// Everybody panics: load goes by how many endpoints there are.
fn by_size(shares: &mut [Share], levels: &[Level]) {
    let total: usize = levels.iter().map(|level| level.total).sum();
    let mut left = WHOLE;
    for (share, level) in shares.iter_mut().zip(levels) {
        let percent = (WHOLE as usize * level.total).checked_div(total).unwrap_or(0) as u32;
        *share = Share { healthy: percent, degraded: 0, panic: true };
        left -= percent;
    }
    let first = levels.iter().position(|level| level.total > 0).unwrap_or(0);
    if let Some(share) = shares.get_mut(first) {
        share.healthy += left;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn level(total: usize, healthy: usize, degraded: usize) -> Level {
        Level { total, healthy, degraded }
    }

    /// Healthy shares, degraded shares and panics with the defaults.
    fn of(levels: &[Level]) -> Vec<(u32, u32, bool)> {
        spread(levels, OVERPROVISIONING_DEFAULT, 50)
            .iter()
            .map(|share| (share.healthy, share.degraded, share.panic))
            .collect()
    }

    #[test]
    fn the_first_priority_serves_alone_while_enough_of_it_is_there() {
        assert_eq!(of(&[level(100, 100, 0), level(100, 100, 0)]), [(100, 0, false), (0, 0, false)]);
        assert_eq!(of(&[level(100, 72, 0), level(100, 100, 0)]), [(100, 0, false), (0, 0, false)]);
    }

    #[test]
    fn the_next_one_takes_what_is_missing() {
        // The table in Envoy's documentation of priority levels.
        assert_eq!(of(&[level(100, 71, 0), level(100, 100, 0)]), [(99, 0, false), (1, 0, false)]);
        assert_eq!(of(&[level(100, 50, 0), level(100, 100, 0)]), [(70, 0, false), (30, 0, false)]);
        assert_eq!(of(&[level(100, 25, 0), level(100, 100, 0)]), [(35, 0, false), (65, 0, false)]);
        assert_eq!(of(&[level(100, 0, 0), level(100, 100, 0)]), [(0, 0, false), (100, 0, false)]);
        assert_eq!(
            of(&[level(100, 25, 0), level(100, 25, 0)]).iter().map(|share| share.0).collect::<Vec<_>>(),
            [50, 50],
            "35 of 70 each, in panic"
        );
    }

    #[test]
    fn degraded_endpoints_serve_when_healthy_ones_do_not_suffice() {
        assert_eq!(of(&[level(10, 5, 5)]), [(70, 30, false)]);
        assert_eq!(of(&[level(10, 8, 2)]), [(100, 0, false)]);
        assert_eq!(of(&[level(10, 0, 10)]), [(0, 100, false)]);
    }

    #[test]
    fn too_few_panic() {
        assert_eq!(of(&[level(4, 1, 0)]), [(100, 0, true)]);
        assert_eq!(of(&[level(4, 2, 0)]), [(100, 0, false)], "half is not less than half");
        assert_eq!(of(&[level(4, 0, 0), level(12, 1, 0)]), [(25, 0, true), (75, 0, true)], "by size");
        assert_eq!(
            of(&[level(4, 1, 0), level(4, 4, 0)]),
            [(35, 0, false), (65, 0, false)],
            "others carry it"
        );
    }

    #[test]
    fn panic_can_be_switched_off() {
        assert_eq!(spread(&[level(4, 0, 0)], 140, 0), [Share { healthy: 100, degraded: 0, panic: false }]);
        assert_eq!(spread(&[level(4, 1, 0)], 140, 0), [Share { healthy: 100, degraded: 0, panic: false }]);
        assert_eq!(spread(&[], 140, 50), []);
    }

    proptest! {
        #[test]
        fn shares_add_up_to_the_whole(
            levels in proptest::collection::vec((0_usize..50, 0_usize..50, 0_usize..50), 1..6),
            overprovisioning in 100_u32..300,
            panic_percent in 0_u32..=100,
        ) {
            let levels: Vec<Level> =
                levels.iter().map(|&(well, poor, down)| level(well + poor + down, well, poor)).collect();
            let shares = spread(&levels, overprovisioning, panic_percent);
            prop_assert_eq!(shares.iter().map(|share| share.healthy + share.degraded).sum::<u32>(), WHOLE);
            let nobody = levels.iter().all(|level| level.healthy + level.degraded == 0);
            for (share, level) in shares.iter().zip(&levels) {
                if !share.panic && !nobody {
                    prop_assert!(level.healthy > 0 || share.healthy == 0, "load to nobody");
                    prop_assert!(level.degraded > 0 || share.degraded == 0, "load to nobody");
                }
            }
        }
    }
}
