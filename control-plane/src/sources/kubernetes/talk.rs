//! The conversation with the server about one kind: a list, page by page, then a watch from where the list ended, for ever.
//!
//! In: answers of the server. Out: [`Word`]s. What is read becomes the world's own terms here, object by object, so that
//! the clothes of an object (managed fields, a Pod's whole spec) are never kept.
//!
//! Invariants: a list counts when its last page is there; a watch goes on from the last version heard, so nothing between
//! two watches is lost; where the server has forgotten that version (410), a list follows, and brings only what differs.
//! Every wait has a deadline. Surprise: not kube's `watcher`, see ADR 15.

use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::backoff::Backoff;
use super::catalog::{Delta, Reading, Said, What, Word};
use super::kind::{Kind, Need};
use super::metrics::Metrics;
use super::table::Table;
use super::wire::{self, Status};
use crate::resources::Content;
use crate::resources::served::{self, Served};
use crate::world::ObjectName;

/// Objects on one page of a list: a few megabytes of Pods.
const PAGE: u32 = 500;
/// Largest page, and longest line of a watch. An object is at most 1.5 MiB, and a page has [`PAGE`] of them.
const TEXT_MAX: usize = 768 << 20;
/// How long a page, or the head of a watch's answer, may take.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// How long a watch lasts, and how much longer by luck, in seconds: not all end at once. kube refuses to ask for 295.
const WATCH_TIME: (u32, u32) = (240, 50);
/// How much longer than that an end may take to arrive.
const WATCH_MARGIN: Duration = Duration::from_secs(10);
/// A watch that ends sooner is a failure, whatever the server says; and one that has said nothing yet is no success before.
const WATCH_MIN: Duration = Duration::from_secs(1);
/// How often to look whether a kind has been installed.
const INSTALLED_TIME: Duration = Duration::from_secs(10);
/// How long after a version was too old everything is listed, at most: not all kinds at once.
const RELIST_TIME: Duration = Duration::from_millis(300);
/// Objects read without letting anybody else work.
const STRETCH: usize = 64;

/// Why a conversation broke off.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}", chain(.0))]
    Request(#[source] kube::Error),
    #[error("the API server cannot be heard: {0}")]
    Broken(String),
    #[error("the API server has not answered within {ANSWER_TIME:?}")]
    Slow,
    #[error("the API server answered {status}{}", words(.message.as_ref()))]
    Refused { status: StatusCode, message: Option<String>, wait: Option<Duration> },
    #[error("the API server's answer is garbled: {0}")]
    Garbled(#[from] wire::Garbled),
    #[error("the API server ended a watch at once")]
    Short,
    #[error("nobody listens any more")]
    Over,
}

fn words(message: Option<&String>) -> String {
    message.map(|message| format!(": {}", message.chars().take(300).collect::<String>())).unwrap_or_default()
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = String::from("the API server cannot be reached");
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // Some repeat what caused them.
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

impl Failure {
    /// Whether the server has forgotten the version that was asked for.
    fn is_expired(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::GONE)
    }

    fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    fn wait(&self) -> Option<Duration> {
        match self {
            Self::Refused { wait, .. } => *wait,
            _ => None,
        }
    }

    /// The metric's word for it.
    fn word(&self) -> &'static str {
        match self {
            Self::Refused { status, .. } if *status == StatusCode::TOO_MANY_REQUESTS => "throttled",
            Self::Refused { status, .. } if *status == StatusCode::FORBIDDEN => "forbidden",
            failure if failure.is_expired() => "expired",
            failure if failure.is_unknown() => "not_installed",
            Self::Refused { .. } => "refused",
            Self::Garbled(_) => "garbled",
            Self::Slow => "slow",
            Self::Short => "short",
            Self::Request(_) | Self::Broken(_) | Self::Over => "unreachable",
        }
    }
}

/// One conversation.
pub(super) struct Talk {
    client: kube::Client,
    kind: Kind,
    words: mpsc::Sender<Word>,
    metrics: Metrics,
    table: Table,
    backoff: Backoff,
    paths: Vec<String>,
    /// Whether the last attempt failed.
    troubled: bool,
    /// Whether the server has forgotten a version since a watch last went well.
    expired: bool,
    /// Answers in a row that the kind is not known.
    unknown: u32,
}

