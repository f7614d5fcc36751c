//! What is told of every server, real or not. Each story begins with nothing of a control plane in the cluster.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::StatusCode;
use serde_json::{Value, json};
use weft_tests::client::Ask;
use weft_tests::embedded::Sidecar;
use weft_tests::poll;

use super::place::{OWN, PATIENCE, Place, pod_of};

const ROUTE: (&str, &str) = ("gateway.networking.k8s.io/v1", "HTTPRoute");
const POLICY: (&str, &str) = ("weft.dev/v1alpha1", "TrafficPolicy");
const MAP: (&str, &str) = ("v1", "ConfigMap");

/// A shop that asks for sidecars, with a route and two policies that contradict each other.
pub(crate) const SHOP: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: weft-shop, labels: {weft.dev/inject: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: weft-tools}}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: weft-shop}
spec: {selector: {app: orders}, ports: [{name: http, port: 8080, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: weft-shop}
spec:
  parentRefs: [{group: "", kind: Service, name: orders, port: 8080}, {group: "", kind: Service, name: nowhere}]
  rules: [{backendRefs: [{name: orders, port: 8080}, {name: missing, port: 1}]}]
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: first, namespace: weft-shop}
spec: {targetRefs: [{group: "", kind: Service, name: orders}], timeouts: {request: 3s}}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: second, namespace: weft-shop}
spec: {targetRefs: [{group: "", kind: Service, name: orders}], timeouts: {request: 5s}}
"#;

/// One leads; the other takes over at once from one that ends, and after the Lease's time from one that is cut off.
pub(crate) async fn the_lead_goes_on(place: &Place) -> anyhow::Result<()> {
    place.clear().await?;
    let one = place.start("cp-one", &[]).await?;
    place.led_by("cp-one").await?;
    let two = place.start("cp-two", &[]).await?;
    poll::until("its metrics say that it leads", PATIENCE, async || {
        ensure!(one.metric("weft_leader").await? == 1.0 && two.metric("weft_leader").await? == 0.0);
        anyhow::Ok(())
    })
    .await?;
    let ended = std::time::Instant::now();
    one.stop().await?;
    place.led_by("cp-two").await?;
    // A busy machine may be slow; but nobody waited for the Lease to be over.
    println!("the lead was taken over {:?} after the end of the one that had it", ended.elapsed());
    let three = place.start("cp-three", &[]).await?;
    ensure!(place.holder().await? == "cp-two");
    let lease = place.get("coordination.k8s.io/v1", "Lease", (OWN, "weft-control-plane")).await?;
    let transitions = lease.context("it is there")?["spec"]["leaseTransitions"].clone();
    two.crash();
    let crashed = std::time::Instant::now();
    place.led_by("cp-three").await?;
    ensure!(crashed.elapsed() > Duration::from_secs(5), "it was taken from one that might have led yet");
    let lease = place.get("coordination.k8s.io/v1", "Lease", (OWN, "weft-control-plane")).await?;
    let after = lease.context("it is there")?["spec"]["leaseTransitions"].clone();
    ensure!(after.as_i64() > transitions.as_i64(), "{transitions} then {after}");
    three.stop().await
}

