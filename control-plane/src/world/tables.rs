//! Routes, policies and grants by name, and the services that each of them concerns.
//!
//! Invariant: a change of an object adds every service whose traffic it may change to `concerned`, of the old state
//! and of the new; what really changed is found by comparing. Non-goal: meaning. See `traffic`.

use std::collections::{BTreeSet, HashMap};

use weft_wire::ServiceId;

use super::index::Index;
use super::policy::{PolicyId, PolicySpec, Target};
use super::route::{BackendRef, GrantSpec, Referrer, RouteId, RouteSpec};
use super::spec::ObjectName;

#[derive(Clone, Default)]
pub(super) struct Tables {
    routes: HashMap<RouteId, RouteSpec>,
    policies: HashMap<PolicyId, PolicySpec>,
    grants: HashMap<ObjectName, GrantSpec>,
    granting: Index<Box<str>, ObjectName>,
    /// Routes by the services they are attached to.
    attached: Index<ServiceId, RouteId>,
    /// Routes by the services they refer to.
    referring: Index<ServiceId, RouteId>,
    /// Policies by the services they target, and by those they refer to.
    on_service: Index<ServiceId, PolicyId>,
    on_route: Index<RouteId, PolicyId>,
    mirroring: Index<ServiceId, PolicyId>,
}

/// Services whose traffic may have changed.
pub(super) type Concerned = BTreeSet<ServiceId>;

fn services_of(route: &RouteSpec) -> impl Iterator<Item = &ServiceId> {
    let backends = route.rules.iter().flat_map(|rule| {
        let mirrors = rule.filters.mirrors.iter().map(|mirror| &mirror.to);
        rule.backends.iter().map(|backend| &backend.to).chain(mirrors)
    });
    backends.filter_map(|to| match to {
        BackendRef::Service(port) => Some(&port.service),
        BackendRef::Unsupported { .. } => None,
    })
}

fn mirror_of(policy: &PolicySpec) -> Option<&ServiceId> {
    match &policy.settings.mirror.as_ref()?.to {
        BackendRef::Service(port) => Some(&port.service),
        BackendRef::Unsupported { .. } => None,
    }
}

impl Tables {
    pub(super) fn set_route(&mut self, route: RouteSpec, concerned: &mut Concerned) {
        self.remove_route(&route.id, concerned);
        for parent in &route.parents {
            self.attached.insert(parent.service.clone(), route.id.clone());
        }
        for service in services_of(&route) {
            self.referring.insert(service.clone(), route.id.clone());
        }
        concerned.extend(route.parents.iter().map(|parent| parent.service.clone()));
        self.routes.insert(route.id.clone(), route);
    }

    pub(super) fn remove_route(&mut self, id: &RouteId, concerned: &mut Concerned) {
        let Some(old) = self.routes.remove(id) else { return };
        for parent in &old.parents {
            self.attached.remove(&parent.service, id);
        }
        for service in services_of(&old) {
            self.referring.remove(service, id);
        }
        concerned.extend(old.parents.into_iter().map(|parent| parent.service));
    }

    pub(super) fn set_policy(&mut self, policy: PolicySpec, concerned: &mut Concerned) {
        self.remove_policy(&policy.id, concerned);
        for target in &policy.targets {
            match target {
                Target::Route(route, _) => self.on_route.insert(route.clone(), policy.id.clone()),
                Target::Service(service, _) => self.on_service.insert(service.clone(), policy.id.clone()),
            }
        }
        if let Some(service) = mirror_of(&policy) {
            self.mirroring.insert(service.clone(), policy.id.clone());
        }
        self.concerned_by_policy(&policy, concerned);
        self.policies.insert(policy.id.clone(), policy);
    }

    pub(super) fn remove_policy(&mut self, id: &PolicyId, concerned: &mut Concerned) {
        let Some(old) = self.policies.remove(id) else { return };
        for target in &old.targets {
            match target {
                Target::Route(route, _) => self.on_route.remove(route, id),
                Target::Service(service, _) => self.on_service.remove(service, id),
            }
        }
        if let Some(service) = mirror_of(&old) {
            self.mirroring.remove(service, id);
        }
        self.concerned_by_policy(&old, concerned);
    }

    pub(super) fn set_grant(&mut self, grant: GrantSpec, concerned: &mut Concerned) {
        self.remove_grant(&grant.name, concerned);
        self.granting.insert((*grant.name.namespace).into(), grant.name.clone());
        self.concerned_by_grant(&grant, concerned);
        self.grants.insert(grant.name.clone(), grant);
    }

