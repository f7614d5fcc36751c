//! Drafts joined into what workers see, in the right order.
//!
//! In: drafts, removals and refusals per type, and destinations that are wanted. Out: the names of each type that must
//! be subscribed, route tables and endpoints put in place, and the map of listeners when it changed. Pure.
//!
//! ```text
//! listener ──names──► route table ──names──► cluster ──names──► endpoints
//! ```
//!
//! Invariant (make before break): a route table is put in place only when every cluster it names has been answered
//! and every one of those has its endpoints answered; a listener only when its route table has. Until then the former
//! one stays, and stays subscribed.
//! Invariant: *answered* includes "does not exist": that is an empty table or an empty cluster, never a wait for ever.
//! A refusal (NACK) keeps the last good draft; a listener that has none because of it is answered as absent, so that
//! traffic passes through rather than waits.
//! Invariant: what is taken away in the wrong order does no harm. Only the end of a listener or a cluster is an end;
//! the tables and endpoints under them stay until then.
//! Surprise: [`Store::reconcile`] has no input. It looks at everything and repairs what differs, so every order of
//! messages ends in the same state. It runs once per message, over at most a few thousand names.

mod compile;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use weft_wire::xds::ListenerName;

use super::directory::{Answer, Entry, Map};
use super::model::{
    Assignment, Cluster, ClusterSlot, EndpointSlot, Endpoints, GradientSlot, GuardSlot, RouteSlot,
};
use super::parse::{ClusterDraft, EndpointSource, ListenerDraft, RouteSource, TableDraft};
use crate::route::matcher::RouteTable;
use compile::no_endpoints;

/// What the control plane has said about one resource.
#[derive(Debug)]
pub(super) enum Said<T> {
    /// Nothing yet.
    Nothing,
    /// This is it.
    Present(T),
    /// It does not exist.
    Absent,
    /// Something that this proxy cannot honour, and nothing good before.
    Refused,
}

impl<T> Said<T> {
    fn present(&self) -> Option<&T> {
        match self {
            Self::Present(draft) => Some(draft),
            Self::Nothing | Self::Absent | Self::Refused => None,
        }
    }

    /// A refusal does not undo what was good.
    fn refuse(&mut self) {
        if !matches!(self, Self::Present(_)) {
            *self = Self::Refused;
        }
    }
}

/// Whether something that others wait for is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Waiting,
    Ready,
    /// Will not come before the control plane changes its mind.
    Refused,
}

impl Readiness {
    /// Of two things that are both needed.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Refused, _) | (_, Self::Refused) => Self::Refused,
            (Self::Waiting, _) | (_, Self::Waiting) => Self::Waiting,
            (Self::Ready, Self::Ready) => Self::Ready,
        }
    }

    fn of<T>(said: &Said<T>) -> Self {
        match said {
            Said::Nothing => Self::Waiting,
            Said::Present(_) | Said::Absent => Self::Ready,
            Said::Refused => Self::Refused,
        }
    }
}

#[derive(Debug)]
struct ListenerNode {
    said: Said<ListenerDraft>,
    /// The draft changed since `answer` was made from it.
    changed: bool,
    answer: Option<Answer>,
    /// What the visible listener refers to: must not be dropped while it is visible.
    uses: Uses,
    touched: Arc<AtomicU64>,
    gradient: GradientSlot,
    guard: GuardSlot,
}

/// Names that a visible listener leans on.
#[derive(Debug, Default)]
struct Uses {
    table: Option<Arc<str>>,
    /// Inline route table's clusters and the opaque cluster.
    clusters: Vec<Arc<str>>,
    inline: Option<RouteSlot>,
    opaque: Option<(Arc<str>, ClusterSlot)>,
}

#[derive(Debug)]
struct TableNode {
    said: Said<TableDraft>,
    changed: bool,
    slot: RouteSlot,
    /// Whether `slot` has ever been filled by an answer.
    visible: bool,
    /// Clusters of the table in `slot`.
    uses: Vec<Arc<str>>,
}

#[derive(Debug)]
struct ClusterNode {
    said: Said<ClusterDraft>,
    compiled: Option<Arc<Cluster>>,
    /// Whether `compiled` may be expected. Once it is there, it stays whatever is refused later.
    readiness: Readiness,
    /// Endpoints of a cluster without an assignment of its own.
    own: EndpointSlot,
}

#[derive(Debug)]
struct EndpointsNode {
    said: Said<()>,
    slot: EndpointSlot,
}

