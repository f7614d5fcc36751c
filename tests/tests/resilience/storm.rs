//! A retry storm that does not happen: a dead service, a thousand requests a second, retries on everything.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use weft_tests::backend::{Step, Troupe};
use weft_tests::client;
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

use super::load::{Call, Load};
use super::{forward, list, samples, service, value};

const KEY: &str = "storm";
const PER_SECOND: u32 = 1000;
const SECONDS: u64 = 6;
/// How long the dead service takes to say so. Fifty requests are under way at a time then, so that the share of the
/// budget counts, and not its minimum.
const DYING: Duration = Duration::from_millis(50);
/// What the budget allows without any policy: 20 % of what is under way.
const BUDGET: f64 = 1.20;
/// Requests below which a ratio says nothing.
const SOME: usize = 200;

/// Nothing but retries: the budget is the one that is on by default.
const POLICY: &str = "\
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: dead, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: dead}]
  retry: {attempts: 5, retryOn: [5xx, reset, connect-failure]}
";

/// The worst moment: attempts that had arrived for each request that had been sent, after the first [`SOME`] of them.
fn worst(calls: &[Call], arrivals: &[Instant]) -> f64 {
    let mut sent: Vec<Instant> = calls.iter().map(|call| call.sent).collect();
    sent.sort_unstable();
    let moments = arrivals.iter().enumerate().map(|(before, at)| {
        let asked = sent.partition_point(|sent| sent <= at);
        if asked < SOME { 0.0 } else { (before + 1) as f64 / asked as f64 }
    });
    moments.fold(0.0, f64::max)
}

async fn edge(plane: &Plane) -> anyhow::Result<Value> {
    let graph = client::json(plane.api, "/api/graph?window=1m").await?;
    let edge = list(&graph, "edges").iter().find(|edge| edge["source"] == "workload:shop/web");
    edge.cloned().with_context(|| format!("no edge in {graph:#}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "what was measured is for people")]
async fn a_dead_service_is_asked_a_fifth_more_and_no_oftener() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let troupe = Troupe::start(3)?;
    troupe.backends.iter().for_each(|backend| backend.does(Step::Late(DYING, 503)));
    let addresses: Vec<_> = troupe.backends.iter().map(|backend| backend.address).collect();
    let plane = Plane::start(&(service("dead", &addresses) + POLICY)).await?;
    let flags = [forward("dead"), "--discovery-timeout=20s".to_owned()];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let caller = Sidecar::start(directory.path(), plane.control, "web", &flags).await?;

    let load = Load::start(caller.address("/forwards/0")?, "dead.shop:8080", KEY, PER_SECOND).await?;
    // How long a load lasts is not a wait for something.
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let calls = load.stop().await?;

    let asked = calls.len();
    assert!(calls.iter().all(|call| call.status == 503), "a dead service answers nothing else");
    let arrivals: Vec<Instant> = troupe.timed(KEY).into_iter().map(|(at, _)| at).collect();
    let amplification = arrivals.len() as f64 / asked as f64;
    let worst = worst(&calls, &arrivals);
    eprintln!(
        "{asked} requests, {} attempts: amplification {amplification:.3}, at the worst moment {worst:.3}",
        arrivals.len()
    );
    assert!(asked > 500 * usize::try_from(SECONDS)?, "only {asked} requests: too few to be a storm");
    assert!(amplification <= BUDGET && worst <= BUDGET, "amplification {amplification}, at worst {worst}");
    assert!(amplification > 1.02, "nothing was tried again: {amplification}");

    // The sidecar's own page and the graph know the same numbers.
    let sent = u64::try_from(arrivals.len() - asked)?;
    let retries = samples(&caller, "weft_client_retries_total").await?;
    let counted = |outcome: &str| -> f64 {
        retries.iter().filter(|sample| sample.contains(outcome)).map(|sample| value(sample)).sum()
    };
    assert_eq!(counted("\"sent\"") as u64, sent, "{retries:?}");
    let denied = counted("\"budget_exhausted\"");
    assert!(denied > 0.0, "{retries:?}");
    let edge = poll::until("the edge has every request", PATIENCE, async || {
        let edge = edge(&plane).await?;
        ensure!(edge["requests"] == asked, "{} of {asked}", edge["requests"]);
        anyhow::Ok(edge)
    })
    .await?;
    assert_eq!(edge["retries"]["sent"], sent, "{edge:#}");
    assert_eq!(edge["retries"]["denied"], denied as u64, "{edge:#}");
    let told = edge["retries"]["amplification"].as_f64().context("no amplification")?;
    assert!((told - amplification).abs() < 0.01, "{told} is not {amplification}");

    caller.stop().await?;
    plane.stop().await;
    Ok(())
}
