//! From drafts to objects: the half of the store that makes what workers see.
//!
//! Invariant: an object is replaced only when it differs, so whoever holds one keeps holding the current one; and only
//! when all it leans on is there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::super::directory::Answer;
use super::super::model::{Cluster, ClusterSpec, EndpointSlot, Endpoints, Listener};
use super::super::parse::{ClusterDraft, EndpointSource, ListenerDraft, RouteSource, TableDraft};
use super::{ClusterNode, ListenerNode, Readiness, Said, Store, TableNode, Uses};
use crate::route::matcher::RouteTable;

impl Store {
    /// Compiles clusters that are complete; returns the names whose object is a new one.
    pub(super) fn compile_clusters(&mut self) -> HashSet<Arc<str>> {
        let mut recompiled = HashSet::new();
        for (name, node) in &mut self.clusters {
            let assigned = match node.said.present() {
                Some(ClusterDraft { endpoints: EndpointSource::Assignment(assignment), .. }) => self
                    .endpoints
                    .get(assignment)
                    .map_or(Readiness::Waiting, |node| Readiness::of(&node.said)),
                Some(_) | None => Readiness::Ready,
            };
            node.readiness = Readiness::of(&node.said).and(assigned);
            if node.readiness != Readiness::Ready {
                continue;
            }
            let (spec, slot) = match node.said.present() {
                Some(ClusterDraft { spec, endpoints: EndpointSource::Assignment(assignment) }) => {
                    let slot = self.endpoints.get(assignment).map(|node| Arc::clone(&node.slot));
                    (spec.clone(), slot.unwrap_or_else(no_endpoints))
                }
                Some(ClusterDraft { spec, endpoints: EndpointSource::Inline(list) }) => {
                    if !node.own.load().are(list) {
                        node.own.store(Arc::new(Endpoints::assigned(list.clone())));
                    }
                    (spec.clone(), Arc::clone(&node.own))
                }
                None => (
                    ClusterSpec { absent: true, ..ClusterSpec::new(name) },
                    no_endpoints_unless_empty(node.compiled.as_ref()),
                ),
            };
            let same = node.compiled.as_ref().is_some_and(|old| *old.spec() == spec && old.shares(&slot));
            if !same {
                node.compiled = Some(Cluster::with_slot(spec, slot));
                recompiled.insert(Arc::clone(name));
            }
        }
        recompiled
    }

    /// Puts tables in place that are complete.
    pub(super) fn compile_tables(&mut self, recompiled: &HashSet<Arc<str>>) {
        let clusters = &self.clusters;
        for node in self.tables.values_mut() {
            let stale = node.changed || node.uses.iter().any(|name| recompiled.contains(name));
            if !stale || matches!(node.said, Said::Nothing | Said::Refused) {
                continue;
            }
            let table = match node.said.present() {
                None => Some((RouteTable::empty(), vec![])),
                Some(draft) => join(draft, clusters),
            };
            if let Some((table, uses)) = table {
                node.slot.store(Arc::new(table));
                node.uses = uses;
                node.visible = true;
                node.changed = false;
            }
        }
    }

    /// Makes listeners visible that are complete; whether any answer changed.
    pub(super) fn compile_listeners(&mut self, recompiled: &HashSet<Arc<str>>) -> bool {
        let mut any = false;
        for node in self.listeners.values_mut() {
            node.refresh(&self.clusters, recompiled);
            if !node.changed {
                continue;
            }
            match node.said.present() {
                None if matches!(node.said, Said::Nothing) => {}
                None => {
                    any |= !matches!(node.answer, Some(Answer::Absent));
                    node.answer = Some(Answer::Absent);
                    node.uses = Uses::default();
                    node.changed = false;
                }
                Some(draft) => match draft_readiness(draft, &self.tables, &self.clusters) {
                    Readiness::Waiting => {}
                    Readiness::Refused => {
                        // Still `changed`: the control plane may mend it.
                        if node.answer.is_none() {
                            node.answer = Some(Answer::Absent);
                            any = true;
                        }
                    }
                    Readiness::Ready => {
                        let compiled = compile_listener(draft, &self.tables, &self.clusters, node);
                        if let Some((listener, uses)) = compiled {
                            node.answer = Some(Answer::Known(listener));
                            node.uses = uses;
                            node.changed = false;
                            any = true;
                        }
                    }
                },
            }
        }
        any
    }
}

