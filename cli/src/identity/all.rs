//! `weft identity --all`: who every connected sidecar is, until when, and whether it trusts the current roots.
//!
//! In: `/api/proxies` of the replica that leads. Out: whom it asked, on standard error; a table, those that need a look first, or the API's own JSON. Exit code: success iff each
//! has a certificate that is valid.

use std::cmp::Reverse;
use std::process::ExitCode;

use console::style;
use jiff::Timestamp;
use serde::Deserialize;

use super::{date, distance};
use crate::api::Api;
use crate::{output, table};

#[derive(Debug, Deserialize)]
struct Proxies {
    at: Timestamp,
    proxies: Vec<Sidecar>,
}

#[derive(Debug, Deserialize)]
struct Sidecar {
    instance: String,
    workload: Option<String>,
    namespace: Option<String>,
    #[serde(default)]
    pod: Option<String>,
    #[serde(default)]
    identity: Option<String>,
    #[serde(default)]
    certificate: Option<Certificate>,
    #[serde(default)]
    trusts_bundle: Option<bool>,
    #[serde(default)]
    clock: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Certificate {
    not_before: Timestamp,
    not_after: Timestamp,
    #[serde(default)]
    root: Option<String>,
}

impl Sidecar {
    fn is_valid(&self, now: Timestamp) -> bool {
        self.certificate.as_ref().is_some_and(|certificate| now < certificate.not_after)
    }

    fn name(&self) -> String {
        match (&self.namespace, &self.workload) {
            (Some(namespace), Some(workload)) => format!("{namespace}/{workload}"),
            _ => self.instance.clone(),
        }
    }
}

pub(super) async fn run(api: &Api, json: bool) -> anyhow::Result<ExitCode> {
    let body = api.get("/api/proxies").await?;
    let Proxies { at, mut proxies } = api.read(&body)?;
    output::note(asked(api.base(), api.leads()));
    if json {
        output::text(&String::from_utf8_lossy(&body));
    } else {
        output::text(&show(&mut proxies, at));
    }
    let valid = proxies.iter().all(|sidecar| sidecar.is_valid(at));
    Ok(if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whom these answers are from: sidecars are connected to the replica that leads, and it alone knows all of them.
fn asked(whom: &str, leads: Option<bool>) -> String {
    match leads {
        Some(true) => format!("asked {whom}, which leads"),
        Some(false) => format!(
            "asked {whom}; no replica is marked as the one that leads, and others may have sidecars, too: see `weft check`"
        ),
        // An address says nothing of who is behind it.
        None => format!("asked {whom}"),
    }
}

fn show(sidecars: &mut [Sidecar], now: Timestamp) -> String {
    if sidecars.is_empty() {
        return "no sidecar is connected\n  start one: weft run --name NAME --port PORT -- COMMAND\n".into();
    }
    sidecars.sort_by_cached_key(|sidecar| {
        let until = sidecar.certificate.as_ref().map(|certificate| certificate.not_after);
        (Reverse(until.is_none()), until, sidecar.name())
    });
    let rows: Vec<_> = sidecars.iter().map(|sidecar| row(sidecar, now)).collect();
    let header = ["WORKLOAD", "POD", "IDENTITY", "AGE", "EXPIRES", "ROOT", "TRUSTS"];
    let mut text = table::render(&header, &rows);
    for clock in sidecars.iter().filter_map(|sidecar| sidecar.clock.as_deref()) {
        text.push_str(&format!("! {clock}\n"));
    }
    let without = sidecars.iter().filter(|sidecar| sidecar.identity.is_none()).count();
    if without > 0 {
        let all = sidecars.len();
        text.push_str(&format!(
            "! {without} of {all} sidecars have no identity, and their calls are plain text: connect them by https:// with a \
             join token\n  make one: weft token create --name NAME\n"
        ));
    }
    text
}

fn row(sidecar: &Sidecar, now: Timestamp) -> Vec<String> {
    let dash = || "-".to_owned();
    let identity = match &sidecar.identity {
        Some(identity) => identity.clone(),
        None => style("none").yellow().to_string(),
    };
    let mut row = vec![sidecar.name(), sidecar.pod.clone().unwrap_or_else(dash), identity];
    let seconds = now.as_second();
    match &sidecar.certificate {
        Some(Certificate { not_before, not_after, root }) => {
            let until = not_after.as_second();
            let expires = format!("{} ({})", distance(until, seconds), date(until));
            let expired = now >= *not_after;
            row.push(table::age(seconds.saturating_sub(not_before.as_second()).max(0).unsigned_abs()));
            row.push(if expired { style(expires).red().bold().to_string() } else { expires });
            row.push(root.clone().unwrap_or_else(dash));
        }
        None => row.extend([dash(), dash(), dash()]),
    }
    row.push(match sidecar.trusts_bundle.filter(|_| sidecar.identity.is_some()) {
        Some(true) => "current roots".into(),
        Some(false) => style("not yet").yellow().to_string(),
        None => dash(),
    });
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_need_a_look_come_first() {
        console::set_colors_enabled(false);
        let mut known: Proxies = serde_json::from_str(
            r#"{"at": "2026-11-28T18:00:00Z", "proxies": [
            {"instance": "a1", "workload": "web", "namespace": "shop", "pod": "web-1", "identity": "spiffe://cluster.local/ns/shop/sa/web",
              "certificate": {"serial": "0a", "not_before": "2026-11-28T12:00:00Z", "not_after": "2026-11-29T12:00:00Z", "issuer": "CN=i", "root": "1a2b3c4d"},
              "trusts_bundle": true, "clock": null},
            {"instance": "b1", "workload": "orders", "namespace": "shop", "pod": null, "identity": "spiffe://cluster.local/ns/shop/sa/orders",
              "certificate": {"serial": "0b", "not_before": "2026-11-27T12:00:00Z", "not_after": "2026-11-28T12:00:00Z", "issuer": "CN=i", "root": null},
              "trusts_bundle": false, "clock": "orders' clock is 7 s behind"},
            {"instance": "c1", "workload": "cart", "namespace": "shop", "pod": null, "identity": null, "certificate": null, "trusts_bundle": false}]}"#,
        )
        .expect("the API's JSON");
        insta::assert_snapshot!(show(&mut known.proxies, known.at));
        assert_eq!(known.proxies.iter().filter(|sidecar| sidecar.is_valid(known.at)).count(), 1);
    }

    #[test]
    fn whom_it_asked_is_said_and_whether_that_one_knows_all() {
        assert_eq!(asked("pod a", Some(true)), "asked pod a, which leads");
        assert!(asked("pod a", Some(false)).contains("no replica is marked"));
        assert_eq!(asked("http://127.0.0.1:8080", None), "asked http://127.0.0.1:8080");
    }

    #[test]
    fn nobody_there_is_no_empty_table() {
        assert!(show(&mut [], Timestamp::UNIX_EPOCH).contains("weft run"));
    }
}
