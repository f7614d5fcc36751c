//! Who sees what, in whatever order it is told, and for how long.

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_795_219_200_500);

fn ago(millis: u64) -> Timestamp {
    NOW.minus(Duration::from_millis(millis))
}

fn observer(instance: &str) -> Observer {
    Observer { instance: instance.into(), workload: "shop/web".parse().expect("valid"), pod: None }
}

fn endpoint(state: State, at: Timestamp) -> Sighting {
    Sighting {
        id: Id {
            kind: Kind::Endpoint,
            cluster: "orders.shop:8080".into(),
            endpoint: Some("10.0.0.7:8080".parse().expect("valid")),
        },
        callee: Callee {
            workload: Some("shop/orders".parse().expect("valid")),
            version: Some("v2".into()),
            pod: Some("orders-7d9".into()),
        },
        state,
        cause: (state != State::Closed).then(|| "consecutive_5xx".into()),
        threshold: (state != State::Closed).then_some(5),
        since: Some(ago(5_000)),
        next_probe: (state != State::Closed).then(|| NOW.plus(Duration::from_secs(25))),
        calls: 30,
        errors: 15,
        slow: 0,
        at,
    }
}

fn service(state: State, at: Timestamp) -> Sighting {
    let id = Id { kind: Kind::Service, cluster: "orders.shop:8080".into(), endpoint: None };
    let cause = (state != State::Closed).then(|| "error_ratio".into());
    Sighting { id, callee: Callee::default(), cause, threshold: Some(50), ..endpoint(state, at) }
}

fn transition(sequence: u64, from: State, to: State, at: Timestamp) -> Transition {
    Transition { sequence, from, sighting: endpoint(to, at) }
}

fn table() -> Circuits {
    Circuits::new(Limits::STANDARD)
}

#[test]
fn the_json_of_the_circuits_is_what_the_api_promises() {
    let mut circuits = table();
    circuits.tell(&observer("web-1"), transition(1, State::Closed, State::Open, ago(5_000)));
    circuits.observe(
        &observer("web-1"),
        Skew::default(),
        [endpoint(State::Open, ago(400)), service(State::HalfOpen, ago(400))],
    );
    circuits.observe(&observer("web-2"), Skew::default(), [endpoint(State::Closed, ago(300))]);
    insta::assert_json_snapshot!("document", circuits.document(NOW));
}

#[test]
fn the_newest_word_of_each_observer_counts() {
    let mut circuits = table();
    circuits.observe(&observer("web-1"), Skew::default(), [endpoint(State::Open, ago(100))]);
    circuits.observe(&observer("web-1"), Skew::default(), [endpoint(State::Closed, ago(1_100))]);
    let document = circuits.document(NOW);
    assert_eq!((document.circuits[0].state, document.circuits[0].open_on), (State::Open, 1));
    circuits.observe(&observer("web-1"), Skew::default(), [endpoint(State::Closed, NOW)]);
    let closed = &circuits.document(NOW).circuits[0];
    assert_eq!((closed.state, closed.next_probe_at), (State::Closed, None));
    assert_eq!(closed.cause.as_deref(), Some("consecutive_5xx"), "why it last was open");
}

#[test]
fn who_falls_silent_is_forgotten_and_what_is_idle_stays_closed() {
    let mut circuits = table();
    circuits.observe(&observer("web-1"), Skew::default(), [endpoint(State::Closed, NOW)]);
    circuits.observe(&observer("web-2"), Skew::default(), [endpoint(State::Open, NOW)]);
    // The first goes on about another circuit only: the closed one has no traffic. The second says nothing more.
    let later = |seconds| NOW.plus(Duration::from_secs(seconds));
    circuits.observe(&observer("web-1"), Skew::default(), [service(State::Closed, later(12))]);
    circuits.expire(later(12));
    let document = circuits.document(later(12));
    assert_eq!(document.circuits_total, 2);
    let idle = document.circuits.iter().find(|circuit| circuit.endpoint.is_some()).expect("it stays");
    assert_eq!((idle.state, idle.observers_total, idle.calls), (State::Closed, 1, 0));
    assert_eq!(circuits.silent(later(12)), ["web-2".into()]);
    // Whoever reports, but not of a circuit that was open, has no such circuit any more.
    circuits.observe(&observer("web-1"), Skew::default(), [service(State::Open, later(13))]);
    circuits.observe(&observer("web-1"), Skew::default(), [endpoint(State::Closed, later(25))]);
    circuits.expire(later(25));
    assert!(circuits.document(later(25)).circuits.iter().all(|circuit| circuit.kind == Kind::Endpoint));
    circuits.forget("web-1");
    assert_eq!((circuits.observations(), circuits.document(later(25)).circuits_total), (0, 0));
}

