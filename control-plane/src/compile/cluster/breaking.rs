//! When a cluster, or one of its endpoints, gets no requests: outlier detection, limits, health checks, and the
//! service circuit, for which xDS has no word.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::{Thresholds, thresholds::RetryBudget};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, OutlierDetection};
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use envoy_types::pb::envoy::config::core::v3::{HealthCheck as EnvoyCheck, RoutingPriority};
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use envoy_types::pb::google::protobuf::UInt32Value;
use weft_wire::xds::{Protocol, field};

use super::super::defaults;
use super::super::proto::{Fields, duration, percent, uint32};
use crate::world::policy::{
    EndpointBreaker, HealthCheck, Limits, Probe, RetryBudget as Budget, ServiceCircuit, Settings,
};

/// Switches an ejection on or off: of how many endpoints that deserve it, percent.
fn enforce(on: bool) -> Option<UInt32Value> {
    Some(uint32(if on { 100 } else { 0 }))
}

pub(super) fn outlier_detection(breaker: &EndpointBreaker) -> OutlierDetection {
    let failures = breaker.consecutive_failures.unwrap_or(defaults::CONSECUTIVE);
    // Gateway failures are server errors too: without a threshold of their own, those count them.
    let gateway = breaker.consecutive_gateway_failures.unwrap_or(0);
    let local = breaker.consecutive_local_origin_failures.unwrap_or(defaults::CONSECUTIVE);
    let base = breaker.base_ejection_time.unwrap_or(defaults::BASE_EJECTION);
    let jitter = breaker.ejection_time_jitter.filter(|jitter| !jitter.is_zero());
    let mut outlier = OutlierDetection {
        consecutive_5xx: Some(uint32(failures.max(1))),
        enforcing_consecutive_5xx: enforce(failures > 0),
        consecutive_gateway_failure: Some(uint32(gateway.max(1))),
        enforcing_consecutive_gateway_failure: enforce(gateway > 0),
        // What the network does to a call says something else than what the app answers.
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: Some(uint32(local.max(1))),
        enforcing_consecutive_local_origin_failure: enforce(local > 0),
        interval: Some(duration(breaker.interval.unwrap_or(defaults::INTERVAL))),
        base_ejection_time: Some(duration(base)),
        max_ejection_time: Some(duration(
            breaker.max_ejection_time.unwrap_or(defaults::MAX_EJECTION).max(base),
        )),
        max_ejection_time_jitter: jitter.map(duration),
        max_ejection_percent: Some(uint32(
            breaker.max_ejection_percent.unwrap_or(defaults::MAX_EJECTION_PERCENT).into(),
        )),
        // Ratios need more traffic than many callers have, so they count only where they are asked for.
        enforcing_success_rate: enforce(breaker.success_rate.is_some()),
        enforcing_local_origin_success_rate: enforce(breaker.success_rate.is_some()),
        enforcing_failure_percentage: enforce(breaker.failure_percentage.is_some()),
        enforcing_failure_percentage_local_origin: enforce(breaker.failure_percentage.is_some()),
        ..Default::default()
    };
    if let Some(rate) = &breaker.success_rate {
        outlier.success_rate_stdev_factor = Some(uint32(rate.stdev_factor_thousandths));
        outlier.success_rate_minimum_hosts = Some(uint32(rate.minimum_hosts));
        outlier.success_rate_request_volume = Some(uint32(rate.request_volume));
    }
    if let Some(failures) = &breaker.failure_percentage {
        outlier.failure_percentage_threshold = Some(uint32(failures.threshold.into()));
        outlier.failure_percentage_minimum_hosts = Some(uint32(failures.minimum_hosts));
        outlier.failure_percentage_request_volume = Some(uint32(failures.request_volume));
    }
    outlier
}

