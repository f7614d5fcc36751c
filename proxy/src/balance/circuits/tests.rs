//! Circuits as workers and the admin thread use them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_wire::Reason;

use super::super::breaker::{Cause, Kind, Position, Settings, circuit, outlier};
use super::*;
use crate::xds::{self, ClusterSpec};

mod limit;
mod race;

const FAST: Duration = Duration::from_millis(1);
const RESET: Outcome = Outcome::LocalOrigin(Reason::UpstreamReset);

/// One cluster and a clock that the test moves.
struct Stage {
    circuits: Arc<Circuits>,
    cluster: Arc<ClusterState>,
    origin: Arc<xds::Cluster>,
    now: Instant,
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn listed(of: impl IntoIterator<Item = u8>) -> Vec<xds::Endpoint> {
    of.into_iter().map(|last| xds::Endpoint::new(address(last))).collect()
}

fn described(breaking: Settings, endpoints: u8) -> Arc<xds::Cluster> {
    let mut spec = ClusterSpec::new("orders.shop:80");
    spec.breaking = breaking;
    xds::Cluster::new(spec, listed(0..endpoints))
}

impl Stage {
    fn new(breaking: Settings, endpoints: u8) -> Self {
        let circuits = Circuits::new();
        let (cluster, origin) = (circuits.cluster("orders.shop:80"), described(breaking, endpoints));
        cluster.adopt(&origin);
        let now = Instant::now();
        circuits.sweep(now);
        Self { circuits, cluster, origin, now }
    }

    /// Endpoints that are ejected for one failure, for as long as `seconds`, all of them if need be.
    fn judging(endpoints: u8, seconds: u64, change: impl FnOnce(&mut outlier::Settings)) -> Self {
        let mut outlier = outlier::Settings {
            interval: Duration::from_secs(1),
            base_ejection_time: Duration::from_secs(seconds),
            max_ejection_percent: 100,
            consecutive_5xx: 1,
            ..outlier::Settings::default()
        };
        change(&mut outlier);
        Self::new(Settings { outlier: Some(outlier), ..Settings::default() }, endpoints)
    }

    fn guarded(change: impl FnOnce(&mut circuit::Settings)) -> Self {
        let mut circuit = circuit::Settings { minimum_calls: 4, probes: 2, ..circuit::Settings::default() };
        change(&mut circuit);
        Self::new(Settings { circuit: Some(circuit), ..Settings::default() }, 1)
    }

    fn endpoint(&self, last: u8) -> Arc<EndpointState> {
        self.cluster.endpoint(address(last))
    }

    fn report(&self, last: u8, outcome: Outcome, times: usize) {
        let endpoint = self.endpoint(last);
        for _ in 0..times {
            endpoint.report(outcome, FAST, self.now);
        }
    }

    /// Lets time pass and sweeps as often as the sweeps themselves ask for.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = self.circuits.sweep(self.now);
            assert!(due > self.now, "a sweep that is due at once again would never rest");
            if due > end {
                break;
            }
            self.now = due;
        }
        self.now = end;
    }

    fn call(&self, outcome: Outcome, took: Duration) -> Result<(), Reason> {
        let admission = self.cluster.admit(self.now)?;
        admission.settle(outcome, took, self.now + took);
        Ok(())
    }

    /// Calls until it is open.
    fn open(&self) {
        for _ in 0..20 {
            if self.call(RESET, FAST).is_err() {
                return;
            }
        }
        panic!("twenty failures open it");
    }
}

#[test]
fn a_name_is_one_cluster_for_all_who_ask_until_nobody_keeps_it() {
    let circuits = Circuits::new();
    let first = circuits.cluster("a");
    assert!(Arc::ptr_eq(&first, &circuits.cluster("a")));
    let core = Arc::downgrade(first.core());
    circuits.sweep(Instant::now());
    assert!(Arc::ptr_eq(&first, &circuits.cluster("a")), "somebody keeps it");
    drop(first);
    circuits.sweep(Instant::now());
    assert!(circuits.all().is_empty() && core.upgrade().is_none());
}

