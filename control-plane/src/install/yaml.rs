//! Objects as text, and texts as objects: YAML with fields in the API's order, read strictly. How words are written is said by
//! [`crate::yaml`].

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

/// Widest line of a comment.
const WIDTH: usize = 118;

/// One document, without the line that parts it from others.
///
/// # Panics
/// Never on objects of the API: their maps have texts as keys.
#[must_use]
pub fn document(object: &impl Serialize) -> String {
    let mut value = serde_yaml::to_value(object).expect("an object of the API is YAML");
    whole(&mut value);
    crate::yaml::text(&value).expect("what was read is YAML")
}

/// Writes numbers without a fraction as people do: schemas have all their bounds as fractions.
fn whole(value: &mut Value) {
    /// Whole numbers are exact up to here.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => {
            let exact = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < EXACT);
            if let Some(exact) = exact.filter(|_| number.is_f64()) {
                *number = (exact as i64).into();
            }
        }
        Value::Sequence(items) => items.iter_mut().for_each(whole),
        Value::Mapping(fields) => fields.values_mut().for_each(whole),
        _ => {}
    }
}

/// A comment, wrapped; a line break stays one.
pub(super) fn wrapped(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && line.len() + word.len() >= WIDTH {
                lines.push(std::mem::take(&mut line));
            }
            let space = if line.is_empty() { "" } else { " " };
            line.push_str(space);
            line.push_str(word);
        }
        lines.push(line);
    }
    lines.iter().map(|line| format!("# {line}\n")).collect()
}

/// An object through its type of the API and back: with fields in order, and nothing that the API does not have.
///
/// # Errors
/// When a field is unknown or has the wrong type, or the kind is none that an installation has.
pub fn typed(object: &impl Serialize) -> anyhow::Result<Value> {
    let value = serde_yaml::to_value(object)?;
    let word = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (word("apiVersion"), word("kind"));
    match (version.as_str(), kind.as_str()) {
        ("v1", "ConfigMap") => through::<ConfigMap>(value),
        ("v1", "Namespace") => through::<Namespace>(value),
        ("v1", "Service") => through::<Service>(value),
        ("v1", "ServiceAccount") => through::<ServiceAccount>(value),
        ("apps/v1", "Deployment") => through::<Deployment>(value),
        ("networking.k8s.io/v1", "NetworkPolicy") => through::<NetworkPolicy>(value),
        ("policy/v1", "PodDisruptionBudget") => through::<PodDisruptionBudget>(value),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => through::<ClusterRole>(value),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => through::<ClusterRoleBinding>(value),
        ("rbac.authorization.k8s.io/v1", "Role") => through::<Role>(value),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => through::<RoleBinding>(value),
        ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration") => {
            through::<MutatingWebhookConfiguration>(value)
        }
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => through::<CustomResourceDefinition>(value),
        _ => bail!("{version} {kind} is no kind that is known here"),
    }
}

fn through<T: DeserializeOwned + Serialize>(value: Value) -> anyhow::Result<Value> {
    let mut unknown = Vec::new();
    let object: T = serde_ignored::deserialize(value, |path| {
        // The type says these two, and has no fields for them.
        let path = path.to_string();
        if path != "apiVersion" && path != "kind" {
            unknown.push(path);
        }
    })?;
    ensure!(unknown.is_empty(), "unknown: {}", unknown.join(", "));
    serde_yaml::to_value(object).context("an object of the API is YAML")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Value> {
        typed(&serde_yaml::from_str::<Value>(text).expect("YAML"))
    }

    #[test]
    fn what_the_api_does_not_have_is_refused() {
        let text = "kind: ConfigMap\napiVersion: v1\ndata: {a: b}\nmetadata: {name: x}\n";
        let value = read(text).expect("right");
        assert_eq!(
            document(&value),
            "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: b\nmetadata:\n  name: x\n"
        );
        for wrong in [
            "kind: ConfigMap\napiVersion: v1\ndatas: {a: b}\n",
            "kind: ConfigMap\napiVersion: v1\nmetadata: {labls: {}}\n",
            "kind: ConfigMap\napiVersion: v1\ndata: {a: [b]}\n",
            "kind: Cow\napiVersion: v1\n",
            "apiVersion: apps/v1\nkind: Deployment\nspec: {selector: {}, template: {spec: {containers: [{name: a, imag: b}]}}}\n",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn comments_are_wrapped() {
        let long = "word ".repeat(40);
        assert!(
            wrapped(long.trim()).lines().all(|line| line.starts_with("# word") && line.len() <= WIDTH + 2)
        );
        assert_eq!(wrapped("a\nb"), "# a\n# b\n");
        assert_eq!(wrapped(""), "");
    }
}
