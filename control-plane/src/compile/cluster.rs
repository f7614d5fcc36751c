//! Clusters: how a service's endpoints are called.
//!
//! This file: how to connect. [`balancing`]: which endpoint. [`breaking`]: when not to.

mod balancing;
mod breaking;

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options};
use envoy_types::pb::google::protobuf::Any;
use http_protocol_options::explicit_http_config::ProtocolConfig;
use http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig};
use weft_wire::xds::Protocol;

use super::defaults;
use super::endpoint::assignment;
use super::proto::{Fields, ads, any, duration};
use super::{Resource, Target, direct, finish, provisional, transport};
use crate::world::policy::{Limits, RetryBudget, Settings, ZonePreference};
use crate::world::{Endpoint, Health, Service, World};

/// Key of the HTTP options in a cluster, as Envoy spells it.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

pub(super) fn compile(world: &World, name: &str) -> Option<Resource> {
    match Target::parse(name)? {
        Target::Service(id) => {
            let service = world.service(&id.service)?;
            let port = service.port(id.port)?;
            let unset = Settings::default();
            let settings = world.port_traffic(&id).map_or(&unset, |traffic| &traffic.policy.settings);
            let settings = &*preferring(service, settings);
            let fields = Fields::default().service(service, port);
            let (cluster, fields) =
                guarded(by_discovery(name, port.protocol), port.protocol, settings, fields);
            let named = format!("{}.{}", id.service.name(), id.service.namespace());
            let sockets = transport::upstream(world, &named, Some(id.service.namespace()));
            let cluster = Cluster { transport_socket_matches: sockets, ..cluster };
            Some(marked(cluster, fields, provisional(service, port)))
        }
        Target::Direct(address) => {
            let direct = direct(world, address)?;
            let protocol = direct.service.and_then(|(_, port)| port.protocol);
            let fields = match direct.service {
                Some((service, port)) => Fields::default().service(service, port),
                None => Fields::default(),
            };
            // One endpoint that was asked for by its address is called whatever it does, so there is nothing to
            // eject and nothing to choose; how much may be under way is limited all the same.
            let limits = breaking::circuit_breakers(&Limits::default(), &RetryBudget::default());
            let peer = direct.peer(world, address);
            let namespace = peer.as_ref().map(|peer| peer.workload.namespace());
            let cluster = Cluster {
                circuit_breakers: Some(limits),
                transport_socket_matches: transport::upstream(world, "endpoint", namespace),
                ..by_discovery(name, protocol)
            };
            Some(marked(cluster, fields, true))
        }
        Target::App(address) => Some(marked(app(name, address), Fields::default(), false)),
    }
}

/// A policy on zones counts before what the Service itself says.
fn preferring<'a>(service: &Service, settings: &'a Settings) -> Cow<'a, Settings> {
    if !service.prefers_zone || settings.balancer.zone_preference.is_some() {
        return Cow::Borrowed(settings);
    }
    let mut settings = settings.clone();
    settings.balancer.zone_preference = Some(ZonePreference { enabled: true, min_healthy_percent: None });
    Cow::Owned(settings)
}

/// Puts in what policies say, or the defaults.
fn guarded(
    cluster: Cluster,
    protocol: Option<Protocol>,
    settings: &Settings,
    fields: Fields,
) -> (Cluster, Fields) {
    let check = settings.health_check.as_ref();
    let mut cluster = Cluster {
        connect_timeout: Some(duration(settings.timeouts.connect.unwrap_or(defaults::CONNECT_TIMEOUT))),
        outlier_detection: Some(breaking::outlier_detection(&settings.endpoints)),
        circuit_breakers: Some(breaking::circuit_breakers(&settings.limits, &settings.retry_budget)),
        health_checks: check.map(|check| breaking::health_check(check, protocol)).into_iter().collect(),
        // Whoever takes an endpoint out of the list wants it out, however well it is.
        ignore_health_on_host_removal: check.is_some(),
        ..cluster
    };
    let fields = balancing::apply(&mut cluster, &settings.balancer, fields);
    let fields = breaking::service_circuit(fields, settings);
    (cluster, fields)
}

fn marked(cluster: Cluster, fields: Fields, provisional: bool) -> Resource {
    finish(cluster, vec![fields], |cluster, _, fields| cluster.metadata = fields.metadata(), provisional)
}

/// A cluster whose endpoints are fetched under the same name.
fn by_discovery(name: &str, protocol: Option<Protocol>) -> Cluster {
    Cluster {
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(cluster::EdsClusterConfig { eds_config: Some(ads()), ..Default::default() }),
        ..basic(name, protocol)
    }
}

/// The app behind a sidecar, for a client that has no other notion of it.
fn app(name: &str, address: SocketAddr) -> Cluster {
    let endpoint = Endpoint { address, health: Health::Ready, zone: None, peer: None };
    Cluster {
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Static as i32,
        )),
        load_assignment: Some(assignment(name, &[&endpoint])),
        ..basic(name, None)
    }
}

fn basic(name: &str, protocol: Option<Protocol>) -> Cluster {
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(duration(defaults::CONNECT_TIMEOUT)),
        lb_policy: cluster::LbPolicy::LeastRequest as i32,
        typed_extension_protocol_options: http_options(protocol),
        ..Default::default()
    }
}

fn http_options(protocol: Option<Protocol>) -> HashMap<String, Any> {
    let options = match protocol {
        Some(Protocol::Tcp | Protocol::Tls) => return HashMap::new(),
        Some(Protocol::Http2) => UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())),
        }),
        // What the client speaks is what the server is spoken to: an app that is called with HTTP/2 on an
        // undeclared port expects HTTP/2.
        Some(Protocol::Http) | None => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions::default()),
                http2_protocol_options: Some(Http2ProtocolOptions::default()),
                ..Default::default()
            })
        }
    };
    let options = HttpProtocolOptions { upstream_protocol_options: Some(options), ..Default::default() };
    HashMap::from([(HTTP_OPTIONS.to_owned(), any(&options))])
}

#[cfg(test)]
mod tests;
