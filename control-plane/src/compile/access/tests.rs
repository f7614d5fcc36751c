use envoy_types::pb::envoy::config::listener::v3::{Listener, filter};
use envoy_types::pb::envoy::config::rbac::v3::{Rbac, permission, principal, rbac};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use prost::{Message, Name};
use weft_wire::access::{HTTP_ALLOW, HTTP_DENY, NETWORK_ALLOW, NETWORK_DENY};

use crate::compile::{Resource, resource};
use crate::fixture::world;
use crate::xds::Kind;

/// A port that was not declared to speak anything, so that both sorts of filters are there.
const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: any, namespace: shop}
spec: {ports: [{name: any, port: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: any-1, namespace: shop, labels: {kubernetes.io/service-name: any}}
addressType: IPv4
ports: [{name: any, port: 80}]
endpoints: [{addresses: [10.0.0.1]}]
";

fn compiled(policies: &[(&str, &str)]) -> Resource {
    let policies = policies.iter().map(|(name, spec)| {
        format!("---\napiVersion: weft.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
    });
    let world = world(&format!("{MESH}{}", policies.collect::<String>()));
    resource(&world, Kind::Listener, "inbound/10.0.0.1:80", "shop").unwrap()
}

struct Read {
    manager: HttpConnectionManager,
    http: Vec<(String, HttpRbac)>,
    tcp: Vec<(String, NetworkRbac)>,
}

fn read(policies: &[(&str, &str)]) -> Read {
    let listener = Listener::decode(compiled(policies).body.value.as_slice()).unwrap();
    let typed = |config: &Option<filter::ConfigType>| match config {
        Some(filter::ConfigType::TypedConfig(any)) => any.clone(),
        other => panic!("{other:?}"),
    };
    let manager = typed(&listener.filter_chains[0].filters[0].config_type);
    let manager = HttpConnectionManager::decode(manager.value.as_slice()).unwrap();
    let http = manager.http_filters.iter().filter_map(|filter| {
        let Some(http_filter::ConfigType::TypedConfig(any)) = &filter.config_type else { return None };
        let is = any.type_url == HttpRbac::type_url();
        is.then(|| (filter.name.clone(), HttpRbac::decode(any.value.as_slice()).unwrap()))
    });
    let http = http.collect();
    let bytes = listener.default_filter_chain.unwrap().filters;
    let tcp = bytes.iter().filter_map(|filter| {
        let any = typed(&filter.config_type);
        let is = any.type_url == NetworkRbac::type_url();
        is.then(|| (filter.name.clone(), NetworkRbac::decode(any.value.as_slice()).unwrap()))
    });
    Read { manager, http, tcp: tcp.collect() }
}

fn names(rules: &Option<Rbac>) -> Vec<&str> {
    let mut names: Vec<_> =
        rules.iter().flat_map(|rules| rules.policies.keys().map(String::as_str)).collect();
    names.sort_unstable();
    names
}

#[test]
fn nobody_is_looked_at_without_a_policy() {
    let read = read(&[("m", "{mtls: {mode: strict}}")]);
    assert!(read.http.is_empty() && read.tcp.is_empty());
    assert!(read.manager.normalize_path.is_none(), "paths arrive as they were sent");
}

#[test]
fn denying_stands_before_allowing_and_both_before_all_other_filters() {
    let read = read(&[
        ("a", "{rules: [{from: [{serviceAccount: web}]}, {from: [{namespace: tools}]}]}"),
        ("d", "{action: Deny, rules: [{to: [{methods: [DELETE]}]}]}"),
        ("w", "{action: Deny, mode: Audit, rules: [{}]}"),
    ]);
    let order: Vec<&str> = read.manager.http_filters.iter().map(|filter| filter.name.as_str()).collect();
    assert_eq!(order[..3], [HTTP_DENY, HTTP_ALLOW, "envoy.filters.http.local_ratelimit"]);
    let (deny, allow) = (&read.http[0].1, &read.http[1].1);
    assert_eq!(deny.rules.as_ref().unwrap().action, rbac::Action::Deny as i32);
    assert_eq!(names(&deny.rules), ["AccessPolicy/shop/d/0"]);
    assert_eq!(names(&deny.shadow_rules), ["AccessPolicy/shop/w/0"]);
    assert_eq!(names(&allow.rules), ["AccessPolicy/shop/a/0", "AccessPolicy/shop/a/1"]);
    assert!(allow.shadow_rules.is_none());
    let order: Vec<&str> = read.tcp.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(order, [NETWORK_DENY, NETWORK_ALLOW]);
    assert_eq!(names(&read.tcp[0].1.rules), ["AccessPolicy/shop/d/0"], "bytes are denied what requests are");
}

#[test]
fn a_callers_name_is_that_of_its_certificate() {
    let read = read(&[(
        "a",
        "{rules: [{from: [{serviceAccount: web}, {unauthenticated: true}, {notNamespace: tools}]}]}",
    )]);
    let rules = read.http[0].1.rules.as_ref().unwrap();
    let principals = &rules.policies["AccessPolicy/shop/a/0"].principals;
    let text = format!("{principals:?}");
    assert!(text.contains("Exact(\"spiffe://cluster.local/ns/shop/sa/web\")"), "{text}");
    assert!(matches!(principals[1].identifier, Some(principal::Identifier::NotId(_))));
    let Some(principal::Identifier::AndIds(set)) = &principals[2].identifier else { panic!("{text}") };
    assert_eq!(set.ids.len(), 2, "who is not of tools must be somebody");
}

#[test]
fn paths_are_of_whole_segments_and_have_one_spelling() {
    let read = read(&[("a", "{rules: [{to: [{paths: [{value: /a}], headers: [{name: X, value: y}]}]}]}")]);
    let rules = read.http[0].1.rules.as_ref().unwrap();
    let text = format!("{:?}", rules.policies["AccessPolicy/shop/a/0"].permissions);
    assert!(text.contains("Exact(\"/a\")") && text.contains("Prefix(\"/a/\")"), "{text}");
    assert!(text.contains("\"x\""), "{text}");
    assert!(read.manager.normalize_path.unwrap().value && read.manager.merge_slashes);
    assert!(names(&read.tcp[0].1.rules).is_empty(), "of bytes nobody knows the path");
}

#[test]
fn auditing_changes_no_path_and_refuses_nobody() {
    let read = read(&[("a", "{mode: Audit, rules: [{to: [{paths: [{value: /a}]}]}]}")]);
    assert!(read.manager.normalize_path.is_none());
    let (_, filter) = &read.http[0];
    assert!(filter.rules.is_none() && filter.shadow_rules.is_some());
}

#[test]
fn other_ports_rules_are_left_out() {
    let read = read(&[(
        "a",
        "{rules: [{to: [{ports: [81]}, {ports: [80], methods: [GET]}]}, {to: [{ports: [81]}]}]}",
    )]);
    let rules = read.http[0].1.rules.as_ref().unwrap();
    assert_eq!(names(&read.http[0].1.rules), ["AccessPolicy/shop/a/0"]);
    let permissions = &rules.policies["AccessPolicy/shop/a/0"].permissions;
    assert!(matches!(permissions.as_slice(), [one] if matches!(one.rule, Some(permission::Rule::Header(_)))));
}

#[test]
fn the_same_policies_are_the_same_version() {
    let rules: Vec<String> = (0..20).map(|n| format!("{{to: [{{methods: [M{n}]}}]}}")).collect();
    let spec = format!("{{rules: [{}]}}", rules.join(", "));
    let one = compiled(&[("a", &spec)]);
    assert_eq!(one.version, compiled(&[("a", &spec)]).version);
}