#[test]
fn a_transition_is_shown_once_and_in_the_order_of_time() {
    let mut circuits = table();
    let (one, two) = (observer("web-1"), observer("web-2"));
    assert!(circuits.tell(&one, transition(1, State::Closed, State::Open, ago(900))));
    assert!(!circuits.tell(&one, transition(1, State::Closed, State::Open, ago(900))), "told again");
    assert!(circuits.tell(&one, transition(2, State::Open, State::HalfOpen, ago(100))));
    assert!(circuits.tell(&two, transition(1, State::Closed, State::Open, ago(500))), "a series of its own");
    let ids: Vec<String> = circuits.document(NOW).events.into_iter().map(|event| event.id).collect();
    assert_eq!(ids, ["web-1-2", "web-2-1", "web-1-1"], "newest first");
    assert_eq!(circuits.counters(), Counters { dropped: 0, repeated: 1, transitions: 3 });
    let document = circuits.document(NOW);
    assert_eq!(document.circuits[0].state, State::Open, "a transition is also a sighting");
}

#[test]
fn a_full_table_counts_what_it_leaves_out() {
    let mut circuits = Circuits::new(Limits { observations: 2, observers: 2, events: 2 });
    for instance in ["web-1", "web-2", "web-3"] {
        circuits.observe(&observer(instance), Skew::default(), [endpoint(State::Open, NOW)]);
    }
    circuits.observe(&observer("web-1"), Skew::default(), [service(State::Open, NOW)]);
    assert_eq!((circuits.observations(), circuits.counters().dropped), (2, 2));
    for sequence in 1..5 {
        circuits.tell(&observer("web-1"), transition(sequence, State::Closed, State::Open, NOW));
    }
    assert_eq!(circuits.document(NOW).events.len(), 2);
}

#[test]
fn causes_are_sentences() {
    let text = |cause: &str, sighting: Sighting| {
        cause::text(&Sighting { cause: Some(cause.into()), ..sighting }).expect("a cause")
    };
    let open = endpoint(State::Open, NOW);
    assert_eq!(text("consecutive_5xx", open.clone()), "5 server errors in a row");
    assert_eq!(text("error_ratio", open.clone()), "50 % of calls failed (15 of 30)");
    let closed = Sighting { threshold: Some(50), ..endpoint(State::Closed, NOW) };
    assert_eq!(text("error_ratio", closed), "50 % of calls or more failed");
    assert_eq!(
        text("slow_calls", Sighting { slow: 30, ..open.clone() }),
        "100 % of calls were too slow (30 of 30)"
    );
    assert_eq!(text("brand_new_cause", open), "brand new cause");
}

#[test]
fn a_senders_clock_is_set_right_and_the_future_stays_the_future() {
    let day = Duration::from_secs(86_400);
    let skew = Skew::between(NOW.minus(day), NOW);
    let told = Sighting {
        since: Some(ago(5_000).minus(day)),
        next_probe: Some(NOW.minus(day).plus(Duration::from_secs(25))),
        ..endpoint(State::Open, ago(200).minus(day))
    };
    let placed = told.placed(skew, NOW);
    assert_eq!((placed.at, placed.since), (ago(200), Some(ago(5_000))));
    assert_eq!(placed.next_probe, Some(NOW.plus(Duration::from_secs(25))));
}

/// Each word that a sidecar uses (`proxy/src/balance/breaker.rs`).
#[test]
fn every_cause_reads_like_a_sentence() {
    let table = [
        ("consecutive_5xx", "5 server errors in a row"),
        ("consecutive_gateway_failure", "5 gateway errors (502, 503 or 504) in a row"),
        ("consecutive_local_origin_failure", "5 failures to connect, resets or timeouts in a row"),
        ("success_rate", "it fails far more often than the other endpoints"),
        ("success_rate_local_origin", "it gives no answer far more often than the other endpoints"),
        ("failure_percentage", "50 % of calls failed (15 of 30)"),
        ("failure_percentage_local_origin", "50 % of calls got no answer (15 of 30)"),
        ("health_check", "its health checks fail"),
        ("error_ratio", "50 % of calls failed (15 of 30)"),
        ("slow_calls", "30 % of calls were too slow (9 of 30)"),
        ("probe_failed", "a probe of the half-open circuit failed"),
        ("max_connections", "the limit of 5 connections is reached"),
        ("max_pending_requests", "the limit of 5 waiting requests is reached"),
        ("max_requests", "the limit of 5 concurrent requests is reached"),
        ("max_retries", "the limit of 5 concurrent retries is reached"),
    ];
    for (word, text) in table {
        let cause = Some(word.into());
        let sighting = Sighting { cause, slow: 9, ..endpoint(State::Open, NOW) };
        assert_eq!(cause::text(&sighting).as_deref(), Some(text), "{word}");
    }
}
