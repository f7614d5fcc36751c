use std::cell::{Cell, RefCell};

use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;
use proptest::prelude::*;
use weft_wire::ServiceId;

use super::*;

/// A world of resources that are only versions. Every name depends on the service of that name.
#[derive(Default)]
struct Fake {
    resources: RefCell<BTreeMap<(Kind, String), String>>,
    provisional: Cell<bool>,
    warming_up: Cell<bool>,
}

fn key(name: &str) -> Key {
    Key::Service(ServiceId::new("shop", name).unwrap())
}

impl Fake {
    fn set(&self, kind: Kind, name: &str, version: &str) -> Touched {
        self.resources.borrow_mut().insert((kind, name.into()), version.into());
        touched(&[name])
    }

    fn unset(&self, kind: Kind, name: &str) -> Touched {
        self.resources.borrow_mut().remove(&(kind, name.into()));
        touched(&[name])
    }
}

fn touched(names: &[&str]) -> Touched {
    let mut touched = Touched::default();
    touched.extend(names.iter().map(|name| key(name)));
    touched
}

impl Source for Fake {
    fn depends_on(&self, _: Kind, name: &str) -> Option<Key> {
        ServiceId::new("shop", name).ok().map(Key::Service)
    }

    fn resource(&self, kind: Kind, name: &str) -> Option<Resource> {
        let version = self.resources.borrow().get(&(kind, name.to_owned()))?.clone();
        let body = Any { type_url: kind.type_url().into(), value: version.clone().into_bytes() };
        Some(Resource { body, version: version.into(), provisional: self.provisional.get() })
    }

    fn every_name(&self, kind: Kind) -> Vec<String> {
        let resources = self.resources.borrow();
        resources.keys().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect()
    }

    fn warming_up(&self) -> bool {
        self.warming_up.get()
    }
}

