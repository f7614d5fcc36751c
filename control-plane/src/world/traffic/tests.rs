use std::time::{Duration, Instant};

use super::*;
use crate::fixture::{SERVICES, events, world};
use crate::world::{Condition, ConditionKind, Event, Key, ObjectName, ObjectStatus, Touched};

fn now() -> Instant {
    Instant::now()
}

fn service(name: &str) -> ServiceId {
    ServiceId::new("shop", name).unwrap()
}

fn route(name: &str, created: &str, fields: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop{created}}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: orders, port: 8080}}]\n  rules:\n  - backendRefs: [{{name: orders-v1, port: 8080}}]\n{fields}"
    )
}

fn policy(name: &str, created: &str, target: &str, settings: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop{created}}}\nspec:\n  targetRefs: [{target}]\n  {settings}\n"
    )
}

const ORDERS: &str = "{kind: Service, name: orders}";

fn status(world: &World, subject: &str) -> ObjectStatus {
    let mut statuses = world.statuses();
    let at = statuses.iter().position(|status| status.subject.to_string() == subject);
    statuses.remove(at.unwrap_or_else(|| panic!("no {subject}")))
}

fn condition(world: &World, subject: &str, kind: ConditionKind) -> Condition {
    let status = status(world, subject);
    status.conditions.into_iter().find(|condition| condition.kind == kind).unwrap()
}

fn keys(touched: &Touched) -> [bool; 4] {
    let orders = service("orders");
    [
        Key::Cluster(orders.clone()),
        Key::Routes(orders.clone()),
        Key::Endpoints(orders.clone()),
        Key::Service(orders),
    ]
    .map(|key| touched.contains(&key))
}

#[test]
fn a_route_touches_what_callers_go_by_and_nothing_else() {
    let mut world = world("");
    let touched = world.apply_all(events(&route("r", "", "")), now());
    assert_eq!(keys(&touched), [true, true, false, false]);
    assert!(!touched.contains(&Key::Routes(service("orders-v1"))));
    assert!(!touched.any_service());
    let again = world.apply_all(events(&route("r", "", "")), now());
    assert!(again.is_empty(), "{again:?}");
    let id =
        RouteId { kind: RouteKind::Http, name: ObjectName { namespace: "shop".into(), name: "r".into() } };
    let gone = world.apply(Event::RouteGone(id), now());
    assert_eq!(keys(&gone), [true, true, false, false]);
    assert!(world.traffic(&service("orders")).is_none());
}

#[test]
fn a_backend_that_comes_or_goes_touches_the_routes_that_lead_to_it() {
    let mut world = world(&route("r", "", ""));
    let gone = world.apply(Event::ServiceGone(service("orders-v1")), now());
    assert!(gone.contains(&Key::Routes(service("orders"))));
    let rule = &world.traffic(&service("orders")).unwrap().port(8080).unwrap().table.rules[0];
    assert_eq!(rule.backends[0].to.as_ref().unwrap_err().reason(), "BackendNotFound");
    let refs = condition(&world, "HTTPRoute shop/r", ConditionKind::ResolvedRefs);
    assert_eq!((refs.holds, refs.reason), (false, "BackendNotFound"));
    assert_eq!(refs.message, "there is no orders-v1.shop:8080");
    let endpoints = "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: orders-v2}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: [10.0.0.9], zone: eu-1}]
";
    let touched = world.apply_all(events(endpoints), now());
    assert!(!touched.contains(&Key::Routes(service("orders"))), "endpoints are nothing to a route");
    let port = world.service(&service("orders-v2")).unwrap().port(8080).unwrap();
    assert_eq!(port.endpoints[0].zone.as_deref(), Some("eu-1"));
}

#[test]
fn what_a_backend_hashes_its_routes_hash() {
    let mut world = world(&route("r", "", ""));
    let hashing = policy(
        "p",
        "",
        "{kind: Service, name: orders-v1}",
        "loadBalancer: {type: Maglev, hashOn: {header: X-User}}",
    );
    let touched = world.apply_all(events(&hashing), now());
    assert!(touched.contains(&Key::Routes(service("orders"))));
    let rule = &world.traffic(&service("orders")).unwrap().port(8080).unwrap().table.rules[0];
    assert_eq!(rule.backends[0].hash_on, Some(HashOn::Header("x-user".into())));
}

