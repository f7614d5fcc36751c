//! A connection that is plain or TLS, without anybody else having to care.
//!
//! In: a socket, or a socket with a [`Session`] whose handshake is over. Out: what tokio's `TcpStream` offers, of which only
//! what the data path uses. Invariants: a plain connection costs one comparison; a TLS connection on which nothing moves
//! holds no buffer; the end of the socket without the end of the session is an error, because whoever cuts a connection
//! must not make half a message look whole. Surprises: readiness is more than the socket's, because decrypted bytes may be
//! waiting; what was written may not be sent before [`poll_flush`](AsyncWrite::poll_flush).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::failure::Failure;
use super::session::{INCOMING_MAX, RECORD_MAX, Session};

/// Bytes that one read takes from the socket, and that one write gives to it.
const SCRATCH_SIZE: usize = 128 * 1024;

/// Bytes that one read asks for at most, behind what was kept.
const READ_MAX: usize = SCRATCH_SIZE - INCOMING_MAX;

/// Bytes that one read asks for at least: a small reader must not make small reads.
const READ_MIN: usize = 4 * 1024;

/// Plaintext that one write takes.
const WRITE_MAX: usize = 3 * RECORD_MAX;

/// Ciphertext that may wait for the socket before more is written: none of what came before, unless it is small.
const UNSENT_MAX: usize = 8 * 1024;

thread_local! {
    /// One buffer for each worker: it is filled and emptied between two awaits.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_SIZE].into());
}

/// Lends a worker's buffer until `with` returns.
pub(super) fn with_scratch<T>(with: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| with(&mut scratch[..READ_MAX]))
}

/// See the module.
#[derive(Debug)]
pub enum Stream {
    /// The socket itself.
    Plain(TcpStream),
    /// TLS over the socket.
    Tls(Box<Encrypted>),
}

/// A socket with its TLS session.
pub struct Encrypted {
    socket: TcpStream,
    session: RefCell<Session>,
}

impl std::fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encrypted").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self::Plain(socket)
    }
}

impl Stream {
    pub(super) fn encrypted(socket: TcpStream, session: Session) -> Self {
        Self::Tls(Box::new(Encrypted { socket, session: RefCell::new(session) }))
    }

    /// The socket below: for its addresses and options, not for its bytes.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.socket,
        }
    }

    /// Whether the bytes on the wire are encrypted by us.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Reads without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else that the connection is broken.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read(buffer),
            Self::Tls(tls) => {
                let mut at = 0;
                let room = buffer.len();
                let mut out = |bytes: &[u8]| {
                    let count = bytes.len().min(room - at);
                    buffer[at..at + count].copy_from_slice(&bytes[..count]);
                    at += count;
                    count
                };
                tls.try_fill(room, &mut out)
            }
        }
    }

    /// As [`try_read`](Self::try_read), into the spare capacity of `buffer`.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn try_read_buf(&self, buffer: &mut bytes::BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read_buf(buffer),
            Self::Tls(tls) => {
                let room = buffer.capacity() - buffer.len();
                let mut left = room;
                let mut out = |bytes: &[u8]| {
                    let count = bytes.len().min(left);
                    buffer.extend_from_slice(&bytes[..count]);
                    left -= count;
                    count
                };
                tls.try_fill(room, &mut out)
            }
        }
    }

    /// Writes without waiting. What was written may still have to be [flushed](Self::flushed).
    ///
    /// # Errors
    /// `WouldBlock` when nothing can be written; else that the connection is broken.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(bytes),
            Self::Tls(tls) => {
                let send = |bytes: &[u8]| or_pending(tls.socket.try_write(bytes));
                or_would_block(tls.session.borrow_mut().write(bytes, send))
            }
        }
    }

    /// Whether bytes that were written wait to be sent.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => !tls.session.borrow().outgoing.is_empty(),
        }
    }

    /// Completes when something can be read: bytes, or the end. Cancel safe.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_read_ready(context)).await
    }

    /// As [`readable`](Self::readable).
    pub fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tls(tls) if tls.session.borrow().is_readable() => Poll::Ready(Ok(())),
            _ => self.socket().poll_read_ready(context),
        }
    }

    /// Completes when it is worth trying to write. Cancel safe.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket().writable().await
    }

    /// Completes when the other side has said something, its end included, without taking it. Cancel safe.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn spoken(&self) -> io::Result<()> {
        match self {
            // Peeks, because a socket that was just connected reports itself readable without having anything to read.
            Self::Plain(socket) => socket.peek(&mut [0]).await.map(drop),
            Self::Tls(tls) => loop {
                if tls.session.borrow().has_spoken() {
                    return Ok(());
                }
                // Whatever comes has no room to go to and waits.
                match tls.try_fill(0, &mut |_| 0) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable().await?,
                    Err(error) => return Err(error),
                    Ok(_) => {}
                }
            },
        }
    }

    /// Sends what was written. Cancel safe.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn flushed(&self) -> io::Result<()> {
        let Self::Tls(tls) = self else { return Ok(()) };
        loop {
            match tls.session.borrow_mut().flush(|bytes| or_pending(tls.socket.try_write(bytes))) {
                Poll::Ready(result) => return result,
                Poll::Pending => {}
            }
            tls.socket.writable().await?;
        }
    }

    /// Says that nothing more is written, and sends all that was. Cancel safe.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn finish(&self) -> io::Result<()> {
        if let Self::Tls(tls) = self {
            tls.session.borrow_mut().close().map_err(Failure)?;
            self.flushed().await?;
        }
        SockRef::from(self.socket()).shutdown(Shutdown::Write)
    }
}

