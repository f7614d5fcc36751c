//! Why a proxy answered by itself: one closed list of words, the same in header, metric, log, span and UI.
//!
//! Surprise: `Reason` says nothing about status codes. Which status a reason becomes is the data plane's
//! decision and lives in the proxy's `reply` module, the only place that maps one to the other.

use std::fmt;
use std::str::FromStr;

macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident = $word:literal,)+) => {
        /// Why the data path answered instead of the app. `Display` and `FromStr` use the lower_snake word.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])+ $variant,)+ }

        impl Reason {
            /// Every reason, in declaration order; `ALL[r as usize] == r`.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word used on the wire, in metrics, logs and screens.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl FromStr for Reason {
            type Err = UnknownReason;
            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word { $($word => Ok(Self::$variant),)+ _ => Err(UnknownReason(word.into())) }
            }
        }
    };
}

reasons! {
    /// A circuit is open: calls are refused so that a sick service can recover.
    CircuitOpen = "circuit_open",
    /// The caller went away before the response was complete.
    ClientCancelled = "client_cancelled",
    /// As many connections, waiting requests or requests to the service as its policy allows are in progress.
    ConcurrencyLimited = "concurrency_limited",
    /// The endpoint refused the connection.
    ConnectRefused = "connect_refused",
    /// The endpoint did not accept the connection in time.
    ConnectTimeout = "connect_timeout",
    /// No connection for another cause (no route to host, out of local ports, …).
    ConnectFailed = "connect_failed",
    /// A fault was injected on purpose.
    FaultInjected = "fault_injected",
    /// The request's header section is larger than the proxy accepts.
    HeaderTooLarge = "header_too_large",
    /// The request's headers did not arrive in time.
    HeaderTimeout = "header_timeout",
    /// The service exists but has no endpoint that is ready.
    NoReadyEndpoint = "no_ready_endpoint",
    /// The proxy is at its limit of concurrent work.
    Overloaded = "overloaded",
    /// An access policy denies this call.
    PolicyDenied = "policy_denied",
    /// The bytes are not valid in the protocol they claim to be.
    ProtocolError = "protocol_error",
    /// A rate limit is exhausted.
    RateLimited = "rate_limited",
    /// The request would be sent back to this proxy itself.
    RequestLoop = "request_loop",
    /// The request did not complete in time.
    RequestTimeout = "request_timeout",
    /// The budget that keeps retries from becoming a storm is spent.
    RetryBudgetExhausted = "retry_budget_exhausted",
    /// No route of the service matches this request.
    RouteNotFound = "route_not_found",
    /// The proxy is shutting down.
    ShuttingDown = "shutting_down",
    /// The peer's certificate has expired, or is not valid yet.
    TlsCertificateExpired = "tls_certificate_expired",
    /// The peer showed no certificate.
    TlsCertificateMissing = "tls_certificate_missing",
    /// The TLS handshake failed for another cause (version, protocol, broken off, …).
    TlsHandshakeFailed = "tls_handshake_failed",
    /// The peer's certificate names someone else, or nobody: no SPIFFE identity, several, or not the expected one.
    TlsIdentityMismatch = "tls_identity_mismatch",
    /// The port takes mutual TLS only, and something else came.
    TlsRequired = "tls_required",
    /// The peer's certificate is of another trust domain.
    TlsTrustDomain = "tls_trust_domain",
    /// The peer's certificate was issued by nobody whom this mesh trusts.
    TlsUnknownIssuer = "tls_unknown_issuer",
    /// The endpoint broke the connection before the response was complete.
    UpstreamReset = "upstream_reset",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The word is not a reason of this version.
#[derive(Debug, thiserror::Error)]
#[error("unknown reason {0:?}")]
pub struct UnknownReason(String);

/// Who decided: written as `by=` behind the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DecidedBy {
    /// The caller's sidecar.
    ClientProxy,
    /// The callee's sidecar.
    ServerProxy,
    /// The application itself.
    App,
}

impl DecidedBy {
    /// The word used on the wire, in metrics, logs and screens.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::ClientProxy => "client_proxy",
            Self::ServerProxy => "server_proxy",
            Self::App => "app",
        }
    }
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_round_trips_and_is_lower_snake() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.word().parse::<Reason>().ok(), Some(*reason));
            assert_eq!(*reason as usize, position);
            assert!(reason.word().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{reason}");
        }
    }
}
