//! The model of everything the mesh knows: services, their endpoints, workloads, connected sidecars.
//!
//! In: [`Event`]s. Out: [`Touched`], and answers about services and addresses. A service here is what callers
//! see: the declared ports, with endpoints from EndpointSlices (or, where no slice names the service, from
//! the pods its selector matches, so that a directory of plain YAML needs no controller), plus the sidecars
//! that registered for it.
//!
//! Invariants: no IO, no Kubernetes types, `now` is passed in; the same events in any order give the same
//! services; [`Touched`] names every key whose answer changed. Views are rebuilt per service by comparing old
//! and new, so a change that changes nothing touches nothing.
//!
//! Surprise: what a connected sidecar says of its own address wins over the Pod object at that address,
//! because its reports bear the same name, and a graph with two names for one program is worse than either.

pub mod access;
mod compare;
mod index;
mod live;
mod pods;
pub mod policy;
mod proxies;
mod route;
mod spec;
mod status;
mod tables;
mod touched;
mod traffic;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use weft_wire::node::NodeMetadata;
use weft_wire::tls::TRUST_DOMAIN_DEFAULT;
use weft_wire::xds::Protocol;
use weft_wire::{ServiceId, ServicePort, SpiffeId, WorkloadId};

pub use access::{AccessSpec, AccessView, NamespaceSpec, Posture};
pub use compare::Novelty;
pub use live::{Directory, Live};
pub use policy::{Effective, PolicyId, PolicyKind, PolicySpec, Settings};
pub use route::{
    Backend, BackendRef, Cors, Created, Filters, GrantSpec, HeaderEdit, Match, Mirror, Parent, PathEdit,
    PathMatch, Pattern, Redirect, Referrer, Rewrite, RouteId, RouteKind, RouteSpec, Rule, RuleName,
    RuleRetry, ValueMatch,
};
pub use spec::{
    ControllerRef, Event, Family, Health, Injection, ObjectName, PodSpec, PortSpec, ServiceSpec,
    SliceEndpoint, SlicePort, SliceSpec, StreamId, TargetPort, Trust,
};
pub use status::{Condition, ConditionKind, ObjectStatus, Subject};
pub use touched::{Key, Touched};
pub use traffic::{EffectiveRule, PortTraffic, ResolvedBackend, ResolvedMirror, Table, Traffic, Unresolved};
pub use view::{Endpoint, Lookup, Peer, Port, Service, Workload};

use index::Index;
use pods::{LabelKey, Pods, labels};
use proxies::Proxies;
use tables::{Concerned, Tables};

/// The model. A copy is a world of its own, to try something out in.
#[derive(Clone, Default)]
pub struct World {
    declared: HashMap<ServiceId, ServiceSpec>,
    slices: HashMap<ObjectName, SliceSpec>,
    slices_of: Index<ServiceId, ObjectName>,
    selecting: Index<LabelKey, ServiceId>,
    pods: Pods,
    proxies: Proxies,
    tables: Tables,
    access: access::Tables,
    trust: Option<Trust>,
    // What follows is derived: `rebuild` is its only writer.
    services: HashMap<ServiceId, Service>,
    by_virtual_ip: Index<IpAddr, ServiceId>,
    by_endpoint: Index<SocketAddr, ServicePort>,
    services_on: Index<IpAddr, ServiceId>,
    traffic: HashMap<ServiceId, Traffic>,
}

/// What a batch of events changed so far.
#[derive(Default)]
struct Changes {
    services: BTreeSet<ServiceId>,
    /// Services whose routes or policies may say something else now.
    concerned: Concerned,
    /// Where policies on access may say something else now.
    guarded: BTreeSet<access::Scope>,
    touched: Touched,
}

impl World {
    /// Applies one event.
    pub fn apply(&mut self, event: Event, now: Instant) -> Touched {
        self.apply_all([event], now)
    }