#[test]
fn a_cluster_too_many_is_guarded_by_itself() {
    let circuits = Circuits::new();
    let kept: Vec<_> = (0..CLUSTERS_MAX).map(|number| circuits.cluster(&number.to_string())).collect();
    assert!(!Arc::ptr_eq(&circuits.cluster("more"), &circuits.cluster("more")));
    assert_eq!(circuits.shared().overflowed.load(Ordering::Relaxed), 2);
    drop(kept);
    assert!(Arc::ptr_eq(&circuits.cluster("more"), &circuits.cluster("more")), "there is room again");
}

#[test]
fn failures_in_a_row_eject_and_a_success_between_them_does_not() {
    let stage = Stage::judging(2, 30, |outlier| outlier.consecutive_5xx = 3);
    for _ in 0..5 {
        stage.report(0, Outcome::ServerError, 2);
        stage.report(0, Outcome::Success, 1);
    }
    stage.report(0, Outcome::Cancelled, 10);
    assert!(stage.endpoint(0).available());
    let generation = stage.cluster.generation();
    stage.report(0, Outcome::ServerError, 2);
    stage.report(0, Outcome::Cancelled, 1);
    stage.report(0, Outcome::GatewayError, 1);
    assert!(!stage.endpoint(0).available() && stage.endpoint(1).available());
    assert!(stage.cluster.generation() > generation, "workers must notice");
    assert_eq!(stage.cluster.ejected(), 1);
}

#[test]
fn each_kind_of_failure_has_a_row_of_its_own() {
    let stage = Stage::judging(3, 30, |outlier| {
        outlier.consecutive_5xx = 5;
        outlier.consecutive_gateway_failure = 3;
        outlier.enforcing.consecutive_gateway_failure = 100;
        outlier.split = true;
        outlier.consecutive_local_origin_failure = 2;
    });
    let cause = |last| Some(stage.endpoint(last).state()).filter(|s| s.ejected).and_then(|s| s.cause);
    stage.report(0, Outcome::ServerError, 4);
    stage.report(0, Outcome::GatewayError, 1);
    assert_eq!(cause(0), Some(Cause::Consecutive5xx), "gateway errors are server errors too");
    stage.report(1, Outcome::GatewayError, 2);
    stage.report(1, RESET, 1);
    assert_eq!(cause(1), None, "with split, a reset is no answer");
    stage.report(1, Outcome::GatewayError, 1);
    assert_eq!(cause(1), Some(Cause::ConsecutiveGatewayFailure));
    stage.report(2, RESET, 1);
    stage.report(2, Outcome::ServerError, 1);
    stage.report(2, RESET, 1);
    assert_eq!(cause(2), None, "an answer, whatever it says, is a way there");
    stage.report(2, RESET, 1);
    assert_eq!(cause(2), Some(Cause::ConsecutiveLocalOriginFailure));
}

#[test]
fn without_split_a_reset_is_a_gateway_error() {
    let stage = Stage::judging(1, 30, |outlier| {
        outlier.consecutive_5xx = 2;
        outlier.consecutive_local_origin_failure = 1;
    });
    stage.report(0, RESET, 1);
    assert!(stage.endpoint(0).available());
    stage.report(0, Outcome::ServerError, 1);
    assert_eq!(stage.endpoint(0).state().cause, Some(Cause::Consecutive5xx));
}

#[test]
fn what_is_not_enforced_ejects_nobody_and_the_row_begins_anew() {
    let stage = Stage::judging(2, 30, |outlier| outlier.enforcing.consecutive_5xx = 0);
    stage.report(0, Outcome::ServerError, 100);
    assert!(stage.endpoint(0).available());
}

#[test]
fn no_more_than_the_share_is_out_at_a_time() {
    let stage = Stage::judging(10, 30, |outlier| outlier.max_ejection_percent = 30);
    for last in 0..10 {
        stage.report(last, Outcome::ServerError, 50);
    }
    assert_eq!((stage.cluster.ejected(), (0..10).filter(|l| stage.endpoint(*l).ejected()).count()), (3, 3));
}

