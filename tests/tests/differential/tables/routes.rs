//! Route tables from seeds: objects of the Gateway API that say a lot about one service.
//!
//! In: a seed. Out: the objects. Pure: a seed makes the same table on every machine. Invariant: every object is one that
//! the control plane accepts; what it refuses has tests of its own.

use fastrand::Rng;
use serde_json::{Value, json};

use super::filters;
use super::words::{self, chance, path, pick};
use crate::differential::objects::{NAMESPACE, PORT};

/// Backends that rules refer to: `b0`, …; two are declared to speak HTTP, two HTTP/2, and one nothing.
pub(super) const BACKENDS: usize = 5;
/// A service that exists, in a namespace that lets nobody refer to it.
pub(super) const FORBIDDEN: (&str, &str) = ("vault", "other");

/// What kind of routes a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    Grpc,
}

/// The routes of a service.
pub(super) fn routes(rng: &mut Rng, service: &str) -> Vec<Value> {
    let kind = if chance(rng, 20) { Kind::Grpc } else { Kind::Http };
    let count = [1, 1, 2, 2, 3][rng.usize(..5)];
    let mut routes: Vec<Value> = (0..count).map(|index| route(rng, service, index, kind)).collect();
    // Where both kinds are attached only one counts.
    if kind == Kind::Grpc && chance(rng, 20) {
        routes.push(route(rng, service, count, Kind::Http));
    }
    // A route of another namespace is for that namespace's callers.
    if chance(rng, 8) {
        let mut foreign = route(rng, service, count + 1, kind);
        foreign["metadata"]["namespace"] = "elsewhere".into();
        foreign["spec"]["parentRefs"][0]["namespace"] = NAMESPACE.into();
        routes.push(foreign);
    }
    routes
}

fn route(rng: &mut Rng, service: &str, index: usize, kind: Kind) -> Value {
    // The first letter decides between routes of one age.
    let letter = pick(rng, &["m", "c", "x"]);
    let name = format!("{letter}{index}-{service}");
    let mut metadata = json!({"name": name, "namespace": NAMESPACE});
    if chance(rng, 40) {
        let time = pick(rng, &["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"]);
        metadata["creationTimestamp"] = time.into();
    }
    let parent = |fields: Value| {
        let mut parent = json!({"group": "", "kind": "Service", "name": service});
        for (name, value) in fields.as_object().into_iter().flatten() {
            parent[name] = value.clone();
        }
        parent
    };
    let parents = match rng.u32(..20) {
        0..12 => vec![parent(json!({}))],
        12..15 => vec![parent(json!({"port": PORT}))],
        15..17 => vec![parent(json!({"sectionName": "main"}))],
        17 => vec![parent(json!({"port": PORT + 1}))],
        18 => vec![parent(json!({"port": PORT + 1})), parent(json!({"port": PORT}))],
        _ => vec![json!({"name": "gateway"}), parent(json!({}))],
    };
    let rules: Vec<Value> =
        (0..rng.usize(1..=4)).map(|index| rule(rng, &format!("{name}/{index}"), kind)).collect();
    let mut spec = json!({"parentRefs": parents, "rules": rules});
    if chance(rng, 10) {
        spec["hostnames"] = json!(["shop.example"]);
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": if kind == Kind::Http { "HTTPRoute" } else { "GRPCRoute" },
        "metadata": metadata,
        "spec": spec,
    })
}

fn rule(rng: &mut Rng, name: &str, kind: Kind) -> Value {
    let count = [0, 1, 1, 1, 2, 2, 3][rng.usize(..7)];
    let matches: Vec<Value> = (0..count).map(|_| one_match(rng, kind)).collect();
    let prefixes = matches.iter().all(|one| match one.pointer("/path/type") {
        Some(kind) => kind == "PathPrefix",
        None => true,
    });
    let filters = filters::of_rule(rng, name, kind, prefixes);
    let redirects = filters.iter().any(|filter| filter["type"] == "RequestRedirect");
    let mut rule = json!({});
    if !matches.is_empty() {
        rule["matches"] = matches.into();
    }
    if !filters.is_empty() {
        rule["filters"] = filters.into();
    }
    if !redirects {
        let backends = backends(rng);
        if !backends.is_empty() {
            rule["backendRefs"] = backends.into();
        }
    }
    if kind == Kind::Http && chance(rng, 15) {
        rule["timeouts"] = json!({"request": pick(rng, &["0s", "30s", "1m"])});
    }
    rule
}

