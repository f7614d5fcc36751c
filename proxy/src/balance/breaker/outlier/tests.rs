//! Tables and properties of ejection.

use proptest::prelude::*;
use weft_wire::Reason;

use super::*;

const SECOND: u64 = 1000;

fn sample(attempts: u64, failures: u64) -> Option<Sample> {
    Some(Sample { attempts, failures })
}

#[test]
fn an_outcome_is_charged_to_the_answer_or_to_the_way_there() {
    let reset = Outcome::LocalOrigin(Reason::UpstreamReset);
    let together = Settings::default();
    let apart = Settings { split: true, ..together };
    let table = [
        (Outcome::Success, Some(Answer::Fine), None, Some(Answer::Fine), Some(false)),
        (Outcome::ServerError, Some(Answer::ServerError), None, Some(Answer::ServerError), Some(false)),
        (Outcome::GatewayError, Some(Answer::GatewayError), None, Some(Answer::GatewayError), Some(false)),
        (reset, Some(Answer::GatewayError), None, None, Some(true)),
        (Outcome::Cancelled, None, None, None, None),
    ];
    for (outcome, answer, local, answer_apart, local_apart) in table {
        assert_eq!(together.charge(outcome), Charge { answer, local_failed: local }, "{outcome:?}");
        let expected = Charge { answer: answer_apart, local_failed: local_apart };
        assert_eq!(apart.charge(outcome), expected, "{outcome:?} apart");
    }
}

#[test]
fn a_share_of_the_cluster_may_be_out() {
    let table = [
        // percent, one in any case, members, how many may be out
        (10, false, 3, 0),
        (10, true, 3, 1),
        (10, false, 10, 1),
        (10, false, 19, 1),
        (33, false, 3, 0),
        (34, false, 3, 1),
        (50, false, 3, 1),
        (50, false, 4, 2),
        (100, false, 3, 3),
        (0, false, 100, 0),
        (0, true, 100, 1),
        (100, true, 0, 1),
        (100, false, 0, 0),
    ];
    for (max_ejection_percent, always_eject_one, members, expected) in table {
        let settings = Settings { max_ejection_percent, always_eject_one, ..Settings::default() };
        let out = (0..200).take_while(|out| settings.may_eject(*out, members)).count();
        assert_eq!(out, expected, "{max_ejection_percent} % of {members}");
    }
}

#[test]
fn a_detection_is_enforced_as_often_as_it_says() {
    let settings = Settings::default();
    let times = |cause| (0..100).filter(|chance| settings.enforces(cause, *chance)).count();
    assert_eq!(times(Cause::Consecutive5xx), 100);
    assert_eq!(times(Cause::ConsecutiveGatewayFailure), 0, "Envoy's default");
    assert_eq!(times(Cause::ErrorRatio), 0, "not of an endpoint");
    let mut settings = settings;
    settings.enforcing.failure_percentage = 30;
    assert_eq!((0..100).filter(|chance| settings.enforces(Cause::FailurePercentage, *chance)).count(), 30);
}

#[test]
fn ejections_grow_longer_up_to_a_maximum() {
    let settings = Settings {
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(100),
        ..Settings::default()
    };
    let mut state = State::default();
    let mut now = 1234;
    for seconds in [30, 60, 90, 100, 100] {
        state = state.eject(&settings, Cause::Consecutive5xx, now, 0.0);
        assert_eq!(state.until - now, seconds * SECOND);
        assert!(!state.is_available() && !state.may_return(state.until - 1) && state.may_return(state.until));
        now = state.until;
        state = state.uneject();
        assert!(state.is_available());
        assert_eq!(state.cause, Some(Cause::Consecutive5xx), "why it last was out");
    }
}

#[test]
fn every_healthy_interval_takes_back_one_step() {
    let settings = Settings::default();
    let ejected = |state: State| state.eject(&settings, Cause::Consecutive5xx, 0, 0.0);
    let twice = ejected(ejected(State::default()).uneject()).uneject();
    assert_eq!(twice.backoff(), 2);
    assert_eq!(ejected(twice.calm()).until, 60 * SECOND);
    assert_eq!(ejected(twice.calm().calm().calm()).until, 30 * SECOND, "never less than one");
}

#[test]
fn the_step_stops_growing_where_envoys_does() {
    let settings = Settings::default();
    let mut state = State::default();
    for _ in 0..50 {
        state = state.eject(&settings, Cause::Consecutive5xx, 0, 0.0).uneject();
    }
    // 30 s × 10 = 300 s is still less than 330 s, 30 s × 11 is not.
    assert_eq!(state.backoff(), 11);
}

#[test]
fn jitter_comes_on_top_of_the_maximum() {
    let settings = Settings {
        max_ejection_time: Duration::from_secs(30),
        max_ejection_time_jitter: Duration::from_secs(10),
        ..Settings::default()
    };
    let until = |chance| State::default().eject(&settings, Cause::Consecutive5xx, 0, chance).until;
    assert_eq!((until(0.0), until(0.5)), (30 * SECOND, 35 * SECOND));
}

#[test]
fn a_failed_check_and_an_ejection_are_two_things() {
    let settings = Settings::default();
    let failed = State::default().checked(false);
    assert_eq!((failed.is_available(), failed.cause), (false, Some(Cause::HealthCheck)));
    let both = failed.eject(&settings, Cause::Consecutive5xx, 0, 0.0);
    assert!(!both.uneject().is_available(), "its checks still fail");
    assert!(!both.checked(true).is_available(), "its time is not over");
    assert!(both.uneject().checked(true).is_available());
    assert_eq!(both.checked(false).cause, Some(Cause::Consecutive5xx), "it was out already");
}

