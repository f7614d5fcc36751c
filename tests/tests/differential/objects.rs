//! Kubernetes objects in a test's words.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// Where everything lives.
pub(crate) const NAMESPACE: &str = "shop";
/// The port that callers use.
pub(crate) const PORT: u16 = 80;

/// A service that speaks HTTP, and its endpoints.
pub(crate) fn service(name: &str, endpoints: &[SocketAddr]) -> Vec<Value> {
    service_that_speaks("http", name, endpoints)
}

/// A service that was declared to speak this, and its endpoints.
pub(crate) fn service_that_speaks(protocol: &str, name: &str, endpoints: &[SocketAddr]) -> Vec<Value> {
    let port = json!({"name": "main", "port": PORT, "protocol": "TCP", "appProtocol": protocol});
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"clusterIP": "None", "ports": [port]},
    });
    // A slice has one port for all its endpoints, and backends on loopback differ in nothing else.
    let slices = endpoints.iter().enumerate().map(|(index, address)| slice(name, index, *address));
    std::iter::once(object).chain(slices).collect()
}

fn slice(service: &str, index: usize, address: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{index}"),
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "main", "port": address.port(), "protocol": "TCP"}],
        "endpoints": [{"addresses": [address.ip()], "conditions": {"ready": true}}],
    })
}

/// The same objects in another namespace.
pub(crate) fn moved(mut objects: Vec<Value>, namespace: &str) -> Vec<Value> {
    for object in &mut objects {
        object["metadata"]["namespace"] = namespace.into();
    }
    objects
}

/// One file of them.
pub(crate) fn yaml(objects: &[Value]) -> anyhow::Result<String> {
    Ok(objects.iter().map(serde_yaml::to_string).collect::<Result<Vec<_>, _>>()?.join("---\n"))
}
