//! What the graph must know of the mesh to name the two ends of an edge.
//!
//! The control plane's model and its xDS server implement [`Mesh`]; ingest asks it who an address belongs to and
//! whether that one reports for itself, the API shows its sidecars and the problems of its configuration.
//! Invariant: every method is a cheap read of the current state; none waits.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use weft_wire::{SpiffeId, WorkloadId};

use super::Timestamp;

/// A read handle on the mesh.
pub trait Mesh: Send + Sync + 'static {
    /// The workload that has `address`: a pod of the configuration, or a connected sidecar's workload.
    fn workload_at(&self, address: IpAddr) -> Option<WorkloadId>;

    /// The workloads that run as `identity`, in order: whoever showed a certificate of it is one of them.
    fn workloads_as(&self, identity: &SpiffeId) -> Vec<WorkloadId>;

    /// Whether a connected sidecar says that `address` is its own.
    fn has_sidecar(&self, address: IpAddr) -> bool;

    /// The addresses of the connected sidecar `instance`; `None` when it is not connected.
    fn addresses_of(&self, instance: &str) -> Option<Vec<IpAddr>>;

    /// Every connected sidecar.
    fn proxies(&self) -> Vec<Proxy>;

    /// What is wrong with the configuration now.
    fn problems(&self) -> Vec<Problem>;

    /// What is worth knowing of where the configuration comes from, in sentences.
    fn notices(&self) -> Vec<String>;

    /// How much configuration there is.
    fn inventory(&self) -> Inventory;

    /// Workloads with pods that should have a sidecar and have none, and how many.
    fn uninjected(&self) -> BTreeMap<String, usize>;
}

/// A connected sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proxy {
    /// One start of one sidecar: xDS `node.id` and `service.instance.id` of its reports.
    pub instance: String,
    /// What it is: `weft-proxy`, `envoy`, as it says.
    pub agent: String,
    /// Which version of that, as it says.
    pub agent_version: Option<String>,
    /// What it stands in front of, unless a foreign client did not say.
    #[serde(flatten, serialize_with = "workload_fields")]
    pub workload: Option<WorkloadId>,
    /// The workload's version, when known.
    pub version: Option<String>,
    /// The pod's name, when there is a pod.
    pub pod: Option<String>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Who it proved to be; `None` on a connection without proof.
    pub identity: Option<String>,
    /// When the certificate of its connection expires.
    pub certificate_expires: Option<Timestamp>,
    /// The certificate of its connection; another connection follows at once when it is renewed.
    pub certificate: Option<Certificate>,
    /// The version of the trust bundle that it acknowledged.
    #[serde(skip)]
    pub bundle: Option<String>,
    /// When its stream began.
    pub connected_since: Timestamp,
    /// Number of resource names it is subscribed to.
    pub subscriptions: usize,
    /// Whether everything sent to it has been acknowledged.
    pub synced: bool,
    /// Since when it owes an answer to what was sent; `None` when it owes none.
    pub waiting_since: Option<Timestamp>,
    /// When it last accepted or rejected something on this stream.
    pub answered_at: Option<Timestamp>,
    /// What it said about the last resource it rejected, while that rejection stands.
    pub rejected: Option<String>,
}

/// A certificate that a sidecar has shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// The serial number, hexadecimal.
    pub serial: String,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
    /// Who issued it.
    pub issuer: String,
    /// The root it hangs from: the first eight digits of its key's hash, as in `/api/ca`.
    pub root: Option<String>,
}

fn workload_fields<S: serde::Serializer>(id: &Option<WorkloadId>, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap as _;
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry("workload", &id.as_ref().map(WorkloadId::name))?;
    map.serialize_entry("namespace", &id.as_ref().map(WorkloadId::namespace))?;
    map.end()
}

/// Something wrong in the configuration; the last good state is still in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, relative to the source directory where it lies in one; `kubernetes` for what an API server says.
    pub file: String,
    /// Line, from 1.
    pub line: Option<usize>,
    /// Position of the YAML document in the file, from 1.
    pub document: Option<usize>,
    /// The object, as `Kind namespace/name`.
    pub object: Option<String>,
    /// The path of the field inside the object: `spec.ports[0].port`.
    pub field: Option<String>,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What it means: `file_kept_last_good`, `object_ignored`, `object_kept_last_good` or `state_kept`.
    pub effect: &'static str,
}

/// How much configuration there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Inventory {
    /// Services, registered ones included.
    pub services: usize,
    /// Endpoints that are ready.
    pub endpoints: usize,
    /// Workloads.
    pub workloads: usize,
}

/// A mesh without anything in it, for tests and for a graph that stands alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmptyMesh;

impl Mesh for EmptyMesh {
    fn workload_at(&self, _: IpAddr) -> Option<WorkloadId> {
        None
    }
    fn workloads_as(&self, _: &SpiffeId) -> Vec<WorkloadId> {
        Vec::new()
    }
    fn has_sidecar(&self, _: IpAddr) -> bool {
        false
    }
    fn addresses_of(&self, _: &str) -> Option<Vec<IpAddr>> {
        None
    }
    fn proxies(&self) -> Vec<Proxy> {
        Vec::new()
    }
    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }
    fn inventory(&self) -> Inventory {
        Inventory::default()
    }
    fn uninjected(&self) -> BTreeMap<String, usize> {
        BTreeMap::new()
    }
}
