//! When an endpoint or a whole cluster gets no request: settings and decisions, without clocks, chance or shared state.
//!
//! - [`outlier`]: an endpoint that fails while its siblings do not is ejected for a while, exactly as Envoy's outlier
//!   detection does it.
//! - [`circuit`]: a service that fails or is slow as a whole is left alone for a while and then tried carefully.
//! - [`limits`]: how much may be in progress at a time.
//! - [`health`]: what an active check asks and how many answers change a verdict.
//! - [`window`]: how many of the latest calls failed.
//!
//! In: what happened, what the state was, `now`. Out: the new state. Invariant: every state fits in one `u64`, so that
//! the shell ([`super::circuits`]) can change it with one compare-and-swap from any thread. Non-goal: counting
//! across sidecars; each one has its own view, and the control plane shows them side by side.

pub mod circuit;
pub mod health;
pub mod limits;
pub mod outlier;
pub mod window;

use weft_wire::Reason;

/// Everything that can keep a request from a cluster or an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Ejection of single endpoints; `None` = never.
    pub outlier: Option<outlier::Settings>,
    /// The circuit of the whole service; `None` = it has none.
    pub circuit: Option<circuit::Settings>,
    /// What may be in progress at a time.
    pub limits: limits::Settings,
    /// Active checks; an endpoint must pass all of them.
    pub checks: Vec<health::Settings>,
}

impl Settings {
    /// Whether single endpoints are judged at all.
    #[must_use]
    pub fn judges_endpoints(&self) -> bool {
        self.outlier.is_some() || !self.checks.is_empty()
    }
}

/// How one attempt (or, for the service, one call) ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint answered, and not with a server error.
    Success,
    /// It answered 5xx (gRPC: a status that maps to one) other than those of [`Outcome::GatewayError`].
    ServerError,
    /// It answered 502, 503 or 504.
    GatewayError,
    /// It did not answer: connect failure, time-out, reset.
    LocalOrigin(Reason),
    /// The caller went away, or nothing was tried: says nothing about the endpoint.
    Cancelled,
}

impl Outcome {
    /// What a response's status says.
    #[must_use]
    pub fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Self::GatewayError,
            500..=599 => Self::ServerError,
            _ => Self::Success,
        }
    }

    /// Whether it counts against whoever was asked; `None` = it counts for nothing.
    #[must_use]
    pub fn failed(self) -> Option<bool> {
        match self {
            Self::Success => Some(false),
            Self::ServerError | Self::GatewayError | Self::LocalOrigin(_) => Some(true),
            Self::Cancelled => None,
        }
    }
}

/// Position of a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Position {
    /// Everything passes.
    Closed = 0,
    /// A few probes pass.
    HalfOpen = 1,
    /// Nothing passes.
    Open = 2,
}

impl Position {
    /// The word in reports, metrics and logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// What a circuit guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// One address.
    Endpoint,
    /// All of a cluster.
    Service,
    /// A cluster's concurrency.
    Limit,
}

impl Kind {
    /// The word in reports, metrics and logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Service => "service",
            Self::Limit => "limit",
        }
    }
}

macro_rules! causes {
    ($($(#[$doc:meta])+ $variant:ident = $word:literal,)+) => {
        /// Why a circuit is, or last was, open.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Cause { $($(#[$doc])+ $variant,)+ }

        impl Cause {
            /// Every cause, in declaration order; `ALL[c as usize] == c`.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word in reports, metrics and logs.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

causes! {
    /// Server errors in a row.
    Consecutive5xx = "consecutive_5xx",
    /// 502, 503, 504 in a row.
    ConsecutiveGatewayFailure = "consecutive_gateway_failure",
    /// Connect failures, time-outs and resets in a row.
    ConsecutiveLocalOriginFailure = "consecutive_local_origin_failure",
    /// Succeeds much less often than its siblings.
    SuccessRate = "success_rate",
    /// As [`Cause::SuccessRate`], for connect failures, time-outs and resets.
    SuccessRateLocalOrigin = "success_rate_local_origin",
    /// Fails more often than allowed.
    FailurePercentage = "failure_percentage",
    /// As [`Cause::FailurePercentage`], for connect failures, time-outs and resets.
    FailurePercentageLocalOrigin = "failure_percentage_local_origin",
    /// Active checks fail.
    HealthCheck = "health_check",
    /// Too large a share of the service's calls failed.
    ErrorRatio = "error_ratio",
    /// Too large a share of the service's calls was slow.
    SlowCalls = "slow_calls",
    /// A probe of the half-open circuit failed.
    ProbeFailed = "probe_failed",
    /// As many connections as allowed.
    MaxConnections = "max_connections",
    /// As many waiting requests as allowed.
    MaxPendingRequests = "max_pending_requests",
    /// As many requests as allowed.
    MaxRequests = "max_requests",
    /// As many retries as allowed, by number or budget.
    MaxRetries = "max_retries",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whose_fault_it_is() {
        let table = [
            (200, Outcome::Success),
            (404, Outcome::Success),
            (429, Outcome::Success),
            (500, Outcome::ServerError),
            (501, Outcome::ServerError),
            (502, Outcome::GatewayError),
            (503, Outcome::GatewayError),
            (504, Outcome::GatewayError),
            (505, Outcome::ServerError),
        ];
        for (status, outcome) in table {
            assert_eq!(Outcome::of_status(status), outcome, "{status}");
        }
    }

    #[test]
    fn causes_are_found_by_number() {
        for (number, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, number);
        }
    }
}
