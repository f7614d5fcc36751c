//! How objects fare, written where their authors look: `status` of routes and policies, and Events.
//!
//! In: the world, who runs what, what the sources could not use. Out: conditions as `weft get` says them. Only whoever leads
//! writes; what was found and written is remembered, so that an object is asked about only when there is news of it.
//!
//! Invariants: what others wrote stays (`merge`); a status is said of the version of the spec that it was found out of, and of
//! no other; objects are written one after the other with a pause, so that a large change does not press the API server: what
//! is not written now still differs at the next look; right after the lead came over nobody is connected yet, and what was said
//! of how many run something stays until they are ([`is_whole`]). Surprise: how many sidecars run something changes all the time. Where
//! only that number differs an object is written once in [`NUMBERS`].

mod known;
pub mod merge;
mod metrics;
mod write;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use prometheus::Registry;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::event::Events;
use super::{Cluster, Leading, while_leading};
use crate::ca::Leads;
use crate::inspect::objects::{Condition, Told, told};
use crate::sources::Problems;
use crate::world::Live;
use crate::xds::{COME_BACK, Status, WARM_UP, is_whole};
use known::Known;
use merge::Wanted;
use metrics::Metrics;

/// Who we are in the status of routes.
pub const CONTROLLER: &str = "weft.dev/gateway-controller";

/// How long to wait after a change before looking: a rollout is many.
const GATHER: Duration = Duration::from_secs(1);
/// How often to look whatever happens: somebody may have overwritten what we wrote.
const LOOK: Duration = Duration::from_secs(30);
/// How often to read all of it anew.
const REREAD: Duration = Duration::from_secs(600);
/// How often a status is written of which only numbers in a message differ.
const NUMBERS: Duration = Duration::from_secs(60);
/// Between two objects: at two requests for each, 40 requests a second.
const PAUSE: Duration = Duration::from_millis(50);
/// Objects written between two looks.
const ROUND_MAX: usize = 200;

/// A route or a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

/// Writes how objects fare.
pub struct Writer {
    cluster: Cluster,
    world: Live,
    status: Status,
    problems: Problems,
    events: Events,
    metrics: Metrics,
}

impl Leading for Writer {
    /// Looks and writes. Ends never; may be dropped at any moment.
    async fn lead(&self) {
        let led = Instant::now();
        let mut known = Known::default();
        let mut read_at: Option<Instant> = None;
        loop {
            if read_at.is_none_or(|at| at.elapsed() >= REREAD) {
                known.read(&self.cluster, &self.metrics).await;
                read_at = Some(Instant::now());
                info!(objects = known.len(), "read how objects fare by what is written of them");
            }
            let (mut changes, mut proxies) = (self.world.changes(), self.status.changes());
            let mut problems = self.problems.clone();
            problems.mark_unchanged();
            let began = Instant::now();
            let Some(wanted) = self.wanted(led).await else { continue };
            let took = began.elapsed();
            let all_written = self.write(&mut known, &wanted).await;
            // Looking costs at most a tenth of a core.
            tokio::time::sleep(GATHER.max(took * 10)).await;
            if all_written {
                let look = Instant::now() + LOOK;
                // Sidecars are counted from then on, whether one more comes or not.
                let counted = [led + WARM_UP, led + COME_BACK].into_iter().find(|at| *at > Instant::now());
                let deadline =
                    [Some(look), known.again(), counted].into_iter().flatten().min().unwrap_or(look);
                tokio::select! {
                    () = tokio::time::sleep_until(deadline) => {}
                    changed = changes.recv() => if changed == Err(RecvError::Closed) { tokio::time::sleep_until(deadline).await },
                    changed = proxies.changed() => if changed.is_err() { tokio::time::sleep_until(deadline).await },
                    changed = problems.changed() => if changed.is_err() { tokio::time::sleep_until(deadline).await },
                }
            }
        }
    }
}

impl Writer {
    /// One that has looked at nothing yet.
    #[must_use]
    pub fn new(
        cluster: &Cluster,
        world: Live,
        status: Status,
        problems: Problems,
        events: Events,
        registry: &Registry,
    ) -> Self {
        let cluster = cluster.clone();
        Self { cluster, world, status, problems, events, metrics: Metrics::new(registry) }
    }

