//! How a report's samples lie in the journal: a protobuf message with a table of the texts in it.
//!
//! Protobuf, so that a newer version can add a field and still read an older journal. What is stored is what was
//! *decided* (who called whom, who counts), because the same decision could not be made again after a restart,
//! when no sidecar is connected yet.
//! Invariant: decoding what was encoded gives the same samples; decoding anything else gives `None`, no panic.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;

use super::Report;
use crate::graph::{Histogram, Measure, NodeKey, Protocol, Sample, Status, Timestamp, Tls};

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(string, repeated, tag = "1")]
    texts: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Stored>,
}

/// A sample. Texts are positions in the table plus one; 0 is "none".
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    source: u32,
    #[prost(uint32, tag = "2")]
    target: u32,
    #[prost(uint32, tag = "3")]
    protocol: u32,
    #[prost(uint32, tag = "4")]
    tls: u32,
    #[prost(uint64, tag = "5")]
    at: u64,
    #[prost(uint32, tag = "6")]
    service: u32,
    #[prost(uint32, tag = "7")]
    source_version: u32,
    #[prost(uint32, tag = "8")]
    target_version: u32,
    #[prost(uint32, tag = "9")]
    provisional: u32,
    #[prost(uint32, tag = "10")]
    kind: u32,
    #[prost(uint32, tag = "11")]
    method: u32,
    #[prost(uint32, tag = "12")]
    route: u32,
    #[prost(uint32, tag = "13")]
    status: u32,
    #[prost(uint32, tag = "14")]
    error: u32,
    #[prost(sint32, repeated, tag = "15")]
    buckets: Vec<i32>,
    #[prost(uint32, repeated, tag = "16")]
    counts: Vec<u32>,
    #[prost(uint64, tag = "17")]
    sum_micros: u64,
    #[prost(uint64, tag = "18")]
    sent: u64,
    #[prost(uint64, tag = "19")]
    received: u64,
    #[prost(uint32, tag = "20")]
    count: u32,
    #[prost(uint32, tag = "21")]
    denied: u32,
}

const REQUESTS: u32 = 1;
const OPENED: u32 = 2;
const CLOSED: u32 = 3;
const BYTES: u32 = 4;
const FOLDED: u32 = 5;
const RETRIES: u32 = 6;

#[derive(Default)]
struct Texts {
    list: Vec<String>,
    index: HashMap<String, u32>,
}

impl Texts {
    fn put(&mut self, text: &str) -> u32 {
        if let Some(&position) = self.index.get(text) {
            return position;
        }
        self.list.push(text.to_owned());
        let position = u32::try_from(self.list.len()).unwrap_or_default();
        self.index.insert(text.to_owned(), position);
        position
    }

    fn put_some(&mut self, text: Option<&Arc<str>>) -> u32 {
        text.map_or(0, |text| self.put(text))
    }
}

/// The bytes that the journal keeps of `report`.
pub(super) fn encode(report: &Report) -> Vec<u8> {
    let mut texts = Texts::default();
    let samples = report.samples.iter().map(|sample| stored(&mut texts, sample)).collect();
    Record { texts: texts.list, samples }.encode_to_vec()
}

fn stored(texts: &mut Texts, sample: &Sample) -> Stored {
    let mut stored = Stored {
        source: texts.put(&sample.source.to_string()),
        target: texts.put(&sample.target.to_string()),
        protocol: texts.put(sample.protocol.word()),
        tls: texts.put(sample.tls.word()),
        at: sample.at.millis(),
        service: texts.put_some(sample.service.as_ref()),
        source_version: texts.put_some(sample.source_version.as_ref()),
        target_version: texts.put_some(sample.target_version.as_ref()),
        provisional: sample.provisional.map_or(0, |address| texts.put(&address.to_string())),
        ..Stored::default()
    };
    match &sample.measure {
        Measure::Requests { method, route, status, error, durations } => {
            stored.kind = REQUESTS;
            stored.method = texts.put(method);
            stored.route = texts.put(route);
            stored.status = status.code().into();
            stored.error = texts.put_some(error.as_ref());
            store_durations(&mut stored, durations);
        }
        Measure::Opened(count) => (stored.kind, stored.count) = (OPENED, *count),
        Measure::Closed { error, durations } => {
            stored.kind = CLOSED;
            stored.error = texts.put_some(error.as_ref());
            store_durations(&mut stored, durations);
        }
        Measure::Bytes { sent, received } => {
            (stored.kind, stored.sent, stored.received) = (BYTES, *sent, *received);
        }
        Measure::Folded(count) => (stored.kind, stored.count) = (FOLDED, *count),
        Measure::Retries { sent, denied } => {
            (stored.kind, stored.count, stored.denied) = (RETRIES, *sent, *denied);
        }
    }
    stored
}

fn store_durations(stored: &mut Stored, durations: &Histogram) {
    (stored.buckets, stored.counts) =
        durations.buckets().map(|(index, count)| (i32::from(index), count)).unzip();
    stored.sum_micros = durations.sum_micros();
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(body: &[u8]) -> Option<Vec<Sample>> {
    let record = Record::decode(body).ok()?;
    let texts: Vec<Arc<str>> = record.texts.into_iter().map(Arc::from).collect();
    record.samples.iter().map(|stored| restored(&texts, stored)).collect()
}

fn restored(texts: &[Arc<str>], stored: &Stored) -> Option<Sample> {
    let text = |position: u32| texts.get(usize::try_from(position).ok()?.checked_sub(1)?).cloned();
    let protocol = text(stored.protocol)?;
    let durations = || {
        let mut durations = Histogram::default();
        for (&index, &count) in stored.buckets.iter().zip(&stored.counts) {
            durations.add(index, count);
        }
        durations.set_sum_micros(stored.sum_micros);
        durations
    };
    Some(Sample {
        source: text(stored.source)?.parse::<NodeKey>().ok()?,
        target: text(stored.target)?.parse::<NodeKey>().ok()?,
        protocol: Protocol::ALL.into_iter().find(|known| known.word() == &*protocol)?,
        tls: Tls::from_word(&text(stored.tls)?),
        at: Timestamp::from_millis(stored.at),
        service: text(stored.service),
        source_version: text(stored.source_version),
        target_version: text(stored.target_version),
        provisional: text(stored.provisional).and_then(|address| address.parse().ok()),
        measure: match stored.kind {
            REQUESTS => Measure::Requests {
                method: text(stored.method)?,
                route: text(stored.route)?,
                status: Status::from_code(u16::try_from(stored.status).ok()?),
                error: text(stored.error),
                durations: durations(),
            },
            OPENED => Measure::Opened(stored.count),
            CLOSED => Measure::Closed { error: text(stored.error), durations: durations() },
            BYTES => Measure::Bytes { sent: stored.sent, received: stored.received },
            FOLDED => Measure::Folded(stored.count),
            RETRIES => Measure::Retries { sent: stored.count, denied: stored.denied },
            _ => return None,
        },
    })
}
