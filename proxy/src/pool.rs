//! Open connections to one endpoint, kept by one worker.
//!
//! In: HTTP/1 links whose response has ended, connections opened elsewhere (detection's race), HTTP/2 connections
//! with their streams. Out: the most recently used one that is still good. Invariants: last in, first out, so that
//! a burst's extra connections fall idle and expire; at most [`IDLE_MAX`] idle ones; a connection on which the
//! server has said anything while idle, end of stream included, is never given out.
//!
//! Surprise: an idle HTTP/1 connection is *parked* by the second sweep that finds it: its buffers are dropped and the bare socket
//! kept. Nobody waits on idle connections; they are probed when swept and when taken. Requests without a connection open
//! another, up to the cluster's limit, and beyond it wait for one that is given back ([`Pool::freed`]). Non-goal: a fair
//! queue; who looks first is served first.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use weft_wire::Reason;

use crate::balance::ClusterState;
use crate::balance::circuits::ConnectionPermit;
use crate::http::client::{H1, H2};
use crate::record::{Limit, Shard};
use crate::tls::Stream;

/// Idle connections kept for each endpoint. Above the concurrency that one worker saturates at; a parked
/// connection costs half a kilobyte here and as much in the kernel.
const IDLE_MAX: usize = 256;

/// How long an idle connection is kept. Below the keep-alive timeouts that common servers have (nginx 75 s), so
/// that it is mostly us who close, without a race. Servers with shorter ones (Node 5 s, gunicorn 2 s) are seen by
/// the probe.
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);

/// HTTP/2 connections to one endpoint. Another is opened only when all are out of streams.
const H2_CONNECTIONS_MAX: usize = 8;

/// How often somebody who waits for room looks again: connections of other workers close without saying so here.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Connections of one worker to one endpoint.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    counts: Rc<Counts>,
    /// Sweeps so far. An exchange that ends is stamped with it, which saves asking the clock.
    sweeps: Cell<u32>,
    h2: RefCell<Vec<H2>>,
    opening: Rc<Turn>,
    closed: Cell<bool>,
    /// Whether connections are mutual TLS now.
    secure: Cell<bool>,
    /// When the last sweep was.
    swept: Cell<Option<Instant>>,
}

#[derive(Default)]
struct Turn {
    busy: Cell<bool>,
    over: Notify,
    /// How many failed, and why the last one did.
    failures: Cell<u32>,
    why: Cell<Option<Reason>>,
}

/// Why there is no HTTP/2 connection yet.
pub enum Unshared {
    /// The caller shall open one.
    Open(Opening),
    /// Somebody tried meanwhile, and could not.
    Failed(Reason),
}

/// Leave to open an HTTP/2 connection; others wait until it is dropped.
#[must_use = "others wait until this is dropped"]
pub struct Opening(Rc<Turn>);

impl Opening {
    /// It could not be opened: those who waited for it need not find out one after the other.
    pub fn failed(self, reason: Reason) {
        self.0.failures.set(self.0.failures.get().wrapping_add(1));
        self.0.why.set(Some(reason));
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.busy.set(false);
        self.0.over.notify_waiters();
    }
}

/// What is open, idle or not.
#[derive(Debug, Default)]
struct Counts {
    open: Cell<usize>,
    /// Requests that wait for a connection.
    waiting: Cell<usize>,
    freed: Notify,
    /// Grows when all connections so far must not be used any more.
    era: Cell<u32>,
}

impl Counts {
    fn free(&self) {
        if self.waiting.get() > 0 {
            self.freed.notify_one();
        }
    }
}

/// An open connection, as its cluster's limit and its endpoint's pool count it.
#[derive(Debug)]
#[must_use = "the connection counts as open for as long as this lives"]
pub struct Open {
    of: Rc<Counts>,
    era: u32,
    /// From when on it carries no further exchange.
    until: Option<Instant>,
    /// `None`: opened before anybody knew whose it would be.
    _permit: Option<ConnectionPermit>,
}

impl Open {
    /// Ends the connection's use at `until`.
    pub fn set_end(&mut self, until: Instant) {
        self.until = Some(until);
    }

