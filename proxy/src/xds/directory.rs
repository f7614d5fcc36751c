//! The map that workers read and the waiting room for destinations not asked yet.
//!
//! In: published answers (one writer: the xDS task) and lookups (every worker). Out: [`Lookup`]s.
//! Invariant: [`Directory::lookup`] takes no lock and never waits; [`Directory::discover`] waits at most as long
//! as its caller said and never makes anything else wait.
//! Surprise: a destination that is looked up stays subscribed because looking up touches its entry; one that is
//! merely *held* by a connection stays because the writer sees the extra reference.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use weft_wire::xds::ListenerName;

use super::dump::dump;
use super::metrics::Metrics;
use super::model::Listener;

/// What the directory knows about a destination.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// The control plane described it.
    Known(Arc<Listener>),
    /// The control plane says that it is not one of its services.
    Absent,
    /// Nobody asked, or there is no answer yet. Treat like `Absent`, but it may be `Known` next time.
    Unasked,
}

impl Lookup {
    /// The listener, if there is one; the other two cases mean "pass through".
    #[must_use]
    pub fn known(self) -> Option<Arc<Listener>> {
        match self {
            Self::Known(listener) => Some(listener),
            Self::Absent | Self::Unasked => None,
        }
    }
}

/// One answered destination in the map.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) answer: Answer,
    /// Whole seconds since the directory's birth at which a worker last looked.
    pub(crate) touched: Arc<AtomicU64>,
}

/// What was answered.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Known(Arc<Listener>),
    Absent,
}

pub(crate) type Map = HashMap<Arc<ListenerName>, Entry>;

/// A worker's wish to know a destination; the sender is dropped when there is nothing to wait for.
#[derive(Debug)]
pub(crate) struct Interest {
    pub(crate) name: ListenerName,
    pub(crate) answered: oneshot::Sender<()>,
}

/// How many wishes may be under way from workers to the client: a worker opens at most a few hundred
/// connections between two turns of the admin thread.
pub(crate) const INTERESTS_MAX: usize = 1024;

/// Everything that is known about destinations. One per process, shared by all threads.
#[derive(Debug)]
pub struct Directory {
    map: ArcSwap<Map>,
    /// `None` in a directory without a control plane.
    interests: Option<mpsc::Sender<Interest>>,
    status: ArcSwap<Status>,
    born: Instant,
    app_ended: watch::Sender<bool>,
    /// Questions turned away before they reached the client.
    refused: AtomicU64,
}

impl Directory {
    /// A directory without a control plane: every destination is [`Lookup::Unasked`] at once.
    #[must_use]
    pub fn standalone() -> Arc<Self> {
        Self::fixed([])
    }

    /// A directory with these answers for ever: for tests and benches. Everything else is unasked.
    #[must_use]
    pub fn fixed(listeners: impl IntoIterator<Item = Arc<Listener>>) -> Arc<Self> {
        let directory = Self::with(None);
        let entry = |listener: Arc<Listener>| {
            let name = Arc::new(listener.name.clone());
            (name, Entry { answer: Answer::Known(listener), touched: Arc::default() })
        };
        directory.publish(listeners.into_iter().map(entry).collect());
        Arc::new(directory)
    }

    /// A directory that a client fills, and the client's end of the waiting room.
    pub(crate) fn connected() -> (Arc<Self>, mpsc::Receiver<Interest>) {
        let (sender, receiver) = mpsc::channel(INTERESTS_MAX);
        (Arc::new(Self::with(Some(sender))), receiver)
    }

    fn with(interests: Option<mpsc::Sender<Interest>>) -> Self {
        let status = Status { configured: interests.is_some(), ..Status::default() };
        Self {
            map: ArcSwap::default(),
            interests,
            status: ArcSwap::from_pointee(status),
            born: Instant::now(),
            app_ended: watch::Sender::new(false),
            refused: AtomicU64::new(0),
        }
    }

    /// What is known now. No lock, no waiting, no question to the control plane.
    #[must_use]
    pub fn lookup(&self, name: &ListenerName) -> Lookup {
        match self.map.load().get(name) {
            None => Lookup::Unasked,
            Some(entry) => {
                entry.touched.store(self.age().as_secs(), Ordering::Relaxed);
                match &entry.answer {
                    Answer::Known(listener) => Lookup::Known(Arc::clone(listener)),
                    Answer::Absent => Lookup::Absent,
                }
            }
        }
    }

