//! Tables and properties of the service circuit.

use proptest::prelude::*;
use weft_wire::Reason;

use super::*;

const SETTINGS: Settings = Settings {
    window: WINDOW,
    minimum_calls: MINIMUM_CALLS,
    error_percent: ERROR_PERCENT,
    slow: None,
    open: Duration::from_secs(5),
    open_max: Duration::from_secs(15),
    probes: 3,
};

const BROKEN: Outcome = Outcome::LocalOrigin(Reason::UpstreamReset);

fn tally(calls: u64, errors: u64, slow: u64) -> Tally {
    Tally { calls, errors, slow }
}

/// Open since 0, closed before.
fn tripped() -> State {
    State::default().trip(&SETTINGS, 0)
}

/// Half open, with as many probes under way as there may be.
fn probing() -> (State, Era) {
    let mut state = tripped();
    let mut last = None;
    for _ in 0..SETTINGS.probes {
        let (next, verdict) = state.admit(&SETTINGS, 5000);
        let Verdict::Probe(era) = verdict else { panic!("{verdict:?} in {state:?}") };
        (state, last) = (next, Some(era));
    }
    (state, last.expect("at least one"))
}

#[test]
fn a_window_opens_the_circuit_by_its_shares() {
    let slow =
        Settings { slow: Some(Slow { threshold: Duration::from_millis(100), percent: 80 }), ..SETTINGS };
    let table = [
        (tally(0, 0, 0), None),
        (tally(19, 19, 0), None),
        (tally(20, 9, 0), None),
        (tally(20, 10, 0), Some(Cause::ErrorRatio)),
        (tally(1000, 499, 0), None),
        (tally(20, 0, 15), None),
        (tally(20, 0, 16), Some(Cause::SlowCalls)),
        (tally(20, 20, 20), Some(Cause::ErrorRatio)),
    ];
    for (tally, cause) in table {
        assert_eq!(slow.judge(tally), cause, "{tally:?}");
    }
    assert_eq!(SETTINGS.judge(tally(20, 0, 20)), None, "slowness does not count here");
}

#[test]
fn slow_is_what_takes_at_least_as_long_as_said() {
    let slow = Slow { threshold: Duration::from_millis(100), percent: 80 };
    let settings = Settings { slow: Some(slow), ..SETTINGS };
    assert!(settings.is_slow(Duration::from_millis(100)) && !settings.is_slow(Duration::from_millis(99)));
    assert!(!SETTINGS.is_slow(Duration::MAX));
}

#[test]
fn an_open_circuit_refuses_until_its_time_is_over() {
    let state = tripped();
    for now in [0, 1, 4999] {
        assert_eq!(state.admit(&SETTINGS, now), (state, Verdict::Refuse));
        assert_eq!(state.tick(&SETTINGS, now), state);
    }
    assert_eq!(state.tick(&SETTINGS, 5000).position, Position::HalfOpen, "time alone");
    let (state, verdict) = state.admit(&SETTINGS, 5000);
    assert_eq!(state.position, Position::HalfOpen, "or whoever comes first");
    assert!(matches!(verdict, Verdict::Probe(_)));
}

#[test]
fn exactly_its_probes_pass_and_close_it() {
    let (mut state, era) = probing();
    assert_eq!(state.admit(&SETTINGS, 5001).1, Verdict::Refuse);
    for _ in 0..2 {
        state = state.probed(&SETTINGS, era, Outcome::Success, false, 5001);
        assert_eq!(state.position, Position::HalfOpen);
        assert_eq!(state.admit(&SETTINGS, 5001).1, Verdict::Refuse, "one that passed is not repeated");
    }
    state = state.probed(&SETTINGS, era, Outcome::Success, false, 5001);
    assert_eq!(state.position, Position::Closed);
    assert_eq!(state.admit(&SETTINGS, 5001), (state, Verdict::Pass));
    assert_eq!(state.trip(&SETTINGS, 6000).until, 11_000, "the times begin anew");
}

#[test]
fn a_probe_that_fails_or_is_slow_opens_it_for_longer() {
    let mut now = 0;
    let mut state = tripped();
    for (outcome, slow, seconds) in
        [(BROKEN, false, 10), (Outcome::ServerError, false, 15), (Outcome::Success, true, 15)]
    {
        now = state.until;
        let (next, verdict) = state.admit(&SETTINGS, now);
        let Verdict::Probe(era) = verdict else { panic!("{verdict:?}") };
        state = next.probed(&SETTINGS, era, outcome, slow, now);
        assert_eq!((state.position, state.until - now), (Position::Open, seconds * 1000));
    }
    assert_eq!(state.admit(&SETTINGS, now + 14_999).1, Verdict::Refuse);
}

#[test]
fn a_cancelled_probe_gives_its_place_to_another() {
    let (state, era) = probing();
    let state = state.probed(&SETTINGS, era, Outcome::Cancelled, false, 5001);
    assert_eq!(state.position, Position::HalfOpen);
    let (state, verdict) = state.admit(&SETTINGS, 5002);
    assert_eq!(verdict, Verdict::Probe(era));
    assert_eq!(state.admit(&SETTINGS, 5002).1, Verdict::Refuse);
}

#[test]
fn what_a_probe_says_after_its_phase_counts_for_nothing() {
    let (state, old) = probing();
    let open = state.probed(&SETTINGS, old, BROKEN, false, 5001);
    assert_eq!(open.probed(&SETTINGS, old, BROKEN, false, 5002), open, "open already");
    let (again, _) = open.admit(&SETTINGS, open.until);
    for outcome in [BROKEN, Outcome::Success, Outcome::Cancelled] {
        assert_eq!(again.probed(&SETTINGS, old, outcome, false, open.until), again, "{outcome:?}");
    }
}

