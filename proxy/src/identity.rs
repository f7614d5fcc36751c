//! Who this sidecar is, and whom it trusts.
//!
//! In: what the certificate authority issued, the trust bundle that the control plane sends, the operator's files. Out: a
//! [`Slot`] with the [`Material`] of this moment, which every handshake reads without waiting. Invariants: the private key is
//! made here and leaves this process only for the directory that the operator named; material is replaced as a whole, so a
//! handshake never meets a key and a certificate that do not belong together; what does not verify replaces nothing.
//! Surprise: until the first certificate has come the slot is empty, and the sidecar neither offers nor takes mutual TLS;
//! an expired certificate stays until there is a better one.
//!
//! - [`bundle`]: roots. [`svid`]: what a certificate says, and whether it holds. [`request`]: key and CSR; [`answer`]: what came.
//! - [`schedule`]: when to ask, pure. [`authority`]: asking, over gRPC. [`directory`]: keeping, or finding, an identity in files.
//! - [`task`]: the life of it. [`client`]: TLS towards the control plane. [`view`]: it for people; [`metrics`]: for machines.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use weft_wire::SpiffeId;

use crate::config::{Enrolment, Proof};

mod answer;
mod authority;
mod bundle;
mod client;
mod directory;
mod metrics;
mod request;
mod schedule;
pub(crate) mod svid;
mod task;
#[cfg(test)]
pub(crate) mod testing;
mod view;

pub use bundle::{Bundle, InvalidBundle};
pub use client::Show;
pub use metrics::Metrics;
pub use task::Task;

/// A certificate with its key, and the roots that the other side's certificate must come from.
#[derive(Debug, Clone)]
pub struct Material {
    /// What the certificate says.
    pub id: SpiffeId,
    /// The chain that is shown, leaf first and without the root, and the key.
    pub key: Arc<CertifiedKey>,
    /// All roots of the trust bundle.
    pub roots: Arc<RootCertStore>,
    /// From when the certificate is valid.
    pub not_before: SystemTime,
    /// Until when it is.
    pub not_after: SystemTime,
}

/// Where the current [`Material`] stands. Empty until there is some.
pub type Slot = Arc<ArcSwapOption<Material>>;

/// The sidecar's identity: what it has, whom it trusts, and everybody who wants to know. One per process.
pub struct Identity {
    enrolment: Enrolment,
    slot: Slot,
    /// Whom the control plane's certificate must come from.
    anchors: ArcSwap<Anchors>,
    /// Written by the identity's task and the xDS task, both on the admin thread; no handshake touches it.
    state: Mutex<State>,
    /// How many certificates there have been.
    certificates: watch::Sender<u64>,
    /// How many bundles of the mesh there have been.
    bundles: watch::Sender<u64>,
    metrics: Metrics,
}

/// Whom to believe about the control plane: whoever has a chain to one of these, or to a root that the pin names.
#[derive(Debug, Clone)]
struct Anchors {
    roots: RootCertStore,
    /// SHA-256 of a root's SPKI.
    pin: Option<[u8; 32]>,
}

#[derive(Debug, Default)]
struct State {
    /// The operator's own list, believed about the control plane for as long as it says so.
    file: Option<Bundle>,
    /// What the join token says of a root; until there is a bundle.
    pin: Option<[u8; 32]>,
    /// The root that the pin turned out to be, or what a directory held.
    first: Option<Bundle>,
    /// The mesh's bundle, by xDS.
    mesh: Option<Bundle>,
    leaf: Option<Leaf>,
    /// When the next certificate will be asked for.
    renew_at: Option<SystemTime>,
    last_failure: Option<Complaint>,
}

impl State {
    /// Whom peers must come from.
    fn peers(&self) -> Option<&Bundle> {
        self.mesh.as_ref().or(self.file.as_ref()).or(self.first.as_ref())
    }

    fn anchors(&self) -> Anchors {
        let known = self.mesh.as_ref().or(self.first.as_ref());
        let mut roots = RootCertStore::empty();
        for bundle in [self.file.as_ref(), known].into_iter().flatten() {
            roots.roots.extend(bundle.roots().roots.iter().cloned());
        }
        // A bundle says which roots there are; what a token of long ago says may have been rotated away for a reason.
        Anchors { roots, pin: self.pin.filter(|_| self.mesh.is_none()) }
    }
}

