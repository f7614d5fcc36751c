//! The table: who watches which circuit, and what they said last.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::{
    Callee, Counters, GONE_MAX, IDLE_MAX, Id, Limits, Observer, REMEMBERED, SILENT_MAX, Sighting, Skew,
    Standing, State, Transition,
};
use crate::graph::Timestamp;

/// What is known of an observer.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) observer: Arc<Observer>,
    /// When it was last heard, by what it said and not by when that arrived.
    heard: Timestamp,
    /// Its clock, as of its last report.
    skew: Skew,
    /// The highest sequence of its transitions.
    sequence: u64,
}

/// What one observer said of a circuit last.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) observer: Arc<Observer>,
    pub(super) sighting: Sighting,
}

/// One circuit.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    /// By instance, so that answers are in a stable order.
    pub(super) seen: BTreeMap<Arc<str>, Seen>,
}

/// A transition that was told.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) observer: Arc<Observer>,
    pub(super) transition: Transition,
}

/// Every circuit of the mesh.
#[derive(Debug)]
pub struct Circuits {
    limits: Limits,
    circuits: BTreeMap<Id, Circuit>,
    observers: HashMap<Arc<str>, Known>,
    /// Newest last, by the moment it happened.
    events: VecDeque<Told>,
    observations: usize,
    counters: Counters,
}

