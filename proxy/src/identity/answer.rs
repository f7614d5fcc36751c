//! What the authority answered: believed only after it was checked.
//!
//! In: the PEM of a chain, the key that was asked for, whom to trust. Out: a [`Leaf`] and, where trust began with a pin, the
//! root that the pin meant. Pure. Invariant: an answer for another key, another identity, or from another root is an
//! error, whatever the connection it came over.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::{CertifiedKey, SigningKey};
use webpki::EndEntityCert;
use weft_wire::SpiffeId;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::bundle::{Bundle, InvalidBundle, TEXT_MAX, key_hash};
use super::{Anchors, Leaf, svid};

/// Certificates in a chain at most.
const CHAIN_MAX: usize = 10;

/// Why an answer is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Invalid {
    #[error("it is not a chain of 1 to 10 certificates in PEM form")]
    Chain,
    #[error("the certificate is for another key")]
    Key,
    #[error("{0}")]
    Certificate(#[from] svid::Invalid),
    #[error("it names {found}, not somebody in namespace {namespace:?} of {trust_domain:?}")]
    Stranger { found: SpiffeId, namespace: String, trust_domain: String },
    #[error("no certificate of the chain is the root that the join token names")]
    Pin,
    #[error("the root that the join token names: {0}")]
    Root(#[from] InvalidBundle),
    #[error("the key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Whom an answer may name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub(super) trust_domain: &'a str,
    pub(super) namespace: &'a str,
}

/// A chain that holds.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) leaf: Leaf,
    /// The root that a pin meant.
    pub(super) root: Option<Bundle>,
}

/// Reads a chain.
pub(super) fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    if pem.len() > TEXT_MAX {
        return Err(Invalid::Chain);
    }
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(CHAIN_MAX + 1)
        .collect::<Result<_, _>>()
        .map_err(|_| Invalid::Chain)?;
    if chain.is_empty() || chain.len() > CHAIN_MAX { Err(Invalid::Chain) } else { Ok(chain) }
}

/// Checks everything there is to check.
///
/// `public_key` is the SPKI that was asked for.
pub(super) fn check(
    mut chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
    public_key: &[u8],
    anchors: &Anchors,
    expected: Expected<'_>,
    now: SystemTime,
) -> Result<Checked, Invalid> {
    let leaf = chain.first().ok_or(Invalid::Chain)?;
    let asked = EndEntityCert::try_from(leaf).map_err(|_| Invalid::Chain)?;
    if asked.subject_public_key_info().as_ref() != public_key {
        return Err(Invalid::Key);
    }
    let id = svid::id(leaf)?;
    if id.trust_domain() != expected.trust_domain || id.namespace() != expected.namespace {
        return Err(Invalid::Stranger {
            found: id,
            namespace: expected.namespace.to_owned(),
            trust_domain: expected.trust_domain.to_owned(),
        });
    }
    let (not_before, not_after) = svid::validity(leaf)?;
    let (roots, root) = anchors.towards(&chain)?;
    svid::verify(&chain, &roots, now)?;
    // Who verifies has the root; sending it would only make handshakes larger.
    if chain.len() > 1 && chain.last().is_some_and(is_self_issued) {
        chain.pop();
    }
    let key = Arc::new(CertifiedKey::new(chain, key));
    Ok(Checked { leaf: Leaf { id, key, not_before, not_after }, root })
}

impl Anchors {
    /// The roots to verify `chain` with, and which of its own certificates is one because a pin names its key.
    pub(super) fn towards(
        &self,
        chain: &[CertificateDer<'_>],
    ) -> Result<(RootCertStore, Option<Bundle>), Invalid> {
        let mut roots = self.roots.clone();
        let Some(pin) = &self.pin else { return Ok((roots, None)) };
        match chain.iter().find(|certificate| key_hash(certificate).as_ref() == Some(pin)) {
            Some(root) => {
                let root = Bundle::of_root(root)?;
                roots.roots.extend(root.roots().roots.iter().cloned());
                Ok((roots, Some(root)))
            }
            None if roots.is_empty() => Err(Invalid::Pin),
            None => Ok((roots, None)),
        }
    }
}

fn is_self_issued(certificate: &CertificateDer<'static>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer())
}
