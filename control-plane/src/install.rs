//! What a cluster is given: the objects of an installation, made of typed values.
//!
//! In: what the operator wishes ([`values`]). Out: objects, in an order in which they can be applied, each with a word on what it
//! is for. `weft install` prints them, `k8s/weft.yaml` is what it prints, and the chart is made from the same ([`chart`]).
//!
//! Invariants: nothing here is written twice. Schemas come from the types that read policies, ports and names from `wire`,
//! rights from one table that says what each is for. Fields stand in the API's order, so that two outputs can be compared.
//! Non-goal: talking to a cluster; that is `kubectl`'s work, so that whoever installs sees what they install.

pub mod change;
pub mod chart;
pub mod checked_in;
pub mod crd;
mod rights;
pub mod values;
mod workload;
pub mod yaml;

use serde_json::{Value, json};
use weft_wire::tls::CONTROL_PLANE;

use values::Values;

/// The control plane's namespace.
pub const NAMESPACE: &str = CONTROL_PLANE.0;
/// What its Deployment, Service, ServiceAccount and roles are called.
pub const NAME: &str = CONTROL_PLANE.1;
/// The annotation of the Deployment that remembers what was wished, for the next upgrade.
pub const INSTALLED_WITH: &str = "weft.dev/installed-with";
/// The label that every object of an installation has.
pub const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "weft");

/// An object of an installation.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// The object, with fields in the API's order.
    pub value: serde_yaml::Value,
    /// What it is for; may be empty.
    pub about: &'static str,
    /// The file of the chart that it is in, without extension.
    pub file: &'static str,
    /// The value that must be true for it to be there; none if it always is.
    pub condition: Option<&'static str>,
    /// A remark on each rule of a role.
    asides: Vec<String>,
}

impl Object {
    fn new(file: &'static str, about: &'static str, value: Value) -> Self {
        let value = yaml::typed(&value).expect("an object of the API");
        Self { value, about, file, condition: None, asides: Vec::new() }
    }

    fn with_asides(self, asides: Vec<String>) -> Self {
        Self { asides, ..self }
    }

    fn when(self, path: &'static str) -> Self {
        Self { condition: Some(path), ..self }
    }

    /// As text: its comment and its fields.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text: String = yaml::wrapped(self.about);
        let mut asides = self.asides.iter();
        for line in yaml::document(&self.value).lines() {
            if line.starts_with("- apiGroups:")
                && let Some(aside) = asides.next()
            {
                text.push_str(&format!("# {aside}\n"));
            }
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// Everything an installation consists of.
#[must_use]
pub fn objects(values: &Values) -> Vec<Object> {
    let mut objects = everything(values);
    objects.retain(|object| object.condition.is_none_or(|path| is_wished(values, path)));
    objects
}

/// The same with what is not wished.
fn everything(values: &Values) -> Vec<Object> {
    let mut objects = vec![namespace()];
    objects.extend(crd::definitions().iter().map(|definition| {
        let value = serde_json::to_value(definition).expect("JSON");
        Object::new("crds", "", value).when("crds.create")
    }));
    objects.push(workload::service_account(values));
    objects.extend(rights::objects());
    objects.extend(workload::services());
    objects.extend([
        workload::network_policy(values),
        workload::disruption_budget(),
        workload::deployment(values),
        workload::injector(values),
    ]);
    objects
}

/// Whether a switch is on.
fn is_wished(values: &Values, path: &str) -> bool {
    let values = serde_json::to_value(values).expect("values are JSON");
    let found = path.split('.').fold(&values, |value, field| &value[field]);
    found == &Value::Bool(true)
}

/// Objects as one text for `kubectl apply -f -`.
#[must_use]
pub fn text(objects: &[Object]) -> String {
    objects.iter().map(Object::text).collect::<Vec<_>>().join("---\n")
}

fn namespace() -> Object {
    let mut labels = labels();
    for mode in ["enforce", "audit", "warn"] {
        labels[format!("pod-security.kubernetes.io/{mode}")] = "restricted".into();
    }
    let value = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": NAMESPACE,
        "labels": labels,
        "annotations": { "helm.sh/resource-policy": "keep" },
    } });
    let about =
        "It holds the authority's keys, and may hold claims and Secrets of yours: helm uninstall leaves it.";
    Object::new("namespace", about, value).when("namespace.create")
}

/// Labels of everything, as Kubernetes recommends them.
fn labels() -> Value {
    json!({
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/instance": "weft",
        "app.kubernetes.io/component": "control-plane",
        PART_OF.0: PART_OF.1,
        "app.kubernetes.io/version": env!("CARGO_PKG_VERSION"),
    })
}

/// Labels by which its pods are found: what never changes.
fn selector() -> Value {
    json!({ "app.kubernetes.io/name": NAME, "app.kubernetes.io/instance": "weft" })
}

#[cfg(test)]
mod tests;
