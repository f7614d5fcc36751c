//! Failures made on purpose.

use anyhow::ensure;
use serde_json::json;
use weft_tests::client::Ask;
use weft_tests::envoy;

use super::scene::{Cast, compare, get, grpc, policy, post, route};

/// A policy, a request, whether it arrives, and how long it takes at least.
type Case = (&'static str, Ask, bool, u64);

fn cases() -> Vec<Case> {
    let red = |ask: Ask| ask.header("x-team", "red");
    vec![
        ("fault: {abort: {httpStatus: 418, percent: 100}}", get("200"), false, 0),
        ("fault: {abort: {httpStatus: 418, percent: 100}}", post("200"), false, 0),
        ("fault: {abort: {httpStatus: 418, percent: 100}}", grpc("200"), false, 0),
        ("fault: {abort: {httpStatus: 418, percent: 0}}", get("200"), true, 0),
        ("fault: {abort: {httpStatus: 200, percent: 100}}", get("503"), false, 0),
        ("fault: {abort: {grpcStatus: 7, percent: 100}}", grpc("200"), false, 0),
        ("fault: {abort: {grpcStatus: 0, percent: 100}}", grpc("503"), false, 0),
        ("fault: {abort: {grpcStatus: 7, percent: 100}}", get("200"), false, 0),
        ("fault: {abort: {grpcStatus: 14, percent: 100}}", post("200"), false, 0),
        ("fault: {delay: {fixed: 600ms, percent: 100}}", get("200"), true, 600),
        ("fault: {delay: {fixed: 600ms, percent: 100}}", post("503"), true, 600),
        ("fault: {delay: {fixed: 600ms, percent: 100}}", grpc("200"), true, 600),
        ("fault: {delay: {fixed: 3600s, percent: 0}}", get("200"), true, 0),
        (
            "fault: {delay: {fixed: 600ms, percent: 100}, abort: {httpStatus: 429, percent: 100}}",
            get("200"),
            false,
            600,
        ),
        (
            "fault: {delay: {fixed: 600ms, percent: 100}, abort: {httpStatus: 429, percent: 0}}",
            get("200"),
            true,
            600,
        ),
        // Only who has all of the headers.
        (
            "fault: {abort: {httpStatus: 418, percent: 100}, headers: [{name: X-Team, value: red}]}",
            red(get("200")),
            false,
            0,
        ),
        (
            "fault: {abort: {httpStatus: 418, percent: 100}, headers: [{name: x-team, value: red}]}",
            get("200"),
            true,
            0,
        ),
        (
            "fault: {abort: {httpStatus: 418, percent: 100}, headers: [{name: x-team, value: blue}]}",
            red(get("200")),
            true,
            0,
        ),
        (
            "fault: {abort: {httpStatus: 418, percent: 100}, headers: [{name: x-team, value: red}, {name: x-b, value: c}]}",
            red(get("200")),
            true,
            0,
        ),
        // Any line of a header counts.
        (
            "fault: {abort: {httpStatus: 418, percent: 100}, headers: [{name: x-team, value: red}]}",
            red(get("200").header("x-team", "blue")),
            false,
            0,
        ),
        // A failure made here is not tried again, and a hold-up costs the request's own time nothing.
        (
            "{fault: {abort: {httpStatus: 503, percent: 100}}, retry: {attempts: 3, retryOn: [5xx], backoff: 1ms}}",
            post("200"),
            false,
            0,
        ),
        (
            "{fault: {delay: {fixed: 900ms, percent: 100}}, timeouts: {request: 600ms}}",
            post("delay=10"),
            true,
            900,
        ),
        (
            "{fault: {delay: {fixed: 600ms, percent: 100}}, timeouts: {request: 600ms}}",
            post("hang"),
            true,
            1200,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_are_made_alike() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let mut cases = Vec::new();
    for case in self::cases() {
        cases.push((cast.service(&endpoint, case.0)?, case));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, (_, ask, arrives, least)| {
            let told = scene.both(service, ask).await?;
            compare(&told)?;
            for told in &told {
                ensure!(told.attempts.len() == usize::from(*arrives), "{told:?}");
                ensure!(told.took_about(*least), "{told:?}");
            }
            Ok(())
        })
        .await?;
    scene.exit().await
}

/// As many as a route may have rules.
const STATUSES: [u16; 16] = [200, 204, 400, 401, 403, 404, 408, 409, 412, 429, 499, 500, 501, 502, 503, 504];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_callers_hear_of_every_status_alike() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let service = cast.service(&endpoint, "")?;
    // One rule for each status, told apart by a header.
    let mut rules = String::new();
    for status in STATUSES {
        rules.push_str(&format!(
            "- name: a{status}\n  matches: [{{headers: [{{name: x-want, value: '{status}'}}]}}]\n  backendRefs: [{{name: s{service}, port: 80}}]\n"
        ));
        let target = json!([{
            "group": "gateway.networking.k8s.io", "kind": "HTTPRoute",
            "name": format!("r{service}"), "sectionName": format!("a{status}"),
        }]);
        let spec = format!("fault: {{abort: {{httpStatus: {status}, percent: 100}}}}");
        cast.add(policy("TrafficPolicy", &format!("a{status}"), &target, &spec)?);
    }
    cast.add(route(service, &rules)?);
    let scene = cast.enter(binary).await?;
    let cases = STATUSES.iter().flat_map(|status| {
        [grpc("200"), post("200")].map(|ask| (service, ask.header("x-want", status.to_string())))
    });
    scene.all(cases, async |service, ask| compare(&scene.both(service, ask).await?)).await?;
    scene.exit().await
}
