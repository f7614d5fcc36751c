//! Opaque forwarding: bytes from one socket to another, and nothing else.
//!
//! In: two streams, each with bytes that were read too early. Out: their [`End`], with every byte counted on
//! the [`ConnectionRecord`] as it passes, so a connection that lives for hours is seen all the time.
//! Invariants: each direction ends on its own (half-close is passed on, the other direction goes on); a reset
//! on one side becomes a reset on the other; a silent connection holds no buffer, because all connections of a
//! worker share one and only bytes that the receiver would not take at once are copied to the heap. Surprise:
//! the shared buffer is borrowed only between two awaits; a single thread makes that safe. Non-goal: knowing
//! what the bytes mean.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use socket2::SockRef;
use tokio::net::TcpStream;
use weft_wire::Reason;

use crate::balance::Outcome;
use crate::detect::Prefixed;
use crate::record::{self, ConnectionRecord, EdgeSpec, Limit};
use crate::tls::{Alpn, Stream};
use crate::worker::Worker;

mod upstream;

pub use upstream::{Target, Upstream, open};

/// An opaque connection, ready to be served.
#[derive(Debug)]
pub struct Scope {
    /// What it is called in telemetry.
    pub edge: EdgeSpec,
    /// `tls` or `tcp`.
    pub protocol: record::Protocol,
    /// Where it goes.
    pub target: Target,
    /// The connection that detection's race has opened.
    pub opened: Option<Upstream>,
    /// Why detection's race got no connection: not tried again.
    pub failed: Option<Reason>,
}

/// Serves an opaque connection from here to its end.
pub async fn serve(worker: Rc<Worker>, client: Prefixed, scope: Scope) {
    let Scope { edge, protocol, target, opened, failed } = scope;
    let mut record = worker.shard.edge(&edge).connection(protocol);
    let opened = match (opened, failed) {
        (Some(opened), _) => Ok(opened),
        (None, Some(reason)) => Err(reason),
        (None, None) => open(Rc::clone(&worker), target, Some(Alpn::Opaque)).await,
    };
    match opened {
        Ok(Upstream { stream, peer, working, permit, address: _, identity: _ }) => {
            record.peer(peer);
            // Whether what follows goes well, nobody can tell from bytes.
            if let Some(working) = &working {
                working.endpoint().report(Outcome::Success, Duration::ZERO, Instant::now());
            }
            let end = forward(&worker, client, Prefixed::new(stream, Bytes::new()), record).await;
            tracing::debug!(?end, "opaque connection ended");
            drop((working, permit));
        }
        Err(reason) => {
            record.failed(reason);
            reset(client.stream().socket());
        }
    }
}

/// How a forwarded connection ended.
#[derive(Debug)]
pub enum End {
    /// Both sides said goodbye.
    Closed,
    /// The client's connection broke.
    ClientBroke(io::Error),
    /// The server's connection broke.
    ServerBroke(io::Error),
    /// Nothing happened for the idle limit.
    Idle,
    /// The drain's deadline passed.
    Expired,
}

impl End {
    /// The word for a bad end.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Closed | Self::Idle => None,
            Self::ClientBroke(_) => Some(Reason::ClientCancelled),
            Self::ServerBroke(_) => Some(Reason::UpstreamReset),
            Self::Expired => Some(Reason::ShuttingDown),
        }
    }
}

