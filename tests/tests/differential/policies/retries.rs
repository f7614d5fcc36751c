//! What is tried again, how often, where, and after which pause.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use weft_tests::client::Ask;
use weft_tests::envoy;

use super::scene::{Cast, compare, get, grpc, post};

/// Conditions and the words that a policy has for them.
const CONDITIONS: [&str; 13] = [
    "",
    "retryOn: [5xx], ",
    "retryOn: [gateway-error], ",
    "retryOn: [connect-failure], ",
    "retryOn: [reset], ",
    "retryOn: [retriable-status-codes], statusCodes: [409, 425, 500], ",
    "retryOn: [connect-failure], statusCodes: [503], ",
    "retryOn: [cancelled], ",
    "retryOn: [deadline-exceeded], ",
    "retryOn: [internal], ",
    "retryOn: [resource-exhausted], ",
    "retryOn: [unavailable], ",
    "retryOn: [unavailable, reset, 5xx], ",
];

/// What a backend does at first, before it recovers.
const PLANS: [&str; 13] = [
    "500,200",
    "501,200",
    "502,200",
    "503,200",
    "504,200",
    "409,200",
    "425,200",
    "429,200",
    "limited=429,200",
    "limited=503,200",
    "reset,200",
    "broken,200",
    "hang,200",
];

const GRPC_PLANS: [&str; 11] = [
    "grpc=1,200",
    "grpc=2,200",
    "grpc=4,200",
    "grpc=8,200",
    "grpc=13,200",
    "grpc=14,200",
    "trailed=14,200",
    "503,200",
    "reset,200",
    "broken,200",
    "hang,200",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_ends_are_tried_again() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let mut cases = Vec::new();
    for condition in CONDITIONS {
        let spec = format!("retry: {{{condition}attempts: 2, backoff: 1ms, perTryTimeout: 1500ms}}");
        let service = cast.service(&endpoint, &spec)?;
        let http = PLANS.map(|plan| (service, (condition, post(plan))));
        let h2 = PLANS.map(|plan| (service, (condition, Ask { h2: true, ..post(plan) })));
        let grpc = GRPC_PLANS.map(|plan| (service, (condition, grpc(plan))));
        cases.extend(http.into_iter().chain(h2).chain(grpc));
    }
    let scene = cast.enter(binary).await?;
    scene.all(cases, async |service, (_, ask)| compare(&scene.both(service, ask).await?)).await?;
    scene.exit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_are_as_many_and_go_elsewhere() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(3)?;
    let mut cases = Vec::new();
    for endpoints in [1, 2, 3] {
        let backends = cast.backends(endpoints);
        for attempts in ["", "attempts: 0, ", "attempts: 1, ", "attempts: 2, ", "attempts: 5, "] {
            let spec = format!("{{loadBalancer: {{type: RoundRobin}}, retry: {{{attempts}backoff: 1ms}}}}");
            let service = cast.service(&backends, &spec)?;
            for plan in ["200", "503", "503,200", "503,502,504,200", "503,503,503,503,503,503,200", "503,404"]
            {
                cases.push((service, (endpoints, spec.clone(), post(plan))));
                cases.push((service, (endpoints, spec.clone(), get(plan))));
            }
        }
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, (endpoints, _, ask)| {
            let told = scene.both(service, ask).await?;
            compare(&told)?;
            for told in &told {
                let first: Vec<&str> = told.backends().into_iter().take(*endpoints).collect();
                let different: HashSet<&str> = first.iter().copied().collect();
                ensure!(different.len() == first.len(), "asked twice before all were asked: {told:?}");
            }
            Ok(())
        })
        .await?;
    scene.exit().await
}

