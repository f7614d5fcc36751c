use std::time::Duration;

use proptest::prelude::*;
use weft_wire::node::Registration;

use super::*;

fn service_id(name: &str) -> ServiceId {
    ServiceId::new("shop", name).unwrap()
}

fn object(name: &str) -> ObjectName {
    ObjectName { namespace: "shop".into(), name: name.into() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(name: &str, cluster_ips: &[&str]) -> ServiceSpec {
    ServiceSpec {
        id: service_id(name),
        cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
        family: cluster_ips.first().map(|text| ip(text).into()),
        prefers_zone: false,
        ports: vec![PortSpec {
            name: "http".into(),
            number: 80,
            target: TargetPort::Name("web".into()),
            protocol: Some(Protocol::Http),
        }],
        selector: BTreeMap::from([("app".into(), name.into())]),
    }
}

fn slice(name: &str, service: &str, endpoints: &[(&str, Health)]) -> SliceSpec {
    SliceSpec {
        name: object(name),
        service: service_id(service),
        ports: vec![SlicePort { name: "http".into(), number: 8080, protocol: None }],
        endpoints: endpoints
            .iter()
            .map(|(address, health)| SliceEndpoint {
                addresses: vec![ip(address)],
                health: *health,
                zone: None,
                pod: None,
            })
            .collect(),
    }
}

fn pod(name: &str, app: &str, address: &str) -> PodSpec {
    PodSpec {
        name: object(name),
        workload: WorkloadId::new("shop", app).unwrap(),
        version: Some("v1".into()),
        addresses: vec![ip(address)],
        service_account: "default".into(),
        labels: BTreeMap::from([("app".into(), app.into())]),
        ports: BTreeMap::from([("web".into(), 9000)]),
        health: Health::Ready,
        app_ended: None,
        injection: Default::default(),
    }
}

fn proxy(instance: &str, stream: u64, address: &str, register: Option<&str>) -> Event {
    let registrations = register.into_iter().map(|service| Registration {
        service: service.parse().unwrap(),
        address: "127.0.0.1:15006".parse().unwrap(),
        protocol: Some(Protocol::Http2),
    });
    Event::ProxyConnected {
        instance: instance.into(),
        stream: StreamId(stream),
        metadata: Arc::new(NodeMetadata {
            workload: "shop/orders".parse().unwrap(),
            version: None,
            pod: None,
            zone: None,
            addresses: vec![ip(address)],
            registrations: registrations.collect(),
        }),
        identity: None,
    }
}

fn addresses(world: &World, name: &str) -> Vec<String> {
    let service = world.service(&service_id(name)).unwrap();
    service.ports.iter().flat_map(|port| port.endpoints.iter().map(|e| e.address.to_string())).collect()
}

#[test]
fn endpoints_come_from_slices_by_port_name_and_not_ready_ones_are_left_out() {
    let (mut world, now) = (World::default(), Instant::now());
    world.apply(Event::ServiceSet(service("orders", &["10.96.0.1"])), now);
    let endpoints =
        [("10.0.0.2", Health::Ready), ("10.0.0.1", Health::Draining), ("10.0.0.3", Health::NotReady)];
    let touched = world.apply(Event::SliceSet(slice("s", "orders", &endpoints)), now);
    assert_eq!(addresses(&world, "orders"), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert!(touched.contains(&Key::Endpoints(service_id("orders"))));
    assert!(touched.contains(&Key::Address(ip("10.0.0.1"))));
    assert!(!touched.contains(&Key::Address(ip("10.0.0.3"))));
    assert!(!touched.any_service(), "the service itself did not change");
    let service_port = world.service_of("10.0.0.1:8080".parse().unwrap()).unwrap();
    assert_eq!(service_port.to_string(), "orders.shop:80");
    assert_eq!(world.service_of("10.96.0.1:80".parse().unwrap()), Some(service_port));
    assert_eq!(world.service_of("10.96.0.1:81".parse().unwrap()), None);
}

#[test]
fn callers_are_sent_to_the_first_family_while_somebody_is_ready_there() {
    let (mut world, now) = (World::default(), Instant::now());
    world.apply(Event::ServiceSet(service("orders", &["10.96.0.1", "fd00::1"])), now);
    let callable = |world: &World| {
        let service = world.service(&service_id("orders")).unwrap();
        let endpoints = service.callable(&service.ports[0]).map(|e| e.address.ip().to_string());
        endpoints.collect::<Vec<_>>()
    };
    let six = slice("six", "orders", &[("fd00::a", Health::Ready)]);
    world.apply(Event::SliceSet(six), now);
    assert_eq!(callable(&world), ["fd00::a"]);
    world.apply(Event::SliceSet(slice("four", "orders", &[("10.0.0.1", Health::Draining)])), now);
    assert_eq!(callable(&world), ["10.0.0.1", "fd00::a"]);
    let touched = world.apply(Event::SliceSet(slice("four", "orders", &[("10.0.0.1", Health::Ready)])), now);
    assert_eq!(callable(&world), ["10.0.0.1"]);
    assert!(touched.contains(&Key::Endpoints(service_id("orders"))));
    assert!(world.service_of("[fd00::a]:8080".parse().unwrap()).is_some(), "it is known all the same");
}

#[test]
fn without_slices_the_selector_finds_pods_and_named_ports() {
    let (mut world, now) = (World::default(), Instant::now());
    world.apply(Event::PodSet(pod("p1", "orders", "10.0.0.1")), now);
    world.apply(Event::ServiceSet(service("orders", &[])), now);
    world.apply(Event::PodSet(pod("p2", "orders", "10.0.0.2")), now);
    world.apply(Event::PodSet(pod("other", "cart", "10.0.0.3")), now);
    assert_eq!(addresses(&world, "orders"), ["10.0.0.1:9000", "10.0.0.2:9000"]);
    let touched = world.apply(Event::PodGone(object("p1")), now);
    assert!(touched.contains(&Key::Endpoints(service_id("orders"))));
    assert_eq!(addresses(&world, "orders"), ["10.0.0.2:9000"]);
    world.apply(Event::SliceSet(slice("s", "orders", &[("10.0.0.9", Health::Ready)])), now);
    assert_eq!(addresses(&world, "orders"), ["10.0.0.9:8080"], "a slice is believed over the selector");
}

#[test]
fn an_endpoint_learns_its_workload_when_the_pod_arrives() {
    let (mut world, now) = (World::default(), Instant::now());
    world.apply(Event::ServiceSet(service("orders", &[])), now);
    world.apply(Event::SliceSet(slice("s", "orders", &[("10.0.0.1", Health::Ready)])), now);
    let touched = world.apply(Event::PodSet(pod("p1", "orders-v2", "10.0.0.1")), now);
    assert!(touched.contains(&Key::Endpoints(service_id("orders"))));
    let port = world.service(&service_id("orders")).unwrap().port(80).unwrap();
    assert_eq!(port.endpoints[0].peer.as_ref().unwrap().workload.to_string(), "shop/orders-v2");
    let Lookup::Known(workload) = world.lookup(ip("10.0.0.1")) else { panic!("unknown") };
    assert!(!workload.meshed);
    world.apply(proxy("i", 1, "10.0.0.1", None), now);
    let Lookup::Known(workload) = world.lookup(ip("10.0.0.1")) else { panic!("unknown") };
    assert!(workload.meshed);
    assert_eq!(workload.id.to_string(), "shop/orders", "a sidecar's own word wins, its reports bear it");
}

#[test]
fn a_change_that_changes_nothing_touches_nothing() {
    let (mut world, now) = (World::default(), Instant::now());
    world.apply(Event::ServiceSet(service("orders", &["10.96.0.1"])), now);
    world.apply(Event::SliceSet(slice("s", "orders", &[("10.0.0.1", Health::Ready)])), now);
    assert!(world.apply(Event::ServiceSet(service("orders", &["10.96.0.1"])), now).is_empty());
    assert!(
        world.apply(Event::SliceSet(slice("s", "orders", &[("10.0.0.1", Health::Ready)])), now).is_empty()
    );
    assert!(world.apply(Event::SliceGone(object("nobody")), now).is_empty());
}

#[test]
fn a_moved_virtual_ip_touches_its_address() {
    let (mut world, now) = (World::default(), Instant::now());
    world.apply(Event::ServiceSet(service("orders", &["10.96.0.1"])), now);
    let touched = world.apply(Event::ServiceSet(service("orders", &["10.96.0.2"])), now);
    for address in ["10.96.0.1", "10.96.0.2"] {
        assert!(touched.contains(&Key::Address(ip(address))), "{address}");
    }
    assert!(world.by_virtual_ip(ip("10.96.0.1")).is_none());
}

#[test]
fn a_registration_lives_as_long_as_its_sidecar() {
    let (mut world, now) = (World::default(), Instant::now());
    let touched = world.apply(proxy("i", 1, "10.0.0.1", Some("cart.shop:80")), now);
    assert!(touched.contains(&Key::Service(service_id("cart"))));
    assert_eq!(addresses(&world, "cart"), ["127.0.0.1:15006"]);
    let port = world.service(&service_id("cart")).unwrap().port(80).unwrap();
    assert_eq!(port.protocol, Some(Protocol::Http2));
    let left = Event::ProxyLeft { instance: "i".into(), stream: StreamId(1) };
    assert!(world.apply(left, now).contains(&Key::Service(service_id("cart"))));
    assert!(world.service(&service_id("cart")).is_none());
}

#[test]
fn a_lost_sidecar_has_a_grace_and_a_new_stream_ends_it() {
    let (mut world, now) = (World::default(), Instant::now());
    let lost = |stream| Event::ProxyLost { instance: "i".into(), stream: StreamId(stream) };
    world.apply(proxy("i", 1, "10.0.0.1", Some("cart.shop:80")), now);
    world.apply(lost(1), now);
    assert_eq!(addresses(&world, "cart").len(), 1);
    let touched = world.apply(proxy("i", 2, "10.0.0.1", Some("cart.shop:80")), now + Duration::from_secs(1));
    assert!(touched.is_empty(), "nobody notices a quick reconnect");
    assert_eq!(world.next_deadline(), None);
    world.apply(lost(1), now);
    assert_eq!(world.next_deadline(), None, "an older stream's end means nothing");

    world.apply(lost(2), now);
    let deadline = world.next_deadline().unwrap();
    assert!(world.expire(deadline - Duration::from_millis(1)).is_empty());
    assert!(world.expire(deadline).contains(&Key::Service(service_id("cart"))));
    assert!(world.service(&service_id("cart")).is_none());
    assert_eq!(world.lookup(ip("10.0.0.1")), Lookup::Unknown);
}

#[test]
fn a_registration_joins_a_declared_service() {
    let (mut world, now) = (World::default(), Instant::now());
    world.apply(Event::ServiceSet(service("orders", &["10.96.0.1"])), now);
    world.apply(proxy("i", 1, "10.0.0.1", Some("orders.shop:80")), now);
    let port = world.service(&service_id("orders")).unwrap().port(80).unwrap().clone();
    assert_eq!(port.protocol, Some(Protocol::Http), "the owner's word wins");
    assert_eq!(port.endpoints.len(), 1);
}

#[test]
fn shared_addresses_name_nobody() {
    let (mut world, now) = (World::default(), Instant::now());
    assert_eq!(world.lookup(ip("127.0.0.1")), Lookup::Shared { meshed: false });
    world.apply(proxy("i", 1, "127.0.0.1", None), now);
    assert_eq!(world.lookup(ip("127.0.0.1")), Lookup::Shared { meshed: true });
    world.apply(Event::PodSet(pod("a", "orders", "10.0.0.1")), now);
    world.apply(Event::PodSet(pod("b", "cart", "10.0.0.1")), now);
    assert_eq!(world.lookup(ip("10.0.0.1")), Lookup::Shared { meshed: false });
    world.apply(Event::PodGone(object("b")), now);
    assert!(matches!(world.lookup(ip("10.0.0.1")), Lookup::Known(_)));
}

fn event() -> impl Strategy<Value = Event> {
    let name = prop_oneof![Just("orders"), Just("cart")];
    let address = (1u8..5).prop_map(|last| format!("10.0.0.{last}"));
    let health = prop_oneof![Just(Health::Ready), Just(Health::Draining), Just(Health::NotReady)];
    prop_oneof![
        (name.clone(), 1u8..3)
            .prop_map(|(name, last)| { Event::ServiceSet(service(name, &[&format!("10.96.0.{last}")])) }),
        name.clone().prop_map(|name| Event::ServiceGone(service_id(name))),
        (0u8..3, name.clone(), address.clone(), health).prop_map(|(number, name, address, health)| {
            Event::SliceSet(slice(&format!("s{number}"), name, &[(&address, health)]))
        }),
        (0u8..3).prop_map(|number| Event::SliceGone(object(&format!("s{number}")))),
        (0u8..3, name, address.clone()).prop_map(|(number, name, address)| {
            Event::PodSet(pod(&format!("p{number}"), name, &address))
        }),
        (0u8..3).prop_map(|number| Event::PodGone(object(&format!("p{number}")))),
        (0u8..2, address, prop::bool::ANY).prop_map(|(number, address, register)| {
            proxy(&format!("i{number}"), 1, &address, register.then_some("cart.shop:80"))
        }),
        (0u8..2).prop_map(|number| Event::ProxyLeft {
            instance: format!("i{number}").into(),
            stream: StreamId(1)
        }),
    ]
}

/// Everything the world can be asked.
fn answers(world: &World) -> (Vec<Service>, Vec<(String, String)>) {
    let mut services: Vec<Service> = world.services().cloned().collect();
    services.sort_by(|a, b| a.id.cmp(&b.id));
    let questions = (1u8..5).flat_map(|last| [format!("10.0.0.{last}"), format!("10.96.0.{last}")]);
    let answers = questions.map(|address| {
        let address_ = ip(&address);
        let ports: Vec<_> = [80, 8080, 9000]
            .into_iter()
            .map(|port| world.by_endpoint(SocketAddr::new(address_, port)).cloned().collect::<Vec<_>>())
            .collect();
        let virtual_ = world.by_virtual_ip(address_).map(|service| service.id.clone());
        (
            address,
            format!("{:?} {:?} {ports:?} {virtual_:?}", world.lookup(address_), world.peer_at(address_)),
        )
    });
    let answers = answers.collect();
    (services, answers)
}

proptest! {
    #[test]
    fn one_by_one_is_the_same_as_all_at_once(events in prop::collection::vec(event(), 0..40)) {
        let now = Instant::now();
        let (mut one_by_one, mut at_once) = (World::default(), World::default());
        for event in events.clone() {
            one_by_one.apply(event, now);
        }
        at_once.apply_all(events, now);
        prop_assert_eq!(answers(&one_by_one), answers(&at_once));
    }

    #[test]
    fn whatever_changes_its_answer_is_touched(events in prop::collection::vec(event(), 1..40)) {
        let now = Instant::now();
        let mut world = World::default();
        for event in events {
            let before = answers(&world);
            let touched = world.apply(event, now);
            let after = answers(&world);
            for (old, new) in before.1.iter().zip(&after.1) {
                prop_assert!(old == new || touched.contains(&Key::Address(ip(&old.0))), "{:?} {:?}", old, new);
            }
            for name in ["orders", "cart"] {
                let find = |services: &[Service]| services.iter().find(|s| s.id.name() == name).cloned();
                let changed = find(&before.0) != find(&after.0);
                let told = touched.contains(&Key::Service(service_id(name)))
                    || touched.contains(&Key::Endpoints(service_id(name)));
                prop_assert_eq!(changed, told);
            }
        }
    }

    #[test]
    fn taking_everything_away_leaves_nothing(events in prop::collection::vec(event(), 0..40)) {
        let now = Instant::now();
        let mut world = World::default();
        world.apply_all(events, now);
        for number in 0..3 {
            world.apply(Event::SliceGone(object(&format!("s{number}"))), now);
            world.apply(Event::PodGone(object(&format!("p{number}"))), now);
            let instance = format!("i{number}").into();
            world.apply(Event::ProxyLeft { instance, stream: StreamId(1) }, now);
        }
        for name in ["orders", "cart"] {
            world.apply(Event::ServiceGone(service_id(name)), now);
        }
        prop_assert!(world.services.is_empty());
        prop_assert!(world.by_endpoint.is_empty() && world.by_virtual_ip.is_empty());
        prop_assert!(world.services_on.is_empty() && world.selecting.is_empty() && world.slices_of.is_empty());
    }
}

#[test]
fn a_large_mesh_is_quick() {
    // 5,000 services with 4 pods each. The bound is loose: it tells a linear scan (minutes) from an index.
    let now = Instant::now();
    let mut events = Vec::new();
    for number in 0..5_000_u32 {
        let name = format!("s{number}");
        let mut endpoints = Vec::new();
        for replica in 0..4 {
            let address = IpAddr::from((0x0a00_0000 + number * 4 + replica).to_be_bytes()).to_string();
            events.push(Event::PodSet(pod(&format!("{name}-{replica}"), &name, &address)));
            endpoints.push((address, Health::Ready));
        }
        let endpoints: Vec<_> =
            endpoints.iter().map(|(address, health)| (address.as_str(), *health)).collect();
        events.push(Event::SliceSet(slice(&name, &name, &endpoints)));
        events.push(Event::ServiceSet(service(&name, &[])));
    }
    let mut world = World::default();
    let started = Instant::now();
    world.apply_all(events, now);
    for number in 0..5_000 {
        world.apply(Event::PodGone(object(&format!("s{number}-0"))), now);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(world.services().count(), 5_000);
}

fn identified(event: Event, identity: &str) -> Event {
    let Event::ProxyConnected { instance, stream, metadata, .. } = event else { panic!("{event:?}") };
    let identity = Some(Arc::new(format!("spiffe://cluster.local/ns/shop/sa/{identity}").parse().unwrap()));
    Event::ProxyConnected { instance, stream, metadata, identity }
}

fn identity_at(world: &World, address: &str) -> Option<String> {
    world.peer_at(ip(address))?.identity.as_ref().map(ToString::to_string)
}

#[test]
fn a_pod_keeps_the_identity_that_its_sidecar_proved_until_it_is_gone() {
    let (mut world, now) = (World::default(), Instant::now());
    world.apply(Event::PodSet(pod("orders-1", "orders", "10.0.0.7")), now);
    assert_eq!(identity_at(&world, "10.0.0.7"), None);
    let touched = world.apply(identified(proxy("a", 1, "10.0.0.7", None), "default"), now);
    assert!(touched.contains(&Key::Address(ip("10.0.0.7"))));
    let default = Some("spiffe://cluster.local/ns/shop/sa/default".to_owned());
    assert_eq!(identity_at(&world, "10.0.0.7"), default);
    world.apply(Event::ProxyLeft { instance: "a".into(), stream: StreamId(1) }, now);
    assert_eq!(identity_at(&world, "10.0.0.7"), default, "its callers must not begin to speak plain");
    let unready = PodSpec { health: Health::NotReady, ..pod("orders-1", "orders", "10.0.0.7") };
    world.apply(Event::PodSet(unready), now);
    assert_eq!(identity_at(&world, "10.0.0.7"), default);
    world.apply(Event::PodSet(pod("orders-1", "orders", "10.0.0.8")), now);
    assert_eq!(identity_at(&world, "10.0.0.8"), None, "another address is another pod");
}

#[test]
fn an_identity_is_noted_only_of_pods_that_run_as_it() {
    let (mut world, now) = (World::default(), Instant::now());
    world.apply(Event::PodSet(pod("orders-1", "orders", "10.0.0.7")), now);
    world.apply(identified(proxy("a", 1, "10.0.0.7", None), "thief"), now);
    world.apply(Event::ProxyLeft { instance: "a".into(), stream: StreamId(1) }, now);
    assert_eq!(identity_at(&world, "10.0.0.7"), None);
}

#[test]
fn who_proved_nothing_does_not_hide_who_did() {
    let (mut world, now) = (World::default(), Instant::now());
    world.apply(identified(proxy("a", 1, "10.0.0.7", None), "orders"), now);
    world.apply(proxy("b", 2, "10.0.0.7", None), now);
    assert_eq!(identity_at(&world, "10.0.0.7").as_deref(), Some("spiffe://cluster.local/ns/shop/sa/orders"));
}

#[test]
fn the_trust_bundle_touches_only_when_it_changes() {
    let (mut world, now) = (World::default(), Instant::now());
    let trust = Trust { domain: "cluster.local".into(), roots: "one".into() };
    assert!(world.apply(Event::TrustSet(trust.clone()), now).contains(&Key::Trust));
    assert!(world.apply(Event::TrustSet(trust), now).is_empty());
}
