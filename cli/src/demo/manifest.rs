//! The shop as Kubernetes would describe it: the files that the demo's control plane reads.
//!
//! In: the copies with their addresses. Out: `Service`, `EndpointSlice` and `Pod` documents as YAML. The
//! bank is in none of them: nobody tells a cluster about the internet.

use serde_json::{Value, json};

use super::cast::{CAST, Copy, NAMESPACE, Part, virtual_address};

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
            documents.push(endpoint_slice(&copies));
        }
        let texts = documents.iter().map(serde_yaml::to_string).collect::<Result<Vec<_>, _>>()?;
        files.push((format!("{}.yaml", role.name), texts.join("---\n")));
    }
    Ok(files)
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
        "spec": { "containers": [{ "name": copy.role.name, "image": image }] },
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

fn endpoint_slice(copies: &[&Copy]) -> Value {
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
            "name": format!("{}-1", role.name),
            "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": role.name },
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
        let (_, catalog) = manifests.iter().find(|(name, _)| name == "catalog.yaml").expect("there");
        insta::assert_snapshot!(catalog);
    }
}
