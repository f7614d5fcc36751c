//! Certificates that live for seconds, under load: nobody notices that they are renewed, that the authority is away for a
//! while, or that the control plane starts anew.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use weft_tests::client;
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

use crate::members::{Load, Pair, metric};

async fn renewals(sidecar: &Sidecar) -> anyhow::Result<f64> {
    metric(sidecar, "weft_certificate_renewals_total").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_of_seconds_are_renewed_under_load_and_no_call_fails() -> anyhow::Result<()> {
    let plane = Plane::start_mutual("", &["--leaf-lifetime=12s"]).await?;
    let pair = Pair::join(&plane).await?;
    let load = Load::start(pair.door()?);
    let began = Instant::now();
    let (caller, callee) = (renewals(&pair.caller).await?, renewals(&pair.callee).await?);
    poll::until("four more certificates for each", 4 * PATIENCE, async || {
        for (sidecar, before) in [(&pair.caller, caller), (&pair.callee, callee)] {
            let now = renewals(sidecar).await?;
            ensure!(now >= before + 4.0, "{now} certificates, {before} before");
        }
        anyhow::Ok(())
    })
    .await?;
    let took = began.elapsed();
    let tally = load.stop().await?;
    assert!(
        tally.failed.is_empty(),
        "{} of {}: {:#?}",
        tally.failed.len(),
        tally.served,
        tally.failed.first()
    );
    assert!(tally.served > 500, "{tally:?}");
    // The life of a certificate is 12 s: longer than that nobody could have done with the first one.
    assert!(took > Duration::from_secs(12), "{took:?}");
    // Who is who stays what it was, and so does the graph.
    let identity = client::json(pair.callee.address("/admin")?, "/identity").await?;
    assert_eq!(identity["certificate"]["id"], "spiffe://cluster.local/ns/shop/sa/orders");
    assert_eq!(identity["certificate"]["expired"], false);
    pair.stop().await?;
    plane.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_is_away_and_comes_back_costs_no_call() -> anyhow::Result<()> {
    let plane = Plane::start_mutual("", &["--leaf-lifetime=30s"]).await?;
    let pair = Pair::join(&plane).await?;
    let load = Load::start(pair.door()?);
    let before = renewals(&pair.caller).await?;
    let paused = plane.pause().await;
    poll::until("a renewal fails", 2 * PATIENCE, async || {
        let failed = metric(&pair.caller, "weft_certificate_failures_total{reason=\"unreachable\"}").await?;
        ensure!(failed >= 2.0, "{failed}");
        anyhow::Ok(())
    })
    .await?;
    let identity = client::json(pair.caller.address("/admin")?, "/identity").await?;
    assert_eq!(identity["last_failure"]["reason"], "unreachable", "{identity:#}");
    assert_eq!(identity["certificate"]["expired"], false, "what there was is kept");
    let plane = paused.resume().await?;
    // With the certificate alone: the tokens are used up.
    poll::until("both are renewed", PATIENCE, async || {
        for sidecar in [&pair.caller, &pair.callee] {
            let now = renewals(sidecar).await?;
            ensure!(now > before, "{now} certificates");
        }
        anyhow::Ok(())
    })
    .await?;
    poll::until("the graph is told again", PATIENCE, async || {
        let graph = client::json(plane.api, "/api/graph?window=1m").await?;
        let edges = graph["edges"].as_array().context("no edges")?;
        ensure!(edges.iter().any(|edge| edge["tls"] == "mutual"), "{graph:#}");
        anyhow::Ok(())
    })
    .await?;
    let tally = load.stop().await?;
    assert!(
        tally.failed.is_empty(),
        "{} of {}: {:#?}",
        tally.failed.len(),
        tally.served,
        tally.failed.first()
    );
    assert!(tally.served > 300, "{tally:?}");
    pair.stop().await?;
    plane.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_one_sidecar_in_and_a_restart_needs_another_or_a_directory() -> anyhow::Result<()> {
    let plane = Plane::start_mutual("", &[]).await?;
    let directory = tempfile::tempdir()?;
    let token = format!("--join-token={}", plane.token("orders").await?);
    let control = format!("--control-plane=https://{}", plane.control);
    let kept = format!("--identity-dir={}", directory.path().join("identity").display());
    let admin = "--admin-listen=127.0.0.1:0";
    let known = async |sidecar: &Sidecar| {
        poll::until("an identity", PATIENCE, async || {
            let identity = client::json(sidecar.address("/admin")?, "/identity").await?;
            let serial = identity["certificate"]["serial"].as_str().map(str::to_owned);
            serial.with_context(|| format!("{identity:#}"))
        })
        .await
    };
    // A ready file for each: they are the same workload.
    let [one, two, three] = ["one", "two", "three"].map(|name| directory.path().join(name));
    for place in [&one, &two, &three] {
        std::fs::create_dir(place)?;
    }
    let first = Sidecar::run(&one, &control, "orders", &[&token, &kept, admin]).await?;
    let serial = known(&first).await?;
    first.stop().await?;
    // With its directory it is who it was; the token is not asked for.
    let again = Sidecar::run(&two, &control, "orders", &[&token, &kept, admin]).await?;
    assert_eq!(known(&again).await?, serial);
    // Without, the token is used up, and it says what to do; the sidecar serves all the same.
    let another = Sidecar::run(&three, &control, "orders", &[&token, admin]).await?;
    poll::until("a refusal in words", PATIENCE, async || {
        let identity = client::json(another.address("/admin")?, "/identity").await?;
        let text = identity["last_failure"]["text"].as_str().context("no failure yet")?;
        ensure!(text.contains("used") && text.contains("weft token create"), "{text}");
        ensure!(!text.contains(token.rsplit('.').nth(1).context("a secret")?), "the secret is told");
        anyhow::Ok(())
    })
    .await?;
    again.stop().await?;
    another.stop().await?;
    plane.stop().await;
    Ok(())
}
