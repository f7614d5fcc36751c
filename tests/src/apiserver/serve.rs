//! The server's HTTP: from requests to the store, and back.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryFutureExt as _;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::resource::{Path, Resource};
use super::selector::Selector;
use super::store::{Change, Refusal, Stored, Verb, no_such_resource, not_found, refusal};
use super::{End, Fault, Shared, lock, write};

type Body = BoxBody<Bytes, Infallible>;
pub(super) type Query = BTreeMap<String, String>;

/// Changes on their way to a watcher that reads slowly.
const PENDING_MAX: usize = 1024;

pub(super) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    // Dropped with this task, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        stream.set_nodelay(true).ok();
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&shared), request));
            // How a client leaves is its business.
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let answered = dispatch(&shared, request).await;
    Ok(answered.unwrap_or_else(|refusal| failure(&refusal, None)))
}

async fn dispatch(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let path = request.uri().path().to_owned();
    let query = query(request.uri().query().unwrap_or_default());
    let metadata = accepts_metadata(&request);
    let Some(at) = Path::parse(&path) else {
        return well_known(shared, &path)
            .map(|body| reply(StatusCode::OK, body))
            .ok_or_else(no_such_resource);
    };
    let verb = verb(request.method(), &at, &query);
    let asked =
        at.subresource.as_ref().map_or_else(|| at.plural.clone(), |sub| format!("{}/{sub}", at.plural));
    *lock(&shared.asked).entry((verb.to_owned(), asked)).or_default() += 1;
    if let Some(fault) = fault(shared, verb, &at.plural) {
        let refusal = refusal(fault.code, "Refused", "refused at the test's wish");
        return Ok(failure(&refusal, fault.retry_after));
    }
    match verb {
        "watch" => watch(shared, &at, &query, metadata),
        "list" => list(shared, &at, &query, metadata),
        "get" => get(shared, &at, metadata),
        _ => {
            let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let kind = kind.unwrap_or_default().to_owned();
            let body =
                request.into_body().collect().map_err(|_| refusal(400, "BadRequest", "cut off")).await?;
            let (status, body) = write::perform(shared, verb, &at, &query, &kind, &body.to_bytes())?;
            Ok(reply(status, body))
        }
    }
}

fn verb(method: &Method, at: &Path, query: &Query) -> &'static str {
    let watches = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    match (method.as_str(), &at.name) {
        ("GET", None) if watches => "watch",
        ("GET", None) => "list",
        ("GET", Some(_)) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", None) => "deletecollection",
        _ => "delete",
    }
}

fn fault(shared: &Shared, verb: &str, plural: &str) -> Option<Fault> {
    let mut faults = lock(&shared.faults);
    let meant = |fault: &Fault| {
        fault.verb.is_none_or(|wanted| wanted == verb) && fault.resource.is_none_or(|wanted| wanted == plural)
    };
    let at = faults.iter().position(|fault| fault.times > 0 && meant(fault))?;
    faults[at].times -= 1;
    let fault = faults[at].clone();
    faults.retain(|fault| fault.times > 0);
    Some(fault)
}

/// Discovery, probes and the version.
fn well_known(shared: &Shared, path: &str) -> Option<Value> {
    let store = lock(&shared.store);
    let groups = || {
        let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for resource in store.resources().filter(|resource| !resource.group.is_empty()) {
            let versions = groups.entry(&resource.group).or_default();
            versions.extend(resource.versions.iter().cloned());
            versions.sort_unstable();
            versions.dedup();
        }
        groups
    };
    let group = |name: &str, versions: &[String]| {
        let version =
            |version: &String| json!({ "groupVersion": format!("{name}/{version}"), "version": version });
        let versions: Vec<Value> = versions.iter().map(version).collect();
        json!({ "kind": "APIGroup", "apiVersion": "v1", "name": name, "preferredVersion": versions.first(), "versions": versions })
    };
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match segments.as_slice() {
        ["version"] => {
            let minor = shared.minor.load(Ordering::Relaxed).to_string();
            Some(json!({
                "major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.0"), "gitCommit": "",
                "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z", "goVersion": "", "compiler": "gc",
                "platform": "linux/amd64",
            }))
        }
        ["readyz" | "livez" | "healthz"] => Some(json!("ok")),
        ["api"] => {
            Some(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }))
        }
        ["apis"] => {
            let groups: Vec<Value> = groups().iter().map(|(name, versions)| group(name, versions)).collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["apis", name] => groups().get(name).map(|versions| group(name, versions)),
        ["api", version] => described(store.resources(), "", version),
        ["apis", group, version] => described(store.resources(), group, version),
        _ => None,
    }
}

fn described<'a>(all: impl Iterator<Item = &'a Resource>, group: &str, version: &str) -> Option<Value> {
    let served = all.filter(|r| r.group == group && r.versions.iter().any(|served| served == version));
    let resources: Vec<Value> = served.flat_map(Resource::described).collect();
    let at = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!resources.is_empty()).then(|| {
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": at, "resources": resources })
    })
}

// === reading ===

