//! What a change touched, in the terms that subscriptions are asked in.
//!
//! Every xDS resource name maps to exactly one [`Key`] (see `compile::depends_on`), so whether a change
//! concerns a subscription is one hash lookup, and a thousand sidecars do not compile what did not change.

use std::collections::HashSet;
use std::net::IpAddr;

use weft_wire::ServiceId;

use super::spec::ObjectName;

/// A part of the world that a resource can depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// What stands at an address: a virtual IP, an endpoint, a pod.
    Address(IpAddr),
    /// How a service's endpoints are called: its shape, and the policies on it.
    Cluster(ServiceId),
    /// The endpoints of a service.
    Endpoints(ServiceId),
    /// What a sidecar at an address lets in: what stands there, and the routes and policies of its services.
    Inbound(IpAddr),
    /// Whether the app of a pod has ended.
    Pod(ObjectName),
    /// What callers of a service go by: its shape, its routes and the policies on them.
    Routes(ServiceId),
    /// A service's existence, ports, protocols, virtual IPs.
    Service(ServiceId),
    /// Whom everybody trusts.
    Trust,
}

/// The keys that one or more changes touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    keys: HashSet<Key>,
    services: bool,
}

impl Touched {
    /// Whether nothing was touched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the resource that depends on `key` must be compiled again.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.keys.contains(key)
    }

    /// Whether any service appeared, disappeared or changed its ports: the list of all services is stale.
    #[must_use]
    pub fn any_service(&self) -> bool {
        self.services
    }

    /// Adds a key.
    pub fn insert(&mut self, key: Key) {
        self.services |= matches!(key, Key::Service(_));
        if let Key::Address(address) = key {
            self.keys.insert(Key::Inbound(address));
        }
        self.keys.insert(key);
    }
}

impl Extend<Key> for Touched {
    fn extend<I: IntoIterator<Item = Key>>(&mut self, keys: I) {
        for key in keys {
            self.insert(key);
        }
    }
}