#[test]
fn probes_that_hang_have_failed_in_the_end() {
    let (state, era) = probing();
    assert_eq!(state.due(), Some(20_000), "as long as it may be open, after the last one");
    assert_eq!(state.tick(&SETTINGS, 19_999), state);
    let open = state.tick(&SETTINGS, 20_000);
    assert_eq!((open.position, open.until), (Position::Open, 30_000));
    assert_eq!(open.probed(&SETTINGS, era, Outcome::Success, false, 20_001), open, "too late");
}

#[test]
fn a_half_open_circuit_waits_for_callers_as_long_as_it_takes() {
    let state = tripped().tick(&SETTINGS, 5000);
    assert_eq!(state.due(), None);
    assert_eq!(state.tick(&SETTINGS, 5_000_000), state);
    let (state, verdict) = state.admit(&SETTINGS, 5_000_000);
    assert!(matches!(verdict, Verdict::Probe(_)));
    assert_eq!(state.tick(&SETTINGS, 5_000_001), state, "its first probe has its time");
}

#[test]
fn new_settings_with_fewer_probes_close_it() {
    let (state, era) = probing();
    let state = state.probed(&SETTINGS, era, Outcome::Success, false, 5001);
    let state = state.probed(&SETTINGS, era, Outcome::Success, false, 5001);
    let fewer = Settings { probes: 2, ..SETTINGS };
    assert_eq!(state.tick(&fewer, 5002).position, Position::Closed);
    assert_eq!(state.admit(&fewer, 5002).1, Verdict::Pass);
}

#[test]
fn times_double_up_to_the_maximum() {
    let seconds = |trips| SETTINGS.open_for(trips).as_secs();
    assert_eq!([seconds(1), seconds(2), seconds(3), seconds(255)], [5, 10, 15, 15]);
    let odd = Settings { open_max: Duration::ZERO, ..SETTINGS };
    assert_eq!(odd.open_for(9), Duration::from_secs(5), "a maximum below the first time is none");
    let huge = Settings { open: Duration::MAX, open_max: Duration::MAX, ..SETTINGS };
    let state = State::default().trip(&huge, u64::MAX);
    assert_eq!(State::unpack(state.pack()), state);
}

/// What may happen to a circuit.
#[derive(Debug, Clone, Copy)]
enum Event {
    Call,
    /// The probe at this position among those under way ends.
    End(usize, Outcome, bool),
    Wait(u64),
    Trip,
    Tick,
}

fn event() -> impl Strategy<Value = Event> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Success),
        1 => Just(Outcome::ServerError),
        1 => Just(BROKEN),
        2 => Just(Outcome::Cancelled),
    ];
    prop_oneof![
        4 => Just(Event::Call),
        4 => (any::<usize>(), outcome, proptest::bool::weighted(0.1))
            .prop_map(|(at, outcome, slow)| Event::End(at, outcome, slow)),
        2 => (0..7000_u64).prop_map(Event::Wait),
        1 => Just(Event::Trip),
        1 => Just(Event::Tick),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_probes_are_counted_and_it_closes_in_the_end(
        events in proptest::collection::vec(event(), 0..200),
        probes in 1..=PROBES_MAX,
    ) {
        let settings = Settings { probes, ..SETTINGS };
        let mut state = State::default();
        let mut now = 0;
        let mut under_way: Vec<Era> = vec![];
        for event in events {
            let before = state;
            match event {
                Event::Wait(millis) => now += millis,
                Event::Trip => state = state.trip(&settings, now),
                Event::Tick => state = state.tick(&settings, now),
                Event::Call => {
                    let (next, verdict) = state.admit(&settings, now);
                    match verdict {
                        Verdict::Pass => prop_assert_eq!(next.position, Position::Closed),
                        Verdict::Refuse => prop_assert!(next.position != Position::Closed),
                        Verdict::Probe(era) => {
                            prop_assert_eq!(next.position, Position::HalfOpen);
                            under_way.push(era);
                        }
                    }
                    if before.position == Position::Open && now < before.until {
                        prop_assert_eq!(verdict, Verdict::Refuse);
                    }
                    state = next;
                }
                Event::End(at, outcome, slow) if !under_way.is_empty() => {
                    let era = under_way.swap_remove(at % under_way.len());
                    state = state.probed(&settings, era, outcome, slow, now);
                }
                Event::End(..) => {}
            }
            prop_assert_eq!(State::unpack(state.pack()), state);
            let of_this_phase = under_way.iter().filter(|era| era.0 == state.era).count();
            if state.position == Position::HalfOpen {
                prop_assert_eq!(of_this_phase + usize::from(state.passed), usize::from(state.issued));
                prop_assert!(state.issued <= probes);
            }
        }
        // From anywhere: callers come, the service answers, and nobody cancels.
        for era in under_way {
            state = state.probed(&settings, era, Outcome::Success, false, now);
        }
        for _ in 0..=u32::from(probes) {
            now = now.max(state.due().unwrap_or(now));
            let (next, verdict) = state.admit(&settings, now);
            state = match verdict {
                Verdict::Probe(era) => next.probed(&settings, era, Outcome::Success, false, now),
                Verdict::Pass | Verdict::Refuse => next,
            };
        }
        prop_assert_eq!(state.position, Position::Closed);
    }

    #[test]
    fn a_state_fits_in_a_word(
        position in proptest::sample::select(&[Position::Closed, Position::HalfOpen, Position::Open]),
        trips in 0..=TRIPS_MAX as u8,
        era in 0..ERAS,
        issued in 0..=PROBES_MAX,
        passed in 0..=PROBES_MAX,
        until in 0..=UNTIL_MAX,
    ) {
        let state = State { position, trips, era, issued, passed, until };
        prop_assert_eq!(State::unpack(state.pack()), state);
    }
}
