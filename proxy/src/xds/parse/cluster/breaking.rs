//! When a cluster or one of its endpoints gets no request: `outlier_detection`, `circuit_breakers`, `health_checks`, and
//! the service circuit, which stands in Weft's metadata because xDS has no word for it.
//!
//! Defaults and limits are Envoy's; what Envoy would refuse is refused, and so is what this proxy cannot honour. Times are
//! counted in milliseconds, as there. Surprise: thresholds of priority HIGH are passed over, because a route that asks
//! for that priority is refused.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::{Thresholds, thresholds::RetryBudget};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, OutlierDetection};
use envoy_types::pb::envoy::config::core::v3::RoutingPriority;
use envoy_types::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};
use weft_wire::xds::field;

use super::super::{AGE, Invalid, Labels};
use super::{duration, positive};
use crate::balance::breaker::limits::{self, Retries, Share};
use crate::balance::breaker::outlier::{self, Enforcing, FailurePercentage, SuccessRate};
use crate::balance::breaker::{Settings, circuit};

mod checks;

/// Shortest time that counts.
const TICK: Duration = Duration::from_millis(1);

/// Longest window of a service circuit: what is older than an hour is no news.
const WINDOW_MAX: u64 = 60 * 60 * 1000;

/// Longest time a service circuit stays open, and slowest call it can tell: a day.
const TIME_MAX: u64 = 24 * 60 * 60 * 1000;

/// Reads what guards a cluster.
pub(super) fn settings(cluster: &Cluster, labels: &Labels<'_>) -> Result<Settings, Invalid> {
    if cluster.close_connections_on_host_health_failure {
        let place = "close_connections_on_host_health_failure";
        return Err(Invalid::unsupported(place, "closing connections in use"));
    }
    Ok(Settings {
        outlier: cluster.outlier_detection.as_ref().map(outlier).transpose()?,
        circuit: circuit(labels)?,
        limits: cluster.circuit_breakers.as_ref().map_or(Ok(limits::Settings::default()), limits)?,
        checks: checks::read(&cluster.health_checks)?,
    })
}

fn outlier(message: &OutlierDetection) -> Result<outlier::Settings, Invalid> {
    let unsupported = [
        (!message.monitors.is_empty(), "monitors", "a plugin"),
        (
            message.detect_degraded_hosts.is_some_and(|detect| detect.value),
            "detect_degraded_hosts",
            "sparing endpoints that call themselves degraded",
        ),
    ];
    for (set, field, what) in unsupported {
        if set {
            return Err(Invalid::unsupported(format!("outlier_detection.{field}"), what));
        }
    }
    let default = outlier::Settings::default();
    let base = time(message.base_ejection_time.as_ref(), "outlier_detection.base_ejection_time")?
        .unwrap_or(default.base_ejection_time);
    let longest = time(message.max_ejection_time.as_ref(), "outlier_detection.max_ejection_time")?;
    if let Some(longest) = longest.filter(|longest| *longest < base) {
        let text = format!("{longest:?}");
        let problem = "is less than base_ejection_time";
        return Err(Invalid::value("outlier_detection.max_ejection_time", &text, problem));
    }
    Ok(outlier::Settings {
        interval: time(message.interval.as_ref(), "outlier_detection.interval")?.unwrap_or(default.interval),
        base_ejection_time: base,
        max_ejection_time: longest.unwrap_or(default.max_ejection_time.max(base)),
        max_ejection_time_jitter: extra(
            message.max_ejection_time_jitter.as_ref(),
            "outlier_detection.max_ejection_time_jitter",
        )?,
        max_ejection_percent: share(
            message.max_ejection_percent.as_ref(),
            "max_ejection_percent",
            default.max_ejection_percent,
        )?,
        always_eject_one: message.always_eject_one_host.is_some_and(|always| always.value),
        consecutive_5xx: number(&message.consecutive_5xx, default.consecutive_5xx),
        consecutive_gateway_failure: number(
            &message.consecutive_gateway_failure,
            default.consecutive_gateway_failure,
        ),
        consecutive_local_origin_failure: number(
            &message.consecutive_local_origin_failure,
            default.consecutive_local_origin_failure,
        ),
        split: message.split_external_local_origin_errors,
        success_rate: SuccessRate {
            minimum_hosts: number(&message.success_rate_minimum_hosts, default.success_rate.minimum_hosts),
            request_volume: number(&message.success_rate_request_volume, default.success_rate.request_volume),
            stdev_factor: number(&message.success_rate_stdev_factor, default.success_rate.stdev_factor),
        },
        failure_percentage: failure_percentage(message, &default.failure_percentage)?,
        enforcing: enforcing(message, &default.enforcing)?,
        health_check_unejects: message
            .successful_active_health_check_uneject_host
            .is_none_or(|unejects| unejects.value),
    })
}

