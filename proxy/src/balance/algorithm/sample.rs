//! The best of a few at random. Pure.
//!
//! In: how many there are, what each would cost, random numbers. Out: the cheapest of those looked at. Comparing two is
//! almost as good as comparing all, costs the same however many there are, and does not make every proxy rush to the
//! same one (the power of two choices).

/// Two different positions below `count`, from one random number. `count` must be at least 2.
#[must_use]
pub fn two_of(count: usize, random: u64) -> (usize, usize) {
    debug_assert!(count >= 2, "one of one needs no choice");
    let count = (count as u64).max(2);
    let (high, low) = (random >> 32, random & 0xffff_ffff);
    // Multiply and shift maps 32 random bits to a range without a division.
    let first = (high * count) >> 32;
    let second = (low * (count - 1)) >> 32;
    (first as usize, (if second >= first { second + 1 } else { second }) as usize)
}

/// A position below `count`, which must be at least 1.
#[must_use]
pub fn one_of(count: usize, random: u64) -> usize {
    (((random >> 32) * count as u64) >> 32) as usize
}

/// The cheapest of `choices` positions below `count`; of equally cheap ones, any.
#[must_use]
pub fn cheapest<C: PartialOrd>(
    count: usize,
    choices: usize,
    mut random: impl FnMut() -> u64,
    cost: impl Fn(usize) -> C,
) -> usize {
    if count < 2 {
        return 0;
    }
    if choices == 2 {
        let (first, second) = two_of(count, random());
        return if cost(first) <= cost(second) { first } else { second };
    }
    // All of them, from a random one on: ties are then broken at random.
    let all = choices >= count;
    let start = one_of(count, random());
    let mut best = start;
    for step in 1..choices.min(count) {
        let next = if all { (start + step) % count } else { one_of(count, random()) };
        if cost(next) < cost(best) {
            best = next;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_of_them_find_the_best() {
        let costs = [5, 3, 4, 1, 2];
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..50 {
            assert_eq!(cheapest(5, 9, || random.u64(..), |position| costs[position]), 3);
        }
        assert_eq!(cheapest(1, 2, || 0, |_| 0), 0);
    }

    #[test]
    fn ties_are_broken_at_random() {
        let mut random = fastrand::Rng::with_seed(1);
        for choices in [2, 3, 8] {
            let mut taken = [0; 4];
            for _ in 0..4000 {
                taken[cheapest(4, choices, || random.u64(..), |_| 0)] += 1;
            }
            assert!(taken.iter().all(|count| (850..1150).contains(count)), "{choices}: {taken:?}");
        }
    }

    proptest! {
        #[test]
        fn two_choices_are_two(count in 2_usize..2000, random: u64) {
            let (first, second) = two_of(count, random);
            prop_assert!(first < count && second < count && first != second);
            prop_assert!(one_of(count, random) < count);
        }

        #[test]
        fn more_choices_are_never_worse(seed: u64, count in 1_usize..50, choices in 2_usize..60) {
            let mut random = fastrand::Rng::with_seed(seed);
            let position = cheapest(count, choices, || random.u64(..), |position| position);
            prop_assert!(position < count);
            // The worst of all is never the best of two or more different ones.
            prop_assert!(choices != 2 || count < 2 || position < count - 1);
        }
    }
}
