//! The hash ring (Ketama), so that equal hashes find the same member and a change moves few of them. Pure.
//!
//! In: members' keys and weights, and a size. Out: the member behind a hash. Each member stands on the ring as often as
//! its weight says, where the hashes of `<key>_0`, `<key>_1`, … fall; a request goes to the first at or after its own.
//! Invariant: the same members in the same order make the same ring as Envoy's, entry by entry.

use twox_hash::XxHash64;

/// A ring.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    /// Hash and member, by hash.
    entries: Box<[(u64, u32)]>,
}

impl Ring {
    /// A ring of members 0, 1, … with these keys and weights (at least 1), about `minimum` and at most `maximum` entries
    /// large.
    #[must_use]
    pub fn new<'a>(
        members: impl Iterator<Item = (&'a str, u32)> + Clone,
        minimum: u32,
        maximum: u32,
    ) -> Self {
        let sum: f64 = members.clone().map(|(_, weight)| f64::from(weight)).sum();
        let least = members.clone().map(|(_, weight)| f64::from(weight) / sum).fold(1.0, f64::min);
        // The lightest member gets a whole number of entries; with equal weights, everybody gets the same.
        let scale = ((least * f64::from(minimum)).ceil() / least).min(f64::from(maximum));
        let mut entries = Vec::with_capacity(scale.ceil() as usize);
        let (mut have, mut due) = (0.0, 0.0);
        let mut key = String::new();
        for (member, (name, weight)) in members.enumerate() {
            due += scale * (f64::from(weight) / sum);
            let mut copy = 0_u32;
            while have < due {
                key.clear();
                key.push_str(name);
                key.push('_');
                push_decimal(&mut key, copy);
                entries.push((XxHash64::oneshot(0, key.as_bytes()), member as u32));
                copy += 1;
                have += 1.0;
            }
        }
        entries.sort_unstable();
        Self { entries: entries.into() }
    }

    /// The member behind a hash; the `attempt`-th after it on the ring, which may be the same one. `None` without
    /// members.
    #[must_use]
    pub fn member(&self, hash: u64, attempt: usize) -> Option<usize> {
        let first = self.entries.partition_point(|&(entry, _)| entry < hash);
        // Beyond the last comes the first.
        let place = first.wrapping_add(attempt).checked_rem(self.entries.len())?;
        Some(self.entries[place].1 as usize)
    }

    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Without the machinery of formatting: this is done for every entry of every ring.
fn push_decimal(text: &mut String, number: u32) {
    if number >= 10 {
        push_decimal(text, number / 10);
    }
    text.push(char::from(b'0' + (number % 10) as u8));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(members: &[(&str, u32)], minimum: u32, maximum: u32) -> Ring {
        Ring::new(members.iter().copied(), minimum, maximum)
    }

    fn counts(ring: &Ring, members: usize) -> Vec<usize> {
        let mut counts = vec![0; members];
        for &(_, member) in &ring.entries {
            counts[member as usize] += 1;
        }
        counts
    }

    #[test]
    fn entries_stand_where_envoy_puts_them() {
        // From Envoy's own test of its ring: six members at 127.0.0.1:90 to :95, twelve entries.
        let names: Vec<String> = (90..96).map(|port| format!("127.0.0.1:{port}")).collect();
        let ring = Ring::new(names.iter().map(|name| (name.as_str(), 1)), 12, 12);
        let order: Vec<usize> = ring.entries.iter().map(|&(_, member)| member as usize).collect();
        assert_eq!(order, [4, 2, 0, 5, 3, 1, 1, 3, 5, 2, 4, 0]);
        assert_eq!(ring.entries[0].0, 833_437_586_790_550_860);
        assert_eq!(ring.entries[3].0, 3_551_244_743_356_806_947);
        assert_eq!(ring.entries[11].0, 16_117_243_373_044_804_889);
        assert_eq!(ring.member(0, 0), Some(4));
        assert_eq!(ring.member(3_551_244_743_356_806_947, 0), Some(5), "at an entry is before it");
        assert_eq!(ring.member(3_551_244_743_356_806_948, 0), Some(3));
        assert_eq!(ring.member(u64::MAX, 0), Some(4), "beyond the last comes the first");
        assert_eq!(ring.member(0, 1), Some(2), "another attempt goes on along the ring");
        assert_eq!(ring.member(u64::MAX, 1), Some(2));
    }

    #[test]
    fn weights_are_numbers_of_entries() {
        let ring = ring(&[("a", 1), ("b", 3)], 1024, 8192);
        assert_eq!(counts(&ring, 2), [256, 768]);
    }

    #[test]
    fn an_empty_ring_has_nobody() {
        assert_eq!(ring(&[], 1024, 8192).member(7, 0), None);
    }

    proptest! {
        #[test]
        fn a_ring_is_as_large_as_it_should_be(
            weights in proptest::collection::vec(1_u32..1000, 1..40), minimum in 1_u32..3000, more in 0_u32..3000,
        ) {
            let names: Vec<String> = (0..weights.len()).map(|number| number.to_string()).collect();
            let members = names.iter().map(String::as_str).zip(weights.iter().copied());
            let ring = Ring::new(members, minimum, minimum + more);
            prop_assert!(ring.len() <= (minimum + more) as usize + 1);
            prop_assert!(ring.len() >= minimum as usize, "{} {minimum}", ring.len());
        }

        #[test]
        fn who_stays_keeps_most_of_its_hashes(count in 2_usize..20, gone in 0_usize..20, hashes: [u64; 32]) {
            let gone = gone % count;
            let names: Vec<String> = (0..count).map(|number| format!("10.0.0.{number}:80")).collect();
            let members = |without: Option<usize>| {
                let kept: Vec<&str> = names.iter().enumerate()
                    .filter(|&(number, _)| Some(number) != without).map(|(_, name)| name.as_str()).collect();
                let ring = Ring::new(kept.iter().map(|&name| (name, 1)), 256, 256 * count as u32);
                move |hash| ring.member(hash, 0).map(|member| kept[member])
            };
            let (before, after) = (members(None), members(Some(gone)));
            let moved = hashes.iter().filter(|&&hash| before(hash) != after(hash)).count();
            let share = 32 / count;
            prop_assert!(moved <= share + 16, "{moved} of 32 moved when one of {count} went");
        }
    }
}
