//! What the world answers: services with their ports and endpoints, and who is behind an address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_wire::xds::Protocol;
use weft_wire::{ServiceId, SpiffeId, WorkloadId};

use super::spec::{Family, Health};

/// A service as callers see it: what was declared plus what registered itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The service.
    pub id: ServiceId,
    /// Virtual addresses; empty for a headless or a registered service.
    pub cluster_ips: Vec<IpAddr>,
    /// The family of addresses that it prefers, if it says so.
    pub family: Option<Family>,
    /// Whether callers prefer endpoints in their own zone, where no policy says otherwise.
    pub prefers_zone: bool,
    /// Ports in ascending order of number.
    pub ports: Vec<Port>,
    /// Whether some of it lives only as long as a sidecar's stream: after a restart of the control plane it
    /// is complete only when those sidecars have come back.
    pub registered: bool,
}

impl Service {
    /// The port callers know by this number.
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&Port> {
        // At most a few dozen, sorted.
        self.ports.binary_search_by_key(&number, |port| port.number).ok().map(|at| &self.ports[at])
    }

    /// Whom callers of a port are sent to. A pod with addresses of both families is there twice, and may listen at one of
    /// them only: it is called at the service's own family, while somebody is ready there.
    pub fn callable<'a>(&self, port: &'a Port) -> impl Iterator<Item = &'a Endpoint> + use<'a> {
        let preferred = |family: &Family| {
            let mut endpoints = port.endpoints.iter();
            endpoints.any(|e| Family::from(e.address.ip()) == *family && e.health == Health::Ready)
        };
        let only = self.family.filter(preferred);
        port.endpoints
            .iter()
            .filter(move |endpoint| only.is_none_or(|family| Family::from(endpoint.address.ip()) == family))
    }

    /// The addresses of all endpoints, with repetitions.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ports.iter().flat_map(|port| port.endpoints.iter().map(|endpoint| endpoint.address.ip()))
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The port callers use.
    pub number: u16,
    /// Its name; empty when it has none.
    pub name: Box<str>,
    /// What it was declared to speak; `None` is detected.
    pub protocol: Option<Protocol>,
    /// Who answers, in ascending order of address, without duplicates.
    pub endpoints: Vec<Endpoint>,
}

/// One address that answers for a service's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// Whether it may be called. Never [`Health::NotReady`]: those are left out.
    pub health: Health,
    /// The zone it stands in, when known.
    pub zone: Option<Arc<str>>,
    /// Who it is, when known.
    pub peer: Option<Arc<Peer>>,
}

/// One running instance of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The workload.
    pub workload: WorkloadId,
    /// Its version, when known.
    pub version: Option<Arc<str>>,
    /// The pod's name, when there is a pod.
    pub pod: Option<Arc<str>>,
    /// Who it proved to be. `None`: it has no sidecar, or one without a certificate; whoever calls it speaks plain.
    ///
    /// Of a pod this is kept until the pod is gone, although its sidecar may lose its stream: its callers must not
    /// begin to speak plain because the control plane cannot be reached from there.
    pub identity: Option<Arc<SpiffeId>>,
}

/// Who is behind an address, for those who read reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The workload.
    pub id: WorkloadId,
    /// Its version, when known.
    pub version: Option<Arc<str>>,
    /// The pod's name, when there is a pod.
    pub pod: Option<Arc<str>>,
    /// Whether a sidecar at this address is connected (or lost its stream a moment ago): its own reports
    /// count, so what others say of its calls must not be counted again.
    pub meshed: bool,
}

/// The answer to "who is at this address?".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// One workload.
    Known(Workload),
    /// Several workloads share the address (loopback, a node's address), so it names none of them.
    Shared {
        /// Whether at least one of them has a connected sidecar.
        meshed: bool,
    },
    /// Nobody known.
    Unknown,
}