impl ListenerNode {
    /// Puts new cluster objects into what is visible already.
    fn refresh(&mut self, clusters: &HashMap<Arc<str>, ClusterNode>, recompiled: &HashSet<Arc<str>>) {
        if !self.uses.clusters.iter().any(|name| recompiled.contains(name)) {
            return;
        }
        if let Some((name, slot)) = &self.uses.opaque
            && let Some(cluster) = clusters.get(name).and_then(|node| node.compiled.clone())
        {
            slot.store(cluster);
        }
        if let (Some(slot), Some(ListenerDraft { routes: Some(RouteSource::Inline(draft)), .. }), false) =
            (&self.uses.inline, self.said.present(), self.changed)
            && let Some((table, _)) = join(draft, clusters)
        {
            slot.store(Arc::new(table));
        }
    }
}

pub(super) fn no_endpoints() -> EndpointSlot {
    Arc::new(ArcSwap::from_pointee(Endpoints::new(vec![])))
}

/// For a cluster that does not exist: the slot it has if that is empty already, so that nothing changes.
fn no_endpoints_unless_empty(compiled: Option<&Arc<Cluster>>) -> EndpointSlot {
    match compiled {
        Some(cluster) if cluster.endpoints().list.is_empty() => cluster.slot(),
        _ => no_endpoints(),
    }
}

/// The draft's table with its clusters and their names; `None` when one of them is not there yet.
fn join(
    draft: &TableDraft,
    clusters: &HashMap<Arc<str>, ClusterNode>,
) -> Option<(RouteTable, Vec<Arc<str>>)> {
    let compiled = |name: &str| clusters.get(name).and_then(|node| node.compiled.clone());
    if draft.clusters().any(|name| compiled(name).is_none()) {
        return None;
    }
    // Neither happens: all clusters are there, and the parser has compiled the same draft before.
    let table =
        draft.compile(|name| compiled(name).unwrap_or_else(|| Cluster::new(ClusterSpec::new(name), vec![])));
    let mut uses: Vec<_> = draft.clusters().cloned().collect();
    uses.sort_unstable();
    uses.dedup();
    Some((table.ok()?, uses))
}

fn cluster_readiness(name: &str, clusters: &HashMap<Arc<str>, ClusterNode>) -> Readiness {
    match clusters.get(name) {
        Some(ClusterNode { compiled: Some(_), .. }) => Readiness::Ready,
        Some(node) => node.readiness,
        None => Readiness::Waiting,
    }
}

fn draft_readiness(
    draft: &ListenerDraft,
    tables: &HashMap<Arc<str>, TableNode>,
    clusters: &HashMap<Arc<str>, ClusterNode>,
) -> Readiness {
    let all = |names: &mut dyn Iterator<Item = &Arc<str>>| {
        names.fold(Readiness::Ready, |all, name| all.and(cluster_readiness(name, clusters)))
    };
    let routes = match &draft.routes {
        None => Readiness::Ready,
        Some(RouteSource::Inline(table)) => all(&mut table.clusters()),
        Some(RouteSource::Named(name)) => match tables.get(name) {
            None => Readiness::Waiting,
            Some(TableNode { visible: true, .. }) => Readiness::Ready,
            Some(TableNode { said: Said::Present(table), .. }) => match all(&mut table.clusters()) {
                Readiness::Refused => Readiness::Refused,
                Readiness::Ready | Readiness::Waiting => Readiness::Waiting,
            },
            Some(node) => Readiness::of(&node.said).and(Readiness::Waiting),
        },
    };
    routes.and(all(&mut draft.opaque.iter()))
}

fn compile_listener(
    draft: &ListenerDraft,
    tables: &HashMap<Arc<str>, TableNode>,
    clusters: &HashMap<Arc<str>, ClusterNode>,
    node: &ListenerNode,
) -> Option<(Arc<Listener>, Uses)> {
    let mut uses = Uses::default();
    let routes = match &draft.routes {
        None => Arc::new(ArcSwap::from_pointee(RouteTable::empty())),
        Some(RouteSource::Named(name)) => {
            uses.table = Some(Arc::clone(name));
            Arc::clone(&tables.get(name)?.slot)
        }
        Some(RouteSource::Inline(table)) => {
            let (table, names) = join(table, clusters)?;
            let slot = Arc::new(ArcSwap::from_pointee(table));
            uses.clusters = names;
            uses.inline = Some(Arc::clone(&slot));
            slot
        }
    };
    let opaque = match &draft.opaque {
        None => None,
        Some(name) => {
            let slot = Arc::new(ArcSwap::new(clusters.get(name)?.compiled.clone()?));
            uses.clusters.push(Arc::clone(name));
            uses.opaque = Some((Arc::clone(name), Arc::clone(&slot)));
            Some(slot)
        }
    };
    let (gradient, guard) = (Arc::clone(&node.gradient), Arc::clone(&node.guard));
    gradient.store(draft.gradient.map(Arc::new));
    guard.store(Some(&draft.guard).filter(|guard| !guard.is_open()).cloned().map(Arc::new));
    Some((Listener::with_slots(draft.spec.clone(), routes, opaque, gradient, guard), uses))
}
