//! `weft token`: what a program outside Kubernetes shows once to join the mesh.
//!
//! In: the API's `/api/tokens`. Out: a new token alone on a line, so that `$(weft token create …)` is all a script needs;
//! what it is for goes to standard error. Lists never show a secret: it is told once, when it is made.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{args, output, table};

#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:
  weft token create --name orders --namespace shop       a token for one program, good for 15 minutes
  export WEFT_JOIN_TOKEN=$(weft token create --name orders)
  weft token create --name orders-v2 --service-account orders --ttl 24h
  weft token list
  weft token revoke 1a2b3c4d"
)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    api: args::ApiArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a token: whoever has it may join once as this workload
    Create {
        /// The workload's name
        #[arg(long)]
        name: String,
        /// Its namespace
        #[arg(long, default_value = "default")]
        namespace: String,
        /// Its service account, if that is named differently
        #[arg(long, value_name = "NAME")]
        service_account: Option<String>,
        /// How long it may be used, for instance 15m or 24h
        #[arg(long, value_name = "TIME", default_value = "15m", value_parser = args::duration)]
        ttl: Duration,
        /// How to show it
        #[arg(short, long, value_enum, default_value = "token")]
        output: Format,
    },
    /// Show tokens and what became of them
    List {
        /// How to show them
        #[arg(short, long, value_enum, default_value = "table")]
        output: ListFormat,
    },
    /// Take a token back
    Revoke {
        /// The token's id: its second part, between the first two dots
        id: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// The token alone
    Token,
    /// As the API says it
    Json,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ListFormat {
    /// For people
    Table,
    /// As the API says it
    Json,
}

#[derive(Serialize)]
struct Wanted<'a> {
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account: Option<&'a str>,
    ttl_seconds: u64,
}

#[derive(Debug, Deserialize)]
struct Made {
    token: String,
    id: String,
    identity: String,
}

#[derive(Debug, Deserialize)]
struct Tokens {
    at: u64,
    tokens: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    namespace: String,
    name: String,
    service_account: String,
    created: u64,
    expires: u64,
    state: String,
}

pub(crate) async fn run(arguments: TokenArgs) -> anyhow::Result<ExitCode> {
    let TokenArgs { action, api } = arguments;
    let api = api.open().await?;
    match action {
        Action::Create { name, namespace, service_account, ttl, output: format } => {
            let wanted = Wanted {
                name: &name,
                namespace: &namespace,
                service_account: service_account.as_deref(),
                ttl_seconds: ttl.as_secs(),
            };
            let body = api.post("/api/tokens", "application/json", serde_json::to_string(&wanted)?).await?;
            let made: Made = api.read(&body)?;
            match format {
                Format::Token => {
                    output::note(format_args!(
                        "{} may be used once within {}, as {}",
                        made.id,
                        spoken(ttl.as_secs()),
                        made.identity
                    ));
                    output::line(made.token);
                }
                Format::Json => output::text(&String::from_utf8_lossy(&body)),
            }
        }
        Action::List { output: format } => {
            let body = api.get("/api/tokens").await?;
            match format {
                ListFormat::Table => output::text(&show(&api.read(&body)?)),
                ListFormat::Json => output::text(&String::from_utf8_lossy(&body)),
            }
        }
        Action::Revoke { id } => {
            // A whole token is what people have at hand.
            let id = id.strip_prefix("weft1.").and_then(|rest| rest.split('.').next()).unwrap_or(&id);
            api.delete(&format!("/api/tokens/{id}")).await?;
            output::line(format_args!("{id} is revoked"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(tokens: &Tokens) -> String {
    if tokens.tokens.is_empty() {
        return "no join tokens\n  make one: weft token create --name orders --namespace shop\n".into();
    }
    let rows = tokens.tokens.iter().map(|token| {
        let account = (token.service_account != token.name).then(|| token.service_account.clone());
        let left = match token.state.as_str() {
            "active" => format!("in {}", spoken(token.expires.saturating_sub(tokens.at))),
            _ => "-".into(),
        };
        vec![
            token.id.clone(),
            format!("{}/{}", token.namespace, token.name),
            account.unwrap_or_else(|| "-".into()),
            token.state.clone(),
            format!("{} ago", spoken(tokens.at.saturating_sub(token.created))),
            left,
        ]
    });
    table::render(
        &["ID", "WORKLOAD", "SERVICE ACCOUNT", "STATE", "MADE", "EXPIRES"],
        &rows.collect::<Vec<_>>(),
    )
}

/// `15 min`, `24 h`.
pub(crate) fn spoken(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        172_800..63_072_000 => format!("{} days", seconds / 86_400),
        _ => format!("{} years", seconds / 31_536_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_what_became_of_each_and_no_secret() {
        let token = |id: &str, account: &str, state: &str| Listed {
            id: id.into(),
            namespace: "shop".into(),
            name: "orders".into(),
            service_account: account.into(),
            created: 1_000,
            expires: 1_900,
            state: state.into(),
        };
        let tokens = Tokens {
            at: 1_060,
            tokens: vec![token("1a2b3c4d", "orders", "active"), token("5e6f7a8b", "till", "used")],
        };
        let text = show(&tokens);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["1a2b3c4d", "shop/orders", "-", "active", "60", "s", "ago", "in", "14", "min"]);
        assert_eq!(lines[2], ["5e6f7a8b", "shop/orders", "till", "used", "60", "s", "ago", "-"]);
    }

    #[test]
    fn times_are_spoken_in_the_unit_that_fits() {
        assert_eq!(spoken(90), "90 s");
        assert_eq!(spoken(900), "15 min");
        assert_eq!(spoken(86_400), "24 h");
        assert_eq!(spoken(30 * 86_400), "30 days");
        assert_eq!(spoken(10 * 31_536_000), "10 years");
    }
}
