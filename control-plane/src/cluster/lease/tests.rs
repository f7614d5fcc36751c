use proptest::prelude::*;

use super::*;

fn start() -> Instant {
    Instant::now()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// The record that an act writes.
fn written(act: Act) -> Record {
    match act {
        Act::Create(record) | Act::Replace(record) => record,
        Act::Wait => panic!("somebody else holds it"),
    }
}

fn holding(name: &str, at: Instant) -> (Election, Record) {
    let mut election = Election::new(name, Settings::default());
    let record = written(election.look(None, at, wall(0)));
    election.wrote(record.clone(), at);
    (election, record)
}

#[test]
fn whoever_finds_none_makes_one_and_leads_until_the_renewal_is_due() {
    let at = start();
    let (election, record) = holding("one", at);
    assert_eq!(record.holder.as_deref(), Some("one"));
    assert_eq!((record.transitions, record.duration), (0, seconds(15)));
    assert!(election.leads(at + Duration::from_millis(9_999)));
    assert!(!election.leads(at + seconds(10)), "not renewed in time");
}

#[test]
fn whoever_follows_waits_for_the_duration_on_its_own_clock() {
    let at = start();
    let (_, record) = holding("one", at);
    // By what it says it was over an hour ago. That is their clock.
    let stale = Record { renewed: Some(wall(-3_600)), ..record };
    let mut other = Election::new("other", Settings::default());
    assert_eq!(other.look(Some(&stale), at, wall(0)), Act::Wait);
    assert_eq!(other.look(Some(&stale), at + seconds(14), wall(14)), Act::Wait);
    let renewed = Record { renewed: Some(wall(-3_590)), ..stale };
    assert_eq!(other.look(Some(&renewed), at + Duration::from_millis(14_900), wall(15)), Act::Wait);
    assert_eq!(other.look(Some(&renewed), at + seconds(29), wall(29)), Act::Wait, "it was renewed");
    let taken = written(other.look(Some(&renewed), at + seconds(30), wall(30)));
    assert_eq!((taken.holder.as_deref(), taken.transitions), (Some("other"), 1));
    assert!(!other.leads(at + seconds(30)), "nobody leads before it is written");
}

#[test]
fn what_was_released_is_taken_at_once() {
    let at = start();
    let (mut one, _) = holding("one", at);
    let released = one.release(wall(3)).unwrap();
    assert!(!one.leads(at));
    assert_eq!(one.release(wall(3)), None, "there is nothing to give up any more");
    let mut other = Election::new("other", Settings::default());
    assert!(matches!(other.look(Some(&released), at + seconds(3), wall(3)), Act::Replace(_)));
}

#[test]
fn whoever_finds_another_in_its_place_leads_no_more() {
    let at = start();
    let (mut one, record) = holding("one", at);
    let theirs = Record { holder: Some("other".into()), ..record };
    assert_eq!(one.look(Some(&theirs), at + seconds(1), wall(1)), Act::Wait);
    assert!(!one.leads(at + seconds(1)));
    assert_eq!(one.renewal(wall(1)), None);
}

#[test]
fn another_is_only_who_stands_in_the_lease() {
    let at = start();
    let (mut one, record) = holding("one", at);
    assert_eq!(one.another(), None);
    // It could not renew, and nobody has taken it: nobody else leads either.
    assert!(!one.leads(at + seconds(60)));
    assert_eq!(one.another(), None);
    let theirs = Record { holder: Some("other".into()), ..record };
    one.look(Some(&theirs), at + seconds(61), wall(61));
    assert_eq!(one.another(), Some("other"));
    // Silent for longer than it may be: whoever cannot take the Lease over must not send sidecars to nobody.
    one.look(Some(&theirs), at + seconds(90), wall(90));
    assert_eq!(one.another(), None);
    let renewed = Record { renewed: Some(wall(91)), ..theirs };
    one.look(Some(&renewed), at + seconds(91), wall(91));
    assert_eq!(one.another(), Some("other"), "it was not silent for ever");
    one.look(Some(&Record { holder: None, ..renewed }), at + seconds(92), wall(92));
    assert_eq!(one.another(), None, "it was given back");
}

#[test]
fn an_earlier_run_in_the_same_pod_is_not_waited_for() {
    let at = start();
    let theirs = |holder: &str| Record { holder: Some(holder.into()), ..Record::default() };
    let mut again = Election::new("cp-1_b", Settings::default()).in_pod("cp-1");
    assert!(matches!(again.look(Some(&theirs("cp-1_a")), at, wall(0)), Act::Replace(_)));
    assert_eq!(again.another(), None);
    // Another pod's name may begin like ours.
    assert_eq!(again.look(Some(&theirs("cp-12_a")), at, wall(0)), Act::Wait);
    assert_eq!(again.another(), Some("cp-12_a"));
}

#[test]
fn a_lease_that_somebody_deleted_is_not_held() {
    let at = start();
    let (mut one, _) = holding("one", at);
    assert!(matches!(one.look(None, at + seconds(1), wall(1)), Act::Create(_)));
    assert!(!one.leads(at + seconds(1)));
}

#[test]
fn a_renewal_keeps_since_when_it_is_held() {
    let at = start();
    let (mut one, record) = holding("one", at);
    let renewal = one.renewal(wall(2)).unwrap();
    assert_eq!((renewal.acquired, renewal.renewed), (record.acquired, Some(wall(2))));
    one.wrote(renewal.clone(), at + seconds(2));
    assert!(one.leads(at + seconds(11)));
    assert_eq!(written(one.look(Some(&renewal), at + seconds(4), wall(4))).transitions, 0);
}

#[test]
fn a_lease_of_no_sensible_duration_is_waited_for_as_long_as_ours() {
    let at = start();
    for duration in [Duration::ZERO, seconds(1), seconds(1_000_000)] {
        let theirs = Record { holder: Some("x".into()), duration, ..Record::default() };
        let mut one = Election::new("one", Settings::default());
        assert_eq!(one.look(Some(&theirs), at, wall(0)), Act::Wait);
        assert_eq!(one.look(Some(&theirs), at + seconds(14), wall(14)), Act::Wait);
        assert!(matches!(one.look(Some(&theirs), at + seconds(301), wall(301)), Act::Replace(_)));
    }
}

// === several of them, and a network that loses and delays ===

/// One control plane in the simulation.
struct Node {
    election: Election,
    /// Its clock runs at this many thousandths of the true one, and began at another moment.
    rate: u64,
    offset: Duration,
    /// What it read and decided, on the way to the server: the act, the version read, when it began (its clock).
    sent: Option<(Act, u64, Instant)>,
    /// What the server answered, on the way back: what was written as which version, and when it began.
    answer: Option<(Option<(Record, u64)>, Instant)>,
    /// The version that it read or wrote last.
    version: u64,
    epoch: Instant,
}

impl Node {
    /// Its clock at the true time `at` (milliseconds).
    fn now(&self, at: u64) -> Instant {
        self.epoch + self.offset + Duration::from_millis(at * self.rate / 1_000)
    }
}

/// The server: one record and its version.
#[derive(Default)]
struct Server {
    record: Option<Record>,
    version: u64,
}

impl Server {
    fn write(&mut self, act: &Act, over: u64) -> Option<(Record, u64)> {
        let record = match act {
            Act::Create(record) if self.record.is_none() => record,
            Act::Replace(record) if self.version == over && self.record.is_some() => record,
            _ => return None,
        };
        self.version += 1;
        self.record = Some(record.clone());
        Some((record.clone(), self.version))
    }
}

/// What happens to one node in one moment.
fn go_on(node: &mut Node, server: &mut Server, at: u64, luck: u8) {
    let now = node.now(at);
    // Answers and requests may take as long as they like: half of the moments nothing arrives.
    if let Some((record, asked)) = node.answer.take_if(|_| luck & 1 == 1) {
        // Every fourth answer is lost after the server did it.
        if let Some((record, version)) = record.filter(|_| luck & 0b110 != 0) {
            node.election.wrote(record, asked);
            node.version = version;
        }
        return;
    }
    if let Some((act, over, asked)) = node.sent.take_if(|_| luck & 2 == 2) {
        // Every eighth request is lost before.
        if luck & 0b11100 != 0 {
            node.answer = Some((server.write(&act, over), asked));
        }
        return;
    }
    if node.sent.is_none() && node.answer.is_none() && luck & 4 == 4 {
        let stamp = wall(i64::try_from(at).unwrap());
        let act = match node.election.renewal(stamp).filter(|_| luck & 8 == 8) {
            Some(record) => Act::Replace(record),
            None => {
                node.version = server.version;
                node.election.look(server.record.as_ref(), now, stamp)
            }
        };
        if act != Act::Wait {
            node.sent = Some((act, node.version, now));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Clocks that differ by 30 % and by days, requests and answers that are late or lost, processes that stand still.
    #[test]
    fn two_never_lead(
        clocks in prop::collection::vec((870_u64..1_130, 0_u64..300_000), 2..5),
        luck in prop::collection::vec(any::<(u8, u8)>(), 400..1_500),
    ) {
        let epoch = start();
        let mut nodes: Vec<Node> = clocks.iter().enumerate().map(|(number, (rate, offset))| Node {
            election: Election::new(&format!("node-{number}"), Settings::default()),
            rate: *rate,
            offset: seconds(*offset),
            sent: None,
            answer: None,
            version: 0,
            epoch,
        }).collect();
        let mut server = Server::default();
        let mut at = 0;
        for (number, (which, luck)) in luck.into_iter().enumerate() {
            at += u64::from(luck) * 8;
            let place = usize::from(which) % nodes.len();
            go_on(&mut nodes[place], &mut server, at, luck);
            let leading: Vec<&str> = nodes.iter()
                .filter(|node| node.election.leads(node.now(at)))
                .map(|node| node.election.identity())
                .collect();
            prop_assert!(leading.len() <= 1, "at moment {number}, {at} ms: {leading:?} lead");
        }
    }
}

#[test]
fn the_simulation_is_no_empty_one() {
    // The same moves with honest clocks lead to a leader, and after its silence to another.
    let epoch = start();
    let node = |name: &str| Node {
        election: Election::new(name, Settings::default()),
        rate: 1_000,
        offset: Duration::ZERO,
        sent: None,
        answer: None,
        version: 0,
        epoch,
    };
    let (mut one, mut other, mut server) = (node("one"), node("other"), Server::default());
    for at in 0..4 {
        go_on(&mut one, &mut server, at * 100, 0xff);
    }
    assert!(one.election.leads(one.now(400)));
    for at in (400..40_000).step_by(500) {
        go_on(&mut other, &mut server, at, 0xff);
    }
    assert!(other.election.leads(other.now(40_000)), "{:?}", server.record);
    assert!(!one.election.leads(one.now(40_000)));
    assert_eq!(server.record.unwrap().transitions, 1);
}
