//! How a sidecar asks for its certificate: `istio.v1.auth.IstioCertificateService`, the protocol that Istio's agents,
//! ztunnel and cert-manager's istio-csr speak. See ADR 12.
//!
//! One unary call: a PKCS #10 request in, a chain out. Who asks is proved by `authorization: Bearer <token>`: a Kubernetes
//! service account token, a join token, or, for a renewal, by the certificate of the connection itself. Field numbers are
//! those of Istio's `security/v1alpha1/ca.proto`.

/// The method's path.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The service's name.
pub const SERVICE: &str = "istio.v1.auth.IstioCertificateService";

/// A request for a certificate.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CertificateRequest {
    /// PKCS #10, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long it shall be valid, seconds; the authority may make it shorter. 0: as long as the authority likes.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
}

/// The certificate.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CertificateResponse {
    /// PEM, one certificate each: the leaf, its intermediates, and last the root.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// gRPC metadata on a request for a certificate: the sender's clock when it sent, in Unix nanoseconds. Not required. The
/// authority back-dates the certificate by how far that clock is behind its own, and says so in words.
pub const SENT_AT: &str = "weft-sent-at";

/// How a join token begins.
pub const TOKEN_PREFIX: &str = "weft1.";
/// Length of a token's id: hexadecimal digits.
const TOKEN_ID_LENGTH: usize = 8;
/// Length of a token's secret: hexadecimal digits of 128 bits.
const TOKEN_SECRET_LENGTH: usize = 32;

/// A join token: `weft1.<id>.<secret>.<pin>`. Who has it may ask once for a certificate; the pin lets it know the control
/// plane before it knows a root.
///
/// The pin is the SHA-256 of the `SubjectPublicKeyInfo` (DER) of a root. A server that presents a chain to such a root,
/// which it sends along, is the right one.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Names the token in lists and logs; no secret.
    pub id: Box<str>,
    /// What proves possession.
    pub secret: Box<str>,
    /// The root's key, hashed.
    pub pin: [u8; 32],
}

/// The text is not a join token. Says no part of it, because it may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: it looks like weft1.<8 hex digits>.<32 hex digits>.<64 hex digits>")]
pub struct InvalidJoinToken;

impl std::str::FromStr for JoinToken {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim().strip_prefix(TOKEN_PREFIX).ok_or(InvalidJoinToken)?.split('.');
        let (Some(id), Some(secret), Some(pin), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidJoinToken);
        };
        let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if id.len() != TOKEN_ID_LENGTH
            || secret.len() != TOKEN_SECRET_LENGTH
            || ![id, secret, pin].into_iter().all(is_hex)
        {
            return Err(InvalidJoinToken);
        }
        let mut bytes = [0; 32];
        if pin.len() != 2 * bytes.len() {
            return Err(InvalidJoinToken);
        }
        for (byte, digits) in bytes.iter_mut().zip(pin.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| InvalidJoinToken)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidJoinToken)?;
        }
        Ok(Self { id: id.into(), secret: secret.into(), pin: bytes })
    }
}

impl JoinToken {
    /// The whole token, secret included.
    #[must_use]
    pub fn reveal(&self) -> String {
        let pin: String = self.pin.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{TOKEN_PREFIX}{}.{}.{pin}", self.id, self.secret)
    }
}

/// Without the secret.
impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinToken({TOKEN_PREFIX}{}.…)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken { id: "0a1b2c3d".into(), secret: "0123456789abcdef".repeat(2).into(), pin: [0xab; 32] }
    }

    #[test]
    fn a_join_token_round_trips_and_keeps_its_secret() {
        let text = token().reveal();
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains(&*token().secret));
    }

    #[test]
    fn what_is_no_join_token_is_refused_without_repeating_it() {
        let good = token().reveal();
        let bad = [
            "",
            "weft1.",
            &good[1..],
            &good[..good.len() - 1],
            &format!("{good}.x"),
            &good.replace("0a1b", "0A1B"),
            &good.replace("abab", "é"),
        ];
        for text in bad {
            assert_eq!(text.parse::<JoinToken>(), Err(InvalidJoinToken), "{text:?}");
        }
        assert!(!InvalidJoinToken.to_string().contains("0123456789abcdef"));
    }

    proptest::proptest! {
        #[test]
        fn strangers_never_panic_it(text in "(weft1\\.)?.{0,120}") {
            std::hint::black_box(text.parse::<JoinToken>().is_ok());
        }
    }
}
