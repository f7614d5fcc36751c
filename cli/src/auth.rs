//! `weft auth`: who may use the API.
//!
//! In: a name and a role. Out: `token`: a new token on standard output, once, and the line that makes the control plane
//! know it. Surprise: nothing is asked or sent; whoever can write the control plane's file decides.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use console::style;
use jiff::{SignedDuration, Timestamp};
use weft_control_plane::auth::tokens::{Minted, mint};
use weft_control_plane::auth::{Role, random};

use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft auth token --name alice --role viewer
  weft auth token --name ci --role operator --expires 720h --line-to /etc/weft/tokens.yaml")]
pub(crate) struct AuthArgs {
    #[command(subcommand)]
    command: AuthCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AuthCommand {
    /// Make a token for somebody: shows it once, and the line for the control plane's --api-tokens file
    Token(TokenArgs),
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

pub(crate) fn run(arguments: AuthArgs) -> anyhow::Result<()> {
    match arguments.command {
        AuthCommand::Token(arguments) => token(arguments),
    }
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
    fn a_life_ends_at_a_whole_second_or_is_refused() {
        let now = Timestamp::new(1_000, 5).expect("in range");
        let later = end(now, Duration::from_secs(60)).expect("in range");
        assert_eq!(later, Timestamp::from_second(1_060).expect("in range"));
        assert!(end(now, Duration::from_secs(u64::MAX)).is_err());
    }
}
