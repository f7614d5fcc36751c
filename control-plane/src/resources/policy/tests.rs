use std::time::Duration;

use super::*;
use crate::resources::{Content, Flaw, parse};
use crate::world::policy::{
    AbortStatus, Algorithm, HashOn, Probe, RateKey, RetryOn, Settings, SlowCall, SuccessRate,
};

const BREAKER: &str = "\
apiVersion: weft.dev/v1alpha1
kind: CircuitBreaker
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders, sectionName: http}]
  endpoints:
    consecutiveFailures: 3
    interval: 1s
    baseEjectionTime: 10s
    maxEjectionTime: 60s
    maxEjectionPercent: 34
    successRate: {stdevFactor: 2.5}
  service:
    window: 10s
    errorPercent: 40
    slowCall: {threshold: 2s}
    halfOpenProbes: 2
  limits: {maxRequests: 100}
";

const POLICY: &str = "\
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {request: 3s, backendRequest: 1s, connect: 500ms}
  retry: {attempts: 2, on: [5xx, unavailable], statusCodes: [429], backoff: 25ms, backoffMax: 250ms}
  retryBudget: {percent: 10, minConcurrency: 1}
  loadBalancer:
    type: RingHash
    hashOn: {cookie: {name: Session, ttl: 0s}}
    panicThreshold: 0
    zonePreference: {enabled: true, minHealthyPercent: 70}
  healthCheck: {type: HTTP, path: /healthz, expectedStatuses: [200, 204], interval: 5s}
  rateLimit: {requests: 100, per: 1s, burst: 150, by: [caller]}
  concurrency: {adaptive: {maxConcurrency: 200}}
  fault: {delay: {fixed: 1s, percent: 0.5}, abort: {grpcStatus: 14, percent: 10}, headers: [{name: X-Test, value: a}]}
  mirror: {backendRef: {name: shadow, port: 8080}, percent: 12.5}
";

fn only(text: &str) -> Content {
    let mut documents = parse(text);
    assert_eq!(documents.len(), 1, "{documents:?}");
    documents.remove(0).content
}

fn spec(text: &str) -> PolicySpec {
    match only(text) {
        Content::Object(Object::Policy(policy)) => *policy,
        other => panic!("{other:?}"),
    }
}

