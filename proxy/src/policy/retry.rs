//! Which ends of an attempt are worth another one, how many there may be, and how long to wait in between.
//!
//! In: a policy as compiled from xDS, and how an attempt ended. Out: yes or no, and a pause. Pure: randomness is an
//! argument. The meaning of every condition is that of Envoy's router, so that one policy does the same in both.
//!
//! Invariant: an answer that began to be passed on is never an [`Ended`], so nothing here can retry it. Surprises:
//! `5xx` and `gateway-error` also cover attempts that ended without any answer, as in Envoy; the first pause is drawn
//! from zero to the base, not from the base upwards. Non-goals: the budget (`balance`), the body (`http::body`).

use std::time::Duration;

use http::StatusCode;

use crate::http::class::GrpcStatus;

/// Pause before the first retry at most, where nothing is said. Envoy's.
pub const BACKOFF_BASE: Duration = Duration::from_millis(25);

/// The longest pause in units of the base, where nothing is said. Envoy's.
pub const BACKOFF_MAX_FACTOR: u32 = 10;

macro_rules! conditions {
    ($($(#[$doc:meta])+ $name:ident = $bit:literal $word:literal,)+) => {
        impl RetryOn {
            $($(#[$doc])+ pub const $name: Self = Self(1 << $bit);)+

            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$name),)+];
        }
    };
}

/// A set of conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(u16);

conditions! {
    /// Any 5xx, or no answer at all.
    SERVER_ERROR = 0 "5xx",
    /// 502, 503 or 504, or no answer at all.
    GATEWAY_ERROR = 1 "gateway-error",
    /// The endpoint could not be connected to.
    CONNECT_FAILURE = 2 "connect-failure",
    /// The endpoint did not answer: connection closed, stream reset, attempt timed out.
    RESET = 3 "reset",
    /// As [`RESET`](Self::RESET), if nothing of the request was sent.
    RESET_BEFORE_REQUEST = 4 "reset-before-request",
    /// The endpoint refused the stream (HTTP/2 `REFUSED_STREAM`).
    REFUSED_STREAM = 5 "refused-stream",
    /// 409, the one 4xx that a second attempt can mend.
    RETRIABLE_4XX = 6 "retriable-4xx",
    /// A status that the policy lists.
    STATUS_CODES = 7 "retriable-status-codes",
    /// gRPC status 1.
    CANCELLED = 8 "cancelled",
    /// gRPC status 4.
    DEADLINE_EXCEEDED = 9 "deadline-exceeded",
    /// gRPC status 8.
    RESOURCE_EXHAUSTED = 10 "resource-exhausted",
    /// gRPC status 13.
    INTERNAL = 11 "internal",
    /// gRPC status 14.
    UNAVAILABLE = 12 "unavailable",
    /// The answer says that it was rate limited (`x-envoy-ratelimited`).
    RATE_LIMITED = 13 "envoy-ratelimited",
}

/// A word that names no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("retry condition {0:?} is not known")]
pub struct UnknownCondition(Box<str>);

impl RetryOn {
    /// No condition.
    pub const NONE: Self = Self(0);

    /// Reads `5xx,connect-failure`, as xDS writes it.
    ///
    /// # Errors
    /// When a word is not known.
    pub fn parse(list: &str) -> Result<Self, UnknownCondition> {
        let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.into_iter().try_fold(Self::NONE, |set, word| {
            let known = Self::WORDS.iter().find(|(known, _)| *known == word);
            known.map(|(_, one)| set | *one).ok_or_else(|| UnknownCondition(word.into()))
        })
    }

    /// Whether the two sets have a condition in common.
    #[must_use]
    pub const fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }

    /// The conditions' words, in a fixed order.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Self::WORDS.iter().filter(move |(_, one)| self.has(*one)).map(|(word, _)| *word)
    }
}

impl std::ops::BitOr for RetryOn {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How an attempt ended, before anything of it was passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With a response's head.
    Answered {
        /// Its status.
        status: StatusCode,
        /// Its gRPC status, if it is in the head (a Trailers-Only response).
        grpc: Option<GrpcStatus>,
        /// Whether it carries `x-envoy-ratelimited`.
        rate_limited: bool,
    },
    /// Without a connection.
    Unconnected,
    /// With `REFUSED_STREAM`: it was not processed.
    Refused,
    /// The connection or the stream broke, or what came was no HTTP.
    Reset {
        /// Whether anything of the request was sent.
        sent: bool,
    },
    /// Not in the time that one attempt has.
    TimedOut,
}

