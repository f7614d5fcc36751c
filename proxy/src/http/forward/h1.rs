//! An attempt over HTTP/1.

use std::rc::Rc;
use std::time::Instant;

use http::{HeaderValue, StatusCode, Version, header};
use weft_wire::Reason;

use super::attempt::{Answer, Arrived, Unanswered, Way};
use crate::balance::Endpoint;
use crate::detect::Prefixed;
use crate::http::body::Source;
use crate::http::client::{Broken, Continue, H1, Lease};
use crate::http::headers::Intent;
use crate::policy::retry::Ended;
use crate::pool::Taken;
use crate::tls::Alpn;

/// A connection and whose it is.
type Link = (Rc<Endpoint>, Box<H1>);

impl Way<'_> {
    pub(super) async fn over_h1(&mut self) -> Result<Answer, Unanswered> {
        self.prepare_h1();
        let (mut endpoint, mut link) = match self.warm_h1()? {
            Ok(warm) => warm,
            Err(chosen) => Box::pin(self.h1(chosen, false)).await?,
        };
        self.begin_h1(&mut link);
        loop {
            let begun = self.begin();
            let answer = self.in_time(begun, |context| link.poll_head(context)).await;
            let unanswered = match answer {
                Some(Ok(head)) if self.is_switch(head.status()) => {
                    self.answered(begun, &head);
                    let (stream, early, open) = link.into_parts();
                    return Ok(self.switch(head, &endpoint, Prefixed::new(stream, early), open));
                }
                Some(Ok(head)) if head.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    // Nobody asked; what follows cannot be understood.
                    Unanswered::malformed()
                }
                Some(Ok(head)) => {
                    self.answered(begun, &head);
                    let lease = Lease::new(link, endpoint, Rc::clone(&self.worker.shard));
                    return Ok(head.map(|()| Arrived::Body(Source::H1(lease))));
                }
                Some(Err(_)) if link.may_repeat() => {
                    // Closed under us. The pool's others may be just as stale.
                    let (other, mut fresh) = Box::pin(self.h1(None, true)).await?;
                    fresh.inherit(&mut link);
                    (endpoint, link) = (other, fresh);
                    continue;
                }
                Some(Err(broken)) => self.unanswered_h1(&broken, link.has_sent()),
                None => Unanswered::new(Reason::RequestTimeout, Ended::TimedOut),
            };
            self.failed(begun, &unanswered);
            self.failed_at(&endpoint);
            return Err(unanswered);
        }
    }

    fn begin_h1(&mut self, link: &mut H1) {
        let mut body = self.outgoing.body();
        let gate = (self.intent == Intent::Continue).then(Continue::default);
        if let Some(gate) = &gate {
            body.hold(gate.clone());
        }
        let upload = self.exchange.as_ref().and_then(|exchange| exchange.upload.as_ref());
        let keep = self.outgoing.is_kept();
        link.begin(&mut self.outgoing.head, body, upload, gate, keep);
    }

    /// What HTTP/1.1 to the app wants and the client's version may not have had.
    fn prepare_h1(&mut self) {
        let head = &mut self.outgoing.head;
        if head.version != Version::HTTP_11 {
            head.version = Version::HTTP_11;
            if !head.headers.contains_key(header::HOST) {
                head.headers.insert(header::HOST, self.destination.host());
            }
        }
        if self.intent != Intent::Upgrade && head.headers.contains_key(header::TE) {
            // Whoever sends TE names it (RFC 9110 §10.1.4).
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
    }

    /// A connection that needs no waiting: what almost every request gets. Otherwise the endpoint that was chosen, if one
    /// was: choosing again would skip its turn, and with two endpoints in turn one would never be asked.
    fn warm_h1(&mut self) -> Result<Result<Link, Option<Rc<Endpoint>>>, Reason> {
        if self.opened.borrow().is_some() {
            return Ok(Err(None));
        }
        let endpoint = self.choose()?;
        Ok(match endpoint.pool.take_warm() {
            Some(link) => Ok((endpoint, link)),
            None => Err(Some(endpoint)),
        })
    }

    fn unanswered_h1(&self, broken: &Broken, sent: bool) -> Unanswered {
        tracing::debug!(error = %broken, "no response");
        match broken {
            Broken::Upload(reason) => (*reason).into(),
            Broken::Malformed(_) => Unanswered::malformed(),
            Broken::Io(error) => self.broken_off(error, sent),
            Broken::Closed => Unanswered::new(Reason::UpstreamReset, Ended::Reset { sent }),
        }
    }

    /// A connection: from detection's race, from the pool, or a new one, if possible to the endpoint that was `chosen`.
    async fn h1(&mut self, mut chosen: Option<Rc<Endpoint>>, fresh: bool) -> Result<Link, Unanswered> {
        if let Some((endpoint, stream, open)) = self.ahead() {
            // It has waited for the client's first bytes, and may have been closed meanwhile.
            return Ok((endpoint, H1::new(stream, open, true)));
        }
        let _pending = self.cluster.circuit().pending().ok_or(Reason::ConcurrencyLimited)?;
        let begun = Instant::now();
        let mut waited = false;
        let mut count = 1;
        loop {
            let endpoint = match chosen.take() {
                Some(endpoint) => endpoint,
                None => self.choose()?,
            };
            let taken = if fresh { None } else { endpoint.pool.take() };
            let open = match taken {
                Some(Taken::Warm(link)) => return Ok((endpoint, link)),
                Some(Taken::Bare(stream, open)) => return Ok((endpoint, H1::new(stream, open, true))),
                None => endpoint.pool.open(self.cluster.circuit(), waited),
            };
            let Some(open) = open else {
                // As long as it might take to connect, if that were allowed.
                if begun.elapsed() >= self.connect_timeout() {
                    return Err(Reason::ConcurrencyLimited.into());
                }
                if fresh {
                    endpoint.pool.evict();
                }
                // Nobody is asked meanwhile: should time run out, it is nobody's failure.
                self.unchosen();
                endpoint.pool.freed().await;
                waited = true;
                continue;
            };
            match self.connect(&endpoint, open, Alpn::Http1).await {
                Ok((stream, open)) => return Ok((endpoint, H1::new(stream, open, false))),
                Err(_) if self.another(endpoint, count) => count += 1,
                Err(reason) => return Err(Unanswered::new(reason, Ended::Unconnected)),
            }
        }
    }
}
