//! One attempt after the first, and another, for as long as the rule's policy wants and the cluster's budget allows.
//!
//! In: a request that is kept, if it may be sent again. Out: the first answer that is good enough, or the last one there
//! was. Invariants: an answer that is passed on is never retried; whoever failed the request is not asked again while
//! there is somebody else; a budget that is spent changes no answer, it only ends the attempts. Non-goal: what is worth
//! a retry (`policy::retry`), the budget itself (`balance::circuits`).

use std::rc::Rc;

use super::attempt::{Answer, Arrived, Unanswered, Way};
use super::guard::Within;
use crate::balance::Endpoint;
use crate::http::class;
use crate::policy::retry::{Ended, RetryPolicy};
use crate::record::Limit;

/// Says that an answer's sender was limited by somebody, who should not be asked again at once.
const RATE_LIMITED: &str = "x-envoy-ratelimited";

impl Way<'_> {
    /// The attempts after the first, which `ended` in a way that the policy wants another.
    pub(super) async fn retries(
        &mut self,
        policy: &RetryPolicy,
        ended: Result<Answer, Unanswered>,
    ) -> Result<Answer, Unanswered> {
        let whole = self.whole.clone();
        match (Within { whole, work: self.further(policy, ended) }).await {
            Some(answer) => answer,
            None => Err(self.out_of_time()),
        }
    }

    async fn further(
        &mut self,
        policy: &RetryPolicy,
        mut ended: Result<Answer, Unanswered>,
    ) -> Result<Answer, Unanswered> {
        let mut retries = 0;
        loop {
            // Held while the attempt is under way.
            let Some(_permit) = self.cluster.circuit().retry() else {
                if let Some(exchange) = self.exchange {
                    exchange.record.retry_denied();
                }
                return ended;
            };
            retries += 1;
            self.dismiss(ended.ok());
            tokio::time::sleep(policy.backoff.pause(retries, fastrand::f64())).await;
            if let Some(exchange) = self.exchange {
                exchange.record.retried();
            }
            if let Some(whole) = self.whole.as_ref().filter(|_| self.told) {
                let left = whole.left(tokio::time::Instant::now());
                self.announce(left);
            }
            ended = self.attempt().await;
            if !self.wants(policy, retries, &ended) {
                return ended;
            }
        }
    }

    /// Whether an attempt that `ended` like this is followed by another.
    pub(super) fn wants(
        &self,
        policy: &RetryPolicy,
        retries: u32,
        ended: &Result<Answer, Unanswered>,
    ) -> bool {
        let ended = match ended {
            Ok(answer) if matches!(answer.body(), Arrived::Switch(_)) => None,
            Ok(answer) => {
                let (status, headers) = (answer.status(), answer.headers());
                let grpc = class::grpc_status(headers).filter(|_| self.grpc);
                // Names are hashed; most answers are good ones.
                let bad = grpc.is_some() || !status.is_success();
                Some(Ended::Answered {
                    status,
                    grpc,
                    rate_limited: bad && headers.contains_key(RATE_LIMITED),
                })
            }
            Err(unanswered) => unanswered.ended,
        };
        let wanted = retries < policy.retries && ended.is_some_and(|ended| policy.wants(ended));
        if wanted && !self.outgoing.is_whole() {
            self.worker.shard.limit(Limit::BufferedBody);
        }
        wanted && self.outgoing.is_whole()
    }

    /// Lets go of an attempt.
    fn dismiss(&mut self, answer: Option<Answer>) {
        if let Some(Arrived::Body(source)) = answer.map(Answer::into_body) {
            source.discard();
        }
        let Some(exchange) = self.exchange else { return };
        exchange.judged = None;
        if let Some(working) = exchange.working.take() {
            self.failed_at(working.endpoint());
        }
    }

    /// Asks somebody else next time.
    pub(super) fn failed_at(&mut self, endpoint: &Rc<Endpoint>) {
        // As many as there are endpoints at most, however many attempts there may be.
        if !self.tried.iter().any(|known| Rc::ptr_eq(known, endpoint)) {
            self.tried.push(Rc::clone(endpoint));
        }
    }
}
