use super::*;

fn table(places: &[(&str, bool, bool)], found: &[(&str, &str, bool)]) -> Table {
    let place = |(name, wants, ending): &(&str, bool, bool)| {
        (Arc::from(*name), Place { wants: *wants, ending: *ending })
    };
    let bundle = |(name, roots, is_ours): &(&str, &str, bool)| {
        let uid = Some(format!("uid-{name}"));
        (Arc::from(*name), Found { roots: Some((*roots).into()), is_ours: *is_ours, uid })
    };
    Table {
        places: places.iter().map(place).collect(),
        found: found.iter().map(bundle).collect(),
        ..Table::default()
    }
}

fn none() -> BTreeSet<Arc<str>> {
    BTreeSet::new()
}

#[test]
fn every_namespace_that_wants_sidecars_or_has_some_gets_the_roots() {
    let mut table = table(&[("shop", true, false), ("tools", false, false), ("other", false, false)], &[]);
    let injected = BTreeSet::from(["tools".into()]);
    let acts = table.due("R", &injected, Instant::now());
    assert_eq!(acts, [Act::Write("shop".into(), true), Act::Write("tools".into(), true)]);
}

#[test]
fn a_rotation_reaches_all_of_them_and_what_is_right_is_left_alone() {
    let mut table =
        table(&[("a", true, false), ("b", true, false)], &[("a", "old new", true), ("b", "old", true)]);
    assert_eq!(table.due("old new", &none(), Instant::now()), [Act::Write("b".into(), true)]);
}

#[test]
fn what_nobody_needs_goes_after_a_while_if_we_made_it() {
    let found = [("a", "R", true), ("b", "R", false)];
    let mut table = table(&[("a", false, false), ("b", false, false)], &found);
    let now = Instant::now();
    assert_eq!(table.due("R", &none(), now), []);
    assert_eq!(table.due("R", &none(), now + LINGER - Duration::from_millis(1)), []);
    let removed = [Act::Remove("a".into(), Some("uid-a".into()))];
    assert_eq!(table.due("R", &none(), now + LINGER), removed, "and never what somebody else made");
    // A pod that comes in the last moment keeps it.
    let injected = BTreeSet::from(["a".into()]);
    assert_eq!(table.due("R", &injected, now + LINGER), []);
    assert_eq!(table.due("R", &none(), now + LINGER * 2 - Duration::from_millis(1)), []);
    assert_eq!(table.due("R", &none(), now + LINGER * 2), removed);
}

#[test]
fn of_what_somebody_else_made_only_the_key_is_written() {
    let mut table = table(&[("a", true, false)], &[("a", "theirs", false)]);
    assert_eq!(table.due("R", &none(), Instant::now()), [Act::Write("a".into(), false)]);
}

#[test]
fn a_namespace_that_is_ending_is_left_alone_and_one_that_failed_for_a_while() {
    let mut table = table(&[("a", true, true), ("b", true, false)], &[]);
    let now = Instant::now();
    table.again.insert("b".into(), now + AGAIN);
    assert_eq!(table.due("R", &none(), now), []);
    assert_eq!(table.due("R", &none(), now + AGAIN), [Act::Write("b".into(), true)]);
}

#[test]
fn a_list_that_is_read_anew_forgets_what_is_no_longer_there() {
    let mut known = BTreeMap::from([(Arc::from("gone"), 1)]);
    let mut reading = Reading::default();
    for event in [Event::Init, Event::InitApply(Some(("a".into(), 2)))] {
        reading.take(event, &mut known);
    }
    assert!(known.contains_key("gone") && !reading.is_whole, "not before it is whole");
    reading.take(Event::InitDone, &mut known);
    assert_eq!(known, BTreeMap::from([("a".into(), 2)]));
    reading.take(Event::Apply(Some(("b".into(), 3))), &mut known);
    reading.take(Event::Delete(Some(("a".into(), 2))), &mut known);
    assert_eq!(known, BTreeMap::from([("b".into(), 3)]));
}
