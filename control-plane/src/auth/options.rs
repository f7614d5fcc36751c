//! The settings of authentication, as flags and environment variables.

use std::path::PathBuf;

use crate::audit::Target;

/// How people and programs sign in to the API.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Who may use the API and the dashboard")]
pub struct Options {
    /// File of tokens, one a line, as `weft auth token` prints them: {name: …, role: viewer|operator, sha256: …, expires: …}.
    /// Must not be readable by everybody; hot reloaded
    #[arg(long, env = "WEFT_API_TOKENS", value_name = "FILE")]
    pub api_tokens: Option<PathBuf>,

    /// How browsers reach the dashboard, where something in front of it changes the Host header or speaks TLS for it, for
    /// instance https://weft.example.com
    #[arg(long, env = "WEFT_API_PUBLIC_URL", value_name = "URL")]
    pub api_public_url: Option<String>,

    /// Where every call that changes something is written down, as JSON lines: a file, or stderr. What cannot be written
    /// down is not done
    #[arg(long, env = "WEFT_AUDIT_LOG", value_name = "FILE|stderr", default_value = "stderr")]
    pub audit_log: Target,
}
