use std::time::Duration;

use super::fixtures::*;
use super::*;
use crate::resources::{Content, Flaw, parse};
use crate::world::policy::{
    AbortStatus, Algorithm, HashOn, Probe, RateKey, RetryOn, Settings, SlowCall, SuccessRate,
};

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
    for &(from, to, field, reason) in BREAKER_MISTAKES {
        let text = BREAKER.replacen(from, to, 1);
        assert_ne!(text, BREAKER, "{from}");
        let flaw = flaw(&text);
        assert_eq!(flaw.field, field, "{to}: {flaw:?}");
        assert!(flaw.reason.contains(reason), "{to}: {flaw:?}");
    }
}

#[test]
fn every_mistake_in_a_traffic_policy_is_named_by_its_field() {
    for &(from, to, field, reason) in POLICY_MISTAKES {
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
    for &(from, to, field, reason) in ACCESS_MISTAKES {
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
