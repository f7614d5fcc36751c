//! Many sidecars, as the configuration server sees them: streams that ask for endpoints by name and acknowledge.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_wire::node::{NodeMetadata, USER_AGENT};

const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const PATIENCE: Duration = Duration::from_secs(120);

/// One of them.
pub(crate) struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: tonic::Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    /// Opens a stream and has the endpoints of these service ports.
    pub(crate) async fn open(to: SocketAddr, number: usize, names: Vec<String>) -> anyhow::Result<Self> {
        let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{to}")).await?;
        let (requests, receiver) = mpsc::channel(4);
        let metadata = NodeMetadata {
            workload: format!("sidecars/caller-{number}").parse()?,
            version: None,
            pod: None,
            zone: None,
            addresses: vec![SocketAddr::from(([172, 16, (number >> 8) as u8, number as u8], 0)).ip()],
            registrations: Vec::new(),
        };
        let node = Node {
            id: format!("caller-{number}"),
            cluster: "sidecars".into(),
            metadata: Some(metadata.to_struct()),
            user_agent_name: USER_AGENT.into(),
            ..Default::default()
        };
        let count = names.len();
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: EDS.into(),
            resource_names_subscribe: names,
            ..Default::default()
        };
        requests.send(first).await?;
        let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
        let mut stream = Self { requests, responses };
        let mut known = 0;
        while known < count {
            known += stream.next().await?;
        }
        Ok(stream)
    }

    /// The next response, acknowledged: the number of resources in it.
    pub(crate) async fn next(&mut self) -> anyhow::Result<usize> {
        let response =
            tokio::time::timeout(PATIENCE, self.responses.message()).await??.context("the stream ended")?;
        let acknowledgement = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..Default::default()
        };
        self.requests.send(acknowledgement).await?;
        Ok(response.resources.len())
    }
}
