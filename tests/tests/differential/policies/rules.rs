//! Policies of single rules: what a rule says itself, what a policy says that targets it or its route, and what is left of
//! the service's.

use anyhow::ensure;
use serde_json::{Value, json};
use weft_tests::client::Ask;
use weft_tests::envoy;

use super::scene::{Cast, compare, get, grpc, policy, post, route};

/// A rule and its further fields, what a policy on it says, and what becomes of a request to it: a plan, attempts, a
/// status, and the time at least.
type Case = (&'static str, &'static str, &'static str, &'static str, usize, u16, u64);

const HTTP: [Case; 13] = [
    // The service's own: two attempts more on 503, three seconds in all.
    ("plain", "", "", "503,503,200", 3, 200, 0),
    ("plain-slow", "", "", "hang", 1, 504, 3000),
    // The rule's own words.
    ("timeout", "timeouts: {request: 600ms}", "", "hang", 1, 504, 600),
    ("try", "timeouts: {request: 5s, backendRequest: 700ms}", "", "hang,200", 2, 200, 700),
    // By the API, without codes only a broken connection is a reason.
    ("broken", "retry: {attempts: 1}", "", "503,200", 1, 503, 0),
    ("again", "retry: {attempts: 1}", "", "reset,200", 2, 200, 0),
    ("codes", "retry: {attempts: 1, codes: [418]}", "", "418,200", 2, 200, 0),
    ("never", "retry: {attempts: 0}", "", "503,200", 1, 503, 0),
    // A policy on the rule.
    ("policy", "", "timeouts: {request: 600ms}", "hang", 1, 504, 600),
    ("both", "timeouts: {request: 5s}", "timeouts: {request: 600ms}", "hang", 1, 504, 600),
    (
        "more",
        "",
        "retry: {attempts: 4, retryOn: [retriable-status-codes], statusCodes: [404]}",
        "404",
        5,
        404,
        0,
    ),
    ("fault", "", "fault: {abort: {httpStatus: 418, percent: 100}}", "200", 0, 418, 0),
    ("delay", "", "fault: {delay: {fixed: 500ms, percent: 100}}", "503,200", 2, 200, 500),
];

fn target(kind: &str, route: &str, rule: &str) -> Value {
    json!([{"group": "gateway.networking.k8s.io", "kind": kind, "name": route, "sectionName": rule}])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rule_has_what_is_said_of_it() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let own = "{timeouts: {request: 3s}, retry: {attempts: 2, retryOn: [gateway-error], backoff: 1ms}}";
    let service = cast.service(&endpoint, own)?;
    let mut rules = String::new();
    for (name, fields, spec, ..) in HTTP {
        rules.push_str(&format!(
            "- name: {name}\n  matches: [{{path: {{value: /{name}}}}}]\n  backendRefs: [{{name: s{service}, port: 80}}]\n"
        ));
        if !fields.is_empty() {
            rules.push_str(&format!("  {fields}\n"));
        }
        if !spec.is_empty() {
            let target = target("HTTPRoute", &format!("r{service}"), name);
            cast.add(policy("TrafficPolicy", &format!("rule-{name}"), &target, spec)?);
        }
    }
    cast.add(route(service, &rules)?);
    let scene = cast.enter(binary).await?;
    let cases = HTTP.map(|case| (service, case));
    scene
        .all(cases, async |service, (name, _, _, plan, attempts, status, least)| {
            let told = scene.both(service, &Ask { path: format!("/{name}/42"), ..post(plan) }).await?;
            compare(&told)?;
            for told in &told {
                let fits = told.attempts.len() == *attempts && told.status() == Some(*status);
                ensure!(fits && told.took_about(*least), "{told:?}");
            }
            Ok(())
        })
        .await?;
    scene.exit().await
}

/// A method, what a policy says of its rule, a plan, attempts, and the gRPC status.
const GRPC: [(&str, &str, &str, usize, &str); 5] = [
    ("Plain", "", "grpc=14,200", 1, "14"),
    ("Again", "retry: {attempts: 2, retryOn: [unavailable], backoff: 1ms}", "grpc=14,grpc=14,200", 3, "0"),
    ("Other", "retry: {attempts: 2, retryOn: [unavailable], backoff: 1ms}", "grpc=13,200", 1, "13"),
    ("Abort", "fault: {abort: {grpcStatus: 9, percent: 100}}", "200", 0, "9"),
    ("Try", "retry: {attempts: 1, retryOn: [5xx], perTryTimeout: 600ms, backoff: 1ms}", "hang,200", 2, "0"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_method_has_what_is_said_of_it() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let service = cast.service(&endpoint, "")?;
    let mut rules = Vec::new();
    for (method, spec, ..) in GRPC {
        let name = method.to_lowercase();
        rules.push(json!({
            "name": name,
            "matches": [{"method": {"service": "shop.Orders", "method": method}}],
            "backendRefs": [{"name": format!("s{service}"), "port": 80}],
        }));
        if !spec.is_empty() {
            let target = target("GRPCRoute", &format!("r{service}"), &name);
            cast.add(policy("TrafficPolicy", &format!("method-{name}"), &target, spec)?);
        }
    }
    let mut route = route(service, &json!(rules).to_string())?;
    route["kind"] = "GRPCRoute".into();
    cast.add(route);
    let scene = cast.enter(binary).await?;
    scene
        .all(GRPC.map(|case| (service, case)), async |service, (method, _, plan, attempts, status)| {
            let told =
                scene.both(service, &Ask { path: format!("/shop.Orders/{method}"), ..grpc(plan) }).await?;
            compare(&told)?;
            for told in &told {
                let fits = told.attempts.len() == *attempts && told.grpc() == Some(status);
                ensure!(fits, "{told:?}");
            }
            Ok(())
        })
        .await?;
    // Whoever calls what no rule is for is told so alike.
    for ask in [grpc("200"), get("200")] {
        compare(&scene.both(service, &ask).await?)?;
    }
    scene.exit().await
}
