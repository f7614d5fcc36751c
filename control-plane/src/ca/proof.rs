//! Who asks for a certificate, and how they prove it.
//!
//! Three proofs: a join token, a Kubernetes service account token, or the certificate of the connection itself. In: what
//! came with the request. Out: an identity, or a [`Refusal`]. A bearer token goes before the connection's certificate: who
//! sends one means it.

use std::fmt;

use weft_wire::SpiffeId;
use weft_wire::ca::{JoinToken, TOKEN_PREFIX};

use super::refusal::Refusal;

/// Longest bearer token. A service account token is about 1 KiB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// What came with a request.
pub enum Shown {
    /// A join token.
    Join(JoinToken),
    /// What may be a service account token.
    Account(Box<str>),
    /// Nothing but the connection.
    Nothing,
}

/// Never a secret.
impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Join(_) => "join token",
            Self::Account(_) => "service account token",
            Self::Nothing => "certificate",
        })
    }
}

impl Shown {
    /// Reads the `authorization` field.
    ///
    /// # Errors
    /// When it holds something that is no proof.
    pub fn read(authorization: Option<&str>) -> Result<Self, Refusal> {
        let Some(authorization) = authorization else { return Ok(Self::Nothing) };
        let (scheme, token) = authorization.split_once(' ').ok_or(Refusal::ProofUnreadable)?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::ProofUnreadable);
        }
        if token.starts_with(TOKEN_PREFIX) {
            return token.parse().map(Self::Join).map_err(|_| Refusal::ProofUnreadable);
        }
        // Three parts: header, claims, signature. Who it is of is the cluster's to say.
        let is_jwt = token.split('.').count() == 3 && token.bytes().all(|byte| byte.is_ascii_graphic());
        if is_jwt { Ok(Self::Account(token.into())) } else { Err(Refusal::ProofUnreadable) }
    }
}

/// A service account, as the cluster names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

/// Whoever knows whose a service account token is.
#[tonic::async_trait]
pub trait Proof: Send + Sync {
    /// Whose `token` is.
    ///
    /// # Errors
    /// When it is nobody's, or it could not be found out.
    async fn account(&self, token: &str) -> Result<Account, Refusal>;
}

/// The identity asked for, if it is the one that was proved.
///
/// # Errors
/// When it is another one.
pub fn same(wanted: Option<&SpiffeId>, proved: &SpiffeId) -> Result<(), Refusal> {
    match wanted {
        Some(wanted) if wanted != proved => {
            Err(Refusal::OtherIdentity { wanted: wanted.to_string(), proved: proved.to_string() })
        }
        _ => Ok(()),
    }
}
