//! The journal of reports: what makes counting exact across restarts.
//!
//! In: one [`Report`] at a time from any task. Out: an answer only when the report is on disk, and every report
//! exactly once to whoever counts, both live and after a restart. An embedded SQLite database in the data
//! directory holds the last hour of reports and, for a day, the last sequence of each sidecar instance. Without a
//! data directory the same code keeps the sequences in memory and a restart begins at zero.
//!
//! Invariants: a report is counted only after its transaction is committed, and a sequence at or below the
//! highest committed one of its instance is answered without being counted; so a sender that repeats a report
//! until it is answered is counted exactly once. One thread writes; it takes what is waiting in one transaction
//! (group commit), so that the cost of a commit does not depend on the number of sidecars.
//! Surprise: `synchronous = NORMAL` in WAL mode survives the death of this program at any point, but a power
//! failure may lose the last answered reports. Waiting for the disk on each commit would buy that back at the
//! price of a tenth of the throughput; the graph is not worth it.
//! Non-goal: history. What the graph no longer shows is pruned.

mod journal;
mod record;
mod writer;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::graph::{Sample, Timestamp};
use journal::Journal;
use writer::{Entry, Message, Writer};

/// Reports that wait for the writer: one second of a thousand sidecars.
const QUEUE_MAX: usize = 1_024;
/// Kilobytes of encoded reports that wait for the writer.
const QUEUE_KIB_MAX: usize = 64 * 1_024;
/// How long a report may wait for a place in the queue before its sender is told to come again.
const QUEUE_WAIT: Duration = Duration::from_secs(1);
/// How long a report may wait for its commit. If it is committed later after all, its repetition is recognised.
const COMMIT_WAIT: Duration = Duration::from_secs(10);
/// Reports older than this are pruned: no window reaches further.
pub const KEPT: Duration = Duration::from_secs(3_600);
/// Sequences of instances that are silent for longer are forgotten.
pub const SEQUENCES_KEPT: Duration = Duration::from_secs(24 * 3_600);

/// Where and how much the journal may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The directory of the database; `None` keeps everything in memory.
    pub data_dir: Option<PathBuf>,
    /// The database is kept below this size by pruning reports before their hour is over.
    pub bytes_max: u64,
}

impl Config {
    /// Two gigabytes: an hour of 1,000 sidecars that each report some five edges every second.
    pub const BYTES_MAX: u64 = 2 << 30;
}

/// One report, resolved to samples.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The reporting instance; `None` for foreign senders, which are counted at least once.
    pub instance: Option<Arc<str>>,
    /// Position in the instance's series.
    pub sequence: u64,
    /// When it arrived.
    pub received_at: Timestamp,
    /// When its interval began, by this program's clock.
    pub start: Timestamp,
    /// When its interval ended, by this program's clock.
    pub end: Timestamp,
    /// The reporter's workload as `namespace/name`, for people who look at the database.
    pub workload: String,
    /// Addresses from which the instance calls.
    pub addresses: Vec<IpAddr>,
    /// What it observed.
    pub samples: Vec<Sample>,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is on disk and counted.
    Counted,
    /// It had been counted before.
    Duplicate,
}

/// What the journal knows of an instance from before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownInstance {
    /// The instance.
    pub instance: Arc<str>,
    /// Its highest sequence.
    pub sequence: u64,
    /// When its first report's interval began.
    pub started: Timestamp,
    /// When its last report's interval ended.
    pub last_end: Timestamp,
    /// Addresses from which it calls.
    pub addresses: Vec<IpAddr>,
}

/// Whoever counts. Called on the writer's thread, in the order of commits.
pub trait Counter: Send + 'static {
    /// An instance that reported before the restart; called before any report.
    fn known(&mut self, instance: KnownInstance);
    /// A committed report.
    fn count(&mut self, report: &Report);
}

/// Why the journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made.
    #[error("cannot make the data directory {path:?}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database cannot be opened, or another program holds it.
    #[error("cannot open the journal {path:?}")]
    Database {
        /// The database's file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The database was written by a newer version.
    #[error(
        "the journal {path:?} has format {found}, this version knows {known}; use another data directory"
    )]
    Format {
        /// The database's file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest format this version knows.
        known: i64,
    },
    /// No thread.
    #[error("cannot start the journal's thread")]
    Thread(#[source] std::io::Error),
}

/// The report was not counted; its sender should keep it and come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too much is waiting already.
    #[error("the journal is busy")]
    Busy,
    /// The commit failed or took too long.
    #[error("the journal cannot be written")]
    Failed,
    /// The program is ending.
    #[error("the control plane is shutting down")]
    Closed,
}

/// A handle on the journal. The writer's thread ends when the last handle is gone.
#[derive(Debug, Clone)]
pub struct Store {
    queue: mpsc::Sender<Message>,
    budget: Arc<Semaphore>,
    thread: Arc<Mutex<Option<std::thread::JoinHandle<()>>>>,
}

impl Store {
    /// Opens the journal and replays the last hour into `counter` on the writer's thread; reports that arrive
    /// meanwhile wait.
    ///
    /// # Errors
    /// When the directory or the database cannot be used. A database that is damaged is put aside, not an error.
    pub fn open(config: &Config, counter: impl Counter) -> Result<Self, OpenError> {
        let journal = Journal::open(config)?;
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let mut writer = Writer::new(journal, Box::new(counter));
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(OpenError::Thread)?;
        let thread = Arc::new(Mutex::new(Some(thread)));
        Ok(Self { queue, budget: Arc::new(Semaphore::new(QUEUE_KIB_MAX)), thread })
    }

    /// Journals and counts `report`, unless it was counted before.
    ///
    /// Dropping the future does not undo anything: the report may still be counted, and its repetition is then
    /// recognised.
    ///
    /// # Errors
    /// When it was not counted.
    pub async fn append(&self, report: Report) -> Result<Outcome, Unavailable> {
        let body = record::encode(&report);
        let size = (body.len() / 1_024 + 1).min(QUEUE_KIB_MAX);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let (answer, answered) = oneshot::channel();
        let enqueue = async {
            let permit =
                self.budget.clone().acquire_many_owned(size).await.map_err(|_| Unavailable::Closed)?;
            let entry = Box::new(Entry { report, body, answer, _permit: permit });
            self.queue.send(Message::Report(entry)).await.map_err(|_| Unavailable::Closed)
        };
        tokio::time::timeout(QUEUE_WAIT, enqueue).await.map_err(|_| Unavailable::Busy)??;
        match tokio::time::timeout(COMMIT_WAIT, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Unavailable::Closed),
            Err(_) => Err(Unavailable::Failed),
        }
    }

    /// Prunes what is too old, as seen from `now`. Call it every few seconds; skipped when the writer is busy.
    pub fn prune(&self, now: Timestamp) {
        // A full queue means there is no time for housekeeping; the next call makes up for it.
        drop(self.queue.try_send(Message::Prune(now)));
    }

    /// Number of reports that wait for the writer.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Waits until everything accepted so far is written, and closes the journal. Blocks: call it from a thread
    /// that may.
    pub fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        // The writer finishes what is before this in the queue.
        if self.queue.blocking_send(Message::Close).is_ok() && thread.join().is_err() {
            tracing::error!("the journal's thread ended by a panic");
        }
    }
}

#[cfg(test)]
mod tests;
