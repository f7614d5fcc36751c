//! An issuer that the operator brings: a directory with `tls.crt`, `tls.key` and `ca.crt`, as cert-manager writes it.
//!
//! In: the three files. Out: an [`Offer`], checked: the key is the certificate's, the certificate may issue, and it hangs from
//! one of the roots. Files that make no sense never replace an issuer that works.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, UnixTime};

use super::authority::{Issuer, Offer, Root};
use super::disk;
use super::issue::{Certificate, Error, Key};

/// Why the directory holds no issuer.
#[derive(Debug, thiserror::Error)]
pub enum BroughtError {
    /// A file is not there or cannot be read.
    #[error("read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{path}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: Error,
    },
    /// The files contradict each other.
    #[error("{path}: {reason}")]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Reads the directory.
///
/// # Errors
/// When it holds no issuer that could be used at `now`.
pub fn read(directory: &Path, now: SystemTime) -> Result<Offer, BroughtError> {
    let path = |name: &str| directory.join(name);
    let certificates = |name: &str| {
        let all = Certificate::read_all(&text(&path(name))?);
        all.map_err(|source| BroughtError::Content { path: path(name), source })
    };
    let wrong = |name: &str, reason| Err(BroughtError::Wrong { path: path(name), reason });
    let (mut chain, roots) = (certificates("tls.crt")?, certificates("ca.crt")?);
    let key = Key::from_pem(&text(&path("tls.key"))?)
        .map_err(|source| BroughtError::Content { path: path("tls.key"), source })?;
    if chain.is_empty() {
        return wrong("tls.crt", "holds no certificate");
    }
    if roots.is_empty() {
        return wrong("ca.crt", "holds no certificate: without the root nobody can check what is issued");
    }
    let certificate = chain.remove(0);
    if !key.is_of(&certificate) {
        return wrong("tls.key", "is not the key of the first certificate in tls.crt");
    }
    if !certificate.is_ca {
        return wrong("tls.crt", "may not issue certificates (basicConstraints CA:TRUE is missing)");
    }
    if certificate.not_after <= now {
        return wrong("tls.crt", "has expired");
    }
    // The root itself may stand in tls.crt as well.
    chain.retain(|one| roots.iter().all(|root| root != one));
    let Some(root) = root_of(&certificate, &chain, &roots, &key, now) else {
        return wrong("ca.crt", "holds no root that the certificate in tls.crt hangs from");
    };
    let roots = roots.into_iter().map(|certificate| Root { certificate, key: None }).collect();
    Ok(Offer { issuer: Issuer { certificate, above: chain, key, root }, roots })
}

fn text(path: &Path) -> Result<String, BroughtError> {
    let failed = |source| BroughtError::File { path: path.to_owned(), source };
    let bytes = disk::read(path).map_err(failed)?;
    let bytes = bytes.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    String::from_utf8(bytes).map_err(|_| failed(std::io::ErrorKind::InvalidData.into()))
}

/// The root that a leaf of this issuer is checked against: found by trying it out.
fn root_of(
    certificate: &Certificate,
    above: &[Certificate],
    roots: &[Certificate],
    key: &Key,
    now: SystemTime,
) -> Option<[u8; 32]> {
    let probe = weft_wire::SpiffeId::new("probe", "probe", "probe").ok()?;
    let life = super::issue::Life { from: certificate.not_before, until: certificate.not_after };
    let spki = key.to_spki();
    let leaf = super::issue::leaf(&probe, &spki, (certificate, key), life, [1; 16]).ok()?;
    let between: Vec<CertificateDer<'_>> =
        std::iter::once(certificate).chain(above).map(|one| one.der.clone()).collect();
    let time = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).ok()?);
    let hangs = |root: &&Certificate| {
        let (Ok(anchor), Ok(leaf)) =
            (webpki::anchor_from_trusted_cert(&root.der), webpki::EndEntityCert::try_from(&leaf.der))
        else {
            return false;
        };
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        let usage = webpki::KeyUsage::client_auth();
        leaf.verify_for_usage(algorithms, &[anchor], &between, time, usage, None, None).is_ok()
    };
    roots.iter().find(hangs).map(|root| root.pin)
}