#[test]
fn an_ejected_endpoint_returns_at_the_first_sweep_after_its_time() {
    let mut stage = Stage::judging(2, 3, |_| {});
    stage.pass(Duration::from_millis(500));
    stage.report(0, Outcome::ServerError, 1);
    stage.pass(Duration::from_millis(2900));
    assert!(!stage.endpoint(0).available());
    stage.pass(Duration::from_millis(550));
    assert!(!stage.endpoint(0).available(), "its time is over, the interval is not");
    stage.pass(Duration::from_millis(100));
    assert!(stage.endpoint(0).available());
    assert_eq!(stage.cluster.ejected(), 0);
}

#[test]
fn whoever_falls_again_at_once_is_out_for_longer_and_good_conduct_is_rewarded() {
    let mut stage = Stage::judging(2, 10, |_| {});
    let out_for = |stage: &mut Stage| {
        stage.report(0, Outcome::ServerError, 1);
        let begun = stage.now;
        while !stage.endpoint(0).available() {
            stage.pass(Duration::from_secs(1));
        }
        (stage.now - begun).as_secs()
    };
    assert_eq!([out_for(&mut stage), out_for(&mut stage), out_for(&mut stage)], [10, 20, 30]);
    // The sweep that let it return did not count as a healthy interval.
    stage.pass(Duration::from_secs(2));
    assert_eq!(out_for(&mut stage), 20);
}

#[test]
fn success_rates_are_compared_when_an_interval_ends() {
    let mut stage = Stage::judging(5, 30, |outlier| outlier.consecutive_5xx = 0);
    for last in 0..5 {
        stage.report(last, Outcome::Success, 100);
    }
    stage.report(4, Outcome::ServerError, 100);
    assert!(stage.endpoint(4).available(), "not before");
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.endpoint(4).state().cause, Some(Cause::SuccessRate));
    assert!(!stage.endpoint(4).available());
    assert_eq!(stage.cluster.ejected(), 1);
}

#[test]
fn an_interval_begins_with_nothing() {
    let mut stage = Stage::judging(5, 30, |outlier| outlier.consecutive_5xx = 0);
    // Each half is too little, and both together would be enough.
    for _ in 0..2 {
        for last in 0..5 {
            stage.report(last, Outcome::Success, 30);
        }
        stage.report(4, Outcome::ServerError, 30);
        stage.pass(Duration::from_secs(1));
    }
    assert!(stage.endpoint(4).available());
}

#[test]
fn failure_percentages_count_apart_for_the_way_there() {
    let mut stage = Stage::judging(2, 30, |outlier| {
        outlier.consecutive_5xx = 0;
        outlier.consecutive_local_origin_failure = 0;
        outlier.split = true;
        outlier.success_rate.minimum_hosts = 100;
        outlier.failure_percentage =
            outlier::FailurePercentage { threshold: 50, minimum_hosts: 1, request_volume: 10 };
        outlier.enforcing.failure_percentage_local_origin = 100;
    });
    stage.report(0, Outcome::ServerError, 10);
    stage.report(1, Outcome::Success, 5);
    stage.report(1, RESET, 5);
    stage.pass(Duration::from_secs(1));
    assert!(stage.endpoint(0).available(), "not enforced");
    assert_eq!(stage.endpoint(1).state().cause, Some(Cause::FailurePercentageLocalOrigin));
    assert!(!stage.endpoint(1).available());
}

#[test]
fn an_endpoint_that_left_gives_its_place_back_and_returns_as_a_new_one() {
    let mut stage = Stage::judging(2, 1000, |outlier| outlier.max_ejection_percent = 50);
    stage.report(0, Outcome::ServerError, 1);
    let old = stage.endpoint(0);
    stage.origin.set_endpoints(listed([1, 2]));
    stage.cluster.shrunk();
    stage.pass(FAST);
    assert_eq!(stage.cluster.ejected(), 0);
    assert!(old.is_gone() && old.available());
    old.report(Outcome::ServerError, FAST, stage.now);
    assert_eq!((stage.cluster.ejected(), old.available()), (0, true), "it takes nobody's place");
    stage.report(1, Outcome::ServerError, 1);
    assert_eq!(stage.cluster.ejected(), 1, "there is room for another");
    stage.origin.set_endpoints(listed([0, 1]));
    stage.pass(FAST);
    assert!(!Arc::ptr_eq(&old, &stage.endpoint(0)) && stage.endpoint(0).available());
    assert_eq!(stage.endpoint(0).state().backoff(), 0);
}

