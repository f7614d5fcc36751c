//! Apps that say what they were asked and do as they are told: answer, fail, wait, hang, break.
//!
//! In: requests over HTTP/1.1 or HTTP/2. Out: what arrived, as JSON in the answer and in a log that tests read. What
//! a backend does is the [`Step`] that the request's `x-plan` names for this attempt, else the backend's own. Invariant:
//! attempts are counted per `x-key` over all backends of one [`Troupe`], so that a plan goes on when a retry goes elsewhere.
//! Surprise: all backends of a process share one runtime that outlives the tests, so that no test's end cuts
//! another's answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Names a request over all its attempts.
pub const KEY: &str = "x-key";
/// What to do, one [`Step`] for each attempt, comma separated; the last one stays.
pub const PLAN: &str = "x-plan";

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Answers are padded to a multiple of this, so that a header more or less does not change their length.
const LENGTH: usize = 8192;

/// Between the beginning of an answer and where it breaks off: or the beginning would never leave.
const PAUSE: Duration = Duration::from_millis(50);

/// What a backend does with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Answers with this status: `503`.
    Status(u16),
    /// Answers 200 after this long: `delay=100` (milliseconds).
    Delay(Duration),
    /// Answers with this status after this long: `late=50/503` (milliseconds, status).
    Late(Duration, u16),
    /// Answers with this gRPC status, and nothing else: `grpc=14`.
    Grpc(u8),
    /// Answers with a message and then this gRPC status: `trailed=14`.
    Trailed(u8),
    /// Begins to answer 200 and goes on after this long: `slow=100` (milliseconds).
    Slow(Duration),
    /// Begins to answer 200 and breaks off: `broken`.
    Broken,
    /// Answers with this status, and that somebody limits rates: `limited=503`.
    Limited(u16),
    /// Breaks the connection without an answer: `reset`.
    Reset,
    /// Never answers: `hang`.
    Hang,
}

impl FromStr for Step {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        Ok(match text.split_once('=') {
            None if text == "reset" => Self::Reset,
            None if text == "hang" => Self::Hang,
            None if text == "broken" => Self::Broken,
            None => Self::Status(text.parse().with_context(|| format!("{text:?} is not a step"))?),
            Some(("delay", time)) => Self::Delay(Duration::from_millis(time.parse()?)),
            Some(("slow", time)) => Self::Slow(Duration::from_millis(time.parse()?)),
            Some(("late", both)) => {
                let (time, status) = both.split_once('/').context("late=<milliseconds>/<status>")?;
                Self::Late(Duration::from_millis(time.parse()?), status.parse()?)
            }
            Some(("limited", status)) => Self::Limited(status.parse()?),
            Some(("grpc", status)) => Self::Grpc(status.parse()?),
            Some(("trailed", status)) => Self::Trailed(status.parse()?),
            Some(_) => bail!("{text:?} is not a step"),
        })
    }
}

/// A request as a backend saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// Which backend.
    pub backend: String,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// `Host` or `:authority`.
    pub authority: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// Header fields except `Host`; a repeated name's values are in order.
    pub headers: Vec<(String, String)>,
    /// Bytes in the body.
    pub body: usize,
}

impl Arrival {
    /// The first value of a header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Backends that share one log.
pub struct Troupe {
    /// In the order of their names.
    pub backends: Vec<Backend>,
    stage: Arc<Stage>,
}

#[derive(Default)]
struct Stage {
    arrivals: Mutex<Vec<(Instant, Arrival)>>,
    attempts: Mutex<HashMap<String, usize>>,
}

/// One backend; it stops with this value.
pub struct Backend {
    /// Its name in the log and in answers.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    role: Arc<Role>,
    task: AbortHandle,
}

/// What a backend's connections share.
struct Role {
    name: String,
    step: Mutex<Step>,
    stage: Arc<Stage>,
}

impl Backend {
    /// What it does with requests that have no plan, from now on.
    pub fn does(&self, step: Step) {
        *lock(&self.role.step) = step;
    }

