//! The upstream half: one HTTP/1 connection driven by whoever uses it, HTTP/2 connections shared by many.
//!
//! In: a request fit to be sent, a connected socket. Out: the response's head, and its body as it comes.
//!
//! Surprise: an HTTP/1 connection has no task of its own. Its engine is polled by the request that holds it: first
//! while waiting for the head, then whenever the client's side asks for more body. So a request costs no wake-ups
//! between tasks, an idle connection costs no task, and dropping a request closes its connection, which is all
//! that cancelling means in HTTP/1. Because the same task polls both ends of hyper's internal channels, neither end
//! may wake it: what one waits for happens when the other is polled, which is just before or just after. Only the
//! socket knows the task ([`super::socket`]).
//!
//! Invariant: a connection goes back to the pool only when hyper says that it could send another request.
//! Non-goal: deciding where to connect, and retrying ([`super::forward`]).

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::BUFFER_MAX;
use super::body::{RequestBody, Upload};
use super::socket::{Socket, Task};
use crate::balance::Endpoint;
use crate::record::Shard;

mod multiplexed;

pub use multiplexed::{H2, H2Stream};

/// How long an upload may go on after its response has ended before the connection is closed.
const LINGER_TIME_MAX: Duration = Duration::from_secs(60);

type Engine = http1::Connection<Socket<TokioIo<TcpStream>>, RequestBody>;

/// An HTTP/1 connection to an endpoint.
pub struct H1 {
    /// `None` once the connection has ended.
    engine: Option<Engine>,
    /// Whom the socket wakes.
    task: Task,
    /// The request has a body, which wakes the engine's task as well.
    uploading: bool,
    /// The engine has ended, by an upgrade if it is still there. Polled once more it would close the socket.
    over: bool,
    sender: http1::SendRequest<RequestBody>,
    shard: Rc<Shard>,
    /// Whether it has carried a response before: only then can it have been closed under us.
    reused: bool,
}

/// Why no head came.
pub struct Unanswered {
    /// The request, when hyper never began to send it.
    pub request: Option<Box<Request<RequestBody>>>,
    /// What hyper says.
    pub error: hyper::Error,
}

impl H1 {
    /// Puts an engine on a connected socket.
    ///
    /// # Errors
    /// Never in practice: an HTTP/1 handshake exchanges nothing.
    pub async fn start(stream: TcpStream, reused: bool, shard: Rc<Shard>) -> Result<Box<Self>, hyper::Error> {
        let task = Task::default();
        let socket = Socket::new(TokioIo::new(stream), task.clone());
        let (sender, engine) = http1::Builder::new().max_buf_size(BUFFER_MAX).handshake(socket).await?;
        Ok(Box::new(Self {
            engine: Some(engine),
            task,
            uploading: false,
            over: false,
            sender,
            shard,
            reused,
        }))
    }

    /// Whether the connection has carried a request before, so that its server may have closed it meanwhile.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Sends a request and waits for the response's head. Cancel safe: dropping the future and the connection
    /// cancels the request.
    pub fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> {
        self.uploading = !request.body().is_none();
        let Self { engine, task, uploading, over, sender, .. } = self;
        // The response's channel must not be told "not yet" by the task's cooperation budget: nobody would wake us.
        let answer = tokio::task::unconstrained(sender.try_send_request(request));
        Sending { engine, task, uploading: *uploading, over, answer }
    }

    /// After `101` or a successful `CONNECT`: the socket, and bytes of the new protocol that came with the head.
    pub async fn into_upgraded(mut self: Box<Self>) -> Option<(TcpStream, Bytes)> {
        let engine = self.engine.as_mut()?;
        if !self.over {
            std::future::poll_fn(|context| self.task.poll(engine, context, true)).await.ok()?;
        }
        let parts = self.engine.take()?.into_parts();
        Some((parts.io.into_inner().into_inner(), parts.read_buf))
    }

    /// The bare socket of an idle connection; `None` when the server has said something unasked.
    #[must_use]
    pub fn park(mut self: Box<Self>) -> Option<TcpStream> {
        let parts = self.engine.take()?.into_parts();
        parts.read_buf.is_empty().then(|| parts.io.into_inner().into_inner())
    }

