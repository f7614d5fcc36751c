//! What all kinds say together: the pure half of the source.
//!
//! In: [`Word`]s of the conversations, in any order between kinds. Out: events for what really changed, as one batch, and
//! everything that people should know.
//!
//! Invariants: nothing is given out before every kind that is needed has been listed; an object that cannot be read keeps
//! its last good state; of several states of one object in a batch only the last counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::kind::{Kind, Need};
use super::owners::Owners;
use crate::resources::served::Served;
use crate::resources::workload::{Owner, OwnerId};
use crate::resources::{Content, Object, ObjectId};
use crate::sources::{Effect, Problem};
use crate::world::{Event, Novelty, ObjectName, World};

/// Where problems are, for people: the place of a file's name.
pub(super) const PLACE: &str = "kubernetes";
/// Problems with objects that are listed: what people read, and what is looked through every second.
const PROBLEMS_MAX: usize = 500;
/// How long something may fail before people are told: a server that restarts, or hands a watch to another, is no problem.
const TROUBLE_MIN: Duration = Duration::from_secs(5);

/// What one conversation has to tell.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) kind: Kind,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// The server does not know the kind.
    Absent,
    /// Something changed, or a list has come to its end.
    Changed(Delta),
    /// After a failure the conversation goes on.
    Recovered,
    /// The conversation has broken off, and goes on as soon as it can.
    Trouble { reason: String, at: Instant },
}

/// What is different from before.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub(super) read: Vec<Reading>,
    pub(super) gone: Vec<ObjectName>,
    /// Whether this makes the kind complete.
    pub(super) listed: bool,
}

/// An object that was read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) name: ObjectName,
    pub(super) said: Said,
    /// Whether there is an earlier state of it.
    pub(super) known: bool,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most are objects, and each lives for a moment")]
pub(super) enum Said {
    /// Something to the mesh; a pod also says whom it is named after.
    Object(Content, Option<OwnerId>),
    /// A ReplicaSet or a Job.
    Owner(Result<Owner, String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Awaited,
    Absent,
    Listed,
}

#[derive(Debug)]
struct Trouble {
    reason: String,
    since: Instant,
}

#[derive(Debug)]
pub(super) struct Catalog {
    phases: BTreeMap<Kind, Phase>,
    troubles: BTreeMap<Kind, Trouble>,
    problems: BTreeMap<(Kind, ObjectName), Vec<Problem>>,
    owners: Owners,
    /// What is to be told to the world; `None` is gone.
    pending: HashMap<ObjectId, Option<Object>>,
    /// Pods that are called differently, although they have not changed.
    renamed: BTreeSet<ObjectName>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            phases: Kind::ALL.into_iter().map(|kind| (kind, Phase::Awaited)).collect(),
            troubles: BTreeMap::new(),
            problems: BTreeMap::new(),
            owners: Owners::default(),
            pending: HashMap::new(),
            renamed: BTreeSet::new(),
        }
    }
}

impl Catalog {
    pub(super) fn take(&mut self, word: Word) {
        let Word { kind, what } = word;
        match what {
            What::Absent => {
                self.troubles.remove(&kind);
                self.phases.insert(kind, Phase::Absent);
            }
            What::Changed(delta) => {
                if delta.listed {
                    self.troubles.remove(&kind);
                    self.phases.insert(kind, Phase::Listed);
                }
                for name in delta.gone {
                    self.remove(kind, &name);
                }
                for reading in delta.read {
                    self.read(kind, reading);
                }
            }
            What::Recovered => drop(self.troubles.remove(&kind)),
            What::Trouble { reason, at } => {
                let since = self.troubles.get(&kind).map_or(at, |known| known.since);
                self.troubles.insert(kind, Trouble { reason, since });
                if kind.need() == Need::Never && self.phases.get(&kind) == Some(&Phase::Awaited) {
                    self.phases.insert(kind, Phase::Absent);
                }
            }
        }
    }

    fn read(&mut self, kind: Kind, reading: Reading) {
        let Reading { name, said, known } = reading;
        let wrong = match (kind, said) {
            (Kind::Object(served), Said::Object(content, after)) => match content {
                Content::Broken(flaws) => flaws.into_iter().map(|flaw| (flaw.field, flaw.reason)).collect(),
                Content::Object(object) => {
                    if let Object::Pod(pod) = &object {
                        self.owners.claim(&pod.name, &pod.workload, after);
                    }
                    self.pending.insert(object.id(), Some(object));
                    Vec::new()
                }
                Content::Unneeded | Content::Unsupported { .. } => {
                    self.drop_object(served, &name);
                    Vec::new()
                }
            },
            (_, Said::Owner(Ok(owner))) => {
                self.renamed.extend(self.owners.set(owner));
                Vec::new()
            }
            (_, Said::Owner(Err(reason))) => vec![("metadata".to_owned(), reason)],
            (Kind::Owner(_), Said::Object(..)) => Vec::new(),
        };
        let effect = if known { Effect::ObjectKeptLastGood } else { Effect::ObjectIgnored };
        let problem = |(field, reason): (String, String)| Problem {
            file: PLACE.into(),
            line: None,
            document: None,
            object: Some(label(kind, &name)),
            field: Some(field).filter(|field| !field.is_empty()),
            reason,
            effect,
        };
        let problems: Vec<Problem> = wrong.into_iter().map(problem).collect();
        if problems.is_empty() {
            self.problems.remove(&(kind, name));
        } else {
            self.problems.insert((kind, name), problems);
        }
    }

