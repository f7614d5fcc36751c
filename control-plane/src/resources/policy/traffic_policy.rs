//! TrafficPolicy: how a service is called, and what is done to its requests on the way.

mod spec;

use std::collections::BTreeSet;
use std::time::Duration;

use weft_wire::{ServiceId, ServicePort};

use super::{At, balancing, not_shorter, probing};
use crate::resources::gateway::{self, ATTEMPTS_MAX};
use crate::resources::{Refusal, Segment};
use crate::world::policy::{
    Abort, AbortStatus, Concurrency, Delay, Fault, PolicyMirror, RateKey, RateLimit, Retry, RetryBudget,
    RetryOn, Settings, Timeouts,
};
use crate::world::{BackendRef, Pattern, ValueMatch};

pub use balancing::{CookieSpec, HashOnSpec, LoadBalancerSpec, SlowStartSpec, ZonePreferenceSpec};
pub use probing::HealthCheckSpec;
pub use spec::{
    AbortSpec, AdaptiveSpec, ConcurrencySpec, DelaySpec, FaultSpec, HeaderSpec, MirrorRefSpec, MirrorSpec,
    RateLimitSpec, RetryBudgetSpec, RetrySpec, TimeoutsSpec, TrafficPolicySpec,
};

/// Shortest time in which a bucket is filled: Envoy fills no faster.
const FILL_MIN: Duration = Duration::from_millis(50);
/// What can have a bucket of its own: as many words as there are.
const RATE_KEYS_MAX: usize = 3;
/// Headers that select requests for a fault.
const FAULT_HEADERS_MAX: usize = 16;

/// See [`super::instead_of`].
pub(super) fn instead_of(path: &[Segment]) -> Option<&'static str> {
    let [.., Segment::Key(retry), Segment::Key(field)] = path else { return None };
    (retry == "retry" && matches!(field.as_str(), "on" | "true"))
        .then_some("it is called retryOn, because YAML's `on` is a truth value to kubectl")
}

pub(super) fn settings(
    spec: &TrafficPolicySpec,
    namespace: &str,
    on_route: bool,
    path: &[Segment],
) -> Result<Settings, Refusal> {
    let settings = Settings {
        timeouts: timeouts(&spec.timeouts, &path![@path; "timeouts"])?,
        retry: retry(&spec.retry, &path![@path; "retry"])?,
        retry_budget: budget(&spec.retry_budget, &path![@path; "retryBudget"])?,
        balancer: balancing::balancer(&spec.load_balancer, &path![@path; "loadBalancer"])?,
        health_check: each(&spec.health_check, path, "healthCheck", probing::health_check)?,
        rate_limit: match &spec.rate_limit {
            Some(spec) => Some(rate_limit(spec, on_route, &path![@path; "rateLimit"])?),
            None => None,
        },
        concurrency: each(&spec.concurrency, path, "concurrency", |spec, path| {
            adaptive(&spec.adaptive, &path![@path; "adaptive"])
        })?,
        fault: each(&spec.fault, path, "fault", fault)?,
        mirror: match &spec.mirror {
            Some(spec) => Some(mirror(spec, namespace, &path![@path; "mirror"])?),
            None => None,
        },
        ..Settings::default()
    };
    if on_route {
        only_for_routes(&settings, path)?;
    }
    Ok(settings)
}

fn each<S, T>(
    spec: &Option<S>,
    path: &[Segment],
    field: &str,
    read: impl FnOnce(&S, &[Segment]) -> Result<T, Refusal>,
) -> Result<Option<T>, Refusal> {
    spec.as_ref().map(|spec| read(spec, &path![@path; field])).transpose()
}

/// A route decides about requests; connections and endpoints are its backends' matter.
fn only_for_routes(settings: &Settings, path: &[Segment]) -> Result<(), Refusal> {
    let balancer = &settings.balancer;
    let fields = [
        (settings.timeouts.connect.is_some(), vec!["timeouts", "connect"]),
        (settings.retry_budget != RetryBudget::default(), vec!["retryBudget"]),
        (balancer.algorithm.is_some(), vec!["loadBalancer", "type"]),
        (balancer.slow_start.is_some(), vec!["loadBalancer", "slowStart"]),
        (balancer.panic_threshold.is_some(), vec!["loadBalancer", "panicThreshold"]),
        (balancer.zone_preference.is_some(), vec!["loadBalancer", "zonePreference"]),
        (settings.health_check.is_some(), vec!["healthCheck"]),
        (settings.concurrency.is_some(), vec!["concurrency"]),
    ];
    match fields.into_iter().find(|(set, _)| *set) {
        Some((_, field)) => {
            let at = path.iter().cloned().chain(field.into_iter().map(Segment::from)).collect();
            Err((at, "is for Services only, and the policy targets a route".into()))
        }
        None => Ok(()),
    }
}

