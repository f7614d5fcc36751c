//! What people should hear of, as Events: objects that are refused or overridden, phases of a root's rotation.
//!
//! In: what was said of an object before and what is said now; steps of the authority. Out: Events of `events.k8s.io/v1`. Only a
//! change is news, and what is told again is counted on the Event that is there. Invariants: telling never waits, and what does
//! not fit into the queue is counted; [`news`] is pure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::secret::AUTHORITY;
use super::status::merge::Wanted;
use super::status::{Key, api_version};
use super::{Cluster, ask};
use crate::ca::authority::Step;
use crate::inspect::objects::Condition;

/// Who reports.
const REPORTER: &str = "weft.dev/control-plane";
/// Events that wait: a change that breaks every route of a large namespace.
const QUEUE_MAX: usize = 256;
/// Between two Events.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the last Events may take when the program ends.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Longest note, by the API.
const NOTE_BYTES_MAX: usize = 1_000;

/// Where Events are told. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<(Event, ObjectReference)>,
    counted: IntCounterVec,
    namespace: Arc<str>,
}

/// Who publishes them.
pub struct Publisher {
    queue: mpsc::Receiver<(Event, ObjectReference)>,
    recorder: Recorder,
    counted: IntCounterVec,
}

/// Something that people should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Whether something is wrong.
    pub is_warning: bool,
    /// What it is about: the condition.
    pub action: &'static str,
    /// Why, in one word.
    pub reason: &'static str,
    /// In words.
    pub note: String,
}

/// A way to tell, and who carries it out.
#[must_use]
pub fn events(cluster: &Cluster, registry: &Registry) -> (Events, Publisher) {
    let opts = Opts::new("weft_events_total", "Kubernetes Events, by what became of them.");
    let counted = IntCounterVec::new(opts, &["outcome"]).expect("a valid name");
    for outcome in ["published", "dropped", "error"] {
        counted.with_label_values(&[outcome]).inc_by(0);
    }
    // Registered twice only in tests that share a registry; then it is only not exported twice.
    drop(registry.register(Box::new(counted.clone())));
    let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(cluster.name()) };
    let recorder = Recorder::new(cluster.client.clone(), reporter);
    let (queue, queued) = mpsc::channel(QUEUE_MAX);
    let events = Events { queue, counted: counted.clone(), namespace: Arc::clone(&cluster.namespace) };
    (events, Publisher { queue: queued, recorder, counted })
}

impl Events {
    /// Tells what is news of an object.
    pub fn told(&self, key: &Key, before: Option<&Wanted>, said: &Wanted, uid: Option<&str>) {
        let about = ObjectReference {
            api_version: api_version(key.kind),
            kind: Some(key.kind.to_owned()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: uid.filter(|uid| !uid.is_empty()).map(str::to_owned),
            ..Default::default()
        };
        for news in news(before, said) {
            self.tell(news, about.clone());
        }
    }

    /// Tells what the authority did.
    pub fn stepped(&self, step: Step, text: &str) {
        let reason = match step {
            // Nobody need do or know anything.
            Step::Intermediate => return,
            Step::Began => "RootRotationBegan",
            Step::Issuing => "RootRotationIssuing",
            Step::Dropped => "RootRotationDone",
        };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            namespace: Some(self.namespace.to_string()),
            name: Some(AUTHORITY.to_owned()),
            ..Default::default()
        };
        self.tell(News { is_warning: false, action: "RotateRoot", reason, note: text.to_owned() }, about);
    }

    fn tell(&self, news: News, about: ObjectReference) {
        let event = Event {
            type_: if news.is_warning { EventType::Warning } else { EventType::Normal },
            reason: news.reason.to_owned(),
            note: Some(shortened(news.note)),
            action: news.action.to_owned(),
            secondary: None,
        };
        if self.queue.try_send((event, about)).is_err() {
            self.counted.with_label_values(&["dropped"]).inc();
        }
    }
}

impl Publisher {
    /// Publishes until `shutdown`, and then what is in the queue yet: it would not be news again after the next start.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while let Some(Some((event, about))) = shutdown.run_until_cancelled(self.queue.recv()).await {
            self.publish(&event, &about).await;
            // One who waits for the end need not wait here.
            shutdown.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
        }
        let last = async {
            while let Ok((event, about)) = self.queue.try_recv() {
                self.publish(&event, &about).await;
            }
        };
        if tokio::time::timeout(LAST_WORDS, last).await.is_err() {
            warn!(left = self.queue.len(), "Events were not published before the end");
        }
    }

    async fn publish(&self, event: &Event, about: &ObjectReference) {
        let outcome = match ask(self.recorder.publish(event, about)).await {
            Ok(()) => "published",
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, reason = event.reason, "an Event was not published");
                "error"
            }
        };
        self.counted.with_label_values(&[outcome]).inc();
    }
}

