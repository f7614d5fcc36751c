//! The thread that writes the journal.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::journal::Journal;
use super::{Counter, Outcome, Report, SEQUENCES_KEPT, Unavailable};
use crate::graph::Timestamp;

/// Instances whose sequences are remembered, at some 150 bytes each. Who floods it with made-up instances makes the
/// longest silent ones forgotten; those are counted again only if they repeat a report after that.
const INSTANCES_MAX: usize = 100_000;

/// Reports in one transaction: more would only delay the first one's answer.
const BATCH_MAX: usize = 256;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Message {
    Report(Box<Entry>),
    Prune(Timestamp),
    Close,
}

/// A report on its way to disk.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) report: Report,
    pub(super) body: Vec<u8>,
    pub(super) answer: oneshot::Sender<Result<Outcome, Unavailable>>,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Entry {
    /// Answers a sender that may have gone away; then it comes again and learns it from the sequence.
    fn answer(self, outcome: Result<Outcome, Unavailable>) {
        if self.answer.send(outcome).is_err() {
            tracing::debug!("the sender of a report did not wait for its answer");
        }
    }
}

/// The highest sequence that was committed, and when the instance was last heard.
#[derive(Debug, Clone, Copy)]
struct HighWater {
    sequence: u64,
    heard: Timestamp,
}

pub(super) struct Writer {
    journal: Journal,
    counter: Box<dyn Counter>,
    high: HashMap<Arc<str>, HighWater>,
}

impl Writer {
    pub(super) fn new(journal: Journal, counter: Box<dyn Counter>) -> Self {
        Self { journal, counter, high: HashMap::new() }
    }

    pub(super) fn run(&mut self, mut waiting: mpsc::Receiver<Message>) {
        self.replay();
        while let Some(first) = waiting.blocking_recv() {
            let mut batch = Vec::new();
            let mut message = Some(first);
            let mut closing = false;
            while let Some(current) = message {
                match current {
                    Message::Report(entry) => batch.push(*entry),
                    Message::Prune(now) => self.prune(now),
                    Message::Close => {
                        closing = true;
                        break;
                    }
                }
                message = if batch.len() < BATCH_MAX { waiting.try_recv().ok() } else { None };
            }
            self.commit(batch);
            if closing {
                return;
            }
        }
    }

    fn replay(&mut self) {
        match self.journal.instances() {
            Ok(known) => {
                for known in known {
                    let high = HighWater { sequence: known.sequence, heard: known.last_end };
                    self.high.insert(known.instance.clone(), high);
                    if !known.instance.is_empty() {
                        self.counter.known(known);
                    }
                }
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "sequences cannot be read")
            }
        }
        let counter = &mut self.counter;
        match self.journal.replay(Timestamp::now(), |report| counter.count(report)) {
            Ok(0) => {}
            Ok(reports) => tracing::info!(reports, "replayed the journal"),
            // Counting goes on with what could be read.
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the journal is incomplete")
            }
        }
    }

    fn commit(&mut self, batch: Vec<Entry>) {
        if batch.is_empty() {
            return;
        }
        // What the batch itself raises counts for later entries of the batch, but only if the commit succeeds.
        let mut raised: HashMap<Arc<str>, HighWater> = HashMap::new();
        let mut fresh = Vec::with_capacity(batch.len());
        let mut sequences = Vec::with_capacity(batch.len());
        for entry in &batch {
            let instance: Arc<str> = entry.report.instance.clone().unwrap_or_default();
            let known = raised.get(&instance).or_else(|| self.high.get(&instance)).map(|high| high.sequence);
            let sequence = match &entry.report.instance {
                Some(_) => entry.report.sequence,
                // Senders without sequences share one, made here only to have a key in the journal.
                None => known.unwrap_or(0) + 1,
            };
            let is_fresh = known.is_none_or(|known| sequence > known);
            fresh.push(is_fresh);
            sequences.push(sequence);
            if is_fresh {
                raised.insert(instance, HighWater { sequence, heard: entry.report.received_at });
            }
        }
        let rows = batch.iter().zip(&fresh).zip(&sequences).filter(|((_, fresh), _)| **fresh);
        let rows = rows.map(|((entry, _), sequence)| (&entry.report, *sequence, entry.body.as_slice()));
        if let Err(error) = self.journal.write(rows) {
            tracing::error!(error = &error as &dyn std::error::Error, "the journal cannot be written");
            for entry in batch {
                entry.answer(Err(Unavailable::Failed));
            }
            return;
        }
        self.high.extend(raised);
        for (entry, fresh) in batch.into_iter().zip(fresh) {
            if fresh {
                self.counter.count(&entry.report);
            }
            let outcome = if fresh { Outcome::Counted } else { Outcome::Duplicate };
            entry.answer(Ok(outcome));
        }
    }

    fn prune(&mut self, now: Timestamp) {
        self.high.retain(|instance, high| instance.is_empty() || now.since(high.heard) < SEQUENCES_KEPT);
        if self.high.len() > INSTANCES_MAX {
            let mut heard: Vec<Timestamp> = self.high.values().map(|high| high.heard).collect();
            let excess = heard.len() - INSTANCES_MAX;
            let (_, &mut oldest_kept, _) = heard.select_nth_unstable(excess);
            self.high.retain(|instance, high| instance.is_empty() || high.heard >= oldest_kept);
            tracing::warn!(excess, "too many instances report; the longest silent are forgotten");
        }
        if let Err(error) = self.journal.prune(now) {
            tracing::error!(error = &error as &dyn std::error::Error, "the journal cannot be pruned");
        }
    }
}
