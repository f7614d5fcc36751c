//! What a worker sees of a cluster's endpoints as they come, go and fail.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::balance::policy::{Algorithm, SlowStart};
use crate::balance::{Circuits, Working};

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn endpoint(last: u8) -> xds::Endpoint {
    xds::Endpoint::new(address(last))
}

fn list(of: &[u8]) -> xds::Endpoints {
    xds::Endpoints::new(of.iter().map(|&last| endpoint(last)).collect())
}

/// A set with its policy, its clock and its chance.
struct Bench {
    set: Set,
    policy: Policy,
    zone: Option<&'static str>,
    circuit: Arc<ClusterState>,
    now: Instant,
    random: fastrand::Rng,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        let random = fastrand::Rng::with_seed(7);
        let circuit = Circuits::new().cluster("orders.shop:8080");
        Self { set: Set::default(), policy, zone: None, circuit, now: Instant::now(), random }
    }

    fn of(algorithm: Algorithm) -> Self {
        Self::new(Policy { algorithm, ..Policy::default() })
    }

    fn apply(&mut self, list: &xds::Endpoints) {
        let view = View {
            policy: &self.policy,
            zone: self.zone,
            circuit: &self.circuit,
            now: self.now,
            mutual: false,
        };
        self.set.apply(list, view, || self.random.u64(..), |_| Names::default());
    }

    fn choose(&mut self, ask: Ask<'_>) -> Option<Chosen> {
        self.set.choose(ask, self.now, || self.random.u64(..))
    }

    fn address(&mut self, ask: Ask<'_>) -> u8 {
        let chosen = self.choose(ask).expect("somebody");
        match chosen.endpoint.address {
            SocketAddr::V4(address) => address.ip().octets()[3],
            SocketAddr::V6(_) => unreachable!("all are IPv4"),
        }
    }

    /// How often each of 256 addresses is chosen.
    fn tally(&mut self, times: usize) -> [usize; 256] {
        let mut tally = [0; 256];
        for _ in 0..times {
            tally[usize::from(self.address(Ask::any()))] += 1;
        }
        tally
    }
}

#[test]
fn state_survives_an_update_of_others() {
    let mut bench = Bench::new(Policy::default());
    bench.apply(&list(&[1, 2]));
    let working = bench.set.ready()[1].start();
    working.observe(bench.now, Duration::from_millis(7));
    bench.now += Duration::from_secs(5);
    bench.apply(&list(&[3, 2]));
    let kept = &bench.set.ready()[1];
    assert!(Rc::ptr_eq(kept, working.endpoint()));
    assert_eq!(kept.load().in_flight(), 1);
    assert_eq!(kept.since(), Some(bench.now - Duration::from_secs(5)), "is no newcomer");
    drop(working);
    assert_eq!(bench.set.ready()[1].load().in_flight(), 0);
}

#[test]
fn an_endpoint_that_went_takes_no_connection_back() {
    let mut bench = Bench::new(Policy::default());
    bench.apply(&list(&[1]));
    let gone = Rc::clone(&bench.set.ready()[0]);
    bench.apply(&list(&[2]));
    assert!(gone.pool.is_closed());
    bench.apply(&list(&[1]));
    assert!(!bench.set.ready()[0].pool.is_closed(), "came back as a new one");
}

#[test]
fn unhealthy_endpoints_are_not_chosen_while_others_suffice() {
    let sick = xds::Endpoint { health: Health::Unhealthy, ..endpoint(1) };
    let mut bench = Bench::new(Policy::default());
    bench.apply(&xds::Endpoints::new(vec![sick.clone(), endpoint(2)]));
    assert_eq!((bench.set.all().len(), bench.set.ready().len()), (2, 1));
    assert!(!bench.set.panics());
    assert_eq!(bench.tally(20)[2], 20);

    bench.apply(&xds::Endpoints::new(vec![
        sick.clone(),
        xds::Endpoint { address: address(3), ..sick.clone() },
    ]));
    assert!(bench.set.panics() && bench.choose(Ask::any()).expect("anybody").panic);
    assert_eq!(bench.set.ready().len(), 2);

    bench.policy.panic_percent = 0;
    bench.apply(&xds::Endpoints::new(vec![sick]));
    assert!(bench.choose(Ask::any()).is_none(), "panic is off");
}

