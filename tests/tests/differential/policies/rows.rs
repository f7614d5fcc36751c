//! Rows of `docs/envoy-differences.md` about policies, shown at work: a row that is not true any more must go.

use std::time::Duration;

use anyhow::ensure;
use weft_tests::client::Ask;
use weft_tests::envoy;

use super::super::pair::Side;
use super::retries::nobody;
use super::scene::{Cast, compare, get, grpc, post};

/// "An endpoint that does not accept".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weft_passes_over_who_does_not_accept_without_a_policy() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let (_bound, dead) = nobody()?;
    let alive = cast.backends(1)[0];
    let service = cast.service(&[dead, alive], "loadBalancer: {type: RoundRobin}")?;
    let scene = cast.enter(binary).await?;
    let mut failed = [0; 2];
    for _ in 0..10 {
        let told = scene.both(service, &post("200")).await?;
        for (failed, told) in failed.iter_mut().zip(&told) {
            *failed += usize::from(told.status() != Some(200));
        }
    }
    ensure!(failed == [5, 0], "failed at Envoy and at Weft: {failed:?}");
    scene.exit().await
}

/// "An idempotent request without a body on a kept connection that the server closes at that moment".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weft_repeats_what_a_stale_connection_lost() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let service = cast.service(&endpoint, "")?;
    let scene = cast.enter(binary).await?;
    for (ask, attempts) in [(get("reset,200"), 2), (post("reset,200"), 1)] {
        // There is a connection to be kept.
        compare(&scene.both(service, &get("200")).await?)?;
        let [envoy, weft] = scene.both(service, &ask).await?;
        ensure!(envoy.status() == Some(503) && envoy.attempts.len() == 1, "{envoy:?}");
        ensure!(weft.attempts.len() == attempts, "{weft:?}");
        ensure!(weft.status() == Some(if attempts == 2 { 200 } else { 502 }), "{weft:?}");
    }
    scene.exit().await
}

/// "`grpc-timeout` of a caller".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_grpc_deadline_is_a_callers_word() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let service = cast.service(&endpoint, "timeouts: {request: 6s}")?;
    let scene = cast.enter(binary).await?;
    let ask = grpc("hang").header("grpc-timeout", "700m");
    let [envoy, weft] = scene.both(service, &ask).await?;
    ensure!(envoy.took_about(6000), "{envoy:?}");
    ensure!(weft.took_about(700) && weft.took < Duration::from_secs(5), "{weft:?}");
    ensure!(weft.grpc() == Some("4"), "{weft:?}");
    scene.exit().await
}

/// "A request that waits for a connection".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weft_does_not_wait_for_a_connection_for_ever() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let traffic = "timeouts: {request: 4s, connect: 500ms}";
    let service = cast.guarded(&endpoint, traffic, "limits: {maxConnections: 1, maxPendingRequests: 5}")?;
    let scene = cast.enter(binary).await?;
    // At Envoy it gets the connection when the one before has had its time.
    for (side, status, least) in [(Side::Envoy, 200, 3000), (Side::Weft, 503, 500)] {
        let (held, waits): (Ask, Ask) = (post("hang"), post("200"));
        let held = scene.told(side, service, &held);
        let waits = async {
            // Its connection is the only one.
            tokio::time::sleep(Duration::from_millis(300)).await;
            scene.told(side, service, &waits).await
        };
        let (_, waited) = tokio::join!(held, waits);
        let waited = waited?;
        ensure!(waited.status() == Some(status) && waited.took_about(least), "{side:?}: {waited:?}");
    }
    scene.exit().await
}
