//! One edge of the graph: its routes, its hour of slots, its totals.
//!
//! In: samples, and taking samples back. Out: slots for the view.
//! Invariant: route 0 is the overflow route, so a route that finds no room still counts.

use std::collections::HashMap;
use std::sync::Arc;

use weft_wire::attribute::{METHOD_OTHER, ROUTE_OVERFLOW};

use super::window::{ReasonIndex, RouteIndex, Slot, Timeline, small};
use super::{EdgeId, Measure, Protocol, Sample, Timestamp};

/// Services remembered per edge; a workload behind more names than this is rare.
const SERVICES_MAX: usize = 8;

/// Method and path template.
pub(crate) type Route = (Arc<str>, Arc<str>);

#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) id: EdgeId,
    pub(crate) protocol: Protocol,
    pub(crate) timeline: Timeline,
    pub(crate) first_seen: Timestamp,
    pub(crate) last_seen: Timestamp,
    pub(crate) requests_total: u64,
    pub(crate) connections_total: u64,
    /// The services that were asked for, sorted.
    pub(crate) services: Vec<Arc<str>>,
    routes: Vec<Option<Route>>,
    route_index: HashMap<Route, RouteIndex>,
    /// Samples applied and not taken back, to know when an edge was nothing but a mistake.
    samples: u64,
}

/// What a sample changed in memory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change {
    pub(crate) created: usize,
    pub(crate) recycled: usize,
    pub(crate) folded: bool,
}

impl Edge {
    pub(crate) fn new(id: EdgeId, sample: &Sample) -> Self {
        let overflow: Route = (METHOD_OTHER.into(), ROUTE_OVERFLOW.into());
        Self {
            id,
            protocol: sample.protocol,
            timeline: Timeline::new(),
            first_seen: sample.at,
            last_seen: sample.at,
            requests_total: 0,
            connections_total: 0,
            services: Vec::new(),
            routes: vec![Some(overflow.clone())],
            route_index: HashMap::from([(overflow, 0)]),
            samples: 0,
        }
    }

    /// Counts `sample`; at most `budget` new cells may be made, and `routes_max` routes be known.
    pub(crate) fn apply(
        &mut self,
        sample: &Sample,
        reason: Option<ReasonIndex>,
        budget: usize,
        routes_max: usize,
    ) -> Change {
        self.samples += 1;
        self.first_seen = self.first_seen.min(sample.at);
        self.last_seen = self.last_seen.max(sample.at);
        if let Some(service) = &sample.service
            && self.services.len() < SERVICES_MAX
            && let Err(position) = self.services.binary_search(service)
        {
            self.services.insert(position, service.clone());
        }
        self.requests_total = self.requests_total.saturating_add(sample.requests());
        if let Measure::Opened(count) = sample.measure {
            self.connections_total = self.connections_total.saturating_add(u64::from(count));
        }
        let mut change = Change::default();
        let mut route = 0;
        if let Measure::Requests { method, route: path, .. } = &sample.measure {
            route = self.intern(method, path, routes_max);
            change.folded = route == 0 && **path != *ROUTE_OVERFLOW;
        }
        change.recycled = self.timeline.write(sample.at, true, |slot| {
            let fits = change.created < budget || slot.has_route(route);
            let route = if fits { route } else { 0 };
            change.folded |= !fits;
            change.created += usize::from(count(slot, sample, route, reason));
        });
        change
    }

    /// Takes `sample` back; returns the number of cells that were freed.
    pub(crate) fn retract(&mut self, sample: &Sample, reason: Option<ReasonIndex>) -> usize {
        self.samples = self.samples.saturating_sub(1);
        self.requests_total = self.requests_total.saturating_sub(sample.requests());
        if let Measure::Opened(count) = sample.measure {
            self.connections_total = self.connections_total.saturating_sub(u64::from(count));
        }
        let route = match &sample.measure {
            Measure::Requests { method, route, .. } => {
                self.route_index.get(&(method.clone(), route.clone())).copied().unwrap_or(0)
            }
            _ => 0,
        };
        let mut freed = 0;
        self.timeline.write(sample.at, false, |slot| {
            let route = if slot.has_route(route) { route } else { 0 };
            discount(slot, sample, route, reason);
            freed += slot.sweep();
        });
        freed
    }

