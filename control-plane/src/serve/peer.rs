//! Who is at the other end of a connection, for whatever answers on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use weft_wire::SpiffeId;

/// The other end, as a request's extension.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Whether the connection is TLS.
    pub secure: bool,
    /// Who it proved to be; `None` without TLS, and of a newcomer that has no certificate yet.
    pub verified: Option<Arc<Verified>>,
}

/// A certificate that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The identity.
    pub id: SpiffeId,
    /// From when it may be believed.
    pub since: SystemTime,
    /// Until when it may be believed.
    pub expires: SystemTime,
    /// Its serial number, hexadecimal.
    pub serial: Box<str>,
    /// Who issued it, as a name for people.
    pub issuer: Box<str>,
    /// The root it hangs from, by its key's hash.
    pub root: Option<[u8; 32]>,
}

/// Why nobody who is known is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nobody {
    /// TLS, and no certificate.
    Anonymous,
    /// A certificate that has expired while the connection was open.
    Expired,
}

impl Peer {
    /// Who is there. `None`: a plain connection, where nobody proves anything.
    ///
    /// # Errors
    /// When a TLS connection has no valid identity.
    pub fn identity(&self, now: SystemTime) -> Result<Option<&Arc<Verified>>, Nobody> {
        match &self.verified {
            Some(verified) if verified.expires > now => Ok(Some(verified)),
            Some(_) => Err(Nobody::Expired),
            None if self.secure => Err(Nobody::Anonymous),
            None => Ok(None),
        }
    }
}

impl From<Nobody> for tonic::Status {
    fn from(nobody: Nobody) -> Self {
        Self::unauthenticated(match nobody {
            Nobody::Anonymous => {
                "this needs a client certificate: ask for one first (istio.v1.auth.IstioCertificateService)"
            }
            Nobody::Expired => "the certificate of this connection has expired: connect with the renewed one",
        })
    }
}