fn flaw(text: &str) -> Flaw {
    match only(text) {
        Content::Broken(mut flaws) => flaws.remove(0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_circuit_breaker_is_read() {
    let policy = spec(BREAKER);
    assert_eq!(policy.id.to_string(), "CircuitBreaker shop/orders");
    assert_eq!(policy.targets[0].to_string(), "Service shop/orders (http)");
    let Settings { endpoints, circuit, limits, .. } = policy.settings;
    assert_eq!(endpoints.consecutive_failures, Some(3));
    assert_eq!(endpoints.max_ejection_percent, Some(34));
    assert_eq!(
        endpoints.success_rate,
        Some(SuccessRate { stdev_factor_thousandths: 2500, minimum_hosts: 5, request_volume: 100 })
    );
    assert_eq!(endpoints.consecutive_gateway_failures, None, "what is absent stays absent");
    assert_eq!(circuit.slow_call, Some(SlowCall { threshold: Duration::from_secs(2), percent: 80 }));
    assert_eq!((circuit.error_percent, circuit.half_open_probes), (Some(40), Some(2)));
    assert_eq!((limits.max_requests, limits.max_connections), (Some(100), None));
}

#[test]
fn a_traffic_policy_is_read() {
    let settings = spec(POLICY).settings;
    assert_eq!(settings.timeouts.connect, Some(Duration::from_millis(500)));
    assert_eq!(settings.retry.on, Some([RetryOn::ServerError, RetryOn::Unavailable].into()));
    assert_eq!(settings.retry.statuses, Some([429].into()));
    assert_eq!(settings.balancer.algorithm, Some(Algorithm::RingHash));
    assert_eq!(
        settings.balancer.hash_on,
        Some(HashOn::Cookie { name: "Session".into(), ttl: Some(Duration::ZERO) })
    );
    let check = settings.health_check.unwrap();
    assert_eq!((check.timeout, check.healthy_threshold), (Duration::from_secs(1), 2));
    let statuses = vec![(200, 200), (204, 204)];
    assert_eq!(check.probe, Probe::Http { path: "/healthz".into(), host: None, statuses });
    let limit = settings.rate_limit.unwrap();
    assert_eq!((limit.requests, limit.burst, limit.by), (100, 150, [RateKey::Caller].into()));
    assert_eq!(settings.concurrency.unwrap().max, 200);
    let fault = settings.fault.unwrap();
    assert_eq!(fault.delay.unwrap().share, Share(5_000));
    assert_eq!(fault.abort.unwrap().status, AbortStatus::Grpc(14));
    assert_eq!(&*fault.headers[0].name, "x-test");
    assert_eq!(settings.mirror.unwrap().share, Share(125_000));
}

#[test]
fn every_mistake_in_a_circuit_breaker_is_named_by_its_field() {
    for (from, to, field, reason) in [
        ("consecutiveFailures", "consecutiveFailure", "spec.endpoints.consecutiveFailure", "unknown field"),
        (
            "consecutiveFailures: 3",
            "consecutiveFailures: -1",
            "spec.endpoints.consecutiveFailures",
            "0 or more",
        ),
        (
            "maxEjectionPercent: 34",
            "maxEjectionPercent: 101",
            "spec.endpoints.maxEjectionPercent",
            "between 0 and 100",
        ),
        (
            "maxEjectionTime: 60s",
            "maxEjectionTime: 1s",
            "spec.endpoints.maxEjectionTime",
            "shorter than baseEjectionTime",
        ),
        ("interval: 1s", "interval: 0s", "spec.endpoints.interval", "longer than zero"),
        ("interval: 1s", "interval: soon", "spec.endpoints.interval", "not a duration"),
        ("stdevFactor: 2.5", "stdevFactor: 0", "spec.endpoints.successRate.stdevFactor", "between 0.001"),
        ("window: 10s", "window: 2h", "spec.service.window", "longer than 1h"),
        ("errorPercent: 40", "errorPercent: 0", "spec.service.errorPercent", "between 1 and 100"),
        ("halfOpenProbes: 2", "halfOpenProbes: 64", "spec.service.halfOpenProbes", "between 1 and 63"),
        ("slowCall: {threshold: 2s}", "slowCall: {percent: 2}", "spec.service.slowCall", "threshold"),
        ("maxRequests: 100", "maxRequests: 0", "spec.limits.maxRequests", "1 or more"),
        ("kind: Service", "kind: Deployment", "spec.targetRefs[0].kind", "not a Service"),
        (
            "group: '', kind: Service",
            "group: gateway.networking.k8s.io, kind: HTTPRoute",
            "spec.targetRefs[0].kind",
            "a route has no endpoints",
        ),
    ] {
        let text = BREAKER.replacen(from, to, 1);
        assert_ne!(text, BREAKER, "{from}");
        let flaw = flaw(&text);
        assert_eq!(flaw.field, field, "{to}: {flaw:?}");
        assert!(flaw.reason.contains(reason), "{to}: {flaw:?}");
    }
}

#[test]
fn every_mistake_in_a_traffic_policy_is_named_by_its_field() {
    for (from, to, field, reason) in [
        ("connect: 500ms", "conect: 500ms", "spec.timeouts.conect", "unknown field"),
        ("request: 3s", "request: 100ms", "spec.timeouts.request", "shorter than backendRequest"),
        ("attempts: 2", "attempts: 11", "spec.retry.attempts", "between 0 and 10"),
        ("unavailable", "unavailible", "spec.retry.on[1]", "is not one of 5xx"),
        ("[429]", "[200]", "spec.retry.statusCodes[0]", "not an error status"),
        ("backoffMax: 250ms", "backoffMax: 1ms", "spec.retry.backoffMax", "shorter than backoff"),
        (
            "percent: 10, minConcurrency",
            "percent: 200, minConcurrency",
            "spec.retryBudget.percent",
            "between 0 and 100",
        ),
        ("RingHash", "Ringhash", "spec.loadBalancer.type", "is not one of"),
        ("type: RingHash", "type: Random", "spec.loadBalancer.hashOn", "RingHash and Maglev only"),
        (
            "cookie: {name: Session, ttl: 0s}",
            "header: a b",
            "spec.loadBalancer.hashOn.header",
            "not a header name",
        ),
        (
            "cookie: {name: Session, ttl: 0s}",
            "source: false",
            "spec.loadBalancer.hashOn",
            "not one of header",
        ),
        ("panicThreshold: 0", "slowStart: {window: 10s}", "spec.loadBalancer.slowStart", "PeakEwma"),
        ("type: HTTP", "type: TCP", "spec.healthCheck.path", "means nothing"),
        ("path: /healthz", "service: x", "spec.healthCheck.service", "means nothing"),
        ("interval: 5s", "interval: 5s, timeout: 6s", "spec.healthCheck.timeout", "longer than interval"),
        ("requests: 100", "requests: 0", "spec.rateLimit.requests", "1 or more"),
        ("per: 1s", "per: 10ms", "spec.rateLimit.per", "shorter than 50ms"),
        ("by: [caller]", "by: [service, caller]", "spec.rateLimit.by", "excludes"),
        ("by: [caller]", "by: [client]", "spec.rateLimit.by[0]", "not one of service"),
        ("maxConcurrency: 200", "maxConcurrency: 1", "spec.concurrency.adaptive.maxConcurrency", "less than"),
        ("percent: 0.5", "percent: 101", "spec.fault.delay.percent", "between 0 and 100"),
        ("grpcStatus: 14", "grpcStatus: 17", "spec.fault.abort.grpcStatus", "between 0 and 16"),
        ("grpcStatus: 14", "grpcStatus: 14, httpStatus: 503", "spec.fault.abort.grpcStatus", "excludes"),
        (
            "{name: shadow, port: 8080}",
            "{name: shadow, port: 0}",
            "spec.mirror.backendRef.port",
            "not a port",
        ),
        ("targetRefs: [{kind: Service, name: orders}]", "targetRefs: []", "spec.targetRefs", "is empty"),
    ] {
        let text = POLICY.replacen(from, to, 1);
        assert_ne!(text, POLICY, "{from}");
        let flaw = flaw(&text);
        assert_eq!(flaw.field, field, "{to}: {flaw:?}");
        assert!(flaw.reason.contains(reason), "{to}: {flaw:?}");
    }
}

#[test]
fn on_a_route_only_what_concerns_requests_is_accepted() {
    let on_route = |settings: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\nspec:\n  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: canary}}]\n  {settings}\n"
        )
    };
    let policy = spec(&on_route("rateLimit: {requests: 5, by: [caller]}"));
    assert_eq!(policy.targets[0].to_string(), "HTTPRoute default/r (canary)");
    assert_eq!(policy.settings.rate_limit.unwrap().by, [RateKey::Caller, RateKey::Route].into());
    assert!(matches!(only(&on_route("loadBalancer: {hashOn: {source: true}}")), Content::Object(_)));
    for (settings, field) in [
        ("healthCheck: {type: TCP}", "spec.healthCheck"),
        ("timeouts: {connect: 1s}", "spec.timeouts.connect"),
        ("retryBudget: {percent: 1}", "spec.retryBudget"),
        ("loadBalancer: {type: Maglev}", "spec.loadBalancer.type"),
        ("rateLimit: {requests: 5, by: [service]}", "spec.rateLimit.by[0]"),
    ] {
        assert_eq!(flaw(&on_route(settings)).field, field);
    }
}

