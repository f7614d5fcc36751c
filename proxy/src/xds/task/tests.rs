//! The client against a real gRPC server on loopback.

use std::net::SocketAddr;
use std::sync::Mutex;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tokio::sync::{Notify, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use weft_wire::node::Registration;
use weft_wire::tls::TRUST_BUNDLE;

use super::super::plane::{self, Plane};
use super::super::{Lookup, Options, spawn};
use super::*;
use crate::identity::testing;

const ORDERS: &str = "outbound/10.0.0.1:80";
/// Far beyond what anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the server knows and has seen; survives its restarts.
#[derive(Debug, Default)]
struct World {
    plane: Mutex<Plane>,
    changed: Notify,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    registrations: Vec<usize>,
    /// How each stream ended: in order or not.
    ends: Vec<bool>,
}

impl World {
    fn change(&self, change: impl FnOnce(&mut Plane)) {
        change(&mut self.plane.lock().expect("not poisoned"));
        self.changed.notify_one();
    }
}

struct Service(Arc<World>);

type Responses = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = Responses;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only delta"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let (sender, responses) = mpsc::channel(16);
        tokio::spawn(serve_stream(Arc::clone(&self.0), request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

async fn serve_stream(
    world: Arc<World>,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    sender: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
) {
    world.change(Plane::reconnect);
    loop {
        let responses = tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => {
                    if let Some(node) = &request.node {
                        let metadata = NodeMetadata::from_struct(node.metadata.as_ref().expect("metadata"));
                        let registrations = metadata.expect("ours").registrations.len();
                        world.seen.lock().expect("not poisoned").registrations.push(registrations);
                    }
                    let mut plane = world.plane.lock().expect("not poisoned");
                    plane.request(request);
                    plane.responses()
                }
                end => {
                    world.seen.lock().expect("not poisoned").ends.push(end.is_ok());
                    return;
                }
            },
            () = world.changed.notified() => world.plane.lock().expect("not poisoned").responses(),
        };
        for response in responses {
            if sender.send(Ok(response)).await.is_err() {
                return;
            }
        }
    }
}

/// A server process, as it were: dropping it cuts every connection.
struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(world: &Arc<World>, address: SocketAddr) -> (Self, SocketAddr) {
        let (ready, bound) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let service = AggregatedDiscoveryServiceServer::new(Service(Arc::clone(world)));
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind(address).await.expect("a free port");
                ready.send(listener.local_addr().expect("bound")).expect("awaited");
                let incoming = TcpListenerStream::new(listener);
                tokio::select! {
                    served = tonic::transport::Server::builder().serve_with_incoming(service, incoming) => {
                        served.expect("serves");
                    }
                    _ = stopped => {}
                }
            });
        });
        let address = bound.recv().expect("bound");
        (Self { stop: Some(stop), thread: Some(thread) }, address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("served without a panic");
        }
    }
}

fn node(registrations: usize) -> NodeMetadata {
    let one = |port| Registration {
        service: "cart.shop:80".parse().expect("valid"),
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        protocol: None,
    };
    NodeMetadata {
        workload: "shop/cart".parse().expect("valid"),
        version: None,
        pod: None,
        zone: None,
        addresses: vec![],
        registrations: (1..=registrations).map(|port| one(u16::try_from(port).expect("few"))).collect(),
    }
}

fn options(address: SocketAddr) -> Options {
    let control_plane = format!("http://{address}").parse().expect("a URI");
    Options {
        control_plane,
        instance: "i".into(),
        node: node(0),
        listeners_max: 10,
        identity: None,
        runtime: None,
    }
}

/// Waits for a condition.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let check = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, check).await.is_ok(), "in vain: {what}");
}

async fn discover(directory: &Directory, name: &str) -> Lookup {
    directory.discover(name.parse().expect("a name"), DEADLINE).await
}

