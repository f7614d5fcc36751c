//! Local rate limits: token buckets that all workers share.
//!
//! In: the caller's address and the time. Out: whether the request may go on. [`TokenBucket`] is the pure core: it
//! knows one number, the moment at which the bucket was empty, and refills continuously, as Envoy's does. A
//! [`RateLimit`] is what a route carries: one bucket for everybody, and one for each caller.
//!
//! Invariants: taking is one compare-and-swap, no lock; there are as many callers' buckets as the policy says, and
//! a bucket is given up for another caller only when no other place is left, fullest first: a full one is exactly what
//! a new caller would get. Surprise: because a bucket is one number, a worker that loses the race just looks again.
//! Non-goal: limits across sidecars.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::route::fraction::Fraction;

/// Callers with a bucket of their own, at most, whatever the policy says: 16 bytes each, 64 kB for a route.
pub const CALLERS_MAX: usize = 4096;

/// Places that one caller's bucket may be in. Eight neighbours are two cache lines, and nearly fill a table before the
/// first caller has to share.
const WAYS: usize = 8;

/// A rate and a burst.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenBucket {
    max: f64,
    /// Tokens per second.
    rate: f64,
}

impl TokenBucket {
    /// At most `max` tokens, `fill` more every `interval`. `None` when it could never hold a token or never gets one.
    #[must_use]
    pub fn new(max: u32, fill: u32, interval: Duration) -> Option<Self> {
        let rate = f64::from(fill) / interval.as_secs_f64();
        (max > 0 && fill > 0 && rate.is_finite()).then_some(Self { max: f64::from(max), rate })
    }

    /// Tokens at `now` in a bucket that was empty at `empty_at`; both in seconds.
    #[must_use]
    pub fn tokens(&self, empty_at: f64, now: f64) -> f64 {
        ((now - empty_at) * self.rate).clamp(0.0, self.max)
    }

    /// Takes a token: the moment at which the bucket would now have been empty, or `None` when there is none.
    #[must_use]
    pub fn take(&self, empty_at: f64, now: f64) -> Option<f64> {
        let tokens = self.tokens(empty_at, now);
        // A rounding error must not cost the token that has just dripped in.
        (tokens >= 1.0 - TOKEN_EPSILON).then(|| now - (tokens - 1.0).max(0.0) / self.rate)
    }

    /// When a bucket that is full at `now` would have been empty.
    #[must_use]
    pub fn full(&self, now: f64) -> f64 {
        now - self.max / self.rate
    }
}

/// A thousandth of a token: far above rounding errors (2⁻⁵² of months in seconds, times a million tokens a second), far
/// below what anybody could gain.
const TOKEN_EPSILON: f64 = 1e-3;

/// One number shared by threads.
#[derive(Debug)]
struct Level(AtomicU64);

impl Level {
    fn new(empty_at: f64) -> Self {
        Self(AtomicU64::new(empty_at.to_bits()))
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, empty_at: f64) {
        self.0.store(empty_at.to_bits(), Ordering::Relaxed);
    }

    fn take(&self, bucket: &TokenBucket, now: f64) -> bool {
        let update = |bits| bucket.take(f64::from_bits(bits), now).map(f64::to_bits);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).is_ok()
    }
}

/// Why a request may not go on, or that it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It may.
    Token,
    /// It may; another caller's bucket, not yet full again, was given up for its own.
    Evicted,
    /// It may not.
    None,
}

/// A route's rate limit.
#[derive(Debug)]
pub struct RateLimit {
    /// What seconds are counted from.
    epoch: Instant,
    everybody: Option<(TokenBucket, Level)>,
    callers: Option<Callers>,
    status: StatusCode,
    enabled: Fraction,
}

impl RateLimit {
    /// One bucket for all callers together, and one for each caller, in a table for `callers` of them. A refused
    /// request is answered with `status`; `enabled` is the share of requests that is looked at.
    #[must_use]
    pub fn new(
        everybody: Option<TokenBucket>,
        caller: Option<(TokenBucket, usize)>,
        status: StatusCode,
        enabled: Fraction,
        now: Instant,
    ) -> Self {
        let full = |bucket: TokenBucket| (bucket, Level::new(bucket.full(0.0)));
        Self {
            epoch: now,
            everybody: everybody.map(full),
            callers: caller.map(|(bucket, callers)| Callers::new(bucket, callers)),
            status,
            enabled,
        }
    }

    /// Takes a token for one request; `draw` decides whether this one is looked at.
    #[must_use]
    pub fn take(&self, caller: IpAddr, now: Instant, draw: u64) -> Taken {
        if !self.enabled.holds(draw) {
            return Taken::Token;
        }
        let now = now.saturating_duration_since(self.epoch).as_secs_f64();
        // The caller's own first: who is over its share takes nothing from the others.
        let own = self.callers.as_ref().map_or(Taken::Token, |callers| callers.take(caller, now));
        match &self.everybody {
            Some((bucket, level)) if own != Taken::None && !level.take(bucket, now) => Taken::None,
            _ => own,
        }
    }

