//! This program's life as a sidecar or control plane.
//!
//! In: the arguments behind `weft proxy` or `weft control-plane`. Out: what `weft-proxy` and
//! `weft-control-plane` would do with them, options and environment included.

use std::ffi::CString;

use weft_proxy::config::{Arguments, Config};
use weft_proxy::{intercept, wait};

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
    /// Wait until the sidecar beside this program is ready
    Wait(wait::Args),
}

pub(crate) fn proxy(proxy: Proxy) -> anyhow::Result<()> {
    title("weft-proxy");
    let Proxy { command, arguments } = proxy;
    match command {
        Some(ProxyCommand::Intercept(arguments)) => Ok(intercept::run(&arguments)?),
        Some(ProxyCommand::Wait(arguments)) => Ok(wait::run(&arguments)?),
        None => weft_proxy::app::run(Config::try_from(arguments)?),
    }
}

/// `weft control-plane`, the same as `weft-control-plane`.
pub(crate) fn control_plane(config: weft_control_plane::config::Config) -> anyhow::Result<()> {
    title("weft-control");
    weft_control_plane::program::run(config)
}

/// What `ps` shows instead of the name of the file that was started, which is always the same.
pub(crate) fn title(text: &str) {
    if let Ok(text) = CString::new(text) {
        // Cosmetic.
        nix::sys::prctl::set_name(&text).ok();
    }
}
