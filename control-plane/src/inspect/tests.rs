//! A small mesh, told in YAML: what is said of its objects, its routes, and of changes to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::objects::Object;
use super::plan::{ObjectChange, Plan, ResourceChange};
use super::programmed::{Programmed, Runs};
use super::*;
use crate::circuits::{Callee, Circuits, Id, Kind as CircuitKind, Limits, Observer, Sighting, Skew, State};
use crate::compile;
use crate::graph::Histogram;
use crate::resources::{self, Content};
use crate::rules::{Rules, Series};
use crate::xds::{Kind, KindStatus, Refusal, Running};

const NOW: Timestamp = Timestamp::from_millis(1_795_219_200_500);

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: orders-v2, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 8080, appProtocol: http}]}
";

fn canary(weight: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: orders, namespace: shop}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: orders, port: 8080}}]\n  rules:\n  \
         - matches: [{{path: {{type: PathPrefix, value: /orders}}, method: GET}}]\n    \
         timeouts: {{request: 2s}}\n    \
         backendRefs:\n    - {{name: orders, port: 8080, weight: {}}}\n    \
         - {{name: orders-v2, port: 8080, weight: {weight}}}\n",
        100 - weight
    )
}

fn world(text: &str) -> World {
    let mut world = World::default();
    let events = resources::parse(text).into_iter().map(|document| match document.content {
        Content::Object(object) => object.set(),
        other => panic!("{other:?} in {text}"),
    });
    world.apply_all(events.collect::<Vec<_>>(), Instant::now());
    world
}

fn shop() -> World {
    world(&format!("{SERVICES}---\n{}", canary(10)))
}

/// A proxy of `shop/<name>` that runs these resources as they are in `world`, except those that it `lacks`.
fn proxy(world: &World, name: &str, resources: &[(Kind, &str)], lacks: &[&str]) -> ProxyStatus {
    let mut kinds: BTreeMap<Kind, KindStatus> = BTreeMap::new();
    for kind in Kind::ALL {
        let names = resources.iter().filter(|(of, _)| *of == kind);
        let running = names.map(|(_, name)| {
            let current =
                compile::resource(world, kind, name, "shop").map(|resource| (*resource.version).into());
            Running { name: (*name).into(), acked: current.filter(|_| !lacks.contains(name)), refused: None }
        });
        let mut running: Vec<Running> = running.collect();
        running.sort_by(|one, other| one.name.cmp(&other.name));
        kinds.insert(kind, KindStatus { subscriptions: running.into(), ..KindStatus::default() });
    }
    ProxyStatus {
        verified: None,
        instance: format!("{name}-1").into(),
        workload: Some(format!("shop/{name}").parse().expect("valid")),
        version: None,
        pod: None,
        addresses: Vec::new(),
        agent: "weft-proxy".to_owned(),
        agent_version: None,
        connected_since: SystemTime::UNIX_EPOCH,
        waiting_since: None,
        answered_at: None,
        kinds,
    }
}

const ROUTE: (Kind, &str) = (Kind::Route, "orders.shop:8080");
const CLUSTER: (Kind, &str) = (Kind::Cluster, "orders.shop:8080");

fn plan(proxies: &[ProxyStatus], text: &str) -> Plan {
    plan::plan(&shop(), proxies, text, Instant::now())
}

#[test]
fn a_changed_weight_is_one_line_of_one_resource_for_those_who_run_it() {
    let world = shop();
    let proxies = [
        proxy(&world, "web", &[ROUTE, CLUSTER], &[]),
        proxy(&world, "cron", &[(Kind::Cluster, "orders-v2.shop:8080")], &[]),
    ];
    let plan = plan(&proxies, &canary(25));
    assert_eq!(plan.problems, []);
    assert_eq!(
        (plan.objects[0].object.as_str(), plan.objects[0].change),
        ("HTTPRoute shop/orders", ObjectChange::Update)
    );
    assert_eq!(plan.resources.len(), 1);
    let changed = &plan.resources[0];
    assert_eq!(
        (changed.kind, changed.name.as_str(), changed.change),
        ("Route", "orders.shop:8080", ResourceChange::Update)
    );
    let lines = |sign: char| {
        changed.diff.iter().filter(move |line| line.starts_with(sign)).map(|line| line[1..].trim())
    };
    assert_eq!(lines('-').collect::<Vec<_>>(), ["weight: 90", "weight: 10"]);
    assert_eq!(lines('+').collect::<Vec<_>>(), ["weight: 75", "weight: 25"]);
    assert_eq!(plan.sidecars.len(), 1);
    assert_eq!(
        (plan.sidecars[0].instance.as_str(), plan.sidecars[0].resources.as_slice()),
        ("web-1", ["Route orders.shop:8080".to_owned()].as_slice())
    );
}

