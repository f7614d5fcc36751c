//! Certificates for peers that have no authority of their own: as many, as long and of the same kind as Weft's authority
//! issues, so that both sides of a comparison verify the same.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Trust domain and namespace of the bench's identities.
const TRUST: &str = "spiffe://cluster.local/ns/bench/sa";

/// Files in PEM form.
pub(crate) struct Pki {
    /// The root.
    pub(crate) root: PathBuf,
    /// The caller's chain and key.
    pub(crate) client: Leaf,
    /// The callee's chain and key.
    pub(crate) server: Leaf,
    /// The intermediate, as an authority takes it: `tls.crt`, `tls.key`, `ca.crt`.
    pub(crate) issuer: PathBuf,
}

/// One identity.
pub(crate) struct Leaf {
    pub(crate) id: String,
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pki {
    /// A root, an intermediate, and two leaves, on ECDSA P-256.
    pub(crate) fn make(folder: &Path) -> anyhow::Result<Self> {
        let root = CertifiedIssuer::self_signed(authority("bench root"), KeyPair::generate()?)?;
        let intermediate =
            CertifiedIssuer::signed_by(authority("bench intermediate"), KeyPair::generate()?, &root)?;
        let issuer = folder.join("issuer");
        fs::create_dir(&issuer)?;
        let root_path = issuer.join("ca.crt");
        fs::write(&root_path, root.pem())?;
        fs::write(issuer.join("tls.crt"), intermediate.pem())?;
        fs::write(issuer.join("tls.key"), intermediate.key().serialize_pem())?;
        let leaf = |name: &str| -> anyhow::Result<Leaf> {
            let id = format!("{TRUST}/{name}");
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &intermediate)?;
            let (chain, key_path) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
            fs::write(&chain, certificate.pem() + &intermediate.pem())?;
            fs::write(&key_path, key.serialize_pem())?;
            Ok(Leaf { id, chain, key: key_path })
        };
        Ok(Self { root: root_path, client: leaf("client")?, server: leaf("server")?, issuer })
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
