//! CircuitBreaker: when an endpoint or a whole service gets no more calls for a while.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{self, Rule};
use super::{At, TARGETS, TargetRef, not_shorter};
use crate::resources::{Refusal, Segment};
use crate::world::policy::{
    EndpointBreaker, FailurePercentage, Limits, ServiceCircuit, Settings, SlowCall, SuccessRate,
};

/// Calls that a half-open circuit lets through at once, at most: a sidecar counts them in one word.
const PROBES_MAX: u32 = 63;
/// Longest rolling window: a sidecar keeps it in slots, and what is older than an hour is no news.
const WINDOW_MAX: Duration = Duration::from_secs(3600);

/// What a CircuitBreaker says. Every sidecar that calls the service judges by what it sees itself.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CircuitBreakerSpec {
    /// The Services, or ports of them, that it is for.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = schema::rules(&[TARGETS, &[SERVICES]].concat())))]
    pub target_refs: Vec<TargetRef>,
    /// The circuit of each endpoint: an endpoint that fails is ejected for a while (Envoy's outlier detection).
    #[serde(default)]
    pub endpoints: EndpointSpec,
    /// The circuit of the whole service: there is one if anything is set here.
    #[serde(default)]
    pub service: ServiceSpec,
    /// How much may be under way to the service, from one sidecar.
    #[serde(default)]
    pub limits: LimitsSpec,
}

/// The circuit of each endpoint.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(ENDPOINTS)))]
pub struct EndpointSpec {
    /// Server errors (5xx) in a row that eject an endpoint; 0 is never.
    #[serde(default)]
    #[schemars(with = "Option<schema::Count>")]
    pub consecutive_failures: Option<i64>,
    /// 502, 503 and 504 in a row that do; 0 is never.
    #[serde(default)]
    #[schemars(with = "Option<schema::Count>")]
    pub consecutive_gateway_failures: Option<i64>,
    /// Connect failures, timeouts and resets in a row that do; 0 is never.
    #[serde(default)]
    #[schemars(with = "Option<schema::Count>")]
    pub consecutive_local_origin_failures: Option<i64>,
    /// How often ratios are evaluated, and ejected endpoints looked at.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub interval: Option<String>,
    /// How long the first ejection lasts; each further one in a row is longer by this.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub base_ejection_time: Option<String>,
    /// How long an ejection lasts at most.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub max_ejection_time: Option<String>,
    /// Up to this is added at random, so that sidecars do not all return at once.
    #[serde(default)]
    #[schemars(with = "Option<schema::Time>")]
    pub ejection_time_jitter: Option<String>,
    /// Share of the endpoints that may be ejected at once, percent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Percent>")]
    pub max_ejection_percent: Option<i64>,
    /// Ejection by share of failures.
    #[serde(default)]
    pub failure_percentage: Option<FailurePercentageSpec>,
    /// Ejection by deviation from the other endpoints' success rate.
    #[serde(default)]
    pub success_rate: Option<SuccessRateSpec>,
}

/// Ejects an endpoint whose share of failures in an interval is at least this.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailurePercentageSpec {
    /// The share, percent; 85 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::PositivePercent>")]
    pub threshold: Option<i64>,
    /// Endpoints with enough requests that there must be; 5 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Count>")]
    pub minimum_hosts: Option<i64>,
    /// Requests in an interval that are enough; 50 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Count>")]
    pub request_volume: Option<i64>,
}

/// Ejects an endpoint whose success rate in an interval is this far below the mean of all.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRateSpec {
    /// How many standard deviations; 1.9 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Factor>")]
    pub stdev_factor: Option<f64>,
    /// Endpoints with enough requests that there must be; 5 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Count>")]
    pub minimum_hosts: Option<i64>,
    /// Requests in an interval that are enough; 100 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Count>")]
    pub request_volume: Option<i64>,
}

