//! Starting a program inside a pod: enter its namespaces, become its user, then become the program.
//!
//! In: the holder's process id, a user id, a program with arguments. Out: the program itself, in place of
//! this process (`exec`), so whoever started it waits for and signals the program directly.
//!
//! Invariant: the program dies when its parent dies. The kernel forgets that wish whenever credentials
//! change, so it is expressed last, and the parent is checked afterwards in case it went away in between.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::{CommandExt as _, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use super::process::{Process, Spawner};
use super::{Error, Isolation};

/// Names the `weft` binary that embedding programs (tests) use as helper.
pub const HELPER_VARIABLE: &str = "WEFT_FABRIC_HELPER";

/// Stands for "this binary" as a program. Followed by the kernel even where the user that the program runs as
/// may not walk to the binary's directory (`/root/…`).
pub(crate) const SELF: &str = "/proc/self/exe";

/// How the launcher learns the user id; an environment variable because arguments belong to the program.
const UID_VARIABLE: &str = "WEFT_FABRIC_UID";

/// What `weft fabric-exec` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct LaunchArgs {
    /// Process that holds the namespaces to enter.
    #[arg(long)]
    enter: Option<i32>,
    /// Process whose death must end the program.
    #[arg(long)]
    parent: u32,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// The binary that does the work: named by the environment, else this program.
pub(super) fn default_helper() -> PathBuf {
    std::env::var_os(HELPER_VARIABLE).map_or_else(|| PathBuf::from(SELF), PathBuf::from)
}

/// `weft SUBCOMMAND`, for our own hidden subcommands.
pub(super) fn helper_command(helper: &Path, subcommand: &str) -> std::process::Command {
    let mut command = std::process::Command::new(helper);
    command.arg0("weft").arg(subcommand).arg("--parent").arg(std::process::id().to_string());
    command
}

/// A program to run in a pod. Like [`std::process::Command`], which it wraps.
#[derive(Debug)]
pub struct Command {
    name: String,
    program: OsString,
    inner: std::process::Command,
    foreground: bool,
    spawner: Spawner,
}

impl Command {
    pub(super) fn new(
        name: &str,
        helper: &Path,
        enter: Option<u32>,
        program: &OsStr,
        spawner: Spawner,
    ) -> Self {
        let mut inner = helper_command(helper, "fabric-exec");
        if let Some(pid) = enter {
            inner.arg("--enter").arg(pid.to_string());
        }
        inner.arg("--").arg(program);
        inner.stdin(Stdio::null());
        // Weft's own settings in the user's shell are meant for `weft`, not for the sidecars and apps it
        // starts.
        for (variable, _) in std::env::vars_os() {
            if variable.as_encoded_bytes().starts_with(b"WEFT_") {
                inner.env_remove(variable);
            }
        }
        Self { name: name.into(), program: program.to_owned(), inner, foreground: false, spawner }
    }

    /// Leaves it in the terminal's foreground, where it can read and where Ctrl-C reaches it.
    #[must_use]
    pub fn foreground(mut self) -> Self {
        self.foreground = true;
        self.inner.stdin(Stdio::inherit());
        self
    }

    /// An argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.inner.arg(argument);
        self
    }

    /// Several arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.inner.args(arguments);
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// The user (and group) to run as. Where the fabric has no users of its own ([`Isolation::has_users`])
    /// the program runs as the one there is.
    #[must_use]
    pub fn uid(mut self, isolation: Isolation, uid: u32) -> Self {
        if isolation.has_users() {
            self.inner.env(UID_VARIABLE, uid.to_string());
        }
        self
    }

    /// Standard input; closed by default.
    #[must_use]
    pub fn stdin(mut self, stdio: impl Into<Stdio>) -> Self {
        self.inner.stdin(stdio);
        self
    }

    /// Standard output; inherited by default.
    #[must_use]
    pub fn stdout(mut self, stdio: impl Into<Stdio>) -> Self {
        self.inner.stdout(stdio);
        self
    }

    /// Standard error; inherited by default.
    #[must_use]
    pub fn stderr(mut self, stdio: impl Into<Stdio>) -> Self {
        self.inner.stderr(stdio);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When no process can be made. A program that does not exist shows as exit code 127 instead.
    pub fn spawn(self) -> Result<Process, Error> {
        let Self { name, program, mut inner, foreground, spawner } = self;
        if !foreground {
            detach(&mut inner);
        }
        match spawner.spawn(inner) {
            Ok(child) => Ok(Process::adopt(&name, child, spawner)),
            Err(source) => Err(Error::Spawn { program: program.to_string_lossy().into_owned(), source }),
        }
    }

    /// Runs it to its end and returns what it wrote.
    ///
    /// # Errors
    /// When no process can be made, or its output cannot be read.
    pub fn output(self) -> Result<Output, Error> {
        let Self { name: _, program, mut inner, foreground: _, spawner } = self;
        detach(&mut inner);
        inner.stdout(Stdio::piped()).stderr(Stdio::piped());
        spawner
            .spawn(inner)
            .and_then(std::process::Child::wait_with_output)
            .map_err(|source| Error::Spawn { program: program.to_string_lossy().into_owned(), source })
    }
}

/// In a process group of its own, a Ctrl-C on the terminal reaches only `weft`, which then ends things in
/// order.
pub(super) fn detach(command: &mut std::process::Command) {
    command.process_group(0);
}

/// Becomes the program. Returns only when that failed: with what could not be done, and why.
pub(crate) fn run(arguments: LaunchArgs) -> (String, io::Error) {
    let LaunchArgs { enter, parent, program } = arguments;
    let uid = std::env::var(UID_VARIABLE).ok().and_then(|uid| uid.parse().ok());
    let mut words = program.into_iter();
    let program = words.next().unwrap_or_default();
    let what = program.to_string_lossy().into_owned();
    if let Err(error) = prepare(enter, uid, parent) {
        return (what, error);
    }
    let mut command = std::process::Command::new(&program);
    if program == SELF {
        command.arg0("weft");
    }
    (what, command.args(words).env_remove(UID_VARIABLE).exec())
}

fn prepare(enter: Option<i32>, uid: Option<u32>, parent: u32) -> io::Result<()> {
    if let Some(pid) = enter {
        enter_namespaces(pid)?;
        std::env::set_current_dir("/")?;
    }
    if let Some(uid) = uid {
        setgroups(&[])?;
        setgid(Gid::from_raw(uid))?;
        setuid(Uid::from_raw(uid))?;
    }
    die_with(parent)
}

/// Ends this process when its parent ends.
pub(crate) fn die_with(parent: u32) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if parent_id() != parent {
        return Err(io::Error::other("the program that asked for this is gone"));
    }
    Ok(())
}

/// Joins the user (where it is another), network and mount namespace of a holder.
pub(super) fn enter_namespaces(pid: i32) -> io::Result<()> {
    let open = |kind: &str| std::fs::File::open(format!("/proc/{pid}/ns/{kind}"));
    let (user, net, mnt) = (open("user")?, open("net")?, open("mnt")?);
    let user_of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user"));
    if user_of("self")? != user_of(&pid.to_string())? {
        setns(user, CloneFlags::CLONE_NEWUSER)?;
    }
    setns(net, CloneFlags::CLONE_NEWNET)?;
    setns(mnt, CloneFlags::CLONE_NEWNS)?;
    Ok(())
}
