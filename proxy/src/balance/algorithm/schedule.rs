//! Earliest deadline first: members take turns in proportion to their weights. Pure.
//!
//! In: weights, at the moment of each pick. Out: whose turn it is. A member's next turn is due `1 / weight` after its last,
//! so weights 3 and 1 give AABA…, never AAAB with a pause. Invariant: with constant weights no member is ever more than one
//! turn away from its share. Surprise: a weight is read when the member is picked and counts from its next turn on.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

/// A weight below this would put the next turn out of sight.
const WEIGHT_MIN: f64 = 1e-6;

#[derive(Debug, Clone, Copy)]
struct Turn {
    due: f64,
    /// Ties go to whoever has waited longer.
    order: u64,
    member: usize,
}

impl Ord for Turn {
    /// The heap gives its greatest first: the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.due.total_cmp(&self.due).then_with(|| other.order.cmp(&self.order))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

/// Whose turn it is.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    turns: BinaryHeap<Turn>,
    now: f64,
    order: u64,
}

impl Schedule {
    /// Members 0, 1, … with these weights. Those of `kept` are as far from their next turn as they were; each other
    /// begins anywhere within its first interval, so that proxies which start together do not all begin with the same
    /// one.
    #[must_use]
    pub fn new<K: Hash + Eq>(
        members: impl Iterator<Item = (K, f64)>,
        kept: &HashMap<K, f64>,
        mut random: impl FnMut() -> u64,
    ) -> Self {
        let mut schedule = Self::default();
        for (member, (key, weight)) in members.enumerate() {
            let interval = 1.0 / weight.max(WEIGHT_MIN);
            // The wait may be from a time when the weight was smaller.
            let wait = kept.get(&key).map_or_else(|| interval * unit(random()), |wait| wait.min(interval));
            schedule.push(member, wait);
        }
        schedule
    }

    /// How far each member is from its next turn.
    pub fn waits(&self) -> impl Iterator<Item = (usize, f64)> {
        self.turns.iter().map(|turn| (turn.member, turn.due - self.now))
    }

    /// Whose turn it is; `weight` tells when its next one is due. `None` without members.
    pub fn pick(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let mut first = self.turns.peek_mut()?;
        self.now = self.now.max(first.due);
        self.order += 1;
        first.due = self.now + 1.0 / weight(first.member).max(WEIGHT_MIN);
        first.order = self.order;
        Some(first.member)
    }

    fn push(&mut self, member: usize, wait: f64) {
        self.order += 1;
        self.turns.push(Turn { due: self.now + wait, order: self.order, member });
    }
}

/// A number above 0 and up to 1.
fn unit(random: u64) -> f64 {
    ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(weights: &[f64], seed: u64) -> Schedule {
        let mut random = fastrand::Rng::with_seed(seed);
        Schedule::new(weights.iter().copied().enumerate(), &HashMap::new(), || random.u64(..))
    }

    #[test]
    fn turns_are_spread_out() {
        let weights = [3.0, 1.0];
        let mut schedule = schedule(&weights, 1);
        let turns: Vec<_> = (0..40).filter_map(|_| schedule.pick(|member| weights[member])).collect();
        assert!(
            turns.windows(4).all(|four| four.iter().filter(|&&member| member == 1).count() == 1),
            "{turns:?}"
        );
    }

    #[test]
    fn nobody_of_nobody() {
        assert_eq!(Schedule::default().pick(|_| 1.0), None);
    }

    proptest! {
        #[test]
        fn everybody_gets_its_share(weights in proptest::collection::vec(1_u32..20, 1..12), seed: u64) {
            let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
            let mut schedule = schedule(&weights, seed);
            let total: f64 = weights.iter().sum();
            let mut turns = vec![0.0; weights.len()];
            for picks in 1..=500_u32 {
                let member = schedule.pick(|member| weights[member]).expect("somebody");
                turns[member] += 1.0;
                for (turns, weight) in turns.iter().zip(&weights) {
                    let share = f64::from(picks) * weight / total;
                    // One turn for the random start, one for being due.
                    prop_assert!((turns - share).abs() <= 2.0 + weight / total * weights.len() as f64, "{turns} {share}");
                }
            }
        }

        #[test]
        fn a_turn_survives_any_number_of_updates(seed: u64, picks_between in 0_usize..4) {
            // Ten members of equal weight; an update comes every few picks. Without memory, the random start of each
            // new schedule would let chance decide.
            let weights = [1.0; 10];
            let mut random = fastrand::Rng::with_seed(seed);
            let mut schedule = schedule(&weights, seed);
            let mut turns = [0; 10];
            for _ in 0..200 {
                for _ in 0..=picks_between {
                    turns[schedule.pick(|_| 1.0).expect("somebody")] += 1;
                }
                let kept: HashMap<usize, f64> = schedule.waits().collect();
                schedule = Schedule::new(weights.iter().copied().enumerate(), &kept, || random.u64(..));
            }
            let (least, most) = (turns.iter().min().expect("ten"), turns.iter().max().expect("ten"));
            prop_assert!(most - least <= 2, "{turns:?}");
        }
    }
}
