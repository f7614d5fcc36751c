//! `weft version`: of this program, and of the control plane if one answers.

use console::style;
use serde::Deserialize;

use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft version
  weft version --client
  weft version --api http://mesh.example:8080")]
pub(crate) struct VersionArgs {
    /// Only this program's; ask nobody
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    api: crate::args::ApiArgs,
}

/// The part of the OpenAPI description that says what answers.
#[derive(Debug, Deserialize)]
struct Description {
    info: Info,
}

#[derive(Debug, Deserialize)]
struct Info {
    version: String,
}

pub(crate) async fn run(arguments: VersionArgs) -> anyhow::Result<()> {
    let VersionArgs { client, api } = arguments;
    output::line(format_args!("client   {}", env!("CARGO_PKG_VERSION")));
    if client {
        return Ok(());
    }
    let api = api.open().await?;
    match api.json::<Description>("/api/openapi.json").await {
        Ok(description) => {
            output::line(format_args!("server   {}   {}", description.info.version, style(api.base()).dim()))
        }
        // Not an error: most people who ask have no control plane on this machine.
        Err(_) => output::line(format_args!(
            "server   -   {}",
            style(format!("nobody answers at {}", api.base())).dim()
        )),
    }
    Ok(())
}
