//! What went wrong with a TLS connection → a [`Reason`].

use std::io;

use rustls::{AlertDescription, CertificateError, Error};
use weft_wire::Reason;

use super::verify::Refused;

/// A TLS connection cannot go on. The cause of an [`io::Error`], see [`reason`].
#[derive(Debug, Clone, thiserror::Error)]
#[error("TLS")]
pub struct Failure(#[from] pub Error);

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        Self::new(io::ErrorKind::InvalidData, failure)
    }
}

/// The reason why a connection broke, if TLS has one: a certificate that was refused, on this side or on the other.
#[must_use]
pub fn reason(error: &io::Error) -> Option<Reason> {
    let failure = error.get_ref()?.downcast_ref::<Failure>()?;
    Some(reason_of(&failure.0))
}

/// The reason for what rustls says.
#[must_use]
pub(super) fn reason_of(error: &Error) -> Reason {
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::NoCertificatesPresented => Reason::TlsCertificateMissing,
        // The other side refused ours.
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => Reason::TlsCertificateExpired,
            AlertDescription::UnknownCA => Reason::TlsUnknownIssuer,
            AlertDescription::CertificateRequired => Reason::TlsCertificateMissing,
            AlertDescription::AccessDenied => Reason::TlsIdentityMismatch,
            AlertDescription::CertificateUnknown => Reason::TlsTrustDomain,
            _ => Reason::TlsHandshakeFailed,
        },
        _ => Reason::TlsHandshakeFailed,
    }
}

fn certificate(error: &CertificateError) -> Reason {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Reason::TlsCertificateExpired,
        CertificateError::UnknownIssuer => Reason::TlsUnknownIssuer,
        CertificateError::ApplicationVerificationFailure => Reason::TlsIdentityMismatch,
        CertificateError::Other(other) => {
            other.0.downcast_ref::<Refused>().map_or(Reason::TlsHandshakeFailed, |refused| refused.0)
        }
        _ => Reason::TlsHandshakeFailed,
    }
}