/// The circuit of the whole service: closed, open, half open.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(SERVICE)))]
pub struct ServiceSpec {
    /// Length of the rolling window that is looked at.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub window: Option<String>,
    /// Calls in the window below which the circuit never opens.
    #[serde(default)]
    #[schemars(with = "Option<schema::Positive>")]
    pub minimum_calls: Option<i64>,
    /// Share of failures at which it opens, percent.
    #[serde(default)]
    #[schemars(with = "Option<schema::PositivePercent>")]
    pub error_percent: Option<i64>,
    /// Share of slow calls at which it opens.
    #[serde(default)]
    pub slow_call: Option<SlowCallSpec>,
    /// How long it stays open before it is half open.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub open_for: Option<String>,
    /// How long it stays open at most: the time doubles with every probe that fails.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub open_for_max: Option<String>,
    /// Calls that are let through while it is half open; all of them must succeed to close it.
    #[serde(default)]
    #[schemars(range(min = 1, max = 63))]
    pub half_open_probes: Option<i64>,
}

/// What counts as slow, and how much of it is too much.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
pub struct SlowCallSpec {
    /// A call that takes at least this long is slow.
    #[schemars(with = "schema::Span")]
    pub threshold: String,
    /// Share of slow calls at which the circuit opens, percent; 80 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::PositivePercent>")]
    pub percent: Option<i64>,
}

/// How much may be under way at once, to all endpoints together. What is beyond is refused at once.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitsSpec {
    /// Connections.
    #[serde(default)]
    #[schemars(with = "Option<schema::Positive>")]
    pub max_connections: Option<i64>,
    /// Requests that wait for a connection.
    #[serde(default)]
    #[schemars(with = "Option<schema::Positive>")]
    pub max_pending_requests: Option<i64>,
    /// Requests.
    #[serde(default)]
    #[schemars(with = "Option<schema::Positive>")]
    pub max_requests: Option<i64>,
    /// Retries, in place of the retry budget.
    #[serde(default)]
    #[schemars(with = "Option<schema::Count>")]
    pub max_retries: Option<i64>,
}

const SERVICES: Rule = (
    "",
    "self.all(target, target.kind == 'Service')",
    "names a route: a circuit belongs to a Service, a route has no endpoints",
);

const ENDPOINTS: &[Rule] = &[(
    "maxEjectionTime",
    "!has(self.maxEjectionTime) || !has(self.baseEjectionTime) || \
     duration(self.maxEjectionTime) >= duration(self.baseEjectionTime)",
    "is shorter than baseEjectionTime",
)];

const SERVICE: &[Rule] = &[
    ("window", "!has(self.window) || duration(self.window) <= duration('1h')", "is longer than 1h"),
    (
        "openForMax",
        "!has(self.openForMax) || !has(self.openFor) || duration(self.openForMax) >= duration(self.openFor)",
        "is shorter than openFor",
    ),
];

pub(super) fn settings(spec: &CircuitBreakerSpec, at: &[Segment]) -> Result<Settings, Refusal> {
    Ok(Settings {
        endpoints: endpoints(&spec.endpoints, &path![@at; "endpoints"])?,
        circuit: service(&spec.service, &path![@at; "service"])?,
        limits: limits(&spec.limits, &path![@at; "limits"])?,
        ..Settings::default()
    })
}

fn endpoints(spec: &EndpointSpec, path: &[Segment]) -> Result<EndpointBreaker, Refusal> {
    let at = At(path);
    let count = |field: &str, number| at.number(field, number, 0, u32::MAX);
    let base_ejection_time = at.span("baseEjectionTime", spec.base_ejection_time.as_ref())?;
    let max_ejection_time = at.span("maxEjectionTime", spec.max_ejection_time.as_ref())?;
    not_shorter(at.field("maxEjectionTime"), max_ejection_time, base_ejection_time, "baseEjectionTime")?;
    Ok(EndpointBreaker {
        consecutive_failures: count("consecutiveFailures", spec.consecutive_failures)?,
        consecutive_gateway_failures: count("consecutiveGatewayFailures", spec.consecutive_gateway_failures)?,
        consecutive_local_origin_failures: count(
            "consecutiveLocalOriginFailures",
            spec.consecutive_local_origin_failures,
        )?,
        interval: at.span("interval", spec.interval.as_ref())?,
        base_ejection_time,
        max_ejection_time,
        ejection_time_jitter: at.time("ejectionTimeJitter", spec.ejection_time_jitter.as_ref())?,
        max_ejection_percent: at.percent("maxEjectionPercent", spec.max_ejection_percent, 0)?,
        failure_percentage: match &spec.failure_percentage {
            Some(spec) => Some(failure_percentage(spec, &path![@path; "failurePercentage"])?),
            None => None,
        },
        success_rate: match &spec.success_rate {
            Some(spec) => Some(success_rate(spec, &path![@path; "successRate"])?),
            None => None,
        },
    })
}

