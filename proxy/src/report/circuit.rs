//! Circuits as OTLP: points of the gauge `weft.circuit.state`, and log records of transitions.
//!
//! In: circuits by the wall clock. Out: attributes and messages with names from `wire::attribute`. Invariant: what a
//! receiver reads as nothing (no errors, nothing slow, no cause) is not sent.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use prost::Message as _;
use weft_wire::attribute;

use super::encode::{number, resource, scope, text};
use super::transition::Numbered;
use crate::balance::breaker::Position;
use crate::balance::circuits::{Change, Circuit};
use crate::record::Identity;

/// Records per message, at some 600 bytes each.
const RECORDS_MAX: usize = 500;

/// A message, and how many transitions it tells of.
pub(super) struct Encoded {
    pub(super) bytes: Bytes,
    pub(super) records: usize,
}

/// The attributes of one circuit.
pub(super) fn attributes(circuit: &Circuit) -> Vec<KeyValue> {
    let mut attributes = vec![
        text(attribute::CIRCUIT_KIND, circuit.kind.word()),
        text(attribute::CIRCUIT_CLUSTER, &circuit.cluster),
    ];
    if let Some(address) = circuit.address {
        attributes.push(text(attribute::NETWORK_PEER_ADDRESS, &address.ip().to_string()));
        attributes.push(number(attribute::NETWORK_PEER_PORT, address.port()));
    }
    let callee = &circuit.callee;
    if let Some(workload) = &callee.workload {
        attributes.push(text(attribute::PEER_WORKLOAD, workload.name()));
        attributes.push(text(attribute::PEER_NAMESPACE, workload.namespace()));
    }
    attributes.extend(callee.version.as_ref().map(|version| text(attribute::PEER_VERSION, version)));
    attributes.extend(callee.pod.as_ref().map(|pod| text(attribute::K8S_POD_NAME, pod)));
    attributes.extend(circuit.cause.map(|cause| text(attribute::CIRCUIT_CAUSE, cause.word())));
    let tally = circuit.tally;
    let some = |count: u64| (count > 0).then_some(count);
    let numbers = [
        (attribute::CIRCUIT_THRESHOLD, circuit.threshold),
        (attribute::CIRCUIT_SINCE, circuit.since),
        (attribute::CIRCUIT_NEXT_PROBE, circuit.next_probe),
        (attribute::CIRCUIT_CALLS, some(tally.calls)),
        (attribute::CIRCUIT_ERRORS, some(tally.errors)),
        (attribute::CIRCUIT_SLOW, some(tally.slow)),
    ];
    for (key, value) in numbers {
        attributes.extend(value.map(|value| number(key, i64::try_from(value).unwrap_or(i64::MAX))));
    }
    attributes
}

/// The log records of transitions, in their order; into more than one message if there are many.
pub(super) fn records(transitions: &[Numbered], now: u64, identity: &Identity) -> Vec<Encoded> {
    let message = |some: &[Numbered]| {
        let log_records = some.iter().map(|one| record(one, now)).collect();
        let scope_logs = vec![ScopeLogs { scope: Some(scope()), log_records, ..ScopeLogs::default() }];
        let resource = Some(resource(identity));
        let resource_logs = vec![ResourceLogs { resource, scope_logs, ..ResourceLogs::default() }];
        let bytes = ExportLogsServiceRequest { resource_logs }.encode_to_vec().into();
        Encoded { bytes, records: some.len() }
    };
    transitions.chunks(RECORDS_MAX).map(message).collect()
}

fn record(numbered: &Numbered, now: u64) -> LogRecord {
    let Numbered { sequence, change: Change { from, circuit, at } } = numbered;
    let severity = match circuit.position {
        Position::Open => SeverityNumber::Warn,
        Position::HalfOpen | Position::Closed => SeverityNumber::Info,
    };
    let mut attributes = attributes(circuit);
    attributes.push(text(attribute::CIRCUIT_FROM, from.word()));
    attributes.push(text(attribute::CIRCUIT_TO, circuit.position.word()));
    attributes.push(number(attribute::EVENT_SEQUENCE, i64::try_from(*sequence).unwrap_or(i64::MAX)));
    LogRecord {
        time_unix_nano: *at,
        observed_time_unix_nano: now,
        severity_number: severity as i32,
        event_name: attribute::CIRCUIT_TRANSITION.to_owned(),
        attributes,
        ..LogRecord::default()
    }
}