#[test]
fn what_is_there_already_changes_nothing() {
    let plan = plan(&[], &format!("{SERVICES}---\n{}", canary(10)));
    assert!(plan.objects.iter().all(|object| object.change == ObjectChange::Unchanged), "{plan:?}");
    assert_eq!((plan.objects.len(), plan.resources.len()), (3, 0));
}

#[test]
fn a_new_service_is_new_resources() {
    let text = SERVICES.replace("orders-v2", "payment").replace("10.96.0.2", "10.96.0.3");
    let plan = plan(&[], &text);
    assert_eq!(
        plan.objects.iter().map(|object| object.change).collect::<Vec<_>>(),
        [ObjectChange::Unchanged, ObjectChange::Create]
    );
    let added: Vec<_> =
        plan.resources.iter().map(|resource| (resource.kind, resource.name.as_str())).collect();
    assert_eq!(
        added,
        [
            ("Cluster", "payment.shop:8080"),
            ("Endpoint", "payment.shop:8080"),
            ("Listener", "outbound/10.96.0.3:8080"),
            ("Route", "payment.shop:8080"),
        ]
    );
    assert!(plan.resources.iter().all(|resource| resource.change == ResourceChange::Add));
}

#[test]
fn a_mistake_is_told_with_its_place_and_nothing_changes() {
    let plan = plan(&[], &format!("{SERVICES}---\n{}", canary(25).replace("backendRefs", "backendRef")));
    assert_eq!((plan.objects.len(), plan.resources.len()), (0, 0));
    let problem = &plan.problems[0];
    assert_eq!(problem.object.as_deref(), Some("HTTPRoute shop/orders"));
    assert_eq!((problem.document, problem.field.as_deref()), (Some(3), Some("spec.rules[0].backendRef")));
    assert!(problem.line.is_some());
}

#[test]
fn the_first_of_two_documents_of_one_name_counts() {
    let plan = plan(&[], &format!("{}---\n{}", canary(10), canary(25)));
    assert_eq!((plan.objects.len(), plan.objects[0].change), (1, ObjectChange::Unchanged));
    assert_eq!(plan.problems[0].document, Some(2));
}

#[test]
fn an_object_runs_where_its_current_version_was_acknowledged() {
    let world = shop();
    let mut refusing = proxy(&world, "cart", &[ROUTE], &[ROUTE.1]);
    let current = compile::resource(&world, ROUTE.0, ROUTE.1, "shop").expect("there").version;
    let kind = refusing.kinds.get_mut(&Kind::Route).expect("asked for");
    let mut running = kind.subscriptions[0].clone();
    running.refused = Some(Refusal { version: (*current).into(), message: "no such field".into() }.into());
    kind.subscriptions = Arc::from([running]);
    let waiting = proxy(&world, "cron", &[ROUTE], &[ROUTE.1]);
    let proxies = [proxy(&world, "web", &[ROUTE, CLUSTER], &[]), waiting, refusing];
    let resources = [(Kind::Route, ROUTE.1.to_owned())];
    let programmed = |proxies: &[ProxyStatus]| Runs::new(&world, proxies).programmed(&resources);
    let words = "shop/cart (cart-1) says: no such field".to_owned();
    assert_eq!(programmed(&proxies), Programmed { asked: 3, running: 1, refused: vec![words] });
    assert_eq!(programmed(&proxies[..1]), Programmed { asked: 1, running: 1, refused: vec![] });
    assert_eq!(programmed(&[]), Programmed::default());
}

