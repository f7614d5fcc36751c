//! HTTP/1 to an endpoint: one connection, one exchange at a time, driven by whoever holds it.
//!
//! In: a head and a body to send. Out: the response's head, then its body piece by piece. Written here rather than
//! taken from hyper because of what a sidecar needs and a general client does not have: no task and no channels
//! for a connection (they cost a tenth of the whole request), and the encoded head kept until the first byte
//! of an answer, so that a request that met a closing connection is sent again without a copy of its headers.
//!
//! Invariants: bytes that are not exactly an HTTP/1 message end the connection, never the next exchange; a connection is
//! reusable only when both messages have ended and nothing is left over. Surprise: a failed write is no error as long
//! as the server still answers; it may have refused the body. Non-goal: choosing connections, retrying.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;
use weft_wire::Reason;

use super::decode::{Decoder, Malformed, Place, parse_head};
use super::encode;
use crate::http::body::{RequestBody, Upload};
use crate::http::{BUFFER_MAX, headers};
use crate::pool::Open;
use crate::tls::Stream;

/// Room for a read: more than most responses, little enough to stay in the cache.
const READ_MIN: usize = 2 * 1024;

/// Bytes reserved at first, and again when they are used up.
const READ_FIRST: usize = 8 * 1024;

/// Bytes reserved while large bodies come in.
const READ_MAX: usize = 64 * 1024;

/// Body data up to this is copied behind what is waiting to be written; larger pieces are written from where they are.
const COPY_MAX: usize = 4 * 1024;

/// One connection.
pub struct H1 {
    stream: Stream,
    open: Open,
    /// Read and not yet understood.
    input: BytesMut,
    /// Bytes to reserve for the next read.
    reserve: usize,
    /// Encoded. The head stays here until an answer begins, for [`inherit`](Self::inherit).
    output: Vec<u8>,
    written: usize,
    /// To be written after `output`.
    chunk: Bytes,
    upload: Option<Uploading>,
    /// The request's map, emptied, for the response's headers.
    spare: HeaderMap,
    places: Vec<Place>,
    /// What the request was, as far as the response's framing depends on it.
    asked: Asked,
    decoder: Decoder,
    /// Nothing has forbidden another exchange so far.
    persistent: bool,
    reused: bool,
    /// Nothing of this exchange has been tried yet.
    new: bool,
    /// The server takes no more bytes.
    deaf: bool,
    /// The body has begun, so that `output` no longer is the head and the exchange cannot begin anew.
    begun: bool,
    /// An answer has begun.
    answered: bool,
}

struct Uploading {
    body: RequestBody,
    chunked: bool,
    /// Why the client's body broke off.
    progress: Option<Rc<Upload>>,
    /// Opened by `100 Continue`.
    gate: Option<Continue>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    method: Simple,
    idempotent: bool,
}

/// Methods that change how a response is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Simple {
    Connect,
    Head,
    Other,
}

/// Why there is no response, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection ended.
    #[error("the connection ended too early")]
    Closed,
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// What came is not HTTP/1.
    #[error("the response is not HTTP/1")]
    Malformed(#[source] Malformed),
    /// The client's body broke off.
    #[error("the request's body broke off")]
    Upload(Reason),
}

/// Said by an upstream to a client that waits for it before it sends its body.
#[derive(Debug, Clone, Default)]
pub struct Continue(Rc<Cell<bool>>);

impl Continue {
    /// Whether it was said. Who asks is polled after whoever reads the answer, so nobody needs to be woken.
    #[must_use]
    pub fn said(&self) -> bool {
        self.0.get()
    }
}

