//! Weft's own binaries, built on demand in the same target directory and profile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The profile to build with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// What tests use.
    Dev,
    /// What benches measure.
    Release,
}

/// Set by `tests/run.sh`: what tests run is built and fresh.
const BUILT: &str = "WEFT_TEST_BINARIES_BUILT";

/// Path of `weft`, the binary that contains the sidecar and the control plane as subcommands.
///
/// Cargo is asked on first use, so `cargo test -p weft-tests one_test` never runs against a stale binary. A run of the
/// whole workspace has built it already, and says so by `WEFT_TEST_BINARIES_BUILT`: asked for one package, cargo would choose other features
/// and build half of everything once more.
///
/// # Panics
/// When it does not build: no test can go on without it.
#[must_use]
pub fn weft() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os(BUILT) {
        Some(_) => target().join("debug/weft"),
        None => build("weft-cli", "weft", Profile::Dev),
    })
}

/// Builds one binary of the workspace and answers its path.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn build(package: &str, binary: &str, profile: Profile) -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).args(["build", "--quiet", "--package", package, "--bin", binary]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs, for it runs this test");
    assert!(status.success(), "{binary} does not build");
    target().join(if profile == Profile::Release { "release" } else { "debug" }).join(binary)
}

/// Builds the programs of these images as images hold them, but without optimization, and answers the directory that
/// `k8s/image/build.sh` makes images of. It shares with other tests' builds all but the last step.
///
/// # Panics
/// When one does not build.
#[must_use]
pub fn of_images(names: &[&str]) -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = target().join("images/dev");
        let mut build = Command::new(workspace().join("k8s/image/build.sh"));
        build.args(names).env("STEP", "programs").env("PROFILE", "dev").env("OUT", &directory);
        if std::env::var_os(BUILT).is_some() {
            build.env("FROM", target().join("debug"));
        }
        let status = build.status().expect("a script of this workspace");
        assert!(status.success(), "{names:?} do not build");
        directory
    })
}

/// The workspace's root.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies inside the workspace")
}

/// Cargo's target directory, where downloaded peers are kept too.
///
/// # Panics
/// When the running executable is not inside a target directory.
#[must_use]
pub fn target() -> PathBuf {
    let executable = std::env::current_exe().expect("the kernel knows this executable");
    // <target>/<profile>/deps/<name>
    executable.ancestors().nth(3).expect("a test lies three levels below target").to_owned()
}