    /// Whether everything that was counted on it has been taken back.
    pub(crate) const fn is_void(&self) -> bool {
        self.samples == 0
    }

    /// Method and path template of `route`.
    pub(crate) fn route(&self, route: RouteIndex) -> Option<&Route> {
        self.routes.get(usize::from(route)).and_then(Option::as_ref)
    }

    /// Frees what no window can reach; returns the number of cells that were freed.
    pub(crate) fn expire(&mut self, now: Timestamp, routes_max: usize) -> usize {
        let freed = self.timeline.expire(now);
        // Room for new routes is made only when it is getting scarce: this walks every slot.
        if self.route_index.len() * 4 >= routes_max * 3 {
            let mut used = vec![false; self.routes.len()];
            used[0] = true;
            for route in self.timeline.routes_in_use() {
                used[usize::from(route)] = true;
            }
            for (place, used) in self.routes.iter_mut().zip(used) {
                if !used && let Some(route) = place.take() {
                    self.route_index.remove(&route);
                }
            }
        }
        freed
    }

    pub(crate) fn cells(&self) -> usize {
        self.timeline.cells()
    }

    fn intern(&mut self, method: &Arc<str>, path: &Arc<str>, routes_max: usize) -> RouteIndex {
        let route = (method.clone(), path.clone());
        if let Some(&index) = self.route_index.get(&route) {
            return index;
        }
        if self.route_index.len() >= routes_max {
            return 0;
        }
        let free = self.routes.iter().position(Option::is_none).unwrap_or(self.routes.len());
        let Ok(index) = RouteIndex::try_from(free) else { return 0 };
        if free == self.routes.len() {
            self.routes.push(None);
        }
        self.routes[free] = Some(route.clone());
        self.route_index.insert(route, index);
        index
    }
}

/// Adds `sample` to `slot`; says whether a cell was made.
fn count(slot: &mut Slot, sample: &Sample, route: RouteIndex, reason: Option<ReasonIndex>) -> bool {
    slot.protected(sample.tls, sample.evidence(), true);
    match &sample.measure {
        Measure::Requests { status, durations, .. } => {
            let (cell, created) = slot.route_mut(route);
            cell.add(sample.verdict(), durations, reason);
            cell.statuses.add(*status, small(durations.count()));
            return created;
        }
        Measure::Opened(count) => slot.opened = slot.opened.saturating_add(u64::from(*count)),
        Measure::Closed { durations, .. } => slot.closed.add(sample.verdict(), durations, reason),
        Measure::Bytes { sent, received } => {
            slot.sent = slot.sent.saturating_add(*sent);
            slot.received = slot.received.saturating_add(*received);
        }
        Measure::Folded(count) => slot.folded = slot.folded.saturating_add(u64::from(*count)),
        Measure::Retries { sent, denied } => {
            slot.retried = slot.retried.saturating_add(u64::from(*sent));
            slot.retry_denied = slot.retry_denied.saturating_add(u64::from(*denied));
        }
    }
    false
}

/// The inverse of [`count`].
fn discount(slot: &mut Slot, sample: &Sample, route: RouteIndex, reason: Option<ReasonIndex>) {
    slot.protected(sample.tls, sample.evidence(), false);
    match &sample.measure {
        // The slot may have been recycled since; then there is nothing to take back.
        Measure::Requests { .. } if !slot.has_route(route) => {}
        Measure::Requests { status, durations, .. } => {
            let (cell, _) = slot.route_mut(route);
            cell.take(sample.verdict(), durations, reason);
            cell.statuses.take(*status, small(durations.count()));
        }
        Measure::Opened(count) => slot.opened = slot.opened.saturating_sub(u64::from(*count)),
        Measure::Closed { durations, .. } => slot.closed.take(sample.verdict(), durations, reason),
        Measure::Bytes { sent, received } => {
            slot.sent = slot.sent.saturating_sub(*sent);
            slot.received = slot.received.saturating_sub(*received);
        }
        Measure::Folded(count) => slot.folded = slot.folded.saturating_sub(u64::from(*count)),
        Measure::Retries { sent, denied } => {
            slot.retried = slot.retried.saturating_sub(u64::from(*sent));
            slot.retry_denied = slot.retry_denied.saturating_sub(u64::from(*denied));
        }
    }
}
