use super::*;
use crate::inspect::objects::Condition;

fn key(name: &str) -> Key {
    Key { kind: "HTTPRoute", namespace: "shop".into(), name: name.into() }
}

fn said(status: &'static str, message: &str) -> Wanted {
    let condition =
        Condition { kind: "Programmed", status, reason: "Programmed", message: message.to_owned() };
    Wanted { generation: Some(1), attached: Vec::new(), conditions: vec![condition], counted: true }
}

fn all(name: &str, wanted: Wanted) -> BTreeMap<Key, Wanted> {
    BTreeMap::from([(key(name), wanted)])
}

#[test]
fn only_news_is_due_and_numbers_once_in_a_while() {
    let (mut known, now) = (Known::default(), Instant::now());
    let first = said("True", "on 1 of 1 sidecars");
    assert_eq!(known.due(&all("a", first.clone()), now), [key("a")]);
    known.note(key("a"), Some(&first), &Outcome::Written(String::new()), now);
    assert_eq!(known.due(&all("a", first.clone()), now), []);
    let numbers = said("True", "on 2 of 2 sidecars");
    assert_eq!(known.due(&all("a", numbers.clone()), now), []);
    assert_eq!(known.due(&all("a", numbers), now + NUMBERS), [key("a")]);
    assert_eq!(known.due(&all("a", said("False", "on 1 of 2 sidecars")), now), [key("a")]);
    let newer = Wanted { generation: Some(2), ..first };
    assert_eq!(known.due(&all("a", newer), now), [key("a")], "another version of the spec");
    let uncounted = Wanted { counted: false, ..said("True", "on 1 of 1 sidecars") };
    known.note(key("a"), Some(&uncounted), &Outcome::Same, now);
    assert_eq!(known.due(&all("a", said("True", "on 1 of 1 sidecars")), now), [key("a")], "it is known now");
}

#[test]
fn what_failed_or_is_ahead_is_left_alone_for_a_moment() {
    let (mut known, now) = (Known::default(), Instant::now());
    let wanted = all("a", said("True", ""));
    known.failed(key("a"), now);
    assert_eq!(known.due(&wanted, now), []);
    assert_eq!(known.due(&wanted, now + AGAIN), [key("a")]);
    known.note(key("a"), wanted.get(&key("a")), &Outcome::Ahead, now + AGAIN);
    assert_eq!(known.due(&wanted, now + AGAIN), []);
    assert_eq!(known.due(&wanted, now + AGAIN * 2), [key("a")]);
}

#[test]
fn what_is_no_longer_spoken_of_is_taken_back_once() {
    let (mut known, now) = (Known::default(), Instant::now());
    known.note(key("a"), Some(&said("True", "")), &Outcome::Written(String::new()), now);
    assert_eq!(known.due(&BTreeMap::new(), now), [key("a")]);
    known.note(key("a"), None, &Outcome::Written(String::new()), now);
    assert_eq!(known.due(&BTreeMap::new(), now), []);
    assert_eq!(known.len(), 0);
}
