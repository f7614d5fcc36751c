//! Faults on purpose: a delay, an abort, or both, for a share of the requests.
//!
//! In: a request's head and two draws. Out: what to do to it ([`Injected`]). Pure. As in Envoy's fault filter, the delay
//! and the abort are drawn independently, and a delayed request is aborted when its delay is over. Surprise: an abort
//! with a gRPC status is an HTTP 200 to whoever did not speak gRPC. Non-goal: the answer itself (`reply`).

use std::time::Duration;

use http::StatusCode;
use http::request::Parts;

use crate::http::class::GrpcStatus;
use crate::route::fraction::Fraction;
use crate::route::matcher::HeaderMatch;

/// Requests of one worker that may be delayed at one moment. Each is an idle task of a few kilobytes; who injects delays
/// wants slow answers, not a sidecar without memory.
pub const DELAYED_MAX: usize = 1024;

/// What an aborted request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// This HTTP status; the gRPC status that belongs to it where the caller speaks gRPC.
    Http(StatusCode),
    /// This gRPC status.
    Grpc(GrpcStatus),
}

/// A route's faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultPolicy {
    /// How long, and how often.
    pub delay: Option<(Duration, Fraction)>,
    /// How, and how often.
    pub abort: Option<(Abort, Fraction)>,
    /// Only requests that have all of these headers.
    pub headers: Box<[HeaderMatch]>,
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Injected {
    /// It waits.
    pub delay: Option<Duration>,
    /// Then it is answered with this.
    pub abort: Option<Abort>,
}

impl FaultPolicy {
    /// Decides for one request. The draws are uniform over all of `u64`.
    #[must_use]
    pub fn inject(&self, request: &Parts, [delay, abort]: [u64; 2]) -> Injected {
        if !self.headers.iter().all(|header| header.holds(request)) {
            return Injected::default();
        }
        fn drawn<T: Copy>(what: Option<(T, Fraction)>, draw: u64) -> Option<T> {
            what.filter(|(_, share)| share.holds(draw)).map(|(what, _)| what)
        }
        Injected { delay: drawn(self.delay, delay), abort: drawn(self.abort, abort) }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::route::matcher::{Field, ValueMatch};

    fn request(team: &str) -> Parts {
        http::Request::builder().header("x-team", team).body(()).unwrap().into_parts().0
    }

    #[test]
    fn delay_and_abort_are_drawn_apart_and_only_for_the_selected() {
        let half = Fraction::new(1, 2).unwrap();
        let abort = Abort::Http(StatusCode::SERVICE_UNAVAILABLE);
        let policy = FaultPolicy {
            delay: Some((Duration::from_secs(1), half)),
            abort: Some((abort, half)),
            headers: [HeaderMatch {
                field: Field::Header(HeaderName::from_static("x-team")),
                value: ValueMatch::Exact("red".into()),
                invert: false,
                missing_is_empty: false,
            }]
            .into(),
        };
        let red = request("red");
        let delay = Some(Duration::from_secs(1));
        assert_eq!(policy.inject(&red, [0, 0]), Injected { delay, abort: Some(abort) });
        assert_eq!(policy.inject(&red, [0, 1]), Injected { delay, abort: None });
        assert_eq!(policy.inject(&red, [1, 0]), Injected { delay: None, abort: Some(abort) });
        assert_eq!(policy.inject(&red, [1, 1]), Injected::default());
        assert_eq!(policy.inject(&request("blue"), [0, 0]), Injected::default());
    }
}
