//! The circuits as everybody sees them: computed at most once a second, and only while somebody looks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};

use crate::circuits::Document;
use crate::graph::Timestamp;
use crate::ingest::Ingest;

/// A document older than this is made anew for whoever asks. Below a second, so that who looks once a second never
/// gets the last one again.
const AGE_MAX: Duration = Duration::from_millis(900);

/// How often it is made while a stream follows it.
const PERIOD: Duration = Duration::from_secs(1);

/// The current document.
pub(super) struct Board {
    ingest: Ingest,
    document: watch::Sender<Arc<Document>>,
    /// Held while a document is made, so that a crowd of requests makes one.
    making: Mutex<()>,
}

impl Board {
    pub(super) fn new(ingest: Ingest) -> Self {
        let empty = ingest.circuits().with(|circuits| circuits.document(Timestamp::default()));
        Self { ingest, document: watch::Sender::new(Arc::new(empty)), making: Mutex::new(()) }
    }

    /// The document, at most [`AGE_MAX`] old.
    pub(super) async fn current(&self) -> Arc<Document> {
        if let Some(document) = self.fresh() {
            return document;
        }
        let _alone = self.making.lock().await;
        if let Some(document) = self.fresh() {
            return document;
        }
        let ingest = self.ingest.clone();
        let made = tokio::task::spawn_blocking(move || {
            let now = Timestamp::now();
            ingest.expire_circuits(now);
            ingest.circuits().with(|circuits| circuits.document(now))
        });
        // Only a panic or the end of the runtime fails it; the last good document is the best answer to both.
        let Ok(document) = made.await else { return self.document.borrow().clone() };
        self.publish(document)
    }

    pub(super) fn follow(&self) -> watch::Receiver<Arc<Document>> {
        self.document.subscribe()
    }

    /// Keeps the document current while somebody follows it.
    pub(super) async fn run(&self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.document.receiver_count() > 0 {
                self.current().await;
            }
        }
    }

    fn fresh(&self) -> Option<Arc<Document>> {
        let document = self.document.borrow();
        super::is_younger(document.at, Timestamp::now(), AGE_MAX).then(|| document.clone())
    }

    /// Numbers `document` and makes it the current one; wakes followers only if its content changed.
    fn publish(&self, mut document: Document) -> Arc<Document> {
        let mut published = None;
        self.document.send_if_modified(|current| {
            let changed = current.version == 0 || !document.same_content(current);
            document.version = match changed {
                true => (current.version + 1).max(document.at.millis()),
                false => current.version,
            };
            *current = Arc::new(document);
            published = Some(current.clone());
            changed
        });
        published.unwrap_or_else(|| self.document.borrow().clone())
    }
}