/// When to try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// What calls for another attempt.
    pub on: RetryOn,
    /// The statuses of [`RetryOn::STATUS_CODES`].
    pub status_codes: Box<[StatusCode]>,
    /// Attempts beyond the first, at most.
    pub retries: u32,
    /// How long one attempt may take from the moment it has a connection and the whole request until its response
    /// begins.
    pub per_try_timeout: Option<Duration>,
    /// The pauses.
    pub backoff: Backoff,
}

impl RetryPolicy {
    /// One retry on these conditions, with the usual pauses: what xDS means where nothing else is set.
    #[must_use]
    pub fn new(on: RetryOn) -> Self {
        Self {
            on,
            status_codes: Box::default(),
            retries: 1,
            per_try_timeout: None,
            backoff: Backoff::default(),
        }
    }

    /// Whether such an end calls for another attempt.
    #[must_use]
    pub fn wants(&self, ended: Ended) -> bool {
        let silence = RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR | RetryOn::RESET;
        match ended {
            // Who limits does not want to be asked again at once, whatever the status.
            Ended::Answered { rate_limited: true, .. } => self.on.has(RetryOn::RATE_LIMITED),
            Ended::Answered { status, grpc, rate_limited: false } => {
                self.wants_status(status) || grpc.is_some_and(|status| self.wants_grpc(status))
            }
            Ended::Unconnected => {
                self.on.has(silence | RetryOn::CONNECT_FAILURE | RetryOn::RESET_BEFORE_REQUEST)
            }
            Ended::Refused => self.on.has(silence | RetryOn::REFUSED_STREAM),
            Ended::Reset { sent: false } => self.on.has(silence | RetryOn::RESET_BEFORE_REQUEST),
            Ended::Reset { sent: true } | Ended::TimedOut => self.on.has(silence),
        }
    }

    fn wants_status(&self, status: StatusCode) -> bool {
        let gateway = matches!(status.as_u16(), 502..=504);
        status.is_server_error() && self.on.has(RetryOn::SERVER_ERROR)
            || gateway && self.on.has(RetryOn::GATEWAY_ERROR)
            || status == StatusCode::CONFLICT && self.on.has(RetryOn::RETRIABLE_4XX)
            || self.on.has(RetryOn::STATUS_CODES) && self.status_codes.contains(&status)
    }

    fn wants_grpc(&self, status: GrpcStatus) -> bool {
        self.on.has(match status.code() {
            1 => RetryOn::CANCELLED,
            4 => RetryOn::DEADLINE_EXCEEDED,
            8 => RetryOn::RESOURCE_EXHAUSTED,
            13 => RetryOn::INTERNAL,
            14 => RetryOn::UNAVAILABLE,
            _ => RetryOn::NONE,
        })
    }
}

/// Pauses that double, each drawn from zero to its bound ("full jitter"), so that callers that failed together do not
/// come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
}

impl Backoff {
    /// From `base` up to `max`, or to ten times the base where nothing is said.
    #[must_use]
    pub fn new(base: Duration, max: Option<Duration>) -> Self {
        let base = base.max(Duration::from_millis(1));
        Self { base, max: max.unwrap_or(base.saturating_mul(BACKOFF_MAX_FACTOR)).max(base) }
    }

    /// The pause before a retry, counted from 1; `draw` is uniform in 0..1.
    #[must_use]
    pub fn pause(&self, retry: u32, draw: f64) -> Duration {
        let doublings = retry.saturating_sub(1).min(31);
        let bound = self.base.saturating_mul(1 << doublings).min(self.max);
        bound.mul_f64(draw.clamp(0.0, 1.0))
    }

    /// Bound of the first pause.
    #[must_use]
    pub fn base(&self) -> Duration {
        self.base
    }

