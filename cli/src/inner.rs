//! This program's life as a sidecar or control plane.
//!
//! In: the arguments behind `weft proxy` or `weft control-plane`. Out: what `weft-proxy` and `weft-control-plane`
//! would do with them.

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use crate::args::Passed;
use crate::output;

pub(crate) fn proxy(passed: Passed) -> ExitCode {
    sibling("weft-proxy", passed)
}

pub(crate) fn control_plane(passed: Passed) -> ExitCode {
    sibling("weft-control-plane", passed)
}

fn sibling(name: &str, passed: Passed) -> ExitCode {
    let path = std::env::current_exe().map(|path| path.with_file_name(name));
    let error = match path {
        Ok(path) => std::process::Command::new(path).args(passed.arguments).exec(),
        Err(error) => error,
    };
    output::error(&anyhow::Error::new(error).context(format!("cannot start {name}")));
    ExitCode::from(127)
}