impl Talk {
    pub(super) fn new(client: kube::Client, kind: Kind, words: mpsc::Sender<Word>, metrics: Metrics) -> Self {
        let (table, backoff, paths) = (Table::default(), Backoff::default(), kind.paths());
        let (troubled, expired, unknown) = (false, false, 0);
        Self { client, kind, words, metrics, table, backoff, paths, troubled, expired, unknown }
    }

    /// Runs until dropped, or until nobody listens.
    pub(super) async fn run(mut self) {
        loop {
            let failure = match self.list().await {
                Ok((path, version)) => self.follow(&path, version).await,
                Err(failure) => failure,
            };
            if !self.recover(failure).await {
                return;
            }
        }
    }

    /// Waits as long as a failure demands. Whether to go on.
    async fn recover(&mut self, failure: Failure) -> bool {
        self.metrics.restarted(self.kind, failure.word());
        if matches!(failure, Failure::Over) {
            return false;
        }
        if failure.is_unknown() && self.kind.need() == Need::IfInstalled {
            return self.wait_for_installation().await;
        }
        debug!(kind = %self.kind, %failure, "the conversation with the API server has broken off");
        // To list anew is what the answer asks for, at once; when what was listed is too old as well, something is wrong.
        if failure.is_expired() && !std::mem::replace(&mut self.expired, true) {
            tokio::time::sleep(RELIST_TIME.mul_f64(luck())).await;
            return true;
        }
        let what = What::Trouble { reason: failure.to_string(), at: std::time::Instant::now() };
        if !self.say(what).await {
            return false;
        }
        self.troubled = true;
        let wait = self.backoff.wait(luck(), failure.wait());
        tokio::time::sleep(wait).await;
        true
    }

    /// A watch goes well: what fails next is a first failure.
    fn settled(&mut self) {
        self.backoff.reset();
        self.expired = false;
    }

    async fn wait_for_installation(&mut self) -> bool {
        self.unknown += 1;
        self.backoff.reset();
        self.troubled = false;
        // A server that has just begun may not know yet what is installed: what was there is given up at the second answer.
        if self.unknown == 1 && self.table.len() == 0 || self.unknown == 2 {
            let gone = self.table.clear();
            self.metrics.objects(self.kind, 0);
            let removed = What::Changed(Delta { gone, ..Delta::default() });
            if !(self.say(What::Absent).await && self.say(removed).await) {
                return false;
            }
        }
        tokio::time::sleep(INSTALLED_TIME.mul_f64(0.9 + luck() / 5.0)).await;
        true
    }

    async fn say(&self, what: What) -> bool {
        self.words.send(Word { kind: self.kind, what }).await.is_ok()
    }

    /// The server answers.
    async fn well(&mut self) -> Result<(), Failure> {
        self.metrics.heard(self.kind);
        if std::mem::take(&mut self.troubled) && !self.say(What::Recovered).await {
            return Err(Failure::Over);
        }
        Ok(())
    }

    // === list ===