    /// Stops listening; connections that are open stay.
    pub fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Troupe {
    /// Starts `count` backends on loopback, named `b0`, `b1`, ….
    ///
    /// # Errors
    /// When there is no free port.
    pub fn start(count: usize) -> anyhow::Result<Self> {
        let stage = Arc::new(Stage::default());
        let backends = (0..count).map(|number| stage.backend(format!("b{number}")));
        Ok(Self { backends: backends.collect::<anyhow::Result<_>>()?, stage: Arc::clone(&stage) })
    }

    /// What arrived under this key, in order.
    #[must_use]
    pub fn arrivals(&self, key: &str) -> Vec<Arrival> {
        self.timed(key).into_iter().map(|(_, arrival)| arrival).collect()
    }

    /// As [`arrivals`](Self::arrivals), with the time of each.
    #[must_use]
    pub fn timed(&self, key: &str) -> Vec<(Instant, Arrival)> {
        let arrivals = lock(&self.stage.arrivals);
        arrivals.iter().filter(|(_, arrival)| arrival.header(KEY) == Some(key)).cloned().collect()
    }

    /// What arrived under any key, in order.
    #[must_use]
    pub fn keyed(&self) -> HashMap<String, Vec<Arrival>> {
        let mut keyed: HashMap<String, Vec<Arrival>> = HashMap::new();
        for (_, arrival) in lock(&self.stage.arrivals).iter() {
            if let Some(key) = arrival.header(KEY) {
                keyed.entry(key.to_owned()).or_default().push(arrival.clone());
            }
        }
        keyed
    }

    /// How many requests arrived, whatever their key.
    #[must_use]
    pub fn total(&self) -> usize {
        lock(&self.stage.arrivals).len()
    }
}

impl Stage {
    fn backend(self: &Arc<Self>, name: String) -> anyhow::Result<Backend> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let step = Mutex::new(Step::Status(200));
        let role = Arc::new(Role { name: name.clone(), step, stage: Arc::clone(self) });
        let shared = Arc::clone(&role);
        let task = runtime().spawn(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            loop {
                // Out of descriptors is the only way accepting fails here; the test then fails by itself.
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(serve(Arc::clone(&shared), stream));
            }
        });
        Ok(Backend { name, address, role, task: task.abort_handle() })
    }

    /// Notes what arrived and says what to do with it.
    fn next(&self, own: &Mutex<Step>, arrival: &Arrival) -> Step {
        lock(&self.arrivals).push((Instant::now(), arrival.clone()));
        let attempt = arrival.header(KEY).map_or(0, |key| {
            let mut attempts = lock(&self.attempts);
            let count = attempts.entry(key.to_owned()).or_default();
            *count += 1;
            *count - 1
        });
        let plan = arrival.header(PLAN).map(|plan| plan.split(',').collect::<Vec<_>>());
        let planned = plan.and_then(|plan| plan.get(attempt).or(plan.last())?.trim().parse().ok());
        planned.unwrap_or_else(|| *lock(own))
    }
}

async fn serve(role: Arc<Role>, stream: TcpStream) {
    stream.set_nodelay(true).ok();
    let service = service_fn(move |request| answer(Arc::clone(&role), request));
    // How the connection ends is what proxies are tested on, so every end is a good one.
    auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await.ok();
}

type Body = BoxBody<Bytes, Break>;

/// Told to break off.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("told to break the connection")]
struct Break;

