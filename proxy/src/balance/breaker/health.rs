//! What an active health check asks, and how many answers change a verdict.
//!
//! In: the results of checks in order. Out: whether the endpoint counts as healthy. Meaning of the thresholds as in
//! Envoy: a single success is enough the first time; an HTTP status that is neither expected nor retriable makes an
//! endpoint unhealthy at once. Surprise: an endpoint that was never checked is healthy, because a sidecar begins to
//! check when traffic comes and must not refuse the first request; Envoy, which checks before, says unhealthy.

use std::ops::Range;
use std::time::Duration;

/// Interval while a cluster has no traffic. Source: Envoy, `HealthCheck.no_traffic_interval`.
pub const NO_TRAFFIC_INTERVAL: Duration = Duration::from_secs(60);

/// One check of a cluster's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What is asked.
    pub probe: Probe,
    /// How long an answer may take.
    pub timeout: Duration,
    /// From one check to the next.
    pub interval: Duration,
    /// From one check to the next while the endpoint is unhealthy.
    pub unhealthy_interval: Duration,
    /// After a success that does not yet make an unhealthy endpoint healthy.
    pub healthy_edge_interval: Duration,
    /// After a failure that does not yet make a healthy endpoint unhealthy.
    pub unhealthy_edge_interval: Duration,
    /// From one check to the next while the cluster has no traffic …
    pub no_traffic_interval: Duration,
    /// … and the endpoint is healthy.
    pub no_traffic_healthy_interval: Duration,
    /// The first check waits up to this long.
    pub initial_jitter: Duration,
    /// Every interval is up to this much longer.
    pub interval_jitter: Duration,
    /// Every interval is up to this many percent longer.
    pub interval_jitter_percent: u32,
    /// Failures in a row that make it unhealthy; at least 1.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy; at least 1.
    pub healthy_threshold: u32,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A request; its status is the answer.
    Http {
        /// Method.
        method: http::Method,
        /// `Host`; `None` = the cluster's name.
        host: Option<Box<str>>,
        /// Path and query.
        path: Box<str>,
        /// Whether it goes out as HTTP/2 with prior knowledge.
        http2: bool,
        /// Statuses that mean healthy.
        expected: Vec<Range<u16>>,
        /// Statuses that count as one failure; all others mean unhealthy at once.
        retriable: Vec<Range<u16>>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service that is asked about; empty = the server.
        service: Box<str>,
        /// `:authority`; `None` = the cluster's name.
        authority: Option<Box<str>>,
    },
    /// A connection, and optionally bytes there and back.
    Tcp {
        /// What is sent.
        send: Vec<u8>,
        /// What must come, in this order, with anything between.
        receive: Vec<Vec<u8>>,
    },
}

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// As expected.
    Passed,
    /// Not, or nothing came in time.
    Failed,
    /// The endpoint says that it does not serve.
    FailedForGood,
}

/// One endpoint in the eyes of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    unhealthy: bool,
    /// Whether any check has ended.
    known: bool,
    /// Results in a row that contradict the verdict.
    streak: u32,
}

impl Verdict {
    /// What is believed of an endpoint that this check has not asked yet: a single success is enough.
    #[must_use]
    pub fn assumed(healthy: bool) -> Self {
        Self { unhealthy: !healthy, ..Self::default() }
    }

    /// Whether it may get requests.
    #[must_use]
    pub fn is_healthy(self) -> bool {
        !self.unhealthy
    }

    /// After one more check.
    #[must_use]
    pub fn after(self, settings: &Settings, checked: Checked) -> Self {
        let passed = checked == Checked::Passed;
        if passed == self.is_healthy() {
            return Self { known: true, streak: 0, ..self };
        }
        let streak = self.streak.saturating_add(1);
        let enough = match checked {
            Checked::Passed => !self.known || streak >= settings.healthy_threshold,
            Checked::Failed => streak >= settings.unhealthy_threshold,
            Checked::FailedForGood => true,
        };
        if enough {
            Self { unhealthy: !passed, known: true, streak: 0 }
        } else {
            Self { known: true, streak, ..self }
        }
    }
}

impl Settings {
    /// How long until the next check. `chance` is uniform in `[0, 1)`.
    #[must_use]
    pub fn pause(&self, verdict: Verdict, traffic: bool, chance: f64) -> Duration {
        // A streak contradicts the verdict: the latest check said otherwise, but it was not enough.
        let interval = match (traffic, verdict.is_healthy(), verdict.streak > 0) {
            (false, true, false) | (false, false, true) => self.no_traffic_healthy_interval,
            (false, ..) => self.no_traffic_interval,
            (true, true, false) => self.interval,
            (true, true, true) => self.unhealthy_edge_interval,
            (true, false, false) => self.unhealthy_interval,
            (true, false, true) => self.healthy_edge_interval,
        };
        let jitter = self.interval_jitter + interval.mul_f64(f64::from(self.interval_jitter_percent) / 100.0);
        interval + jitter.mul_f64(chance)
    }
}
