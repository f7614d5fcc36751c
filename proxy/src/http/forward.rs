//! One request, from its head to the response's head.
//!
//! destination → record → shed → hygiene → trace → authorize → route → circuit → guard (fault → rate limit → mirror → timeout → retry) →
//! attempt → response hygiene. In: a request as hyper parsed it.
//! Out: a response whose body carries everything that lives as long as the request does ([`Exchange`]); never an
//! error, because what goes wrong is answered from the table in [`crate::reply`].
//!
//! ```text
//! destination ── what a connection's requests are addressed to
//! guard ── what a rule's policies do before anything is sent, and how long all of it may take
//!   └ mirror ── a copy nobody waits for
//! retry ── one attempt after the other                         outgoing ── the request, sent or kept
//!       └ attempt ── endpoint, connection, request out, head in
//!           ├ h1 ── on a connection of its own
//!           └ h2 ── on a stream
//! ```
//!
//! Invariants: dropping the future cancels the request upstream and is recorded as `client_cancelled`; without a policy a
//! request is sent a second time only if nothing of it was sent, or if it is idempotent, has no body, and its reused
//! connection was closed under it. Surprise: the version the client spoke goes all the way to the app, unless the
//! cluster was declared HTTP/2.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::{Body as _, Incoming};
use weft_wire::header::MIRRORED;
use weft_wire::{DecidedBy, Reason};

use super::body::{Exchange, RequestBody, ResponseBody, Upload};
use super::class;
use super::headers::{self, Form};
use super::server::{Session, Target};
use crate::policy::shed::Overload;
use crate::record::Limit;
use crate::reply::{self, Fault, Verdict};
use crate::route::filter::Passage;

mod attempt;
mod authorize;
mod destination;
mod guard;
mod h1;
mod h2;
mod mirror;
mod outgoing;
mod retry;

use attempt::{Answer, Arrived, Way};
pub(super) use destination::Destination;
use outgoing::Outgoing;

/// Why the proxy answers itself.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    reason: Reason,
    fault: Fault,
    /// What a policy wants the caller to be told instead of what the table says.
    told: Option<Verdict>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, fault: Fault::Caller, told: None }
    }
}