#[test]
fn without_outlier_detection_everybody_is_let_back() {
    let mut stage = Stage::judging(2, 1000, |_| {});
    stage.report(0, Outcome::ServerError, 1);
    stage.cluster.adopt(&described(Settings::default(), 2));
    stage.pass(FAST);
    assert!(stage.endpoint(0).available());
    assert_eq!((stage.cluster.ejected(), stage.endpoint(0).state().backoff()), (0, 0));
}

#[test]
fn a_passed_check_ends_an_ejection_where_the_settings_say_so() {
    for unejects in [true, false] {
        let stage = Stage::judging(2, 1000, |outlier| outlier.health_check_unejects = unejects);
        stage.report(0, Outcome::ServerError, 1);
        stage.endpoint(0).checked(false, 1);
        stage.endpoint(0).passed(2);
        assert!(!stage.endpoint(0).available(), "one passed check of several that it takes");
        stage.endpoint(0).checked(true, 3);
        stage.endpoint(0).passed(3);
        assert_eq!(stage.endpoint(0).available(), unejects);
        assert_eq!(stage.cluster.ejected(), u32::from(!unejects));
    }
}

#[test]
fn a_share_of_failures_opens_the_circuit_and_probes_close_it() {
    let mut stage = Stage::guarded(|_| {});
    for outcome in [Outcome::Success, Outcome::Success, RESET] {
        assert_eq!(stage.call(outcome, FAST), Ok(()));
    }
    assert_eq!(stage.cluster.position(), Position::Closed);
    assert_eq!(stage.call(Outcome::ServerError, FAST), Ok(()));
    assert_eq!(stage.cluster.position(), Position::Open);
    assert_eq!(stage.call(Outcome::Success, FAST), Err(Reason::CircuitOpen));
    stage.pass(circuit::OPEN + FAST);
    assert_eq!(stage.cluster.position(), Position::HalfOpen, "told by time");
    let first = stage.cluster.admit(stage.now).expect("a probe");
    let second = stage.cluster.admit(stage.now).expect("another");
    assert!(first.is_probe() && second.is_probe());
    assert_eq!(stage.cluster.admit(stage.now).err(), Some(Reason::CircuitOpen));
    for probe in [first, second] {
        assert_eq!(stage.cluster.position(), Position::HalfOpen);
        probe.settle(Outcome::Success, FAST, stage.now);
    }
    assert_eq!(stage.cluster.position(), Position::Closed);
    stage.call(RESET, FAST).expect("what opened it is forgotten");
    assert_eq!(stage.cluster.position(), Position::Closed);
}

#[test]
fn slow_calls_open_the_circuit_and_old_ones_are_forgotten() {
    let slow = Duration::from_millis(100);
    let mut stage = Stage::guarded(|circuit| {
        circuit.slow = Some(circuit::Slow { threshold: slow, percent: 100 });
    });
    for _ in 0..3 {
        stage.call(Outcome::Success, slow).expect("passes");
    }
    stage.pass(circuit::WINDOW * 2);
    for _ in 0..3 {
        stage.call(Outcome::Success, slow).expect("passes");
    }
    assert_eq!(stage.cluster.position(), Position::Closed);
    stage.call(Outcome::Success, slow).expect("passes");
    assert_eq!(stage.cluster.position(), Position::Open);
    assert_eq!(stage.cluster.core().circuit.cause(), Some(Cause::SlowCalls));
}

