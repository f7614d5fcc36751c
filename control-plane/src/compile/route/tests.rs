use envoy_types::pb::envoy::config::route::v3::{
    RouteAction, RouteConfiguration, route, route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use prost::Message;

use super::*;
use crate::compile::resource;
use crate::fixture::world;
use crate::xds::Kind;

/// An HTTPRoute on `orders` with these rules.
fn http_route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: orders, port: 8080}}]\n  rules:\n{rules}\n"
    )
}

fn table_of(world: &World, name: &str, namespace: &str) -> RouteConfiguration {
    let resource = resource(world, Kind::Route, name, namespace).unwrap_or_else(|| panic!("no {name}"));
    RouteConfiguration::decode(resource.body.value.as_slice()).unwrap()
}

fn routes(world: &World) -> Vec<Route> {
    table_of(world, "orders.shop:8080", "shop").virtual_hosts.remove(0).routes
}

fn forward(route: &Route) -> &RouteAction {
    match route.action.as_ref().unwrap() {
        route::Action::Route(action) => action,
        other => panic!("{other:?}"),
    }
}

fn weights(route: &Route) -> Vec<(String, u32)> {
    match forward(route).cluster_specifier.as_ref().unwrap() {
        ClusterSpecifier::Cluster(name) => vec![(name.clone(), 1)],
        ClusterSpecifier::WeightedClusters(clusters) => clusters
            .clusters
            .iter()
            .map(|cluster| (cluster.name.clone(), cluster.weight.as_ref().unwrap().value))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn path(route: &Route) -> String {
    match route.r#match.as_ref().unwrap().path_specifier.as_ref().unwrap() {
        PathSpecifier::Path(path) => format!("={path}"),
        PathSpecifier::Prefix(path) => format!("{path}*"),
        PathSpecifier::PathSeparatedPrefix(path) => format!("{path}/**"),
        PathSpecifier::SafeRegex(regex) => format!("~{}", regex.regex),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_route_everything_goes_to_the_services_own_cluster() {
    let routes = routes(&world(""));
    assert_eq!(routes.len(), 1);
    assert_eq!((routes[0].name.as_str(), path(&routes[0]).as_str()), ("default", "/*"));
    assert_eq!(weights(&routes[0]), [("orders.shop:8080".to_owned(), 1)]);
    assert_eq!(forward(&routes[0]).timeout.as_ref().unwrap().seconds, 0, "no limit that nobody asked for");
}

#[test]
fn every_match_is_an_entry_that_bears_its_rules_name_and_there_is_no_fallback() {
    let world = world(&http_route(
        "  - matches:
    - {path: {type: Exact, value: /a}}
    - {path: {type: PathPrefix, value: /b/}, headers: [{name: X-User, value: '7'}]}
    backendRefs: [{name: orders-v1, port: 8080, weight: 9}, {name: orders-v2, port: 8080, weight: 0}]
  - matches: [{path: {type: RegularExpression, value: '/c[0-9]+'}, method: POST}]
    backendRefs: [{name: orders-v2, port: 8080}]",
    ));
    let routes = routes(&world);
    let seen: Vec<_> = routes.iter().map(|route| (route.name.as_str(), path(route))).collect();
    assert_eq!(
        seen,
        [
            ("HTTPRoute/shop/r/0", "=/a".to_owned()),
            ("HTTPRoute/shop/r/1", "~/c[0-9]+".to_owned()),
            ("HTTPRoute/shop/r/0", "/b/**".to_owned()),
        ]
    );
    assert_eq!(
        weights(&routes[0]),
        [("orders-v1.shop:8080".to_owned(), 9), ("orders-v2.shop:8080".to_owned(), 0)]
    );
    assert_eq!(weights(&routes[1]), [("orders-v2.shop:8080".to_owned(), 1)]);
    assert_eq!(routes[1].r#match.as_ref().unwrap().headers[0].name, ":method");
    assert_eq!(routes[2].r#match.as_ref().unwrap().headers[0].name, "x-user");
}

#[test]
fn a_route_without_rules_matches_nothing() {
    let world = world(&http_route("    []"));
    assert!(routes(&world).is_empty());
}

/// An HTTPRoute on `orders` with one rule, of these further fields, to `orders-v1`.
fn one_rule(path: &str, fields: &str) -> World {
    world(&http_route(&format!(
        "  - name: one\n    matches: [{{path: {path}}}]\n    backendRefs: [{{name: orders-v1, port: 8080}}]\n{fields}"
    )))
}

fn policy(target: &str, settings: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  targetRefs: [{target}]\n  {settings}\n"
    )
}

#[test]
fn grpc_matches_become_paths() {
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: g, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, sectionName: grpc}]
  rules:
  - matches:
    - {method: {service: shop.Orders, method: Get}}
    - {method: {service: shop.Orders}}
    - {method: {method: Get}}
    - {method: {type: RegularExpression, service: 'a|b', method: 'Get.*'}}
    - {headers: [{name: x, value: y}]}
    backendRefs: [{name: orders-v1, port: 8080}]
";
    let world = world(route);
    let table = table_of(&world, "orders.shop:9000", "shop").virtual_hosts.remove(0).routes;
    let paths: Vec<String> = table.iter().map(path).collect();
    assert_eq!(paths, ["=/shop.Orders/Get", "/shop.Orders/*", "~/(?:a|b)/(?:Get.*)", "~/[^/]+/Get", "/*"]);
    assert!(table.iter().all(|route| route.name == "GRPCRoute/shop/g/0"));
    assert_eq!(routes(&world)[0].name, "default", "another port is not concerned");
}

/// What Envoy does to a path with a route's rewrite.
fn rewritten(route: &Route, asked: &str) -> String {
    let action = forward(route);
    if let Some(regex) = &action.regex_rewrite {
        let pattern = regex::Regex::new(&regex.pattern.as_ref().unwrap().regex).unwrap();
        return pattern.replace_all(asked, regex::NoExpand(&regex.substitution)).into_owned();
    }
    let matched = match route.r#match.as_ref().unwrap().path_specifier.as_ref().unwrap() {
        PathSpecifier::Prefix(prefix) | PathSpecifier::PathSeparatedPrefix(prefix) => prefix,
        other => panic!("{other:?}"),
    };
    match action.prefix_rewrite.as_str() {
        "" => asked.to_owned(),
        prefix => format!("{prefix}{}", asked.strip_prefix(matched.as_str()).unwrap()),
    }
}

#[test]
fn prefixes_are_replaced_as_in_the_table_of_the_api() {
    for (asked, matched, replaced, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "''", "/bar"),
        ("/foo/", "/foo", "''", "/"),
        ("/foo", "/foo", "''", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/a.b/c", "/a.b", "/", "/c"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/bar", "/", "/", "/bar"),
    ] {
        let filter = format!(
            "    filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {replaced}}}}}}}]"
        );
        let world = one_rule(&format!("{{type: PathPrefix, value: {matched}}}"), &filter);
        assert_eq!(rewritten(&routes(&world)[0], asked), expected, "{asked}: {matched} by {replaced}");
    }
    let filter = "    filters: [{type: URLRewrite, urlRewrite: {hostname: a.example, path: {type: ReplaceFullPath, replaceFullPath: /all}}}]";
    let routes = routes(&one_rule("{type: RegularExpression, value: '/x.*'}", filter));
    assert_eq!(rewritten(&routes[0], "/x/y"), "/all");
    let host = forward(&routes[0]).host_rewrite_specifier.as_ref();
    assert_eq!(host, Some(&route_action::HostRewriteSpecifier::HostRewriteLiteral("a.example".into())));
}

