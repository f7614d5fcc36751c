//! From what a rule refers to, to services that are there.

use std::collections::BTreeSet;
use std::fmt;

use weft_wire::ServicePort;

use super::{ResolvedBackend, ResolvedMirror};
use crate::world::World;
use crate::world::policy::{Effective, HashOn};
use crate::world::route::{BackendRef, Referrer, RouteSpec, Rule};

/// Parts of a million, in which policies count shares.
const MILLION: u32 = 1_000_000;

/// Why a reference leads nowhere. The reasons are those of the Gateway API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unresolved {
    /// Something that requests cannot be sent to.
    InvalidKind {
        /// `group/Kind namespace/name`.
        what: Box<str>,
    },
    /// There is no such service, or it has no such port.
    BackendNotFound(ServicePort),
    /// It is in another namespace, and no ReferenceGrant there allows it.
    RefNotPermitted(ServicePort),
}

impl Unresolved {
    /// The reason in a condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::InvalidKind { .. } => "InvalidKind",
            Self::BackendNotFound(_) => "BackendNotFound",
            Self::RefNotPermitted(_) => "RefNotPermitted",
        }
    }
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidKind { what } => write!(f, "{what} is not a Service"),
            Self::BackendNotFound(port) => write!(f, "there is no {port}"),
            Self::RefNotPermitted(port) => {
                write!(f, "no ReferenceGrant in {} permits {port}", port.service.namespace())
            }
        }
    }
}

impl World {
    pub(in crate::world) fn resolve(
        &self,
        to: &BackendRef,
        who: Referrer,
        namespace: &str,
    ) -> Result<ServicePort, Unresolved> {
        let port = match to {
            BackendRef::Service(port) => port,
            BackendRef::Unsupported { what } => return Err(Unresolved::InvalidKind { what: what.clone() }),
        };
        // Permission first: who may not look must not learn what is there.
        if !self.tables.permits(who, namespace, &port.service) {
            return Err(Unresolved::RefNotPermitted(port.clone()));
        }
        let found = self.services.get(&port.service).and_then(|service| service.port(port.port));
        found.map(|_| port.clone()).ok_or_else(|| Unresolved::BackendNotFound(port.clone()))
    }

    pub(super) fn backends(&self, route: &RouteSpec, rule: &Rule) -> Vec<ResolvedBackend> {
        let who = Referrer::Route(route.id.kind);
        let backends = rule.backends.iter().map(|backend| {
            let to = self.resolve(&backend.to, who, &route.id.name.namespace);
            let hash_on = to.as_ref().ok().and_then(|port| self.hash_of(port));
            ResolvedBackend { to, weight: backend.weight, hash_on }
        });
        backends.collect()
    }

    /// What the policies on a backend choose its endpoints by.
    fn hash_of(&self, port: &ServicePort) -> Option<HashOn> {
        let name = &self.services.get(&port.service)?.port(port.port)?.name;
        // Conflicts are the backend's own to report.
        let policy = self.service_policy(&port.service, name, &mut BTreeSet::new());
        let balancer = policy.settings.balancer;
        balancer.algorithm.is_some_and(|algorithm| algorithm.hashes()).then(|| {
            // Without a word about it, the caller's address is all that every request has.
            balancer.hash_on.unwrap_or(HashOn::Source)
        })
    }

    pub(super) fn mirrors(&self, route: &RouteSpec, rule: &Rule, policy: &Effective) -> Vec<ResolvedMirror> {
        let who = Referrer::Route(route.id.kind);
        let own = rule.filters.mirrors.iter().filter_map(|mirror| {
            let to = self.resolve(&mirror.to, who, &route.id.name.namespace).ok()?;
            Some(ResolvedMirror { to, numerator: mirror.numerator, denominator: mirror.denominator })
        });
        own.chain(self.policy_mirror(policy)).collect()
    }

    /// The mirror that policies ask for, if it can be resolved.
    pub(super) fn policy_mirror(&self, policy: &Effective) -> Option<ResolvedMirror> {
        let mirror = policy.settings.mirror.as_ref()?;
        let namespace = &policy.origins.get("mirror")?.name.namespace;
        let to = self.resolve(&mirror.to, Referrer::Policy, namespace).ok()?;
        Some(ResolvedMirror { to, numerator: mirror.share.0, denominator: MILLION })
    }
}
