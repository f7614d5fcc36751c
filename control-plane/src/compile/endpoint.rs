//! Endpoint assignments: where a cluster's traffic can go, and who is there.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EnvoyEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use envoy_types::pb::google::protobuf::UInt32Value;
use weft_wire::tls::Mode;

use super::proto::{self, Fields};
use super::{Resource, Target, direct, finish, provisional};
use crate::world::{Endpoint, Health, World};

pub(super) fn compile(world: &World, name: &str) -> Option<Resource> {
    match Target::parse(name)? {
        Target::Service(port) => {
            let service = world.service(&port.service)?;
            let port = service.port(port.port)?;
            // Who an endpoint is may be known only when its sidecar has come back, and until then nobody shall begin to
            // call it in plain text.
            let proven = |endpoint: &Endpoint| endpoint.peer.as_ref().is_some_and(|p| p.identity.is_some());
            let endpoints: Vec<&Endpoint> = service.callable(port).collect();
            let unproven = world.trust().is_some() && !endpoints.iter().copied().all(proven);
            Some(to_resource(world, name, &endpoints, unproven || provisional(service, port)))
        }
        Target::Direct(address) => {
            let endpoint = directly(world, address)?;
            Some(to_resource(world, name, &[&endpoint], true))
        }
        // The app behind a sidecar is in the cluster itself.
        Target::App(_) => None,
    }
}

/// The one endpoint of a direct call. It is called whether it is ready or not: the caller asked for it.
fn directly(world: &World, address: SocketAddr) -> Option<Endpoint> {
    let direct = direct(world, address)?;
    Some(Endpoint { address, health: Health::Ready, zone: None, peer: direct.peer(world, address) })
}

fn to_resource(world: &World, name: &str, endpoints: &[&Endpoint], provisional: bool) -> Resource {
    let zones = by_zone(endpoints);
    let marks = zones.values().flatten().map(|endpoint| fields(world, endpoint)).collect();
    let put = |assignment: &mut ClusterLoadAssignment, at: usize, fields: Fields| {
        let mut endpoints = assignment.endpoints.iter_mut().flat_map(|locality| &mut locality.lb_endpoints);
        if let Some(endpoint) = endpoints.nth(at) {
            endpoint.metadata = fields.metadata();
        }
    };
    finish(assignment(name, endpoints), marks, put, provisional)
}

/// Who is there, and whether that is made sure of.
fn fields(world: &World, endpoint: &Endpoint) -> Fields {
    let Some(peer) = &endpoint.peer else { return Fields::default() };
    let fields = Fields::default().peer(peer);
    match &peer.identity {
        Some(identity) if world.trust().is_some() && world.mtls_at(endpoint.address) != Mode::Disabled => {
            fields.identity(identity)
        }
        _ => fields,
    }
}

/// Endpoints by zone, in order; first those that are in none.
fn by_zone<'a>(endpoints: &[&'a Endpoint]) -> BTreeMap<Option<&'a str>, Vec<&'a Endpoint>> {
    let mut zones: BTreeMap<Option<&str>, Vec<&Endpoint>> = BTreeMap::new();
    for &endpoint in endpoints {
        zones.entry(endpoint.zone.as_deref()).or_default().push(endpoint);
    }
    zones
}

/// An assignment with one locality for each zone, without metadata.
pub(super) fn assignment(name: &str, endpoints: &[&Endpoint]) -> ClusterLoadAssignment {
    let localities = by_zone(endpoints).into_iter().map(|(zone, endpoints)| LocalityLbEndpoints {
        locality: zone.map(|zone| Locality { zone: zone.to_owned(), ..Default::default() }),
        lb_endpoints: endpoints.into_iter().map(lb_endpoint).collect(),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..Default::default()
    });
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: localities.collect(),
        ..Default::default()
    }
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
