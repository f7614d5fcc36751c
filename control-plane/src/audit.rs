//! Who did what: a line of JSON for every call that changes something, and for every tap.
//!
//! In: [`Audit::begin`] before the deed, [`Record::end`] after it. Out: two lines in a file or on standard error, `requested`
//! and `done`, with one id; and the last [`KEPT_MAX`] records for `GET /api/audit`.
//!
//! Invariants: what cannot be written down is not done ([`Unwritten`]); a line is on the disk before the deed begins; the
//! number of lines under way is bounded, so that a disk that hangs refuses calls instead of collecting them.
//! Surprise: the file is opened for every line. Deeds are rare, and so whoever rotates logs needs to tell nobody.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus::{IntCounter, Registry};
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::error;

use crate::auth::{How, Principal, Role};

/// Records that `GET /api/audit` shows: days of a mesh in which deeds are rare. Each has 2 kB at most.
pub const KEPT_MAX: usize = 1_000;
/// Lines being written or waiting for it.
const WRITING_MAX: usize = 32;
/// A line that takes longer counts as not written.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer texts from a request are cut.
const TEXT_MAX: usize = 500;

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Target {
    /// Standard error, where the program's own log goes.
    #[default]
    Stderr,
    /// Appended to a file, which is made for its owner only.
    File(PathBuf),
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("the audit log is a file, or stderr"),
            "stderr" => Ok(Self::Stderr),
            file => Ok(Self::File(file.into())),
        }
    }
}

impl Target {
    /// The word for people.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Stderr => "stderr".to_owned(),
            Self::File(file) => file.display().to_string(),
        }
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        let Self::File(path) = self else { return io::stderr().lock().write_all(line) };
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        file.write_all(line)?;
        match file.sync_data() {
            // A pipe or a terminal has no disk behind it.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }
}

/// A line could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this would have to be in the audit log first, and that cannot be written: {0}")]
pub struct Unwritten(String);

/// Who did what, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The same in both lines.
    pub id: String,
    /// When it began.
    pub time: Timestamp,
    /// Who.
    pub who: String,
    /// As what.
    pub role: Role,
    /// How that was proved.
    pub how: How,
    /// The other end of the connection.
    pub from: Option<SocketAddr>,
    /// What proxies in between say about who is behind them; believed by nobody.
    pub forwarded_for: Option<String>,
    /// What.
    pub action: String,
    /// HTTP status of its end; `None` while it goes on.
    pub status: Option<u16>,
    /// What came of it, in words.
    pub detail: Option<String>,
}

/// What a handler adds to its own record: an extension of its response.
#[derive(Debug, Clone)]
pub struct Remark(pub String);

/// A call, as the audit log wants to know it.
#[derive(Debug, Clone, Default)]
pub struct Deed {
    /// `POST /api/ca/rotate`.
    pub action: String,
    /// The other end of the connection.
    pub from: Option<SocketAddr>,
    /// `X-Forwarded-For`.
    pub forwarded_for: Option<String>,
}

/// The log.
#[derive(Clone)]
pub struct Audit(Arc<Log>);

struct Log {
    target: Target,
    run: u64,
    next: AtomicU64,
    kept: Mutex<VecDeque<Entry>>,
    places: Arc<Semaphore>,
    /// Held while a line is written; `true` after one that may have been written by half.
    pen: Arc<Mutex<bool>>,
    lines: IntCounter,
    errors: IntCounter,
}

impl Audit {
    /// A log in `target`; counters are shown in `registry`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(target: Target, registry: &Registry) -> io::Result<Self> {
        target.write(b"")?;
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            // Registered twice only in tests that share a registry; then it is only not exported twice.
            drop(registry.register(Box::new(counter.clone())));
            counter
        };
        Ok(Self(Arc::new(Log {
            target,
            run: u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default(),
            next: AtomicU64::new(1),
            kept: Mutex::default(),
            places: Arc::new(Semaphore::new(WRITING_MAX)),
            pen: Arc::default(),
            lines: counter("weft_audit_lines_total", "Lines written to the audit log."),
            errors: counter("weft_audit_errors_total", "Lines that could not be written to the audit log."),
        })))
    }

    /// Where lines go.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// Writes down that `who` is about to do something.
    ///
    /// # Errors
    /// When it cannot be written; then it must not be done.
    pub async fn begin(&self, who: &Principal, deed: Deed, now: Timestamp) -> Result<Record, Unwritten> {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry {
            id: format!("{:x}-{number}", self.0.run),
            time: now,
            who: who.name.to_string(),
            role: who.role,
            how: who.how,
            from: deed.from,
            forwarded_for: deed.forwarded_for.map(|text| cut(&text)),
            action: cut(&deed.action),
            status: None,
            detail: None,
        };
        self.write("requested", &entry).await?;
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(entry.clone());
        Ok(Record { audit: self.clone(), entry })
    }

    /// The last records, the newest first.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().cloned().collect()
    }

    async fn write(&self, stage: &'static str, entry: &Entry) -> Result<(), Unwritten> {
        let written = self.try_write(stage, entry).await;
        match &written {
            Ok(()) => self.0.lines.inc(),
            Err(unwritten) => {
                self.0.errors.inc();
                let Entry { id, who, action, .. } = entry;
                error!(%unwritten, stage, id, who, action, "the audit log has a gap");
            }
        }
        written
    }

    async fn try_write(&self, stage: &'static str, entry: &Entry) -> Result<(), Unwritten> {
        #[derive(Serialize)]
        struct Line<'a> {
            audit: &'static str,
            #[serde(flatten)]
            entry: &'a Entry,
        }
        let failed = |error: &dyn ToString| Unwritten(error.to_string());
        let mut line = serde_json::to_vec(&Line { audit: stage, entry }).map_err(|error| failed(&error))?;
        line.push(b'\n');
        let place = Arc::clone(&self.0.places).try_acquire_owned();
        let place = place.map_err(|_| failed(&format_args!("{WRITING_MAX} lines wait for the disk")))?;
        let (target, pen) = (self.0.target.clone(), Arc::clone(&self.0.pen));
        let writing = tokio::task::spawn_blocking(move || {
            let _place = place;
            let mut torn = pen.lock().unwrap_or_else(PoisonError::into_inner);
            if *torn {
                line.insert(0, b'\n');
            }
            let written = target.write(&line);
            *torn = written.is_err();
            written
        });
        match tokio::time::timeout(PATIENCE, writing).await {
            Ok(Ok(written)) => written.map_err(|error| failed(&error)),
            Ok(Err(lost)) => Err(failed(&lost)),
            Err(_) => Err(failed(&format_args!("it took longer than {PATIENCE:?}"))),
        }
    }
}

