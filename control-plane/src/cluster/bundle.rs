//! Whom to trust, for pods that are about to start: ConfigMap `weft-trust-bundle` in every namespace that needs it.
//!
//! In: the authority's roots, the namespaces, which of them have pods with sidecars. Out: the ConfigMaps, written by whoever
//! leads and kept as they must be, also while a root is rotated. What is to be done is decided by [`Table::due`], which is pure.
//!
//! Invariants: a ConfigMap that somebody else made is never deleted; of it only our key is written. One that nobody needs any
//! more stays for [`LINGER`]: pods come and go. Surprise: each is owned by the control plane's own Namespace, so that the
//! cluster takes them away when that is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use weft_wire::annotation::INJECT;
use weft_wire::pod::{TRUST_CONFIG_MAP as BUNDLE, TRUST_KEY as KEY};

use super::{ApiError, Cluster, Leading, MANAGER, ask, labels, while_leading};
use crate::ca::{Ca, Leads};
use crate::world::Live;

/// How often to look at what changes without a word: the roots, the pods.
const LOOK: Duration = Duration::from_secs(1);
/// How long a bundle stays that nobody needs.
const LINGER: Duration = Duration::from_secs(300);
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(25);
/// How long a namespace is left alone in which it failed.
const AGAIN: Duration = Duration::from_secs(5);
/// Writes in one round.
const ROUND_MAX: usize = 100;

/// Keeps the bundles.
pub struct Bundles {
    cluster: Cluster,
    world: Live,
    ca: Ca,
    metrics: Metrics,
}

#[derive(Clone)]
struct Metrics {
    writes: IntCounterVec,
    namespaces: IntGauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let writes =
            Opts::new("weft_trust_bundle_writes_total", "Trust bundles written to namespaces, by outcome.");
        let metrics = Self {
            writes: IntCounterVec::new(writes, &["outcome"]).expect("a valid name"),
            namespaces: IntGauge::new("weft_trust_bundle_namespaces", "Namespaces that have a trust bundle.")
                .expect("a valid name"),
        };
        for outcome in ["written", "removed", "error"] {
            metrics.writes.with_label_values(&[outcome]).inc_by(0);
        }
        // Registered twice only in tests that share a registry; then it is only not exported twice.
        drop(registry.register(Box::new(metrics.writes.clone())));
        drop(registry.register(Box::new(metrics.namespaces.clone())));
        metrics
    }
}

/// A namespace, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whether its pods get sidecars.
    pub wants: bool,
    /// Whether nothing can be made in it any more.
    pub ending: bool,
}

/// A bundle that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it holds.
    pub roots: Option<Box<str>>,
    /// Whether we made it.
    pub is_ours: bool,
    /// Its uid.
    pub uid: Option<String>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Write it, with labels and owner if it is ours or is not there.
    Write(Arc<str>, bool),
    /// Take it away.
    Remove(Arc<str>, Option<String>),
}

/// What is known of namespaces and bundles.
#[derive(Debug, Default)]
pub struct Table {
    places: BTreeMap<Arc<str>, Place>,
    found: BTreeMap<Arc<str>, Found>,
    /// When a namespace was last seen to need one.
    needed: BTreeMap<Arc<str>, Instant>,
    /// Not before.
    again: BTreeMap<Arc<str>, Instant>,
}

impl Table {
    /// What is to be done so that every namespace that needs `roots` has them, at most [`ROUND_MAX`] things.
    pub fn due(&mut self, roots: &str, injected: &BTreeSet<Arc<str>>, now: Instant) -> Vec<Act> {
        self.again.retain(|_, again| now < *again);
        let mut acts = Vec::new();
        for (name, place) in self.places.iter().filter(|(_, place)| !place.ending) {
            let found = self.found.get(name);
            if place.wants || injected.contains(name) {
                self.needed.insert(Arc::clone(name), now);
                let is_right = found.is_some_and(|found| found.roots.as_deref() == Some(roots));
                if !is_right && !self.again.contains_key(name) {
                    acts.push(Act::Write(Arc::clone(name), found.is_none_or(|found| found.is_ours)));
                }
                continue;
            }
            let Some(found) = found.filter(|found| found.is_ours) else { continue };
            // One that we never saw needed was needed by whoever led before us.
            let since = *self.needed.entry(Arc::clone(name)).or_insert(now);
            if now >= since + LINGER && !self.again.contains_key(name) {
                acts.push(Act::Remove(Arc::clone(name), found.uid.clone()));
            }
        }
        self.needed.retain(|name, _| self.places.contains_key(name));
        acts.truncate(ROUND_MAX);
        acts
    }

