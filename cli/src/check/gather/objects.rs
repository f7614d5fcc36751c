//! What an installation consists of, as far as rights are concerned.

use serde_json::{Value, json};

use crate::kubernetes::{CONTROL_PLANE, NAMESPACE};

/// Every kind once, and the roles with their rules.
pub(super) fn objects() -> Vec<Value> {
    let rbac = "rbac.authorization.k8s.io/v1";
    let wide = |version: &str, kind: &str| json!({ "apiVersion": version, "kind": kind, "metadata": { "name": CONTROL_PLANE } });
    let own = |version: &str, kind: &str| json!({ "apiVersion": version, "kind": kind, "metadata": { "name": CONTROL_PLANE, "namespace": NAMESPACE } });
    let mut cluster_role = wide(rbac, "ClusterRole");
    cluster_role["rules"] = json!([
        rule("", &["namespaces", "pods", "services"], &[], &["get", "list", "watch"]),
        rule("discovery.k8s.io", &["endpointslices"], &[], &["get", "list", "watch"]),
        rule("apps", &["replicasets"], &[], &["get", "list", "watch"]),
        rule(
            "gateway.networking.k8s.io",
            &["grpcroutes", "httproutes", "referencegrants"],
            &[],
            &["get", "list", "watch"]
        ),
        rule(
            "weft.dev",
            &["accesspolicies", "circuitbreakers", "trafficpolicies"],
            &[],
            &["get", "list", "watch"]
        ),
        rule(
            "weft.dev",
            &["accesspolicies/status", "circuitbreakers/status", "trafficpolicies/status"],
            &[],
            &["patch"]
        ),
        rule("authentication.k8s.io", &["tokenreviews"], &[], &["create"]),
        rule("events.k8s.io", &["events"], &[], &["create", "patch"]),
    ]);
    let mut role = own(rbac, "Role");
    role["rules"] = json!([
        rule("", &["secrets"], &[], &["create"]),
        rule("", &["secrets"], &["weft-ca"], &["get", "update"]),
        rule("coordination.k8s.io", &["leases"], &[], &["create"]),
        rule("coordination.k8s.io", &["leases"], &[CONTROL_PLANE], &["get", "update"]),
        rule("", &["pods"], &[], &["get", "patch"]),
    ]);
    vec![
        wide("v1", "Namespace"),
        wide("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        cluster_role,
        wide(rbac, "ClusterRoleBinding"),
        role,
        own(rbac, "RoleBinding"),
        own("v1", "ServiceAccount"),
        own("v1", "Service"),
        own("apps/v1", "Deployment"),
        own("policy/v1", "PodDisruptionBudget"),
        own("networking.k8s.io/v1", "NetworkPolicy"),
        wide("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ]
}

fn rule(group: &str, resources: &[&str], names: &[&str], verbs: &[&str]) -> Value {
    let mut rule = json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
    if !names.is_empty() {
        rule["resourceNames"] = json!(names);
    }
    rule
}