fn failure_percentage(
    message: &OutlierDetection,
    default: &FailurePercentage,
) -> Result<FailurePercentage, Invalid> {
    Ok(FailurePercentage {
        threshold: share(
            message.failure_percentage_threshold.as_ref(),
            "failure_percentage_threshold",
            default.threshold,
        )?,
        minimum_hosts: number(&message.failure_percentage_minimum_hosts, default.minimum_hosts),
        request_volume: number(&message.failure_percentage_request_volume, default.request_volume),
    })
}

fn enforcing(message: &OutlierDetection, default: &Enforcing) -> Result<Enforcing, Invalid> {
    let read = |value: &Option<UInt32Value>, what: &str, default: u8| {
        share(value.as_ref(), &format!("enforcing_{what}"), default)
    };
    Ok(Enforcing {
        consecutive_5xx: read(
            &message.enforcing_consecutive_5xx,
            "consecutive_5xx",
            default.consecutive_5xx,
        )?,
        consecutive_gateway_failure: read(
            &message.enforcing_consecutive_gateway_failure,
            "consecutive_gateway_failure",
            default.consecutive_gateway_failure,
        )?,
        consecutive_local_origin_failure: read(
            &message.enforcing_consecutive_local_origin_failure,
            "consecutive_local_origin_failure",
            default.consecutive_local_origin_failure,
        )?,
        success_rate: read(&message.enforcing_success_rate, "success_rate", default.success_rate)?,
        success_rate_local_origin: read(
            &message.enforcing_local_origin_success_rate,
            "local_origin_success_rate",
            default.success_rate_local_origin,
        )?,
        failure_percentage: read(
            &message.enforcing_failure_percentage,
            "failure_percentage",
            default.failure_percentage,
        )?,
        failure_percentage_local_origin: read(
            &message.enforcing_failure_percentage_local_origin,
            "failure_percentage_local_origin",
            default.failure_percentage_local_origin,
        )?,
    })
}

fn number(value: &Option<UInt32Value>, default: u32) -> u32 {
    value.as_ref().map_or(default, |value| value.value)
}

/// Percent of an outlier detection.
fn share(value: Option<&UInt32Value>, field: &str, default: u8) -> Result<u8, Invalid> {
    let Some(value) = value else { return Ok(default) };
    u8::try_from(value.value).ok().filter(|percent| *percent <= 100).ok_or_else(|| {
        let place = format!("outlier_detection.{field}");
        Invalid::value(place, &value.value.to_string(), "is more than 100")
    })
}

/// A time that is positive where it is set.
fn time(value: Option<&ProtoDuration>, place: &str) -> Result<Option<Duration>, Invalid> {
    value.map(|value| positive(value, place).map(|time| time.max(TICK))).transpose()
}

/// A time that may be nothing.
fn extra(value: Option<&ProtoDuration>, place: &str) -> Result<Duration, Invalid> {
    let Some(value) = value else { return Ok(Duration::ZERO) };
    duration(value).map(|time| time.min(AGE)).ok_or_else(|| {
        let text = format!("{}s {}ns", value.seconds, value.nanos);
        Invalid::value(place, &text, "is not a duration")
    })
}

fn limits(breakers: &CircuitBreakers) -> Result<limits::Settings, Invalid> {
    if !breakers.per_host_thresholds.is_empty() {
        let place = "circuit_breakers.per_host_thresholds";
        return Err(Invalid::unsupported(place, "limits for each endpoint"));
    }
    let default = RoutingPriority::Default as i32;
    // The first one counts, as in Envoy.
    let found = breakers.thresholds.iter().enumerate().find(|(_, one)| one.priority == default);
    match found {
        None => Ok(limits::Settings::default()),
        Some((position, thresholds)) => {
            read_thresholds(thresholds, &format!("circuit_breakers.thresholds[{position}]"))
        }
    }
}

fn read_thresholds(thresholds: &Thresholds, place: &str) -> Result<limits::Settings, Invalid> {
    // There is one pool for each endpoint, so a bound on their number would have to be one on endpoints.
    if thresholds.max_connection_pools.is_some() {
        let place = format!("{place}.max_connection_pools");
        return Err(Invalid::unsupported(place, "a bound on connection pools"));
    }
    Ok(limits::Settings {
        max_connections: number(&thresholds.max_connections, limits::MAX_CONNECTIONS),
        max_pending_requests: number(&thresholds.max_pending_requests, limits::MAX_PENDING_REQUESTS),
        max_requests: number(&thresholds.max_requests, limits::MAX_REQUESTS),
        retries: match &thresholds.retry_budget {
            Some(budget) => read_budget(budget, &format!("{place}.retry_budget"))?,
            None => Retries::Max(number(&thresholds.max_retries, limits::MAX_RETRIES)),
        },
    })
}