    /// How many namespaces have one.
    #[must_use]
    pub fn bundles(&self) -> usize {
        self.found.len()
    }
}

/// A list that is being read anew, to take the place of the old one when it is whole.
struct Reading<T> {
    fresh: BTreeMap<Arc<str>, T>,
    is_whole: bool,
}

impl<T> Default for Reading<T> {
    fn default() -> Self {
        Self { fresh: BTreeMap::new(), is_whole: false }
    }
}

impl<T> Reading<T> {
    fn take(&mut self, event: Event<Option<(Arc<str>, T)>>, known: &mut BTreeMap<Arc<str>, T>) {
        match event {
            Event::Init => self.fresh.clear(),
            Event::InitApply(entry) => self.fresh.extend(entry),
            Event::InitDone => {
                *known = std::mem::take(&mut self.fresh);
                self.is_whole = true;
            }
            Event::Apply(entry) => known.extend(entry),
            Event::Delete(entry) => drop(entry.and_then(|(name, _)| known.remove(&name))),
        }
    }
}

impl Leading for Bundles {
    async fn lead(&self) {
        let client = &self.cluster.client;
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
        let mut namespaces = watcher(namespaces, watcher::Config::default()).default_backoff().boxed();
        // By its name, so that no other ConfigMap need be readable.
        let only = watcher::Config::default().fields(&format!("metadata.name={BUNDLE}"));
        let mut bundles = watcher(Api::<ConfigMap>::all(client.clone()), only).default_backoff().boxed();
        let (mut places, mut found) = (Reading::default(), Reading::default());
        let mut table = Table::default();
        let mut owner = None;
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_well = true;
        loop {
            let heard = tokio::select! {
                Some(event) = namespaces.next() => event.map(|event| {
                    self.note_owner(&event, &mut owner);
                    places.take(mapped(event, place), &mut table.places);
                }),
                Some(event) = bundles.next() => event.map(|event| {
                    found.take(mapped(event, bundle), &mut table.found);
                }),
                _ = ticks.tick() => {
                    if places.is_whole && found.is_whole {
                        self.keep(&mut table, owner.as_deref()).await;
                    }
                    continue;
                }
            };
            match heard {
                Ok(()) => is_well = true,
                Err(error) if is_well => {
                    is_well = false;
                    warn!(%error, "namespaces or trust bundles cannot be watched; it is tried again");
                }
                Err(error) => debug!(%error, "still cannot be watched"),
            }
        }
    }
}

impl Bundles {
    /// Of the authority `ca`.
    #[must_use]
    pub fn new(cluster: &Cluster, world: Live, ca: Ca, registry: &Registry) -> Self {
        Self { cluster: cluster.clone(), world, ca, metrics: Metrics::new(registry) }
    }

    /// Keeps them while this control plane leads, until `shutdown`.
    pub async fn run(self, leads: Leads, shutdown: CancellationToken) {
        while_leading(leads, shutdown, &self).await;
    }

    fn note_owner(&self, event: &Event<PartialObjectMeta<Namespace>>, owner: &mut Option<String>) {
        let (Event::Apply(namespace) | Event::InitApply(namespace)) = event else { return };
        if namespace.metadata.name.as_deref() == Some(&*self.cluster.namespace) {
            owner.clone_from(&namespace.metadata.uid);
        }
    }

