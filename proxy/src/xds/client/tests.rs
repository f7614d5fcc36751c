//! Stories about one sidecar and its control plane, without a socket or a clock.

use std::net::SocketAddr;

use http::request::Parts;
use proptest::prelude::*;
use tokio::sync::oneshot::{self, error::TryRecvError};
use weft_wire::xds::Destination;

use super::super::directory::{Directory, Lookup};
use super::super::plane::{self, Plane};
use super::*;
use crate::identity::testing::Authority;
use crate::xds::Listener as Known;

const ORDERS: &str = "outbound/10.0.0.1:80";

/// A client, its control plane and what a worker sees.
struct Mesh {
    client: Client,
    plane: Plane,
    directory: Arc<Directory>,
    age: Duration,
    published: usize,
    trusted: Vec<Bundle>,
}

impl Mesh {
    fn new() -> Self {
        Self::with(2000)
    }

    fn with(listeners_max: usize) -> Self {
        let node = NodeMetadata {
            workload: "shop/cart".parse().expect("valid"),
            version: None,
            pod: None,
            zone: None,
            addresses: vec![],
            registrations: vec![],
        };
        let client = Client::new("instance".into(), &node, "http://plane".into(), listeners_max);
        let (directory, _) = Directory::connected();
        let mut mesh = Self {
            client,
            plane: Plane::default(),
            directory,
            age: Duration::ZERO,
            published: 0,
            trusted: vec![],
        };
        mesh.connect();
        mesh
    }

    fn step(&mut self, input: Input) {
        let output = self.client.step(input, Now { age: self.age, wall: SystemTime::UNIX_EPOCH });
        if let Some(map) = output.publish {
            self.directory.publish(map);
            self.published += 1;
        }
        self.trusted.extend(output.trust);
        for waiter in output.wake {
            let _gone = waiter.send(());
        }
    }

    fn connect(&mut self) {
        self.plane.reconnect();
        self.step(Input::Opening);
        self.step(Input::Up);
    }

    fn disconnect(&mut self) {
        self.step(Input::Down { reason: "the network".into() });
    }

    fn want(&mut self, name: &str) -> oneshot::Receiver<()> {
        let (answered, answer) = oneshot::channel();
        self.step(Input::Want(Interest { name: name.parse().expect("a name"), answered }));
        answer
    }

    /// One round: all requests there, then all responses back.
    fn exchange(&mut self) -> bool {
        while let Some(request) = self.client.next_request() {
            self.plane.request(request);
        }
        let responses = self.plane.responses();
        let any = !responses.is_empty();
        for response in responses {
            self.step(Input::Response(Box::new(response)));
        }
        any
    }

    fn settle(&mut self) {
        let mut rounds = 0;
        while self.exchange() {
            rounds += 1;
            assert!(rounds < 50, "client and server talk for ever");
        }
    }

    fn lookup(&self, name: &str) -> Lookup {
        self.directory.lookup(&name.parse().expect("a name"))
    }

    fn known(&self, name: &str) -> Arc<Known> {
        self.lookup(name).known().unwrap_or_else(|| panic!("{name} is {:?}", self.lookup(name)))
    }
}

fn request(path: &str) -> Parts {
    http::Request::get(path).body(()).expect("a request").into_parts().0
}

/// Where a request to the listener would go: cluster and addresses.
fn target(listener: &Known, path: &str) -> Option<(String, Vec<SocketAddr>)> {
    let table = listener.routes();
    let cluster = &table.pick(&request(path))?.backends().first()?.cluster;
    let addresses = cluster.endpoints().list.iter().map(|endpoint| endpoint.address).collect();
    Some((cluster.name.to_string(), addresses))
}

fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn the_type_urls_are_those_of_the_messages() {
    use envoy_types::pb::envoy::config;
    use prost::Name;
    assert_eq!(Kind::Listeners.type_url(), config::listener::v3::Listener::type_url());
    assert_eq!(Kind::Tables.type_url(), config::route::v3::RouteConfiguration::type_url());
    assert_eq!(Kind::Clusters.type_url(), config::cluster::v3::Cluster::type_url());
    assert_eq!(Kind::Endpoints.type_url(), config::endpoint::v3::ClusterLoadAssignment::type_url());
    assert_eq!(Kind::Runtime.type_url(), envoy_types::pb::envoy::service::runtime::v3::Runtime::type_url());
}