    /// Whether it must carry no further exchange, as of `now` where that is known.
    #[must_use]
    pub fn is_over(&self, now: Option<Instant>) -> bool {
        self.era != self.of.era.get() || self.until.is_some_and(|until| now.is_some_and(|now| now >= until))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.of.open.set(self.of.open.get() - 1);
        self.of.free();
    }
}

enum Idle {
    /// With its buffers, and the sweep before which it came back.
    Warm(Box<H1>, u32),
    /// Without, and since when.
    Parked(Stream, Open, Instant),
}

/// An HTTP/1 connection from the pool.
pub enum Taken {
    /// Ready to send.
    Warm(Box<H1>),
    /// Without buffers.
    Bare(Stream, Open),
}

impl Pool {
    /// The connection that was used last and is still good.
    #[must_use]
    pub fn take(&self) -> Option<Taken> {
        let mut idle = self.idle.borrow_mut();
        loop {
            match idle.pop()? {
                // Looks at the socket itself before it writes.
                Idle::Warm(link, _) => return Some(Taken::Warm(link)),
                Idle::Parked(stream, open, _) if is_quiet(&stream) => return Some(Taken::Bare(stream, open)),
                Idle::Parked(..) => {}
            }
        }
    }

    /// The connection that was used last, if it is warm.
    #[must_use]
    pub fn take_warm(&self) -> Option<Box<H1>> {
        let mut idle = self.idle.borrow_mut();
        match idle.pop_if(|idle| matches!(idle, Idle::Warm(..)))? {
            Idle::Warm(link, _) => Some(link),
            Idle::Parked(..) => None,
        }
    }

    /// Keeps a connection whose response has ended.
    pub fn put(&self, link: Box<H1>, shard: &Shard) {
        if self.closed.get() || link.is_over(self.swept.get()) {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= IDLE_MAX {
            shard.limit(Limit::Pool);
            return;
        }
        idle.push(Idle::Warm(link, self.sweeps.get()));
        self.counts.free();
    }

    /// Leave to open a connection. The first one is always allowed: without it requests to this endpoint could never be
    /// sent. `again`: whoever asks was refused before, and has waited.
    #[must_use]
    pub fn open(&self, cluster: &ClusterState, again: bool) -> Option<Open> {
        let permit = if again { cluster.connection_at_last() } else { cluster.connection() };
        let first = || (self.counts.open.get() == 0).then(|| cluster.first_connection()).flatten();
        Some(self.adopt(Some(permit.or_else(first)?)))
    }

    /// Counts a connection that was opened elsewhere.
    pub fn adopt(&self, permit: Option<ConnectionPermit>) -> Open {
        self.counts.open.set(self.counts.open.get() + 1);
        Open { era: self.counts.era.get(), until: None, of: Rc::clone(&self.counts), _permit: permit }
    }

    /// Closes the connection that has been idle for longest, to make room for a new one.
    pub fn evict(&self) {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            drop(idle.remove(0));
        }
    }

