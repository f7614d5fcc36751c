//! How long a request may take, and one attempt of it.

use std::time::Duration;

use anyhow::ensure;
use weft_tests::client::Ask;
use weft_tests::envoy;

use super::scene::{Cast, compare, get, grpc, post};

/// A policy, a request, how often it is tried, and how long it takes at least.
type Case = (&'static str, Ask, usize, u64);

fn cases() -> Vec<Case> {
    let slow_upload = || Ask { pause: Duration::from_millis(1200), ..post("delay=10") };
    vec![
        // The whole exchange.
        ("timeouts: {request: 500ms}", get("delay=10"), 1, 10),
        ("timeouts: {request: 500ms}", get("hang"), 1, 500),
        ("timeouts: {request: 500ms}", post("hang"), 1, 500),
        ("timeouts: {request: 500ms}", Ask { h2: true, ..get("hang") }, 1, 500),
        ("timeouts: {request: 500ms}", get("delay=1500"), 1, 500),
        ("timeouts: {request: 3s}", get("delay=500"), 1, 500),
        ("timeouts: {request: 0s}", get("delay=1000"), 1, 1000),
        ("", get("delay=1000"), 1, 1000),
        // It ends answers that have begun, too.
        ("timeouts: {request: 700ms}", get("slow=2000"), 1, 700),
        ("timeouts: {request: 700ms}", Ask { h2: true, ..get("slow=2000") }, 1, 700),
        ("timeouts: {request: 5s}", get("slow=700"), 1, 700),
        // It runs from the end of the request.
        ("timeouts: {request: 900ms}", slow_upload(), 1, 1200),
        ("timeouts: {request: 900ms}", Ask { h2: true, ..slow_upload() }, 1, 1200),
        // gRPC.
        ("timeouts: {request: 500ms}", grpc("delay=10"), 1, 10),
        ("timeouts: {request: 500ms}", grpc("hang"), 1, 500),
        ("timeouts: {request: 700ms}", grpc("slow=2000"), 1, 700),
        // One try, where there is only one.
        ("timeouts: {backendRequest: 500ms}", get("hang"), 1, 500),
        ("timeouts: {request: 5s, backendRequest: 500ms}", get("hang"), 1, 500),
        ("timeouts: {request: 5s, backendRequest: 500ms}", get("delay=10"), 1, 10),
        // One try of several.
        ("{timeouts: {backendRequest: 700ms}, retry: {attempts: 1, backoff: 1ms}}", post("hang,200"), 2, 700),
        ("{timeouts: {backendRequest: 700ms}, retry: {attempts: 1, backoff: 1ms}}", post("hang"), 2, 1400),
        ("retry: {attempts: 2, perTryTimeout: 700ms, backoff: 1ms}", post("hang,hang,200"), 3, 1400),
        ("retry: {attempts: 2, perTryTimeout: 700ms, backoff: 1ms}", grpc("hang,hang,200"), 3, 1400),
        (
            "retry: {attempts: 2, perTryTimeout: 700ms, backoff: 1ms, retryOn: [connect-failure]}",
            post("hang"),
            1,
            700,
        ),
        (
            "retry: {attempts: 2, perTryTimeout: 700ms, backoff: 1ms, retryOn: [retriable-status-codes], statusCodes: [504]}",
            post("hang"),
            1,
            700,
        ),
        (
            "{timeouts: {backendRequest: 5s}, retry: {attempts: 1, perTryTimeout: 700ms, backoff: 1ms}}",
            post("hang,200"),
            2,
            700,
        ),
        // It does not end an answer that has begun.
        ("retry: {attempts: 2, perTryTimeout: 700ms, backoff: 1ms}", post("slow=1500"), 1, 1500),
        ("retry: {attempts: 2, perTryTimeout: 700ms, backoff: 1ms}", grpc("slow=1500"), 1, 1500),
        // Nor does it begin before the request has ended.
        ("retry: {attempts: 2, perTryTimeout: 900ms, backoff: 1ms}", slow_upload(), 1, 1200),
        // Both: the third attempt has no time left for itself.
        (
            "{timeouts: {request: 2500ms}, retry: {attempts: 5, perTryTimeout: 1s, backoff: 1ms}}",
            post("hang"),
            3,
            2500,
        ),
        ("{timeouts: {request: 2500ms}, retry: {attempts: 5, backoff: 1ms}}", post("503,503,hang"), 3, 2500),
        // The pause counts.
        (
            "{timeouts: {request: 500ms}, retry: {attempts: 1, backoff: 3600s, backoffMax: 3600s}}",
            post("503"),
            1,
            500,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_end_the_same_requests() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let mut cases = Vec::new();
    for case in self::cases() {
        cases.push((cast.service(&endpoint, case.0)?, case));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, (_, ask, attempts, least)| {
            let told = scene.both(service, ask).await?;
            compare(&told)?;
            for told in &told {
                ensure!(told.attempts.len() == *attempts, "{told:?}");
                ensure!(told.took_about(*least), "{told:?}");
            }
            Ok(())
        })
        .await?;
    scene.exit().await
}
