//! What a rule's policies do to a request before anything is sent, and how long all of it may take.
//!
//! fault → rate limit → (the rule's own answer, or its changes) → mirror → timeout → retry, the order of Envoy's filters.
//! In: a request and the rule it fell under. Out: an answer, or a refusal. Invariants: a timeout that the caller granted is only ever shortened; whoever is told how
//! much time is left is told what is left now. Surprise: an injected delay is not part of the timeout, as in Envoy, where
//! the clock belongs to the router behind the fault filter.

use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::request::Parts;
use weft_wire::{DecidedBy, Reason, header};

use super::attempt::{Answer, Unanswered, Way};
use super::{Refusal, Session, mirror};
use crate::balance::Outcome;
use crate::http::clock::Clock;
use crate::http::headers::Intent;
use crate::policy::limit::Taken;
use crate::policy::retry::{Ended, RetryPolicy};
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
    /// A request that has a policy, or whose caller does not wait for ever.
    pub(super) async fn guarded(
        &mut self,
        session: &Session,
        route: Option<&Route>,
        deadline: bool,
    ) -> Result<Answer, Refusal> {
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
        if retry.is_some() {
            self.outgoing.keep();
        }
        let announced = session.by == DecidedBy::ClientProxy && self.destination.is_routed();
        self.within(allowed, retry, announced).await.map_err(|unanswered| unanswered.refusal)
    }

    fn mirror(&mut self, route: &Route, allowed: Option<Duration>) {
        for mirror in route.mirrors() {
            if mirror.share.draw() {
                self.outgoing.keep();
                mirror::start(self, mirror, allowed);
            }
        }
    }

    /// The attempts, for as long as they may take; what is left then is for the answer's body.
    async fn within(
        &mut self,
        allowed: Option<Duration>,
        retry: Option<&RetryPolicy>,
        announced: bool,
    ) -> Result<Answer, Unanswered> {
        let clock = allowed.map(|allowed| {
            let upload = self.exchange.as_ref().and_then(|exchange| exchange.upload.clone());
            Rc::new(Clock::new(allowed, upload, tokio::time::Instant::now()))
        });
        self.whole.clone_from(&clock);
        let told = clock.as_deref().filter(|_| announced);
        let answer = {
            let mut attempts = pin!(self.attempts(retry, told));
            std::future::poll_fn(|context| match attempts.as_mut().poll(context) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => {
                    clock.as_ref().map_or(Poll::Pending, |clock| clock.poll_over(context)).map(|()| None)
                }
            })
            .await
        };
        match (answer, &mut self.exchange) {
            (Some(Ok(answer)), Some(exchange)) => {
                exchange.deadline = clock;
                Ok(answer)
            }
            (Some(answer), _) => answer,
            (None, exchange) => {
                // Whoever was being asked did not answer in time.
                let outcome = Outcome::LocalOrigin(Reason::RequestTimeout);
                let asked = exchange.as_ref();
                if let Some(exchange) = asked {
                    exchange.judge(outcome, allowed.unwrap_or_default(), Instant::now());
                }
                Err(Unanswered::new(Reason::RequestTimeout, Ended::TimedOut))
            }
        }
    }
}
