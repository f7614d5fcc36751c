//! Who this sidecar is, and whom it trusts.
//!
//! In: what the certificate authority issued. Out: a [`Slot`] with the [`Material`] of this moment, which every handshake
//! reads without waiting. Invariants: the private key is made here and never leaves this process; material is replaced
//! as a whole, so a handshake never meets a key and a certificate that do not belong together. Surprise: until the first
//! certificate has come the slot is empty, and the sidecar neither offers nor takes mutual TLS.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use weft_wire::SpiffeId;

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
