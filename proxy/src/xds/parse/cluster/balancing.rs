//! Which of a cluster's endpoints serves a request: `lb_policy` and the messages around it, or `load_balancing_policy`.

use envoy_types::pb::envoy::config::cluster::v3::{
    Cluster,
    cluster::{
        CommonLbConfig, LbConfig, LbPolicy, RingHashLbConfig, SlowStartConfig,
        common_lb_config::LocalityConfigSpecifier, ring_hash_lb_config::HashFunction,
    },
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{Duration, UInt32Value, UInt64Value};
use weft_wire::xds::{PEAK_EWMA, ZONE_MIN_HEALTHY_PERCENT, field};

use super::super::{Invalid, Labels};
use super::positive;
use crate::balance::algorithm::maglev;
use crate::balance::policy::{Algorithm, MAGLEV_MAX, Policy, RING_MAX, SlowStart, ZonePreference};

mod extension;

/// What xDS means by an unset `choice_count`.
const CHOICES_DEFAULT: u32 = 2;

/// What xDS means by an unset `minimum_ring_size`.
const RING_MIN_DEFAULT: u64 = 1024;

/// What xDS means by an unset `healthy_panic_threshold`, percent.
const PANIC_DEFAULT: u32 = 50;

/// What xDS means by an unset `min_weight_percent`.
const MIN_WEIGHT_DEFAULT: f64 = 10.0;

/// What xDS means by an unset `zone_aware_lb_config.min_cluster_size`.
const ZONE_CLUSTER_SIZE_DEFAULT: u64 = 6;

/// How a cluster balances.
pub(super) fn policy(cluster: &Cluster, labels: &Labels<'_>) -> Result<Policy, Invalid> {
    if cluster.lb_subset_config.as_ref().is_some_and(|subsets| !subsets.subset_selectors.is_empty()) {
        return Err(Invalid::unsupported("lb_subset_config", "choosing by metadata"));
    }
    let common = cluster.common_lb_config.as_ref();
    let mut policy = match &cluster.load_balancing_policy {
        Some(list) => extension::policy(list, "load_balancing_policy", labels)?,
        None => by_enum(cluster)?,
    };
    if let Some(common) = common {
        read_common(common, &mut policy, labels)?;
    }
    match labels.text(field::BALANCER) {
        None => {}
        Some(PEAK_EWMA) => policy.algorithm = Algorithm::PeakEwma,
        Some(other) => return Err(labels.nonsense(field::BALANCER, other, "is not a balancer")),
    }
    Ok(policy)
}

fn by_enum(cluster: &Cluster) -> Result<Policy, Invalid> {
    let config = cluster.lb_config.as_ref();
    let (algorithm, slow_start) = match LbPolicy::try_from(cluster.lb_policy) {
        Ok(LbPolicy::RoundRobin) => {
            let slow = match config {
                Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
                _ => None,
            };
            (Algorithm::RoundRobin, slow.map(|slow| legacy_slow_start(slow, "round_robin_lb_config")))
        }
        Ok(LbPolicy::LeastRequest) => {
            let place = "least_request_lb_config";
            let config = match config {
                Some(LbConfig::LeastRequestLbConfig(config)) => Some(config),
                _ => None,
            };
            let choices = choices(config.and_then(|config| config.choice_count.as_ref()), place)?;
            let bias = config.and_then(|config| config.active_request_bias.as_ref());
            let bias = bias_of(bias.map(|bias| bias.default_value), place)?;
            let slow = config.and_then(|config| config.slow_start_config.as_ref());
            (Algorithm::LeastRequest { choices, bias }, slow.map(|slow| legacy_slow_start(slow, place)))
        }
        Ok(LbPolicy::Random) => (Algorithm::Random, None),
        Ok(LbPolicy::RingHash) => {
            let config = match config {
                Some(LbConfig::RingHashLbConfig(config)) => *config,
                _ => RingHashLbConfig::default(),
            };
            if config.hash_function != HashFunction::XxHash as i32 {
                return Err(Invalid::unsupported("ring_hash_lb_config.hash_function", "MURMUR_HASH_2"));
            }
            let sizes = (config.minimum_ring_size.as_ref(), config.maximum_ring_size.as_ref());
            (ring(sizes.0, sizes.1, "ring_hash_lb_config")?, None)
        }
        Ok(LbPolicy::Maglev) => {
            let size = match config {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size.as_ref(),
                _ => None,
            };
            (maglev(size, "maglev_lb_config")?, None)
        }
        Ok(other @ (LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig)) => {
            return Err(Invalid::unsupported("lb_policy", other.as_str_name()));
        }
        Err(_) => {
            let text = cluster.lb_policy.to_string();
            return Err(Invalid::value("lb_policy", &text, "is not a balancing policy"));
        }
    };
    Ok(Policy { algorithm, slow_start: slow_start.transpose()?, ..Policy::default() })
}

fn read_common(common: &CommonLbConfig, policy: &mut Policy, labels: &Labels<'_>) -> Result<(), Invalid> {
    if let Some(hashing) = &common.consistent_hashing_lb_config {
        let place = "common_lb_config.consistent_hashing_lb_config";
        consistent_hashing(hashing.use_hostname_for_hashing, hashing.hash_balance_factor.as_ref(), place)?;
    }
    policy.panic_percent = match &common.healthy_panic_threshold {
        None => PANIC_DEFAULT,
        Some(threshold) => percent(threshold, "common_lb_config.healthy_panic_threshold")?.round() as u32,
    };
    match &common.locality_config_specifier {
        None => {}
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            let place = "common_lb_config.locality_weighted_lb_config";
            return Err(Invalid::unsupported(place, "weighted localities"));
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            let place = "common_lb_config.zone_aware_lb_config";
            if zone.fail_traffic_on_panic {
                return Err(Invalid::unsupported(
                    format!("{place}.fail_traffic_on_panic"),
                    "failing in panic",
                ));
            }
            let routing = zone.routing_enabled.as_ref();
            policy.zone = zone_preference(routing, zone.min_cluster_size.as_ref(), place, labels)?;
        }
    }
    Ok(())
}

