//! Which balancing is taken, and how a refusal reads.

use std::time::Duration as Time;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    LeastRequestLbConfig, MaglevLbConfig, RoundRobinLbConfig, common_lb_config as common,
};
use envoy_types::pb::envoy::config::cluster::v3::{LoadBalancingPolicy, load_balancing_policy};
use envoy_types::pb::envoy::config::core::v3::{RuntimeDouble, TypedExtensionConfig};
use envoy_types::pb::envoy::extensions::load_balancing_policies as policies;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::super::super::super::plane;
use super::super::super::{AGE, explain};
use super::*;

fn of(cluster: &Cluster) -> Result<Policy, String> {
    let labels = Labels::of(cluster.metadata.as_ref(), "cluster");
    policy(cluster, &labels).map_err(|error| explain(&error))
}

fn named(policy: LbPolicy, config: Option<LbConfig>) -> Cluster {
    Cluster { lb_policy: policy as i32, lb_config: config, ..Default::default() }
}

fn algorithm(policy: LbPolicy, config: Option<LbConfig>) -> Result<Algorithm, String> {
    of(&named(policy, config)).map(|policy| policy.algorithm)
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn typed(configs: Vec<Any>) -> Cluster {
    let policies = configs.into_iter().map(|config| load_balancing_policy::Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: String::new(),
            typed_config: Some(config),
        }),
    });
    let list = LoadBalancingPolicy { policies: policies.collect() };
    Cluster { load_balancing_policy: Some(list), ..Default::default() }
}

#[test]
fn each_policy_is_taken_with_its_defaults() {
    assert_eq!(algorithm(LbPolicy::RoundRobin, None), Ok(Algorithm::RoundRobin));
    assert_eq!(
        algorithm(LbPolicy::LeastRequest, None),
        Ok(Algorithm::LeastRequest { choices: 2, bias: 1.0 })
    );
    assert_eq!(algorithm(LbPolicy::Random, None), Ok(Algorithm::Random));
    assert_eq!(
        algorithm(LbPolicy::RingHash, None),
        Ok(Algorithm::RingHash { minimum: 1024, maximum: RING_MAX })
    );
    assert_eq!(algorithm(LbPolicy::Maglev, None), Ok(Algorithm::Maglev { size: 65_537 }));
    assert_eq!(of(&Cluster::default()).map(|policy| policy.panic_percent), Ok(50));
}

#[test]
fn peak_ewma_is_least_request_to_others() {
    let labelled = |word| Cluster {
        metadata: plane::labels(&[("balancer", word)]),
        ..named(LbPolicy::LeastRequest, None)
    };
    assert_eq!(of(&labelled("peak_ewma")).map(|policy| policy.algorithm), Ok(Algorithm::PeakEwma));
    assert_eq!(
        of(&labelled("guess")),
        Err("cluster.metadata[weft.dev].balancer: \"guess\" is not a balancer".into())
    );
}

#[test]
fn sizes_have_bounds() {
    let ring = |minimum: u64, maximum: u64| {
        LbConfig::RingHashLbConfig(RingHashLbConfig {
            minimum_ring_size: Some(UInt64Value { value: minimum }),
            maximum_ring_size: Some(UInt64Value { value: maximum }),
            ..Default::default()
        })
    };
    assert_eq!(
        algorithm(LbPolicy::RingHash, Some(ring(100, 200))),
        Ok(Algorithm::RingHash { minimum: 100, maximum: 200 })
    );
    assert_eq!(
        algorithm(LbPolicy::RingHash, Some(ring(300, 200))),
        Err("ring_hash_lb_config.minimum_ring_size: \"300\" is more than the maximum".into())
    );
    assert_eq!(
        algorithm(LbPolicy::RingHash, Some(ring(100, 8_000_000))),
        Err("ring_hash_lb_config.maximum_ring_size: a ring of more than 262144 entries is not supported by this proxy"
            .into())
    );
    let table = |value| LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(UInt64Value { value }) });
    assert_eq!(algorithm(LbPolicy::Maglev, Some(table(1009))), Ok(Algorithm::Maglev { size: 1009 }));
    assert_eq!(
        algorithm(LbPolicy::Maglev, Some(table(1010))),
        Err("maglev_lb_config.table_size: \"1010\" is not prime".into())
    );
    assert!(algorithm(LbPolicy::Maglev, Some(table(5_000_011))).is_err());
    let one = LeastRequestLbConfig { choice_count: Some(UInt32Value { value: 1 }), ..Default::default() };
    assert_eq!(
        algorithm(LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(one))),
        Err("least_request_lb_config.choice_count: \"1\" is less than 2".into())
    );
}

#[test]
fn slow_start_is_taken_with_its_shape() {
    let slow = |seconds, aggression: Option<f64>| {
        let config = RoundRobinLbConfig {
            slow_start_config: Some(SlowStartConfig {
                slow_start_window: Some(Duration { seconds, nanos: 0 }),
                aggression: aggression
                    .map(|default_value| RuntimeDouble { default_value, runtime_key: String::new() }),
                min_weight_percent: None,
            }),
        };
        of(&named(LbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(config))))
    };
    let expected = SlowStart { window: Time::from_secs(60), aggression: 2.0, min_weight_percent: 10.0 };
    assert_eq!(slow(60, Some(2.0)).map(|policy| policy.slow_start), Ok(Some(expected)));
    assert_eq!(
        slow(60, Some(0.0)),
        Err("round_robin_lb_config.slow_start_config.aggression.default_value: \"0\" is not positive".into())
    );
    assert!(slow(0, None).is_err_and(|error| error.contains("slow_start_window")));
    let endless = slow(i64::MAX, None).map(|policy| policy.slow_start.map(|slow| slow.window));
    assert_eq!(endless, Ok(Some(AGE)), "added to a moment it is still a moment");
}

