//! From the world to xDS: what a subscription's name means, as a resource that a real Envoy accepts too.
//!
//! In: the world, a resource's kind and name, and the namespace of the one who asks (short host names are
//! read in it). Out: the resource with its version, or `None`: there is no such thing, and the asker passes
//! the traffic through.
//!
//! Invariants: pure; equal worlds give equal versions; every name depends on exactly one [`Key`], the one
//! [`depends_on`] gives, so that nothing else can make a resource stale. The version is a hash of the
//! content, so it survives restarts and is the same on every replica.
//! Non-goal: caching. Compiling takes microseconds, and only what was touched is compiled.

mod access;
mod cluster;
mod defaults;
mod endpoint;
mod filters;
mod inbound;
mod listener;
mod proto;
mod route;
mod runtime;
mod secret;
mod transport;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use sha2::{Digest, Sha256};
use weft_wire::tls::TRUST_BUNDLE;
use weft_wire::xds::{Destination, ListenerName, RuntimeLayer, parse_endpoint_cluster};
use weft_wire::{ServiceId, ServicePort};

use crate::world::{Key, Peer, Port, Service, World};
use crate::xds::Kind;

/// A compiled resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// The message.
    pub body: Any,
    /// Hash of the message.
    pub version: Box<str>,
    /// Whether it may be incomplete just after the control plane has started: it depends on sidecars that
    /// register themselves, or has no endpoint at all.
    pub provisional: bool,
}

/// The key that a resource depends on; `None` for a name that never means anything.
#[must_use]
pub fn depends_on(kind: Kind, name: &str, namespace: &str) -> Option<Key> {
    match kind {
        Kind::Secret => (name == TRUST_BUNDLE).then_some(Key::Trust),
        Kind::Runtime => RuntimeLayer::parse(name).map(|layer| Key::Pod(runtime::pod(layer))),
        Kind::Listener => match name.parse().ok()? {
            ListenerName::Inbound(address) => Some(Key::Inbound(address.ip().to_canonical())),
            ListenerName::Outbound(Destination::Address(address)) => {
                Some(Key::Address(address.ip().to_canonical()))
            }
            ListenerName::Outbound(Destination::Name { host, .. }) => {
                Some(Key::Service(resolve(&host, namespace)?))
            }
        },
        Kind::Cluster | Kind::Endpoint | Kind::Route => match Target::parse(name)? {
            Target::Service(port) => Some(match kind {
                Kind::Cluster => Key::Cluster(port.service),
                Kind::Endpoint => Key::Endpoints(port.service),
                Kind::Listener | Kind::Route | Kind::Runtime | Kind::Secret => Key::Routes(port.service),
            }),
            Target::Direct(address) => Some(Key::Address(address.ip())),
            Target::App(address) => Some(Key::Inbound(address.ip())),
        },
    }
}

/// Compiles one resource.
#[must_use]
pub fn resource(world: &World, kind: Kind, name: &str, namespace: &str) -> Option<Resource> {
    match kind {
        Kind::Secret => secret::compile(world, name),
        Kind::Cluster => cluster::compile(world, name),
        Kind::Endpoint => endpoint::compile(world, name),
        Kind::Listener => listener::compile(world, name, namespace),
        Kind::Route => route::compile(world, name, namespace),
        Kind::Runtime => runtime::compile(world, name),
    }
}

/// The names that a wildcard subscription covers, in order: what a client that is not lazy has to know.
#[must_use]
pub fn every_name(world: &World, kind: Kind) -> Vec<String> {
    let ports = world.services().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    let mut names: Vec<String> = match kind {
        Kind::Listener => ports
            .flat_map(|(service, port)| {
                let addresses = service.cluster_ips.iter();
                addresses.map(|ip| format!("outbound/{}", SocketAddr::new(*ip, port.number)))
            })
            .collect(),
        // Routes, endpoints and secrets have no wildcard in the protocol: clients ask for what clusters and listeners name.
        Kind::Cluster => ports.map(|(service, port)| service_port(service, port).to_string()).collect(),
        Kind::Endpoint | Kind::Route | Kind::Runtime | Kind::Secret => Vec::new(),
    };
    names.sort_unstable();
    names
}

