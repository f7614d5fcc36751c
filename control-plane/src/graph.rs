//! The live call graph: who calls whom, how often, how well.
//!
//! In: [`Sample`]s, each on one edge, with `now` passed in. Out: a [`View`] per window for the API, and the
//! [`Detail`] of one edge. Nodes are workloads, services, external hosts and unmeshed callers; an edge is one
//! (source, target, protocol) and keeps an hour of slots, see [`window`].
//!
//! Invariants: nothing here does IO or reads a clock; applying samples in any order gives the same graph; every
//! table has a bound, and what does not fit is counted on an explicit overflow node, route or reason, so that
//! totals stay right when the detail is lost.
//! Surprise: samples that a callee reported are *provisional*. When it turns out later that the caller reports
//! for itself, [`Graph::retract`] takes exactly those samples back, so a request is never counted twice even if
//! the two sides report in an unlucky order.

pub mod analysis;
pub mod circuit;
pub mod histogram;
pub mod key;
pub mod mesh;
pub mod sample;
pub mod time;
pub mod view;
pub mod window;

mod edge;
mod shared;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use petgraph::Direction;
use petgraph::stable_graph::{EdgeIndex, NodeIndex, StableGraph};
use petgraph::visit::{EdgeRef as _, IntoEdgeReferences as _};

use edge::Edge;
pub use histogram::{Histogram, Tally};
pub use key::{EdgeId, Kind, NodeKey, Protocol, Tls};
pub use mesh::{Certificate, EmptyMesh, Inventory, Mesh, Problem, Proxy};
pub use sample::{Measure, Sample, Status, Verdict};
pub use shared::SharedGraph;
pub use time::Timestamp;
pub use view::{Detail, Diff, View};
pub use window::Window;

use window::ReasonIndex;

/// Edges and nodes without traffic for this long are forgotten: nothing of them is left in any window.
pub const IDLE_MAX: Duration = Duration::from_secs(3_600);

/// How long after its *arrival* a provisional sample can be taken back. A caller's own reports come within a
/// second of its callee's, or within the back-off of its first connection (30 s) when this program restarted.
pub const PROVISIONAL_MAX: Duration = Duration::from_secs(120);

/// The graph's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Nodes. A screen with more than some hundred is of no use; 5,000 leaves room for the table and the API.
    pub nodes: usize,
    /// Edges: four per node.
    pub edges: usize,
    /// External destinations of one source, so that a crawler cannot push everyone else out.
    pub externals_per_source: usize,
    /// Routes of one edge: the sidecars' own cap of 200 templates, and some for methods.
    pub routes_per_edge: usize,
    /// Cells (route × slot) in the whole graph. A cell takes about 250 bytes, so this is about 500 MB.
    pub cells: usize,
    /// Words for failures.
    pub reasons: usize,
    /// Samples that can still be taken back, at about 500 bytes each.
    pub provisional: usize,
}

impl Limits {
    /// What a control plane for a thousand sidecars needs.
    pub const STANDARD: Self = Self {
        nodes: 5_000,
        edges: 20_000,
        externals_per_source: 100,
        routes_per_edge: 256,
        cells: 2_000_000,
        reasons: 512,
        provisional: 50_000,
    };
}

/// What the graph had to do about its bounds since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Samples applied.
    pub applied: u64,
    /// Samples taken back because their caller reports for itself.
    pub retracted: u64,
    /// Samples counted on the overflow node because of a bound on nodes or edges.
    pub folded_edges: u64,
    /// Samples counted on the overflow route because of a bound on routes or cells.
    pub folded_routes: u64,
    /// Provisional samples that can no longer be taken back because of their bound.
    pub provisional_forgotten: u64,
}

#[derive(Debug)]
struct Node {
    key: NodeKey,
    /// Versions seen and when last, bounded by [`VERSIONS_MAX`].
    versions: BTreeMap<Arc<str>, Timestamp>,
}

/// Versions remembered per node: a rollout has two, a few more for canaries.
const VERSIONS_MAX: usize = 8;

/// A sample that can still be taken back.
#[derive(Debug)]
struct Provisional {
    arrived: Timestamp,
    edge: EdgeId,
    reporter: Arc<str>,
    sample: Sample,
}

/// Over which time somebody reports the calls from an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The instance that reports them.
    pub reporter: Arc<str>,
    /// The caller's address.
    pub address: IpAddr,
    /// The first moment it reports.
    pub since: Timestamp,
    /// The last moment it is taken to report.
    pub until: Timestamp,
}

impl Claim {
    /// On loopback, a callee's word on its callers stands against itself: one program alone on a machine is called
    /// by programs without a sidecar.
    fn covers(&self, entry: &Provisional) -> bool {
        let in_time = (self.since..=self.until).contains(&entry.sample.at);
        in_time && !(self.address.is_loopback() && entry.reporter == self.reporter)
    }
}

