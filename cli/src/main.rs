//! The `weft` binary; everything is in the library so that tests can use it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_cli::main()
}
