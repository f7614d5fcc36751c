use std::net::SocketAddr;
use std::time::Instant;

use weft_wire::SpiffeId;
use weft_wire::tls::Mode;

use super::{Ask, Audit, Cause, Judgement, Posture, Speaks};
use crate::fixture::{events, world};
use crate::world::{ConditionKind, Event, Key, World};

/// An endpoint of `orders` that speaks HTTP, and one that speaks something else.
const MESH: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 80}, {name: db, port: 5432}]
endpoints: [{addresses: [10.0.0.1]}]
";

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

fn mesh(objects: &[String]) -> World {
    world(&format!("{MESH}{}", objects.concat()))
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn judge(world: &World, caller: Option<&str>, method: &str, path: &str) -> Judgement {
    let caller = caller.map(|text| id(&format!("spiffe://cluster.local/{text}")));
    let speaks = Speaks::Http { method, path, headers: &[] };
    world.access_at(at(80)).judge(&Ask { caller: caller.as_ref(), speaks })
}

fn may(world: &World, caller: Option<&str>, method: &str, path: &str) -> bool {
    judge(world, caller, method, path).allowed
}

const WEB: Option<&str> = Some("ns/shop/sa/web");
const TOOL: Option<&str> = Some("ns/tools/sa/web");

#[test]
fn without_a_policy_the_namespaces_posture_counts() {
    assert!(may(&mesh(&[]), None, "GET", "/"));
    let closed = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {weft.dev/default-access: deny}}\n";
    let world = mesh(&[closed.to_owned()]);
    let judged = judge(&world, WEB, "GET", "/");
    assert_eq!((judged.allowed, judged.cause), (false, Cause::Posture(Posture::Deny)));
    let elsewhere = closed.replace("shop", "other");
    assert!(may(&mesh(&[elsewhere]), None, "GET", "/"));
}

#[test]
fn what_no_policy_allows_is_denied_where_one_allows() {
    let web = "{rules: [{from: [{serviceAccount: web}], to: [{methods: [GET], paths: [{value: /a}]}]}]}";
    let world = mesh(&[policy("p", web)]);
    assert!(may(&world, WEB, "GET", "/a/b"));
    for (caller, method, path) in
        [(TOOL, "GET", "/a"), (None, "GET", "/a"), (WEB, "POST", "/a"), (WEB, "GET", "/ab")]
    {
        let judged = judge(&world, caller, method, path);
        assert!(matches!(judged.cause, Cause::NoneAllows(ref ids) if ids.len() == 1), "{judged:?}");
    }
    assert!(!may(&mesh(&[policy("p", "{rules: []}")]), WEB, "GET", "/"), "no rule is nobody");
}

#[test]
fn a_namespace_is_closed_by_what_counts_at_every_port_of_it() {
    let closed = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {weft.dev/default-access: deny}}\n";
    for (object, expected) in [
        (closed.to_owned(), true),
        (policy("p", "{rules: []}"), true),
        (policy("p", "{rules: [{from: [{serviceAccount: web}], to: [{ports: [80]}]}]}"), true),
        (policy("p", "{rules: [{}]}"), false),
        (policy("p", "{rules: [{from: [{serviceAccount: web}]}, {}]}"), false),
        (closed.to_owned() + &policy("p", "{rules: [{}]}"), true),
        (policy("p", "{mode: Audit, rules: []}"), false),
        (policy("p", "{action: Deny, rules: [{}]}"), false),
        (policy("p", "{mtls: {mode: strict}}"), false),
        (policy("p", "{targetRefs: [{kind: Service, name: orders}], rules: []}"), false),
    ] {
        let world = mesh(std::slice::from_ref(&object));
        assert_eq!(world.is_closed("shop"), expected, "{object}");
        assert!(!world.is_closed("other"), "{object}");
    }
}

#[test]
fn denying_wins() {
    let world = mesh(&[
        policy("a", "{rules: [{}]}"),
        policy("d", "{action: Deny, rules: [{}, {from: [{namespace: tools}]}]}").replace("{}, ", ""),
    ]);
    assert!(may(&world, WEB, "GET", "/"));
    let judged = judge(&world, TOOL, "GET", "/");
    assert!(matches!(judged.cause, Cause::Rule(ref id, 0) if &*id.name.name == "d"), "{judged:?}");
}

