//! The callee's side of a handshake.
//!
//! In: a connection that has begun with a ClientHello. Out: one whose other side is verified, or a reason. Invariant: the
//! caller has shown a certificate of this mesh, or nothing of what it sent is given to anybody.

use std::time::Duration;

use rustls::server::UnbufferedServerConnection;
use tokio::net::TcpStream;
use weft_wire::Reason;

use super::handshake::complete;
use super::session::Session;
use super::{Credentials, failure};

pub use super::handshake::Secured;

/// Completes the handshake that `hello` has begun.
///
/// # Errors
/// Why there is no connection. The other side has been told as far as TLS has words for it.
pub async fn accept(
    credentials: &Credentials,
    socket: TcpStream,
    hello: &[u8],
    timeout: Duration,
) -> Result<Secured, Reason> {
    let connection = UnbufferedServerConnection::new(credentials.server.clone())
        .map_err(|error| failure::reason_of(&error))?;
    complete(socket, Session::server(connection), hello, timeout).await
}
