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

/// Names the seed when its story ends badly.
struct Teller(u64);

impl Drop for Teller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "seed {seed} failed; again: WEFT_SEED={seed} cargo test -p weft-tests --test simulation"
            );
        }
    }
}

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
        let _teller = Teller(seed);
        told.add(story::tell(seed));
    }
    println!("{} seeds: {told:?}", seeds.len());
    if seeds.len() > 1 {
        told.has_everything();
    }
}
