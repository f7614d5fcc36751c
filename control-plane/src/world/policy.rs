//! Policies as the world is told of them: what a CircuitBreaker or a TrafficPolicy sets, and for whom.
//!
//! In: values that `resources` has parsed: percentages are percentages, durations positive, expressions compile. Out:
//! [`Settings`], of which every field may be absent, and [`Effective`]: several of them laid over each other.
//!
//! Invariant: a field comes from the most specific policy that sets it, among equals from the oldest, among those
//! from the first by name (GEP-713). Groups whose fields mean something only together (a fault, a rate limit, a
//! health check, a mirror) come whole from one policy. Non-goal: defaults. Those are `compile`'s.

mod merge;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use weft_wire::ServiceId;

use super::route::{BackendRef, Created, RouteId, ValueMatch};
use super::spec::ObjectName;

pub(super) use merge::{Conflict, Layer, Level, merge};

/// What kind of object a policy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    /// An AccessPolicy; see [`access`](super::access).
    AccessPolicy,
    /// A CircuitBreaker.
    CircuitBreaker,
    /// A TrafficPolicy.
    TrafficPolicy,
}

impl PolicyKind {
    /// The kind as its objects spell it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::AccessPolicy => "AccessPolicy",
            Self::CircuitBreaker => "CircuitBreaker",
            Self::TrafficPolicy => "TrafficPolicy",
        }
    }
}

/// A policy object. `Display` is `TrafficPolicy shop/orders`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyId {
    /// What kind of object it is.
    pub kind: PolicyKind,
    /// Its name.
    pub name: ObjectName,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.word(), self.name)
    }
}

/// A policy.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySpec {
    /// The policy.
    pub id: PolicyId,
    /// When it was created: the older of two that are otherwise equal wins.
    pub created: Created,
    /// The version of its spec, where an API server counts it.
    pub generation: Option<i64>,
    /// What it is for.
    pub targets: Vec<Target>,
    /// What it sets.
    pub settings: Settings,
}

/// What a policy is for: always in its own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A route, or the rule of this name in it.
    Route(RouteId, Option<Box<str>>),
    /// A service, or its port of this name.
    Service(ServiceId, Option<Box<str>>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let section = match self {
            Self::Route(route, section) => {
                write!(f, "{route}")?;
                section
            }
            Self::Service(service, section) => {
                write!(f, "Service {}/{}", service.namespace(), service.name())?;
                section
            }
        };
        match section {
            Some(section) => write!(f, " ({section})"),
            None => Ok(()),
        }
    }
}

/// A whole percentage, 0 to 100.
pub type Percent = u8;

/// Everything that policies can set. An absent field leaves the matter to a less specific policy, then to the default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// The circuit of each endpoint.
    pub endpoints: EndpointBreaker,
    /// The circuit of the whole service.
    pub circuit: ServiceCircuit,
    /// How much may be under way.
    pub limits: Limits,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// When requests are tried again.
    pub retry: Retry,
    /// How much trying again may add.
    pub retry_budget: RetryBudget,
    /// How endpoints are chosen.
    pub balancer: Balancer,
    /// How endpoints are probed.
    pub health_check: Option<HealthCheck>,
    /// How many requests are let through in a time.
    pub rate_limit: Option<RateLimit>,
    /// How many requests are let through at once, found out by measuring.
    pub concurrency: Option<Concurrency>,
    /// Failures made on purpose.
    pub fault: Option<Fault>,
    /// Who gets a copy.
    pub mirror: Option<PolicyMirror>,
}

/// The circuit of each endpoint: Envoy's outlier detection.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EndpointBreaker {
    /// Server errors in a row that eject an endpoint; zero is never.
    pub consecutive_failures: Option<u32>,
    /// 502, 503 and 504 in a row that do; zero is never.
    pub consecutive_gateway_failures: Option<u32>,
    /// Connect failures, timeouts and resets in a row that do; zero is never.
    pub consecutive_local_origin_failures: Option<u32>,
    /// How often ratios are evaluated and ejected endpoints looked at.
    pub interval: Option<Duration>,
    /// How long the first ejection lasts; each further one is longer by this.
    pub base_ejection_time: Option<Duration>,
    /// How long an ejection lasts at most.
    pub max_ejection_time: Option<Duration>,
    /// Random part added to each ejection.
    pub ejection_time_jitter: Option<Duration>,
    /// Share of endpoints that may be ejected at once.
    pub max_ejection_percent: Option<Percent>,
    /// Ejection by share of failures.
    pub failure_percentage: Option<FailurePercentage>,
    /// Ejection by deviation from the others' success rate.
    pub success_rate: Option<SuccessRate>,
}

