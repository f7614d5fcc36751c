//! Tells of pods that should have a sidecar and have none, and has their owners make them anew where that is allowed.
//!
//! In: the world, who leads, the API server. Out: the latest [`Census`] (for API, graph and metrics, on every replica); by the
//! leader alone: an Event for each pod once, and now and then a restart of an owner, in the way of `kubectl rollout restart`.
//! [`Restarts`] says when, and is pure.
//!
//! Invariants: nothing is restarted that nobody allowed (`--restart-uninjected`, or `weft.dev/restart: enabled` on pod or
//! namespace), nothing while the webhook could not do better than last time, one owner at a time, and none twice within
//! [`OWNER_EVERY`], whoever led then: when an owner was restarted stands in its own template. Surprise: a pod must have been
//! missed for [`PATIENCE`]: a webhook that comes back finds what it missed replaced by itself often enough.
//!
//! What the API server must allow, and why: `get` pods (is it still so?), `create` and `patch` events, `get` replicasets (whose
//! it is), `get` and `patch` deployments, statefulsets and daemonsets (the template's annotation; only needed where restarts are
//! allowed).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource as _};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use weft_wire::annotation as keys;

use super::census::{Census, Found};
use crate::world::Live;

/// How often everybody is looked at: some milliseconds of work for twenty thousand pods.
const LOOK: Duration = Duration::from_secs(5);
/// How long a pod is missed before anything is done.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two restarts of whatever.
const RESTART_EVERY: Duration = Duration::from_secs(30);
/// Time between two restarts of the same owner: if one did not help, the next will not.
const OWNER_EVERY: Duration = Duration::from_secs(3600);
/// How many owners may fail in one look before the rest waits for the next: an API server that is away is not asked of all.
const FAILURES_MAX: usize = 3;
/// Clocks of one cluster differ by less.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Events at a time; the rest follows with the next look.
const EVENTS_MAX: usize = 20;
/// How long the API server may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Who changed a template.
const MANAGER: &str = "weft-control-plane";

/// The latest census. Cheap to clone.
#[derive(Clone, Default)]
pub struct Latest(Arc<ArcSwap<Census>>);

impl Latest {
    /// The census.
    #[must_use]
    pub fn get(&self) -> Arc<Census> {
        self.0.load_full()
    }
}

/// An owner of pods, by namespace, kind and name.
type Owner = (String, &'static str, String);

/// A pod, by namespace and name.
type PodKey = (String, String);

/// When which owner may be restarted. Pure.
#[derive(Debug, Default)]
pub struct Restarts {
    last: Option<Instant>,
    /// Until when an owner is left in peace.
    of: HashMap<Owner, Instant>,
}

impl Restarts {
    /// Whether nobody may be restarted now.
    fn rests(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last) < RESTART_EVERY)
    }

    /// Whether `owner` need not be asked about: it has been restarted within the hour, as far as is known here, or could not be
    /// asked about just now.
    fn knows(&mut self, owner: &Owner, now: Instant) -> bool {
        self.of.retain(|_, until| now < *until);
        self.of.contains_key(owner)
    }

    /// Whether `owner`, which was restarted so long `ago` if ever, may be restarted now; if so, it counts as restarted.
    fn admit(&mut self, owner: &Owner, ago: Option<Duration>, now: Instant) -> bool {
        if self.rests(now) || self.knows(owner, now) {
            return false;
        }
        if let Some(ago) = ago.filter(|ago| *ago < OWNER_EVERY) {
            // Another control plane did it, or this one before it was started.
            self.of.insert(owner.clone(), now + (OWNER_EVERY - ago));
            return false;
        }
        self.last = Some(now);
        self.of.insert(owner.clone(), now + OWNER_EVERY);
        true
    }

    /// Leaves `owner` in peace for a while: it could not be asked about, and others wait behind it.
    fn postpone(&mut self, owner: &Owner, now: Instant) {
        self.of.insert(owner.clone(), now + PATIENCE);
    }
}

