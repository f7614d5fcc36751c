//! `weft status`: who runs which configuration.
//!
//! In: `GET /api/proxies`. Out: one row per workload, or per sidecar with `-o wide`, those that need a look first, and below the
//! table what they said when they refused something. Exit code: success iff nobody is stale or nacked.

use std::collections::BTreeMap;
use std::process::ExitCode;

use console::{Style, style};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::Format;
use crate::proxies::{self, Proxies, Sidecar, Sync, elapsed};
use crate::{output, table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft status                    every workload: do its sidecars run what they should
  weft status -o wide            every sidecar
  weft status -n shop            of one namespace
  weft status -o json | jq '.sidecars[] | select(.config != \"synced\")'

CONFIG: synced: it runs what it should; pending: it was sent something a moment ago; stale: it has not answered for more than
10 s; nacked: it refused something and runs what it had before.")]
pub(crate) struct StatusArgs {
    /// Only of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    api: crate::args::ApiArgs,
}

/// Rejections that are shown in full.
const REJECTIONS_TOLD: usize = 10;

pub(crate) async fn run(arguments: StatusArgs) -> anyhow::Result<ExitCode> {
    let StatusArgs { namespace, output: format, api } = arguments;
    let (Proxies { at, mut proxies }, silent) = proxies::ask_everywhere(&api.open().await?).await?;
    for replica in silent {
        output::note(format_args!("without those of {replica}"));
    }
    proxies.retain(|sidecar| namespace.is_none() || sidecar.namespace == namespace);
    proxies.sort_by_cached_key(|sidecar| (sidecar.sync(at), sidecar.workload(), sidecar.name()));
    match format {
        Format::Json => output::line(format_args!("{:#}", serde_json::to_value(told(&proxies, at))?)),
        Format::Table | Format::Wide if proxies.is_empty() => {
            let of = namespace.map(|name| format!(" in namespace {name}")).unwrap_or_default();
            output::line(format_args!("no sidecar{of} is connected: see `weft check --proxy`"));
        }
        Format::Table => output::text(&(workloads(&proxies, at) + &rejections(&proxies))),
        Format::Wide => output::text(&(sidecars(&proxies, at) + &rejections(&proxies))),
    }
    let good = proxies.iter().all(|sidecar| sidecar.sync(at) >= Sync::Pending);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `-o json`.
#[derive(Serialize)]
struct Told<'a> {
    at: Timestamp,
    sidecars: Vec<ToldSidecar<'a>>,
}

#[derive(Serialize)]
struct ToldSidecar<'a> {
    instance: &'a str,
    namespace: Option<&'a str>,
    workload: Option<&'a str>,
    pod: Option<&'a str>,
    config: Sync,
    waiting_since: Option<Timestamp>,
    answered_at: Option<Timestamp>,
    rejected: Option<&'a str>,
    subscriptions: usize,
    agent: &'a str,
    version: Option<&'a str>,
    connected_since: Option<Timestamp>,
}

fn told(sidecars: &[Sidecar], at: Timestamp) -> Told<'_> {
    Told { at, sidecars: sidecars.iter().map(|sidecar| told_of(sidecar, at)).collect() }
}

fn told_of(sidecar: &Sidecar, at: Timestamp) -> ToldSidecar<'_> {
    ToldSidecar {
        instance: &sidecar.instance,
        namespace: sidecar.namespace.as_deref(),
        workload: sidecar.workload.as_deref(),
        pod: sidecar.pod.as_deref(),
        config: sidecar.sync(at),
        waiting_since: sidecar.waiting_since,
        answered_at: sidecar.answered_at,
        rejected: sidecar.rejected.as_deref(),
        subscriptions: sidecar.subscriptions,
        agent: &sidecar.agent,
        version: sidecar.agent_version.as_deref(),
        connected_since: sidecar.connected_since,
    }
}