fn zone_preference(
    routing_enabled: Option<&Percent>,
    min_cluster_size: Option<&UInt64Value>,
    place: &str,
    labels: &Labels<'_>,
) -> Result<Option<ZonePreference>, Invalid> {
    let field = format!("{place}.routing_enabled");
    let enabled = routing_enabled.map_or(Ok(100.0), |enabled| percent(enabled, &field))?;
    if enabled == 0.0 {
        return Ok(None);
    }
    if enabled < 100.0 {
        return Err(Invalid::unsupported(field, "preferring the own zone for a share of requests"));
    }
    let min_healthy_percent =
        match labels.text(field::ZONE_MIN_HEALTHY_PERCENT) {
            None => ZONE_MIN_HEALTHY_PERCENT,
            Some(text) => text.parse().ok().filter(|percent| *percent <= 100).ok_or_else(|| {
                labels.nonsense(field::ZONE_MIN_HEALTHY_PERCENT, text, "is not a percentage")
            })?,
        };
    let min_cluster_size = min_cluster_size.map_or(ZONE_CLUSTER_SIZE_DEFAULT, |size| size.value);
    let min_cluster_size = u32::try_from(min_cluster_size).unwrap_or(u32::MAX);
    Ok(Some(ZonePreference { min_cluster_size, min_own: 1, min_healthy_percent }))
}

fn consistent_hashing(
    use_hostname: bool,
    balance_factor: Option<&UInt32Value>,
    place: &str,
) -> Result<(), Invalid> {
    if use_hostname {
        let place = format!("{place}.use_hostname_for_hashing");
        return Err(Invalid::unsupported(place, "hashing by host name"));
    }
    if balance_factor.is_some_and(|factor| factor.value != 0) {
        return Err(Invalid::unsupported(format!("{place}.hash_balance_factor"), "bounded load"));
    }
    Ok(())
}