/// Words for failures, so that a cell holds a number instead of a text.
#[derive(Debug)]
struct Reasons {
    words: Vec<Arc<str>>,
    index: HashMap<Arc<str>, ReasonIndex>,
    max: usize,
}

impl Reasons {
    /// The word for every reason beyond the bound.
    const OVERFLOW: &str = "__other__";

    fn new(max: usize) -> Self {
        let overflow: Arc<str> = Self::OVERFLOW.into();
        Self { words: vec![overflow.clone()], index: HashMap::from([(overflow, 0)]), max: max.min(65_535) }
    }

    fn intern(&mut self, word: &Arc<str>) -> ReasonIndex {
        if let Some(&index) = self.index.get(word) {
            return index;
        }
        let Ok(index) = ReasonIndex::try_from(self.words.len()) else { return 0 };
        if self.words.len() >= self.max {
            return 0;
        }
        self.words.push(word.clone());
        self.index.insert(word.clone(), index);
        index
    }

    fn word(&self, index: ReasonIndex) -> &str {
        self.words.get(usize::from(index)).map_or(Self::OVERFLOW, |word| word)
    }
}

/// The live call graph.
#[derive(Debug)]
pub struct Graph {
    graph: StableGraph<Node, Edge>,
    nodes: HashMap<NodeKey, NodeIndex>,
    edges: HashMap<EdgeId, EdgeIndex>,
    reasons: Reasons,
    /// By the caller's address, in the order they arrived.
    provisional: HashMap<IpAddr, VecDeque<Provisional>>,
    provisional_count: usize,
    limits: Limits,
    counters: Counters,
    cells: usize,
    /// The earliest moment anything was seen, so that a young graph does not divide by a whole window.
    since: Option<Timestamp>,
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            graph: StableGraph::new(),
            nodes: HashMap::new(),
            edges: HashMap::new(),
            reasons: Reasons::new(limits.reasons),
            provisional: HashMap::new(),
            provisional_count: 0,
            limits,
            counters: Counters::default(),
            cells: 0,
            since: None,
        }
    }

    /// Counts `sample`, which `reporter` sent and which arrived at `arrived`.
    pub fn apply(&mut self, sample: &Sample, reporter: &Arc<str>, arrived: Timestamp) {
        self.counters.applied += 1;
        self.since = Some(self.since.map_or(sample.at, |since| since.min(sample.at)));
        let index = self.edge_for(sample);
        let reason = self.intern_reason(sample);
        let Some(edge) = self.graph.edge_weight_mut(index) else { return };
        let budget = self.limits.cells.saturating_sub(self.cells);
        let change = edge.apply(sample, reason, budget, self.limits.routes_per_edge);
        let id = edge.id;
        self.cells = (self.cells + change.created).saturating_sub(change.recycled);
        self.counters.folded_routes += u64::from(change.folded);
        if let Some(address) = sample.provisional {
            let entry = Provisional { arrived, edge: id, reporter: reporter.clone(), sample: sample.clone() };
            self.remember(address, entry);
        }
    }

    fn remember(&mut self, address: IpAddr, entry: Provisional) {
        if self.provisional_count >= self.limits.provisional {
            self.counters.provisional_forgotten += 1;
            // The same caller's oldest makes room; a new caller finds none.
            match self.provisional.get_mut(&address).map(VecDeque::pop_front) {
                Some(Some(_)) => self.provisional_count -= 1,
                _ => return,
            }
        }
        self.provisional_count += 1;
        self.provisional.entry(address).or_default().push_back(entry);
    }

    /// Takes back what callees reported of calls that `claim` covers: the caller reports those itself. Call it
    /// with every report of a sidecar; it costs nothing where there is nothing to take back.
    pub fn retract(&mut self, claim: &Claim) {
        let Some(entries) = self.provisional.remove(&claim.address) else { return };
        let (taken, kept): (VecDeque<_>, VecDeque<_>) =
            entries.into_iter().partition(|entry| claim.covers(entry));
        if !kept.is_empty() {
            self.provisional.insert(claim.address, kept);
        }
        self.provisional_count -= taken.len();
        let mut emptied = false;
        for entry in taken {
            self.counters.retracted += 1;
            let reason = self.intern_reason(&entry.sample);
            let Some(&index) = self.edges.get(&entry.edge) else { continue };
            let Some(edge) = self.graph.edge_weight_mut(index) else { continue };
            let freed = edge.retract(&entry.sample, reason);
            self.cells = self.cells.saturating_sub(freed);
            if edge.is_void() {
                self.remove_edge(index);
                emptied = true;
            }
        }
        if emptied {
            self.remove_lonely_nodes();
        }
    }

    /// Forgets what no window can reach any more. Cheap enough to call every few seconds.
    pub fn expire(&mut self, now: Timestamp) {
        let dead: Vec<EdgeIndex> = self
            .graph
            .edge_references()
            .filter(|edge| now.since(edge.weight().last_seen) > IDLE_MAX)
            .map(|edge| edge.id())
            .collect();
        for index in dead {
            self.remove_edge(index);
        }
        for edge in self.graph.edge_weights_mut() {
            let freed = edge.expire(now, self.limits.routes_per_edge);
            self.cells = self.cells.saturating_sub(freed);
        }
        for entries in self.provisional.values_mut() {
            while entries.front().is_some_and(|entry| now.since(entry.arrived) > PROVISIONAL_MAX) {
                entries.pop_front();
                self.provisional_count -= 1;
            }
        }
        self.provisional.retain(|_, entries| !entries.is_empty());
        self.remove_lonely_nodes();
    }

    /// What the graph had to do about its bounds.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Number of nodes that have an edge.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.graph.node_count()
    }

    /// Number of edges, idle ones included.
    #[must_use]
    pub fn edge_count(&self) -> usize {
        self.graph.edge_count()
    }

    /// Number of cells (route × slot), which is what memory follows.
    #[must_use]
    pub const fn cell_count(&self) -> usize {
        self.cells
    }

    fn intern_reason(&mut self, sample: &Sample) -> Option<ReasonIndex> {
        match &sample.measure {
            Measure::Requests { error: Some(error), .. } | Measure::Closed { error: Some(error), .. }
                if sample.verdict() == Verdict::Failure =>
            {
                Some(self.reasons.intern(error))
            }
            _ => None,
        }
    }

    /// The edge that `sample` counts on, made if it is not there; the overflow's when a bound is reached.
    fn edge_for(&mut self, sample: &Sample) -> EdgeIndex {
        if let Some(&index) = self.edges.get(&EdgeId::new(&sample.source, &sample.target, sample.protocol)) {
            self.note_versions(index, sample);
            return index;
        }
        let overflow = NodeKey::overflow();
        let mut target = &sample.target;
        if target.kind() == Kind::External
            && self.externals_of(&sample.source) >= self.limits.externals_per_source
        {
            target = &overflow;
        }
        let room = self.edges.len() < self.limits.edges;
        let fits = |graph: &Self, key: &NodeKey| {
            graph.nodes.contains_key(key) || graph.nodes.len() < graph.limits.nodes || *key == overflow
        };
        let mut source = &sample.source;
        if !room || !fits(self, source) || !fits(self, target) {
            // Beyond the bound even the pair is lost; only the protocol tells such traffic apart.
            (source, target) = (&overflow, &overflow);
        }
        if *target == overflow && sample.target != overflow {
            self.counters.folded_edges += 1;
        }
        let id = EdgeId::new(source, target, sample.protocol);
        if let Some(&index) = self.edges.get(&id) {
            return index;
        }
        let (from, to) = (self.node_for(source), self.node_for(target));
        let index = self.graph.add_edge(from, to, Edge::new(id, sample));
        self.edges.insert(id, index);
        self.note_versions(index, sample);
        index
    }

    fn node_for(&mut self, key: &NodeKey) -> NodeIndex {
        if let Some(&index) = self.nodes.get(key) {
            return index;
        }
        let index = self.graph.add_node(Node { key: key.clone(), versions: BTreeMap::new() });
        self.nodes.insert(key.clone(), index);
        index
    }

    fn externals_of(&self, source: &NodeKey) -> usize {
        let Some(&index) = self.nodes.get(source) else { return 0 };
        let targets = self.graph.edges_directed(index, Direction::Outgoing).map(|edge| edge.target());
        targets.filter(|&target| self.graph[target].key.kind() == Kind::External).count()
    }

    fn note_versions(&mut self, index: EdgeIndex, sample: &Sample) {
        let Some((source, target)) = self.graph.edge_endpoints(index) else { return };
        for (node, version) in [(source, &sample.source_version), (target, &sample.target_version)] {
            let Some(version) = version else { continue };
            let versions = &mut self.graph[node].versions;
            if let Some(seen) = versions.get_mut(version) {
                *seen = (*seen).max(sample.at);
                continue;
            }
            versions.insert(version.clone(), sample.at);
            if versions.len() > VERSIONS_MAX
                && let Some(oldest) =
                    versions.iter().min_by_key(|(_, seen)| **seen).map(|(word, _)| word.clone())
            {
                versions.remove(&oldest);
            }
        }
    }

    fn remove_edge(&mut self, index: EdgeIndex) {
        if let Some(edge) = self.graph.remove_edge(index) {
            self.edges.remove(&edge.id);
            self.cells = self.cells.saturating_sub(edge.cells());
        }
    }

    fn remove_lonely_nodes(&mut self) {
        let lonely: Vec<NodeIndex> = self
            .graph
            .node_indices()
            .filter(|&node| self.graph.neighbors_undirected(node).next().is_none())
            .collect();
        for node in lonely {
            if let Some(node) = self.graph.remove_node(node) {
                self.nodes.remove(&node.key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
