//! What the data path sees of the configuration: listeners, clusters, endpoints.
//!
//! In: values that [`super::parse`] made from xDS resources, or that a test or bench made by hand with the
//! public constructors. Out: cheap, shared, immutable objects whose *moving parts* are behind `arc-swap`, so
//! a connection that has held a [`Listener`] for an hour still sees today's routes and endpoints.
//!
//! Invariant: nothing here is changed by a reader, and a reader never waits.
//! Surprise: a [`Cluster`]'s endpoints outlive it. When only `connect_timeout` changes, a new `Cluster` is made
//! around the same endpoint slot, so state that a worker keeps per cluster *name* stays valid.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard as Loaded};
use weft_wire::tls::Mode;
use weft_wire::xds::{ListenerName, Protocol};
use weft_wire::{ServicePort, SpiffeId, WorkloadId};

use crate::balance::breaker;
use crate::balance::policy::Policy;
use crate::balance::spread::OVERPROVISIONING_DEFAULT;
use crate::policy::authorize::Access;
use crate::route::matcher::RouteTable;
use crate::route::policies::Gradient;
use weft_wire::spelling::Spelling;

/// One address that serves a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect to.
    pub address: SocketAddr,
    /// Who runs there, when the control plane knows.
    pub workload: Option<WorkloadId>,
    /// The workload's version.
    pub version: Option<Arc<str>>,
    /// The pod's name.
    pub pod: Option<Arc<str>>,
    /// Share of the load relative to its siblings; at least 1.
    pub weight: u32,
    /// What the control plane says of its health.
    pub health: Health,
    /// 0 serves first; others when too few of those before are available.
    pub priority: u32,
    /// Its zone, when the control plane knows.
    pub zone: Option<Arc<str>>,
    /// What it is hashed by instead of its address.
    pub hash_key: Option<Arc<str>>,
    /// Whom its sidecar's certificate must name, where it speaks mutual TLS.
    pub identity: Option<Arc<SpiffeId>>,
}

/// What the control plane says of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Ready, but used only when healthy ones do not suffice.
    Degraded,
    /// Not ready, or going. A proxy sends there only in panic.
    Unhealthy,
}

impl Health {
    /// The word in the admin's dump.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl Endpoint {
    /// A healthy, anonymous endpoint of weight 1.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            workload: None,
            version: None,
            pod: None,
            weight: 1,
            health: Health::Healthy,
            priority: 0,
            zone: None,
            hash_key: None,
            identity: None,
        }
    }

    /// The same endpoint, named.
    #[must_use]
    pub fn of(self, workload: WorkloadId, version: Option<&str>) -> Self {
        Self { workload: Some(workload), version: version.map(Arc::from), ..self }
    }
}

/// A cluster's endpoints as the control plane assigns them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// In the control plane's order.
    pub list: Vec<Endpoint>,
    /// How much of a priority may be unavailable before the next one helps: 140 % forgives two in seven.
    pub overprovisioning: u32,
}

impl From<Vec<Endpoint>> for Assignment {
    fn from(list: Vec<Endpoint>) -> Self {
        Self { list, overprovisioning: OVERPROVISIONING_DEFAULT }
    }
}

/// All endpoints of a cluster at one moment.
#[derive(Debug)]
pub struct Endpoints {
    /// Unique in the process and growing: a worker rebuilds its own state iff this number is not the one it
    /// built from.
    pub generation: u64,
    /// In the control plane's order, addresses unique.
    pub list: Box<[Endpoint]>,
    /// As in [`Assignment`].
    pub overprovisioning: u32,
}

impl Endpoints {
    /// Endpoints with a generation of their own. A second endpoint at the same address is dropped.
    #[must_use]
    pub fn new(list: Vec<Endpoint>) -> Self {
        Self::assigned(list.into())
    }

    /// An assignment with a generation of its own. A second endpoint at the same address is dropped.
    #[must_use]
    pub fn assigned(Assignment { mut list, overprovisioning }: Assignment) -> Self {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let mut seen = std::collections::HashSet::with_capacity(list.len());
        list.retain(|endpoint| seen.insert(endpoint.address));
        Self { generation: GENERATION.fetch_add(1, Ordering::Relaxed), list: list.into(), overprovisioning }
    }

