//! The directory for people: what the admin's config dump shows.
//!
//! In: what workers see. Out: JSON, sorted by name so that two dumps can be compared line by line.
//! Surprise: it is made from the published objects, not from what the control plane said: what is shown is what
//! traffic does.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use weft_wire::xds::Protocol;

use super::directory::{Answer, Map, Status};
use super::model::{Cluster, Endpoint, Listener};

/// Everything in the map, and the client's state.
pub(super) fn dump(status: &Status, map: &Map) -> Value {
    let mut listeners = BTreeMap::new();
    let mut clusters = BTreeMap::new();
    let mut absent = vec![];
    for (name, entry) in map {
        match &entry.answer {
            Answer::Absent => absent.push(name.to_string()),
            Answer::Known(listener) => {
                let used = listener.cluster().into_iter().chain(routed(listener));
                clusters.extend(used.map(|used| (used.name.clone(), cluster(&used))));
                listeners.insert(name.to_string(), describe(listener));
            }
        }
    }
    absent.sort_unstable();
    json!({ "status": status, "listeners": listeners, "clusters": clusters, "absent": absent })
}

fn routed(listener: &Listener) -> Vec<Arc<Cluster>> {
    let table = listener.routes();
    let backends = table.routes().flat_map(|route| route.backends());
    backends.map(|backend| Arc::clone(&backend.cluster)).collect()
}

fn describe(listener: &Listener) -> Value {
    let table = listener.routes();
    let routes: Vec<Value> = table
        .routes()
        .map(|route| {
            let backends: BTreeMap<&str, u32> =
                route.backends().iter().map(|backend| (&*backend.cluster.name, backend.weight)).collect();
            json!({ "name": &**route.name(), "matches": route.matches().to_string(), "backends": backends })
        })
        .collect();
    json!({
        "service": listener.service.as_ref().map(ToString::to_string),
        "protocol": listener.protocol.map(Protocol::word),
        "workload": listener.workload.as_ref().map(ToString::to_string),
        "routes": routes,
        "opaque": listener.cluster().map(|cluster| cluster.name.clone()),
    })
}

fn cluster(cluster: &Cluster) -> Value {
    let endpoints = cluster.endpoints();
    json!({
        "service": cluster.service.as_ref().map(ToString::to_string),
        "protocol": cluster.protocol.map(Protocol::word),
        "http2": cluster.http2,
        "connect_timeout_ms": u64::try_from(cluster.connect_timeout.as_millis()).unwrap_or(u64::MAX),
        "balancing": format!("{:?}", cluster.balancing),
        "generation": endpoints.generation,
        "endpoints": endpoints.list.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    json!({
        "address": endpoint.address.to_string(),
        "workload": endpoint.workload.as_ref().map(ToString::to_string),
        "version": endpoint.version.as_deref(),
        "pod": endpoint.pod.as_deref(),
        "weight": endpoint.weight,
        "health": endpoint.health.word(),
        "priority": endpoint.priority,
        "zone": endpoint.zone.as_deref(),
    })
}