fn ask(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().into(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

/// What a response says, readable: `CDS +name=version -name`.
fn text(response: Option<DeltaDiscoveryResponse>) -> String {
    let Some(response) = response else { return "nothing".into() };
    let kind = Kind::from_type_url(&response.type_url).unwrap();
    let added = response.resources.iter().map(|resource| format!(" +{}={}", resource.name, resource.version));
    let removed = response.removed_resources.iter().map(|name| format!(" -{name}"));
    format!("{kind}{}", added.chain(removed).collect::<String>())
}

fn next_acked(session: &mut Session, source: &Fake) -> String {
    let response = session.next(source);
    if let Some(response) = &response {
        session.request(ack(response), source).unwrap();
    }
    text(response)
}

#[test]
fn a_subscription_is_answered_once_and_then_only_when_it_changes() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    source.set(Kind::Cluster, "a", "1");
    session.request(ask(Kind::Cluster, &["a", "b"]), &source).unwrap();
    assert_eq!(next_acked(&mut session, &source), "CDS +a=1 -b");
    assert_eq!(next_acked(&mut session, &source), "nothing");
    session.touched(&touched(&["a", "b"]));
    assert_eq!(next_acked(&mut session, &source), "nothing", "touched, but the same");
    session.touched(&source.set(Kind::Cluster, "b", "1"));
    assert_eq!(next_acked(&mut session, &source), "CDS +b=1");
    session.touched(&source.set(Kind::Cluster, "c", "1"));
    assert_eq!(next_acked(&mut session, &source), "nothing", "nobody asked for c");
}

fn nack(response: &DeltaDiscoveryResponse, message: &str) -> DeltaDiscoveryRequest {
    let error_detail = Some(Status { message: message.into(), ..Default::default() });
    DeltaDiscoveryRequest { error_detail, ..ack(response) }
}

/// What a client is known to run, readable: `a=1 b=? c=1!2`, where `!` is what it refused.
fn running(session: &mut Session, kind: Kind) -> String {
    let status = session.status();
    let one = |running: &Running| {
        let acked = running.acked.as_deref().unwrap_or("?");
        let refused = running.refused.as_ref().map(|refusal| format!("!{}", refusal.version));
        format!("{}={acked}{}", running.name, refused.unwrap_or_default())
    };
    status[&kind].subscriptions.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn what_a_client_runs_is_what_it_acknowledged() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    for name in ["a", "b"] {
        source.set(Kind::Cluster, name, "1");
    }
    session.request(ask(Kind::Cluster, &["a", "b", "c"]), &source).unwrap();
    assert_eq!(running(&mut session, Kind::Cluster), "a=? b=? c=?");
    let first = session.next(&source).unwrap();
    assert_eq!(running(&mut session, Kind::Cluster), "a=? b=? c=?", "sent is not taken");
    session.request(ack(&first), &source).unwrap();
    assert_eq!(running(&mut session, Kind::Cluster), "a=1 b=1 c=?");

    session.touched(&source.set(Kind::Cluster, "a", "2"));
    session.touched(&source.set(Kind::Cluster, "b", "2"));
    let second = session.next(&source).unwrap();
    session.request(nack(&second, "a: no such field"), &source).unwrap();
    assert_eq!(running(&mut session, Kind::Cluster), "a=1!2 b=2 c=?", "the rest of a response is taken");

    session.touched(&source.set(Kind::Cluster, "b", "3"));
    let third = session.next(&source).unwrap();
    session.request(nack(&third, "out of memory"), &source).unwrap();
    assert_eq!(running(&mut session, Kind::Cluster), "a=1!2 b=2!3 c=?", "nobody is named, so all are meant");

    session.touched(&source.set(Kind::Cluster, "a", "4"));
    session.touched(&source.unset(Kind::Cluster, "b"));
    assert_eq!(next_acked(&mut session, &source), "CDS +a=4");
    assert_eq!(next_acked(&mut session, &source), "CDS -b");
    assert_eq!(running(&mut session, Kind::Cluster), "a=4 b=? c=?");
}

#[test]
fn what_a_client_brings_and_is_current_is_what_it_runs() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    source.set(Kind::Cluster, "a", "1");
    source.set(Kind::Cluster, "b", "1");
    let mut first = ask(Kind::Cluster, &["a", "b"]);
    first.initial_resource_versions = [("a", "1"), ("b", "0")].map(|(n, v)| (n.into(), v.into())).into();
    session.request(first, &source).unwrap();
    let response = session.next(&source);
    assert_eq!(running(&mut session, Kind::Cluster), "a=1 b=?");
    assert_eq!(text(response), "CDS +b=1");
}

#[test]
fn a_complaint_names_a_resource_by_its_whole_name() {
    assert!(is_named("orders.shop:8080: no such field", "orders.shop:8080"));
    assert!(is_named("x: bad; orders.shop:8080: no such field", "orders.shop:8080"));
    assert!(!is_named("orders.shop:8080: no such field", "orders.shop:80"));
    assert!(!is_named("old-orders.shop:80: no such field", "orders.shop:80"));
    assert!(!is_named("out of memory", "orders.shop:80"));
}

#[test]
fn one_response_is_outstanding_and_the_latest_state_wins() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    source.set(Kind::Endpoint, "a", "1");
    session.request(ask(Kind::Endpoint, &["a"]), &source).unwrap();
    let first = session.next(&source).unwrap();
    for version in ["2", "3", "4"] {
        session.touched(&source.set(Kind::Endpoint, "a", version));
        assert!(session.next(&source).is_none());
    }
    assert!(!session.is_due());
    session.request(ack(&first), &source).unwrap();
    assert_eq!(next_acked(&mut session, &source), "EDS +a=4");
    assert_eq!(session.status()[&Kind::Endpoint].acked, 2);
}

#[test]
fn an_old_nonce_acknowledges_nothing() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    source.set(Kind::Endpoint, "a", "1");
    session.request(ask(Kind::Endpoint, &["a"]), &source).unwrap();
    let first = session.next(&source).unwrap();
    session.request(ack(&first), &source).unwrap();
    session.touched(&source.set(Kind::Endpoint, "a", "2"));
    session.next(&source).unwrap();
    session.request(ack(&first), &source).unwrap();
    assert!(session.status()[&Kind::Endpoint].outstanding);
}

