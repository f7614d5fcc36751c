//! What the control plane says of mutual TLS: where to speak it, with whom, and what a port takes.

use envoy_types::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use envoy_types::pb::envoy::config::core::v3::{Metadata, transport_socket};
use envoy_types::pb::envoy::config::listener::v3::FilterChainMatch;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    DownstreamTlsContext, UpstreamTlsContext,
};
use envoy_types::pb::google::protobuf::{BoolValue, Struct, Value};
use weft_wire::tls::Mode;

use super::*;

fn socket(config: Any) -> Option<TransportSocket> {
    let config_type = Some(transport_socket::ConfigType::TypedConfig(config));
    Some(TransportSocket { name: "tls".into(), config_type })
}

fn of(pairs: &[(&str, &str)]) -> Struct {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    Struct { fields: pairs.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect() }
}

fn entry(pairs: &[(&str, &str)], config: Any) -> TransportSocketMatch {
    TransportSocketMatch { name: "one".into(), r#match: Some(of(pairs)), transport_socket: socket(config) }
}

#[test]
fn a_cluster_says_whether_it_is_called_by_mutual_tls() {
    let base = Cluster {
        name: "c".into(),
        cluster_discovery_type: Some(of_cluster::ClusterDiscoveryType::Type(
            of_cluster::DiscoveryType::Eds as i32,
        )),
        ..Default::default()
    };
    let with = |matches: Vec<TransportSocketMatch>| {
        cluster("c", &any(&Cluster { transport_socket_matches: matches, ..base.clone() }))
    };
    let mutual = || entry(&[("tls_mode", "mutual")], any(&UpstreamTlsContext::default()));
    let plain = || entry(&[], any(&RawBuffer::default()));
    assert!(!with(vec![]).expect("valid").spec.mutual);
    assert!(!with(vec![plain()]).expect("valid").spec.mutual);
    assert!(with(vec![mutual(), plain()]).expect("valid").spec.mutual);
    let always = entry(&[], any(&UpstreamTlsContext::default()));
    assert_eq!(
        refusal(with(vec![mutual(), always])),
        "transport_socket_matches[1].match: TLS for anything but tls_mode: mutual is not supported by this proxy"
    );
    let everywhere =
        Cluster { transport_socket: socket(any(&UpstreamTlsContext::default())), ..base.clone() };
    assert_eq!(
        refusal(cluster("c", &any(&everywhere))),
        "transport_socket: TLS towards endpoints that have no identity is not supported by this proxy"
    );
}

#[test]
fn an_endpoint_says_who_must_be_there() {
    let with = |own: &[(&str, &str)], choice: &[(&str, &str)]| {
        let spaces =
            [("weft.dev".to_owned(), of(own)), ("envoy.transport_socket_match".to_owned(), of(choice))];
        let endpoint = LbEndpoint {
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(ProtoEndpoint {
                address: address("10.0.0.1:80"),
                ..Default::default()
            })),
            metadata: Some(Metadata { filter_metadata: spaces.into(), ..Default::default() }),
            ..Default::default()
        };
        let locality = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
        let assignment = ClusterLoadAssignment {
            cluster_name: "c".into(),
            endpoints: vec![locality],
            ..Default::default()
        };
        endpoints("c", &any(&assignment)).map(|assignment| assignment.list[0].identity.clone())
    };
    let (orders, mutual) =
        ([("identity", "spiffe://cluster.local/ns/shop/sa/orders")], [("tls_mode", "mutual")]);
    let identity = with(&orders, &mutual).expect("valid").expect("named");
    assert_eq!(identity.to_string(), orders[0].1);
    assert_eq!(with(&orders, &[]).expect("valid"), None, "called in plain text");
    assert_eq!(
        refusal(with(&[], &mutual)),
        "endpoints[0].lb_endpoints[0].metadata[weft.dev].identity is missing"
    );
    assert_eq!(
        refusal(with(&[("identity", "orders")], &mutual)),
        "endpoints[0].lb_endpoints[0].metadata[weft.dev].identity: \"orders\" is not a SPIFFE id"
    );
}

#[test]
fn the_chains_of_an_inbound_listener_say_what_its_port_takes() {
    let chain = |config: Option<Any>| FilterChain {
        filter_chain_match: Some(FilterChainMatch::default()),
        transport_socket: config.and_then(socket),
        ..route_chain()
    };
    let with = |filter_chains: Vec<FilterChain>| {
        listener(INBOUND, &any(&Listener { name: INBOUND.into(), filter_chains, ..Default::default() }))
    };
    let context = |required| {
        any(&DownstreamTlsContext {
            require_client_certificate: Some(BoolValue { value: required }),
            ..Default::default()
        })
    };
    let (mutual, plain) = (chain(Some(context(true))), chain(None));
    assert_eq!(with(vec![plain.clone()]).expect("valid").spec.mode, Mode::Disabled);
    let strict = with(vec![mutual.clone()]).expect("valid");
    assert!(strict.spec.mode == Mode::Strict && strict.guard.strict && !strict.guard.is_open());
    let permissive = with(vec![mutual, plain]).expect("valid");
    assert!(permissive.spec.mode == Mode::Permissive && permissive.guard.is_open());
    assert_eq!(
        refusal(with(vec![chain(Some(context(false)))])),
        "filter_chains[0].transport_socket.typed_config.require_client_certificate: \
         TLS with clients that show no certificate is not supported by this proxy"
    );
}

fn route_chain() -> FilterChain {
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(table(vec![to("app")]))),
        ..Default::default()
    };
    plane::filter(any(&manager))
}