    /// Completes when it is worth looking again for a connection or for room. Cancel safe.
    pub async fn freed(&self) {
        struct Waiting<'a>(&'a Counts);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.waiting.set(self.0.waiting.get() - 1);
            }
        }
        self.counts.waiting.set(self.counts.waiting.get() + 1);
        let _waiting = Waiting(&self.counts);
        // Too late is as good as in time.
        drop(tokio::time::timeout(LOOK_INTERVAL, self.counts.freed.notified()).await);
    }

    /// An HTTP/2 connection with room for another stream, the oldest one first, so that the others can end; or leave
    /// to open one. One is opened at a time: who comes meanwhile waits for it, and finds room on it or fails with it.
    ///
    /// # Errors
    /// When the caller shall open one: it tells so by dropping the guard, after [`put_h2`](Self::put_h2) or without. When
    /// the one that was waited for could not be opened.
    pub async fn h2(&self) -> Result<H2, Unshared> {
        let failures = self.opening.failures.get();
        loop {
            if let Some(connection) = self.shared_h2() {
                return Ok(connection);
            }
            if let Some(why) = self.opening.why.get().filter(|_| self.opening.failures.get() != failures) {
                return Err(Unshared::Failed(why));
            }
            if !self.opening.busy.replace(true) {
                return Err(Unshared::Open(Opening(Rc::clone(&self.opening))));
            }
            self.opening.over.notified().await;
        }
    }

    /// The HTTP/2 connection with the fewest streams, whether it has room or not.
    #[must_use]
    pub fn least_h2(&self) -> Option<H2> {
        let list = self.h2.borrow();
        list.iter().filter(|connection| !connection.is_closed()).min_by_key(|c| c.streams()).cloned()
    }

    fn shared_h2(&self) -> Option<H2> {
        let mut list = self.h2.borrow_mut();
        list.retain(|connection| !connection.is_closed());
        match list.iter().find(|connection| connection.has_room()) {
            Some(connection) => Some(connection.clone()),
            // All full: rather wait in line on one of them than open a connection for every stream.
            None if list.len() >= H2_CONNECTIONS_MAX => list.iter().min_by_key(|c| c.streams()).cloned(),
            None => None,
        }
    }

    /// Says whether connections are mutual TLS from now on. Those that are not what they should be are used up.
    pub fn secure(&self, mutual: bool) {
        if self.secure.replace(mutual) != mutual {
            self.forget();
        }
    }

    /// Another one is at this address: no connection so far carries another exchange.
    pub fn forget(&self) {
        self.counts.era.set(self.counts.era.get().wrapping_add(1));
        self.idle.borrow_mut().clear();
        self.h2.borrow_mut().clear();
    }

    /// Keeps an HTTP/2 connection for as long as it lives, if it leads to whom it must lead to by now.
    pub fn put_h2(&self, connection: H2) {
        if !self.closed.get() && !connection.is_over(Instant::now()) {
            self.h2.borrow_mut().push(connection);
        }
    }

    /// The endpoint is gone: idle connections close now, the others when their requests end.
    pub fn close(&self) {
        self.closed.set(true);
        self.idle.borrow_mut().clear();
        self.h2.borrow_mut().clear();
    }

    /// Whether [`close`](Self::close) was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Parks what has cooled down, drops what died or is too old. Says whether something is still warm.
    pub fn sweep(&self, now: Instant, shard: &Shard) -> bool {
        let mut warm = false;
        let sweep = self.sweeps.get();
        self.swept.set(Some(now));
        self.sweeps.set(sweep.wrapping_add(1));
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            let swept = std::mem::take(&mut *idle);
            idle.extend(swept.into_iter().filter_map(|idle| match idle {
                Idle::Warm(link, _) if link.is_over(Some(now)) => None,
                Idle::Parked(_, open, _) if open.is_over(Some(now)) => None,
                Idle::Warm(link, since) if since == sweep => {
                    warm = true;
                    Some(Idle::Warm(link, since))
                }
                Idle::Warm(link, _) => {
                    let (stream, _, open) = link.into_parts();
                    Some(Idle::Parked(stream, open, now))
                }
                Idle::Parked(.., since) if now.saturating_duration_since(since) >= IDLE_TIME_MAX => {
                    shard.limit(Limit::IdleTimeout);
                    None
                }
                Idle::Parked(stream, open, since) => {
                    is_quiet(&stream).then_some(Idle::Parked(stream, open, since))
                }
            }));
        }
        // Dropping the last handle ends an HTTP/2 connection once its streams have ended.
        self.h2.borrow_mut().retain(|connection| {
            !connection.is_closed() && !connection.is_over(now) && !connection.is_idle_for(now, IDLE_TIME_MAX)
        });
        warm
    }
}

/// Whether a server has neither closed nor said anything. An HTTP/1 server has nothing to say unasked.
fn is_quiet(stream: &Stream) -> bool {
    let mut byte = [0; 1];
    matches!(stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_was_being_opened_to_somebody_else_is_not_shared() {
        LocalSet::new()
            .run_until(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let pool = Pool::default();
                for changes in [false, true] {
                    let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                    let connection = H2::start(socket.into(), pool.adopt(None)).await.unwrap();
                    if changes {
                        pool.forget();
                    }
                    pool.put_h2(connection);
                    assert_eq!(pool.least_h2().is_some(), !changes);
                }
            })
            .await;
    }
}