/// What the name of a cluster, route table or endpoint assignment stands for.
enum Target {
    /// `inbound/<ip>:<port>`: the app behind the sidecar itself.
    App(SocketAddr),
    /// `endpoint/<ip>:<port>`: one endpoint, called by its own address.
    Direct(SocketAddr),
    /// `name.namespace:port`.
    Service(ServicePort),
}

impl Target {
    fn parse(name: &str) -> Option<Self> {
        if let Some(address) = parse_endpoint_cluster(name) {
            return Some(Self::Direct(canonical(address)));
        }
        if let Some(address) = name.strip_prefix("inbound/") {
            return address.parse().ok().map(canonical).map(Self::App);
        }
        name.parse().ok().map(Self::Service)
    }
}

/// What stands behind an endpoint's own address.
struct Direct<'a> {
    /// The service it answers for, when one does. Several: the first by name.
    service: Option<(&'a Service, &'a Port)>,
}

impl Direct<'_> {
    /// Who is there: as the service's endpoint says, else as the address alone says.
    fn peer(&self, world: &World, address: SocketAddr) -> Option<Arc<Peer>> {
        let known = self.service.and_then(|(_, port)| port.endpoints.iter().find(|e| e.address == address));
        known.and_then(|endpoint| endpoint.peer.clone()).or_else(|| world.peer_at(address.ip()))
    }
}

fn direct(world: &World, address: SocketAddr) -> Option<Direct<'_>> {
    let port = world.by_endpoint(address).next();
    let service = port.and_then(|port| {
        let service = world.service(&port.service)?;
        Some((service, service.port(port.port)?))
    });
    (service.is_some() || world.peer_at(address.ip()).is_some()).then_some(Direct { service })
}

/// Reads a host as a service's name, the way DNS in a cluster does: short names in the asker's namespace.
fn resolve(host: &str, namespace: &str) -> Option<ServiceId> {
    let mut labels = host.split('.');
    let name = labels.next()?;
    let rest: Vec<&str> = labels.collect();
    let namespace = match rest.as_slice() {
        [] => namespace,
        [namespace] | [namespace, "svc"] | [namespace, "svc", "cluster", "local"] => namespace,
        _ => return None,
    };
    ServiceId::new(namespace, name).ok()
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn service_port(service: &Service, port: &Port) -> ServicePort {
    ServicePort { service: service.id.clone(), port: port.number }
}

/// An address to put where a listener must have one although nothing is bound there.
fn any_address(service: &Service, port: u16) -> SocketAddr {
    let ip = service.cluster_ips.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    SocketAddr::new(ip, port)
}

/// What is put into a message apart, because it holds a map. Protobuf writes a map's entries in no particular order, so
/// it cannot be hashed as it is written.
trait Mark {
    /// Adds everything to a hash, unambiguously and in one order.
    fn digest(&self, digest: &mut Sha256);
}

/// Wraps a message whose maps still have to be put in: `put` is called with the position of each of `marks`.
///
/// SHA-256, cut to 128 bits: equal versions must mean equal content for every reader on every machine and
/// release, so neither the standard hasher (seeded, unstable) nor 64 bits (a collision is an update that never
/// arrives) will do. It is not there for secrecy; its cost vanishes beside the network's.
fn finish<M: Message + Name, K: Mark>(
    mut message: M,
    marks: Vec<K>,
    put: fn(&mut M, usize, K),
    provisional: bool,
) -> Resource {
    let mut digest = Sha256::new_with_prefix(message.encode_to_vec());
    for (at, mark) in marks.into_iter().enumerate() {
        mark.digest(&mut digest);
        put(&mut message, at, mark);
    }
    let digest = digest.finalize();
    let version = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>().into();
    let body = Any { type_url: M::type_url(), value: message.encode_to_vec() };
    Resource { body, version, provisional }
}

/// Whether the resources of this service may be incomplete just after start.
fn provisional(service: &Service, port: &Port) -> bool {
    service.registered || port.endpoints.is_empty()
}

#[cfg(test)]
mod stale;
#[cfg(test)]
mod tests;