/// The task.
pub struct Reconciler {
    live: Live,
    client: Client,
    own: Arc<str>,
    leads: watch::Receiver<bool>,
    /// Whether the webhook is in the API server's hands.
    webhook: Arc<dyn Fn() -> bool + Send + Sync>,
    restart_all: bool,
    latest: Latest,
    recorder: Recorder,
    /// Since when a pod is missed.
    missed: HashMap<PodKey, Instant>,
    told: HashSet<PodKey>,
    restarts: Restarts,
    uninjected: IntGauge,
    outdated: IntGauge,
    done: IntCounterVec,
}

/// What the reconciler needs.
pub struct Needs<'a> {
    /// All pods.
    pub live: Live,
    /// The API server.
    pub client: Client,
    /// The control plane's namespace.
    pub namespace: &'a str,
    /// The control plane's pod, as Events name it.
    pub pod: Option<&'a str>,
    /// Whether this control plane writes.
    pub leads: watch::Receiver<bool>,
    /// Whether a pod that is made now would be injected.
    pub webhook: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether every owner may be restarted.
    pub restart_all: bool,
    /// Where the census is read.
    pub latest: Latest,
}

impl Reconciler {
    /// Counts in `registry`.
    #[must_use]
    pub fn new(needs: Needs<'_>, registry: &Registry) -> Self {
        let Needs { live, client, namespace, pod, leads, webhook, restart_all, latest } = needs;
        let uninjected =
            IntGauge::new("weft_pods_uninjected", "Pods that should have a sidecar and have none.");
        let outdated = IntGauge::new(
            "weft_pods_sidecar_outdated",
            "Pods whose sidecar is of another version than the control plane.",
        );
        let (uninjected, outdated) = (uninjected.expect("a valid name"), outdated.expect("a valid name"));
        let done = Opts::new("weft_injector_reconciled_total", "What was done about pods without a sidecar.");
        let done = IntCounterVec::new(done, &["what"]).expect("a valid name");
        for what in ["event", "restart", "failed"] {
            done.with_label_values(&[what]);
        }
        // Registered twice only in tests that share a registry; then they are only not exported twice.
        drop(registry.register(Box::new(uninjected.clone())));
        drop(registry.register(Box::new(outdated.clone())));
        drop(registry.register(Box::new(done.clone())));
        let reporter = Reporter { controller: "weft-injector".into(), instance: pod.map(str::to_owned) };
        Self {
            live,
            recorder: Recorder::new(client.clone(), reporter),
            client,
            own: namespace.into(),
            leads,
            webhook,
            restart_all,
            latest,
            missed: HashMap::new(),
            told: HashSet::new(),
            restarts: Restarts::default(),
            uninjected,
            outdated,
            done,
        }
    }

