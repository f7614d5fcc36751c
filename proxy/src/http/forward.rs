//! One request, from its head to the response's head.
//!
//! destination → record → shed → hygiene → trace → route → endpoint → connection → send → response hygiene. In: a
//! request as hyper parsed it. Out: a response whose body carries everything that lives as long as the request
//! does ([`Exchange`]); never an error, because what goes wrong is answered from the table in [`crate::reply`].
//!
//! Invariants: dropping the future cancels the request upstream and is recorded as `client_cancelled`; a request is
//! sent a second time only if nothing of it was sent, or if it is idempotent, has no body, and its reused connection
//! was closed under it. Surprise: the version the client spoke goes all the way to the app, unless the cluster was
//! declared HTTP/2. Non-goal: retries by policy.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::{Body as _, Incoming};
use tokio::net::TcpStream;
use weft_wire::Reason;

use super::body::{Exchange, RequestBody, ResponseBody, Upload};
use super::class;
use super::client::{Broken, Continue, H1, H2, Lease};
use super::headers::{self, Form, Intent};
use super::server::{Session, Target};
use super::upgrade::Switch;
use crate::balance::{Cluster, Endpoint};
use crate::connect::connect;
use crate::detect::Prefixed;
use crate::pool::Taken;
use crate::record;
use crate::reply::{self, Fault};

mod destination;

pub(super) use destination::Destination;

/// Endpoints of one cluster that are tried for one request. Nothing has been sent to one that did not accept, so
/// trying another is safe; more than three in a row is not bad luck any more.
const ATTEMPTS_MAX: usize = 3;

/// Why the proxy answers itself.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    reason: Reason,
    fault: Fault,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, fault: Fault::Caller }
    }
}

