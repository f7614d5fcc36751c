//! What a rule says of its own accord: how much to admit, what to answer instead of an app.
//!
//! In: what the parser read. Out: plain values, ready to be asked. Nothing here acts; [`crate::policy`] does, and has the
//! values of its own kinds there.

use std::ops::Deref;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;

use super::fraction::Fraction;
use crate::policy::limit::{self, TokenBucket};

/// A rate limit as configured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitSpec {
    /// For all requests together.
    pub everybody: Option<TokenBucket>,
    /// For each caller's address, and how many callers are told apart.
    pub caller: Option<(TokenBucket, usize)>,
    /// The status of a refusal.
    pub status: StatusCode,
    /// The share of requests that is looked at.
    pub enabled: Fraction,
}

/// A rate limit with its tokens. It lives as long as its rule does, whatever becomes of the rule's clusters; another
/// configuration begins with full buckets, as in Envoy.
#[derive(Debug)]
pub struct RateLimit {
    spec: LimitSpec,
    tokens: limit::RateLimit,
}

impl RateLimit {
    /// Full buckets.
    #[must_use]
    pub fn new(spec: LimitSpec, now: Instant) -> Self {
        let LimitSpec { everybody, caller, status, enabled } = spec;
        Self { spec, tokens: limit::RateLimit::new(everybody, caller, status, enabled, now) }
    }
}

/// Equal when configured alike, whatever was taken.
impl PartialEq for RateLimit {
    fn eq(&self, other: &Self) -> bool {
        self.spec == other.spec
    }
}

/// The tokens: `limit.take(…)`.
impl Deref for RateLimit {
    type Target = limit::RateLimit;
    fn deref(&self) -> &limit::RateLimit {
        &self.tokens
    }
}

/// A concurrency limit that follows the latency, as Envoy's gradient controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gradient {
    /// Which latency of a sample stands for it, in thousandths: 500 is the median.
    pub percentile_per_mille: u16,
    /// The highest limit.
    pub limit_max: u32,
    /// How often the limit is set anew.
    pub update_interval: Duration,
    /// Where the latency of an idle service comes from.
    pub min_rtt: MinRtt,
    /// The limit while the latency of an idle service is measured, and the lowest at all.
    pub limit_min: u32,
    /// How much latency may vary before the limit falls, in thousandths of the idle latency.
    pub buffer_per_mille: u16,
    /// The status of a refusal.
    pub status: StatusCode,
}

/// The latency of a service that has nothing else to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinRtt {
    /// Known.
    Fixed(Duration),
    /// Measured now and then.
    Measured {
        /// How often.
        interval: Duration,
        /// Requests of one measurement.
        requests: u32,
        /// How much the interval varies, in thousandths of itself.
        jitter_per_mille: u16,
    },
}

/// The proxy's own answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Direct {
    /// Its status.
    pub status: StatusCode,
    /// Its body, as plain text unless the rule's headers say otherwise.
    pub body: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::limit::Taken;

    #[test]
    fn a_limit_is_what_it_was_configured_as() {
        let now = Instant::now();
        let spec = LimitSpec {
            everybody: TokenBucket::new(1, 1, Duration::from_secs(3600)),
            caller: None,
            status: StatusCode::TOO_MANY_REQUESTS,
            enabled: Fraction::ALL,
        };
        let (used, fresh) = (RateLimit::new(spec, now), RateLimit::new(spec, now));
        let caller = [10, 0, 0, 1].into();
        assert_eq!((used.take(caller, now, 0), used.take(caller, now, 0)), (Taken::Token, Taken::None));
        assert_eq!(used, fresh);
        assert_ne!(used, RateLimit::new(LimitSpec { enabled: Fraction::NONE, ..spec }, now));
    }
}