impl Refusal {
    fn telling(reason: Reason, verdict: Verdict) -> Self {
        Self { reason, fault: Fault::Caller, told: Some(verdict) }
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
    let asks_for_head = head.method == Method::HEAD;
    let known = session.known(&head);
    let mut outgoing = Outgoing::new(head, body);
    async move {
        let destination = match known {
            Some(destination) => destination,
            None => Box::pin(session.find(&outgoing.head)).await,
        };
        let record = destination.edge.request(&outgoing.head);
        let exchange = Exchange::new(record, upload, in_flight, session.by);
        let mut exchange = Some(Box::new(exchange));
        let mut response = match carry(&session, &destination, &mut exchange, &mut outgoing, grpc).await {
            Ok(response) => response,
            Err(refusal) => refuse(refusal, exchange, grpc),
        };
        // hyper leaves the body of an answer to HEAD out over HTTP/1 only.
        if asks_for_head && let Some(length) = response.body_mut().leave_out() {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        if version == Version::HTTP_2 {
            *response.version_mut() = Version::HTTP_2;
        } else {
            *response.version_mut() = Version::HTTP_11;
            let ending = session.worker.drain.draining() || session.place.pulse.is_aged();
            if ending && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        Ok(response)
    }
}

#[cold]
fn refuse(refusal: Refusal, exchange: Option<Box<Exchange>>, grpc: bool) -> Response<ResponseBody> {
    let Refusal { reason, fault, told } = refusal;
    let by = exchange.as_ref().map_or(DecidedBy::ClientProxy, |exchange| exchange.by);
    let mut response = match told {
        None => reply::respond(reason, fault, by, grpc),
        Some(told) => reply::answer(reason, told, by, grpc),
    };
    if let Some(passage) = passage(&exchange) {
        passage.refusal(response.headers_mut());
    }
    let guard = exchange.map(|exchange| {
        exchange.settle(attempt::judgement(reason, fault), Instant::now());
        exchange.refuse(reason, &response)
    });
    response.map(|text| ResponseBody::own(text, guard))
}

async fn carry(
    session: &Rc<Session>,
    destination: &Rc<Destination>,
    exchange: &mut Option<Box<Exchange>>,
    outgoing: &mut Outgoing,
    grpc: bool,
) -> Result<Response<ResponseBody>, Refusal> {
    let worker = &session.worker;
    let permit = worker.http.shed.admit(fastrand::f64).map_err(|overload| {
        worker.shard.limit(match overload {
            Overload::InFlight => Limit::InFlight,
            Overload::Lag => Limit::Lag,
        });
        Reason::Overloaded
    })?;
    let parts = &mut outgoing.head;
    let passes = matches!(session.target, Target::PassThrough(_)) && !destination.is_routed();
    let form = if passes { Form::AsIs } else { Form::Origin };
    let tunnels = matches!(session.target, Target::ForwardProxy);
    let said = headers::request(parts, form, tunnels).inspect_err(|reason| {
        if *reason == Reason::HeaderTooLarge {
            worker.shard.limit(Limit::HeaderBytes);
        }
    })?;
    if let Some(exchange) = exchange {
        exchange.permit = Some(permit);
        exchange.record.propagate(&mut parts.headers);
        match session.by {
            DecidedBy::ServerProxy if said.mirrored => exchange.record.ignore(),
            // Between sidecars only: an app that passes on what it got must not hide its own calls from the callee.
            _ if said.mirrored => drop(parts.headers.remove(MIRRORED)),
            _ => {}
        }
    }
    authorize::authorize(session, destination, parts)?;
    let mut held_up = false;
    if let Some(answer) = enter(session, destination, exchange, parts, &mut held_up).await? {
        return Ok(answered(answer, exchange.take()));
    }
    let cluster = destination.cluster(session, passage(exchange))?;
    let guarded = passage(exchange).map(Passage::route).filter(|route| route.guards()).cloned();
    if let Some(exchange) = exchange {
        // A delay on purpose is over by now, and says nothing about whoever will be asked.
        let now = if held_up { Instant::now() } else { exchange.record.started() };
        if let Some(port) = destination.port(worker, now) {
            exchange.in_progress = Some(port.begin(now).ok_or_else(|| {
                worker.shard.limit(Limit::Concurrency);
                Refusal::telling(Reason::Overloaded, reply::overloaded(port.status()))
            })?);
        }
        if cluster.is_named() {
            exchange.admission = Some(cluster.circuit().admit(now)?);
        }
    }
    let mut way = Way {
        worker,
        opened: &session.opened,
        destination,
        cluster: &cluster,
        exchange,
        outgoing,
        intent: said.intent,
        tunnels,
        grpc,
        tried: Vec::new(),
        per_try: None,
        try_clock: None,
        whole: None,
        told: false,
    };
    // One comparison for all policies together.
    let retry = match guarded.is_some() || said.deadline {
        true => way.guard(session, guarded.as_deref(), said.deadline, held_up),
        false => None,
    };
    let mut answer = way.attempt_in_time().await;
    if let Some(policy) = retry.filter(|policy| way.wants(policy, 0, &answer)) {
        // Boxed, so that the one attempt which is enough for most is not moved about at the size of the others.
        answer = Box::pin(way.retries(policy, answer)).await;
    }
    let answer = answer.map_err(|unanswered| unanswered.refusal)?;
    let whole = way.whole.take();
    if let Some(exchange) = exchange {
        // What is left is for the answer's body.
        exchange.deadline = whole;
    }
    Ok(deliver(session, answer, exchange.take()))
}

/// Takes a request through its rule, up to a head that can be sent or an answer of the rule's own.
async fn enter(
    session: &Session,
    destination: &Destination,
    exchange: &mut Option<Box<Exchange>>,
    parts: &mut Parts,
    held_up: &mut bool,
) -> Result<Option<Response<Bytes>>, Refusal> {
    let Some(exchange) = exchange else { return Ok(None) };
    exchange.passage = destination.passage(parts)?;
    let Some(passage) = &mut exchange.passage else { return Ok(None) };
    if session.by == DecidedBy::ClientProxy
        && let Some(name) = passage.name()
    {
        exchange.record.rule(name);
    }
    if let Some(answer) = passage.preflight(parts) {
        return Ok(Some(answer));
    }
    if passage.route().is_fronted() {
        *held_up = guard::front(session, passage.route(), parts).await?;
    }
    if let Some(answer) = passage.answer(parts) {
        return Ok(Some(answer));
    }
    passage.request(parts, Some(session.client));
    Ok(None)
}

fn passage(exchange: &Option<Box<Exchange>>) -> Option<&Passage> {
    exchange.as_ref()?.passage.as_ref()
}

/// An answer of a rule's own.
fn answered(response: Response<Bytes>, exchange: Option<Box<Exchange>>) -> Response<ResponseBody> {
    let guard = exchange.map(|exchange| exchange.answer(&response));
    response.map(|text| ResponseBody::own(text, guard))
}

/// The response as the client may see it, its body carrying the exchange to its end.
fn deliver(session: &Session, answer: Answer, exchange: Option<Box<Exchange>>) -> Response<ResponseBody> {
    let (mut head, arrived) = answer.into_parts();
    headers::response(head.status, &mut head.headers);
    let body = match exchange {
        Some(mut exchange) => {
            if let Some(passage) = &exchange.passage {
                passage.response(&mut head.headers);
            }
            exchange.record.response(head.status, &head.headers);
            if exchange.judged.is_none() && exchange.admission.is_some() {
                exchange.settle(attempt::outcome(head.status, &head.headers), Instant::now());
            }
            match arrived {
                Arrived::Body(source) => ResponseBody::new(source, exchange),
                Arrived::Switch(switch) => {
                    session.switch.set(Some(*switch));
                    ResponseBody::own(Bytes::new(), Some(exchange.switch()))
                }
            }
        }
        // Cannot be: the exchange is taken once, here or by a refusal.
        None => ResponseBody::own(Bytes::new(), None),
    };
    Response::from_parts(head, body)
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
        assert!(size(forward) <= 1064, "{}", size(forward));
        assert!(size_of::<ResponseBody>() <= 128, "{}", size_of::<ResponseBody>());
        assert_eq!(size_of::<RequestBody>(), size_of::<usize>());
    }
}
