//! `weft authz`: who may call what, what rules said, and what would become of one call.
//!
//! In: `GET /api/access` and `GET /api/access/check`. Out: a table of policies with rates, or a decision with its reason.
//! Invariant: a call that would be denied makes the exit code 1, so that scripts can ask. Non-goal: deciding; the control
//! plane does.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use console::style;
use serde::Deserialize;

use crate::api::{Api, query};
use crate::{output, table};

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  weft authz                                                 every policy with the rates of its rules
  weft authz check shop/web orders.shop:8080 GET /orders/42  may it?
  weft authz check - orders.shop:8080                        may somebody without a certificate?
  weft authz check shop/web db.shop:5432                     may it open a connection?"
)]
pub(crate) struct AuthzArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    window: crate::args::WindowArgs,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    api: crate::args::ApiArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what would become of a call, and why; the exit code is 1 if it would be denied
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Who calls: namespace/workload, namespace/service-account, a SPIFFE ID, or - for somebody without a certificate
    #[arg(allow_hyphen_values = true)]
    from: String,
    /// Who is called: name.namespace:port, namespace/name:port, or an endpoint's address
    to: String,
    /// The method
    #[arg(default_value = "GET")]
    method: String,
    /// The path
    #[arg(default_value = "/")]
    path: String,
    /// A header field that the request has; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    api: crate::args::ApiArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// As the API says it
    Json,
}

/// `GET /api/access`, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Overview {
    #[serde(default)]
    policies: Vec<Policy>,
    #[serde(default)]
    unmatched: Vec<Said>,
}

#[derive(Debug, Deserialize)]
struct Policy {
    name: String,
    #[serde(default)]
    action: Option<String>,
    #[serde(default)]
    audit: bool,
    #[serde(default)]
    targets: Vec<String>,
    #[serde(default)]
    said: Vec<Said>,
}

#[derive(Debug, Deserialize)]
struct Said {
    #[serde(default)]
    rule: Option<String>,
    service: String,
    allowed_per_second: f64,
    denied_per_second: f64,
    would_allow_per_second: f64,
    would_deny_per_second: f64,
}

/// `GET /api/access/check`.
#[derive(Debug, Deserialize)]
struct Checked {
    #[serde(default)]
    from: Option<String>,
    to: String,
    allowed: bool,
    #[serde(default)]
    endpoints: Vec<At>,
    #[serde(default)]
    endpoints_left_out: usize,
}

#[derive(Debug, Deserialize)]
struct At {
    address: String,
    #[serde(default)]
    workload: Option<String>,
    mtls: String,
    allowed: bool,
    #[serde(default)]
    rule: Option<String>,
    why: String,
    #[serde(default)]
    audits: Vec<Audit>,
}

#[derive(Debug, Deserialize)]
struct Audit {
    verdict: String,
    why: String,
}

pub(crate) async fn run(arguments: AuthzArgs) -> anyhow::Result<ExitCode> {
    let AuthzArgs { command, window, output: format, api } = arguments;
    match command {
        Some(Command::Check(check)) => self::check(check).await,
        None => overview(&window.window, format, &api.open().await?).await.map(|()| ExitCode::SUCCESS),
    }
}

async fn overview(window: &str, format: Format, api: &Api) -> anyhow::Result<()> {
    let body = api.get(&format!("/api/access{}", query(&[("window", Some(window))]))).await?;
    match format {
        Format::Json => {
            output::line(format_args!("{:#}", serde_json::from_slice::<serde_json::Value>(&body)?))
        }
        Format::Table => {
            let overview: Overview = api.read(&body)?;
            if overview.policies.is_empty() && overview.unmatched.is_empty() {
                output::line("no AccessPolicy is known: every call is let in, unless a namespace is closed");
                return Ok(());
            }
            output::text(&rows(&overview));
        }
    }
    Ok(())
}

const HEADER: [&str; 8] =
    ["POLICY", "ACTION", "RULE", "SERVICE", ">ALLOWED/S", ">DENIED/S", ">WOULD ALLOW/S", ">WOULD DENY/S"];

fn rows(overview: &Overview) -> String {
    let mut rows = Vec::new();
    for policy in &overview.policies {
        let action = policy.action.as_deref().unwrap_or("mTLS");
        let action = if policy.audit { format!("{action} (audit)") } else { action.to_owned() };
        if policy.said.is_empty() {
            let targets = policy.targets.join(", ");
            let nothing = || "-".to_owned();
            rows.push(vec![
                policy.name.clone(),
                action,
                nothing(),
                targets,
                nothing(),
                nothing(),
                nothing(),
                nothing(),
            ]);
            continue;
        }
        rows.extend(policy.said.iter().map(|said| row(&policy.name, &action, said)));
    }
    rows.extend(overview.unmatched.iter().map(|said| row("(none allows)", "", said)));
    table::render(&HEADER, &rows)
}

