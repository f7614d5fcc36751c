//! The reading side: adds up what workers counted, per label set, and knows what has been reported.
//!
//! In: series as workers create them. Out: totals for `/metrics`, differences for reports. Invariant: every
//! event is in exactly one difference. A worker that lets go of an idle series leaves the last reference here;
//! only then, when nobody can write any more, are its final totals moved to the group and its cells freed.
//! Surprise: a group outlives its series while other workers count under the same labels, because a sum that
//! went down would look like a restart to Prometheus.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::series::{Series, Sum};

/// Label sets kept for a report that cannot be sent. Beyond it, those that nobody writes to any more are
/// dropped and counted. Four times what one worker may have alive.
pub(crate) const GROUPS_MAX: usize = 4 * super::shard::SERIES_MAX;

/// All series of one kind.
#[derive(Debug)]
pub(crate) struct Ledger<S: Series> {
    groups: HashMap<S::Labels, Group<S>>,
}

/// All series with the same labels, one per worker at most times.
#[derive(Debug)]
struct Group<S: Series> {
    members: Vec<Arc<S>>,
    /// Sum of the members that are gone.
    retired: S::Totals,
    /// What the last difference went up to.
    reported: S::Totals,
}

impl<S: Series> Default for Ledger<S> {
    fn default() -> Self {
        Self { groups: HashMap::new() }
    }
}

impl<S: Series> Default for Group<S> {
    fn default() -> Self {
        Self { members: Vec::new(), retired: S::Totals::default(), reported: S::Totals::default() }
    }
}

impl<S: Series> Group<S> {
    fn activity(&self) -> u64 {
        self.retired.activity() + self.members.iter().map(|member| member.activity()).sum::<u64>()
    }

    fn totals(&self) -> S::Totals {
        let mut totals = self.retired.clone();
        for member in &self.members {
            member.add_to(&mut totals);
        }
        totals
    }

    fn retire(&mut self) {
        let Self { members, retired, .. } = self;
        members.retain_mut(|member| {
            // Exclusive access means that the worker has let go; it also makes its last writes visible.
            let gone = Arc::get_mut(member).is_some();
            if gone {
                member.add_to(retired);
            }
            !gone
        });
    }
}

impl<S: Series> Ledger<S> {
    /// Takes in what is new, takes over what is gone, and follows routes that were folded. Returns how many
    /// label sets with unreported events were dropped because of [`GROUPS_MAX`].
    ///
    /// Without anybody to report to, `reporting` is false and groups end with their last series.
    pub(crate) fn settle(&mut self, fresh: Vec<Arc<S>>, reporting: bool) -> u64 {
        for series in fresh {
            self.groups.entry(series.labels()).or_default().members.push(series);
        }
        self.follow_folded();
        for group in self.groups.values_mut() {
            group.retire();
        }
        let mut excess = if reporting { self.groups.len().saturating_sub(GROUPS_MAX) } else { usize::MAX };
        let mut dropped = 0;
        self.groups.retain(|_, group| {
            if !group.members.is_empty() {
                return true;
            }
            let unreported = group.retired.activity() != group.reported.activity();
            if unreported && excess == 0 {
                return true;
            }
            excess -= usize::from(unreported);
            dropped += u64::from(unreported && reporting);
            false
        });
        dropped
    }

    /// Every label set with its totals.
    pub(crate) fn totals(&self, mut visit: impl FnMut(&S::Labels, &S::Totals)) {
        for (labels, group) in &self.groups {
            visit(labels, &group.totals());
        }
    }

    /// Every label set in which something happened since the last call: totals now and then.
    pub(crate) fn differences(&mut self, mut visit: impl FnMut(&S::Labels, &S::Totals, &S::Totals)) {
        for (labels, group) in &mut self.groups {
            if group.activity() == group.reported.activity() {
                continue;
            }
            let now = group.totals();
            visit(labels, &now, &group.reported);
            group.reported = now;
        }
    }

    /// Number of label sets.
    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    fn follow_folded(&mut self) {
        let moved: Vec<S::Labels> = self
            .groups
            .iter()
            .filter(|(labels, group)| group.members.iter().any(|member| member.moved(labels)))
            .map(|(labels, _)| labels.clone())
            .collect();
        for old in moved {
            let Some(group) = self.groups.remove(&old) else { continue };
            let Some(labels) = group.members.first().map(|member| member.labels()) else { continue };
            match self.groups.entry(labels) {
                Entry::Vacant(vacant) => {
                    vacant.insert(group);
                }
                Entry::Occupied(mut occupied) => {
                    let into = occupied.get_mut();
                    into.members.extend(group.members);
                    into.retired.merge(&group.retired);
                    into.reported.merge(&group.reported);
                }
            }
        }
    }
}
