use std::time::Instant;

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint};
use envoy_types::pb::envoy::config::listener::v3::{Filter, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, route, route_action};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::google::protobuf::value;
use proptest::prelude::*;
use weft_wire::node::NodeMetadata;

use super::*;
use crate::resources::{self, Content};
use crate::world::{Event, StreamId};

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  clusterIPs: [10.96.0.1, 'fd00:96::1']
  ports:
  - {name: http, port: 8080}
  - {name: db, port: 5432, appProtocol: tcp}
  - {name: what, port: 9999}
  - {name: grpc, port: 9000}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 80}, {name: db, port: 5432}, {name: what, port: 99}]
endpoints:
- {addresses: [10.0.0.1]}
- {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}
---
apiVersion: v1
kind: Pod
metadata:
  name: orders-a
  namespace: shop
  labels: {app.kubernetes.io/name: orders-v1, app.kubernetes.io/version: v1}
status: {podIP: 10.0.0.1}
";

fn world() -> World {
    let mut world = World::default();
    let events = resources::parse(MESH).into_iter().map(|document| match document.content {
        Content::Object(object) => object.set(),
        other => panic!("{other:?}"),
    });
    world.apply_all(events.collect::<Vec<_>>(), Instant::now());
    world
}

fn get<M: Message + Default + Name>(world: &World, kind: Kind, name: &str) -> Option<M> {
    let resource = resource(world, kind, name, "shop")?;
    assert_eq!(resource.body.type_url, kind.type_url());
    Some(M::decode(resource.body.value.as_slice()).unwrap())
}

