//! Makes certificates: roots, intermediates, leaves.
//!
//! In: keys, names, times, a serial number. Out: X.509. Pure but for the making of keys. A leaf can do one thing: prove one
//! identity, as client and as server; whatever its request asked for beyond that is not in it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use weft_wire::SpiffeId;
use x509_parser::prelude::FromDer as _;

/// How far a certificate's life reaches back, for clocks that are behind.
pub const BACKDATED: Duration = Duration::from_secs(60);
/// Likewise for what issues: it must be valid for the clock that is furthest behind of all that are helped.
pub const AUTHORITY_BACKDATED: Duration = Duration::from_secs(2 * 3600);
/// The life of a root.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The life of an intermediate.
pub const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A serial number: 128 random bits.
pub type Serial = [u8; 16];

/// Something cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate's bytes make no sense.
    #[error("read a certificate")]
    Read(#[source] x509_parser::error::X509Error),
    /// A key or certificate cannot be made or read.
    #[error("make or read a key or certificate")]
    Make(#[from] rcgen::Error),
    /// The text is not PEM.
    #[error("read PEM")]
    Pem(#[from] pem::PemError),
    /// The issuer is about to expire.
    #[error("the issuing certificate has expired")]
    IssuerExpired,
}

/// A private key.
#[derive(Clone)]
pub struct Key(Arc<KeyPair>);

impl Key {
    /// Makes a new one: ECDSA on P-256.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(Arc::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)))
    }

    /// Reads PEM.
    ///
    /// # Errors
    /// When it holds no key of a kind that can sign.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        Ok(Self(Arc::new(KeyPair::from_pem(pem)?)))
    }

    /// Writes PEM. Handle with care.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The same for a TLS library.
    #[must_use]
    pub fn to_pkcs8(&self) -> Vec<u8> {
        self.0.serialized_der().to_vec()
    }

    /// Its public half, `SubjectPublicKeyInfo` in DER.
    #[must_use]
    pub fn to_spki(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// Whether this is the key of `certificate`.
    #[must_use]
    pub fn is_of(&self, certificate: &Certificate) -> bool {
        let own: [u8; 32] = Sha256::digest(self.to_spki()).into();
        own == certificate.pin
    }
}

/// Never the key itself.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A certificate, and what is asked of it often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
    /// The serial number, hexadecimal.
    pub serial: Box<str>,
    /// SHA-256 of its `SubjectPublicKeyInfo`: what a join token pins.
    pub pin: [u8; 32],
    /// Whether it may issue.
    pub is_ca: bool,
    /// Its subject, as a name for people.
    pub subject: Box<str>,
}

impl Certificate {
    /// Reads DER.
    ///
    /// # Errors
    /// When it is no certificate.
    pub fn read(der: CertificateDer<'static>) -> Result<Self, Error> {
        let (_, read) =
            x509_parser::certificate::X509Certificate::from_der(&der).map_err(|error| match error {
                x509_parser::nom::Err::Error(error) | x509_parser::nom::Err::Failure(error) => {
                    Error::Read(error)
                }
                x509_parser::nom::Err::Incomplete(_) => {
                    Error::Read(x509_parser::error::X509Error::InvalidCertificate)
                }
            })?;
        let at = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        Ok(Self {
            not_before: at(read.validity().not_before),
            not_after: at(read.validity().not_after),
            serial: hex(read.raw_serial()).into(),
            pin: Sha256::digest(read.public_key().raw).into(),
            is_ca: read.is_ca(),
            subject: read.subject().to_string().into(),
            der,
        })
    }

    /// Reads every certificate of a PEM text.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read_all(pem: &str) -> Result<Vec<Self>, Error> {
        let blocks = pem::parse_many(pem)?;
        let certificates = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE");
        certificates.map(|block| Self::read(block.into_contents().into())).collect()
    }

    /// Writes PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        pem::encode_config(&pem::Pem::new("CERTIFICATE", self.der.to_vec()), config)
    }

    /// The pin as people see it: the first eight digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.pin)
    }
}

/// A key's hash as people read it: its first eight digits.
#[must_use]
pub fn fingerprint(pin: &[u8; 32]) -> String {
    hex(&pin[..4])
}

/// Hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a root for `domain`.
///
/// # Errors
/// When signing fails.
pub fn root(domain: &str, key: &Key, now: SystemTime, serial: Serial) -> Result<Certificate, Error> {
    let mut params = authority(BasicConstraints::Unconstrained, now, now + ROOT_LIFE, serial);
    // Every root has a name of its own: chains are built by name.
    params.distinguished_name = name(domain, &format!("Weft root {}", hex(&serial[..4])));
    Certificate::read(params.self_signed(&*key.0)?.der().clone())
}

/// Makes an intermediate that issues leaves only.
///
/// # Errors
/// When signing fails.
pub fn intermediate(
    domain: &str,
    key: &Key,
    root: (&Certificate, &Key),
    now: SystemTime,
    serial: Serial,
) -> Result<Certificate, Error> {
    let until = (now + INTERMEDIATE_LIFE).min(root.0.not_after);
    let mut params = authority(BasicConstraints::Constrained(0), now, until, serial);
    params.distinguished_name = name(domain, &format!("Weft intermediate {}", hex(&serial[..4])));
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_der(&root.0.der, &*root.1.0)?;
    Certificate::read(params.signed_by(&*key.0, &issuer)?.der().clone())
}

/// Signs the key of a new root with an old one, so that whoever knows only the old one can follow.
///
/// # Errors
/// When signing fails.
pub fn cross_sign(
    new: &Certificate,
    old: (&Certificate, &Key),
    now: SystemTime,
    serial: Serial,
) -> Result<Certificate, Error> {
    let until = new.not_after.min(old.0.not_after);
    let mut params = authority(BasicConstraints::Unconstrained, now, until, serial);
    let (_, read) = x509_parser::certificate::X509Certificate::from_der(&new.der)
        .map_err(|_| Error::Read(x509_parser::error::X509Error::InvalidCertificate))?;
    for attribute in read.subject().iter_attributes() {
        let kind = match attribute.attr_type().to_id_string().as_str() {
            "2.5.4.3" => DnType::CommonName,
            "2.5.4.10" => DnType::OrganizationName,
            // Only roots that this module made are signed.
            _ => return Err(rcgen::Error::CouldNotParseCertificate.into()),
        };
        params.distinguished_name.push(kind, attribute.as_str().unwrap_or_default());
    }
    params.use_authority_key_identifier_extension = true;
    let key = SubjectPublicKeyInfo::from_der(read.public_key().raw)?;
    let issuer = Issuer::from_ca_cert_der(&old.0.der, &*old.1.0)?;
    Certificate::read(params.signed_by(&key, &issuer)?.der().clone())
}

/// A leaf's life: when it begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// From when it is valid.
    pub from: SystemTime,
    /// Until when.
    pub until: SystemTime,
}

/// Makes a leaf for `id` and the key `spki`, shorter-lived than its issuer.
///
/// # Errors
/// When the key is of a kind that cannot be signed for, or the issuer has expired.
pub fn leaf(
    id: &SpiffeId,
    spki: &[u8],
    issuer: (&Certificate, &Key),
    life: Life,
    serial: Serial,
) -> Result<Certificate, Error> {
    let until = life.until.min(issuer.0.not_after);
    if until <= life.from {
        return Err(Error::IssuerExpired);
    }
    let uri = id.to_string().try_into()?;
    let mut params = CertificateParams::default();
    params.not_before = life.from.max(issuer.0.not_before).into();
    params.not_after = until.into();
    params.serial_number = Some(serial_number(serial));
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = SubjectPublicKeyInfo::from_der(spki)?;
    let issuer = Issuer::from_ca_cert_der(&issuer.0.der, &*issuer.1.0)?;
    Certificate::read(params.signed_by(&key, &issuer)?.der().clone())
}

fn authority(
    constraints: BasicConstraints,
    now: SystemTime,
    until: SystemTime,
    serial: Serial,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (now - AUTHORITY_BACKDATED).into();
    params.not_after = until.into();
    params.serial_number = Some(serial_number(serial));
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn name(domain: &str, common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, domain);
    name.push(DnType::CommonName, common);
    name
}

/// Positive and never longer than 20 bytes, as RFC 5280 wants it.
fn serial_number(mut serial: Serial) -> SerialNumber {
    serial[0] = serial[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&serial)
}
