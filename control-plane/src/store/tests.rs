//! The journal against restarts, repetitions and a full disk.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::graph::{Histogram, Measure, Protocol, Status, Tls};

/// Remembers what was counted.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<(Vec<KnownInstance>, Vec<Report>)>>);

impl Counter for Ledger {
    fn known(&mut self, instance: KnownInstance) {
        self.0.lock().expect("no panic").0.push(instance);
    }
    fn count(&mut self, report: &Report) {
        self.0.lock().expect("no panic").1.push(report.clone());
    }
}

impl Ledger {
    fn reports(&self) -> Vec<Report> {
        self.0.lock().expect("no panic").1.clone()
    }

    fn requests(&self) -> u64 {
        self.reports().iter().flat_map(|report| &report.samples).map(Sample::requests).sum()
    }
}

fn config(directory: &Path) -> Config {
    Config { data_dir: Some(directory.to_owned()), bytes_max: Config::BYTES_MAX }
}

fn open(directory: &Path) -> (Store, Ledger) {
    let ledger = Ledger::default();
    (Store::open(&config(directory), ledger.clone()).expect("a journal"), ledger)
}

fn close(store: &Store) {
    // The thread of a test may block.
    std::thread::scope(|scope| scope.spawn(|| store.close()).join().expect("closed"));
}

fn sample(count: u32) -> Sample {
    let mut durations = Histogram::default();
    durations.add(3, count);
    Sample {
        source: "workload:shop/web".parse().expect("valid"),
        target: "workload:shop/orders".parse().expect("valid"),
        protocol: Protocol::Http,
        tls: Tls::None,
        at: Timestamp::now(),
        service: None,
        source_version: None,
        target_version: None,
        provisional: None,
        measure: Measure::Requests {
            method: "GET".into(),
            route: "/orders/{id}".into(),
            status: Status::http(200),
            error: None,
            durations,
        },
    }
}

fn report(sequence: u64, count: u32) -> Report {
    let now = Timestamp::now();
    Report {
        instance: Some("one".into()),
        sequence,
        received_at: now,
        start: now,
        end: now,
        workload: "shop/web".to_owned(),
        addresses: vec!["10.0.0.1".parse().expect("valid")],
        samples: vec![sample(count)],
    }
}

#[tokio::test]
async fn a_repeated_report_is_answered_and_not_counted() {
    let ledger = Ledger::default();
    let store = Store::open(&Config { data_dir: None, bytes_max: 0 }, ledger.clone()).expect("in memory");
    assert_eq!(store.append(report(1, 10)).await, Ok(Outcome::Counted));
    assert_eq!(store.append(report(1, 10)).await, Ok(Outcome::Duplicate));
    assert_eq!(store.append(report(4, 1)).await, Ok(Outcome::Counted), "the sender may have dropped some");
    assert_eq!(store.append(report(3, 1)).await, Ok(Outcome::Duplicate));
    let foreign = Report { instance: None, sequence: 0, ..report(0, 5) };
    assert_eq!(store.append(foreign.clone()).await, Ok(Outcome::Counted));
    assert_eq!(store.append(foreign).await, Ok(Outcome::Counted), "without a sequence, at least once");
    assert_eq!(ledger.requests(), 21);
}

#[tokio::test]
async fn repetitions_that_race_are_counted_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, ledger) = open(directory.path());
    let answers = futures_util::future::join_all((0..50).map(|_| store.append(report(7, 3)))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(answers.iter().filter(|answer| **answer == Ok(Outcome::Counted)).count(), 1);
    assert_eq!(ledger.requests(), 3);
}

#[tokio::test]
async fn a_restart_replays_what_was_answered_and_knows_what_it_has_seen() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, before) = open(directory.path());
    for sequence in 1..=5 {
        store.append(report(sequence, 10)).await.expect("journaled");
    }
    close(&store);
    assert_eq!(store.append(report(6, 1)).await, Err(Unavailable::Closed));
    let (store, after) = open(directory.path());
    assert_eq!(store.append(report(5, 10)).await, Ok(Outcome::Duplicate), "its answer may have been lost");
    assert_eq!(after.reports(), before.reports());
    assert_eq!(store.append(report(6, 1)).await, Ok(Outcome::Counted));
    assert_eq!(after.requests(), 51);
    let known = after.0.lock().expect("no panic").0.clone();
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].sequence, &*known[0].addresses), (5, &["10.0.0.1".parse().expect("valid")][..]));
}