#[test]
fn the_next_priority_takes_what_the_first_cannot() {
    let of = |last, priority, health| xds::Endpoint { priority, health, ..endpoint(last) };
    let mut bench = Bench::new(Policy::default());
    let spare = [of(3, 5, Health::Healthy), of(4, 5, Health::Healthy)];
    let with = |first: [Health; 2]| {
        let mut list = vec![of(1, 0, first[0]), of(2, 0, first[1])];
        list.extend(spare.iter().cloned());
        xds::Endpoints::new(list)
    };
    bench.apply(&with([Health::Healthy; 2]));
    let tally = bench.tally(200);
    assert_eq!(tally[1] + tally[2], 200);
    assert_eq!(bench.set.ready().len(), 2, "a spare is not a choice");

    bench.apply(&with([Health::Healthy, Health::Unhealthy]));
    let tally = bench.tally(2000);
    assert!((1320..1480).contains(&tally[1]), "70 %: {}", tally[1]);
    assert_eq!(tally[1] + tally[3] + tally[4], 2000);

    bench.apply(&with([Health::Unhealthy; 2]));
    let tally = bench.tally(200);
    assert_eq!(tally[3] + tally[4], 200);
    assert!(!bench.set.panics());
}

#[test]
fn the_own_zone_comes_first_while_enough_of_it_is_there() {
    let of = |last, zone: &str, health| xds::Endpoint { zone: Some(zone.into()), health, ..endpoint(last) };
    let zone = ZonePreference { min_cluster_size: 4, min_own: 1, min_healthy_percent: 70 };
    let mut bench = Bench::new(Policy { zone: Some(zone), ..Policy::default() });
    bench.zone = Some("here");
    let others = [of(11, "there", Health::Healthy), of(12, "elsewhere", Health::Healthy)];
    let apply = |bench: &mut Bench, own: &[Health]| {
        let own = own.iter().enumerate().map(|(last, &health)| of(last as u8, "here", health));
        bench.apply(&xds::Endpoints::new(own.chain(others.iter().cloned()).collect()));
        let tally = bench.tally(300);
        tally[11] + tally[12]
    };
    assert_eq!(apply(&mut bench, &[Health::Healthy; 3]), 0);
    assert!(apply(&mut bench, &[Health::Healthy, Health::Unhealthy, Health::Healthy]) > 50, "two of three");
    assert!(apply(&mut bench, &[Health::Healthy]) > 100, "three are a small cluster");
    bench.zone = Some("nowhere");
    assert!(apply(&mut bench, &[Health::Healthy; 3]) > 50);
    bench.zone = None;
    assert!(apply(&mut bench, &[Health::Healthy; 3]) > 50);
    // Retried, a request may leave the zone.
    bench.zone = Some("here");
    apply(&mut bench, &[Health::Healthy; 2]);
    let tried: Vec<_> = bench.set.ready().iter().filter(|one| one.place().own_zone).cloned().collect();
    assert_eq!(tried.len(), 2);
    assert!(bench.address(Ask::except(&tried)) > 10);
}

#[test]
fn those_that_failed_are_not_taken_again() {
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::LeastRequest { choices: 2, bias: 1.0 },
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::RingHash { minimum: 1024, maximum: 4096 },
        Algorithm::Maglev { size: 65_537 },
    ] {
        let mut bench = Bench::of(algorithm);
        bench.apply(&list(&[1, 2, 3]));
        for hash in 0..40_u64 {
            let mut tried = vec![];
            for _ in 0..3 {
                let hash = Some(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let chosen = bench.choose(Ask { tried: &tried, hash }).expect("somebody");
                assert!(!tried.iter().any(|one| Rc::ptr_eq(one, &chosen.endpoint)), "{algorithm:?}");
                tried.push(chosen.endpoint);
            }
            assert!(bench.choose(Ask::except(&tried)).is_some(), "when all failed, any");
        }
    }
}

#[test]
fn round_robin_goes_on_after_an_update() {
    let mut bench = Bench::of(Algorithm::RoundRobin);
    bench.apply(&list(&[1, 2, 3, 4]));
    let first = bench.address(Ask::any());
    let next = first % 4 + 1;
    // Whoever was next is next, wherever it stands now.
    bench.apply(&list(&[9, next, first]));
    assert_eq!(bench.address(Ask::any()), next);
}