fn timeouts(spec: &TimeoutsSpec, path: &[Segment]) -> Result<Timeouts, Refusal> {
    let at = At(path);
    let request = at.time("request", spec.request.as_ref())?;
    let backend_request = at.time("backendRequest", spec.backend_request.as_ref())?;
    let limited = request.filter(|request| !request.is_zero());
    not_shorter(at.field("request"), limited, backend_request, "backendRequest, which is part of it")?;
    let connect = at.span("connect", spec.connect.as_ref())?;
    Ok(Timeouts { request, backend_request, connect })
}

fn retry(spec: &RetrySpec, path: &[Segment]) -> Result<Retry, Refusal> {
    let at = At(path);
    let mut on = None;
    for (index, word) in spec.retry_on.iter().flatten().enumerate() {
        let known = RetryOn::ALL.into_iter().find(|one| one.word() == word);
        let words = || RetryOn::ALL.map(RetryOn::word).join(", ");
        let known = known
            .ok_or_else(|| (path![@path; "retryOn", index], format!("{word:?} is not one of {}", words())))?;
        on.get_or_insert_with(BTreeSet::new).insert(known);
    }
    if spec.retry_on.as_ref().is_some_and(Vec::is_empty) {
        return Err((at.field("retryOn"), "is empty: set attempts to 0 for no retries".into()));
    }
    let mut statuses = BTreeSet::new();
    for (index, code) in spec.status_codes.iter().flatten().enumerate() {
        let status = u16::try_from(*code).ok().filter(|status| (400..600).contains(status));
        let reason = || format!("{code} is not an error status (400 to 599)");
        statuses.insert(status.ok_or_else(|| (path![@path; "statusCodes", index], reason()))?);
    }
    let backoff = at.span("backoff", spec.backoff.as_ref())?;
    let backoff_max = at.span("backoffMax", spec.backoff_max.as_ref())?;
    not_shorter(at.field("backoffMax"), backoff_max, backoff, "backoff")?;
    Ok(Retry {
        attempts: at.number("attempts", spec.attempts, 0, ATTEMPTS_MAX)?,
        on,
        statuses: spec.status_codes.is_some().then_some(statuses),
        backoff,
        backoff_max,
        per_try_timeout: at.time("perTryTimeout", spec.per_try_timeout.as_ref())?,
    })
}

fn budget(spec: &RetryBudgetSpec, path: &[Segment]) -> Result<RetryBudget, Refusal> {
    let at = At(path);
    Ok(RetryBudget {
        percent: at.percent("percent", spec.percent, 0)?,
        min_concurrency: at.number("minConcurrency", spec.min_concurrency, 0, u32::MAX)?,
    })
}

fn rate_limit(spec: &RateLimitSpec, on_route: bool, path: &[Segment]) -> Result<RateLimit, Refusal> {
    let at = At(path);
    let requests = at.number("requests", Some(spec.requests), 1, u32::MAX)?.unwrap_or(1);
    let per = at.span("per", spec.per.as_ref())?.unwrap_or(Duration::from_secs(1));
    if per < FILL_MIN {
        return Err((at.field("per"), "is shorter than 50ms".into()));
    }
    let burst = at.number("burst", spec.burst, 1, u32::MAX)?.unwrap_or(requests);
    if spec.by.as_ref().is_some_and(|by| by.len() > RATE_KEYS_MAX) {
        return Err((at.field("by"), format!("has more than {RATE_KEYS_MAX} entries")));
    }
    let mut by = BTreeSet::new();
    for (index, word) in spec.by.iter().flatten().enumerate() {
        by.insert(match word.as_str() {
            "service" if on_route => {
                let reason = "service is for Services only, and the policy targets a route";
                return Err((path![@path; "by", index], reason.into()));
            }
            "service" => RateKey::Service,
            "route" => RateKey::Route,
            "caller" => RateKey::Caller,
            other => {
                let reason = format!("{other:?} is not one of service, route, caller");
                return Err((path![@path; "by", index], reason));
            }
        });
    }
    if by.contains(&RateKey::Service) && by.len() > 1 {
        return Err((at.field("by"), "service excludes route and caller".into()));
    }
    if on_route {
        by.insert(RateKey::Route);
    }
    Ok(RateLimit { requests, per, burst, by })
}

