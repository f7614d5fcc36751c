//! What does this connection speak?
//!
//! In: a fresh connection and what its port was declared to speak, if anything. Out: a [`Detected`]: the
//! verdict, the client's bytes read so far (replayed by [`Prefixed`]) and, where the race opened one, the upstream connection. Invariants:
//! no byte is lost or reordered; a verdict never changes when more bytes come ([`sniff`] is monotone); a
//! server that speaks first is never made to wait for its client. Surprise: a connection on which *both* sides
//! are silent has no deadline here, because nothing is being held back from anybody; the deadline starts with
//! the client's first ambiguous byte. Non-goal: parsing; a verdict says who shall parse.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use weft_wire::xds::Protocol;
use weft_wire::{Host, Reason};

use crate::drain::Watch;
use crate::record::{self, Limit};
use crate::tls::hello::{self, Hello};
use crate::tls::{HANDSHAKE_TIME_MAX, Stream};
use crate::worker::Worker;

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

/// How long a connection may say nothing while the sidecar drains.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// The result of detection. `C` is the race's connection to the server, with whatever its owner keeps beside it.
#[derive(Debug)]
pub struct Detected<C> {
    /// What to do with the connection; never [`Sniff::NeedMore`].
    pub sniff: Sniff,
    /// Which event decided.
    pub how: How,
    /// The client's bytes so far.
    pub prefix: Bytes,
    /// The race's connection to the server, when there was a race and it got so far.
    pub opened: Option<C>,
    /// Why the race got no connection.
    pub failed: Option<Reason>,
}

/// Which event ended detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The client's bytes.
    Client,
    /// The client's end of stream.
    Closed,
    /// The port's declaration.
    Declared,
    /// There is no connection to the server, and the client had nothing to say.
    Failed,
    /// The server spoke first.
    Server,
    /// Bytes were held back for too long.
    Timeout,
}

/// Says what a connection speaks: believes what its port was declared to speak, else reads and races. Records
/// how it ended and how long it took. `open` connects to the server; it is called at most once.
///
/// # Errors
/// When reading from the client fails, and when a drain finds that nobody has said anything.
pub async fn identify<O, F, C>(
    worker: &Worker,
    client: &Stream,
    declared: Option<Protocol>,
    open: O,
) -> io::Result<Detected<C>>
where
    O: FnOnce() -> F,
    F: Future<Output = Result<C, Reason>>,
    C: AsRef<Stream>,
{
    let begin = Instant::now();
    let timeout = worker.config.detect_timeout;
    let detected = match declared {
        None => race(client, timeout, &worker.drain, open).await?,
        Some(Protocol::Http | Protocol::Http2) => client_only(client, timeout, &worker.drain).await?,
        Some(Protocol::Tls) => Detected::declared(Sniff::Tls),
        Some(Protocol::Tcp) => Detected::declared(Sniff::Opaque),
    };
    note(worker, &detected, begin);
    Ok(detected.believing(declared))
}