fn or_pending<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        Poll::Ready(result) => result,
    }
}

impl Encrypted {
    fn try_fill(&self, room: usize, out: &mut impl FnMut(&[u8]) -> usize) -> io::Result<usize> {
        let fill = |buffer: &mut [u8]| or_pending(self.socket.try_read(buffer));
        or_would_block(self.session.borrow_mut().fill(room, fill, out))
    }
}

impl Session {
    /// Reads until `out`, which takes `room` bytes, has some, or there are none.
    fn fill(
        &mut self,
        room: usize,
        mut fill: impl FnMut(&mut [u8]) -> Poll<io::Result<usize>>,
        out: &mut impl FnMut(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        if self.has_plain() {
            return Poll::Ready(Ok(self.take_plain(out)));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            loop {
                if self.is_over() {
                    return Poll::Ready(Ok(0));
                }
                // What is left of the last read may be whole records; the socket is asked when it is not.
                let asks = !self.is_readable();
                let mut filled = self.resume(scratch);
                if asks {
                    let end = filled + room.clamp(READ_MIN, READ_MAX);
                    match fill(&mut scratch[filled..end]) {
                        Poll::Ready(Ok(count)) if count > 0 => filled += count,
                        pending_or_over => {
                            self.keep(&scratch[..filled]);
                            ready!(pending_or_over)?;
                            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                        }
                    }
                }
                let (used, taken) = self.decrypt(&mut scratch[..filled], out).map_err(Failure)?;
                let rest = &scratch[used..filled];
                if rest.len() > INCOMING_MAX {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                self.keep(rest);
                if taken > 0 || self.has_plain() {
                    return Poll::Ready(Ok(taken));
                }
            }
        })
    }

    /// Encrypts from `bytes` and sends, as far as the socket takes it. Says how much of `bytes` is gone.
    fn write(
        &mut self,
        bytes: &[u8],
        mut send: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.outgoing.len() > UNSENT_MAX {
            ready!(self.flush(&mut send))?;
        }
        let taken = bytes.len().min(WRITE_MAX);
        if taken == 0 {
            return Poll::Ready(Ok(0));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let sealed = self.encrypt(&bytes[..taken], scratch).map_err(Failure)?;
            let mut sent = 0;
            while sent < sealed {
                match send(&scratch[sent..sealed]) {
                    Poll::Ready(count) => sent += count?,
                    Poll::Pending => break,
                }
            }
            self.outgoing.extend_from_slice(&scratch[sent..sealed]);
            Poll::Ready(Ok(taken))
        })
    }

    fn flush(&mut self, mut send: impl FnMut(&[u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        let result = loop {
            if sent == self.outgoing.len() {
                break Poll::Ready(Ok(()));
            }
            match send(&self.outgoing[sent..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.outgoing.drain(..sent);
        if self.outgoing.is_empty() {
            self.outgoing = Vec::new();
        }
        result
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Self::Tls(tls) => {
                let Encrypted { socket, session } = &mut **tls;
                let fill = |bytes: &mut [u8]| {
                    let mut bytes = ReadBuf::new(bytes);
                    Pin::new(&mut *socket).poll_read(context, &mut bytes).map_ok(|()| bytes.filled().len())
                };
                let room = buffer.remaining();
                let mut out = |bytes: &[u8]| {
                    let count = bytes.len().min(buffer.remaining());
                    buffer.put_slice(&bytes[..count]);
                    count
                };
                session.get_mut().fill(room, fill, &mut out).map_ok(drop)
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Tls(tls) => {
                let Encrypted { socket, session } = &mut **tls;
                session.get_mut().write(bytes, |bytes| Pin::new(&mut *socket).poll_write(context, bytes))
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(context, slices),
            Self::Tls(tls) => {
                let Encrypted { socket, session } = &mut **tls;
                let send = |bytes: &[u8]| Pin::new(&mut *socket).poll_write(context, bytes);
                gather(slices, |bytes| session.get_mut().write(bytes, send))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        // Slices that fit go into one record.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(context),
            Self::Tls(tls) => {
                let Encrypted { socket, session } = &mut **tls;
                session.get_mut().flush(|bytes| Pin::new(&mut *socket).poll_write(context, bytes))
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Tls(tls) = &mut *self {
            tls.session.get_mut().close().map_err(Failure)?;
            ready!(self.as_mut().poll_flush(context))?;
        }
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Tls(tls) => Pin::new(&mut tls.socket).poll_shutdown(context),
        }
    }
}

thread_local! {
    /// Slices that share a record.
    static GATHERED: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(RECORD_MAX));
}

/// Hands over as many slices as fit into one record, as one.
fn gather<T>(slices: &[IoSlice<'_>], write: impl FnOnce(&[u8]) -> T) -> T {
    let mut filled = slices.iter().filter(|slice| !slice.is_empty());
    match (filled.next(), filled.next()) {
        (None, _) => write(&[]),
        (Some(only), None) => write(only),
        (Some(large), Some(_)) if large.len() >= RECORD_MAX => write(large),
        _ => GATHERED.with_borrow_mut(|record| {
            record.clear();
            for slice in slices {
                let room = RECORD_MAX - record.len();
                record.extend_from_slice(&slice[..slice.len().min(room)]);
            }
            write(record)
        }),
    }
}

#[cfg(test)]
mod tests;
