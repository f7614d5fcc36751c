//! The request's body: the client's own, or what was kept of it for another attempt.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use weft_wire::Reason;

use super::replay::{Reader, Replay};
use crate::http::client::Continue;
use crate::http::park::InFlight;

/// How long an upstream may keep a client waiting for `100 Continue` before the body is sent anyway, as RFC 9110
/// §10.1.1 asks of those who wait. What curl waits as well.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// What became of a request's body; shared by the body and the request's record.
#[derive(Debug, Default)]
pub struct Upload {
    /// Bytes of data that were read and not yet recorded.
    pub bytes: Cell<u64>,
    /// The body was read to its end.
    pub ended: Cell<bool>,
    /// The client's bytes broke the protocol, or it left.
    pub failed: Cell<Option<Reason>>,
    /// Who waits for the end.
    waiting: RefCell<Option<Waker>>,
}

impl Upload {
    /// Completes when the body was read to its end.
    pub fn poll_ended(&self, context: &Context<'_>) -> Poll<()> {
        if self.ended.get() {
            return Poll::Ready(());
        }
        *self.waiting.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    /// The body was read to its end.
    pub(in crate::http) fn end(&self) {
        self.ended.set(true);
        if let Some(waiting) = self.waiting.borrow_mut().take() {
            waiting.wake();
        }
    }
}

/// A request's body. A pointer, because most requests have none and a request is moved often.
#[derive(Debug)]
pub struct RequestBody(Option<Box<Upstreaming>>);

#[derive(Debug)]
struct Upstreaming {
    source: Source,
    gate: Option<Gate>,
    /// Somebody has begun to read it, so it cannot be sent a second time.
    started: bool,
}

#[derive(Debug)]
enum Source {
    Client(Client),
    Kept(Reader),
}

#[derive(Debug)]
struct Gate {
    opened: Continue,
    patience: Pin<Box<tokio::time::Sleep>>,
}

impl RequestBody {
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self(None)
    }

    /// The client's body.
    #[must_use]
    pub fn new(incoming: Incoming, upload: Rc<Upload>, guard: InFlight) -> Self {
        Self::of(Source::Client(Client { incoming, upload, guard }))
    }

    /// What was kept of one, and then the rest of it.
    pub(super) fn kept(reader: Reader) -> Self {
        Self::of(Source::Kept(reader))
    }

    fn of(source: Source) -> Self {
        Self(Some(Box::new(Upstreaming { source, gate: None, started: false })))
    }

    /// The same body, to be read more than once. `None` when there is none, or when it has begun to be read.
    #[must_use]
    pub fn keep(self) -> Option<Rc<Replay>> {
        match self.0.map(|this| this.source)? {
            Source::Client(client) => Some(Replay::new(client)),
            Source::Kept(_) => None,
        }
    }

    /// Holds the body back until `opened`, or until patience ends.
    pub fn hold(&mut self, opened: Continue) {
        if let Some(upstreaming) = &mut self.0 {
            let patience = Box::pin(tokio::time::sleep(CONTINUE_PATIENCE));
            upstreaming.gate = Some(Gate { opened, patience });
        }
    }

    /// Whether there is no body at all.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Whether it has begun to be read.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.0.as_ref().is_some_and(|this| this.started)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(this) = &mut self.0 else { return Poll::Ready(None) };
        if let Some(gate) = &mut this.gate {
            if !gate.opened.said() {
                ready!(gate.patience.as_mut().poll(context));
            }
            this.gate = None;
        }
        this.started = true;
        match &mut this.source {
            Source::Client(client) => client.poll(context),
            Source::Kept(reader) => reader.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|this| match &this.source {
            Source::Client(client) => client.is_end_stream(),
            Source::Kept(reader) => reader.is_end_stream(),
        })
    }

    fn size_hint(&self) -> SizeHint {
        match self.0.as_ref().map(|this| &this.source) {
            None => SizeHint::with_exact(0),
            Some(Source::Client(client)) => client.incoming.size_hint(),
            // Framed by its headers.
            Some(Source::Kept(_)) => SizeHint::new(),
        }
    }
}

/// The client's body as hyper reads it.
#[derive(Debug)]
pub(super) struct Client {
    incoming: Incoming,
    upload: Rc<Upload>,
    guard: InFlight,
}

impl Client {
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.upload.bytes.set(self.upload.bytes.get() + data.len() as u64);
                }
                if self.incoming.is_end_stream() {
                    self.upload.end();
                }
            }
            Some(Err(error)) => self.upload.failed.set(Some(why(error))),
            None => self.upload.end(),
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.upload.ended.get() || self.incoming.is_end_stream()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // What is left of the body is still to come on the client's connection.
        if !self.is_end_stream() {
            self.guard.spoil();
        }
    }
}

/// Why a client's body ended before its end: bytes that are no chunk, or no more bytes.
fn why(error: &hyper::Error) -> Reason {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            let malformed = matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::InvalidInput);
            return if malformed { Reason::ProtocolError } else { Reason::ClientCancelled };
        }
        source = cause.source();
    }
    Reason::ClientCancelled
}