#[test]
fn the_node_introduces_itself_though_it_asks_for_nothing() {
    let mut mesh = Mesh::new();
    let first = mesh.client.next_request().expect("an introduction");
    let node = first.node.expect("a node");
    assert_eq!((node.id.as_str(), node.cluster.as_str()), ("instance", "shop/cart"));
    assert!(first.type_url.ends_with("ClusterLoadAssignment") && first.resource_names_subscribe.is_empty());
    assert!(!mesh.client.has_request() && mesh.client.next_request().is_none());
}

#[test]
fn a_destination_is_known_when_everything_behind_it_is() {
    let mut mesh = Mesh::new();
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080", "10.1.0.2:8080"]);
    let mut answer = mesh.want(ORDERS);
    for _listener_then_routes_and_cluster in 0..2 {
        assert!(mesh.exchange());
        assert!(matches!(mesh.lookup(ORDERS), Lookup::Unasked), "half a configuration is none");
        assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
    }
    mesh.settle();
    assert_eq!(answer.try_recv(), Ok(()));
    let listener = mesh.known(ORDERS);
    assert_eq!(listener.service.as_ref().map(ToString::to_string).as_deref(), Some("orders.shop:8080"));
    let expected = ("orders.shop:8080".into(), addresses(&["10.1.0.1:8080", "10.1.0.2:8080"]));
    assert_eq!(target(&listener, "/"), Some(expected));
    let opaque = listener.cluster().expect("both kinds of traffic");
    assert_eq!(
        opaque.endpoints().list[0].workload.as_ref().map(ToString::to_string).as_deref(),
        Some("shop/orders")
    );
    assert_eq!(opaque.endpoints().list[0].version.as_deref(), Some("v1"));
    let status = mesh.client.status();
    assert_eq!((status.acks, status.nacks, status.clusters.present), (4, 0, 1));
    assert_eq!(status.server.as_deref(), Some("plane"));
}

#[test]
fn a_stranger_is_absent_and_may_become_known() {
    let mut mesh = Mesh::new();
    let mut answer = mesh.want(ORDERS);
    mesh.settle();
    assert_eq!(answer.try_recv(), Ok(()));
    assert!(matches!(mesh.lookup(ORDERS), Lookup::Absent));
    assert_eq!(mesh.want(ORDERS).try_recv(), Ok(()), "answered at once from now on");
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.settle();
    mesh.known(ORDERS);
    mesh.plane.remove(ORDERS);
    mesh.settle();
    assert!(matches!(mesh.lookup(ORDERS), Lookup::Absent));
    mesh.settle();
    assert_eq!(mesh.plane.subscribed("RouteConfiguration"), 0, "what nothing leans on is not subscribed");
}

#[test]
fn endpoints_change_in_place() {
    let mut mesh = Mesh::new();
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.want(ORDERS);
    mesh.settle();
    let listener = mesh.known(ORDERS);
    let (published, generation) =
        (mesh.published, listener.cluster().expect("opaque").endpoints().generation);
    mesh.plane.set("orders.shop:8080", plane::endpoints("orders.shop:8080", &["10.1.0.9:8080"]));
    mesh.settle();
    assert_eq!(target(&listener, "/"), Some(("orders.shop:8080".into(), addresses(&["10.1.0.9:8080"]))));
    assert_eq!(mesh.published, published, "no listener changed");
    assert_ne!(listener.cluster().expect("opaque").endpoints().generation, generation);
}

#[test]
fn a_limit_on_concurrency_changes_in_place() {
    let mut mesh = Mesh::new();
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.want(ORDERS);
    mesh.settle();
    let kept = mesh.known(ORDERS);
    for limited in [true, false] {
        let filters = if limited { vec![plane::gradient()] } else { vec![] };
        mesh.plane.set(ORDERS, plane::listener_with(ORDERS, "orders.shop:8080", filters));
        mesh.settle();
        assert_eq!(kept.gradient().is_some(), limited, "who kept the listener sees it as well");
    }
}