    /// The status of a refusal.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

/// A bucket for each caller: a table with [`WAYS`] places for each.
#[derive(Debug)]
struct Callers {
    bucket: TokenBucket,
    hasher: RandomState,
    places: Box<[Place]>,
}

#[derive(Debug)]
struct Place {
    /// Hash of the caller's address; 0: nobody's.
    caller: AtomicU64,
    level: Level,
}

impl Callers {
    fn new(bucket: TokenBucket, callers: usize) -> Self {
        let count = callers.clamp(1, CALLERS_MAX).next_multiple_of(WAYS);
        let place = || Place { caller: AtomicU64::new(0), level: Level::new(bucket.full(0.0)) };
        Self {
            bucket,
            hasher: RandomState::new(),
            places: std::iter::repeat_with(place).take(count).collect(),
        }
    }

    fn take(&self, caller: IpAddr, now: f64) -> Taken {
        // Sixty-four bits with a secret seed: two callers that share one do so by accident, once in 10¹² tables.
        let hash = self.hasher.hash_one(caller).max(1);
        let (sets, _) = self.places.as_chunks::<WAYS>();
        let Some(set) = sets.get(hash as usize % sets.len()) else { return Taken::Token };
        let mut evicted = false;
        let place = match set.iter().find(|place| place.caller.load(Ordering::Relaxed) == hash) {
            Some(own) => own,
            None => {
                let fullest = set.iter().min_by(|a, b| a.level.get().total_cmp(&b.level.get()));
                let Some(place) = fullest else { return Taken::Token };
                evicted = self.bucket.tokens(place.level.get(), now) + TOKEN_EPSILON < self.bucket.max;
                // Two workers may meet here; whoever comes last owns the place, and the other looks for one again with
                // its next request.
                place.caller.store(hash, Ordering::Relaxed);
                place.level.set(self.bucket.full(now));
                place
            }
        };
        match place.level.take(&self.bucket, now) {
            true if evicted => Taken::Evicted,
            true => Taken::Token,
            false => Taken::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(last: u16) -> IpAddr {
        IpAddr::from([10, 0, (last >> 8) as u8, last as u8])
    }

    fn limit(everybody: Option<u32>, caller: Option<(u32, usize)>, now: Instant) -> RateLimit {
        let bucket = |max| TokenBucket::new(max, max, Duration::from_secs(1)).unwrap();
        RateLimit::new(
            everybody.map(bucket),
            caller.map(|(max, callers)| (bucket(max), callers)),
            StatusCode::TOO_MANY_REQUESTS,
            Fraction::ALL,
            now,
        )
    }

    #[test]
    fn a_burst_is_served_and_then_the_rate() {
        let begin = Instant::now();
        let limit = limit(Some(10), None, begin);
        let taken = |at: u64| limit.take(ip(1), begin + Duration::from_millis(at), 0) != Taken::None;
        assert_eq!((0..20).filter(|_| taken(0)).count(), 10);
        assert!(!taken(99));
        assert!(taken(100));
        assert!(!taken(150));
        assert!(taken(200));
        assert_eq!((0..20).filter(|_| taken(5_000)).count(), 10, "no more than a burst, however long it was");
    }

    #[test]
    fn each_caller_has_its_own_and_all_have_one() {
        let begin = Instant::now();
        let limit = limit(Some(5), Some((3, 100)), begin);
        let taken = |caller| limit.take(ip(caller), begin, 0) != Taken::None;
        assert_eq!((0..10).filter(|_| taken(1)).count(), 3);
        assert_eq!(
            (0..10).filter(|_| taken(2)).count(),
            2,
            "what the first was refused cost nobody anything"
        );
    }

    #[test]
    fn callers_beyond_the_table_take_the_place_of_the_fullest() {
        let begin = Instant::now();
        let limit = limit(None, Some((2, WAYS)), begin);
        for caller in 0..WAYS as u16 {
            assert_eq!(limit.take(ip(caller), begin, 0), Taken::Token);
        }
        assert_eq!(limit.take(ip(100), begin, 0), Taken::Evicted);
        let later = begin + Duration::from_secs(10);
        assert_eq!(limit.take(ip(101), later, 0), Taken::Token, "a full bucket is nobody's loss");
    }

    #[test]
    fn what_can_never_be_is_no_bucket() {
        assert_eq!(TokenBucket::new(0, 1, Duration::from_secs(1)), None);
        assert_eq!(TokenBucket::new(1, 0, Duration::from_secs(1)), None);
        assert_eq!(TokenBucket::new(1, 1, Duration::ZERO), None);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(
            max in 1_u32..50, fill in 1_u32..50, interval in 1_u64..5_000,
            steps in proptest::collection::vec(0_u64..400, 1..200),
        ) {
            let bucket = TokenBucket::new(max, fill, Duration::from_millis(interval)).unwrap();
            let mut empty_at = bucket.full(0.0);
            let (mut now, mut taken) = (0_u64, 0.0);
            for step in steps {
                now += step;
                let seconds = now as f64 / 1e3;
                if let Some(next) = bucket.take(empty_at, seconds) {
                    empty_at = next;
                    taken += 1.0;
                }
                let most = f64::from(max) + seconds * f64::from(fill) * 1e3 / interval as f64;
                prop_assert!(taken <= most + 0.5, "{taken} of {most}");
            }
        }
    }
}
