//! The gRPC service: one task per stream around a [`Session`].
//!
//! In: streams from sidecars. Out: their responses, and the sidecars' comings and goings as world events.
//!
//! Invariants: a task holds at most one compiled response at a time, and compiles it only when there is room
//! to send it, so a client that does not read costs its subscriptions and nothing more. A stream that ends
//! without a word is *lost* (its registrations have a grace), one that is closed has *left*.
//! Surprise: the first request of any type introduces the client, even if it asks for nothing: a program that
//! only wants to be called needs no subscription.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status as GrpcStatus, Streaming};
use tracing::{debug, info, warn};
use weft_wire::WorkloadId;
use weft_wire::node::{NodeMetadata, USER_AGENT};

use super::session::{Session, Source, Violation};
use super::{Kind, Metrics, ProxyStatus, Status, WARM_UP};
use crate::admit::Admission;
use crate::compile::{self, Resource};
use crate::lead::Lead;
use crate::serve::{Peer, Verified};
use crate::world::{Event, Key, Live, StreamId, World};

/// Concurrent streams: ten sidecars per service of a large mesh. Beyond it new ones are refused, and retry.
const STREAMS_MAX: usize = 50_000;
/// Responses between the task and the socket. One is enough to keep the socket busy.
const RESPONSES_QUEUED: usize = 1;
/// A client that has not introduced itself by then is not one.
const INTRODUCTION_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client that does not read is waited for to tell it why its stream ends.
const GOODBYE: Duration = Duration::from_secs(1);
/// Longest instance id, version and pod name.
const INSTANCE_MAX: usize = 200;
/// How much of what is wrong with a node is told: it quotes the client, and travels in a header.
const COMPLAINT_MAX: usize = 300;
/// Largest request. A reconnecting stream names all it has: 10,000 names with versions are about 1 MiB.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Registrations and addresses one sidecar may claim: a program has a handful of each.
const CLAIMS_MAX: usize = 64;

