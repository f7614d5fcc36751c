//! Retry policies and backends' moods, drawn from a seed.
//!
//! In: `WEFT_SEED`, or a seed of the moment. Out: nothing, or what the two did not do alike, and the seed. Invariant: a
//! seed makes the same objects and requests on every machine.

use anyhow::Context as _;
use fastrand::Rng;
use weft_tests::client::Ask;
use weft_tests::envoy;

use super::scene::{Cast, compare, grpc, post};

/// Policies for one seed, and requests for each.
const POLICIES: usize = 24;
const REQUESTS: usize = 10;

const ON: [&str; 10] = [
    "5xx",
    "gateway-error",
    "connect-failure",
    "reset",
    "retriable-status-codes",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];
const STATUSES: [u16; 8] = [400, 404, 409, 425, 429, 500, 503, 504];
const STEPS: [&str; 10] = ["200", "404", "409", "425", "500", "502", "503", "504", "reset", "broken"];
const GRPC_STEPS: [&str; 10] =
    ["200", "503", "reset", "broken", "grpc=1", "grpc=4", "grpc=8", "grpc=13", "grpc=14", "trailed=14"];

pub(super) fn some<T: Copy>(random: &mut Rng, from: &[T], most: usize) -> Vec<T> {
    let mut all = from.to_vec();
    random.shuffle(&mut all);
    all.truncate(random.usize(1..=most));
    all
}

/// The fields of a retry policy, without its braces.
pub(super) fn retry(random: &mut Rng) -> String {
    let mut fields = vec!["backoff: 1ms".to_owned()];
    if random.u8(..4) > 0 {
        fields.push(format!("attempts: {}", random.u8(..5)));
    }
    if random.u8(..4) > 0 {
        fields.push(format!("retryOn: [{}]", some(random, &ON, 3).join(", ")));
    }
    if random.bool() {
        let statuses: Vec<String> = some(random, &STATUSES, 3).iter().map(ToString::to_string).collect();
        fields.push(format!("statusCodes: [{}]", statuses.join(", ")));
    }
    fields.join(", ")
}

fn policy(random: &mut Rng) -> String {
    format!("{{timeouts: {{request: 10s}}, retry: {{{}}}}}", retry(random))
}

fn ask(random: &mut Rng) -> Ask {
    let in_grpc = random.bool();
    let steps = if in_grpc { GRPC_STEPS } else { STEPS };
    let plan: Vec<&str> = (0..random.usize(1..=6)).map(|_| steps[random.usize(..steps.len())]).collect();
    let plan = plan.join(",");
    if in_grpc { grpc(&plan) } else { Ask { h2: random.bool(), ..post(&plan) } }
}

/// The seed to go by.
pub(super) fn seed() -> u64 {
    let given = std::env::var("WEFT_SEED").ok();
    given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("WEFT_SEED is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_retry_policy_does_the_same_to_any_mood() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let mut cast = Cast::new(1)?;
    let endpoint = cast.backends(1);
    let mut cases = Vec::new();
    for _ in 0..POLICIES {
        let policy = policy(&mut random);
        let service = cast.service(&endpoint, &policy)?;
        cases.extend((0..REQUESTS).map(|_| (service, (policy.clone(), ask(&mut random)))));
    }
    let scene = cast.enter(binary).await?;
    let compared =
        scene.all(cases, async |service, (_, ask)| compare(&scene.both(service, ask).await?)).await;
    compared.with_context(|| format!("WEFT_SEED={seed} makes it again"))?;
    scene.exit().await
}