fn read_budget(budget: &RetryBudget, place: &str) -> Result<Retries, Invalid> {
    let field = format!("{place}.budget_interval");
    if !extra(budget.budget_interval.as_ref(), &field)?.is_zero() {
        return Err(Invalid::unsupported(field, "a budget of requests that have ended"));
    }
    let percent = budget.budget_percent.as_ref().map_or(limits::BUDGET_PERCENT, |percent| percent.value);
    let share = Share::percent(percent).ok_or_else(|| {
        Invalid::value(format!("{place}.budget_percent.value"), &percent.to_string(), "is not a percentage")
    })?;
    let minimum = budget.min_retry_concurrency.as_ref();
    let min_concurrency = minimum.map_or(limits::MIN_RETRY_CONCURRENCY, |minimum| minimum.value);
    Ok(Retries::Budget { share, min_concurrency })
}

/// Fields of a service circuit; without the first there is none.
const CIRCUIT: [&str; 8] = [
    field::CIRCUIT_WINDOW_MS,
    field::CIRCUIT_MINIMUM_CALLS,
    field::CIRCUIT_ERROR_PERCENT,
    field::CIRCUIT_SLOW_MS,
    field::CIRCUIT_SLOW_PERCENT,
    field::CIRCUIT_OPEN_MS,
    field::CIRCUIT_OPEN_MAX_MS,
    field::CIRCUIT_PROBES,
];

fn circuit(labels: &Labels<'_>) -> Result<Option<circuit::Settings>, Invalid> {
    let number = |key: &str, least: u64, most: u64| -> Result<Option<u64>, Invalid> {
        let Some(text) = labels.text(key) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| labels.nonsense(key, text, "is out of range"))
    };
    let millis = |key: &str, most: u64| number(key, 1, most).map(|found| found.map(Duration::from_millis));
    let percent = |key: &str| number(key, 1, 100).map(|found| found.map(|percent| percent as u8));
    let Some(window) = millis(field::CIRCUIT_WINDOW_MS, WINDOW_MAX)? else {
        let stray = CIRCUIT.into_iter().find_map(|key| labels.text(key).map(|text| (key, text)));
        return match stray {
            None => Ok(None),
            Some((key, text)) => Err(labels.nonsense(key, text, "has no circuit_window_ms beside it")),
        };
    };
    let slow_percent = percent(field::CIRCUIT_SLOW_PERCENT)?;
    let slow = millis(field::CIRCUIT_SLOW_MS, TIME_MAX)?
        .map(|threshold| circuit::Slow { threshold, percent: slow_percent.unwrap_or(circuit::SLOW_PERCENT) });
    if let (None, Some(text)) = (slow, labels.text(field::CIRCUIT_SLOW_PERCENT)) {
        return Err(labels.nonsense(field::CIRCUIT_SLOW_PERCENT, text, "has no circuit_slow_ms beside it"));
    }
    let open = millis(field::CIRCUIT_OPEN_MS, TIME_MAX)?.unwrap_or(circuit::OPEN);
    let open_max = match millis(field::CIRCUIT_OPEN_MAX_MS, TIME_MAX)? {
        None => circuit::OPEN_MAX.max(open),
        Some(longest) if longest >= open => longest,
        Some(longest) => {
            let text = longest.as_millis().to_string();
            return Err(labels.nonsense(field::CIRCUIT_OPEN_MAX_MS, &text, "is less than circuit_open_ms"));
        }
    };
    let probes = number(field::CIRCUIT_PROBES, 1, u64::from(circuit::PROBES_MAX))?;
    let minimum_calls = number(field::CIRCUIT_MINIMUM_CALLS, 1, u64::from(u32::MAX))?;
    Ok(Some(circuit::Settings {
        window,
        minimum_calls: minimum_calls.map_or(circuit::MINIMUM_CALLS, |calls| calls as u32),
        error_percent: percent(field::CIRCUIT_ERROR_PERCENT)?.unwrap_or(circuit::ERROR_PERCENT),
        slow,
        open,
        open_max,
        probes: probes.map_or(circuit::PROBES, |probes| probes as u8),
    }))
}

#[cfg(test)]
mod tests;