#[test]
fn exclusion_lets_no_plain_caller_in_and_none_off() {
    let of = |action: &str| {
        mesh(&[policy("p", &format!("{{action: {action}, rules: [{{from: [{{notNamespace: shop}}]}}]}}"))])
    };
    let (allow, deny) = (of("Allow"), of("Deny"));
    assert!(may(&allow, TOOL, "GET", "/") && !may(&deny, TOOL, "GET", "/"));
    assert!(!may(&allow, WEB, "GET", "/") && may(&deny, WEB, "GET", "/"));
    assert!(!may(&allow, None, "GET", "/") && !may(&deny, None, "GET", "/"));
    let foreign = id("spiffe://elsewhere.org/ns/shop/sa/web");
    let ask = Ask { caller: Some(&foreign), speaks: Speaks::Bytes };
    assert!(!allow.access_at(at(80)).judge(&ask).allowed && !deny.access_at(at(80)).judge(&ask).allowed);
}

#[test]
fn auditing_decides_nothing_and_says_what_it_would() {
    let world = mesh(&[policy("p", "{mode: Audit, rules: [{from: [{serviceAccount: web}]}]}")]);
    let judged = judge(&world, TOOL, "GET", "/");
    assert!(judged.allowed);
    assert!(matches!(judged.audits.as_slice(), [Audit::WouldLack(ids)] if ids.len() == 1), "{judged:?}");
    assert!(matches!(judge(&world, WEB, "GET", "/").audits.as_slice(), [Audit::WouldAllow(_, 0)]));
    let world = mesh(&[
        policy("a", "{rules: [{from: [{namespace: tools}]}]}"),
        policy("p", "{mode: Audit, rules: [{from: [{serviceAccount: web}]}]}"),
    ]);
    assert_eq!(judge(&world, TOOL, "GET", "/").audits, [], "it is let in beside the audited ones too");
    let judged = judge(&world, None, "GET", "/");
    assert!(!judged.allowed && matches!(judged.audits.as_slice(), [Audit::WouldLack(_)]), "{judged:?}");
    let world = mesh(&[policy("p", "{mode: Audit, action: Deny, rules: [{}]}")]);
    let judged = judge(&world, WEB, "GET", "/");
    assert!(judged.allowed && matches!(judged.audits.as_slice(), [Audit::WouldDeny(_, 0)]), "{judged:?}");
}

#[test]
fn a_policy_counts_at_its_targets_ports_only() {
    let target = "targetRefs: [{kind: Service, name: orders, sectionName: http}]";
    let world = mesh(&[policy("p", &format!("{{{target}, rules: []}}"))]);
    let plain = Ask { caller: None, speaks: Speaks::Bytes };
    assert!(!world.access_at(at(80)).judge(&plain).allowed);
    assert!(world.access_at(at(5432)).judge(&plain).allowed);
    let world = mesh(&[policy("p", "{action: Deny, rules: [{to: [{ports: [80]}]}]}")]);
    assert!(!world.access_at(at(80)).judge(&plain).allowed);
    assert!(world.access_at(at(5432)).judge(&plain).allowed);
}

#[test]
fn who_speaks_no_http_gets_around_nothing() {
    let of = |action: &str| {
        mesh(&[policy("p", &format!("{{action: {action}, rules: [{{to: [{{methods: [GET]}}]}}]}}"))])
    };
    let plain = Ask { caller: None, speaks: Speaks::Bytes };
    for action in ["Allow", "Deny"] {
        assert!(!of(action).access_at(at(5432)).judge(&plain).allowed, "{action}");
    }
}

