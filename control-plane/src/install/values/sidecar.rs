//! What injected sidecars are like where neither pod nor namespace says otherwise.

use anyhow::anyhow;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use weft_wire::annotation as keys;

use super::patterns;
use crate::inject::Options;

/// Injected sidecars.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sidecar {
    /// native: init containers that stay (Kubernetes 1.29 and later). classic: containers beside the app's. Empty: what the cluster's version knows
    #[schemars(extend("enum" = ["", "native", "classic"]))]
    pub kind: String,
    /// What sidecars log: off, error, warn, info, debug or trace, or target=level,…; empty for info
    #[schemars(regex(pattern = patterns::FILTER))]
    pub log_level: String,
    /// What a sidecar asks for and may use
    pub resources: Resources,
}

/// What a sidecar asks for and may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// What it asks for
    pub requests: Requests,
    /// What it may use; empty for what its node has. It has as many workers as its CPU limit, rounded up to whole
    /// CPUs; without a limit, at most two
    pub limits: Limits,
}

/// What a sidecar asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Requests {
    /// CPU: 100m, 0.5, 2
    #[serde(deserialize_with = "quantity")]
    #[schemars(regex(pattern = patterns::CPU), extend("type" = ["string", "number"], "exclusiveMinimum" = 0, "exclusiveMaximum" = 10000))]
    pub cpu: String,
    /// Memory: 64Mi, 1Gi
    #[serde(deserialize_with = "quantity")]
    #[schemars(regex(pattern = patterns::MEMORY), extend("type" = ["string", "number"], "exclusiveMinimum" = 0, "exclusiveMaximum" = 1_000_000_000_000_000_000_u64))]
    pub memory: String,
}

/// What a sidecar may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// CPU: 100m, 0.5, 2
    #[serde(deserialize_with = "quantity")]
    #[schemars(regex(pattern = patterns::CPU_IF_ANY), extend("type" = ["string", "number"], "exclusiveMinimum" = 0, "exclusiveMaximum" = 10000))]
    pub cpu: String,
    /// Memory: 64Mi, 1Gi
    #[serde(deserialize_with = "quantity")]
    #[schemars(regex(pattern = patterns::MEMORY_IF_ANY), extend("type" = ["string", "number"], "exclusiveMinimum" = 0, "exclusiveMaximum" = 1_000_000_000_000_000_000_u64))]
    pub memory: String,
}

/// A quantity as Kubernetes takes it: a text, or a number, which becomes the text that Helm makes of it.
fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(match number.as_i64() {
            Some(whole) => whole.to_string(),
            // As Rust writes it: without an exponent, and 2.0 as 2.
            None => number.as_f64().map_or_else(|| number.to_string(), |float| float.to_string()),
        }),
        other => Err(D::Error::custom(format!("{other} is no quantity: write one such as 100m, 2 or 64Mi"))),
    }
}

impl Default for Requests {
    fn default() -> Self {
        // The injector's own.
        let Options { proxy_cpu_request, proxy_memory_request, .. } = Options::default();
        Self { cpu: proxy_cpu_request, memory: proxy_memory_request }
    }
}

impl Sidecar {
    /// Whether every value can be used: as the annotation's row judges it.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let Self { kind, log_level, resources: Resources { requests, limits } } = self;
        let judge = |path: &str, key: &str, value: &str, empty: bool| {
            if empty && value.is_empty() {
                return Ok(());
            }
            let row = keys::find(key).ok_or_else(|| anyhow!("{path}: {key} is not in the table"))?;
            row.check(value).map_err(|reason| anyhow!("{path}: {reason}"))
        };
        judge("sidecar.kind", keys::SIDECAR, kind, true)?;
        judge("sidecar.logLevel", keys::LOG_LEVEL, log_level, true)?;
        judge("sidecar.resources.requests.cpu", keys::CPU_REQUEST, &requests.cpu, false)?;
        judge("sidecar.resources.requests.memory", keys::MEMORY_REQUEST, &requests.memory, false)?;
        judge("sidecar.resources.limits.cpu", keys::CPU_LIMIT, &limits.cpu, true)?;
        judge("sidecar.resources.limits.memory", keys::MEMORY_LIMIT, &limits.memory, true)
    }
}