fn fields(metadata: Option<&Metadata>) -> Vec<(String, String)> {
    let fields = metadata.and_then(|metadata| metadata.filter_metadata.get("weft.dev"));
    let text = |value: &value::Kind| match value {
        value::Kind::StringValue(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    let fields = fields.iter().flat_map(|fields| &fields.fields);
    let mut fields: Vec<_> =
        fields.map(|(key, value)| (key.clone(), text(value.kind.as_ref().unwrap()))).collect();
    fields.sort();
    fields
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn config<M: Message + Default>(filter: &Filter) -> M {
    match filter.config_type.as_ref().unwrap() {
        filter::ConfigType::TypedConfig(any) => M::decode(any.value.as_slice()).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn cluster_of_tcp(filter: &Filter) -> String {
    match config::<TcpProxy>(filter).cluster_specifier.unwrap() {
        tcp_proxy::ClusterSpecifier::Cluster(name) => name,
        other => panic!("{other:?}"),
    }
}

fn cluster_of_table(table: &RouteConfiguration) -> String {
    let host = &table.virtual_hosts[0];
    assert_eq!(host.domains, ["*"]);
    match host.routes[0].action.as_ref().unwrap() {
        route::Action::Route(action) => match action.cluster_specifier.as_ref().unwrap() {
            route_action::ClusterSpecifier::Cluster(name) => name.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_declared_http_port_is_a_connection_manager_with_routes_by_discovery() {
    let world = world();
    for name in ["outbound/10.96.0.1:8080", "outbound/[fd00:96::1]:8080", "outbound/[::ffff:10.96.0.1]:8080"]
    {
        let listener: Listener = get(&world, Kind::Listener, name).unwrap();
        assert_eq!(listener.name, name);
        assert_eq!(
            fields(listener.metadata.as_ref()),
            pairs(&[("port", "8080"), ("protocol", "http"), ("service", "orders.shop")])
        );
        assert_eq!(listener.filter_chains.len(), 1);
        assert!(listener.default_filter_chain.is_none());
        let manager: HttpConnectionManager = config(&listener.filter_chains[0].filters[0]);
        let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else { panic!("no RDS") };
        assert_eq!(rds.route_config_name, "orders.shop:8080");
    }
    let table: RouteConfiguration = get(&world, Kind::Route, "orders.shop:8080").unwrap();
    assert_eq!(cluster_of_table(&table), "orders.shop:8080");
}

#[test]
fn declared_bytes_are_a_tcp_proxy_and_the_undeclared_is_both() {
    let world = world();
    let listener: Listener = get(&world, Kind::Listener, "outbound/10.96.0.1:5432").unwrap();
    assert_eq!(cluster_of_tcp(&listener.filter_chains[0].filters[0]), "orders.shop:5432");
    assert!(listener.listener_filters.is_empty());

    let listener: Listener = get(&world, Kind::Listener, "outbound/10.96.0.1:9999").unwrap();
    assert_eq!(fields(listener.metadata.as_ref()), pairs(&[("port", "9999"), ("service", "orders.shop")]));
    let matches = listener.filter_chains[0].filter_chain_match.as_ref().unwrap();
    assert_eq!(matches.application_protocols, ["http/1.0", "http/1.1", "h2c"]);
    assert_eq!(cluster_of_tcp(&listener.default_filter_chain.unwrap().filters[0]), "orders.shop:9999");
    assert_eq!(listener.listener_filters.len(), 2);
}

#[test]
fn hosts_are_resolved_as_dns_in_a_cluster_does() {
    let world = world();
    for host in ["orders", "orders.shop", "orders.shop.svc", "orders.shop.svc.cluster.local", "ORDERS.shop."]
    {
        let name = format!("outbound/{host}:8080");
        let listener: Listener = get(&world, Kind::Listener, &name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(listener.name, name, "the resource bears the name that was asked for");
    }
    for name in [
        "outbound/orders:81",
        "outbound/orders.other:8080",
        "outbound/api.orders.example.com:8080",
        "outbound/10.96.0.1:81",
        "outbound/10.96.0.9:8080",
        "inbound/10.9.9.9:80",
        "nonsense",
    ] {
        assert!(resource(&world, Kind::Listener, name, "shop").is_none(), "{name}");
    }
    assert!(resource(&world, Kind::Listener, "outbound/orders:8080", "other").is_none());
}

#[test]
fn clusters_and_assignments_bear_the_same_name() {
    let world = world();
    let found: Cluster = get(&world, Kind::Cluster, "orders.shop:8080").unwrap();
    assert_eq!(
        found.cluster_discovery_type,
        Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32))
    );
    assert_eq!(
        fields(found.metadata.as_ref()),
        pairs(&[
            ("balancer", "peak_ewma"),
            ("port", "8080"),
            ("protocol", "http"),
            ("service", "orders.shop")
        ])
    );
    let assignment: ClusterLoadAssignment = get(&world, Kind::Endpoint, "orders.shop:8080").unwrap();
    assert_eq!(assignment.cluster_name, "orders.shop:8080");
    let endpoints = &assignment.endpoints[0].lb_endpoints;
    assert_eq!(endpoints.len(), 2);
    assert_eq!(endpoints[0].health_status, HealthStatus::Healthy as i32);
    assert_eq!(endpoints[1].health_status, HealthStatus::Draining as i32);
    assert_eq!(
        fields(endpoints[0].metadata.as_ref()),
        pairs(&[("namespace", "shop"), ("pod", "orders-a"), ("version", "v1"), ("workload", "orders-v1")])
    );
    assert!(endpoints[1].metadata.is_none(), "nobody knows that pod");

    let grpc: Cluster = get(&world, Kind::Cluster, "orders.shop:9000").unwrap();
    assert_eq!(grpc.typed_extension_protocol_options.len(), 1);
    let empty: ClusterLoadAssignment = get(&world, Kind::Endpoint, "orders.shop:9000").unwrap();
    assert!(empty.endpoints.is_empty(), "a known port without endpoints is known");
    assert!(resource(&world, Kind::Endpoint, "orders.shop:9000", "shop").unwrap().provisional);
}

#[test]
fn a_pod_called_directly_has_its_own_cluster() {
    let world = world();
    let listener: Listener = get(&world, Kind::Listener, "outbound/10.0.0.1:80").unwrap();
    assert_eq!(
        fields(listener.metadata.as_ref()),
        pairs(&[
            ("namespace", "shop"),
            ("pod", "orders-a"),
            ("port", "8080"),
            ("protocol", "http"),
            ("service", "orders.shop"),
            ("version", "v1"),
            ("workload", "orders-v1")
        ])
    );
    let table: RouteConfiguration = get(&world, Kind::Route, "endpoint/10.0.0.1:80").unwrap();
    assert_eq!(cluster_of_table(&table), "endpoint/10.0.0.1:80");
    let assignment: ClusterLoadAssignment = get(&world, Kind::Endpoint, "endpoint/10.0.0.1:80").unwrap();
    let endpoint = &assignment.endpoints[0].lb_endpoints[0];
    assert!(matches!(&endpoint.host_identifier, Some(lb_endpoint::HostIdentifier::Endpoint(_))));
    let listener: Listener = get(&world, Kind::Listener, "outbound/10.0.0.1:1234").unwrap();
    assert_eq!(
        listener.filter_chains.len(),
        1,
        "a port no service has: the pod is known, the protocol is not"
    );
    assert!(resource(&world, Kind::Listener, "outbound/10.0.0.2:1234", "shop").is_none());
}

#[test]
fn an_inbound_listener_says_whose_port_it_is() {
    let mut world = world();
    let listener: Listener = get(&world, Kind::Listener, "inbound/10.0.0.1:80").unwrap();
    let fields_ = fields(listener.metadata.as_ref());
    assert!(fields_.contains(&("service".into(), "orders.shop".into())), "{fields_:?}");
    assert!(fields_.contains(&("workload".into(), "orders-v1".into())), "{fields_:?}");
    let manager: HttpConnectionManager = config(&listener.filter_chains[0].filters[0]);
    let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else { panic!("no RDS") };
    assert_eq!(rds.route_config_name, "inbound/10.0.0.1:80");
    let table: RouteConfiguration = get(&world, Kind::Route, "inbound/10.0.0.1:80").unwrap();
    assert_eq!(cluster_of_table(&table), "inbound/10.0.0.1:80");
    let app: Cluster = get(&world, Kind::Cluster, "inbound/10.0.0.1:80").unwrap();
    assert!(app.load_assignment.is_some());

    let metadata = NodeMetadata {
        workload: "shop/cart".parse().unwrap(),
        version: None,
        pod: None,
        zone: None,
        addresses: vec!["127.0.0.1".parse().unwrap()],
        registrations: vec![weft_wire::node::Registration {
            service: "cart.shop:80".parse().unwrap(),
            address: "127.0.0.1:40000".parse().unwrap(),
            protocol: None,
        }],
    };
    let (instance, metadata) = ("i".into(), metadata.into());
    world.apply(
        Event::ProxyConnected { instance, stream: StreamId(1), metadata, identity: None },
        Instant::now(),
    );
    let listener: Listener = get(&world, Kind::Listener, "inbound/127.0.0.1:40000").unwrap();
    assert_eq!(
        fields(listener.metadata.as_ref()),
        pairs(&[("namespace", "shop"), ("port", "80"), ("service", "cart.shop"), ("workload", "cart")])
    );
    assert!(resource(&world, Kind::Listener, "inbound/127.0.0.1:40001", "shop").is_none());
}

#[test]
fn versions_are_content() {
    let (one, other) = (world(), world());
    for kind in Kind::ALL {
        for name in ["orders.shop:8080", "outbound/10.96.0.1:8080", "endpoint/10.0.0.1:80"] {
            let version = |world| resource(world, kind, name, "shop").map(|resource| resource.version);
            assert_eq!(version(&one), version(&other));
        }
    }
    let versions: Vec<_> = ["8080", "5432", "9999"]
        .iter()
        .map(|port| resource(&one, Kind::Cluster, &format!("orders.shop:{port}"), "shop").unwrap().version)
        .collect();
    assert_ne!(versions[0], versions[1]);
    assert_eq!(versions[0].len(), 32);
}

#[test]
fn a_wildcard_covers_every_service_port() {
    let world = world();
    assert_eq!(every_name(&world, Kind::Cluster).len(), 4);
    assert_eq!(every_name(&world, Kind::Listener).len(), 8, "four ports on two addresses");
    for kind in [Kind::Cluster, Kind::Listener] {
        for name in every_name(&world, kind) {
            assert!(resource(&world, kind, &name, "default").is_some(), "{name}");
        }
    }
}

proptest! {
    #[test]
    fn names_from_strangers_never_panic(name in "(outbound/|inbound/|endpoint/)?[ -~]{0,80}") {
        let world = world();
        for kind in Kind::ALL {
            let compiled = resource(&world, kind, &name, "shop");
            prop_assert!(compiled.is_none() || depends_on(kind, &name, "shop").is_some());
        }
    }
}

#[test]
fn the_trust_bundle_is_a_secret_without_a_secret() {
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
    use weft_wire::tls::TRUST_BUNDLE;

    let mut world = World::default();
    assert_eq!(resource(&world, Kind::Secret, TRUST_BUNDLE, "shop"), None);
    let trust = crate::world::Trust { domain: "cluster.local".into(), roots: "PEM".into() };
    world.apply(Event::TrustSet(trust), Instant::now());
    let bundle = resource(&world, Kind::Secret, TRUST_BUNDLE, "shop").unwrap();
    assert_eq!(resource(&world, Kind::Secret, "identity", "shop"), None);
    let secret = Secret::decode(&*bundle.body.value).unwrap();
    let Some(secret::Type::ValidationContext(context)) = secret.r#type else { panic!("{secret:?}") };
    assert_eq!(
        context.trusted_ca.unwrap().specifier.unwrap(),
        envoy_types::pb::envoy::config::core::v3::data_source::Specifier::InlineBytes(b"PEM".to_vec())
    );
    assert_eq!(depends_on(Kind::Secret, TRUST_BUNDLE, "shop"), Some(Key::Trust));
}
