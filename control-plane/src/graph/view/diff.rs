//! What changed between two views.
//!
//! Invariant: applying the diff of `a` and `b` to `a` gives `b`.

use std::cmp::Ordering;

use serde::Serialize;

use super::super::analysis::Diagnosis;
use super::super::{EdgeId, Timestamp};
use super::{Edge, Node, View};

/// What changed between two views.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// The version after the change.
    pub version: u64,
    /// The version it applies to; a client that has another one fetches the whole graph.
    pub base_version: u64,
    /// When the newer view was made.
    pub at: Timestamp,
    /// How much of the window the numbers cover.
    pub covered_seconds: f64,
    /// Why nothing is to be seen; absent when something is.
    pub diagnosis: Option<Diagnosis>,
    /// Nodes by id.
    pub nodes: Changes<Node, String>,
    /// Edges by id.
    pub edges: Changes<Edge, EdgeId>,
}

/// New and changed things, and the ids of those that are gone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changes<T, I> {
    /// New ones and changed ones, whole.
    pub upsert: Vec<T>,
    /// Ids of those that are gone.
    pub remove: Vec<I>,
}

impl Diff {
    /// What turns `base` into `next`.
    #[must_use]
    pub fn between(base: &View, next: &View) -> Self {
        Self {
            version: next.version,
            base_version: base.version,
            at: next.at,
            covered_seconds: next.covered_seconds,
            diagnosis: next.diagnosis.clone(),
            nodes: changes(&base.nodes, &next.nodes, |node| node.id.clone()),
            edges: changes(&base.edges, &next.edges, |edge| edge.id),
        }
    }
}

/// Walks both lists, which are sorted by id, side by side.
fn changes<T: PartialEq + Clone, I: Ord>(base: &[T], next: &[T], id: impl Fn(&T) -> I) -> Changes<T, I> {
    let mut changes = Changes { upsert: Vec::new(), remove: Vec::new() };
    let (mut base, mut next) = (base.iter().peekable(), next.iter().peekable());
    loop {
        let order = match (base.peek(), next.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => id(old).cmp(&id(new)),
        };
        let old = if order.is_le() { base.next() } else { None };
        let new = if order.is_ge() { next.next() } else { None };
        match (old, new) {
            (Some(old), None) => changes.remove.push(id(old)),
            (old, Some(new)) if old != Some(new) => changes.upsert.push(new.clone()),
            _ => {}
        }
    }
}
