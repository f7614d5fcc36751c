//! The beginning of a TLS connection, on either side.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use tokio::net::TcpStream;
use weft_wire::{Reason, SpiffeId};

use super::failure::{Failure, reason};
use super::session::{INCOMING_MAX, Session};
use super::stream::with_scratch;
use super::{Alpn, Stream, verify};

/// A connection whose other side is known.
#[derive(Debug)]
pub struct Secured {
    /// What is inside.
    pub stream: Stream,
    /// Who is at the other end.
    pub peer: Arc<SpiffeId>,
    /// What was agreed on.
    pub alpn: Option<Alpn>,
    /// Whether it is the continuation of another session.
    pub resumed: bool,
}

/// Completes a handshake within `timeout`; `early` was read before.
pub(super) async fn complete(
    socket: TcpStream,
    mut session: Session,
    early: &[u8],
    timeout: Duration,
) -> Result<Secured, Reason> {
    let shaken = tokio::time::timeout(timeout, shake(&socket, &mut session, early)).await;
    let peer = match shaken {
        Ok(Ok(())) => peer(&session)?,
        Ok(Err(error)) => {
            tracing::debug!(%error, cause = ?error.get_ref(), "TLS handshake");
            return Err(reason(&error).unwrap_or(Reason::TlsHandshakeFailed));
        }
        Err(_elapsed) => return Err(Reason::TlsHandshakeFailed),
    };
    let alpn = session.alpn().and_then(Alpn::from_name);
    let resumed = session.is_resumed();
    Ok(Secured { stream: Stream::encrypted(socket, session), peer: Arc::new(peer), alpn, resumed })
}

/// Whom the certificate names that the handshake has verified.
fn peer(session: &Session) -> Result<SpiffeId, Reason> {
    let leaf = session.leaf().ok_or(Reason::TlsCertificateMissing)?;
    if session.is_resumed() && !verify::is_current(leaf, UnixTime::now()) {
        return Err(Reason::TlsCertificateExpired);
    }
    verify::identity(leaf).map_err(|refused| refused.0)
}

async fn shake(socket: &TcpStream, session: &mut Session, early: &[u8]) -> io::Result<()> {
    let mut result = session.shake(early);
    loop {
        // A server's tickets go out with its first bytes.
        if !matches!(result, Ok(true)) || session.is_client() {
            send(socket, session).await?;
        }
        if result.map_err(Failure)? {
            return Ok(());
        }
        if session.kept() > INCOMING_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        result = loop {
            socket.readable().await?;
            let read = with_scratch(|scratch| match socket.try_read(scratch) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => Ok(session.shake(&scratch[..count])),
                Err(error) => Err(error),
            });
            match read {
                Ok(result) => break result,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        };
    }
}

async fn send(socket: &TcpStream, session: &mut Session) -> io::Result<()> {
    while !session.outgoing.is_empty() {
        match socket.try_write(&session.outgoing) {
            Ok(count) => drop(session.outgoing.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