/// Forwards both ways until both are done, and records the end.
///
/// Dropping the future closes both connections.
pub async fn forward(
    worker: &Worker,
    client: Prefixed,
    server: Prefixed,
    mut record: ConnectionRecord,
) -> End {
    let (client, from_client) = client.into_parts();
    let (server, from_server) = server.into_parts();
    let moved = Cell::new(false);
    let end = {
        let record = &record;
        let up = |length| {
            moved.set(true);
            record.to_server(length);
        };
        let down = |length| {
            moved.set(true);
            record.to_client(length);
        };
        // The pumps are made inside of the join: a future that is moved into another is stored twice.
        let both = async {
            tokio::try_join!(
                pump(worker, &client, &server, from_client, &up, [End::ClientBroke, End::ServerBroke]),
                pump(worker, &server, &client, from_server, &down, [End::ServerBroke, End::ClientBroke]),
            )
        };
        tokio::select! {
            both = both => match both {
                Ok(((), ())) => End::Closed,
                Err(end) => end,
            },
            () = idle(&moved, worker.config.tcp_idle_timeout) => End::Idle,
            () = worker.drain.expired() => End::Expired,
        }
    };
    match &end {
        End::Closed => {}
        End::Idle => worker.shard.limit(Limit::IdleTimeout),
        // The peer of a broken connection must not mistake the end for a complete message.
        End::ClientBroke(_) => reset(server.socket()),
        End::ServerBroke(_) => reset(client.socket()),
        End::Expired => {
            worker.shard.limit(Limit::DrainDeadline);
            reset(client.socket());
            reset(server.socket());
        }
    }
    if let Some(reason) = end.reason() {
        record.failed(reason);
    }
    end
}

/// Makes the close of `stream` a reset (RST) instead of an orderly end (FIN).
pub fn reset(stream: &TcpStream) {
    // On a socket that is already dead there is nobody to tell.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

/// What one turn of a direction did.
enum Turn {
    /// Everything was passed on, or there was nothing.
    Passed,
    /// The receiver did not take these bytes yet, or not all that came before them.
    Left(Bytes),
    /// The sender is done.
    Ended,
}

/// Moves one direction to its end. `broke` says what it means when `from` breaks, and when `to` does.
async fn pump(
    worker: &Worker,
    from: &Stream,
    to: &Stream,
    prefix: Bytes,
    passed: &impl Fn(u64),
    broke: [fn(io::Error) -> End; 2],
) -> Result<(), End> {
    let [reading, writing] = broke;
    if !prefix.is_empty() {
        write_all(to, prefix, passed).await.map_err(writing)?;
    }
    loop {
        from.readable().await.map_err(reading)?;
        match turn(worker, from, to, passed, broke)? {
            Turn::Passed => {}
            // Nothing more is read until these are gone: the sender feels the receiver's pace.
            Turn::Left(bytes) => write_all(to, bytes, passed).await.map_err(writing)?,
            Turn::Ended => break,
        }
    }
    match to.finish().await {
        // Its peer was faster; what it broke, if anything, the other direction will find.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result.map_err(writing),
    }
}

/// Reads what is there and writes what is taken, without waiting.
fn turn(
    worker: &Worker,
    from: &Stream,
    to: &Stream,
    passed: &impl Fn(u64),
    [reading, writing]: [fn(io::Error) -> End; 2],
) -> Result<Turn, End> {
    let mut scratch = worker.scratch.borrow_mut();
    let length = match from.try_read(&mut scratch) {
        Ok(0) => return Ok(Turn::Ended),
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Passed),
        Err(error) => return Err(reading(error)),
    };
    let bytes = &scratch[..length];
    let mut written = 0;
    while written < length {
        match to.try_write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(writing(error)),
        }
    }
    passed(written as u64);
    Ok(if written == length && !to.is_unsent() {
        Turn::Passed
    } else {
        Turn::Left(Bytes::copy_from_slice(&bytes[written..]))
    })
}

async fn write_all(to: &Stream, mut bytes: Bytes, passed: &impl Fn(u64)) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(&bytes) {
            Ok(written) => {
                passed(written as u64);
                bytes.advance(written);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    to.flushed().await
}

/// Completes when nothing has moved for `limit` (up to twice that: one timer, looked at rarely).
async fn idle(moved: &Cell<bool>, limit: Duration) {
    loop {
        tokio::time::sleep(limit).await;
        if !moved.replace(false) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