#[test]
fn the_older_policy_wins_and_the_other_is_told() {
    let older = ", creationTimestamp: '2026-01-01T00:00:00Z'";
    let newer = ", creationTimestamp: '2026-01-02T00:00:00Z'";
    for (first, second, winner) in [(newer, older, "b"), (older, newer, "a"), ("", older, "b"), ("", "", "a")]
    {
        let a = policy("a", first, ORDERS, "timeouts: {request: 1s, connect: 1s}");
        let b = policy("b", second, ORDERS, "timeouts: {request: 2s}");
        let world = world(&format!("{a}{b}"));
        let effective = &world.port_traffic(&"orders.shop:8080".parse().unwrap()).unwrap().policy;
        assert_eq!(&*effective.origins["timeouts.request"].name.name, winner);
        assert_eq!(&*effective.origins["timeouts.connect"].name.name, "a", "field by field");
        let loser = if winner == "a" { "b" } else { "a" };
        let told = condition(&world, &format!("TrafficPolicy shop/{loser}"), ConditionKind::Conflicted);
        assert_eq!(told.message, format!("timeouts.request is set by TrafficPolicy shop/{winner}"));
        let winner = status(&world, &format!("TrafficPolicy shop/{winner}"));
        assert_eq!(winner.conditions.len(), 1, "{winner:?}");
    }
}

#[test]
fn a_more_specific_policy_is_no_conflict() {
    let port = "{kind: Service, name: orders, sectionName: http}";
    let world = world(&format!(
        "{}{}",
        policy("a", "", ORDERS, "timeouts: {request: 1s}"),
        policy("b", "", port, "timeouts: {request: 2s}")
    ));
    let request = |port: &str| {
        let traffic = world.port_traffic(&port.parse().unwrap()).unwrap();
        traffic.policy.settings.timeouts.request.unwrap().as_secs()
    };
    assert_eq!((request("orders.shop:8080"), request("orders.shop:9000")), (2, 1));
    for name in ["a", "b"] {
        assert_eq!(status(&world, &format!("TrafficPolicy shop/{name}")).conditions.len(), 1);
    }
    let ports: Vec<String> =
        status(&world, "TrafficPolicy shop/b").services.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["orders.shop:8080"]);
}

#[test]
fn retries_are_bounded_by_a_number_or_by_a_budget_and_the_other_is_told() {
    let breaker = |created: &str, target: &str| {
        let text = policy("bound", created, target, "limits: {maxRetries: 7}");
        text.replace("TrafficPolicy", "CircuitBreaker")
    };
    let budget = |created: &str| policy("budget", created, ORDERS, "retryBudget: {percent: 10}");
    let older = ", creationTimestamp: '2026-01-01T00:00:00Z'";
    let bounds = |world: &World| {
        let settings = &world.port_traffic(&"orders.shop:8080".parse().unwrap()).unwrap().policy.settings;
        (settings.limits.max_retries, settings.retry_budget.percent.is_some())
    };

    let first = world(&format!("{}{}", breaker("", ORDERS), budget(older)));
    assert_eq!(bounds(&first), (None, true));
    let told = condition(&first, "CircuitBreaker shop/bound", ConditionKind::Conflicted);
    assert_eq!(
        told.message,
        "limits.maxRetries does not count beside retryBudget.percent of TrafficPolicy shop/budget"
    );
    let second = world(&format!("{}{}", breaker(older, ORDERS), budget("")));
    assert_eq!(bounds(&second), (Some(7), false));
    let told = condition(&second, "TrafficPolicy shop/budget", ConditionKind::Conflicted);
    assert!(told.message.ends_with("beside limits.maxRetries of CircuitBreaker shop/bound"), "{told:?}");

    // What is more specific wins, which is no conflict.
    let port = world(&format!(
        "{}{}",
        breaker("", "{kind: Service, name: orders, sectionName: http}"),
        budget(older)
    ));
    assert_eq!(bounds(&port), (Some(7), false));
    assert_eq!(status(&port, "TrafficPolicy shop/budget").conditions.len(), 1);
}

#[test]
fn what_cannot_be_attached_says_why() {
    let on = |parent: &str| route("r", "", "").replace("name: orders, port: 8080}]", &format!("{parent}}}]"));
    for (parent, reason) in [
        ("name: ghost", "NoMatchingParent"),
        ("name: orders, port: 1", "NoMatchingParent"),
        ("name: orders, sectionName: nothing", "NoMatchingParent"),
        ("name: orders, sectionName: db", "UnsupportedProtocol"),
        ("name: orders", "Accepted"),
    ] {
        let accepted = condition(&world(&on(parent)), "HTTPRoute shop/r", ConditionKind::Accepted);
        assert_eq!((accepted.reason, accepted.holds), (reason, reason == "Accepted"), "{parent}");
    }
    for (target, reason) in [
        ("{kind: Service, name: ghost}", "TargetNotFound"),
        ("{kind: Service, name: orders, sectionName: nothing}", "TargetNotFound"),
        ("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}", "TargetNotFound"),
        (ORDERS, "Accepted"),
    ] {
        let world = world(&policy("p", "", target, "timeouts: {request: 1s}"));
        let accepted = condition(&world, "TrafficPolicy shop/p", ConditionKind::Accepted);
        assert_eq!(accepted.reason, reason, "{target}: {accepted:?}");
    }
}

