use std::time::Duration;

use super::*;
use crate::balance::breaker::health::Probe;
use crate::balance::breaker::outlier;
use crate::balance::{Circuits, Outcome};

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings {
        probe: Probe::Tcp { send: vec![], receive: vec![] },
        timeout: SECOND,
        interval: SECOND * 5,
        unhealthy_interval: SECOND * 5,
        healthy_edge_interval: SECOND * 5,
        unhealthy_edge_interval: SECOND * 5,
        no_traffic_interval: SECOND * 60,
        no_traffic_healthy_interval: SECOND * 60,
        initial_jitter: Duration::ZERO,
        interval_jitter: Duration::ZERO,
        interval_jitter_percent: 0,
        unhealthy_threshold: 2,
        healthy_threshold: 2,
    }
}

fn address(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 80).into()
}

/// A cluster, its circuits, and the schedule of its checks, on a clock that the test turns.
struct World {
    circuits: Arc<Circuits>,
    state: Arc<ClusterState>,
    schedule: Schedule,
    now: Instant,
}

impl World {
    fn new(of: &[u8], change: impl FnOnce(&mut Settings)) -> Self {
        let circuits = Circuits::new();
        let state = circuits.cluster("orders.shop:80");
        let now = Instant::now();
        let mut world = Self { circuits, state, schedule: Schedule::default(), now };
        let mut checks = settings();
        change(&mut checks);
        world.adopt(of, vec![checks]);
        // As the worker does that asked for the cluster.
        drop(world.state.admit(now));
        world
    }

    fn adopt(&mut self, of: &[u8], checks: Vec<Settings>) {
        let mut spec = xds::ClusterSpec::new("orders.shop:80");
        spec.breaking.checks = checks;
        let settings =
            outlier::Settings { consecutive_5xx: 1, max_ejection_percent: 100, ..Default::default() };
        spec.breaking.outlier = Some(settings);
        let endpoints = of.iter().map(|last| xds::Endpoint::new(address(*last))).collect();
        self.state.adopt(&xds::Cluster::new(spec, endpoints));
        self.look();
    }

    fn look(&mut self) -> u64 {
        self.schedule.look(&self.circuits.all(), self.now, || 0.0)
    }

    /// Lets time pass; says who is asked then, and lets everybody answer alike.
    fn pass(&mut self, time: Duration, checked: Checked) -> Vec<u8> {
        self.now += time;
        let mut asked = vec![];
        while let Some(job) = self.schedule.next(self.now) {
            self.look();
            self.schedule.finish(job.id, checked, self.now, 0.0);
            let SocketAddr::V4(address) = job.address else { panic!("not ours") };
            asked.push(address.ip().octets()[3]);
        }
        asked.sort_unstable();
        asked
    }

    fn available(&self, last: u8) -> bool {
        self.state.endpoint(address(last)).available()
    }
}

#[test]
fn a_new_endpoint_is_asked_at_once_and_then_in_intervals() {
    let mut world = World::new(&[1, 2], |_| {});
    assert_eq!(world.pass(Duration::ZERO, Checked::Passed), [1, 2]);
    assert_eq!(world.pass(SECOND * 4, Checked::Passed), [0_u8; 0]);
    assert_eq!(world.pass(SECOND, Checked::Passed), [1, 2]);
    world.adopt(&[1, 2, 3], vec![settings()]);
    assert_eq!(world.pass(SECOND, Checked::Passed), [3], "the others keep their turn");
}

#[test]
fn the_threshold_takes_an_endpoint_out_and_brings_it_back() {
    let mut world = World::new(&[1], |_| {});
    world.pass(Duration::ZERO, Checked::Passed);
    world.pass(SECOND * 5, Checked::Failed);
    assert!(world.available(1), "once may happen");
    world.pass(SECOND * 5, Checked::Failed);
    assert!(!world.available(1));
    let view = world.circuits.view(world.now);
    let circuit = view.circuits.iter().find(|circuit| circuit.address.is_some()).expect("not closed");
    let next = circuit.next_probe.expect("it is checked again");
    assert_eq!(next - circuit.since.expect("it happened"), 5_000_000_000, "when it is checked next");
    world.pass(SECOND * 5, Checked::Passed);
    assert!(!world.available(1), "once may happen");
    world.pass(SECOND * 5, Checked::Passed);
    assert!(world.available(1));
    world.pass(SECOND * 5, Checked::FailedForGood);
    assert!(!world.available(1), "it says so itself");
}

