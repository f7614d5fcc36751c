//! What injected sidecars are like where neither pod nor namespace says otherwise.

use anyhow::anyhow;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_wire::annotation as keys;

use crate::inject::Options;

/// Injected sidecars.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sidecar {
    /// native: init containers that stay (Kubernetes 1.29 and later). classic: containers beside the app's. Empty: as the control
    /// plane decides
    #[schemars(extend("enum" = ["", "native", "classic"]))]
    pub kind: String,
    /// What sidecars log; empty for their own default
    #[schemars(regex(pattern = r"^[A-Za-z0-9_:=,./-]*$"))]
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
    /// What it may use; empty for what its node has. It has as many workers as its CPU limit is whole CPUs
    pub limits: Limits,
}

/// What a sidecar asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Requests {
    /// CPU
    #[schemars(regex(pattern = r"^[0-9.]+m?$"))]
    pub cpu: String,
    /// Memory
    #[schemars(regex(pattern = r"^[0-9.]+[A-Za-z]*$"))]
    pub memory: String,
}

/// What a sidecar may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// CPU
    #[schemars(regex(pattern = r"^([0-9.]+m?)?$"))]
    pub cpu: String,
    /// Memory
    #[schemars(regex(pattern = r"^([0-9.]+[A-Za-z]*)?$"))]
    pub memory: String,
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
        // What a filter may have and a command line in a template may not.
        super::text("sidecar.logLevel", log_level, "_:=,./-", true)?;
        judge("sidecar.resources.requests.cpu", keys::CPU_REQUEST, &requests.cpu, false)?;
        judge("sidecar.resources.requests.memory", keys::MEMORY_REQUEST, &requests.memory, false)?;
        judge("sidecar.resources.limits.cpu", keys::CPU_LIMIT, &limits.cpu, true)?;
        judge("sidecar.resources.limits.memory", keys::MEMORY_LIMIT, &limits.memory, true)
    }
}
