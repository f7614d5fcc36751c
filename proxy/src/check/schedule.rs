//! Who is asked when, and what answers mean. No IO; time and chance are passed in.
//!
//! In: clusters as they are, results. Out: jobs whose time has come, and endpoints' availability. Invariants: an endpoint's
//! check never runs twice at a time; a result whose task has gone changes nothing; an endpoint is available iff *all*
//! checks of its cluster say so. Surprise: when a cluster's checks are taken away or change, what they found out is
//! forgotten at once or questioned at once: an endpoint must not stay out for a reason that nobody looks into.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Instant;

use weft_wire::SpiffeId;

use crate::balance::ClusterState;
use crate::balance::breaker::health::{Checked, Settings, Verdict};
use crate::xds;

/// Checks of endpoints at most, at some 300 bytes each. Far above what one pod calls.
pub(super) const TASKS_MAX: usize = 10_000;

/// Names one check of one endpoint; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id(u64);

/// A check whose time has come.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) id: Id,
    pub(super) due: Instant,
    pub(super) address: SocketAddr,
    /// The cluster's name.
    pub(super) cluster: Arc<str>,
    pub(super) settings: Arc<Settings>,
    /// Who must be there, where it is called by mutual TLS.
    pub(super) identity: Option<Arc<SpiffeId>>,
}

#[cfg(test)]
impl Job {
    /// A check that is in no schedule.
    pub(super) fn new(address: SocketAddr, cluster: &str, settings: Arc<Settings>, due: Instant) -> Self {
        Self { id: Id(0), due, address, cluster: cluster.into(), settings, identity: None }
    }
}

/// Every check.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    clusters: HashMap<Arc<str>, Watched>,
    tasks: HashMap<Id, Task>,
    /// Those that are not running.
    queue: BTreeSet<(Instant, Id)>,
    last: u64,
}

/// A cluster with checks.
#[derive(Debug)]
struct Watched {
    state: Weak<ClusterState>,
    /// What the tasks were made for: looking again is cheap while both are the same.
    origin: Arc<xds::Cluster>,
    generation: u64,
    settings: Vec<Arc<Settings>>,
    members: HashMap<SocketAddr, Vec<Id>>,
}

#[derive(Debug)]
struct Task {
    cluster: Arc<str>,
    address: SocketAddr,
    settings: Arc<Settings>,
    verdict: Verdict,
    /// Its place in the queue; `None` while it runs.
    due: Option<Instant>,
}

impl Schedule {
    /// Whether there is nothing to check.
    pub(super) fn is_empty(&self) -> bool {
        self.clusters.is_empty()
    }

    /// When the next check is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// Takes over clusters as they are now; returns how many checks found no place.
    pub(super) fn look(
        &mut self,
        clusters: &[Arc<ClusterState>],
        now: Instant,
        mut chance: impl FnMut() -> f64,
    ) -> u64 {
        let mut present = HashSet::with_capacity(self.clusters.len());
        let mut refused = 0;
        for state in clusters {
            let core = state.core();
            let Some(origin) = core.origin().clone() else { continue };
            let watched = self.clusters.get(&core.name);
            if origin.breaking.checks.is_empty() && watched.is_none() {
                continue;
            }
            if origin.breaking.checks.is_empty() {
                self.acquit(state, now);
                continue;
            }
            present.insert(Arc::clone(&core.name));
            let same = watched.is_some_and(|watched| {
                watched.state.as_ptr() == Arc::as_ptr(state)
                    && Arc::ptr_eq(&watched.origin, &origin)
                    && watched.generation == origin.endpoints().generation
            });
            if !same {
                refused += self.adopt(state, &origin, now, &mut chance);
            }
        }
        let gone: Vec<_> = self.clusters.keys().filter(|name| !present.contains(*name)).cloned().collect();
        for name in gone {
            self.remove(&name);
        }
        refused
    }

