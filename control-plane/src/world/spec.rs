//! What the world is told: objects without their Kubernetes clothes, and the events that carry them.
//!
//! In: values that `resources` or the xDS server have already parsed, so nothing here can hold a bad name or
//! address. Every spec is `PartialEq`: whoever feeds the world compares before it sends, and an object that
//! was only touched on disk costs nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use weft_wire::node::NodeMetadata;
use weft_wire::xds::Protocol;
use weft_wire::{ServiceId, SpiffeId, WorkloadId};

use super::access::{AccessSpec, NamespaceSpec};
use super::policy::{PolicyId, PolicySpec};
use super::route::{GrantSpec, RouteId, RouteSpec};

/// Name of a namespaced object that needs no stronger type (an EndpointSlice, a Pod).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name inside the namespace.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A service as its owner declared it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// The service.
    pub id: ServiceId,
    /// Virtual addresses; empty for a headless service.
    pub cluster_ips: Vec<IpAddr>,
    /// The family of addresses that it prefers, if it says so.
    pub family: Option<Family>,
    /// Whether callers prefer endpoints in their own zone, where no policy says otherwise.
    pub prefers_zone: bool,
    /// TCP ports. UDP and SCTP ports are not the mesh's business and are left out by the source.
    pub ports: Vec<PortSpec>,
    /// Labels that a pod must carry. Used only where no EndpointSlice names the service.
    pub selector: BTreeMap<Box<str>, Box<str>>,
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// One declared port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// The port's name; empty when it has none. EndpointSlice ports are matched by it.
    pub name: Box<str>,
    /// The port callers use.
    pub number: u16,
    /// Where pods listen. Used only where no EndpointSlice says it in numbers.
    pub target: TargetPort,
    /// What the port was declared to speak; `None` is detected.
    pub protocol: Option<Protocol>,
}

/// Where a pod listens for a service's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// This port.
    Number(u16),
    /// The container port of this name, which may differ from pod to pod.
    Name(Box<str>),
}

/// Some of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceSpec {
    /// The slice's own name.
    pub name: ObjectName,
    /// The service it belongs to.
    pub service: ServiceId,
    /// The ports that every endpoint of the slice listens on.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of every endpoint in a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the service's port that it stands behind; may be empty.
    pub name: Box<str>,
    /// The port the pods listen on.
    pub number: u16,
    /// What it speaks, believed when the service itself says nothing.
    pub protocol: Option<Protocol>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its addresses, of one family.
    pub addresses: Vec<IpAddr>,
    /// Whether it may be called.
    pub health: Health,
    /// The zone it stands in, when the slice says it.
    pub zone: Option<Arc<str>>,
    /// The pod behind it, when the slice names it.
    pub pod: Option<ObjectName>,
}

/// Whether an endpoint may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// Still serves, but is about to go: only when nothing else is left.
    Draining,
    /// Not to be called.
    NotReady,
    /// Takes calls.
    Ready,
}

/// A pod: one running instance of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSpec {
    /// The pod.
    pub name: ObjectName,
    /// What it is an instance of.
    pub workload: WorkloadId,
    /// The workload's version, when labelled.
    pub version: Option<Arc<str>>,
    /// Its addresses. Empty for a pod on the host's network: the address is not its own.
    pub addresses: Vec<IpAddr>,
    /// The account it runs as.
    pub service_account: Arc<str>,
    /// Labels, for selectors.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// Named container ports, for named target ports.
    pub ports: BTreeMap<Box<str>, u16>,
    /// Whether it may be called where no EndpointSlice says it.
    pub health: Health,
    /// Of a pod with a classic sidecar, once everything else in it has ended and will not start again: its uid, which is empty
    /// where no API server has given it one.
    pub app_ended: Option<Box<str>>,
    /// What is known of its sidecar.
    pub injection: Injection,
}

/// What a pod says of its sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Injection {
    /// The version that was injected.
    pub sidecar: Option<Arc<str>>,
    /// Whether the pod itself asks for one, or asks for none.
    pub wish: Option<bool>,
    /// Why it cannot have one, in a word.
    pub blocked: Option<&'static str>,
    /// What made the pod, where it has none.
    pub controller: Option<Arc<ControllerRef>>,
    /// Whether the pod itself allows that it be made anew.
    pub restart: Option<bool>,
}

/// What made a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerRef {
    /// `ReplicaSet`.
    pub kind: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

impl PodSpec {
    /// Whether `identity` is the pod's.
    #[must_use]
    pub fn runs_as(&self, identity: &SpiffeId) -> bool {
        *self.name.namespace == *identity.namespace() && *self.service_account == *identity.service_account()
    }
}

/// Whom everybody trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The trust domain of every identity.
    pub domain: Arc<str>,
    /// The roots, PEM, the one that certificates are issued from first.
    pub roots: Arc<str>,
}

/// One connection of one sidecar. Distinguishes a reconnected sidecar from its own older, dying stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Something that happened outside.
#[derive(Debug, Clone)]
pub enum Event {
    /// An AccessPolicy appeared or changed.
    AccessSet(Box<AccessSpec>),
    /// A grant disappeared.
    GrantGone(ObjectName),
    /// A grant appeared or changed.
    GrantSet(GrantSpec),
    /// A namespace disappeared.
    NamespaceGone(Arc<str>),
    /// A namespace appeared or changed.
    NamespaceSet(NamespaceSpec),
    /// A pod disappeared.
    PodGone(ObjectName),
    /// A pod appeared or changed.
    PodSet(PodSpec),
    /// A policy disappeared.
    PolicyGone(PolicyId),
    /// A policy appeared or changed.
    PolicySet(Box<PolicySpec>),
    /// A sidecar opened its configuration stream.
    ProxyConnected {
        /// The proxy instance.
        instance: Arc<str>,
        /// The stream.
        stream: StreamId,
        /// What it says of itself.
        metadata: Arc<NodeMetadata>,
        /// Who it proved to be; `None` on a connection without proof.
        identity: Option<Arc<SpiffeId>>,
    },
    /// A sidecar closed its stream in good order: it is gone.
    ProxyLeft {
        /// The proxy instance.
        instance: Arc<str>,
        /// The stream.
        stream: StreamId,
    },
    /// A sidecar's stream broke: it may come back.
    ProxyLost {
        /// The proxy instance.
        instance: Arc<str>,
        /// The stream.
        stream: StreamId,
    },
    /// A route disappeared.
    RouteGone(RouteId),
    /// A route appeared or changed.
    RouteSet(RouteSpec),
    /// A service disappeared.
    ServiceGone(ServiceId),
    /// A service appeared or changed.
    ServiceSet(ServiceSpec),
    /// An EndpointSlice disappeared.
    SliceGone(ObjectName),
    /// An EndpointSlice appeared or changed.
    SliceSet(SliceSpec),
    /// Whom everybody trusts from now.
    TrustSet(Trust),
}