    /// Applies events as one change: a service that several of them concern is rebuilt once.
    pub fn apply_all(&mut self, events: impl IntoIterator<Item = Event>, now: Instant) -> Touched {
        let mut changes = Changes::default();
        for event in events {
            self.record(event, now, &mut changes);
        }
        self.finish(changes)
    }

    /// Takes out sidecars whose grace is over.
    pub fn expire(&mut self, now: Instant) -> Touched {
        let mut changes = Changes::default();
        while let Some(gone) = self.proxies.expire(now) {
            self.proxy_changed(&gone, &mut changes);
        }
        self.finish(changes)
    }

    /// When [`World::expire`] must be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.proxies.next_deadline()
    }

    /// A service.
    #[must_use]
    pub fn service(&self, id: &ServiceId) -> Option<&Service> {
        self.services.get(id)
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The service that has a virtual address. Two that claim the same one are a mistake of their owners; the
    /// first by name gets it, so that the answer does not depend on the order of events.
    #[must_use]
    pub fn by_virtual_ip(&self, address: IpAddr) -> Option<&Service> {
        self.by_virtual_ip.get(&address).next().and_then(|id| self.services.get(id))
    }

    /// The service ports that an endpoint address answers for, in order.
    pub fn by_endpoint(&self, address: SocketAddr) -> impl Iterator<Item = &ServicePort> {
        self.by_endpoint.get(&address)
    }

    /// The service port that answers at an address: by virtual IP, else by endpoint.
    #[must_use]
    pub fn service_of(&self, address: SocketAddr) -> Option<ServicePort> {
        if let Some(service) = self.by_virtual_ip(address.ip()) {
            let port = service.port(address.port())?;
            return Some(ServicePort { service: service.id.clone(), port: port.number });
        }
        self.by_endpoint(address).next().cloned()
    }

    /// Who is at an address.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Lookup {
        let meshed = self.proxies.on(address).next().is_some();
        // Everybody on a machine shares loopback, also whoever has no sidecar at all.
        if address.is_loopback() {
            return Lookup::Shared { meshed };
        }
        match self.peer_on(address) {
            Some(Ok(peer)) => Lookup::Known(Workload {
                id: peer.workload.clone(),
                version: peer.version.clone(),
                pod: peer.pod.clone(),
                meshed,
            }),
            Some(Err(Ambiguous)) => Lookup::Shared { meshed },
            None => Lookup::Unknown,
        }
    }

    /// The workloads that run as `identity`, in order.
    #[must_use]
    pub fn workloads_as(&self, identity: &SpiffeId) -> Vec<WorkloadId> {
        let pods = self
            .pods
            .all()
            .filter(|pod| *identity.trust_domain() == *self.trust_domain() && pod.spec.runs_as(identity));
        let proxies = self.proxies.all().filter(|proxy| proxy.peer.identity.as_deref() == Some(identity));
        let peers = pods.map(|pod| &pod.peer).chain(proxies.map(|proxy| &proxy.peer));
        let mut workloads: Vec<WorkloadId> = peers.map(|peer| peer.workload.clone()).collect();
        workloads.sort_unstable();
        workloads.dedup();
        workloads
    }

    /// Whether a proxy instance is connected, or was a moment ago.
    #[must_use]
    pub fn is_connected(&self, instance: &str) -> bool {
        self.proxies.get(instance).is_some()
    }

    /// The addresses that a connected proxy instance says are its own.
    #[must_use]
    pub fn addresses_of(&self, instance: &str) -> Option<Vec<IpAddr>> {
        self.proxies.get(instance).map(|proxy| proxy.metadata.addresses.clone())
    }

    /// The trust domain of the mesh.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.trust.as_ref().map_or(TRUST_DOMAIN_DEFAULT, |trust| &trust.domain)
    }

    /// Who a connected proxy instance proved to be.
    #[must_use]
    pub fn identity_of(&self, instance: &str) -> Option<&Arc<SpiffeId>> {
        self.proxies.get(instance)?.peer.identity.as_ref()
    }

    /// What workload a connected proxy instance says it is.
    #[must_use]
    pub fn workload_of(&self, instance: &str) -> Option<&WorkloadId> {
        self.proxies.get(instance).map(|proxy| &proxy.metadata.workload)
    }

    /// A pod, as its source says it is.
    #[must_use]
    pub fn pod(&self, name: &ObjectName) -> Option<&PodSpec> {
        self.pods.get(name).map(|pod| &pod.spec)
    }

    /// All pods, in no order.
    pub fn pods(&self) -> impl Iterator<Item = &PodSpec> {
        self.pods.all().map(|pod| &pod.spec)
    }

    /// What a namespace says, if there is an object of it.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&NamespaceSpec> {
        self.access.namespace(name)
    }

    /// The pods that claim an address.
    pub fn pods_on(&self, address: IpAddr) -> impl Iterator<Item = &PodSpec> {
        self.pods.on(address).map(|pod| &pod.spec)
    }

    /// The identity of a workload's programs: as one of them has proved, else as its pods say. Several: the first.
    #[must_use]
    pub fn identity_of_workload(&self, workload: &WorkloadId) -> Option<SpiffeId> {
        let proven = self.proxies.identities().find(|(of, _)| *of == workload).map(|(_, id)| (**id).clone());
        proven.or_else(|| {
            let account = self.pods.service_account(workload)?;
            SpiffeId::new(self.trust_domain(), workload.namespace(), account).ok()
        })
    }

    /// Whom everybody trusts; `None` where nobody issues certificates.
    #[must_use]
    pub fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    // === events ===

    fn record(&mut self, event: Event, now: Instant, changes: &mut Changes) {
        match event {
            Event::ServiceSet(spec) => {
                changes.services.insert(spec.id.clone());
                self.forget_selector(&spec.id);
                if let Some(key) = selector_key(&spec) {
                    self.selecting.insert(key, spec.id.clone());
                }
                self.declared.insert(spec.id.clone(), spec);
            }
            Event::ServiceGone(id) => {
                self.forget_selector(&id);
                self.declared.remove(&id);
                changes.services.insert(id);
            }
            Event::SliceSet(spec) => {
                self.remove_slice(&spec.name, changes);
                changes.services.insert(spec.service.clone());
                self.slices_of.insert(spec.service.clone(), spec.name.clone());
                self.slices.insert(spec.name.clone(), spec);
            }
            Event::SliceGone(name) => self.remove_slice(&name, changes),
            Event::PodSet(spec) => {
                let name = spec.name.clone();
                let old = self.pods.set(spec);
                self.pod_changed(old.as_ref(), &name, changes);
            }
            Event::PodGone(name) => {
                let old = self.pods.remove(&name);
                self.pod_changed(old.as_ref(), &name, changes);
            }
            Event::ProxyConnected { instance, stream, metadata, identity } => {
                self.proxy_connected(instance, stream, metadata, identity, changes);
            }
            Event::ProxyLeft { instance, stream } => {
                if let Some(gone) = self.proxies.leave(&instance, stream) {
                    self.proxy_changed(&gone, changes);
                }
            }
            Event::ProxyLost { instance, stream } => self.proxies.lose(&instance, stream, now),
            Event::RouteSet(spec) => self.tables.set_route(spec, &mut changes.concerned),
            Event::RouteGone(id) => self.tables.remove_route(&id, &mut changes.concerned),
            Event::PolicySet(spec) => self.tables.set_policy(*spec, &mut changes.concerned),
            Event::PolicyGone(id) if id.kind == PolicyKind::AccessPolicy => {
                changes.guarded.extend(self.access.remove(&id));
            }
            Event::PolicyGone(id) => self.tables.remove_policy(&id, &mut changes.concerned),
            Event::AccessSet(spec) => changes.guarded.extend(self.access.set(*spec)),
            Event::NamespaceSet(spec) => changes.guarded.extend(self.access.set_namespace(spec)),
            Event::NamespaceGone(name) => changes.guarded.extend(self.access.remove_namespace(&name)),
            Event::GrantSet(spec) => self.tables.set_grant(spec, &mut changes.concerned),
            Event::GrantGone(name) => self.tables.remove_grant(&name, &mut changes.concerned),
            Event::TrustSet(trust) => {
                if self.trust.as_ref() != Some(&trust) {
                    let known = self.trust.as_ref().map(|known| &known.domain);
                    if known != Some(&trust.domain) {
                        // Everything that names an identity does so in this domain.
                        self.touch_everything(changes);
                    }
                    self.trust = Some(trust);
                    changes.touched.insert(Key::Trust);
                }
            }
        }
    }

    /// Once, when the mesh gets its trust domain.
    fn touch_everything(&self, changes: &mut Changes) {
        for service in self.services.keys() {
            changes.touched.insert(Key::Cluster(service.clone()));
            changes.touched.insert(Key::Endpoints(service.clone()));
        }
        changes
            .touched
            .extend(self.services_on.keys().copied().chain(self.pods.addresses()).map(Key::Address));
        changes.touched.extend(self.proxies.addresses().map(Key::Address));
    }

    fn forget_selector(&mut self, id: &ServiceId) {
        if let Some(key) = self.declared.get(id).and_then(selector_key) {
            self.selecting.remove(&key, id);
        }
    }

    fn remove_slice(&mut self, name: &ObjectName, changes: &mut Changes) {
        if let Some(old) = self.slices.remove(name) {
            self.slices_of.remove(&old.service, name);
            changes.services.insert(old.service);
        }
    }

    fn pod_changed<'a>(&'a self, old: Option<&'a PodSpec>, name: &ObjectName, changes: &mut Changes) {
        let new = self.pods.get(name).map(|pod| &pod.spec);
        if old == new {
            return;
        }
        let ended = |pod: Option<&'a PodSpec>| pod.and_then(|pod| pod.app_ended.as_deref());
        if ended(old) != ended(new) {
            changes.touched.insert(Key::Pod(name.clone()));
        }
        for pod in [old, new].into_iter().flatten() {
            for address in &pod.addresses {
                self.address_changed(*address, changes);
            }
            for key in labels(pod) {
                changes.services.extend(self.selecting.get(&key).cloned());
            }
        }
    }

    fn proxy_connected(
        &mut self,
        instance: Arc<str>,
        stream: StreamId,
        metadata: Arc<NodeMetadata>,
        identity: Option<Arc<SpiffeId>>,
        changes: &mut Changes,
    ) {
        if let Some(identity) = &identity {
            for address in &metadata.addresses {
                self.pods.prove(*address, identity);
            }
        }
        let old = self.proxies.connect(instance, stream, Arc::clone(&metadata), identity.clone());
        if old.as_ref().is_some_and(|old| old.metadata == metadata && old.peer.identity == identity) {
            return;
        }
        self.proxy_changed(&metadata, changes);
        if let Some(old) = old {
            self.proxy_changed(&old.metadata, changes);
        }
    }

    fn proxy_changed(&self, metadata: &NodeMetadata, changes: &mut Changes) {
        for address in &metadata.addresses {
            self.address_changed(*address, changes);
        }
        changes.services.extend(metadata.registrations.iter().map(|r| r.service.service.clone()));
    }

    fn address_changed(&self, address: IpAddr, changes: &mut Changes) {
        changes.touched.insert(Key::Address(address));
        changes.services.extend(self.services_on.get(&address).cloned());
    }

    // === views ===

    fn finish(&mut self, changes: Changes) -> Touched {
        let Changes { services, mut concerned, guarded, mut touched } = changes;
        for id in services {
            self.rebuild(&id, &mut touched);
            if touched.contains(&Key::Service(id.clone())) {
                self.tables.concerned_by_service(&id, &mut concerned);
            }
        }
        for id in concerned {
            self.reconsider(&id, &mut touched);
        }
        for scope in guarded {
            self.guarded_touched(&scope, &mut touched);
        }
        touched
    }

    /// What is let in at an address, and by which protection, is known to who stands there and to who calls.
    fn guarded_touched(&self, scope: &access::Scope, touched: &mut Touched) {
        let addresses: BTreeSet<IpAddr> = match scope {
            access::Scope::Service(id) => {
                self.services.get(id).into_iter().flat_map(Service::addresses).collect()
            }
            access::Scope::Namespace(name) => {
                let services = self.services.values().filter(|service| service.id.namespace() == &**name);
                let pods = self.pods.in_namespace(name).chain(self.proxies.in_namespace(name));
                services.flat_map(Service::addresses).chain(pods).collect()
            }
        };
        for address in addresses {
            touched.insert(Key::Address(address));
            touched.extend(self.services_on.get(&address).cloned().map(Key::Endpoints));
        }
    }

    /// Finds out what routes and policies say about a service now.
    fn reconsider(&mut self, id: &ServiceId, touched: &mut Touched) {
        let new = self.compose_traffic(id);
        if self.traffic.get(id) == new.as_ref() {
            return;
        }
        touched.insert(Key::Cluster(id.clone()));
        touched.insert(Key::Routes(id.clone()));
        self.inbound_touched(id, touched);
        let old = match new {
            Some(new) => self.traffic.insert(id.clone(), new),
            None => self.traffic.remove(id),
        };
        // Limits of a route are kept where its backends are.
        let backends = [old.as_ref(), self.traffic.get(id)].into_iter().flatten().flat_map(Traffic::backends);
        for backend in backends {
            self.inbound_touched(&backend.service, touched);
        }
    }

    fn inbound_touched(&self, id: &ServiceId, touched: &mut Touched) {
        let ports = self.services.get(id).into_iter().flat_map(|service| &service.ports);
        let addresses = ports.flat_map(|port| port.endpoints.iter().map(|e| e.address.ip()));
        touched.extend(addresses.map(Key::Inbound));
    }

    fn rebuild(&mut self, id: &ServiceId, touched: &mut Touched) {
        let new = self.compose(id);
        let old = self.services.remove(id);
        if old != new {
            compare(id, old.as_ref(), new.as_ref(), touched);
            if let Some(old) = &old {
                self.unindex(old);
            }
            if let Some(new) = &new {
                self.index(new);
            }
        }
        if let Some(new) = new {
            self.services.insert(id.clone(), new);
        }
    }

    fn index(&mut self, service: &Service) {
        for address in &service.cluster_ips {
            self.by_virtual_ip.insert(*address, service.id.clone());
        }
        for port in &service.ports {
            let service_port = ServicePort { service: service.id.clone(), port: port.number };
            for endpoint in &port.endpoints {
                self.by_endpoint.insert(endpoint.address, service_port.clone());
                self.services_on.insert(endpoint.address.ip(), service.id.clone());
            }
        }
    }

    fn unindex(&mut self, service: &Service) {
        for address in &service.cluster_ips {
            self.by_virtual_ip.remove(address, &service.id);
        }
        for port in &service.ports {
            let service_port = ServicePort { service: service.id.clone(), port: port.number };
            for endpoint in &port.endpoints {
                self.by_endpoint.remove(&endpoint.address, &service_port);
                self.services_on.remove(&endpoint.address.ip(), &service.id);
            }
        }
    }

    /// What callers see of a service now; `None` if nobody declared it and nobody registered for it.
    fn compose(&self, id: &ServiceId) -> Option<Service> {
        let declared = self.declared.get(id);
        let mut ports: BTreeMap<u16, Draft> = BTreeMap::new();
        for port in declared.iter().flat_map(|spec| &spec.ports) {
            let draft = ports.entry(port.number).or_default();
            draft.protocol = port.protocol;
            draft.name = port.name.clone();
            self.collect_declared(id, port, draft);
        }
        let mut registered = false;
        for (proxy, registration) in self.proxies.registered(id) {
            registered = true;
            let draft = ports.entry(registration.service.port).or_default();
            // What the service's owner declared wins over what one of its programs says.
            draft.protocol = draft.protocol.or(registration.protocol);
            draft.add(registration.address, Health::Ready, None, Some(Arc::clone(&proxy.peer)));
        }
        if declared.is_none() && !registered {
            return None;
        }
        let cluster_ips = declared.map(|spec| spec.cluster_ips.clone()).unwrap_or_default();
        let ports = ports.into_iter().map(|(number, draft)| draft.finish(number)).collect();
        let family = declared.and_then(|spec| spec.family);
        let prefers_zone = declared.is_some_and(|spec| spec.prefers_zone);
        Some(Service { id: id.clone(), cluster_ips, family, prefers_zone, ports, registered })
    }

    fn collect_declared(&self, id: &ServiceId, port: &PortSpec, draft: &mut Draft) {
        if !self.slices_of.has(id) {
            self.collect_selected(id, port, draft);
            return;
        }
        for slice in self.slices_of.get(id).filter_map(|name| self.slices.get(name)) {
            for slice_port in slice.ports.iter().filter(|slice_port| slice_port.name == port.name) {
                draft.protocol = draft.protocol.or(slice_port.protocol);
                for endpoint in &slice.endpoints {
                    for address in &endpoint.addresses {
                        let peer = self.peer_of(*address, endpoint.pod.as_ref());
                        let address = SocketAddr::new(*address, slice_port.number);
                        draft.add(address, endpoint.health, endpoint.zone.as_ref(), peer);
                    }
                }
            }
        }
    }

    fn collect_selected(&self, id: &ServiceId, port: &PortSpec, draft: &mut Draft) {
        let Some(spec) = self.declared.get(id) else { return };
        let Some(key) = selector_key(spec) else { return };
        for pod in self.pods.labelled(&key) {
            let matches = spec.selector.iter().all(|(k, v)| pod.spec.labels.get(k) == Some(v));
            let target = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => pod.spec.ports.get(name).copied(),
            };
            if let (true, Some(target)) = (matches, target) {
                for address in &pod.spec.addresses {
                    let peer = self.peer_of(*address, Some(&pod.spec.name));
                    draft.add(SocketAddr::new(*address, target), pod.spec.health, None, peer);
                }
            }
        }
    }

    /// The namespaces of pods that the injector gave a sidecar.
    #[must_use]
    pub fn injected_namespaces(&self) -> BTreeSet<Arc<str>> {
        self.pods.injected()
    }

    /// How many pods run that the injector gave a sidecar.
    #[must_use]
    pub fn running_sidecars(&self) -> usize {
        self.pods.running_sidecars()
    }

    // === who is at an address ===

    /// Who an endpoint is: the sidecar at the address, else the named pod, else the pod at the address.
    fn peer_of(&self, address: IpAddr, pod: Option<&ObjectName>) -> Option<Arc<Peer>> {
        if !address.is_loopback()
            && let Some(Ok(peer)) = agree(self.proxies.on(address).map(|proxy| &proxy.peer))
        {
            return Some(peer);
        }
        match pod.and_then(|name| self.pods.get(name)) {
            Some(pod) => Some(Arc::clone(&pod.peer)),
            None => self.peer_on(address)?.ok(),
        }
    }

    /// The peer that an address alone identifies.
    #[must_use]
    pub fn peer_at(&self, address: IpAddr) -> Option<Arc<Peer>> {
        if address.is_loopback() { None } else { self.peer_on(address)?.ok() }
    }

    fn peer_on(&self, address: IpAddr) -> Option<Result<Arc<Peer>, Ambiguous>> {
        agree(self.proxies.on(address).map(|proxy| &proxy.peer))
            .or_else(|| agree(self.pods.on(address).map(|pod| &pod.peer)))
    }
}

