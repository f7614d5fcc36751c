//! How long requests took, by the configured rule that routed them and the backend it chose.
//!
//! In: a rule's name, resolved when its configuration arrives ([`RuleName::resolve`]), and how a request ended. Out: cells
//! that the ledger reads. Invariants: recording is an index and an add; a name that stays in the configuration keeps its
//! number, so that a new table does not make new series.
//! Surprise: names are known to the whole process and not to a worker, because a route is made for all of them.
//! Non-goal: what the requests were; the edge's own series say that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use weft_wire::{ServiceId, attribute};

use super::Limit;
use super::cell::{Histogram, Totals};
use super::series::Series;
use super::shard::Edge;

/// Rules and backends that are told apart at a time. A sidecar that calls forty services with a hundred rules of two
/// backends each needs as many; all others are one.
const NAMES_MAX: usize = 8192;

/// A rule and one of its backends, by name and by number.
#[derive(Debug, PartialEq, Eq)]
pub struct RuleName {
    /// Unique in the process; 0 is what is beyond the bound.
    id: u32,
    route: Arc<str>,
    backend: Arc<str>,
}

type Known = HashMap<(Arc<str>, Arc<str>), Weak<RuleName>>;

impl RuleName {
    /// The name of a rule's backend; the same for as long as anybody holds it.
    #[must_use]
    pub fn resolve(route: &Arc<str>, backend: &str) -> Arc<Self> {
        static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Arc::clone(route), Arc::from(backend));
        if let Some(name) = known.get(&key).and_then(Weak::upgrade) {
            return name;
        }
        if known.len() >= NAMES_MAX {
            known.retain(|_, name| name.strong_count() > 0);
        }
        if known.len() >= NAMES_MAX {
            let other = || attribute::ROUTE_OVERFLOW.into();
            return Arc::new(Self { id: 0, route: other(), backend: other() });
        }
        // Four thousand million configurations later it would begin anew.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = Arc::new(Self { id, route: Arc::clone(&key.0), backend: Arc::clone(&key.1) });
        known.insert(key, Arc::downgrade(&name));
        name
    }
}

impl RuleName {
    /// The rule.
    #[must_use]
    pub fn route(&self) -> &str {
        &self.route
    }

    /// Unique in the process; 0 is what is beyond the bound.
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

/// What requests are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RuleLabels {
    pub(crate) route: Arc<str>,
    pub(crate) backend: Arc<str>,
    pub(crate) service: Option<ServiceId>,
    pub(crate) port: u16,
    pub(crate) failed: bool,
}

#[derive(Debug)]
pub(crate) struct RuleSeries {
    labels: RuleLabels,
    duration: Histogram,
}

impl Series for RuleSeries {
    type Labels = RuleLabels;
    type Totals = Totals;

    fn labels(&self) -> RuleLabels {
        self.labels.clone()
    }

    fn moved(&self, _: &RuleLabels) -> bool {
        false
    }

    fn activity(&self) -> u64 {
        self.duration.count()
    }

    fn add_to(&self, totals: &mut Totals) {
        self.duration.add_to(totals);
    }
}

impl Edge {
    pub(super) fn record_rule(&self, name: &RuleName, failed: bool, elapsed: Duration) {
        let mut table = self.rules.borrow_mut();
        let key = u64::from(name.id) << 1 | u64::from(failed);
        if let Some(series) = table.get(key) {
            return series.duration.record(elapsed);
        }
        let beyond = name.id == 0 || !self.core.has_room();
        if beyond {
            self.core.limit(Limit::Rules);
        }
        let key = if beyond { u64::from(failed) } else { key };
        let series = table.get_or_insert(key, || {
            let other = || attribute::ROUTE_OVERFLOW.into();
            let series = Arc::new(RuleSeries {
                labels: RuleLabels {
                    route: if beyond { other() } else { Arc::clone(&name.route) },
                    backend: if beyond { other() } else { Arc::clone(&name.backend) },
                    service: self.spec.service.clone(),
                    port: self.spec.server_port,
                    failed,
                },
                duration: Histogram::default(),
            });
            self.core.publish(&self.core.cells.rules, &series);
            series
        });
        series.duration.record(elapsed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_while_it_is_in_use() {
        let route: Arc<str> = "HTTPRoute/shop/numbered/0".into();
        let first = RuleName::resolve(&route, "a");
        assert_eq!(RuleName::resolve(&route, "a"), first);
        let other = RuleName::resolve(&route, "b");
        assert_ne!(other.id, first.id);
        let old = first.id;
        drop(first);
        assert_ne!(RuleName::resolve(&route, "a").id, old, "a number is never used for another name");
    }
}
