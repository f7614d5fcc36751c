//! Shares of requests: weights of backends, faults for some, copies of some.
//!
//! What is drawn is compared with what was configured: at each of the two a share may be off by [`DEVIATIONS`] standard
//! deviations, which happens to a correct proxy once in ten million shares.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Context as _, ensure};
use serde_json::json;
use weft_tests::backend::{KEY, Step};
use weft_tests::client::{Ask, Client};
use weft_tests::embedded::PATIENCE;
use weft_tests::{envoy, poll};

use super::super::pair::Side;
use super::scene::{Cast, Scene, get, policy, post, route};

const DEVIATIONS: f64 = 5.4;

/// Requests for each case at each side, over this many connections.
const REQUESTS: usize = 1500;
const CONNECTIONS: usize = 6;

/// Statuses of the answers, and arrivals at each backend, of many requests to one of the two.
#[derive(Default)]
struct Counts {
    statuses: BTreeMap<u16, usize>,
    backends: BTreeMap<String, usize>,
}

/// Sends them.
async fn many(scene: &Scene, side: Side, service: usize) -> anyhow::Result<Counts> {
    let to = scene.pair.address(side, service)?;
    let key = format!("share/{service}/{side:?}");
    let ask: Ask = get("200").header(KEY, key.as_str());
    let counts = Mutex::new(Counts::default());
    let one = async || {
        let mut client = Client::new(to);
        for _ in 0..REQUESTS / CONNECTIONS {
            let answer = client.send(&ask).await?;
            let mut counts = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *counts.statuses.entry(answer.status.as_u16()).or_default() += 1;
        }
        anyhow::Ok(())
    };
    futures_util::future::try_join_all((0..CONNECTIONS).map(|_| one())).await?;
    let mut counts = counts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    for arrival in scene.troupe.arrivals(&key) {
        *counts.backends.entry(arrival.backend).or_default() += 1;
    }
    Ok(counts)
}