/// How an object is written for who asked.
#[derive(Clone)]
pub(super) struct Form {
    api_version: String,
    kind: String,
    metadata: bool,
}

impl Form {
    pub(super) fn of(shared: &Shared, at: &Path, metadata: bool) -> Result<Self, Refusal> {
        let store = lock(&shared.store);
        let table = store.table(&at.group, &at.plural).ok_or_else(no_such_resource)?;
        let resource = &table.resource;
        if !resource.versions.contains(&at.version) {
            return Err(no_such_resource());
        }
        Ok(Self { api_version: resource.api_version(&at.version), kind: resource.kind.clone(), metadata })
    }

    /// The whole object, with its kind.
    pub(super) fn object(&self, stored: &Stored) -> String {
        let Self { api_version, kind, metadata } = self;
        if *metadata {
            let metadata = &stored.metadata;
            return format!(
                "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata}}}"
            );
        }
        let rest = stored.text.strip_prefix('{').unwrap_or_default();
        format!("{{\"apiVersion\":\"{api_version}\",\"kind\":\"{kind}\",{rest}")
    }

    /// As an item of a list: there built-in kinds do not repeat what they are.
    fn item(&self, stored: &Stored) -> String {
        let built_in = !self.api_version.contains('.') || self.api_version.contains(".k8s.io/");
        let gateway = self.api_version.starts_with("gateway.networking.");
        if built_in && !gateway && !self.metadata { stored.text.to_string() } else { self.object(stored) }
    }

    fn change(&self, verb: Verb, stored: &Stored) -> Bytes {
        let verb = match verb {
            Verb::Added => "ADDED",
            Verb::Deleted => "DELETED",
            Verb::Modified => "MODIFIED",
        };
        format!("{{\"type\":\"{verb}\",\"object\":{}}}\n", self.object(stored)).into()
    }

    fn bookmark(&self, version: u64, initial: bool) -> Bytes {
        let annotations = if initial { json!({ "k8s.io/initial-events-end": "true" }) } else { json!({}) };
        let (api_version, kind) = (&self.api_version, &self.kind);
        let object = json!({
            "apiVersion": api_version, "kind": kind,
            "metadata": { "resourceVersion": version.to_string(), "creationTimestamp": null, "annotations": annotations },
        });
        format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n").into()
    }
}

fn get(shared: &Shared, at: &Path, metadata: bool) -> Result<Response<Body>, Refusal> {
    let form = Form::of(shared, at, metadata)?;
    let name = (at.namespace.clone().unwrap_or_default(), at.name.clone().unwrap_or_default());
    let store = lock(&shared.store);
    let object = store.table(&at.group, &at.plural).and_then(|table| table.get(&name));
    let object = object.ok_or_else(|| not_found(&at.plural, &name.1))?;
    Ok(text(StatusCode::OK, form.object(object)))
}

fn list(shared: &Shared, at: &Path, query: &Query, metadata: bool) -> Result<Response<Body>, Refusal> {
    let form = Form::of(shared, at, metadata)?;
    let selector = selector(query);
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let from = query.get("continue").filter(|token| !token.is_empty()).map(|token| {
        let (version, start) = token.split_once('-').unwrap_or_default();
        version.parse().ok().zip(start.parse().ok()).ok_or_else(|| refusal(400, "BadRequest", "continue"))
    });
    let from = from.transpose()?;
    let of = (at.group.as_str(), at.plural.as_str());
    let page = lock(&shared.store).page(of, at.namespace.as_deref(), &selector, limit, from);
    let (objects, version, more) = page?;
    let token = more.map(|(version, start)| format!("{version}-{start}")).unwrap_or_default();
    let mut body = String::with_capacity(objects.iter().map(|object| object.text.len() + 128).sum());
    let (kind, api_version) = if metadata {
        ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned())
    } else {
        (format!("{}List", form.kind), form.api_version.clone())
    };
    let head = json!({ "resourceVersion": version.to_string(), "continue": token });
    body.push_str(&format!(
        "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{head},\"items\":["
    ));
    for (at, object) in objects.iter().enumerate() {
        if at > 0 {
            body.push(',');
        }
        body.push_str(&form.item(object));
    }
    body.push_str("]}");
    Ok(text(StatusCode::OK, body))
}

