//! Listeners: what stands behind a destination, or behind a port of one's own.
//!
//! The shape says how to serve a connection, in Envoy's terms: declared HTTP is an HTTP connection manager,
//! declared bytes are a TCP proxy, and what was not declared is both, told apart by inspecting the first
//! bytes. Nothing is ever bound: traffic comes redirected.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::google::protobuf::BoolValue;
use http_connection_manager::{CodecType, PathWithEscapedSlashesAction, RouteSpecifier, UpgradeConfig};
use weft_wire::tls::Mode;
use weft_wire::xds::{Destination, ListenerName, Protocol, endpoint_cluster};

use super::proto::{self, Fields, ads, any, duration};
use super::{
    Direct, Resource, access, any_address, canonical, direct, filters, finish, inbound, provisional, resolve,
    service_port, transport,
};
use crate::world::{Port, Service, World};

/// How long to wait for a client's first bytes on an undeclared port before the connection counts as opaque.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn compile(world: &World, name: &str, namespace: &str) -> Option<Resource> {
    match name.parse().ok()? {
        ListenerName::Outbound(Destination::Address(address)) => by_address(world, name, canonical(address)),
        ListenerName::Outbound(Destination::Name { host, port }) => {
            let service = world.service(&resolve(&host, namespace)?)?;
            let port = service.port(port)?;
            Some(to_service(name, any_address(service, port.number), service, port))
        }
        ListenerName::Inbound(address) => own_port(world, name, canonical(address)),
    }
}

fn by_address(world: &World, name: &str, address: SocketAddr) -> Option<Resource> {
    if let Some(service) = world.by_virtual_ip(address.ip()) {
        let port = service.port(address.port())?;
        return Some(to_service(name, address, service, port));
    }
    let direct = direct(world, address)?;
    let cluster = endpoint_cluster(address);
    let (fields, protocol) = who(world, &direct, address);
    let listener = Listener {
        traffic_direction: TrafficDirection::Outbound as i32,
        ..listener(name, address, protocol, &cluster, Inside::out())
    };
    Some(marked(listener, fields, true))
}

fn to_service(name: &str, address: SocketAddr, service: &Service, port: &Port) -> Resource {
    let cluster = service_port(service, port).to_string();
    let listener = Listener {
        traffic_direction: TrafficDirection::Outbound as i32,
        ..listener(name, address, port.protocol, &cluster, Inside::out())
    };
    let fields = Fields::default().service(service, port);
    marked(listener, fields, provisional(service, port))
}

/// What a port of the asker's own pod is. Known when an endpoint (or a registration) is at the address, or at
/// least the pod.
fn own_port(world: &World, name: &str, address: SocketAddr) -> Option<Resource> {
    let direct = direct(world, address)?;
    let (fields, protocol) = who(world, &direct, address);
    // The app's cluster and the table bear the listener's name.
    let cluster = format!("inbound/{address}");
    let guards = access::guards(&world.access_at(address));
    let inside = Inside {
        http_filters: filters::inbound(guards.http, inbound::concurrency(world, address)),
        network_filters: guards.tcp,
        one_spelling: guards.looks_at_paths,
    };
    let mode = world.mtls_at(address);
    let plain = listener(name, address, protocol, &cluster, inside);
    let listener = Listener {
        traffic_direction: TrafficDirection::Inbound as i32,
        ..match world.trust().filter(|_| mode != Mode::Disabled) {
            Some(trust) => meshed(plain, mode, &trust.domain),
            None => plain,
        }
    };
    Some(marked(listener, fields, true))
}

/// The same for connections of the mesh as well, or for nothing else. What a port speaks in plain text it speaks inside of
/// mutual TLS, and ALPN says which it is where the port does not.
fn meshed(plain: Listener, mode: Mode, domain: &str) -> Listener {
    let strict = mode == Mode::Strict;
    let server_names = if strict { Vec::new() } else { vec![transport::server_names(domain)] };
    let secured = |chain: &FilterChain| {
        let is_default = chain.filter_chain_match.is_none();
        let application_protocols = if is_default { &[][..] } else { &["h2", "http/1.1"] };
        FilterChain {
            name: format!("mutual-{}", chain.name),
            filter_chain_match: Some(FilterChainMatch {
                transport_protocol: "tls".to_owned(),
                server_names: server_names.clone(),
                application_protocols: application_protocols.iter().map(|&name| name.to_owned()).collect(),
                ..Default::default()
            }),
            transport_socket: Some(transport::downstream(domain)),
            ..chain.clone()
        }
    };
    let Listener { filter_chains, default_filter_chain, listener_filters, .. } = &plain;
    let mut chains: Vec<FilterChain> =
        filter_chains.iter().chain(default_filter_chain).map(secured).collect();
    if !strict {
        chains.extend(filter_chains.iter().cloned());
    }
    let inspector = listener_filter("envoy.filters.listener.tls_inspector", any(&TlsInspector::default()));
    Listener {
        listener_filters: if listener_filters.is_empty() {
            vec![inspector]
        } else {
            listener_filters.clone()
        },
        listener_filters_timeout: Some(duration(INSPECT_TIMEOUT)),
        continue_on_listener_filters_timeout: true,
        default_filter_chain: default_filter_chain.clone().filter(|_| !strict),
        filter_chains: chains,
        ..plain
    }
}

