//! How one of a cluster's endpoints is chosen.

use cluster::common_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig};
use cluster::{
    CommonLbConfig, LbConfig, LbPolicy, LeastRequestLbConfig, RoundRobinLbConfig, SlowStartConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::google::protobuf::UInt64Value;
use weft_wire::xds::{PEAK_EWMA, field};

use super::super::defaults;
use super::super::proto::{Fields, duration, percent};
use crate::world::policy::{Algorithm, Balancer, SlowStart};

/// Zones are preferred in a cluster of any size.
const ZONE_CLUSTER_SIZE_MIN: u64 = 1;

/// Sets the balancer. Gives the fields back with what xDS has no word for.
pub(super) fn apply(cluster: &mut Cluster, balancer: &Balancer, fields: Fields) -> Fields {
    let algorithm = balancer.algorithm.unwrap_or(Algorithm::PeakEwma);
    let slow_start_config = balancer.slow_start.as_ref().map(slow_start);
    let slow = slow_start_config.is_some();
    let (policy, config) = match algorithm {
        // A client that does not know peak EWMA falls back to what is nearest.
        Algorithm::LeastRequest | Algorithm::PeakEwma => {
            let config = LeastRequestLbConfig { slow_start_config, ..Default::default() };
            (LbPolicy::LeastRequest, slow.then_some(LbConfig::LeastRequestLbConfig(config)))
        }
        Algorithm::Maglev => (LbPolicy::Maglev, None),
        Algorithm::Random => (LbPolicy::Random, None),
        Algorithm::RingHash => (LbPolicy::RingHash, None),
        Algorithm::RoundRobin => {
            let config = RoundRobinLbConfig { slow_start_config };
            (LbPolicy::RoundRobin, slow.then_some(LbConfig::RoundRobinLbConfig(config)))
        }
    };
    cluster.lb_policy = policy.into();
    cluster.lb_config = config;
    cluster.common_lb_config = Some(common(balancer));
    let fields =
        if algorithm == Algorithm::PeakEwma { fields.with(field::BALANCER, PEAK_EWMA) } else { fields };
    match balancer.zone_preference.as_ref().and_then(|zone| zone.min_healthy_percent) {
        Some(percent) => fields.with(field::ZONE_MIN_HEALTHY_PERCENT, percent),
        None => fields,
    }
}

fn common(balancer: &Balancer) -> CommonLbConfig {
    let zone = balancer.zone_preference.as_ref().is_some_and(|zone| zone.enabled);
    let zone = ZoneAwareLbConfig {
        routing_enabled: Some(percent(if zone { 100 } else { 0 })),
        min_cluster_size: zone.then_some(UInt64Value { value: ZONE_CLUSTER_SIZE_MIN }),
        ..Default::default()
    };
    CommonLbConfig {
        healthy_panic_threshold: Some(percent(balancer.panic_threshold.unwrap_or(defaults::PANIC_PERCENT))),
        locality_config_specifier: Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)),
        ..Default::default()
    }
}

fn slow_start(slow: &SlowStart) -> SlowStartConfig {
    SlowStartConfig {
        slow_start_window: Some(duration(slow.window)),
        aggression: Some(RuntimeDouble {
            default_value: f64::from(slow.aggression_thousandths) / 1000.0,
            // The field is required, the key is not looked up here.
            runtime_key: "weft.slow_start_aggression".to_owned(),
        }),
        min_weight_percent: Some(percent(slow.min_weight_percent)),
    }
}