async fn answer(role: Arc<Role>, request: Request<Incoming>) -> Result<Response<Body>, Break> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Break)?.to_bytes();
    let grpc = head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc");
    let arrival = arrival(&role.name, &head, body.len());
    let (mut status, mut trailer, mut interruption) = (StatusCode::OK, Some(0), None);
    let step = role.stage.next(&role.step, &arrival);
    let mut text = serde_json::to_vec(&arrival).map_err(|_| Break)?;
    match step {
        Step::Status(code) | Step::Limited(code) => {
            status = StatusCode::from_u16(code).map_err(|_| Break)?;
        }
        Step::Delay(time) => tokio::time::sleep(time).await,
        Step::Late(time, code) => {
            tokio::time::sleep(time).await;
            status = StatusCode::from_u16(code).map_err(|_| Break)?;
        }
        Step::Grpc(0) => {}
        Step::Grpc(code) => return Ok(signed(trailers_only(code))),
        Step::Trailed(code) => trailer = Some(code),
        Step::Slow(time) => interruption = Some((time, Ok(()))),
        Step::Broken => interruption = Some((PAUSE, Err(Break))),
        Step::Reset => return Err(Break),
        Step::Hang => std::future::pending::<()>().await,
    }
    text.resize(text.len().next_multiple_of(LENGTH), b' ');
    let mut kind = "application/json";
    if grpc && status == StatusCode::OK {
        kind = "application/grpc";
        text = message(&text);
    } else {
        trailer = None;
    }
    let length = text.len();
    let mut response = if head.method == Method::HEAD {
        // Over HTTP/2 hyper would send the body all the same.
        let mut response = Response::new(written(Bytes::new(), None, None));
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        response
    } else {
        Response::new(written(text.into(), interruption, trailer))
    };
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if matches!(step, Step::Limited(_)) {
        response.headers_mut().insert("x-envoy-ratelimited", HeaderValue::from_static("true"));
    }
    Ok(signed(response))
}

/// With what response header modifiers work on, and what tells an app's answer from a proxy's.
fn signed(mut response: Response<Body>) -> Response<Body> {
    for (name, value) in [("x-app", "one"), ("x-app", "two"), ("x-internal", "secret")] {
        response.headers_mut().append(name, HeaderValue::from_static(value));
    }
    response
}

/// A body in one piece; or in two with a pause in between, and perhaps without the second.
fn written(text: Bytes, interruption: Option<(Duration, Result<(), Break>)>, trailer: Option<u8>) -> Body {
    let status =
        trailer.map(|code| HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from(u16::from(code)))]));
    let Some((pause, end)) = interruption else {
        let body = Full::new(text).map_err(|never| match never {});
        return match status {
            Some(status) => body.with_trailers(async { Some(Ok(status)) }).boxed(),
            None => body.boxed(),
        };
    };
    let (early, late) = (text.slice(..text.len() / 2), text.slice(text.len() / 2..));
    let rest = async move {
        tokio::time::sleep(pause).await;
        end.map(|()| Frame::data(late))
    };
    let pieces = stream::iter([Ok(Frame::data(early))]).chain(stream::once(rest));
    BodyExt::boxed(StreamBody::new(
        pieces.chain(stream::iter(status.map(|status| Ok(Frame::trailers(status))))),
    ))
}

/// A gRPC message.
fn message(text: &[u8]) -> Vec<u8> {
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    message.extend_from_slice(text);
    message.into()
}

/// A status where servers put it that have nothing else to say.
fn trailers_only(status: u8) -> Response<Body> {
    let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed());
    response.headers_mut().insert(GRPC_STATUS, HeaderValue::from(u16::from(status)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn arrival(name: &str, head: &http::request::Parts, body: usize) -> Arrival {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let host = head.headers.get(header::HOST).map(text);
    let authority = head.uri.authority().map(ToString::to_string).or(host).unwrap_or_default();
    let path = head.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
    let headers = head.headers.iter().filter(|(name, _)| *name != header::HOST);
    Arrival {
        backend: name.to_owned(),
        method: head.method.to_string(),
        path,
        authority,
        version: format!("{:?}", head.version),
        headers: headers.map(|(name, value)| (name.to_string(), text(value))).collect(),
        body,
    }
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let built = builder.worker_threads(1).thread_name("backends").enable_all().build();
        built.expect("a runtime needs a thread and a descriptor")
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data, whole after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
