//! The webhook's certificate: a small authority of its own, kept in a Secret. Pure but for the making of keys.
//!
//! In: the Secret's data, and the time. Out: what to serve with, what the API server must trust, and whether something new must
//! be written. Why an authority of its own and not the mesh's: the API server needs to trust it for this one name only, and the
//! mesh's roots may be somebody else's (`--ca-dir`).
//!
//! Invariant: a root that issues was in the API server's hands before: a new one is first [`Next::Announce`]d, then used
//! ([`Next::Write`]), and the old one stays in the bundle until it expires. Surprise: what cannot be read is made anew, because
//! nothing else depends on it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use weft_wire::tls::CONTROL_PLANE;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::ca::issue::{AUTHORITY_BACKDATED, ROOT_LIFE};

/// Life of the certificate that is served: it is renewed when a third is left.
pub const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// The Service by which the API server calls the webhook: every replica that is ready answers it, whoever leads.
pub const SERVICE: &str = "weft-injector";

/// Keys of the Secret.
pub const ROOTS: &str = "ca.crt";
const ROOT_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Roots in the bundle at most: the one that issues and those that did.
const ROOTS_MAX: usize = 3;

/// A certificate or key cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("make the webhook's certificate")]
pub struct Error(#[from] rcgen::Error);

/// What the Secret holds, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Material {
    /// The roots, PEM, the one that issues first.
    pub roots: String,
    root_key: String,
    certificate: String,
    key: String,
    /// When the served certificate ends.
    pub ends: SystemTime,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing: all is well.
    Keep,
    /// Write this: another certificate of the same root, or the first root of all.
    Write(Material),
    /// Let the API server trust this bundle, and then write it: it has another root.
    Announce(Material),
}

impl Material {
    /// Reads the Secret's data; `None` if something is missing or makes no sense.
    #[must_use]
    pub fn read(data: &BTreeMap<String, ByteString>) -> Option<Self> {
        let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
        let (roots, root_key, certificate, key) =
            (text(ROOTS)?, text(ROOT_KEY)?, text(CERTIFICATE)?, text(KEY)?);
        KeyPair::from_pem(&root_key).ok()?;
        KeyPair::from_pem(&key).ok()?;
        ends(pem::parse_many(&roots).ok()?.first()?.contents())?;
        let ends = ends(pem::parse(&certificate).ok()?.contents())?;
        Some(Self { roots, root_key, certificate, key, ends })
    }

    /// As the Secret holds it.
    #[must_use]
    pub fn data(&self) -> BTreeMap<String, ByteString> {
        let entries = [
            (ROOTS, &self.roots),
            (ROOT_KEY, &self.root_key),
            (CERTIFICATE, &self.certificate),
            (KEY, &self.key),
        ];
        entries.map(|(key, text)| (key.to_owned(), ByteString(text.clone().into_bytes()))).into()
    }

    /// Whether every root of ours is in a bundle that somebody trusts.
    #[must_use]
    pub fn is_trusted_by(&self, bundle: &str) -> bool {
        let roots = |text: &str| pem::parse_many(text).unwrap_or_default();
        let trusted = roots(bundle);
        roots(&self.roots).iter().all(|root| trusted.iter().any(|other| other.contents() == root.contents()))
    }

    /// Whether the served certificate is for all of these DNS names and addresses.
    fn is_for(&self, names: &[String]) -> bool {
        let Ok(certificate) = pem::parse(&self.certificate) else { return false };
        let Ok((_, certificate)) = X509Certificate::from_der(certificate.contents()) else { return false };
        let Ok(Some(held)) = certificate.subject_alternative_name() else { return false };
        let held = &held.value.general_names;
        names.iter().all(|name| {
            held.iter().any(|held| match (held, name.parse::<IpAddr>()) {
                (GeneralName::IPAddress(bytes), Ok(IpAddr::V4(address))) => **bytes == address.octets(),
                (GeneralName::IPAddress(bytes), Ok(IpAddr::V6(address))) => **bytes == address.octets(),
                (GeneralName::DNSName(held), Err(_)) => held == name,
                _ => false,
            })
        })
    }

    /// For a TLS library: chain and key.
    #[must_use]
    pub fn tls(&self) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let certificate = pem::parse(&self.certificate).ok()?.into_contents();
        let key = KeyPair::from_pem(&self.key).ok()?.serialize_der();
        Some((vec![CertificateDer::from(certificate)], PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key))))
    }
}

/// What follows from what the Secret holds.
///
/// # Errors
/// When a key or certificate cannot be made.
pub fn next(kept: Option<&Material>, now: SystemTime) -> Result<Next, Error> {
    let Some(kept) = kept else { return Ok(Next::Write(anew("", now)?)) };
    let root = pem::parse_many(&kept.roots).unwrap_or_default();
    let root_ends = root.first().and_then(|root| ends(root.contents())).unwrap_or(SystemTime::UNIX_EPOCH);
    // A certificate must not outlive what it hangs from.
    if root_ends < now + LEAF_LIFE * 2 {
        return Ok(Next::Announce(anew(&kept.roots, now)?));
    }
    // Also when it is for names of before.
    if kept.ends < now + LEAF_LIFE / 3 || !kept.is_for(&names()) {
        let root_key = KeyPair::from_pem(&kept.root_key)?;
        let issuer = Issuer::new(root_params(now), root_key);
        let (certificate, key) = leaf(&issuer, now)?;
        let ends = now + LEAF_LIFE;
        let (roots, root_key) = (kept.roots.clone(), kept.root_key.clone());
        return Ok(Next::Write(Material { roots, root_key, certificate, key, ends }));
    }
    Ok(Next::Keep)
}