fn workloads(sidecars: &[Sidecar], now: Timestamp) -> String {
    let mut by_workload: BTreeMap<(Sync, String), Vec<&Sidecar>> = BTreeMap::new();
    let mut groups: BTreeMap<String, Vec<&Sidecar>> = BTreeMap::new();
    for sidecar in sidecars {
        groups.entry(sidecar.workload()).or_default().push(sidecar);
    }
    for (workload, group) in groups {
        let worst = group.iter().map(|sidecar| sidecar.sync(now)).min().unwrap_or(Sync::Synced);
        by_workload.insert((worst, workload), group);
    }
    let rows: Vec<Vec<String>> = by_workload
        .into_iter()
        .map(|((worst, workload), group)| {
            let count = |wanted| match group.iter().filter(|sidecar| sidecar.sync(now) == wanted).count() {
                0 => "-".to_owned(),
                count => coloured(wanted).apply_to(count).to_string(),
            };
            let versions: std::collections::BTreeSet<String> =
                group.iter().map(|sidecar| version(sidecar)).collect();
            let versions: Vec<String> = versions.into_iter().collect();
            let age = group.iter().filter_map(|sidecar| sidecar.waiting_since).min();
            vec![
                workload,
                coloured(worst).apply_to(worst).to_string(),
                group.len().to_string(),
                count(Sync::Synced),
                count(Sync::Pending),
                count(Sync::Stale),
                count(Sync::Nacked),
                age.map_or_else(|| "-".into(), |since| table::age(elapsed(since, now))),
                versions.join(", "),
            ]
        })
        .collect();
    let header = [
        "WORKLOAD",
        "CONFIG",
        ">SIDECARS",
        ">SYNCED",
        ">PENDING",
        ">STALE",
        ">NACKED",
        ">WAITING",
        "VERSION",
    ];
    table::render(&header, &rows)
}

fn sidecars(sidecars: &[Sidecar], now: Timestamp) -> String {
    let ago =
        |then: Option<Timestamp>| then.map_or_else(|| "-".into(), |then| table::age(elapsed(then, now)));
    let rows: Vec<Vec<String>> = sidecars
        .iter()
        .map(|sidecar| {
            let sync = sidecar.sync(now);
            vec![
                sidecar.workload(),
                sidecar.pod.clone().unwrap_or_else(|| "-".into()),
                coloured(sync).apply_to(sync).to_string(),
                ago(sidecar.waiting_since),
                ago(sidecar.answered_at),
                sidecar.subscriptions.to_string(),
                ago(sidecar.connected_since),
                version(sidecar),
            ]
        })
        .collect();
    let header =
        ["WORKLOAD", "POD", "CONFIG", ">WAITING", ">ANSWERED", ">RESOURCES", ">CONNECTED", "VERSION"];
    table::render(&header, &rows)
}

fn rejections(sidecars: &[Sidecar]) -> String {
    let refusing: Vec<&Sidecar> = sidecars.iter().filter(|sidecar| sidecar.rejected.is_some()).collect();
    let mut text = String::new();
    for sidecar in refusing.iter().take(REJECTIONS_TOLD) {
        let words = sidecar.rejected.as_deref().unwrap_or_default();
        text.push_str(&format!("{} {} refused: {words}\n", style("!").red(), sidecar.name()));
    }
    match refusing.len().saturating_sub(REJECTIONS_TOLD) {
        0 => {}
        more => text.push_str(&format!("… and {more} more\n")),
    }
    text
}

fn version(sidecar: &Sidecar) -> String {
    let version = sidecar.agent_version.as_deref().unwrap_or("?");
    // Ours is the rule.
    if sidecar.agent == weft_wire::node::USER_AGENT {
        version.to_owned()
    } else {
        format!("{} {version}", sidecar.agent)
    }
}

fn coloured(sync: Sync) -> Style {
    match sync {
        Sync::Nacked => Style::new().red().bold(),
        Sync::Stale => Style::new().yellow(),
        Sync::Pending | Sync::Synced => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::proxies::tests::sidecar;

    fn some() -> (Vec<Sidecar>, Timestamp) {
        let now = "2026-11-28T18:00:00Z".parse().expect("a time");
        let mut known = vec![
            sidecar("web-1", json!({})),
            sidecar("web-2", json!({ "synced": false, "waiting_since": "2026-11-28T17:58:00Z" })),
            sidecar("orders-1", json!({ "rejected": "Listener outbound/10.0.0.1:80: no such field" })),
            sidecar("cart-1", json!({ "agent": "envoy", "agent_version": "1.40.0" })),
        ];
        known.sort_by_cached_key(|sidecar| (sidecar.sync(now), sidecar.workload(), sidecar.name()));
        (known, now)
    }

    #[test]
    fn workloads_that_need_a_look_come_first() {
        console::set_colors_enabled(false);
        let (known, now) = some();
        insta::assert_snapshot!(workloads(&known, now) + &rejections(&known));
    }

    #[test]
    fn each_sidecar_has_a_row_if_that_is_wanted() {
        console::set_colors_enabled(false);
        let (known, now) = some();
        insta::assert_snapshot!(sidecars(&known, now));
    }

    #[test]
    fn programs_read_the_same() {
        let (known, now) = some();
        let value = serde_json::to_value(told(&known, now)).expect("JSON");
        assert_eq!(value["sidecars"][0]["config"], "nacked");
        assert_eq!(value["sidecars"][3]["config"], "synced");
    }
}
