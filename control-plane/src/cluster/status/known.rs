//! What is written of objects, as far as we have read or written it ourselves.
//!
//! Invariant: one entry for each object of which we have something to say, or have said something. Bounded by the objects there are.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use kube::api::{Api, DynamicObject, ListParams};
use serde_json::Value;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::merge::{Wanted, is_ours};
use super::metrics::Metrics;
use super::write::{KINDS, Kind, Outcome};
use super::{Key, NUMBERS};
use crate::cluster::{Cluster, ask};

/// Objects in one answer.
const PAGE: u32 = 500;
/// How long an object is left alone after it could not be written, or was of another version.
const AGAIN: Duration = Duration::from_secs(5);

/// All of it.
#[derive(Default)]
pub(super) struct Known {
    entries: HashMap<Key, Entry>,
}

struct Entry {
    /// What is said; `None` if it is only known that something is, or that it could not be written.
    said: Option<Wanted>,
    /// When it was written.
    at: Instant,
    /// Not before.
    again: Option<Instant>,
}

impl Known {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets what is known, and finds the objects of which we have said something.
    pub(super) async fn read(&mut self, cluster: &Cluster, metrics: &Metrics) {
        self.entries.clear();
        for kind in &KINDS {
            if let Err(error) = self.read_kind(cluster, kind).await {
                if error.is_not_found() {
                    debug!(kind = kind.kind, "this kind is not installed");
                    continue;
                }
                metrics.count("error");
                let error = &error as &dyn std::error::Error;
                warn!(
                    error,
                    kind = kind.kind,
                    "cannot be listed: what was said of those that are no longer ours stays"
                );
            }
        }
    }

    async fn read_kind(&mut self, cluster: &Cluster, kind: &Kind) -> Result<(), crate::cluster::ApiError> {
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &kind.resource());
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = ask(api.list(&page)).await?;
            for object in list.items {
                let spoken = match kind.is_route() {
                    true => list_at(&object.data, "/status/parents").iter().any(is_ours),
                    false => !list_at(&object.data, "/status/conditions").is_empty(),
                };
                let (Some(namespace), Some(name), true) =
                    (object.metadata.namespace, object.metadata.name, spoken)
                else {
                    continue;
                };
                let key = Key { kind: kind.kind, namespace: namespace.into(), name: name.into() };
                self.entries.insert(key, Entry { said: None, at: Instant::now(), again: None });
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => return Ok(()),
            }
        }
    }

    /// The objects to be written: first those of which something else is said, last those of which only numbers differ.
    pub(super) fn due(&self, wanted: &BTreeMap<Key, Wanted>, now: Instant) -> Vec<Key> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for (key, said) in wanted {
            let Some(entry) = self.entries.get(key) else {
                first.push(key.clone());
                continue;
            };
            if entry.again.is_some_and(|again| now < again) || entry.said.as_ref() == Some(said) {
                continue;
            }
            match &entry.said {
                Some(known) if only_numbers(known, said) => {
                    if now >= entry.at + NUMBERS {
                        last.push(key.clone());
                    }
                }
                _ => first.push(key.clone()),
            }
        }
        let gone = |(key, entry): &(&Key, &Entry)| {
            !wanted.contains_key(*key) && entry.again.is_none_or(|again| now >= again)
        };
        first.extend(self.entries.iter().filter(gone).map(|(key, _)| key.clone()));
        first.extend(last);
        first
    }

    /// When the first of those is to be tried again that could not be written.
    pub(super) fn again(&self) -> Option<Instant> {
        let now = Instant::now();
        self.entries.values().filter_map(|entry| entry.again).filter(|again| *again > now).min()
    }

    /// What was said of an object last.
    pub(super) fn said(&self, key: &Key) -> Option<&Wanted> {
        self.entries.get(key)?.said.as_ref()
    }

    /// Notes what became of it.
    pub(super) fn note(&mut self, key: Key, said: Option<&Wanted>, outcome: &Outcome, now: Instant) {
        match (said, outcome) {
            (_, Outcome::Ahead) => self.failed(key, now),
            (Some(said), Outcome::Written(_) | Outcome::Same) => {
                self.entries.insert(key, Entry { said: Some(said.clone()), at: now, again: None });
            }
            // The world will hear of it in a moment.
            (Some(said), Outcome::Gone) => {
                let again = Some(now + AGAIN);
                self.entries.insert(key, Entry { said: Some(said.clone()), at: now, again });
            }
            (None, _) => drop(self.entries.remove(&key)),
        }
    }

    /// Notes that it was not written, and must not be tried at once.
    pub(super) fn failed(&mut self, key: Key, now: Instant) {
        let said = self.entries.remove(&key).and_then(|entry| entry.said);
        self.entries.insert(key, Entry { said, at: now, again: Some(now + AGAIN) });
    }
}

fn list_at<'a>(data: &'a Value, pointer: &str) -> &'a [Value] {
    data.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whether two differ in nothing but messages.
fn only_numbers(one: &Wanted, other: &Wanted) -> bool {
    let bare = |wanted: &Wanted| {
        let all = wanted.attached.iter().chain(&wanted.conditions);
        let words: Vec<_> =
            all.map(|condition| (condition.kind, condition.status, condition.reason)).collect();
        (wanted.generation, wanted.counted, words)
    };
    bare(one) == bare(other)
}

#[cfg(test)]
mod tests;