/// As [`identify`], for a port that the mesh may call by TLS: that is looked for whatever the port was declared to speak, and
/// what was declared is not believed yet. On a `strict` port nothing is opened before the client has said who it is, and it
/// has no longer to begin than for a handshake.
///
/// # Errors
/// As [`identify`].
pub async fn look<O, F, C>(
    worker: &Worker,
    client: &Stream,
    declared: Option<Protocol>,
    strict: bool,
    open: O,
) -> io::Result<Detected<C>>
where
    O: FnOnce() -> F,
    F: Future<Output = Result<C, Reason>>,
    C: AsRef<Stream>,
{
    let begin = Instant::now();
    let timeout = worker.config.detect_timeout;
    let detected = match declared {
        None | Some(Protocol::Tcp | Protocol::Tls) if !strict => {
            race(client, timeout, &worker.drain, open).await?
        }
        _ if strict => {
            // Nobody speaks before the client has said who it is, so its silence is nobody's turn. Boxed: few ports are strict.
            let look = client_only(client, timeout, &worker.drain);
            match Box::pin(tokio::time::timeout(HANDSHAKE_TIME_MAX, look)).await {
                Ok(detected) => detected?,
                Err(_elapsed) => {
                    worker.shard.limit(Limit::DetectTimeout);
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
        _ => client_only(client, timeout, &worker.drain).await?,
    };
    if declared.is_none_or(|declared| matches!(declared, Protocol::Http | Protocol::Http2)) {
        note(worker, &detected, begin);
    }
    Ok(detected)
}

/// Records how detection ended.
fn note<C>(worker: &Worker, detected: &Detected<C>, begin: Instant) {
    let word = match (detected.how, detected.sniff) {
        // Neither is a detection.
        (How::Declared | How::Failed, _) => return,
        (How::Server, _) => record::Detected::ServerFirst,
        (How::Closed, _) => record::Detected::Closed,
        (How::Timeout, _) => {
            worker.shard.limit(Limit::DetectTimeout);
            record::Detected::Timeout
        }
        (How::Client, Sniff::Http1) => record::Detected::Http1,
        (How::Client, Sniff::Http2) => record::Detected::Http2,
        (How::Client, Sniff::Tls) => record::Detected::Tls,
        (How::Client, Sniff::Opaque | Sniff::NeedMore) => record::Detected::Opaque,
    };
    worker.shard.detected(word, begin.elapsed());
}

/// Reads on until a ClientHello is complete and returns its name. Gives up, without losing a byte, at the
/// deadline, at [`HELLO_MAX`] and at whatever does not parse.
pub async fn server_name(client: &Stream, prefix: &mut Bytes, timeout: Duration) -> Option<Host> {
    let deadline = Instant::now() + timeout;
    let mut held = BytesMut::new();
    loop {
        match hello::peek(if held.is_empty() { prefix } else { &held }) {
            Hello::Named(host) => {
                keep(prefix, held);
                return Some(host);
            }
            Hello::NeedMore if held.len().max(prefix.len()) < HELLO_MAX => {}
            Hello::NeedMore | Hello::Unnamed => break,
        }
        if held.is_empty() {
            held.extend_from_slice(prefix);
        }
        match tokio::time::timeout_at(deadline, read_more(client, &mut held)).await {
            Ok(Ok(1..)) => {}
            // Whatever ended it, forwarding will meet it again.
            Ok(Ok(0) | Err(_)) | Err(_) => break,
        }
    }
    keep(prefix, held);
    None
}

fn keep(prefix: &mut Bytes, held: BytesMut) {
    if !held.is_empty() {
        *prefix = held.freeze();
    }
}

/// A ClientHello at most: one full record. Post-quantum key shares make hellos of about 2 kB.
const HELLO_MAX: usize = 16 * 1024;

impl<C> Detected<C> {
    fn declared(sniff: Sniff) -> Self {
        Self { sniff, how: How::Declared, prefix: Bytes::new(), opened: None, failed: None }
    }

    /// What the port was declared to speak counts for more than what its bytes look like.
    #[must_use]
    pub fn believing(mut self, declared: Option<Protocol>) -> Self {
        self.sniff = match (declared, self.sniff) {
            // Which version of HTTP is the client's choice; anything that is neither is the declared version's server to
            // refuse.
            (None, sniff)
            | (Some(Protocol::Http | Protocol::Http2), sniff @ (Sniff::Http1 | Sniff::Http2)) => sniff,
            (Some(Protocol::Http), _) => Sniff::Http1,
            (Some(Protocol::Http2), _) => Sniff::Http2,
            (Some(Protocol::Tls), _) => Sniff::Tls,
            (Some(Protocol::Tcp), _) => Sniff::Opaque,
        };
        self
    }
}

/// Bytes of the client that wait for a verdict.
struct Held {
    bytes: BytesMut,
    verdict: Sniff,
    how: How,
}

impl Held {
    fn new() -> Self {
        Self { bytes: BytesMut::new(), verdict: Sniff::NeedMore, how: How::Client }
    }

    /// Reads once and judges. Cancel safe.
    async fn read(&mut self, client: &Stream) -> io::Result<()> {
        let length = read_more(client, &mut self.bytes).await?;
        self.verdict = match sniff(&self.bytes) {
            // The client has said all it will say.
            Sniff::NeedMore if length == 0 => {
                self.how = How::Closed;
                Sniff::Opaque
            }
            Sniff::NeedMore if self.bytes.len() >= PEEK_MAX => sniff::at_limit(&self.bytes),
            verdict => verdict,
        };
        Ok(())
    }

    fn decide(&mut self, how: How, verdict: Sniff) {
        self.how = how;
        self.verdict = verdict;
    }

    fn open(&self) -> bool {
        self.verdict == Sniff::NeedMore
    }

    fn into_detected<C>(self, opened: Option<C>, failed: Option<Reason>) -> Detected<C> {
        Detected { sniff: self.verdict, how: self.how, prefix: self.bytes.freeze(), opened, failed }
    }
}

/// For ports whose protocol lets nobody but the client speak first.
///
/// # Errors
/// When reading from the client fails, and when a drain finds that it has said nothing.
pub async fn client_only<C>(client: &Stream, timeout: Duration, drain: &Watch) -> io::Result<Detected<C>> {
    let mut held = Held::new();
    // Nothing is held back from anybody yet, so there is no deadline either.
    tokio::select! {
        biased;
        read = held.read(client) => read?,
        silent = silent_in_drain(drain) => return Err(silent),
    }
    let deadline = Instant::now() + timeout;
    while held.open() {
        match tokio::time::timeout_at(deadline, held.read(client)).await {
            Ok(read) => read?,
            Err(_elapsed) => held.decide(How::Timeout, Sniff::Opaque),
        }
    }
    Ok(held.into_detected(None, None))
}

/// For a port about which nothing is known: whoever speaks first decides.
async fn race<O, F, C>(client: &Stream, timeout: Duration, drain: &Watch, open: O) -> io::Result<Detected<C>>
where
    O: FnOnce() -> F,
    F: Future<Output = Result<C, Reason>>,
    C: AsRef<Stream>,
{
    let mut held = Held::new();
    // Most clients speak at once; then no connection is opened in vain.
    if let Ok(read) = tokio::time::timeout(HEAD_START, held.read(client)).await {
        read?;
    }
    if !held.open() {
        return Ok(held.into_detected(None, None));
    }

    let opening = open();
    tokio::pin!(opening);
    let (mut opened, mut failed) = (None, None);
    // Only set once bytes are held back, or once waiting has become pointless.
    let mut deadline = (!held.bytes.is_empty()).then(|| Instant::now() + timeout);
    while held.open() {
        tokio::select! {
            // The client's word counts for more when both have spoken: its bytes are what HTTP needs.
            biased;
            read = held.read(client) => {
                read?;
                deadline = deadline.or_else(|| Some(Instant::now() + timeout));
            }
            result = &mut opening, if opened.is_none() && failed.is_none() => match result {
                Ok(connection) => opened = Some(connection),
                Err(reason) => {
                    failed = Some(reason);
                    let soon = Instant::now() + AFTER_FAILURE;
                    deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
                }
            },
            spoken = spoken(opened.as_ref()) => {
                held.decide(How::Server, Sniff::Opaque);
                if spoken.is_err() {
                    (opened, failed) = (None, Some(Reason::UpstreamReset));
                }
            }
            () = expired(deadline) => {
                let how = if failed.is_some() { How::Failed } else { How::Timeout };
                held.decide(how, Sniff::Opaque);
            }
            silent = silent_in_drain(drain), if held.bytes.is_empty() => return Err(silent),
        }
    }
    // A verdict while the connection was still being opened drops the attempt: HTTP pools may have a better one.
    Ok(held.into_detected(opened, failed))
}

/// Completes when the server has said something, its end of stream included, or has broken the connection. The
/// error is reported only once by the kernel, so it must not get lost here.
async fn spoken<C: AsRef<Stream>>(server: Option<&C>) -> io::Result<()> {
    let Some(server) = server else { return std::future::pending().await };
    server.as_ref().spoken().await
}

/// Completes when draining has gone on for a moment. A connection that has said nothing until then is one that was
/// opened ahead of time; the drain need not wait for it.
async fn silent_in_drain(drain: &Watch) -> io::Error {
    drain.signaled().await;
    tokio::time::sleep(SILENT_MAX).await;
    io::Error::new(io::ErrorKind::ConnectionAborted, "silent while draining")
}

async fn expired(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Reads once; `Ok(0)` is the client's end of stream. Cancel safe: reads nothing unless it completes.
async fn read_more(client: &Stream, held: &mut BytesMut) -> io::Result<usize> {
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

#[cfg(test)]
mod tests;
