//! HTTP/2 to an endpoint: a few connections, each shared by many streams.
//!
//! The `h2` crate is used directly: hyper's client would add a queue, two channels and a task for every request.
//! Each connection has one task that moves its frames. A request's body is pumped by the request itself as long
//! as it makes progress at once, which is all of a unary gRPC call; only what has to wait gets a task, so that an
//! upload never waits for its own response to be read.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;

use crate::http::body::RequestBody;
use crate::http::{H2_CONNECTION_WINDOW, H2_FRAME_MAX, H2_STREAM_WINDOW};
use crate::pool::Open as Connected;
use crate::tls::Stream;

/// Streams on one connection before another is opened. What most servers allow at least (RFC 9113 §6.5.2 asks for
/// 100 or more).
const STREAMS_MAX: usize = 100;

/// Bytes of request bodies that one connection holds while it waits for the endpoint's window.
const SEND_BUFFER_MAX: usize = 256 * 1024;

/// One shared connection; cloning makes another handle of the same.
#[derive(Clone)]
pub struct H2 {
    sender: SendRequest<Bytes>,
    shared: Rc<Shared>,
}

struct Shared {
    streams: Cell<usize>,
    closed: Cell<bool>,
    idle_since: Cell<Instant>,
    open: Connected,
}

impl H2 {
    /// Exchanges prefaces on a connected socket and starts the connection's task.
    ///
    /// # Errors
    /// When the endpoint does not speak HTTP/2 or breaks the connection.
    pub async fn start(stream: Stream, open: Connected) -> Result<Self, h2::Error> {
        let (sender, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_frame_size(H2_FRAME_MAX)
            .max_header_list_size(crate::http::headers::HEADER_BYTES_MAX as u32)
            .max_send_buffer_size(SEND_BUFFER_MAX)
            .handshake::<_, Bytes>(stream)
            .await?;
        let shared = Rc::new(Shared {
            streams: Cell::new(0),
            closed: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
            open,
        });
        let handle = Rc::clone(&shared);
        // Owned by the handles: ends when all of them and all streams are gone.
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an upstream HTTP/2 connection ended");
            }
            handle.closed.set(true);
        });
        Ok(Self { sender, shared })
    }

    /// Whether the connection has ended or takes no new streams.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.closed.get()
    }

    /// Streams that are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.shared.streams.get()
    }

    /// Whether another stream would be sent at once.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.streams() < STREAMS_MAX.min(self.sender.current_max_send_streams())
    }

    /// Whether no stream has been open for `time`.
    #[must_use]
    pub fn is_idle_for(&self, now: Instant, time: Duration) -> bool {
        self.streams() == 0 && now.saturating_duration_since(self.shared.idle_since.get()) >= time
    }

    /// Whether it has been open for as long as it may be at `now`.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        self.shared.open.is_over(Some(now))
    }

    /// Opens a stream. The request comes back when the connection takes no more streams: it was not sent.
    ///
    /// # Errors
    /// See [`Unopened`].
    pub async fn open(&mut self, request: Request<RequestBody>) -> Result<Opened, Unopened> {
        // `ready` would consume the sender; polling does the same without.
        if let Err(error) = std::future::poll_fn(|context| self.sender.poll_ready(context)).await {
            self.shared.closed.set(true);
            return Err(Unopened { request: Some(request), error });
        }
        let (parts, body) = request.into_parts();
        let no_body = body.is_end_stream();
        match self.sender.send_request(Request::from_parts(parts, ()), no_body) {
            Ok((answer, stream)) => {
                let open = Open::new(&self.shared);
                let upload = if no_body { None } else { Pump { body, stream }.start() };
                Ok(Opened { answer, open, upload })
            }
            Err(error) => Err(Unopened { request: None, error }),
        }
    }

    /// No new streams: what the endpoint said by GOAWAY or by refusing one.
    pub fn retire(&self) {
        self.shared.closed.set(true);
    }
}

/// Why a stream was not opened.
pub struct Unopened {
    /// The request, when nothing of it was sent.
    pub request: Option<Request<RequestBody>>,
    /// What `h2` says.
    pub error: h2::Error,
}

