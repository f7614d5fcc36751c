//! From what a sidecar says of circuits, access and rules to their tables, by this program's clock.
//!
//! Only reports that the journal has counted come here, so a repeated report changes nothing. Records of
//! transitions have a sequence of their own and no journal: what is lost with a restart of this program is a line
//! in a list, and the state itself comes with the next report.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;

use super::decode::{self, Decision, Dropped, Group, Reporting, Rule};
use super::habits::Habits;
use super::{Ingest, resolve};
use crate::circuits::{Observer, Sighting, Skew};
use crate::graph::{Histogram, Timestamp};
use crate::rules::Series;

/// What a report says beside its samples.
#[derive(Default)]
pub(super) struct Aside {
    circuits: Vec<(Reporting, Vec<Sighting>)>,
    access: Vec<Decision>,
    rules: Vec<Rule>,
    habits: Habits,
}

impl Aside {
    /// Takes it out of `groups`.
    pub(super) fn take(groups: &mut [Group]) -> Self {
        let mut aside = Self::default();
        for group in groups {
            aside.access.append(&mut group.access);
            aside.rules.append(&mut group.rules);
            aside.habits = aside.habits.and(group.habits);
            if !group.circuits.is_empty() {
                aside.circuits.push((group.reporter.clone(), std::mem::take(&mut group.circuits)));
            }
        }
        aside
    }
}

impl Ingest {
    /// Puts what a counted report of `instance` says into the tables.
    pub(super) fn note(
        &self,
        aside: Aside,
        instance: Option<&Arc<str>>,
        clock: &resolve::Clock,
        received: Timestamp,
    ) {
        if !aside.access.is_empty() {
            self.0.access.with(|access| {
                for Decision { rule, verdict, service, count, end } in aside.access {
                    let mut calls = Histogram::default();
                    calls.add(0, u32::try_from(count).unwrap_or(u32::MAX));
                    access.apply(Series { service, rule, backend: verdict }, clock.place(end), false, &calls);
                }
            });
        }
        if !aside.rules.is_empty() {
            self.0.rules.with(|rules| {
                for Rule { name, backend, service, failed, durations, end } in aside.rules {
                    let series = Series { service, rule: name, backend };
                    rules.apply(series, clock.place(end), failed, &durations);
                }
            });
        }
        let Some(instance) = instance else { return };
        self.0.callers.behaves(instance, aside.habits, received);
        let skew = clock.skew();
        for (reporter, sightings) in aside.circuits {
            let observer = observer(instance.clone(), reporter);
            let sightings = sightings.into_iter().map(|sighting| sighting.placed(skew, received));
            self.0.circuits.with(|circuits| circuits.observe(&observer, skew, sightings));
        }
    }

    /// Takes records of transitions; everything else in `request` is not taken, and said so.
    pub(super) fn accept_logs(&self, request: &ExportLogsServiceRequest, received: Timestamp) -> Dropped {
        let (told, dropped) = decode::decode_logs(request);
        for decode::Told { mut reporter, transitions } in told {
            let Some(instance) = reporter.instance.take() else { continue };
            let observer = observer(instance, reporter);
            self.0.circuits.with(|circuits| {
                let skew: Skew = circuits.skew_of(&observer.instance);
                for mut transition in transitions {
                    transition.sighting = transition.sighting.placed(skew, received);
                    circuits.tell(&observer, transition);
                }
            });
        }
        self.0.metrics.dropped_records(&dropped);
        dropped
    }

    /// Forgets circuits that nobody speaks of any more, and those of sidecars that are gone.
    pub fn expire_circuits(&self, now: Timestamp) {
        let silent = self.0.circuits.with(|circuits| {
            circuits.expire(now);
            circuits.silent(now)
        });
        let gone: Vec<_> =
            silent.into_iter().filter(|instance| self.0.mesh.addresses_of(instance).is_none()).collect();
        self.0.circuits.with(|circuits| {
            for instance in gone {
                circuits.forget(&instance);
            }
        });
    }
}

fn observer(instance: Arc<str>, reporter: Reporting) -> Observer {
    Observer { instance, workload: reporter.workload, pod: reporter.pod }
}
