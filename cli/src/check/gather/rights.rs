//! Who may do what: asked of the API server, which decides, and not read out of roles.
//!
//! In: the objects of an installation. Out: for whoever installs, the right to make each of them; for the control plane, every right
//! that its roles should give. Both lists are taken from what `weft install` prints, so that they cannot be forgotten here.

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::Value;

use super::super::facts::Fact;
use super::objects::objects;
use crate::kubernetes::{CONTROL_PLANE, NAMESPACE, ask};

/// Questions at a time.
const TOGETHER: usize = 16;

/// A right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    group: String,
    resource: String,
    /// On this object only.
    name: Option<String>,
    /// Within this namespace only.
    namespace: Option<String>,
}

impl Right {
    fn attributes(&self) -> ResourceAttributes {
        let (resource, subresource) = match self.resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (&*self.resource, None),
        };
        ResourceAttributes {
            verb: Some(self.verb.clone()),
            group: Some(self.group.clone()),
            resource: Some(resource.into()),
            subresource,
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            ..ResourceAttributes::default()
        }
    }

    fn words(&self) -> String {
        let Self { verb, group, resource, name, namespace } = self;
        let group = if group.is_empty() { String::new() } else { format!(".{group}") };
        let name = name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
        let place = namespace.as_deref().map(|name| format!(" in {name}")).unwrap_or_default();
        format!("{verb} {resource}{group}{name}{place}")
    }
}

/// What it takes to make an object.
fn to_create(object: &Value) -> Right {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    Right {
        verb: "create".into(),
        group: version.split_once('/').map_or("", |(group, _)| group).into(),
        resource: plural(object["kind"].as_str().unwrap_or_default()),
        name: None,
        namespace: object["metadata"]["namespace"].as_str().map(str::to_owned),
    }
}

/// A kind as paths write it.
fn plural(kind: &str) -> String {
    let lower = kind.to_lowercase();
    match lower.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{lower}s"),
    }
}

/// What a role gives.
fn of_role(role: &Value) -> Vec<Right> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let namespace = role["metadata"]["namespace"].as_str();
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let mut names: Vec<Option<String>> = texts(&rule["resourceNames"]).into_iter().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    rights.extend(names.iter().map(|name| Right {
                        verb: verb.clone(),
                        group: group.clone(),
                        resource: resource.clone(),
                        name: name.clone(),
                        namespace: namespace.map(str::to_owned),
                    }));
                }
            }
        }
    }
    rights
}

/// What of this whoever asks may not.
pub(super) async fn of_installer(client: &Client) -> Fact<Vec<String>> {
    let mut rights: Vec<Right> = objects().iter().map(to_create).collect();
    rights.sort();
    rights.dedup();
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let review = async |right: Right| {
        let question = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(right.attributes()),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = ask(reviews.create(&PostParams::default(), &question)).await?;
        Ok((right, answer.status.is_some_and(|status| status.allowed)))
    };
    missing(rights, review).await
}

/// What of this the control plane may not.
pub(super) async fn of_control_plane(client: &Client) -> Fact<Vec<String>> {
    let rights = objects().iter().filter(|object| is_role(object)).flat_map(of_role).collect();
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let review = async |right: Right| {
        let question = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:{NAMESPACE}:{CONTROL_PLANE}")),
                groups: Some(vec![
                    "system:serviceaccounts".into(),
                    format!("system:serviceaccounts:{NAMESPACE}"),
                    "system:authenticated".into(),
                ]),
                resource_attributes: Some(right.attributes()),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = ask(reviews.create(&PostParams::default(), &question)).await?;
        Ok((right, answer.status.is_some_and(|status| status.allowed)))
    };
    missing(rights, review).await
}

fn is_role(object: &Value) -> bool {
    matches!(object["kind"].as_str(), Some("ClusterRole" | "Role"))
}

async fn missing(
    rights: Vec<Right>,
    review: impl AsyncFn(Right) -> Fact<(Right, bool)>,
) -> Fact<Vec<String>> {
    let review = &review;
    let answers =
        futures_util::stream::iter(rights.into_iter().map(|right| review(right))).buffered(TOGETHER);
    let answers: Vec<(Right, bool)> = answers.try_collect().await?;
    Ok(answers.into_iter().filter(|(_, allowed)| !allowed).map(|(right, _)| right.words()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rights_are_told_as_one_would_grant_them() {
        let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "namespace": "weft-system" } });
        assert_eq!(to_create(&deployment).words(), "create deployments.apps in weft-system");
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": {} });
        assert_eq!(to_create(&namespace).words(), "create namespaces");
        assert_eq!(plural("NetworkPolicy"), "networkpolicies");
    }

    #[test]
    fn a_role_gives_each_verb_on_each_resource_and_name() {
        let role = json!({ "kind": "Role", "metadata": { "namespace": "weft-system" }, "rules": [
            { "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["weft-ca", "b"], "verbs": ["get", "update"] },
            { "apiGroups": ["weft.dev"], "resources": ["trafficpolicies/status"], "verbs": ["patch"] },
        ]});
        let rights = of_role(&role);
        assert_eq!(rights.len(), 5);
        assert_eq!(rights[0].words(), "get secrets weft-ca in weft-system");
        let attributes = rights[4].attributes();
        assert_eq!(attributes.subresource.as_deref(), Some("status"));
        assert_eq!(attributes.resource.as_deref(), Some("trafficpolicies"));
    }

    #[test]
    fn an_installation_asks_for_rights_and_needs_some() {
        let objects = objects();
        assert!(objects.iter().any(is_role));
        for object in &objects {
            assert!(object["kind"].is_string() && object["apiVersion"].is_string(), "{object}");
        }
        assert!(objects.iter().filter(|object| is_role(object)).flat_map(of_role).count() > 20);
    }
}
