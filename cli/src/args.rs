//! The command line: parsed once, then handed to the module that does the work.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::fabric::{holder, launch};

#[derive(Debug, Parser)]
#[command(name = "weft", version, about = "A service mesh that shows its work", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a program in a pod's namespaces
    #[command(hide = true)]
    FabricExec(launch::LaunchArgs),
    /// Holds a pod's namespaces
    #[command(hide = true)]
    FabricHold(holder::HoldArgs),
}

pub(crate) fn run() -> ExitCode {
    match Cli::parse().command {
        Command::FabricExec(arguments) => {
            let error = launch::run(arguments);
            eprintln!("weft: {error}");
            ExitCode::from(127)
        }
        Command::FabricHold(arguments) => match holder::run(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
    }
}