impl Circuits {
    /// An empty table.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            circuits: BTreeMap::new(),
            observers: HashMap::new(),
            events: VecDeque::new(),
            observations: 0,
            counters: Counters::default(),
        }
    }

    /// What `observer`, whose clock is off by `skew`, reported; everything is by this program's clock.
    pub fn observe(
        &mut self,
        observer: &Observer,
        skew: Skew,
        sightings: impl IntoIterator<Item = Sighting>,
    ) {
        for sighting in sightings {
            let Some(known) = self.known(observer, sighting.at) else {
                self.counters.dropped += 1;
                continue;
            };
            known.skew = skew;
            let observer = known.observer.clone();
            self.put(&observer, sighting);
        }
    }

    /// The clock of an instance as its last report told it; that of this program when it never reported.
    #[must_use]
    pub fn skew_of(&self, instance: &str) -> Skew {
        self.observers.get(instance).map(|known| known.skew).unwrap_or_default()
    }

    /// A transition that `observer` told; says whether it is news. Its position in its observer's series tells.
    pub fn tell(&mut self, observer: &Observer, transition: Transition) -> bool {
        let Some(known) = self.known(observer, transition.sighting.at) else {
            self.counters.dropped += 1;
            return false;
        };
        if transition.sequence <= known.sequence {
            self.counters.repeated += 1;
            return false;
        }
        known.sequence = transition.sequence;
        let observer = known.observer.clone();
        self.counters.transitions += 1;
        self.put(&observer, transition.sighting.clone());
        if self.events.len() >= self.limits.events {
            self.events.pop_front();
        }
        let later = |told: &Told| told.transition.sighting.at > transition.sighting.at;
        let place = self.events.len() - self.events.iter().rev().take_while(|told| later(told)).count();
        self.events.insert(place, Told { observer, transition });
        true
    }

    /// Forgets what nobody speaks of any more, as seen from `now`.
    pub fn expire(&mut self, now: Timestamp) {
        let observers = &mut self.observers;
        // An observer's sequence is kept for as long as its transitions may be repeated, its circuits are not.
        observers.retain(|_, known| now.since(known.heard) <= REMEMBERED);
        let is_heard = |instance: &str| {
            observers.get(instance).is_some_and(|known| now.since(known.heard) <= SILENT_MAX)
        };
        let mut observations = 0;
        self.circuits.retain(|_, circuit| {
            circuit.seen.retain(|instance, seen| {
                let age = now.since(seen.sighting.at);
                let kept = if seen.sighting.state == State::Closed { IDLE_MAX } else { SILENT_MAX };
                age <= kept && is_heard(instance)
            });
            observations += circuit.seen.len();
            !circuit.seen.is_empty()
        });
        self.observations = observations;
    }

    /// Observers that have been silent for [`GONE_MAX`]: worth asking whether they are still there.
    #[must_use]
    pub fn silent(&self, now: Timestamp) -> Vec<Arc<str>> {
        let silent = self.observers.iter().filter(|(_, known)| now.since(known.heard) > GONE_MAX);
        silent.map(|(instance, _)| instance.clone()).collect()
    }

    /// Forgets the circuits of an observer that is gone.
    pub fn forget(&mut self, instance: &str) {
        let mut removed = 0;
        self.circuits.retain(|_, circuit| {
            removed += usize::from(circuit.seen.remove(instance).is_some());
            !circuit.seen.is_empty()
        });
        self.observations = self.observations.saturating_sub(removed);
    }

    /// How every circuit stands in the eyes of each workload that watches it.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let mut standings = Vec::with_capacity(self.observations);
        for (id, circuit) in &self.circuits {
            let name: Arc<str> = id.to_string().into();
            standings.extend(circuit.seen.values().map(|seen| Standing {
                circuit: name.clone(),
                cluster: id.cluster.clone(),
                callee: seen.sighting.callee.workload.clone(),
                observer: seen.observer.workload.clone(),
                state: seen.sighting.state,
            }));
        }
        standings
    }

    /// The worst state of every circuit.
    pub fn states(&self) -> impl Iterator<Item = (&Id, State)> {
        self.circuits.iter().filter_map(|(id, circuit)| Some((id, circuit.worst()?)))
    }

    /// Number of circuits, each with each of its observers, which is what memory follows.
    #[must_use]
    pub const fn observations(&self) -> usize {
        self.observations
    }

    /// What the table had to leave out.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    pub(super) fn circuits(&self) -> impl Iterator<Item = (&Id, &Circuit)> {
        self.circuits.iter()
    }

    /// Transitions, newest first.
    pub(super) fn told(&self) -> impl Iterator<Item = &Told> {
        self.events.iter().rev()
    }

    /// The entry of an observer that is heard at `at`; `None` when there is no room for a new one.
    fn known(&mut self, observer: &Observer, at: Timestamp) -> Option<&mut Known> {
        let instance = &observer.instance;
        if !self.observers.contains_key(instance) {
            if self.observers.len() >= self.limits.observers {
                return None;
            }
            let known =
                Known { observer: observer.clone().into(), heard: at, skew: Skew::default(), sequence: 0 };
            self.observers.insert(instance.clone(), known);
        }
        let known = self.observers.get_mut(instance)?;
        known.heard = known.heard.max(at);
        Some(known)
    }

    fn put(&mut self, observer: &Arc<Observer>, sighting: Sighting) {
        let is_full = self.observations >= self.limits.observations;
        if is_full && !self.circuits.contains_key(&sighting.id) {
            self.counters.dropped += 1;
            return;
        }
        let circuit = self.circuits.entry(sighting.id.clone()).or_default();
        match circuit.seen.get_mut(&observer.instance) {
            Some(seen) if seen.sighting.at <= sighting.at => {
                let known = std::mem::replace(&mut seen.sighting, sighting);
                seen.sighting.remember(known);
            }
            // Something newer is known.
            Some(_) => {}
            None if is_full => self.counters.dropped += 1,
            None => {
                let seen = Seen { observer: observer.clone(), sighting };
                circuit.seen.insert(observer.instance.clone(), seen);
                self.observations += 1;
            }
        }
    }
}

impl Circuit {
    pub(super) fn worst(&self) -> Option<State> {
        self.seen.values().map(|seen| seen.sighting.state).max()
    }
}

impl Sighting {
    /// Takes over from an earlier sighting what this one does not say.
    fn remember(&mut self, known: Self) {
        self.cause = self.cause.take().or(known.cause);
        self.threshold = self.threshold.or(known.threshold);
        let Callee { workload, version, pod } = known.callee;
        if self.callee.workload.is_none() {
            self.callee.workload = workload;
            self.callee.version = self.callee.version.take().or(version);
            self.callee.pod = self.callee.pod.take().or(pod);
        }
    }
}