    /// Whether these are what `assignment` says.
    #[must_use]
    pub fn are(&self, assignment: &Assignment) -> bool {
        *self.list == *assignment.list && self.overprovisioning == assignment.overprovisioning
    }
}

/// Where a cluster's endpoints live: shared by successive [`Cluster`]s of one name.
pub(crate) type EndpointSlot = Arc<ArcSwap<Endpoints>>;

/// What a [`Cluster`] is apart from its endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterSpec {
    /// Unique: `orders.shop:8080` or `endpoint/<ip>:<port>`.
    pub name: Box<str>,
    /// The service behind it, when there is one.
    pub service: Option<ServicePort>,
    /// What its port was declared to speak; `None` = detected per connection.
    pub protocol: Option<Protocol>,
    /// Whether endpoints that have an identity are called by mutual TLS.
    pub mutual: bool,
    /// Whether requests go out as HTTP/2 with prior knowledge, whatever the client spoke.
    pub http2: bool,
    /// How long an endpoint may take to accept.
    pub connect_timeout: Duration,
    /// When it or one of its endpoints gets no request.
    pub breaking: breaker::Settings,
    /// How its endpoints are chosen.
    pub balancing: Policy,
    /// Whether the control plane says that there is no such cluster.
    pub absent: bool,
}

impl ClusterSpec {
    /// HTTP/1.1 or bytes, five seconds to connect (what xDS means by an unset `connect_timeout`).
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            service: None,
            protocol: None,
            mutual: false,
            http2: false,
            connect_timeout: super::CONNECT_TIMEOUT_DEFAULT,
            breaking: breaker::Settings::default(),
            balancing: Policy::default(),
            absent: false,
        }
    }
}

/// A backend: a set of interchangeable endpoints and how to talk to them.
pub struct Cluster {
    spec: ClusterSpec,
    endpoints: EndpointSlot,
}

impl Cluster {
    /// A cluster with endpoints of its own: for tests, benches and pass-through pools.
    #[must_use]
    pub fn new(spec: ClusterSpec, endpoints: Vec<Endpoint>) -> Arc<Self> {
        Self::with_slot(spec, Arc::new(ArcSwap::from_pointee(Endpoints::new(endpoints))))
    }

    pub(crate) fn with_slot(spec: ClusterSpec, endpoints: EndpointSlot) -> Arc<Self> {
        Arc::new(Self { spec, endpoints })
    }

    pub(crate) fn spec(&self) -> &ClusterSpec {
        &self.spec
    }

    /// Whether the endpoints live in this slot.
    pub(crate) fn shares(&self, slot: &EndpointSlot) -> bool {
        Arc::ptr_eq(&self.endpoints, slot)
    }

    pub(crate) fn slot(&self) -> EndpointSlot {
        Arc::clone(&self.endpoints)
    }

    /// The endpoints of this moment. The guard is for reading now, not for keeping across an `await`.
    #[must_use]
    pub fn endpoints(&self) -> Loaded<Arc<Endpoints>> {
        self.endpoints.load()
    }

    /// Replaces the endpoints in place: for tests. In a sidecar only the xDS client does so.
    pub fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        self.endpoints.store(Arc::new(Endpoints::new(endpoints)));
    }
}

/// The parts of its specification read as fields: `cluster.name`, `cluster.http2`.
impl std::ops::Deref for Cluster {
    type Target = ClusterSpec;
    fn deref(&self) -> &ClusterSpec {
        &self.spec
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.endpoints.load();
        f.debug_struct("Cluster")
            .field("name", &self.spec.name)
            .field("endpoints", &endpoints.list.len())
            .finish()
    }
}

/// Where a listener's routes live: shared by all listeners that name the same route table.
pub(crate) type RouteSlot = Arc<ArcSwap<RouteTable>>;
/// Where the cluster for opaque connections lives.
pub(crate) type ClusterSlot = Arc<ArcSwap<Cluster>>;

/// Where a listener's limit on concurrency lives: the same for every listener of a name, so that connections which stay
/// see a change.
pub(crate) type GradientSlot = Arc<ArcSwapOption<Gradient>>;

/// Who may call, by requests and by bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guard {
    /// By requests.
    pub http: Access,
    /// By bytes.
    pub bytes: Access,
    /// What is done to paths before they are judged.
    pub spelling: Spelling,
    /// Whether callers without an identity stay out: also those who came while the port took them.
    pub strict: bool,
}

