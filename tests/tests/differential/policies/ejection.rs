//! When an endpoint is left alone, for how long, and how many may be.
//!
//! Surprise: with one endpoint and without panic, an ejection shows as an answer without an attempt; so it is seen when it
//! happens, whatever else the proxies would choose.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use weft_tests::backend::Step;
use weft_tests::client::Ask;
use weft_tests::embedded::PATIENCE;
use weft_tests::{envoy, poll};

use super::super::differences::Row;
use super::super::pair::Side;
use super::retries::nobody;
use super::scene::{Cast, Scene, compare, get, grpc, post};

/// For as long as a test may take.
const FOR_EVER: &str = "interval: 300ms, baseEjectionTime: 600s, maxEjectionPercent: 100";

/// Whether an endpoint is ejected, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ejected {
    Both,
    Neither,
    /// An intended difference.
    Weft(Row),
}

impl Ejected {
    fn by(self, side: Side) -> bool {
        self == Self::Both || side == Side::Weft && self != Self::Neither
    }
}

/// A circuit of an endpoint, what happens to it, and whether it is ejected then.
type Case = (&'static str, Vec<Ask>, Ejected);

fn cases() -> Vec<Case> {
    use Ejected::{Both, Neither, Weft};
    let http = |plans: &[&str]| plans.iter().map(|plan| post(plan)).collect::<Vec<_>>();
    let h2 = |plans: &[&str]| plans.iter().map(|plan| Ask { h2: true, ..post(plan) }).collect::<Vec<_>>();
    let in_grpc = |plans: &[&str]| plans.iter().map(|plan| grpc(plan)).collect::<Vec<_>>();
    let failures = "consecutiveFailures: 3, consecutiveLocalOriginFailures: 0";
    let gateway = "consecutiveFailures: 0, consecutiveGatewayFailures: 2, consecutiveLocalOriginFailures: 0";
    let local = "consecutiveFailures: 0, consecutiveLocalOriginFailures: 2";
    let (late, hung) = (Weft(Row::GrpcEnd), Weft(Row::AcceptsOnly));
    vec![
        (failures, http(&["503", "500"]), Neither),
        (failures, http(&["503", "500", "599"]), Both),
        (failures, h2(&["503", "500", "501"]), Both),
        (failures, http(&["503", "503", "200", "503", "503"]), Neither),
        (failures, http(&["503", "503", "404", "503", "503"]), Neither),
        (failures, http(&["404", "404", "429", "400", "404"]), Neither),
        (failures, http(&["reset", "reset", "reset", "reset"]), Neither),
        (failures, http(&["503", "reset", "503", "503"]), Both),
        (failures, http(&["503", "503", "broken", "503"]), Neither),
        (failures, in_grpc(&["trailed=14", "trailed=13", "trailed=2"]), late),
        (failures, in_grpc(&["503", "503", "trailed=14"]), late),
        (failures, in_grpc(&["503", "503", "trailed=5", "503"]), Neither),
        (failures, in_grpc(&["grpc=14", "grpc=13", "grpc=2"]), Both),
        (failures, in_grpc(&["503", "grpc=14", "500"]), Both),
        (failures, in_grpc(&["grpc=14", "grpc=14", "200", "grpc=14"]), Neither),
        (failures, in_grpc(&["grpc=5", "grpc=3", "grpc=8", "grpc=16", "grpc=7"]), Neither),
        (failures, in_grpc(&["grpc=4", "grpc=4", "grpc=4"]), Both),
        (failures, in_grpc(&["grpc=12", "grpc=15", "grpc=10"]), Neither),
        (gateway, http(&["500", "500", "501", "505"]), Neither),
        (gateway, http(&["502", "504"]), Both),
        (gateway, http(&["503", "500", "503"]), Neither),
        (gateway, http(&["503", "200", "503"]), Neither),
        (gateway, in_grpc(&["grpc=14", "grpc=14"]), Both),
        (gateway, in_grpc(&["grpc=13", "grpc=13", "grpc=13"]), Neither),
        (local, http(&["503", "503", "503", "503"]), Neither),
        (local, http(&["reset", "reset"]), hung),
        (local, h2(&["reset", "reset"]), hung),
        (local, http(&["reset", "200", "reset"]), Neither),
        (local, http(&["reset", "503", "reset"]), Neither),
        (local, http(&["hang", "hang"]), hung),
        (local, http(&["hang", "reset"]), hung),
        ("consecutiveFailures: 2, consecutiveGatewayFailures: 0", http(&["503", "503"]), Both),
        ("", http(&["503", "503", "503", "503"]), Neither),
        ("", http(&["503", "503", "503", "503", "503"]), Both),
        ("", http(&["reset", "reset", "reset", "reset", "reset"]), hung),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_failures_eject() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let mut cases = Vec::new();
    for case in self::cases() {
        let traffic = "{timeouts: {request: 1s}, loadBalancer: {panicThreshold: 0}}";
        let comma = if case.0.is_empty() { "" } else { ", " };
        let breaker = format!("endpoints: {{{}{comma}{FOR_EVER}}}", case.0);
        cases.push((cast.guarded(&endpoint, traffic, &breaker)?, case));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, (_, asks, ejects)| {
            for ask in asks {
                compare(&scene.both(service, ask).await?)?;
            }
            for side in Side::BOTH {
                if ejects.by(side) {
                    ejected(&scene, side, service).await?;
                    continue;
                }
                for _ in 0..3 {
                    let told = scene.told(side, service, &post("404")).await?;
                    ensure!(told.attempts.len() == 1, "{side:?}: ejected too early: {told:?}");
                }
            }
            Ok(())
        })
        .await?;
    scene.exit().await
}

/// Waits until nobody is asked any more; a proxy may need a moment to tell its workers.
async fn ejected(scene: &Scene, side: Side, service: usize) -> anyhow::Result<()> {
    poll::until("the endpoint is ejected", Duration::from_secs(2), async || {
        let told = scene.told(side, service, &get("404")).await?;
        ensure!(told.attempts.is_empty(), "{side:?}: {told:?}");
        anyhow::Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_accept_is_ejected() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(0)?;
    let (_bound, dead) = nobody()?;
    let traffic = "loadBalancer: {panicThreshold: 0}";
    let breaker = |local| format!("endpoints: {{consecutiveLocalOriginFailures: {local}, {FOR_EVER}}}");
    let twice = cast.guarded(&[dead], traffic, &breaker(2))?;
    let never = cast.guarded(&[dead], traffic, &breaker(0))?;
    let scene = cast.enter(binary).await?;
    for side in Side::BOTH {
        let asked = |told: &super::scene::Told| {
            !told.own.contains("no healthy upstream") && !told.own.contains("no_ready")
        };
        for _ in 0..2 {
            let told = scene.told(side, twice, &post("")).await?;
            ensure!(asked(&told), "{side:?}: ejected too early: {told:?}");
        }
        poll::until("the endpoint is ejected", PATIENCE, async || {
            let told = scene.told(side, twice, &post("")).await?;
            ensure!(!asked(&told), "{side:?}: {told:?}");
            anyhow::Ok(())
        })
        .await?;
        for _ in 0..12 {
            let told = scene.told(side, never, &post("")).await?;
            ensure!(asked(&told), "{side:?}: {told:?}");
        }
    }
    scene.exit().await
}

/// Endpoints of a service, of which all but the first fail.
const SOME: usize = 4;

/// The backends that many requests, one after the other, reach.
async fn reached(
    scene: &Scene,
    side: Side,
    service: usize,
    requests: usize,
) -> anyhow::Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for _ in 0..requests {
        let told = scene.told(side, service, &get("")).await?;
        all.extend(told.backends().into_iter().map(str::to_owned));
    }
    Ok(all)
}

/// Envoy tells its workers of an ejection at once, but of further ones up to a second later, all together
/// (`update_merge_window`).
const MERGED: Duration = Duration::from_millis(1500);

/// Waits until one of the two has found and ejected whom it may, and says who is left.
async fn left(scene: &Scene, side: Side, service: usize) -> anyhow::Result<BTreeSet<String>> {
    let begun = Instant::now();
    let (mut seen, mut since) = (BTreeSet::new(), begun);
    loop {
        let now = reached(scene, side, service, SOME * 5).await?;
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > MERGED {
            return Ok(seen);
        }
        ensure!(begun.elapsed() < PATIENCE, "{side:?}: never the same endpoints twice: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_are_ejected_and_panic_begins_alike() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(SOME)?;
    let endpoints = cast.backends(SOME);
    for backend in &cast.troupe.backends[1..] {
        backend.does(Step::Status(503));
    }
    let mut cases = Vec::new();
    for (most, panic) in [
        (0, 0),
        (10, 0),
        (25, 0),
        (49, 0),
        (50, 0),
        (75, 0),
        (100, 0),
        (100, 20),
        (100, 25),
        (100, 26),
        (100, 50),
        (50, 50),
        (50, 51),
        (100, 100),
    ] {
        let traffic = format!("loadBalancer: {{type: RoundRobin, panicThreshold: {panic}}}");
        let breaker = format!("consecutiveFailures: 2, baseEjectionTime: 600s, maxEjectionPercent: {most}");
        let breaker = format!("endpoints: {{{breaker}}}");
        cases.push((cast.guarded(&endpoints, &traffic, &breaker)?, (most, panic)));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, _| {
            let (envoy, weft) =
                tokio::try_join!(left(&scene, Side::Envoy, service), left(&scene, Side::Weft, service))?;
            // Whose turn comes first is up to each; how many there are is not.
            ensure!(envoy.len() == weft.len(), "Envoy asks {envoy:?}, Weft {weft:?}");
            ensure!([envoy, weft].iter().all(|left| left.contains("b0")), "the good one is not asked");
            Ok(())
        })
        .await?;
    scene.exit().await
}

/// How long the first ejection lasts, and how often endpoints are looked at.
const BASE: Duration = Duration::from_millis(1500);
const INTERVAL: Duration = Duration::from_millis(200);
/// A busy machine may be late by this much.
const LATE: Duration = Duration::from_millis(2500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_ejected_returns_in_time() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let mut cases = Vec::new();
    // In units of the base: each ejection in a row is longer by it, up to a bound.
    for (most, lengths) in [("600s", [1, 2, 3]), ("3s", [1, 2, 2]), ("1500ms", [1, 1, 1])] {
        let (base, interval) = (BASE.as_millis(), INTERVAL.as_millis());
        let times = format!("baseEjectionTime: {base}ms, maxEjectionTime: {most}, interval: {interval}ms");
        let breaker = format!("endpoints: {{consecutiveFailures: 2, maxEjectionPercent: 100, {times}}}");
        cases.push((cast.guarded(&endpoint, "loadBalancer: {panicThreshold: 0}", &breaker)?, lengths));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, lengths| {
            let watch = async |side| {
                for (turn, length) in lengths.iter().enumerate() {
                    let mut begun = Instant::now();
                    for _ in 0..2 {
                        begun = Instant::now();
                        let told = scene.told(side, service, &post("503")).await?;
                        ensure!(told.attempts.len() == 1, "{side:?}, turn {turn}: {told:?}");
                    }
                    ejected(&scene, side, service).await?;
                    poll::until("it returns", PATIENCE, async || {
                        let told = scene.told(side, service, &get("404")).await?;
                        ensure!(told.attempts.len() == 1, "{told:?}");
                        anyhow::Ok(())
                    })
                    .await?;
                    let (gone, least) = (begun.elapsed(), BASE * *length);
                    let in_time = gone + EARLY >= least && gone < least + INTERVAL + LATE;
                    ensure!(in_time, "{side:?}, turn {turn}: returned after {gone:?}, not {least:?}");
                }
                anyhow::Ok(())
            };
            let (envoy, weft) = tokio::join!(watch(Side::Envoy), watch(Side::Weft));
            envoy.and(weft)
        })
        .await?;
    scene.exit().await
}

/// Envoy counts from when its event loop last woke up.
const EARLY: Duration = Duration::from_millis(50);

/// For as long as ratios are looked at: some intervals.
const RATIO_INTERVAL: Duration = Duration::from_millis(1000);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ratios_eject_alike() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(SOME + 1)?;
    let endpoints = cast.backends(SOME + 1);
    cast.troupe.backends[1].does(Step::Status(503));
    let mut cases = Vec::new();
    for (ratio, ejects) in [
        ("failurePercentage: {threshold: 50, minimumHosts: 3, requestVolume: 5}", true),
        ("failurePercentage: {threshold: 100, minimumHosts: 5, requestVolume: 5}", true),
        ("failurePercentage: {threshold: 50, minimumHosts: 6, requestVolume: 5}", false),
        ("failurePercentage: {threshold: 50, minimumHosts: 3, requestVolume: 100000}", false),
        ("successRate: {stdevFactor: 1.9, minimumHosts: 3, requestVolume: 5}", true),
        ("successRate: {stdevFactor: 2.1, minimumHosts: 3, requestVolume: 5}", false),
        ("successRate: {stdevFactor: 1.9, minimumHosts: 6, requestVolume: 5}", false),
    ] {
        let off = "consecutiveFailures: 0, consecutiveLocalOriginFailures: 0";
        let times = format!("interval: {}ms, baseEjectionTime: 600s", RATIO_INTERVAL.as_millis());
        let breaker = format!("endpoints: {{{off}, {times}, {ratio}}}");
        let traffic = "loadBalancer: {type: RoundRobin, panicThreshold: 0}";
        cases.push((cast.guarded(&endpoints, traffic, &breaker)?, (ratio, ejects)));
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, (_, ejects)| {
            let watch = async |side| {
                let begun = Instant::now();
                loop {
                    let out = reached(&scene, side, service, SOME * 5).await?.len() == SOME;
                    ensure!(!out || *ejects, "{side:?}: ejected");
                    if out || !ejects && begun.elapsed() > RATIO_INTERVAL * 4 {
                        return anyhow::Ok(());
                    }
                    ensure!(begun.elapsed() < PATIENCE, "{side:?}: not ejected");
                }
            };
            let (envoy, weft) = tokio::join!(watch(Side::Envoy), watch(Side::Weft));
            envoy.and(weft)
        })
        .await?;
    scene.exit().await
}