#[test]
fn a_rules_own_limit_of_one_try_wins_over_a_less_specific_policys() {
    let rule = route("r", "", "    timeouts: {backendRequest: 1s}\n");
    let world = world(&format!("{rule}{}", policy("p", "", ORDERS, "retry: {perTryTimeout: 9s}")));
    let table = &world.port_traffic(&"orders.shop:8080".parse().unwrap()).unwrap().table;
    let settings = &table.rules[0].policy.settings;
    assert_eq!(
        (settings.timeouts.backend_request, settings.retry.per_try_timeout),
        (Some(Duration::from_secs(1)), None)
    );
}

#[test]
fn a_limit_of_rate_that_nobody_can_keep_is_told() {
    let target = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";
    let limit = policy("p", "", target, "rateLimit: {requests: 1}");
    let producer = world(&format!("{}{limit}", route("r", "", "")));
    assert_eq!(condition(&producer, "TrafficPolicy shop/p", ConditionKind::Accepted).message, "");
    let consumer =
        route("r", "", "").replace("name: orders, port: 8080}]", "name: vault, namespace: other, port: 80}]");
    let told =
        condition(&world(&format!("{consumer}{limit}")), "TrafficPolicy shop/p", ConditionKind::Accepted);
    assert!(told.holds && told.message.starts_with("rateLimit does not count"), "{told:?}");
}

#[test]
fn a_grpc_route_takes_the_port() {
    let grpc = route("g", "", "").replace("HTTPRoute", "GRPCRoute");
    let world = world(&format!("{}{grpc}", route("r", "", "")));
    let table = &world.port_traffic(&"orders.shop:8080".parse().unwrap()).unwrap().table;
    assert_eq!(table.rules.len(), 1);
    assert_eq!(table.rules[0].name.to_string(), "GRPCRoute/shop/g/0");
    let accepted = condition(&world, "HTTPRoute shop/r", ConditionKind::Accepted);
    assert_eq!((accepted.holds, accepted.reason), (false, "Conflicted"));
}

#[test]
fn among_equal_matches_the_older_route_comes_first_then_the_first_by_name() {
    let older = ", creationTimestamp: '2026-01-01T00:00:00Z'";
    let names = |objects: String| -> Vec<String> {
        let world = world(&objects);
        let table = &world.port_traffic(&"orders.shop:8080".parse().unwrap()).unwrap().table;
        table.order.iter().map(|(rule, _)| table.rules[*rule].name.to_string()).collect()
    };
    assert_eq!(
        names(format!("{}{}", route("b", "", ""), route("a", "", ""))),
        ["HTTPRoute/shop/a/0", "HTTPRoute/shop/b/0"]
    );
    assert_eq!(
        names(format!("{}{}", route("b", older, ""), route("a", "", ""))),
        ["HTTPRoute/shop/b/0", "HTTPRoute/shop/a/0"]
    );
}

#[test]
fn seniority_is_between_equal_matches_whatever_else_their_rules_match() {
    let matches = "    matches: [{path: {type: Exact, value: /a}}, {path: {value: /}}]\n";
    let world = world(&format!("{}{}", route("a", "", ""), route("b", "", matches)));
    let table = &world.port_traffic(&"orders.shop:8080".parse().unwrap()).unwrap().table;
    let order: Vec<_> =
        table.order.iter().map(|(rule, one)| (table.rules[*rule].name.to_string(), *one)).collect();
    let expected = [("HTTPRoute/shop/b/0", 0), ("HTTPRoute/shop/a/0", 0), ("HTTPRoute/shop/b/0", 1)];
    assert_eq!(order, expected.map(|(name, one)| (name.to_owned(), one)));
}

#[test]
fn events_in_any_order_give_the_same_traffic() {
    let objects = format!(
        "{SERVICES}{}{}{}",
        route("r", "", ""),
        policy(
            "p",
            "",
            ORDERS,
            "timeouts: {request: 1s}\n  mirror: {backendRef: {name: orders-v2, port: 8080}}"
        ),
        policy(
            "q",
            "",
            "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}",
            "retry: {attempts: 1}"
        )
    );
    let once = {
        let mut world = World::default();
        world.apply_all(events(&objects), now());
        world
    };
    let expected = once.traffic(&service("orders")).unwrap();
    assert_eq!(expected.port(8080).unwrap().mirror.as_ref().unwrap().to.to_string(), "orders-v2.shop:8080");
    let forwards = events(&objects);
    let backwards: Vec<Event> = events(&objects).into_iter().rev().collect();
    for order in [forwards, backwards] {
        let mut world = World::default();
        for event in order {
            world.apply(event, now());
        }
        assert_eq!(world.traffic(&service("orders")).unwrap(), expected);
    }
}
