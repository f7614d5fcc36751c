//! An HTTP/1 connection while its response is read, and the way back to its pool.
//!
//! In: a connection whose response has begun. Out: the response's body. Invariant: an upload that is not over when its
//! response begins goes on whether or not anybody reads the response. An app may stream a large answer while its client
//! first wants to finish sending; if the one moved only with the other, both would wait for ever. So such an upload
//! gets a task of its own, which ends with its lease. Everybody else, nearly every request, pays nothing.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::task::AbortHandle;

use super::{Broken, H1};
use crate::balance::Endpoint;
use crate::record::Shard;

/// How long an upload may go on after its response has ended before the connection is closed.
const LINGER_TIME_MAX: Duration = Duration::from_secs(60);

/// Bytes of an unwanted answer that are read so that its connection can be kept: an error page.
const DISCARD_MAX: usize = 16 * 1024;

/// An HTTP/1 connection in use, and where it goes back to.
pub struct Lease {
    link: Link,
    endpoint: Rc<Endpoint>,
    shard: Rc<Shard>,
}

enum Link {
    /// Upload and response are moved by who reads the response.
    Whole(Box<H1>),
    /// The upload has a task.
    Shared(Pumped),
    /// Given back.
    Gone,
}

/// A connection whose upload is moved by a task of its own.
struct Pumped {
    shared: Rc<Shared>,
    task: AbortHandle,
}

struct Shared {
    /// `None` once the lease is over.
    link: RefCell<Option<Box<H1>>>,
    /// How the upload broke off.
    broken: Cell<Option<Broken>>,
    reader: RefCell<Option<Waker>>,
}

impl Lease {
    /// Takes the connection for one exchange, whose response has begun.
    #[must_use]
    pub fn new(link: Box<H1>, endpoint: Rc<Endpoint>, shard: Rc<Shard>) -> Self {
        let link = if link.is_uploading() { Link::Shared(Pumped::start(link)) } else { Link::Whole(link) };
        Self { link, endpoint, shard }
    }

    /// The next piece of the response.
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.link {
            Link::Whole(link) => link.poll_frame(context),
            Link::Shared(pumped) => pumped.poll_frame(context),
            Link::Gone => Poll::Ready(None),
        }
    }

    /// Whether the response has ended.
    #[must_use]
    pub fn is_end_stream(&self) -> bool {
        self.look(H1::is_end_stream).unwrap_or(true)
    }

    /// What is known about the length of the rest of the response.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        self.look(H1::size_hint).unwrap_or_default()
    }

    fn look<T>(&self, at: impl Fn(&H1) -> T) -> Option<T> {
        match &self.link {
            Link::Whole(link) => Some(at(link)),
            Link::Shared(pumped) => pumped.shared.link.borrow().as_deref().map(at),
            Link::Gone => None,
        }
    }

    /// The response is over: back to the pool, if the connection can be used again.
    pub fn release(mut self) {
        let Some(link) = std::mem::replace(&mut self.link, Link::Gone).into_whole() else { return };
        if link.is_free() {
            self.put(link);
        } else if link.will_be_free() {
            // The app answered early and reads on.
            tokio::task::spawn_local(self.linger(link));
        }
    }

    /// The response is not wanted: back to the pool if all of it is here already, or else the connection closes. It also
    /// closes when the request is still being sent: another attempt may be about to read the same body.
    pub fn discard(mut self) {
        if self.look(H1::is_uploading).unwrap_or(false) {
            return;
        }
        let mut room = DISCARD_MAX;
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if self.is_end_stream() {
                return self.release();
            }
            match self.poll_frame(&mut context) {
                Poll::Ready(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    match room.checked_sub(length) {
                        Some(rest) => room = rest,
                        None => return,
                    }
                }
                Poll::Ready(None) => return self.release(),
                Poll::Ready(Some(Err(_))) | Poll::Pending => return,
            }
        }
    }

    async fn linger(self, mut link: Box<H1>) {
        let rest = std::future::poll_fn(|context| link.poll_upload(context));
        if matches!(tokio::time::timeout(LINGER_TIME_MAX, rest).await, Ok(Ok(()))) && link.is_free() {
            self.put(link);
        }
    }

    fn put(self, mut link: Box<H1>) {
        link.rest();
        self.endpoint.pool.put(link, &self.shard);
    }
}

impl Link {
    fn into_whole(self) -> Option<Box<H1>> {
        match self {
            Self::Whole(link) => Some(link),
            // Its task finds nothing to do any more, and ends.
            Self::Shared(pumped) => pumped.shared.link.take(),
            Self::Gone => None,
        }
    }
}

impl Pumped {
    fn start(link: Box<H1>) -> Self {
        let shared = Rc::new(Shared {
            link: RefCell::new(Some(link)),
            broken: Cell::new(None),
            reader: RefCell::new(None),
        });
        let of_task = Rc::clone(&shared);
        let task =
            tokio::task::spawn_local(std::future::poll_fn(move |context| of_task.poll_upload(context)));
        Self { shared, task: task.abort_handle() }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(broken) = self.shared.broken.take() {
            return Poll::Ready(Some(Err(broken)));
        }
        *self.shared.reader.borrow_mut() = Some(context.waker().clone());
        match &mut *self.shared.link.borrow_mut() {
            Some(link) => link.poll_receive(context),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Pumped {
    fn drop(&mut self) {
        // Closes the connection, unless it was taken out before.
        drop(self.shared.link.take());
        self.task.abort();
    }
}

impl Shared {
    fn poll_upload(&self, context: &mut Context<'_>) -> Poll<()> {
        let moved = match &mut *self.link.borrow_mut() {
            Some(link) => link.poll_upload(context),
            None => return Poll::Ready(()),
        };
        moved.map(|result| {
            if let Err(broken) = result {
                self.broken.set(Some(broken));
                if let Some(reader) = self.reader.borrow_mut().take() {
                    reader.wake();
                }
            }
        })
    }
}