/// A certificate of this sidecar's own.
#[derive(Debug, Clone)]
struct Leaf {
    id: SpiffeId,
    /// Leaf first; without the root.
    key: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Leaf {
    fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    fn is_valid(&self, now: SystemTime) -> bool {
        now < self.not_after
    }
}

/// What went wrong last.
#[derive(Debug, Clone)]
struct Complaint {
    reason: &'static str,
    text: String,
    at: SystemTime,
}

impl Identity {
    /// An identity that is still to be had.
    #[must_use]
    pub fn new(enrolment: Enrolment) -> Arc<Self> {
        let mut state = State::default();
        if let Proof::JoinToken(token) = &enrolment.proof {
            state.pin = Some(token.pin);
        }
        Arc::new(Self {
            enrolment,
            slot: Slot::default(),
            anchors: ArcSwap::from_pointee(state.anchors()),
            state: Mutex::new(state),
            certificates: watch::Sender::new(0),
            bundles: watch::Sender::new(0),
            metrics: Metrics::default(),
        })
    }

    /// Where handshakes find the material.
    #[must_use]
    pub fn slot(&self) -> Slot {
        Arc::clone(&self.slot)
    }

    /// Numbers for a Prometheus registry.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// How many certificates there have been; changes with each.
    #[must_use]
    pub fn certificates(&self) -> watch::Receiver<u64> {
        self.certificates.subscribe()
    }

    /// Which certificate this is, counted from 1; `None` before the first.
    #[must_use]
    pub fn certificate(&self) -> Option<u64> {
        Some(*self.certificates.borrow()).filter(|count| *count > 0)
    }

    /// Waits for the first certificate.
    pub async fn known(&self) {
        // The sender lives as long as `self`.
        drop(self.certificates.subscribe().wait_for(|count| *count > 0).await);
    }

    /// Takes the mesh's bundle. From the next handshake on it decides who is trusted.
    pub fn trust(&self, bundle: Bundle) {
        {
            let mut state = self.state();
            if state.mesh.as_ref() == Some(&bundle) {
                return;
            }
            tracing::info!(roots = bundle.len(), first = %bundle.first(), "trust bundle");
            state.mesh = Some(bundle);
            self.publish(&state);
        }
        self.metrics.bundles.inc();
        self.bundles.send_modify(|count| *count += 1);
    }

    /// Whether the mesh's own bundle has come.
    #[cfg(test)]
    pub(crate) fn trusts_the_mesh(&self) -> bool {
        self.state().mesh.is_some()
    }

    /// Takes the operator's own list of roots.
    fn believe(&self, bundle: Bundle) {
        let mut state = self.state();
        state.file = Some(bundle);
        self.publish(&state);
    }

    /// Takes the root that the pin meant, unless more is known already.
    fn begin_with(&self, root: Bundle) {
        let known = self.state().first.as_ref().is_some_and(|first| first.includes(&root));
        if !known {
            self.hold(root);
        }
    }

    /// Takes the roots that a directory holds, in place of those that it held.
    fn hold(&self, bundle: Bundle) {
        let mut state = self.state();
        state.first = Some(bundle);
        self.publish(&state);
    }

    fn pin(&self, pin: [u8; 32]) {
        let mut state = self.state();
        state.pin = Some(pin);
        self.publish(&state);
    }

    /// Takes a certificate that has been checked.
    fn adopt(&self, leaf: Leaf) {
        {
            let mut state = self.state();
            self.metrics.certificate(leaf.not_after);
            state.leaf = Some(leaf);
            state.last_failure = None;
            self.publish(&state);
        }
        self.certificates.send_modify(|count| *count += 1);
    }

    /// Makes what everybody reads from what is known.
    fn publish(&self, state: &State) {
        self.anchors.store(Arc::new(state.anchors()));
        self.metrics.roots.set(state.peers().map_or(0, Bundle::len) as i64);
        if let (Some(leaf), Some(peers)) = (&state.leaf, state.peers()) {
            self.slot.store(Some(Arc::new(Material {
                id: leaf.id.clone(),
                key: Arc::clone(&leaf.key),
                roots: peers.roots(),
                not_before: leaf.not_before,
                not_after: leaf.not_after,
            })));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is an assignment or two: there is no half of it that a panic could leave behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without anything secret.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.slot.load().as_ref().map(|it| &it.id))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
