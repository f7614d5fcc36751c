//! The kinds that the server knows, and what a path asks for.

use serde_json::{Value, json};

/// A kind of object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// The API group; empty for the core group.
    pub group: String,
    /// The served versions, the preferred one first.
    pub versions: Vec<String>,
    /// The name in paths: `pods`.
    pub plural: String,
    /// `Pod`.
    pub kind: String,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// Whether its status is written apart from the rest.
    pub status: bool,
}

/// Group, version, plural, kind, whether it is in namespaces, whether it has a status of its own.
type Row = (&'static str, &'static str, &'static str, &'static str, bool, bool);

const BUILT_IN: &[Row] = &[
    ("", "v1", "configmaps", "ConfigMap", true, false),
    ("", "v1", "events", "Event", true, false),
    ("", "v1", "namespaces", "Namespace", false, true),
    ("", "v1", "nodes", "Node", false, true),
    ("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", true, true),
    ("", "v1", "pods", "Pod", true, true),
    ("", "v1", "secrets", "Secret", true, false),
    ("", "v1", "serviceaccounts", "ServiceAccount", true, false),
    ("", "v1", "services", "Service", true, true),
    (
        "admissionregistration.k8s.io",
        "v1",
        "mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
        false,
        false,
    ),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", false, true),
    ("apps", "v1", "daemonsets", "DaemonSet", true, true),
    ("apps", "v1", "deployments", "Deployment", true, true),
    ("apps", "v1", "replicasets", "ReplicaSet", true, true),
    ("apps", "v1", "statefulsets", "StatefulSet", true, true),
    ("batch", "v1", "cronjobs", "CronJob", true, true),
    ("batch", "v1", "jobs", "Job", true, true),
    ("coordination.k8s.io", "v1", "leases", "Lease", true, false),
    ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true, false),
    ("events.k8s.io", "v1", "events", "Event", true, false),
    ("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", true, false),
    ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", true, true),
    ("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", false, false),
    ("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", false, false),
    ("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", true, false),
    ("rbac.authorization.k8s.io", "v1", "roles", "Role", true, false),
];

/// What every cluster has.
pub(super) fn built_in() -> Vec<Resource> {
    let resource = |(group, version, plural, kind, namespaced, status): &Row| Resource {
        group: (*group).into(),
        versions: vec![(*version).into()],
        plural: (*plural).into(),
        kind: (*kind).into(),
        namespaced: *namespaced,
        status: *status,
    };
    BUILT_IN.iter().map(resource).collect()
}

impl Resource {
    /// The kind that a CustomResourceDefinition defines.
    pub(super) fn defined_by(definition: &Value) -> Option<Self> {
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let served = spec["versions"].as_array()?.iter().filter(|version| version["served"] == true);
        let versions: Vec<&Value> = served.collect();
        Some(Self {
            group: text(&spec["group"])?,
            versions: versions.iter().filter_map(|version| text(&version["name"])).collect(),
            plural: text(&spec["names"]["plural"])?,
            kind: text(&spec["names"]["kind"])?,
            namespaced: spec["scope"] == "Namespaced",
            status: versions.iter().any(|version| version["subresources"]["status"].is_object()),
        })
    }

    /// A definition of this kind, as small as it can be.
    pub(super) fn definition(&self) -> Value {
        let version = |(at, name): (usize, &String)| {
            json!({
                "name": name, "served": true, "storage": at == 0,
                "subresources": if self.status { json!({ "status": {} }) } else { json!({}) },
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            })
        };
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{}.{}", self.plural, self.group) },
            "spec": {
                "group": self.group,
                "names": { "plural": self.plural, "kind": self.kind },
                "scope": if self.namespaced { "Namespaced" } else { "Cluster" },
                "versions": self.versions.iter().enumerate().map(version).collect::<Vec<_>>(),
            },
        })
    }

    /// `v1`, `apps/v1`.
    #[must_use]
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// Its entry in what a group lists.
    pub(super) fn described(&self) -> Vec<Value> {
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        let main = json!({
            "name": self.plural, "singularName": self.kind.to_lowercase(), "kind": self.kind,
            "namespaced": self.namespaced, "verbs": verbs,
        });
        let status = self.status.then(|| {
            json!({
                "name": format!("{}/status", self.plural), "singularName": "", "kind": self.kind,
                "namespaced": self.namespaced, "verbs": ["get", "patch", "update"],
            })
        });
        [Some(main), status].into_iter().flatten().collect()
    }
}

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) namespace: Option<String>,
    pub(super) plural: String,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
}

impl Path {
    /// Reads `/api/v1/…` and `/apis/GROUP/VERSION/…`, down to a resource.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut segments = path.split('/').skip(1);
        let group = match segments.next()? {
            "api" => String::new(),
            "apis" => segments.next()?.to_owned(),
            _ => return None,
        };
        let version = segments.next().filter(|version| !version.is_empty())?.to_owned();
        let rest: Vec<&str> = segments.filter(|segment| !segment.is_empty()).collect();
        let (namespace, rest) = match rest.as_slice() {
            // A Namespace's own subresources are not in it.
            ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize"]) => {
                (Some((*namespace).to_owned()), rest.to_vec())
            }
            rest => (None, rest.to_vec()),
        };
        let mut rest = rest.into_iter().map(str::to_owned);
        Some(Self {
            group,
            version,
            namespace,
            plural: rest.next()?,
            name: rest.next(),
            subresource: rest.next(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources() {
        let parsed = |path: &str| {
            Path::parse(path)
                .map(|path| (path.group, path.namespace, path.plural, path.name, path.subresource))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parsed("/api/v1/pods"), Some((String::new(), None, "pods".into(), None, None)));
        assert_eq!(
            parsed("/apis/apps/v1/namespaces/shop/replicasets/a/status"),
            Some(("apps".into(), some("shop"), "replicasets".into(), some("a"), some("status")))
        );
        assert_eq!(
            parsed("/api/v1/namespaces/shop"),
            Some((String::new(), None, "namespaces".into(), some("shop"), None))
        );
        assert_eq!(parsed("/apis/apps/v1"), None);
        assert_eq!(parsed("/healthz"), None);
    }
}
