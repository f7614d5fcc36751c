use proptest::prelude::*;

use super::*;
use crate::resources::{Content, Flaw, parse};
use crate::world::{Mirror, Pattern, Redirect, Rewrite, ValueMatch};

const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop, creationTimestamp: '2026-01-02T03:04:05Z', generation: 3}
spec:
  parentRefs:
  - {kind: Gateway, name: edge}
  - {group: '', kind: Service, name: orders, port: 8080}
  rules:
  - name: canary
    matches:
    - path: {type: PathPrefix, value: /orders/}
      method: GET
      headers: [{name: X-User, value: '7'}, {name: x-user, value: ignored}]
      queryParams: [{name: debug, type: RegularExpression, value: 'a|b'}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: X-A, value: a}], add: [{name: x-b, value: b}], remove: [X-C]}
    - type: URLRewrite
      urlRewrite: {hostname: orders.internal, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
    - type: RequestMirror
      requestMirror: {backendRef: {name: shadow, port: 80}, fraction: {numerator: 1, denominator: 3}}
    timeouts: {request: 2s, backendRequest: 500ms}
    retry: {attempts: 3, codes: [503], backoff: 10ms}
    backendRefs:
    - {name: orders-v1, port: 8080, weight: 90}
    - {name: orders-v2, namespace: other, port: 8080, weight: 0}
";

fn only(text: &str) -> Content {
    let mut documents = parse(text);
    assert_eq!(documents.len(), 1, "{documents:?}");
    documents.remove(0).content
}

fn route(text: &str) -> RouteSpec {
    match only(text) {
        Content::Object(Object::Route(route)) => route,
        other => panic!("{other:?}"),
    }
}

fn flaw(text: &str) -> Flaw {
    match only(text) {
        Content::Broken(mut flaws) => flaws.remove(0),
        other => panic!("{other:?}"),
    }
}

fn exact(name: &str, value: &str) -> ValueMatch {
    ValueMatch { name: name.into(), value: Pattern::Exact(value.into()) }
}

#[test]
fn an_http_route_is_read() {
    let route = route(ROUTE);
    assert_eq!(route.id.to_string(), "HTTPRoute shop/orders");
    assert_eq!((route.created, route.generation), (Some(1_767_323_045), Some(3)));
    assert_eq!(route.parents.len(), 1, "a Gateway is somebody else's");
    assert_eq!(route.parents[0].to_string(), "Service shop/orders port 8080");
    let rule = &route.rules[0];
    let one = &rule.matches[0];
    assert_eq!(one.path, PathMatch::Prefix("/orders".into()), "a slash at the end says nothing");
    assert_eq!(one.headers, [exact("x-user", "7")], "of two for one name the first counts");
    assert_eq!(one.to_string(), "GET /orders/** [x-user: 7] [?debug=~a|b]");
    assert_eq!(rule.filters.request.set, [("x-a".into(), "a".into())]);
    assert_eq!(
        rule.filters.rewrite,
        Some(Rewrite {
            hostname: Some("orders.internal".into()),
            path: Some(crate::world::PathEdit::Prefix("/".into()))
        })
    );
    let shadow = BackendRef::Service("shadow.shop:80".parse().unwrap());
    assert_eq!(rule.filters.mirrors, [Mirror { to: shadow, numerator: 1, denominator: 3 }]);
    assert_eq!(rule.request_timeout, Some(Duration::from_secs(2)));
    assert_eq!(rule.backend_timeout, Some(Duration::from_millis(500)));
    let backoff = Some(Duration::from_millis(10));
    assert_eq!(rule.retry, Some(RuleRetry { attempts: Some(3), backoff, statuses: vec![503] }));
    assert_eq!(rule.backends[1].to, BackendRef::Service("orders-v2.other:8080".parse().unwrap()));
    assert_eq!(rule.backends[1].weight, 0);
}

#[test]
fn what_is_left_out_has_the_apis_defaults() {
    let text = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: HTTPRoute\nmetadata: {name: r}\nspec: {parentRefs: [{group: '', kind: Service, name: a}], rules: [{backendRefs: [{name: b, port: 1}], filters: [{type: RequestRedirect, requestRedirect: {}}]}]}\n";
    let without_redirect = text.replace(", filters: [{type: RequestRedirect, requestRedirect: {}}]", "");
    let rule = Arc::clone(&route(&without_redirect).rules[0]);
    assert_eq!(rule.matches[0].path, PathMatch::Prefix("/".into()));
    assert_eq!(rule.backends[0].weight, 1);
    let redirect =
        route(&text.replace("backendRefs: [{name: b, port: 1}], ", "")).rules[0].filters.redirect.clone();
    let expected = Redirect { scheme: None, hostname: None, port: None, path: None, status: 302 };
    assert_eq!(redirect, Some(expected));
    let both = flaw(text);
    assert_eq!(both.field, "spec.rules[0].backendRefs");
    let (bare, _) = ROUTE.split_once("  rules:").unwrap();
    assert_eq!(
        route(bare).rules[0].matches[0].path,
        PathMatch::Prefix("/".into()),
        "the rule that a server fills in"
    );
    assert!(route(&bare.replace("HTTPRoute", "GRPCRoute")).rules.is_empty());
    let unlimited = ROUTE.replace("backendRequest: 500ms", "backendRequest: 0s");
    assert_eq!(route(&unlimited).rules[0].backend_timeout, Some(Duration::ZERO), "as the API allows");
}

#[test]
fn a_route_of_gateways_only_is_somebody_elses() {
    let text = ROUTE.replace("  - {group: '', kind: Service, name: orders, port: 8080}\n", "");
    assert_eq!(only(&text), Content::Unneeded);
}

#[test]
fn every_mistake_is_named_by_its_field() {
    for (from, to, field, reason) in [
        ("queryParams", "queryParam", "spec.rules[0].matches[0].queryParam", "unknown field"),
        ("weight: 90", "wieght: 90", "spec.rules[0].backendRefs[0].wieght", "unknown field"),
        ("  rules:", "  ruels:", "spec.ruels", "unknown field"),
        ("'a|b'", "'a('", "spec.rules[0].matches[0].queryParams[0].value", "not a regular expression"),
        ("'a|b'", "'a)|(b'", "spec.rules[0].matches[0].queryParams[0].value", "not a regular expression"),
        (
            "value: /orders/",
            "value: orders",
            "spec.rules[0].matches[0].path.value",
            "does not begin with a slash",
        ),
        ("value: /orders/", "value: /a//b", "spec.rules[0].matches[0].path.value", "empty segment"),
        ("X-User", "X User", "spec.rules[0].matches[0].headers[0].name", "not a header name"),
        (
            "X-A, value: a",
            "host, value: a",
            "spec.rules[0].filters[0].requestHeaderModifier.set",
            "URLRewrite",
        ),
        (
            "type: PathPrefix",
            "type: Exact",
            "spec.rules[0].filters[1].urlRewrite.path.replacePrefixMatch",
            "PathPrefix",
        ),
        (
            "denominator: 3",
            "denominator: 0",
            "spec.rules[0].filters[2].requestMirror.fraction",
            "not a share",
        ),
        (
            "type: RequestMirror\n",
            "type: ExtensionRef\n",
            "spec.rules[0].filters[2].requestMirror",
            "ExtensionRef",
        ),
        ("request: 2s", "request: 2", "spec.rules[0].timeouts.request", "not a duration"),
        ("request: 2s", "request: 100ms", "spec.rules[0].timeouts.backendRequest", "longer than request"),
        ("codes: [503]", "codes: [200]", "spec.rules[0].retry.codes[0]", "not an error status"),
        ("attempts: 3", "attempts: 99", "spec.rules[0].retry.attempts", "not between 0 and 10"),
        ("weight: 90", "weight: -1", "spec.rules[0].backendRefs[0].weight", "negative"),
        ("orders-v1, port: 8080", "orders-v1", "spec.rules[0].backendRefs[0].port", "is missing"),
        ("orders, port: 8080", "orders, port: 0", "spec.parentRefs[1].port", "not a port"),
        ("method: GET", "method: FETCH", "spec.rules[0].matches[0].method", "FETCH"),
        (
            "    retry:",
            "    sessionPersistence: {type: Cookie}\n    retry:",
            "spec.rules[0].sessionPersistence",
            "hashOn",
        ),
    ] {
        let text = ROUTE.replacen(from, to, 1);
        assert_ne!(text, ROUTE, "{from}");
        let flaw = flaw(&text);
        assert_eq!(flaw.field, field, "{to}: {flaw:?}");
        assert!(flaw.reason.contains(reason), "{to}: {flaw:?}");
        assert!(flaw.line.is_some(), "{to}: {flaw:?}");
    }
}

#[test]
fn filters_that_the_mesh_does_not_have_are_refused() {
    let filter = |filter: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: a}}], rules: [{{backendRefs: [{{name: b, port: 1, filters: [{filter}]}}]}}]}}\n"
        )
    };
    let header = "{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [Server]}}";
    assert_eq!(route(&filter(header)).rules[0].backends[0].filters.response.remove, ["server".into()]);
    let refused = flaw(&filter("{type: CORS, cors: {}}"));
    assert_eq!(refused.field, "spec.rules[0].backendRefs[0].filters[0].type");
    let extension = "{type: ExtensionRef, extensionRef: {group: g, kind: K, name: n}}";
    let text = filter(header).replace("rules: [{", &format!("rules: [{{filters: [{extension}], "));
    let refused = flaw(&text);
    assert_eq!(
        (refused.field.as_str(), refused.reason.as_str()),
        ("spec.rules[0].filters[0].type", "ExtensionRef is not supported")
    );
}