#[test]
fn a_new_route_is_taken_when_its_cluster_is_there() {
    let mut mesh = Mesh::new();
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.want(ORDERS);
    mesh.settle();
    let listener = mesh.known(ORDERS);
    mesh.plane.set("orders.shop:8080", plane::routes("orders.shop:8080", &["canary", "orders.shop:8080"]));
    mesh.plane.set("canary", plane::cluster("canary"));
    mesh.exchange();
    for _ in 0..2 {
        assert_eq!(
            target(&listener, "/0").expect("a route").0,
            "orders.shop:8080",
            "the old table serves on"
        );
        mesh.exchange();
    }
    mesh.settle();
    // Its endpoints do not exist, and that is an answer.
    assert_eq!(target(&listener, "/0"), Some(("canary".into(), vec![])));
    mesh.plane.set("canary", plane::endpoints("canary", &["10.1.0.7:8080"]));
    mesh.settle();
    assert_eq!(target(&listener, "/0"), Some(("canary".into(), addresses(&["10.1.0.7:8080"]))));
}

#[test]
fn a_refused_resource_leaves_the_last_good_one_and_names_the_fault() {
    let mut mesh = Mesh::new();
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.want(ORDERS);
    mesh.settle();
    let bad = envoy_types::pb::envoy::config::cluster::v3::Cluster {
        name: "orders.shop:8080".into(),
        connect_timeout: Some(envoy_types::pb::google::protobuf::Duration { seconds: -1, nanos: 0 }),
        ..Default::default()
    };
    mesh.plane.set("orders.shop:8080", plane::any(&bad));
    mesh.settle();
    mesh.settle();
    assert_eq!(target(&mesh.known(ORDERS), "/").expect("a route").1, addresses(&["10.1.0.1:8080"]));
    let nack = "orders.shop:8080: connect_timeout: \"-1s 0ns\" is not a positive duration";
    assert_eq!(mesh.plane.nacks(), [nack]);
    let status = mesh.client.status();
    assert_eq!((status.nacks, status.last_nack.as_deref()), (1, Some(nack)));
}

#[test]
fn what_was_never_good_is_passed_through_until_it_is_mended() {
    let mut mesh = Mesh::new();
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.plane.set("orders.shop:8080", plane::routes("another name", &["orders.shop:8080"]));
    let mut bad = mesh.plane.clone();
    let mut answer = mesh.want(ORDERS);
    mesh.settle();
    assert_eq!(answer.try_recv(), Ok(()), "nobody waits for what will not come");
    assert!(matches!(mesh.lookup(ORDERS), Lookup::Absent));
    assert_eq!(bad.responses().len(), 0, "a clone of the server has no stream");
    // The resource was keyed by the name it was asked for by.
    mesh.plane.set("orders.shop:8080", plane::routes("orders.shop:8080", &["orders.shop:8080"]));
    mesh.settle();
    mesh.known(ORDERS);
}

#[test]
fn what_is_taken_away_under_a_listener_stays_until_the_listener_goes() {
    let mut mesh = Mesh::new();
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.want(ORDERS);
    mesh.settle();
    let listener = mesh.known(ORDERS);
    mesh.plane.remove_kind("RouteConfiguration", "orders.shop:8080");
    mesh.plane.remove_kind("ClusterLoadAssignment", "orders.shop:8080");
    mesh.settle();
    let expected = ("orders.shop:8080".into(), addresses(&["10.1.0.1:8080"]));
    assert_eq!(target(&listener, "/"), Some(expected));
    // A cluster's end is an end: its endpoints may belong to someone else by now.
    mesh.plane.remove_kind("v3.Cluster", "orders.shop:8080");
    mesh.settle();
    assert_eq!(target(&listener, "/"), Some(("orders.shop:8080".into(), vec![])));
    mesh.plane.remove(ORDERS);
    mesh.settle();
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.2:8080"]);
    mesh.settle();
    assert_eq!(target(&mesh.known(ORDERS), "/").expect("a route").1, addresses(&["10.1.0.2:8080"]));
}

