//! What the control plane may do to a cluster: each right with its reason, and no more.
//!
//! In: nothing. Out: a ClusterRole, a Role in the control plane's own namespace, and their bindings. Invariant: no wildcard;
//! what can be named is named. Surprise: `create` cannot be held to a name, unless it is by applying, so rights to make
//! are apart from rights to change.

use serde_json::{Value, json};

use crate::cluster::secret;
use crate::inject::keeper;

use super::{NAME, NAMESPACE, Object, labels};

/// A right and its reason.
struct Right {
    reason: &'static str,
    group: &'static str,
    resources: &'static [&'static str],
    /// Only these objects; all if empty.
    names: &'static [&'static str],
    verbs: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];

/// In every namespace.
const CLUSTER: &[Right] = &[
    Right {
        reason: "what is called, who answers, and which pods are injected",
        group: "",
        resources: &["namespaces", "pods", "services"],
        names: &[],
        verbs: READ,
    },
    Right {
        reason: "the addresses behind a Service",
        group: "discovery.k8s.io",
        resources: &["endpointslices"],
        names: &[],
        verbs: READ,
    },
    Right {
        reason: "the workload that a pod belongs to; of both only metadata is read",
        group: "apps",
        resources: &["replicasets"],
        names: &[],
        verbs: READ,
    },
    Right {
        reason: "the CronJob that a Job belongs to; only metadata is read",
        group: "batch",
        resources: &["jobs"],
        names: &[],
        verbs: READ,
    },
    Right {
        reason: "how calls are routed, and who may refer to whom",
        group: "gateway.networking.k8s.io",
        resources: &["grpcroutes", "httproutes", "referencegrants"],
        names: &[],
        verbs: READ,
    },
    Right {
        reason: "what became of a route",
        group: "gateway.networking.k8s.io",
        resources: &["grpcroutes/status", "httproutes/status"],
        names: &[],
        verbs: &["patch"],
    },
    Right {
        reason: "policies",
        group: "weft.dev",
        resources: &["accesspolicies", "circuitbreakers", "trafficpolicies"],
        names: &[],
        verbs: READ,
    },
    Right {
        reason: "what became of a policy",
        group: "weft.dev",
        resources: &["accesspolicies/status", "circuitbreakers/status", "trafficpolicies/status"],
        names: &[],
        verbs: &["patch"],
    },
    Right {
        reason: "who a sidecar is that shows the token of its service account, and who asks the API",
        group: "authentication.k8s.io",
        resources: &["tokenreviews"],
        names: &[],
        verbs: &["create"],
    },
    Right {
        reason: "what people must see at an object: a policy that is refused, a pod without its sidecar",
        group: "events.k8s.io",
        resources: &["events"],
        names: &[],
        verbs: &["create", "patch"],
    },
    Right {
        // It is applied, and what is applied is made under its name.
        reason: "the roots that pods trust, in every namespace that has injected ones",
        group: "",
        resources: &["configmaps"],
        names: &["weft-trust-bundle"],
        verbs: &["create", "delete", "get", "list", "patch", "watch"],
    },
    Right {
        reason: "the certificate by which the API server knows the injector",
        group: "admissionregistration.k8s.io",
        resources: &["mutatingwebhookconfigurations"],
        names: &[keeper::CONFIGURATION],
        verbs: &["get", "list", "patch", "update", "watch"],
    },
];

/// In the control plane's own namespace.
const OWN: &[Right] = &[
    Right {
        reason: "keys and certificates of the authority, join tokens, the injector's certificate: to make them",
        group: "",
        resources: &["secrets"],
        names: &[],
        verbs: &["create"],
    },
    Right {
        reason: "to read and replace these and no others",
        group: "",
        resources: &["secrets"],
        names: &[secret::AUTHORITY, keeper::SECRET, secret::TOKENS],
        verbs: &["get", "list", "patch", "update", "watch"],
    },
    Right {
        reason: "who of several leads: to make the Lease",
        group: "coordination.k8s.io",
        resources: &["leases"],
        names: &[],
        verbs: &["create"],
    },
    Right {
        reason: "to hold it and give it back",
        group: "coordination.k8s.io",
        resources: &["leases"],
        names: &[NAME],
        verbs: &["get", "patch", "update"],
    },
    Right {
        reason: "the label of the one that leads, by which its Service finds it",
        group: "",
        resources: &["pods"],
        names: &[],
        verbs: &["get", "list", "patch"],
    },
];