fn marked(listener: Listener, fields: Fields, provisional: bool) -> Resource {
    finish(listener, vec![fields], |listener, _, fields| listener.metadata = fields.metadata(), provisional)
}

/// What is known of an address that is itself an endpoint: its service and its workload.
fn who(world: &World, direct: &Direct<'_>, address: SocketAddr) -> (Fields, Option<Protocol>) {
    let mut fields = Fields::default();
    let mut protocol = None;
    if let Some((service, port)) = direct.service {
        fields = fields.service(service, port);
        protocol = port.protocol;
    }
    if let Some(peer) = direct.peer(world, address) {
        fields = fields.peer(&peer);
    }
    (fields, protocol)
}

/// What a connection passes.
#[derive(Clone)]
struct Inside {
    http_filters: Vec<HttpFilter>,
    /// In front of the proxy for bytes.
    network_filters: Vec<Filter>,
    /// Whether every path is brought to one spelling first: what is decided by path would else be decided by spelling.
    one_spelling: bool,
}

impl Inside {
    fn out() -> Self {
        Self { http_filters: filters::outbound(), network_filters: Vec::new(), one_spelling: false }
    }
}

fn listener(
    name: &str,
    address: SocketAddr,
    protocol: Option<Protocol>,
    cluster: &str,
    inside: Inside,
) -> Listener {
    let basic = Listener {
        name: name.to_owned(),
        address: Some(proto::address(address)),
        bind_to_port: Some(BoolValue { value: false }),
        ..Default::default()
    };
    match protocol {
        Some(Protocol::Http | Protocol::Http2) => {
            Listener { filter_chains: vec![chain("http", None, vec![http(cluster, &inside)])], ..basic }
        }
        Some(Protocol::Tcp | Protocol::Tls) => {
            Listener { filter_chains: vec![chain("tcp", None, tcp(cluster, inside))], ..basic }
        }
        None => {
            let plain_http = FilterChainMatch {
                // HTTP inside TLS announces the same words by ALPN, but is bytes to us.
                transport_protocol: "raw_buffer".to_owned(),
                application_protocols: ["http/1.0", "http/1.1", "h2c"].map(str::to_owned).to_vec(),
                ..Default::default()
            };
            Listener {
                filter_chains: vec![chain("http", Some(plain_http), vec![http(cluster, &inside)])],
                default_filter_chain: Some(chain("tcp", None, tcp(cluster, inside))),
                listener_filters: vec![
                    listener_filter("envoy.filters.listener.tls_inspector", any(&TlsInspector::default())),
                    listener_filter("envoy.filters.listener.http_inspector", any(&HttpInspector::default())),
                ],
                listener_filters_timeout: Some(duration(INSPECT_TIMEOUT)),
                continue_on_listener_filters_timeout: true,
                ..basic
            }
        }
    }
}

fn chain(name: &str, matches: Option<FilterChainMatch>, filters: Vec<Filter>) -> FilterChain {
    FilterChain { name: name.to_owned(), filter_chain_match: matches, filters, ..Default::default() }
}

/// HTTP with the table that bears the cluster's name.
fn http(cluster: &str, inside: &Inside) -> Filter {
    let routes = Rds { config_source: Some(ads()), route_config_name: cluster.to_owned() };
    let upgrade = |kind: &str| UpgradeConfig { upgrade_type: kind.to_owned(), ..Default::default() };
    let manager = HttpConnectionManager {
        stat_prefix: cluster.to_owned(),
        codec_type: CodecType::Auto as i32,
        route_specifier: Some(RouteSpecifier::Rds(routes)),
        http_filters: inside.http_filters.clone(),
        upgrade_configs: vec![upgrade("websocket")],
        // A stream may be silent for as long as its two ends like; see the route's timeout.
        stream_idle_timeout: Some(duration(Duration::ZERO)),
        server_header_transformation: http_connection_manager::ServerHeaderTransformation::PassThrough as i32,
        ..Default::default()
    };
    let manager = if inside.one_spelling { spelled(manager) } else { manager };
    network_filter("envoy.filters.network.http_connection_manager", any(&manager))
}

/// Brings every path to the spelling that it is judged by and that the app gets. An escaped slash has no such spelling: to
/// one app it is a slash, to another a letter; so it is refused.
fn spelled(manager: HttpConnectionManager) -> HttpConnectionManager {
    HttpConnectionManager {
        normalize_path: Some(BoolValue { value: true }),
        merge_slashes: true,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::RejectRequest as i32,
        ..manager
    }
}

fn tcp(cluster: &str, inside: Inside) -> Vec<Filter> {
    let proxy = TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    let mut filters = inside.network_filters;
    filters.push(network_filter("envoy.filters.network.tcp_proxy", any(&proxy)));
    filters
}

pub(super) fn network_filter(name: &str, config: envoy_types::pb::google::protobuf::Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

fn listener_filter(name: &str, config: envoy_types::pb::google::protobuf::Any) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}
