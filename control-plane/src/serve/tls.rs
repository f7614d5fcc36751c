//! TLS towards sidecars: the control plane's own identity, and who is at the other end.
//!
//! In: accepted connections. Out: connections on which the other end is known, or is a newcomer without a certificate who may
//! do nothing but ask for one. TLS 1.3 only. The root is sent along in the chain, so that whoever has only a pin of it (a join
//! token) can check it. Sessions are not resumed: a resumed one would believe a certificate without looking at it again.
//!
//! Invariants: a handshake has a deadline; at most [`HANDSHAKES_MAX`] go on at a time; a newcomer's connection ends after
//! [`NEWCOMER_STAYS`]; what fails is counted by reason.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, Error as TlsError, RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use weft_wire::{Reason, SpiffeId};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use super::peer::{Peer, Verified};
use crate::ca::hex;

/// How long a handshake may take.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes that go on at a time. Each costs two signatures, 0.2 ms.
pub(super) const HANDSHAKES_MAX: usize = 512;
/// How long whoever has no certificate may stay: long enough to get one.
pub(super) const NEWCOMER_STAYS: Duration = Duration::from_secs(30);
/// The word for a handshake that took too long; the others are words of [`Reason`].
pub(super) const TIMED_OUT: &str = "tls_handshake_timeout";

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// With this certificate and key.
    #[error("set up TLS")]
    Tls(#[from] TlsError),
    /// With these roots.
    #[error("set up the check of client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// What the listener uses for the next connection. Cheap to clone.
#[derive(Clone)]
pub struct Settings(Arc<Inner>);

struct Inner {
    domain: Box<str>,
    material: ArcSwap<Material>,
}

/// What one certificate and set of roots make.
pub struct Material {
    config: Arc<ServerConfig>,
    /// Subject and key's hash of each root.
    roots: Vec<(Vec<u8>, [u8; 32])>,
}

impl Material {
    /// TLS with `chain`, whose first certificate has the key `pkcs8`, for clients that hang from one of `roots`.
    ///
    /// # Errors
    /// When they do not fit together.
    pub fn new<'a>(
        chain: Vec<CertificateDer<'static>>,
        pkcs8: Vec<u8>,
        roots: impl Iterator<Item = &'a CertificateDer<'static>>,
    ) -> Result<Self, SetupError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (mut store, mut known) = (RootCertStore::empty(), Vec::new());
        for root in roots {
            store.add(root.clone())?;
            if let Ok((_, root)) = X509Certificate::from_der(root) {
                let pin = Sha256::digest(root.public_key().raw).into();
                known.push((root.subject().as_raw().to_vec(), pin));
            }
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![weft_wire::tls::ALPN_H2.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), roots: known })
    }
}

/// A handshake within its time; or the word for why not, and the cause.
pub(super) async fn shake(
    config: Arc<ServerConfig>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, (&'static str, io::Error)> {
    let shaken = TlsAcceptor::from(config).accept(stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err((reason(&error).word(), error)),
        Err(_) => Err((TIMED_OUT, io::ErrorKind::TimedOut.into())),
    }
}

impl Settings {
    /// Settings for members of `domain`.
    #[must_use]
    pub fn new(domain: &str, material: Material) -> Self {
        Self(Arc::new(Inner { domain: domain.into(), material: ArcSwap::from_pointee(material) }))
    }

    /// Uses `material` from the next connection on.
    pub fn replace(&self, material: Material) {
        self.0.material.store(Arc::new(material));
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// The word for the reason, and the cause.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<(TlsStream<TcpStream>, Peer), (&'static str, io::Error)> {
        let stream = shake(Arc::clone(&self.0.material.load().config), stream).await?;
        let chain = stream.get_ref().1.peer_certificates();
        let verified = chain.filter(|chain| !chain.is_empty()).map(|chain| self.read(chain)).transpose();
        let verified = verified.map_err(|(reason, text)| (reason.word(), io::Error::other(text)))?;
        Ok((stream, Peer { address, secure: true, verified: verified.map(Arc::new) }))
    }

    /// Who a chain, which was checked already, is of.
    fn read(&self, chain: &[CertificateDer<'static>]) -> Result<Verified, (Reason, String)> {
        let mismatch = |text: &str| (Reason::TlsIdentityMismatch, text.to_owned());
        let Some((leaf, above)) = chain.split_first() else { return Err(mismatch("no certificate")) };
        let (_, leaf) =
            X509Certificate::from_der(leaf).map_err(|_| mismatch("the certificate cannot be read"))?;
        let names = leaf.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let uris: Vec<&str> = names
            .iter()
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
            .collect();
        let [uri] = uris.as_slice() else {
            return Err(mismatch("the certificate has not exactly one URI name"));
        };
        let id: SpiffeId =
            uri.parse().map_err(|_| mismatch("the certificate's URI is no SPIFFE identity"))?;
        if *id.trust_domain() != *self.0.domain {
            let text = format!("{id} is not of the trust domain {}", self.0.domain);
            return Err((Reason::TlsTrustDomain, text));
        }
        let at = |time: ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        Ok(Verified {
            id,
            since: at(leaf.validity().not_before),
            expires: at(leaf.validity().not_after),
            serial: hex(leaf.raw_serial()).into(),
            issuer: leaf.issuer().to_string().into(),
            root: self.root_of(&leaf, above),
        })
    }

    /// The root that issued the topmost of what was shown.
    fn root_of(&self, leaf: &X509Certificate<'_>, above: &[CertificateDer<'static>]) -> Option<[u8; 32]> {
        let material = self.0.material.load();
        let above = above.iter().filter_map(|one| X509Certificate::from_der(one).ok()).map(|(_, one)| one);
        let issuers = std::iter::once(leaf.issuer().as_raw().to_vec());
        let mut issuers = issuers.chain(above.map(|one| one.issuer().as_raw().to_vec()));
        issuers.find_map(|issuer| {
            material.roots.iter().find(|(subject, _)| *subject == issuer).map(|(_, pin)| *pin)
        })
    }
}

/// What a failed handshake is called.
fn reason(error: &io::Error) -> Reason {
    let Some(tls) = error.get_ref().and_then(|error| error.downcast_ref::<TlsError>()) else {
        return Reason::TlsHandshakeFailed;
    };
    match tls {
        TlsError::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => Reason::TlsCertificateExpired,
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            Reason::TlsUnknownIssuer
        }
        TlsError::NoCertificatesPresented => Reason::TlsCertificateMissing,
        _ => Reason::TlsHandshakeFailed,
    }
}
