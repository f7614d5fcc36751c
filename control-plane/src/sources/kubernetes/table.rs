//! Which objects of a kind are known, and in which state: what turns a list into what changed.
//!
//! In: names and versions, as lists and watches bring them. Out: what must be read, and what is gone. Invariant: an object
//! is gone only when the server says so, or when a list that came to its end did not have it.

use std::collections::{HashMap, HashSet};

use crate::world::ObjectName;

/// The known objects of one kind.
#[derive(Debug, Default)]
pub(super) struct Table {
    known: HashMap<ObjectName, Known>,
    /// What the list that is being read has shown so far.
    listed: HashSet<ObjectName>,
}

#[derive(Debug)]
struct Known {
    version: Box<str>,
    /// Whether it has been readable once: then there is something to keep.
    good: bool,
}

impl Table {
    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.listed = HashSet::with_capacity(self.known.len());
    }

    /// The list has this. Whether it has to be read.
    pub(super) fn list(&mut self, name: &ObjectName, version: &str) -> bool {
        self.listed.insert(name.clone());
        self.known.get(name).is_none_or(|known| version.is_empty() || *known.version != *version)
    }

    /// The list has come to its end; what it did not have is gone.
    pub(super) fn end(&mut self) -> Vec<ObjectName> {
        let listed = std::mem::take(&mut self.listed);
        let gone: Vec<ObjectName> =
            self.known.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        for name in &gone {
            self.known.remove(name);
        }
        gone
    }

    /// An object has been read; `good` if that went well. Whether there is an earlier state to keep if not.
    pub(super) fn read(&mut self, name: &ObjectName, version: &str, good: bool) -> bool {
        let was_good = self.known.get(name).is_some_and(|known| known.good);
        let known = Known { version: version.into(), good: good || was_good };
        self.known.insert(name.clone(), known);
        was_good
    }

    /// An object is gone. Whether it was known.
    pub(super) fn remove(&mut self, name: &ObjectName) -> bool {
        self.known.remove(name).is_some()
    }

    /// Everything is gone.
    pub(super) fn clear(&mut self) -> Vec<ObjectName> {
        self.listed = HashSet::new();
        std::mem::take(&mut self.known).into_keys().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "shop".into(), name: name.into() }
    }

    #[test]
    fn a_list_that_broke_off_takes_nothing_away() {
        let mut table = Table::default();
        table.begin();
        for each in ["a", "b"] {
            assert!(table.list(&name(each), "1"));
            table.read(&name(each), "1", true);
        }
        assert_eq!(table.end(), []);
        table.begin();
        assert!(!table.list(&name("a"), "1"), "it is as it was");
        // It breaks off, and another begins.
        table.begin();
        assert!(table.list(&name("b"), "2"));
        assert_eq!(table.end(), [name("a")]);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn what_was_never_readable_leaves_nothing_to_keep() {
        let mut table = Table::default();
        assert!(!table.read(&name("a"), "1", false));
        assert!(!table.read(&name("a"), "2", true));
        assert!(table.read(&name("a"), "3", false));
        assert!(table.read(&name("a"), "4", false), "the good state is kept through two bad ones");
        assert!(table.remove(&name("a")) && !table.remove(&name("a")));
    }
}
