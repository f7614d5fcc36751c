//! The upstream half: one HTTP/1 connection driven by whoever uses it, HTTP/2 connections shared by many.
//!
//! In: a request fit to be sent, a connected socket. Out: the response's head, and its body as it comes.
//!
//! - [`exclusive`]: HTTP/1. A connection has no task of its own: it is polled by the request that holds it, first
//!   while waiting for the head, then whenever the client's side asks for more body. So a request costs no wake-ups
//!   between tasks, an idle connection costs no task, and dropping a request closes its connection, which is all that
//!   cancelling means in HTTP/1.
//! - [`multiplexed`]: HTTP/2. A connection has a task, a request has none.
//!
//! Invariant: a connection goes back to the pool only when it could carry another request. Non-goal: deciding where to
//! connect, and retrying (`http::forward`).

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::balance::Endpoint;
use crate::record::Shard;

mod decode;
mod exclusive;
mod multiplexed;

pub use decode::Malformed;
pub use exclusive::{Broken, Continue, H1};
pub use multiplexed::{H2, H2Stream};

/// How long an upload may go on after its response has ended before the connection is closed.
const LINGER_TIME_MAX: Duration = Duration::from_secs(60);

/// An HTTP/1 connection in use, and where it goes back to.
pub struct Lease {
    link: Box<H1>,
    endpoint: Rc<Endpoint>,
    shard: Rc<Shard>,
}

impl Lease {
    /// Takes the connection for one exchange.
    #[must_use]
    pub fn new(link: Box<H1>, endpoint: Rc<Endpoint>, shard: Rc<Shard>) -> Self {
        Self { link, endpoint, shard }
    }

    /// The next piece of the response.
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.link.poll_frame(context)
    }

    /// Whether the response has ended.
    #[must_use]
    pub fn is_end_stream(&self) -> bool {
        self.link.is_end_stream()
    }

    /// What is known about the length of the rest of the response.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        self.link.size_hint()
    }

    /// The response is over: back to the pool, if the connection can be used again.
    pub fn release(self) {
        if self.link.is_free() {
            self.put();
        } else if self.link.will_be_free() {
            // The app answered early and reads on.
            tokio::task::spawn_local(self.linger());
        }
    }

    async fn linger(mut self) {
        let rest = std::future::poll_fn(|context| self.link.poll_rest(context));
        if tokio::time::timeout(LINGER_TIME_MAX, rest).await == Ok(true) {
            self.put();
        }
    }

    fn put(self) {
        let Self { mut link, endpoint, shard } = self;
        link.rest();
        endpoint.pool.put(link, &shard);
    }
}