#[test]
fn a_rejection_is_remembered_and_not_repeated() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    source.set(Kind::Listener, "a", "bad");
    session.request(ask(Kind::Listener, &["a"]), &source).unwrap();
    let response = session.next(&source).unwrap();
    let error_detail = Some(Status { message: "no such filter".into(), ..Default::default() });
    session.request(DeltaDiscoveryRequest { error_detail, ..ack(&response) }, &source).unwrap();
    assert_eq!(text(session.next(&source)), "nothing");
    let status = session.status().remove(&Kind::Listener).unwrap();
    assert_eq!((status.acked, status.nacked), (0, 1));
    assert_eq!(status.last_nack.as_deref(), Some("no such filter"));
    session.touched(&source.set(Kind::Listener, "a", "good"));
    assert_eq!(next_acked(&mut session, &source), "LDS +a=good");
}

#[test]
fn make_before_break() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    for kind in [Kind::Route, Kind::Listener, Kind::Endpoint, Kind::Cluster] {
        source.set(kind, "old", "1");
        session.request(ask(kind, &["old", "new"]), &source).unwrap();
    }
    let all =
        |session: &mut Session| -> Vec<String> { (0..4).map(|_| next_acked(session, &source)).collect() };
    assert_eq!(
        all(&mut session),
        ["CDS +old=1 -new", "EDS +old=1 -new", "LDS +old=1 -new", "RDS +old=1 -new"]
    );
    for kind in Kind::ALL {
        source.unset(kind, "old");
        source.set(kind, "new", "1");
    }
    session.touched(&touched(&["old", "new"]));
    let order: Vec<String> = (0..6).map(|_| next_acked(&mut session, &source)).collect();
    let expected = ["CDS +new=1", "EDS +new=1", "LDS +new=1 -old", "RDS +new=1 -old", "EDS -old", "CDS -old"];
    assert_eq!(order, expected);
    assert_eq!(next_acked(&mut session, &source), "nothing");
}

#[test]
fn what_a_reconnecting_client_has_is_not_sent_again() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    source.set(Kind::Endpoint, "same", "1");
    source.set(Kind::Endpoint, "changed", "2");
    let versions = [("same", "1"), ("changed", "1"), ("gone", "1")];
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: versions.map(|(name, version)| (name.into(), version.into())).into(),
        ..ask(Kind::Endpoint, &["same", "changed", "gone"])
    };
    session.request(request, &source).unwrap();
    assert_eq!(next_acked(&mut session, &source), "EDS +changed=2");
    assert_eq!(next_acked(&mut session, &source), "EDS -gone");
    assert_eq!(next_acked(&mut session, &source), "nothing");
}

#[test]
fn just_after_start_nothing_provisional_is_taken_from_who_has_it() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    source.warming_up.set(true);
    source.provisional.set(true);
    source.set(Kind::Endpoint, "partial", "1 of 2");
    let versions = [("partial", "2 of 2"), ("gone", "1")];
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: versions.map(|(name, version)| (name.into(), version.into())).into(),
        ..ask(Kind::Endpoint, &["partial", "gone", "new"])
    };
    session.request(request, &source).unwrap();
    assert_eq!(next_acked(&mut session, &source), "EDS -new", "a new question has an answer");
    session.touched(&source.set(Kind::Endpoint, "partial", "2 of 2"));
    assert_eq!(next_acked(&mut session, &source), "nothing", "whole again: nothing was ever missing");
    session.touched(&source.set(Kind::Endpoint, "partial", "3 of 3"));
    assert_eq!(next_acked(&mut session, &source), "EDS +partial=3 of 3", "and from then on it is followed");
    source.warming_up.set(false);
    session.warmed_up();
    assert_eq!(next_acked(&mut session, &source), "EDS -gone");
}

