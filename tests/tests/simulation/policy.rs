//! What a cluster is told to do, by chance.
//!
//! Times are short, so that a minute of the story sees every ejection and every open circuit end.

use std::time::Duration;

use fastrand::Rng;
use weft_proxy::balance::breaker::limits::{self, Retries, Share};
use weft_proxy::balance::breaker::outlier::{Enforcing, FailurePercentage, SuccessRate};
use weft_proxy::balance::breaker::{self, circuit, outlier};
use weft_proxy::balance::policy::{Algorithm, Policy, SlowStart};
use weft_proxy::xds::ClusterSpec;

pub(crate) const NAME: &str = "orders.shop:8080";

/// No ejection takes longer than this, its jitter and an interval.
pub(crate) const EJECTION_MAX: Duration = Duration::from_secs(4);
/// No circuit stays open for longer.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(2);
/// Longer than any server takes that is well.
pub(crate) const SLOW_MIN: Duration = Duration::from_millis(20);

fn millis(random: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

fn one_of<T: Copy>(random: &mut Rng, of: &[T]) -> T {
    of[random.usize(..of.len())]
}

pub(crate) fn spec(random: &mut Rng) -> ClusterSpec {
    ClusterSpec {
        breaking: breaker::Settings {
            outlier: (random.u8(..10) > 0).then(|| outlier(random)),
            circuit: (random.u8(..10) > 2).then(|| circuit(random)),
            limits: limits(random),
            checks: vec![],
        },
        balancing: balancing(random),
        ..ClusterSpec::new(NAME)
    }
}

fn outlier(random: &mut Rng) -> outlier::Settings {
    let base = millis(random, 50..1500);
    let percent = |random: &mut Rng| one_of(random, &[0, 50, 100, 100]);
    outlier::Settings {
        interval: millis(random, 50..1000),
        base_ejection_time: base,
        max_ejection_time: (base * random.u32(1..6)).min(EJECTION_MAX),
        max_ejection_time_jitter: if random.bool() { Duration::ZERO } else { base / 3 },
        max_ejection_percent: one_of(random, &[0, 10, 34, 50, 80, 100]),
        always_eject_one: random.bool(),
        consecutive_5xx: random.u32(..6),
        consecutive_gateway_failure: random.u32(..6),
        consecutive_local_origin_failure: random.u32(..6),
        split: random.bool(),
        success_rate: SuccessRate {
            minimum_hosts: random.u32(..6),
            request_volume: random.u32(..30),
            stdev_factor: random.u32(300..2000),
        },
        failure_percentage: FailurePercentage {
            threshold: random.u8(20..=100),
            minimum_hosts: random.u32(..5),
            request_volume: random.u32(..20),
        },
        enforcing: Enforcing {
            consecutive_5xx: percent(random),
            consecutive_gateway_failure: percent(random),
            consecutive_local_origin_failure: percent(random),
            success_rate: percent(random),
            success_rate_local_origin: percent(random),
            failure_percentage: percent(random),
            failure_percentage_local_origin: percent(random),
        },
        health_check_unejects: true,
    }
}

fn circuit(random: &mut Rng) -> circuit::Settings {
    let open = millis(random, 20..800);
    let slow = circuit::Slow { threshold: millis(random, 20..300), percent: random.u8(20..=100) };
    circuit::Settings {
        window: millis(random, 50..4000),
        minimum_calls: random.u32(1..20),
        error_percent: random.u8(10..=100),
        slow: random.bool().then_some(slow),
        open,
        open_max: (open * random.u32(1..10)).min(OPEN_MAX),
        probes: random.u8(1..6),
    }
}

fn limits(random: &mut Rng) -> limits::Settings {
    let share = Share::percent(f64::from(random.u32(..60))).expect("a share");
    limits::Settings {
        max_connections: random.u32(1..20),
        max_pending_requests: random.u32(1..20),
        max_requests: one_of(random, &[1, 3, 10, 50, 1024]),
        retries: if random.bool() {
            Retries::Max(random.u32(..5))
        } else {
            Retries::Budget { share, min_concurrency: random.u32(..4) }
        },
    }
}

fn balancing(random: &mut Rng) -> Policy {
    let algorithm = match random.u8(..8) {
        0..3 => Algorithm::PeakEwma,
        3 => Algorithm::LeastRequest { choices: random.u32(2..4), bias: 1.0 },
        4 => Algorithm::RoundRobin,
        5 => Algorithm::Random,
        6 => Algorithm::RingHash { minimum: 512, maximum: 1024 },
        _ => Algorithm::Maglev { size: 251 },
    };
    let slow_start =
        SlowStart { window: millis(random, 100..2000), aggression: 1.0, min_weight_percent: 10.0 };
    Policy {
        algorithm,
        slow_start: random.bool().then_some(slow_start),
        panic_percent: one_of(random, &[0, 50, 50, 100]),
        zone: None,
    }
}