/// Whether `count` of [`REQUESTS`] is a fair draw of this share.
fn fair(what: &str, count: usize, share: f64) -> anyhow::Result<()> {
    let total = REQUESTS as f64;
    let deviation = (total * share * (1.0 - share)).sqrt();
    let off = (count as f64 - total * share).abs();
    // Half a request, because counts are whole.
    ensure!(off <= deviation * DEVIATIONS + 0.5, "{what}: {count} of {total}, not {share}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_get_their_weight() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(4)?;
    let backends = cast.backends(4);
    let targets: Vec<usize> =
        backends.iter().map(|backend| cast.service(&[*backend], "")).collect::<anyhow::Result<_>>()?;
    let mut cases = Vec::new();
    for weights in
        [[1, 1, 1, 1], [90, 9, 1, 0], [0, 0, 5, 0], [1, 0, 0, 99], [1_000_000, 500_000, 250_000, 250_000]]
    {
        let service = cast.service(&[], "")?;
        let refs = std::iter::zip(&targets, weights);
        let refs: Vec<_> = refs
            .map(|(target, weight)| json!({"name": format!("s{target}"), "port": 80, "weight": weight}))
            .collect();
        cast.add(route(service, &json!([{"backendRefs": refs}]).to_string())?);
        cases.push((service, weights));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, weights| {
            let total: u32 = weights.iter().sum();
            for side in Side::BOTH {
                let counts = many(&scene, side, service).await?;
                for (backend, weight) in scene.troupe.backends.iter().zip(weights) {
                    let count = counts.backends.get(&backend.name).copied().unwrap_or_default();
                    let share = f64::from(*weight) / f64::from(total);
                    fair(&format!("{side:?}, {} with weight {weight}", backend.name), count, share)?;
                }
            }
            Ok(())
        })
        .await?;
    scene.exit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_and_copies_are_made_of_their_share() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(2)?;
    let (app, mirror) = (cast.backends(1), vec![cast.backends(2)[1]]);
    let mirror = cast.service(&mirror, "")?;
    let mut cases = Vec::new();
    for percent in [0.0, 1.0, 30.5, 100.0] {
        let abort =
            cast.service(&app, &format!("fault: {{abort: {{httpStatus: 418, percent: {percent}}}}}"))?;
        cases.push((abort, (true, percent)));
        let spec = format!("mirror: {{backendRef: {{name: s{mirror}, port: 80}}, percent: {percent}}}");
        let copied = cast.service(&app, &spec)?;
        cases.push((copied, (false, percent)));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, (aborts, percent)| {
            for side in Side::BOTH {
                let counts = many(&scene, side, service).await?;
                let share = percent / 100.0;
                if *aborts {
                    let aborted = counts.statuses.get(&418).copied().unwrap_or_default();
                    fair(&format!("{side:?}, aborts"), aborted, share)?;
                    continue;
                }
                // Nobody waits for copies but this test.
                let key = format!("share/{service}/{side:?}");
                poll::until("the copies arrive", PATIENCE, async || {
                    let arrivals = scene.troupe.arrivals(&key);
                    let copies = arrivals.iter().filter(|arrival| arrival.backend == "b1").count();
                    ensure!(arrivals.len() - copies == REQUESTS, "{} arrivals", arrivals.len());
                    fair(&format!("{side:?}, copies"), copies, share)
                })
                .await?;
            }
            Ok(())
        })
        .await?;
    scene.exit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_like_their_requests() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(2)?;
    let (app, mirror) = (cast.backends(1), vec![cast.backends(2)[1]]);
    let mirror = cast.service(&mirror, "")?;
    let spec = format!("mirror: {{backendRef: {{name: s{mirror}, port: 80}}}}");
    let service = cast.service(&app, &spec)?;
    let targets = json!([{"kind": "Service", "name": format!("s{mirror}")}]);
    // What its own callers meet is not for copies.
    cast.add(policy("TrafficPolicy", "own", &targets, "fault: {abort: {httpStatus: 418, percent: 100}}")?);
    let scene = cast.enter(binary).await?;
    let mut cases = Vec::new();
    for size in [0, 1, 60_000] {
        for h2 in [false, true] {
            for authority in ["orders.shop", "orders.shop:80", "[::1]:80"] {
                let body = bytes::Bytes::from(vec![b'x'; size]);
                let method = if size == 0 { http::Method::GET } else { http::Method::PUT };
                let ask = Ask { body, h2, method, authority: authority.to_owned(), ..get("200") };
                cases.push((service, (size, h2, authority, ask)));
            }
        }
    }
    scene
        .all(
            cases.into_iter().map(|(service, case)| (service, Sized(case))),
            async |service, Sized((size, _, authority, ask))| {
                let mut copies = Vec::new();
                for side in Side::BOTH {
                    let key = format!("copy/{size}/{}/{authority}/{side:?}", ask.h2);
                    let to = scene.pair.address(side, service)?;
                    let answer = weft_tests::client::once(to, &ask.clone().header(KEY, key.as_str())).await?;
                    ensure!(answer.status == 200, "{answer:?}");
                    let copy = poll::until("the copy arrives", PATIENCE, async || {
                        let arrivals = scene.troupe.arrivals(&key);
                        arrivals.into_iter().find(|arrival| arrival.backend == "b1").context("not yet")
                    })
                    .await?;
                    // Version and headers are `Row::Copies`.
                    copies.push((copy.method, copy.path, copy.authority, copy.body));
                }
                ensure!(copies[0] == copies[1], "{copies:#?}");
                Ok(())
            },
        )
        .await?;
    scene.exit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_large_bodies_are_whole_or_not_made() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(2)?;
    let (app, mirror) = (cast.backends(1), vec![cast.backends(2)[1]]);
    let mirror = cast.service(&mirror, "")?;
    let service = cast.service(&app, &format!("mirror: {{backendRef: {{name: s{mirror}, port: 80}}}}"))?;
    let scene = cast.enter(binary).await?;
    for (size, h2) in [(70_000, false), (300_000, false), (70_000, true), (300_000, true)] {
        for side in Side::BOTH {
            let body = bytes::Bytes::from(vec![b'x'; size]);
            let ask = Ask { body, h2, method: http::Method::PUT, ..get("200") };
            let key = format!("large/{size}/{h2}/{side:?}");
            let to = scene.pair.address(side, service)?;
            for (ask, key) in [(&ask, key.clone()), (&get("200"), format!("{key}/after"))] {
                let answer = weft_tests::client::once(to, &ask.clone().header(KEY, key.as_str())).await?;
                ensure!(answer.status == 200, "{answer:?}");
            }
            poll::until("the copy of what came after arrives", PATIENCE, async || {
                let arrivals = scene.troupe.arrivals(&format!("{key}/after"));
                arrivals.into_iter().find(|arrival| arrival.backend == "b1").context("not yet")
            })
            .await?;
            let mut seen: Vec<_> = scene
                .troupe
                .arrivals(&key)
                .into_iter()
                .map(|arrival| (arrival.backend, arrival.body))
                .collect();
            seen.sort_unstable();
            let both = [("b0".to_owned(), size), ("b1".to_owned(), size)];
            // `Row::Copies`: nothing that is too large to be kept.
            let expected = if side == Side::Weft { &both[..1] } else { &both };
            ensure!(seen == expected, "{key}: {seen:?}");
        }
    }
    scene.exit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_copied_once_however_often_it_is_tried() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(2)?;
    let (app, mirror) = (cast.backends(1), vec![cast.backends(2)[1]]);
    cast.troupe.backends[0].does(Step::Status(503));
    let mirror = cast.service(&mirror, "")?;
    let copies = format!("mirror: {{backendRef: {{name: s{mirror}, port: 80}}}}");
    let service =
        cast.service(&app, &format!("{{{copies}, retry: {{attempts: 3, retryOn: [5xx], backoff: 1ms}}}}"))?;
    let scene = cast.enter(binary).await?;
    for ask in [post(""), get(""), Ask { h2: true, ..post("") }] {
        for side in Side::BOTH {
            let key = scene.key(service, side);
            let to = scene.pair.address(side, service)?;
            let answer = weft_tests::client::once(to, &ask.clone().header(KEY, key.as_str())).await;
            let answer = answer.with_context(|| format!("{side:?}: {:?}", scene.troupe.arrivals(&key)))?;
            ensure!(answer.status == 503, "{answer:?}");
            poll::until("the copy arrives", PATIENCE, async || {
                let mut seen: Vec<String> =
                    scene.troupe.arrivals(&key).into_iter().map(|arrival| arrival.backend).collect();
                seen.sort_unstable();
                ensure!(seen == ["b0", "b0", "b0", "b0", "b1"], "{side:?}: {seen:?}");
                anyhow::Ok(())
            })
            .await?;
        }
    }
    scene.exit().await
}

/// A case that does not print its body.
struct Sized((usize, bool, &'static str, Ask));

impl std::fmt::Debug for Sized {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (size, h2, authority, _) = &self.0;
        write!(f, "{size} bytes, h2 {h2}, {authority}")
    }
}
