//! Maglev's table: equal hashes find the same member, every member has its exact share, and a change moves few. Pure.
//!
//! In: members' keys and weights, and a size that is prime. Out: the member behind a hash. Members take turns, each
//! claiming the next free place of a walk through the table that its key alone decides. Invariant: the same members make
//! the same table as Envoy's, place by place, whatever their order.

use twox_hash::XxHash64;

/// What xDS means by an unset table size.
pub const SIZE_DEFAULT: u32 = 65_537;

/// No member yet.
const FREE: u32 = u32::MAX;

/// A table.
#[derive(Debug, Clone, Default)]
pub struct Table {
    places: Box<[u32]>,
}

/// One member's walk through the table.
struct Walk {
    member: u32,
    offset: u64,
    skip: u64,
    steps: u64,
    weight: f64,
    due: f64,
}

impl Walk {
    fn next(&mut self, size: u64) -> usize {
        let place = (self.offset + self.skip * self.steps) % size;
        self.steps += 1;
        place as usize
    }
}

impl Table {
    /// A table of members 0, 1, … with these keys and weights (at least 1). `size` must be prime.
    #[must_use]
    pub fn new<'a>(members: impl Iterator<Item = (&'a str, u32)> + Clone, size: u32) -> Self {
        let sum: f64 = members.clone().map(|(_, weight)| f64::from(weight)).sum();
        let mut sorted: Vec<(usize, (&str, u32))> = members.enumerate().collect();
        if sorted.is_empty() {
            return Self::default();
        }
        sorted.sort_by_key(|&(_, (key, _))| key);
        let size = u64::from(size);
        let mut walks: Vec<Walk> = sorted
            .into_iter()
            .map(|(member, (key, weight))| Walk {
                member: member as u32,
                offset: XxHash64::oneshot(0, key.as_bytes()) % size,
                skip: XxHash64::oneshot(1, key.as_bytes()) % (size - 1) + 1,
                steps: 0,
                weight: f64::from(weight) / sum,
                due: 0.0,
            })
            .collect();
        Self { places: fill(&mut walks, size) }
    }

    /// The member behind a hash; further attempts look elsewhere, and may find the same one. `None` without members.
    #[must_use]
    pub fn member(&self, hash: u64, attempt: usize) -> Option<usize> {
        // As Envoy does it: almost all bits change, so attempts spread.
        let hash = if attempt > 0 { hash ^ (attempt as u64).wrapping_neg() } else { hash };
        let place = hash.checked_rem(self.places.len() as u64)?;
        Some(self.places[place as usize] as usize)
    }
}

fn fill(walks: &mut [Walk], size: u64) -> Box<[u32]> {
    let heaviest = walks.iter().map(|walk| walk.weight).fold(0.0, f64::max);
    let mut places = vec![FREE; size as usize].into_boxed_slice();
    let mut left = size;
    for round in 1_u32.. {
        for walk in walks.iter_mut() {
            if left == 0 {
                return places;
            }
            // The heaviest takes a place in every round, one with a third of its weight in every third.
            if f64::from(round) * walk.weight < walk.due {
                continue;
            }
            walk.due += heaviest;
            let mut place = walk.next(size);
            while places[place] != FREE {
                place = walk.next(size);
            }
            places[place] = walk.member;
            left -= 1;
        }
    }
    places
}

/// Whether a table of this size is walked through as a whole: only if it is prime.
#[must_use]
pub fn is_prime(number: u32) -> bool {
    let number = u64::from(number);
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| number % divisor != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::policy::MAGLEV_MAX;

    fn names(count: usize) -> Vec<String> {
        (90..90 + count).map(|port| format!("127.0.0.1:{port}")).collect()
    }

    fn table(names: &[String], size: u32) -> Table {
        Table::new(names.iter().map(|name| (name.as_str(), 1)), size)
    }

    #[test]
    fn places_are_taken_as_envoy_takes_them() {
        // From Envoy's own test of its table: six members, seven places.
        let table = table(&names(6), 7);
        assert_eq!(*table.places, [2, 4, 0, 1, 5, 0, 3]);
        assert_eq!(table.member(7 * 5 + 3, 0), Some(1));
    }

    #[test]
    fn an_empty_table_has_nobody() {
        assert_eq!(table(&[], 7).member(3, 0), None);
    }

    #[test]
    fn order_does_not_matter() {
        let names = names(5);
        let mut turned = names.clone();
        turned.rotate_left(2);
        let (one, other) = (table(&names, 997), table(&turned, 997));
        for hash in 0..997 {
            let of =
                |table: &Table, names: &[String]| table.member(hash, 0).map(|member| names[member].clone());
            assert_eq!(of(&one, &names), of(&other, &turned));
        }
    }

    #[test]
    fn primes_are_told_from_others() {
        let primes: Vec<u32> = (0..30).filter(|&number| is_prime(number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(SIZE_DEFAULT) && is_prime(MAGLEV_MAX));
        assert!(!is_prime(SIZE_DEFAULT * 3));
    }

    proptest! {
        #[test]
        fn shares_are_exact(weights in proptest::collection::vec(1_u32..10, 1..20)) {
            let names = names(weights.len());
            let members = names.iter().map(String::as_str).zip(weights.iter().copied());
            let table = Table::new(members, 997);
            let sum: u32 = weights.iter().sum();
            for (member, weight) in weights.iter().enumerate() {
                let places = table.places.iter().filter(|&&place| place as usize == member).count() as f64;
                let share = 997.0 * f64::from(*weight) / f64::from(sum);
                prop_assert!((places - share).abs() <= 2.0 + share * 0.02, "{places} {share}");
            }
        }
    }
}
