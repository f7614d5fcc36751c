//! The task that leads or waits: keeps the Lease `weft-control-plane`, and the label of the pod that leads.
//!
//! In: the Lease as the API server has it. Out: whether this control plane leads, as a `watch` that everybody asks before they
//! write; whether another does, for those who serve sidecars ([`Lead`]); the label `weft.dev/leader` on its own pod, by which the Service of the mesh finds it.
//!
//! Invariant: the word that we lead is taken back when [`Election::until`] has come, whatever a request is waiting for. Surprise:
//! who ends in good order gives the Lease back, so that the next one need not wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use weft_wire::annotation::LEADER as LABEL;

use super::lease::{Act, Election, Record, Settings};
use super::{ApiError, Cluster, MANAGER, ask, labels};
use crate::lead::{Lead, Seen};

/// The Lease.
pub const LEASE: &str = "weft-control-plane";

/// How often it is seen to that the label is where it belongs.
const RELABEL: Duration = Duration::from_secs(30);
/// How long giving the Lease back may take when the program ends.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// One who leads or waits.
pub struct Leader {
    leases: Api<Lease>,
    pods: Api<Pod>,
    /// Our own pod, where there is one.
    pod: Option<Arc<str>>,
    election: Election,
    settings: Settings,
    /// The version of the Lease that we wrote or read last.
    version: Option<String>,
    leads: watch::Sender<bool>,
    seen: watch::Sender<Seen>,
    /// Whether the Lease was ever read.
    looked: bool,
    metrics: Metrics,
    /// What our own pod was labelled as, and when.
    labelled: Option<(bool, Instant)>,
}

#[derive(Clone)]
struct Metrics {
    leads: IntGauge,
    changes: IntCounterVec,
    errors: IntCounter,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let changes =
            Opts::new("weft_leader_changes_total", "Times this control plane began or ceased to lead.");
        let metrics = Self {
            leads: IntGauge::new("weft_leader", "1 while this control plane leads.").expect("a valid name"),
            changes: IntCounterVec::new(changes, &["to"]).expect("a valid name"),
            errors: IntCounter::new(
                "weft_lease_errors_total",
                "Times the Lease could not be read or written; being overtaken is none.",
            )
            .expect("a valid name"),
        };
        for to in ["leading", "following"] {
            metrics.changes.with_label_values(&[to]).inc_by(0);
        }
        // Registered twice only in tests that share a registry; then it is only not exported twice.
        drop(registry.register(Box::new(metrics.leads.clone())));
        drop(registry.register(Box::new(metrics.changes.clone())));
        drop(registry.register(Box::new(metrics.errors.clone())));
        metrics
    }
}

impl Leader {
    /// One who has looked at nothing yet, called `identity` (of which there must be no other, nor have been one), and what hears
    /// whether it leads, and whether another does.
    #[must_use]
    pub fn new(
        cluster: &Cluster,
        identity: &str,
        settings: Settings,
        registry: &Registry,
    ) -> (Self, watch::Receiver<bool>, Lead) {
        let (leads, hears) = watch::channel(false);
        let (seen, sees) = watch::channel(Seen::Nothing);
        let leader = Self {
            leases: Api::namespaced(cluster.client.clone(), &cluster.namespace),
            pods: Api::namespaced(cluster.client.clone(), &cluster.namespace),
            pod: cluster.pod.clone(),
            election: match &cluster.pod {
                Some(pod) => Election::new(identity, settings).in_pod(pod),
                None => Election::new(identity, settings),
            },
            settings,
            version: None,
            leads,
            seen,
            looked: false,
            metrics: Metrics::new(registry),
            labelled: None,
        };
        (leader, hears, Lead::new(sees))
    }

