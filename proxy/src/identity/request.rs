//! A new key, and the request that asks for a certificate for it.
//!
//! Invariant: one key for one request. A key is never asked for twice, so a renewal also renews the key. Surprise: the
//! request names nobody; who asks is what the proof says, and an authority that read names from requests would have to
//! check them.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData as _};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::SigningKey;

/// A key with its request.
pub(super) struct Request {
    key: KeyPair,
    /// PKCS #10, PEM.
    pub(super) csr: String,
}

impl Request {
    /// Makes an ECDSA P-256 key.
    pub(super) fn new() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.distinguished_name = DistinguishedName::new();
        let csr = parameters.serialize_request(&key)?.pem()?;
        Ok(Self { key, csr })
    }

    /// The public key as a certificate holds it.
    pub(super) fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// For handshakes.
    pub(super) fn signing_key(&self) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der())))
    }

    /// For the operator's directory.
    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}