const ACCESS: &str = "apiVersion: weft.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  action: Deny
  mode: Enforce
  rules:
  - from: [{serviceAccount: web, namespace: front, trustDomain: elsewhere.org}, {unauthenticated: true}, {notServiceAccount: api}]
    to: [{methods: [GET, PURGE], paths: [{type: Exact, value: /a}, {value: /b/}], headers: [{name: X-Team, value: blue}], ports: [8080]}]
  - to: [{grpc: {service: shop.Orders}}]
  mtls: {mode: strict, ports: {'9090': disabled}}
";

#[test]
fn an_access_policy_is_read() {
    use crate::world::access::Action;
    use crate::world::{PathMatch, Pattern};
    use weft_wire::tls::Mode;
    let Content::Object(Object::Access(policy)) = only(ACCESS) else { panic!("an AccessPolicy") };
    assert_eq!(policy.id.to_string(), "AccessPolicy shop/orders");
    let access = policy.access.unwrap();
    assert_eq!((access.action, access.audit, access.rules.len()), (Action::Deny, false, 2));
    let from = &access.rules[0].from;
    assert_eq!(from[0].service_account.as_ref().unwrap().to_string(), "front/web");
    assert_eq!(from[0].trust_domain.as_deref(), Some("elsewhere.org"));
    assert_eq!(from[1].authenticated, Some(false));
    assert_eq!(from[2].not_service_account.as_ref().unwrap().to_string(), "shop/api", "of its own namespace");
    let to = &access.rules[0].to[0];
    assert_eq!(to.paths, [PathMatch::Exact("/a".into()), PathMatch::Prefix("/b".into())]);
    assert_eq!((&*to.headers[0].name, &to.ports[..]), ("x-team", &[8080][..]));
    let call = PathMatch::Grpc { service: Some(Pattern::Exact("shop.Orders".into())), method: None };
    assert_eq!(access.rules[1].to[0].paths, [call]);
    assert_eq!((policy.mtls.mode, policy.mtls.ports[&9090]), (Some(Mode::Strict), Mode::Disabled));
}

