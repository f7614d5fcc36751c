use std::sync::Arc;
use std::time::Instant;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::google::protobuf::value::Kind as Value;
use prost::Message as _;
use weft_wire::node::NodeMetadata;

use super::*;
use crate::compile::resource;
use crate::resources::{self, Content};
use crate::world::{Event, StreamId, Trust};
use crate::xds::Kind;

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

const MESH: &str = "
{apiVersion: v1, kind: Service, metadata: {name: orders, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: orders}, ports: [{name: http, port: 80}, {name: what, port: 81}, {name: tcp-db, port: 82}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: orders-1, namespace: shop, labels: {app: orders}}, spec: {serviceAccountName: orders}, status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}}
";

fn policy(mode: &str) -> String {
    format!(
        "{{apiVersion: weft.dev/v1alpha1, kind: AccessPolicy, metadata: {{name: p, namespace: shop}}, spec: {{mtls: {{mode: {mode}}}}}}}"
    )
}

fn apply(world: &mut World, text: &str) {
    let events = resources::parse(text).into_iter().map(|document| match document.content {
        Content::Object(object) => object.set(),
        other => panic!("{other:?}"),
    });
    world.apply_all(events.collect::<Vec<_>>(), Instant::now());
}

/// A world with a sidecar that has proved to be `orders`.
fn world() -> World {
    let mut world = World::default();
    apply(&mut world, MESH);
    let trust = Trust { domain: "cluster.local".into(), roots: "PEM".into() };
    world.apply(Event::TrustSet(trust), Instant::now());
    let metadata = NodeMetadata {
        workload: "shop/orders".parse().unwrap(),
        version: None,
        pod: Some("orders-1".into()),
        zone: None,
        addresses: vec!["10.0.0.1".parse().unwrap()],
        registrations: vec![],
    };
    let identity = Some(Arc::new(ORDERS.parse().unwrap()));
    let event = Event::ProxyConnected {
        instance: "i".into(),
        stream: StreamId(1),
        metadata: metadata.into(),
        identity,
    };
    world.apply(event, Instant::now());
    world
}

fn get<M: prost::Message + Default>(world: &World, kind: Kind, name: &str) -> M {
    M::decode(&*resource(world, kind, name, "shop").expect(name).body.value).expect(name)
}

/// What an endpoint's metadata says of its identity and of how it is called.
fn said(world: &World) -> (Option<String>, Option<String>) {
    let assignment: ClusterLoadAssignment = get(world, Kind::Endpoint, "orders.shop:80");
    let metadata = assignment.endpoints[0].lb_endpoints[0].metadata.clone().expect("named");
    let field =
        |space: &str, key: &str| match metadata.filter_metadata.get(space)?.fields.get(key)?.kind.as_ref()? {
            Value::StringValue(text) => Some(text.clone()),
            _ => None,
        };
    (field("weft.dev", "identity"), field("envoy.transport_socket_match", "tls_mode"))
}

#[test]
fn an_endpoint_whose_sidecar_has_proved_who_it_is_is_called_by_mutual_tls() {
    let mut world = world();
    assert_eq!(said(&world), (Some(ORDERS.to_owned()), Some("mutual".to_owned())));
    let cluster: Cluster = get(&world, Kind::Cluster, "orders.shop:80");
    let names: Vec<_> = cluster.transport_socket_matches.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["mutual", "plain"]);
    let Some(transport_socket::ConfigType::TypedConfig(config)) =
        cluster.transport_socket_matches[0].transport_socket.clone().and_then(|socket| socket.config_type)
    else {
        panic!("typed")
    };
    let context = UpstreamTlsContext::decode(&*config.value).unwrap();
    assert_eq!(context.sni, "orders.shop.sa.cluster.local");
    apply(&mut world, &policy("disabled"));
    assert_eq!(said(&world), (None, None), "nobody offers it");
}

#[test]
fn without_an_authority_nothing_speaks_of_tls() {
    let mut world = World::default();
    apply(&mut world, MESH);
    apply(&mut world, &policy("strict"));
    assert_eq!(said(&world), (None, None));
    let cluster: Cluster = get(&world, Kind::Cluster, "orders.shop:80");
    assert!(cluster.transport_socket_matches.is_empty());
    let listener: Listener = get(&world, Kind::Listener, "inbound/10.0.0.1:80");
    assert!(listener.filter_chains.iter().all(|chain| chain.transport_socket.is_none()));
}

#[test]
fn a_port_takes_what_its_mode_says() {
    let mut world = world();
    let chains = |world: &World, port: u16| {
        let listener: Listener = get(world, Kind::Listener, &format!("inbound/10.0.0.1:{port}"));
        let default = listener.default_filter_chain.map(|chain| format!("default {}", chain.name));
        let inspects = !listener.listener_filters.is_empty();
        let names = listener.filter_chains.iter().map(|chain| {
            assert_eq!(chain.transport_socket.is_some(), chain.name.starts_with("mutual-"), "{}", chain.name);
            chain.name.clone()
        });
        (names.chain(default).collect::<Vec<_>>().join(", "), inspects)
    };
    assert_eq!(chains(&world, 80), ("mutual-http, http".to_owned(), true));
    assert_eq!(chains(&world, 81), ("mutual-http, mutual-tcp, http, default tcp".to_owned(), true));
    assert_eq!(chains(&world, 82), ("mutual-tcp, tcp".to_owned(), true));
    apply(&mut world, &policy("strict"));
    assert_eq!(chains(&world, 80), ("mutual-http".to_owned(), true));
    assert_eq!(chains(&world, 81), ("mutual-http, mutual-tcp".to_owned(), true));
    apply(&mut world, &policy("disabled"));
    assert_eq!(chains(&world, 80), ("http".to_owned(), false));
}

#[test]
fn a_permissive_port_tells_the_mesh_by_its_names() {
    let mut world = world();
    let names = |world: &World| {
        let listener: Listener = get(world, Kind::Listener, "inbound/10.0.0.1:80");
        listener.filter_chains[0].filter_chain_match.clone().expect("matched").server_names
    };
    assert_eq!(names(&world), ["*.sa.cluster.local"]);
    apply(&mut world, &policy("strict"));
    assert!(names(&world).is_empty(), "every TLS is the mesh's");
}
