//! What a rule's policies do to a request before anything is sent, and how long all of it may take.
//!
//! fault → rate limit → (the rule's own answer, or its changes) → mirror → timeout → retry, the order of Envoy's filters.
//! In: a request and the rule it fell under. Out: an answer, or a refusal. Invariants: a timeout that the caller granted is only ever shortened; whoever is told how
//! much time is left is told what is left now. Surprise: an injected delay is not part of the timeout, as in Envoy, where
//! the clock belongs to the router behind the fault filter.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::request::Parts;
use pin_project::pin_project;
use weft_wire::{DecidedBy, Reason, header};

use super::attempt::{Answer, Unanswered, Way};
use super::{Refusal, Session, mirror};
use crate::balance::Outcome;
use crate::http::clock::Clock;
use crate::http::headers::Intent;
use crate::policy::limit::Taken;
use crate::policy::retry::RetryPolicy;
use crate::policy::timeout;
use crate::record::Limit;
use crate::reply;
use crate::route::policies::RateLimit;
use crate::route::rule::Route;
use crate::worker::Worker;

/// What a rule does to a request in front of everything else. Whether it was held up by that.
pub(super) async fn front(session: &Session, route: &Route, request: &Parts) -> Result<bool, Refusal> {
    let mut held_up = false;
    if let Some(fault) = route.fault() {
        let injected = fault.inject(request, [fastrand::u64(..), fastrand::u64(..)]);
        if let Some(delay) = injected.delay {
            // Boxed, because most requests are not held up.
            Box::pin(hold_up(&session.worker, delay)).await;
            held_up = true;
        }
        if let Some(abort) = injected.abort {
            return Err(Refusal::telling(Reason::FaultInjected, reply::aborted(abort)));
        }
    }
    if let Some(limit) = route.rate_limit() {
        admit(session, limit)?;
    }
    Ok(held_up)
}

async fn hold_up(worker: &Worker, delay: Duration) {
    match worker.http.delayed.acquire() {
        Some(_active) => tokio::time::sleep(delay).await,
        None => worker.shard.limit(Limit::Delayed),
    }
}

fn admit(session: &Session, limit: &RateLimit) -> Result<(), Refusal> {
    match limit.take(session.client, Instant::now(), fastrand::u64(..)) {
        Taken::Token => Ok(()),
        Taken::Evicted => {
            session.worker.shard.limit(Limit::RateLimitCallers);
            Ok(())
        }
        Taken::None => Err(Refusal::telling(Reason::RateLimited, reply::limited(limit.status()))),
    }
}

impl Way<'_> {
    /// Makes ready what a request needs that has a policy, or whose caller does not wait for ever. How it is retried.
    pub(super) fn guard<'r>(
        &mut self,
        session: &Session,
        route: Option<&'r Route>,
        deadline: bool,
        held_up: bool,
    ) -> Option<&'r RetryPolicy> {
        let mut allowed = None;
        if deadline {
            allowed = timeout::shortest(None, &self.outgoing.head.headers, self.grpc);
            // Between sidecars only: an app, or somebody outside, would not know what it means.
            self.outgoing.head.headers.remove(header::DEADLINE);
        }
        let mut retry = None;
        if let Some(route) = route {
            allowed = [allowed, route.timeout()].into_iter().flatten().min();
            if matches!(self.intent, Intent::Plain | Intent::Continue) {
                retry = route.retry();
                self.mirror(route, allowed);
            }
        }
        if let Some(retry) = retry {
            self.outgoing.keep();
            self.per_try = retry.per_try_timeout;
        }
        if let Some(allowed) = allowed {
            self.allow(allowed, session, held_up);
        }
        retry
    }

    /// Starts the clock of all attempts together.
    fn allow(&mut self, allowed: Duration, session: &Session, held_up: bool) {
        let (mut upload, mut now) = (None, None);
        if let Some(exchange) = self.exchange {
            upload.clone_from(&exchange.upload);
            // What came between is a microsecond, unless there was a delay on purpose.
            now = Some(exchange.record.started()).filter(|_| !held_up);
        }
        let now = now.unwrap_or_else(Instant::now);
        self.whole = Some(Rc::new(Clock::new(&self.worker.http.timers, allowed, upload, now.into())));
        self.told = session.by == DecidedBy::ClientProxy && self.destination.is_routed();
        if self.told {
            self.announce(allowed);
        }
    }

    /// Tells the next hop how much time it has.
    pub(super) fn announce(&mut self, left: Duration) {
        let left = self.per_try.map_or(left, |each| each.min(left));
        timeout::announce(&mut self.outgoing.head.headers, left, self.grpc, &self.worker.http.announced);
    }

    fn mirror(&mut self, route: &Route, allowed: Option<Duration>) {
        for mirror in route.mirrors() {
            if mirror.share.draw() {
                self.outgoing.keep();
                mirror::start(self, mirror, allowed);
            }
        }
    }

    /// One attempt, for as long as all of them may take.
    pub(super) async fn attempt_in_time(&mut self) -> Result<Answer, Unanswered> {
        let whole = self.whole.clone();
        match (Within { whole, work: self.attempt() }).await {
            Some(answer) => answer,
            None => Err(self.out_of_time()),
        }
    }

    /// Whoever was being asked did not answer in time. Nor will anybody else.
    #[cold]
    pub(super) fn out_of_time(&mut self) -> Unanswered {
        let allowed = self.whole.as_ref().map_or(Duration::ZERO, |clock| clock.after());
        if let Some(exchange) = self.exchange {
            exchange.judge(Outcome::LocalOrigin(Reason::RequestTimeout), allowed, Instant::now());
        }
        Reason::RequestTimeout.into()
    }
}

/// Work that may take as long as a clock says, or as long as it likes. `None`: it did not end in time.
#[pin_project]
pub(super) struct Within<F> {
    #[pin]
    pub work: F,
    pub whole: Option<Rc<Clock>>,
}

impl<F: Future> Future for Within<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match (this.work.poll(context), this.whole) {
            (Poll::Ready(output), _) => Poll::Ready(Some(output)),
            (Poll::Pending, Some(whole)) => whole.poll_over(context).map(|()| None),
            (Poll::Pending, None) => Poll::Pending,
        }
    }
}
