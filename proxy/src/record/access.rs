//! How often each rule of access said what, by edge.
//!
//! In: a rule's name, resolved when its configuration arrives, and what it said. Out: cells that the ledger reads. Invariants:
//! as with routes, recording is an index and an add, and a name that stays in the configuration keeps its number.
//! Surprise: a call that no rule let in is counted under no rule, because nobody can say which one should have.

use std::sync::Arc;

use weft_wire::access::NO_RULE;
use weft_wire::attribute;

use super::cell::Counter;
use super::rules::RuleName;
use super::series::{Series, Sum};
use super::shard::Edge;
use super::{EdgeSpec, Limit};
use crate::policy::authorize::Verdict;

/// What decisions are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AccessLabels {
    pub(crate) edge: Arc<EdgeSpec>,
    pub(crate) rule: Arc<str>,
    pub(crate) verdict: Verdict,
}

#[derive(Debug)]
pub(crate) struct AccessSeries {
    labels: AccessLabels,
    count: Counter,
}

/// How many there were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AccessTotals(pub(crate) u64);

impl Sum for AccessTotals {
    fn merge(&mut self, other: &Self) {
        self.0 += other.0;
    }

    fn activity(&self) -> u64 {
        self.0
    }
}

impl Series for AccessSeries {
    type Labels = AccessLabels;
    type Totals = AccessTotals;

    fn labels(&self) -> AccessLabels {
        self.labels.clone()
    }

    fn moved(&self, _: &AccessLabels) -> bool {
        false
    }

    fn activity(&self) -> u64 {
        self.count.get()
    }

    fn add_to(&self, totals: &mut AccessTotals) {
        totals.0 += self.count.get();
    }
}

impl Edge {
    /// Counts what a rule said; `None` is that none let the call in.
    pub fn record_access(&self, rule: Option<&Arc<RuleName>>, verdict: Verdict) {
        let mut table = self.access.borrow_mut();
        // Names beyond the bound have number 0, as has no rule at all, which is told apart by one more bit.
        let known = rule.is_some_and(|rule| rule.id() != 0);
        let number = rule.map_or(0, |rule| u64::from(rule.id()));
        let key = |number: u64, other: bool| (number << 1 | u64::from(other)) << 2 | verdict as u64;
        let at = key(number, rule.is_some() && !known);
        if let Some(series) = table.get(at) {
            return series.count.add(1);
        }
        let beyond = rule.is_some() && (!known || !self.core.has_room());
        if beyond {
            self.core.limit(Limit::Rules);
        }
        let at = if beyond { key(0, true) } else { at };
        let series = table.get_or_insert(at, || {
            let rule: Arc<str> = match rule {
                None => NO_RULE.into(),
                Some(_) if beyond => attribute::ROUTE_OVERFLOW.into(),
                Some(rule) => rule.route().into(),
            };
            let labels = AccessLabels { edge: Arc::clone(&self.spec), rule, verdict };
            let series = Arc::new(AccessSeries { labels, count: Counter::default() });
            self.core.publish(&self.core.cells.access, &series);
            series
        });
        series.count.add(1);
    }
}
