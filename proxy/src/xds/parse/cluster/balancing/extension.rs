//! `load_balancing_policy`: the same policies as messages of their own. The first one known counts, as xDS has it.

use envoy_types::pb::envoy::config::cluster::v3::{LoadBalancingPolicy, load_balancing_policy};
use envoy_types::pb::envoy::extensions::load_balancing_policies as policies;
use envoy_types::pb::google::protobuf::Any;
use policies::common::v3::locality_lb_config::{
    LocalityConfigSpecifier, ZoneAwareLbConfig, zone_aware_lb_config,
};
use policies::common::v3::{ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig};
use policies::least_request::v3::{LeastRequest, least_request::SelectionMethod};
use policies::maglev::v3::Maglev;
use policies::random::v3::Random;
use policies::ring_hash::v3::{RingHash, ring_hash::HashFunction};
use policies::round_robin::v3::RoundRobin;

use super::super::super::{Invalid, Labels, decode};
use super::{bias_of, choices, consistent_hashing, maglev, ring, slow_start, zone_preference};
use crate::balance::policy::{Algorithm, Policy, SlowStart, ZonePreference};

/// A policy's package and message, and how it is read.
type Reader = fn(&Any, &str, &Labels<'_>) -> Result<Policy, Invalid>;

const READERS: [(&str, Reader); 5] = [
    ("envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin", round_robin),
    ("envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest", least_request),
    ("envoy.extensions.load_balancing_policies.random.v3.Random", random),
    ("envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash", ring_hash),
    ("envoy.extensions.load_balancing_policies.maglev.v3.Maglev", by_maglev),
];

pub(super) fn policy(
    list: &LoadBalancingPolicy,
    place: &str,
    labels: &Labels<'_>,
) -> Result<Policy, Invalid> {
    let configs = list.policies.iter().map(typed_config).enumerate();
    for (position, config) in configs {
        let place = format!("{place}.policies[{position}].typed_extension_config.typed_config");
        let config = config.ok_or_else(|| Invalid::missing(place.clone()))?;
        let name = config.type_url.rsplit('/').next().unwrap_or_default();
        if let Some((_, read)) = READERS.iter().find(|(known, _)| *known == name) {
            return read(config, &place, labels);
        }
    }
    let first = list.policies.first().and_then(typed_config).map_or("", |config| &config.type_url);
    let what: String = first.chars().take(200).collect();
    if what.is_empty() {
        return Err(Invalid::missing(format!("{place}.policies")));
    }
    Err(Invalid::unsupported(format!("{place}.policies"), what))
}

fn typed_config(policy: &load_balancing_policy::Policy) -> Option<&Any> {
    policy.typed_extension_config.as_ref()?.typed_config.as_ref()
}

fn round_robin(config: &Any, place: &str, labels: &Labels<'_>) -> Result<Policy, Invalid> {
    let config: RoundRobin = decode(config, place)?;
    Ok(Policy {
        algorithm: Algorithm::RoundRobin,
        slow_start: slow(config.slow_start_config.as_ref(), place)?,
        zone: zone(config.locality_lb_config.as_ref(), place, labels)?,
        ..Policy::default()
    })
}

fn least_request(config: &Any, place: &str, labels: &Labels<'_>) -> Result<Policy, Invalid> {
    let config: LeastRequest = decode(config, place)?;
    #[expect(deprecated, reason = "older control planes still write it, and Envoy still honours it")]
    let full = config.selection_method == SelectionMethod::FullScan as i32
        || config.enable_full_scan.is_some_and(|enable| enable.value);
    let choices = if full { u32::MAX } else { choices(config.choice_count.as_ref(), place)? };
    let bias = bias_of(config.active_request_bias.as_ref().map(|bias| bias.default_value), place)?;
    Ok(Policy {
        algorithm: Algorithm::LeastRequest { choices, bias },
        slow_start: slow(config.slow_start_config.as_ref(), place)?,
        zone: zone(config.locality_lb_config.as_ref(), place, labels)?,
        ..Policy::default()
    })
}

fn random(config: &Any, place: &str, labels: &Labels<'_>) -> Result<Policy, Invalid> {
    let config: Random = decode(config, place)?;
    let zone = zone(config.locality_lb_config.as_ref(), place, labels)?;
    Ok(Policy { algorithm: Algorithm::Random, zone, ..Policy::default() })
}

fn ring_hash(config: &Any, place: &str, _: &Labels<'_>) -> Result<Policy, Invalid> {
    let config: RingHash = decode(config, place)?;
    if config.hash_function == HashFunction::MurmurHash2 as i32 {
        return Err(Invalid::unsupported(format!("{place}.hash_function"), "MURMUR_HASH_2"));
    }
    #[expect(deprecated, reason = "older control planes still write them, and Envoy still honours them")]
    consistent_hashing(config.use_hostname_for_hashing, config.hash_balance_factor.as_ref(), place)?;
    hashing(
        config.consistent_hashing_lb_config.as_ref(),
        config.locality_weighted_lb_config.is_some(),
        place,
    )?;
    let sizes = (config.minimum_ring_size.as_ref(), config.maximum_ring_size.as_ref());
    Ok(Policy { algorithm: ring(sizes.0, sizes.1, place)?, ..Policy::default() })
}

fn by_maglev(config: &Any, place: &str, _: &Labels<'_>) -> Result<Policy, Invalid> {
    let config: Maglev = decode(config, place)?;
    hashing(
        config.consistent_hashing_lb_config.as_ref(),
        config.locality_weighted_lb_config.is_some(),
        place,
    )?;
    Ok(Policy { algorithm: maglev(config.table_size.as_ref(), place)?, ..Policy::default() })
}

fn hashing(config: Option<&ConsistentHashingLbConfig>, localities: bool, place: &str) -> Result<(), Invalid> {
    if localities {
        return Err(weighted_localities(place));
    }
    let Some(config) = config else { return Ok(()) };
    let place = format!("{place}.consistent_hashing_lb_config");
    if !config.hash_policy.is_empty() {
        return Err(Invalid::unsupported(
            format!("{place}.hash_policy"),
            "a hash policy of the cluster's own",
        ));
    }
    consistent_hashing(config.use_hostname_for_hashing, config.hash_balance_factor.as_ref(), &place)
}

fn weighted_localities(place: &str) -> Invalid {
    Invalid::unsupported(format!("{place}.locality_weighted_lb_config"), "weighted localities")
}

fn slow(config: Option<&SlowStartConfig>, place: &str) -> Result<Option<SlowStart>, Invalid> {
    let Some(slow) = config else { return Ok(None) };
    let place = format!("{place}.slow_start_config");
    let aggression = slow.aggression.as_ref().map(|aggression| aggression.default_value);
    slow_start(slow.slow_start_window.as_ref(), aggression, slow.min_weight_percent.as_ref(), &place)
        .map(Some)
}

fn zone(
    config: Option<&LocalityLbConfig>,
    place: &str,
    labels: &Labels<'_>,
) -> Result<Option<ZonePreference>, Invalid> {
    let place = format!("{place}.locality_lb_config");
    match config.and_then(|config| config.locality_config_specifier.as_ref()) {
        None => Ok(None),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => Err(weighted_localities(&place)),
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            zone_aware(zone, &format!("{place}.zone_aware_lb_config"), labels)
        }
    }
}

fn zone_aware(
    zone: &ZoneAwareLbConfig,
    place: &str,
    labels: &Labels<'_>,
) -> Result<Option<ZonePreference>, Invalid> {
    if zone.fail_traffic_on_panic {
        return Err(Invalid::unsupported(format!("{place}.fail_traffic_on_panic"), "failing in panic"));
    }
    if zone.locality_basis != zone_aware_lb_config::LocalityBasis::HealthyHostsNum as i32 {
        return Err(Invalid::unsupported(format!("{place}.locality_basis"), "zones by weight"));
    }
    let routing = zone.routing_enabled.as_ref();
    let preference = zone_preference(routing, zone.min_cluster_size.as_ref(), place, labels)?;
    let min_own =
        zone.force_local_zone.as_ref().and_then(|force| force.min_size).map_or(1, |size| size.value);
    Ok(preference.map(|preference| ZonePreference { min_own: min_own.max(1), ..preference }))
}
