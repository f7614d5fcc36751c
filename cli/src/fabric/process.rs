//! Child processes that cannot be forgotten.
//!
//! In: a command. Out: a [`Process`] that is ended when it is dropped, can be asked to end politely, and says
//! how it ended.
//!
//! Invariant: a process is signalled only while it has not been reaped, so a signal never hits a stranger
//! that got the same process id.
//!
//! Surprise: all processes are started by one dedicated thread. The kernel delivers the parent-death signal
//! when the *thread* that forked ends, and threads of an async runtime come and go.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// Requests that may wait for the spawning thread. Each caller waits for its own answer, so this only has to
/// cover callers that arrive while one fork is under way.
const SPAWN_QUEUE: usize = 16;

type Request = (std::process::Command, SyncSender<io::Result<Child>>);

/// The thread that starts processes. It ends when the last clone is dropped, and its children with it.
#[derive(Debug, Clone)]
pub(super) struct Spawner(SyncSender<Request>);

impl Spawner {
    pub(super) fn start() -> Self {
        let (sender, receiver) = sync_channel::<Request>(SPAWN_QUEUE);
        let work = move || {
            for (mut command, answer) in receiver {
                // A caller that no longer waits leaves a child behind; `Child` does not kill on drop.
                if let Err(unsent) = answer.send(command.spawn())
                    && let Ok(mut child) = unsent.0
                {
                    child.kill().and_then(|()| child.wait()).ok();
                }
            }
        };
        thread::Builder::new().name("fabric-spawner".into()).spawn(work).expect("a thread can be started");
        Self(sender)
    }

    pub(super) fn spawn(&self, command: std::process::Command) -> io::Result<Child> {
        let (answer, receiver) = sync_channel(1);
        let gone = || io::Error::other("the spawning thread is gone");
        self.0.send((command, answer)).map_err(|_| gone())?;
        receiver.recv().map_err(|_| gone())?
    }
}

#[derive(Debug, Default)]
struct State {
    status: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    state: Arc<State>,
    /// The program's standard input, when it was asked to be piped.
    pub stdin: Option<std::process::ChildStdin>,
    /// The program's standard output, when it was asked to be piped.
    pub stdout: Option<std::process::ChildStdout>,
    /// The program's standard error, when it was asked to be piped.
    pub stderr: Option<std::process::ChildStderr>,
    // Keeps the thread alive whose death would kill this process.
    _spawner: Spawner,
}

impl Process {
    pub(super) fn adopt(name: &str, mut child: Child, spawner: Spawner) -> Self {
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids are small positive numbers"));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let state = Arc::new(State::default());
        let reaper = Arc::clone(&state);
        let work = move || {
            // Wait without reaping, then reap under the lock: see the invariant above.
            while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                == Err(nix::errno::Errno::EINTR)
            {}
            let mut status = reaper.lock();
            *status = Some(child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0)));
            reaper.changed.notify_all();
        };
        thread::Builder::new().name("fabric-reaper".into()).spawn(work).expect("a thread can be started");
        Self { name: name.into(), pid, state, stdin, stdout, stderr, _spawner: spawner }
    }

    /// Whose program this is: the pod's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn status(&self) -> Option<ExitStatus> {
        *self.state.lock()
    }

    /// Sends a signal; does nothing when the program has ended.
    pub fn signal(&self, signal: Signal) {
        let status = self.state.lock();
        if status.is_none() {
            // Fails only for a process that has ended but is not reaped yet, or that we may not signal.
            kill(self.pid, signal).ok();
        }
    }

    /// Waits until it has ended, at most until `deadline`.
    #[must_use]
    pub fn wait_until(&self, deadline: Instant) -> Option<ExitStatus> {
        let mut status = self.state.lock();
        while status.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            status = self.state.changed.wait_timeout(status, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *status
    }

    /// Waits until it has ended.
    #[must_use]
    pub fn wait(&self) -> ExitStatus {
        let mut status = self.state.lock();
        loop {
            if let Some(status) = *status {
                return status;
            }
            status = self.state.changed.wait(status).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks it to end (`SIGTERM`), waits up to `grace`, then kills it.
    pub fn terminate(&self, grace: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_until(Instant::now() + grace).unwrap_or_else(|| self.kill())
    }

    /// Ends it at once.
    pub fn kill(&self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        self.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(program: &str, arguments: &[&str]) -> Process {
        let spawner = Spawner::start();
        let mut command = std::process::Command::new(program);
        command.args(arguments);
        let child = spawner.spawn(command).expect("starts");
        Process::adopt("test", child, spawner)
    }

    #[test]
    fn says_how_it_ended() {
        assert_eq!(start("sh", &["-c", "exit 7"]).wait().code(), Some(7));
        assert_eq!(start("sleep", &["60"]).terminate(Duration::from_secs(10)).signal(), Some(15));
    }

    #[test]
    fn one_that_ignores_the_request_is_killed() {
        let process = start("sh", &["-c", "trap '' TERM; echo; while :; do sleep 60; done"]);
        // Without the pipe there is no way to know that the trap is set; a zero grace makes both orders
        // equal.
        let status = process.terminate(Duration::ZERO);
        assert!(matches!(status.signal(), Some(9 | 15)), "{status}");
    }

    #[test]
    fn dropping_ends_it() {
        let process = start("sleep", &["60"]);
        let pid = process.pid;
        drop(process);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }
}
