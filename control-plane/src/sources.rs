//! Where configuration comes from, and what is wrong with it.
//!
//! In: objects from a directory of YAML (`files`) or from the Kubernetes API (`kubernetes`). Out: [`Event`]
//! batches for the world, and the list of [`Problem`]s for people.
//!
//! Invariant: a source never takes anything away because it could not read it. What is broken keeps its last
//! good state and becomes a problem.
//!
//! [`Event`]: crate::world::Event

mod catalog;
pub mod files;
pub mod kubernetes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::watch;

/// What stops an object, or a whole file, from being used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, relative to the source directory; `kubernetes` for what an API server says.
    pub file: String,
    /// Line in the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Position of the YAML document in the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<usize>,
    /// The object as `Kind namespace/name`, as far as it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Path of the field, for instance `spec.ports[0].port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, in words.
    pub reason: String,
    /// What it means for the file.
    pub effect: Effect,
}

/// What a problem means for what is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The whole file keeps its last good state (nothing, if it never had one).
    FileKeptLastGood,
    /// This object is left out; everything else is used.
    ObjectIgnored,
    /// This object stays as it was when it could last be read.
    ObjectKeptLastGood,
    /// Everything stays as it is until the source can be read again.
    StateKept,
}

impl Effect {
    /// Its word in the API.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::FileKeptLastGood => "file_kept_last_good",
            Self::ObjectIgnored => "object_ignored",
            Self::ObjectKeptLastGood => "object_kept_last_good",
            Self::StateKept => "state_kept",
        }
    }
}

/// Everything that is wrong with the configuration at one moment.
#[derive(Debug, Clone)]
pub struct Report {
    /// When the sources were last read.
    pub at: SystemTime,
    /// The problems, by file and line.
    pub problems: Arc<[Problem]>,
    /// What people may want to know although nothing is wrong, in sentences.
    pub notices: Arc<[String]>,
    /// The file that says what an object (`Kind namespace/name`) is.
    pub files: Arc<HashMap<String, Arc<str>>>,
}

impl Default for Report {
    fn default() -> Self {
        let (problems, notices) = (Arc::from([]), Arc::from([]));
        Self { at: SystemTime::UNIX_EPOCH, problems, notices, files: Arc::default() }
    }
}

/// The current problems; changes are signalled.
pub type Problems = watch::Receiver<Report>;