/// Ejection of an endpoint whose share of failures is too large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailurePercentage {
    /// The share.
    pub threshold: Percent,
    /// Endpoints with enough requests that there must be.
    pub minimum_hosts: u32,
    /// Requests in an interval that are enough.
    pub request_volume: u32,
}

/// Ejection of an endpoint whose success rate is far below the others'.
#[derive(Debug, Clone, PartialEq)]
pub struct SuccessRate {
    /// Standard deviations below the mean, in thousandths, as Envoy counts them.
    pub stdev_factor_thousandths: u32,
    /// Endpoints with enough requests that there must be.
    pub minimum_hosts: u32,
    /// Requests in an interval that are enough.
    pub request_volume: u32,
}

/// The circuit of the whole service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceCircuit {
    /// Length of the rolling window.
    pub window: Option<Duration>,
    /// Calls in the window below which it never opens.
    pub minimum_calls: Option<u32>,
    /// Share of failures at which it opens.
    pub error_percent: Option<Percent>,
    /// Share of slow calls at which it opens.
    pub slow_call: Option<SlowCall>,
    /// How long it stays open the first time.
    pub open_for: Option<Duration>,
    /// How long it stays open at most.
    pub open_for_max: Option<Duration>,
    /// Calls let through while it is half open.
    pub half_open_probes: Option<u32>,
}

/// What counts as slow, and how much of it is too much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowCall {
    /// At least this long is slow.
    pub threshold: Duration,
    /// Share of slow calls at which the circuit opens.
    pub percent: Percent,
}

/// How much may be under way to a service, from one sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Connections.
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests.
    pub max_requests: Option<u32>,
    /// Retries.
    pub max_retries: Option<u32>,
}

/// How long things may take; zero is without limit, except for a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// The whole exchange, with all tries.
    pub request: Option<Duration>,
    /// One try.
    pub backend_request: Option<Duration>,
    /// Making a connection.
    pub connect: Option<Duration>,
}

/// When requests are tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retry {
    /// How often.
    pub attempts: Option<u32>,
    /// For what.
    pub on: Option<BTreeSet<RetryOn>>,
    /// For which further statuses.
    pub statuses: Option<BTreeSet<u16>>,
    /// Shortest wait before the first; each further one waits twice as long.
    pub backoff: Option<Duration>,
    /// Longest wait.
    pub backoff_max: Option<Duration>,
    /// How long one try may take.
    pub per_try_timeout: Option<Duration>,
}

/// A reason to try again, in Envoy's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryOn {
    /// Any 5xx, or no answer.
    ServerError,
    /// 502, 503 or 504.
    GatewayError,
    /// No connection could be made.
    ConnectFailure,
    /// The connection broke, or the try took too long.
    Reset,
    /// One of the listed statuses.
    RetriableStatusCodes,
    /// gRPC status 1.
    Cancelled,
    /// gRPC status 4.
    DeadlineExceeded,
    /// gRPC status 13.
    Internal,
    /// gRPC status 8.
    ResourceExhausted,
    /// gRPC status 14.
    Unavailable,
}

impl RetryOn {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::ServerError,
        Self::GatewayError,
        Self::ConnectFailure,
        Self::Reset,
        Self::RetriableStatusCodes,
        Self::Cancelled,
        Self::DeadlineExceeded,
        Self::Internal,
        Self::ResourceExhausted,
        Self::Unavailable,
    ];

    /// The word, in objects as in Envoy.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::ServerError => "5xx",
            Self::GatewayError => "gateway-error",
            Self::ConnectFailure => "connect-failure",
            Self::Reset => "reset",
            Self::RetriableStatusCodes => "retriable-status-codes",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::Internal => "internal",
            Self::ResourceExhausted => "resource-exhausted",
            Self::Unavailable => "unavailable",
        }
    }
}

/// How much trying again may add to a service's load, from one sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetryBudget {
    /// Retries as a share of the requests under way.
    pub percent: Option<Percent>,
    /// Retries that are always allowed at once.
    pub min_concurrency: Option<u32>,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Balancer {
    /// By which rule.
    pub algorithm: Option<Algorithm>,
    /// What of a request is hashed, where the rule hashes.
    pub hash_on: Option<HashOn>,
    /// New endpoints get their share by and by.
    pub slow_start: Option<SlowStart>,
    /// Share of healthy endpoints below which health is not looked at any more; zero is never.
    pub panic_threshold: Option<Percent>,
    /// Whether endpoints of the caller's own zone come first.
    pub zone_preference: Option<ZonePreference>,
}

