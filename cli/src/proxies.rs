//! The CLI's reading of `GET /api/proxies`: every connected sidecar, and how its configuration fares.
//!
//! Invariant: what an older control plane does not say is `None`, and nobody takes that for good news.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::{Api, Error};
use crate::kubernetes::chain;

/// A sidecar that owes an answer for longer is stale: an answer takes milliseconds, and on a busy machine a second.
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(10);

/// `GET /api/proxies`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Proxies {
    pub(crate) at: Timestamp,
    pub(crate) proxies: Vec<Sidecar>,
}

/// A connected sidecar.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sidecar {
    pub(crate) instance: String,
    #[serde(default)]
    pub(crate) agent: String,
    #[serde(default)]
    pub(crate) agent_version: Option<String>,
    pub(crate) workload: Option<String>,
    pub(crate) namespace: Option<String>,
    #[serde(default)]
    pub(crate) pod: Option<String>,
    #[serde(default)]
    pub(crate) identity: Option<String>,
    #[serde(default)]
    pub(crate) certificate: Option<Certificate>,
    #[serde(default)]
    pub(crate) trusts_bundle: Option<bool>,
    #[serde(default)]
    pub(crate) clock: Option<String>,
    #[serde(default)]
    pub(crate) connected_since: Option<Timestamp>,
    #[serde(default)]
    pub(crate) subscriptions: usize,
    #[serde(default)]
    pub(crate) synced: bool,
    #[serde(default)]
    pub(crate) waiting_since: Option<Timestamp>,
    #[serde(default)]
    pub(crate) answered_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) rejected: Option<String>,
    #[serde(default)]
    pub(crate) reports: Option<Reports>,
}

/// Of the connection to the control plane.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Certificate {
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

/// What is known of its reports.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Reports {
    pub(crate) last_report_at: Timestamp,
    /// Connections whose first bytes were waited for, lately; `None` where the control plane does not count them.
    #[serde(default)]
    pub(crate) detected: Option<u64>,
    /// Of these, those that ran into the deadline.
    #[serde(default)]
    pub(crate) detect_timeouts: Option<u64>,
    /// Outbound requests of an app that has been called, lately; `None` where the control plane does not count them.
    #[serde(default)]
    pub(crate) outbound: Option<u64>,
    /// Of these, those in the trace of a request that the app was sent.
    #[serde(default)]
    pub(crate) outbound_carried: Option<u64>,
    /// Of these, those in a trace of the app's own.
    #[serde(default)]
    pub(crate) outbound_own: Option<u64>,
}

/// How a sidecar's configuration fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sync {
    /// It refused something, and runs what it had before.
    Nacked,
    /// It has not answered to what it was sent for too long.
    Stale,
    /// It was sent something a moment ago.
    Pending,
    /// It runs what it should.
    Synced,
}

impl fmt::Display for Sync {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Nacked => "nacked",
            Self::Stale => "stale",
            Self::Pending => "pending",
            Self::Synced => "synced",
        })
    }
}

impl Sidecar {
    /// How its configuration fares.
    pub(crate) fn sync(&self, now: Timestamp) -> Sync {
        if self.rejected.is_some() {
            return Sync::Nacked;
        }
        if self.synced {
            return Sync::Synced;
        }
        // A control plane that does not say since when knows of no lateness.
        let late = self.waiting_since.is_some_and(|since| elapsed(since, now) > STALE_AFTER.as_secs());
        if late { Sync::Stale } else { Sync::Pending }
    }

    /// `shop/web`, else what it calls itself.
    pub(crate) fn workload(&self) -> String {
        match (&self.namespace, &self.workload) {
            (Some(namespace), Some(workload)) => format!("{namespace}/{workload}"),
            _ => self.instance.clone(),
        }
    }

    /// `shop/web-6d4f`, else the workload, else what it calls itself.
    pub(crate) fn name(&self) -> String {
        match (&self.namespace, &self.pod) {
            (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
            _ => self.workload(),
        }
    }
}

/// Whole seconds, nothing if it is to come.
pub(crate) fn elapsed(then: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.as_second().saturating_sub(then.as_second())).unwrap_or_default()
}

/// Asks for them.
pub(crate) async fn ask(api: &Api) -> Result<Proxies, Error> {
    api.json("/api/proxies").await
}

/// Asks every replica of the control plane: each knows those that are connected to itself. Also says which of them are silent.
pub(crate) async fn ask_everywhere(api: &Api) -> Result<(Proxies, Vec<String>), Error> {
    let mut known = ask(api).await?;
    let mut silent = Vec::new();
    for replica in api.others().await {
        match ask(&replica).await {
            Ok(more) => known.proxies.extend(more.proxies),
            Err(error) => silent.push(format!("{}: {}", replica.base(), chain(&error))),
        }
    }
    // A sidecar that moves from one to another may be known to both: the newer connection is the one that counts.
    known.proxies.sort_by(|a, b| (&a.instance, b.connected_since).cmp(&(&b.instance, a.connected_since)));
    known.proxies.dedup_by(|later, first| later.instance == first.instance);
    Ok((known, silent))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A sidecar of `shop`, as it is at 18:00 when all is well, but for what `fields` say.
    pub(crate) fn sidecar(pod: &str, fields: serde_json::Value) -> Sidecar {
        let mut value = serde_json::json!({
            "instance": format!("{pod}-instance"), "agent": "weft-proxy", "agent_version": env!("CARGO_PKG_VERSION"),
            "workload": pod.split('-').next(), "namespace": "shop", "pod": pod,
            "identity": "spiffe://cluster.local/ns/shop/sa/web",
            "certificate": { "not_before": "2026-11-28T12:00:00Z", "not_after": "2026-11-29T12:00:00Z" },
            "trusts_bundle": true, "connected_since": "2026-11-28T17:00:00Z", "subscriptions": 4, "synced": true,
            "answered_at": "2026-11-28T17:59:00Z",
            "reports": { "last_report_at": "2026-11-28T17:59:59Z" },
        });
        let (Some(object), serde_json::Value::Object(fields)) = (value.as_object_mut(), fields) else {
            panic!("objects")
        };
        object.extend(fields);
        serde_json::from_value(value).expect("the API's JSON")
    }

    #[test]
    fn late_is_who_owes_an_answer_for_long() {
        let now: Timestamp = "2026-11-28T18:00:00Z".parse().expect("a time");
        let sync = |fields| sidecar("web-1", fields).sync(now);
        assert_eq!(sync(serde_json::json!({})), Sync::Synced);
        let pending = serde_json::json!({ "synced": false, "waiting_since": "2026-11-28T17:59:58Z" });
        assert_eq!(sync(pending), Sync::Pending);
        let stale = serde_json::json!({ "synced": false, "waiting_since": "2026-11-28T17:59:40Z" });
        assert_eq!(sync(stale), Sync::Stale);
        assert_eq!(sync(serde_json::json!({ "synced": false })), Sync::Pending);
        assert_eq!(sync(serde_json::json!({ "rejected": "no such field" })), Sync::Nacked);
    }
}