#[test]
fn who_succeeds_much_less_than_its_siblings_is_an_outlier() {
    let settings = Settings::default();
    // 100 % four times and 50 %: mean 90, deviation 20, threshold 90 - 1.9 × 20 = 52.
    let mut samples = vec![sample(200, 0), sample(200, 0), sample(200, 0), sample(200, 0), sample(400, 200)];
    let found = settings.outliers(Origin::External, &samples);
    assert_eq!(found, [(4, Cause::SuccessRate)]);
    let found = settings.outliers(Origin::Local, &samples);
    assert_eq!(found, [(4, Cause::SuccessRateLocalOrigin)]);
    // With one at 60 %: mean 92, deviation 16, threshold 61.6.
    samples[4] = sample(500, 200);
    assert_eq!(settings.outliers(Origin::External, &samples), [(4, Cause::SuccessRate)]);
    // Alike, and all bad: nobody stands out.
    assert_eq!(settings.outliers(Origin::External, &[sample(200, 150); 5]), []);
}

#[test]
fn a_comparison_needs_enough_endpoints_with_enough_traffic() {
    let mut settings = Settings::default();
    settings.failure_percentage.minimum_hosts = 100;
    let good = sample(200, 0);
    let bad = sample(200, 100);
    let judged = |samples: &[Option<Sample>]| settings.outliers(Origin::External, samples).len();
    assert_eq!(judged(&[good, good, good, good, bad]), 1);
    assert_eq!(judged(&[good, good, good, bad]), 0, "four are too few");
    assert_eq!(judged(&[good, good, good, None, bad]), 0, "who is out is not compared with");
    assert_eq!(judged(&[good, good, good, sample(99, 0), bad]), 0, "nor who had too little to do");
    assert_eq!(judged(&[good, good, good, good, sample(99, 99)]), 0);
    assert_eq!(judged(&[]), 0);
}

#[test]
fn who_fails_too_often_is_an_outlier_by_itself() {
    let mut settings = Settings::default();
    settings.success_rate.minimum_hosts = 100;
    settings.failure_percentage = FailurePercentage { threshold: 30, minimum_hosts: 2, request_volume: 10 };
    let samples = [sample(10, 2), sample(10, 3), sample(9, 9), None, sample(1000, 999)];
    let cause = Cause::FailurePercentage;
    assert_eq!(settings.outliers(Origin::External, &samples), [(1, cause), (4, cause)]);
    let cause = Cause::FailurePercentageLocalOrigin;
    assert_eq!(settings.outliers(Origin::Local, &samples), [(1, cause), (4, cause)]);
    assert_eq!(settings.outliers(Origin::External, &[sample(10, 10), None]), [], "alone");
    // No volume at all is asked for, and none was there.
    settings.failure_percentage = FailurePercentage { threshold: 0, minimum_hosts: 0, request_volume: 0 };
    assert_eq!(settings.outliers(Origin::External, &[sample(0, 0), None]), []);
}

proptest! {
    #[test]
    fn no_more_than_the_share_is_ever_out(percent in 0_u8..=100, members in 0_usize..300, one: bool) {
        let settings =
            Settings { max_ejection_percent: percent, always_eject_one: one, ..Settings::default() };
        let out = (0_u32..400).take_while(|out| settings.may_eject(*out, members)).count();
        prop_assert!(out * 100 <= usize::from(percent) * members || one && out == 1);
        prop_assert!(settings.may_eject(0, members) || !one);
    }

    #[test]
    fn a_state_fits_in_a_word(
        ejected: bool,
        failed_check: bool,
        cause in proptest::option::of(proptest::sample::select(Cause::ALL)),
        backoff in 0..=BACKOFF_MAX,
        until in 0..=UNTIL_MAX,
    ) {
        let state = State { ejected, failed_check, cause, backoff, until };
        prop_assert_eq!(State::unpack(state.pack()), state);
    }

    #[test]
    fn no_time_overflows(
        base in 1_u64..u64::MAX,
        max in 0_u64..u64::MAX,
        now: u64,
        chance in 0.0..1.0_f64,
        times in 1..40,
    ) {
        let settings = Settings {
            base_ejection_time: Duration::from_secs(base),
            max_ejection_time: Duration::from_secs(max),
            max_ejection_time_jitter: Duration::from_secs(365 * 24 * 3600),
            ..Settings::default()
        };
        let mut state = State::default();
        for _ in 0..times {
            state = state.eject(&settings, Cause::Consecutive5xx, now, chance);
            prop_assert!(state.until <= UNTIL_MAX);
            state = State::unpack(state.pack()).uneject();
        }
    }

    #[test]
    fn whoever_is_named_did_worse_than_somebody_who_is_not(
        counts in proptest::collection::vec((1_u64..500, 0_u64..500), 5..30),
    ) {
        let settings = Settings {
            success_rate: SuccessRate { minimum_hosts: 5, request_volume: 1, stdev_factor: 1900 },
            failure_percentage: FailurePercentage { minimum_hosts: 1000, ..Settings::default().failure_percentage },
            ..Settings::default()
        };
        let samples: Vec<_> =
            counts.iter().map(|&(attempts, failures)| sample(attempts, failures.min(attempts))).collect();
        let rate = |at: usize| samples[at].map_or(0.0, |s| (s.attempts - s.failures) as f64 / s.attempts as f64);
        let named: Vec<usize> =
            settings.outliers(Origin::External, &samples).into_iter().map(|(at, _)| at).collect();
        prop_assert!(named.len() < samples.len(), "not everybody is below the mean");
        for &at in &named {
            let others = (0..samples.len()).filter(|other| !named.contains(other));
            prop_assert!(others.into_iter().all(|other| rate(other) >= rate(at)));
        }
    }
}
