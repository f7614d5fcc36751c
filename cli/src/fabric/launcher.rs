//! What every set of child processes needs: one thread that starts them, one directory, and somebody who
//! removes that directory even when this program is killed.
//!
//! Invariant: the directory disappears with the launcher, by [`tempfile::TempDir`] in the normal course of
//! things, else by the sweeper: a copy of this program that waits for the end of its standard input, which
//! the kernel closes for the dead.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::launch::{self, Command};
use super::process::{Process, Spawner};
use super::{Error, open_to_all};

/// Starts programs outside of any namespace that end with it. A [`Fabric`](super::Fabric) has one; `weft
/// run` and the demo on loopback use one alone.
///
/// Field order is drop order: first the directory goes, then the sweeper finds nothing left to do.
#[derive(Debug)]
pub struct Launcher {
    directory: tempfile::TempDir,
    _sweeper: Process,
    helper: PathBuf,
    spawner: Spawner,
}

/// What `weft fabric-sweep` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct SweepArgs {
    /// Process that asked for it.
    #[arg(long)]
    parent: u32,
    /// What to remove.
    directory: PathBuf,
}

impl Launcher {
    /// A launcher with this program as helper.
    ///
    /// # Errors
    /// When no directory or no process can be made.
    pub fn new() -> Result<Self, Error> {
        Self::with_helper(launch::default_helper())
    }

    pub(super) fn with_helper(helper: PathBuf) -> Result<Self, Error> {
        let directory = tempfile::Builder::new()
            .prefix("weft-")
            .tempdir()
            .map_err(|source| Error::File { path: std::env::temp_dir(), source })?;
        open_to_all(directory.path())?;
        let spawner = Spawner::start();
        let mut command = launch::helper_command(&helper, "fabric-sweep");
        launch::detach(&mut command);
        command.arg(directory.path()).stdin(Stdio::piped()).stdout(Stdio::null());
        let child = spawner
            .spawn(command)
            .map_err(|source| Error::Spawn { program: helper.display().to_string(), source })?;
        let sweeper = Process::adopt("sweeper", child, spawner.clone());
        Ok(Self { directory, _sweeper: sweeper, helper, spawner })
    }

    /// A directory that goes away with the launcher; any user may enter it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A program to run outside of all namespaces.
    #[must_use]
    pub fn command(&self, name: &str, program: impl AsRef<OsStr>) -> Command {
        Command::new(name, &self.helper, None, program.as_ref(), self.spawner.clone())
    }

    /// The `weft` binary itself, to run outside of all namespaces.
    #[must_use]
    pub fn weft(&self, name: &str) -> Command {
        self.command(name, launch::SELF)
    }

    pub(super) fn helper(&self) -> &Path {
        &self.helper
    }

    pub(super) fn spawner(&self) -> &Spawner {
        &self.spawner
    }
}

/// The whole life of `weft fabric-sweep`.
pub(crate) fn sweep(arguments: &SweepArgs) -> io::Result<()> {
    crate::inner::title("weft-sweep");
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    match fs::remove_dir_all(&arguments.directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