#[test]
fn panic_and_zones_are_taken_or_refused_by_place() {
    let with = |common: CommonLbConfig| {
        of(&Cluster { common_lb_config: Some(common), ..named(LbPolicy::RoundRobin, None) })
    };
    let panic = |value| {
        let healthy_panic_threshold = Some(Percent { value });
        with(CommonLbConfig { healthy_panic_threshold, ..Default::default() })
    };
    assert_eq!(panic(30.0).map(|policy| policy.panic_percent), Ok(30));
    assert_eq!(panic(0.0).map(|policy| policy.panic_percent), Ok(0));
    assert_eq!(
        panic(101.0),
        Err("common_lb_config.healthy_panic_threshold.value: \"101\" is not a percentage".into())
    );
    let zone = |enabled: Option<f64>| {
        let aware = common::ZoneAwareLbConfig {
            routing_enabled: enabled.map(|value| Percent { value }),
            min_cluster_size: None,
            fail_traffic_on_panic: false,
        };
        with(CommonLbConfig {
            locality_config_specifier: Some(LocalityConfigSpecifier::ZoneAwareLbConfig(aware)),
            ..Default::default()
        })
        .map(|policy| policy.zone)
    };
    let preference = ZonePreference { min_cluster_size: 6, min_own: 1, min_healthy_percent: 70 };
    assert_eq!(zone(None), Ok(Some(preference)));
    assert_eq!(zone(Some(0.0)), Ok(None));
    assert!(zone(Some(50.0)).is_err_and(|error| error.starts_with("common_lb_config.zone_aware_lb_config.")));
    let weighted = LocalityConfigSpecifier::LocalityWeightedLbConfig(common::LocalityWeightedLbConfig {});
    assert_eq!(
        with(CommonLbConfig { locality_config_specifier: Some(weighted), ..Default::default() }),
        Err("common_lb_config.locality_weighted_lb_config: weighted localities is not supported by this proxy"
            .into())
    );
    let bounded = common::ConsistentHashingLbConfig {
        hash_balance_factor: Some(UInt32Value { value: 120 }),
        ..Default::default()
    };
    assert!(
        with(CommonLbConfig { consistent_hashing_lb_config: Some(bounded), ..Default::default() })
            .is_err_and(|error| error.contains("hash_balance_factor: bounded load"))
    );
}

#[test]
fn the_first_known_extension_counts() {
    let strange = Any { type_url: "type.googleapis.com/acme.Oracle".into(), value: vec![] };
    let maglev =
        policies::maglev::v3::Maglev { table_size: Some(UInt64Value { value: 1009 }), ..Default::default() };
    let random = policies::random::v3::Random::default();
    let list = typed(vec![strange.clone(), any(&maglev), any(&random)]);
    assert_eq!(of(&list).map(|policy| policy.algorithm), Ok(Algorithm::Maglev { size: 1009 }));
    assert_eq!(
        of(&typed(vec![strange])),
        Err("load_balancing_policy.policies: type.googleapis.com/acme.Oracle is not supported by this proxy"
            .into())
    );
    let full = policies::least_request::v3::LeastRequest {
        selection_method: policies::least_request::v3::least_request::SelectionMethod::FullScan as i32,
        ..Default::default()
    };
    let full = of(&typed(vec![any(&full)])).map(|policy| policy.algorithm);
    assert_eq!(full, Ok(Algorithm::LeastRequest { choices: u32::MAX, bias: 1.0 }));
    let local = policies::common::v3::LocalityLbConfig {
        locality_config_specifier: Some(
            policies::common::v3::locality_lb_config::LocalityConfigSpecifier::ZoneAwareLbConfig(
                policies::common::v3::locality_lb_config::ZoneAwareLbConfig {
                    force_local_zone: Some(
                        policies::common::v3::locality_lb_config::zone_aware_lb_config::ForceLocalZone {
                            min_size: Some(UInt32Value { value: 3 }),
                        },
                    ),
                    ..Default::default()
                },
            ),
        ),
    };
    let robin =
        policies::round_robin::v3::RoundRobin { locality_lb_config: Some(local), ..Default::default() };
    let zone = of(&typed(vec![any(&robin)])).map(|policy| policy.zone.map(|zone| zone.min_own));
    assert_eq!(zone, Ok(Some(3)));
    let ring = policies::ring_hash::v3::RingHash {
        hash_function: policies::ring_hash::v3::ring_hash::HashFunction::MurmurHash2 as i32,
        ..Default::default()
    };
    assert_eq!(
        of(&typed(vec![any(&ring)])),
        Err("load_balancing_policy.policies[0].typed_extension_config.typed_config.hash_function: MURMUR_HASH_2 \
             is not supported by this proxy"
            .into())
    );
}
