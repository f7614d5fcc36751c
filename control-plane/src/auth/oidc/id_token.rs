//! Whether an ID token is one: signed by the issuer, for us, now, for this login.
//!
//! Pure: keys and time are arguments. Signatures are checked by `jsonwebtoken` with aws-lc; what the claims must say (OpenID
//! Connect Core 1.0, 3.1.3.7) is checked here, because time is an argument here. Surprise: algorithms with a shared secret, and none at all,
//! are never taken, whatever keys the issuer publishes.

use jiff::Timestamp;
use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

/// How far two clocks may be apart, in seconds.
const SKEW: i64 = 60;
/// Longest token.
const TOKEN_MAX: usize = 64 * 1024;
/// What issuers sign with.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// What the token must say.
pub(super) struct Expected<'a> {
    pub(super) issuer: &'a str,
    pub(super) client_id: &'a str,
    pub(super) nonce: &'a str,
}

/// Why it is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Not a token at all.
    #[error("it cannot be read")]
    Form,
    /// An algorithm that is not taken.
    #[error("it is not signed by an algorithm that is taken (RS, PS, ES or EdDSA)")]
    Algorithm,
    /// No such key.
    #[error("the issuer has no key that it names")]
    Key,
    /// Not signed by that key.
    #[error("its signature is not the issuer's")]
    Signature,
    /// Another issuer.
    #[error("it is issued by {0:?}")]
    Issuer(String),
    /// For somebody else.
    #[error("it is for another audience")]
    Audience,
    /// Too late, or without an end.
    #[error("it has expired")]
    Expired,
    /// From the future.
    #[error("it is not valid yet; compare the clocks")]
    Early,
    /// Of another login.
    #[error("it belongs to another login (nonce)")]
    Nonce,
    /// Of nobody.
    #[error("it names nobody (sub)")]
    Subject,
}

impl Unfit {
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Form => "token_form",
            Self::Algorithm => "token_algorithm",
            Self::Key => "token_key",
            Self::Signature => "token_signature",
            Self::Issuer(_) => "token_issuer",
            Self::Audience => "token_audience",
            Self::Expired => "token_expired",
            Self::Early => "token_early",
            Self::Nonce => "token_nonce",
            Self::Subject => "token_subject",
        }
    }
}

/// The claims of `token`, if it is what is expected.
pub(super) fn verify(
    token: &str,
    keys: &JwkSet,
    expected: &Expected<'_>,
    now: Timestamp,
) -> Result<Map<String, Value>, Unfit> {
    let claims = signed(token, keys)?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    if text("iss") != Some(expected.issuer) {
        return Err(Unfit::Issuer(text("iss").unwrap_or_default().chars().take(200).collect()));
    }
    let (is_for_us, others) = match claims.get("aud") {
        Some(Value::String(one)) => (one == expected.client_id, false),
        Some(Value::Array(all)) => (all.iter().any(|one| one == expected.client_id), all.len() > 1),
        _ => (false, false),
    };
    // Of several audiences, the one that it was made for must be us.
    let party = text("azp");
    if !is_for_us || (others && party.is_none()) || party.is_some_and(|party| party != expected.client_id) {
        return Err(Unfit::Audience);
    }
    // Some write seconds with a fraction.
    let seconds = |name: &str| claims.get(name).and_then(|at| at.as_i64().or_else(|| whole(at.as_f64()?)));
    let now = now.as_second();
    if seconds("exp").is_none_or(|end| now >= end.saturating_add(SKEW)) {
        return Err(Unfit::Expired);
    }
    let early = |name: &str| seconds(name).is_some_and(|begin| begin.saturating_sub(SKEW) > now);
    if early("nbf") || early("iat") {
        return Err(Unfit::Early);
    }
    let nonce = text("nonce").unwrap_or_default().as_bytes();
    if aws_lc_rs::constant_time::verify_slices_are_equal(nonce, expected.nonce.as_bytes()).is_err() {
        return Err(Unfit::Nonce);
    }
    if text("sub").is_none_or(str::is_empty) {
        return Err(Unfit::Subject);
    }
    Ok(claims)
}

#[expect(clippy::cast_possible_truncation, reason = "checked, and saturating")]
fn whole(seconds: f64) -> Option<i64> {
    seconds.is_finite().then_some(seconds.floor() as i64)
}

/// The claims, whatever they say, if one of `keys` has signed them.
fn signed(token: &str, keys: &JwkSet) -> Result<Map<String, Value>, Unfit> {
    if token.len() > TOKEN_MAX {
        return Err(Unfit::Form);
    }
    let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
        // What the library has no name for: `none`, or of tomorrow.
        jsonwebtoken::errors::ErrorKind::Json(_) => Unfit::Algorithm,
        _ => Unfit::Form,
    })?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(Unfit::Algorithm);
    }
    let fits = |key: &&Jwk| {
        let for_signatures =
            !matches!(&key.common.public_key_use, Some(usage) if *usage != PublicKeyUse::Signature);
        let named = header.kid.is_none() || key.common.key_id == header.kid;
        // Both are called as in the standard (RFC 7518), and only one of the two types says so.
        let same = |one: KeyAlgorithm| format!("{one:?}") == format!("{:?}", header.alg);
        let algorithm = key.common.key_algorithm.is_none_or(same);
        for_signatures && named && algorithm
    };
    let mut validation = Validation::new(header.alg);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_aud) = (false, false);
    let mut refusal = Unfit::Key;
    for key in keys.keys.iter().filter(fits) {
        let Ok(key) = DecodingKey::from_jwk(key) else { continue };
        if key.family() != header.alg.family() {
            continue;
        }
        match jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation) {
            Ok(data) => return Ok(data.claims),
            Err(_) => refusal = Unfit::Signature,
        }
    }
    Err(refusal)
}
