//! AccessPolicies by name, by what they are for, and the posture of namespaces.
//!
//! Invariant: a change gives every [`Scope`] in which a decision may be another one now, of the old state and of the new.

use std::collections::HashMap;
use std::sync::Arc;

use weft_wire::ServiceId;

use super::super::index::Index;
use super::super::policy::{PolicyId, Target};
use super::{AccessSpec, NamespaceSpec, Posture};

/// Where decisions may have changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::world) enum Scope {
    /// At every workload of a namespace.
    Namespace(Arc<str>),
    /// At the endpoints of a service.
    Service(ServiceId),
}

#[derive(Clone, Default)]
pub(in crate::world) struct Tables {
    policies: HashMap<PolicyId, AccessSpec>,
    on_service: Index<ServiceId, PolicyId>,
    /// Those that are for a whole namespace.
    in_namespace: Index<Arc<str>, PolicyId>,
    namespaces: HashMap<Arc<str>, NamespaceSpec>,
}

fn services(spec: &AccessSpec) -> impl Iterator<Item = &ServiceId> {
    spec.targets.iter().filter_map(|target| match target {
        Target::Service(id, _) => Some(id),
        Target::Route(..) => None,
    })
}

fn scopes(spec: &AccessSpec) -> Vec<Scope> {
    if spec.targets.is_empty() {
        return vec![Scope::Namespace(Arc::clone(&spec.id.name.namespace))];
    }
    services(spec).cloned().map(Scope::Service).collect()
}

impl Tables {
    pub(in crate::world) fn set(&mut self, spec: AccessSpec) -> Vec<Scope> {
        let mut changed = self.remove(&spec.id);
        changed.extend(scopes(&spec));
        for service in services(&spec) {
            self.on_service.insert(service.clone(), spec.id.clone());
        }
        if spec.targets.is_empty() {
            self.in_namespace.insert(Arc::clone(&spec.id.name.namespace), spec.id.clone());
        }
        self.policies.insert(spec.id.clone(), spec);
        changed
    }

    pub(in crate::world) fn remove(&mut self, id: &PolicyId) -> Vec<Scope> {
        let Some(old) = self.policies.remove(id) else { return Vec::new() };
        for service in services(&old) {
            self.on_service.remove(service, id);
        }
        self.in_namespace.remove(&old.id.name.namespace, id);
        scopes(&old)
    }

    pub(in crate::world) fn set_namespace(&mut self, spec: NamespaceSpec) -> Vec<Scope> {
        let name = Arc::clone(&spec.name);
        self.namespaces.insert(Arc::clone(&name), spec);
        vec![Scope::Namespace(name)]
    }

    pub(in crate::world) fn remove_namespace(&mut self, name: &Arc<str>) -> Vec<Scope> {
        self.namespaces.remove(name).map(|_| Scope::Namespace(Arc::clone(name))).into_iter().collect()
    }

    pub(in crate::world) fn policy(&self, id: &PolicyId) -> Option<&AccessSpec> {
        self.policies.get(id)
    }

    pub(in crate::world) fn namespace(&self, name: &str) -> Option<&NamespaceSpec> {
        self.namespaces.get(name)
    }

    pub(in crate::world) fn posture(&self, namespace: &str) -> Posture {
        self.namespaces.get(namespace).map(|spec| spec.posture).unwrap_or_default()
    }

    pub(in crate::world) fn policies(&self) -> impl Iterator<Item = &AccessSpec> {
        self.policies.values()
    }

    /// The policies on a service or a port of it, in order of name.
    pub(in crate::world) fn on_service(&self, service: &ServiceId) -> impl Iterator<Item = &AccessSpec> {
        self.on_service.get(service).filter_map(|id| self.policies.get(id))
    }

    /// The policies on a whole namespace, in order of name.
    pub(in crate::world) fn in_namespace<'a>(
        &'a self,
        namespace: &str,
    ) -> impl Iterator<Item = &'a AccessSpec> + use<'a> {
        self.in_namespace.get(namespace).filter_map(|id| self.policies.get(id))
    }
}