    fn finish(&mut self) {
        if let Some(engine) = &mut self.engine
            && (self.over || Pin::new(engine).poll(&mut Context::from_waker(Waker::noop())).is_ready())
        {
            self.engine = None;
        }
    }

    fn poll_engine(&mut self, context: &mut Context<'_>) {
        if let Some(engine) = &mut self.engine
            && (self.over || self.task.poll(engine, context, self.uploading).is_ready())
        {
            self.engine = None;
        }
    }
}

/// A request being sent. Written out by hand because an `async` block would hold the request twice.
#[pin_project::pin_project]
struct Sending<'a, F> {
    engine: &'a mut Option<Engine>,
    task: &'a Task,
    uploading: bool,
    over: &'a mut bool,
    #[pin]
    answer: F,
}

impl<F> Future for Sending<'_, F>
where
    F: Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
{
    type Output = Result<Response<Incoming>, Unanswered>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = this.answer;
        if !**this.over {
            **this.over = match &mut **this.engine {
                Some(engine) => this.task.poll(engine, context, *this.uploading).is_ready(),
                None => true,
            };
        }
        let nobody = &mut Context::from_waker(Waker::noop());
        let result = match answer.as_mut().poll(nobody) {
            Poll::Pending if **this.over => {
                // Dropping the engine makes it give back what it has not begun to send.
                **this.engine = None;
                answer.poll(nobody)
            }
            result => result,
        };
        result.map_err(|mut error| Unanswered {
            request: error.take_message().map(Box::new),
            error: error.into_error(),
        })
    }
}

/// An HTTP/1 connection in use, and where it goes back to.
pub struct Lease {
    link: Box<H1>,
    endpoint: Rc<Endpoint>,
}

impl Lease {
    /// Takes the connection for one exchange.
    #[must_use]
    pub fn new(link: Box<H1>, endpoint: Rc<Endpoint>) -> Self {
        Self { link, endpoint }
    }

    /// The next piece of the response.
    pub fn poll_frame(
        &mut self,
        incoming: &mut Incoming,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.link.poll_engine(context);
        let frame = Pin::new(&mut *incoming).poll_frame(&mut Context::from_waker(Waker::noop()));
        if frame.is_pending() && self.link.engine.is_none() {
            // Cannot be: an engine that ends has said so in the body. But waiting for nobody would be for ever.
            return Poll::Ready(None);
        }
        frame
    }

    /// The response is over: back to the pool, if the connection can be used again.
    pub fn release(mut self, upload: Option<&Upload>) {
        // Lets the engine see the end of the message. Nobody needs to be woken by an idle connection.
        self.link.finish();
        if self.link.engine.is_none() {
            return;
        }
        if self.link.sender.is_ready() {
            self.put();
        } else if upload.is_some_and(|upload| {
            upload.started.get() && !upload.ended.get() && upload.failed.get().is_none()
        }) {
            // The app answered early and reads on.
            tokio::task::spawn_local(self.linger());
        }
    }

    async fn linger(mut self) {
        let idle = std::future::poll_fn(|context| {
            self.link.poll_engine(context);
            if self.link.engine.is_none() {
                Poll::Ready(false)
            } else {
                self.link.sender.poll_ready(context).map(|r| r.is_ok())
            }
        });
        if tokio::time::timeout(LINGER_TIME_MAX, idle).await == Ok(true) {
            self.put();
        }
    }

    fn put(self) {
        let Self { mut link, endpoint } = self;
        link.reused = true;
        let shard = Rc::clone(&link.shard);
        endpoint.pool.put(link, &shard);
    }
}

/// Told when an upstream says `100 Continue`.
#[derive(Debug, Clone, Default)]
pub struct Continue(Arc<Told>);

/// Atomic only because hyper's callback must be `Sync`; all on one thread.
#[derive(Debug, Default)]
struct Told {
    said: AtomicBool,
    waker: AtomicWaker,
}

impl Continue {
    /// Asks hyper to tell us about informational responses to this request.
    pub fn watch<B>(&self, request: &mut Request<B>) {
        let told = Arc::clone(&self.0);
        hyper::ext::on_informational(request, move |response| {
            if response.status() == http::StatusCode::CONTINUE {
                told.said.store(true, Ordering::Relaxed);
                told.waker.wake();
            }
        });
    }

    /// Ready once it was said.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.0.said.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        self.0.waker.register(context.waker());
        Poll::Pending
    }
}