    /// Looks until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => {
                    if stop.run_until_cancelled(self.look(Instant::now())).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    async fn look(&mut self, now: Instant) {
        let census = {
            let world = self.live.read();
            Census::take(&world, &self.own, env!("CARGO_PKG_VERSION"))
        };
        self.uninjected.set(i64::try_from(census.uninjected).unwrap_or(i64::MAX));
        self.outdated.set(i64::try_from(census.outdated).unwrap_or(i64::MAX));
        let census = Arc::new(census);
        self.latest.0.store(Arc::clone(&census));
        let key = |pod: &Found| (pod.namespace.clone(), pod.pod.clone());
        let missing: Vec<&Found> = census.pods.iter().filter(|pod| pod.sidecar.is_none()).collect();
        let keys: HashSet<_> = missing.iter().map(|pod| key(pod)).collect();
        self.missed.retain(|known, _| keys.contains(known));
        self.told.retain(|known| keys.contains(known));
        for known in keys {
            self.missed.entry(known).or_insert(now);
        }
        if !*self.leads.borrow() {
            return;
        }
        let untold = missing.iter().filter(|pod| !self.told.contains(&key(pod)));
        let untold: Vec<&Found> = untold.take(EVENTS_MAX).copied().collect();
        for pod in untold {
            // Once only, also where it failed: the number is in the metric, and the API server may have other worries.
            self.told.insert(key(pod));
            let told = self.tell(pod).await;
            self.count("event", told, pod);
        }
        // The lead may have gone meanwhile; and while nobody may be restarted, nobody need be asked for.
        if !*self.leads.borrow() || !(self.webhook)() || self.restarts.rests(now) {
            return;
        }
        let mut failures = 0;
        for pod in missing {
            let since = self.missed.get(&key(pod)).copied().unwrap_or(now);
            if pod.restart.unwrap_or(self.restart_all) && now.saturating_duration_since(since) >= PATIENCE {
                match self.may_restart(pod, now).await {
                    Ok(Some(owner)) => {
                        let restarted = self.restart(&owner).await;
                        self.count("restart", restarted, pod);
                        return;
                    }
                    Ok(None) => {}
                    Err(error) => {
                        self.count("restart", Err(error), pod);
                        failures += 1;
                        if failures == FAILURES_MAX {
                            return;
                        }
                    }
                }
            }
        }
    }

    fn count(&self, what: &'static str, outcome: Result<(), Error>, pod: &Found) {
        let pod = format!("{}/{}", pod.namespace, pod.pod);
        match outcome {
            Ok(()) => {
                self.done.with_label_values(&[what]).inc();
                info!(pod, what, "a pod has no sidecar that should have one");
            }
            Err(error) => {
                self.done.with_label_values(&["failed"]).inc();
                warn!(
                    pod,
                    what,
                    error = &error as &dyn std::error::Error,
                    "a pod has no sidecar that should have one"
                );
            }
        }
    }