/// Several workloads at one address.
struct Ambiguous;

/// The one peer that all agree on. Two instances of one workload at the same address are a restart seen from
/// the middle: any of them names the workload right.
fn agree<'a>(peers: impl Iterator<Item = &'a Arc<Peer>>) -> Option<Result<Arc<Peer>, Ambiguous>> {
    let mut found: Option<&Arc<Peer>> = None;
    for peer in peers {
        match found {
            Some(other) if other.workload != peer.workload => return Some(Err(Ambiguous)),
            // Whoever proved nothing does not speak for whoever did.
            Some(other) if other.identity.is_some() && peer.identity.is_none() => {}
            _ => found = Some(peer),
        }
    }
    found.map(|peer| Ok(Arc::clone(peer)))
}

/// Selectors are found through one of their labels; which one does not matter, the rest is compared.
fn selector_key(spec: &ServiceSpec) -> Option<LabelKey> {
    let (key, value) = spec.selector.first_key_value()?;
    Some((spec.id.namespace().into(), key.clone(), value.clone()))
}

/// A port while its endpoints are collected.
#[derive(Default)]
struct Draft {
    name: Box<str>,
    protocol: Option<Protocol>,
    endpoints: BTreeMap<SocketAddr, Endpoint>,
}

impl Draft {
    fn add(&mut self, address: SocketAddr, health: Health, zone: Option<&Arc<str>>, peer: Option<Arc<Peer>>) {
        if health == Health::NotReady {
            return;
        }
        let endpoint =
            self.endpoints.entry(address).or_insert(Endpoint { address, health, zone: None, peer: None });
        // While a pod moves from one slice to another it is in both: the better news is the newer.
        if health == Health::Ready {
            endpoint.health = health;
        }
        if zone.is_some() {
            endpoint.zone = zone.cloned();
        }
        if peer.is_some() {
            endpoint.peer = peer;
        }
    }