    /// Makes a cluster's tasks what its settings and endpoints ask for.
    fn adopt(
        &mut self,
        state: &Arc<ClusterState>,
        origin: &Arc<xds::Cluster>,
        now: Instant,
        chance: &mut impl FnMut() -> f64,
    ) -> u64 {
        let name = Arc::clone(&state.core().name);
        let list = origin.endpoints();
        let kept = self.clusters.get(&name).is_some_and(|watched| {
            watched.state.as_ptr() == Arc::as_ptr(state) && watched.asks(&origin.breaking.checks)
        });
        if !kept {
            self.remove(&name);
        }
        let mut watched = self.clusters.remove(&name).unwrap_or_else(|| Watched {
            state: Arc::downgrade(state),
            origin: Arc::clone(origin),
            generation: list.generation,
            settings: origin.breaking.checks.iter().cloned().map(Arc::new).collect(),
            members: HashMap::new(),
        });
        (watched.origin, watched.generation) = (Arc::clone(origin), list.generation);
        let listed: HashSet<SocketAddr> = list.list.iter().map(|endpoint| endpoint.address).collect();
        watched.members.retain(|address, ids| {
            let stays = listed.contains(address);
            if !stays {
                self.forget(ids);
            }
            stays
        });
        let mut refused = 0;
        for endpoint in &list.list {
            if watched.members.contains_key(&endpoint.address) {
                continue;
            }
            if self.tasks.len() + watched.settings.len() > TASKS_MAX {
                refused += 1;
                continue;
            }
            let healthy = !state.endpoint(endpoint.address).state().failed_check;
            let ids = watched.settings.iter().map(|settings| {
                let task = Task {
                    cluster: Arc::clone(&name),
                    address: endpoint.address,
                    settings: Arc::clone(settings),
                    verdict: Verdict::assumed(healthy),
                    due: None,
                };
                self.add(task, now + settings.initial_jitter.mul_f64(chance()))
            });
            watched.members.insert(endpoint.address, ids.collect());
        }
        self.clusters.insert(name, watched);
        refused
    }

    fn add(&mut self, task: Task, due: Instant) -> Id {
        self.last += 1;
        let id = Id(self.last);
        self.tasks.insert(id, Task { due: Some(due), ..task });
        self.queue.insert((due, id));
        id
    }

    fn forget(&mut self, ids: &[Id]) {
        for id in ids {
            if let Some(Task { due: Some(due), .. }) = self.tasks.remove(id) {
                self.queue.remove(&(due, *id));
            }
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(watched) = self.clusters.remove(name) {
            for ids in watched.members.values() {
                self.forget(ids);
            }
        }
    }

    /// Nobody checks this cluster any more.
    fn acquit(&mut self, state: &ClusterState, now: Instant) {
        let core = state.core();
        self.remove(&core.name);
        let millis = core.shared.clock.millis(now);
        for endpoint in state.endpoints() {
            endpoint.checked(true, millis);
        }
    }

    /// A check that is due; it is the caller's until [`finish`](Self::finish).
    pub(super) fn next(&mut self, now: Instant) -> Option<Job> {
        let (due, id) = self.queue.first().copied().filter(|(due, _)| *due <= now)?;
        self.queue.remove(&(due, id));
        let task = self.tasks.get_mut(&id)?;
        task.due = None;
        let (cluster, settings) = (Arc::clone(&task.cluster), Arc::clone(&task.settings));
        let origin =
            self.clusters.get(&cluster).map(|watched| &watched.origin).filter(|origin| origin.mutual);
        let identity = origin.and_then(|origin| {
            let list = origin.endpoints();
            list.list.iter().find(|endpoint| endpoint.address == task.address)?.identity.clone()
        });
        Some(Job { id, due, address: task.address, cluster, settings, identity })
    }

    /// How a check ended. [`look`](Self::look) just before: who has left must not be brought back.
    pub(super) fn finish(&mut self, id: Id, checked: Checked, now: Instant, chance: f64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.verdict = task.verdict.after(&task.settings, checked);
        let (cluster, address) = (Arc::clone(&task.cluster), task.address);
        let Some(watched) = self.clusters.get(&cluster) else { return };
        let Some(state) = watched.state.upgrade() else { return };
        let due = now + task.settings.pause(task.verdict, state.has_traffic(), chance);
        task.due = Some(due);
        self.queue.insert((due, id));

        let ids = watched.members.get(&address).map_or(&[][..], |ids| ids);
        let verdicts = ids.iter().filter_map(|id| self.tasks.get(id));
        let healthy = verdicts.clone().all(|task| task.verdict.is_healthy());
        let next = verdicts.filter_map(|task| task.due).min();
        state.core().count_check(checked == Checked::Passed);
        let clock = state.core().shared.clock;
        let endpoint = state.endpoint(address);
        endpoint.checks_again(next.map_or(0, |next| clock.millis(next)));
        let now = clock.millis(now);
        endpoint.checked(healthy, now);
        if healthy && checked == Checked::Passed {
            endpoint.passed(now);
        }
    }
}

impl Watched {
    fn asks(&self, checks: &[Settings]) -> bool {
        self.settings.len() == checks.len()
            && self.settings.iter().zip(checks).all(|(own, new)| **own == *new)
    }
}

#[cfg(test)]
mod tests;
