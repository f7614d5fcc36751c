//! Numbers that one thread writes and another reads.
//!
//! Invariant: each cell has one writer, so adding is a load and a store, not a locked instruction; on the
//! request path that is the difference between one and twenty cycles. Readers see every value some time later
//! and never a torn one; two cells read together may be one event apart, which the next reading mends, because
//! readers always take differences. Surprise: a histogram has no count of its own; the count is the sum of its
//! buckets, so count and buckets cannot disagree.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use weft_wire::histogram::{self, BOUNDS_SECONDS, BUCKETS, EXPONENT_MIN, SCALE};

/// A sum that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds; only on the writing thread.
    pub(crate) fn add(&self, value: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
    }

    /// The sum so far.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Number of explicit buckets: one more than bounds.
pub(crate) const EXPLICIT: usize = BOUNDS_SECONDS.len() + 1;

/// Exponential buckets are allocated by this many, which is two octaves: requests of one route seldom spread
/// over more than three such chunks, so a histogram is about 1 kB and not 3.5.
const CHUNK: usize = 32;

/// Chunks of a complete histogram.
const CHUNKS: usize = BUCKETS / CHUNK;
const _: () = assert!(CHUNKS * CHUNK == BUCKETS);

/// Durations in both shapes: explicit buckets for `/metrics`, exponential ones for reports.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    explicit: [Counter; EXPLICIT],
    sum_nanos: Counter,
    exponential: [OnceLock<Box<[Counter; CHUNK]>>; CHUNKS],
}

impl Histogram {
    /// Adds a duration; only on the writing thread. Allocates when it opens a chunk, which is rare.
    pub(crate) fn record(&self, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.explicit[explicit_bucket(nanos)].add(1);
        self.sum_nanos.add(nanos);
        let bucket = exponential_bucket(nanos);
        self.exponential[bucket / CHUNK].get_or_init(Box::default)[bucket % CHUNK].add(1);
    }

    /// How many durations there have been. Cheap enough to ask of every series every second.
    pub(crate) fn count(&self) -> u64 {
        self.explicit.iter().map(Counter::get).sum()
    }

    /// Adds what is here to `totals`.
    pub(crate) fn add_to(&self, totals: &mut Totals) {
        for (total, cell) in totals.explicit.iter_mut().zip(&self.explicit) {
            *total += cell.get();
        }
        totals.sum_nanos += self.sum_nanos.get();
        for (total, chunk) in totals.exponential.iter_mut().zip(&self.exponential) {
            let Some(chunk) = chunk.get() else { continue };
            for (total, cell) in total.get_or_insert_default().iter_mut().zip(chunk.iter()) {
                *total += cell.get();
            }
        }
    }
}

/// What histograms held at some time, added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) explicit: [u64; EXPLICIT],
    pub(crate) sum_nanos: u64,
    exponential: [Option<Box<[u64; CHUNK]>>; CHUNKS],
}

impl Totals {
    pub(crate) fn count(&self) -> u64 {
        self.explicit.iter().sum()
    }

    /// Adds `other`.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (total, more) in self.explicit.iter_mut().zip(&other.explicit) {
            *total += more;
        }
        self.sum_nanos += other.sum_nanos;
        for (total, more) in self.exponential.iter_mut().zip(&other.exponential) {
            let Some(more) = more else { continue };
            for (total, more) in total.get_or_insert_default().iter_mut().zip(more.iter()) {
                *total += more;
            }
        }
    }

    /// Buckets that grew since `before`: the index of the first and the counts up to the last, or `None` when
    /// none did.
    pub(crate) fn since(&self, before: &Self) -> Option<Growth> {
        let nothing = [0; CHUNK];
        let mut counts: Vec<u64> = Vec::new();
        let mut first = 0;
        // Zeros seen behind the last count; they are written only if another count follows.
        let mut gap = 0;
        for chunk in 0..CHUNKS {
            let Some(now) = &self.exponential[chunk] else {
                gap += CHUNK;
                continue;
            };
            let then = before.exponential[chunk].as_deref().unwrap_or(&nothing);
            for (bucket, (now, then)) in now.iter().zip(then).enumerate() {
                let delta = now - then;
                if delta == 0 {
                    gap += 1;
                    continue;
                }
                if counts.is_empty() {
                    first = chunk * CHUNK + bucket;
                } else {
                    counts.resize(counts.len() + gap, 0);
                }
                gap = 0;
                counts.push(delta);
            }
        }
        if counts.is_empty() {
            return None;
        }
        let count = counts.iter().sum();
        let sum_nanos = self.sum_nanos.saturating_sub(before.sum_nanos);
        Some(Growth { offset: first as i32 + LOWEST, counts, count, sum_nanos })
    }
}

/// The difference of two [`Totals`] as a report carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Growth {
    /// Index of the first bucket, as `wire::histogram` counts.
    pub(crate) offset: i32,
    /// Counts per bucket from `offset`; neither first nor last is zero.
    pub(crate) counts: Vec<u64>,
    /// Their sum.
    pub(crate) count: u64,
    /// Sum of the durations.
    pub(crate) sum_nanos: u64,
}

/// Index of the lowest exponential bucket, as `wire::histogram` counts.
const LOWEST: i32 = EXPONENT_MIN << SCALE;

