//! The sidecars that are connected, what they register, and the grace of those that were lost.
//!
//! Invariant: an instance has at most one entry, that of its newest stream. The end of an older stream of the
//! same instance changes nothing, so a sidecar that reconnects before its old connection is seen to be dead
//! never flickers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_wire::node::{NodeMetadata, Registration};
use weft_wire::{ServiceId, SpiffeId, WorkloadId};

use super::index::Index;
use super::spec::StreamId;
use super::view::Peer;

/// How long a sidecar whose stream broke keeps its registrations: long enough to reconnect at once, short
/// enough that callers are not sent to a dead program for longer than a connect timeout or two.
pub(super) const LOST_GRACE: Duration = Duration::from_secs(2);

#[derive(Clone, Default)]
pub(super) struct Proxies {
    proxies: HashMap<Arc<str>, Proxy>,
    on: Index<IpAddr, Arc<str>>,
    registered: Index<ServiceId, Arc<str>>,
    lost: BTreeMap<Instant, BTreeSet<Arc<str>>>,
}

#[derive(Clone)]
pub(super) struct Proxy {
    pub(super) metadata: Arc<NodeMetadata>,
    pub(super) peer: Arc<Peer>,
    pub(super) stream: StreamId,
    lost_until: Option<Instant>,
}

impl Proxies {
    /// Puts a sidecar in. Gives back what was known of the instance before, if anything.
    pub(super) fn connect(
        &mut self,
        instance: Arc<str>,
        stream: StreamId,
        metadata: Arc<NodeMetadata>,
        identity: Option<Arc<SpiffeId>>,
    ) -> Option<Proxy> {
        let old = self.take(&instance);
        for address in &metadata.addresses {
            self.on.insert(*address, Arc::clone(&instance));
        }
        for registration in &metadata.registrations {
            self.registered.insert(registration.service.service.clone(), Arc::clone(&instance));
        }
        let peer = Arc::new(Peer {
            workload: metadata.workload.clone(),
            version: metadata.version.as_deref().map(Arc::from),
            pod: metadata.pod.as_deref().map(Arc::from),
            identity,
        });
        self.proxies.insert(instance, Proxy { metadata, peer, stream, lost_until: None });
        old
    }

    /// Takes a sidecar out, if `stream` is its newest.
    pub(super) fn leave(&mut self, instance: &str, stream: StreamId) -> Option<Arc<NodeMetadata>> {
        if self.proxies.get(instance)?.stream != stream {
            return None;
        }
        self.remove(instance)
    }

    /// Starts a sidecar's grace, if `stream` is its newest.
    pub(super) fn lose(&mut self, instance: &Arc<str>, stream: StreamId, now: Instant) {
        if let Some(proxy) = self.proxies.get_mut(instance).filter(|proxy| proxy.stream == stream) {
            let until = now + LOST_GRACE;
            proxy.lost_until = Some(until);
            self.lost.entry(until).or_default().insert(Arc::clone(instance));
        }
    }

    /// When the next grace ends.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.lost.keys().next().copied()
    }

    /// Takes out one sidecar whose grace is over.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Arc<NodeMetadata>> {
        let (_, instances) = self.lost.range(..=now).next()?;
        let instance = instances.first().cloned()?;
        self.remove(&instance)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Proxy> {
        self.proxies.values()
    }

    /// Every address that a sidecar claims, and every one that it registered.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let registrations = self.proxies.values().flat_map(|proxy| &proxy.metadata.registrations);
        self.on.keys().copied().chain(registrations.map(|registration| registration.address.ip()))
    }

    pub(super) fn get(&self, instance: &str) -> Option<&Proxy> {
        self.proxies.get(instance)
    }

    /// The sidecars that claim an address.
    pub(super) fn on(&self, address: IpAddr) -> impl Iterator<Item = &Proxy> {
        self.on.get(&address).filter_map(|instance| self.proxies.get(instance))
    }

    /// The addresses of a namespace's workloads.
    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = IpAddr> {
        let proxies = self.proxies.values().map(|proxy| &proxy.metadata);
        let proxies = proxies.filter(move |metadata| metadata.workload.namespace() == namespace);
        proxies.flat_map(|metadata| {
            let registered = metadata.registrations.iter().map(|registration| registration.address.ip());
            metadata.addresses.iter().copied().chain(registered)
        })
    }

    /// Every workload that has proved who it is, in no order.
    pub(super) fn identities(&self) -> impl Iterator<Item = (&WorkloadId, &Arc<SpiffeId>)> {
        let peers = self.proxies.values().map(|proxy| &proxy.peer);
        peers.filter_map(|peer| Some((&peer.workload, peer.identity.as_ref()?)))
    }

    /// Who registered for a service, and how.
    pub(super) fn registered(&self, service: &ServiceId) -> impl Iterator<Item = (&Proxy, &Registration)> {
        self.registered.get(service).filter_map(|instance| self.proxies.get(instance)).flat_map(
            move |proxy| {
                let registrations = proxy.metadata.registrations.iter();
                registrations.filter(move |r| r.service.service == *service).map(move |r| (proxy, r))
            },
        )
    }

    fn remove(&mut self, instance: &str) -> Option<Arc<NodeMetadata>> {
        self.take(instance).map(|proxy| proxy.metadata)
    }

    fn take(&mut self, instance: &str) -> Option<Proxy> {
        let (instance, proxy) = self.proxies.remove_entry(instance)?;
        for address in &proxy.metadata.addresses {
            self.on.remove(address, &instance);
        }
        for registration in &proxy.metadata.registrations {
            self.registered.remove(&registration.service.service, &instance);
        }
        if let Some(until) = proxy.lost_until
            && let Some(instances) = self.lost.get_mut(&until)
        {
            instances.remove(&instance);
            if instances.is_empty() {
                self.lost.remove(&until);
            }
        }
        Some(proxy)
    }
}