/// Names that must be subscribed, by type.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub(super) tables: HashSet<Arc<str>>,
    pub(super) clusters: HashSet<Arc<str>>,
    pub(super) endpoints: HashSet<Arc<str>>,
}

/// Everything the control plane has said, and what was made of it.
#[derive(Debug, Default)]
pub(super) struct Store {
    listeners: HashMap<Arc<ListenerName>, ListenerNode>,
    tables: HashMap<Arc<str>, TableNode>,
    clusters: HashMap<Arc<str>, ClusterNode>,
    endpoints: HashMap<Arc<str>, EndpointsNode>,
}

impl Store {
    /// Adds a destination; `false` when it is there already.
    pub(super) fn want(&mut self, name: &Arc<ListenerName>, now: u64) -> bool {
        if self.listeners.contains_key(name) {
            return false;
        }
        let node = ListenerNode {
            said: Said::Nothing,
            changed: false,
            answer: None,
            uses: Uses::default(),
            touched: Arc::new(AtomicU64::new(now)),
            gradient: GradientSlot::default(),
            guard: GuardSlot::default(),
        };
        self.listeners.insert(Arc::clone(name), node);
        true
    }

    pub(super) fn len(&self) -> usize {
        self.listeners.len()
    }

    pub(super) fn contains(&self, name: &ListenerName) -> bool {
        self.listeners.contains_key(name)
    }

    /// How many resources of each type are present and absent.
    pub(super) fn counts(&self) -> [(usize, usize); 4] {
        fn count<'a, T: 'a>(said: impl Iterator<Item = &'a Said<T>>) -> (usize, usize) {
            said.fold((0, 0), |(present, absent), said| match said {
                Said::Present(_) => (present + 1, absent),
                Said::Absent => (present, absent + 1),
                Said::Nothing | Said::Refused => (present, absent),
            })
        }
        [
            count(self.listeners.values().map(|node| &node.said)),
            count(self.tables.values().map(|node| &node.said)),
            count(self.clusters.values().map(|node| &node.said)),
            count(self.endpoints.values().map(|node| &node.said)),
        ]
    }

    /// Whether a destination has an answer that lookups can see.
    pub(super) fn is_answered(&self, name: &ListenerName) -> bool {
        self.listeners.get(name).is_some_and(|node| node.answer.is_some())
    }

    /// Drops a destination.
    pub(super) fn forget(&mut self, name: &ListenerName) {
        self.listeners.remove(name);
    }

    /// As if a worker had looked at a destination.
    #[cfg(test)]
    pub(super) fn touch(&self, name: &ListenerName, age_seconds: u64) {
        self.listeners[name].touched.store(age_seconds, Ordering::Relaxed);
    }

    /// Destinations that nobody has looked at since `before` and no connection holds, least recently used first.
    pub(super) fn idle(&self, before: u64) -> Vec<Arc<ListenerName>> {
        let idle = |(name, node): (&Arc<ListenerName>, &ListenerNode)| {
            let touched = node.touched.load(Ordering::Relaxed);
            (touched < before && !node.is_held()).then(|| (touched, Arc::clone(name)))
        };
        let mut idle: Vec<_> = self.listeners.iter().filter_map(idle).collect();
        idle.sort_unstable();
        idle.into_iter().map(|(_, name)| name).collect()
    }

    pub(super) fn listener(&mut self, name: &ListenerName, said: Result<Option<ListenerDraft>, ()>) {
        let Some(node) = self.listeners.get_mut(name) else { return };
        node.changed |= say(&mut node.said, said);
    }

    /// A table that is taken away while a listener leans on it stays, as in Envoy: what ends its life is the
    /// listener's end.
    pub(super) fn table(&mut self, name: &str, said: Result<Option<TableDraft>, ()>) {
        let Some(node) = self.tables.get_mut(name) else { return };
        if matches!((&node.said, &said), (Said::Present(_), Ok(None))) {
            return;
        }
        node.changed |= say(&mut node.said, said);
    }

    pub(super) fn cluster(&mut self, name: &str, said: Result<Option<ClusterDraft>, ()>) {
        let Some(node) = self.clusters.get_mut(name) else { return };
        say(&mut node.said, said);
    }

