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
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Why a certificate is nobody's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Invalid {
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
///
/// # Errors
/// When it is no X.509-SVID of this kind of mesh: exactly one URI name, a [`SpiffeId`].
pub(crate) fn id(certificate: &CertificateDer<'_>) -> Result<SpiffeId, Invalid> {
    let parsed = parse(certificate)?;
    let names = parsed.subject_alternative_name().map_err(|error| Invalid::Certificate(error.to_string()))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let mut uris = names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.count()) {
        (Some(uri), 0) => Ok(uri.parse()?),
        (first, more) => Err(Invalid::Names(usize::from(first.is_some()) + more)),
    }
}

/// From when until when a certificate is valid.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), Invalid> {
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or_default());
    let parsed = parse(certificate)?;
    let validity = parsed.validity();
    Ok((time(validity.not_before.timestamp()), time(validity.not_after.timestamp())))
}

/// All of it, and nothing behind it.
fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Invalid> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(Invalid::Certificate("there is something behind it".to_owned())),
        Err(error) => Err(Invalid::Certificate(error.to_string())),
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    proptest! {
        #[test]
        fn strangers_never_panic_it(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let certificate = CertificateDer::from(bytes);
            std::hint::black_box((id(&certificate).is_ok(), validity(&certificate).is_ok()));
        }

        #[test]
        fn broken_certificates_never_panic_it(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let whole = super::super::testing::Authority::new("a").root_pem();
            let whole = CertificateDer::from_pem_slice(whole.as_bytes()).expect("a certificate");
            let mut bytes = whole.to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let certificate = CertificateDer::from(bytes);
            std::hint::black_box((id(&certificate).is_ok(), validity(&certificate).is_ok()));
        }
    }
}
