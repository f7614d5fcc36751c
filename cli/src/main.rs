//! The `weft` binary; everything is in the library so that tests can use it too.

use std::process::ExitCode;

// The sidecar inside is measured and tuned on this allocator, see `weft-proxy`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weft_cli::main()
}