fn one_match(rng: &mut Rng, kind: Kind) -> Value {
    let mut one = json!({});
    match kind {
        Kind::Http => {
            if chance(rng, 85) {
                one["path"] = path_match(rng);
            }
            if chance(rng, 20) {
                one["method"] = pick(rng, words::METHODS).into();
            }
            if chance(rng, 20) {
                one["queryParams"] = values(rng, words::QUERY);
            }
        }
        Kind::Grpc => {
            if chance(rng, 85) {
                one["method"] = call_match(rng);
            }
        }
    }
    if chance(rng, 25) {
        one["headers"] = values(rng, words::HEADERS);
    }
    one
}

fn path_match(rng: &mut Rng) -> Value {
    let slash = if chance(rng, 20) { "/" } else { "" };
    match rng.u32(..20) {
        0..7 => json!({"type": "Exact", "value": path(rng) + slash}),
        7 => json!({"type": "Exact", "value": "/"}),
        8 => json!({"type": "PathPrefix", "value": "/"}),
        9..16 => json!({"type": "PathPrefix", "value": path(rng) + slash}),
        _ => {
            let expression = &words::PATHS[rng.usize(..words::PATHS.len())];
            json!({"type": "RegularExpression", "value": expression.text})
        }
    }
}

fn call_match(rng: &mut Rng) -> Value {
    let mut one = json!({});
    let regex = chance(rng, 30);
    let which = rng.u32(..3);
    if regex {
        one["type"] = "RegularExpression".into();
    }
    let mut part = |rng: &mut Rng, field: &str, exact: &[&str], expressions: &[words::Expression]| {
        let text = if regex { expressions[rng.usize(..expressions.len())].text } else { pick(rng, exact) };
        one[field] = text.into();
    };
    if which != 0 {
        part(rng, "service", words::CALL_SERVICES, words::CALL_SERVICE_EXPRESSIONS);
    }
    if which != 1 {
        part(rng, "method", words::CALL_METHODS, words::CALL_METHOD_EXPRESSIONS);
    }
    one
}

fn values(rng: &mut Rng, names: &[&str]) -> Value {
    let count = rng.usize(1..=2);
    let value = |rng: &mut Rng| {
        let name = pick(rng, names);
        if chance(rng, 35) {
            let expression = &words::VALUE_EXPRESSIONS[rng.usize(..words::VALUE_EXPRESSIONS.len())];
            json!({"type": "RegularExpression", "name": name, "value": expression.text})
        } else {
            json!({"name": name, "value": pick(rng, words::VALUES)})
        }
    };
    (0..count).map(|_| value(rng)).collect()
}

fn backends(rng: &mut Rng) -> Vec<Value> {
    let backend = |rng: &mut Rng, weight: Option<u32>| {
        let mut backend = json!({"name": format!("b{}", rng.usize(..BACKENDS)), "port": PORT});
        if let Some(weight) = weight {
            backend["weight"] = weight.into();
        }
        let filters = filters::of_backend(rng);
        if !filters.is_empty() {
            backend["filters"] = filters.into();
        }
        backend
    };
    let nowhere = |rng: &mut Rng| match rng.u32(..4) {
        0 => json!({"name": "ghost", "port": PORT}),
        1 => json!({"name": "b0", "port": PORT + 7}),
        2 => json!({"name": FORBIDDEN.0, "namespace": FORBIDDEN.1, "port": PORT}),
        _ => json!({"group": "example.com", "kind": "Bucket", "name": "b0"}),
    };
    match rng.u32(..40) {
        0..28 => vec![backend(rng, None)],
        28..31 => vec![backend(rng, Some(0)), backend(rng, Some(7)), backend(rng, Some(0))],
        31 => vec![backend(rng, Some(0)), backend(rng, Some(0))],
        32..34 => vec![],
        34..36 => vec![nowhere(rng)],
        36 => vec![nowhere(rng), backend(rng, Some(2))],
        37 => vec![backend(rng, Some(1)), backend(rng, Some(3)), backend(rng, Some(0))],
        _ => vec![backend(rng, Some(2)), backend(rng, None)],
    }
}