#[test]
fn the_meshs_roots_are_asked_for_and_bad_ones_refused() {
    let mut mesh = Mesh::new();
    let [old, new] = ["old", "new"].map(|name| Authority::new(name).root_pem());
    mesh.plane.set(TRUST_BUNDLE, plane::roots(&old));
    mesh.settle();
    assert!(mesh.trusted.is_empty(), "nobody asked");
    mesh.client.want_trust_bundle();
    mesh.settle();
    assert_eq!(mesh.trusted.len(), 1);
    for bad in ["", "not PEM", &old[..100]] {
        mesh.plane.set(TRUST_BUNDLE, plane::roots(bad));
        mesh.settle();
    }
    assert_eq!(mesh.trusted.len(), 1, "what was there stays");
    assert_eq!(mesh.plane.nacks().len(), 3);
    assert!(
        mesh.plane.nacks()[0].starts_with("trust-bundle: validation_context.trusted_ca"),
        "{:?}",
        mesh.plane.nacks()
    );
    mesh.plane.set(TRUST_BUNDLE, plane::roots(&format!("{new}{old}")));
    mesh.settle();
    assert_eq!(mesh.trusted.last().map(Bundle::len), Some(2));
    // A stream that breaks, or a bundle that goes, takes no trust away.
    mesh.plane.remove(TRUST_BUNDLE);
    mesh.settle();
    mesh.disconnect();
    mesh.connect();
    mesh.settle();
    assert_eq!(
        (mesh.trusted.len(), mesh.plane.nacks().len()),
        (2, 0),
        "a new stream, and nothing to complain of"
    );
}

#[test]
fn one_bad_resource_does_not_hold_up_the_others() {
    let mut mesh = Mesh::new();
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.plane.set("outbound/10.0.0.2:80", plane::listener("outbound/10.0.0.3:80", "x"));
    mesh.want(ORDERS);
    mesh.want("outbound/10.0.0.2:80");
    mesh.settle();
    mesh.known(ORDERS);
    assert!(matches!(mesh.lookup("outbound/10.0.0.2:80"), Lookup::Absent));
    assert!(mesh.plane.nacks()[0].starts_with("outbound/10.0.0.2:80: name: "), "{:?}", mesh.plane.nacks());
}

#[test]
fn a_lost_control_plane_changes_nothing_and_a_restarted_one_sends_nothing() {
    let mut mesh = Mesh::new();
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.want(ORDERS);
    mesh.settle();
    let (before, acks) = (mesh.known(ORDERS), mesh.client.status().acks);
    mesh.disconnect();
    mesh.age += Duration::from_secs(3600);
    assert!(Arc::ptr_eq(&before, &mesh.known(ORDERS)));
    mesh.connect();
    mesh.settle();
    assert!(Arc::ptr_eq(&before, &mesh.known(ORDERS)));
    assert_eq!(mesh.client.status().acks, acks, "every version still matched");
    // What happened meanwhile is learnt.
    mesh.disconnect();
    mesh.plane.set("orders.shop:8080", plane::endpoints("orders.shop:8080", &["10.1.0.2:8080"]));
    mesh.connect();
    mesh.settle();
    assert_eq!(target(&before, "/").expect("a route").1, addresses(&["10.1.0.2:8080"]));
    mesh.disconnect();
    mesh.plane.remove(ORDERS);
    mesh.connect();
    mesh.settle();
    assert!(matches!(mesh.lookup(ORDERS), Lookup::Absent));
}

#[test]
fn during_a_long_outage_nobody_waits() {
    let mut mesh = Mesh::new();
    mesh.settle();
    mesh.disconnect();
    let mut answer = mesh.want(ORDERS);
    assert_eq!(answer.try_recv(), Err(TryRecvError::Empty), "it may be a restart");
    mesh.age += OUTAGE_PATIENCE;
    assert!(mesh.client.deadline() <= mesh.age);
    mesh.step(Input::Tick);
    assert_eq!(answer.try_recv(), Ok(()));
    assert_eq!(mesh.want("outbound/10.0.0.2:80").try_recv(), Ok(()));
    mesh.step(Input::Opening);
    mesh.disconnect();
    assert_eq!(mesh.want("outbound/10.0.0.3:80").try_recv(), Ok(()), "an attempt is not a stream");
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.connect();
    mesh.settle();
    mesh.known(ORDERS);
}

