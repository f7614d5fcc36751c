//! Bodies on their way through: what hyper read on one side is what it writes on the other, one wrapper each.
//!
//! [`RequestBody`] counts, holds back for `100 Continue`, and tells the connection when the client's body was not
//! read to its end. [`ResponseBody`] drives the upstream connection while it is read (see [`super::client`]), counts,
//! and owns the request's record: the record's last word is said when the body ends, breaks, or is dropped.
//!
//! Invariant: a response that broke upstream ends in an error here, never in a clean end, so that hyper aborts the
//! client's message and nobody takes half a body for a whole one.

use std::cell::Cell;
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use weft_wire::{DecidedBy, Reason};

use super::client::{Broken, Continue, H2Stream, Lease};
use super::park::InFlight;
use crate::balance::Working;
use crate::policy::Permit;
use crate::record::RequestRecord;

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
    /// Somebody has begun to read it, so it cannot be sent a second time.
    pub started: Cell<bool>,
}

/// A request's body. A pointer, because most requests have none and a request is moved often.
#[derive(Debug)]
pub struct RequestBody(Option<Box<Upstreaming>>);

#[derive(Debug)]
struct Upstreaming {
    incoming: Incoming,
    upload: Rc<Upload>,
    gate: Option<Gate>,
    guard: InFlight,
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
        Self(Some(Box::new(Upstreaming { incoming, upload, gate: None, guard })))
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
        this.upload.started.set(true);
        let frame = ready!(Pin::new(&mut this.incoming).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.upload.bytes.set(this.upload.bytes.get() + data.len() as u64);
                }
                this.upload.ended.set(this.incoming.is_end_stream());
            }
            Some(Err(error)) => this.upload.failed.set(Some(why(error))),
            None => this.upload.ended.set(true),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|this| this.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |this| this.incoming.size_hint())
    }
}

impl Drop for Upstreaming {
    fn drop(&mut self) {
        // What is left of the body is still to come on the client's connection.
        if !self.upload.ended.get() && !self.incoming.is_end_stream() {
            self.guard.spoil();
        }
    }
}

/// What lives as long as a request does. Boxed once: it is moved from the request to its response.
pub struct Exchange {
    /// Says its last word on drop.
    pub record: RequestRecord,
    /// The client's body, when there was one.
    pub upload: Option<Rc<Upload>>,
    /// Counts as in flight on the client's connection.
    pub in_flight: InFlight,
    /// Counts as in flight at the endpoint.
    pub working: Option<Working>,
    /// Counts as in flight on this worker.
    pub permit: Option<Permit>,
    /// Which proxy this is.
    pub by: DecidedBy,
}

impl Exchange {
    /// The proxy answers itself. What is left counts as in flight until the answer is out.
    #[must_use]
    pub fn refuse(mut self, reason: Reason, response: &Response<Bytes>) -> InFlight {
        self.record.response(response.status(), response.headers());
        let bytes = response.body().len() as u64;
        self.count(bytes);
        self.record.failed(reason, self.by);
        self.in_flight
    }

    /// The protocol was switched: the request is over.
    #[must_use]
    pub fn switch(mut self) -> InFlight {
        self.count(0);
        self.record.complete();
        self.in_flight
    }

    fn finish(mut self) {
        self.count(0);
        self.record.complete();
    }

    fn fail(mut self, reason: Reason) {
        self.count(0);
        self.record.failed(reason, self.by);
    }

    /// Counts as bytes pass, so that a stream of hours is seen all the time.
    fn count(&mut self, response_bytes: u64) {
        if response_bytes > 0 {
            self.record.response_bytes(response_bytes);
        }
        if let Some(upload) = &self.upload {
            self.record.request_bytes(upload.bytes.take());
        }
    }
}

/// A response's body. Small enough to be moved about; everything large is behind the lease.
pub struct ResponseBody {
    source: Source,
    /// `None` once the record has said its last word.
    exchange: Option<Box<Exchange>>,
}