    /// Bound of every pause.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.max
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(BACKOFF_BASE, None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answered(status: u16) -> Ended {
        Ended::Answered { status: StatusCode::from_u16(status).unwrap(), grpc: None, rate_limited: false }
    }

    fn trailers_only(code: u8) -> Ended {
        Ended::Answered {
            status: StatusCode::OK,
            grpc: Some(GrpcStatus::from_code(code)),
            rate_limited: false,
        }
    }

    #[test]
    fn conditions_mean_what_envoy_means() {
        const SENT: Ended = Ended::Reset { sent: true };
        const UNSENT: Ended = Ended::Reset { sent: false };
        let cases: &[(&str, &[Ended], &[Ended])] = &[
            (
                "5xx",
                &[answered(500), answered(599), SENT, UNSENT, Ended::TimedOut, Ended::Unconnected],
                &[answered(429)],
            ),
            (
                "gateway-error",
                &[answered(502), answered(504), SENT, Ended::TimedOut],
                &[answered(500), answered(505)],
            ),
            ("connect-failure", &[Ended::Unconnected], &[UNSENT, Ended::TimedOut, answered(503)]),
            ("reset", &[SENT, UNSENT, Ended::Refused, Ended::TimedOut, Ended::Unconnected], &[answered(503)]),
            ("reset-before-request", &[UNSENT, Ended::Unconnected], &[SENT, Ended::TimedOut]),
            ("refused-stream", &[Ended::Refused], &[UNSENT]),
            ("retriable-4xx", &[answered(409)], &[answered(404), answered(500)]),
            ("cancelled", &[trailers_only(1)], &[trailers_only(4), answered(500)]),
            ("deadline-exceeded", &[trailers_only(4)], &[trailers_only(1), Ended::TimedOut]),
            ("resource-exhausted", &[trailers_only(8)], &[trailers_only(14)]),
            ("internal", &[trailers_only(13)], &[trailers_only(2)]),
            ("unavailable", &[trailers_only(14)], &[trailers_only(0), answered(503)]),
        ];
        for (words, yes, no) in cases {
            let policy = RetryPolicy::new(RetryOn::parse(words).unwrap());
            for ended in *yes {
                assert!(policy.wants(*ended), "{words}: {ended:?}");
            }
            for ended in *no {
                assert!(!policy.wants(*ended), "{words}: {ended:?}");
            }
        }
    }

    #[test]
    fn listed_statuses_count_only_with_their_condition() {
        let codes = [StatusCode::TOO_EARLY];
        let policy = |on| RetryPolicy { status_codes: codes.into(), ..RetryPolicy::new(on) };
        assert!(policy(RetryOn::STATUS_CODES).wants(answered(425)));
        assert!(!policy(RetryOn::STATUS_CODES).wants(answered(503)));
        assert!(!policy(RetryOn::SERVER_ERROR).wants(answered(425)));
    }

    #[test]
    fn who_was_limited_is_left_alone() {
        let limited =
            Ended::Answered { status: StatusCode::SERVICE_UNAVAILABLE, grpc: None, rate_limited: true };
        assert!(!RetryPolicy::new(RetryOn::SERVER_ERROR).wants(limited));
        assert!(RetryPolicy::new(RetryOn::RATE_LIMITED).wants(limited));
    }

    #[test]
    fn words_are_read_and_written_alike() {
        let on = RetryOn::parse(" 5xx, unavailable,,reset ").unwrap();
        assert_eq!(on.words().collect::<Vec<_>>(), ["5xx", "reset", "unavailable"]);
        assert_eq!(RetryOn::parse("5xx,4xx"), Err(UnknownCondition("4xx".into())));
        assert_eq!(RetryOn::parse(""), Ok(RetryOn::NONE));
    }

    #[test]
    fn pauses_double_up_to_ten_times_the_base() {
        let backoff = Backoff::default();
        let longest = |retry| backoff.pause(retry, 1.0).as_millis();
        assert_eq!([1, 2, 3, 4, 5, 99].map(longest), [25, 50, 100, 200, 250, 250]);
        assert_eq!(backoff.pause(4, 0.0), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_pause_is_longer_than_its_bound(base in 0_u64..100_000, max in 0_u64..100_000, retry in 0_u32.., draw in -1.0..2.0_f64) {
            let backoff = Backoff::new(Duration::from_millis(base), Some(Duration::from_millis(max)));
            prop_assert!(backoff.pause(retry, draw) <= backoff.max());
            prop_assert!(backoff.base() <= backoff.max());
        }
    }
}
