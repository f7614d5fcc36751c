//! What Kubernetes would hold about the mesh's pods and services.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use weft_cli::fabric::Pod;

/// A service and the pods behind it.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
    pub(super) app_protocol: Option<&'static str>,
    pub(super) ready: Vec<String>,
}

impl Service {
    pub(super) fn object(&self) -> Value {
        let mut port = json!({"name": "main", "port": self.port, "targetPort": self.port, "protocol": "TCP"});
        if let Some(protocol) = self.app_protocol {
            port["appProtocol"] = protocol.into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": "shop"},
            "spec": {"clusterIP": self.address, "clusterIPs": [self.address], "ports": [port]},
        })
    }

    pub(super) fn endpoint_slice(&self, ready: Vec<(&str, Ipv4Addr)>) -> Value {
        let endpoints = ready.iter().map(|(name, address)| {
            json!({
                "addresses": [address],
                "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": name, "namespace": "shop"},
            })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-1", self.name),
                "namespace": "shop",
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "main", "port": self.port, "protocol": "TCP"}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}

/// `orders-1` and `orders-2` are pods of the workload `orders`.
pub(super) fn workload(pod: &str) -> &str {
    pod.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-')
}

pub(super) fn pod_object(name: &str, pod: &Pod) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": {"app.kubernetes.io/name": workload(name)},
        },
        "spec": {"serviceAccountName": workload(name), "containers": [{"name": "app"}]},
        "status": {"podIP": pod.address(), "podIPs": [{"ip": pod.address()}, {"ip": pod.address_v6()}]},
    })
}
