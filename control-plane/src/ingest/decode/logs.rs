//! OTLP log records: Weft's own transitions of circuits, and nothing else.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use weft_wire::attribute;

use super::circuit::Pairs;
use super::{Decoder, Dropped, Reporting};
use crate::circuits::{State, Transition};
use crate::graph::Timestamp;

/// What one resource's records tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Who tells; it has an instance.
    pub reporter: Reporting,
    /// What happened, in the order it came; every time is still the sender's.
    pub transitions: Vec<Transition>,
}

/// Reads `request`. Records that are no transitions are counted as foreign.
#[must_use]
pub fn decode_logs(request: &ExportLogsServiceRequest) -> (Vec<Told>, Dropped) {
    let mut decoder = Decoder::new(true);
    let mut told = Vec::new();
    for resource in &request.resource_logs {
        let attributes = resource.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
        let reporter = decoder.reporter(attributes).filter(|reporter| reporter.instance.is_some());
        let mut transitions = Vec::new();
        for scope in &resource.scope_logs {
            for record in scope.log_records.iter().take(decoder.take(scope.log_records.len())) {
                if record.event_name != attribute::CIRCUIT_TRANSITION {
                    decoder.dropped.foreign += 1;
                    continue;
                }
                match decoder.transition(record) {
                    Some(transition) => transitions.push(transition),
                    None => decoder.dropped.invalid += 1,
                }
            }
        }
        match reporter {
            Some(_) if transitions.is_empty() => {}
            Some(reporter) => told.push(Told { reporter, transitions }),
            None => decoder.dropped.invalid += transitions.len() as u64,
        }
    }
    (told, decoder.dropped)
}

impl Decoder {
    fn transition(&mut self, record: &LogRecord) -> Option<Transition> {
        let pairs = Pairs(&record.attributes);
        let nanos =
            if record.time_unix_nano > 0 { record.time_unix_nano } else { record.observed_time_unix_nano };
        let state = |key| pairs.text(key).and_then(State::from_word);
        let (from, to) = (state(attribute::CIRCUIT_FROM)?, state(attribute::CIRCUIT_TO)?);
        let sequence = pairs.number(attribute::EVENT_SEQUENCE).filter(|sequence| *sequence > 0)?;
        let mut sighting = self.sighting(&record.attributes, to, Timestamp::from_nanos(nanos))?;
        // The moment of the transition is the moment from which the new state is.
        sighting.since = sighting.since.or(Some(sighting.at));
        Some(Transition { sequence, from, sighting })
    }
}