    async fn keep(&self, table: &mut Table, owner: Option<&str>) {
        let roots = self.ca.authority().bundle();
        let injected = self.world.read().injected_namespaces();
        self.metrics.namespaces.set(i64::try_from(table.bundles()).unwrap_or(i64::MAX));
        for act in table.due(&roots, &injected, Instant::now()) {
            let (name, outcome) = match act {
                Act::Write(name, is_ours) => {
                    let written = self.write(&name, &roots, is_ours, owner).await;
                    let found = written.map(|uid| {
                        let found = Found { roots: Some(roots.as_str().into()), is_ours, uid };
                        table.found.insert(Arc::clone(&name), found);
                        "written"
                    });
                    (name, found)
                }
                Act::Remove(name, uid) => {
                    let removed = self.remove(&name, uid).await.map(|()| {
                        table.found.remove(&name);
                        info!(namespace = &*name, "nobody needs the trust bundle here any more");
                        "removed"
                    });
                    (name, removed)
                }
            };
            match outcome {
                Ok(word) => self.metrics.writes.with_label_values(&[word]).inc(),
                Err(error) => {
                    self.metrics.writes.with_label_values(&["error"]).inc();
                    let error = &error as &dyn std::error::Error;
                    warn!(error, namespace = &*name, "the trust bundle cannot be kept; it is tried again");
                    table.again.insert(name, Instant::now() + AGAIN);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write(
        &self,
        namespace: &str,
        roots: &str,
        is_ours: bool,
        owner: Option<&str>,
    ) -> Result<Option<String>, ApiError> {
        let mut metadata = json!({ "name": BUNDLE });
        if is_ours {
            metadata["labels"] = json!(labels("trust-bundle"));
            if let Some(uid) = owner {
                let own = &*self.cluster.namespace;
                metadata["ownerReferences"] =
                    json!([{ "apiVersion": "v1", "kind": "Namespace", "name": own, "uid": uid }]);
            }
        }
        // Applied, so that the right to make one can be bound to its name.
        let wanted =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { KEY: roots } });
        let params = PatchParams::apply(MANAGER).force();
        let api = Api::<ConfigMap>::namespaced(self.cluster.client.clone(), namespace);
        Ok(ask(api.patch(BUNDLE, &params, &Patch::Apply(wanted))).await?.metadata.uid)
    }

    async fn remove(&self, namespace: &str, uid: Option<String>) -> Result<(), ApiError> {
        let api = Api::<ConfigMap>::namespaced(self.cluster.client.clone(), namespace);
        let this = DeleteParams::default().preconditions(Preconditions { uid, resource_version: None });
        match ask(api.delete(BUNDLE, &this)).await {
            // Gone, or another one by now.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }
}

fn mapped<K, T>(event: Event<K>, read: fn(K) -> Option<(Arc<str>, T)>) -> Event<Option<(Arc<str>, T)>> {
    match event {
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(read(object)),
        Event::InitDone => Event::InitDone,
        Event::Apply(object) => Event::Apply(read(object)),
        Event::Delete(object) => Event::Delete(read(object)),
    }
}

fn place(namespace: PartialObjectMeta<Namespace>) -> Option<(Arc<str>, Place)> {
    let metadata = namespace.metadata;
    let enabled = |words: &Option<BTreeMap<String, String>>| {
        words.as_ref().and_then(|words| words.get(INJECT)).is_some_and(|word| word == "enabled")
    };
    let wants = enabled(&metadata.labels) || enabled(&metadata.annotations);
    Some((metadata.name?.into(), Place { wants, ending: metadata.deletion_timestamp.is_some() }))
}

fn bundle(map: ConfigMap) -> Option<(Arc<str>, Found)> {
    let metadata = map.metadata;
    let manager = metadata.labels.as_ref().and_then(|labels| labels.get("app.kubernetes.io/managed-by"));
    let is_ours = manager.is_some_and(|manager| manager == MANAGER);
    let roots = map.data.and_then(|mut data| data.remove(KEY)).map(Into::into);
    Some((metadata.namespace?.into(), Found { roots, is_ours, uid: metadata.uid }))
}

#[cfg(test)]
mod tests;