/// An address where nobody listens: bound, so that nobody else gets it, but never listened on.
pub(super) fn nobody() -> anyhow::Result<(socket2::Socket, SocketAddr)> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    let address = socket.local_addr()?.as_socket().ok_or_else(|| anyhow::anyhow!("no address"))?;
    Ok((socket, address))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_do_not_accept_are_passed_over() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let (_bound, dead) = nobody()?;
    let alive = cast.backends(1)[0];
    let spec = |on: &str| {
        format!(
            "{{loadBalancer: {{type: RoundRobin}}, retry: {{attempts: 2, retryOn: [{on}], backoff: 1ms}}}}"
        )
    };
    let mut cases = Vec::new();
    for on in ["connect-failure", "5xx", "gateway-error", "reset"] {
        cases.push((cast.service(&[dead, alive], &spec(on))?, (on, Some(200))));
        cases.push((cast.service(&[dead], &spec(on))?, (on, None)));
    }
    // No policy at all.
    cases.push((cast.service(&[dead], "")?, ("", None)));
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, (_, status)| {
            for ask in [get("200"), post("200"), grpc("200"), post("200")] {
                let told = scene.both(service, &ask).await?;
                compare(&told)?;
                if let Some(status) = status {
                    ensure!(told.iter().all(|told| told.status() == Some(*status)), "{told:?}");
                }
            }
            Ok(())
        })
        .await?;
    scene.exit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_sent_again_whole_or_not_at_all() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(2)?;
    let endpoints = cast.backends(2);
    let service = cast.service(&endpoints, "retry: {attempts: 2, retryOn: [5xx], backoff: 1ms}")?;
    let mut cases = Vec::new();
    // Above and below what is kept, 64 KiB, by more than what keeping costs.
    for (size, attempts) in [(1, 3), (20_000, 3), (60_000, 3), (70_000, 1), (300_000, 1)] {
        for h2 in [false, true] {
            for pause in [0, 50] {
                let pause = Duration::from_millis(pause);
                let ask = Ask { body: Bytes::from(vec![b'x'; size]), h2, pause, ..post("503,503,200") };
                cases.push((service, NoBody((size, h2, pause, attempts, ask))));
            }
        }
    }
    let scene = cast.enter(binary).await?;
    scene
        .all(cases, async |service, NoBody((size, _, _, attempts, ask))| {
            let told = scene.both(service, ask).await?;
            compare(&told)?;
            for told in &told {
                ensure!(told.attempts.len() == *attempts, "{} attempts", told.attempts.len());
                ensure!(told.attempts.iter().all(|attempt| attempt.body() == *size), "{told:?}");
            }
            Ok(())
        })
        .await?;
    scene.exit().await
}

/// A case that does not print its body.
struct NoBody((usize, bool, Duration, usize, Ask));

impl std::fmt::Debug for NoBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (size, h2, pause, ..) = &self.0;
        write!(f, "{size} bytes, h2 {h2}, pause {pause:?}")
    }
}

/// Bound of the first pause, of all further ones, and how many requests are looked at.
const PAUSES: (u64, u64, u32) = (400, 600, 50);
const PAUSED_SERVICES: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_are_drawn_below_a_growing_bound() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let (base, max, requests) = PAUSES;
    let spec = format!("retry: {{attempts: 3, retryOn: [5xx], backoff: {base}ms, backoffMax: {max}ms}}");
    // Side by side, and each within its own retry budget.
    let services: Vec<usize> =
        (0..PAUSED_SERVICES).map(|_| cast.service(&endpoint, &spec)).collect::<anyhow::Result<_>>()?;
    let scene = cast.enter(binary).await?;
    let cases = services.iter().cycle().copied().zip(0..requests);
    let gaps = std::sync::Mutex::new([(); 2].map(|()| [(); 3].map(|()| Vec::new())));
    scene
        .all(cases, async |service, _| {
            let told = scene.both(service, &post("503")).await?;
            compare(&told)?;
            let mut gaps = gaps.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (gaps, told) in gaps.iter_mut().zip(&told) {
                for (gaps, pair) in gaps.iter_mut().zip(told.reached.windows(2)) {
                    gaps.push(pair[1].1.duration_since(pair[0].1));
                }
            }
            Ok(())
        })
        .await?;
    scene.exit().await?;
    let gaps = gaps.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (side, gaps) in ["Envoy", "Weft"].into_iter().zip(gaps) {
        for (retry, (gaps, bound)) in gaps.into_iter().zip([base, max, max]).enumerate() {
            assert_eq!(gaps.len(), requests as usize, "{side}");
            let mean = gaps.iter().sum::<Duration>().as_secs_f64() * 1e3 / f64::from(requests);
            // Uniform in 0..bound; five standard deviations, and what a busy machine adds to each.
            let deviation = 5.0 * bound as f64 / 12_f64.sqrt() / f64::from(requests).sqrt();
            let expected = bound as f64 / 2.0;
            assert!(
                mean > expected - deviation && mean < expected + deviation + 60.0,
                "{side}, retry {retry}: {mean} ms, not {expected} ± {deviation}"
            );
        }
    }
    Ok(())
}