#[test]
fn asking_again_is_answered_again_and_unsubscribing_is_silence() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    source.set(Kind::Cluster, "a", "1");
    for _ in 0..2 {
        session.request(ask(Kind::Cluster, &["a"]), &source).unwrap();
        assert_eq!(next_acked(&mut session, &source), "CDS +a=1");
    }
    let request = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["a".into(), "never".into()],
        ..ask(Kind::Cluster, &[])
    };
    session.request(request, &source).unwrap();
    session.touched(&source.set(Kind::Cluster, "a", "2"));
    assert_eq!(next_acked(&mut session, &source), "nothing");
    assert!(session.status()[&Kind::Cluster].subscriptions.is_empty());
}

#[test]
fn a_wildcard_follows_what_there_is() {
    let (source, mut session) = (Fake::default(), Session::new(true));
    session.request(ask(Kind::Cluster, &[]), &source).unwrap();
    assert_eq!(next_acked(&mut session, &source), "CDS", "an empty world is an answer too");
    session.touched(&source.set(Kind::Cluster, "a", "1"));
    assert_eq!(next_acked(&mut session, &source), "CDS +a=1");
    session.touched(&source.unset(Kind::Cluster, "a"));
    assert_eq!(next_acked(&mut session, &source), "CDS -a");
    assert!(session.status()[&Kind::Cluster].subscriptions.is_empty());

    let mut lazy = Session::new(false);
    source.set(Kind::Cluster, "a", "1");
    lazy.request(ask(Kind::Cluster, &[]), &source).unwrap();
    assert_eq!(next_acked(&mut lazy, &source), "nothing", "our own sidecars mean nothing by nothing");
    lazy.request(ask(Kind::Cluster, &["*"]), &source).unwrap();
    assert_eq!(next_acked(&mut lazy, &source), "CDS +a=1");
}

#[test]
fn a_reconnecting_wildcard_hears_what_is_gone() {
    let (source, mut session) = (Fake::default(), Session::new(true));
    source.set(Kind::Cluster, "a", "1");
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: [("a", "1"), ("b", "1")].map(|(n, v)| (n.into(), v.into())).into(),
        ..ask(Kind::Cluster, &[])
    };
    session.request(request, &source).unwrap();
    let said: Vec<String> = (0..3).map(|_| next_acked(&mut session, &source)).collect();
    assert!(said.contains(&"CDS -b".to_owned()), "{said:?}");
    assert!(!said.concat().contains('+'), "{said:?}");
}

