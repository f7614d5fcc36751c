//! The bounds of the proxy, by name: what a full queue, table or buffer is called when it bites.
//!
//! Every bound in the proxy has a word here, so "something was refused, dropped or folded" is always one
//! metric, `weft_limit_total{limit="…"}`, and never silent.

macro_rules! limits {
    ($($(#[$doc:meta])+ $variant:ident = $word:literal,)+) => {
        /// A bound that was reached.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Limit { $($(#[$doc])+ $variant,)+ }

        impl Limit {
            /// Every limit, in declaration order; `ALL[l as usize] == l`.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word in metrics and logs.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

limits! {
    /// An access log line was dropped because the writer was behind.
    AccessLog = "access_log",
    /// A request body was larger than what is buffered for a retry.
    BufferedBody = "buffered_body",
    /// An active check began late or found no place: too many endpoints are checked.
    Checks = "checks",
    /// A circuit was not told of: too many are in use.
    Circuits = "circuits",
    /// A request was refused: the app has as many as its latency allows.
    Concurrency = "concurrency",
    /// A connection was refused: too many are open.
    Connections = "connections",
    /// A destination was passed through: too many are being discovered.
    Discoveries = "discoveries",
    /// A request was not delayed by an injected fault: too many are being delayed.
    Delayed = "delayed",
    /// Protocol detection ran into its deadline.
    DetectTimeout = "detect_timeout",
    /// The control plane did not answer in time, the connection was passed through.
    DiscoveryTimeout = "discovery_timeout",
    /// Drain ran into its deadline with work still in flight.
    DrainDeadline = "drain_deadline",
    /// An edge was folded into the overflow edge: too many callers or destinations.
    Edges = "edges",
    /// A TLS handshake was refused: too many are under way.
    Handshakes = "handshakes",
    /// A header section was larger than accepted.
    HeaderBytes = "header_bytes",
    /// A request's headers did not arrive in time.
    HeaderTimeout = "header_timeout",
    /// A connection was closed because nothing happened on it for too long.
    IdleTimeout = "idle_timeout",
    /// A request was refused: too many are in flight.
    InFlight = "in_flight",
    /// A request was refused: the worker is behind its own clock.
    Lag = "lag",
    /// A request was not copied to a mirror: too many copies are in flight, or its body is too large.
    Mirrors = "mirrors",
    /// An endpoint's name was left out of telemetry: too many distinct peers.
    Peers = "peers",
    /// A request was refused: too many wait for a connection.
    Pending = "pending",
    /// A pooled connection was closed because the pool was full.
    Pool = "pool",
    /// A caller's rate limit began anew: more callers than the limit has buckets.
    RateLimitCallers = "rate_limit_callers",
    /// Two report intervals were merged because the control plane has been away for long.
    ReportQueue = "report_queue",
    /// A peer reset streams faster than accepted.
    ResetRate = "reset_rate",
    /// A request was recorded under no rule's name: too many rules.
    Rules = "rules",
    /// Requests were recorded without routes: too many services.
    RouteScopes = "route_scopes",
    /// A request was recorded in the overflow series: too many label combinations.
    Series = "series",
    /// A stream was refused: too many on one connection.
    Streams = "streams",
    /// A subscription was refused or an idle one evicted: too many destinations.
    Subscriptions = "subscriptions",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_place_and_a_plain_word() {
        for (position, limit) in Limit::ALL.iter().enumerate() {
            assert_eq!(*limit as usize, position);
            assert!(limit.word().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        }
    }
}
