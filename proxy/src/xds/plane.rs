//! A control plane for tests: what it would say, and a pure incremental server that says it.
//!
//! Test-only. It speaks the protocol by the book and checks that the client does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::core::v3::{
    Address, ControlPlane, DataSource, Metadata, SocketAddress, address, data_source,
    socket_address::PortSpecifier,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::{
    AdaptiveConcurrency, GradientControllerConfig,
    adaptive_concurrency::ConcurrencyControllerConfig,
    gradient_controller_config::{ConcurrencyLimitCalculationParams, MinimumRttCalculationParams},
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, secret,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::{Any, Duration, Struct, Value, value::Kind};
use weft_wire::tls::TRUST_BUNDLE;
use weft_wire::xds::METADATA_NAMESPACE;

pub(super) fn any<M: prost::Message + prost::Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Option<Metadata> {
    let value = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
    let fields = pairs.iter().map(|(key, text)| ((*key).into(), value(text))).collect();
    let filter_metadata = HashMap::from([(METADATA_NAMESPACE.into(), Struct { fields })]);
    Some(Metadata { filter_metadata, ..Default::default() })
}

pub(super) fn address(text: &str) -> Option<Address> {
    let socket: SocketAddr = text.parse().expect("an address");
    let socket = SocketAddress {
        address: socket.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(socket.port().into())),
        ..Default::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

pub(super) fn filter(config: Any) -> FilterChain {
    let filter =
        Filter { name: "a filter".into(), config_type: Some(filter::ConfigType::TypedConfig(config)) };
    FilterChain { filters: vec![filter], ..Default::default() }
}

/// A limit on concurrency that finds itself.
pub(super) fn gradient() -> HttpFilter {
    let every = Some(Duration { seconds: 1, nanos: 0 });
    let config = GradientControllerConfig {
        concurrency_limit_params: Some(ConcurrencyLimitCalculationParams {
            concurrency_update_interval: every,
            ..Default::default()
        }),
        min_rtt_calc_params: Some(MinimumRttCalculationParams { interval: every, ..Default::default() }),
        ..Default::default()
    };
    let config = AdaptiveConcurrency {
        concurrency_controller_config: Some(ConcurrencyControllerConfig::GradientControllerConfig(config)),
        ..Default::default()
    };
    let config_type = Some(http_filter::ConfigType::TypedConfig(any(&config)));
    HttpFilter { name: "a limit".into(), config_type, ..Default::default() }
}

/// HTTP by a named route table, everything else to the cluster of the same name.
pub(super) fn listener(name: &str, routes: &str) -> Any {
    listener_with(name, routes, vec![])
}

/// The same with HTTP filters.
pub(super) fn listener_with(name: &str, routes: &str, http_filters: Vec<HttpFilter>) -> Any {
    let rds = Rds { route_config_name: routes.into(), ..Default::default() };
    let http = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters,
        ..Default::default()
    };
    let specifier = tcp_proxy::ClusterSpecifier::Cluster(routes.into());
    let tcp = TcpProxy { cluster_specifier: Some(specifier), ..Default::default() };
    any(&Listener {
        name: name.into(),
        filter_chains: vec![filter(any(&http))],
        default_filter_chain: Some(filter(any(&tcp))),
        metadata: labels(&[("service", "orders.shop"), ("port", "8080")]),
        ..Default::default()
    })
}

pub(super) fn routes(name: &str, clusters: &[&str]) -> Any {
    let route = |(position, cluster): (usize, &&str)| Route {
        name: (*cluster).into(),
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix(if position + 1 == clusters.len() {
                "/".into()
            } else {
                format!("/{position}")
            })),
            ..Default::default()
        }),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(route_action::ClusterSpecifier::Cluster((*cluster).into())),
            ..Default::default()
        })),
        ..Default::default()
    };
    any(&RouteConfiguration {
        name: name.into(),
        virtual_hosts: vec![VirtualHost {
            name: name.into(),
            domains: vec!["*".into()],
            routes: clusters.iter().enumerate().map(route).collect(),
            ..Default::default()
        }],
        ..Default::default()
    })
}

pub(super) fn cluster(name: &str) -> Any {
    any(&Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32)),
        ..Default::default()
    })
}

/// The mesh's roots.
pub(super) fn roots(pem: &str) -> Any {
    let specifier = Some(data_source::Specifier::InlineString(pem.into()));
    let trusted_ca = Some(DataSource { specifier, ..Default::default() });
    let context = CertificateValidationContext { trusted_ca, ..Default::default() };
    any(&Secret { name: TRUST_BUNDLE.into(), r#type: Some(secret::Type::ValidationContext(context)) })
}

pub(super) fn endpoints(name: &str, addresses: &[&str]) -> Any {
    let one = |text: &&str| LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
            address: address(text),
            ..Default::default()
        })),
        metadata: labels(&[("workload", "orders"), ("namespace", "shop"), ("version", "v1")]),
        ..Default::default()
    };
    let lb_endpoints = addresses.iter().map(one).collect();
    let locality = LocalityLbEndpoints { lb_endpoints, ..Default::default() };
    any(&ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![locality], ..Default::default() })
}