fn row(policy: &str, action: &str, said: &Said) -> Vec<String> {
    let rule = said.rule.as_deref().and_then(|rule| rule.rsplit('/').next()).unwrap_or("-");
    let rate = |rate: f64| if rate > 0.0 { format!("{rate:.1}") } else { "0".to_owned() };
    let red = |rate_: f64| {
        let text = rate(rate_);
        if rate_ > 0.0 { style(text).red().to_string() } else { text }
    };
    vec![
        policy.to_owned(),
        action.to_owned(),
        rule.to_owned(),
        said.service.clone(),
        rate(said.allowed_per_second),
        red(said.denied_per_second),
        rate(said.would_allow_per_second),
        red(said.would_deny_per_second),
    ]
}

async fn check(arguments: CheckArgs) -> anyhow::Result<ExitCode> {
    let CheckArgs { from, to, method, path, headers, output: format, api } = arguments;
    let api = api.open().await?;
    let headers = (!headers.is_empty()).then(|| headers.join("\n"));
    let parameters = [
        ("from", Some(from.as_str())),
        ("to", Some(to.as_str())),
        ("method", Some(method.as_str())),
        ("path", Some(path.as_str())),
        ("headers", headers.as_deref()),
    ];
    let body = api.get(&format!("/api/access/check{}", query(&parameters))).await?;
    let checked: Checked = api.read(&body)?;
    match format {
        Format::Json => {
            output::line(format_args!("{:#}", serde_json::from_slice::<serde_json::Value>(&body)?))
        }
        Format::Table => output::text(&told(&checked)),
    }
    Ok(if checked.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn told(checked: &Checked) -> String {
    let verdict =
        |allowed| if allowed { style("ALLOWED").green().bold() } else { style("DENIED").red().bold() };
    let from = checked.from.as_deref().unwrap_or("somebody without an identity");
    let mut text = format!("{} {from} → {}\n", verdict(checked.allowed), checked.to);
    for (index, at) in checked.endpoints.iter().enumerate() {
        // Those that decide alike are told of once.
        let like = |other: &&At| (&other.why, &other.mtls, other.allowed) == (&at.why, &at.mtls, at.allowed);
        if checked.endpoints[..index].iter().any(|other| like(&other)) {
            continue;
        }
        let alike = checked.endpoints.iter().filter(like).count();
        let where_ =
            at.workload.as_deref().map_or(at.address.clone(), |name| format!("{name} ({})", at.address));
        let more = if alike > 1 { format!(" and {} more", alike - 1) } else { String::new() };
        text.push_str(&format!("  at {where_}{more}, mTLS {}: {}\n", at.mtls, at.why));
        if let Some(rule) = &at.rule {
            text.push_str(&format!("    rule   {rule}\n"));
        }
        for audit in &at.audits {
            text.push_str(&format!("    audit  {}: {}\n", audit.verdict, audit.why));
        }
    }
    if checked.endpoints_left_out > 0 {
        text.push_str(&format!("  … and {} more endpoints\n", checked.endpoints_left_out));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        console::strip_ansi_codes(text).into_owned()
    }

    #[test]
    fn endpoints_that_decide_alike_are_told_of_once() {
        let checked: Checked = serde_json::from_value(serde_json::json!({
            "from": "spiffe://cluster.local/ns/shop/sa/web", "to": "orders.shop:80", "speaks": "http", "allowed": false,
            "endpoints": [
                {"address": "10.0.0.1:80", "workload": "shop/orders", "mtls": "strict", "allowed": true,
                 "rule": "AccessPolicy/shop/p/0", "why": "rule 0 of AccessPolicy shop/p allows it", "audits": []},
                {"address": "10.0.0.2:80", "workload": "shop/orders", "mtls": "strict", "allowed": true,
                 "rule": "AccessPolicy/shop/p/0", "why": "rule 0 of AccessPolicy shop/p allows it", "audits": []},
                {"address": "10.0.0.3:80", "workload": null, "mtls": "permissive", "allowed": false, "rule": null,
                 "why": "none allows", "audits": [{"verdict": "would_deny", "rule": null, "why": "so would q"}]},
            ],
        }))
        .expect("valid");
        let text = plain(&told(&checked));
        assert!(
            text.starts_with("DENIED spiffe://cluster.local/ns/shop/sa/web → orders.shop:80\n"),
            "{text}"
        );
        assert!(text.contains("at shop/orders (10.0.0.1:80) and 1 more, mTLS strict: rule 0"), "{text}");
        assert!(!text.contains("10.0.0.2"), "{text}");
        assert!(text.contains("audit  would_deny: so would q"), "{text}");
    }

    #[test]
    fn a_policy_without_calls_has_a_line_too() {
        let overview: Overview = serde_json::from_value(serde_json::json!({
            "policies": [{"name": "shop/p", "action": "Deny", "audit": true, "targets": ["Namespace shop"], "said": []}],
            "unmatched": [{"rule": null, "service": "orders.shop:80", "allowed_per_second": 0.0,
                "denied_per_second": 2.5, "would_allow_per_second": 0.0, "would_deny_per_second": 0.0}],
        }))
        .expect("valid");
        let text = plain(&rows(&overview));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("shop/p") && lines[1].contains("Deny (audit)"), "{text}");
        assert!(lines[2].starts_with("(none allows)") && lines[2].contains("2.5"), "{text}");
    }
}
