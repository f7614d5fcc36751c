//! The `weft` command: a mesh on one machine, and questions to a running one.
//!
//! In: a command line. Out: text for people (or JSON for programs) on standard output, what went wrong and
//! what to do about it on standard error, an exit code.
//!
//! Surprise: `weft demo` and `weft run` need no second binary. This program contains the sidecar and the
//! control plane and starts itself again for them, by subcommands that `--help` does not list.
//!
//! Non-goal: deciding anything about traffic. What the mesh does is decided in `proxy` and `control-plane`.

mod api;
mod apply;
mod args;
mod auth;
mod authz;
mod bug_report;
mod ca;
mod check;
mod circuits;
mod dashboard;
mod demo;
pub mod fabric;
mod get;
mod graph;
mod identity;
mod inject;
mod inner;
mod install;
mod join;
mod kubernetes;
mod output;
mod proxies;
mod proxy_config;
mod routes;
mod run;
mod stat;
mod status;
mod table;
mod token;
mod version;

use std::process::ExitCode;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    args::run()
}
