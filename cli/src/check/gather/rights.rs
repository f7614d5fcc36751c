//! Who may do what: asked of the API server, which decides, and not read out of roles.

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

use super::super::facts::Fact;
use crate::kubernetes::{CONTROL_PLANE, NAMESPACE, ask};

/// Questions at a time.
const TOGETHER: usize = 8;

/// A right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    /// Within the control plane's namespace only.
    own: bool,
}

impl Right {
    const fn new(verb: &'static str, group: &'static str, resource: &'static str, own: bool) -> Self {
        Self { verb, group, resource, own }
    }

    fn attributes(self) -> ResourceAttributes {
        let (resource, subresource) = match self.resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (self.resource, None),
        };
        ResourceAttributes {
            verb: Some(self.verb.into()),
            group: Some(self.group.into()),
            resource: Some(resource.into()),
            subresource,
            namespace: self.own.then(|| NAMESPACE.into()),
            ..ResourceAttributes::default()
        }
    }

    fn words(self) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let place = if self.own { format!(" in {NAMESPACE}") } else { String::new() };
        format!("{} {}{group}{place}", self.verb, self.resource)
    }
}

/// What whoever installs must be allowed to make.
const INSTALLER: [Right; 13] = [
    Right::new("create", "", "namespaces", false),
    Right::new("create", "apiextensions.k8s.io", "customresourcedefinitions", false),
    Right::new("create", "rbac.authorization.k8s.io", "clusterroles", false),
    Right::new("create", "rbac.authorization.k8s.io", "clusterrolebindings", false),
    Right::new("create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    Right::new("create", "", "serviceaccounts", true),
    Right::new("create", "", "services", true),
    Right::new("create", "", "configmaps", true),
    Right::new("create", "apps", "deployments", true),
    Right::new("create", "rbac.authorization.k8s.io", "roles", true),
    Right::new("create", "rbac.authorization.k8s.io", "rolebindings", true),
    Right::new("create", "policy", "poddisruptionbudgets", true),
    Right::new("create", "networking.k8s.io", "networkpolicies", true),
];

/// What of these whoever asks may not.
pub(super) async fn of_installer(client: &Client) -> Fact<Vec<String>> {
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
    missing(&INSTALLER, review).await
}

/// What the control plane needs.
const CONTROL_PLANES: [Right; 12] = [
    Right::new("watch", "", "services", false),
    Right::new("watch", "", "pods", false),
    Right::new("watch", "", "namespaces", false),
    Right::new("watch", "discovery.k8s.io", "endpointslices", false),
    Right::new("watch", "weft.dev", "trafficpolicies", false),
    Right::new("watch", "weft.dev", "accesspolicies", false),
    Right::new("watch", "weft.dev", "circuitbreakers", false),
    Right::new("create", "authentication.k8s.io", "tokenreviews", false),
    Right::new("create", "coordination.k8s.io", "leases", true),
    Right::new("update", "coordination.k8s.io", "leases", true),
    Right::new("create", "", "secrets", true),
    Right::new("update", "", "secrets", true),
];

/// What of these the control plane may not.
pub(super) async fn of_control_plane(client: &Client) -> Fact<Vec<String>> {
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
    missing(&CONTROL_PLANES, review).await
}

async fn missing(rights: &[Right], review: impl AsyncFn(Right) -> Fact<(Right, bool)>) -> Fact<Vec<String>> {
    let review = &review;
    let answers = futures_util::stream::iter(rights.iter().map(|right| review(*right))).buffered(TOGETHER);
    let answers: Vec<(Right, bool)> = answers.try_collect().await?;
    Ok(answers.into_iter().filter(|(_, allowed)| !allowed).map(|(right, _)| right.words()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_told_as_one_would_grant_them() {
        assert_eq!(
            Right::new("create", "apps", "deployments", true).words(),
            "create deployments.apps in weft-system"
        );
        assert_eq!(Right::new("create", "", "namespaces", false).words(), "create namespaces");
        let attributes = Right::new("patch", "weft.dev", "trafficpolicies/status", false).attributes();
        assert_eq!(attributes.subresource.as_deref(), Some("status"));
        assert_eq!(attributes.resource.as_deref(), Some("trafficpolicies"));
    }
}
