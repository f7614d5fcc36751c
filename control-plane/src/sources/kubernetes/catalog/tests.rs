//! Whatever the order in which kinds are heard, the world ends as the server has it.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::resources::served;
use crate::resources::workload::Between;
use crate::sources::kubernetes::table::Table;
use crate::world::Novelty;

fn owned(kind: &str, name: &str) -> Value {
    json!([{ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": true }])
}

/// Objects that have to do with each other, each in its states; the kind of each, and its name.
fn objects() -> Vec<(Kind, &'static str, Vec<Value>)> {
    let pod = |name: &str, ip: &str, owner: Value, labels: Value| {
        json!({ "metadata": { "name": name, "namespace": "shop", "labels": labels, "ownerReferences": owner },
                "spec": { "containers": [{ "name": "c", "ports": [{ "name": "web", "containerPort": 80 }] }] },
                "status": { "podIP": ip, "phase": "Running" } })
    };
    let service = |port: u16, kind: &str| {
        json!({ "metadata": { "name": "orders", "namespace": "shop" },
                "spec": { "type": kind, "clusterIP": "10.96.0.1", "selector": { "app": "orders" },
                          "ports": [{ "port": port, "targetPort": "web" }] } })
    };
    let slice = |of: &str, ip: &str, ready: bool| {
        json!({ "metadata": { "name": "s", "namespace": "shop", "labels": { "kubernetes.io/service-name": of } },
                "addressType": "IPv4", "ports": [{ "name": "", "port": 80 }],
                "endpoints": [{ "addresses": [ip], "conditions": { "ready": ready },
                                "targetRef": { "kind": "Pod", "name": "p", "namespace": "shop" } }] })
    };
    let route = |to: &str, weight: Value| {
        json!({ "metadata": { "name": "r", "namespace": "shop" },
                "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": "orders" }],
                          "rules": [{ "backendRefs": [{ "name": to, "port": 80, "weight": weight }] }] } })
    };
    let set = |owner: Value| json!({ "metadata": { "name": "orders-7d4b9c", "namespace": "shop", "ownerReferences": owner } });
    let namespace = |access: &str| json!({ "metadata": { "name": "shop", "annotations": { "weft.dev/default-access": access } } });
    let app = || json!({ "app": "orders" });
    vec![
        (
            Kind::Object(Served::Service),
            "orders",
            vec![service(80, "ClusterIP"), service(81, "ClusterIP"), service(80, "ExternalName")],
        ),
        (
            Kind::Object(Served::EndpointSlice),
            "s",
            vec![
                slice("orders", "10.0.0.1", true),
                slice("orders", "10.0.0.2", false),
                slice("other", "10.0.0.1", true),
            ],
        ),
        (
            Kind::Object(Served::Pod),
            "p",
            vec![
                pod("p", "10.0.0.1", owned("ReplicaSet", "orders-7d4b9c"), app()),
                pod("p", "10.0.0.2", owned("ReplicaSet", "orders-7d4b9c"), app()),
                pod("p", "10.0.0.1", owned("StatefulSet", "orders"), json!({})),
                pod("p", "not an address", json!([]), app()),
            ],
        ),
        (
            Kind::Object(Served::Pod),
            "q",
            vec![pod("q", "10.0.0.3", owned("ReplicaSet", "orders-7d4b9c"), app())],
        ),
        (
            Kind::Owner(Between::ReplicaSet),
            "orders-7d4b9c",
            vec![set(owned("Rollout", "orders")), set(owned("Deployment", "shop")), set(json!([]))],
        ),
        (
            Kind::Object(Served::HttpRoute),
            "r",
            vec![route("orders", json!(1)), route("other", json!(2)), route("orders", json!("heavy"))],
        ),
        (
            Kind::Object(Served::Namespace),
            "shop",
            vec![namespace("allow"), namespace("deny"), namespace("perhaps")],
        ),
    ]
}

fn name_of(kind: Kind, name: &str) -> ObjectName {
    let namespace = if kind == Kind::Object(Served::Namespace) { "" } else { "shop" };
    ObjectName { namespace: namespace.into(), name: name.into() }
}

fn reading(kind: Kind, name: &str, object: &Value, known: bool) -> Reading {
    let text = object.to_string();
    let said = match kind {
        Kind::Object(Served::Pod) => {
            let (content, after) = served::pod(&text);
            Said::Object(content, after)
        }
        Kind::Object(served) => Said::Object(served::object(served, &text), None),
        Kind::Owner(between) => Said::Owner(served::owner(between, &text)),
    };
    Reading { name: name_of(kind, name), said, known }
}