/// A rule for choosing endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// The one with fewer requests under way, of two chosen at random.
    LeastRequest,
    /// By hash, with a table.
    Maglev,
    /// The faster one, of two chosen at random.
    PeakEwma,
    /// At random.
    Random,
    /// By hash, on a ring.
    RingHash,
    /// One after the other.
    RoundRobin,
}

impl Algorithm {
    /// Whether it chooses by a hash of the request.
    #[must_use]
    pub const fn hashes(self) -> bool {
        matches!(self, Self::Maglev | Self::RingHash)
    }
}

/// What of a request is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// A cookie.
    Cookie {
        /// Its name.
        name: Box<str>,
        /// With this, a caller without the cookie gets one that lasts so long (zero: as long as its session).
        ttl: Option<Duration>,
    },
    /// A header, in lower case.
    Header(Box<str>),
    /// The caller's address.
    Source,
}

/// New endpoints get their share by and by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowStart {
    /// For how long an endpoint is new.
    pub window: Duration,
    /// Shape of the growth, in thousandths: 1000 is linear.
    pub aggression_thousandths: u32,
    /// Share at the very beginning.
    pub min_weight_percent: Percent,
}

/// Whether endpoints of the caller's own zone come first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZonePreference {
    /// Whether they do.
    pub enabled: bool,
    /// Share of them that must be healthy.
    pub min_healthy_percent: Option<Percent>,
}

/// How endpoints are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// How often.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Good answers in a row that make an endpoint healthy.
    pub healthy_threshold: u32,
    /// Bad answers in a row that make it unhealthy.
    pub unhealthy_threshold: u32,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// An HTTP request.
    Http {
        /// Its path.
        path: Box<str>,
        /// Its host; absent is the cluster's name.
        host: Option<Box<str>>,
        /// Ranges of good statuses, from and to (both included).
        statuses: Vec<(u16, u16)>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service asked about; empty is the whole server.
        service: Box<str>,
    },
    /// A connection.
    Tcp,
}

/// How many requests are let through in a time, at each endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// How many requests.
    pub requests: u32,
    /// In how long.
    pub per: Duration,
    /// How many at once after a pause.
    pub burst: u32,
    /// What has a bucket of its own; empty is the service.
    pub by: BTreeSet<RateKey>,
}

/// What has a bucket of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RateKey {
    /// Each caller.
    Caller,
    /// Each route.
    Route,
    /// The service. Alone, or beside the others, where it adds nothing.
    Service,
}

/// A limit of concurrency that is found by measuring: Envoy's gradient controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concurrency {
    /// Which percentile of latency is compared.
    pub sample_percentile: Percent,
    /// How often the limit is set.
    pub interval: Duration,
    /// The limit is never higher.
    pub max: u32,
    /// How often the latency without load is measured.
    pub min_rtt_interval: Duration,
    /// With how many requests.
    pub min_rtt_requests: u32,
    /// The limit meanwhile.
    pub min_concurrency: u32,
    /// Random part added to the interval.
    pub jitter_percent: Percent,
    /// How much worse than without load is still fine.
    pub buffer_percent: Percent,
}

/// Failures made on purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Requests that are held up.
    pub delay: Option<Delay>,
    /// Requests that are answered with a failure.
    pub abort: Option<Abort>,
    /// Only requests with all of these headers.
    pub headers: Vec<ValueMatch>,
}

/// A hold-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delay {
    /// How long.
    pub fixed: Duration,
    /// Of how many requests.
    pub share: Share,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abort {
    /// What is answered.
    pub status: AbortStatus,
    /// To how many requests.
    pub share: Share,
}

/// What an aborted request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortStatus {
    /// A gRPC status.
    Grpc(u32),
    /// An HTTP status.
    Http(u16),
}

/// A share of all requests, in millionths: percentages of people have fractions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub u32);

/// A copy of a share of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyMirror {
    /// Who gets it.
    pub to: BackendRef,
    /// How many.
    pub share: Share,
}

/// Policies laid over each other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Effective {
    /// What they set together.
    pub settings: Settings,
    /// Which policy each field comes from, by the field's path in the object.
    pub origins: BTreeMap<&'static str, PolicyId>,
}

impl Effective {
    /// The policies that have a say, in order.
    #[must_use]
    pub fn policies(&self) -> BTreeSet<&PolicyId> {
        self.origins.values().collect()
    }
}
