//! Breakers, balancer and endpoint updates together, driven by seeds on a virtual clock.
//!
//! In: a seed. It makes a policy, servers that come, go, fail, recover and slow down, and callers that retry and give up, all
//! in an order of its own ([`story`]). Out: nothing, or the first promise that was broken ([`rules`]). No socket, no sleep
//! and no thread: what a sidecar does at that moment is called here one after the other, as two workers and the admin
//! thread would. Invariant: a seed always tells the same story; one that fails prints itself and is told again with
//! `WEFT_SEED=… cargo test -p weft-tests --test simulation`.
//! Non-goal: what happens when threads do things at the same moment, which is tested beside the atomics.

mod policy;
mod rules;
mod story;

use std::time::{SystemTime, UNIX_EPOCH};

/// Seeds that are told in every run.
const SEEDS: u64 = 256;

/// Seeds that no run has seen before.
const FRESH: u64 = 32;

#[test]
fn promises_are_kept_whatever_happens() {
    let seeds: Vec<u64> = match std::env::var("WEFT_SEED") {
        Ok(seed) => vec![seed.parse().expect("WEFT_SEED is a number")],
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            let fresh = now.as_micros() as u64;
            (0..SEEDS).chain((fresh..).take(FRESH as usize)).collect()
        }
    };
    let mut told = story::Told::default();
    for &seed in &seeds {
        match std::panic::catch_unwind(|| story::tell(seed)) {
            Ok(story) => told.add(story),
            Err(_) => panic!(
                "seed {seed} failed, see above; again: WEFT_SEED={seed} cargo test -p weft-tests --test simulation"
            ),
        }
    }
    say(seeds.len(), &told);
    if seeds.len() > 1 {
        told.has_everything();
    }
}

#[expect(clippy::print_stdout, reason = "shown by --nocapture")]
fn say(seeds: usize, told: &story::Told) {
    println!("{seeds} seeds: {told:?}");
}