fn failure_percentage(spec: &FailurePercentageSpec, path: &[Segment]) -> Result<FailurePercentage, Refusal> {
    let at = At(path);
    Ok(FailurePercentage {
        threshold: at.percent("threshold", spec.threshold, 1)?.unwrap_or(85),
        minimum_hosts: at.number("minimumHosts", spec.minimum_hosts, 0, u32::MAX)?.unwrap_or(5),
        request_volume: at.number("requestVolume", spec.request_volume, 0, u32::MAX)?.unwrap_or(50),
    })
}

fn success_rate(spec: &SuccessRateSpec, path: &[Segment]) -> Result<SuccessRate, Refusal> {
    let at = At(path);
    let factor = spec.stdev_factor.map(|factor| at.thousandths("stdevFactor", factor, 100.0)).transpose()?;
    Ok(SuccessRate {
        stdev_factor_thousandths: factor.unwrap_or(1900),
        minimum_hosts: at.number("minimumHosts", spec.minimum_hosts, 0, u32::MAX)?.unwrap_or(5),
        request_volume: at.number("requestVolume", spec.request_volume, 0, u32::MAX)?.unwrap_or(100),
    })
}

fn service(spec: &ServiceSpec, path: &[Segment]) -> Result<ServiceCircuit, Refusal> {
    let at = At(path);
    let window = at.span("window", spec.window.as_ref())?;
    if window.is_some_and(|window| window > WINDOW_MAX) {
        return Err((at.field("window"), "is longer than 1h".into()));
    }
    let open_for = at.span("openFor", spec.open_for.as_ref())?;
    let open_for_max = at.span("openForMax", spec.open_for_max.as_ref())?;
    not_shorter(at.field("openForMax"), open_for_max, open_for, "openFor")?;
    Ok(ServiceCircuit {
        window,
        minimum_calls: at.number("minimumCalls", spec.minimum_calls, 1, u32::MAX)?,
        error_percent: at.percent("errorPercent", spec.error_percent, 1)?,
        slow_call: match &spec.slow_call {
            Some(spec) => Some(slow_call(spec, &path![@path; "slowCall"])?),
            None => None,
        },
        open_for,
        open_for_max,
        half_open_probes: at.number("halfOpenProbes", spec.half_open_probes, 1, PROBES_MAX)?,
    })
}

fn slow_call(spec: &SlowCallSpec, path: &[Segment]) -> Result<SlowCall, Refusal> {
    let at = At(path);
    let threshold = at.span("threshold", Some(&spec.threshold))?.unwrap_or_default();
    Ok(SlowCall { threshold, percent: at.percent("percent", spec.percent, 1)?.unwrap_or(80) })
}

fn limits(spec: &LimitsSpec, path: &[Segment]) -> Result<Limits, Refusal> {
    let at = At(path);
    let limit = |field: &str, number, min| at.number(field, number, min, u32::MAX);
    Ok(Limits {
        // A service that gets no connection or no request at all is not limited but switched off.
        max_connections: limit("maxConnections", spec.max_connections, 1)?,
        max_pending_requests: limit("maxPendingRequests", spec.max_pending_requests, 1)?,
        max_requests: limit("maxRequests", spec.max_requests, 1)?,
        max_retries: limit("maxRetries", spec.max_retries, 0)?,
    })
}
