//! From the signal to the end: stop taking work, finish what is in flight, and then go.
//!
//! In: SIGTERM or SIGINT. Out: one [`CancellationToken`] that every server and task watches, and one
//! [`TaskTracker`] that knows when all of them are done. Invariant: the end comes at the latest at the
//! deadline, or at a second signal. Sidecars need no goodbye: they keep their configuration and reconnect.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// What everything that runs watches and is counted by. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    /// Cancelled when the program shall end.
    pub token: CancellationToken,
    /// Every task that must be waited for.
    pub tasks: TaskTracker,
}

impl Drain {
    /// Tells everyone to finish and waits until they have, the deadline passes, or `hurry` completes.
    pub async fn drain(&self, deadline: Duration, hurry: impl Future<Output = ()>) {
        self.token.cancel();
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => info!("drained"),
            () = tokio::time::sleep(deadline) => {
                warn!(unfinished = self.tasks.len(), ?deadline, "drain deadline passed");
            }
            () = hurry => warn!(unfinished = self.tasks.len(), "second signal: not waiting any longer"),
        }
    }
}

/// The signals that end the program.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the process may not handle signals.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one. Cancel safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
