//! The response's body: drives the upstream connection while it is read, and owns the request's record, whose last word
//! is said when the body ends, breaks, or is dropped.
//!
//! Invariant: a response that broke upstream ends in an error here, never in a clean end, so that hyper aborts the
//! client's message and nobody takes half a body for a whole one.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use weft_wire::{DecidedBy, Reason};

use super::Upload;
use crate::balance::circuits::Admission;
use crate::balance::{Outcome, Working};
use crate::http::class::{self, GrpcStatus};
use crate::http::client::{Broken, H2Stream, Lease};
use crate::http::clock::Clock;
use crate::http::concurrency::InProgress;
use crate::http::park::InFlight;
use crate::policy::Permit;
use crate::record::RequestRecord;
use crate::route::filter::Passage;

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
    /// Counts as in progress at the cluster.
    pub admission: Option<Admission>,
    /// Counts as in progress at the app's port.
    pub in_progress: Option<InProgress>,
    /// What breakers will be told when the answer's trailers are here.
    pub judged: Option<Judged>,
    /// How long all of it may take.
    pub deadline: Option<Rc<Clock>>,
    /// Which proxy this is.
    pub by: DecidedBy,
    /// Its rule, and what that has decided.
    pub passage: Option<Passage>,
}

/// An answer whose success only its trailers tell (gRPC).
#[derive(Debug, Clone, Copy)]
pub struct Judged {
    /// How long its head took.
    pub elapsed: Duration,
}

impl Exchange {
    /// Nothing is known yet but who asks.
    #[must_use]
    pub fn new(
        record: RequestRecord,
        upload: Option<Rc<Upload>>,
        in_flight: InFlight,
        by: DecidedBy,
    ) -> Self {
        Self {
            record,
            upload,
            in_flight,
            working: None,
            permit: None,
            admission: None,
            in_progress: None,
            judged: None,
            deadline: None,
            by,
            passage: None,
        }
    }

    /// How an attempt ended: for the balancer, and for the breaker of its endpoint.
    pub fn judge(&self, outcome: Outcome, elapsed: Duration, now: Instant) {
        if let Some(working) = &self.working {
            working.endpoint().report(outcome, elapsed, now);
        }
    }

    /// How the call as a whole ended: for the breaker of its cluster.
    pub fn settle(&self, outcome: Outcome, now: Instant) {
        if let Some(admission) = &self.admission {
            admission.settle(outcome, now.saturating_duration_since(admission.since()), now);
        }
    }

    /// The trailers are here, or will never come.
    fn judge_late(&mut self, outcome: Outcome) {
        if let Some(judged) = self.judged.take() {
            let now = Instant::now();
            self.judge(outcome, judged.elapsed, now);
            if let Some(admission) = &self.admission {
                admission.settle(outcome, judged.elapsed, now);
            }
        }
    }

    /// An answer that had begun well broke off. That too is the endpoint's failure, as it is for Envoy; but not if only the
    /// time for it ran out.
    fn broke(&self, reason: Reason) {
        if self.judged.is_none() && matches!(reason, Reason::UpstreamReset | Reason::ProtocolError) {
            self.judge(Outcome::LocalOrigin(reason), Duration::ZERO, Instant::now());
        }
    }

    /// The proxy answers itself. What is left counts as in flight until the answer is out.
    #[must_use]
    pub fn refuse(mut self, reason: Reason, response: &Response<Bytes>) -> InFlight {
        self.record.response(response.status(), response.headers());
        let bytes = response.body().len() as u64;
        self.count(bytes);
        self.record.failed(reason, self.by);
        self.in_flight
    }

    /// The proxy answers itself, because the request's rule says so: no failure.
    #[must_use]
    pub fn answer(mut self, response: &Response<Bytes>) -> InFlight {
        self.record.response(response.status(), response.headers());
        self.count(response.body().len() as u64);
        self.record.decided(self.by);
        self.record.complete();
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
        // A gRPC answer without a status is a broken one.
        self.judge_late(Outcome::ServerError);
        if let Some(in_progress) = self.in_progress.take() {
            in_progress.end(Instant::now());
        }
        self.record.complete();
    }

    fn fail(mut self, reason: Reason) {
        self.count(0);
        self.judge_late(match reason {
            Reason::ClientCancelled => Outcome::Cancelled,
            reason => Outcome::LocalOrigin(reason),
        });
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

/// Where a response's body comes from.
pub enum Source {
    /// The proxy's own words, or none, and what counts until they are out.
    Own(Bytes, Option<InFlight>),
    /// An HTTP/1 connection.
    H1(Lease),
    /// An HTTP/2 stream.
    H2(Box<H2Stream>),
    /// Failed; must not look like a clean end.
    Broken,
}

impl Source {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        match self {
            Self::Own(text, _) => {
                let text = std::mem::take(text);
                Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text))))
            }
            Self::H1(lease) => lease.poll_frame(context).map(|frame| {
                frame.map(|result| {
                    result.map_err(|broken| match broken {
                        Broken::Malformed(_) => Reason::ProtocolError,
                        Broken::Upload(reason) => reason,
                        Broken::Closed | Broken::Io(_) => Reason::UpstreamReset,
                    })
                })
            }),
            Self::H2(stream) => stream
                .poll_frame(context)
                .map(|frame| frame.map(|result| result.map_err(|_| Reason::UpstreamReset))),
            Self::Broken => Poll::Ready(Some(Err(Reason::UpstreamReset))),
        }
    }

    /// Nobody wants it, but its connection may be used again: reads it to its end.
    pub async fn drain(mut self) {
        while let Some(Ok(_)) = std::future::poll_fn(|context| self.poll_frame(context)).await {}
        self.discard();
    }

    /// Nobody wants it, nor what is left of the request.
    pub fn discard(self) {
        match self {
            Self::H1(lease) => lease.discard(),
            Self::H2(stream) => stream.discard(),
            Self::Own(..) | Self::Broken => {}
        }
    }
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

    /// Leaves the proxy's own words out and says how many bytes they had; `None`: there are none.
    pub fn leave_out(&mut self) -> Option<usize> {
        match &mut self.source {
            Source::Own(text, _) if !text.is_empty() => Some(std::mem::take(text).len()),
            _ => None,
        }
    }

    /// An upstream response, which takes the exchange to its end.
    #[must_use]
    pub fn new(source: Source, exchange: Box<Exchange>) -> Self {
        let mut body = Self { source, exchange: Some(exchange) };
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
            if by_client.is_none() {
                exchange.broke(broken);
            }
            let reason = by_client.unwrap_or(broken);
            exchange.fail(reason);
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(exchange) = &mut self.exchange {
            exchange.record.trailers(trailers);
            if exchange.judged.is_some() {
                let status = class::grpc_status(trailers).unwrap_or(GrpcStatus::UNKNOWN);
                exchange.judge_late(Outcome::of_status(status.as_http()));
            }
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
        let frame = match this.source.poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let deadline = this.exchange.as_ref().and_then(|exchange| exchange.deadline.as_ref());
                ready!(deadline.map_or(Poll::Pending, |deadline| deadline.poll_over(context)));
                Some(Err(Reason::RequestTimeout))
            }
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
