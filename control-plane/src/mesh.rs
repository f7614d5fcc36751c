//! Who is in the mesh, for those who draw it: world, xDS status, source problems and the injector's census behind one read
//! handle.
//!
//! In: the handles of those four. Out: [`Mesh`], which ingest and API ask. This is the one place where the
//! two flows of the control plane (what the mesh should do, what it does) touch; neither knows the other.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use weft_wire::tls::TRUST_BUNDLE;
use weft_wire::{SpiffeId, WorkloadId};

use crate::ca::fingerprint;
use crate::graph::{Certificate, Inventory, Mesh, Problem, Proxy, Timestamp};
use crate::inject::reconcile::Latest;
use crate::serve::Verified;
use crate::sources::{self, Problems};
use crate::world::{Live, Lookup};
use crate::xds::{Kind, ProxyStatus, Status};

/// The mesh as it is now.
#[derive(Clone)]
pub struct CurrentMesh {
    world: Live,
    status: Status,
    problems: Problems,
    census: Latest,
}

impl CurrentMesh {
    /// Joins the four handles.
    #[must_use]
    pub fn new(world: Live, status: Status, problems: Problems, census: Latest) -> Self {
        Self { world, status, problems, census }
    }
}

impl Mesh for CurrentMesh {
    fn workload_at(&self, address: IpAddr) -> Option<WorkloadId> {
        match self.world.read().lookup(address) {
            Lookup::Known(workload) => Some(workload.id),
            Lookup::Shared { .. } | Lookup::Unknown => None,
        }
    }

    fn workloads_as(&self, identity: &SpiffeId) -> Vec<WorkloadId> {
        self.world.read().workloads_as(identity)
    }

    fn has_sidecar(&self, address: IpAddr) -> bool {
        match self.world.read().lookup(address) {
            Lookup::Known(workload) => workload.meshed,
            Lookup::Shared { meshed } => meshed,
            Lookup::Unknown => false,
        }
    }

    fn addresses_of(&self, instance: &str) -> Option<Vec<IpAddr>> {
        self.world.read().addresses_of(instance)
    }

    fn proxies(&self) -> Vec<Proxy> {
        self.status.proxies().into_iter().map(proxy).collect()
    }

    fn problems(&self) -> Vec<Problem> {
        self.problems.borrow().problems.iter().map(problem).collect()
    }

    fn notices(&self) -> Vec<String> {
        self.problems.borrow().notices.to_vec()
    }

    fn inventory(&self) -> Inventory {
        let world = self.world.read();
        let mut inventory = Inventory::default();
        let mut workloads = HashSet::new();
        for service in world.services() {
            inventory.services += 1;
            for endpoint in service.ports.iter().flat_map(|port| &port.endpoints) {
                inventory.endpoints += 1;
                workloads.extend(endpoint.peer.as_ref().map(|peer| peer.workload.clone()));
            }
        }
        workloads.extend(self.status.proxies().into_iter().filter_map(|proxy| proxy.workload));
        inventory.workloads = workloads.len();
        inventory
    }

    fn uninjected(&self) -> BTreeMap<String, usize> {
        let mut missing = BTreeMap::new();
        for pod in self.census.get().pods.iter().filter(|pod| pod.sidecar.is_none()) {
            *missing.entry(pod.workload.clone()).or_default() += 1;
        }
        missing
    }
}

fn proxy(status: ProxyStatus) -> Proxy {
    let kinds = status.kinds.values();
    let bundle = status.kinds.get(&Kind::Secret).and_then(|kind| kind.running(TRUST_BUNDLE));
    Proxy {
        subscriptions: kinds.clone().map(|kind| kind.subscriptions.len()).sum(),
        synced: kinds.clone().all(|kind| !kind.outstanding),
        rejected: kinds.clone().find_map(|kind| kind.last_nack.clone()),
        instance: status.instance.to_string(),
        agent: status.agent,
        agent_version: status.agent_version,
        waiting_since: status.waiting_since.map(timestamp),
        answered_at: status.answered_at.map(timestamp),
        workload: status.workload,
        version: status.version,
        pod: status.pod,
        addresses: status.addresses,
        identity: status.verified.as_ref().map(|verified| verified.id.to_string()),
        certificate_expires: status.verified.as_ref().map(|verified| timestamp(verified.expires)),
        certificate: status.verified.as_deref().map(certificate),
        bundle: bundle.and_then(|running| running.acked.as_deref()).map(str::to_owned),
        connected_since: timestamp(status.connected_since),
    }
}

fn certificate(verified: &Verified) -> Certificate {
    Certificate {
        serial: verified.serial.to_string(),
        not_before: timestamp(verified.since),
        not_after: timestamp(verified.expires),
        issuer: verified.issuer.to_string(),
        root: verified.root.map(|pin| fingerprint(&pin)),
    }
}

fn problem(problem: &sources::Problem) -> Problem {
    Problem {
        file: problem.file.clone(),
        line: problem.line,
        document: problem.document,
        object: problem.object.clone(),
        field: problem.field.clone(),
        message: problem.reason.clone(),
        effect: problem.effect.word(),
    }
}

fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
