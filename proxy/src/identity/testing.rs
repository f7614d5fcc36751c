//! A certificate authority for tests: a root, an intermediate, and whatever certificate a story needs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use rustls::sign::CertifiedKey;

use super::bundle::{self, key_hash};
use super::request::Request;
use super::{Bundle, Identity, Leaf, answer};
use crate::config::{Enrolment, Proof};

/// An identity that is still to be had.
pub(crate) fn nobody() -> Arc<Identity> {
    Identity::new(Enrolment {
        trust_domain: "cluster.local".into(),
        namespace: "shop".into(),
        proof: Proof::Directory,
        trust_bundle: None,
        directory: None,
    })
}

/// Gives it a certificate, or another.
pub(crate) fn renew(identity: &Identity, authority: &Authority, id: &str) {
    let now = SystemTime::now();
    let request = Request::new().expect("a key");
    let says = Says::id(id, now, Duration::from_secs(3600));
    let chain = answer::chain(&authority.sign(&request.csr, &says)).expect("a chain");
    let key = Arc::new(CertifiedKey::new(chain, request.signing_key().expect("usable")));
    let Says { not_before, not_after, .. } = says;
    identity.begin_with(Bundle::parse(authority.root_pem().as_bytes()).expect("a root"));
    identity.adopt(Leaf { id: id.parse().expect("an identity"), key, not_before, not_after });
}

/// Signs what it is told to.
pub(crate) struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate says.
#[derive(Debug, Clone)]
pub(crate) struct Says {
    pub(crate) uris: Vec<String>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Says {
    pub(crate) fn id(id: &str, now: SystemTime, life: Duration) -> Self {
        Self { uris: vec![id.to_owned()], not_before: now - Duration::from_secs(60), not_after: now + life }
    }

    fn parameters(&self, mut parameters: CertificateParams) -> CertificateParams {
        parameters.not_before = self.not_before.into();
        parameters.not_after = self.not_after.into();
        let uri = |uri: &String| SanType::URI(uri.as_str().try_into().expect("ASCII"));
        parameters.subject_alt_names = self.uris.iter().map(uri).collect();
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        parameters
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let parameters = |what: &str, constraint| {
            let mut parameters = CertificateParams::default();
            parameters.distinguished_name = rcgen::DistinguishedName::new();
            parameters.distinguished_name.push(DnType::CommonName, format!("{name} {what}"));
            parameters.is_ca = IsCa::Ca(constraint);
            parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            parameters
        };
        let key = || KeyPair::generate().expect("a key");
        let root = CertifiedIssuer::self_signed(parameters("root", BasicConstraints::Unconstrained), key());
        let root = root.expect("a root");
        let below = parameters("intermediate", BasicConstraints::Constrained(0));
        let intermediate = CertifiedIssuer::signed_by(below, key(), &root).expect("an intermediate");
        Self { root, intermediate }
    }

    pub(crate) fn root_pem(&self) -> String {
        bundle::pem(&[self.root.der().clone()])
    }

    pub(crate) fn pin(&self) -> [u8; 32] {
        key_hash(self.root.der()).expect("a certificate")
    }

    /// Answers a request: leaf, intermediate, root.
    pub(crate) fn sign(&self, csr: &str, says: &Says) -> Vec<u8> {
        let mut request = CertificateSigningRequestParams::from_pem(csr).expect("a request");
        request.params = says.parameters(request.params);
        let leaf = request.signed_by(&self.intermediate).expect("signed");
        let chain = [leaf.der(), self.intermediate.der(), self.root.der()].map(Clone::clone);
        bundle::pem(&chain).into_bytes()
    }

    /// A certificate with a key of its own: what a server or another member shows.
    pub(crate) fn issue(
        &self,
        says: &Says,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, String) {
        let key = KeyPair::generate().expect("a key");
        let parameters = says.parameters(CertificateParams::default());
        let leaf = parameters.signed_by(&key, &self.intermediate).expect("signed");
        let chain = [leaf.der(), self.intermediate.der(), self.root.der()].map(Clone::clone);
        let secret = PrivatePkcs8KeyDer::from(key.serialize_der());
        (chain.into(), PrivateKeyDer::Pkcs8(secret), key.serialize_pem())
    }
}