    /// Writes while this control plane leads, until `shutdown`.
    pub async fn run(self, leads: Leads, shutdown: CancellationToken) {
        while_leading(leads, shutdown, &self).await;
    }

    /// What there is to say of every object, by one who leads since `led`.
    async fn wanted(&self, led: Instant) -> Option<BTreeMap<Key, Wanted>> {
        let (world, status) = (self.world.clone(), self.status.clone());
        let telling = tokio::task::spawn_blocking(move || {
            // A copy, so that nobody who changes the world waits for it.
            let copy = world.read().clone();
            let proxies = status.proxies();
            (told(&copy, &proxies), proxies.len(), copy.running_sidecars())
        });
        let (told, connected, expected) = match telling.await {
            Ok(told) => told,
            Err(error) => {
                warn!(%error, "how objects fare was not found out");
                tokio::time::sleep(LOOK).await;
                return None;
            }
        };
        let counted = is_whole(led.elapsed(), connected, expected);
        let mut wanted: BTreeMap<Key, Wanted> = told.into_iter().map(|told| of_told(told, counted)).collect();
        for problem in self.problems.borrow().problems.iter() {
            let Some(key) = problem.object.as_deref().and_then(key_of) else { continue };
            let field = problem.field.as_deref().map(|field| format!("{field}: ")).unwrap_or_default();
            let message = format!("{field}{}", problem.reason);
            wanted.insert(key.clone(), rejected(&key, message));
        }
        Some(wanted)
    }

    /// Writes what differs from what is known. Whether nothing is left to write.
    async fn write(&self, known: &mut Known, wanted: &BTreeMap<Key, Wanted>) -> bool {
        let now = Instant::now();
        let due = known.due(wanted, now);
        self.metrics.waiting(due.len());
        let all = due.len() <= ROUND_MAX;
        for key in due.into_iter().take(ROUND_MAX) {
            let said = wanted.get(&key);
            match write::write(&self.cluster, &key, said, Timestamp::now()).await {
                Ok(outcome) => {
                    self.metrics.count(outcome.word());
                    if let (Some(said), true) = (said, outcome.is_written()) {
                        self.events.told(&key, known.said(&key), said, outcome.uid());
                    }
                    known.note(key, said, &outcome, now);
                }
                Err(error) => {
                    self.metrics.count("error");
                    known.failed(key.clone(), now);
                    let error = &error as &dyn std::error::Error;
                    let (kind, namespace, name) = (key.kind, &*key.namespace, &*key.name);
                    warn!(error, kind, namespace, name, "its status cannot be written; it is tried again");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        all
    }
}

fn of_told(told: Told, counted: bool) -> (Key, Wanted) {
    let Told { kind, namespace, name, generation, attached, conditions } = told;
    (Key { kind, namespace, name }, Wanted { generation, attached, conditions, counted })
}

/// `HTTPRoute shop/orders`, of the kinds that have a status of ours.
fn key_of(object: &str) -> Option<Key> {
    let (kind, name) = object.split_once(' ')?;
    let kind = write::KINDS.iter().find(|known| known.kind == kind)?.kind;
    let (namespace, name) = name.split_once('/')?;
    Some(Key { kind, namespace: namespace.into(), name: name.into() })
}

/// The version of the API that a kind is of.
#[must_use]
pub fn api_version(kind: &str) -> Option<String> {
    let known = write::KINDS.iter().find(|known| known.kind == kind)?;
    Some(format!("{}/{}", known.group, known.version))
}

/// What is said of an object that cannot be used.
fn rejected(key: &Key, message: String) -> Wanted {
    // The words of the Gateway API and of GEP-713.
    let reason = if key.kind.ends_with("Route") { "UnsupportedValue" } else { "Invalid" };
    let condition = Condition { kind: "Accepted", status: "False", reason, message };
    Wanted {
        generation: None,
        attached: vec![condition.clone(); PARENTS],
        conditions: vec![condition],
        counted: true,
    }
}

/// Parents of a route at most: what is said of a route that could not be read is said of each of them.
const PARENTS: usize = 32;