fn objects_of(world: &World, proxies: &[ProxyStatus], kind: &str) -> Vec<Object> {
    let files = HashMap::from([("HTTPRoute shop/orders".to_owned(), "orders.yaml".into())]);
    let filter = objects::Filter { kind: Some(kind.to_owned()), ..Default::default() };
    objects::objects(world, proxies, &files, &filter).objects
}

#[test]
fn objects_say_how_they_fare() {
    let world = shop();
    let proxies = [proxy(&world, "web", &[ROUTE], &[]), proxy(&world, "cron", &[ROUTE], &[ROUTE.1])];
    let routes = objects_of(&world, &proxies, "HTTPRoute");
    assert_eq!(routes.len(), 1);
    let route = &routes[0];
    assert_eq!(
        (route.file.as_deref(), route.group, route.targets.len()),
        (Some("orders.yaml"), "gateway.networking.k8s.io", 1)
    );
    let said: Vec<_> = route.conditions.iter().map(|one| (one.kind, one.status, one.reason)).collect();
    assert_eq!(
        said,
        [
            ("Accepted", "True", "Accepted"),
            ("ResolvedRefs", "True", "ResolvedRefs"),
            ("Programmed", "False", "Pending"),
        ]
    );
    assert_eq!(route.conditions[2].message, "on 1 of 2 sidecars");
    let services = objects_of(&world, &proxies[..1], "Service");
    assert_eq!(
        services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(),
        ["orders", "orders-v2"]
    );
    assert_eq!((services[0].conditions[1].status, services[1].conditions[1].status), ("True", "Unknown"));
}

#[test]
fn a_limit_of_rate_runs_where_the_callee_has_it() {
    let limit = "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: orders}]\n  rateLimit: {requests: 9}\n";
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: orders-v2}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.0.0.2]}]\n";
    let world = world(&format!("{SERVICES}---\n{}{limit}{slice}", canary(10)));
    let inbound = "inbound/10.0.0.2:8080";
    let callee = |lacks| proxy(&world, "v2", &[(Kind::Listener, inbound), (Kind::Route, inbound)], lacks);
    let said = |callee| {
        let objects = objects_of(&world, &[proxy(&world, "web", &[ROUTE], &[]), callee], "TrafficPolicy");
        objects[0].conditions.last().expect("programmed").message.clone()
    };
    assert_eq!(said(callee(&[])), "on 2 of 2 sidecars");
    assert_eq!(said(callee(&[inbound])), "on 1 of 2 sidecars");
}

#[test]
fn a_rule_shows_what_was_asked_for_and_what_happens() {
    let world = shop();
    let mut rules = Rules::default();
    let mut count = |backend: &str, calls: u32, failed: bool| {
        let mut durations = Histogram::default();
        durations.add(-64, calls);
        let series = Series {
            service: "orders.shop:8080".into(),
            rule: "HTTPRoute/shop/orders/0".into(),
            backend: backend.into(),
        };
        rules.apply(series, NOW, failed, &durations);
    };
    count("orders.shop:8080", 75, false);
    count("orders-v2.shop:8080", 20, false);
    count("orders-v2.shop:8080", 5, true);
    let mut circuits = Circuits::new(Limits::STANDARD);
    circuits.observe(
        &observer(),
        Skew::default(),
        [sighting("10.0.0.7", State::Open), sighting("10.0.0.8", State::Closed)],
    );
    let figures = rules.figures(Window::Minute, NOW);
    let observed = routes::Observed::take(figures, Duration::from_secs(10), &circuits);
    let tree = routes::routes(&world, &observed, Window::Minute, NOW, &routes::Filter::default());
    insta::assert_json_snapshot!("routes", tree);
}

fn observer() -> Observer {
    Observer { instance: "web-1".into(), workload: "shop/web".parse().expect("valid"), pod: None }
}

fn sighting(address: &str, state: State) -> Sighting {
    let endpoint = Some(format!("{address}:8080").parse().expect("valid"));
    Sighting {
        id: Id { kind: CircuitKind::Endpoint, cluster: "orders-v2.shop:8080".into(), endpoint },
        callee: Callee::default(),
        state,
        cause: None,
        threshold: None,
        since: None,
        next_probe: None,
        calls: 1,
        errors: 0,
        slow: 0,
        at: NOW,
    }
}
