//! The kinds that the mesh adds to a cluster: AccessPolicy, CircuitBreaker, TrafficPolicy.
//!
//! In: the types that the strict reader reads. Out: their CustomResourceDefinitions, with a status that the mesh writes,
//! columns for `kubectl get`, and the reader's refusals as rules.
//!
//! Invariant: there is one version and it is stored; nothing is ever converted.

mod schema;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceStatus,
    CustomResourceSubresources, CustomResourceValidation, JSONSchemaProps,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::PART_OF;

use crate::resources::policy::access_policy::AccessPolicySpec;
use crate::resources::policy::circuit_breaker::CircuitBreakerSpec;
use crate::resources::policy::traffic_policy::TrafficPolicySpec;

/// The API group.
pub const GROUP: &str = "weft.dev";
/// The only version.
pub const VERSION: &str = "v1alpha1";

/// A kind.
struct Kind {
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    /// What it is for, as `kubectl explain` says.
    about: &'static str,
    /// Whether it acts on its target only, or on what is attached to it as well (GEP-713).
    reach: &'static str,
    spec: fn() -> Value,
    /// What `kubectl get` shows beside name, conditions and age: heading and path.
    columns: &'static [(&'static str, &'static str)],
}

const KINDS: [Kind; 3] = [
    Kind {
        kind: "AccessPolicy",
        plural: "accesspolicies",
        short: "ap",
        about: "AccessPolicy says who may call what, by verified identity, and whether mutual TLS is asked for.",
        reach: "Inherited",
        spec: schema::of::<AccessPolicySpec>,
        columns: &[("Action", ".spec.action"), ("Mode", ".spec.mode"), ("mTLS", ".spec.mtls.mode")],
    },
    Kind {
        kind: "CircuitBreaker",
        plural: "circuitbreakers",
        short: "cb",
        about: "CircuitBreaker says when an endpoint or a whole service gets no more calls for a while.",
        reach: "Direct",
        spec: schema::of::<CircuitBreakerSpec>,
        columns: &[],
    },
    Kind {
        kind: "TrafficPolicy",
        plural: "trafficpolicies",
        short: "tp",
        about: "TrafficPolicy says how a service or a route is called: timeouts, retries, balancing, limits, faults, mirrors.",
        reach: "Inherited",
        spec: schema::of::<TrafficPolicySpec>,
        columns: &[],
    },
];

/// All of them, in order.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    KINDS.iter().map(definition).collect()
}

fn definition(kind: &Kind) -> CustomResourceDefinition {
    let name = format!("{}.{GROUP}", kind.plural);
    let labels = [("gateway.networking.k8s.io/policy", kind.reach), PART_OF];
    CustomResourceDefinition {
        metadata: ObjectMeta {
            name: Some(name),
            labels: Some(labels.map(|(key, value)| (key.into(), value.into())).into()),
            ..ObjectMeta::default()
        },
        spec: CustomResourceDefinitionSpec {
            group: GROUP.into(),
            names: CustomResourceDefinitionNames {
                kind: kind.kind.into(),
                list_kind: Some(format!("{}List", kind.kind)),
                plural: kind.plural.into(),
                singular: Some(kind.kind.to_lowercase()),
                short_names: Some(vec![kind.short.into()]),
                categories: Some(vec!["weft".into()]),
            },
            scope: "Namespaced".into(),
            versions: vec![CustomResourceDefinitionVersion {
                name: VERSION.into(),
                served: true,
                storage: true,
                schema: Some(CustomResourceValidation { open_api_v3_schema: Some(object(kind)) }),
                subresources: Some(CustomResourceSubresources {
                    status: Some(CustomResourceSubresourceStatus(json!({}))),
                    ..CustomResourceSubresources::default()
                }),
                additional_printer_columns: Some(columns(kind)),
                ..CustomResourceDefinitionVersion::default()
            }],
            ..CustomResourceDefinitionSpec::default()
        },
        status: None,
    }
}

fn columns(kind: &Kind) -> Vec<CustomResourceColumnDefinition> {
    let column = |name: &str, path: &str, priority| CustomResourceColumnDefinition {
        name: name.into(),
        json_path: path.into(),
        type_: if path == ".metadata.creationTimestamp" { "date" } else { "string" }.into(),
        priority: (priority > 0).then_some(priority),
        ..CustomResourceColumnDefinition::default()
    };
    let condition = |kind: &str, field: &str| format!(".status.conditions[?(@.type==\"{kind}\")].{field}");
    let mut columns = vec![column("Target", ".spec.targetRefs[*].name", 0)];
    columns.extend(kind.columns.iter().map(|(name, path)| column(name, path, 0)));
    columns.push(column("Accepted", &condition("Accepted", "status"), 0));
    columns.push(column("Programmed", &condition("Programmed", "status"), 0));
    columns.push(column("Reason", &condition("Accepted", "reason"), 0));
    columns.push(column("Age", ".metadata.creationTimestamp", 0));
    // With -o wide.
    columns.push(column("Message", &condition("Accepted", "message"), 1));
    columns.push(column("Proxies", &condition("Programmed", "message"), 1));
    columns
}

fn object(kind: &Kind) -> JSONSchemaProps {
    let schema = json!({
        "description": kind.about,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object" },
            "spec": (kind.spec)(),
            "status": status(),
        },
    });
    serde_json::from_value(schema).expect("a schema is one of JSON schema's objects")
}

/// What became of a policy, as the mesh says.
fn status() -> Value {
    json!({
        "description": "What became of it, written by the mesh.",
        "type": "object",
        "properties": {
            "conditions": conditions("Whether it is accepted, whether what it refers to is there, whether another policy overrides it, and how many sidecars have it."),
        },
    })
}

fn conditions(about: &str) -> Value {
    json!({
        "description": about,
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "maxItems": 8,
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": { "description": "What is stated.", "type": "string", "maxLength": 316 },
                "status": { "description": "Whether it is so.", "type": "string", "enum": ["True", "False", "Unknown"] },
                "reason": {
                    "description": "Why, in one word.",
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": { "description": "Why, for people.", "type": "string", "maxLength": 32768 },
                "lastTransitionTime": { "description": "Since when.", "type": "string", "format": "date-time" },
                "observedGeneration": {
                    "description": "Of which version of the object.",
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                },
            },
        },
    })
}

#[cfg(test)]
mod tests;