    /// Reads everything; where it is, and from which version to go on.
    async fn list(&mut self) -> Result<(String, Box<str>), Failure> {
        let paths = self.paths.clone();
        let mut unknown = None;
        for path in paths {
            match self.list_at(&path).await {
                Ok(version) => {
                    if std::mem::take(&mut self.unknown) > 0 {
                        info!(kind = %self.kind, "has been installed, and is followed from now on");
                    }
                    return Ok((path, version));
                }
                Err(failure) if failure.is_unknown() => unknown = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        Err(unknown.unwrap_or(Failure::Slow))
    }

    async fn list_at(&mut self, path: &str) -> Result<Box<str>, Failure> {
        let mut delta = Delta::default();
        self.table.begin();
        let ended = self.pages(path, &mut delta).await;
        if ended.is_ok() {
            (delta.gone, delta.listed) = (self.table.end(), true);
            self.well().await?;
        }
        // What has been read is told also when the list broke off: it will not be read again.
        self.metrics.objects(self.kind, self.table.len());
        self.metrics.events(self.kind, delta.read.len() + delta.gone.len());
        if (ended.is_ok() || !delta.read.is_empty()) && !self.say(What::Changed(delta)).await {
            return Err(Failure::Over);
        }
        ended
    }

    async fn pages(&mut self, path: &str, delta: &mut Delta) -> Result<Box<str>, Failure> {
        let mut params = ListParams::default().limit(PAGE);
        params.field_selector = self.kind.fields().map(str::to_owned);
        loop {
            let request = kube::core::Request::new(path);
            let request =
                if self.kind.is_metadata() { request.list_metadata(&params) } else { request.list(&params) };
            let response = self.ask(request).await?;
            let body = Limited::new(response.into_body(), TEXT_MAX).collect();
            let body = timeout(ANSWER_TIME, body).await.map_err(|_| Failure::Slow)?;
            let body = body.map_err(|error| Failure::Broken(error.to_string()))?.to_bytes();
            let text = std::str::from_utf8(&body).map_err(|error| Failure::Broken(error.to_string()))?;
            let page = wire::page(text)?;
            self.metrics.heard(self.kind);
            for (at, item) in page.items.iter().enumerate() {
                if at % STRETCH == STRETCH - 1 {
                    tokio::task::yield_now().await;
                }
                let Some((name, version)) = self.named(item) else { continue };
                if self.table.list(&name, &version) {
                    delta.read.push(self.read(name, &version, item));
                }
            }
            params.continue_token = page.more;
            if params.continue_token.is_none() {
                return Ok(page.version);
            }
        }
    }

    /// What an object is called, and its version. One that does not say is left out: it must not hide the others.
    fn named(&self, text: &str) -> Option<(ObjectName, Box<str>)> {
        let stamp = served::stamp(text).ok().filter(|stamp| !stamp.name.is_empty());
        let Some(stamp) = stamp else {
            self.metrics.restarted(self.kind, "nameless");
            return None;
        };
        let name = ObjectName { namespace: stamp.namespace.into(), name: stamp.name.into() };
        Some((name, stamp.resource_version))
    }

    fn read(&mut self, name: ObjectName, version: &str, text: &str) -> Reading {
        let said = match self.kind {
            Kind::Object(Served::Pod) => {
                let (content, after) = served::pod(text);
                Said::Object(content, after)
            }
            Kind::Object(served) => Said::Object(served::object(served, text), None),
            Kind::Owner(between) => Said::Owner(served::owner(between, text)),
        };
        let good = !matches!(said, Said::Object(Content::Broken(_), _) | Said::Owner(Err(_)));
        let known = self.table.read(&name, version, good);
        Reading { name, said, known }
    }

    // === watch ===

    /// Watches until that is no longer possible.
    async fn follow(&mut self, path: &str, mut version: Box<str>) -> Failure {
        loop {
            let begun = Instant::now();
            let ended = self.watch(path, &mut version).await;
            let failure = match ended {
                Ok(()) if begun.elapsed() >= WATCH_MIN => {
                    self.metrics.restarted(self.kind, "closed");
                    self.settled();
                    continue;
                }
                Ok(()) => Failure::Short,
                Err(failure) => failure,
            };
            // The list that follows says what has become of it.
            if failure.is_expired()
                || failure.is_unknown()
                || matches!(failure, Failure::Over | Failure::Garbled(_))
            {
                return failure;
            }
            if !self.recover(failure).await {
                return Failure::Over;
            }
        }
    }

    async fn watch(&mut self, path: &str, version: &mut Box<str>) -> Result<(), Failure> {
        let seconds = WATCH_TIME.0 + (f64::from(WATCH_TIME.1) * luck()) as u32;
        let mut params = WatchParams::default().timeout(seconds);
        params.field_selector = self.kind.fields().map(str::to_owned);
        let request = kube::core::Request::new(path);
        let request = if self.kind.is_metadata() {
            request.watch_metadata(&params, version)
        } else {
            request.watch(&params, version)
        };
        let mut body = self.ask(request).await?.into_body();
        self.metrics.heard(self.kind);
        let begun = Instant::now();
        let end = begun + Duration::from_secs(u64::from(seconds)) + WATCH_MARGIN;
        let mut pending = Vec::new();
        loop {
            // Its head is no sign that all is well: a server may let everybody in and cut them off.
            let look = if self.troubled { begun + WATCH_MIN } else { end };
            let frame = tokio::time::timeout_at(look, body.frame()).await;
            let frame = match frame {
                Err(_) if self.troubled => {
                    self.well().await?;
                    continue;
                }
                Err(_) => return Err(Failure::Broken("a watch has not ended in time".into())),
                Ok(None) => return Ok(()),
                Ok(Some(Err(error))) => return Err(Failure::Broken(chain(&error))),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            let scanned = pending.len();
            pending.extend_from_slice(&data);
            if pending.len() > TEXT_MAX {
                return Err(Failure::Broken(format!("a line of more than {TEXT_MAX} bytes")));
            }
            let Some(last) = pending[scanned..].iter().rposition(|byte| *byte == b'\n') else { continue };
            let rest = pending.split_off(scanned + last + 1);
            let lines = std::mem::replace(&mut pending, rest);
            self.hear(&lines, version).await?;
            self.well().await?;
            // Not before something was said: whoever is let in and cut off, or always too late, waits longer each time.
            self.settled();
        }
    }

    /// Takes in whole lines.
    async fn hear(&mut self, lines: &[u8], version: &mut Box<str>) -> Result<(), Failure> {
        let text = std::str::from_utf8(lines).map_err(|error| Failure::Broken(error.to_string()))?;
        let mut delta = Delta::default();
        let mut failure = None;
        for line in text.lines().filter(|line| !line.is_empty()) {
            match self.heed(line, &mut delta) {
                Ok(heard) if heard.is_empty() => {}
                Ok(heard) => *version = heard,
                Err(broken) => {
                    failure = Some(broken);
                    break;
                }
            }
        }
        self.metrics.heard(self.kind);
        let changes = delta.read.len() + delta.gone.len();
        if changes > 0 {
            self.metrics.events(self.kind, changes);
            self.metrics.objects(self.kind, self.table.len());
            if !self.say(What::Changed(delta)).await {
                return Err(Failure::Over);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Takes in one line; the version that it stands for.
    fn heed(&mut self, line: &str, delta: &mut Delta) -> Result<Box<str>, Failure> {
        let (said, object) = wire::line(line)?;
        match said {
            wire::Said::Error => Err(refused(StatusCode::INTERNAL_SERVER_ERROR, None, object)),
            wire::Said::Bookmark => {
                Ok(served::stamp(object).map(|stamp| stamp.resource_version).unwrap_or_default())
            }
            wire::Said::Set | wire::Said::Gone => {
                let Some((name, version)) = self.named(object) else { return Ok(Box::default()) };
                if said == wire::Said::Set {
                    delta.read.push(self.read(name, &version, object));
                } else if self.table.remove(&name) {
                    // Set and gone in one go: only the end counts.
                    delta.read.retain(|reading| reading.name != name);
                    delta.gone.push(name);
                }
                Ok(version)
            }
        }
    }

    async fn ask(
        &self,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Response<Body>, Failure> {
        let request = request.map_err(|error| Failure::Request(kube::Error::BuildRequest(error)))?;
        let sent = self.client.send(request.map(Body::from));
        let response =
            timeout(ANSWER_TIME, sent).await.map_err(|_| Failure::Slow)?.map_err(Failure::Request)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait =
            response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(response.into_body(), 1 << 20).collect();
        let body = timeout(ANSWER_TIME, body).await.ok().and_then(Result::ok);
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Err(refused(status, wait, &String::from_utf8_lossy(&body)))
    }
}

fn refused(status: StatusCode, wait: Option<u64>, body: &str) -> Failure {
    let said = Status::read(body);
    let wait = wait.or(said.retry_after()).map(Duration::from_secs);
    let status = said.code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(status);
    Failure::Refused { status, message: said.message, wait }
}

/// A number from 0 to 1.
fn luck() -> f64 {
    fastrand::f64()
}

/// The conversations about all kinds.
pub(super) fn all(
    client: &kube::Client,
    words: &mpsc::Sender<Word>,
    metrics: &Metrics,
) -> impl Iterator<Item = Talk> {
    let (client, words, metrics) = (client.clone(), words.clone(), metrics.clone());
    Kind::ALL.into_iter().map(move |kind| Talk::new(client.clone(), kind, words.clone(), metrics.clone()))
}

#[cfg(test)]
mod tests;
