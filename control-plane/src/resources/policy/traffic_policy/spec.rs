//! A TrafficPolicy as people write it.
//!
//! In: an object, strictly read. Out: nothing but its fields; `super` says what they must be, and the rules here say the
//! same to an API server.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::schema::{self, Rule};
use super::super::{TARGETS, TargetRef};
use super::{HealthCheckSpec, LoadBalancerSpec};

/// A field that is for Services only, and when it is not there.
macro_rules! services_only {
    ($field:literal, $absent:literal) => {
        (
            $field,
            concat!("self.targetRefs.all(target, target.kind == 'Service') || ", $absent),
            "is for Services only, and the policy targets a route",
        )
    };
}

/// What a TrafficPolicy says.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(ON_ROUTE)))]
pub struct TrafficPolicySpec {
    /// The Services and routes, or parts of them, that it is for.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = schema::rules(TARGETS)))]
    pub target_refs: Vec<TargetRef>,
    /// How long things may take.
    #[serde(default)]
    pub timeouts: TimeoutsSpec,
    /// When requests are tried again: if anything is set here.
    #[serde(default)]
    pub retry: RetrySpec,
    /// How much trying again may add. Services only.
    #[serde(default)]
    pub retry_budget: RetryBudgetSpec,
    /// How endpoints are chosen. On a route: only `hashOn`.
    #[serde(default)]
    pub load_balancer: LoadBalancerSpec,
    /// How endpoints are probed. Services only.
    #[serde(default)]
    pub health_check: Option<HealthCheckSpec>,
    /// How many requests each endpoint lets in.
    #[serde(default)]
    pub rate_limit: Option<RateLimitSpec>,
    /// How many requests each endpoint lets in at once. Services only.
    #[serde(default)]
    pub concurrency: Option<ConcurrencySpec>,
    /// Failures made on purpose.
    #[serde(default)]
    pub fault: Option<FaultSpec>,
    /// Who gets a copy of requests.
    #[serde(default)]
    pub mirror: Option<MirrorSpec>,
}

/// How long things may take; `0s` is without limit.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(TIMEOUTS)))]
pub struct TimeoutsSpec {
    /// The whole exchange, with all tries.
    #[serde(default)]
    #[schemars(with = "Option<schema::Time>")]
    pub request: Option<String>,
    /// One try.
    #[serde(default)]
    #[schemars(with = "Option<schema::Time>")]
    pub backend_request: Option<String>,
    /// Making a connection, never without limit. Services only.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub connect: Option<String>,
}

/// When requests are tried again.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(RETRY)))]
pub struct RetrySpec {
    /// How often; 0 is never.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10))]
    pub attempts: Option<i64>,
    /// For what: `5xx`, `gateway-error`, `connect-failure`, `reset`, `retriable-status-codes`, and the gRPC statuses
    /// `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`.
    #[serde(default)]
    #[schemars(with = "Option<Vec<schema::Failure>>", length(min = 1))]
    pub retry_on: Option<Vec<String>>,
    /// For these statuses too.
    #[serde(default)]
    #[schemars(inner(range(min = 400, max = 599)))]
    pub status_codes: Option<Vec<i64>>,
    /// Shortest wait before the first retry; each further one waits up to twice as long.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub backoff: Option<String>,
    /// Longest wait.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub backoff_max: Option<String>,
    /// How long one try may take; wins over `timeouts.backendRequest`.
    #[serde(default)]
    #[schemars(with = "Option<schema::Time>")]
    pub per_try_timeout: Option<String>,
}

/// How much trying again may add to the load, from one sidecar.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudgetSpec {
    /// Retries as a share of the requests under way, percent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Percent>")]
    pub percent: Option<i64>,
    /// Retries that are always allowed at once.
    #[serde(default)]
    #[schemars(with = "Option<schema::Count>")]
    pub min_concurrency: Option<i64>,
}

/// How many requests each endpoint lets in: a token bucket at the callee's sidecar.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[schemars(extend("x-kubernetes-validations" = schema::rules(RATE_LIMIT)))]
pub struct RateLimitSpec {
    /// How many requests.
    #[schemars(with = "schema::Positive")]
    pub requests: i64,
    /// In how long; `1s` if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub per: Option<String>,
    /// How many at once after a pause; as many as `requests` if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Positive>")]
    pub burst: Option<i64>,
    /// What has a bucket of its own: `service`, `route`, `caller`. Absent: the service, or the route that is targeted.
    #[serde(default)]
    #[schemars(with = "Option<Vec<schema::Bucket>>", length(max = 3))]
    pub by: Option<Vec<String>>,
}

/// How many requests each endpoint lets in at once.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
pub struct ConcurrencySpec {
    /// A limit that is found by comparing latency with latency without load (Envoy's gradient controller).
    pub adaptive: AdaptiveSpec,
}