    pub(super) fn remove_grant(&mut self, name: &ObjectName, concerned: &mut Concerned) {
        let Some(old) = self.grants.remove(name) else { return };
        self.granting.remove(&*name.namespace, name);
        self.concerned_by_grant(&old, concerned);
    }

    /// The services whose traffic may change when this one appears, disappears or changes its ports.
    pub(super) fn concerned_by_service(&self, id: &ServiceId, concerned: &mut Concerned) {
        concerned.insert(id.clone());
        self.concerned_by_backend(id, concerned);
        for policy in self.mirroring.get(id).filter_map(|policy| self.policies.get(policy)) {
            self.concerned_by_policy(policy, concerned);
        }
    }

    fn concerned_by_backend(&self, id: &ServiceId, concerned: &mut Concerned) {
        for route in self.referring.get(id).filter_map(|route| self.routes.get(route)) {
            concerned.extend(route.parents.iter().map(|parent| parent.service.clone()));
        }
    }

    fn concerned_by_policy(&self, policy: &PolicySpec, concerned: &mut Concerned) {
        for target in &policy.targets {
            match target {
                Target::Route(route, _) => {
                    let parents = self.routes.get(route).into_iter().flat_map(|route| &route.parents);
                    concerned.extend(parents.map(|parent| parent.service.clone()));
                }
                Target::Service(service, _) => {
                    concerned.insert(service.clone());
                    // What a backend hashes decides what its routes hash.
                    self.concerned_by_backend(service, concerned);
                }
            }
        }
    }

    /// Grants are rare, and what refers across namespaces is found by looking at everything.
    fn concerned_by_grant(&self, grant: &GrantSpec, concerned: &mut Concerned) {
        let there = |service: &ServiceId| service.namespace() == &*grant.name.namespace;
        for route in self.routes.values().filter(|route| services_of(route).any(there)) {
            concerned.extend(route.parents.iter().map(|parent| parent.service.clone()));
        }
        for policy in self.policies.values().filter(|policy| mirror_of(policy).is_some_and(there)) {
            self.concerned_by_policy(policy, concerned);
        }
    }

    /// Whether `who` in `namespace` may refer to a service.
    pub(super) fn permits(&self, who: Referrer, namespace: &str, service: &ServiceId) -> bool {
        if namespace == service.namespace() {
            return true;
        }
        let mut grants = self.granting.get(service.namespace()).filter_map(|name| self.grants.get(name));
        grants.any(|grant| {
            let from = grant.from.iter().any(|(kind, from)| *kind == who && **from == *namespace);
            let to = |name: &Option<Box<str>>| name.as_deref().is_none_or(|name| name == service.name());
            from && grant.to.iter().any(to)
        })
    }

    pub(super) fn route(&self, id: &RouteId) -> Option<&RouteSpec> {
        self.routes.get(id)
    }

    pub(super) fn policy(&self, id: &PolicyId) -> Option<&PolicySpec> {
        self.policies.get(id)
    }

    pub(super) fn grant(&self, name: &ObjectName) -> Option<&GrantSpec> {
        self.grants.get(name)
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = &RouteSpec> {
        self.routes.values()
    }

    pub(super) fn policies(&self) -> impl Iterator<Item = &PolicySpec> {
        self.policies.values()
    }

    /// The routes attached to a service, in order of name.
    pub(super) fn attached_to(&self, service: &ServiceId) -> impl Iterator<Item = &RouteSpec> {
        self.attached.get(service).filter_map(|id| self.routes.get(id))
    }

    /// The routes that refer to a service, in order of name.
    pub(super) fn referring_to(&self, service: &ServiceId) -> impl Iterator<Item = &RouteSpec> {
        self.referring.get(service).filter_map(|id| self.routes.get(id))
    }

    /// The policies that target a service or a port of it, in order of name.
    pub(super) fn on_service(&self, service: &ServiceId) -> impl Iterator<Item = &PolicySpec> {
        self.on_service.get(service).filter_map(|id| self.policies.get(id))
    }

    /// The policies that target a route or a rule of it, in order of name.
    pub(super) fn on_route(&self, route: &RouteId) -> impl Iterator<Item = &PolicySpec> {
        self.on_route.get(route).filter_map(|id| self.policies.get(id))
    }
}
