//! A certificate authority for the tests of everything that takes certificates.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::identity::{Material, Slot};
use crate::tls::Mesh;

const DAY: Duration = Duration::from_secs(86_400);

/// A root that signs leaves.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a leaf says.
pub(crate) struct Leaf<'a> {
    pub(crate) uris: &'a [&'a str],
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
}

impl<'a> Leaf<'a> {
    pub(crate) fn of(uris: &'a [&'a str]) -> Self {
        let now = SystemTime::now();
        Self { uris, from: now - DAY, until: now + DAY }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            self.uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        params.not_before = self.from.into();
        params.not_after = self.until.into();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    /// Signed by nobody but itself.
    pub(crate) fn self_signed(&self) -> CertifiedKey {
        let key = KeyPair::generate().expect("a key");
        let leaf = self.params().self_signed(&key).expect("a leaf");
        certified(leaf.der().clone(), &key)
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a root"))
    }

    pub(crate) fn sign(&self, leaf: &Leaf<'_>) -> CertifiedKey {
        let key = KeyPair::generate().expect("a key");
        let signed = leaf.params().signed_by(&key, &self.0).expect("a leaf");
        certified(signed.der().clone(), &key)
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        Arc::new(roots)
    }

    /// What a sidecar of this identity holds.
    pub(crate) fn material(&self, id: &str) -> Material {
        self.material_with(id, self.sign(&Leaf::of(&[id])))
    }

    /// As [`material`](Self::material), with another certificate.
    pub(crate) fn material_with(&self, id: &str, key: CertifiedKey) -> Material {
        let now = SystemTime::now();
        Material {
            id: id.parse().expect("an identity"),
            key: Arc::new(key),
            roots: self.roots(),
            not_before: now - DAY,
            not_after: now + DAY,
        }
    }
}

fn certified(leaf: CertificateDer<'static>, key: &KeyPair) -> CertifiedKey {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    CertifiedKey::from_der(vec![leaf], key, &aws_lc_rs::default_provider()).expect("a key pair")
}

/// A sidecar's place in the mesh.
pub(crate) fn mesh(material: Material) -> Arc<Mesh> {
    let slot = Slot::default();
    slot.store(Some(Arc::new(material)));
    Mesh::new(slot)
}