#[test]
fn a_grpc_route_is_read() {
    let text = "\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, sectionName: grpc}]
  hostnames: [orders.example]
  rules:
  - matches:
    - {method: {service: shop.v1.Orders, method: Get}}
    - {method: {type: RegularExpression, service: 'shop\\..*'}}
    - {headers: [{name: X-User, value: '7'}]}
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-a]}}]
    backendRefs: [{name: orders-v2, port: 9000}]
";
    let route = route(text);
    assert!(route.names_hosts);
    assert_eq!(route.parents[0].to_string(), "Service shop/orders port grpc");
    let matches: Vec<String> = route.rules[0].matches.iter().map(ToString::to_string).collect();
    assert_eq!(matches, ["shop.v1.Orders/Get", r"~shop\..*/*", "*/* [x-user: 7]"]);
    let refused = flaw(&text.replace("{service: shop.v1.Orders, method: Get}", "{service: ''}"));
    assert_eq!(refused.field, "spec.rules[0].matches[0].method");
    let refused = flaw(&text.replace("shop.v1.Orders, method", "shop/Orders, method"));
    assert_eq!(refused.field, "spec.rules[0].matches[0].method.service");
}

#[test]
fn a_grant_is_read_as_far_as_it_concerns_the_mesh() {
    let text = "\
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g, namespace: other}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}, {group: x, kind: Y, namespace: z}]
  to: [{group: '', kind: Service, name: vault}, {group: '', kind: Secret}]
";
    let Content::Object(Object::Grant(grant)) = only(text) else { panic!("no grant") };
    assert_eq!(grant.from, [(Referrer::Route(RouteKind::Http), "shop".into())]);
    assert_eq!(grant.to, [Some("vault".into())]);
    assert_eq!(only(&text.replace("kind: Service", "kind: ConfigMap")), Content::Unneeded);
}

proptest! {
    #[test]
    fn a_route_with_one_line_damaged_never_panics(line in 0usize..30, junk in "[ -~]{0,40}") {
        let mut lines: Vec<&str> = ROUTE.lines().collect();
        let at = line % lines.len();
        lines[at] = &junk;
        drop(parse(&lines.join("\n")));
    }
}
