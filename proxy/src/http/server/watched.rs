//! The client's socket as hyper sees it: tells the pulse when everything is written, and puts a reason on what
//! hyper says by itself.
//!
//! hyper answers a head it cannot parse with a bare `400`, `414` or `431`, without asking anybody. Such bytes are the
//! only ones it writes while no request of ours is unfinished, so they are known by that, and replaced.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use weft_wire::{DecidedBy, Reason};

use super::Session;
use crate::detect::Prefixed;
use crate::http::park::Pulse;
use crate::http::socket;
use crate::reply::{self, Fault};

/// See the module.
pub(super) struct Watched {
    io: Prefixed,
    pulse: Rc<Pulse>,
    by: DecidedBy,
    /// What is left of our words, and how many bytes of hyper's they stand for.
    own: Option<(Bytes, usize)>,
}

impl Watched {
    pub(super) fn new(io: Prefixed, session: &Session) -> Self {
        Self { io, pulse: Rc::clone(&session.place.pulse), by: session.by, own: None }
    }

    pub(super) fn into_inner(self) -> Prefixed {
        self.io
    }

    /// Writes our words instead of hyper's.
    #[cold]
    fn poll_own(&mut self, context: &mut Context<'_>, theirs: &[u8]) -> Poll<io::Result<usize>> {
        if self.own.is_none() {
            let reason = if theirs.starts_with(b"HTTP/1.1 431") || theirs.starts_with(b"HTTP/1.1 414") {
                Reason::HeaderTooLarge
            } else {
                Reason::ProtocolError
            };
            self.own = Some((raw_reply(reason, self.by), theirs.len()));
        }
        let Some((own, length)) = &mut self.own else { return Poll::Ready(Ok(theirs.len())) };
        while own.has_remaining() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, own))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            own.advance(written);
        }
        Poll::Ready(Ok(*length))
    }
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.pulse.is_flushed() {
            return self.poll_own(context, bytes);
        }
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(context))?;
        // hyper flushes the socket only when its own buffer is empty.
        self.pulse.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.pulse.is_flushed() {
            // An automatic answer has no body, so it is one slice.
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            return self.poll_own(context, first);
        }
        socket::poll_write_gathered(&mut self.io, context, slices)
    }
}

/// A whole HTTP/1 response for where there is no engine to write one.
#[cold]
pub(super) fn raw_reply(reason: Reason, by: DecidedBy) -> Bytes {
    let (head, body) = reply::respond(reason, Fault::Caller, by, false).into_parts();
    let mut bytes = BytesMut::with_capacity(256);
    let status = head.status;
    let line = format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default());
    bytes.extend_from_slice(line.as_bytes());
    for (name, value) in &head.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes
        .extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(&body);
    bytes.freeze()
}
