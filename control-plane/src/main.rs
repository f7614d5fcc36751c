//! The control plane's program: settings, logging, runtime, and then [`app::run`] tells the story.

use std::io::{IsTerminal, Write, stderr};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;
use weft_control_plane::app;
use weft_control_plane::config::Config;

fn main() -> ExitCode {
    match serve(Config::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain on one line: an operator wants the cause, not where in our code it was met. Where
            // nobody reads standard error there is nobody to tell.
            drop(writeln!(stderr(), "weft-control-plane: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).context("read --log")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // People read colours, machines read JSON.
    if stderr().is_terminal() {
        log.init()
    } else {
        log.json().flatten_event(true).init()
    }
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(app::run(config))
}

/// Shells start programs with 1,024 descriptors and allow many more; a sidecar needs two.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = limit.current, "cannot raise the limit of open files");
    }
}
