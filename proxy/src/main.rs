//! `weft-proxy`: the sidecar, and the init container's `intercept`.
//!
//! Exit codes: 0 after an orderly end, 1 when it could not start or broke, 2 when the command line is wrong.

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use clap::Parser;
use weft_proxy::config::{Arguments, Config};
use weft_proxy::{app, intercept, wait};

// Small, fast for many short-lived buffers of one thread, and it gives idle memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Weft's sidecar. Without a subcommand it serves; every option can be given as WEFT_… in the environment.
#[derive(Debug, Parser)]
#[command(name = "weft-proxy", version, after_help = EXAMPLES)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    arguments: Arguments,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make the kernel hand this network namespace's TCP connections to the sidecar
    Intercept(intercept::Args),
    /// Wait until the sidecar beside this program is ready
    Wait(wait::Args),
}

const EXAMPLES: &str = "\
Examples:
  weft-proxy
      serve a pod whose traffic is intercepted
  weft-proxy --inbound-listen 127.0.0.1:9000 --inbound-forward 127.0.0.1:8080
      stand in front of one app, without interception and without a control plane
  http_proxy=http://127.0.0.1:15001 curl http://orders.shop:8080/
      use the outbound listener as a forward proxy";

fn main() -> ExitCode {
    let CommandLine { command, arguments } = CommandLine::parse();
    if command.is_none() {
        set_allocator_options();
    }
    let outcome = match command {
        Some(Command::Intercept(arguments)) => intercept::run(&arguments).map_err(anyhow::Error::from),
        Some(Command::Wait(arguments)) => wait::run(&arguments).map_err(anyhow::Error::from),
        None => Config::try_from(arguments).map_err(anyhow::Error::from).and_then(app::run),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// mimalloc's options: give freed memory back after this many milliseconds. Its own default, a second, is counted only
/// while a thread allocates, so that what a burst of connections used would stay for ten seconds and longer. Costs
/// nothing measurable per request.
const ALLOCATOR_OPTION: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "50");

/// Starts this program once more with the allocator's options in its environment, which is read before `main` and has
/// no safe other way in. What somebody has set already stays.
fn set_allocator_options() {
    let (name, value) = ALLOCATOR_OPTION;
    if std::env::var_os(name).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut again = std::process::Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // Comes back only when it failed; then the sidecar serves with the defaults.
    drop(again.args(arguments).env(name, value).exec());
}

/// The error and its causes on one line: the last thing a container says is what people see first.
#[expect(clippy::print_stderr, reason = "the log may not have been set up, or be filtered")]
fn report(error: &anyhow::Error) {
    eprintln!("weft-proxy: {error:#}");
}
