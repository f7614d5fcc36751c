//! `healthCheck` of a TrafficPolicy.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{self, Rule};
use super::{At, not_shorter};
use crate::resources::{Refusal, Segment};
use crate::world::policy::{HealthCheck, Probe};

/// How often an endpoint is asked: a dead one is noticed within half a minute, and a hundred sidecars ask it ten times
/// a second together.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long its answer may take: a health endpoint that takes longer says enough.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Good answers in a row that make an endpoint healthy: one may be luck.
const HEALTHY: u32 = 2;
/// Bad answers in a row that make it unhealthy: one may be a lost packet, two a slow moment.
const UNHEALTHY: u32 = 3;

/// How endpoints are probed, by every sidecar that calls them.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(HEALTH_CHECK)))]
pub struct HealthCheckSpec {
    /// `HTTP`, `GRPC` or `TCP`.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["HTTP", "GRPC", "TCP"]))]
    pub kind: String,
    /// HTTP: the path; `/` if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Path>")]
    pub path: Option<String>,
    /// HTTP: the host; the service's name and port if absent.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub host: Option<String>,
    /// HTTP: statuses of a good answer; 200 if absent.
    #[serde(default)]
    #[schemars(inner(range(min = 100, max = 599)))]
    pub expected_statuses: Option<Vec<i64>>,
    /// GRPC: the service asked about; the whole server if absent.
    #[serde(default)]
    pub service: Option<String>,
    /// How often; `10s` if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub interval: Option<String>,
    /// How long an answer may take; `1s` if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Span>")]
    pub timeout: Option<String>,
    /// Good answers in a row that make an endpoint healthy; 2 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Positive>")]
    pub healthy_threshold: Option<i64>,
    /// Bad answers in a row that make it unhealthy; 3 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Positive>")]
    pub unhealthy_threshold: Option<i64>,
}

const HEALTH_CHECK: &[Rule] = &[
    ("path", "!has(self.path) || self.type == 'HTTP'", "means something to a check of type HTTP only"),
    ("host", "!has(self.host) || self.type == 'HTTP'", "means something to a check of type HTTP only"),
    (
        "expectedStatuses",
        "!has(self.expectedStatuses) || self.type == 'HTTP'",
        "means something to a check of type HTTP only",
    ),
    ("service", "!has(self.service) || self.type == 'GRPC'", "means something to a check of type GRPC only"),
    (
        "timeout",
        "!has(self.timeout) || duration(self.timeout) <= duration(has(self.interval) ? self.interval : '10s')",
        "is longer than interval",
    ),
];

pub(super) fn health_check(spec: &HealthCheckSpec, path: &[Segment]) -> Result<HealthCheck, Refusal> {
    let at = At(path);
    let interval = at.span("interval", spec.interval.as_ref())?.unwrap_or(INTERVAL);
    let timeout = at.span("timeout", spec.timeout.as_ref())?;
    not_shorter(at.field("timeout"), Some(interval), timeout, "")
        .map_err(|(at, _)| (at, "is longer than interval".into()))?;
    Ok(HealthCheck {
        probe: probe(spec, path)?,
        interval,
        timeout: timeout.unwrap_or(TIMEOUT.min(interval)),
        healthy_threshold: at
            .number("healthyThreshold", spec.healthy_threshold, 1, u32::MAX)?
            .unwrap_or(HEALTHY),
        unhealthy_threshold: at
            .number("unhealthyThreshold", spec.unhealthy_threshold, 1, u32::MAX)?
            .unwrap_or(UNHEALTHY),
    })
}

fn probe(spec: &HealthCheckSpec, path: &[Segment]) -> Result<Probe, Refusal> {
    let http = [
        ("path", spec.path.is_some()),
        ("host", spec.host.is_some()),
        ("expectedStatuses", spec.expected_statuses.is_some()),
    ];
    let grpc = [("service", spec.service.is_some())];
    let foreign: Vec<(&str, bool)> = match spec.kind.as_str() {
        "HTTP" => grpc.to_vec(),
        "GRPC" => http.to_vec(),
        "TCP" => http.into_iter().chain(grpc).collect(),
        other => return Err((path![@path; "type"], format!("{other:?} is not HTTP, GRPC or TCP"))),
    };
    if let Some((field, _)) = foreign.into_iter().find(|(_, set)| *set) {
        return Err((path![@path; field], format!("means nothing to a check of type {}", spec.kind)));
    }
    Ok(match spec.kind.as_str() {
        "GRPC" => Probe::Grpc { service: spec.service.as_deref().unwrap_or_default().into() },
        "TCP" => Probe::Tcp,
        _ => http_probe(spec, path)?,
    })
}

fn http_probe(spec: &HealthCheckSpec, path: &[Segment]) -> Result<Probe, Refusal> {
    let asked = spec.path.as_deref().unwrap_or("/");
    if !asked.starts_with('/') || asked.chars().any(|c| c.is_control() || c == ' ') {
        return Err((path![@path; "path"], format!("{asked:?} is not a path")));
    }
    if let Some(host) = &spec.host
        && host.parse::<http::uri::Authority>().is_err()
    {
        return Err((path![@path; "host"], format!("{host:?} is not a host")));
    }
    let mut statuses = Vec::new();
    for (index, code) in spec.expected_statuses.iter().flatten().enumerate() {
        let status = u16::try_from(*code).ok().filter(|status| (100..600).contains(status));
        let status = status.ok_or_else(|| {
            (path![@path; "expectedStatuses", index], format!("{code} is not a status (100 to 599)"))
        })?;
        statuses.push((status, status));
    }
    Ok(Probe::Http { path: asked.into(), host: spec.host.as_deref().map(Into::into), statuses })
}
