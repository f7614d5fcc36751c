//! What a rule does to headers: remove, set, add.
//!
//! In: a header map. Out: the same map, changed as the configuration says. Pure. Names and values are parsed when the
//! configuration arrives, so applying them copies nothing.
//!
//! Invariant: within one [`Group`] removals come first, then everything that overwrites, then everything that is added;
//! whether a header is there is judged after the removals and before the rest, as in Envoy.
//! Surprise: groups follow each other from the most to the least specific (backend, rule, virtual host, table), so the
//! table has the last word, which is Envoy's default and can be turned round.
//! Non-goal: values computed from the request (`%…%`); the parser refuses them.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Most headers that one group puts: decisions are one bit each. The Gateway API allows 16 of a kind.
pub const PUTS_MAX: usize = 64;

/// What happens to what is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Stays; one more line is added.
    Append,
    /// Stays, and nothing is added.
    Keep,
    /// Is replaced, or added where there is none.
    Overwrite,
    /// Is replaced; nothing is added where there is none.
    OverwriteOnly,
}

/// One header that is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The header.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderValue,
    /// What happens to what is there already.
    pub existing: Existing,
}

/// What one place of the configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Headers to remove.
    pub remove: Box<[HeaderName]>,
    /// Headers to put, at most [`PUTS_MAX`].
    pub put: Box<[Put]>,
}

impl Group {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.put.is_empty()
    }

    fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        let wanted = self.put.iter().take(PUTS_MAX).enumerate().fold(0_u64, |wanted, (position, put)| {
            let wants = match put.existing {
                Existing::Append | Existing::Overwrite => true,
                Existing::Keep => !headers.contains_key(&put.name),
                Existing::OverwriteOnly => headers.contains_key(&put.name),
            };
            wanted | u64::from(wants) << position
        });
        let wanted = |position: usize| wanted >> position & 1 == 1;
        let puts = || self.put.iter().take(PUTS_MAX).enumerate().filter(|(position, _)| wanted(*position));
        for (_, put) in puts() {
            if matches!(put.existing, Existing::Overwrite | Existing::OverwriteOnly) {
                headers.insert(put.name.clone(), put.value.clone());
            }
        }
        for (_, put) in puts() {
            if matches!(put.existing, Existing::Append | Existing::Keep) {
                headers.append(put.name.clone(), put.value.clone());
            }
        }
    }
}

/// All that a rule, or a backend of it, does to one kind of headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mutations(Box<[Group]>);

impl Mutations {
    /// Groups in the order in which they are applied; empty ones are left out.
    #[must_use]
    pub fn new(groups: impl IntoIterator<Item = Group>) -> Self {
        Self(groups.into_iter().filter(|group| !group.is_empty()).collect())
    }

    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes `headers`.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for group in &self.0 {
            group.apply(headers);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> HeaderName {
        text.parse().expect("a header")
    }

    fn put(header: &str, value: &'static str, existing: Existing) -> Put {
        Put { name: name(header), value: HeaderValue::from_static(value), existing }
    }

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(header, value): &(&str, &str)| (name(header), value.parse().expect("a value"));
        lines.iter().map(line).collect()
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?")))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn each_way_to_put_meets_what_is_there() {
        for (existing, over_one, over_none) in [
            (Existing::Append, &["a: 1", "a: 2"][..], &["a: 2"][..]),
            (Existing::Keep, &["a: 1"], &["a: 2"]),
            (Existing::Overwrite, &["a: 2"], &["a: 2"]),
            (Existing::OverwriteOnly, &["a: 2"], &[]),
        ] {
            let group = Group { put: [put("a", "2", existing)].into(), ..Group::default() };
            let mutations = Mutations::new([group]);
            let mut one = map(&[("a", "1")]);
            mutations.apply(&mut one);
            assert_eq!(lines(&one), over_one, "{existing:?}");
            let mut none = HeaderMap::new();
            mutations.apply(&mut none);
            assert_eq!(lines(&none), over_none, "{existing:?}");
        }
    }

    #[test]
    fn removals_come_first_and_additions_last() {
        let group = Group {
            remove: [name("a")].into(),
            put: [
                put("a", "added", Existing::Append),
                put("a", "set", Existing::Overwrite),
                put("a", "absent", Existing::Keep),
                put("a", "present", Existing::OverwriteOnly),
            ]
            .into(),
        };
        let mut headers = map(&[("a", "1"), ("b", "1")]);
        Mutations::new([group]).apply(&mut headers);
        assert_eq!(lines(&headers), ["a: absent", "a: added", "a: set", "b: 1"]);
    }

    #[test]
    fn the_last_group_has_the_last_word() {
        let set = |value| Group { put: [put("a", value, Existing::Overwrite)].into(), ..Group::default() };
        let mut headers = HeaderMap::new();
        Mutations::new([set("rule"), Group::default(), set("table")]).apply(&mut headers);
        assert_eq!(lines(&headers), ["a: table"]);
        assert!(Mutations::new([Group::default()]).is_empty());
    }

    proptest! {
        #[test]
        fn what_is_not_named_stays(count in 0..PUTS_MAX, kept in "[a-z]{1,8}") {
            let group = Group {
                remove: [name("x-gone")].into(),
                put: (0..count).map(|index| put(&format!("x-{index}"), "1", Existing::Append)).collect(),
            };
            let mut headers = map(&[(&format!("y-{kept}"), "1"), ("x-gone", "1")]);
            Mutations::new([group]).apply(&mut headers);
            prop_assert_eq!(headers.len(), count + 1);
            let survives = headers.contains_key(format!("y-{kept}"));
            prop_assert!(survives);
        }
    }
}