#[tokio::test]
async fn what_is_known_survives_the_control_plane() {
    let world = Arc::new(World::default());
    world.change(|plane| plane.serve(ORDERS, "orders.shop:80", &["10.1.0.1:80"]));
    let (server, address) = Server::start(&world, SocketAddr::from(([127, 0, 0, 1], 0)));
    let (directory, task) = spawn(options(address));
    tokio::spawn(task.run(pending()));
    let listener = discover(&directory, ORDERS).await.known().expect("served");
    assert!(matches!(discover(&directory, "outbound/10.0.0.9:80").await, Lookup::Absent));
    assert!(directory.status().connected());

    drop(server);
    until("the loss is noticed", || !directory.status().connected()).await;
    assert!(discover(&directory, ORDERS).await.known().is_some());
    world.change(|plane| plane.set("orders.shop:80", plane::endpoints("orders.shop:80", &["10.1.0.2:80"])));
    let (_server, _) = Server::start(&world, address);
    let first = || listener.cluster().expect("opaque").endpoints().list[0].address;
    until("the change arrives after the restart", || first().to_string() == "10.1.0.2:80").await;
    let status = directory.status();
    assert_eq!((status.streams, status.nacks, status.failures), (2, 0, 0), "{status:?}");
}

#[tokio::test]
async fn stopping_ends_the_stream_in_order() {
    let world = Arc::new(World::default());
    let (_server, address) = Server::start(&world, SocketAddr::from(([127, 0, 0, 1], 0)));
    let (directory, task) = spawn(options(address));
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(task.run(async { drop(stopped.await) }));
    until("a stream is up", || directory.status().connected()).await;
    drop(stop);
    assert!(tokio::time::timeout(DEADLINE, running).await.is_ok());
    until("the server sees the end", || world.seen.lock().expect("not poisoned").ends == [true]).await;
    assert!(matches!(discover(&directory, ORDERS).await, Lookup::Unasked), "nobody is left to ask");
}

#[tokio::test]
async fn a_changed_node_introduces_itself_anew() {
    let world = Arc::new(World::default());
    let (_server, address) = Server::start(&world, SocketAddr::from(([127, 0, 0, 1], 0)));
    let (directory, task) = spawn(options(address));
    let (change, following) = watch::channel(node(0));
    tokio::spawn(task.follow(following).run(pending()));
    until("a stream is up", || directory.status().connected()).await;
    change.send(node(2)).expect("followed");
    until("the registrations arrive", || world.seen.lock().expect("not poisoned").registrations == [0, 2])
        .await;
    assert_eq!(world.seen.lock().expect("not poisoned").ends, [true], "the old stream ended in order");
}

#[tokio::test]
async fn a_renewed_certificate_opens_another_stream_before_the_last_ends() {
    let authority = testing::Authority::new("mesh");
    let identity = testing::nobody();
    let world = Arc::new(World::default());
    world.change(|plane| plane.set(TRUST_BUNDLE, plane::roots(&authority.root_pem())));
    let (_server, address) = Server::start(&world, SocketAddr::from(([127, 0, 0, 1], 0)));
    let (directory, task) =
        spawn(Options { identity: Some(Arc::clone(&identity)), node: node(1), ..options(address) });
    tokio::spawn(task.run(pending()));
    let patience = Duration::from_millis(20);
    assert!(matches!(directory.discover(ORDERS.parse().expect("a name"), patience).await, Lookup::Unasked));
    assert_eq!(directory.status().streams, 0, "nobody to open it as");

    testing::renew(&identity, &authority, "spiffe://cluster.local/ns/shop/sa/cart");
    until("a stream is up", || directory.status().connected()).await;
    until("the bundle is taken", || identity.trusts_the_mesh()).await;
    testing::renew(&identity, &authority, "spiffe://cluster.local/ns/shop/sa/cart");
    let seen = || world.seen.lock().expect("not poisoned");
    until("another stream", || seen().registrations == [1, 1]).await;
    assert!(seen().ends.is_empty(), "the last is still there");
    until("the last has ended", || seen().ends.len() == 1).await;
    let status = directory.status();
    assert_eq!((status.streams, status.failures), (2, 0), "{status:?}");
}

#[tokio::test]
async fn without_a_control_plane_patience_is_all_that_is_lost() {
    // A port that nobody listens at: taken and given back.
    let address = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let (directory, task) = spawn(options(address));
    tokio::spawn(task.run(pending()));
    let patience = Duration::from_millis(20);
    let answer = directory.discover(ORDERS.parse().expect("a name"), patience).await;
    assert!(matches!(answer, Lookup::Unasked));
    until("failures are counted", || directory.status().failures > 1).await;
    let error = directory.status().last_error.clone().expect("a cause");
    assert!(error.contains("refused"), "{error}");
}