/// A deed that was written down and has not ended.
#[must_use = "a deed has an end"]
pub struct Record {
    audit: Audit,
    entry: Entry,
}

impl Record {
    /// Writes down how it ended. A line that fails now is counted and logged: what is done is done.
    pub async fn end(mut self, status: u16, detail: Option<String>) {
        self.entry.status = Some(status);
        self.entry.detail = detail.map(|detail| cut(&detail));
        {
            let mut kept = self.audit.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = kept.iter_mut().rev().find(|entry| entry.id == self.entry.id) {
                entry.clone_from(&self.entry);
            }
        }
        self.audit.write("done", &self.entry).await.ok();
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn who() -> Principal {
        Principal { name: "alice".into(), role: Role::Operator, how: How::Token, session: false }
    }

    fn deed(action: &str) -> Deed {
        Deed { action: action.to_owned(), from: "10.0.0.1:4711".parse().ok(), forwarded_for: None }
    }

    fn log(target: Target) -> Audit {
        Audit::open(target, &Registry::new()).expect("writable")
    }

    #[tokio::test]
    async fn a_deed_is_two_lines_and_one_record() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let audit = log(Target::File(file.path().to_owned()));
        let lines = || -> Vec<Value> {
            let text = std::fs::read_to_string(file.path()).expect("readable");
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
        };
        let record =
            audit.begin(&who(), deed("POST /api/ca/rotate"), Timestamp::UNIX_EPOCH).await.expect("written");
        assert_eq!(lines().len(), 1, "before it is done");
        assert_eq!(audit.entries()[0].status, None);
        record.end(202, Some("phase 1".to_owned())).await;
        let written = lines();
        assert_eq!(written.len(), 2);
        assert_eq!(written[0]["audit"], "requested");
        for (field, value) in [
            ("audit", "done"),
            ("who", "alice"),
            ("role", "operator"),
            ("how", "token"),
            ("from", "10.0.0.1:4711"),
            ("action", "POST /api/ca/rotate"),
            ("time", "1970-01-01T00:00:00Z"),
            ("detail", "phase 1"),
        ] {
            assert_eq!(written[1][field], value, "{field}");
        }
        assert_eq!((&written[0]["id"], &written[1]["status"]), (&written[1]["id"], &202.into()));
        assert_eq!(audit.entries().len(), 1);
        assert_eq!(audit.entries()[0].status, Some(202));
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_refused_and_the_next_line_stands_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.log");
        let audit = log(Target::File(path.clone()));
        // A disk that is full, for whoever opens it.
        std::fs::remove_file(&path).expect("there");
        std::os::unix::fs::symlink("/dev/full", &path).expect("linked");
        let refused = audit.begin(&who(), deed("POST /api/x"), Timestamp::UNIX_EPOCH).await.err();
        assert!(refused.expect("refused").to_string().contains("No space left"));
        assert!(audit.entries().is_empty());
        std::fs::remove_file(&path).expect("there");
        let record = audit.begin(&who(), deed("POST /api/x"), Timestamp::UNIX_EPOCH).await.expect("written");
        assert!(
            std::fs::read_to_string(&path).expect("there").starts_with("\n{"),
            "after what may be half a line"
        );
        record.end(200, None).await;
        assert!(Audit::open(Target::File(directory.path().to_owned()), &Registry::new()).is_err());
    }

    #[tokio::test]
    async fn records_are_bounded_in_number_and_length() {
        let audit = log(Target::File("/dev/null".into()));
        for number in 0..=KEPT_MAX {
            let long = format!("{number} {}", "x".repeat(10_000));
            let record = audit.begin(&who(), deed(&long), Timestamp::UNIX_EPOCH).await.expect("written");
            record.end(200, Some(long)).await;
        }
        let entries = audit.entries();
        assert_eq!(entries.len(), KEPT_MAX);
        assert!(entries[0].action.starts_with("1000 ") && entries[KEPT_MAX - 1].action.starts_with("1 "));
        assert_eq!(entries[0].detail.as_ref().map(String::len), Some(TEXT_MAX));
    }
}
