//! What becomes of an object's status. Pure: the time is passed in.
//!
//! In: the object as it is, and what we have to say of it. Out: the new status, or nothing where it says that already.
//!
//! Invariants: what is not known does not replace what was known; what other controllers wrote is carried over as it is, unknown fields too; `lastTransitionTime` moves only when
//! a condition's status does. Surprise: a route's `parents` is one list of everybody's, and is replaced as a whole; that is
//! why it is written only over the version that was read.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::CONTROLLER;
use crate::inspect::objects::Condition;

/// Entries a list of parents may have.
const PARENTS_MAX: usize = 32;
/// Longest message.
const MESSAGE_MAX: usize = 2_000;

/// What we have to say of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Of which version of its spec.
    pub generation: Option<i64>,
    /// Of each Service among a route's parents, in their order, whether it is attached to it.
    pub attached: Vec<Condition>,
    /// Of the whole object.
    pub conditions: Vec<Condition>,
    /// Whether it is known how many sidecars run it. Until it is, what was said of that before stays.
    pub counted: bool,
}

/// The condition that says how many sidecars run something.
const COUNTED: &str = "Programmed";

/// A route's new status; `None`: it says all that already.
#[must_use]
pub fn route(object: &Value, wanted: &Wanted, now: Timestamp) -> Option<Value> {
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let known = object.pointer("/status/parents").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let references = object.pointer("/spec/parentRefs").and_then(Value::as_array);
    let services = references.into_iter().flatten().filter(|reference| is_service(reference));
    let mut parents: Vec<Value> = known.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    let room = PARENTS_MAX.saturating_sub(parents.len());
    for (reference, attached) in services.zip(&wanted.attached).take(room) {
        let same = |entry: &&Value| {
            is_ours(entry)
                && entry
                    .get("parentRef")
                    .is_some_and(|other| names(other, namespace) == names(reference, namespace))
        };
        let before = known.iter().find(same).and_then(|entry| entry.get("conditions"));
        let others = wanted.conditions.iter().filter(|condition| condition.kind != attached.kind);
        let said: Vec<&Condition> = std::iter::once(attached).chain(others).collect();
        parents.push(json!({
            "parentRef": reference,
            "controllerName": CONTROLLER,
            "conditions": conditions(before, &said, wanted, now),
        }));
    }
    let is_same = parents.len() == known.len() && parents.iter().all(|entry| known.contains(entry));
    (!is_same).then(|| json!({ "parents": parents }))
}

/// A policy's new status; `None`: it says all that already.
#[must_use]
pub fn policy(object: &Value, wanted: &Wanted, now: Timestamp) -> Option<Value> {
    let before = object.pointer("/status/conditions");
    let said: Vec<&Condition> = wanted.conditions.iter().collect();
    let new = conditions(before, &said, wanted, now);
    (before != Some(&new)).then(|| json!({ "conditions": new }))
}

/// The conditions that we state, with the times of those that were stated before.
fn conditions(before: Option<&Value>, said: &[&Condition], wanted: &Wanted, now: Timestamp) -> Value {
    let before = before.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let one = |condition: &&Condition| {
        let known = before.iter().find(|known| text(known, "type") == Some(condition.kind));
        if let (Some(known), false, COUNTED) = (known, wanted.counted, condition.kind) {
            return known.clone();
        }
        let stays = known.filter(|known| text(known, "status") == Some(condition.status));
        let since = stays.and_then(|known| text(known, "lastTransitionTime")).map(str::to_owned);
        let mut stated = Map::new();
        let mut put = |key: &str, value: Value| drop(stated.insert(key.to_owned(), value));
        put("type", condition.kind.into());
        put("status", condition.status.into());
        put("reason", condition.reason.into());
        put("message", shortened(&condition.message).into());
        put("lastTransitionTime", since.unwrap_or_else(|| seconds(now)).into());
        if let Some(generation) = wanted.generation {
            put("observedGeneration", generation.into());
        }
        Value::Object(stated)
    };
    said.iter().map(one).collect()
}

/// Whether an entry of a list of parents is ours.
#[must_use]
pub fn is_ours(entry: &Value) -> bool {
    text(entry, "controllerName") == Some(CONTROLLER)
}

fn is_service(reference: &Value) -> bool {
    // Absent is a Gateway, by the API.
    text(reference, "kind") == Some("Service") && text(reference, "group") == Some("")
}

/// What makes a reference to a parent another one.
fn names<'a>(reference: &'a Value, namespace: &'a str) -> (&'a str, &'a str, Option<&'a str>, Option<i64>) {
    (
        text(reference, "namespace").unwrap_or(namespace),
        text(reference, "name").unwrap_or_default(),
        text(reference, "sectionName"),
        reference.get("port").and_then(Value::as_i64),
    )
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

fn shortened(message: &str) -> String {
    let mut characters = message.chars();
    let mut short: String = characters.by_ref().take(MESSAGE_MAX).collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}

/// Times are kept in whole seconds.
fn seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

#[cfg(test)]
mod tests;
