//! A cluster as a source: everything the mesh needs of the Kubernetes API, followed.
//!
//! In: a [`Connection`]. Out: events to the world, problems to people; the same events that a directory of the same objects
//! would give. Each kind has a conversation of its own ([`talk`]), all of them tell one [`Catalog`], and that tells the
//! world in batches.
//!
//! Invariants: the world is told nothing before every kind that is needed has been listed once, so nobody is served from
//! half of it; while the server is away or refuses, the world keeps what it has. Surprise: kinds that nobody has installed
//! (the Gateway API's, Weft's own) count as listed and empty; they are looked for again for ever. A kind that is there and
//! that we may not read does hold up the start: it may say who must not call whom.

mod backoff;
mod catalog;
mod connect;
mod kind;
mod metrics;
mod owners;
mod table;
mod talk;
mod wire;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{info, warn};

pub use connect::{Connection, Error};

use super::{Problem, Problems, Report};
use crate::world::Live;
use catalog::{Catalog, Word};

/// Words on their way from the conversations; each may be a whole list, and there are a dozen conversations.
const WORDS_MAX: usize = 64;
/// How long to gather after the first change: a rollout changes a Pod and its EndpointSlices at almost the same time.
const GATHER: Duration = Duration::from_millis(25);
/// Time between two batches, however much changes; see `world::Live` on what streams may fall behind.
const PAUSE: Duration = Duration::from_millis(50);
/// How often to look at how long something has been wrong.
const LOOK: Duration = Duration::from_secs(1);
/// How often the log says what the start waits for.
const REMIND: Duration = Duration::from_secs(10);

/// The cluster source.
pub struct Kubernetes {
    catalog: Catalog,
    words: mpsc::Receiver<Word>,
    /// Ends with this value.
    talks: JoinSet<()>,
    reports: watch::Sender<Report>,
    live: Live,
}

/// Begins to follow a cluster, and waits until what the world knows of it is complete: as long as that takes.
pub async fn open(connection: &Connection, live: &Live, registry: &Registry) -> (Kubernetes, Problems) {
    let (told, words) = mpsc::channel(WORDS_MAX);
    let (reports, problems) = watch::channel(Report::default());
    let metrics = metrics::Metrics::new(registry);
    let mut talks = JoinSet::new();
    for talk in talk::all(&connection.follower, &told, &metrics) {
        talks.spawn(talk.run());
    }
    info!(server = connection.url(), "following the Kubernetes API");
    let mut source = Kubernetes { catalog: Catalog::default(), words, talks, reports, live: live.clone() };
    source.complete().await;
    (source, problems)
}

impl Kubernetes {
    async fn complete(&mut self) {
        let begun = Instant::now();
        let mut remind = begun + REMIND;
        while self.catalog.awaited().next().is_some() {
            match timeout(remind.saturating_duration_since(Instant::now()), self.words.recv()).await {
                Ok(Some(word)) => self.catalog.take(word),
                Ok(None) => return,
                Err(_) => {
                    warn!(
                        "not serving yet: waiting for the Kubernetes API to list {}",
                        self.catalog.waiting()
                    );
                    remind = Instant::now() + REMIND;
                }
            }
        }
        self.publish();
        info!(milliseconds = begun.elapsed().as_millis(), "the Kubernetes API has listed everything");
    }

    /// Follows the cluster. Runs until dropped.
    pub async fn run(mut self) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut earliest = Instant::now();
        loop {
            tokio::select! {
                word = self.words.recv() => {
                    let Some(word) = word else { return };
                    self.catalog.take(word);
                    self.gather(earliest).await;
                    self.publish();
                    earliest = Instant::now() + PAUSE;
                }
                _ = looks.tick() => self.tell_people(false),
                Some(ended) = self.talks.join_next() => {
                    // It never ends by itself while somebody listens. What is known of its kind stays.
                    if let Err(error) = ended {
                        warn!(%error, "a conversation with the Kubernetes API is over; that kind is not followed any more");
                    }
                }
            }
        }
    }

    /// Takes in what else is told within a moment, and not before `earliest`.
    async fn gather(&mut self, earliest: Instant) {
        let end = sleep_until(earliest.max(Instant::now() + GATHER));
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                word = self.words.recv() => match word {
                    Some(word) => self.catalog.take(word),
                    None => return,
                },
            }
        }
    }

    fn publish(&mut self) {
        let events = self.catalog.flush(&self.live.read());
        let changed = !events.is_empty();
        if changed {
            tracing::debug!(changes = events.len(), "the cluster has changed");
            self.live.apply(events, Instant::now().into_std());
        }
        self.tell_people(changed);
    }

    fn tell_people(&self, changed: bool) {
        let problems = self.catalog.problems(std::time::Instant::now());
        let notices = self.catalog.notices();
        let (before, noticed) = {
            let report = self.reports.borrow();
            (Arc::clone(&report.problems), Arc::clone(&report.notices))
        };
        let news = *before != *problems || *noticed != *notices;
        if news {
            for problem in problems.iter().filter(|problem| !before.contains(problem)) {
                log(problem);
            }
            for notice in notices.iter().filter(|notice| !noticed.contains(notice)) {
                info!("{notice}");
            }
        }
        if news && problems.is_empty() && !before.is_empty() {
            info!("the cluster's configuration has no problems any more");
        }
        if news || changed {
            self.reports.send_modify(|report| {
                report.at = SystemTime::now();
                (report.problems, report.notices) = (problems.into(), notices.into());
            });
        }
    }
}

fn log(problem: &Problem) {
    let Problem { object, field, effect, reason, .. } = problem;
    warn!(object, field, ?effect, "{reason}");
}