    fn finish(self, number: u16) -> Port {
        let endpoints = self.endpoints.into_values().collect();
        Port { number, name: self.name, protocol: self.protocol, endpoints }
    }
}

/// Names the keys in which two states of a service differ.
fn compare(id: &ServiceId, old: Option<&Service>, new: Option<&Service>, touched: &mut Touched) {
    let shape = |service: &Service| {
        let port = |port: &Port| (port.number, port.name.clone(), port.protocol);
        let ports: Vec<_> = service.ports.iter().map(port).collect();
        let taste = (service.family, service.prefers_zone);
        (service.cluster_ips.clone(), taste, service.registered, ports)
    };
    let endpoints = |service: Option<&Service>| -> HashMap<(u16, SocketAddr), Endpoint> {
        let ports = service.into_iter().flat_map(|service| &service.ports);
        ports.flat_map(|port| port.endpoints.iter().map(|e| ((port.number, e.address), e.clone()))).collect()
    };
    let (before, after) = (endpoints(old), endpoints(new));
    let reshaped = old.map(shape) != new.map(shape);
    if reshaped {
        touched.insert(Key::Service(id.clone()));
        touched.insert(Key::Cluster(id.clone()));
        touched.insert(Key::Routes(id.clone()));
        // Whether a service's endpoints exist at all is part of its shape.
        touched.insert(Key::Endpoints(id.clone()));
        let ips = [old, new].into_iter().flatten().flat_map(|service| &service.cluster_ips);
        touched.extend(ips.map(|address| Key::Address(*address)));
    }
    for (one, other) in [(&before, &after), (&after, &before)] {
        for (key, endpoint) in one {
            let changed = other.get(key) != Some(endpoint);
            if changed {
                touched.insert(Key::Endpoints(id.clone()));
            }
            if changed || reshaped {
                touched.insert(Key::Address(endpoint.address.ip()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
