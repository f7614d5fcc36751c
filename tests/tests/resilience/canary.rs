//! A canary: weights change while requests run, and not one of them fails.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use weft_tests::backend::Troupe;
use weft_tests::client;
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

use super::load::Load;
use super::{forward, list, service};

const KEY: &str = "canary";
const PER_SECOND: u32 = 200;
/// Requests whose split is looked at.
const SAMPLE: usize = 500;
/// How far the split of a sample may be from the weights: more than four standard deviations of the evenest.
const TOLERANCE: f64 = 0.10;

fn objects(troupe: &Troupe, weights: (u32, u32)) -> String {
    let [old, new] = [0, 1].map(|index: usize| troupe.backends[index].address);
    let route = format!(
        "\
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: catalog, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: catalog, port: 8080}}]
  rules:
  - backendRefs:
    - {{name: catalog-v1, port: 8080, weight: {}}}
    - {{name: catalog-v2, port: 8080, weight: {}}}
",
        weights.0, weights.1
    );
    let services = [service("catalog", &[]), service("catalog-v1", &[old]), service("catalog-v2", &[new])];
    services.concat() + &route
}

/// The share of the new version in the last [`SAMPLE`] requests that arrived since.
fn share(troupe: &Troupe, since: Instant) -> anyhow::Result<f64> {
    let arrivals = troupe.timed(KEY);
    let arrivals: Vec<_> = arrivals.iter().filter(|(at, _)| *at >= since).collect();
    let first = arrivals.len().checked_sub(SAMPLE).with_context(|| format!("only {}", arrivals.len()))?;
    let new = arrivals[first..].iter().filter(|(_, arrival)| arrival.backend == "b1").count();
    Ok(new as f64 / SAMPLE as f64)
}

/// What the API says of the new version: the share it should have, and the one it had in the last seconds.
async fn shown(plane: &Plane) -> anyhow::Result<(f64, f64, Value)> {
    let routes = client::json(plane.api, "/api/routes?service=catalog&window=10s").await?;
    let route = routes.pointer("/services/0/routes/0").with_context(|| format!("no route in {routes:#}"))?;
    let backends = list(route, "backends");
    let new = backends.iter().find(|backend| backend["cluster"] == "catalog-v2.shop:8080");
    let new = new.with_context(|| format!("no new version in {route:#}"))?;
    let share = |name: &str| new[name].as_f64().with_context(|| format!("no {name} in {new:#}"));
    Ok((share("share")?, share("observed_share")?, route.clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "what was measured is for people")]
async fn weights_change_under_load_without_a_failed_request() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let troupe = Troupe::start(2)?;
    let plane = Plane::start(&objects(&troupe, (90, 10))).await?;
    let flags = [forward("catalog"), "--discovery-timeout=20s".to_owned()];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let caller = Sidecar::start(directory.path(), plane.control, "web", &flags).await?;
    let load = Load::start(caller.address("/forwards/0")?, "catalog.shop:8080", KEY, PER_SECOND).await?;

    for weights in [(90, 10), (50, 50), (0, 100), (100, 0), (90, 10)] {
        plane.apply(&objects(&troupe, weights))?;
        let changed = Instant::now();
        let wanted = f64::from(weights.1) / f64::from(weights.0 + weights.1);
        // A weight of zero is none at all.
        let tolerance = if weights.0 == 0 || weights.1 == 0 { 0.0 } else { TOLERANCE };
        let seen = poll::until("the split follows the weights", PATIENCE, async || {
            let seen = share(&troupe, changed)?;
            ensure!((seen - wanted).abs() <= tolerance, "{seen} is not {wanted}");
            anyhow::Ok(seen)
        })
        .await?;
        let took = changed.elapsed();
        let observed = poll::until("the API says so too", PATIENCE + Duration::from_secs(10), async || {
            let (share, observed, route) = shown(&plane).await?;
            ensure!((share - wanted).abs() < 0.001, "configured: {route:#}");
            // Its window still has some of what was before.
            ensure!((observed - wanted).abs() <= TOLERANCE, "observed: {route:#}");
            ensure!(route["success_rate"] == 1.0, "{route:#}");
            anyhow::Ok(observed)
        })
        .await?;
        eprintln!("weights {weights:?}: {seen:.3} at the backend after {took:.1?}, {observed:.3} in the API");
    }

    let calls = load.stop().await?;
    let failed: Vec<_> = calls.iter().filter(|call| call.failed()).collect();
    eprintln!("{} requests, {} failed", calls.len(), failed.len());
    assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), calls.len(), failed.first());
    assert_eq!(troupe.total(), calls.len(), "each request arrived once");
    caller.stop().await?;
    plane.stop().await;
    Ok(())
}