    /// Leads or waits until `shutdown`, and gives back then what it holds.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.turn() => {}
            }
        }
        self.give_back().await;
    }

    /// Looks once, and waits until it is time to look again. May be dropped at any moment.
    async fn turn(&mut self) {
        let began = Instant::now();
        // No request outlives the lead: whoever waited for it would lead for longer than it may.
        let end = self.end_of_lead();
        let patience = end.map_or(self.settings.renew, |end| end.saturating_duration_since(began));
        if tokio::time::timeout(patience, self.step()).await.is_err() {
            self.failed(&ApiError::Timeout(patience));
        }
        self.tell();
        let leads = *self.leads.borrow();
        if self.label_is_due() {
            // Half of the time that a renewal is good for: the next one must not wait for a label.
            let half = self.settings.renew / 2;
            let left = |end: Instant| end.saturating_duration_since(Instant::now()).min(half);
            let patience = self.end_of_lead().map_or(half, left);
            let labelled = tokio::time::timeout(patience, self.label(leads)).await.unwrap_or(false);
            self.labelled = labelled.then(|| (leads, Instant::now()));
            self.tell();
        }
        // Those who wait do not all ask at the same moment.
        let jitter = if leads { 0.0 } else { fraction() * 0.2 };
        let next = began + self.settings.retry.mul_f64(1.0 + jitter);
        if let Some(end) = self.end_of_lead().filter(|end| *end < next) {
            tokio::time::sleep_until(end.into()).await;
            self.tell();
        }
        tokio::time::sleep_until(next.into()).await;
    }

    /// When we lead no more unless more is heard; `None` when we do not lead.
    fn end_of_lead(&self) -> Option<Instant> {
        self.election.until().filter(|until| *until > Instant::now())
    }

    fn label_is_due(&self) -> bool {
        let leads = *self.leads.borrow();
        self.pod.is_some()
            && match self.labelled {
                Some((is, at)) => is != leads || leads && at.elapsed() >= RELABEL,
                None => true,
            }
    }

    /// Reads the Lease if need be, and writes it if it is ours or over.
    async fn step(&mut self) {
        let wall = Timestamp::now();
        if let (Some(renewal), true) = (self.election.renewal(wall), self.version.is_some()) {
            match self.write(Act::Replace(renewal)).await {
                Ok(()) => return,
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => return self.failed(&error),
            }
        }
        let found = match ask(self.leases.get_opt(LEASE)).await {
            Ok(found) => found,
            Err(error) => return self.failed(&error),
        };
        self.looked = true;
        self.version = found.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        let record = found.map(|lease| record(lease.spec.unwrap_or_default()));
        // It was seen between asking and now; the later moment makes us wait longer.
        let act = self.election.look(record.as_ref(), Instant::now(), wall);
        match self.write(act).await {
            Ok(()) => {}
            Err(error) if error.is_conflict() => debug!("somebody else was quicker"),
            Err(error) => self.failed(&error),
        }
    }

    async fn write(&mut self, act: Act) -> Result<(), ApiError> {
        let asked = Instant::now();
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
        let (record, written) = match act {
            Act::Wait => return Ok(()),
            Act::Create(record) => {
                let lease = self.lease(&record);
                (record, ask(self.leases.create(&params, &lease)).await?)
            }
            Act::Replace(record) => {
                let lease = self.lease(&record);
                (record, ask(self.leases.replace(LEASE, &params, &lease)).await?)
            }
        };
        self.version = written.metadata.resource_version;
        self.election.wrote(record, asked);
        Ok(())
    }

    async fn replace(&self, record: &Record) -> Result<(), ApiError> {
        let lease = self.lease(record);
        ask(self.leases.replace(LEASE, &PostParams::default(), &lease)).await.map(drop)
    }

    fn lease(&self, record: &Record) -> Lease {
        let time = |at: Timestamp| MicroTime(at);
        let metadata = ObjectMeta {
            name: Some(LEASE.to_owned()),
            labels: Some(labels("control-plane")),
            resource_version: self.version.clone(),
            ..Default::default()
        };
        let spec = LeaseSpec {
            holder_identity: Some(record.holder.as_deref().unwrap_or_default().to_owned()),
            lease_duration_seconds: Some(i32::try_from(record.duration.as_secs()).unwrap_or(i32::MAX).max(1)),
            acquire_time: record.acquired.map(time),
            renew_time: record.renewed.map(time),
            lease_transitions: Some(record.transitions),
            ..Default::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// Lets everybody know whether we lead.
    fn tell(&mut self) {
        let leads = self.election.leads(Instant::now());
        self.seen.send_if_modified(|seen| {
            let now = match (leads, self.election.another()) {
                (true, _) if matches!(seen, Seen::Ours(_)) => return false,
                (true, _) => Seen::Ours(tokio::time::Instant::now()),
                (false, Some(other)) => Seen::Theirs(other.into()),
                (false, None) if self.looked => Seen::Nobody,
                (false, None) => Seen::Nothing,
            };
            let is_news = *seen != now;
            if let (Seen::Theirs(other), true) = (&now, is_news) {
                info!(holder = &**other, "another control plane leads: sidecars are sent to it");
            }
            *seen = now;
            is_news
        });
        let changed = |before: &mut bool| std::mem::replace(before, leads) != leads;
        if !self.leads.send_if_modified(changed) {
            return;
        }
        self.metrics.leads.set(i64::from(leads));
        self.metrics.changes.with_label_values(&[if leads { "leading" } else { "following" }]).inc();
        let identity = self.election.identity();
        if leads {
            info!(identity, "this control plane leads now");
        } else {
            warn!(identity, holder = self.election.holder(), "this control plane leads no more");
        }
    }

    fn failed(&self, error: &ApiError) {
        self.metrics.errors.inc();
        warn!(error = error as &dyn std::error::Error, "the Lease {LEASE} cannot be kept; it is tried again");
    }

    /// Puts the label on our own pod and takes it from others, or takes it from our own (whoever was here before us under this
    /// name may have left it).
    async fn label(&self, leads: bool) -> bool {
        let Some(own) = &self.pod else { return true };
        let done = self.relabel(own, leads).await;
        if let Err(error) = &done {
            let error = error as &dyn std::error::Error;
            warn!(error, "the pod that leads cannot be labelled with {LABEL}; it is tried again");
        }
        done.is_ok()
    }

    async fn relabel(&self, own: &str, leads: bool) -> Result<(), ApiError> {
        if leads {
            let labelled = ListParams::default().labels(&format!("{LABEL}=true"));
            for pod in ask(self.pods.list_metadata(&labelled)).await?.items {
                let name = pod.metadata.name.unwrap_or_default();
                // Whoever was stopped meanwhile, with its machine, would take it from the one that leads now.
                if name != own && self.end_of_lead().is_some() {
                    self.set_label(&name, None).await?;
                }
            }
        }
        let leads = leads && self.end_of_lead().is_some();
        self.set_label(own, leads.then_some("true")).await
    }

    async fn set_label(&self, pod: &str, value: Option<&str>) -> Result<(), ApiError> {
        let patch = Patch::Merge(json!({ "metadata": { "labels": { LABEL: value } } }));
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
        match ask(self.pods.patch_metadata(pod, &params, &patch)).await {
            // A pod that is gone leads nobody.
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn give_back(mut self) {
        let Some(record) = self.election.release(Timestamp::now()) else { return };
        self.tell();
        let giving = async {
            // The Lease matters more than the label.
            drop(tokio::time::timeout(RELEASE_TIMEOUT / 3, self.label(false)).await);
            let given = self.replace(&record).await;
            if !given.as_ref().is_err_and(ApiError::is_conflict) {
                return given;
            }
            // A renewal was under way, and went through.
            let found = ask(self.leases.get(LEASE)).await?;
            let holder = found.spec.and_then(|spec| spec.holder_identity);
            self.version = found.metadata.resource_version;
            if holder.as_deref() == Some(self.election.identity()) {
                self.replace(&record).await
            } else {
                given
            }
        };
        match tokio::time::timeout(RELEASE_TIMEOUT, giving).await {
            Ok(Ok(())) => info!("the Lease {LEASE} is given back"),
            Ok(Err(error)) => warn!(
                error = &error as &dyn std::error::Error,
                "the Lease {LEASE} was not given back; others wait until it is over"
            ),
            Err(_) => warn!(
                "the Lease {LEASE} was not given back within {RELEASE_TIMEOUT:?}; others wait until it is over"
            ),
        }
    }
}

fn record(spec: LeaseSpec) -> Record {
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()).map(Into::into),
        duration: Duration::from_secs(seconds.unwrap_or(0)),
        acquired: spec.acquire_time.map(|time| time.0),
        renewed: spec.renew_time.map(|time| time.0),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}

/// Between 0 and 1.
fn fraction() -> f64 {
    let mut bytes = [0; 2];
    crate::ca::fill(&mut bytes);
    f64::from(u16::from_be_bytes(bytes)) / f64::from(u16::MAX)
}
