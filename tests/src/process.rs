//! Child processes that end with their owner, and what they cost as the kernel accounts it.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a dropped child has to end by itself (nginx's master has workers to take along) before it is killed.
const FAREWELL: Duration = Duration::from_secs(3);

/// A child process that is ended when dropped: asked first, killed if it does not listen.
#[derive(Debug)]
pub struct Guarded(Child);

impl Guarded {
    /// Starts `command`.
    ///
    /// # Errors
    /// When the program cannot be started; the message names it.
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
        Ok(Self(child))
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?)
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// When it has not ended by the deadline.
    pub fn wait(&mut self, deadline: Duration) -> anyhow::Result<std::process::ExitStatus> {
        crate::poll::until_blocking("process ends", deadline, || {
            self.0.try_wait().map_err(|error| error.to_string())?.ok_or_else(|| "still running".to_owned())
        })
    }
}

impl From<Child> for Guarded {
    fn from(child: Child) -> Self {
        Self(child)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Already gone is fine: the goal is that nothing stays behind.
        self.signal(Signal::SIGTERM).ok();
        self.wait(FAREWELL).ok();
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// CPU time that a process and all its threads have used, in nanoseconds.
///
/// From `/proc/<pid>/task/*/schedstat`, which counts in nanoseconds where `stat` counts in 10 ms ticks. Threads that
/// have ended are not in it; none of the measured programs ends threads while it serves.
///
/// # Errors
/// When the process is gone.
pub fn cpu_nanos(pid: u32) -> anyhow::Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = fs::read_to_string(task?.path().join("schedstat"))?;
        let on_cpu = schedstat.split_whitespace().next().context("empty schedstat")?;
        total += on_cpu.parse::<u64>()?;
    }
    Ok(total)
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When the process is gone.
pub fn rss_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib = line.trim().split(' ').next().context("no number behind VmRSS")?;
    Ok(kib.parse::<u64>()? * 1024)
}

/// The children of a process, from `/proc`.
///
/// # Errors
/// When the process is gone.
pub fn children(pid: u32) -> anyhow::Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
}
