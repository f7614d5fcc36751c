//! The smallest table on which two proxies still disagree.
//!
//! In: a table and a request. Out: the same with everything taken away that the disagreement does not need. Each round tries
//! everything that can be taken away at once, each in a table of its own, before one pair.

use std::fmt;
use std::path::Path;

use serde_json::Value;

use super::Table;
use super::trial::{self, Disagreement};
use crate::differential::pair::SERVICES_MAX;

/// Rounds, each of which takes something away: as many as a large table has parts.
const ROUNDS_MAX: usize = 25;

pub(super) async fn shrink(binary: &Path, mut found: Disagreement) -> anyhow::Result<Disagreement> {
    found.table.asks = vec![found.ask.clone()];
    for _ in 0..ROUNDS_MAX {
        let mut smaller = smaller(&found);
        smaller.sort_by_key(|table| table.yaml().len());
        smaller.truncate(SERVICES_MAX);
        if smaller.is_empty() {
            break;
        }
        // What can be taken away and makes an object that is refused is no smaller table; those are few.
        let Ok(tried) = trial::run(binary, &smaller).await else { break };
        let Some(next) = tried.disagreements.into_iter().min_by_key(size) else { break };
        found = next;
    }
    Ok(found)
}

fn size(found: &Disagreement) -> usize {
    found.table.yaml().len() + format!("{:?}", found.ask).len()
}

/// The table without one of its parts, or with a smaller request.
fn smaller(found: &Disagreement) -> Vec<Table> {
    let table = &found.table;
    let mut all = Vec::new();
    let mut keep = |routes: Vec<Value>, ask: &weft_tests::client::Ask| {
        let service = format!("{}-{}", table.origin_service(), all.len());
        // A name of its own, in all of its objects.
        let text = Value::from(routes).to_string().replace(&table.service, &service);
        let routes = serde_json::from_str(&text).unwrap_or_default();
        all.push(Table {
            service,
            speaks: table.speaks,
            routes,
            asks: vec![ask.clone()],
            origin: table.origin.clone(),
        });
    };
    for index in 0..table.routes.len() {
        if table.routes.len() > 1 {
            let mut routes = table.routes.clone();
            routes.remove(index);
            keep(routes, &found.ask);
        }
        for place in places(&table.routes[index]) {
            let mut routes = table.routes.clone();
            if let Some(list) = routes[index].pointer_mut(&place.list).and_then(Value::as_array_mut) {
                list.remove(place.index);
            }
            prune(&mut routes[index]);
            keep(routes, &found.ask);
        }
    }
    for at in 0..found.ask.headers.len() {
        let mut ask = found.ask.clone();
        ask.headers.remove(at);
        keep(table.routes.clone(), &ask);
    }
    all
}

/// An element of a list in an object.
struct Place {
    list: String,
    index: usize,
}

/// Everything that can be taken away from a route.
fn places(route: &Value) -> Vec<Place> {
    let mut found = Vec::new();
    walk(&route["spec"]["rules"], "/spec/rules", &mut found);
    found
}

fn walk(value: &Value, at: &str, found: &mut Vec<Place>) {
    match value {
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                found.push(Place { list: at.to_owned(), index });
                walk(item, &format!("{at}/{index}"), found);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                walk(field, &format!("{at}/{name}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Takes empty lists away, which is how the API says "none".
fn prune(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(prune),
        Value::Object(fields) => {
            fields.values_mut().for_each(prune);
            fields.retain(|name, field| {
                name == "rules" || field.as_array().is_none_or(|list| !list.is_empty())
            });
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl Table {
    /// The name it began with, without the numbers of shrinking.
    fn origin_service(&self) -> String {
        self.service.split('-').take(2).collect::<Vec<_>>().join("-")
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, ask, envoy, weft } = self;
        writeln!(f, "==== {}: the smallest table and request of it", table.origin)?;
        writeln!(f, "{}---- {ask:#?}", table.yaml())?;
        writeln!(f, "---- Envoy\n{envoy}---- Weft\n{weft}")
    }
}
