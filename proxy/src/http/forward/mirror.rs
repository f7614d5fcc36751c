//! Copies of requests: sent, and forgotten.
//!
//! In: a request that is about to be sent, and a mirror. Out: nothing anybody waits for; a task of its own sends the copy
//! when the whole body is here and throws the answer away. Invariants: at most [`MIRRORS_MAX`] copies are under way on
//! one worker; a body that is too large to be kept is not copied; both are counted. A copy is no call: it has no record,
//! and its head says so to the callee's sidecar; for breakers it counts only as the probe of a half-open circuit. Surprise: a copy may be sent before the request itself.
//!
//! [`MIRRORS_MAX`]: crate::policy::mirror::MIRRORS_MAX

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Uri, header};
use tokio::sync::oneshot;
use weft_wire::header::MIRRORED;

use super::Destination;
use super::attempt::{self, Answer, Arrived, Unanswered, Way};
use super::outgoing::{self, Outgoing};
use crate::balance::Cluster;
use crate::balance::circuits::Admission;
use crate::http::body::{RequestBody, Whole};
use crate::http::headers::{self, Intent};
use crate::policy::mirror::{MIRROR_TIME_MAX, Mirror, shadow};
use crate::record::Limit;
use crate::worker::{Permit, Worker};

/// Starts a copy of the request that is about to go `way`.
pub(super) fn start(way: &Way<'_>, mirror: &Mirror, allowed: Option<Duration>) {
    let Some(permit) = way.worker.http.mirrors.acquire() else {
        return way.worker.shard.limit(Limit::Mirrors);
    };
    let copy = Copy {
        worker: Rc::clone(way.worker),
        destination: Rc::clone(way.destination),
        cluster: way.worker.clusters.of(&mirror.cluster),
        head: head(&way.outgoing.head, !mirror.plain_host),
        body: way.outgoing.replay().map(|replay| replay.whole()),
        tunnels: way.tunnels,
        grpc: way.grpc,
        _permit: permit,
    };
    let time = allowed.unwrap_or(MIRROR_TIME_MAX);
    // Owned by nobody, but ended by its own time.
    tokio::task::spawn_local(async move {
        // Also covers a client that takes for ever to send its body; then there is nothing to copy.
        drop(tokio::time::timeout(time, copy.send()).await);
    });
}

struct Copy {
    worker: Rc<Worker>,
    destination: Rc<Destination>,
    cluster: Rc<Cluster>,
    head: Parts,
    body: Option<oneshot::Receiver<Option<Whole>>>,
    tunnels: bool,
    grpc: bool,
    _permit: Permit,
}

impl Copy {
    async fn send(self) {
        let body = match self.body {
            None => RequestBody::empty(),
            Some(whole) => match whole.await {
                Ok(Some(whole)) => whole.body(),
                Ok(None) => return self.worker.shard.limit(Limit::Mirrors),
                // The client left; there is no request any more.
                Err(_) => return,
            },
        };
        let Ok(admission) = self.cluster.circuit().admit(Instant::now()) else { return };
        let mut way = Way {
            worker: &self.worker,
            opened: &RefCell::new(None),
            destination: &self.destination,
            cluster: &self.cluster,
            exchange: &mut None,
            outgoing: &mut Outgoing::new(self.head, body),
            intent: Intent::Plain,
            tunnels: self.tunnels,
            grpc: self.grpc,
            tried: Vec::new(),
            per_try: None,
            try_clock: None,
            whole: None,
            told: false,
        };
        let answer = way.attempt().await;
        if admission.is_probe() {
            settle(&admission, &answer);
        }
        match answer.map(http::Response::into_body) {
            Ok(Arrived::Body(source)) => source.drain().await,
            Ok(Arrived::Switch(_)) => {}
            Err(unanswered) => {
                tracing::debug!(reason = %unanswered.refusal.reason, "a mirror did not answer")
            }
        }
    }
}

/// A copy opens no circuit. But a half-open one that only copies reach would stay so for ever, did they not say how they
/// fared.
fn settle(admission: &Admission, answer: &Result<Answer, Unanswered>) {
    let now = Instant::now();
    let outcome = match answer {
        Ok(answer) => attempt::outcome(answer.status(), answer.headers()),
        Err(Unanswered { refusal, .. }) => attempt::judgement(refusal.reason, refusal.fault),
    };
    admission.settle(outcome, now.saturating_duration_since(admission.since()), now);
}

/// The copy's head: marked, and by default in another's name.
fn head(original: &Parts, shadow_host: bool) -> Parts {
    let mut copy = outgoing::copy(original);
    copy.headers.insert(HeaderName::from_static(MIRRORED), HeaderValue::from_static("1"));
    copy.headers.remove(header::EXPECT);
    if shadow_host && let Some(name) = headers::authority(original).map(shadow) {
        if copy.headers.contains_key(header::HOST)
            && let Ok(value) = HeaderValue::try_from(&name)
        {
            copy.headers.insert(header::HOST, value);
        }
        if copy.uri.authority().is_some()
            && let Ok(authority) = Authority::try_from(name)
        {
            let mut parts = std::mem::take(&mut copy.uri).into_parts();
            parts.authority = Some(authority);
            copy.uri = Uri::from_parts(parts).unwrap_or_default();
        }
    }
    copy
}
