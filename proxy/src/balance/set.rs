//! The endpoints of one cluster on one worker: which of them may be chosen, and the choice.
//!
//! In: the control plane's list whenever its generation changed, and what else decides whether an endpoint is available.
//! Out: an endpoint. Work is done when something changes, not for each request: endpoints are sorted into groups (healthy
//! ones of the first priority; of the next; all of them in panic), each with its share of load and its algorithm's state.
//! With everything in order there is one group.
//!
//! Invariants: an address that stays keeps its load, its connections and its turn; one that goes gives up its idle
//! connections at once and every other when its request ends. Choosing allocates nothing. Surprise: an endpoint that
//! failed a request is avoided for its next attempt even at the price of another zone.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use weft_wire::SpiffeId;

use super::Ask;
use super::algorithm::{Picker, Turns, sample};
use super::circuits::ClusterState;
use super::endpoints::{Endpoint, Names};
use super::policy::{Policy, ZonePreference};
use super::spread::{Level, OVERPROVISIONING_DEFAULT, WHOLE, spread};
use crate::xds::{self, Health};

/// How often the algorithm may answer again when it names an endpoint that was tried; then any other is taken. What
/// Istio tells Envoy (`host_selection_retry_max_attempts`).
const RESELECTIONS_MAX: usize = 5;

/// What the choice depends on besides the endpoints.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// How the cluster balances.
    pub policy: &'a Policy,
    /// The sidecar's zone.
    pub zone: Option<&'a str>,
    /// What all workers know of the endpoints.
    pub circuit: &'a ClusterState,
    /// Now.
    pub now: Instant,
    /// Whether the cluster is called by mutual TLS where endpoints have an identity.
    pub mutual: bool,
}

impl View<'_> {
    /// Who must be at an endpoint, where that matters.
    pub(super) fn identity_of(&self, endpoint: &xds::Endpoint) -> Option<Arc<SpiffeId>> {
        endpoint.identity.clone().filter(|_| self.mutual)
    }
}

/// All endpoints of a cluster on one worker.
#[derive(Default)]
pub struct Set {
    generation: Option<u64>,
    /// As in [`View`].
    mutual: bool,
    availability: u64,
    overprovisioning: Option<u32>,
    all: Vec<Rc<Endpoint>>,
    ready: Vec<Rc<Endpoint>>,
    groups: Vec<Group>,
    by_hash: bool,
    expires: Option<Instant>,
}

/// Endpoints that are chosen from for a part of the load.
struct Group {
    kind: Kind,
    /// This group serves if a number from 1 to 100 is at most this, and more than the group's before.
    until: u32,
    members: Vec<Rc<Endpoint>>,
    picker: Picker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    priority: u32,
    which: Which,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Healthy,
    Degraded,
    /// Panic.
    All,
}

/// One chosen.
pub struct Chosen {
    /// The endpoint.
    pub endpoint: Rc<Endpoint>,
    /// Whether too few were available, so that availability was ignored.
    pub panic: bool,
}

impl Set {
    /// Whether `list` is what this set was last made from, for a cluster that is called in the same way.
    #[must_use]
    pub fn is_current(&self, list: &xds::Endpoints, mutual: bool) -> bool {
        self.generation == Some(list.generation) && self.mutual == mutual
    }

    /// Whether endpoints have become available or unavailable, or grown up, so that they must be
    /// [sorted anew](Self::regroup).
    #[must_use]
    pub fn is_outdated(&self, circuit: &ClusterState, now: impl FnOnce() -> Instant) -> bool {
        self.availability != circuit.generation() || self.expires.is_some_and(|expires| now() >= expires)
    }

    /// Endpoints that may be chosen.
    #[must_use]
    pub fn ready(&self) -> &[Rc<Endpoint>] {
        &self.ready
    }

    /// Every endpoint, ready or not.
    #[must_use]
    pub fn all(&self) -> &[Rc<Endpoint>] {
        &self.all
    }

    /// Whether too few endpoints are available somewhere, so that all are used there.
    #[must_use]
    pub fn panics(&self) -> bool {
        self.groups.iter().any(|group| group.kind.which == Which::All)
    }

    /// Takes over a new list; `names` resolves an endpoint's name for telemetry.
    pub fn apply(
        &mut self,
        list: &xds::Endpoints,
        view: View<'_>,
        random: impl FnMut() -> u64,
        mut names: impl FnMut(&xds::Endpoint) -> Names,
    ) {
        let mut known: HashMap<SocketAddr, Rc<Endpoint>> =
            self.all.drain(..).map(|endpoint| (endpoint.address, endpoint)).collect();
        self.all.extend(list.list.iter().map(|new| match known.remove(&new.address) {
            Some(kept) => {
                kept.update(new, view, names(new));
                kept
            }
            None => Endpoint::new(new, view, names(new)),
        }));
        if !known.is_empty() {
            view.circuit.shrunk();
        }
        for gone in known.into_values() {
            gone.pool.close();
        }
        self.generation = Some(list.generation);
        self.mutual = view.mutual;
        self.overprovisioning = Some(list.overprovisioning);
        self.regroup(view, random);
    }

