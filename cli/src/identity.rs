//! `weft identity`: who a sidecar is, until when, whom it trusts, and what went wrong with it.
//!
//! `--all` asks the control plane about every sidecar instead ([`all`]).
//!
//! In: the sidecar's admin interface, which listens on its own loopback: run this where the sidecar runs. Out: words, or the
//! sidecar's own JSON. Exit code: success iff there is a certificate and it is valid.

mod all;

use std::process::ExitCode;

use console::style;
use jiff::Timestamp;
use serde::Deserialize;

use crate::api::{self, Api};
use crate::{args, output, table};

/// Where a sidecar's admin interface is unless somebody says otherwise.
const ADMIN: &str = "http://127.0.0.1:15000";

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft identity                                      the sidecar of this pod or machine
  weft identity --sidecar http://127.0.0.1:15000     another one
  weft identity --json | jq .certificate.not_after
  weft identity --all                                every sidecar, as the control plane knows it
  kubectl port-forward deploy/orders 15000           then `weft identity`, for a sidecar in a cluster")]
pub(crate) struct IdentityArgs {
    /// The sidecar's admin interface
    #[arg(long, env = "WEFT_SIDECAR", value_name = "URL", default_value = ADMIN)]
    sidecar: String,
    /// Every connected sidecar, as the control plane knows it
    #[arg(short, long)]
    all: bool,
    /// The sidecar's JSON as it is; with `--all` the control plane's
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: args::ApiArgs,
}

/// The sidecar's `/identity`.
#[derive(Debug, Deserialize)]
struct Identity {
    #[serde(default)]
    certificate: Option<Certificate>,
    #[serde(default)]
    renew_at: Option<i64>,
    #[serde(default)]
    renewed_by: Option<String>,
    roots: Vec<Root>,
    #[serde(default)]
    roots_from: Option<String>,
    #[serde(default)]
    last_failure: Option<Failure>,
    #[serde(default)]
    enrolment: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Certificate {
    id: String,
    issuer: String,
    serial: String,
    not_before: i64,
    not_after: i64,
}

#[derive(Debug, Deserialize)]
struct Root {
    subject: String,
    not_after: i64,
    #[serde(default)]
    key: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    reason: String,
    text: String,
    at: i64,
}

pub(crate) async fn run(arguments: IdentityArgs) -> anyhow::Result<ExitCode> {
    let IdentityArgs { sidecar, all, json, api } = arguments;
    if all {
        return all::run(&api.open().await?, json).await;
    }
    let admin = Api::new(&sidecar)?;
    let body = admin.get("/identity").await.map_err(|error| unanswered(&admin, error))?;
    let identity: Identity = admin.read(&body).map_err(|error| unanswered(&admin, error))?;
    let now = Timestamp::now().as_second();
    if json {
        output::text(&String::from_utf8_lossy(&body));
    } else {
        output::text(&show(&identity, now));
    }
    let valid = identity.certificate.is_some_and(|certificate| now < certificate.not_after);
    Ok(if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Why there is no answer, in words about sidecars: the API's are about the control plane.
fn unanswered(admin: &Api, error: api::Error) -> anyhow::Error {
    let base = admin.base();
    match error {
        api::Error::Unreachable { source, .. } => anyhow::Error::new(source).context(format!(
            "no sidecar answers at {base}\n  it listens on its own loopback: run this where it runs, or say where that is: \
             --sidecar URL or WEFT_SIDECAR=URL"
        )),
        api::Error::Strange { .. } | api::Error::Refused { .. } => anyhow::anyhow!(
            "what answers at {base} is not the admin interface of a sidecar (usually at {ADMIN})"
        ),
        error => error.into(),
    }
}

fn show(identity: &Identity, now: i64) -> String {
    let Identity { certificate, renew_at, renewed_by, roots, roots_from, last_failure, enrolment } = identity;
    let mut text = String::new();
    let mut row = |name: &str, words: String| text.push_str(&format!("  {name:<10}{words}\n"));
    let title = match certificate {
        Some(certificate) => {
            let Certificate { id, issuer, serial, not_before, not_after } = certificate;
            let state = if now < *not_after {
                format!("until {}, {}", date(*not_after), distance(*not_after, now))
            } else {
                let ended = format!("expired on {}, {}", date(*not_after), distance(*not_after, now));
                style(ended).red().bold().to_string()
            };
            row("valid", format!("{state}; since {}", date(*not_before)));
            match (renew_at, renewed_by.as_deref()) {
                (Some(at), _) => row("renewal", distance(*at, now)),
                (None, Some(who)) => row("renewal", format!("by {who}")),
                (None, None) => {}
            }
            row("issuer", issuer.clone());
            row("serial", serial.clone());
            id.clone()
        }
        None => match enrolment {
            Some(why) => format!("no identity ({why})"),
            None => "no identity yet".to_owned(),
        },
    };
    for (position, Root { subject, not_after, key }) in roots.iter().enumerate() {
        let key = key.as_deref().map_or("", |key| key.get(..8).unwrap_or(key));
        let from = match roots_from {
            Some(from) if position == 0 => format!(" (from the {from})"),
            _ => String::new(),
        };
        let name = if position == 0 { "trusts" } else { "" };
        row(name, format!("{subject} {} until {}{from}", style(key).dim(), date(*not_after)));
    }
    if let Some(Failure { reason, text, at }) = last_failure {
        row("failure", format!("{} {text} [{reason}]", distance(*at, now)));
    }
    format!("{}\n{text}", style(title).bold())
}

/// `2026-11-29 17:53:00Z`.
fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| "?".to_owned(), |at| at.strftime("%F %TZ").to_string())
}

/// `in 12h` or `5m ago`.
fn distance(then: i64, now: i64) -> String {
    let apart = table::age(then.abs_diff(now));
    if then > now { format!("in {apart}") } else { format!("{apart} ago") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn shown(json: &str) -> String {
        console::set_colors_enabled(false);
        show(&serde_json::from_str(json).expect("the sidecar's JSON"), NOW)
    }

    #[test]
    fn an_identity_says_until_when_and_whom_it_trusts() {
        let text = shown(
            r#"{"trust_domain": "cluster.local", "renewed_by": "this sidecar", "renew_at": 1800036000,
            "certificate": {"id": "spiffe://cluster.local/ns/shop/sa/orders", "subject": "", "issuer": "CN=i",
              "serial": "0a:1b", "not_before": 1799999940, "not_after": 1800086400, "expired": false},
            "roots": [{"subject": "CN=new", "issuer": "CN=new", "not_after": 2000000000, "key": "abcdef0123"},
              {"subject": "CN=old", "issuer": "CN=old", "not_after": 1900000000, "key": "0123456789"}],
            "roots_from": "control plane", "last_failure": null}"#,
        );
        insta::assert_snapshot!(text);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let expired = shown(
            r#"{"certificate": {"id": "spiffe://a/ns/b/sa/c", "issuer": "", "serial": "", "not_before": 0,
            "not_after": 1799999000}, "roots": [], "renew_at": 1800000005,
            "last_failure": {"reason": "unreachable", "text": "no answer", "at": 1799999990}}"#,
        );
        assert!(
            expired.contains("expired on 2027-01-15") && expired.contains("no answer [unreachable]"),
            "{expired}"
        );
        let never = shown(r#"{"certificate": null, "roots": [], "enrolment": "off: no TLS"}"#);
        assert_eq!(never, "no identity (off: no TLS)\n");
        assert_eq!(shown(r#"{"certificate": null, "roots": []}"#), "no identity yet\n");
    }
}
