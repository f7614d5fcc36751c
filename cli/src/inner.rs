//! This program's life as a sidecar or control plane.
//!
//! In: the arguments behind `weft proxy` or `weft control-plane`. Out: what `weft-proxy` and
//! `weft-control-plane` would do with them, options and environment included.

use std::ffi::CString;
use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use weft_proxy::config::{Arguments, Config};
use weft_proxy::intercept;

/// `weft proxy`, the same as `weft-proxy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Proxy {
    #[command(subcommand)]
    command: Option<ProxyCommand>,
    #[command(flatten)]
    arguments: Arguments,
}

#[derive(Debug, clap::Subcommand)]
enum ProxyCommand {
    /// Make the kernel hand this network namespace's TCP connections to the sidecar
    Intercept(intercept::Args),
}

pub(crate) fn proxy(proxy: Proxy) -> anyhow::Result<()> {
    title("weft-proxy");
    let Proxy { command, arguments } = proxy;
    match command {
        Some(ProxyCommand::Intercept(arguments)) => Ok(intercept::run(&arguments)?),
        None => weft_proxy::app::run(Config::try_from(arguments)?),
    }
}

/// `weft control-plane`, the same as `weft-control-plane`.
pub(crate) fn control_plane(config: weft_control_plane::config::Config) -> anyhow::Result<()> {
    title("weft-control");
    let filter = EnvFilter::try_new(&config.log).context("--log")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // People read colours, machines read JSON.
    if io::stderr().is_terminal() {
        log.init();
    } else {
        log.json().flatten_event(true).init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(weft_control_plane::app::run(config))
}

/// What `ps` shows instead of the name of the file that was started, which is always the same.
pub(crate) fn title(text: &str) {
    if let Ok(text) = CString::new(text) {
        // Cosmetic.
        nix::sys::prctl::set_name(&text).ok();
    }
}
