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
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::{Body as _, Incoming};
use tokio::net::TcpStream;
use weft_wire::Reason;

use super::body::{Exchange, RequestBody, ResponseBody, Upload};
use super::class;
use super::client::{Continue, H1, H2, Lease, Unanswered};
use super::headers::{self, Form, Intent};
use super::server::{Session, Target};
use super::upgrade::Switch;
use crate::balance::{Cluster, Endpoint};
use crate::connect::connect;
use crate::detect::Prefixed;
use crate::pool::Taken;
use crate::record::{self, Edge};
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
pub(super) async fn forward(
    session: Rc<Session>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let in_flight = session.pulse.request();
    let (mut parts, incoming) = request.into_parts();
    // Wrapped before anything can be refused: an unread body must be noticed.
    let (body, upload) = if incoming.is_end_stream() {
        (RequestBody::empty(), None)
    } else {
        let upload = Rc::new(Upload::default());
        (RequestBody::new(incoming, Rc::clone(&upload), session.pulse.enter()), Some(upload))
    };
    let version = parts.version;
    let grpc = class::is_grpc(&parts.headers);
    let destination = match session.known(&parts) {
        Some(destination) => destination,
        None => session.find(&parts).await,
    };
    let record = destination.edge.request(&parts);
    let mut exchange =
        Some(Exchange { record, upload, in_flight, working: None, permit: None, by: session.by });
    let result = carry(&session, &destination, &mut exchange, &mut parts, body).await;
    let mut response = match result {
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

#[cold]
fn refuse(
    Refusal { reason, fault }: Refusal,
    exchange: Option<Exchange>,
    grpc: bool,
) -> Response<ResponseBody> {
    let by = exchange.as_ref().map_or(weft_wire::DecidedBy::ClientProxy, |exchange| exchange.by);
    let response = reply::respond(reason, fault, by, grpc);
    let guard = exchange.map(|exchange| exchange.refuse(reason, &response));
    response.map(|text| ResponseBody::own(text, guard))
}

async fn carry(
    session: &Rc<Session>,
    destination: &Destination,
    exchange: &mut Option<Exchange>,
    parts: &mut Parts,
    body: RequestBody,
) -> Result<Response<ResponseBody>, Refusal> {
    let Some(permit) = session.worker.http.shed.admit() else {
        session.worker.shard.limit(record::Limit::InFlight);
        return Err(Reason::Overloaded.into());
    };
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
    let way = Way { session, edge: &destination.edge, cluster: &cluster, exchange, intent };
    // Moved out, so that the head is not copied through the futures: it is large.
    let request = Request::from_parts(std::mem::replace(parts, Request::new(()).into_parts().0), body);
    if intent == Intent::Connect && (proxy || request.version() == Version::HTTP_2) {
        way.tunnel(request, destination).await
    } else if request.version() == Version::HTTP_2 || cluster.http2() && intent != Intent::Upgrade {
        way.over_h2(request).await
    } else {
        way.over_h1(request, destination).await
    }
}

/// What the last stages of a request share.
struct Way<'a> {
    session: &'a Rc<Session>,
    edge: &'a Rc<Edge>,
    cluster: &'a Cluster,
    exchange: &'a mut Option<Exchange>,
    intent: Intent,
}

impl Way<'_> {
    async fn over_h1(
        mut self,
        mut request: Request<RequestBody>,
        destination: &Destination,
    ) -> Result<Response<ResponseBody>, Refusal> {
        if request.version() != Version::HTTP_11 {
            *request.version_mut() = Version::HTTP_11;
            if !request.headers().contains_key(header::HOST) {
                request.headers_mut().insert(header::HOST, destination.host());
            }
        }
        if request.headers().contains_key(header::TE) && self.intent != Intent::Upgrade {
            // Whoever sends TE names it (RFC 9110 §10.1.4).
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
        if self.intent == Intent::Continue {
            let said = Continue::default();
            said.watch(&mut request);
            request.body_mut().hold(said);
        }
        let mut fresh = false;
        loop {
            let (endpoint, mut link) = self.h1(fresh).await?;
            let spare = if link.is_reused() { spare(&request) } else { None };
            let timed = self.cluster.has_alternatives().then(Instant::now);
            let answer = link.send(request).await;
            self.observe(timed);
            match answer {
                Ok(response) => return self.answered_h1(response, endpoint, link).await,
                // Closed before hyper began to write: any connection will do.
                Err(Unanswered { request: Some(unsent), .. }) if link.is_reused() => request = unsent,
                Err(Unanswered { error, .. }) => match spare {
                    // Closed while it was being written. The pool's others may be just as stale.
                    Some(again) if !error.is_parse() && !error.is_user() => {
                        request = again;
                        fresh = true;
                    }
                    _ => return Err(self.unanswered(&error)),
                },
            }
        }
    }

    /// A connection: from detection's race, from the pool, or a new one.
    async fn h1(&mut self, fresh: bool) -> Result<(Rc<Endpoint>, Box<H1>), Refusal> {
        let session = self.session;
        if let Some(opened) = session.opened.take()
            && let Some(endpoint) = session.worker.clusters.at_address(self.cluster, opened.address)
        {
            self.chosen(&endpoint);
            return Ok((endpoint, self.start_h1(opened.stream, false).await?));
        }
        let mut failed: Option<Rc<Endpoint>> = None;
        let mut attempt = 1;
        loop {
            let endpoint = session.worker.clusters.choose(self.cluster, failed.as_ref())?;
            self.chosen(&endpoint);
            let taken = if fresh { None } else { endpoint.pool.take() };
            match taken {
                Some(Taken::Warm(link)) => return Ok((endpoint, link)),
                Some(Taken::Bare(stream)) => return Ok((endpoint, self.start_h1(stream, true).await?)),
                None => match self.connect(&endpoint).await {
                    Ok(stream) => return Ok((endpoint, self.start_h1(stream, false).await?)),
                    Err(_) if attempt < ATTEMPTS_MAX && self.cluster.has_alternatives() => {
                        attempt += 1;
                        failed = Some(endpoint);
                    }
                    Err(reason) => return Err(reason.into()),
                },
            }
        }
    }

    async fn start_h1(&self, stream: TcpStream, reused: bool) -> Result<Box<H1>, Refusal> {
        let started = H1::start(stream, reused, Rc::clone(&self.session.worker.shard)).await;
        started.map_err(|error| self.unanswered(&error))
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
        if let (Some(begun), Some(Exchange { working: Some(working), .. })) = (begun, self.exchange.as_ref())
        {
            let now = Instant::now();
            working.observe(now, now.saturating_duration_since(begun));
        }
    }

    async fn answered_h1(
        self,
        response: Response<Incoming>,
        endpoint: Rc<Endpoint>,
        link: Box<H1>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let (mut head, incoming) = response.into_parts();
        let switching = match self.intent {
            Intent::Upgrade => head.status == StatusCode::SWITCHING_PROTOCOLS,
            Intent::Connect => head.status.is_success(),
            Intent::Continue | Intent::Plain => false,
        };
        if head.status == StatusCode::SWITCHING_PROTOCOLS && !switching {
            // Nobody asked; what follows cannot be understood.
            return Err(Refusal { reason: Reason::ProtocolError, fault: Fault::Upstream });
        }
        headers::response(head.status, &mut head.headers);
        let Some(mut exchange) = self.exchange.take() else { return Err(Reason::UpstreamReset.into()) };
        exchange.record.response(head.status, &head.headers);
        if switching {
            let server = link.into_upgraded().await;
            let Some((stream, early)) = server else {
                *self.exchange = Some(exchange);
                return Err(Reason::UpstreamReset.into());
            };
            let response = Response::from_parts(head, Bytes::new());
            return Ok(switched(
                self.session,
                self.edge,
                exchange,
                &endpoint,
                Prefixed::new(stream, early),
                response,
            ));
        }
        let body = ResponseBody::h1(incoming, Lease::new(link, endpoint), exchange);
        Ok(Response::from_parts(head, body))
    }

    fn unanswered(&self, error: &hyper::Error) -> Refusal {
        tracing::debug!(%error, "no response");
        match self.upload_failure() {
            Some(reason) => reason.into(),
            None if error.is_parse() => Refusal { reason: Reason::ProtocolError, fault: Fault::Upstream },
            None => Reason::UpstreamReset.into(),
        }
    }

    fn upload_failure(&self) -> Option<Reason> {
        self.exchange.as_ref()?.upload.as_ref()?.failed.get()
    }

    async fn over_h2(mut self, mut request: Request<RequestBody>) -> Result<Response<ResponseBody>, Refusal> {
        if request.version() != Version::HTTP_2 {
            let (mut parts, body) = request.into_parts();
            headers::to_h2(&mut parts)?;
            request = Request::from_parts(parts, body);
        }
        let mut attempt = 1;
        loop {
            let mut connection = self.h2().await?;
            let timed = self.cluster.has_alternatives().then(Instant::now);
            let spare = spare(&request);
            let (error, again) = match connection.open(request).await {
                Ok(mut opened) => match opened.answer().await {
                    Ok(response) => {
                        self.observe(timed);
                        return self.answered_h2(response.map(|receive| opened.body(receive)));
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
                    request = again;
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
            let opened = session.opened.take().and_then(|opened| {
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

    fn answered_h2(
        self,
        response: Response<super::client::H2Stream>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let Some(mut exchange) = self.exchange.take() else { return Err(Reason::UpstreamReset.into()) };
        exchange.record.response(response.status(), response.headers());
        Ok(response.map(|stream| ResponseBody::h2(stream, exchange)))
    }

    fn broken_h2(&self, error: &h2::Error) -> Refusal {
        tracing::debug!(%error, "no response");
        match self.upload_failure() {
            Some(reason) => reason.into(),
            None => Reason::UpstreamReset.into(),
        }
    }

    /// `CONNECT` to this sidecar as a proxy: bytes to wherever it says.
    async fn tunnel(
        mut self,
        request: Request<RequestBody>,
        destination: &Destination,
    ) -> Result<Response<ResponseBody>, Refusal> {
        if request.version() == Version::HTTP_2 {
            // A stream cannot be handed to the copier of sockets; nobody tunnels through a sidecar by HTTP/2.
            return Err(Reason::ProtocolError.into());
        }
        tracing::trace!(edge = ?destination.authority(), "tunnel");
        let mut failed: Option<Rc<Endpoint>> = None;
        for _ in 0..ATTEMPTS_MAX {
            let endpoint = self.session.worker.clusters.choose(self.cluster, failed.as_ref())?;
            self.chosen(&endpoint);
            match self.connect(&endpoint).await {
                Ok(stream) => {
                    let Some(mut exchange) = self.exchange.take() else {
                        return Err(Reason::UpstreamReset.into());
                    };
                    let response = Response::new(Bytes::new());
                    exchange.record.response(response.status(), response.headers());
                    let server = Prefixed::new(stream, Bytes::new());
                    return Ok(switched(self.session, self.edge, exchange, &endpoint, server, response));
                }
                Err(_) if self.cluster.has_alternatives() => failed = Some(endpoint),
                Err(reason) => return Err(reason.into()),
            }
        }
        Err(Reason::ConnectFailed.into())
    }
}

/// The request is over, its connection goes on as bytes.
fn switched(
    session: &Session,
    edge: &Rc<Edge>,
    exchange: Exchange,
    endpoint: &Endpoint,
    server: Prefixed<TcpStream>,
    response: Response<Bytes>,
) -> Response<ResponseBody> {
    let mut record = edge.connection(record::Protocol::Tcp);
    record.peer(endpoint.peer.get());
    session.switch.set(Some(Switch { server, record }));
    let guard = exchange.switch();
    response.map(|none| ResponseBody::own(none, Some(guard)))
}

/// A copy to send again should a reused connection turn out to be dead: only where that is harmless.
fn spare(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let harmless = request.method().is_idempotent() || request.version() == Version::HTTP_2;
    if !harmless || !request.body().is_none() || *request.method() == Method::CONNECT {
        return None;
    }
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn is_unserved(error: &h2::Error) -> bool {
    error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
}