    /// Writes an Event about a pod, if it is still there.
    async fn tell(&self, found: &Found) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &found.namespace);
        let Some(pod) = within(api.get_metadata_opt(&found.pod)).await? else { return Ok(()) };
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        let note = "This pod should have a sidecar and has none: it was made while the injector was away. Make it anew: \
                    kubectl rollout restart its owner, or let Weft do it with weft.dev/restart: enabled on the namespace.";
        let event = Event {
            type_: EventType::Warning,
            reason: "SidecarMissing".into(),
            note: Some(note.into()),
            action: "Inject".into(),
            secondary: None,
        };
        within(self.recorder.publish(&event, &about)).await
    }

    /// Whom to restart for a pod; `None` if nobody would make it anew, or it ends by itself.
    async fn owner(&self, pod: &Found) -> Result<Option<Owner>, Error> {
        let Some(controller) = &pod.controller else { return Ok(None) };
        let owner = |kind: &'static str, name: String| (pod.namespace.clone(), kind, name);
        match &*controller.kind {
            "StatefulSet" => Ok(Some(owner("StatefulSet", controller.name.to_string()))),
            "DaemonSet" => Ok(Some(owner("DaemonSet", controller.name.to_string()))),
            "ReplicaSet" => {
                let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &pod.namespace);
                let Some(set) = within(api.get_metadata_opt(&controller.name)).await? else {
                    return Ok(None);
                };
                let mut owners = set.meta().owner_references.iter().flatten();
                let above = owners.find(|owner| owner.controller == Some(true) && owner.kind == "Deployment");
                Ok(above.map(|above| owner("Deployment", above.name.clone())))
            }
            _ => Ok(None),
        }
    }

    /// Whom to restart for a pod, if that is due; it counts as restarted.
    async fn may_restart(&mut self, pod: &Found, now: Instant) -> Result<Option<Owner>, Error> {
        let Some(owner) = self.owner(pod).await? else { return Ok(None) };
        if self.restarts.knows(&owner, now) {
            return Ok(None);
        }
        let at = self.restarted_at(&owner).await.inspect_err(|_| self.restarts.postpone(&owner, now))?;
        let ago = at.and_then(|at| ago(at, Timestamp::now()));
        // The lead may have gone meanwhile.
        let due = *self.leads.borrow() && self.restarts.admit(&owner, ago, now);
        Ok(due.then_some(owner))
    }

    /// When an owner was restarted last, by whichever control plane.
    async fn restarted_at(&self, (namespace, kind, name): &Owner) -> Result<Option<Timestamp>, Error> {
        let client = self.client.clone();
        let template = match *kind {
            "StatefulSet" => {
                let found = within(Api::<StatefulSet>::namespaced(client, namespace).get_opt(name)).await?;
                found.and_then(|found| Some(found.spec?.template))
            }
            "DaemonSet" => {
                let found = within(Api::<DaemonSet>::namespaced(client, namespace).get_opt(name)).await?;
                found.and_then(|found| Some(found.spec?.template))
            }
            _ => {
                let found = within(Api::<Deployment>::namespaced(client, namespace).get_opt(name)).await?;
                found.and_then(|found| Some(found.spec?.template))
            }
        };
        let annotations = template.and_then(|template| template.metadata?.annotations);
        // What is no time was not written here, and says nothing.
        Ok(annotations.and_then(|annotations| annotations.get(keys::RESTARTED_AT)?.parse().ok()))
    }

    /// As `kubectl rollout restart` does it: another annotation on the template.
    async fn restart(&self, (namespace, kind, name): &Owner) -> Result<(), Error> {
        let now = Timestamp::now().to_string();
        let patch = json!({ "spec": { "template": { "metadata": { "annotations": { (keys::RESTARTED_AT): now } } } } });
        let (patch, params) = (
            Patch::Merge(patch),
            PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() },
        );
        let client = self.client.clone();
        match *kind {
            "StatefulSet" => {
                within(Api::<StatefulSet>::namespaced(client, namespace).patch(name, &params, &patch))
                    .await
                    .map(drop)
            }
            "DaemonSet" => {
                within(Api::<DaemonSet>::namespaced(client, namespace).patch(name, &params, &patch))
                    .await
                    .map(drop)
            }
            _ => within(Api::<Deployment>::namespaced(client, namespace).patch(name, &params, &patch))
                .await
                .map(drop),
        }
    }
}

/// How long ago `at` was. Clocks differ: what is yet to come is now; what is more than a day to come, no clock said.
fn ago(at: Timestamp, now: Timestamp) -> Option<Duration> {
    match Duration::try_from(now.duration_since(at)) {
        Ok(ago) => Some(ago),
        Err(_) => (at.duration_since(now).unsigned_abs() < DAY).then_some(Duration::ZERO),
    }
}