    /// Sorts the endpoints anew: some have become available or unavailable, or the policy is another one.
    pub fn regroup(&mut self, view: View<'_>, mut random: impl FnMut() -> u64) {
        // Read before the endpoints are: what changes meanwhile is noticed the next time.
        self.availability = view.circuit.generation();
        let mut levels: BTreeMap<u32, (Level, Vec<Rc<Endpoint>>)> = BTreeMap::new();
        for endpoint in &self.all {
            endpoint.renew(view.circuit);
            let place = endpoint.place();
            let available = endpoint.judge(view.now);
            let (level, members) = levels.entry(place.priority).or_default();
            level.total += 1;
            level.healthy += usize::from(available && place.health == Health::Healthy);
            level.degraded += usize::from(available && place.health == Health::Degraded);
            members.push(Rc::clone(endpoint));
        }
        let counts: Vec<Level> = levels.values().map(|(level, _)| *level).collect();
        let overprovisioning = self.overprovisioning.unwrap_or(OVERPROVISIONING_DEFAULT);
        let shares = spread(&counts, overprovisioning, view.policy.panic_percent);
        let first = levels.keys().next().copied().unwrap_or(0);
        let levels = || shares.iter().zip(&levels);

        self.by_hash = view.policy.algorithm.by_hash();
        self.ready.clear();
        let old = std::mem::take(&mut self.groups);
        let mut until = 0;
        let healthy = levels().map(|(share, level)| (share.healthy, share.panic, Which::Healthy, level));
        let degraded = levels().map(|(share, level)| (share.degraded, share.panic, Which::Degraded, level));
        for (share, panic, which, (&priority, (_, members))) in healthy.chain(degraded) {
            if share == 0 {
                continue;
            }
            until += share;
            let kind = Kind { priority, which: if panic { Which::All } else { which } };
            let available =
                members.iter().filter(|member| kind.includes(member)).cloned().collect::<Vec<_>>();
            // A priority that panics for healthy and for degraded load has two groups of the same endpoints.
            if !self.groups.iter().any(|group| group.kind == kind) {
                self.ready.extend(available.iter().cloned());
            }
            let members = match view.policy.zone {
                Some(zone) if priority == first && !panic && !self.by_hash => {
                    prefer(zone, members, available)
                }
                _ => available,
            };
            let turns = turns(&old, kind);
            let picker = Picker::new(view.policy, &members, &turns, view.now, &mut random);
            self.groups.push(Group { kind, until, members, picker });
        }
        self.expires = self.groups.iter().filter_map(|group| group.picker.expires()).min();
    }

    /// One of the endpoints that may be chosen, if possible none that was tried.
    pub fn choose(&mut self, ask: Ask<'_>, now: Instant, mut random: impl FnMut() -> u64) -> Option<Chosen> {
        let number = match ask.hash {
            Some(hash) if self.by_hash => hash,
            _ if self.by_hash || self.groups.len() > 1 => random(),
            _ => 0,
        };
        let group = match &mut *self.groups {
            [only] => only,
            several => {
                let ticket = (number % u64::from(WHOLE)) as u32 + 1;
                several.iter_mut().find(|group| ticket <= group.until)?
            }
        };
        if group.members.is_empty() {
            return None;
        }
        let panic = group.kind.which == Which::All;
        let tried = |endpoint: &Rc<Endpoint>| ask.tried.iter().any(|tried| Rc::ptr_eq(tried, endpoint));
        let attempts = if ask.tried.is_empty() { 0 } else { RESELECTIONS_MAX };
        let mut position = 0;
        for attempt in 0..=attempts {
            position = group.picker.pick(&group.members, now, number, attempt, &mut random);
            if ask.tried.is_empty() || !tried(&group.members[position]) {
                return Some(Chosen { endpoint: Rc::clone(&group.members[position]), panic });
            }
        }
        let start = sample::one_of(self.ready.len(), random());
        let (before, after) = self.ready.split_at(start);
        let other = after.iter().chain(before).find(|endpoint| !tried(endpoint));
        Some(Chosen { endpoint: Rc::clone(other.unwrap_or(&group.members[position])), panic })
    }
}

impl Kind {
    fn includes(self, endpoint: &Endpoint) -> bool {
        match self.which {
            Which::All => true,
            Which::Healthy => endpoint.since().is_some() && endpoint.place().health == Health::Healthy,
            Which::Degraded => endpoint.since().is_some() && endpoint.place().health == Health::Degraded,
        }
    }
}

/// Those in the own zone, if enough of them are available; else all that are.
fn prefer(zone: ZonePreference, all: &[Rc<Endpoint>], available: Vec<Rc<Endpoint>>) -> Vec<Rc<Endpoint>> {
    let own = |members: &[Rc<Endpoint>]| members.iter().filter(|member| member.place().own_zone).count();
    let (have, of) = (own(&available), own(all));
    let enough = have >= zone.min_own as usize
        && available.len() >= zone.min_cluster_size as usize
        && have * 100 >= of * zone.min_healthy_percent as usize;
    if enough { available.into_iter().filter(|member| member.place().own_zone).collect() } else { available }
}

/// Whose turn it was in the group of this kind, or else in one of this priority: entering panic starves nobody.
fn turns(old: &[Group], kind: Kind) -> Turns {
    let same = old.iter().find(|group| group.kind == kind);
    let similar = || old.iter().find(|group| group.kind.priority == kind.priority);
    same.or_else(similar).map(|group| group.picker.turns(&group.members)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
