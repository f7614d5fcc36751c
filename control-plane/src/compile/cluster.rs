//! Clusters: how a service's endpoints are called.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options};
use envoy_types::pb::google::protobuf::Any;
use http_protocol_options::explicit_http_config::ProtocolConfig;
use http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig};
use weft_wire::xds::Protocol;

use super::endpoint::assignment;
use super::proto::{Fields, ads, any, duration};
use super::{Resource, Target, direct, finish, provisional};
use crate::world::{Endpoint, Health, World};

/// How long a connection may take to be made. A pod that has gone without a word must not hold a request
/// for longer than a person waits; across zones a handshake takes milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Key of the HTTP options in a cluster, as Envoy spells it.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

pub(super) fn compile(world: &World, name: &str) -> Option<Resource> {
    match Target::parse(name)? {
        Target::Service(port) => {
            let service = world.service(&port.service)?;
            let port = service.port(port.port)?;
            let fields = Fields::default().service(service, port);
            Some(marked(by_discovery(name, port.protocol), fields, provisional(service, port)))
        }
        Target::Direct(address) => {
            let direct = direct(world, address)?;
            let protocol = direct.service.and_then(|(_, port)| port.protocol);
            let fields = Fields::default();
            let fields = match direct.service {
                Some((service, port)) => fields.service(service, port),
                None => fields,
            };
            Some(marked(by_discovery(name, protocol), fields, true))
        }
        Target::App(address) => Some(marked(app(name, address), Fields::default(), false)),
    }
}

fn marked(cluster: Cluster, fields: Fields, provisional: bool) -> Resource {
    finish(cluster, vec![fields], |cluster, _, metadata| cluster.metadata = metadata, provisional)
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
    let endpoint = Endpoint { address, health: Health::Ready, peer: None };
    Cluster {
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Static as i32,
        )),
        load_assignment: Some(assignment(name, &[endpoint])),
        ..basic(name, None)
    }
}

fn basic(name: &str, protocol: Option<Protocol>) -> Cluster {
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(duration(CONNECT_TIMEOUT)),
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