#[test]
fn redirects_name_a_port_only_where_the_scheme_does_not_imply_it() {
    for (redirect, port, status) in [
        ("{hostname: a.example}", 8080, 1),
        ("{hostname: a.example, scheme: https, statusCode: 301}", 0, 0),
        ("{scheme: https}", 443, 1),
        ("{hostname: a.example, port: 80}", 0, 1),
        ("{hostname: a.example, port: 8443, scheme: https, statusCode: 308}", 8443, 4),
    ] {
        let rules = format!("  - filters: [{{type: RequestRedirect, requestRedirect: {redirect}}}]");
        let routes = routes(&world(&http_route(&rules)));
        let Some(route::Action::Redirect(action)) = &routes[0].action else { panic!("{routes:?}") };
        assert_eq!((action.port_redirect, action.response_code), (port, status), "{redirect}");
    }
}

#[test]
fn a_share_without_a_backend_is_answered_with_500() {
    let world = world(&http_route(
        "  - matches: [{path: {value: /some}}]
    backendRefs:
    - {name: orders-v1, port: 8080}
    - {name: ghost, port: 80}
    - {name: vault, namespace: other, port: 80}
    - {group: example.com, kind: Bucket, name: b}
  - matches: [{path: {value: /none}}]
    backendRefs: [{name: orders-v1, port: 8080, weight: 0}, {name: ghost, port: 80}]
  - matches: [{path: {value: /empty}}]",
    ));
    let routes = routes(&world);
    let by_path = |wanted: &str| routes.iter().find(|route| path(route) == wanted).unwrap();
    let names: Vec<String> = weights(by_path("/some/**")).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "orders-v1.shop:8080",
            "unresolved/ghost.shop:80",
            "unresolved/vault.other:80",
            "unresolved/example.com/Bucket shop/b"
        ]
    );
    assert_eq!(forward(by_path("/some/**")).cluster_not_found_response_code, 2, "500");
    for name in &names[1..] {
        assert!(resource(&world, Kind::Cluster, name, "shop").is_none(), "{name}");
    }
    for wanted in ["/none/**", "/empty/**"] {
        let Some(route::Action::DirectResponse(answer)) = &by_path(wanted).action else { panic!("{wanted}") };
        assert_eq!(answer.status, 500);
    }
}

#[test]
fn a_grant_opens_another_namespace() {
    let route = http_route("  - backendRefs: [{name: vault, namespace: other, port: 80}]");
    let grant = "---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g, namespace: other}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}
";
    assert!(matches!(routes(&world(&route))[0].action, Some(route::Action::DirectResponse(_))));
    let granted = world(&format!("{route}{grant}"));
    assert_eq!(weights(&routes(&granted)[0]), [("vault.other:80".to_owned(), 1)]);
}