/// Carries one request out and its response back.
///
/// What can be done at once is done before the future is made: hyper moves the future into its place at its full size,
/// and arguments of an `async fn` would be in it twice.
pub(super) fn forward(
    session: Rc<Session>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> {
    let in_flight = session.place.pulse.request();
    let (head, incoming) = request.into_parts();
    // Wrapped before anything can be refused: an unread body must be noticed.
    let (body, upload) = if incoming.is_end_stream() {
        (RequestBody::empty(), None)
    } else {
        let upload = Rc::new(Upload::default());
        (RequestBody::new(incoming, Rc::clone(&upload), session.place.pulse.enter()), Some(upload))
    };
    let version = head.version;
    let grpc = class::is_grpc(&head.headers);
    let known = session.known(&head);
    let mut outgoing = Outgoing { head, body };
    async move {
        let destination = match known {
            Some(destination) => destination,
            None => Box::pin(session.find(&outgoing.head)).await,
        };
        let record = destination.edge.request(&outgoing.head);
        let exchange = Exchange { record, upload, in_flight, working: None, permit: None, by: session.by };
        let mut exchange = Some(Box::new(exchange));
        let mut response = match carry(&session, &destination, &mut exchange, &mut outgoing).await {
            Ok(response) => response,
            Err(refusal) => refuse(refusal, exchange, grpc),
        };
        if version == Version::HTTP_2 {
            *response.version_mut() = Version::HTTP_2;
        } else {
            *response.version_mut() = Version::HTTP_11;
            if session.worker.drain.draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        Ok(response)
    }
}

#[cold]
fn refuse(
    Refusal { reason, fault }: Refusal,
    exchange: Option<Box<Exchange>>,
    grpc: bool,
) -> Response<ResponseBody> {
    let by = exchange.as_ref().map_or(weft_wire::DecidedBy::ClientProxy, |exchange| exchange.by);
    let response = reply::respond(reason, fault, by, grpc);
    let guard = exchange.map(|exchange| exchange.refuse(reason, &response));
    response.map(|text| ResponseBody::own(text, guard))
}

/// A request on its way out. Passed on by reference until hyper takes it, because it is large and every future on
/// the way would hold a copy.
struct Outgoing {
    head: Parts,
    body: RequestBody,
}

impl Outgoing {
    /// What is left behind is empty and not looked at again, unless [`put`](Self::put) fills it.
    fn take(&mut self) -> Request<RequestBody> {
        let mut request = Request::new(std::mem::replace(&mut self.body, RequestBody::empty()));
        std::mem::swap(request.method_mut(), &mut self.head.method);
        std::mem::swap(request.uri_mut(), &mut self.head.uri);
        std::mem::swap(request.headers_mut(), &mut self.head.headers);
        std::mem::swap(request.extensions_mut(), &mut self.head.extensions);
        *request.version_mut() = self.head.version;
        request
    }

    fn put(&mut self, request: Request<RequestBody>) {
        let (head, body) = request.into_parts();
        *self = Self { head, body };
    }

    /// A copy to send again should an HTTP/2 connection refuse the stream: only without a body, which is not kept.
    fn spare(&self) -> Option<Request<RequestBody>> {
        let head = &self.head;
        if !self.body.is_none() {
            return None;
        }
        let mut copy = Request::new(RequestBody::empty());
        *copy.method_mut() = head.method.clone();
        *copy.uri_mut() = head.uri.clone();
        *copy.version_mut() = head.version;
        *copy.headers_mut() = head.headers.clone();
        Some(copy)
    }
}

async fn carry(
    session: &Rc<Session>,
    destination: &Destination,
    exchange: &mut Option<Box<Exchange>>,
    outgoing: &mut Outgoing,
) -> Result<Response<ResponseBody>, Refusal> {
    let Some(permit) = session.worker.http.shed.admit() else {
        session.worker.shard.limit(record::Limit::InFlight);
        return Err(Reason::Overloaded.into());
    };
    let parts = &mut outgoing.head;
    let form = if matches!(session.target, Target::PassThrough(_)) { Form::AsIs } else { Form::Origin };
    let proxy = matches!(session.target, Target::ForwardProxy);
    let intent = headers::request(parts, form, proxy).inspect_err(|reason| {
        if *reason == Reason::HeaderTooLarge {
            session.worker.shard.limit(record::Limit::HeaderBytes);
        }
    })?;
    if let Some(exchange) = exchange {
        exchange.permit = Some(permit);
        exchange.record.propagate(&mut parts.headers);
    }
    let cluster = destination.cluster(session, parts)?;
    let h2 = parts.version == Version::HTTP_2;
    let way = Way { session, destination, cluster: &cluster, exchange, outgoing, intent };
    // Boxed, so that the common case is not moved about at the size of the rarer ones.
    if intent == Intent::Connect && (proxy || h2) {
        Box::pin(way.tunnel()).await
    } else if h2 || cluster.http2() && intent != Intent::Upgrade {
        Box::pin(way.over_h2()).await
    } else {
        way.over_h1().await
    }
}

/// A connection and whose it is.
type Link = (Rc<Endpoint>, Box<H1>);

/// What the last stages of a request share.
struct Way<'a> {
    session: &'a Rc<Session>,
    destination: &'a Destination,
    cluster: &'a Cluster,
    exchange: &'a mut Option<Box<Exchange>>,
    outgoing: &'a mut Outgoing,
    intent: Intent,
}

impl Way<'_> {
    async fn over_h1(mut self) -> Result<Response<ResponseBody>, Refusal> {
        self.prepare_h1();
        let (mut endpoint, mut link) = match self.warm_h1()? {
            Some(warm) => warm,
            None => Box::pin(self.h1(false)).await?,
        };
        self.begin_h1(&mut link);
        loop {
            let timed = self.cluster.has_alternatives().then(Instant::now);
            let answer = std::future::poll_fn(|context| link.poll_head(context)).await;
            self.observe(timed);
            match answer {
                Ok(head) if self.is_switch(head.status()) => {
                    return self.switched_h1(head, &endpoint, link);
                }
                Ok(head) => return self.answered_h1(head, endpoint, link),
                Err(_) if link.may_repeat() => {
                    // Closed under us. The pool's others may be just as stale.
                    let (other, mut fresh) = Box::pin(self.h1(true)).await?;
                    fresh.inherit(&mut link);
                    (endpoint, link) = (other, fresh);
                }
                Err(broken) => return Err(self.unanswered(&broken)),
            }
        }
    }

    fn begin_h1(&mut self, link: &mut H1) {
        let mut body = std::mem::replace(&mut self.outgoing.body, RequestBody::empty());
        let gate = (self.intent == Intent::Continue).then(Continue::default);
        if let Some(gate) = &gate {
            body.hold(gate.clone());
        }
        let upload = self.exchange.as_ref().and_then(|exchange| exchange.upload.as_ref());
        link.begin(&mut self.outgoing.head, body, upload, gate);
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

    /// A connection that needs no waiting: what almost every request gets.
    fn warm_h1(&mut self) -> Result<Option<Link>, Refusal> {
        if self.session.opened.borrow().is_some() {
            return Ok(None);
        }
        let endpoint = self.session.worker.clusters.choose(self.cluster, None)?;
        match endpoint.pool.take_warm() {
            Some(link) => {
                self.chosen(&endpoint);
                Ok(Some((endpoint, link)))
            }
            None => Ok(None),
        }
    }

    /// A connection: from detection's race, from the pool, or a new one.
    async fn h1(&mut self, fresh: bool) -> Result<Link, Refusal> {
        let session = self.session;
        let opened = session.opened.borrow_mut().take();
        if let Some(opened) = opened
            && let Some(endpoint) = session.worker.clusters.at_address(self.cluster, opened.address)
        {
            self.chosen(&endpoint);
            // It has waited for the client's first bytes, and may have been closed meanwhile.
            return Ok((endpoint, H1::new(opened.stream, true)));
        }
        let mut failed: Option<Rc<Endpoint>> = None;
        let mut attempt = 1;
        loop {
            let endpoint = session.worker.clusters.choose(self.cluster, failed.as_ref())?;
            self.chosen(&endpoint);
            let taken = if fresh { None } else { endpoint.pool.take() };
            match taken {
                Some(Taken::Warm(link)) => return Ok((endpoint, link)),
                Some(Taken::Bare(stream)) => return Ok((endpoint, H1::new(stream, true))),
                None => match self.connect(&endpoint).await {
                    Ok(stream) => return Ok((endpoint, H1::new(stream, false))),
                    Err(_) if attempt < ATTEMPTS_MAX && self.cluster.has_alternatives() => {
                        attempt += 1;
                        failed = Some(endpoint);
                    }
                    Err(reason) => return Err(reason.into()),
                },
            }
        }
    }

    async fn connect(&mut self, endpoint: &Rc<Endpoint>) -> Result<TcpStream, Reason> {
        let options = self.session.worker.connect_options(self.cluster.connect_timeout());
        let begun = Instant::now();
        connect(endpoint.address, &options).await.map_err(|error| {
            tracing::debug!(address = %endpoint.address, %error, "upstream connection");
            if let Some(working) = self.exchange.as_ref().and_then(|exchange| exchange.working.as_ref()) {
                // Counts as slow as a deadline would be, so that the balancer keeps away for a while.
                let now = Instant::now();
                working.observe(now, options.timeout.max(now.saturating_duration_since(begun)));
            }
            error.reason()
        })
    }

    fn chosen(&mut self, endpoint: &Rc<Endpoint>) {
        if let Some(exchange) = self.exchange {
            exchange.record.peer(endpoint.peer.get());
            exchange.working = Some(endpoint.start());
        }
    }

    fn observe(&self, begun: Option<Instant>) {
        let working = self.exchange.as_ref().and_then(|exchange| exchange.working.as_ref());
        if let (Some(begun), Some(working)) = (begun, working) {
            let now = Instant::now();
            working.observe(now, now.saturating_duration_since(begun));
        }
    }

    fn is_switch(&self, status: StatusCode) -> bool {
        match self.intent {
            Intent::Upgrade => status == StatusCode::SWITCHING_PROTOCOLS,
            Intent::Connect => status.is_success(),
            Intent::Continue | Intent::Plain => false,
        }
    }

    fn answered_h1(
        self,
        head: Response<()>,
        endpoint: Rc<Endpoint>,
        link: Box<H1>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        if head.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked; what follows cannot be understood.
            return Err(Refusal { reason: Reason::ProtocolError, fault: Fault::Upstream });
        }
        let lease = Lease::new(link, endpoint, Rc::clone(&self.session.worker.shard));
        Ok(response_of(head, self.exchange.take(), |(), exchange| ResponseBody::h1(lease, exchange)))
    }

    fn switched_h1(
        self,
        response: Response<()>,
        endpoint: &Endpoint,
        link: Box<H1>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let (stream, early) = link.into_parts();
        let (mut head, ()) = response.into_parts();
        headers::response(head.status, &mut head.headers);
        let response = Response::from_parts(head, Bytes::new());
        self.switch(response, endpoint, Prefixed::new(stream, early))
    }

    /// The request is over, its connection goes on as bytes.
    fn switch(
        self,
        response: Response<Bytes>,
        endpoint: &Endpoint,
        server: Prefixed<TcpStream>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let mut record = self.destination.edge.connection(record::Protocol::Tcp);
        record.peer(endpoint.peer.get());
        self.session.switch.set(Some(Switch { server, record }));
        let guard = self.exchange.take().map(|mut exchange| {
            exchange.record.response(response.status(), response.headers());
            exchange.switch()
        });
        Ok(response.map(|none| ResponseBody::own(none, guard)))
    }

    fn unanswered(&self, broken: &Broken) -> Refusal {
        tracing::debug!(error = %broken, "no response");
        match broken {
            Broken::Upload(reason) => (*reason).into(),
            Broken::Malformed(_) => Refusal { reason: Reason::ProtocolError, fault: Fault::Upstream },
            Broken::Closed | Broken::Io(_) => Reason::UpstreamReset.into(),
        }
    }

    fn upload_failure(&self) -> Option<Reason> {
        self.exchange.as_ref()?.upload.as_ref()?.failed.get()
    }

    async fn over_h2(mut self) -> Result<Response<ResponseBody>, Refusal> {
        if self.outgoing.head.version != Version::HTTP_2 {
            headers::to_h2(&mut self.outgoing.head)?;
        }
        let mut attempt = 1;
        loop {
            let mut connection = self.h2().await?;
            let timed = self.cluster.has_alternatives().then(Instant::now);
            let spare = self.outgoing.spare();
            let (error, again) = match connection.open(self.outgoing.take()).await {
                Ok(mut opened) => match opened.answer().await {
                    Ok(response) => {
                        self.observe(timed);
                        let exchange = self.exchange.take();
                        let response = response.map(|receive| opened.body(receive));
                        return Ok(response_of(response, exchange, ResponseBody::h2));
                    }
                    // What the endpoint refused or announced not to serve, it has not served.
                    Err(error) if is_unserved(&error) => {
                        connection.retire();
                        (error, spare)
                    }
                    Err(error) => (error, None),
                },
                Err(unopened) => (unopened.error, unopened.request),
            };
            self.observe(timed);
            match again {
                Some(again) if attempt < ATTEMPTS_MAX => {
                    self.outgoing.put(again);
                    attempt += 1;
                }
                _ => return Err(self.broken_h2(&error)),
            }
        }
    }

    /// A connection with room for a stream; one at a time is opened for each endpoint.
    async fn h2(&mut self) -> Result<H2, Refusal> {
        let session = self.session;
        let mut failed: Option<Rc<Endpoint>> = None;
        let mut attempt = 1;
        loop {
            let opened = session.opened.borrow_mut().take().and_then(|opened| {
                let endpoint = session.worker.clusters.at_address(self.cluster, opened.address)?;
                Some((endpoint, opened.stream))
            });
            let (endpoint, opened) = match opened {
                Some((endpoint, stream)) => (endpoint, Some(stream)),
                None => (session.worker.clusters.choose(self.cluster, failed.as_ref())?, None),
            };
            self.chosen(&endpoint);
            let opening = match endpoint.pool.h2().await {
                Ok(connection) => return Ok(connection),
                Err(opening) => opening,
            };
            let stream = match opened {
                Some(stream) => Ok(stream),
                None => self.connect(&endpoint).await,
            };
            match stream {
                Ok(stream) => {
                    let connection = H2::start(stream).await.map_err(|error| self.broken_h2(&error))?;
                    endpoint.pool.put_h2(connection.clone());
                    drop(opening);
                    return Ok(connection);
                }
                Err(_) if attempt < ATTEMPTS_MAX && self.cluster.has_alternatives() => {
                    attempt += 1;
                    failed = Some(endpoint);
                }
                Err(reason) => return Err(reason.into()),
            }
        }
    }

    fn broken_h2(&self, error: &h2::Error) -> Refusal {
        tracing::debug!(%error, "no response");
        match self.upload_failure() {
            Some(reason) => reason.into(),
            None => Reason::UpstreamReset.into(),
        }
    }

    /// `CONNECT` to this sidecar as a proxy: bytes to wherever it says.
    async fn tunnel(mut self) -> Result<Response<ResponseBody>, Refusal> {
        if self.outgoing.head.version == Version::HTTP_2 {
            // A stream cannot be handed to the copier of sockets; nobody tunnels through a sidecar by HTTP/2.
            return Err(Reason::ProtocolError.into());
        }
        let mut failed: Option<Rc<Endpoint>> = None;
        for _ in 0..ATTEMPTS_MAX {
            let endpoint = self.session.worker.clusters.choose(self.cluster, failed.as_ref())?;
            self.chosen(&endpoint);
            match self.connect(&endpoint).await {
                Ok(stream) => {
                    let server = Prefixed::new(stream, Bytes::new());
                    return self.switch(Response::new(Bytes::new()), &endpoint, server);
                }
                Err(_) if self.cluster.has_alternatives() => failed = Some(endpoint),
                Err(reason) => return Err(reason.into()),
            }
        }
        Err(Reason::ConnectFailed.into())
    }
}

/// The response as the client may see it, its body carrying the exchange to its end.
fn response_of<B>(
    response: Response<B>,
    exchange: Option<Box<Exchange>>,
    body: impl FnOnce(B, Box<Exchange>) -> ResponseBody,
) -> Response<ResponseBody> {
    let (mut head, incoming) = response.into_parts();
    headers::response(head.status, &mut head.headers);
    let body = match exchange {
        Some(mut exchange) => {
            exchange.record.response(head.status, &head.headers);
            body(incoming, exchange)
        }
        // Cannot be: the exchange is taken once, here or by a refusal.
        None => ResponseBody::own(Bytes::new(), None),
    };
    Response::from_parts(head, body)
}

fn is_unserved(error: &h2::Error) -> bool {
    error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_request_is_cheap_to_move() {
        // hyper moves the future into its place for every request, at its full size.
        assert!(size(forward) <= 1000, "{}", size(forward));
        assert!(size_of::<ResponseBody>() <= 128, "{}", size_of::<ResponseBody>());
        assert_eq!(size_of::<RequestBody>(), size_of::<usize>());
    }
}
