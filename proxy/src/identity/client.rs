//! TLS towards the control plane.
//!
//! In: an [`Identity`]. Out: a rustls configuration that at each handshake shows the certificate of that moment and believes
//! whom the identity believes at that moment, so that it is made once. Invariant: the other side has a chain to a root that
//! is trusted *and* is the control plane by name; a sidecar's certificate is not enough to be asked for configuration.
//! Surprise: sessions are not resumed. A resumed session would carry on with a certificate that has been replaced.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientConfig, ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use weft_wire::{SpiffeId, tls};

use super::{Identity, svid};
use crate::connect::Dialer;

/// Whether the control plane is shown who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Our certificate, when there is one that is valid.
    Certificate,
    /// Nothing: a token will say it.
    Nothing,
}

impl Identity {
    /// Makes a dialer speak TLS with the control plane.
    #[must_use]
    pub fn secure(self: &Arc<Self>, dialer: Dialer, show: Show) -> Dialer {
        let name = tls::server_name(&self.enrolment.control_plane());
        match ServerName::try_from(name) {
            Ok(name) => dialer.secured(Arc::new(self.configuration(show)), name),
            // A trust domain that is no DNS name; without TLS the dialer refuses https.
            Err(_) => dialer,
        }
    }

    fn configuration(self: &Arc<Self>, show: Show) -> ClientConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Verifier {
            identity: Arc::clone(self),
            control_plane: self.enrolment.control_plane(),
            provider: Arc::clone(&provider),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider knows TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut configuration = match show {
            Show::Certificate => builder.with_client_cert_resolver(Arc::new(Shown(Arc::clone(self)))),
            Show::Nothing => builder.with_no_client_auth(),
        };
        configuration.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
        configuration.resumption = Resumption::disabled();
        configuration
    }
}

/// Shows the certificate of this moment.
#[derive(Debug)]
struct Shown(Arc<Identity>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let material = self.0.slot.load();
        // One that has expired would only end the handshake; without any, a token may still be taken.
        let material = material.as_ref().filter(|material| SystemTime::now() < material.not_after)?;
        Some(Arc::clone(&material.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Believes the control plane.
struct Verifier {
    identity: Arc<Identity>,
    control_plane: SpiffeId,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("control_plane", &self.control_plane).finish_non_exhaustive()
    }
}

/// Why the other side is not the control plane.
#[derive(Debug, thiserror::Error)]
enum Imposter {
    #[error("nobody is trusted yet")]
    Nobody,
    #[error("the join token names another root than this control plane's")]
    Pin,
    #[error("it is {found}, not {expected}")]
    Other { found: String, expected: SpiffeId },
}

impl From<Imposter> for Error {
    fn from(imposter: Imposter) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(imposter))))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let anchors = self.identity.anchors.load();
        if anchors.roots.is_empty() && anchors.pin.is_none() {
            return Err(Imposter::Nobody.into());
        }
        let (roots, _) = anchors.towards(intermediates).map_err(|_| Imposter::Pin)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)?;
        let found = svid::id(end_entity);
        if found.as_ref().is_ok_and(|id| *id == self.control_plane) {
            return Ok(ServerCertVerified::assertion());
        }
        let found = found.map_or_else(|error| format!("nobody ({error})"), |id| id.to_string());
        Err(Imposter::Other { found, expected: self.control_plane.clone() }.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Never called: only TLS 1.3 is offered.
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
