//! How much may be under way to a service: connections, requests that wait for one, requests, retries.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use weft_tests::client::{self, Ask};
use weft_tests::embedded::PATIENCE;
use weft_tests::{backend, envoy, poll};

use super::super::pair::Side;
use super::scene::{Cast, NO_EJECTION, Scene, Told, compare, get, grpc, post};

/// What is refused is refused at once.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Requests that are under way until this is dropped.
struct Held(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Held {
    /// Sends requests to one of the two, and waits until each has arrived as often as `arrivals` says.
    async fn start(
        scene: &Scene,
        side: Side,
        service: usize,
        asks: Vec<Ask>,
        arrivals: usize,
    ) -> anyhow::Result<Self> {
        let to = scene.pair.address(side, service)?;
        let mut held = Self(Vec::new());
        for ask in asks {
            let key = scene.key(service, side);
            let ask = ask.header(backend::KEY, key.as_str());
            held.0.push(tokio::spawn(async move { drop(client::once(to, &ask).await) }));
            poll::until("it is under way", PATIENCE, async || {
                let seen = scene.troupe.arrivals(&key).len();
                ensure!(seen >= arrivals, "{seen} arrivals");
                anyhow::Ok(())
            })
            .await?;
        }
        Ok(held)
    }
}

fn h2(ask: Ask) -> Ask {
    Ask { h2: true, ..ask }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_over_the_bound_are_refused_until_one_ends() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(2)?;
    let endpoints = cast.backends(2);
    let mut cases = Vec::new();
    for (max, hold) in [(1, post("hang")), (3, get("hang")), (2, h2(post("hang"))), (2, grpc("hang"))] {
        let breaker = format!("{{limits: {{maxRequests: {max}}}, {NO_EJECTION}}}");
        cases.push((cast.guarded(&endpoints, "", &breaker)?, (max, hold)));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, (max, hold)| {
            let mut held = Vec::new();
            for side in Side::BOTH {
                held.push(Held::start(&scene, side, service, vec![hold.clone(); *max], 1).await?);
            }
            for ask in [get("200"), post("200"), h2(get("200")), grpc("200")] {
                let told = scene.both(service, &ask).await?;
                compare(&told)?;
                ensure!(told.iter().all(|told| told.attempts.is_empty() && told.took < AT_ONCE), "{told:?}");
            }
            drop(held);
            poll::until("there is room again", PATIENCE, async || {
                let told = scene.both(service, &post("200")).await?;
                ensure!(told.iter().all(|told| told.attempts.len() == 1), "{told:?}");
                compare(&told)
            })
            .await
        })
        .await?;
    scene.exit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_wait_for_a_connection_and_the_others_are_refused() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let mut cases = Vec::new();
    for (connections, pending) in [(1, 1), (2, 1), (3, 4)] {
        let limits = format!("maxConnections: {connections}, maxPendingRequests: {pending}");
        // How long may be waited is `A request that waits for a connection`: here it is enough.
        let traffic = "timeouts: {connect: 10s}";
        let service =
            cast.guarded(&endpoint, traffic, &format!("{{limits: {{{limits}}}, {NO_EJECTION}}}"))?;
        cases.push((service, (connections, pending)));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, (connections, pending)| {
            for side in Side::BOTH {
                let _held =
                    Held::start(&scene, side, service, vec![post("delay=2500"); *connections], 1).await?;
                let asks = vec![post("200"); pending + 3];
                let told = join_all(asks.iter().map(|ask| scene.told(side, service, ask))).await;
                let told: Vec<Told> = told.into_iter().collect::<anyhow::Result<_>>()?;
                let (served, refused): (Vec<_>, Vec<_>) =
                    told.iter().partition(|told| told.attempts.len() == 1);
                ensure!(served.len() == *pending && refused.len() == 3, "{side:?}: {told:?}");
                ensure!(served.iter().all(|told| told.status() == Some(200)), "{side:?}: {served:?}");
                for told in refused {
                    ensure!(told.status() == Some(503) && told.took < AT_ONCE, "{side:?}: {told:?}");
                }
            }
            Ok(())
        })
        .await?;
    scene.exit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_carries_many_streams() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let breaker = format!("{{limits: {{maxConnections: 1}}, {NO_EJECTION}}}");
    let service = cast.guarded(&endpoint, "", &breaker)?;
    let scene = cast.enter(binary).await?;
    for side in Side::BOTH {
        let asks = vec![grpc("delay=300"); 20];
        for told in join_all(asks.iter().map(|ask| scene.told(side, service, ask))).await {
            let told = told?;
            ensure!(told.status() == Some(200) && told.attempts.len() == 1, "{side:?}: {told:?}");
        }
    }
    scene.exit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_have_a_bound() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let traffic = "retry: {attempts: 2, retryOn: [5xx], backoff: 1ms}";
    let mut cases = Vec::new();
    for max in [0, 1, 3] {
        let breaker = format!("{{limits: {{maxRetries: {max}}}, {NO_EJECTION}}}");
        cases.push((cast.guarded(&endpoint, traffic, &breaker)?, max));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, max| {
            let mut held = Vec::new();
            for side in Side::BOTH {
                held.push(Held::start(&scene, side, service, vec![post("503,hang"); *max], 2).await?);
            }
            for ask in [post("503,200"), get("503,200"), grpc("503,200")] {
                let told = scene.both(service, &ask).await?;
                compare(&told)?;
                ensure!(told.iter().all(|told| told.attempts.len() == 1), "{told:?}");
            }
            drop(held);
            poll::until("there is room again", PATIENCE, async || {
                let told = scene.both(service, &post("503,200")).await?;
                ensure!(told.iter().all(|told| told.attempts.len() == 1 + usize::from(*max > 0)), "{told:?}");
                compare(&told)
            })
            .await
        })
        .await?;
    scene.exit().await
}

/// Retries that begin one after the other and do not end.
const RETRYING: usize = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_are_a_share_of_what_is_under_way() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let mut cases = Vec::new();
    for (percent, min) in [(0, 0), (0, 2), (20, 0), (50, 0), (50, 3), (100, 0), (100, 1)] {
        for others in [0, 1, 4] {
            let budget = format!("retryBudget: {{percent: {percent}, minConcurrency: {min}}}");
            let retry = "retry: {attempts: 1, retryOn: [5xx], backoff: 1ms}";
            let service = cast.service(&endpoint, &format!("{{{budget}, {retry}}}"))?;
            cases.push((service, (percent, min, others)));
        }
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, (_, _, others)| {
            let mut allowed = Vec::new();
            for side in Side::BOTH {
                let mut held =
                    vec![Held::start(&scene, side, service, vec![post("hang"); *others], 1).await?];
                let mut counts = Vec::new();
                for _ in 0..RETRYING {
                    let to = scene.pair.address(side, service)?;
                    let key = scene.key(service, side);
                    let ask = post("503,hang").header(backend::KEY, key.as_str());
                    let asked = tokio::spawn(async move { drop(client::once(to, &ask).await) });
                    // Either there is a second attempt, or an answer.
                    let retries = poll::until("it is decided", PATIENCE, async || {
                        let seen = scene.troupe.arrivals(&key).len();
                        ensure!(seen == 2 || asked.is_finished(), "{seen} arrivals");
                        anyhow::Ok(seen == 2)
                    })
                    .await?;
                    counts.push(retries);
                    held.push(Held(vec![asked]));
                }
                allowed.push(counts);
            }
            ensure!(allowed[0] == allowed[1], "Envoy retries {:?}, Weft {:?}", allowed[0], allowed[1]);
            Ok(())
        })
        .await
        .context("which of the retries were made")?;
    scene.exit().await
}
