//! One after the other. Pure.
//!
//! In: how many there are. Out: whose turn it is. Invariant: an update of the members does not change whose turn is next,
//! if it is still there: frequent updates starve nobody.

use std::collections::HashMap;
use std::hash::Hash;

/// Whose turn is next.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rotation {
    next: usize,
}

impl Rotation {
    /// Begins anywhere, so that proxies which start together do not all begin with the same member.
    #[must_use]
    pub fn starting(anywhere: u64) -> Self {
        Self { next: (anywhere >> 32) as usize }
    }

    /// Goes on after an update: with the first of the `old` members, from the next on, that is among the `new` ones.
    #[must_use]
    pub fn resumed<K: Hash + Eq>(self, old: &[K], new: impl Iterator<Item = K>) -> Self {
        let places: HashMap<K, usize> = new.enumerate().map(|(place, key)| (key, place)).collect();
        let next = (0..old.len()).find_map(|step| places.get(&old[(self.next + step) % old.len()]));
        Self { next: next.copied().unwrap_or(self.next) }
    }

    /// Whose turn it is among `count`, which must be at least 1.
    pub fn pick(&mut self, count: usize) -> usize {
        let turn = self.next % count.max(1);
        self.next = turn + 1;
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_in_turn() {
        let mut rotation = Rotation::starting(7 << 32);
        let turns: Vec<_> = (0..6).map(|_| rotation.pick(3)).collect();
        assert_eq!(turns, [1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn an_update_does_not_change_who_is_next() {
        let mut rotation = Rotation::default();
        assert_eq!((rotation.pick(4), rotation.pick(4)), (0, 1));
        let new = ["d", "x", "c"];
        let mut resumed = rotation.resumed(&["a", "b", "c", "d"], new.into_iter());
        assert_eq!(new[resumed.pick(3)], "c");
        let mut gone = rotation.resumed(&["a", "b", "c", "d"], ["a", "y"].into_iter());
        assert_eq!(gone.pick(2), 0, "c and d went, so a is next");
        let mut strangers = rotation.resumed(&["a"], ["y", "z"].into_iter());
        assert!(strangers.pick(2) < 2);
        assert!(rotation.resumed::<&str>(&[], std::iter::empty()).pick(1) == 0);
    }
}