/// In every namespace, if it is wished.
const RESTART: &[Right] = &[Right {
    reason: "another annotation on the template, as kubectl rollout restart writes it; and when it was written last",
    group: "apps",
    resources: &["daemonsets", "deployments", "statefulsets"],
    names: &[],
    verbs: &["get", "patch"],
}];
/// The value that wishes it.
const MAY_RESTART: &str = "injector.mayRestart";

/// Roles and bindings.
pub(super) fn objects() -> Vec<Object> {
    let everywhere = || json!({ "name": NAME });
    let within = || json!({ "name": NAME, "namespace": NAMESPACE });
    let restart = || json!({ "name": format!("{NAME}-restart") });
    vec![
        Object::new(
            "rbac",
            "What the control plane may do in every namespace.",
            role("ClusterRole", everywhere(), CLUSTER),
        )
        .with_asides(reasons(CLUSTER)),
        Object::new("rbac", "", binding("ClusterRoleBinding", "ClusterRole", everywhere())),
        Object::new("rbac", "What it may do in its own.", role("Role", within(), OWN))
            .with_asides(reasons(OWN)),
        Object::new("rbac", "", binding("RoleBinding", "Role", within())),
        Object::new(
            "rbac",
            "Pods that came without their sidecars are made anew where that is allowed.",
            role("ClusterRole", restart(), RESTART),
        )
        .with_asides(reasons(RESTART))
        .when(MAY_RESTART),
        Object::new("rbac", "", binding("ClusterRoleBinding", "ClusterRole", restart())).when(MAY_RESTART),
    ]
}

fn reasons(rights: &[Right]) -> Vec<String> {
    rights.iter().map(|right| right.reason.to_owned()).collect()
}

fn metadata(mut place: Value) -> Value {
    place["labels"] = labels();
    place
}

fn role(kind: &str, place: Value, rights: &[Right]) -> Value {
    let rules = rights.iter().map(|right| {
        let mut rule =
            json!({ "apiGroups": [right.group], "resources": right.resources, "verbs": right.verbs });
        if !right.names.is_empty() {
            rule["resourceNames"] = json!(right.names);
        }
        rule
    });
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(place),
        "rules": rules.collect::<Vec<_>>(),
    })
}

fn binding(kind: &str, role: &str, place: Value) -> Value {
    let name = place["name"].clone();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(place),
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_right_is_narrow_and_has_a_reason() {
        for right in CLUSTER.iter().chain(OWN).chain(RESTART) {
            let words = || right.resources.iter().chain(right.verbs).chain(right.names).chain([&right.group]);
            assert!(words().all(|word| !word.contains('*')), "{}: a wildcard", right.reason);
            assert!(right.reason.len() > 5 && !right.resources.is_empty() && !right.verbs.is_empty());
            for verb in right.verbs {
                assert!(!["deletecollection", "escalate", "bind", "impersonate"].contains(verb), "{verb}");
                let named = !right.names.is_empty();
                // By its name nothing can be made but by applying it, and an object that the control plane changes is one that it names; all but
                // status and Events, whose names nobody knows beforehand.
                assert!(!(named && *verb == "create") || right.verbs.contains(&"patch"), "{}", right.reason);
                let spread = right.resources.iter().all(|one| one.ends_with("/status") || *one == "events");
                let own_pods = right.resources == ["pods"];
                let wished = right.reason == RESTART[0].reason;
                let changes = ["patch", "update", "delete"].contains(verb);
                assert!(
                    !changes || named || spread || own_pods || wished,
                    "{}: {verb} without names",
                    right.reason
                );
            }
            if right.resources.contains(&"secrets") && right.verbs != ["create"] {
                assert!(!right.names.is_empty(), "all Secrets could be read");
            }
        }
    }
}
