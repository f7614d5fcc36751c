//! The settings of authentication, as flags and environment variables.

use std::path::PathBuf;

/// How people and programs sign in to the API.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Who may use the API and the dashboard")]
pub struct Options {
    /// File of tokens, one a line, as `weft auth token` prints them: {name: …, role: viewer|operator, sha256: …, expires: …}.
    /// Must not be readable by everybody; hot reloaded
    #[arg(long, env = "WEFT_API_TOKENS", value_name = "FILE")]
    pub api_tokens: Option<PathBuf>,
}