/// Counts as an open stream.
struct Open(Rc<Shared>);

impl Open {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self(Rc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let streams = self.0.streams.get() - 1;
        self.0.streams.set(streams);
        if streams == 0 {
            self.0.idle_since.set(Instant::now());
        }
    }
}

/// A stream that waits for its response. Dropping it resets the stream.
pub struct Opened {
    answer: ResponseFuture,
    open: Open,
    upload: Option<Uploading>,
}

impl Opened {
    /// The response's head.
    ///
    /// # Errors
    /// When the stream or the connection broke.
    pub fn poll_answer(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Response<RecvStream>, h2::Error>> {
        Pin::new(&mut self.answer).poll(context)
    }

    /// The body that belongs to the head.
    #[must_use]
    pub fn body(self, receive: RecvStream) -> H2Stream {
        H2Stream { receive, data_over: false, _open: self.open, upload: self.upload }
    }
}

/// A response's body on an HTTP/2 stream. Dropping it before its end resets the stream.
pub struct H2Stream {
    receive: RecvStream,
    data_over: bool,
    _open: Open,
    upload: Option<Uploading>,
}

impl Drop for H2Stream {
    fn drop(&mut self) {
        if self.is_end_stream()
            && let Some(upload) = self.upload.take()
        {
            upload.detach();
        }
    }
}

impl H2Stream {
    /// The next piece of the response.
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_over {
            match ready!(self.receive.poll_data(context)) {
                Some(Ok(data)) => {
                    // hyper asks for more only when the client has room for it.
                    if let Err(error) = self.receive.flow_control().release_capacity(data.len()) {
                        return Poll::Ready(Some(Err(error)));
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // A server may end a stream it has answered without reading the rest of the request (RFC 9113 §8.1).
                Some(Err(error)) if error.reason() == Some(h2::Reason::NO_ERROR) => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_over = true,
            }
        }
        match ready!(self.receive.poll_trailers(context)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    /// The response is not wanted, nor is the rest of the request: another attempt may be about to read the same body.
    pub fn discard(mut self) {
        drop(self.upload.take());
    }

    /// Whether nothing more comes.
    #[must_use]
    pub fn is_end_stream(&self) -> bool {
        self.receive.is_end_stream()
    }

    /// What is known about the length: nothing beyond the headers, which are passed on as they are.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

/// A request's body on its way into a stream.
struct Pump {
    body: RequestBody,
    stream: SendStream<Bytes>,
}

impl Pump {
    /// Moves what is there; a task moves the rest. `None`: all is moved.
    fn start(mut self) -> Option<Uploading> {
        if self.poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return None;
        }
        let task = tokio::task::spawn_local(std::future::poll_fn(move |context| self.poll(context)));
        Some(Uploading(Some(task.abort_handle())))
    }

    /// One chunk at a time, each only when the endpoint has opened its window: at most one is held here.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            self.stream.reserve_capacity(1);
            while self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(context)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(()),
                }
            }
            if self.stream.poll_reset(context).is_ready() {
                return Poll::Ready(());
            }
            let sent = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.stream.send_data(data, self.body.is_end_stream()),
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => {
                            drop(self.stream.send_trailers(trailers));
                            return Poll::Ready(());
                        }
                        Err(_) => Ok(()),
                    },
                },
                Some(Err(_)) => {
                    // The client's message is incomplete: the endpoint must not take it for a whole one.
                    self.stream.send_reset(h2::Reason::CANCEL);
                    return Poll::Ready(());
                }
                None => {
                    drop(self.stream.send_data(Bytes::new(), true));
                    return Poll::Ready(());
                }
            };
            // An error means that the stream is over; its reader hears why.
            if sent.is_err() || self.body.is_end_stream() {
                return Poll::Ready(());
            }
        }
    }
}

/// The task of an upload that had to wait. Stops with its request, unless the response ended in good order: a
/// server may answer first and read on.
struct Uploading(Option<AbortHandle>);

impl Uploading {
    fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
