//! Is the other side who it must be?
//!
//! In: the certificates that the other side showed, the roots of this moment, and for a caller whom it means to call. Out:
//! the peer's [`SpiffeId`], or the [`Reason`] why not. Invariants: nothing but a chain to one of the roots makes an identity
//! true; a certificate that names nobody, or two, is nobody's. Surprises: a caller says by the server's name whom it means,
//! so that one configuration serves for all endpoints; a certificate of another trust domain is told from one of an unknown
//! issuer, although nothing proves what it says, because that is what its owner must hear. Non-goal: what the peer may do.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};
use weft_wire::{Reason, SpiffeId, tls};

use crate::identity::svid;

/// Certificates of a chain, the leaf's own apart: an intermediate, one that is being replaced, and one to spare.
const INTERMEDIATES_MAX: usize = 4;

/// Why a certificate is not accepted. Travels through rustls as the cause of its error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("certificate refused: {0}")]
pub struct Refused(pub Reason);

impl From<Refused> for rustls::Error {
    /// Chosen so that the alert, which is all that the other side hears, tells the reason (RFC 8446 §6.2).
    fn from(refused: Refused) -> Self {
        Self::InvalidCertificate(match refused.0 {
            Reason::TlsCertificateExpired => CertificateError::Expired,
            Reason::TlsUnknownIssuer => CertificateError::UnknownIssuer,
            Reason::TlsIdentityMismatch => CertificateError::ApplicationVerificationFailure,
            _ => CertificateError::Other(OtherError(Arc::new(refused))),
        })
    }
}

/// Checks the other side's certificates. One for each [`Material`](crate::identity::Material).
#[derive(Debug)]
pub struct Verifier {
    roots: Arc<RootCertStore>,
    trust_domain: Box<str>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// Believes what chains to `roots` and is of `trust_domain`.
    #[must_use]
    pub fn new(roots: Arc<RootCertStore>, trust_domain: &str, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { roots, trust_domain: trust_domain.into(), algorithms }
    }

    /// Whose certificate it is.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<SpiffeId, Refused> {
        let id = identity(leaf);
        if let Ok(id) = &id
            && *id.trust_domain() != *self.trust_domain
        {
            return Err(Refused(Reason::TlsTrustDomain));
        }
        if intermediates.len() > INTERMEDIATES_MAX {
            return Err(Refused(Reason::TlsUnknownIssuer));
        }
        EndEntityCert::try_from(leaf)
            .and_then(|leaf| {
                let roots = &self.roots.roots;
                leaf.verify_for_usage(self.algorithms.all, roots, intermediates, now, usage, None, None)
                    .map(drop)
            })
            .map_err(|error| {
                tracing::debug!(%error, "a certificate was refused");
                Refused(reason(&error))
            })?;
        id
    }
}

/// Whom a leaf names. Proves nothing.
///
/// # Errors
/// When that is nobody, or not one.
pub fn identity(leaf: &CertificateDer<'_>) -> Result<SpiffeId, Refused> {
    svid::id(leaf).map_err(|invalid| {
        tracing::debug!(%invalid, "a certificate names nobody");
        Refused(match invalid {
            svid::Invalid::Certificate(_) => Reason::TlsHandshakeFailed,
            _ => Reason::TlsIdentityMismatch,
        })
    })
}

/// Whether the leaf is valid at `now`: what a resumed session has not looked at again.
#[must_use]
pub fn is_current(leaf: &CertificateDer<'_>, now: UnixTime) -> bool {
    let now = UNIX_EPOCH + Duration::from_secs(now.as_secs());
    svid::validity(leaf).is_ok_and(|(from, until)| (from..=until).contains(&now))
}

fn reason(error: &webpki::Error) -> Reason {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } | Error::InvalidCertValidity => {
            Reason::TlsCertificateExpired
        }
        Error::UnknownIssuer
        | Error::CaUsedAsEndEntity
        | Error::EndEntityUsedAsCa
        | Error::InvalidSignatureForPublicKey
        | Error::PathLenConstraintViolated
        | Error::NameConstraintViolation
        | Error::MaximumPathDepthExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded => Reason::TlsUnknownIssuer,
        Error::RequiredEkuNotFoundContext(_) => Reason::TlsIdentityMismatch,
        _ => Reason::TlsHandshakeFailed,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let id = self.verify(leaf, intermediates, KeyUsage::server_auth(), now)?;
        if tls::server_name(&id) == server_name.to_str() {
            Ok(ServerCertVerified::assertion())
        } else {
            tracing::debug!(%id, ?server_name, "somebody else answered");
            Err(Refused(Reason::TlsIdentityMismatch).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Whoever calls has one certificate, and nothing to choose from.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, KeyUsage::client_auth(), now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