impl H1 {
    /// A connection; `reused` when it may have been closed since it was last used.
    #[must_use]
    pub fn new(stream: Stream, open: Open, reused: bool) -> Box<Self> {
        Box::new(Self {
            stream,
            open,
            input: BytesMut::new(),
            reserve: READ_FIRST,
            output: Vec::new(),
            written: 0,
            chunk: Bytes::new(),
            upload: None,
            spare: HeaderMap::new(),
            places: Vec::new(),
            asked: Asked { method: Simple::Other, idempotent: false },
            decoder: Decoder::none(),
            persistent: true,
            reused,
            new: true,
            deaf: false,
            begun: false,
            answered: false,
        })
    }

    /// Begins an exchange: encodes the head, whose headers are used up unless they are to be kept.
    pub fn begin(
        &mut self,
        head: &mut Parts,
        body: RequestBody,
        progress: Option<&Rc<Upload>>,
        gate: Option<Continue>,
        keep: bool,
    ) {
        self.asked = Asked {
            method: match head.method {
                Method::CONNECT => Simple::Connect,
                Method::HEAD => Simple::Head,
                _ => Simple::Other,
            },
            idempotent: head.method.is_idempotent(),
        };
        self.new = true;
        self.begun = false;
        self.answered = false;
        self.written = 0;
        self.output.clear();
        let chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
        self.upload = (!body.is_none()).then(|| {
            let progress = progress.map(Rc::clone);
            if !chunked && !head.headers.contains_key(header::CONTENT_LENGTH) {
                // Cannot come from hyper; but a body without a frame would be the next request.
                head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                return Uploading { body, chunked: true, progress, gate };
            }
            Uploading { body, chunked, progress, gate }
        });
        let silent = self.upload.is_none() && !chunked && !head.headers.contains_key(header::CONTENT_LENGTH);
        encode::head(head, silent, &mut self.output);
        if !keep {
            self.spare = std::mem::take(&mut head.headers);
            self.spare.clear();
        }
    }

    /// Takes over an exchange that another connection could not serve.
    pub fn inherit(&mut self, other: &mut Self) {
        self.output = std::mem::take(&mut other.output);
        self.written = 0;
        self.upload = other.upload.take();
        self.spare = std::mem::take(&mut other.spare);
        self.asked = other.asked;
        self.answered = false;
    }

    /// Whether a failed exchange may begin anew on another connection: nothing of it was sent, or sending it twice does
    /// no harm; and this connection may just have been closed at the wrong moment.
    #[must_use]
    pub fn may_repeat(&self) -> bool {
        // An upload that has ended is gone from here: that there is none says nothing.
        let untouched = !self.begun && self.upload.as_ref().is_none_or(|upload| !upload.body.is_started());
        let unsent = self.written == 0;
        // Bytes count as the beginning of an answer, unless they were here before the request.
        let silent = self.input.is_empty();
        self.reused
            && !self.answered
            && untouched
            && (unsent || (silent && self.upload.is_none() && self.asked.idempotent))
    }

