//! The shop as Kubernetes would describe it: the files that the demo's control plane reads.
//!
//! In: the copies with their addresses. Out: `Service`, `EndpointSlice` and `Pod` documents as YAML, and what tells
//! callers how to call: an `HTTPRoute` that splits traffic between versions, the policies in front of a service that
//! fails at times. The bank is in none of them: nobody tells a cluster about the internet.

use serde_json::{Value, json};

use super::cast::{CAST, Copy, NAMESPACE, Part, Role, virtual_address};

/// One YAML file per program: name and text.
pub(super) fn manifests(copies: &[Copy]) -> Result<Vec<(String, String)>, serde_yaml::Error> {
    let mut files = Vec::new();
    for role in CAST.iter().filter(|role| role.part != Part::External) {
        let copies: Vec<&Copy> = copies.iter().filter(|copy| copy.role.name == role.name).collect();
        // On loopback not everybody plays.
        if copies.is_empty() {
            continue;
        }
        let mut documents: Vec<Value> = copies.iter().map(|copy| pod(copy)).collect();
        if role.port.is_some() {
            documents.push(service(&copies));
            documents.push(endpoint_slice(role.name, &copies));
        }
        if role.versions.len() > 1 {
            documents.extend(canary(role, &copies));
        }
        if role.frail {
            documents.extend(protection(role));
        }
        let texts = documents.iter().map(weft_control_plane::yaml::text).collect::<Result<Vec<_>, _>>()?;
        files.push((format!("{}.yaml", role.name), texts.join("---\n")));
    }
    Ok(files)
}

/// A service for each version, and the route of the common name that splits traffic between them.
fn canary(role: &Role, copies: &[&Copy]) -> Vec<Value> {
    let mut documents = Vec::new();
    for (version, _) in role.versions {
        let name = format!("{}-{version}", role.name);
        let of_version: Vec<&Copy> = copies.iter().copied().filter(|copy| copy.version == *version).collect();
        let mut service = service(&of_version);
        service["metadata"]["name"] = name.as_str().into();
        // Nobody calls it by name, so it needs no address of its own.
        service["spec"]["clusterIP"] = "None".into();
        service["spec"]["clusterIPs"] = json!(["None"]);
        service["spec"]["selector"]["app.kubernetes.io/version"] = (*version).into();
        documents.extend([service, endpoint_slice(&name, &of_version)]);
    }
    documents.push(route(role));
    documents
}

/// The route of a name that splits traffic between the versions behind it.
pub(super) fn route(role: &Role) -> Value {
    let port = role.port.map(|port| port.number);
    let backends = role.versions.iter().map(|(version, weight)| {
        json!({ "name": format!("{}-{version}", role.name), "port": port, "weight": weight })
    });
    let backends: Vec<Value> = backends.collect();
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": role.name, "namespace": NAMESPACE },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": role.name, "port": port }],
            "rules": [{ "backendRefs": backends }],
        },
    })
}

/// What callers of a service that fails at times should do. An ejection is shorter than by default, so that its end can
/// be watched.
pub(super) fn protection(role: &Role) -> [Value; 2] {
    let target = json!([{ "group": "", "kind": "Service", "name": role.name }]);
    let breaker = json!({
        "apiVersion": "weft.dev/v1alpha1",
        "kind": "CircuitBreaker",
        "metadata": { "name": role.name, "namespace": NAMESPACE },
        "spec": {
            "targetRefs": target,
            "endpoints": { "consecutiveFailures": 5, "interval": "1s", "baseEjectionTime": "10s" },
        },
    });
    // 503 is the answer of somebody who did nothing, so that nothing is done twice.
    let policy = json!({
        "apiVersion": "weft.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": { "name": role.name, "namespace": NAMESPACE },
        "spec": {
            "targetRefs": target,
            "timeouts": { "request": "3s" },
            "retry": { "attempts": 2, "retryOn": ["gateway-error"] },
        },
    });
    [breaker, policy]
}

fn pod(copy: &Copy) -> Value {
    let image = format!("shop/{}:{}", copy.role.name, copy.version);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": copy.pod,
            "namespace": NAMESPACE,
            "labels": {
                "app.kubernetes.io/name": copy.role.name,
                "app.kubernetes.io/version": copy.version,
            },
        },
        "spec": {
            "serviceAccountName": copy.role.name,
            "containers": [{ "name": copy.role.name, "image": image }],
        },
        "status": {
            "phase": "Running",
            "podIP": copy.address,
            "podIPs": [{ "ip": copy.address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn service(copies: &[&Copy]) -> Value {
    let role = copies[0].role;
    let port = role.port.expect("only services are asked");
    let target = copies[0].port.unwrap_or(port.number);
    let declared = json!({ "name": port.name, "port": port.number, "targetPort": target });
    let declared = with_protocol(declared, port.protocol);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": role.name, "namespace": NAMESPACE },
        "spec": {
            "clusterIP": virtual_address(role),
            "clusterIPs": [virtual_address(role)],
            "selector": { "app.kubernetes.io/name": role.name },
            "ports": [declared],
        },
    })
}

fn endpoint_slice(service: &str, copies: &[&Copy]) -> Value {
    let role = copies[0].role;
    let port = role.port.expect("only services are asked");
    let target = copies[0].port.unwrap_or(port.number);
    let declared = json!({ "name": port.name, "port": target, "protocol": "TCP" });
    let declared = with_protocol(declared, port.protocol);
    let endpoints: Vec<Value> = copies
        .iter()
        .map(|copy| {
            json!({
                "addresses": [copy.address],
                "conditions": { "ready": true },
                "targetRef": { "kind": "Pod", "name": copy.pod, "namespace": NAMESPACE },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-1"),
            "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": [declared],
        "endpoints": endpoints,
    })
}

fn with_protocol(mut port: Value, protocol: Option<&str>) -> Value {
    if let Some(protocol) = protocol {
        port["appProtocol"] = protocol.into();
    }
    port
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::cast;
    use std::net::Ipv4Addr;

    #[test]
    fn every_program_in_the_cluster_is_described() {
        let copies: Vec<Copy> = cast::copies()
            .zip(2..)
            .map(|((role, version, pod), number)| Copy {
                role,
                version,
                pod,
                address: Ipv4Addr::new(10, 77, 0, number),
                port: role.port.map(|port| port.number),
            })
            .collect();
        let manifests = manifests(&copies).expect("YAML");
        assert_eq!(manifests.len(), CAST.len() - 1);
        let of = |file: &str| {
            let found = manifests.iter().find(|(name, _)| name == file);
            found.map(|(_, text)| text.as_str()).expect("there")
        };
        insta::assert_snapshot!("the_canary", of("catalog.yaml"));
        let policies = of("cart.yaml").split("---\n").filter(|text| text.contains("weft.dev/v1alpha1"));
        insta::assert_snapshot!("the_protection", policies.collect::<Vec<_>>().join("---\n"));
    }
}
