//! A directory of YAML as a source, hot reloaded.
//!
//! In: a directory. Out: events to the world, problems to people. The whole directory is compared on every
//! word of change (a stat per file), and only files whose identity, size or time differ are read: one code
//! path for a start, a change, a missed notification, an atomic rename and a swapped ConfigMap.
//!
//! Invariants: a directory that cannot be listed changes nothing; a file is removed only when its directory
//! was listed and it was not in it. Surprise: names that begin with a dot are not looked at. Editors and
//! ConfigMaps (`..data`, `..2024_…`) keep their own things there, and what a ConfigMap shows is linked beside it.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::catalog::Catalog;
use super::{Problem, Problems, Report};
use crate::world::{Event, Live};

/// Quiet time after a change before the directory is read: an editor or `kubectl cp` writes in several steps.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Reading is put off at most this long by changes that do not stop.
const DEBOUNCE_MAX: Duration = Duration::from_millis(500);
/// How often to look even if nothing was heard: watches do not work on every file system, and are lost when
/// the directory itself is replaced.
const POLL: Duration = Duration::from_secs(2);
/// Files read from one directory tree; the rest is reported and left out.
const FILES_MAX: usize = 20_000;
/// Largest file. 20,000 pods as a cluster prints them are about 100 MB; nobody keeps them in one file.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Directories below directories; links may form a circle.
const DEPTH_MAX: usize = 16;
/// Directories in one tree: two circles of links would otherwise be walked in every order there is.
const DIRECTORIES_MAX: usize = 10_000;

/// The source cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory is not there, or not a directory, or not ours to read.
    #[error("read source directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Reads the directory once, so that what is served first is complete, and gives back the source to run.
///
/// # Errors
/// When the directory cannot be listed.
pub fn open(directory: PathBuf, live: &Live) -> Result<(Files, Problems), Error> {
    let unlistable = |source| Error::Directory { path: directory.clone(), source };
    std::fs::read_dir(&directory).map_err(unlistable)?;
    let (reports, problems) = watch::channel(Report::default());
    let mut files = Files {
        state: Some(State { directory, seen: HashMap::new(), catalog: Catalog::default() }),
        reports,
        live: live.clone(),
    };
    if let Some(mut state) = files.state.take() {
        let outcome = state.scan();
        files.publish(&state, outcome);
        files.state = Some(state);
    }
    Ok((files, problems))
}

/// The directory source.
pub struct Files {
    /// Absent only while a scan runs on another thread.
    state: Option<State>,
    reports: watch::Sender<Report>,
    live: Live,
}

impl Files {
    /// Follows the directory. Runs until dropped.
    pub async fn run(mut self) {
        let (changed, mut changes) = mpsc::channel(1);
        let Some(directory) = self.state.as_ref().map(|state| state.directory.clone()) else { return };
        let mut watcher = watch_directory(&directory, changed.clone());
        loop {
            // Either is a reason to look; hearing nothing is one too.
            let heard = timeout(POLL, changes.recv()).await.is_ok();
            if heard {
                settle(&mut changes).await;
            }
            let Some(mut state) = self.state.take() else { return };
            let scanned = tokio::task::spawn_blocking(move || {
                let outcome = state.scan();
                (state, outcome)
            });
            let (state, outcome) = match scanned.await {
                Ok(done) => done,
                Err(error) => {
                    // Its state went with it; what was published stays.
                    error!(%error, "reading the source directory broke off; it is not followed any more");
                    return;
                }
            };
            if outcome.root_replaced || watcher.is_none() {
                watcher = watch_directory(&directory, changed.clone());
            }
            self.publish(&state, outcome);
            self.state = Some(state);
        }
    }

    fn publish(&self, state: &State, outcome: Outcome) {
        let changed = !outcome.events.is_empty();
        if changed {
            info!(changes = outcome.events.len(), objects = state.catalog.objects(), "configuration changed");
            self.live.apply(outcome.events, tokio::time::Instant::now().into_std());
        }
        let mut problems = state.catalog.problems();
        problems.extend(outcome.problems);
        let before = Arc::clone(&self.reports.borrow().problems);
        if *before != *problems {
            for problem in problems.iter().filter(|problem| !before.contains(problem)) {
                warn!(
                    file = problem.file,
                    line = problem.line,
                    document = problem.document,
                    object = problem.object,
                    field = problem.field,
                    effect = ?problem.effect,
                    "{}",
                    problem.reason
                );
            }
            if problems.is_empty() {
                info!("configuration has no problems any more");
            }
            self.reports.send_modify(|report| report.problems = problems.into());
        }
        let files = state.catalog.origins();
        if changed || files != *self.reports.borrow().files {
            self.reports.send_modify(|report| (report.at, report.files) = (SystemTime::now(), files.into()));
        }
    }
}

