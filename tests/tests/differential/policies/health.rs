//! Endpoints that are asked whether they are well.

use std::collections::BTreeSet;

use anyhow::ensure;
use weft_tests::backend::Step;
use weft_tests::embedded::PATIENCE;
use weft_tests::{envoy, poll};

use super::super::pair::Side;
use super::scene::{Cast, NO_EJECTION, Scene, get};

/// Waits until requests to one of the two reach these backends, and no others.
async fn reach(scene: &Scene, side: Side, service: usize, expected: &[&str]) -> anyhow::Result<()> {
    let expected: BTreeSet<&str> = expected.iter().copied().collect();
    poll::until("the healthy ones are asked", PATIENCE, async || {
        let mut seen = BTreeSet::new();
        for _ in 0..9 {
            let told = scene.told(side, service, &get("200")).await?;
            ensure!(told.status() == Some(200) || expected.is_empty(), "{told:?}");
            seen.extend(told.backends().into_iter().map(str::to_owned));
        }
        ensure!(seen.iter().map(String::as_str).eq(expected.iter().copied()), "{side:?} asks {seen:?}");
        anyhow::Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_unwell_is_not_asked_until_it_is_well() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(3)?;
    let endpoints = cast.backends(3);
    let times = "interval: 300ms, timeout: 200ms, healthyThreshold: 2, unhealthyThreshold: 2";
    let mut services = Vec::new();
    for kind in [
        "type: HTTP, path: /healthz",
        "type: HTTP, path: /healthz, host: checks.example, expectedStatuses: [200, 204]",
    ] {
        let balancer = "loadBalancer: {type: RoundRobin, panicThreshold: 0}";
        let spec = format!("{{{balancer}, healthCheck: {{{kind}, {times}}}}}");
        services.push(cast.guarded(&endpoints, &spec, NO_EJECTION)?);
    }
    let scene = cast.enter(binary).await?;
    // What a step of the first backend, and then of all, does to who is asked.
    for (step, all, expected) in [
        (Step::Status(200), Step::Status(200), &["b0", "b1", "b2"][..]),
        (Step::Status(503), Step::Status(200), &["b1", "b2"]),
        (Step::Status(200), Step::Status(200), &["b0", "b1", "b2"]),
        (Step::Hang, Step::Status(200), &["b1", "b2"]),
        (Step::Status(404), Step::Status(500), &[]),
        (Step::Status(200), Step::Reset, &["b0"]),
    ] {
        for (index, backend) in scene.troupe.backends.iter().enumerate() {
            backend.does(if index == 0 { step } else { all });
        }
        for service in &services {
            for side in Side::BOTH {
                reach(&scene, side, *service, expected).await?;
            }
        }
    }
    scene.exit().await
}
