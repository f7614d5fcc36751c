//! The control plane's program; everything is in the library, so that `weft` can contain it too.

use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::Parser;
use weft_control_plane::config::Config;
use weft_control_plane::program;

fn main() -> ExitCode {
    match program::run(Config::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain on one line: an operator wants the cause, not where in our code it was met. Where
            // nobody reads standard error there is nobody to tell.
            drop(writeln!(stderr(), "weft-control-plane: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
