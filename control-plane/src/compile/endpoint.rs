//! Endpoint assignments: where a cluster's traffic can go, and who is there.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EnvoyEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use envoy_types::pb::google::protobuf::UInt32Value;

use super::proto::{self, Fields};
use super::{Resource, Target, direct, finish, provisional};
use crate::world::{Endpoint, Health, Peer, World};

pub(super) fn compile(world: &World, name: &str) -> Option<Resource> {
    match Target::parse(name)? {
        Target::Service(port) => {
            let service = world.service(&port.service)?;
            let port = service.port(port.port)?;
            Some(to_resource(name, &port.endpoints, provisional(service, port)))
        }
        Target::Direct(address) => {
            let endpoint = directly(world, address)?;
            Some(to_resource(name, &[endpoint], true))
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

fn to_resource(name: &str, endpoints: &[Endpoint], provisional: bool) -> Resource {
    let fields = |peer: Option<&Peer>| peer.map_or_else(Fields::default, |peer| Fields::default().peer(peer));
    let marks = endpoints.iter().map(|endpoint| fields(endpoint.peer.as_deref())).collect();
    let put = |assignment: &mut ClusterLoadAssignment, at: usize, metadata| {
        // There is one locality, or none and no marks.
        let endpoints = assignment.endpoints.first_mut().map(|locality| &mut locality.lb_endpoints);
        if let Some(endpoint) = endpoints.and_then(|endpoints| endpoints.get_mut(at)) {
            endpoint.metadata = metadata;
        }
    };
    finish(assignment(name, endpoints), marks, put, provisional)
}

/// An assignment with all endpoints in one locality, without metadata.
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
    LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(EnvoyEndpoint {
            address: Some(proto::address(endpoint.address)),
            ..Default::default()
        })),
        health_status: health as i32,
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        metadata: None,
    }
}
