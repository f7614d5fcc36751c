//! What the graph must know of circuits to put a badge on edges and nodes.
//!
//! In: [`Standing`]s, one per circuit and workload that watches it; the table of circuits makes them. Out:
//! [`Tally`]s on the edges and nodes of a [`View`]. Circuits are counted, not observers: one that two instances of
//! a caller see differently counts once, in the worse of the two states.
//! Non-goal: keeping circuits. They are looked up when a view is made, so a badge is as fresh as the table.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;
use weft_wire::{ServicePort, WorkloadId};

use super::view::{Edge, View};
use super::{Kind, NodeKey};

/// State of a circuit, better to worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Calls pass.
    Closed,
    /// A few calls pass, to find out.
    HalfOpen,
    /// No call passes.
    Open,
}

impl State {
    /// The state with this number in a report.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Closed),
            1 => Some(Self::HalfOpen),
            2 => Some(Self::Open),
            _ => None,
        }
    }

    /// The state with this word in a report.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "closed" => Some(Self::Closed),
            "half_open" => Some(Self::HalfOpen),
            "open" => Some(Self::Open),
            _ => None,
        }
    }
}

/// How one circuit stands in the eyes of one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The circuit's id.
    pub circuit: Arc<str>,
    /// The cluster it belongs to, `name.namespace:port` for a service's.
    pub cluster: Arc<str>,
    /// The workload behind it, when it guards one endpoint of a known workload.
    pub callee: Option<WorkloadId>,
    /// Who watches it.
    pub observer: WorkloadId,
    /// Its state.
    pub state: State,
}

/// Circuits by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// Let nothing through.
    pub open: usize,
    /// Let a few calls through.
    pub half_open: usize,
    /// Let everything through.
    pub closed: usize,
}

impl Tally {
    /// Counts circuits in these states.
    pub fn of(states: impl IntoIterator<Item = State>) -> Self {
        let mut tally = Self::default();
        for state in states {
            match state {
                State::Closed => tally.closed += 1,
                State::HalfOpen => tally.half_open += 1,
                State::Open => tally.open += 1,
            }
        }
        tally
    }
}

/// Circuits by id, each in its worst state.
type Worst<'a> = BTreeMap<&'a str, State>;

fn raise<'a>(worst: &mut Worst<'a>, circuit: &'a str, state: State) {
    let known = worst.entry(circuit).or_insert(state);
    *known = (*known).max(state);
}

/// Standings by who watches, made once per view.
pub struct Standings<'a> {
    all: &'a [Standing],
    by_observer: HashMap<String, Vec<&'a Standing>>,
}

impl<'a> Standings<'a> {
    /// Sorts `all` for looking up.
    #[must_use]
    pub fn new(all: &'a [Standing]) -> Self {
        let mut by_observer: HashMap<String, Vec<&Standing>> = HashMap::new();
        for standing in all {
            let node = NodeKey::Workload(standing.observer.clone()).to_string();
            by_observer.entry(node).or_default().push(standing);
        }
        Self { all, by_observer }
    }

    fn of_edge(&self, edge: &Edge) -> Worst<'a> {
        let mut worst = Worst::new();
        for standing in self.by_observer.get(&edge.source).into_iter().flatten() {
            if guards(standing, edge) {
                raise(&mut worst, &standing.circuit, standing.state);
            }
        }
        worst
    }

    /// Puts the circuits on one edge.
    pub fn mark(&self, edge: &mut Edge) {
        let worst = self.of_edge(edge);
        edge.circuits = (!worst.is_empty()).then(|| Tally::of(worst.into_values()));
    }

    /// Puts the circuits on every edge, and on every node those that guard it.
    pub fn mark_view(&self, view: &mut View) {
        let mut nodes: HashMap<String, Worst<'a>> = HashMap::new();
        for standing in self.all {
            if let Some(callee) = &standing.callee {
                let node = NodeKey::Workload(callee.clone()).to_string();
                raise(nodes.entry(node).or_default(), &standing.circuit, standing.state);
            }
        }
        for edge in &mut view.edges {
            let worst = self.of_edge(edge);
            if worst.is_empty() {
                continue;
            }
            let node = nodes.entry(edge.target.clone()).or_default();
            for (circuit, state) in &worst {
                raise(node, circuit, *state);
            }
            edge.circuits = Some(Tally::of(worst.into_values()));
        }
        for node in &mut view.nodes {
            node.circuits = nodes.remove(&node.id).map(|worst| Tally::of(worst.into_values()));
        }
    }
}

/// Whether the circuit of `standing` lies on `edge`, whose source watches it.
fn guards(standing: &Standing, edge: &Edge) -> bool {
    match &standing.callee {
        Some(callee) => edge.target == NodeKey::Workload(callee.clone()).to_string(),
        // A circuit of a whole service lies on every edge to it; one that is open keeps calls from reaching any
        // endpoint, and those are on the edge to the service itself.
        None => {
            edge.services.iter().any(|service| **service == *standing.cluster)
                || edge.target.starts_with("service:") && is_service(&edge.target, &standing.cluster)
        }
    }
}

fn is_service(node: &str, cluster: &str) -> bool {
    let service: Option<ServicePort> = cluster.parse().ok();
    service.is_some_and(|port| {
        let key = NodeKey::Service(port.service);
        key.kind() == Kind::Service && key.to_string() == node
    })
}
