//! An incremental xDS client for tests: acknowledges what it reads, and waits with a deadline.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use envoy_types::pb::google::rpc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weft_wire::node::{NodeMetadata, Registration, USER_AGENT};

pub(crate) const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

const FAR: Duration = Duration::from_secs(15);

/// Who the client says it is.
pub(crate) struct NodeOptions {
    pub(crate) id: &'static str,
    pub(crate) metadata: bool,
    pub(crate) register: Option<&'static str>,
}

impl NodeOptions {
    pub(crate) fn new(id: &'static str) -> Self {
        Self { id, metadata: true, register: None }
    }

    fn node(&self) -> Node {
        let registrations = self.register.iter().map(|service| Registration {
            service: service.parse().unwrap(),
            address: "127.0.0.1:15006".parse().unwrap(),
            protocol: None,
        });
        let metadata = NodeMetadata {
            workload: "shop/web".parse().unwrap(),
            version: None,
            pod: None,
            zone: None,
            addresses: vec!["127.0.0.1".parse().unwrap()],
            registrations: registrations.collect(),
        };
        let metadata = if self.metadata { metadata.to_struct() } else { Default::default() };
        Node {
            id: self.id.into(),
            cluster: "shop/web".into(),
            metadata: Some(metadata),
            user_agent_name: USER_AGENT.into(),
            ..Default::default()
        }
    }
}

pub(crate) struct Client {
    requests: Option<mpsc::Sender<DeltaDiscoveryRequest>>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, options: NodeOptions) -> Self {
        let mut client =
            AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap();
        let (requests, receiver) = mpsc::channel(16);
        let responses =
            client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests: Some(requests), responses, node: Some(options.node()) }
    }

    pub(crate) async fn subscribe(&mut self, type_url: &str, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.send(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: names,
            ..Default::default()
        })
        .await;
    }

    /// Subscribes to what an earlier stream has brought.
    pub(crate) async fn resume(&mut self, type_url: &str, has: &[(&str, &str)]) {
        self.send(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: has.iter().map(|(name, _)| (*name).to_owned()).collect(),
            initial_resource_versions: has.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            ..Default::default()
        })
        .await;
    }

    /// The next response, acknowledged.
    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = self.next_unanswered().await;
        self.answer(&response, None).await;
        response
    }

    pub(crate) async fn next_unanswered(&mut self) -> DeltaDiscoveryResponse {
        let next = tokio::time::timeout(FAR, self.responses.message()).await;
        next.expect("a response in time").expect("no error").expect("not the end")
    }

    pub(crate) async fn reject(&mut self, response: &DeltaDiscoveryResponse, reason: &str) {
        self.answer(response, Some(rpc::Status { code: 3, message: reason.into(), ..Default::default() }))
            .await;
    }

    /// Waits until the server ends the stream, and says why.
    pub(crate) async fn ended(&mut self) -> Status {
        loop {
            match tokio::time::timeout(FAR, self.responses.message()).await.expect("an end in time") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a reason"),
                Err(status) => return status,
            }
        }
    }

    /// Closes the stream in good order.
    pub(crate) fn leave(&mut self) {
        self.requests = None;
    }

    async fn answer(&mut self, response: &DeltaDiscoveryResponse, error_detail: Option<rpc::Status>) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        })
        .await;
    }

    async fn send(&mut self, request: DeltaDiscoveryRequest) {
        let request = DeltaDiscoveryRequest { node: self.node.take(), ..request };
        self.requests.as_ref().expect("not left").send(request).await.expect("the stream is open");
    }
}

pub(crate) async fn state_of_the_world(address: SocketAddr) -> Status {
    let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap();
    let requests = tokio_stream::iter([DiscoveryRequest::default()]);
    client.stream_aggregated_resources(requests).await.expect_err("refused")
}

/// A cable: what goes in at the address comes out at `target`, until the task is aborted.
pub(crate) async fn relay(target: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut inside, _) = listener.accept().await.unwrap();
        let mut outside = TcpStream::connect(target).await.unwrap();
        drop(tokio::io::copy_bidirectional(&mut inside, &mut outside).await);
    });
    (address, task)
}

/// A GET over a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// Waits for something to be there.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(FAR, waiting).await.expect("in time")
}