#[test]
fn idle_destinations_are_dropped_but_not_those_that_are_held() {
    let mut mesh = Mesh::new();
    let names = ["outbound/10.0.0.1:80", "outbound/10.0.0.2:80", "outbound/10.0.0.3:80"];
    for (position, name) in names.iter().enumerate() {
        let service = format!("s{position}.shop:80");
        mesh.plane.serve(name, &service, &["10.1.0.1:8080"]);
        mesh.want(name);
    }
    mesh.settle();
    let held = mesh.known(names[1]);
    mesh.age = IDLE + SWEEP;
    // The directory's own clock stands near zero: put the touch where this test's clock is.
    mesh.client.store.touch(&names[2].parse().expect("valid"), mesh.age.as_secs());
    mesh.step(Input::Tick);
    mesh.settle();
    assert!(matches!(mesh.lookup(names[0]), Lookup::Unasked));
    assert!(matches!(mesh.lookup(names[1]), Lookup::Known(_)), "a connection holds it");
    assert!(matches!(mesh.lookup(names[2]), Lookup::Known(_)), "it was used");
    assert_eq!((mesh.plane.subscribed("Listener"), mesh.client.status().expired), (2, 1));
    assert_eq!(mesh.plane.subscribed("v3.Cluster"), 2);
    drop(held);
}