/// The gradient controller. Everything absent is as in Envoy.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(ADAPTIVE)))]
pub struct AdaptiveSpec {
    /// Which percentile of latency is compared; 50 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::PositivePercent>")]
    pub sample_percentile: Option<i64>,
    /// How often the limit is set; `100ms` if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub update_interval: Option<String>,
    /// The limit is never higher; 1000 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Positive>")]
    pub max_concurrency: Option<i64>,
    /// How often latency without load is measured; `60s` if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub min_rtt_interval: Option<String>,
    /// With how many requests; 50 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Positive>")]
    pub min_rtt_requests: Option<i64>,
    /// The limit meanwhile; 3 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Positive>")]
    pub min_concurrency: Option<i64>,
    /// Random part added to `minRttInterval`, percent; 15 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Percent>")]
    pub jitter_percent: Option<i64>,
    /// How much worse than without load is still fine, percent; 25 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Percent>")]
    pub buffer_percent: Option<i64>,
}

/// Failures made on purpose.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[schemars(extend("x-kubernetes-validations" = schema::rules(FAULT)))]
pub struct FaultSpec {
    /// Requests that are held up.
    #[serde(default)]
    pub delay: Option<DelaySpec>,
    /// Requests that are answered with a failure.
    #[serde(default)]
    pub abort: Option<AbortSpec>,
    /// Only requests with all of these headers.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderSpec>,
}

/// A hold-up.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
pub struct DelaySpec {
    /// How long.
    #[schemars(with = "schema::Span")]
    pub fixed: String,
    /// Of how many requests, percent.
    #[schemars(with = "schema::Share")]
    pub percent: f64,
}

/// A failure: one of the two statuses.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(ABORT)))]
pub struct AbortSpec {
    /// An HTTP status.
    #[serde(default)]
    #[schemars(range(min = 200, max = 599))]
    pub http_status: Option<i64>,
    /// A gRPC status, by number.
    #[serde(default)]
    #[schemars(range(min = 0, max = 16))]
    pub grpc_status: Option<i64>,
    /// To how many requests, percent.
    #[schemars(with = "schema::Share")]
    pub percent: f64,
}

/// A header and its value.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
pub struct HeaderSpec {
    /// Its name.
    #[schemars(with = "schema::Token")]
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A copy of a share of the requests, sent and forgotten.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorSpec {
    /// Who gets it.
    pub backend_ref: MirrorRefSpec,
    /// Of how many requests, percent; all if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Share>")]
    pub percent: Option<f64>,
}

/// A Service's port.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
pub struct MirrorRefSpec {
    /// The Service.
    #[schemars(with = "schema::Name")]
    pub name: String,
    /// Its namespace; the policy's own if absent. Another one must allow it by a ReferenceGrant.
    #[serde(default)]
    #[schemars(with = "Option<schema::Namespace>")]
    pub namespace: Option<String>,
    /// Its port.
    #[schemars(with = "schema::Port")]
    pub port: i32,
}

/// What the schema says of a policy that targets a route: a route decides about requests.
const ON_ROUTE: &[Rule] = &[
    services_only!("timeouts.connect", "!has(self.timeouts) || !has(self.timeouts.connect)"),
    services_only!(
        "retryBudget",
        "!has(self.retryBudget) || !(has(self.retryBudget.percent) || has(self.retryBudget.minConcurrency))"
    ),
    services_only!("loadBalancer.type", "!has(self.loadBalancer) || !has(self.loadBalancer.type)"),
    services_only!("loadBalancer.slowStart", "!has(self.loadBalancer) || !has(self.loadBalancer.slowStart)"),
    services_only!(
        "loadBalancer.panicThreshold",
        "!has(self.loadBalancer) || !has(self.loadBalancer.panicThreshold)"
    ),
    services_only!(
        "loadBalancer.zonePreference",
        "!has(self.loadBalancer) || !has(self.loadBalancer.zonePreference)"
    ),
    services_only!("healthCheck", "!has(self.healthCheck)"),
    services_only!("concurrency", "!has(self.concurrency)"),
    services_only!(
        "rateLimit.by",
        "!has(self.rateLimit) || !has(self.rateLimit.by) || !('service' in self.rateLimit.by)"
    ),
];

const TIMEOUTS: &[Rule] = &[(
    "request",
    "!has(self.request) || !has(self.backendRequest) || duration(self.request) == duration('0s') || \
     duration(self.request) >= duration(self.backendRequest)",
    "is shorter than backendRequest, which is part of it",
)];

const RETRY: &[Rule] = &[(
    "backoffMax",
    "!has(self.backoffMax) || !has(self.backoff) || duration(self.backoffMax) >= duration(self.backoff)",
    "is shorter than backoff",
)];

const RATE_LIMIT: &[Rule] = &[
    ("per", "!has(self.per) || duration(self.per) >= duration('50ms')", "is shorter than 50ms"),
    (
        "by",
        "!has(self.by) || !('service' in self.by) || self.by.all(word, word == 'service')",
        "service excludes route and caller",
    ),
];

const ADAPTIVE: &[Rule] = &[(
    "maxConcurrency",
    "(has(self.maxConcurrency) ? self.maxConcurrency : 1000) >= (has(self.minConcurrency) ? self.minConcurrency : 3)",
    "is less than minConcurrency",
)];

const FAULT: &[Rule] = &[("", "has(self.delay) || has(self.abort)", "has neither delay nor abort")];

const ABORT: &[Rule] = &[
    ("", "has(self.httpStatus) || has(self.grpcStatus)", "has neither httpStatus nor grpcStatus"),
    ("grpcStatus", "!has(self.httpStatus) || !has(self.grpcStatus)", "excludes httpStatus"),
];