fn changed(kind: Kind, delta: Delta) -> Word {
    Word { kind, what: What::Changed(delta) }
}

/// A catalog for which every kind has been listed, and was empty.
fn listed() -> Catalog {
    let mut catalog = Catalog::default();
    for kind in Kind::ALL {
        catalog.take(changed(kind, Delta { listed: true, ..Delta::default() }));
    }
    catalog
}

fn apply(catalog: &mut Catalog, world: &mut World) {
    let events = catalog.flush(world);
    world.apply_all(events, Instant::now());
}

/// Whether two worlds have the same objects and say the same of them.
fn same(one: &World, other: &World, objects: &[(Kind, &str, Vec<Value>)]) -> Result<(), String> {
    let shown = |world: &World| {
        let mut services: Vec<String> = world.services().map(|service| format!("{service:?}")).collect();
        services.sort_unstable();
        let pods = objects.iter().filter(|(kind, ..)| *kind == Kind::Object(Served::Pod));
        let pods: Vec<String> =
            pods.map(|(kind, name, _)| format!("{:?}", world.pod(&name_of(*kind, name)))).collect();
        let novelty = objects.iter().flat_map(|(kind, name, states)| {
            states.iter().filter_map(|state| match reading(*kind, name, state, false).said {
                Said::Object(Content::Object(Object::Pod(_)), _) => None,
                Said::Object(Content::Object(object), _) => Some(world.novelty(&object.set())),
                _ => None,
            })
        });
        (services, pods, novelty.collect::<Vec<_>>(), world.statuses())
    };
    let (one, other) = (shown(one), shown(other));
    if one == other { Ok(()) } else { Err(format!("{one:#?}\n{other:#?}")) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_order_of_events_ends_in_the_world_of_the_list(
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0usize..6, any::<bool>()), 0..60),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
    ) {
        let objects = objects();
        // What happens at the server: of each kind in order, told kind by kind in any order.
        let mut states: Vec<Option<usize>> = vec![None; objects.len()];
        let mut good: Vec<Option<usize>> = vec![None; objects.len()];
        let mut tables: HashMap<Kind, Table> = HashMap::new();
        let mut queues: BTreeMap<Kind, std::collections::VecDeque<Word>> = BTreeMap::new();
        for (which, state, _) in &steps {
            let at = which.index(objects.len());
            let (kind, name, variants) = &objects[at];
            let table = tables.entry(*kind).or_default();
            let mut delta = Delta::default();
            match variants.get(*state) {
                Some(object) => {
                    let mut said = reading(*kind, name, object, false);
                    let is_good = !matches!(said.said, Said::Object(Content::Broken(_), _) | Said::Owner(Err(_)));
                    said.known = table.read(&said.name, "", is_good);
                    states[at] = Some(*state);
                    good[at] = if is_good { states[at] } else { good[at] };
                    delta.read.push(said);
                }
                None => {
                    if table.remove(&name_of(*kind, name)) {
                        delta.gone.push(name_of(*kind, name));
                    }
                    (states[at], good[at]) = (None, None);
                }
            }
            queues.entry(*kind).or_default().push_back(changed(*kind, delta));
        }
        let (mut catalog, mut world) = (listed(), World::default());
        let mut flushes = steps.iter().map(|(_, _, flush)| *flush).cycle();
        let mut order = order.into_iter();
        loop {
            let waiting: Vec<Kind> = queues.iter().filter(|(_, queue)| !queue.is_empty()).map(|(kind, _)| *kind).collect();
            let Some(first) = waiting.first() else { break };
            let kind = order.next().map_or(*first, |index| waiting[index.index(waiting.len())]);
            if let Some(word) = queues.get_mut(&kind).and_then(std::collections::VecDeque::pop_front) {
                catalog.take(word);
            }
            if flushes.next() == Some(true) {
                apply(&mut catalog, &mut world);
            }
        }
        apply(&mut catalog, &mut world);

        // The same as one list, of what could be read last.
        let (mut fresh, mut expected) = (listed(), World::default());
        for ((kind, name, variants), state) in objects.iter().zip(&good) {
            let read = state.map(|state| reading(*kind, name, &variants[state], false)).into_iter().collect();
            fresh.take(changed(*kind, Delta { read, ..Delta::default() }));
        }
        apply(&mut fresh, &mut expected);
        if let Err(difference) = same(&world, &expected, &objects) {
            return Err(TestCaseError::fail(difference));
        }
        let broken: BTreeSet<&str> = objects.iter().enumerate().filter(|(at, _)| states[*at] != good[*at]).map(|(_, (_, name, _))| *name).collect();
        let told: BTreeSet<String> = catalog.problems(Instant::now()).into_iter().filter_map(|problem| problem.object).collect();
        prop_assert_eq!(told.len(), broken.len(), "{:?} {:?}", told, broken);
    }
}

