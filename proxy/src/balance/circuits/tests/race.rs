//! What holds when threads do things at the same time.

use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;
use std::thread;

use super::*;

const THREADS: usize = 4;

/// Runs `act` on some threads at once, each with its number.
fn together(act: impl Fn(usize) + Sync) {
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (start, act) = (&start, &act);
            scope.spawn(move || {
                start.wait();
                act(number);
            });
        }
    });
}

#[test]
fn a_half_open_circuit_never_has_more_than_its_probes_under_way() {
    let mut stage = Stage::guarded(|circuit| circuit.probes = 3);
    stage.open();
    stage.pass(circuit::OPEN + FAST);
    let (under_way, most, refused) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    together(|number| {
        for turn in 0..2000 {
            let Ok(probe) = stage.cluster.admit(stage.now) else {
                refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            assert!(probe.is_probe());
            most.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            if (number + turn) % 3 == 0 {
                thread::yield_now();
            }
            // Before the place is given back, or the count would lag behind.
            under_way.fetch_sub(1, Ordering::SeqCst);
            if turn % 2 == 0 {
                probe.settle(Outcome::Cancelled, FAST, stage.now);
            }
        }
    });
    assert!((1..=3).contains(&most.into_inner()), "all at once");
    assert_eq!(stage.cluster.position(), Position::HalfOpen);
    assert_eq!(stage.cluster.core().circuit.state().issued(), 0, "all places were given back");
    assert_eq!(stage.cluster.held(Gauge::Requests), 0);
}

#[test]
fn a_phase_lets_as_many_pass_as_must_succeed() {
    for _ in 0..200 {
        let mut stage = Stage::guarded(|circuit| circuit.probes = 5);
        stage.open();
        stage.pass(circuit::OPEN + FAST);
        let probes = AtomicUsize::new(0);
        together(|_| {
            for _ in 0..10 {
                if let Ok(call) = stage.cluster.admit(stage.now) {
                    probes.fetch_add(usize::from(call.is_probe()), Ordering::Relaxed);
                    call.settle(Outcome::Success, FAST, stage.now);
                }
            }
        });
        assert_eq!(probes.into_inner(), 5);
        assert_eq!(stage.cluster.position(), Position::Closed);
    }
}

#[test]
fn the_cap_holds_when_everybody_ejects_at_once() {
    for round in 0..200 {
        let stage = Stage::judging(8, 1000, |outlier| outlier.max_ejection_percent = 40);
        let endpoints: Vec<_> = (0..8).map(|last| stage.endpoint(last)).collect();
        together(|number| {
            for turn in 0..8 {
                endpoints[(turn + number * (round + 1)) % 8].report(RESET, FAST, stage.now);
                assert!(stage.cluster.ejected() <= 3);
            }
        });
        let out = endpoints.iter().filter(|endpoint| endpoint.ejected()).count();
        assert_eq!((stage.cluster.ejected(), out), (3, 3));
    }
}

#[test]
fn places_of_ejected_endpoints_are_neither_lost_nor_given_twice() {
    for _ in 0..100 {
        let stage = Stage::judging(6, 1000, |outlier| outlier.max_ejection_percent = 50);
        let endpoints: Vec<_> = (0..6).map(|last| stage.endpoint(last)).collect();
        together(|number| match number {
            0 => {
                for turn in 0..20 {
                    stage.origin.set_endpoints(listed((0..6).filter(|last| (last + turn) % 3 != 0)));
                    stage.circuits.sweep(stage.now);
                }
            }
            1 => {
                for turn in 0..100 {
                    endpoints[turn % 6].uneject(1);
                }
            }
            _ => {
                for turn in 0..100 {
                    let (old, new) = (&endpoints[turn % 6], stage.endpoint((turn % 6) as u8));
                    old.report(RESET, FAST, stage.now);
                    new.report(RESET, FAST, stage.now);
                }
            }
        });
        stage.circuits.sweep(stage.now);
        let out = stage.cluster.endpoints().iter().filter(|endpoint| endpoint.ejected()).count();
        assert_eq!(stage.cluster.ejected() as usize, out);
        assert!(endpoints.iter().all(|endpoint| !endpoint.is_gone() || endpoint.available()));
    }
}

#[test]
fn limits_hold_and_all_places_come_back() {
    let mut breaking = Settings::default();
    breaking.limits.max_requests = 2;
    let stage = Stage::new(breaking, 1);
    let (under_way, passed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    together(|_| {
        for _ in 0..2000 {
            if let Ok(call) = stage.cluster.admit(stage.now) {
                assert!(under_way.fetch_add(1, Ordering::SeqCst) < 2);
                passed.fetch_add(1, Ordering::Relaxed);
                under_way.fetch_sub(1, Ordering::SeqCst);
                drop(call);
            }
        }
    });
    assert_eq!(stage.cluster.held(Gauge::Requests), 0);
    let refused = stage.cluster.core().refused(Gauge::Requests);
    assert_eq!(passed.into_inner() as u64 + refused, (THREADS * 2000) as u64);
}

#[test]
fn no_call_is_lost_from_a_window_at_a_time() {
    let stage = Stage::guarded(|circuit| circuit.minimum_calls = u32::MAX);
    together(|_| {
        for _ in 0..1000 {
            stage.call(RESET, FAST).expect("closed");
        }
    });
    let core = stage.cluster.core();
    let settings = circuit::Settings::default();
    let now = stage.circuits.shared().clock.millis(stage.now);
    let tally = core.circuit.tally(&settings, now);
    assert_eq!((tally.calls, tally.errors), (THREADS as u64 * 1000, THREADS as u64 * 1000));
}