    fn remove(&mut self, kind: Kind, name: &ObjectName) {
        self.problems.remove(&(kind, name.clone()));
        match kind {
            Kind::Object(served) => self.drop_object(served, name),
            Kind::Owner(between) => self.renamed.extend(self.owners.remove((between, name.clone()))),
        }
    }

    fn drop_object(&mut self, served: Served, name: &ObjectName) {
        if served == Served::Pod {
            self.owners.forget(name);
        }
        if let Some(id) = served.id(name) {
            self.pending.insert(id, None);
        }
    }

    /// The kinds without which nobody can be served.
    pub(super) fn awaited(&self) -> impl Iterator<Item = Kind> + '_ {
        self.phases.iter().filter(|(_, phase)| **phase == Phase::Awaited).map(|(kind, _)| *kind)
    }

    /// The kinds that the server does not know.
    pub(super) fn absent(&self) -> impl Iterator<Item = Kind> + '_ {
        let absent =
            |(kind, phase): &(&Kind, &Phase)| **phase == Phase::Absent && kind.need() == Need::IfInstalled;
        self.phases.iter().filter(absent).map(|(kind, _)| *kind)
    }

    /// What the world is to be told, as one batch. Nothing before everything is there.
    pub(super) fn flush(&mut self, world: &World) -> Vec<Event> {
        if self.awaited().next().is_some() {
            return Vec::new();
        }
        for name in std::mem::take(&mut self.renamed) {
            if let Some(known) = world.pod(&name) {
                let id = ObjectId::Pod(name);
                self.pending.entry(id).or_insert_with(|| Some(Object::Pod(known.clone())));
            }
        }
        let mut events = Vec::with_capacity(self.pending.len());
        for (id, object) in std::mem::take(&mut self.pending) {
            let event = match object {
                None => id.gone(),
                Some(Object::Pod(mut pod)) => {
                    if let Some(workload) = self.owners.workload(&pod.name) {
                        pod.workload = workload;
                    }
                    Object::Pod(pod).set()
                }
                Some(object) => object.set(),
            };
            // Also most of what a list brings that was only read again.
            if world.novelty(&event) != Novelty::Known {
                events.push(event);
            }
        }
        events
    }

    /// Everything that is wrong.
    pub(super) fn problems(&self, now: Instant) -> Vec<Problem> {
        let mut troubles: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (kind, trouble) in &self.troubles {
            if now.saturating_duration_since(trouble.since) >= TROUBLE_MIN {
                troubles.entry(&trouble.reason).or_default().push(kind.word());
            }
        }
        let trouble = |(reason, kinds): (&str, Vec<&str>)| Problem {
            file: PLACE.into(),
            line: None,
            document: None,
            object: None,
            field: None,
            reason: format!("{} cannot be followed: {reason}", kinds.join(", ")),
            effect: Effect::StateKept,
        };
        let all = self.problems.values().map(Vec::len).sum::<usize>();
        let objects = self.problems.values().flatten().take(PROBLEMS_MAX).cloned();
        let more = all.checked_sub(PROBLEMS_MAX).filter(|more| *more > 0).map(|more| Problem {
            file: PLACE.into(),
            line: None,
            document: None,
            object: None,
            field: None,
            reason: format!("{more} more things are wrong with objects; these are not listed"),
            effect: Effect::ObjectIgnored,
        });
        troubles.into_iter().map(trouble).chain(objects).chain(more).collect()
    }

    /// Why it is not complete yet, for the log.
    pub(super) fn waiting(&self) -> String {
        let kind = |kind: Kind| match self.troubles.get(&kind) {
            Some(trouble) => format!("{kind} ({})", trouble.reason),
            None => kind.to_string(),
        };
        self.awaited().map(kind).collect::<Vec<_>>().join(", ")
    }

    /// What people may want to know although nothing is wrong.
    pub(super) fn notices(&self) -> Vec<String> {
        let mut absent: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for kind in self.absent() {
            absent.entry(kind.absence()).or_default().push(kind.word());
        }
        let notice = |(whose, kinds): (&str, Vec<&str>)| {
            format!(
                "{} {} not installed in this cluster ({whose} CustomResourceDefinitions); they are followed as soon as they are",
                kinds.join(", "),
                if kinds.len() == 1 { "is" } else { "are" },
            )
        };
        absent.into_iter().map(notice).collect()
    }
}

fn label(kind: Kind, name: &ObjectName) -> String {
    if name.namespace.is_empty() { format!("{kind} {}", name.name) } else { format!("{kind} {name}") }
}

#[cfg(test)]
mod tests;