/// The bounds of `/metrics` in nanoseconds; all of them are whole.
static BOUNDS_NANOS: LazyLock<[u64; BOUNDS_SECONDS.len()]> =
    LazyLock::new(|| BOUNDS_SECONDS.map(|bound| (bound * 1e9).round() as u64));

fn explicit_bucket(nanos: u64) -> usize {
    // Without a branch per bound: sixteen comparisons are four vector instructions.
    BOUNDS_NANOS.iter().map(|&bound| usize::from(nanos > bound)).sum()
}

/// Steps per octave of [`Ladder::start`]; a step (3.1 %) is narrower than a bucket (4.4 %), so that at most two
/// buckets meet in one.
const STEPS: usize = 32;

/// Finds a bucket without a logarithm.
struct Ladder {
    /// The longest duration of each bucket, in nanoseconds.
    longest: [u64; BUCKETS],
    /// The bucket of the shortest duration in each step of each octave.
    start: [[u16; STEPS]; 64],
}

static LADDER: LazyLock<Box<Ladder>> = LazyLock::new(|| {
    let position = |nanos: u64| (histogram::bucket(nanos as f64 / 1e9) - LOWEST) as usize;
    let mut ladder = Box::new(Ladder { longest: [u64::MAX; BUCKETS], start: [[0; STEPS]; 64] });
    for (bucket, longest) in ladder.longest.iter_mut().enumerate().take(BUCKETS - 1) {
        // The exact bound may be off by one, as floating point is: the shared function decides.
        let mut nanos = (histogram::upper_bound(bucket as i32 + LOWEST) * 1e9) as u64 + 2;
        while position(nanos) > bucket {
            nanos -= 1;
        }
        *longest = nanos;
    }
    for octave in 0..64 {
        for step in 0..STEPS {
            let nanos = 1 << octave | ((step as u128) << octave >> 5) as u64;
            ladder.start[octave][step] = position(nanos) as u16;
        }
    }
    ladder
});

/// The bucket of `wire::histogram::bucket`, counted from zero.
fn exponential_bucket(nanos: u64) -> usize {
    let ladder = &**LADDER;
    let nanos = nanos.max(1);
    let octave = 63 - nanos.leading_zeros() as usize;
    let step = (nanos << (63 - octave) >> (63 - 5)) as usize % STEPS;
    let mut bucket = usize::from(ladder.start[octave][step]);
    while nanos > ladder.longest[bucket] {
        bucket += 1;
    }
    bucket
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expected(nanos: u64) -> usize {
        (histogram::bucket(nanos as f64 / 1e9) - LOWEST) as usize
    }

    #[test]
    fn around_every_bound_the_fast_bucket_is_the_shared_one() {
        for bucket in 0..BUCKETS {
            let bound = (histogram::upper_bound(bucket as i32 + LOWEST) * 1e9) as u64;
            for nanos in bound.saturating_sub(3)..bound + 4 {
                assert_eq!(exponential_bucket(nanos), expected(nanos), "{nanos} ns");
            }
        }
        for power in 0..64 {
            for nanos in [(1_u64 << power) - 1, 1 << power, (1 << power) + 1] {
                assert_eq!(exponential_bucket(nanos), expected(nanos), "{nanos} ns");
            }
        }
        for nanos in [0, u64::MAX] {
            assert_eq!(exponential_bucket(nanos), expected(nanos), "{nanos} ns");
        }
    }

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        for (index, bound) in BOUNDS_SECONDS.iter().enumerate() {
            let nanos = (bound * 1e9).round() as u64;
            assert_eq!(explicit_bucket(nanos), index);
            assert_eq!(explicit_bucket(nanos + 1), index + 1);
        }
        assert_eq!(explicit_bucket(0), 0);
    }

    proptest! {
        #[test]
        fn the_fast_bucket_is_the_shared_one(exponent in 0_u32..40, mantissa in any::<u64>()) {
            let nanos = (1 << exponent) | (mantissa & ((1 << exponent) - 1));
            prop_assert_eq!(exponential_bucket(nanos), expected(nanos));
        }

        #[test]
        fn growth_is_what_was_recorded_in_between(
            before in proptest::collection::vec(1_u64..1_000_000_000_000, 0..30),
            after in proptest::collection::vec(1_u64..1_000_000_000_000, 0..30),
        ) {
            let histogram = Histogram::default();
            let read = || { let mut totals = Totals::default(); histogram.add_to(&mut totals); totals };
            before.iter().for_each(|&nanos| histogram.record(Duration::from_nanos(nanos)));
            let then = read();
            after.iter().for_each(|&nanos| histogram.record(Duration::from_nanos(nanos)));
            let now = read();
            prop_assert_eq!(now.count(), (before.len() + after.len()) as u64);
            prop_assert_eq!(histogram.count(), now.count());
            match now.since(&then) {
                None => prop_assert!(after.is_empty()),
                Some(growth) => {
                    prop_assert_eq!(growth.count, after.len() as u64);
                    prop_assert_eq!(growth.sum_nanos, after.iter().sum::<u64>());
                    prop_assert!(growth.counts[0] > 0 && growth.counts[growth.counts.len() - 1] > 0);
                    for &nanos in &after {
                        let index = histogram::bucket(nanos as f64 / 1e9) - growth.offset;
                        prop_assert!(growth.counts[index as usize] > 0);
                    }
                }
            }
        }
    }
}
