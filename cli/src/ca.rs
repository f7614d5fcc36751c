//! `weft ca`: the mesh's certificate authority: its certificates, and the rotation of its root.
//!
//! In: the API's `/api/ca`. Out: what is valid until when, and how far a rotation is, in words.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde::Deserialize;

use crate::token::spoken;
use crate::{args, output, table};

/// How often `--watch` asks.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:
  weft ca status              roots, the issuing certificate, how far a rotation is
  weft ca status -w           again every second
  weft ca rotate              begin to replace the root, in phases that wait for everybody
  weft ca rotate --force      do not wait any longer: take the next phase now"
)]
pub(crate) struct CaArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    api: args::ApiArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show certificates, and how far a rotation is
    Status {
        /// Ask again every second, until Ctrl-C
        #[arg(short, long)]
        watch: bool,
        /// How to show it
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Replace the root: first everybody trusts the new one too, then it issues, then the old one is dropped
    Rotate {
        /// Take the next phase of the rotation that goes on, although not everybody is ready
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// As the API says it
    Json,
}

#[derive(Debug, Deserialize)]
struct Overview {
    at: u64,
    trust_domain: String,
    kept: bool,
    brought: bool,
    roots: Vec<Certificate>,
    issuer: Certificate,
    own: Certificate,
    leaf_seconds: u64,
    sidecars: Sidecars,
    rotation: Option<Rotation>,
    #[serde(default)]
    clocks: Vec<Clock>,
}

#[derive(Debug, Deserialize)]
struct Certificate {
    subject: String,
    fingerprint: String,
    not_after: u64,
}

#[derive(Debug, Deserialize)]
struct Sidecars {
    connected: usize,
    trusting: usize,
}

#[derive(Debug, Deserialize)]
struct Rotation {
    phase: String,
    since: u64,
    until: Option<u64>,
    text: String,
    #[serde(default)]
    waiting: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Clock {
    text: String,
}

pub(crate) async fn run(arguments: CaArgs) -> anyhow::Result<ExitCode> {
    let CaArgs { action, api } = arguments;
    let api = api.open().await?;
    match action {
        Action::Status { watch, output: format } => {
            let once = async || -> anyhow::Result<String> {
                let body = api.get("/api/ca").await?;
                Ok(match format {
                    Format::Table => show(&api.read(&body)?),
                    Format::Json => String::from_utf8_lossy(&body).into_owned(),
                })
            };
            if watch {
                return output::again(PERIOD, matches!(format, Format::Table), once).await;
            }
            output::text(&once().await?);
        }
        Action::Rotate { force } => {
            let wanted = serde_json::json!({ "force": force }).to_string();
            let body = api.post("/api/ca/rotate", "application/json", wanted).await?;
            output::text(&show(&api.read(&body)?));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(overview: &Overview) -> String {
    let row = |what: &str, certificate: &Certificate| {
        let left = certificate.not_after.saturating_sub(overview.at);
        let expires = if left == 0 { "expired".to_owned() } else { format!("in {}", spoken(left)) };
        vec![what.to_owned(), certificate.fingerprint.clone(), expires, certificate.subject.clone()]
    };
    let mut rows = Vec::new();
    for (at, root) in overview.roots.iter().enumerate() {
        rows.push(row(if at == 0 { "root, issuing" } else { "root, trusted" }, root));
    }
    rows.push(row("issuer", &overview.issuer));
    rows.push(row("control plane", &overview.own));
    let Sidecars { connected, trusting } = overview.sidecars;
    let from = match (overview.brought, overview.kept) {
        (true, _) => "brought with --ca-dir",
        (false, true) => "made here, kept in the data directory",
        (false, false) => "made here, in memory only: a restart makes a new root",
    };
    let mut text = format!("trust domain {}, {from}\n", overview.trust_domain);
    let life = spoken(overview.leaf_seconds);
    writeln!(
        text,
        "certificates of sidecars live for {life}; {trusting} of {connected} sidecars trust what is issued"
    )
    .ok();
    text.push('\n');
    text.push_str(&table::render(&["CERTIFICATE", "KEY", "EXPIRES", "SUBJECT"], &rows));
    text.push('\n');
    text.push_str(&rotation(overview));
    for clock in &overview.clocks {
        writeln!(text, "! {}", clock.text).ok();
    }
    text
}

fn rotation(overview: &Overview) -> String {
    let Some(rotation) = &overview.rotation else { return "no rotation is going on\n".into() };
    let (number, what, next) = match rotation.phase.as_str() {
        "distributing" => ("1 of 3", "the new root is being distributed", "then it issues"),
        _ => ("2 of 3", "the new root issues", "then the old root is dropped"),
    };
    let since = spoken(overview.at.saturating_sub(rotation.since));
    let mut text = format!("rotation, phase {number} for {since}: {what}\n  {}; {next}", rotation.text);
    if let Some(until) = rotation.until {
        write!(text, " in {}", spoken(until.saturating_sub(overview.at))).ok();
    }
    text.push('\n');
    if !rotation.waiting.is_empty() {
        writeln!(text, "  waiting for {}", rotation.waiting.join(", ")).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_is_told_in_words() {
        let certificate = |subject: &str| Certificate {
            subject: subject.into(),
            fingerprint: "1a2b3c4d".into(),
            not_after: 1_000 + 3_600 * 24,
        };
        let overview = Overview {
            at: 1_000,
            trust_domain: "cluster.local".into(),
            kept: true,
            brought: false,
            roots: vec![certificate("CN=old"), certificate("CN=new")],
            issuer: certificate("CN=intermediate"),
            own: certificate("spiffe://cluster.local/ns/weft-system/sa/weft-control-plane"),
            leaf_seconds: 86_400,
            sidecars: Sidecars { connected: 42, trusting: 41 },
            rotation: Some(Rotation {
                phase: "distributing".into(),
                since: 940,
                until: None,
                text: "41 of 42 sidecars trust the new root".into(),
                waiting: vec!["orders-1".into()],
            }),
            clocks: vec![Clock { text: "orders' clock is 7 s behind".into() }],
        };
        let text = show(&overview);
        assert!(
            text.ends_with(
                "rotation, phase 1 of 3 for 60 s: the new root is being distributed\n  41 of 42 sidecars trust the new \
                 root; then it issues\n  waiting for orders-1\n! orders' clock is 7 s behind\n"
            ),
            "{text}"
        );
        assert!(text.contains("in 24 h"), "{text}");
    }
}