    /// What is known, after asking the control plane and waiting for its answer if need be.
    ///
    /// Returns [`Lookup::Unasked`] when no answer came within `patience`, when the control plane has been away
    /// for a while (waiting would only delay traffic), or when a bound is reached (counted in
    /// [`Status::refused`]). The question stays asked: a later lookup may find the answer.
    pub async fn discover(&self, name: ListenerName, patience: Duration) -> Lookup {
        let known = self.lookup(&name);
        let (Lookup::Unasked, Some(interests)) = (&known, &self.interests) else {
            return known;
        };
        let (answered, answer) = oneshot::channel();
        if interests.try_send(Interest { name: name.clone(), answered }).is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Lookup::Unasked;
        }
        // Answered, given up by the client, or out of patience: in each case the map has the truth.
        drop(tokio::time::timeout(patience, answer).await);
        self.lookup(&name)
    }

    /// The client's state.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.status.load_full()
    }

    /// Destinations answered so far, in no order.
    #[must_use]
    pub fn listeners(&self) -> Vec<Arc<Listener>> {
        let known = |entry: &Entry| match &entry.answer {
            Answer::Known(listener) => Some(Arc::clone(listener)),
            Answer::Absent => None,
        };
        self.map.load().values().filter_map(known).collect()
    }

    /// Everything that is known, for people: the admin's config dump.
    #[must_use]
    pub fn dump(&self) -> serde_json::Value {
        dump(&self.status(), &self.map.load())
    }

    /// The client's state as Prometheus metrics, to be registered once.
    #[must_use]
    pub fn metrics(self: &Arc<Self>) -> Metrics {
        Metrics::new(Arc::downgrade(self))
    }

    /// Completes when the control plane has said that this pod's app has ended. Cancel safe.
    pub async fn app_ended(&self) {
        // The sender lives as long as the directory.
        drop(self.app_ended.subscribe().wait_for(|ended| *ended).await);
    }

    /// The app has ended; there is no way back.
    pub(crate) fn set_app_ended(&self) {
        self.app_ended.send_replace(true);
    }

    pub(crate) fn publish(&self, map: Map) {
        self.map.store(Arc::new(map));
    }

    pub(crate) fn set_status(&self, mut status: Status) {
        status.refused += self.refused.load(Ordering::Relaxed);
        self.status.store(Arc::new(status));
    }

    /// How long the directory has lived: the clock of everything about subscriptions.
    pub(crate) fn age(&self) -> Duration {
        self.born.elapsed()
    }
}

/// What the client is doing and has done: for `/ready`, `/metrics` and the admin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whether there is a control plane to connect to at all. Without one a sidecar is ready at once.
    pub configured: bool,
    /// The address of the control plane.
    pub control_plane: String,
    /// Since when the stream is up; `None` = down.
    #[serde(serialize_with = "unix_seconds")]
    pub connected_since: Option<SystemTime>,
    /// When the last response was accepted.
    #[serde(serialize_with = "unix_seconds")]
    pub updated_at: Option<SystemTime>,
    /// Streams opened, first one included.
    pub streams: u64,
    /// Attempts that failed since the last stream that worked.
    pub failures: u64,
    /// Why the last stream or attempt ended.
    pub last_error: Option<String>,
    /// What the server calls itself and its version.
    pub server: Option<String>,
    /// Responses accepted.
    pub acks: u64,
    /// Responses rejected.
    pub nacks: u64,
    /// Why the last one was rejected.
    pub last_nack: Option<String>,
    /// Questions turned away because a bound was reached.
    pub refused: u64,
    /// Subscriptions dropped because nobody used them.
    pub expired: u64,
    /// Subscriptions and resources by type: listeners, routes, clusters, endpoints.
    pub listeners: TypeStatus,
    /// Route tables.
    pub routes: TypeStatus,
    /// Clusters.
    pub clusters: TypeStatus,
    /// Endpoint assignments.
    pub endpoints: TypeStatus,
}

/// Unix time in whole seconds.
fn unix_seconds<S: serde::Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map(|since| since.as_secs())
        .serialize(serializer)
}

impl Status {
    /// Whether a stream is up.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.connected_since.is_some()
    }
}

/// Numbers for one resource type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TypeStatus {
    /// Names subscribed to.
    pub subscribed: usize,
    /// Of these, how many the control plane described.
    pub present: usize,
    /// Of these, how many the control plane says do not exist.
    pub absent: usize,
}