#[test]
fn nothing_is_told_before_everything_is_there() {
    let mut catalog = Catalog::default();
    let world = World::default();
    let (kind, name, states) = &objects()[0];
    let read = vec![reading(*kind, name, &states[0], false)];
    catalog.take(changed(*kind, Delta { read, listed: true, ..Delta::default() }));
    for kind in Kind::ALL {
        assert!(catalog.flush(&world).is_empty(), "{} is waited for", catalog.waiting());
        match kind.need() {
            Need::Always => catalog.take(changed(kind, Delta { listed: true, ..Delta::default() })),
            Need::IfInstalled => catalog.take(Word { kind, what: What::Absent }),
            Need::Never => {
                let reason = "forbidden".to_owned();
                catalog.take(Word { kind, what: What::Trouble { reason, at: Instant::now() } });
            }
        }
    }
    assert_eq!(catalog.flush(&world).len(), 1);
    assert_eq!(catalog.notices().len(), 2, "one for the Gateway API, one for Weft's own");
}

#[test]
fn a_kind_that_is_there_and_may_not_be_read_is_waited_for() {
    let mut catalog = Catalog::default();
    let access = Kind::Object(Served::AccessPolicy);
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != access) {
        catalog.take(changed(kind, Delta { listed: true, ..Delta::default() }));
    }
    let trouble = What::Trouble { reason: "the API server answered 403".into(), at: Instant::now() };
    catalog.take(Word { kind: access, what: trouble });
    assert_eq!(catalog.waiting(), "AccessPolicy (the API server answered 403)");
}

#[test]
fn short_trouble_is_nobodys_business_and_long_trouble_is_told_once_for_all_kinds() {
    let mut catalog = listed();
    let begun = Instant::now();
    for kind in [Kind::Object(Served::Pod), Kind::Object(Served::Service)] {
        for at in [begun, begun + TROUBLE_MIN / 2] {
            let what = What::Trouble { reason: "connection refused".into(), at };
            catalog.take(Word { kind, what });
        }
    }
    assert_eq!(catalog.problems(begun + TROUBLE_MIN / 2), []);
    let told = catalog.problems(begun + TROUBLE_MIN);
    assert_eq!(told.len(), 1);
    assert!(told[0].reason.contains("Pod, Service cannot be followed: connection refused"), "{told:?}");
    catalog.take(Word { kind: Kind::Object(Served::Pod), what: What::Recovered });
    catalog.take(Word { kind: Kind::Object(Served::Service), what: What::Recovered });
    assert_eq!(catalog.problems(begun + TROUBLE_MIN), []);
}

#[test]
fn many_problems_are_counted_where_they_are_not_listed() {
    let mut catalog = listed();
    let broken =
        json!({ "metadata": { "name": "x", "namespace": "shop" }, "spec": { "ports": [{ "port": 0 }] } });
    let services = Kind::Object(Served::Service);
    let read = (0..PROBLEMS_MAX + 7).map(|at| reading(services, &format!("s{at}"), &broken, false)).collect();
    catalog.take(changed(services, Delta { read, ..Delta::default() }));
    let told = catalog.problems(Instant::now());
    assert_eq!(told.len(), PROBLEMS_MAX + 1);
    assert!(told.last().is_some_and(|last| last.reason.starts_with("7 more")), "{:?}", told.last());
}

#[test]
fn a_list_that_brings_nothing_new_is_no_change() {
    let (mut catalog, mut world) = (listed(), World::default());
    let everything = || {
        let objects = objects().into_iter().filter(|(kind, ..)| matches!(kind, Kind::Object(_)));
        objects.map(|(kind, name, states)| {
            changed(kind, Delta { read: vec![reading(kind, name, &states[0], false)], ..Delta::default() })
        })
    };
    everything().for_each(|word| catalog.take(word));
    apply(&mut catalog, &mut world);
    everything().for_each(|word| catalog.take(word));
    assert!(catalog.flush(&world).is_empty());
    let pod = objects().remove(2);
    let once = reading(pod.0, pod.1, &pod.2[0], true);
    let Said::Object(Content::Object(object), _) = once.said else { panic!("a pod") };
    assert_eq!(world.novelty(&object.set()), Novelty::Known);
}
