//! Names of pods whose controller has itself a controller.
//!
//! In: what ReplicaSets and Jobs say ([`Owner`]), and which pods are named after them. Out: the pods whose names change.
//! Only what a name alone does not tell is kept: of ten thousand ReplicaSets mostly nothing.
//! Invariant: pods, ReplicaSets and Jobs may come in any order, the names are the same in the end.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use weft_wire::WorkloadId;

use crate::resources::workload::{Owner, OwnerId};
use crate::world::ObjectName;

#[derive(Debug, Default)]
pub(super) struct Owners {
    names: HashMap<OwnerId, Arc<str>>,
    after: HashMap<ObjectName, Claim>,
    pods: HashMap<OwnerId, BTreeSet<ObjectName>>,
}

/// A pod that is named after somebody.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    id: OwnerId,
    /// What it is called while nobody knows better.
    plain: WorkloadId,
}

impl Owners {
    /// A ReplicaSet or a Job says what its pods are called. The pods that are called differently now.
    pub(super) fn set(&mut self, owner: Owner) -> Vec<ObjectName> {
        let Owner { id, name } = owner;
        if self.names.get(&id) == name.as_ref() {
            return Vec::new();
        }
        match name {
            Some(name) => self.names.insert(id.clone(), name),
            None => self.names.remove(&id),
        };
        self.pods.get(&id).into_iter().flatten().cloned().collect()
    }

    /// It is gone. The pods that are called differently now.
    pub(super) fn remove(&mut self, id: OwnerId) -> Vec<ObjectName> {
        self.set(Owner { id, name: None })
    }

    /// A pod is called `plain`, after this one or after nobody that is followed.
    pub(super) fn claim(&mut self, pod: &ObjectName, plain: &WorkloadId, after: Option<OwnerId>) {
        let claim = after.map(|id| Claim { id, plain: plain.clone() });
        if self.after.get(pod) == claim.as_ref() {
            return;
        }
        self.forget(pod);
        if let Some(claim) = claim {
            self.pods.entry(claim.id.clone()).or_default().insert(pod.clone());
            self.after.insert(pod.clone(), claim);
        }
    }

    /// A pod is gone.
    pub(super) fn forget(&mut self, pod: &ObjectName) {
        let Some(Claim { id, .. }) = self.after.remove(pod) else { return };
        let Some(pods) = self.pods.get_mut(&id) else { return };
        pods.remove(pod);
        if pods.is_empty() {
            self.pods.remove(&id);
        }
    }

    /// What a pod is called, if it is named after somebody.
    pub(super) fn workload(&self, pod: &ObjectName) -> Option<WorkloadId> {
        let Claim { id, plain } = self.after.get(pod)?;
        let better = self.names.get(id).and_then(|name| WorkloadId::new(&pod.namespace, name).ok());
        Some(better.unwrap_or_else(|| plain.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::workload::Between;

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "shop".into(), name: name.into() }
    }

    fn plain(of: &str) -> WorkloadId {
        WorkloadId::new("shop", of).expect("a name")
    }

    fn owner(id: &str, called: Option<&str>) -> Owner {
        Owner { id: (Between::ReplicaSet, name(id)), name: called.map(Arc::from) }
    }

    #[test]
    fn whoever_comes_first_the_pod_is_called_after_its_owner() {
        let mut owners = Owners::default();
        owners.claim(&name("p"), &plain("rs"), Some(owner("rs", None).id));
        assert_eq!(owners.workload(&name("p")), Some(plain("rs")));
        assert_eq!(owners.set(owner("rs", Some("orders"))), [name("p")]);
        assert_eq!(owners.set(owner("rs", Some("orders"))), []);
        owners.claim(&name("q"), &plain("rs"), Some(owner("rs", None).id));
        assert_eq!(owners.workload(&name("q")), Some(plain("orders")));
        assert_eq!(owners.set(owner("rs", None)), [name("p"), name("q")]);
        assert_eq!(owners.workload(&name("q")), Some(plain("rs")), "and back again");
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut owners = Owners::default();
        owners.set(owner("rs", Some("orders")));
        owners.claim(&name("p"), &plain("rs"), Some(owner("rs", None).id));
        assert_eq!(owners.remove(owner("rs", None).id), [name("p")]);
        assert_eq!(owners.workload(&name("p")), Some(plain("rs")));
        owners.forget(&name("p"));
        assert!(owners.names.is_empty() && owners.after.is_empty() && owners.pods.is_empty());
    }
}
