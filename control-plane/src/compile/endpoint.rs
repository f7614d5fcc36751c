//! Endpoint assignments: where a cluster's traffic can go, and who is there.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EnvoyEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use envoy_types::pb::google::protobuf::UInt32Value;

use super::proto::{self, Fields};
use super::{Resource, Target, direct, finish, provisional};
use crate::world::{Endpoint, Health, World};

pub(super) fn compile(world: &World, name: &str) -> Option<Resource> {
    match Target::parse(name)? {
        Target::Service(port) => {
            let service = world.service(&port.service)?;
            let port = service.port(port.port)?;
            Some(finish(&assignment(name, &port.endpoints), provisional(service, port)))
        }
        Target::Direct(address) => {
            let endpoint = directly(world, address)?;
            Some(finish(&assignment(name, std::slice::from_ref(&endpoint)), true))
        }
        // The app behind a sidecar is in the cluster itself.
        Target::App(_) => None,
    }
}

/// The one endpoint of a direct call. It is called whether it is ready or not: the caller asked for it.
fn directly(world: &World, address: SocketAddr) -> Option<Endpoint> {
    let direct = direct(world, address)?;
    Some(Endpoint { address, health: Health::Ready, peer: direct.peer(world, address) })
}

/// An assignment with all endpoints in one locality.
pub(super) fn assignment(name: &str, endpoints: &[Endpoint]) -> ClusterLoadAssignment {
    let lb_endpoints: Vec<LbEndpoint> = endpoints.iter().map(lb_endpoint).collect();
    let locality = LocalityLbEndpoints {
        lb_endpoints,
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..Default::default()
    };
    let endpoints = if endpoints.is_empty() { Vec::new() } else { vec![locality] };
    ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints, ..Default::default() }
}

fn lb_endpoint(endpoint: &Endpoint) -> LbEndpoint {
    let health = match endpoint.health {
        Health::Ready => HealthStatus::Healthy,
        Health::Draining => HealthStatus::Draining,
        Health::NotReady => HealthStatus::Unhealthy,
    };
    let peer = endpoint.peer.as_deref();
    LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(EnvoyEndpoint {
            address: Some(proto::address(endpoint.address)),
            ..Default::default()
        })),
        health_status: health as i32,
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        metadata: peer.and_then(|peer| Fields::default().peer(peer).metadata()),
    }
}