    /// The response's head. Cancel safe: dropping the connection cancels the request.
    pub fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<Response<()>, Broken>> {
        if std::mem::take(&mut self.new) && self.reused {
            // A server that has closed or said something unasked is not sent to.
            match self.poll_fill(context) {
                Poll::Pending => {}
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(Broken::Closed)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Io(error))),
            }
        }
        loop {
            self.poll_send(context)?;
            while !self.input.is_empty() {
                let Some(head) = parse_head(&mut self.input, &mut self.spare, &mut self.places)
                    .map_err(Broken::Malformed)?
                else {
                    break;
                };
                self.answered = true;
                match head.status() {
                    StatusCode::SWITCHING_PROTOCOLS => {}
                    StatusCode::CONTINUE => {
                        if let Some(gate) = self.upload.as_ref().and_then(|upload| upload.gate.as_ref()) {
                            gate.0.set(true);
                        }
                        self.poll_send(context)?;
                        continue;
                    }
                    status if status.is_informational() => continue,
                    _ => {}
                }
                return Poll::Ready(self.understand(head));
            }
            if self.input.len() >= BUFFER_MAX {
                return Poll::Ready(Err(Broken::Malformed(Malformed::TooLarge)));
            }
            if ready!(self.poll_fill(context)).map_err(Broken::Io)? == 0 {
                let empty = self.input.is_empty();
                return Poll::Ready(Err(if empty {
                    Broken::Closed
                } else {
                    Broken::Malformed(Malformed::Head)
                }));
            }
        }
    }

    /// Decides how the body is framed (RFC 9112 §6.3) and whether the connection persists (§9.3).
    fn understand(&mut self, mut head: Response<()>) -> Result<Response<()>, Broken> {
        let close = headers::connection_lists(head.headers(), "close");
        let persistent = match head.version() {
            Version::HTTP_11 => !close,
            _ => !close && headers::connection_lists(head.headers(), "keep-alive"),
        };
        let bodiless = match (self.asked.method, head.status()) {
            (Simple::Head, _) => true,
            (Simple::Connect, status) if status.is_success() => true,
            (_, StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => true,
            _ => false,
        };
        self.decoder = if bodiless {
            Decoder::none()
        } else {
            let version = head.version();
            Decoder::of(version, head.headers_mut()).map_err(Broken::Malformed)?
        };
        self.persistent = persistent && !self.deaf && !self.decoder.is_until_close();
        self.withhold_refused();
        Ok(head)
    }

    /// An answer instead of `100 Continue` refuses the body: it is not sent any more, also not when patience ends.
    fn withhold_refused(&mut self) {
        let refused = |upload: &Uploading| {
            upload.gate.as_ref().is_some_and(|gate| !gate.said()) && !upload.body.is_started()
        };
        if self.upload.as_ref().is_some_and(refused) {
            self.persistent = false;
            self.upload = None;
        }
    }

    /// The next piece of the body. Moves the upload as well.
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Err(broken) = self.poll_send(context) {
            return Poll::Ready(Some(Err(broken)));
        }
        self.poll_receive(context)
    }

    /// The next piece of the body. Somebody else moves the upload.
    pub fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            match self.decoder.decode(&mut self.input) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if self.decoder.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(malformed) => return Poll::Ready(Some(Err(Broken::Malformed(malformed)))),
            }
            match ready!(self.poll_fill(context)) {
                Ok(0) if self.decoder.is_until_close() => {
                    self.decoder = Decoder::none();
                    return Poll::Ready(None);
                }
                Ok(0) => return Poll::Ready(Some(Err(Broken::Closed))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(Broken::Io(error)))),
            }
        }
    }

    /// Whether the response has ended.
    #[must_use]
    pub fn is_end_stream(&self) -> bool {
        self.decoder.is_done()
    }

    /// What is known about the length of the rest of the response.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        self.decoder.size_hint()
    }

    /// Whether the connection can carry another exchange now. Call when the response has ended.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.persistent && self.decoder.is_done() && self.input.is_empty() && self.is_sent()
    }

    /// Whether it will be free once the app has read what is left of the upload: of the client's body, or only of what
    /// is held here.
    #[must_use]
    pub fn will_be_free(&self) -> bool {
        self.persistent && !self.is_sent()
    }

    /// Moves the upload on, without looking at the response, until it has ended or nobody takes it any more.
    pub fn poll_upload(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self.poll_send(context) {
            Err(broken) => Poll::Ready(Err(broken)),
            Ok(()) if self.deaf || self.is_sent() => Poll::Ready(Ok(())),
            Ok(()) => Poll::Pending,
        }
    }

    /// Whether anything of the request has been written.
    #[must_use]
    pub fn has_sent(&self) -> bool {
        self.begun || self.written > 0
    }

    /// Whether a part of the request is still to be written.
    #[must_use]
    pub fn is_uploading(&self) -> bool {
        !self.deaf && !self.is_sent()
    }

    /// Whether it must carry no further exchange, as of `now` where that is known.
    #[must_use]
    pub fn is_over(&self, now: Option<Instant>) -> bool {
        self.open.is_over(now)
    }

    /// From now on a connection that waited.
    pub fn rest(&mut self) {
        self.reused = true;
        self.output.clear();
    }

    /// The socket and what was read too far: after a switch of protocols, or to keep it without its buffers.
    pub fn into_parts(self: Box<Self>) -> (Stream, Bytes, Open) {
        (self.stream, self.input.freeze(), self.open)
    }

    fn is_sent(&self) -> bool {
        self.written == self.output.len()
            && self.chunk.is_empty()
            && self.upload.is_none()
            && !self.stream.is_unsent()
    }

    /// Writes what can be written. `Ok` also when something is left; the task is woken when it can go on.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Result<(), Broken> {
        while !self.deaf {
            while self.written < self.output.len() || !self.chunk.is_empty() {
                let from_output = self.written < self.output.len();
                let bytes = if from_output { &self.output[self.written..] } else { &self.chunk[..] };
                match Pin::new(&mut self.stream).poll_write(context, bytes) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Ok(count)) if count > 0 => {
                        if from_output {
                            self.written += count
                        } else {
                            self.chunk.advance(count)
                        }
                    }
                    Poll::Ready(_) => {
                        self.stop_sending();
                        return Ok(());
                    }
                }
            }
            if self.stream.is_unsent()
                && let Poll::Ready(Err(_)) = Pin::new(&mut self.stream).poll_flush(context)
            {
                self.stop_sending();
                return Ok(());
            }
            let Some(upload) = &mut self.upload else { return Ok(()) };
            // The head was written and its body has begun: it will not be sent again.
            let frame = match Pin::new(&mut upload.body).poll_frame(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(frame) => frame,
            };
            self.begun = true;
            self.output.clear();
            self.written = 0;
            let chunked = upload.chunked;
            match frame {
                Some(Ok(frame)) => {
                    let over = upload.body.is_end_stream();
                    self.encode(frame, chunked, over);
                    if over {
                        self.upload = None;
                    }
                }
                None => {
                    if chunked {
                        self.output.extend_from_slice(encode::LAST_CHUNK);
                    }
                    self.upload = None;
                }
                Some(Err(_)) => {
                    let why = upload.progress.as_ref().and_then(|progress| progress.failed.get());
                    return Err(Broken::Upload(why.unwrap_or(Reason::ClientCancelled)));
                }
            }
        }
        Ok(())
    }

    /// The server takes no more; what it has to say about that is still to be read.
    fn stop_sending(&mut self) {
        self.deaf = true;
        self.persistent = false;
        if self.upload.as_ref().is_some_and(|upload| upload.body.is_started()) {
            self.begun = true;
            self.upload = None;
        }
    }

    fn encode(&mut self, frame: Frame<Bytes>, chunked: bool, over: bool) {
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => {
                if chunked {
                    encode::chunk(data.len(), &mut self.output);
                }
                if chunked || data.len() <= COPY_MAX {
                    self.output.extend_from_slice(&data);
                } else {
                    self.chunk = data;
                }
                if chunked {
                    self.output.extend_from_slice(b"\r\n");
                }
            }
            Err(frame) => {
                if let (true, Ok(trailers)) = (chunked, frame.into_trailers()) {
                    encode::trailers(&trailers, &mut self.output);
                }
                self.upload = None;
                return;
            }
        }
        if over && chunked {
            self.output.extend_from_slice(encode::LAST_CHUNK);
        }
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < READ_MIN {
            // Cheap when what was read before has been dropped meanwhile: then the buffer is used again.
            self.input.reserve(self.reserve);
        }
        let room = self.input.capacity() - self.input.len();
        let count = ready!(poll_read_buf(Pin::new(&mut self.stream), context, &mut self.input))?;
        if count == room {
            self.reserve = (self.reserve * 2).min(READ_MAX);
        }
        Poll::Ready(Ok(count))
    }
}
