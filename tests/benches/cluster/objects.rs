//! A large cluster: as many objects as asked for, each about as large as a real one.

use serde_json::{Value, json};
use weft_tests::apiserver::ApiServer;

/// How large.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) services: usize,
    pub(crate) pods: usize,
    /// Old ReplicaSets that a Deployment keeps beside its current one.
    pub(crate) history: usize,
}

impl Size {
    /// Pods of one service.
    pub(crate) fn replicas(self) -> usize {
        (self.pods / self.services).max(1)
    }
}

/// Services in one namespace.
const NAMESPACE: usize = 50;

pub(crate) fn namespace(service: usize) -> String {
    format!("team-{:03}", service / NAMESPACE)
}

/// Fills a server.
pub(crate) fn fill(server: &ApiServer, size: Size) -> anyhow::Result<()> {
    for service in 0..size.services {
        server.set(service_object(service))?;
        server.set(slice(service, size.replicas(), None))?;
        for revision in 0..=size.history {
            server.set(replica_set(service, revision))?;
        }
        for replica in 0..size.replicas() {
            server.set(pod(service, replica))?;
        }
    }
    Ok(())
}

fn name(service: usize) -> String {
    format!("service-{service:05}")
}

fn address(service: usize, replica: usize) -> String {
    let number = service * 16 + replica;
    format!("10.{}.{}.{}", 128 + (number >> 16), (number >> 8) & 255, number & 255)
}

fn managed(fields: usize) -> Value {
    let field = |at: usize| (format!("f:field-{at}"), json!({ ".": {}, "f:name": {}, "f:value": {} }));
    let fields: serde_json::Map<String, Value> = (0..fields).map(field).collect();
    json!([{
        "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "manager": "kube-controller-manager", "operation": "Update",
        "time": "2026-01-01T00:00:00Z", "fieldsV1": { "f:metadata": { "f:labels": {} }, "f:spec": fields },
    }])
}

fn owner(kind: &str, name: String) -> Value {
    json!([{ "apiVersion": "apps/v1", "kind": kind, "name": name, "controller": true, "blockOwnerDeletion": true,
             "uid": "3f0f4c9a-0000-4000-8000-000000000000" }])
}

fn service_object(service: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name(service), "namespace": namespace(service), "managedFields": managed(8) },
        "spec": {
            "type": "ClusterIP", "selector": { "app": name(service) }, "sessionAffinity": "None",
            "clusterIP": format!("10.96.{}.{}", service >> 8, service & 255),
            "ports": [{ "name": "http", "port": 80, "targetPort": "http" }, { "name": "metrics", "port": 9090 }],
        },
    })
}

/// The endpoints of a service; one of them not ready, if asked for.
pub(crate) fn slice(service: usize, replicas: usize, unready: Option<usize>) -> Value {
    let endpoint = |replica: usize| {
        json!({
            "addresses": [address(service, replica)], "zone": format!("zone-{}", replica % 3), "nodeName": "node",
            "conditions": { "ready": unready != Some(replica), "serving": true, "terminating": false },
            "targetRef": { "kind": "Pod", "namespace": namespace(service), "name": format!("{}-7d4b9c-{replica}", name(service)) },
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": format!("{}-x", name(service)), "namespace": namespace(service), "managedFields": managed(8),
                      "labels": { "kubernetes.io/service-name": name(service) } },
        "ports": [{ "name": "http", "port": 8080 }, { "name": "metrics", "port": 9090 }],
        "endpoints": (0..replicas).map(endpoint).collect::<Vec<_>>(),
    })
}

fn replica_set(service: usize, revision: usize) -> Value {
    let hash = if revision == 0 { "7d4b9c".to_owned() } else { format!("{revision}a2b3c") };
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": { "name": format!("{}-{hash}", name(service)), "namespace": namespace(service), "managedFields": managed(20),
                      "labels": { "app": name(service), "pod-template-hash": hash },
                      "ownerReferences": owner("Deployment", name(service)) },
        "spec": { "replicas": if revision == 0 { 4 } else { 0 } },
    })
}

fn pod(service: usize, replica: usize) -> Value {
    let environment: Vec<Value> = (0..15)
        .map(|at| json!({ "name": format!("SETTING_{at}"), "value": format!("value of setting {at}") }))
        .collect();
    let container = |name: &str, port: u16| {
        json!({
            "name": name, "image": "registry.example.org/team/service:v1.2.3", "env": environment.clone(),
            "ports": [{ "name": "http", "containerPort": port, "protocol": "TCP" }],
            "resources": { "limits": { "cpu": "1", "memory": "256Mi" }, "requests": { "cpu": "100m", "memory": "128Mi" } },
            "readinessProbe": { "httpGet": { "path": "/ready", "port": "http", "scheme": "HTTP" }, "periodSeconds": 10 },
            "volumeMounts": [{ "name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true }],
        })
    };
    let address = address(service, replica);
    let condition =
        |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{}-7d4b9c-{replica}", name(service)), "namespace": namespace(service), "managedFields": managed(40),
            "labels": { "app": name(service), "pod-template-hash": "7d4b9c", "team": namespace(service), "version": "v1" },
            "annotations": { "checksum/config": "0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b" },
            "ownerReferences": owner("ReplicaSet", format!("{}-7d4b9c", name(service))),
        },
        "spec": {
            "containers": [container("app", 8080), container("helper", 9090)], "serviceAccountName": name(service),
            "nodeName": "node", "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "tolerations": [{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }],
            "volumes": [{ "name": "kube-api-access", "projected": { "sources": [
                { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            ] } }],
        },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "hostIP": "192.168.0.1",
            "conditions": [condition("Initialized"), condition("Ready"), condition("ContainersReady"), condition("PodScheduled")],
            "containerStatuses": [{
                "name": "app", "ready": true, "restartCount": 0, "image": "registry.example.org/team/service:v1.2.3",
                "imageID": "registry.example.org/team/service@sha256:0f343b0931126a20f133d67c2b018a3b0f343b0931126a20f133d67c2b018a3b",
                "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
            }],
        },
    })
}