fn adaptive(spec: &AdaptiveSpec, path: &[Segment]) -> Result<Concurrency, Refusal> {
    let at = At(path);
    let count = |field: &str, number, or| Ok(at.number(field, number, 1, u32::MAX)?.unwrap_or(or));
    let limits = Concurrency {
        sample_percentile: at.percent("samplePercentile", spec.sample_percentile, 1)?.unwrap_or(50),
        interval: at
            .span("updateInterval", spec.update_interval.as_ref())?
            .unwrap_or(Duration::from_millis(100)),
        max: count("maxConcurrency", spec.max_concurrency, 1000)?,
        min_rtt_interval: at
            .span("minRttInterval", spec.min_rtt_interval.as_ref())?
            .unwrap_or(Duration::from_secs(60)),
        min_rtt_requests: count("minRttRequests", spec.min_rtt_requests, 50)?,
        min_concurrency: count("minConcurrency", spec.min_concurrency, 3)?,
        jitter_percent: at.percent("jitterPercent", spec.jitter_percent, 0)?.unwrap_or(15),
        buffer_percent: at.percent("bufferPercent", spec.buffer_percent, 0)?.unwrap_or(25),
    };
    if limits.max < limits.min_concurrency {
        return Err((
            at.field("maxConcurrency"),
            format!("is less than minConcurrency ({})", limits.min_concurrency),
        ));
    }
    Ok(limits)
}

fn fault(spec: &FaultSpec, path: &[Segment]) -> Result<Fault, Refusal> {
    let delay = each(&spec.delay, path, "delay", |spec, path| {
        let at = At(path);
        let fixed = at.span("fixed", Some(&spec.fixed))?.unwrap_or_default();
        Ok(Delay { fixed, share: at.share("percent", spec.percent)? })
    })?;
    let abort = each(&spec.abort, path, "abort", abort)?;
    if delay.is_none() && abort.is_none() {
        return Err((path.to_vec(), "has neither delay nor abort".into()));
    }
    if spec.headers.len() > FAULT_HEADERS_MAX {
        return Err((path![@path; "headers"], format!("has more than {FAULT_HEADERS_MAX} entries")));
    }
    let headers = spec.headers.iter().enumerate().map(|(index, header)| {
        let name = gateway::header_name(&header.name, path![@path; "headers", index, "name"])?;
        Ok(ValueMatch { name, value: Pattern::Exact(header.value.as_str().into()) })
    });
    Ok(Fault { delay, abort, headers: headers.collect::<Result<_, Refusal>>()? })
}

fn abort(spec: &AbortSpec, path: &[Segment]) -> Result<Abort, Refusal> {
    let at = At(path);
    let http = at.number("httpStatus", spec.http_status, 200, 599)?;
    let grpc = at.number("grpcStatus", spec.grpc_status, 0, 16)?;
    let status = match (http, grpc) {
        (Some(status), None) => AbortStatus::Http(u16::try_from(status).unwrap_or(500)),
        (None, Some(status)) => AbortStatus::Grpc(status),
        (None, None) => return Err((path.to_vec(), "has neither httpStatus nor grpcStatus".into())),
        (Some(_), Some(_)) => return Err((at.field("grpcStatus"), "excludes httpStatus".into())),
    };
    Ok(Abort { status, share: at.share("percent", spec.percent)? })
}

fn mirror(spec: &MirrorSpec, namespace: &str, path: &[Segment]) -> Result<PolicyMirror, Refusal> {
    let at = path![@path; "backendRef"];
    let namespace = spec.backend_ref.namespace.as_deref().unwrap_or(namespace);
    let service = ServiceId::new(namespace, &spec.backend_ref.name)
        .map_err(|error| (path![@at; "name"], error.to_string()))?;
    let port = gateway::port(spec.backend_ref.port, path![@at; "port"])?;
    let share = At(path).share("percent", spec.percent.unwrap_or(100.0))?;
    Ok(PolicyMirror { to: BackendRef::Service(ServicePort { service, port }), share })
}