impl Guard {
    /// Whether nobody is looked at.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.http.filters.is_empty()
            && self.bytes.filters.is_empty()
            && self.spelling.is_none()
            && !self.strict
    }
}

/// Where a listener's guard lives; as with the limit, connections that stay see a change.
pub(crate) type GuardSlot = Arc<ArcSwapOption<Guard>>;

/// What a [`Listener`] is apart from its routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSpec {
    /// The destination it stands for.
    pub name: ListenerName,
    /// The service behind the destination, when there is one.
    pub service: Option<ServicePort>,
    /// What the port was declared to speak; `None` = detect.
    pub protocol: Option<Protocol>,
    /// Inbound: the workload whose port this is. Outbound: the pod that was called directly.
    pub workload: Option<WorkloadId>,
    /// Inbound: whether the port takes mutual TLS, and anything else.
    pub mode: Mode,
}

impl ListenerSpec {
    /// A listener about which nothing but its destination is known.
    #[must_use]
    pub fn new(name: ListenerName) -> Self {
        Self { name, service: None, protocol: None, workload: None, mode: Mode::default() }
    }
}

/// The answer to "what stands behind this destination?".
pub struct Listener {
    spec: ListenerSpec,
    routes: RouteSlot,
    cluster: Option<ClusterSlot>,
    gradient: GradientSlot,
    guard: GuardSlot,
}

impl Listener {
    /// A listener that is not connected to a control plane: for tests and benches.
    #[must_use]
    pub fn new(spec: ListenerSpec, routes: RouteTable, opaque: Option<Arc<Cluster>>) -> Arc<Self> {
        Self::with_slots(
            spec,
            Arc::new(ArcSwap::from_pointee(routes)),
            opaque.map(|cluster| Arc::new(ArcSwap::new(cluster))),
            GradientSlot::default(),
            GuardSlot::default(),
        )
    }

    pub(crate) fn with_slots(
        spec: ListenerSpec,
        routes: RouteSlot,
        cluster: Option<ClusterSlot>,
        gradient: GradientSlot,
        guard: GuardSlot,
    ) -> Arc<Self> {
        Arc::new(Self { spec, routes, cluster, gradient, guard })
    }

    /// Who may call at this moment; `None` is everybody.
    #[must_use]
    pub fn guard(&self) -> Loaded<Option<Arc<Guard>>> {
        self.guard.load()
    }

    /// Replaces the guard in place: for tests. In a sidecar only the xDS client does so.
    pub fn set_guard(&self, guard: Guard) {
        self.guard.store(Some(Arc::new(guard)));
    }

    /// The limit on concurrency of this moment.
    #[must_use]
    pub fn gradient(&self) -> Loaded<Option<Arc<Gradient>>> {
        self.gradient.load()
    }

    /// Replaces the limit on concurrency in place: for tests. In a sidecar only the xDS client does so.
    pub fn set_gradient(&self, gradient: Option<Gradient>) {
        self.gradient.store(gradient.map(Arc::new));
    }

    /// The routes of this moment; empty for a port that speaks no HTTP. The guard is for picking now: clone the
    /// `Arc<Route>` out of it to keep one.
    #[must_use]
    pub fn routes(&self) -> Loaded<Arc<RouteTable>> {
        self.routes.load()
    }

    /// Where connections go that are not HTTP; `None` when the port was declared to speak HTTP.
    #[must_use]
    pub fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.as_ref().map(|slot| slot.load_full())
    }
}

/// The parts of its specification read as fields: `listener.service`, `listener.protocol`.
impl std::ops::Deref for Listener {
    type Target = ListenerSpec;
    fn deref(&self) -> &ListenerSpec {
        &self.spec
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("spec", &self.spec).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_never_reused() {
        let cluster = Cluster::new(ClusterSpec::new("a.b:1"), vec![]);
        let first = cluster.endpoints().generation;
        cluster.set_endpoints(vec![]);
        assert!(cluster.endpoints().generation > first, "a worker must notice even an equal list");
    }

    #[test]
    fn a_repeated_address_counts_once() {
        let address: SocketAddr = "10.0.0.1:80".parse().expect("valid");
        assert_eq!(Endpoints::new(vec![Endpoint::new(address), Endpoint::new(address)]).list.len(), 1);
    }
}