/// What is news of an object, of which `before` was said before and `said` now.
#[must_use]
pub fn news(before: Option<&Wanted>, said: &Wanted) -> Vec<News> {
    let find = |kind: &str| before?.conditions.iter().find(|condition| condition.kind == kind);
    let mut all: Vec<News> = Vec::new();
    for condition in &said.conditions {
        let known = find(condition.kind);
        let is_new =
            known.is_none_or(|known| (known.status, known.reason) != (condition.status, condition.reason));
        let was_bad = known.is_some_and(is_bad);
        if is_new && (is_bad(condition) || was_bad) {
            all.push(News {
                is_warning: is_bad(condition),
                action: condition.kind,
                reason: condition.reason,
                note: match condition.message.as_str() {
                    "" => format!("{} is {} again", condition.kind, condition.status),
                    message => message.to_owned(),
                },
            });
        }
    }
    let overridden = |wanted: &Wanted| wanted.conditions.iter().any(|condition| condition.kind == CONFLICTED);
    if before.is_some_and(overridden) && !overridden(said) {
        let note = "nothing of it is overridden any more".to_owned();
        all.push(News { is_warning: false, action: CONFLICTED, reason: "Resolved", note });
    }
    all
}

const CONFLICTED: &str = "Conflicted";

/// Whether its author must do something.
fn is_bad(condition: &Condition) -> bool {
    match (condition.kind, condition.status) {
        ("Accepted" | "ResolvedRefs", status) => status == "False",
        (CONFLICTED, status) => status == "True",
        // That not all have it yet passes by itself.
        ("Programmed", status) => status == "False" && condition.reason == "Invalid",
        _ => false,
    }
}

fn shortened(mut note: String) -> String {
    if note.len() > NOTE_BYTES_MAX {
        let end = (0..=NOTE_BYTES_MAX - '…'.len_utf8()).rev().find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or(0));
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(conditions: &[(&'static str, &'static str, &'static str)]) -> Wanted {
        let condition = |(kind, status, reason): &(&'static str, &'static str, &'static str)| Condition {
            kind,
            status,
            reason,
            message: String::new(),
        };
        Wanted {
            generation: Some(1),
            attached: Vec::new(),
            conditions: conditions.iter().map(condition).collect(),
            counted: true,
        }
    }

    fn reasons(before: Option<&Wanted>, now: &Wanted) -> Vec<(bool, &'static str)> {
        news(before, now).into_iter().map(|news| (news.is_warning, news.reason)).collect()
    }

    #[test]
    fn what_is_well_is_no_news_and_what_is_not_is_once() {
        let well = said(&[("Accepted", "True", "Accepted"), ("Programmed", "Unknown", "NotAskedFor")]);
        assert_eq!(reasons(None, &well), []);
        let bad = said(&[("Accepted", "False", "NoMatchingParent"), ("Programmed", "False", "Pending")]);
        assert_eq!(reasons(Some(&well), &bad), [(true, "NoMatchingParent")]);
        assert_eq!(reasons(None, &bad), [(true, "NoMatchingParent")]);
        assert_eq!(reasons(Some(&bad), &bad), []);
        assert_eq!(reasons(Some(&bad), &well), [(false, "Accepted")], "it is well again");
    }

    #[test]
    fn overriding_begins_and_ends() {
        let alone = said(&[("Accepted", "True", "Accepted")]);
        let both = said(&[("Accepted", "True", "Accepted"), ("Conflicted", "True", "Conflicted")]);
        assert_eq!(reasons(Some(&alone), &both), [(true, "Conflicted")]);
        assert_eq!(reasons(Some(&both), &alone), [(false, "Resolved")]);
    }

    #[test]
    fn a_note_is_never_longer_than_the_api_takes() {
        for text in ["ä".repeat(2_000), "x".repeat(1_001)] {
            let short = shortened(text);
            assert!(short.len() <= NOTE_BYTES_MAX && short.ends_with('…'), "{}", short.len());
        }
        assert_eq!(shortened("short".into()), "short");
    }
}