#[test]
fn equal_hashes_go_to_the_same_endpoint() {
    for algorithm in
        [Algorithm::RingHash { minimum: 1024, maximum: 4096 }, Algorithm::Maglev { size: 65_537 }]
    {
        let mut bench = Bench::of(algorithm);
        bench.apply(&list(&[1, 2, 3, 4, 5]));
        let hashes: Vec<u64> = (0..200_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let of = |bench: &mut Bench| -> Vec<u8> {
            hashes.iter().map(|&hash| bench.address(Ask { tried: &[], hash: Some(hash) })).collect()
        };
        let before = of(&mut bench);
        assert_eq!(of(&mut bench), before);
        bench.apply(&list(&[1, 2, 3, 4]));
        let after = of(&mut bench);
        let moved =
            before.iter().zip(&after).filter(|&(before, after)| before != after && *before != 5).count();
        assert!(moved < 20, "{moved} of 200 moved for nothing");
        assert_eq!(bench.tally(100)[5], 0, "without a hash, any");
    }
}

#[test]
fn weights_are_shares() {
    let heavy = || xds::Endpoints::new(vec![endpoint(1), xds::Endpoint { weight: 3, ..endpoint(2) }]);
    for algorithm in [Algorithm::RoundRobin, Algorithm::LeastRequest { choices: 2, bias: 1.0 }] {
        let mut bench = Bench::of(algorithm);
        bench.apply(&heavy());
        let tally = bench.tally(400);
        assert!((98..=102).contains(&tally[1]), "{algorithm:?}: {}", tally[1]);
    }
    let mut bench = Bench::of(Algorithm::Random);
    bench.apply(&heavy());
    assert!((150..250).contains(&bench.tally(400)[1]), "random knows no weights, as in Envoy");
}

#[test]
fn work_in_flight_counts_against_an_endpoint() {
    for (bias, least) in [(1.0, 10), (0.0, 40)] {
        let mut bench = Bench::of(Algorithm::LeastRequest { choices: 2, bias });
        // Unequal weights: a schedule.
        bench.apply(&xds::Endpoints::new(vec![endpoint(1), xds::Endpoint { weight: 2, ..endpoint(2) }]));
        let busy = Rc::clone(&bench.set.ready()[1]);
        let working: Vec<_> = (0..9).map(|_| busy.start()).collect();
        let share = bench.tally(120)[2];
        assert!(share >= least && (bias == 0.0 || share <= 30), "{bias}: {share}");
        drop(working);
    }
}

#[test]
fn a_newcomer_starts_slowly() {
    let slow = SlowStart { window: Duration::from_secs(60), aggression: 1.0, min_weight_percent: 10.0 };
    for algorithm in
        [Algorithm::RoundRobin, Algorithm::LeastRequest { choices: 2, bias: 1.0 }, Algorithm::PeakEwma]
    {
        let mut bench = Bench::new(Policy { algorithm, slow_start: Some(slow), ..Policy::default() });
        bench.apply(&list(&[1, 2, 3]));
        bench.now += Duration::from_secs(120);
        bench.apply(&list(&[1, 2, 3, 4]));
        let share = |bench: &mut Bench| {
            // Requests stay for a while and take alike, so that peak EWMA has something to weigh.
            let mut working: VecDeque<Working> = VecDeque::new();
            let mut count = 0;
            for _ in 0..1000 {
                let chosen = bench.choose(Ask::any()).expect("somebody").endpoint;
                count += usize::from(chosen.address == address(4));
                working.push_back(chosen.start());
                if working.len() > 60
                    && let Some(ended) = working.pop_front()
                {
                    ended.observe(bench.now, Duration::from_millis(30));
                }
            }
            count
        };
        let at_first = share(&mut bench);
        assert!((5..130).contains(&at_first), "{algorithm:?} at first: {at_first}");
        bench.now += Duration::from_secs(30);
        let half_grown = share(&mut bench);
        assert!(half_grown > at_first && half_grown < 200, "{algorithm:?} half grown: {half_grown}");
        bench.now += Duration::from_secs(31);
        assert!(bench.set.is_outdated(&bench.circuit, || bench.now), "its picker is outdated");
        bench.apply(&list(&[1, 2, 3, 4]));
        let grown = share(&mut bench);
        assert!((200..300).contains(&grown), "{algorithm:?} grown: {grown}");
        assert!(bench.set.expires.is_none());
    }
}

#[test]
fn one_that_comes_back_is_a_newcomer() {
    let mut bench = Bench::new(Policy::default());
    let sick = xds::Endpoint { health: Health::Unhealthy, ..endpoint(1) };
    bench.apply(&list(&[1, 2]));
    let start = bench.now;
    bench.now += Duration::from_secs(1);
    bench.apply(&xds::Endpoints::new(vec![sick, endpoint(2)]));
    assert_eq!(bench.set.all()[0].since(), None);
    bench.now += Duration::from_secs(1);
    bench.apply(&list(&[1, 2]));
    assert_eq!(bench.set.all()[0].since(), Some(start + Duration::from_secs(2)));
    assert_eq!(bench.set.all()[1].since(), Some(start));
}

#[test]
fn a_foreign_hash_key_counts_instead_of_the_address() {
    let mut bench = Bench::of(Algorithm::Maglev { size: 65_537 });
    let named = |last: u8, key: &str| xds::Endpoint { hash_key: Some(key.into()), ..endpoint(last) };
    let mut owner = |first: u8, second: u8| {
        bench.apply(&xds::Endpoints::new(vec![named(first, "a"), named(second, "b")]));
        (0..100_u64)
            .map(|hash| bench.address(Ask { tried: &[], hash: Some(hash) }) == first)
            .collect::<Vec<_>>()
    };
    assert_eq!(owner(1, 2), owner(3, 4), "two with the same names own the same");
}
