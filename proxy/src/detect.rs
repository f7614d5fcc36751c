//! What does this connection speak?
//!
//! In: a fresh connection nobody declared a protocol for. Out: a [`Detected`]: the verdict, the client's bytes
//! read so far (replayed by [`Prefixed`]) and, where the race opened one, the upstream connection. Invariants:
//! no byte is lost or reordered; a verdict never changes when more bytes come ([`sniff`] is monotone); a
//! server that speaks first is never made to wait for its client. Surprise: a connection on which *both* sides
//! are silent has no deadline here, because nothing is being held back from anybody; the deadline starts with
//! the client's first ambiguous byte. Non-goal: parsing; a verdict says who shall parse.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::connect::ConnectError;

mod prefixed;
mod sniff;

pub use prefixed::Prefixed;
pub use sniff::{Sniff, sniff};

/// Bytes held back at most while the verdict is open. The longest open question is an HTTP/1 request line; 8 kB
/// is what RFC 9112 §3 recommends every recipient to support. Beyond it the bytes count as opaque (or as HTTP when the
/// line began with a registered method, see [`sniff`]).
pub const PEEK_MAX: usize = 8 * 1024;

/// How long the client may speak alone before the server's connection is opened as well. Clients that speak
/// first do so within a round trip, and then no connection is opened in vain; a server-first protocol starts
/// this much later, in each sidecar.
const HEAD_START: Duration = Duration::from_millis(5);

/// How long the client may still be silent after the race's connection failed: an HTTP client deserves a
/// response that says why, others a quick end.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// The result of [`detect`].
#[derive(Debug)]
pub struct Detected {
    /// What to do with the connection; never [`Sniff::NeedMore`].
    pub sniff: Sniff,
    /// Whether the deadline decided (then `sniff` is [`Sniff::Opaque`]).
    pub timed_out: bool,
    /// The client's bytes so far.
    pub prefix: Bytes,
    /// The race's connection to the server and its context, when there was a race and it got so far.
    pub opened: Option<TcpStream>,
    /// The race's connection failed with this.
    pub failed: Option<ConnectError>,
}

/// Reads until the verdict is final, meanwhile opening the server's connection with `open` (called once, after
/// a short head start for the client). `timeout` bounds how long ambiguous bytes are held back.
///
/// # Errors
/// When reading from the client fails.
pub async fn detect<O, F>(client: &TcpStream, timeout: Duration, open: O) -> io::Result<Detected>
where
    O: FnOnce() -> F,
    F: Future<Output = Result<TcpStream, ConnectError>>,
{
    let mut held = BytesMut::new();
    let mut result = Detected {
        sniff: Sniff::NeedMore,
        timed_out: false,
        prefix: Bytes::new(),
        opened: None,
        failed: None,
    };

    // Most clients speak at once; then no connection is opened and no timer of the race is set.
    if let Ok(read) = tokio::time::timeout(HEAD_START, read_more(client, &mut held)).await {
        result.sniff = judge(&held, read?);
    }
    if result.sniff == Sniff::NeedMore {
        race(client, timeout, &mut held, &mut result, open()).await?;
    }
    result.prefix = held.freeze();
    Ok(result)
}

/// Like [`detect`] without a race: for listeners that have no server to connect to yet.
///
/// # Errors
/// When reading from the client fails.
pub async fn detect_client(client: &TcpStream, timeout: Duration) -> io::Result<Detected> {
    let mut held = BytesMut::new();
    let mut result = Detected {
        sniff: Sniff::NeedMore,
        timed_out: false,
        prefix: Bytes::new(),
        opened: None,
        failed: None,
    };
    let deadline = Instant::now() + timeout;
    while result.sniff == Sniff::NeedMore {
        match tokio::time::timeout_at(deadline, read_more(client, &mut held)).await {
            Ok(read) => result.sniff = judge(&held, read?),
            Err(_elapsed) => {
                result.sniff = Sniff::Opaque;
                result.timed_out = true;
            }
        }
    }
    result.prefix = held.freeze();
    Ok(result)
}

async fn race(
    client: &TcpStream,
    timeout: Duration,
    held: &mut BytesMut,
    result: &mut Detected,
    opening: impl Future<Output = Result<TcpStream, ConnectError>>,
) -> io::Result<()> {
    tokio::pin!(opening);
    // Only set once bytes are held back, or once waiting has become pointless.
    let mut deadline = (!held.is_empty()).then(|| Instant::now() + timeout);
    while result.sniff == Sniff::NeedMore {
        tokio::select! {
            // The client's word counts for more when both have spoken: its bytes are what HTTP needs.
            biased;
            read = read_more(client, held) => {
                result.sniff = judge(held, read?);
                deadline = deadline.or_else(|| Some(Instant::now() + timeout));
            }
            opened = &mut opening, if result.opened.is_none() && result.failed.is_none() => match opened {
                Ok(stream) => result.opened = Some(stream),
                Err(error) => {
                    result.failed = Some(error);
                    let soon = Instant::now() + AFTER_FAILURE;
                    deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
                }
            },
            spoken = spoken(result.opened.as_ref()) => {
                spoken?;
                result.sniff = Sniff::Opaque;
            }
            () = expired(deadline) => {
                result.sniff = Sniff::Opaque;
                // A failed connection is its own story, told by its reason.
                result.timed_out = result.failed.is_none();
            }
        }
    }
    // A verdict while the connection was still being opened: the caller opens its own, at its own terms.
    Ok(())
}

async fn spoken(server: Option<&TcpStream>) -> io::Result<()> {
    match server {
        // Also ready on end of stream and reset: a server that hangs up has said enough.
        Some(server) => server.readable().await,
        None => std::future::pending().await,
    }
}

async fn expired(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Reads once; `Ok(0)` is the client's end of stream. Cancel safe: reads nothing unless it completes.
async fn read_more(client: &TcpStream, held: &mut BytesMut) -> io::Result<usize> {
    loop {
        client.readable().await?;
        // Reserved only when there is something to read, so that a silent connection holds no buffer.
        held.reserve(PEEK_MAX.saturating_sub(held.len()).clamp(1, READ_STEP));
        match client.try_read_buf(held) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

/// Reserved for a read: what first segments rarely exceed.
const READ_STEP: usize = 2 * 1024;

fn judge(held: &[u8], read: usize) -> Sniff {
    match sniff(held) {
        // The client has said all it will say.
        Sniff::NeedMore if read == 0 => Sniff::Opaque,
        Sniff::NeedMore if held.len() >= PEEK_MAX => sniff::at_limit(held),
        verdict => verdict,
    }
}

#[cfg(test)]
mod tests;
