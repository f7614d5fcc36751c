//! An attempt over HTTP/2.

use std::rc::Rc;
use std::time::Instant;

use h2::RecvStream;
use http::{Response, Version};
use weft_wire::Reason;

use super::attempt::{Answer, Arrived, ENDPOINTS_MAX, Unanswered, Way};
use crate::balance::{Endpoint, Outcome};
use crate::http::body::Source;
use crate::http::client::{H2, Opened};
use crate::http::headers;
use crate::policy::retry::Ended;
use crate::pool::Unshared;
use crate::tls::Alpn;

impl Way<'_> {
    pub(super) async fn over_h2(&mut self) -> Result<Answer, Unanswered> {
        if self.outgoing.head.version != Version::HTTP_2 {
            headers::to_h2(&mut self.outgoing.head)?;
        }
        let mut attempt = 1;
        loop {
            let (endpoint, mut connection) = self.h2().await?;
            let begun = self.begin();
            let spare = self.outgoing.spare();
            let (error, ended, again) = match connection.open(self.outgoing.take()).await {
                Ok(mut opened) => match self.answer(begun, &mut opened).await {
                    None => {
                        let unanswered = Unanswered::new(Reason::RequestTimeout, Ended::TimedOut);
                        self.failed(begun, &unanswered);
                        self.failed_at(&endpoint);
                        return Err(unanswered);
                    }
                    Some(Ok(response)) => {
                        self.answered(begun, &response);
                        return Ok(
                            response.map(|receive| Arrived::Body(Source::H2(Box::new(opened.body(receive)))))
                        );
                    }
                    // What the endpoint refused or announced not to serve, it has not served.
                    Some(Err(error)) if is_unserved(&error) => {
                        connection.retire();
                        (error, Ended::Refused, spare)
                    }
                    Some(Err(error)) => (error, Ended::Reset { sent: true }, None),
                },
                Err(unopened) => (unopened.error, Ended::Reset { sent: false }, unopened.request),
            };
            match again {
                Some(again) if attempt < ENDPOINTS_MAX => {
                    self.outgoing.put(again);
                    attempt += 1;
                }
                _ => {
                    let unanswered = self.broken_h2(&error, ended);
                    self.failed(begun, &unanswered);
                    self.failed_at(&endpoint);
                    return Err(unanswered);
                }
            }
        }
    }

    /// The response's head; `None`: not in time.
    async fn answer(
        &mut self,
        begun: Option<Instant>,
        opened: &mut Opened,
    ) -> Option<Result<Response<RecvStream>, h2::Error>> {
        self.in_time(begun, |context| opened.poll_answer(context)).await
    }

    /// A connection with room for a stream; one at a time is opened for each endpoint.
    async fn h2(&mut self) -> Result<(Rc<Endpoint>, H2), Unanswered> {
        let _pending = self.cluster.circuit().pending().ok_or(Reason::ConcurrencyLimited)?;
        let mut count = 1;
        loop {
            let (endpoint, ahead) = match self.ahead() {
                Some((endpoint, stream, open)) => (endpoint, Some((stream, open))),
                None => (self.choose()?, None),
            };
            let (opening, failed) = match endpoint.pool.h2().await {
                Ok(connection) => return Ok((endpoint, connection)),
                Err(Unshared::Open(opening)) => (Some(opening), None),
                Err(Unshared::Failed(reason)) => (None, Some(reason)),
            };
            let connected = match (ahead, failed) {
                (Some(connected), _) => Ok(connected),
                (None, Some(reason)) => {
                    // Each that waited is told of, as in Envoy.
                    let outcome = Outcome::LocalOrigin(reason);
                    self.ended(self.connect_timeout(), outcome, Instant::now());
                    Err(reason)
                }
                (None, None) => {
                    let Some(open) = endpoint.pool.open(self.cluster.circuit(), false) else {
                        // No more connections: one stream more on one of those there are, when it has room.
                        let least = endpoint.pool.least_h2().ok_or(Reason::ConcurrencyLimited)?;
                        return Ok((endpoint, least));
                    };
                    self.connect(&endpoint, open, Alpn::Http2).await
                }
            };
            match connected {
                Ok((stream, open)) => match H2::start(stream, open).await {
                    Ok(connection) => {
                        endpoint.pool.put_h2(connection.clone());
                        drop(opening);
                        return Ok((endpoint, connection));
                    }
                    Err(error) => {
                        let unanswered = self.broken_h2(&error, Ended::Reset { sent: false });
                        self.failed(self.begin(), &unanswered);
                        self.failed_at(&endpoint);
                        return Err(unanswered);
                    }
                },
                Err(reason) => {
                    if let Some(opening) = opening {
                        opening.failed(reason);
                    }
                    if !self.another(endpoint, count) {
                        return Err(Unanswered::new(reason, Ended::Unconnected));
                    }
                    count += 1;
                }
            }
        }
    }

    fn broken_h2(&self, error: &h2::Error, ended: Ended) -> Unanswered {
        tracing::debug!(%error, "no response");
        let upload = self.exchange.as_ref().and_then(|exchange| exchange.upload.as_ref());
        match upload.and_then(|upload| upload.failed.get()) {
            Some(reason) => reason.into(),
            None => match (error.get_io(), &ended) {
                (Some(error), Ended::Reset { sent }) => self.broken_off(error, *sent),
                _ => Unanswered::new(Reason::UpstreamReset, ended),
            },
        }
    }
}

fn is_unserved(error: &h2::Error) -> bool {
    error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
}
