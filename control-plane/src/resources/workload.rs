//! What a pod is called in the mesh: the workload that it is an instance of.
//!
//! In: a pod's metadata. Out: a name; the same here, in the injector and in whatever reads files, because reports,
//! policies and the graph must not know one program by two names. No label is needed: in this order, the controller, the label
//! `app.kubernetes.io/name`, the older label `app`, the pod itself; the first that is a valid name.
//!
//! Surprises: versions that have Deployments of their own are one workload, if names and labels agree that they are versions
//! ([`without_version`]). Who stands behind a ReplicaSet or a Job is read off its name, as Kubernetes' own controllers make it. Where
//! they did not make it, [`Owner`] says who it is, to whoever follows those kinds.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use weft_wire::WorkloadId;

use super::{Refusal, core};
use crate::world::ObjectName;

/// The label by which people say what a pod is.
const NAME: &str = "app.kubernetes.io/name";
/// The older one.
const APP: &str = "app";
/// The labels by which people say which version of it a pod is.
const VERSIONS: [&str; 2] = ["app.kubernetes.io/version", "version"];
/// The labels by which pods and ReplicaSets of a Deployment, and of Argo's Rollout, name their template.
const TEMPLATE_HASHES: [&str; 2] = ["pod-template-hash", "rollouts-pod-template-hash"];

/// A controller that has itself a controller, after which the pods are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Between {
    /// Mostly a CronJob's.
    Job,
    /// Mostly a Deployment's.
    ReplicaSet,
}

/// Such a controller.
pub(crate) type OwnerId = (Between, ObjectName);

/// What is known of such a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Which.
    pub(crate) id: OwnerId,
    /// What its pods are called, if its name alone does not tell.
    pub(crate) name: Option<Arc<str>>,
}

/// What a pod is an instance of, as far as its metadata says so: by controller or label, but not by its own name.
#[must_use]
pub fn workload_name(metadata: &ObjectMeta) -> Option<String> {
    let own = metadata.name.as_deref().unwrap_or_default();
    let [said @ .., _] = candidates(metadata, own);
    said.into_iter().flatten().find(|name| WorkloadId::new("x", name).is_ok()).map(str::to_owned)
}

/// The workload of a pod.
pub(super) fn of(metadata: &ObjectMeta, name: &ObjectName) -> Result<WorkloadId, Refusal> {
    let candidates = candidates(metadata, &name.name).into_iter().flatten();
    let found = candidates.map(|candidate| WorkloadId::new(&name.namespace, candidate)).find_map(Result::ok);
    found.ok_or_else(|| (path!["metadata", "name"], format!("{:?} is not a name", name.name)))
}

/// The ReplicaSet or Job that a pod is named after, if it is.
pub(crate) fn named_after(metadata: &ObjectMeta, namespace: &Arc<str>) -> Option<OwnerId> {
    let controller = controller(metadata)?;
    let between = between(controller)?;
    Some((between, ObjectName { namespace: Arc::clone(namespace), name: controller.name.as_str().into() }))
}

/// What the pods of a ReplicaSet or a Job are called.
pub(crate) fn owner(between: Between, metadata: &ObjectMeta) -> Result<Owner, Refusal> {
    let id = core::object_name(metadata)?;
    let name = controller(metadata).map_or(&*id.name, |controller| controller.name.as_str());
    let name = without_version(name, metadata);
    let told = without_version(inferred(between, &id.name, metadata), metadata);
    let name = (name != told && WorkloadId::new("x", name).is_ok()).then(|| name.into());
    Ok(Owner { id: (between, id), name })
}

fn candidates<'a>(metadata: &'a ObjectMeta, own: &'a str) -> [Option<&'a str>; 4] {
    let controller = controller(metadata).map(|controller| {
        let name = controller.name.as_str();
        match (between(controller), controller.kind.as_str()) {
            (Some(between), _) => without_version(inferred(between, name, metadata), metadata),
            // A kubelet's own pods are called like what they are, and end in the node's name.
            (None, "Node") => own.strip_suffix(name).and_then(|own| own.strip_suffix('-')).unwrap_or(own),
            (None, _) => without_version(name, metadata),
        }
    });
    [controller, label(metadata, NAME), label(metadata, APP), Some(own)]
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller != Some(false))
}

