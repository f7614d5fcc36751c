use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use prost::Message;

use crate::compile::resource;
use crate::fixture::world;
use crate::xds::Kind;

/// `orders` and `orders-v1` with an endpoint each, and a route from the one to the other.
const MESH: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: [10.0.0.1]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-v1-1, namespace: shop, labels: {kubernetes.io/service-name: orders-v1}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: [10.0.0.2]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, port: 8080}]
  rules:
  - name: slow
    matches: [{path: {value: /slow}}, {path: {value: /sluggish}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}]
    backendRefs: [{name: orders-v1, port: 8080}]
  - matches: [{path: {value: /other}}]
    backendRefs: [{name: orders, port: 8080}]
";

fn policy(target: &str, settings: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  targetRefs: [{target}]\n  {settings}\n"
    )
}

fn host(policy: &str, address: &str) -> VirtualHost {
    let world = world(&format!("{MESH}{policy}"));
    let resource = resource(&world, Kind::Route, &format!("inbound/{address}"), "shop").unwrap();
    RouteConfiguration::decode(resource.body.value.as_slice()).unwrap().virtual_hosts.remove(0)
}

type Configs = std::collections::HashMap<String, envoy_types::pb::google::protobuf::Any>;

fn limit(configs: &Configs) -> Option<LocalRateLimit> {
    let config = configs.get("envoy.filters.http.local_ratelimit")?;
    Some(LocalRateLimit::decode(config.value.as_slice()).unwrap())
}

fn names(host: &VirtualHost) -> Vec<(&str, bool)> {
    host.routes
        .iter()
        .map(|route| (route.name.as_str(), limit(&route.typed_per_filter_config).is_some()))
        .collect()
}

const ORDERS: &str = "{kind: Service, name: orders}";
const SLOW: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: slow}";

#[test]
fn without_a_limit_everything_is_let_in() {
    let host = host("", "10.0.0.1:80");
    assert_eq!(names(&host), [("default", false)]);
    assert!(limit(&host.typed_per_filter_config).is_none());
}

#[test]
fn a_services_limit_is_one_bucket_for_all_its_routes() {
    let host = host(&policy(ORDERS, "rateLimit: {requests: 10, per: 2s, burst: 15}"), "10.0.0.1:80");
    assert_eq!(names(&host), [("default", false)]);
    let bucket = limit(&host.typed_per_filter_config).unwrap().token_bucket.unwrap();
    assert_eq!((bucket.max_tokens, bucket.tokens_per_fill.unwrap().value), (15, 10));
    assert_eq!(bucket.fill_interval.unwrap().seconds, 2);
}

#[test]
fn a_limit_by_caller_has_a_bucket_for_each_address() {
    let host = host(&policy(ORDERS, "rateLimit: {requests: 10, by: [caller]}"), "10.0.0.1:80");
    let limit = limit(&host.typed_per_filter_config).unwrap();
    assert_eq!(limit.descriptors[0].entries[0].key, "remote_address");
    assert_eq!(limit.rate_limits[0].actions.len(), 1);
    assert!(!limit.always_consume_default_token_bucket.unwrap().value);
}

#[test]
fn a_limit_by_route_stands_on_every_route() {
    let host = host(&policy(ORDERS, "rateLimit: {requests: 10, by: [route]}"), "10.0.0.1:80");
    assert_eq!(names(&host), [("HTTPRoute/shop/r/1", true), ("default", true)], "only what leads here");
    assert!(limit(&host.typed_per_filter_config).is_none());
}

#[test]
fn a_routes_limit_is_kept_where_its_backends_are_and_knows_what_it_rewrote() {
    let policy = policy(SLOW, "rateLimit: {requests: 1}");
    let at_parent = host(&policy, "10.0.0.1:80");
    assert_eq!(names(&at_parent), [("default", false)], "the rule leads elsewhere");
    let at_backend = host(&policy, "10.0.0.2:80");
    let rule = "HTTPRoute/shop/r/0";
    assert_eq!(names(&at_backend), [(rule, true), (rule, true), ("default", false)]);
    let path = &at_backend.routes[0].r#match.as_ref().unwrap().path_specifier;
    use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
    assert_eq!(path.as_ref(), Some(&PathSpecifier::PathSeparatedPrefix("/v2".into())));
}