/// What exists, by type and name, and one stream's view of it.
#[derive(Debug, Default, Clone)]
pub(super) struct Plane {
    resources: BTreeMap<(String, String), (u64, Any)>,
    version: u64,
    stream: Stream,
}

#[derive(Debug, Default, Clone)]
struct Stream {
    introduced: bool,
    /// What the client has: `None` = not told yet, `Some(None)` = told that it is absent.
    has: BTreeMap<(String, String), Option<Option<u64>>>,
    seen: BTreeSet<String>,
    nonce: u64,
    pub(super) nacks: Vec<String>,
}

impl Plane {
    /// Makes or replaces a resource under the name that stands in it.
    pub(super) fn set(&mut self, name: &str, resource: Any) {
        self.version += 1;
        let version = self.version;
        let key = (resource.type_url.clone(), name.to_owned());
        match self.resources.get(&key) {
            Some((_, same)) if *same == resource => {}
            _ => drop(self.resources.insert(key, (version, resource))),
        }
    }

    /// A whole service: listener by address, route table, cluster and endpoints of one name.
    pub(super) fn serve(&mut self, destination: &str, service: &str, addresses: &[&str]) {
        self.set(destination, listener(destination, service));
        self.set(service, routes(service, &[service]));
        self.set(service, cluster(service));
        self.set(service, endpoints(service, addresses));
    }

    /// Takes away everything of this name.
    pub(super) fn remove(&mut self, name: &str) {
        self.resources.retain(|(_, known), _| known != name);
    }

    /// Takes away one resource.
    pub(super) fn remove_kind(&mut self, kind: &str, name: &str) {
        self.resources.retain(|(type_url, known), _| !(type_url.ends_with(kind) && known == name));
    }

    /// A new stream, perhaps to a restarted server.
    pub(super) fn reconnect(&mut self) {
        self.stream = Stream::default();
    }

    pub(super) fn nacks(&self) -> &[String] {
        &self.stream.nacks
    }

    /// How many names of a type the client is subscribed to.
    pub(super) fn subscribed(&self, kind: &str) -> usize {
        self.stream.has.keys().filter(|(type_url, _)| type_url.ends_with(kind)).count()
    }

    pub(super) fn request(&mut self, request: DeltaDiscoveryRequest) {
        let Stream { introduced, has, seen, nacks, .. } = &mut self.stream;
        assert_eq!(request.node.is_some(), !*introduced, "the first request, and only it, carries the node");
        *introduced = true;
        let type_url = request.type_url;
        let first = seen.insert(type_url.clone());
        let wildcard = type_url.ends_with("Listener") || type_url.ends_with("Cluster");
        assert!(!(first && wildcard && request.resource_names_subscribe.is_empty()), "asks for everything");
        assert!(
            first || request.initial_resource_versions.is_empty(),
            "versions stand in the first request only"
        );
        if let Some(error) = request.error_detail {
            assert!(!request.response_nonce.is_empty(), "a refusal refuses something");
            nacks.push(error.message);
        }
        for name in request.resource_names_unsubscribe {
            assert!(has.remove(&(type_url.clone(), name.clone())).is_some(), "{name} was not subscribed");
        }
        for name in request.resource_names_subscribe {
            let version = request.initial_resource_versions.get(&name);
            let version = version.map(|version| Some(version.parse().expect("our version")));
            has.insert((type_url.clone(), name), version);
        }
    }

    /// The responses that are due, one per type, in the order of make before break.
    pub(super) fn responses(&mut self) -> Vec<DeltaDiscoveryResponse> {
        let kinds: BTreeSet<String> = self.stream.has.keys().map(|(kind, _)| kind.clone()).collect();
        kinds.into_iter().filter_map(|kind| self.response(&kind)).collect()
    }

    fn response(&mut self, type_url: &str) -> Option<DeltaDiscoveryResponse> {
        let mut response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            control_plane: Some(ControlPlane { identifier: "plane".into() }),
            ..Default::default()
        };
        for (key, has) in self.stream.has.iter_mut().filter(|((kind, _), _)| kind == type_url) {
            match self.resources.get(key) {
                Some((version, _)) if *has == Some(Some(*version)) => {}
                Some((version, resource)) => {
                    *has = Some(Some(*version));
                    response.resources.push(Resource {
                        name: key.1.clone(),
                        version: version.to_string(),
                        resource: Some(resource.clone()),
                        ..Default::default()
                    });
                }
                None if *has == Some(None) => {}
                None => {
                    *has = Some(None);
                    response.removed_resources.push(key.1.clone());
                }
            }
        }
        if response.resources.is_empty() && response.removed_resources.is_empty() {
            return None;
        }
        self.stream.nonce += 1;
        response.nonce = self.stream.nonce.to_string();
        Some(response)
    }
}
