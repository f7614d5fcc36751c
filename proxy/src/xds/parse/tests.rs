//! What is taken, what is ignored, and how a refusal reads.

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster as of_cluster};
use envoy_types::pb::envoy::config::core::v3::{
    HealthStatus, Http2ProtocolOptions, Locality, TransportSocket,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as ProtoEndpoint, LbEndpoint, LocalityLbEndpoints,
    cluster_load_assignment, lb_endpoint,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, RedirectAction, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    WeightedCluster, header_matcher::HeaderMatchSpecifier, route as of_route, route_action, route_match,
    weighted_cluster,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions, http_protocol_options as options,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};
use proptest::prelude::*;

use super::super::plane::{self, address, any, labels};
use super::*;
use crate::route::matcher::{Matches, PathMatch};
use crate::xds::{ClusterSpec, Health};

const INBOUND: &str = "inbound/10.0.0.1:8080";

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Invalid>) -> String {
    explain(&outcome.expect_err("refused"))
}

fn table(routes: Vec<Route>) -> RouteConfiguration {
    let domains = vec!["*".to_owned()];
    let host = VirtualHost { name: "h".into(), domains, routes, ..Default::default() };
    RouteConfiguration { name: "t".into(), virtual_hosts: vec![host], ..Default::default() }
}

fn route_to(specifier: route_action::ClusterSpecifier) -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(of_route::Action::Route(RouteAction {
            cluster_specifier: Some(specifier),
            timeout: Some(ProtoDuration { seconds: 3, nanos: 0 }),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn to(cluster: &str) -> Route {
    route_to(route_action::ClusterSpecifier::Cluster(cluster.into()))
}

#[test]
fn an_inbound_listener_brings_its_routes_along() {
    let router = HttpFilter {
        name: "router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router::default()))),
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(table(vec![to("app")]))),
        http_filters: vec![router],
        ..Default::default()
    };
    let resource = any(&Listener {
        name: INBOUND.into(),
        filter_chains: vec![plane::filter(any(&manager))],
        metadata: labels(&[("workload", "orders"), ("namespace", "shop"), ("protocol", "http2")]),
        ..Default::default()
    });
    let draft = listener(INBOUND, &resource).expect("valid");
    assert_eq!(draft.spec.protocol, Some(Protocol::Http2));
    assert_eq!(draft.spec.workload.map(|workload| workload.to_string()).as_deref(), Some("shop/orders"));
    assert_eq!((draft.spec.service, draft.opaque), (None, None));
    let Some(RouteSource::Inline(table)) = draft.routes else { panic!("{:?}", draft.routes) };
    assert_eq!(table.clusters().map(AsRef::as_ref).collect::<Vec<&str>>(), ["app"]);
}

#[test]
fn a_listener_that_cannot_be_honoured_is_refused_by_name() {
    let with = |chain: FilterChain| {
        let listener = Listener { name: INBOUND.into(), filter_chains: vec![chain], ..Default::default() };
        refusal(super::listener(INBOUND, &any(&listener)))
    };
    assert_eq!(with(FilterChain::default()), "filter_chains: a filter that ends the chain is missing");
    let tls = FilterChain { transport_socket: Some(TransportSocket::default()), ..Default::default() };
    assert_eq!(
        with(tls),
        "filter_chains[0].transport_socket.typed_config: transport socket \"\" is not supported by this proxy"
    );
    assert_eq!(
        with(plane::filter(any(&Router::default()))),
        "filter_chains[0].filters[0]: network filter \"a filter\" is not supported by this proxy"
    );
    let broken = Any { value: vec![0xff], ..any(&HttpConnectionManager::default()) };
    assert!(
        with(plane::filter(broken))
            .starts_with("filter_chains[0].filters[0] is not a valid HttpConnectionManager: ")
    );
    let bare = Filter { name: "bare".into(), config_type: None::<filter::ConfigType> };
    let bare = FilterChain { filters: vec![bare], ..Default::default() };
    assert_eq!(with(bare), "filter_chains[0].filters[0].typed_config is missing");
    assert_eq!(
        refusal(listener(INBOUND, &plane::cluster(INBOUND))),
        "resource is a \"type.googleapis.com/envoy.config.cluster.v3.Cluster\", expected Listener"
    );
    let nobody =
        Listener { name: INBOUND.into(), metadata: labels(&[("protocol", "smoke")]), ..Default::default() };
    assert_eq!(
        refusal(listener(INBOUND, &any(&nobody))),
        "listener.metadata[weft.dev].protocol: \"smoke\" is not a protocol"
    );
}

#[test]
fn chains_that_contradict_each_other_are_refused() {
    let mut listener = Listener { name: INBOUND.into(), ..Default::default() };
    for cluster in ["a", "b"] {
        let manager = HttpConnectionManager {
            route_specifier: Some(RouteSpecifier::RouteConfig(table(vec![to(cluster)]))),
            ..Default::default()
        };
        listener.filter_chains.push(plane::filter(any(&manager)));
    }
    assert!(refusal(super::listener(INBOUND, &any(&listener))).contains("differs from another of its kind"));
    listener.filter_chains.pop();
    listener.filter_chains.push(listener.filter_chains[0].clone());
    assert!(super::listener(INBOUND, &any(&listener)).is_ok(), "a repetition contradicts nothing");
}

#[test]
fn conditions_and_weights_are_read() {
    let exact = |text: &str| StringMatcher {
        match_pattern: Some(MatchPattern::Exact(text.into())),
        ..Default::default()
    };
    let header = |name: &str, text: &str| HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact(text))),
        ..Default::default()
    };
    let weight = |name: &str, weight| weighted_cluster::ClusterWeight {
        name: name.into(),
        weight: Some(UInt32Value { value: weight }),
        ..Default::default()
    };
    let split = WeightedCluster { clusters: vec![weight("a", 9), weight("b", 1)], ..Default::default() };
    let mut split = route_to(route_action::ClusterSpecifier::WeightedClusters(split));
    split.r#match = Some(RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::PathSeparatedPrefix("/cart".into())),
        headers: vec![header(":method", "POST"), header("X-Team", "blue")],
        ..Default::default()
    });
    let draft = routes("t", &any(&table(vec![split, to("c")]))).expect("valid");
    let compiled =
        draft.compile(|name| crate::xds::Cluster::new(ClusterSpec::new(name), vec![])).expect("compiles");
    let compiled: Vec<_> = compiled.routes().collect();
    assert_eq!(compiled[0].matches().to_string(), "POST /cart/** x-team=blue");
    assert_eq!(compiled[0].matches().path, PathMatch::Segments("/cart".into()));
    assert_eq!(compiled[0].backends().iter().map(|backend| backend.weight).collect::<Vec<_>>(), [9, 1]);
    assert_eq!(*compiled[1].matches(), Matches::all());
}