/// Two control planes that start at once have one root; a rotation is everybody's; a restart keeps it.
pub(crate) async fn the_authority_is_shared(place: &Place) -> anyhow::Result<()> {
    place.clear().await?;
    let (one, two) = tokio::join!(place.start("cp-one", &[]), place.start("cp-two", &[]));
    let (one, two) = (one?, two?);
    let before = one.roots().await?;
    ensure!(before.len() == 1 && before == two.roots().await?, "{before:?}");
    let secret = place.get("v1", "Secret", (OWN, "weft-ca")).await?.context("it is kept")?;
    ensure!(secret["type"] == "Opaque" && secret.pointer("/data/authority.json").is_some(), "{secret}");
    ensure!(secret["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "weft-control-plane");
    // Whoever is asked begins it; whoever leads goes on with it.
    two.rotate().await?;
    poll::until("the new root issues everywhere", PATIENCE, async || {
        let (first, second) = (one.roots().await?, two.roots().await?);
        ensure!(first == second && first.len() == 2 && first[1] == before[0], "{first:?} and {second:?}");
        anyhow::Ok(())
    })
    .await?;
    let after = one.roots().await?;
    one.stop().await?;
    two.stop().await?;
    let again = place.start("cp-one", &[]).await?;
    ensure!(again.roots().await? == after, "a restart keeps it");
    let heard = poll::until("Events tell of it", PATIENCE, async || {
        let events = place.list("events.k8s.io/v1", "Event", OWN).await?;
        let has = |reason: &str| events.iter().any(|event| event["reason"] == reason);
        ensure!(has("RootRotationBegan") && has("RootRotationIssuing"), "{events:?}");
        anyhow::Ok(())
    });
    heard.await?;
    again.stop().await
}

fn condition<'a>(conditions: Option<&'a Value>, kind: &str) -> Option<&'a Value> {
    conditions?.as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn says(conditions: Option<&Value>, kind: &str, status: &str, reason: &str) -> bool {
    condition(conditions, kind).is_some_and(|found| found["status"] == status && found["reason"] == reason)
}

/// Objects say how they fare, keep what others wrote, and Events tell of what is wrong; whatever `trouble` makes before the
/// control plane starts.
pub(crate) async fn objects_say_how_they_fare(place: &Place, trouble: impl FnOnce()) -> anyhow::Result<()> {
    place.clear().await?;
    // On a real cluster earlier stories have had a say; this one begins with objects of which nothing is said.
    let spoken_of: Vec<&str> = SHOP
        .split("---")
        .filter(|object| object.contains("targetRefs") || object.contains("parentRefs"))
        .collect();
    place.delete(&spoken_of.join("---")).await?;
    place.apply(SHOP).await?;
    let theirs = json!({
        "parentRef": { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge" },
        "controllerName": "example.org/gateway",
        "conditions": [{
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
        }],
    });
    place.say(ROUTE, ("weft-shop", "orders"), json!({ "parents": [theirs] })).await?;
    trouble();
    let control = place.start("cp-one", &[]).await?;
    let route = place.until(ROUTE, ("weft-shop", "orders"), |route| {
        let parents = route.pointer("/status/parents").and_then(Value::as_array);
        parents.is_some_and(|parents| parents.len() == 3)
    });
    let route = route.await?;
    let parent = |place: usize| &route["status"]["parents"][place];
    ensure!(*parent(0) == theirs, "{route}");
    ensure!(parent(1)["controllerName"] == "weft.dev/gateway-controller", "{route}");
    ensure!(parent(1)["parentRef"]["port"] == 8080 && parent(2)["parentRef"]["name"] == "nowhere");
    let (first, second) = (parent(1).get("conditions"), parent(2).get("conditions"));
    ensure!(says(first, "Accepted", "True", "Accepted"), "{route}");
    ensure!(says(second, "Accepted", "False", "NoMatchingParent"), "{route}");
    ensure!(says(first, "ResolvedRefs", "False", "BackendNotFound"), "{route}");
    ensure!(says(first, "Programmed", "Unknown", "NotAskedFor"), "{route}");
    let generation = route["metadata"]["generation"].clone();
    ensure!(condition(first, "Accepted").context("it is")?["observedGeneration"] == generation, "{route}");

    let conflicted =
        |policy: &Value| says(policy.pointer("/status/conditions"), "Conflicted", "True", "Conflicted");
    let loser = place.until(POLICY, ("weft-shop", "second"), conflicted).await?;
    ensure!(says(loser.pointer("/status/conditions"), "Accepted", "True", "Accepted"), "{loser}");
    let since = condition(loser.pointer("/status/conditions"), "Accepted").context("it is")?;
    let since = since["lastTransitionTime"].clone();
    poll::until("Events tell of it", PATIENCE, async || {
        let events = place.list("events.k8s.io/v1", "Event", "weft-shop").await?;
        let about = |reason: &str, name: &str| {
            events.iter().any(|event| event["reason"] == reason && event["regarding"]["name"] == name)
        };
        ensure!(about("NoMatchingParent", "orders") && about("Conflicted", "second"), "{events:?}");
        anyhow::Ok(())
    })
    .await?;

    // The contradiction goes; the other conditions keep their times.
    place.delete("{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: first, namespace: weft-shop}}").await?;
    let alone = place.until(POLICY, ("weft-shop", "second"), |policy| {
        let conditions = policy.pointer("/status/conditions");
        condition(conditions, "Conflicted").is_none() && says(conditions, "Accepted", "True", "Accepted")
    });
    let alone = alone.await?;
    let accepted = condition(alone.pointer("/status/conditions"), "Accepted").context("it is")?;
    ensure!(accepted["lastTransitionTime"] == since, "{alone}");
    control.stop().await
}

/// Every namespace that has or wants sidecars has the roots, also while they change; what somebody else made stays theirs.
pub(crate) async fn pods_find_whom_to_trust(place: &Place, trouble: impl FnOnce()) -> anyhow::Result<()> {
    place.clear().await?;
    place.apply(SHOP).await?;
    let theirs = "{apiVersion: v1, kind: Namespace, metadata: {name: weft-theirs, labels: {weft.dev/inject: enabled}}}\n---\n\
                  {apiVersion: v1, kind: ConfigMap, metadata: {name: weft-trust-bundle, namespace: weft-theirs}, \
                  data: {note: ours}}";
    place.apply(theirs).await?;
    place.apply(&pod_of("weft-tools", "batch-1", "{weft.dev/status: '{}'}")).await?;
    trouble();
    let control = place.start("cp-one", &[]).await?;
    let secret = place.until(("v1", "Secret"), (OWN, "weft-ca"), |_| true).await?;
    let roots = decoded(&secret["data"]["ca.crt"])?;
    for namespace in ["weft-shop", "weft-tools", "weft-theirs"] {
        let at = (namespace, "weft-trust-bundle");
        let map = place.until(MAP, at, |map| map["data"]["ca.crt"] == *roots).await?;
        let is_ours = map["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "weft-control-plane";
        ensure!(is_ours == (namespace != "weft-theirs"), "{map}");
        ensure!(namespace != "weft-theirs" || map["data"]["note"] == "ours", "{map}");
    }
    ensure!(place.get(MAP.0, MAP.1, ("default", "weft-trust-bundle")).await?.is_none());
    control.rotate().await?;
    let both = place.until(MAP, ("weft-tools", "weft-trust-bundle"), |map| {
        map["data"]["ca.crt"].as_str().is_some_and(|pem| pem.matches("BEGIN").count() == 2)
    });
    ensure!(both.await?["data"]["ca.crt"].as_str().is_some_and(|pem| pem.contains(roots.trim())));
    // Somebody empties it.
    place.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: weft-trust-bundle, namespace: weft-shop}, data: {ca.crt: none}}").await?;
    place.until(MAP, ("weft-shop", "weft-trust-bundle"), |map| map["data"]["ca.crt"] != "none").await?;
    control.stop().await
}

/// A sidecar shows the token of its ServiceAccount, and gets an identity; the API knows tokens of the cluster too. `web` is a
/// token of shop/web for sidecars, `other` one for somebody else, `api` one for the API.
pub(crate) async fn tokens_say_who_is_there(
    place: &Place,
    web: &str,
    other: &str,
    api: &str,
) -> anyhow::Result<()> {
    place.clear().await?;
    let control =
        place.start("cp-one", &["--api-token-review-viewer-group=system:serviceaccounts:shop"]).await?;
    let secret = place.until(("v1", "Secret"), (OWN, "weft-ca"), |_| true).await?;
    let files = tempfile::tempdir()?;
    let path = |name: &str| files.path().join(name);
    std::fs::write(path("ca.crt"), decoded(&secret["data"]["ca.crt"])?)?;
    std::fs::write(path("token"), web)?;
    std::fs::write(path("other"), other)?;
    let address = format!("--control-plane=https://{}", control.bound.control_tls.context("it listens")?);
    let trust = format!("--trust-bundle={}", path("ca.crt").display());
    let proof = |name: &str| format!("--identity-token-file={}", path(name).display());
    let refused = Sidecar::run(files.path(), &address, "stranger", &[&trust, &proof("other")]).await?;
    poll::until("a token for somebody else is refused", PATIENCE, async || {
        // The API server itself knows that it is not for us.
        let refused = control.metric("weft_ca_refused_total{reason=\"account_rejected\"}").await?;
        let audience = control.metric("weft_ca_refused_total{reason=\"account_audience\"}").await?;
        ensure!(refused + audience > 0.0, "{refused} and {audience}");
        anyhow::Ok(())
    })
    .await?;
    refused.stop().await?;
    let sidecar = Sidecar::run(files.path(), &address, "web", &[&trust, &proof("token")]).await?;
    poll::until("the sidecar has an identity", PATIENCE, async || {
        let issued = control.metric("weft_ca_issued_total{proof=\"service_account\"}").await?;
        ensure!(issued > 0.0, "{issued} issued");
        anyhow::Ok(())
    })
    .await?;
    sidecar.stop().await?;
    for (token, status) in
        [(api, StatusCode::OK), (web, StatusCode::UNAUTHORIZED), ("a.b.c", StatusCode::UNAUTHORIZED)]
    {
        let ask = Ask::get("/api/ca", "localhost").header("authorization", format!("Bearer {token}"));
        let answer = control.ask(&ask).await?;
        ensure!(answer.status == status, "{answer:?}");
    }
    control.stop().await
}

fn decoded(value: &Value) -> anyhow::Result<String> {
    let bytes: k8s_openapi::ByteString = serde_json::from_value(value.clone())?;
    Ok(String::from_utf8(bytes.0)?)
}