#[test]
fn every_mistake_in_an_access_policy_is_named_by_its_field() {
    for (from, to, field, reason) in [
        ("action: Deny", "action: deny", "spec.action", "not one of Allow, Deny"),
        ("mode: Enforce", "mode: Warn", "spec.mode", "not one of Enforce, Audit"),
        ("mode: Enforce", "mode: Audit", "spec.mtls", "cannot be audited"),
        ("action: Deny", "acton: Deny", "spec.acton", "unknown field"),
        (
            "serviceAccount: web",
            "serviceAccounts: web",
            "spec.rules[0].from[0].serviceAccounts",
            "unknown field",
        ),
        ("serviceAccount: web", "serviceAccount: Web", "spec.rules[0].from[0].serviceAccount", "not a name"),
        (
            "unauthenticated: true",
            "unauthenticated: false",
            "spec.rules[0].from[1].unauthenticated",
            "say authenticated: true",
        ),
        (
            "unauthenticated: true",
            "unauthenticated: true, namespace: a",
            "spec.rules[0].from[1].unauthenticated",
            "excludes everything else",
        ),
        ("{unauthenticated: true}", "{}", "spec.rules[0].from[1]", "says nothing"),
        (
            "{unauthenticated: true}",
            "{workload: web}",
            "spec.rules[0].from[1].workload",
            "unknown field: a certificate names a service account and no workload; write serviceAccount",
        ),
        ("[GET, PURGE]", "[GET, 'A B']", "spec.rules[0].to[0].methods[1]", "not a method"),
        ("[GET, PURGE]", "[]", "spec.rules[0].to[0].methods", "leave it out for any"),
        ("value: /a", "value: a", "spec.rules[0].to[0].paths[0].value", "begin with a slash"),
        ("value: /a", "value: /a/../b", "spec.rules[0].to[0].paths[0].value", "segment of dots"),
        ("[8080]", "[0]", "spec.rules[0].to[0].ports[0]", "not a port"),
        ("X-Team", "'X Team'", "spec.rules[0].to[0].headers[0].name", "not a header name"),
        ("{grpc: {service: shop.Orders}}", "{}", "spec.rules[1].to[0]", "says nothing"),
        ("{grpc: {service: shop.Orders}}", "{grpc: {}}", "spec.rules[1].to[0].grpc", "neither a service"),
        ("{grpc: {", "{methods: [GET], grpc: {", "spec.rules[1].to[0].methods", "excluded by grpc"),
        ("mode: strict", "mode: Strict", "spec.mtls.mode", "not one of strict"),
        ("'9090': disabled", "http: disabled", "spec.mtls.ports.http", "not a port"),
        ("{mode: strict, ports: {'9090': disabled}}", "{}", "spec.mtls", "says nothing"),
        (
            "{kind: Service, name: orders}",
            "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}",
            "spec.targetRefs[0].kind",
            "name a Service",
        ),
    ] {
        let text = ACCESS.replacen(from, to, 1);
        assert_ne!(text, ACCESS, "{from}");
        let flaw = flaw(&text);
        assert_eq!(flaw.field, field, "{to}: {flaw:?}");
        assert!(flaw.reason.contains(reason), "{to}: {flaw:?}");
    }
}

#[test]
fn an_access_policy_says_something() {
    let of = |spec: &str| {
        format!("apiVersion: weft.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
    };
    for (spec, field) in [
        ("{}", "spec.rules"),
        ("{action: Deny}", "spec.rules"),
        ("{action: Deny, rules: []}", "spec.rules"),
        ("{mode: Audit}", "spec.rules"),
        ("{rules: [], targetRefs: []}", "spec.targetRefs"),
    ] {
        assert_eq!(flaw(&of(spec)).field, field, "{spec}");
    }
    assert!(matches!(only(&of("{rules: []}")), Content::Object(Object::Access(_))));
}

#[test]
fn a_namespace_says_what_happens_where_no_policy_speaks() {
    use crate::world::Posture;
    let of = |word: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{weft.dev/default-access: {word}}}}}\n"
        )
    };
    let Content::Object(Object::Namespace(namespace)) = only(&of("deny")) else { panic!("a Namespace") };
    assert_eq!((&*namespace.name, namespace.posture), ("shop", Posture::Deny));
    let flaw = flaw(&of("no"));
    assert_eq!(flaw.field, "metadata.annotations.weft.dev/default-access");
}