#[test]
fn bounds_hold() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    let names: Vec<String> = (0..=SUBSCRIPTIONS_MAX).map(|number| format!("n{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    session.request(ask(Kind::Cluster, &names[..SUBSCRIPTIONS_MAX]), &source).unwrap();
    let response = session.next(&source).unwrap();
    assert_eq!(response.removed_resources.len(), RESPONSE_NAMES);
    let too_many = session.request(ask(Kind::Cluster, &names), &source);
    assert_eq!(too_many, Err(Violation::TooMany { kind: Kind::Cluster }));
    let long = "n".repeat(NAME_MAX + 1);
    let too_long = session.request(ask(Kind::Route, &[&long]), &source);
    assert_eq!(too_long, Err(Violation::NameTooLong { kind: Kind::Route, length: NAME_MAX + 1 }));
    let unknown = DeltaDiscoveryRequest { type_url: "x".into(), ..Default::default() };
    assert_eq!(session.request(unknown, &source), Err(Violation::UnknownType("x".into())));
}

#[test]
fn a_client_that_never_acknowledges_cannot_pile_up_names() {
    let (source, mut session) = (Fake::default(), Session::new(false));
    session.request(ask(Kind::Cluster, &["first"]), &source).unwrap();
    session.next(&source).unwrap();
    for round in 0..10 {
        let names: Vec<String> = (0..100).map(|number| format!("n{round}-{number}")).collect();
        let unsubscribed = |names: &[String]| DeltaDiscoveryRequest {
            type_url: Kind::Cluster.type_url().into(),
            resource_names_unsubscribe: names.to_vec(),
            ..Default::default()
        };
        session.request(ask(Kind::Cluster, &[WILDCARD]), &source).unwrap();
        session
            .request(ask(Kind::Cluster, &names.iter().map(String::as_str).collect::<Vec<_>>()), &source)
            .unwrap();
        session.request(unsubscribed(&names), &source).unwrap();
        session.request(unsubscribed(&[WILDCARD.to_owned()]), &source).unwrap();
    }
    let state = &session.kinds[Kind::Cluster as usize];
    assert_eq!((state.subscriptions.len(), state.due.len()), (1, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Set(Kind, u8, u8),
    Unset(Kind, u8),
    Subscribe(Kind, u8),
    Unsubscribe(Kind, u8),
    Send,
    Ack(Kind),
    Lag,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = (0usize..4).prop_map(|at| Kind::ALL[at]);
    prop_oneof![
        (kind.clone(), 0u8..3, 0u8..3).prop_map(|(kind, name, version)| Step::Set(kind, name, version)),
        (kind.clone(), 0u8..3).prop_map(|(kind, name)| Step::Unset(kind, name)),
        (kind.clone(), 0u8..3).prop_map(|(kind, name)| Step::Subscribe(kind, name)),
        (kind.clone(), 0u8..3).prop_map(|(kind, name)| Step::Unsubscribe(kind, name)),
        Just(Step::Send),
        kind.prop_map(Step::Ack),
        Just(Step::Lag),
    ]
}

/// A client that believes what it is told.
#[derive(Default)]
struct Client {
    has: BTreeMap<(Kind, String), String>,
    pending: BTreeMap<Kind, DeltaDiscoveryResponse>,
}

impl Client {
    fn take(&mut self, response: DeltaDiscoveryResponse) {
        let kind = Kind::from_type_url(&response.type_url).unwrap();
        for resource in &response.resources {
            self.has.insert((kind, resource.name.clone()), resource.version.clone());
        }
        for name in &response.removed_resources {
            self.has.remove(&(kind, name.clone()));
        }
        assert!(self.pending.insert(kind, response).is_none(), "two outstanding responses of a kind");
    }
}

proptest! {
    #[test]
    fn in_the_end_the_client_has_exactly_what_it_asked_for(steps in prop::collection::vec(step(), 0..120)) {
        let (source, mut session, mut client) = (Fake::default(), Session::new(false), Client::default());
        let mut wanted: BTreeSet<(Kind, String)> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Set(kind, name, version) => {
                    session.touched(&source.set(kind, &format!("n{name}"), &version.to_string()));
                }
                Step::Unset(kind, name) => session.touched(&source.unset(kind, &format!("n{name}"))),
                Step::Subscribe(kind, name) => {
                    let name = format!("n{name}");
                    session.request(ask(kind, &[&name]), &source).unwrap();
                    wanted.insert((kind, name));
                }
                Step::Unsubscribe(kind, name) => {
                    let name = format!("n{name}");
                    let request = DeltaDiscoveryRequest {
                        resource_names_unsubscribe: vec![name.clone()],
                        ..ask(kind, &[])
                    };
                    session.request(request, &source).unwrap();
                    wanted.remove(&(kind, name.clone()));
                    client.has.remove(&(kind, name));
                }
                Step::Send => {
                    if let Some(response) = session.next(&source) {
                        client.take(response);
                    }
                }
                Step::Ack(kind) => {
                    if let Some(response) = client.pending.remove(&kind) {
                        session.request(ack(&response), &source).unwrap();
                    }
                }
                Step::Lag => session.all_touched(),
            }
        }
        // Whatever is outstanding is acknowledged, until there is nothing to say.
        for _ in 0..1000 {
            for response in std::mem::take(&mut client.pending).into_values() {
                session.request(ack(&response), &source).unwrap();
            }
            match session.next(&source) {
                Some(response) => client.take(response),
                None => break,
            }
        }
        client.has.retain(|key, _| wanted.contains(key));
        let mut expected = source.resources.borrow().clone();
        expected.retain(|key, _| wanted.contains(key));
        prop_assert_eq!(&client.has, &expected);
        prop_assert!(!session.is_due());
    }
}
