//! `weft auth`: who may use the API.
//!
//! In: a name and a role, or `GET /api/audit`. Out: `token`: a new token on standard output, once, and the line that makes the
//! control plane know it; `audit`: who did what. Surprise: for a token nothing is asked or sent; whoever can write the control
//! plane's file decides.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use console::{Style, style};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use weft_control_plane::auth::tokens::{Minted, mint};
use weft_control_plane::auth::{Role, random};

use crate::{output, table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft auth token --name alice --role viewer
  weft auth token --name ci --role operator --expires 720h --line-to /etc/weft/tokens.yaml
  weft auth audit")]
pub(crate) struct AuthArgs {
    #[command(subcommand)]
    command: AuthCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AuthCommand {
    /// Make a token for somebody: shows it once, and the line for the control plane's --api-tokens file
    Token(TokenArgs),
    /// Show who changed something lately, or tried to
    Audit(AuditArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft auth audit
  weft auth audit -o json | jq '.entries[] | select(.status >= 400)'

Needs the role operator. The control plane keeps the last thousand; all of it is where its --audit-log says.
STATUS: the HTTP status of its end; - while it goes on.")]
struct AuditArgs {
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    api: crate::args::ApiArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// For people
    Table,
    /// As the API says it
    Json,
}

/// `GET /api/audit`.
#[derive(Debug, Deserialize)]
struct Lately {
    log: String,
    entries: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    time: Timestamp,
    who: String,
    role: String,
    how: String,
    #[serde(default)]
    from: Option<String>,
    action: String,
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    detail: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft auth token --name alice --role viewer
  weft auth token --name ci --role operator --expires 720h --line-to /etc/weft/tokens.yaml
  WEFT_TOKEN=weft_api_… weft graph

A viewer may do everything that reads, an operator everything. The control plane keeps only the token's SHA-256; whoever
loses the token needs a new one. To take a token back, remove its line.")]
struct TokenArgs {
    /// Whose it is; shown to people and in the audit log
    #[arg(long)]
    name: String,
    /// What its bearer may do
    #[arg(long, value_parser = role, value_name = "viewer|operator")]
    role: Role,
    /// For how long, for instance 720h; for ever if not given
    #[arg(long, value_parser = crate::args::duration, value_name = "TIME")]
    expires: Option<Duration>,
    /// Append the line to this file, which is made for its owner only if it is not there
    #[arg(long, value_name = "FILE")]
    line_to: Option<PathBuf>,
}

fn role(text: &str) -> Result<Role, String> {
    text.parse().map_err(str::to_owned)
}

pub(crate) async fn run(arguments: AuthArgs) -> anyhow::Result<()> {
    match arguments.command {
        AuthCommand::Token(arguments) => token(arguments),
        AuthCommand::Audit(arguments) => audit(arguments).await,
    }
}

async fn audit(arguments: AuditArgs) -> anyhow::Result<()> {
    let AuditArgs { output: format, api } = arguments;
    let api = api.open().await?;
    let answer = api.get("/api/audit").await?;
    match format {
        Format::Json => output::line(String::from_utf8_lossy(&answer)),
        Format::Table => output::text(&show(&api.read(&answer)?)),
    }
    Ok(())
}

fn show(lately: &Lately) -> String {
    if lately.entries.is_empty() {
        return format!(
            "nobody has changed anything since the control plane started; what was before is in {}\n",
            lately.log
        );
    }
    let rows: Vec<Vec<String>> = lately
        .entries
        .iter()
        .map(|entry| {
            let status = entry.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
            let colour = if entry.status.is_some_and(|status| status >= 400) {
                Style::new().red()
            } else {
                Style::new()
            };
            vec![
                // Whole seconds are enough to find the line in the file.
                format!("{:.0}", entry.time),
                entry.who.clone(),
                entry.role.clone(),
                entry.how.clone(),
                entry.from.clone().unwrap_or_else(|| "-".to_owned()),
                colour.apply_to(status).to_string(),
                entry.action.clone(),
                entry.detail.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table::render(&["TIME", "WHO", "ROLE", "HOW", "FROM", ">STATUS", "ACTION", "DETAIL"], &rows)
}

fn token(arguments: TokenArgs) -> anyhow::Result<()> {
    let TokenArgs { name, role, expires, line_to } = arguments;
    let expires = expires.map(|life| end(Timestamp::now(), life)).transpose()?;
    let Minted { token, line } = mint(&name, role, expires, &random()?)?;
    match line_to {
        Some(file) => {
            append(&file, &line).with_context(|| format!("cannot write {}", file.display()))?;
            output::note(format_args!(
                "{name} may come in as {} by {}; the token:",
                role.word(),
                file.display()
            ));
            output::line(token);
        }
        None => {
            output::line(token);
            output::note(format_args!(
                "shown this once. Add this line to the file that the control plane's --api-tokens names:\n{}",
                style(line).for_stderr().bold()
            ));
        }
    }
    Ok(())
}

/// Whole seconds: nobody reads more.
fn end(now: Timestamp, life: Duration) -> anyhow::Result<Timestamp> {
    let end = now.checked_add(SignedDuration::try_from(life)?)?;
    Ok(Timestamp::from_second(end.as_second())?)
}

fn append(file: &Path, line: &str) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.append(true).create(true).read(true).mode(0o600).open(file)?;
    let mut text = String::new();
    // A file that somebody edited may end within a line.
    file.read_to_string(&mut text)?;
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    file.write_all(format!("{gap}{line}\n").as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_added_to_a_file_that_only_its_owner_reads() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("tokens.yaml");
        for line in ["- {a: 1}", "- {b: 2}"] {
            append(&file, line).expect("written");
        }
        assert_eq!(std::fs::read_to_string(&file).expect("readable"), "- {a: 1}\n- {b: 2}\n");
        assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        std::fs::write(&file, "- {a: 1}").expect("written");
        append(&file, "- {b: 2}").expect("written");
        assert_eq!(std::fs::read_to_string(&file).expect("readable"), "- {a: 1}\n- {b: 2}\n");
    }

    #[test]
    fn the_audit_log_is_a_row_for_each_deed() {
        console::set_colors_enabled(false);
        let lately = serde_json::from_str(
            r#"{"log": "stderr", "kept": 1000, "entries": [
                {"id": "1-2", "time": "2026-11-28T17:00:00.5Z", "who": "bob", "role": "operator", "how": "token",
                 "from": "10.0.0.1:4711", "action": "POST /api/ca/rotate"},
                {"id": "1-1", "time": "2026-11-28T16:00:00Z", "who": "alice", "role": "viewer", "how": "oidc",
                 "action": "POST /api/ca/rotate", "status": 403, "detail": "alice is viewer here"}]}"#,
        );
        insta::assert_snapshot!(show(&lately.expect("well formed")), @r"
        TIME                   WHO     ROLE       HOW     FROM            STATUS   ACTION                DETAIL
        2026-11-28T17:00:00Z   bob     operator   token   10.0.0.1:4711        -   POST /api/ca/rotate
        2026-11-28T16:00:00Z   alice   viewer     oidc    -                  403   POST /api/ca/rotate   alice is viewer here
        ");
        assert!(show(&Lately { log: "/var/log/a".into(), entries: Vec::new() }).contains("/var/log/a"));
    }

    #[test]
    fn a_life_ends_at_a_whole_second_or_is_refused() {
        let now = Timestamp::new(1_000, 5).expect("in range");
        let later = end(now, Duration::from_secs(60)).expect("in range");
        assert_eq!(later, Timestamp::from_second(1_060).expect("in range"));
        assert!(end(now, Duration::from_secs(u64::MAX)).is_err());
    }
}