#[test]
fn a_call_is_settled_once_and_cancelled_when_nobody_does() {
    let mut stage = Stage::guarded(|_| {});
    for _ in 0..10 {
        drop(stage.cluster.admit(stage.now).expect("passes"));
    }
    let call = stage.cluster.admit(stage.now).expect("passes");
    for _ in 0..10 {
        call.settle(RESET, FAST, stage.now);
    }
    assert_eq!(stage.cluster.position(), Position::Closed, "one failure");
    stage.open();
    stage.pass(circuit::OPEN + FAST);
    for _ in 0..10 {
        let probe = stage.cluster.admit(stage.now).expect("the others gave their places back");
        assert!(probe.is_probe());
    }
    assert_eq!(stage.cluster.core().circuit.state().issued(), 0);
}

#[test]
fn a_circuit_that_is_taken_away_lets_everything_pass() {
    let mut stage = Stage::guarded(|_| {});
    stage.open();
    stage.cluster.adopt(&described(Settings::default(), 1));
    assert!(stage.cluster.admit(stage.now).is_ok(), "at once");
    stage.pass(FAST);
    assert_eq!(stage.cluster.position(), Position::Closed);
}

#[test]
fn each_transition_is_told_once_with_its_cause() {
    let mut stage = Stage::guarded(|_| {});
    let mut heard = stage.circuits.shared().journal.listen().expect("nobody listens yet");
    assert!(stage.circuits.shared().journal.listen().is_none(), "one listener");
    stage.open();
    stage.pass(circuit::OPEN + FAST);
    let probe = stage.cluster.admit(stage.now).expect("a probe");
    probe.settle(RESET, FAST, stage.now);
    let mut told = vec![];
    while let Ok(transition) = heard.try_recv() {
        assert_eq!((transition.kind, transition.address), (Kind::Service, None));
        assert_eq!(transition.next_probe.is_some(), transition.to == Position::Open);
        told.push((transition.from, transition.to, transition.cause));
    }
    let expected = [
        (Position::Closed, Position::Open, Some(Cause::ErrorRatio)),
        (Position::Open, Position::HalfOpen, Some(Cause::ErrorRatio)),
        (Position::HalfOpen, Position::Open, Some(Cause::ProbeFailed)),
    ];
    assert_eq!(told, expected);
    assert_eq!(stage.cluster.core().transitions(Kind::Service, Position::Open), 2);
}

#[test]
fn an_endpoints_transitions_are_told_too() {
    let mut stage = Stage::judging(1, 3, |_| {});
    let mut heard = stage.circuits.shared().journal.listen().expect("nobody listens yet");
    stage.report(0, Outcome::ServerError, 1);
    stage.pass(Duration::from_secs(4));
    let (out, back) = (heard.try_recv().expect("out"), heard.try_recv().expect("back"));
    assert!(heard.try_recv().is_err());
    assert_eq!((out.kind, out.address, out.to), (Kind::Endpoint, Some(address(0)), Position::Open));
    assert_eq!((out.cause, out.next_probe), (Some(Cause::Consecutive5xx), Some(out.at + 3000)));
    assert_eq!((back.to, back.next_probe), (Position::Closed, None));
}

#[test]
fn nobody_judges_what_no_control_plane_describes() {
    let circuits = Circuits::new();
    let (cluster, now) = (circuits.unguarded(), Instant::now());
    let endpoint = cluster.endpoint(address(1));
    for _ in 0..100 {
        endpoint.report(RESET, FAST, now);
        cluster.admit(now).expect("passes").settle(RESET, FAST, now);
    }
    assert!(endpoint.available() && cluster.position() == Position::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_admin_thread_sweeps_when_something_changes_and_ends_when_told() {
    let stage = Stage::guarded(|circuit| circuit.open = Duration::from_millis(1));
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let tending = tokio::spawn(Arc::clone(&stage.circuits).tend(async { drop(ended.await) }));
    stage.open();
    // Real time is needed for what is open; paused time only skips the pauses between.
    while stage.cluster.position() != Position::HalfOpen {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(end);
    tending.await.expect("ends in order");
}