    /// Endpoints are put in place at once: they lean on nothing. Like a table they stay when they are taken away
    /// under their cluster; a service without endpoints has an empty assignment, not none.
    pub(super) fn assignment(&mut self, name: &str, said: Result<Option<Assignment>, ()>) {
        let Some(node) = self.endpoints.get_mut(name) else { return };
        match said {
            Ok(None) if matches!(node.said, Said::Present(())) => {}
            Ok(assignment) => {
                let present = assignment.is_some();
                let assignment = assignment.unwrap_or_else(|| Assignment::from(vec![]));
                if !node.slot.load().are(&assignment) {
                    node.slot.store(Arc::new(Endpoints::assigned(assignment)));
                }
                node.said = if present { Said::Present(()) } else { Said::Absent };
            }
            Err(()) => node.said.refuse(),
        }
    }

    /// Repairs whatever differs from what the drafts ask for. Returns the new map of listeners if it changed.
    pub(super) fn reconcile(&mut self) -> (Needs, Option<Map>) {
        let needs = self.needs();
        self.keep_needed(&needs);
        let recompiled = self.compile_clusters();
        self.compile_tables(&recompiled);
        let changed = self.compile_listeners(&recompiled);
        // What was only kept for the sake of a predecessor can go now.
        let needs = self.needs();
        self.keep_needed(&needs);
        (needs, changed.then(|| self.map()))
    }

    /// The map as it would be published now.
    pub(super) fn map(&self) -> Map {
        let entry = |(name, node): (&Arc<ListenerName>, &ListenerNode)| {
            let entry = Entry { answer: node.answer.clone()?, touched: Arc::clone(&node.touched) };
            Some((Arc::clone(name), entry))
        };
        self.listeners.iter().filter_map(entry).collect()
    }

    /// Everything that drafts ask for or that visible objects lean on, transitively.
    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for node in self.listeners.values() {
            if let Some(draft) = node.said.present() {
                match &draft.routes {
                    Some(RouteSource::Named(name)) => {
                        needs.tables.insert(Arc::clone(name));
                    }
                    Some(RouteSource::Inline(table)) => needs.clusters.extend(table.clusters().cloned()),
                    None => {}
                }
                needs.clusters.extend(draft.opaque.iter().cloned());
            }
            needs.tables.extend(node.uses.table.iter().cloned());
            needs.clusters.extend(node.uses.clusters.iter().cloned());
        }
        for name in &needs.tables {
            if let Some(node) = self.tables.get(name) {
                needs
                    .clusters
                    .extend(node.said.present().into_iter().flat_map(TableDraft::clusters).cloned());
                needs.clusters.extend(node.uses.iter().cloned());
            }
        }
        for name in &needs.clusters {
            if let Some(draft) = self.clusters.get(name).and_then(|node| node.said.present())
                && let EndpointSource::Assignment(name) = &draft.endpoints
            {
                needs.endpoints.insert(Arc::clone(name));
            }
        }
        needs
    }

    /// Makes nodes for what is needed and drops the others.
    fn keep_needed(&mut self, needs: &Needs) {
        self.tables.retain(|name, _| needs.tables.contains(name));
        self.clusters.retain(|name, _| needs.clusters.contains(name));
        self.endpoints.retain(|name, _| needs.endpoints.contains(name));
        for name in &needs.tables {
            self.tables.entry(Arc::clone(name)).or_insert_with(|| TableNode {
                said: Said::Nothing,
                changed: false,
                slot: Arc::new(ArcSwap::from_pointee(RouteTable::empty())),
                visible: false,
                uses: vec![],
            });
        }
        for name in &needs.clusters {
            self.clusters.entry(Arc::clone(name)).or_insert_with(|| ClusterNode {
                said: Said::Nothing,
                compiled: None,
                readiness: Readiness::Waiting,
                own: no_endpoints(),
            });
        }
        for name in &needs.endpoints {
            self.endpoints
                .entry(Arc::clone(name))
                .or_insert_with(|| EndpointsNode { said: Said::Nothing, slot: no_endpoints() });
        }
    }
}

impl ListenerNode {
    /// Whether a connection holds the listener: the map and this node hold one reference each.
    fn is_held(&self) -> bool {
        matches!(&self.answer, Some(Answer::Known(listener)) if Arc::strong_count(listener) > 2)
    }
}

/// Notes what was said; whether it differs from before.
fn say<T: PartialEq>(said: &mut Said<T>, new: Result<Option<T>, ()>) -> bool {
    match new {
        Ok(Some(draft)) if said.present() == Some(&draft) => false,
        Ok(Some(draft)) => {
            *said = Said::Present(draft);
            true
        }
        Ok(None) => {
            let changed = !matches!(said, Said::Absent);
            *said = Said::Absent;
            changed
        }
        Err(()) => {
            said.refuse();
            matches!(said, Said::Refused)
        }
    }
}