#[test]
fn nothing_is_forgotten_that_cannot_be_asked_for_again() {
    let mut mesh = Mesh::with(1);
    mesh.plane.serve(ORDERS, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.want(ORDERS);
    mesh.settle();
    mesh.disconnect();
    mesh.age += IDLE + SWEEP + Duration::from_secs(1);
    mesh.step(Input::Tick);
    assert_eq!(mesh.want("outbound/10.0.0.2:80").try_recv(), Ok(()), "no place for it");
    mesh.known(ORDERS);
}

#[test]
fn beyond_the_bound_the_oldest_idle_place_is_taken_or_the_question_refused() {
    let mut mesh = Mesh::with(2);
    mesh.want("outbound/10.0.0.1:80");
    mesh.want("outbound/10.0.0.2:80");
    mesh.settle();
    assert_eq!(mesh.want("outbound/10.0.0.3:80").try_recv(), Ok(()), "refused at once");
    assert_eq!(mesh.client.status().refused, 1);
    mesh.age += IDLE_DISPLACED + Duration::from_secs(1);
    mesh.client.store.touch(&"outbound/10.0.0.1:80".parse().expect("valid"), mesh.age.as_secs());
    mesh.want("outbound/10.0.0.3:80");
    mesh.settle();
    assert!(matches!(mesh.lookup("outbound/10.0.0.1:80"), Lookup::Absent));
    assert!(matches!(mesh.lookup("outbound/10.0.0.2:80"), Lookup::Unasked));
    assert!(matches!(mesh.lookup("outbound/10.0.0.3:80"), Lookup::Absent));
}

#[test]
fn waiters_are_bounded_and_forgotten_when_they_give_up() {
    let mut mesh = Mesh::new();
    let mut waiters: Vec<_> = (0..WAITERS_MAX).map(|_| mesh.want(ORDERS)).collect();
    assert_eq!(mesh.want(ORDERS).try_recv(), Ok(()), "turned away at once");
    assert_eq!(mesh.client.status().refused, 1);
    waiters.pop();
    assert_eq!(mesh.want(ORDERS).try_recv(), Err(TryRecvError::Empty), "it waits");
    assert_eq!(mesh.client.status().refused, 1, "whoever gave up makes room");
}

#[test]
fn names_and_addresses_are_both_destinations() {
    let mut mesh = Mesh::new();
    let name = "outbound/orders.shop:8080";
    assert!(matches!(name.parse(), Ok(ListenerName::Outbound(Destination::Name { .. }))));
    mesh.plane.serve(name, "orders.shop:8080", &["10.1.0.1:8080"]);
    mesh.want(name);
    mesh.settle();
    mesh.known(name);
    let dump = mesh.directory.dump();
    assert_eq!(dump["listeners"][name]["routes"][0]["backends"]["orders.shop:8080"], 1);
    assert_eq!(dump["clusters"]["orders.shop:8080"]["endpoints"][0]["address"], "10.1.0.1:8080");
}

/// One thing that happens in the simulation.
#[derive(Debug, Clone)]
enum Event {
    Want(u8),
    Serve { destination: u8, service: u8, endpoint: u8 },
    Route { service: u8, other: u8 },
    Break { service: u8 },
    Remove(u8),
    Exchange,
    Restart,
    Age(u16),
}

fn event() -> impl Strategy<Value = Event> {
    let small = 0..4_u8;
    prop_oneof![
        small.clone().prop_map(Event::Want),
        (small.clone(), small.clone(), small.clone())
            .prop_map(|(destination, service, endpoint)| Event::Serve { destination, service, endpoint }),
        (small.clone(), small.clone()).prop_map(|(service, other)| Event::Route { service, other }),
        small.clone().prop_map(|service| Event::Break { service }),
        small.prop_map(Event::Remove),
        Just(Event::Exchange),
        Just(Event::Exchange),
        Just(Event::Restart),
        (0..700_u16).prop_map(Event::Age),
    ]
}

fn destination(number: u8) -> String {
    format!("outbound/10.0.0.{number}:80")
}

fn service(number: u8) -> String {
    format!("s{number}.shop:80")
}

impl Mesh {
    fn happen(&mut self, event: &Event) {
        match event {
            Event::Want(number) => drop(self.want(&destination(*number))),
            Event::Serve { destination: to, service: number, endpoint } => {
                self.plane.serve(&destination(*to), &service(*number), &[&format!("10.1.0.{endpoint}:80")]);
            }
            Event::Route { service: number, other } => {
                let (one, two) = (service(*number), service(*other));
                self.plane.set(&one, plane::routes(&one, &[&two, &one]));
            }
            Event::Break { service: number } => {
                self.plane.set(&service(*number), plane::routes("nonsense", &["x"]));
            }
            Event::Remove(number) => {
                self.plane.remove(&destination(*number));
                self.plane.remove(&service(*number));
            }
            Event::Exchange => drop(self.exchange()),
            Event::Restart => {
                self.disconnect();
                self.connect();
            }
            Event::Age(seconds) => {
                self.age += Duration::from_secs((*seconds).into());
                self.step(Input::Tick);
            }
        }
    }

    /// Whatever is visible can be used: every route leads to a cluster that was answered.
    fn check(&self) {
        for listener in self.directory.listeners() {
            assert!(listener.cluster().is_some(), "{listener:?}");
            for route in listener.routes().routes() {
                assert!(route.backends().iter().all(|backend| !backend.cluster.name.is_empty()));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happened, and in whatever order: when both sides have fallen silent, the sidecar that lived
    /// through it sees what a sidecar sees that was born just now.
    #[test]
    fn every_history_ends_where_a_newcomer_starts(events in proptest::collection::vec(event(), 1..60)) {
        let mut mesh = Mesh::new();
        for event in &events {
            mesh.happen(event);
            mesh.check();
        }
        // Mend what is broken: what a refusal or a removal in the wrong order leaves behind depends on history by
        // design.
        for number in 0..4 {
            let name = service(number);
            mesh.plane.set(&name, plane::routes(&name, &[&name]));
            mesh.plane.set(&name, plane::cluster(&name));
            mesh.plane.set(&name, plane::endpoints(&name, &["10.1.0.9:80"]));
        }
        mesh.settle();
        let mut newcomer = Mesh::new();
        newcomer.plane = mesh.plane.clone();
        newcomer.plane.reconnect();
        for number in 0..4 {
            mesh.want(&destination(number));
            newcomer.want(&destination(number));
        }
        mesh.settle();
        newcomer.settle();
        for number in 0..4 {
            let name = destination(number);
            let see = |mesh: &Mesh| mesh.lookup(&name).known().map(|known| (target(&known, "/"), known.service.clone()));
            prop_assert_eq!(see(&mesh), see(&newcomer), "{}", name);
        }
        for kind in ["Listener", "RouteConfiguration", "v3.Cluster", "ClusterLoadAssignment"] {
            prop_assert_eq!(mesh.plane.subscribed(kind), newcomer.plane.subscribed(kind), "{}", kind);
        }
        let (old, new) = (mesh.client.status(), newcomer.client.status());
        prop_assert_eq!((old.listeners, old.routes, old.clusters), (new.listeners, new.routes, new.clusters));
    }
}
