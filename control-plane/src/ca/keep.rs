//! The task that keeps the authority going: renews the own certificate and the intermediate, takes a rotation's next step when
//! everybody is ready, and takes over what the operator brings.
//!
//! Surprise: for the first seconds after a start, or after the lead came over, no rotation goes on, because sidecars are still
//! coming back, and "everybody who is connected" would be few ([`is_whole`]). Of several control planes that share a place only the one that leads takes steps; the others
//! follow what it writes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use weft_wire::tls::TRUST_BUNDLE;

use super::authority::{Adoption, Authority, RotateError, Step};
use super::store::{Document, Version};
use super::{CONFLICTS_MAX, Ca, Refusal, brought, kept, own, serial};
use crate::compile;
use crate::xds::{Kind, Status, is_whole};

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(1);
/// How often the directory of an issuer that was brought is read.
const BROUGHT_PERIOD: Duration = Duration::from_secs(5);
/// How long to wait before what others have written is read again, where that failed.
const FOLLOW_AGAIN: Duration = Duration::from_secs(3);

/// Whether this control plane is the one that takes steps.
pub type Leads = watch::Receiver<bool>;

/// There is no other.
#[must_use]
pub fn alone() -> Leads {
    watch::channel(true).1
}

impl Ca {
    /// Keeps the authority going until `shutdown`.
    pub async fn run(self, status: Status, mut leads: Leads, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let started = tokio::time::Instant::now();
        let (mut read_at, mut followed_at, mut is_behind) = (started, started, false);
        let mut led_since = started;
        leads.mark_unchanged();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed() => {
                    followed_at = tokio::time::Instant::now();
                    is_behind = self.catch_up().await.is_err();
                    continue;
                }
                _ = ticks.tick() => {}
            }
            if is_behind && followed_at.elapsed() >= FOLLOW_AGAIN {
                followed_at = tokio::time::Instant::now();
                is_behind = self.catch_up().await.is_err();
            }
            let now = SystemTime::now();
            let adoption = self.adoption(&status);
            // Also when it was lost and had again between two looks: it may have been another's meanwhile.
            let (has_changed, is_leading) = {
                let said = leads.borrow_and_update();
                (said.has_changed(), *said)
            };
            if has_changed {
                // Sidecars of whoever led before are coming over.
                led_since = tokio::time::Instant::now();
            }
            let rotates = self.authority().rotation().is_some();
            if self.0.brought.is_some() && read_at.elapsed() >= BROUGHT_PERIOD {
                read_at = tokio::time::Instant::now();
                self.adopt(is_leading, now).await;
            }
            let expected = self.0.live.read().running_sidecars();
            let is_whole = is_whole(led_since.elapsed(), adoption.connected, expected);
            if is_leading && (is_whole || adoption.connected > 0 && !rotates) {
                self.step(adoption, now).await;
            }
            self.renew_own(now);
            self.0.metrics.show(&self.authority(), &self.0.own.load().issued.leaf, adoption);
        }
    }

    /// Begins a rotation; with `force`, takes the next step of the one that goes on.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn rotate(&self, force: bool) -> Result<Step, RotateError> {
        let now = SystemTime::now();
        let mut version = self.0.changing.lock().await;
        // Said in the log; nothing was changed.
        let failed = |_: Refusal| RotateError::Make(super::issue::Error::IssuerExpired);
        for _ in 0..CONFLICTS_MAX {
            let mut authority = Authority::clone(&self.authority());
            let step = authority.rotate(force, now, &mut serial)?;
            if self.publish(authority, &mut version).await.map_err(failed)? {
                self.tell(step);
                return Ok(step);
            }
            self.reread(&mut version).await.map_err(failed)?;
        }
        Err(failed(Refusal::Internal))
    }

    /// What the connected sidecars have.
    #[must_use]
    pub fn adoption(&self, status: &Status) -> Adoption {
        let current = self.bundle_version();
        let issuing = self.authority().issuer().root;
        let mut adoption = Adoption::default();
        for proxy in status.proxies() {
            let Some(verified) = &proxy.verified else { continue };
            adoption.connected += 1;
            let bundle = proxy.kinds.get(&Kind::Secret).and_then(|kind| kind.running(TRUST_BUNDLE));
            let acked = bundle.and_then(|running| running.acked.as_deref());
            adoption.trusting += usize::from(current.is_some() && acked == current.as_deref());
            adoption.renewed += usize::from(verified.root == Some(issuing));
        }
        adoption
    }

    /// The version of the trust bundle that everybody should have.
    #[must_use]
    pub fn bundle_version(&self) -> Option<Box<str>> {
        let world = self.0.live.read();
        compile::resource(&world, Kind::Secret, TRUST_BUNDLE, "").map(|bundle| bundle.version)
    }

    async fn step(&self, adoption: Adoption, now: SystemTime) {
        let mut version = self.0.changing.lock().await;
        let mut authority = Authority::clone(&self.authority());
        match authority.tick(adoption, now, &mut serial) {
            Ok(None) => {}
            Ok(Some(step)) => self.take(step, authority, &mut version).await,
            Err(error) => error!(error = &error as &dyn std::error::Error, "the authority cannot go on"),
        }
    }

    /// Takes over what is in `--ca-dir`. Whoever does not lead takes only what changes nothing for others.
    async fn adopt(&self, is_leading: bool, now: SystemTime) {
        let Some(directory) = self.0.brought.clone() else { return };
        let read = tokio::task::spawn_blocking(move || brought::read(&directory, now)).await;
        let offer = match read {
            Ok(Ok(offer)) => offer,
            Ok(Err(error)) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "--ca-dir cannot be used; the issuer of before goes on"
                );
                self.0.metrics.brought_failed();
                return;
            }
            Err(_) => return,
        };
        let mut version = self.0.changing.lock().await;
        let mut authority = Authority::clone(&self.authority());
        if !is_leading && offer.issuer.root != authority.issuer.root {
            // Whoever leads sees it too, and begins the rotation.
            return;
        }
        match authority.adopt(offer, now) {
            Ok(None) => {}
            Ok(Some(step)) if is_leading => self.take(step, authority, &mut version).await,
            Ok(Some(_)) => self.show(authority),
            // It is looked at again in a moment.
            Err(error) => info!(%error, "the issuer in --ca-dir waits"),
        }
    }

    /// Takes a step, unless somebody else has taken one meanwhile: then theirs is taken over, and the next look decides anew.
    async fn take(&self, step: Step, authority: Authority, version: &mut Option<Version>) {
        match self.publish(authority, version).await {
            Ok(true) => self.tell(step),
            Ok(false) => drop(self.reread(version).await),
            // Said in the log.
            Err(_) => {}
        }
    }

    /// Writes a new state down, then lets everybody see it. `false`: somebody else was quicker, and nothing is changed.
    async fn publish(&self, authority: Authority, version: &mut Option<Version>) -> Result<bool, Refusal> {
        let document = kept::write(&authority).map_err(|_| Refusal::Internal)?;
        let written = self.write(Document::Authority, document, Some(authority.bundle()), version).await?;
        if written {
            self.show(authority);
        }
        Ok(written)
    }

    fn show(&self, authority: Authority) {
        self.0.authority.store(Arc::new(authority));
        self.announce();
        self.refresh_own(SystemTime::now());
    }

    /// Renews the own certificate at half its life, and when another root issues.
    fn renew_own(&self, now: SystemTime) {
        let current = self.0.own.load();
        let (from, until) = (current.issued.leaf.not_before, current.issued.leaf.not_after);
        let half = until.duration_since(from).unwrap_or_default() / 2;
        if now >= from + half || current.root != self.authority().issuer().root {
            self.refresh_own(now);
        }
    }

    pub(super) fn refresh_own(&self, now: SystemTime) {
        match own(&self.authority(), &self.0.own_id, now) {
            Ok((own, material)) => {
                self.0.own.store(Arc::new(own));
                self.0.listener.replace(material);
            }
            Err(error) => {
                error!(error = &error as &dyn std::error::Error, "the own certificate cannot be renewed");
            }
        }
    }

    fn tell(&self, step: Step) {
        let authority = self.authority();
        let roots: Vec<String> =
            authority.roots().iter().map(|root| root.certificate.fingerprint()).collect();
        let what = match step {
            Step::Intermediate => "the issuing certificate was renewed",
            Step::Began => "a rotation of the root began: the new root is being distributed",
            Step::Issuing => "certificates are issued from the new root now",
            Step::Dropped => "the rotation of the root is done: the old root is no longer trusted",
        };
        info!(roots = roots.join(","), "{what}");
        if let Some(hears) = &self.0.hears {
            hears(step, &format!("{what}; trusted: {}", roots.join(", ")));
        }
    }
}