pub(super) fn circuit_breakers(limits: &Limits, budget: &Budget) -> CircuitBreakers {
    // Where both are there, xDS lets the budget win; so a bound that was set instead of a budget comes alone.
    let fixed = limits.max_retries.filter(|_| *budget == Budget::default());
    let retry_budget = fixed.is_none().then(|| RetryBudget {
        budget_percent: Some(percent(budget.percent.unwrap_or(defaults::BUDGET_PERCENT))),
        min_retry_concurrency: Some(uint32(budget.min_concurrency.unwrap_or(defaults::BUDGET_MIN))),
        ..Default::default()
    });
    let thresholds = Thresholds {
        priority: RoutingPriority::Default.into(),
        max_connections: Some(uint32(limits.max_connections.unwrap_or(defaults::CONNECTIONS_MAX))),
        max_pending_requests: Some(uint32(limits.max_pending_requests.unwrap_or(defaults::PENDING_MAX))),
        max_requests: Some(uint32(limits.max_requests.unwrap_or(defaults::REQUESTS_MAX))),
        max_retries: fixed.map(uint32),
        retry_budget,
        ..Default::default()
    };
    CircuitBreakers { thresholds: vec![thresholds], ..Default::default() }
}

/// The service circuit, in Weft's metadata; nothing where no policy asks for one.
pub(super) fn service_circuit(fields: Fields, settings: &Settings) -> Fields {
    let circuit = &settings.circuit;
    if *circuit == ServiceCircuit::default() {
        return fields;
    }
    let millis = |time: Duration| time.as_millis();
    let open = circuit.open_for.unwrap_or(defaults::CIRCUIT_OPEN);
    let open_max = circuit.open_for_max.unwrap_or(defaults::CIRCUIT_OPEN_MAX).max(open);
    let fields = fields
        .with(field::CIRCUIT_WINDOW_MS, millis(circuit.window.unwrap_or(defaults::CIRCUIT_WINDOW)))
        .with(field::CIRCUIT_MINIMUM_CALLS, circuit.minimum_calls.unwrap_or(defaults::CIRCUIT_MINIMUM_CALLS))
        .with(field::CIRCUIT_ERROR_PERCENT, circuit.error_percent.unwrap_or(defaults::CIRCUIT_ERROR_PERCENT))
        .with(field::CIRCUIT_OPEN_MS, millis(open))
        .with(field::CIRCUIT_OPEN_MAX_MS, millis(open_max))
        .with(field::CIRCUIT_PROBES, circuit.half_open_probes.unwrap_or(defaults::CIRCUIT_PROBES));
    match &circuit.slow_call {
        Some(slow) => fields
            .with(field::CIRCUIT_SLOW_MS, millis(slow.threshold))
            .with(field::CIRCUIT_SLOW_PERCENT, slow.percent),
        None => fields,
    }
}

pub(super) fn health_check(check: &HealthCheck, protocol: Option<Protocol>) -> EnvoyCheck {
    EnvoyCheck {
        timeout: Some(duration(check.timeout)),
        interval: Some(duration(check.interval)),
        interval_jitter_percent: defaults::PROBE_JITTER_PERCENT,
        // A sidecar has only the clusters that are called, so the first call should find their health known.
        no_traffic_interval: Some(duration(check.interval)),
        healthy_threshold: Some(uint32(check.healthy_threshold)),
        unhealthy_threshold: Some(uint32(check.unhealthy_threshold)),
        health_checker: Some(checker(&check.probe, protocol)),
        ..Default::default()
    }
}

fn checker(probe: &Probe, protocol: Option<Protocol>) -> HealthChecker {
    match probe {
        Probe::Tcp => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
        Probe::Grpc { service } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: service.to_string(),
            ..Default::default()
        }),
        Probe::Http { path, host, statuses } => {
            let range =
                |(from, to): &(u16, u16)| Int64Range { start: (*from).into(), end: i64::from(*to) + 1 };
            let codec = match protocol {
                Some(Protocol::Http2) => CodecClientType::Http2,
                Some(Protocol::Http | Protocol::Tcp | Protocol::Tls) | None => CodecClientType::Http1,
            };
            HealthChecker::HttpHealthCheck(HttpHealthCheck {
                host: host.as_deref().unwrap_or_default().to_owned(),
                path: path.to_string(),
                expected_statuses: statuses.iter().map(range).collect(),
                codec_client_type: codec.into(),
                ..Default::default()
            })
        }
    }
}