fn between(controller: &OwnerReference) -> Option<Between> {
    match controller.kind.as_str() {
        "ReplicaSet" => Some(Between::ReplicaSet),
        "Job" => Some(Between::Job),
        _ => None,
    }
}

fn inferred<'a>(between: Between, name: &'a str, metadata: &ObjectMeta) -> &'a str {
    match between {
        // A Deployment's ReplicaSet is named after it and its template's hash.
        Between::ReplicaSet => {
            let hash = TEMPLATE_HASHES.iter().find_map(|key| label(metadata, key));
            hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-')).unwrap_or(name)
        }
        Between::Job => without_run(name),
    }
}

/// `catalog` of `catalog-v2`, where labels say the same: name `catalog`, version `v2`. So the versions of one program are one
/// workload, and two programs that only share a label, as those of a chart do, are two.
fn without_version<'a>(name: &'a str, metadata: &ObjectMeta) -> &'a str {
    let version = VERSIONS.iter().find_map(|key| label(metadata, key));
    let base = version.and_then(|version| name.strip_suffix(version)?.strip_suffix('-'));
    let same = |base: &&str| [NAME, APP].iter().any(|key| label(metadata, key) == Some(base));
    base.filter(same).unwrap_or(name)
}

/// A CronJob's Jobs are named after it and the minute they run in; without this every run were a workload.
fn without_run(job: &str) -> &str {
    const MINUTE_DIGITS: usize = 8;
    match job.rsplit_once('-') {
        Some((name, run)) if run.len() >= MINUTE_DIGITS && run.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => job,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn metadata(value: Value) -> ObjectMeta {
        serde_json::from_value(value).expect("metadata")
    }

    fn owned_by(kind: &str, name: &str, labels: Value) -> ObjectMeta {
        metadata(json!({
            "name": "p-1", "namespace": "shop", "labels": labels,
            "ownerReferences": [{ "apiVersion": "x/v1", "kind": kind, "name": name, "uid": "u", "controller": true }],
        }))
    }

    #[test]
    fn pods_are_named_after_who_made_them() {
        let hash = json!({ "pod-template-hash": "7d4b9c" });
        for (kind, owner, labels, expected) in [
            ("ReplicaSet", "orders-7d4b9c", hash, "orders"),
            ("ReplicaSet", "orders", json!({}), "orders"),
            ("StatefulSet", "db", json!({ "app": "older" }), "db"),
            ("DaemonSet", "agent", json!({}), "agent"),
            ("Job", "report-29187360", json!({}), "report"),
            ("Job", "migrate-2", json!({}), "migrate-2"),
            ("CloneSet", "games", json!({}), "games"),
            ("Node", "1", json!({}), "p"),
            ("Node", "elsewhere", json!({}), "p-1"),
            ("ReplicaSet", "orders-5c8", json!({ "rollouts-pod-template-hash": "5c8" }), "orders"),
            ("ReplicaSet", "Not_A_Name", json!({ "app.kubernetes.io/name": "shop" }), "shop"),
        ] {
            let named = workload_name(&owned_by(kind, owner, labels));
            assert_eq!(named.as_deref(), Some(expected), "{kind} {owner}");
        }
        let bare = metadata(json!({ "name": "alone", "labels": { "app": "older" } }));
        assert_eq!(workload_name(&bare).as_deref(), Some("older"));
        let alone = metadata(json!({ "name": "alone" }));
        assert_eq!(workload_name(&alone), None);
        let called = of(&alone, &ObjectName { namespace: "shop".into(), name: "alone".into() });
        assert_eq!(called.expect("a name").name(), "alone");
    }

    #[test]
    fn what_a_name_does_not_tell_its_owner_does() {
        let of = |between, value: Value| owner(between, &metadata(value)).expect("an owner").name;
        let owner = |kind: &str, name: &str| json!([{ "apiVersion": "x/v1", "kind": kind, "name": name, "uid": "u", "controller": true }]);
        let hash = json!({ "pod-template-hash": "7d4b9c" });
        let deployed = json!({ "name": "orders-7d4b9c", "labels": hash, "ownerReferences": owner("Deployment", "orders") });
        assert_eq!(of(Between::ReplicaSet, deployed), None);
        let rollout = json!({ "name": "orders-5c8", "ownerReferences": owner("Rollout", "orders") });
        assert_eq!(of(Between::ReplicaSet, rollout).as_deref(), Some("orders"));
        let bare = json!({ "name": "orders-7d4b9c", "labels": { "pod-template-hash": "7d4b9c" } });
        assert_eq!(of(Between::ReplicaSet, bare).as_deref(), Some("orders-7d4b9c"));
        let run = json!({ "name": "report-29187360", "ownerReferences": owner("CronJob", "report") });
        assert_eq!(of(Between::Job, run), None);
        let once = json!({ "name": "load-20260101" });
        assert_eq!(of(Between::Job, once).as_deref(), Some("load-20260101"));
    }

    #[test]
    fn two_programs_that_share_a_label_are_two_workloads() {
        let of = |name: &str, component: &str| {
            let labels = json!({ "app.kubernetes.io/name": "shop", "app.kubernetes.io/instance": "my",
                "app.kubernetes.io/component": component, "app.kubernetes.io/version": "1.2.3", "pod-template-hash": "7d4b9c" });
            workload_name(&owned_by("ReplicaSet", &format!("{name}-7d4b9c"), labels))
        };
        assert_eq!(of("my-shop-web", "web").as_deref(), Some("my-shop-web"));
        assert_eq!(of("my-shop-worker", "worker").as_deref(), Some("my-shop-worker"));
    }

    #[test]
    fn versions_with_deployments_of_their_own_are_one_workload() {
        let of = |kind: &str, owner: &str, mut labels: Value| {
            labels["pod-template-hash"] = "7d4b9c".into();
            workload_name(&owned_by(kind, owner, labels)).expect("a name")
        };
        let v2 = |name: &str, version: &str| json!({ name: "catalog", version: "v2" });
        let new = v2("app.kubernetes.io/name", "app.kubernetes.io/version");
        assert_eq!(of("ReplicaSet", "catalog-v2-7d4b9c", new.clone()), "catalog");
        assert_eq!(of("StatefulSet", "catalog-v2", v2("app", "version")), "catalog");
        // The stable one may have no version in its name; what only looks like a version is none.
        assert_eq!(of("ReplicaSet", "catalog-7d4b9c", new.clone()), "catalog");
        assert_eq!(of("ReplicaSet", "catalog-v3-7d4b9c", new.clone()), "catalog-v3");
        assert_eq!(of("ReplicaSet", "other-v2-7d4b9c", new), "other-v2");
        assert_eq!(of("ReplicaSet", "catalog-v2-7d4b9c", json!({ "version": "v2" })), "catalog-v2");
        // The same of what follows ReplicaSets.
        let rollout = metadata(
            json!({ "name": "catalog-v2-5c8", "labels": { "app": "catalog", "version": "v2" },
            "ownerReferences": [{ "apiVersion": "x/v1", "kind": "Rollout", "name": "catalog-v2", "uid": "u", "controller": true }] }),
        );
        assert_eq!(owner(Between::ReplicaSet, &rollout).expect("an owner").name.as_deref(), Some("catalog"));
    }

    #[test]
    fn whoever_has_a_controller_is_named_after_it() {
        let shop: Arc<str> = "shop".into();
        let named = owned_by("ReplicaSet", "a", json!({ "app.kubernetes.io/name": "b" }));
        assert!(named_after(&named, &shop).is_some());
        let (between, name) = named_after(&owned_by("Job", "a", json!({})), &shop).expect("an owner");
        assert_eq!((between, name.to_string().as_str()), (Between::Job, "shop/a"));
        assert_eq!(named_after(&owned_by("DaemonSet", "a", json!({})), &shop), None);
    }
}
