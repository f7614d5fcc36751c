//! What an X.509-SVID says, and whether it holds.
//!
//! In: certificates from strangers. Out: a [`SpiffeId`], times, or a word about what is wrong. Pure: `now` is an argument.
//! Source: the SPIFFE X.509-SVID specification, section 2 (exactly one URI name) and 5 (validation).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use weft_wire::SpiffeId;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why a certificate is nobody's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Invalid {
    #[error("not a certificate: {0}")]
    Certificate(String),
    #[error("it has {0} URI names, an identity is exactly one")]
    Names(usize),
    #[error("its name is no identity: {0}")]
    Id(#[from] weft_wire::InvalidName),
    #[error("no chain to a root that is trusted: {0}")]
    Chain(webpki::Error),
}

/// Who a certificate says it is. Says nothing about whether that is true.
pub(super) fn id(certificate: &CertificateDer<'_>) -> Result<SpiffeId, Invalid> {
    let parsed = EndEntityCert::try_from(certificate);
    let parsed = parsed.map_err(|error| Invalid::Certificate(error.to_string()))?;
    let mut names = parsed.valid_uri_names();
    match (names.next(), names.count()) {
        (Some(name), 0) => Ok(name.parse()?),
        (first, more) => Err(Invalid::Names(usize::from(first.is_some()) + more)),
    }
}

/// From when until when a certificate is valid.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), Invalid> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| Invalid::Certificate(error.to_string()))?;
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or_default());
    let validity = parsed.validity();
    Ok((time(validity.not_before.timestamp()), time(validity.not_after.timestamp())))
}

/// Whether a chain, leaf first, comes from one of the roots, now, and may be shown by a caller as well as by a callee.
pub(super) fn verify(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: SystemTime,
) -> Result<(), Invalid> {
    let (leaf, intermediates) =
        chain.split_first().ok_or_else(|| Invalid::Certificate("there is none".to_owned()))?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| Invalid::Certificate(error.to_string()))?;
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        leaf.verify_for_usage(algorithms.all, &roots.roots, intermediates, now, usage, None, None)
            .map_err(Invalid::Chain)?;
    }
    Ok(())
}