enum Source {
    /// The proxy's own words, or none, and what counts until they are out.
    Own(Bytes, #[expect(dead_code, reason = "held for its drop")] Option<InFlight>),
    H1(Lease),
    H2(Box<H2Stream>),
    /// Failed; must not look like a clean end.
    Broken,
}

/// The upstream response broke; hyper aborts the client's message.
#[derive(Debug, thiserror::Error)]
#[error("the upstream response broke off")]
pub struct BrokenOff;

impl ResponseBody {
    /// The proxy's own words. What is to be recorded has been recorded; the guard counts until they are out.
    #[must_use]
    pub fn own(text: Bytes, guard: Option<InFlight>) -> Self {
        Self { source: Source::Own(text, guard), exchange: None }
    }

    /// An HTTP/1 response.
    #[must_use]
    pub fn h1(lease: Lease, exchange: Box<Exchange>) -> Self {
        let mut body = Self { source: Source::H1(lease), exchange: Some(exchange) };
        body.end_if_over();
        body
    }

    /// An HTTP/2 response.
    #[must_use]
    pub fn h2(stream: H2Stream, exchange: Box<Exchange>) -> Self {
        let mut body = Self { source: Source::H2(Box::new(stream)), exchange: Some(exchange) };
        body.end_if_over();
        body
    }

    /// Ends the exchange the moment the last byte is here, not when hyper asks once more.
    fn end_if_over(&mut self) {
        if self.is_end_stream() {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Source::H1(lease) = std::mem::replace(&mut self.source, Source::Own(Bytes::new(), None)) {
            lease.release();
        }
        if let Some(exchange) = self.exchange.take() {
            exchange.finish();
        }
    }

    fn break_off(&mut self, broken: Reason) {
        // Dropping the source closes the connection or resets the stream.
        self.source = Source::Broken;
        if let Some(exchange) = self.exchange.take() {
            // An upload that the client broke off takes the response with it.
            let by_client = exchange.upload.as_ref().and_then(|upload| upload.failed.get());
            let reason = by_client.unwrap_or(broken);
            exchange.fail(reason);
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(exchange) = &mut self.exchange {
            exchange.record.trailers(trailers);
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // Nobody read it to the end: the record itself says `client_cancelled`.
        if let Some(exchange) = &mut self.exchange {
            exchange.count(0);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Own(text, _) => {
                let text = std::mem::take(text);
                if text.is_empty() {
                    return Poll::Ready(None);
                }
                Some(Ok(Frame::data(text)))
            }
            Source::H1(lease) => ready!(lease.poll_frame(context)).map(|result| {
                result.map_err(|broken| match broken {
                    Broken::Malformed(_) => Reason::ProtocolError,
                    Broken::Upload(reason) => reason,
                    Broken::Closed | Broken::Io(_) => Reason::UpstreamReset,
                })
            }),
            Source::H2(stream) => {
                ready!(stream.poll_frame(context)).map(|result| result.map_err(|_| Reason::UpstreamReset))
            }
            Source::Broken => Some(Err(Reason::UpstreamReset)),
        };
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    if let Some(exchange) = &mut this.exchange {
                        exchange.count(data.len() as u64);
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    this.trailers(trailers);
                }
                this.end_if_over();
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                this.end();
                Poll::Ready(None)
            }
            Some(Err(reason)) => {
                this.break_off(reason);
                Poll::Ready(Some(Err(BrokenOff)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(text, _) => text.is_empty(),
            Source::H1(lease) => lease.is_end_stream(),
            Source::H2(stream) => stream.is_end_stream(),
            Source::Broken => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(text, _) => SizeHint::with_exact(text.len() as u64),
            Source::H1(lease) => lease.size_hint(),
            Source::H2(stream) => stream.size_hint(),
            Source::Broken => SizeHint::new(),
        }
    }
}
