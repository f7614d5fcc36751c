//! Members of the mesh that are no sidecars: an authority of the test's own, as an operator brings one, and whoever it vouches
//! for.
//!
//! In: identities. Out: [`Papers`] for a server, and [`Call`]s for the [`client`](crate::client). Invariant: a call shows the
//! certificate of its identity, and takes for an answer only what the same root vouches for. Non-goal: who exactly
//! answers; a sidecar looks at that, and its tests do.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weft_wire::SpiffeId;
use weft_wire::tls::{ALPN_H2, ALPN_HTTP11, ALPN_OPAQUE, server_name};

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// A root, and an intermediate that issues.
pub struct Authority {
    root: Issuer,
    intermediate: Issuer,
}

/// A certificate with what is above it, its key, and the roots to trust, all PEM.
#[derive(Debug, Clone)]
pub struct Papers {
    /// The leaf and its intermediate.
    pub chain: String,
    /// The leaf's key.
    pub key: String,
    /// The root.
    pub roots: String,
}

impl Authority {
    /// A new one, which nobody knows yet.
    ///
    /// # Errors
    /// When there are no keys.
    pub fn new() -> anyhow::Result<Self> {
        let root = Issuer::self_signed(issuing("The test's root"), KeyPair::generate()?)?;
        let own = issuing("The test's intermediate");
        let intermediate = Issuer::signed_by(own, KeyPair::generate()?, &root)?;
        Ok(Self { root, intermediate })
    }

    /// Writes what `--ca-dir` reads, as cert-manager would.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        fs::write(directory.join("tls.crt"), self.intermediate.pem())?;
        fs::write(directory.join("tls.key"), self.intermediate.key().serialize_pem())?;
        Ok(fs::write(directory.join("ca.crt"), self.roots())?)
    }

    /// The root, PEM.
    #[must_use]
    pub fn roots(&self) -> String {
        self.root.pem()
    }

    /// Vouches that somebody is `id`, whatever that is.
    ///
    /// # Errors
    /// When `id` is not ASCII.
    pub fn papers(&self, id: &str) -> anyhow::Result<Papers> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.intermediate)?;
        let chain = format!("{}{}", leaf.pem(), self.intermediate.pem());
        Ok(Papers { chain, key: key.serialize_pem(), roots: self.roots() })
    }

    /// Somebody who is vouched for as `id` and calls.
    ///
    /// # Errors
    /// As [`Authority::papers`].
    pub fn member(&self, id: &str) -> anyhow::Result<Member> {
        Member::with(id, Some(&self.papers(id)?), &self.roots())
    }

    /// Somebody who shows nothing, and trusts this authority.
    ///
    /// # Errors
    /// Never, if the root is one.
    pub fn nobody(&self) -> anyhow::Result<Member> {
        Member::with("nobody", None, &self.roots())
    }
}

fn issuing(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Somebody who calls by mutual TLS.
#[derive(Clone)]
pub struct Member {
    name: Arc<str>,
    tls: ClientConfig,
}

impl Member {
    /// Whoever shows these papers, and trusts `roots`.
    ///
    /// # Errors
    /// When the papers or roots are none.
    pub fn with(name: &str, papers: Option<&Papers>, roots: &str) -> anyhow::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut trusted = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
            trusted.add(root?)?;
        }
        let verifier = OfTheRoot { roots: trusted, provider: Arc::clone(&provider) };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let tls = match papers {
            None => builder.with_no_client_auth(),
            Some(papers) => {
                let chain = CertificateDer::pem_slice_iter(papers.chain.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(papers.key.as_bytes())?;
                builder.with_client_auth_cert(chain.collect::<Result<_, _>>()?, key)?
            }
        };
        Ok(Self { name: name.into(), tls })
    }

    /// A call to the sidecar of `callee`, whose protocol ALPN says.
    ///
    /// # Errors
    /// When its name is too long to be said.
    pub fn calls(&self, callee: &SpiffeId) -> anyhow::Result<Call> {
        Ok(Call { member: self.clone(), callee: server_name(callee).try_into()?, opaque: false })
    }
}

/// How one connection is begun.
#[derive(Clone)]
pub struct Call {
    member: Member,
    callee: ServerName<'static>,
    opaque: bool,
}

impl Call {
    /// The same, announced as bytes that nobody looks into.
    #[must_use]
    pub fn opaque(self) -> Self {
        Self { opaque: true, ..self }
    }

    /// Begins it. A refusal of the certificate is heard only later: the handshake is over for who shows it.
    ///
    /// # Errors
    /// When the other side is not vouched for, or does not want to.
    pub async fn secure(&self, stream: TcpStream, h2: bool) -> anyhow::Result<TlsStream<TcpStream>> {
        let alpn = match (self.opaque, h2) {
            (true, _) => ALPN_OPAQUE,
            (false, true) => ALPN_H2,
            (false, false) => ALPN_HTTP11,
        };
        let mut tls = self.member.tls.clone();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let connecting = TlsConnector::from(Arc::new(tls)).connect(self.callee.clone(), stream);
        connecting.await.with_context(|| format!("{self:?}"))
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.opaque { " (opaque)" } else { "" };
        write!(f, "{} to {}{how}", self.member.name, self.callee.to_str())
    }
}

impl PartialEq for Call {
    fn eq(&self, other: &Self) -> bool {
        (&self.member.name, &self.callee, self.opaque) == (&other.member.name, &other.callee, other.opaque)
    }
}

impl Eq for Call {}

/// Takes whom the root vouches for, by whatever name.
#[derive(Debug)]
struct OfTheRoot {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OfTheRoot {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
