//! The program around the app: logging, limits, runtime. The same for `weft-control-plane` and
//! `weft control-plane`.
//!
//! In: the settings. Out: what [`app::run`] gives back. Call it once per process: the log is the
//! process's own.

use std::io::{IsTerminal, stderr};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

use crate::app;
use crate::config::Config;

/// Runs the control plane until a signal ends it.
///
/// # Errors
/// When the start fails.
pub fn run(config: Config) -> anyhow::Result<()> {
    // The client tells each failure before it answers it, and whoever asked says what it means.
    let twice = "kube_client::client::builder=off".parse().context("a directive")?;
    let filter = EnvFilter::try_new(&config.log).context("read --log")?.add_directive(twice);
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
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = limit.current, "cannot raise the limit of open files");
    }
}
