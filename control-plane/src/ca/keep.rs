//! The task that keeps the authority going: renews the own certificate and the intermediate, takes a rotation's next step when
//! everybody is ready, and takes over what the operator brings.
//!
//! Surprise: for the first seconds after a start no rotation goes on, because sidecars are still coming back, and "everybody
//! who is connected" would be few.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use weft_wire::tls::TRUST_BUNDLE;

use super::authority::{Adoption, Authority, RotateError, Step};
use super::{AUTHORITY, BUNDLE, Ca, Refusal, brought, kept, own, serial};
use crate::compile;
use crate::xds::{Kind, Status, WARM_UP};

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(1);
/// How often the directory of an issuer that was brought is read.
const BROUGHT_PERIOD: Duration = Duration::from_secs(5);

impl Ca {
    /// Keeps the authority going until `shutdown`.
    pub async fn run(self, status: Status, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let started = tokio::time::Instant::now();
        let mut read_at = started;
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let now = SystemTime::now();
            if self.0.brought.is_some() && read_at.elapsed() >= BROUGHT_PERIOD {
                read_at = tokio::time::Instant::now();
                self.adopt(now).await;
            }
            let adoption = self.adoption(&status);
            if started.elapsed() >= WARM_UP || adoption.connected > 0 && self.authority().rotation().is_none()
            {
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
        let _changing = self.0.changing.lock().await;
        let mut authority = Authority::clone(&self.authority());
        let step = authority.rotate(force, now, &mut serial)?;
        if self.publish(authority).await.is_err() {
            // Said in the log; nothing was changed.
            return Err(RotateError::Make(super::issue::Error::IssuerExpired));
        }
        self.tell(step);
        Ok(step)
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
        let _changing = self.0.changing.lock().await;
        let mut authority = Authority::clone(&self.authority());
        match authority.tick(adoption, now, &mut serial) {
            Ok(None) => {}
            Ok(Some(step)) => {
                if self.publish(authority).await.is_ok() {
                    self.tell(step);
                }
            }
            Err(error) => error!(error = &error as &dyn std::error::Error, "the authority cannot go on"),
        }
    }

    async fn adopt(&self, now: SystemTime) {
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
        let _changing = self.0.changing.lock().await;
        let mut authority = Authority::clone(&self.authority());
        match authority.adopt(offer, now) {
            Ok(None) => {}
            Ok(Some(step)) => {
                if self.publish(authority).await.is_ok() {
                    self.tell(step);
                }
            }
            // It is looked at again in a moment.
            Err(error) => info!(%error, "the issuer in --ca-dir waits"),
        }
    }

    /// Writes a new state down, then lets everybody see it.
    async fn publish(&self, authority: Authority) -> Result<(), Refusal> {
        let document = kept::write(&authority).map_err(|_| Refusal::Internal)?;
        self.write(AUTHORITY, document).await?;
        // Nobody reads it back, so that it may fail.
        drop(self.write(BUNDLE, authority.bundle().into_bytes()).await);
        self.0.authority.store(Arc::new(authority));
        self.announce();
        self.refresh_own(SystemTime::now());
        Ok(())
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

    fn refresh_own(&self, now: SystemTime) {
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
    }
}