#[test]
fn mutual_tls_is_as_the_most_specific_policy_says() {
    let service = "targetRefs: [{kind: Service, name: orders}]";
    let port = "targetRefs: [{kind: Service, name: orders, sectionName: db}]";
    assert_eq!(mesh(&[]).mtls_at(at(80)), Mode::Permissive);
    let all = policy("a", "{mtls: {mode: strict}}");
    assert_eq!(mesh(std::slice::from_ref(&all)).mtls_at(at(80)), Mode::Strict);
    let some = policy("b", &format!("{{{service}, mtls: {{ports: {{'5432': disabled}}}}}}"));
    let world = mesh(&[all.clone(), some.clone()]);
    assert_eq!((world.mtls_at(at(80)), world.mtls_at(at(5432))), (Mode::Strict, Mode::Disabled));
    let one = policy("c", &format!("{{{port}, mtls: {{mode: permissive}}}}"));
    assert_eq!(mesh(&[all.clone(), some, one]).mtls_at(at(5432)), Mode::Permissive);
    let world = mesh(&[all, policy("z", "{mtls: {mode: disabled}}")]);
    assert_eq!(world.mtls_at(at(80)), Mode::Strict, "among equals the first by name");
    let loser =
        world.statuses().into_iter().find(|status| status.subject.to_string().ends_with("/z")).unwrap();
    let conflict = loser.conditions.iter().find(|one| one.kind == ConditionKind::Conflicted).unwrap();
    assert_eq!(conflict.message, "mtls is set by AccessPolicy shop/a");
    assert!(world.access_at(at(80)).is_open(), "what speaks of TLS only says nothing of callers");
}

#[test]
fn a_policy_means_nothing_at_an_address_that_is_of_another_namespace() {
    // Whoever may write slices in `evil` says that its service `a` is where the pod of `shop` is.
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: orders-1, namespace: shop}\nspec: {containers: []}\n\
               status: {podIP: 10.0.0.1}\n";
    let evil = |text: &str| text.replace("namespace: shop", "namespace: evil");
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: evil}\n\
                   spec: {ports: [{name: http, port: 8080}]}\n";
    let slice = format!("{service}---{}", evil(&MESH.replace("orders", "a")));
    let target = "targetRefs: [{kind: Service, name: a}]";
    let closed = [policy("p", "{rules: []}"), policy("q", "{mtls: {mode: strict}}")];
    let opened = [
        evil(&policy("p", &format!("{{{target}, rules: [{{}}]}}"))),
        evil(&policy("q", &format!("{{{target}, mtls: {{mode: disabled}}}}"))),
    ];
    let all = [&closed[..], &opened[..]].concat();
    for objects in [vec![pod.to_owned(), slice.clone()], vec![slice, pod.to_owned()]] {
        let world = mesh(&[objects, all.clone()].concat());
        assert!(!may(&world, WEB, "GET", "/"), "what shop says counts");
        assert_eq!(world.mtls_at(at(80)), Mode::Strict);
        assert_eq!(world.access_at(at(80)).policies.len(), 1);
    }
}

#[test]
fn an_author_hears_where_a_policy_does_less_than_it_says() {
    let message = |objects: &[String]| {
        let statuses = mesh(objects).statuses();
        let status = statuses.into_iter().find(|status| status.subject.to_string().ends_with("/p")).unwrap();
        status.conditions[0].message.clone()
    };
    let web = policy("p", "{rules: [{from: [{serviceAccount: web}], to: [{methods: [GET]}]}]}");
    let said = message(std::slice::from_ref(&web));
    assert!(
        said.contains("orders.shop:8080, orders.shop:5432")
            || said.contains("orders.shop:5432, orders.shop:8080"),
        "{said}"
    );
    assert!(said.contains("take plain text too"), "{said}");
    assert!(said.contains("orders.shop:5432 speak no HTTP"), "{said}");
    let said = message(&[web, policy("q", "{mtls: {mode: strict}}")]);
    assert!(!said.contains("plain text"), "{said}");
    let missing = policy("p", "{targetRefs: [{kind: Service, name: nobody}], rules: []}");
    assert!(message(&[missing]).contains("there is no Service nobody.shop"));
}

#[test]
fn a_change_is_told_to_those_it_concerns() {
    let mut world = mesh(&[]);
    let event = |text: &str| events(text).remove(0);
    let touched = world.apply(event(&policy("p", "{rules: []}")[4..]), Instant::now());
    let own = "10.0.0.1".parse().unwrap();
    assert!(touched.contains(&Key::Inbound(own)));
    assert!(
        touched.contains(&Key::Endpoints("orders.shop".parse().unwrap())),
        "callers follow its mode of TLS"
    );
    let gone = world.statuses().remove(0);
    let crate::world::Subject::Policy(id) = gone.subject else { panic!("a policy") };
    let touched = world.apply(Event::PolicyGone(id), Instant::now());
    assert!(touched.contains(&Key::Inbound(own)));
    assert!(may(&world, None, "GET", "/"));
}