#[test]
fn all_checks_of_an_endpoint_must_pass() {
    let mut world = World::new(&[1], |_| {});
    let strict = Settings { unhealthy_threshold: 1, ..settings() };
    world.adopt(&[1], vec![strict.clone(), Settings { healthy_threshold: 1, ..strict }]);
    let jobs: Vec<Job> = std::iter::from_fn(|| world.schedule.next(world.now)).collect();
    world.schedule.finish(jobs[0].id, Checked::Passed, world.now, 0.0);
    world.schedule.finish(jobs[1].id, Checked::Failed, world.now, 0.0);
    assert!(!world.available(1));
    world.now += SECOND * 5;
    world.schedule.next(world.now).expect("due");
    world.schedule.finish(jobs[1].id, Checked::Passed, world.now, 0.0);
    assert!(world.available(1));
}

#[test]
fn who_has_left_is_asked_no_more_and_what_it_answers_counts_for_nothing() {
    let mut world = World::new(&[1, 2], |checks| checks.unhealthy_threshold = 1);
    let job = world.schedule.next(world.now).expect("due");
    let other = world.schedule.next(world.now).expect("due");
    assert!(world.schedule.next(world.now).is_none(), "nobody is asked twice at a time");
    assert_eq!(job.address, address(1));
    world.adopt(&[2], vec![settings()]);
    let known = world.state.endpoints().len();
    world.schedule.finish(job.id, Checked::Failed, world.now, 0.0);
    assert!(world.available(1), "it is nobody's");
    assert_eq!(world.state.endpoints().len(), known);
    world.schedule.finish(other.id, Checked::Passed, world.now, 0.0);
    assert_eq!(world.pass(SECOND * 60, Checked::Passed), [2]);
}

#[test]
fn without_checks_nobody_stays_out_for_one() {
    let mut world = World::new(&[1], |checks| checks.unhealthy_threshold = 1);
    world.pass(Duration::ZERO, Checked::Failed);
    assert!(!world.available(1));
    world.adopt(&[1], vec![]);
    assert!(world.available(1));
    assert!(world.schedule.is_empty() && world.schedule.due().is_none());
}

#[test]
fn other_checks_question_at_once_what_was_found_out() {
    let mut world = World::new(&[1], |checks| checks.unhealthy_threshold = 1);
    world.pass(Duration::ZERO, Checked::Failed);
    world.adopt(&[1], vec![Settings { interval: SECOND * 7, ..settings() }]);
    assert!(!world.available(1));
    assert_eq!(world.pass(Duration::ZERO, Checked::Passed), [1]);
    assert!(world.available(1), "a single success is enough the first time");
}

#[test]
fn a_cluster_that_nobody_keeps_is_not_checked() {
    let mut world = World::new(&[1], |_| {});
    world.schedule.look(&[], world.now, || 0.0);
    assert!(world.schedule.is_empty() && world.schedule.due().is_none());
}

#[test]
fn without_traffic_checks_are_rare() {
    let mut world = World::new(&[1], |_| {});
    let quiet = world.circuits.cluster("stock.shop:80");
    let mut spec = xds::ClusterSpec::new("stock.shop:80");
    spec.breaking.checks = vec![settings()];
    quiet.adopt(&xds::Cluster::new(spec, vec![xds::Endpoint::new(address(9))]));
    world.look();
    assert_eq!(world.pass(Duration::ZERO, Checked::Passed), [1, 9]);
    assert_eq!(world.pass(SECOND * 59, Checked::Passed), [1]);
    drop(quiet.connection());
    assert_eq!(world.pass(SECOND, Checked::Passed), [9]);
    assert_eq!(world.pass(SECOND * 5, Checked::Passed), [1, 9], "a connection is traffic");
}

#[test]
fn a_passed_check_ends_an_ejection() {
    let mut world = World::new(&[1], |_| {});
    world.pass(Duration::ZERO, Checked::Passed);
    world.state.endpoint(address(1)).report(Outcome::ServerError, Duration::ZERO, world.now);
    assert!(!world.available(1));
    world.pass(SECOND * 5, Checked::Passed);
    assert!(world.available(1));
}

#[test]
fn the_number_of_checks_has_a_bound() {
    let mut world = World::new(&[], |_| {});
    let mut spec = xds::ClusterSpec::new("large.shop:80");
    spec.breaking.checks = vec![settings()];
    let many = (0..TASKS_MAX as u32 + 7).map(|number| {
        let [_, high, middle, low] = number.to_be_bytes();
        xds::Endpoint::new(([10, high, middle, low], 80).into())
    });
    let large = world.circuits.cluster("large.shop:80");
    large.adopt(&xds::Cluster::new(spec, many.collect()));
    assert_eq!(world.look(), 7);
    assert_eq!(world.look(), 0, "said once");
    assert_eq!(world.schedule.tasks.len(), TASKS_MAX);
}