/// A new root with a certificate of it; `old` roots that still hold stay in the bundle.
fn anew(old: &str, now: SystemTime) -> Result<Material, Error> {
    let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let params = root_params(now);
    let root = params.self_signed(&root_key)?;
    let mut roots = root.pem();
    let old = pem::parse_many(old).unwrap_or_default();
    let held = old.iter().filter(|root| ends(root.contents()).is_some_and(|ends| ends > now));
    roots.extend(held.take(ROOTS_MAX - 1).map(pem::encode));
    let pem = root_key.serialize_pem();
    let (certificate, key) = leaf(&Issuer::new(params, root_key), now)?;
    Ok(Material { roots, root_key: pem, certificate, key, ends: now + LEAF_LIFE })
}

fn root_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (now - AUTHORITY_BACKDATED).into();
    params.not_after = (now + ROOT_LIFE).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "weft-injector");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// PEM of certificate and key.
fn leaf(issuer: &Issuer<'_, KeyPair>, now: SystemTime) -> Result<(String, String), Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names())?;
    params.not_before = (now - AUTHORITY_BACKDATED).into();
    params.not_after = (now + LEAF_LIFE).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "weft-injector");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// How the API server calls the webhook: by its Service; or, where it runs beside it, by loopback.
fn names() -> Vec<String> {
    let service = format!("{SERVICE}.{}.svc", CONTROL_PLANE.0);
    vec![service, "localhost".into(), "127.0.0.1".into(), "::1".into()]
}

/// When a certificate ends.
fn ends(der: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn first() -> Material {
        let Ok(Next::Write(material)) = next(None, now()) else { panic!("a first one is written at once") };
        material
    }

    /// Whether the API server would take the certificate of `served`, trusting `bundle`.
    fn verifies(served: &Material, bundle: &str, at: SystemTime) -> bool {
        let mut store = rustls::RootCertStore::empty();
        for root in pem::parse_many(bundle).expect("PEM") {
            store.add(CertificateDer::from(root.into_contents())).expect("a root");
        }
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(store.into(), provider).build();
        let (chain, _) = served.tls().expect("TLS");
        let name = "weft-injector.weft-system.svc".try_into().expect("a name");
        let at = rustls::pki_types::UnixTime::since_unix_epoch(
            at.duration_since(SystemTime::UNIX_EPOCH).expect("later"),
        );
        use rustls::client::danger::ServerCertVerifier as _;
        verifier.expect("a verifier").verify_server_cert(&chain[0], &[], &name, &[], at).is_ok()
    }

    #[test]
    fn what_is_written_is_read_again_and_kept() {
        let material = first();
        assert_eq!(Material::read(&material.data()), Some(material.clone()));
        assert_eq!(next(Some(&material), now() + DAY).expect("no keys are made"), Next::Keep);
        assert!(verifies(&material, &material.roots, now()));
        assert!(
            verifies(&material, &material.roots, now() - AUTHORITY_BACKDATED),
            "for clocks that are behind"
        );
        assert!(!verifies(&material, &material.roots, now() + LEAF_LIFE + DAY));
    }

    #[test]
    fn a_certificate_is_renewed_by_the_same_root_before_it_ends() {
        let material = first();
        let late = now() + LEAF_LIFE * 3 / 4;
        let Ok(Next::Write(renewed)) = next(Some(&material), late) else { panic!("renewed") };
        assert_eq!(renewed.roots, material.roots);
        assert!(verifies(&renewed, &material.roots, late + LEAF_LIFE / 2));
        assert_eq!(next(Some(&renewed), late).expect("kept"), Next::Keep);
    }

    #[test]
    fn a_certificate_for_other_names_is_made_anew_by_the_same_root() {
        let material = first();
        assert!(material.is_for(&names()));
        let key = KeyPair::from_pem(&material.root_key).expect("a key");
        let issuer = Issuer::new(root_params(now()), key);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let old = CertificateParams::new(vec!["weft-control-plane.weft-system.svc".to_owned()]);
        let old = old.and_then(|params| params.signed_by(&key, &issuer)).expect("a certificate");
        let before = Material { certificate: old.pem(), key: key.serialize_pem(), ..material.clone() };
        assert!(!verifies(&before, &material.roots, now()));
        let Ok(Next::Write(renewed)) = next(Some(&before), now()) else { panic!("written") };
        assert_eq!(renewed.roots, material.roots, "the API server trusts it already");
        assert!(verifies(&renewed, &material.roots, now()));
    }

    #[test]
    fn another_root_is_announced_before_it_issues_and_the_old_one_stays() {
        let material = first();
        let late = now() + ROOT_LIFE - DAY;
        let Ok(Next::Announce(other)) = next(Some(&material), late) else { panic!("announced") };
        assert!(other.is_trusted_by(&other.roots) && material.is_trusted_by(&other.roots));
        assert!(!other.is_trusted_by(&material.roots));
        assert!(verifies(&other, &other.roots, late));
        assert!(!verifies(&other, &material.roots, late));
    }

    #[test]
    fn what_makes_no_sense_is_made_anew() {
        let mut data = first().data();
        data.insert(KEY.to_owned(), ByteString(b"nonsense".to_vec()));
        assert_eq!(Material::read(&data), None);
        data.remove(ROOTS);
        assert_eq!(Material::read(&data), None);
    }
}
