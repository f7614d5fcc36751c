//! Reads a request for a certificate (PKCS #10) and refuses what the authority would never sign.
//!
//! In: PEM from a stranger. Out: the public key, and the identity that is asked for if one is. Pure, and never panics.
//! Nothing else of a request is taken over: what a certificate may do is the authority's decision alone.

use sha2::{Digest as _, Sha256};
use weft_wire::SpiffeId;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Largest request, PEM. One with an RSA key of 4,096 bits takes 1.8 KiB.
pub const BYTES_MAX: usize = 8 * 1024;
/// RSA keys shorter than this can be broken; those longer than the other cost more than they protect.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const ED25519: &str = "1.3.101.112";
const CURVES: [&str; 2] = [P256, P384];
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Too many bytes.
    #[error("the request for a certificate has {0} bytes: at most {BYTES_MAX} are read")]
    TooLarge(usize),
    /// No PKCS #10.
    #[error("the request is not one PEM block \"CERTIFICATE REQUEST\" (PKCS #10)")]
    Unreadable,
    /// Not signed by its own key.
    #[error(
        "the request's signature does not match its public key, or is made with an algorithm that is not taken"
    )]
    Signature,
    /// A key that is too weak, or not known.
    #[error("{0}: keys must be ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits")]
    WeakKey(String),
    /// More names than one identity.
    #[error("the request names {0}: the only name that is signed is one spiffe:// URI")]
    Names(String),
}

impl BadRequest {
    /// The word in metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "csr_too_large",
            Self::Unreadable => "csr_unreadable",
            Self::Signature => "csr_signature",
            Self::WeakKey(_) => "csr_weak_key",
            Self::Names(_) => "csr_names",
        }
    }
}

/// A request that may be signed if whoever sent it proves who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
    /// SHA-256 of `spki`: which key this is.
    pub key: [u8; 32],
    /// The identity that is asked for; `None`: whatever the proof gives.
    pub wanted: Option<SpiffeId>,
}

/// Reads a request.
///
/// # Errors
/// When it is not one, or asks for what is never signed.
pub fn read(pem: &str) -> Result<Request, BadRequest> {
    if pem.len() > BYTES_MAX {
        return Err(BadRequest::TooLarge(pem.len()));
    }
    let blocks = pem::parse_many(pem).map_err(|_| BadRequest::Unreadable)?;
    let [block] = blocks.as_slice() else { return Err(BadRequest::Unreadable) };
    if !matches!(block.tag(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
        return Err(BadRequest::Unreadable);
    }
    let (rest, request) =
        X509CertificationRequest::from_der(block.contents()).map_err(|_| BadRequest::Unreadable)?;
    if !rest.is_empty() {
        return Err(BadRequest::Unreadable);
    }
    let info = &request.certification_request_info;
    // The key before the signature: a huge key is not worth the time that checking takes.
    strong(&info.subject_pki)?;
    request.verify_signature().map_err(|_| BadRequest::Signature)?;
    let spki = info.subject_pki.raw.to_vec();
    let key = Sha256::digest(&spki).into();
    Ok(Request { spki, key, wanted: identity(&request)? })
}

fn strong(spki: &SubjectPublicKeyInfo<'_>) -> Result<(), BadRequest> {
    let algorithm = spki.algorithm.algorithm.to_id_string();
    match (algorithm.as_str(), spki.parsed()) {
        (ED25519, _) => Ok(()),
        (EC_PUBLIC_KEY, Ok(PublicKey::EC(_))) => {
            let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
            let curve = curve.map(|oid| oid.to_id_string()).unwrap_or_default();
            if CURVES.contains(&curve.as_str()) {
                return Ok(());
            }
            Err(BadRequest::WeakKey(format!("an ECDSA key on the curve {curve}")))
        }
        (_, Ok(PublicKey::RSA(key))) if RSA_BITS.contains(&key.key_size()) => Ok(()),
        (_, Ok(PublicKey::RSA(key))) => {
            Err(BadRequest::WeakKey(format!("an RSA key of {} bits", key.key_size())))
        }
        _ => Err(BadRequest::WeakKey(format!("a key of the kind {algorithm}"))),
    }
}

/// The one identity that is asked for.
fn identity(request: &X509CertificationRequest<'_>) -> Result<Option<SpiffeId>, BadRequest> {
    let attributes = request.certification_request_info.iter_attributes();
    let extensions = attributes.flat_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(requested) => requested.extensions.as_slice(),
        _ => &[],
    });
    let mut found = None;
    for extension in extensions {
        let names = match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) => &san.general_names,
            ParsedExtension::ParseError { .. } => return Err(BadRequest::Unreadable),
            // Key usages and the like are asked for by many programs; they get what everybody gets.
            _ => continue,
        };
        for name in names {
            let GeneralName::URI(uri) = name else {
                return Err(BadRequest::Names(format!("something that is no URI ({})", shown(name))));
            };
            let shown = || uri.chars().take(200).collect::<String>();
            let id: SpiffeId =
                uri.parse().map_err(|_| BadRequest::Names(format!("{:?}, which is no identity", shown())))?;
            if found.replace(id).is_some() {
                return Err(BadRequest::Names("several URIs".into()));
            }
        }
    }
    Ok(found)
}

fn shown(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => format!("DNS name {:?}", name.chars().take(200).collect::<String>()),
        GeneralName::IPAddress(_) => "IP address".into(),
        GeneralName::RFC822Name(_) => "mail address".into(),
        _ => "another kind of name".into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn good() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let uri = "spiffe://cluster.local/ns/shop/sa/orders".try_into().unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_request_says_its_key_and_whom_it_wants_to_be() {
        let request = read(&good()).unwrap();
        assert_eq!(request.wanted.unwrap().to_string(), "spiffe://cluster.local/ns/shop/sa/orders");
        assert_eq!(request.key, <[u8; 32]>::from(Sha256::digest(&request.spki)));
        assert_eq!(read(&format!("{}{}", good(), good())), Err(BadRequest::Unreadable));
        assert_eq!(read(""), Err(BadRequest::Unreadable));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_is_changed_in_a_request_makes_it_say_nothing_else(at in 0_usize..2_000, to in any::<u8>()) {
            let original = good();
            let block = pem::parse(&original).unwrap();
            let mut bytes = block.contents().to_vec();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            let text = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes));
            // Around the signature are a few bytes that nobody signs, such as how many bits of its last byte do not count.
            if let Ok(request) = read(&text) {
                prop_assert_eq!(Ok(request), read(&original));
            }
        }

        #[test]
        fn strangers_never_panic_it(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let text = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes));
            prop_assert!(read(&text).is_err());
        }
    }
}