/// The writer forgets the longest silent of too many instances; the database does not.
#[test]
fn a_repetition_of_somebody_forgotten_fails_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut journal = Journal::open(&config(directory.path())).expect("a journal");
    let (first, second) = (report(7, 3), Report { instance: Some("two".into()), ..report(1, 1) });
    let bodies = [record::encode(&first), record::encode(&second)];
    let later = (&report(8, 1), 8, &*bodies[0]);
    journal.write([(&first, 7, &*bodies[0]), later].into_iter()).expect("new");
    journal.write([(&first, 7, &*bodies[0]), (&second, 1, &*bodies[1])].into_iter()).expect("one is new");
    let known: Vec<_> = journal.instances().expect("readable").into_iter().map(|one| one.sequence).collect();
    assert_eq!(known, [8, 1], "a sequence never falls");
    let mut replayed = Vec::new();
    journal.replay(Timestamp::now(), |report| replayed.push(report.sequence)).expect("readable");
    assert_eq!(replayed, [7, 8, 1]);
}

/// What a killed process leaves behind: the files as they are at some moment, never closed.
#[tokio::test]
async fn a_killed_process_leaves_every_answered_report_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = open(directory.path());
    for sequence in 1..=20 {
        store.append(report(sequence, 1)).await.expect("journaled");
    }
    let remains = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(directory.path()).expect("readable") {
        let entry = entry.expect("readable");
        std::fs::copy(entry.path(), remains.path().join(entry.file_name())).expect("copied");
    }
    let (store, after) = open(remains.path());
    assert_eq!(store.append(report(20, 1)).await, Ok(Outcome::Duplicate));
    assert_eq!(after.requests(), 20);
}

#[tokio::test]
async fn a_full_journal_refuses_and_recovers_the_sequence() {
    let directory = tempfile::tempdir().expect("a directory");
    let ledger = Ledger::default();
    let small = Config { bytes_max: 64 * 1_024, ..config(directory.path()) };
    let store = Store::open(&small, ledger.clone()).expect("a journal");
    let mut counted = 0;
    let refused = loop {
        let mut big = report(counted + 1, 1);
        big.samples = (0..200u32)
            .map(|route| Sample { service: Some(format!("s{route}").into()), ..sample(1) })
            .collect();
        match store.append(big).await {
            Ok(_) => counted += 1,
            Err(refused) => break refused,
        }
        assert!(counted < 100, "the bound does not bite");
    };
    assert_eq!(refused, Unavailable::Failed);
    assert_eq!(ledger.requests(), counted * 200, "what was refused is not counted");
    // Pruning makes room again, and the same sequence is then taken.
    store.prune(Timestamp::now().plus(KEPT * 2));
    assert_eq!(store.append(report(counted + 1, 1)).await, Ok(Outcome::Counted));
}

#[tokio::test]
async fn one_directory_has_one_control_plane() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = open(directory.path());
    store.append(report(1, 1)).await.expect("journaled");
    let second = Store::open(&config(directory.path()), Ledger::default());
    assert!(matches!(second, Err(OpenError::Database { .. })), "{second:?}");
}

#[tokio::test]
async fn a_damaged_journal_is_put_aside() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("journal.sqlite"), [b'x'; 8_192]).expect("written");
    let (store, _) = open(directory.path());
    assert_eq!(store.append(report(1, 1)).await, Ok(Outcome::Counted));
    let names = std::fs::read_dir(directory.path()).expect("readable");
    assert!(names.flatten().any(|entry| entry.file_name().to_string_lossy().contains("damaged")));
}

proptest! {
    #[test]
    fn strangers_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(record::decode(&body));
    }

    #[test]
    fn a_record_round_trips(
        count in 1u32..1_000,
        index in -272i32..144,
        micros in any::<u64>(),
        kind in 0u8..6,
        text in "[a-z/{}]{1,20}",
        code in 0u16..11_000,
    ) {
        let mut durations = Histogram::default();
        durations.add(index, count);
        durations.set_sum_micros(micros);
        let error = (count % 2 == 0).then(|| text.as_str().into());
        let measure = match kind {
            0 => Measure::Opened(count),
            1 => Measure::Closed { error, durations },
            2 => Measure::Bytes { sent: micros, received: u64::from(count) },
            3 => Measure::Folded(count),
            4 => Measure::Retries { sent: count, denied: count / 2 },
            _ => Measure::Requests {
                method: "GET".into(), route: text.as_str().into(), status: Status::from_code(code), error, durations,
            },
        };
        let sample = Sample {
            measure,
            provisional: (count % 3 == 0).then(|| "fd00::9".parse().expect("valid")),
            service: (count % 5 == 0).then(|| "orders.shop:80".into()),
            source_version: Some("v1".into()),
            source: "unmeshed:fd00::9".parse().expect("valid"),
            target: "external:api.example.com:443".parse().expect("valid"),
            ..sample(1)
        };
        let report = Report { samples: vec![sample], ..report(1, 1) };
        prop_assert_eq!(record::decode(&record::encode(&report)), Some(report.samples));
    }
}
