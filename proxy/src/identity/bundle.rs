//! Roots: whose signature makes a certificate a member's.
//!
//! In: PEM. Out: a [`Bundle`], never empty, in the order of the text. Pure. Invariant: all or nothing; a bundle with one
//! certificate that does not parse is refused as a whole, because leaving out a root would cut off whoever has it.
//! Surprise: the first root is the one that the authority issues from now, see [`TRUST_BUNDLE`](weft_wire::tls::TRUST_BUNDLE).

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use webpki::EndEntityCert;

/// Roots at most: a mesh in rotation has two or three, one that is federated a few more.
const ROOTS_MAX: usize = 64;
/// A bundle's text at most.
pub(super) const TEXT_MAX: usize = 1024 * 1024;

/// One or more roots.
#[derive(Debug, Clone)]
pub struct Bundle {
    certificates: Arc<[CertificateDer<'static>]>,
    roots: Arc<RootCertStore>,
}

/// Why a text is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBundle {
    /// More than any bundle needs.
    #[error("it is longer than 1 MiB")]
    TooLong,
    /// Nothing in it.
    #[error("it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    Empty,
    /// Too many.
    #[error("it holds more than 64 certificates")]
    TooMany,
    /// Broken PEM.
    #[error("it is not PEM behind certificate {after}: {what}")]
    Pem {
        /// How many certificates were fine.
        after: usize,
        /// What is wrong.
        what: String,
    },
    /// A certificate that cannot be a root.
    #[error("certificate {number} cannot be a root: {source}")]
    Root {
        /// Which, counted from 1.
        number: usize,
        /// Why.
        source: rustls::Error,
    },
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Bundle {
    /// Reads PEM.
    ///
    /// # Errors
    /// See [`InvalidBundle`].
    pub fn parse(pem: &[u8]) -> Result<Self, InvalidBundle> {
        if pem.len() > TEXT_MAX {
            return Err(InvalidBundle::TooLong);
        }
        let mut certificates = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| InvalidBundle::Pem {
                after: certificates.len(),
                what: format!("{error:?}").chars().take(200).collect(),
            })?;
            if certificates.len() == ROOTS_MAX {
                return Err(InvalidBundle::TooMany);
            }
            certificates.push(certificate);
        }
        Self::new(certificates)
    }

    /// A bundle of one.
    pub(super) fn of_root(root: &CertificateDer<'_>) -> Result<Self, InvalidBundle> {
        Self::new(vec![root.clone().into_owned()])
    }

    fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, InvalidBundle> {
        if certificates.is_empty() {
            return Err(InvalidBundle::Empty);
        }
        let mut roots = RootCertStore::empty();
        for (position, certificate) in certificates.iter().enumerate() {
            let added = roots.add(certificate.clone());
            added.map_err(|source| InvalidBundle::Root { number: position + 1, source })?;
        }
        Ok(Self { certificates: certificates.into(), roots: Arc::new(roots) })
    }

    /// How many roots; at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.certificates.len()
    }

    /// For verifying.
    #[must_use]
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// Whether every root of the other is one of these.
    pub(super) fn includes(&self, other: &Self) -> bool {
        other.certificates.iter().all(|root| self.certificates.contains(root))
    }

    /// The root that certificates are issued from now.
    pub(super) fn issuing(&self) -> RootCertStore {
        RootCertStore { roots: self.roots.roots.iter().take(1).cloned().collect() }
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    pub(super) fn pem(&self) -> String {
        pem(&self.certificates)
    }

    /// The first root's fingerprint, for logs.
    pub(super) fn first(&self) -> String {
        self.certificates.first().and_then(key_hash).map_or_else(String::new, |hash| hex(&hash))
    }
}

/// The SHA-256 of a certificate's SPKI: what a join token pins. `None` if it is not a certificate.
pub(super) fn key_hash(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    Some(Sha256::digest(parsed.subject_public_key_info().as_ref()).into())
}

/// Certificates as text.
pub(super) fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let blocks: Vec<_> =
        certificates.iter().map(|certificate| pem::Pem::new("CERTIFICATE", certificate.as_ref())).collect();
    pem::encode_many_config(&blocks, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

/// Lower case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Authority;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bundle_keeps_its_order() {
        let (old, new) = (Authority::new("old"), Authority::new("new"));
        let bundle = Bundle::parse(format!("{}{}", new.root_pem(), old.root_pem()).as_bytes()).expect("two");
        assert_eq!(bundle.len(), 2);
        assert_eq!(bundle.first(), hex(&new.pin()));
        assert_eq!(bundle.issuing().roots.len(), 1);
    }

    #[test]
    fn what_is_no_bundle_is_refused_as_a_whole() {
        let good = Authority::new("good").root_pem();
        let cut: String = good.chars().take(good.len() / 2).collect();
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (text, says) in [
            (String::new(), "no certificate"),
            ("hello".to_owned(), "no certificate"),
            (format!("{good}{cut}"), "behind certificate 1"),
            (format!("{good}{nonsense}"), "certificate 2 cannot be a root"),
            (good.repeat(ROOTS_MAX + 1), "more than 64"),
        ] {
            let error = Bundle::parse(text.as_bytes()).expect_err("refused").to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(Bundle::parse(&[0xff, 0xfe]).is_err());
    }

    proptest! {
        #[test]
        fn strangers_never_panic_it(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            std::hint::black_box(Bundle::parse(&bytes).is_ok());
            std::hint::black_box(key_hash(&CertificateDer::from(bytes)).is_some());
        }
    }
}