fn watch(shared: &Arc<Shared>, at: &Path, query: &Query, metadata: bool) -> Result<Response<Body>, Refusal> {
    let form = Form::of(shared, at, metadata)?;
    let asked = query.get("resourceVersion").map_or("", String::as_str);
    let from: u64 = asked.parse().unwrap_or(0);
    let initial = query.get("sendInitialEvents").is_some_and(|value| value == "true");
    let (news, ends) = (
        lock(&shared.store).table(&at.group, &at.plural).ok_or_else(no_such_resource)?.news(),
        shared.watches.subscribe(),
    );
    if from > 0 && !initial {
        // A version that is known to be too old is refused at once.
        let store = lock(&shared.store);
        store.table(&at.group, &at.plural).ok_or_else(no_such_resource)?.since(from)?;
    }
    let time = query.get("timeoutSeconds").and_then(|time| time.parse().ok()).unwrap_or(3600);
    let watcher = Watcher {
        shared: Arc::clone(shared),
        at: at.clone(),
        selector: selector(query),
        form,
        version: from,
        initial: initial || from == 0,
        marks_initial: initial,
        bookmarks: query.get("allowWatchBookmarks").is_some_and(|value| value == "true"),
    };
    let (sender, receiver) = mpsc::channel(PENDING_MAX);
    shared.watching.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(async move {
        let shared = Arc::clone(&watcher.shared);
        watcher.run(sender, news, ends, Duration::from_secs(time)).await;
        shared.watching.fetch_sub(1, Ordering::Relaxed);
    });
    let frames = tokio_stream::StreamExt::map(ReceiverStream::new(receiver), |line| Ok(Frame::data(line)));
    Ok(json_response(StatusCode::OK, BodyExt::boxed(StreamBody::new(frames))))
}

struct Watcher {
    shared: Arc<Shared>,
    at: Path,
    selector: Selector,
    form: Form,
    version: u64,
    initial: bool,
    marks_initial: bool,
    bookmarks: bool,
}

impl Watcher {
    /// Ends when the client has gone, the time is over, the kind has gone, or the test wishes it.
    async fn run(
        mut self,
        lines: mpsc::Sender<Bytes>,
        mut news: tokio::sync::watch::Receiver<u64>,
        mut ends: broadcast::Receiver<End>,
        time: Duration,
    ) {
        let over = tokio::time::sleep(time);
        tokio::pin!(over);
        let mut bookmarks = tokio::time::interval(*lock(&self.shared.bookmarks));
        bookmarks.tick().await;
        loop {
            let (batch, ended) = self.take();
            for line in batch {
                if lines.send(line).await.is_err() {
                    return;
                }
            }
            if ended {
                return;
            }
            tokio::select! {
                () = lines.closed() => return,
                () = &mut over => return,
                end = ends.recv() => {
                    if end == Ok(End::Expired) {
                        lines.send(gone()).await.ok();
                    }
                    return;
                }
                told = news.changed() => if told.is_err() { return },
                _ = bookmarks.tick(), if self.bookmarks => {
                    let line = self.form.bookmark(self.version.max(1), false);
                    if lines.send(line).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// What there is to say now, and whether that is the end.
    fn take(&mut self) -> (Vec<Bytes>, bool) {
        let store = lock(&self.shared.store);
        let Some(table) = store.table(&self.at.group, &self.at.plural) else { return (Vec::new(), true) };
        if std::mem::take(&mut self.initial) {
            let objects = table.select(self.at.namespace.as_deref(), &self.selector);
            let mut lines: Vec<Bytes> = objects.map(|object| self.form.change(Verb::Added, object)).collect();
            self.version = store.version();
            lines.extend(self.marks_initial.then(|| self.form.bookmark(self.version, true)));
            return (lines, false);
        }
        let Ok(changes) = table.since(self.version) else { return (vec![gone()], true) };
        let lines = changes.iter().filter_map(|change| self.line(change)).collect();
        // Everything up to here is said, also what other kinds' changes are.
        self.version = self.version.max(store.version());
        (lines, false)
    }

    /// A change as this watcher sees it: what is no longer selected is gone for it.
    fn line(&self, change: &Change) -> Option<Bytes> {
        let here = |stored: &Stored| {
            self.at.namespace.as_ref().is_none_or(|namespace| *namespace == stored.name.0)
                && self.selector.matches(&stored.labels, &stored.fields)
        };
        let before = change.before.as_deref().is_some_and(here);
        let now = change.verb != Verb::Deleted && here(&change.now);
        let verb = match (before, now) {
            (false, false) => return None,
            (false, true) => Verb::Added,
            (true, true) => Verb::Modified,
            (true, false) => Verb::Deleted,
        };
        Some(self.form.change(verb, &change.now))
    }
}

fn gone() -> Bytes {
    let status = status(&super::store::expired());
    format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n").into()
}

// === small things ===

pub(super) fn selector(query: &Query) -> Selector {
    let text = |key: &str| query.get(key).map(String::as_str);
    Selector::parse(text("labelSelector"), text("fieldSelector"))
}

fn accepts_metadata<B>(request: &Request<B>) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("as=PartialObjectMetadata"))
}

fn query(text: &str) -> Query {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decode(key), decode(value))).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex =
            |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => match (hex(rest.next()), hex(rest.next())) {
                (Some(high), Some(low)) => bytes.push(high * 16 + low),
                _ => bytes.push(b'?'),
            },
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(refusal: &Refusal) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": refusal.message, "reason": refusal.reason, "code": refusal.code,
    })
}

fn failure(refusal: &Refusal, retry_after: Option<u64>) -> Response<Body> {
    let code = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = reply(code, status(refusal));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn reply(status: StatusCode, body: Value) -> Response<Body> {
    text(status, body.to_string())
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    json_response(status, Full::new(Bytes::from(body)).boxed())
}

fn json_response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
