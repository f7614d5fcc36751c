//! The stories on a small API server of our own, and what a real one does not do on demand.

use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use weft_tests::apiserver::{ApiServer, Fault};
use weft_tests::poll;

use super::place::{OWN, PATIENCE, Place};
use super::stories;

pub(crate) struct Simulated {
    pub(crate) server: ApiServer,
    pub(crate) place: Place,
    _files: tempfile::TempDir,
}

pub(crate) async fn simulated() -> anyhow::Result<Simulated> {
    let server = ApiServer::start().await?;
    server.define_gateway_api()?;
    server.define_weft()?;
    server.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {OWN}}}}}"))?;
    let files = tempfile::tempdir()?;
    let kubeconfig = server.kubeconfig(files.path())?;
    let client = kube::Client::try_from(kube::Config::new(server.url().parse()?))?;
    Ok(Simulated { server, place: Place { client, kubeconfig }, _files: files })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_goes_on() -> anyhow::Result<()> {
    stories::the_lead_goes_on(&simulated().await?.place).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_shared() -> anyhow::Result<()> {
    stories::the_authority_is_shared(&simulated().await?.place).await
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_say_how_they_fare() -> anyhow::Result<()> {
    stories::objects_say_how_they_fare(&simulated().await?.place, || {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_find_whom_to_trust() -> anyhow::Result<()> {
    stories::pods_find_whom_to_trust(&simulated().await?.place, || {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_say_who_is_there() -> anyhow::Result<()> {
    let simulated = simulated().await?;
    for (token, audience) in [("w.e.b", "weft"), ("o.t.her", "vault"), ("a.p.i", "weft-api")] {
        simulated.server.know_token(token, "shop", "web", audience);
    }
    stories::tokens_say_who_is_there(&simulated.place, "w.e.b", "o.t.her", "a.p.i").await
}

/// Conflicts, throttling, refusals, watches that end and versions that are forgotten: all of it is gone through with.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_makes_trouble_is_written_to_all_the_same() -> anyhow::Result<()> {
    let simulated = simulated().await?;
    let server = &simulated.server;
    let refuse = |verb, resource, code, times| {
        server.refuse(Fault { verb: Some(verb), resource: Some(resource), code, retry_after: None, times });
    };
    let trouble = || {
        refuse("patch", "httproutes", 409, 5);
        refuse("get", "trafficpolicies", 503, 2);
        refuse("create", "events", 429, 2);
        refuse("update", "leases", 409, 2);
        refuse("create", "secrets", 409, 1);
        refuse("watch", "secrets", 410, 2);
    };
    let ending = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.compact();
            server.expire_watches();
        }
    };
    let (told, ()) = tokio::join!(stories::objects_say_how_they_fare(&simulated.place, trouble), ending);
    told?;
    ensure!(server.faults() == 0, "not all of the trouble was met with");
    let trouble = || {
        refuse("patch", "configmaps", 500, 2);
        refuse("list", "configmaps", 500, 1);
        refuse("watch", "namespaces", 410, 1);
    };
    stories::pods_find_whom_to_trust(&simulated.place, trouble).await
}

/// While the server is away nobody leads for longer than it may, and afterwards somebody does again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_takes_the_lead_with_it_and_brings_it_back() -> anyhow::Result<()> {
    let mut simulated = simulated().await?;
    let control = simulated.place.start("cp-one", &[]).await?;
    simulated.place.led_by("cp-one").await?;
    simulated.server.stop().await;
    poll::until("it leads no more", PATIENCE, async || {
        let leads = control.metric("weft_leader").await?;
        ensure!(leads == 0.0, "it leads");
        anyhow::Ok(())
    })
    .await?;
    // Certificates are issued on, and what cannot be kept is not promised.
    ensure!(control.roots().await?.len() == 1);
    ensure!(control.rotate().await.is_err(), "a rotation that is not kept");
    ensure!(control.roots().await?.len() == 1);
    simulated.server.resume().await?;
    simulated.place.led_by("cp-one").await?;
    poll::until("a rotation is kept again", PATIENCE, async || control.rotate().await).await?;
    control.stop().await
}

/// What is well is not written again and again.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_where_nothing_changes() -> anyhow::Result<()> {
    let simulated = simulated().await?;
    simulated.place.apply(stories::SHOP).await?;
    let control = simulated.place.start("cp-one", &[]).await?;
    simulated
        .place
        .until(("weft.dev/v1alpha1", "TrafficPolicy"), ("weft-shop", "first"), |policy| {
            policy.pointer("/status/conditions").and_then(Value::as_array).is_some_and(|all| !all.is_empty())
        })
        .await?;
    let map = ("weft-shop", "weft-trust-bundle");
    simulated.place.until(("v1", "ConfigMap"), map, |map| map["data"]["ca.crt"].is_string()).await?;
    poll::until("all is written", PATIENCE, async || {
        let waiting = control.metric("weft_status_waiting").await?;
        let written = control.metric("weft_status_writes_total{outcome=\"written\"}").await?;
        ensure!(waiting == 0.0 && written == 3.0, "{waiting} wait, {written} are written");
        anyhow::Ok(())
    })
    .await?;
    let patched = || {
        let asked = simulated.server.asked();
        let count = |what: &str| asked.get(&("patch".to_owned(), what.to_owned())).copied().unwrap_or(0);
        (count("httproutes/status"), count("trafficpolicies/status"), count("configmaps"))
    };
    let before = patched();
    // Something else changes, and is looked at.
    let renewed = "{apiVersion: v1, kind: Service, metadata: {name: other, namespace: weft-shop}, spec: {ports: [{port: 1}]}}";
    simulated.place.apply(renewed).await?;
    simulated.place.apply("{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: third, namespace: weft-shop}, \
        spec: {targetRefs: [{group: '', kind: Service, name: other}], timeouts: {request: 1s}}}").await?;
    simulated
        .place
        .until(("weft.dev/v1alpha1", "TrafficPolicy"), ("weft-shop", "third"), |policy| {
            policy.pointer("/status/conditions").is_some()
        })
        .await?;
    let after = patched();
    ensure!(after == (before.0, before.1 + 1, before.2), "{before:?} then {after:?}");
    control.stop().await
}
