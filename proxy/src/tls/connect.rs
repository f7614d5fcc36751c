//! The caller's side of a handshake.
//!
//! In: a connected socket, and whom it must lead to. Out: a connection to exactly that identity, or a reason. Invariant: an
//! endpoint is who the control plane says it is, or nothing is sent to it.

use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use weft_wire::{Reason, SpiffeId, tls};

use super::handshake::{Secured, complete};
use super::session::Session;
use super::{Alpn, Credentials, failure};

/// Makes sure that `socket` leads to `id`. Without an `alpn` the other side looks at what comes.
///
/// # Errors
/// Why it does not.
pub async fn connect(
    credentials: &Credentials,
    socket: TcpStream,
    id: &SpiffeId,
    alpn: Option<Alpn>,
    timeout: Duration,
) -> Result<Secured, Reason> {
    let name = ServerName::try_from(tls::server_name(id)).map_err(|error| {
        tracing::debug!(%id, %error, "an identity that is no server's name");
        Reason::TlsHandshakeFailed
    })?;
    let alpn = alpn.map(|alpn| alpn.name().to_vec()).into_iter().collect();
    let connection = UnbufferedClientConnection::new_with_alpn(credentials.client.clone(), name, alpn)
        .map_err(|error| failure::reason_of(&error))?;
    let secured = complete(socket, Session::client(connection), &[], timeout).await?;
    // A resumed session has not looked at the certificate again.
    if *secured.peer == *id { Ok(secured) } else { Err(Reason::TlsIdentityMismatch) }
}