/// Waits until nothing has changed for a moment, but not for ever.
async fn settle(changes: &mut mpsc::Receiver<()>) {
    let end = tokio::time::Instant::now() + DEBOUNCE_MAX;
    while tokio::time::Instant::now() < end && matches!(timeout(DEBOUNCE, changes.recv()).await, Ok(Some(())))
    {
    }
}

/// Watches a directory tree; `None` where that is impossible and only polling is left.
fn watch_directory(directory: &Path, changed: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is not news. A full channel means that news is already waiting.
        if event.map_or(true, |event| !event.kind.is_access()) {
            let _already_told = changed.try_send(());
        }
    });
    let watching = watcher.and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watching
        .inspect_err(|error| warn!(%error, "cannot watch the source directory; looking every {POLL:?}"))
        .ok()
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

struct State {
    directory: PathBuf,
    seen: HashMap<Arc<str>, Stamp>,
    catalog: Catalog,
}

struct Outcome {
    events: Vec<Event>,
    problems: Vec<Problem>,
    root_replaced: bool,
}

impl State {
    fn scan(&mut self) -> Outcome {
        let mut found = Found::default();
        found.list(&self.directory, "", 0);
        let mut events = Vec::new();
        for (path, (place, stamp)) in &found.files {
            if self.seen.get(path) == Some(stamp) {
                continue;
            }
            match read(place) {
                Ok(text) => {
                    events.extend(self.catalog.read(path, &text));
                    self.seen.insert(Arc::clone(path), *stamp);
                }
                // Gone since it was listed: the next look will see.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.catalog.unreadable(path, error.to_string()),
            }
        }
        let gone: Vec<Arc<str>> =
            self.catalog.files().filter(|path| found.is_gone(path)).map(Arc::clone).collect();
        for path in gone {
            events.extend(self.catalog.remove(&path));
            self.seen.remove(&path);
        }
        Outcome { events, problems: found.problems, root_replaced: found.root_lost }
    }
}

/// What a walk through the directory saw.
#[derive(Default)]
struct Found {
    files: BTreeMap<Arc<str>, (PathBuf, Stamp)>,
    /// Directories (relative, with a final slash; the root is empty) that could not be listed, or not whole.
    unlisted: Vec<String>,
    root_lost: bool,
    directories: usize,
    problems: Vec<Problem>,
}

impl Found {
    fn list(&mut self, directory: &Path, prefix: &str, depth: usize) {
        let entries = match std::fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) => {
                self.unlisted.push(prefix.to_owned());
                self.root_lost |= prefix.is_empty();
                self.problem(prefix, format!("directory cannot be listed: {error}"));
                return;
            }
        };
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let (place, path) = (entry.path(), format!("{prefix}{name}"));
            // Follows links: a ConfigMap is made of them. One that points nowhere is a file that is gone.
            let Ok(metadata) = std::fs::metadata(&place) else { continue };
            if metadata.is_dir() && depth < DEPTH_MAX {
                if self.directories >= DIRECTORIES_MAX {
                    return self.cut(prefix, &path, format!("more than {DIRECTORIES_MAX} directories"));
                }
                self.directories += 1;
                self.list(&place, &format!("{path}/"), depth + 1);
            } else if metadata.is_dir() {
                self.problem(&path, format!("more than {DEPTH_MAX} directories deep"));
            } else if metadata.is_file() && is_yaml(&name) {
                if self.files.len() >= FILES_MAX {
                    return self.cut(prefix, &path, format!("more than {FILES_MAX} files"));
                }
                self.files.insert(path.into(), (place, stamp(&metadata)));
            }
        }
    }

    /// Gives up a directory at `path`. What was not looked at is not gone.
    fn cut(&mut self, prefix: &str, path: &str, limit: String) {
        self.unlisted.push(prefix.to_owned());
        self.problem(path, format!("{limit}; this one and the rest of its directory are left out"));
    }

    fn is_gone(&self, path: &str) -> bool {
        !self.files.contains_key(path)
            && !self.unlisted.iter().any(|unlisted| path.starts_with(unlisted.as_str()))
    }

    fn problem(&mut self, file: &str, reason: String) {
        let effect = super::Effect::FileKeptLastGood;
        let file = if file.is_empty() { "." } else { file }.to_owned();
        let (line, document, object, field) = (None, None, None, None);
        self.problems.push(Problem { file, line, document, object, field, reason, effect });
    }
}

fn is_yaml(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn read(place: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(place)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
