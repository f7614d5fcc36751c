//! The pods of the world, by name, by address and by label.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use weft_wire::{SpiffeId, WorkloadId};

use super::index::Index;
use super::spec::{Health, ObjectName, PodSpec};
use super::view::Peer;

/// A label of a pod together with the pod's namespace: what a selector is looked up by.
pub(super) type LabelKey = (Arc<str>, Box<str>, Box<str>);

#[derive(Clone, Default)]
pub(super) struct Pods {
    pods: HashMap<ObjectName, Pod>,
    on: Index<IpAddr, ObjectName>,
    labelled: Index<LabelKey, ObjectName>,
}

/// A pod and what endpoints say of it, made once.
#[derive(Clone)]
pub(super) struct Pod {
    pub(super) spec: PodSpec,
    pub(super) peer: Arc<Peer>,
}

pub(super) fn labels(pod: &PodSpec) -> impl Iterator<Item = LabelKey> + '_ {
    let namespace = &pod.name.namespace;
    pod.labels.iter().map(|(key, value)| (Arc::clone(namespace), key.clone(), value.clone()))
}

impl Pods {
    /// Puts a pod in and gives back what was there before.
    pub(super) fn set(&mut self, spec: PodSpec) -> Option<PodSpec> {
        let known = self.pods.get(&spec.name).filter(|known| {
            known.spec.addresses == spec.addresses && known.spec.service_account == spec.service_account
        });
        let identity = known.and_then(|known| known.peer.identity.clone());
        let old = self.remove(&spec.name);
        for address in &spec.addresses {
            self.on.insert(*address, spec.name.clone());
        }
        for key in labels(&spec) {
            self.labelled.insert(key, spec.name.clone());
        }
        let peer = Peer {
            workload: spec.workload.clone(),
            version: spec.version.clone(),
            pod: Some(Arc::clone(&spec.name.name)),
            identity,
        };
        self.pods.insert(spec.name.clone(), Pod { spec, peer: Arc::new(peer) });
        old
    }

    /// Notes that a sidecar at `address` has proved to be `identity`, for the pods there that may be it.
    pub(super) fn prove(&mut self, address: IpAddr, identity: &Arc<SpiffeId>) {
        for name in self.on.get(&address) {
            if let Some(pod) = self.pods.get_mut(name).filter(|pod| pod.spec.runs_as(identity))
                && pod.peer.identity.as_ref() != Some(identity)
            {
                pod.peer = Arc::new(Peer { identity: Some(Arc::clone(identity)), ..Peer::clone(&pod.peer) });
            }
        }
    }

    pub(super) fn remove(&mut self, name: &ObjectName) -> Option<PodSpec> {
        let Pod { spec, .. } = self.pods.remove(name)?;
        for address in &spec.addresses {
            self.on.remove(address, name);
        }
        for key in labels(&spec) {
            self.labelled.remove(&key, name);
        }
        Some(spec)
    }

    pub(super) fn get(&self, name: &ObjectName) -> Option<&Pod> {
        self.pods.get(name)
    }

    /// The pods that claim an address. More than one only while the cluster reuses it.
    pub(super) fn on(&self, address: IpAddr) -> impl Iterator<Item = &Pod> {
        self.on.get(&address).filter_map(|name| self.pods.get(name))
    }

    /// The namespace of the pods that claim an address, if they are of one. On loopback everybody's is the same address.
    pub(super) fn namespace_on(&self, address: IpAddr) -> Option<Arc<str>> {
        let mut namespaces = self.on(address).map(|pod| &pod.spec.name.namespace);
        let first = namespaces.next().filter(|_| !address.is_loopback())?;
        namespaces.all(|other| other == first).then(|| Arc::clone(first))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The namespaces of pods that have a sidecar, or will have one when they start.
    pub(super) fn injected(&self) -> BTreeSet<Arc<str>> {
        let mut namespaces = BTreeSet::new();
        for pod in self.pods.values().filter(|pod| pod.spec.injection.sidecar.is_some()) {
            if !namespaces.contains(&pod.spec.name.namespace) {
                namespaces.insert(Arc::clone(&pod.spec.name.namespace));
            }
        }
        namespaces
    }

    /// How many pods with a sidecar take calls.
    pub(super) fn running_sidecars(&self) -> usize {
        let runs = |pod: &&Pod| pod.spec.injection.sidecar.is_some() && pod.spec.health == Health::Ready;
        self.pods.values().filter(runs).count()
    }

    /// Every address of a pod.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.on.keys().copied()
    }

    /// The addresses of a namespace's workloads.
    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = IpAddr> {
        let pods = self.pods.values().filter(move |pod| pod.spec.workload.namespace() == namespace);
        pods.flat_map(|pod| pod.spec.addresses.iter().copied())
    }

    /// The service account of a workload's pods; the first by name of several.
    pub(super) fn service_account(&self, workload: &WorkloadId) -> Option<&str> {
        let pods = self.pods.values().filter(|pod| pod.spec.workload == *workload);
        pods.map(|pod| &*pod.spec.service_account).min()
    }

    /// The pods that carry a label.
    pub(super) fn labelled(&self, key: &LabelKey) -> impl Iterator<Item = &Pod> {
        self.labelled.get(key).filter_map(|name| self.pods.get(name))
    }
}