fn choices(count: Option<&UInt32Value>, place: &str) -> Result<u32, Invalid> {
    match count {
        None => Ok(CHOICES_DEFAULT),
        Some(count) if count.value >= 2 => Ok(count.value),
        Some(count) => {
            let text = count.value.to_string();
            Err(Invalid::value(format!("{place}.choice_count"), &text, "is less than 2"))
        }
    }
}

fn bias_of(bias: Option<f64>, place: &str) -> Result<f64, Invalid> {
    match bias {
        None => Ok(1.0),
        Some(bias) if bias.is_finite() && bias >= 0.0 => Ok(bias),
        Some(bias) => {
            let place = format!("{place}.active_request_bias.default_value");
            Err(Invalid::value(place, &bias.to_string(), "is not 0 or more"))
        }
    }
}

fn ring(
    minimum: Option<&UInt64Value>,
    maximum: Option<&UInt64Value>,
    place: &str,
) -> Result<Algorithm, Invalid> {
    let size = |value: Option<&UInt64Value>, default: u64, field: &str| {
        let value = value.map_or(default, |value| value.value);
        let fits = u32::try_from(value).ok().filter(|size| *size <= RING_MAX);
        fits.ok_or_else(|| {
            let what = format!("a ring of more than {RING_MAX} entries");
            Invalid::unsupported(format!("{place}.{field}"), what)
        })
    };
    let minimum = size(minimum, RING_MIN_DEFAULT, "minimum_ring_size")?;
    let maximum = size(maximum, u64::from(RING_MAX), "maximum_ring_size")?;
    if minimum > maximum {
        let text = minimum.to_string();
        return Err(Invalid::value(format!("{place}.minimum_ring_size"), &text, "is more than the maximum"));
    }
    Ok(Algorithm::RingHash { minimum, maximum })
}

fn maglev(size: Option<&UInt64Value>, place: &str) -> Result<Algorithm, Invalid> {
    let value = size.map_or(u64::from(maglev::SIZE_DEFAULT), |size| size.value);
    let place = format!("{place}.table_size");
    let Some(size) = u32::try_from(value).ok().filter(|size| *size <= MAGLEV_MAX) else {
        return Err(Invalid::unsupported(place, format!("a table of more than {MAGLEV_MAX} entries")));
    };
    if !maglev::is_prime(size) {
        return Err(Invalid::value(place, &size.to_string(), "is not prime"));
    }
    Ok(Algorithm::Maglev { size })
}

fn legacy_slow_start(slow: &SlowStartConfig, place: &str) -> Result<SlowStart, Invalid> {
    let place = format!("{place}.slow_start_config");
    let aggression = slow.aggression.as_ref().map(|aggression| aggression.default_value);
    slow_start(slow.slow_start_window.as_ref(), aggression, slow.min_weight_percent.as_ref(), &place)
}

fn slow_start(
    window: Option<&Duration>,
    aggression: Option<f64>,
    min_weight: Option<&Percent>,
    place: &str,
) -> Result<SlowStart, Invalid> {
    let field = format!("{place}.slow_start_window");
    let window = positive(window.ok_or_else(|| Invalid::missing(field.clone()))?, &field)?;
    let aggression = aggression.unwrap_or(1.0);
    if !(aggression.is_finite() && aggression > 0.0) {
        let place = format!("{place}.aggression.default_value");
        return Err(Invalid::value(place, &aggression.to_string(), "is not positive"));
    }
    let field = format!("{place}.min_weight_percent");
    let min_weight_percent = min_weight.map_or(Ok(MIN_WEIGHT_DEFAULT), |weight| percent(weight, &field))?;
    Ok(SlowStart { window, aggression, min_weight_percent })
}

fn percent(percent: &Percent, place: &str) -> Result<f64, Invalid> {
    if (0.0..=100.0).contains(&percent.value) {
        return Ok(percent.value);
    }
    Err(Invalid::value(format!("{place}.value"), &percent.value.to_string(), "is not a percentage"))
}

#[cfg(test)]
mod tests;
