//! One of three replicas starts to fail: callers stop asking it, and ask it again when it is well.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use weft_tests::backend::{Step, Troupe};
use weft_tests::client;
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

use super::load::Load;
use super::{forward, list, samples, service, value};

const KEY: &str = "ejection";
const PER_SECOND: u32 = 200;
/// Failures in a row that eject.
const IN_A_ROW: usize = 5;
/// What may be on its way to a replica when it is ejected.
const ON_THE_WAY: usize = 20;
/// How long callers are watched while it is ill. Shorter than it is ejected for.
const WATCHED: Duration = Duration::from_secs(3);

const BREAKER: &str = "\
---
apiVersion: weft.dev/v1alpha1
kind: CircuitBreaker
metadata: {name: cart, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: cart}]
  endpoints: {consecutiveFailures: 5, interval: 1s, baseEjectionTime: 6s}
";

/// The circuit of one address, as the API shows it.
async fn circuit(plane: &Plane, address: &str) -> anyhow::Result<Value> {
    let circuits = client::json(plane.api, "/api/circuits").await?;
    let found = list(&circuits, "circuits").iter().find(|circuit| circuit["endpoint"]["address"] == address);
    found.cloned().with_context(|| format!("no circuit of {address} in {circuits:#}"))
}

/// The replica's circuit on the sidecar's own page: 0 closed, 2 open.
async fn gauge(caller: &Sidecar, address: &str) -> anyhow::Result<f64> {
    let samples = samples(caller, "weft_circuit_state").await?;
    let sample = samples.iter().find(|sample| sample.contains(&format!("\"{address}\"")));
    Ok(value(sample.with_context(|| format!("no circuit of {address} in {samples:?}"))?))
}

fn arrived(troupe: &Troupe, backend: &str, since: Instant) -> usize {
    troupe.timed(KEY).iter().filter(|(at, arrival)| *at >= since && arrival.backend == backend).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "what was measured is for people")]
async fn a_failing_replica_is_left_alone_until_it_is_well() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let troupe = Troupe::start(3)?;
    let addresses: Vec<_> = troupe.backends.iter().map(|backend| backend.address).collect();
    let (ill, name) = (&troupe.backends[1], troupe.backends[1].address.to_string());
    let plane = Plane::start(&(service("cart", &addresses) + BREAKER)).await?;
    let flags = [forward("cart"), "--discovery-timeout=20s".to_owned()];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let caller = Sidecar::start(directory.path(), plane.control, "web", &flags).await?;
    let started = Instant::now();
    let load = Load::start(caller.address("/forwards/0")?, "cart.shop:8080", KEY, PER_SECOND).await?;
    poll::until("all three serve", PATIENCE, async || {
        let counts = ["b0", "b1", "b2"].map(|backend| arrived(&troupe, backend, started));
        ensure!(counts.iter().all(|count| *count >= 10), "{counts:?}");
        Ok(())
    })
    .await?;

    ill.does(Step::Status(500));
    let fell_ill = Instant::now();
    let open = poll::until("the API shows it open", PATIENCE, async || {
        let circuit = circuit(&plane, &name).await?;
        ensure!(circuit["state"] == "open", "{circuit:#}");
        anyhow::Ok(circuit)
    })
    .await?;
    let shown = fell_ill.elapsed();
    assert_eq!(open["cause"], "consecutive_5xx", "{open:#}");
    assert_eq!(open["cause_text"], "5 server errors in a row", "{open:#}");
    assert_eq!(open["service"], "cart.shop:8080", "{open:#}");
    assert_eq!(open["observers"][0]["workload"], "web", "{open:#}");
    assert!(open["next_probe_at"].is_string(), "{open:#}");
    poll::until("the sidecar's own page says so too", PATIENCE, async || {
        let state = gauge(&caller, &name).await?;
        ensure!(state == 2.0, "{state}");
        Ok(())
    })
    .await?;

    let transitions = samples(&caller, "weft_circuit_transitions_total").await?;
    let opened = transitions.iter().find(|sample| {
        ["\"endpoint\"", "\"cart.shop:8080\"", "\"open\""].iter().all(|label| sample.contains(label))
    });
    assert_eq!(opened.map(|sample| value(sample)), Some(1.0), "{transitions:?}");

    // Ejected at the fifth failure, and from then on nobody notices.
    poll::until("callers are watched for a while", PATIENCE, async || {
        ensure!(fell_ill.elapsed() > WATCHED, "not yet");
        Ok(())
    })
    .await?;
    ill.does(Step::Status(200));
    let healed = Instant::now();
    // Also those that were on their way when it fell ill.
    let calls = load.calls(started);
    let failed = calls.iter().filter(|call| call.failed()).count();
    assert!((IN_A_ROW..=IN_A_ROW + ON_THE_WAY).contains(&failed), "{failed} failures");
    let window = fell_ill + Duration::from_secs(1);
    let after: Vec<_> = calls.iter().filter(|call| call.sent >= window).collect();
    let unlucky = after.iter().filter(|call| call.failed()).count();
    let rate = unlucky as f64 / after.len().max(1) as f64;
    eprintln!(
        "open in the API {shown:.1?} after the first failure; {failed} failures until the ejection, then {unlucky} of {}",
        after.len()
    );
    assert!(after.len() > 100, "only {} calls", after.len());
    assert!(rate < 0.01, "{unlucky} of {} fail after the first second", after.len());

    let closed = poll::until("it is closed again", PATIENCE, async || {
        let circuit = circuit(&plane, &name).await?;
        ensure!(circuit["state"] == "closed", "{circuit:#}");
        anyhow::Ok(circuit)
    })
    .await?;
    poll::until("it serves again", PATIENCE, async || {
        let count = arrived(&troupe, "b1", healed);
        ensure!(count >= 20, "{count}");
        Ok(())
    })
    .await?;
    poll::until("the sidecar's own page says so too", PATIENCE, async || {
        let state = gauge(&caller, &name).await?;
        ensure!(state == 0.0, "{state}");
        Ok(())
    })
    .await?;
    let circuits = client::json(plane.api, "/api/circuits").await?;
    let events = list(&circuits, "events").iter().filter(|event| event["circuit"] == closed["id"]);
    let steps: Vec<_> = events.map(|event| (event["from"].as_str(), event["to"].as_str())).collect();
    assert_eq!(steps, [(Some("open"), Some("closed")), (Some("closed"), Some("open"))], "{circuits:#}");

    let calls = load.stop().await?;
    let late = calls.iter().filter(|call| call.sent >= healed && call.failed()).count();
    assert_eq!(late, 0, "nothing fails once it is well");
    caller.stop().await?;
    plane.stop().await;
    Ok(())
}