/// The configuration server. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    live: Live,
    status: Status,
    admission: Admission,
    metrics: Metrics,
    lead: Lead,
    streams: Arc<Semaphore>,
    next_stream: AtomicU64,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// A server for this world. Its streams end when another control plane leads, or when `shutdown` is cancelled; `tasks` tells
    /// when they have.
    #[must_use]
    pub fn new(
        live: Live,
        status: Status,
        admission: Admission,
        metrics: Metrics,
        lead: Lead,
        shutdown: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        let next_stream = AtomicU64::new(1);
        Self {
            shared: Arc::new(Shared {
                live,
                status,
                admission,
                metrics,
                lead,
                streams,
                next_stream,
                shutdown,
                tasks,
            }),
        }
    }

    /// The gRPC service to mount.
    #[must_use]
    pub fn service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, GrpcStatus>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, GrpcStatus>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, GrpcStatus> {
        Err(GrpcStatus::unimplemented(
            "only the incremental protocol is served: use DeltaAggregatedResources (in Envoy's bootstrap: \
             ads_config.api_type: DELTA_GRPC)",
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, GrpcStatus> {
        let peer = request.extensions().get::<Peer>();
        let verified = peer.map(|peer| peer.identity(SystemTime::now())).transpose().map_err(|nobody| {
            self.shared.metrics.anonymous.inc();
            GrpcStatus::from(nobody)
        })?;
        let verified = verified.flatten().map(Arc::clone);
        let Ok(permit) = Arc::clone(&self.shared.streams).try_acquire_owned() else {
            self.shared.metrics.refused.inc();
            warn!(limit = STREAMS_MAX, "configuration stream refused: too many");
            return Err(GrpcStatus::resource_exhausted("too many configuration streams"));
        };
        let (responses, receiver) = mpsc::channel(RESPONSES_QUEUED);
        let shared = Arc::clone(&self.shared);
        let requests = request.into_inner();
        self.shared.tasks.spawn(async move {
            let _permit = permit;
            if let Err(status) = serve(&shared, requests, &responses, verified).await {
                debug!(code = ?status.code(), message = status.message(), "configuration stream ended");
                if matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted) {
                    shared.metrics.violations.inc();
                }
                // If nobody reads any more, nobody needs to know.
                let _unheard = tokio::time::timeout(GOODBYE, responses.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, GrpcStatus>>;

async fn serve(
    shared: &Shared,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    responses: &Responses,
    verified: Option<Arc<Verified>>,
) -> Result<(), GrpcStatus> {
    let first = tokio::select! {
        () = shared.shutdown.cancelled() => return Err(shutting_down()),
        other = shared.lead.lost() => return Err(other.into()),
        first = tokio::time::timeout(INTRODUCTION_DEADLINE, requests.message()) => first,
    };
    let first = first.map_err(|_| GrpcStatus::deadline_exceeded("no first request"))?;
    let Some(first) = first? else { return Ok(()) };
    let mut client = Client::of(first.node.as_ref())?;
    client.admit(shared, verified)?;

    // Subscribed before anything is compiled: what changes in between is heard of.
    let changes = shared.live.changes();
    let mut presence = Presence::enter(shared, &client);
    let mut stream = Stream {
        shared,
        session: Session::new(!client.is_sidecar),
        namespace: client.namespace().into(),
        changes,
        warm_at: shared.lead.since() + WARM_UP,
        warm: false,
    };
    stream.request(first)?;
    let expires = client.verified.as_ref().map(|verified| verified.expires);
    let ended = tokio::select! {
        ended = stream.run(requests, responses, presence.stream) => ended,
        () = expired(expires) => Err(crate::serve::Nobody::Expired.into()),
    };
    presence.clean = matches!(ended, Ok(()));
    ended
}

/// One stream after its introduction.
struct Stream<'a> {
    shared: &'a Shared,
    session: Session,
    namespace: Box<str>,
    changes: broadcast::Receiver<Arc<crate::world::Touched>>,
    /// When everybody whom whoever served before knew is here too.
    warm_at: tokio::time::Instant,
    warm: bool,
}

impl Stream<'_> {
    async fn run(
        &mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        responses: &Responses,
        id: StreamId,
    ) -> Result<(), GrpcStatus> {
        let mut due = true;
        loop {
            tokio::select! {
                () = self.shared.shutdown.cancelled() => return Err(shutting_down()),
                other = self.shared.lead.lost() => return Err(other.into()),
                request = requests.message() => match request? {
                    None => return Ok(()),
                    Some(request) => {
                        self.request(request)?;
                        self.shared.status.update(id, self.session.status(), SystemTime::now());
                        due = true;
                    }
                },
                change = self.changes.recv() => {
                    match change {
                        Ok(touched) => self.session.touched(&touched),
                        Err(broadcast::error::RecvError::Lagged(missed)) => {
                            self.shared.metrics.lagged.inc();
                            debug!(missed, "configuration stream fell behind; checking all it has");
                            self.session.all_touched();
                        }
                        // The world outlives its streams.
                        Err(broadcast::error::RecvError::Closed) => return Err(shutting_down()),
                    }
                    due = true;
                },
                () = tokio::time::sleep_until(self.warm_at), if !self.warm => {
                    self.warm = true;
                    self.session.warmed_up();
                    due = true;
                },
                room = responses.reserve(), if due && self.session.is_due() => {
                    // Nobody reads any more.
                    let Ok(room) = room else { return Err(GrpcStatus::cancelled("the client is gone")) };
                    match self.next() {
                        Some(response) => {
                            if let Some(kind) = Kind::from_type_url(&response.type_url) {
                                let resources = response.resources.len() + response.removed_resources.len();
                                self.shared.metrics.sent(kind, resources);
                            }
                            room.send(Ok(response));
                            self.shared.status.update(id, self.session.status(), SystemTime::now());
                        }
                        None => {
                            // What is left waits for an acknowledgement: any event wakes it. What the client has
                            // brought may have turned out to be current.
                            due = false;
                            self.shared.status.update(id, self.session.status(), SystemTime::now());
                        }
                    }
                },
            }
        }
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), GrpcStatus> {
        if let (Some(error), Some(kind)) = (&request.error_detail, Kind::from_type_url(&request.type_url)) {
            self.shared.metrics.rejected(kind);
            warn!(%kind, message = error.message, "a proxy rejected its configuration");
        }
        let world = self.shared.live.read();
        let source = Seen { world: &world, namespace: &self.namespace, warming_up: !self.warm };
        self.session.request(request, &source).map_err(|violation| match violation {
            Violation::UnknownType(_) | Violation::NameTooLong { .. } => {
                GrpcStatus::invalid_argument(violation.to_string())
            }
            Violation::TooMany { .. } => GrpcStatus::resource_exhausted(violation.to_string()),
        })
    }

    fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        let world = self.shared.live.read();
        let source = Seen { world: &world, namespace: &self.namespace, warming_up: !self.warm };
        self.session.next(&source)
    }
}

/// The world through one client's eyes.
struct Seen<'a> {
    world: &'a World,
    namespace: &'a str,
    warming_up: bool,
}

impl Source for Seen<'_> {
    fn depends_on(&self, kind: Kind, name: &str) -> Option<Key> {
        compile::depends_on(kind, name, self.namespace)
    }

    fn resource(&self, kind: Kind, name: &str) -> Option<Resource> {
        compile::resource(self.world, kind, name, self.namespace)
    }

    fn every_name(&self, kind: Kind) -> Vec<String> {
        compile::every_name(self.world, kind)
    }

    fn warming_up(&self) -> bool {
        self.warming_up
    }
}

/// The client's presence in the world and in the status list, for exactly as long as its stream.
struct Presence<'a> {
    shared: &'a Shared,
    stream: StreamId,
    /// Set for our own sidecars; others neither register nor report.
    sidecar: Option<Arc<str>>,
    clean: bool,
}

impl<'a> Presence<'a> {
    fn enter(shared: &'a Shared, client: &Client) -> Self {
        let stream = StreamId(shared.next_stream.fetch_add(1, Ordering::Relaxed));
        shared.status.set(stream, client.status());
        shared.metrics.streams.inc();
        let mut sidecar = None;
        if let Some(metadata) = &client.metadata {
            let identity = client.verified.as_ref().map(|verified| Arc::new(verified.id.clone()));
            let (instance, metadata) = (Arc::clone(&client.instance), Arc::clone(metadata));
            sidecar = Some(Arc::clone(&instance));
            shared.live.apply([Event::ProxyConnected { instance, stream, metadata, identity }], now());
        }
        info!(instance = &*client.instance, agent = client.agent, "proxy connected");
        Self { shared, stream, sidecar, clean: false }
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        let stream = self.stream;
        self.shared.status.remove(stream);
        self.shared.metrics.streams.dec();
        // At shutdown nobody leaves: the streams end because we go, and so does the world.
        if let (Some(instance), false) = (self.sidecar.take(), self.shared.shutdown.is_cancelled()) {
            info!(instance = &*instance, clean = self.clean, "proxy disconnected");
            let event = match self.clean {
                true => Event::ProxyLeft { instance, stream },
                false => Event::ProxyLost { instance, stream },
            };
            self.shared.live.apply([event], now());
        }
    }
}

/// Who opened the stream.
struct Client {
    instance: Arc<str>,
    workload: Option<WorkloadId>,
    metadata: Option<Arc<NodeMetadata>>,
    agent: String,
    agent_version: Option<String>,
    is_sidecar: bool,
    /// Who it proved to be.
    verified: Option<Arc<Verified>>,
}

impl Client {
    fn of(node: Option<&Node>) -> Result<Self, GrpcStatus> {
        let node = node.ok_or_else(|| GrpcStatus::invalid_argument("the first request must carry a node"))?;
        if node.id.is_empty() || node.id.len() > INSTANCE_MAX {
            return Err(GrpcStatus::invalid_argument(format!("node.id must have 1 to {INSTANCE_MAX} bytes")));
        }
        let is_sidecar = node.user_agent_name == USER_AGENT;
        let metadata = match &node.metadata {
            Some(metadata) if is_sidecar => Some(NodeMetadata::from_struct(metadata).map_err(bad_node)?),
            None if is_sidecar => return Err(GrpcStatus::invalid_argument("node.metadata is missing")),
            // A foreign client may have metadata of its own, which is none of our business.
            metadata => metadata.as_ref().and_then(|metadata| NodeMetadata::from_struct(metadata).ok()),
        };
        let metadata = metadata.map(canonical).map(|metadata| metadata.located(node.locality.as_ref()));
        if let Some(metadata) = &metadata
            && (metadata.registrations.len() > CLAIMS_MAX || metadata.addresses.len() > CLAIMS_MAX)
        {
            let message = format!("node.metadata claims more than {CLAIMS_MAX} addresses or registrations");
            return Err(GrpcStatus::invalid_argument(message));
        }
        let texts =
            metadata.as_ref().map(|of| [of.version.as_deref(), of.pod.as_deref(), of.zone.as_deref()]);
        if texts.into_iter().flatten().flatten().any(|text| text.len() > INSTANCE_MAX) {
            let message = format!("version, pod and zone of a node must have at most {INSTANCE_MAX} bytes");
            return Err(GrpcStatus::invalid_argument(message));
        }
        let workload = metadata.as_ref().map(|metadata| metadata.workload.clone());
        Ok(Self {
            instance: node.id.as_str().into(),
            workload: workload.or_else(|| node.cluster.parse().ok()),
            metadata: metadata.map(Arc::new),
            agent: node.user_agent_name.chars().take(INSTANCE_MAX).collect(),
            agent_version: agent_version(node),
            is_sidecar,
            verified: None,
        })
    }

    /// Notes who the client proved to be, if what it says of itself fits.
    fn admit(&mut self, shared: &Shared, verified: Option<Arc<Verified>>) -> Result<(), GrpcStatus> {
        let Some(verified) = verified else { return Ok(()) };
        let admitted = match (&self.metadata, &self.workload) {
            (Some(metadata), _) => {
                let world = shared.live.read();
                shared.admission.sidecar(&verified.id, &self.instance, metadata, &world)
            }
            (None, Some(workload)) => shared.admission.foreign(&verified.id, workload),
            (None, None) => Ok(()),
        };
        admitted.map_err(|mismatch| GrpcStatus::permission_denied(mismatch.to_string()))?;
        self.verified = Some(verified);
        Ok(())
    }

    /// Through whose eyes it sees the mesh.
    fn namespace(&self) -> &str {
        let proved = self.verified.as_ref().map(|verified| verified.id.namespace());
        let said = self.workload.as_ref().map(WorkloadId::namespace);
        said.or(proved).unwrap_or("default")
    }

    fn status(&self) -> ProxyStatus {
        let metadata = self.metadata.as_deref();
        ProxyStatus {
            instance: Arc::clone(&self.instance),
            workload: self.workload.clone(),
            version: metadata.and_then(|metadata| metadata.version.clone()),
            pod: metadata.and_then(|metadata| metadata.pod.clone()),
            addresses: metadata.map(|metadata| metadata.addresses.clone()).unwrap_or_default(),
            agent: self.agent.clone(),
            agent_version: self.agent_version.clone(),
            verified: self.verified.clone(),
            connected_since: SystemTime::now(),
            waiting_since: None,
            answered_at: None,
            kinds: Default::default(),
        }
    }
}

/// The version that a program says it is; Envoy says it in numbers.
fn agent_version(node: &Node) -> Option<String> {
    let text = match node.user_agent_version_type.as_ref()? {
        UserAgentVersionType::UserAgentVersion(text) => text.clone(),
        UserAgentVersionType::UserAgentBuildVersion(build) => {
            let number = build.version.as_ref()?;
            format!("{}.{}.{}", number.major_number, number.minor_number, number.patch)
        }
    };
    Some(text.chars().filter(|letter| !letter.is_control()).take(INSTANCE_MAX).collect())
}

/// Addresses as the rest of the world writes them: never IPv4 inside IPv6.
fn canonical(mut metadata: NodeMetadata) -> NodeMetadata {
    for address in &mut metadata.addresses {
        *address = IpAddr::to_canonical(address);
    }
    for registration in &mut metadata.registrations {
        registration.address.set_ip(registration.address.ip().to_canonical());
    }
    metadata
}

fn bad_node(error: weft_wire::node::InvalidNode) -> GrpcStatus {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    GrpcStatus::invalid_argument(text.chars().take(COMPLAINT_MAX).collect::<String>())
}

/// Waits until a certificate is over; for ever without one.
async fn expired(expires: Option<SystemTime>) {
    let Some(expires) = expires else { return std::future::pending().await };
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left).await;
}

fn shutting_down() -> GrpcStatus {
    GrpcStatus::unavailable("the control plane is shutting down")
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