#[test]
fn a_consumer_route_is_for_its_own_namespace_only() {
    let producer = http_route("  - backendRefs: [{name: orders-v1, port: 8080}]");
    let consumer = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: c, namespace: other}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, namespace: shop}]
  rules: [{matches: [{path: {value: /c}}], timeouts: {request: 1s}}]
";
    let world = world(&format!("{producer}{consumer}"));
    let names = |namespace: &str| -> Vec<String> {
        let host = table_of(&world, "orders.shop:8080", namespace).virtual_hosts.remove(0);
        host.routes.into_iter().map(|route| route.name).collect()
    };
    assert_eq!(names("shop"), ["HTTPRoute/shop/r/0"]);
    assert_eq!(names("third"), ["HTTPRoute/shop/r/0"]);
    assert_eq!(names("other"), ["HTTPRoute/other/c/0"]);
}

#[test]
fn the_most_specific_word_on_a_timeout_counts() {
    let service = "{kind: Service, name: orders}";
    let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";
    let rule = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: one}";
    let timeout = |policies: &str, fields: &str| {
        let rules = format!("  - name: one\n    backendRefs: [{{name: orders-v1, port: 8080}}]\n{fields}");
        let world = world(&format!("{}{policies}", http_route(&rules)));
        forward(&routes(&world)[0]).timeout.as_ref().unwrap().seconds
    };
    let named = |name: &str, target: &str, seconds: u64| {
        policy(target, &format!("timeouts: {{request: {seconds}s}}"))
            .replace("name: p,", &format!("name: {name},"))
    };
    let on_service = named("a", service, 1);
    let on_route = format!("{on_service}{}", named("b", route, 2));
    let on_rule = format!("{on_route}{}", named("c", rule, 4));
    let inline = "    timeouts: {request: 3s}";
    assert_eq!(timeout("", ""), 0);
    assert_eq!(timeout(&on_service, ""), 1);
    assert_eq!(timeout(&on_route, ""), 2);
    assert_eq!(
        timeout(&on_route, inline),
        3,
        "the rule's own word is more specific than a policy on its route"
    );
    assert_eq!(timeout(&on_rule, inline), 4, "and a policy on the rule is about this very rule");
}

#[test]
fn retries_are_compiled_only_where_they_are_asked_for() {
    let retry = |settings: &str| {
        let world = world(&policy("{kind: Service, name: orders}", settings));
        let routes = routes(&world);
        let action = forward(&routes[0]);
        (action.retry_policy.clone(), action.timeout.as_ref().unwrap().seconds)
    };
    assert_eq!(retry("timeouts: {request: 5s}"), (None, 5));
    assert_eq!(retry("timeouts: {request: 5s, backendRequest: 2s}"), (None, 2), "one try is all there is");
    assert_eq!(retry("retry: {attempts: 0, retryOn: [5xx]}").0, None);
    let policy =
        retry("timeouts: {request: 5s, backendRequest: 2s}\n  retry: {statusCodes: [429]}").0.unwrap();
    assert_eq!(policy.retry_on, "gateway-error,connect-failure,reset,retriable-status-codes");
    assert_eq!(policy.num_retries.unwrap().value, 2);
    assert_eq!(policy.per_try_timeout.unwrap().seconds, 2);
    assert_eq!(policy.retriable_status_codes, [429]);
    let backoff = policy.retry_back_off.unwrap();
    assert_eq!(backoff.base_interval.unwrap().nanos, 25_000_000);
    assert_eq!(backoff.max_interval.unwrap().nanos, 250_000_000);
    assert_eq!(policy.retry_host_predicate.len(), 1);
}

#[test]
fn filters_hear_from_routes() {
    let cors = "    filters:\n    - type: CORS\n      cors: {allowOrigins: ['https://*.example', 'http://a'], allowMethods: [GET, PUT], maxAge: 60}\n    - type: RequestHeaderModifier\n      requestHeaderModifier: {set: [{name: x-a, value: '50%'}]}";
    let fault = policy(
        "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: one}",
        "fault: {abort: {httpStatus: 503, percent: 25}}",
    );
    let rules = format!("  - name: one\n    backendRefs: [{{name: orders-v1, port: 8080}}]\n{cors}");
    let world = world(&format!("{}{fault}", http_route(&rules)));
    let route = routes(&world).remove(0);
    let mut said: Vec<&str> = route.typed_per_filter_config.keys().map(String::as_str).collect();
    said.sort_unstable();
    assert_eq!(said, ["envoy.filters.http.cors", "envoy.filters.http.fault"]);
    assert_eq!(route.request_headers_to_add[0].header.as_ref().unwrap().value, "50%%");
    assert_eq!(route.request_headers_to_add[0].append_action, 2, "overwrite or add");
    let version = |world: &World| resource(world, Kind::Route, "orders.shop:8080", "shop").unwrap().version;
    let first = version(&world);
    assert!((0..20).all(|_| version(&world) == first), "a map's order must not show in the version");
}