#[test]
fn a_route_that_cannot_be_honoured_is_refused_by_place() {
    let with = |route: Route| refusal(routes("t", &any(&table(vec![to("a"), route]))));
    let redirect = RedirectAction { port_redirect: 70_000, ..Default::default() };
    assert_eq!(
        with(Route { action: Some(of_route::Action::Redirect(redirect)), ..to("a") }),
        "virtual_hosts[0].routes[1].redirect.port_redirect: \"70000\" is not a port"
    );
    assert_eq!(with(to("")), "virtual_hosts[0].routes[1].route.cluster is missing");
    assert_eq!(with(Route { r#match: None, ..to("a") }), "virtual_hosts[0].routes[1].match is missing");
    let nothing = WeightedCluster::default();
    assert_eq!(
        with(route_to(route_action::ClusterSpecifier::WeightedClusters(nothing))),
        "virtual_hosts: route \"\" has no backend with a weight above zero"
    );
    let mut twice = table(vec![]);
    twice.virtual_hosts.push(twice.virtual_hosts[0].clone());
    assert_eq!(
        refusal(routes("t", &any(&twice))),
        "virtual_hosts: domain \"*\" is claimed by more than one virtual host"
    );
}

#[test]
fn a_cluster_says_how_it_is_talked_to() {
    let config = options::ExplicitHttpConfig {
        protocol_config: Some(options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
            Http2ProtocolOptions::default(),
        )),
    };
    let http2 = HttpProtocolOptions {
        upstream_protocol_options: Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(config)),
        ..Default::default()
    };
    let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    let base = Cluster {
        name: "c".into(),
        cluster_discovery_type: Some(of_cluster::ClusterDiscoveryType::Type(
            of_cluster::DiscoveryType::Eds as i32,
        )),
        connect_timeout: Some(ProtoDuration { seconds: 2, nanos: 500_000_000 }),
        typed_extension_protocol_options: [(key, any(&http2))].into(),
        ..Default::default()
    };
    let draft = cluster("c", &any(&base)).expect("valid");
    assert!(draft.spec.http2);
    assert_eq!(draft.spec.connect_timeout, Duration::from_millis(2500));
    assert_eq!(draft.endpoints, EndpointSource::Assignment("c".into()));

    let tls = Cluster { transport_socket: Some(TransportSocket::default()), ..base.clone() };
    assert_eq!(refusal(cluster("c", &any(&tls))), "transport_socket.typed_config is missing");
    let dns = of_cluster::ClusterDiscoveryType::Type(of_cluster::DiscoveryType::StrictDns as i32);
    let dns = Cluster { cluster_discovery_type: Some(dns), ..base };
    assert_eq!(refusal(cluster("c", &any(&dns))), "type: STRICT_DNS is not supported by this proxy");
    assert_eq!(refusal(cluster("d", &plane::cluster("c"))), "name: \"c\" is not the resource's name");
}

#[test]
fn endpoints_carry_health_weight_and_names() {
    let endpoint = |text: &str, health: HealthStatus, weight: Option<u32>| LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(ProtoEndpoint {
            address: address(text),
            ..Default::default()
        })),
        health_status: health as i32,
        load_balancing_weight: weight.map(|value| UInt32Value { value }),
        metadata: labels(&[
            ("workload", "orders"),
            ("namespace", "shop"),
            ("version", "v2"),
            ("pod", "orders-1"),
        ]),
    };
    let assignment = |lb_endpoints, priority| {
        let zone = Locality { zone: "eu-1a".into(), ..Default::default() };
        let locality =
            LocalityLbEndpoints { lb_endpoints, priority, locality: Some(zone), ..Default::default() };
        any(&ClusterLoadAssignment {
            cluster_name: "c".into(),
            endpoints: vec![locality],
            ..Default::default()
        })
    };
    let healthy = endpoint("10.0.0.1:80", HealthStatus::Healthy, Some(7));
    let draining = endpoint("[fd00::1]:80", HealthStatus::Draining, None);
    let degraded = endpoint("10.0.0.2:80", HealthStatus::Degraded, None);
    let list = endpoints("c", &assignment(vec![healthy.clone(), draining, degraded], 3)).expect("valid").list;
    let (health, weights): (Vec<_>, Vec<_>) = list.iter().map(|one| (one.health, one.weight)).unzip();
    assert_eq!(
        (health, weights),
        (vec![Health::Healthy, Health::Unhealthy, Health::Degraded], vec![7, 1, 1])
    );
    assert!(list.iter().all(|one| one.priority == 3 && one.zone.as_deref() == Some("eu-1a")));
    assert_eq!(list[0].workload.as_ref().map(ToString::to_string).as_deref(), Some("shop/orders"));
    assert_eq!((list[0].version.as_deref(), list[0].pod.as_deref()), (Some("v2"), Some("orders-1")));

    let zero = endpoint("10.0.0.1:80", HealthStatus::Healthy, Some(0));
    assert_eq!(
        refusal(endpoints("c", &assignment(vec![healthy.clone(), zero], 0))),
        "endpoints[0].lb_endpoints[1].load_balancing_weight: \"0\" is not a weight"
    );
    let policy = |policy| {
        any(&ClusterLoadAssignment { cluster_name: "c".into(), policy: Some(policy), ..Default::default() })
    };
    let factor = |value| cluster_load_assignment::Policy {
        overprovisioning_factor: Some(UInt32Value { value }),
        ..Default::default()
    };
    assert_eq!(endpoints("c", &policy(factor(120))).expect("valid").overprovisioning, 120);
    assert_eq!(
        refusal(endpoints("c", &policy(factor(0)))),
        "policy.overprovisioning_factor: \"0\" is not positive"
    );
    let weighted = cluster_load_assignment::Policy { weighted_priority_health: true, ..Default::default() };
    assert!(refusal(endpoints("c", &policy(weighted))).starts_with("policy.weighted_priority_health: "));
    assert!(refusal(endpoints("c", &assignment(vec![healthy], 129))).starts_with("endpoints[0].priority: "));
}

mod tls;

proptest! {
    #[test]
    fn strangers_bytes_never_panic(value in proptest::collection::vec(proptest::num::u8::ANY, 0..200), kind in 0..4_usize) {
        let kinds = ["listener.v3.Listener", "route.v3.RouteConfiguration", "cluster.v3.Cluster",
            "endpoint.v3.ClusterLoadAssignment"];
        let any = Any { type_url: format!("type.googleapis.com/envoy.config.{}", kinds[kind]), value };
        drop((listener(INBOUND, &any), routes("t", &any), cluster("c", &any), endpoints("c", &any)));
    }
}