/// The API server did not do it.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server did not do it")]
    Api(#[from] kube::Error),
    #[error("no answer from the API server within {REQUEST_TIMEOUT:?}")]
    Timeout(#[from] tokio::time::error::Elapsed),
}

async fn within<T>(asking: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    Ok(tokio::time::timeout(REQUEST_TIMEOUT, asking).await??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time_is_restarted_and_none_twice_within_an_hour() {
        let (mut restarts, begun) = (Restarts::default(), Instant::now());
        let owner = |name: &str| ("shop".to_owned(), "Deployment", name.to_owned());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(restarts.admit(&owner("a"), None, at(0)));
        assert!(!restarts.admit(&owner("b"), None, at(29)), "too soon after another");
        assert!(restarts.admit(&owner("b"), None, at(30)));
        assert!(!restarts.admit(&owner("a"), None, at(3599)));
        assert!(restarts.admit(&owner("a"), Some(Duration::from_secs(3600)), at(3600)));
        assert!(restarts.of.len() <= 2);
    }

    #[test]
    fn what_another_control_plane_has_restarted_rests_as_long() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let owner = |name: &str| ("shop".to_owned(), "Deployment", name.to_owned());
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert!(!restarts.admit(&owner("a"), Some(minutes(50)), now));
        assert!(restarts.admit(&owner("b"), Some(minutes(60)), now), "nothing was done just now");
        // It is not asked about again until it is due.
        assert!(restarts.knows(&owner("a"), now + minutes(9)));
        assert!(!restarts.knows(&owner("a"), now + minutes(10)));
        assert!(restarts.admit(&owner("a"), Some(minutes(60)), now + minutes(10)));
    }

    /// One whose API server answers so when it is asked for `shop/db`.
    fn reconciler(code: u16, answer: &serde_json::Value) -> Reconciler {
        let answer = answer.to_string();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let is_asked = request.method() == "GET"
                && request.uri().path() == "/apis/apps/v1/namespaces/shop/statefulsets/db";
            let (code, answer) = if is_asked { (code, answer.clone()) } else { (200, "{}".to_owned()) };
            async move {
                let body = http_body_util::Full::new(bytes::Bytes::from(answer));
                http::Response::builder().status(code).body(body)
            }
        });
        let needs = Needs {
            live: Live::default(),
            client: Client::new(service, "default"),
            namespace: "weft-system",
            pod: None,
            leads: watch::channel(true).1,
            webhook: Arc::new(|| true),
            restart_all: true,
            latest: Latest::default(),
        };
        Reconciler::new(needs, &Registry::new())
    }

    /// A pod of `shop/db` without a sidecar.
    fn missed() -> Found {
        let controller = crate::world::ControllerRef { kind: "StatefulSet".into(), name: "db".into() };
        Found {
            namespace: "shop".into(),
            pod: "db-0".into(),
            workload: "shop/db".into(),
            sidecar: None,
            controller: Some(Arc::new(controller)),
            restart: None,
        }
    }

    #[tokio::test]
    async fn a_new_leader_reads_from_the_owner_when_another_one_has_restarted_it() {
        let hours = |hours: i64| (Timestamp::now() - jiff::SignedDuration::from_hours(hours)).to_string();
        for (annotations, expected) in [
            (json!({}), true),
            (json!({ (keys::RESTARTED_AT): hours(0) }), false),
            (json!({ (keys::RESTARTED_AT): hours(2) }), true),
            (json!({ (keys::RESTARTED_AT): "yesterday" }), true),
        ] {
            let template = json!({ "metadata": { "annotations": annotations } });
            let spec = json!({ "serviceName": "db", "selector": {}, "template": template });
            let mut reconciler = reconciler(200, &json!({ "metadata": { "name": "db" }, "spec": spec }));
            let owner = reconciler.may_restart(&missed(), Instant::now()).await.expect("an answer");
            assert_eq!(owner.is_some(), expected, "{annotations}");
        }
    }

    #[tokio::test]
    async fn an_owner_that_nobody_may_ask_about_does_not_hold_up_the_others() {
        let mut reconciler = reconciler(403, &json!({ "kind": "Status", "status": "Failure", "code": 403 }));
        let now = Instant::now();
        assert!(reconciler.may_restart(&missed(), now).await.is_err());
        // It is passed over for a while.
        assert!(matches!(reconciler.may_restart(&missed(), now + PATIENCE / 2).await, Ok(None)));
        assert!(!reconciler.restarts.rests(now), "nobody was restarted");
        assert!(reconciler.may_restart(&missed(), now + PATIENCE).await.is_err());
    }

    #[test]
    fn a_clock_that_is_behind_is_no_reason_to_restart_or_never_to() {
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let minute = time("2026-01-01T00:01:00Z");
        assert_eq!(ago(time("2026-01-01T00:00:10Z"), minute), Some(Duration::from_secs(50)));
        assert_eq!(ago(minute, time("2026-01-01T00:00:10Z")), Some(Duration::ZERO));
        assert_eq!(ago(time("2099-01-01T00:00:00Z"), minute), None);
    }
}
