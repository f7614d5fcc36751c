//! Whether something that is about to be told is known already.

use super::{Event, World};

/// What an event would change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// There is nothing of this name.
    New,
    /// It is known and different.
    Different,
    /// It is known like this.
    Known,
}

impl World {
    /// What `event` would change of the objects; of what sidecars do, everything is new.
    #[must_use]
    pub fn novelty(&self, event: &Event) -> Novelty {
        fn of<T: PartialEq>(known: Option<&T>, told: &T) -> Novelty {
            match known {
                None => Novelty::New,
                Some(known) if known == told => Novelty::Known,
                Some(_) => Novelty::Different,
            }
        }
        match event {
            Event::AccessSet(policy) => of(self.access.policy(&policy.id), policy),
            Event::NamespaceSet(namespace) => of(self.access.namespace(&namespace.name), namespace),
            Event::GrantSet(grant) => of(self.tables.grant(&grant.name), grant),
            Event::PolicySet(policy) => of(self.tables.policy(&policy.id), policy),
            Event::RouteSet(route) => of(self.tables.route(&route.id), route),
            Event::PodSet(pod) => of(self.pods.get(&pod.name).map(|known| &known.spec), pod),
            Event::ServiceSet(service) => of(self.declared.get(&service.id), service),
            Event::SliceSet(slice) => of(self.slices.get(&slice.name), slice),
            Event::GrantGone(_)
            | Event::NamespaceGone(_)
            | Event::PodGone(_)
            | Event::PolicyGone(_)
            | Event::ProxyConnected { .. }
            | Event::ProxyLeft { .. }
            | Event::ProxyLost { .. }
            | Event::RouteGone(_)
            | Event::ServiceGone(_)
            | Event::SliceGone(_)
            | Event::TrustSet(_) => Novelty::New,
        }
    }
}
