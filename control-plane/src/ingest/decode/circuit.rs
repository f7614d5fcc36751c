//! Circuits: the gauge that tells their state, and what it has in common with the records of transitions.
//!
//! Invariant: what comes out has a plain cluster name, and an address iff it guards one endpoint.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::metrics::v1::Gauge;
use weft_wire::{WorkloadId, attribute};

use super::{ATTRIBUTES_MAX, Decoder, is_plain, point};
use crate::circuits::{Callee, Id, Kind, Sighting, State};
use crate::graph::Timestamp;

impl Decoder {
    /// Reads the points of `weft.circuit.state`.
    pub(super) fn circuits(&mut self, gauge: &Gauge, into: &mut Vec<Sighting>) {
        let taken = self.take(gauge.data_points.len());
        for number in gauge.data_points.iter().take(taken) {
            // Circuits without an instance could never be told apart, nor taken away again.
            if !self.sidecar {
                self.dropped.foreign += 1;
                continue;
            }
            let state = point::whole_number(number).and_then(State::from_number);
            let at = Timestamp::from_nanos(number.time_unix_nano);
            match state.and_then(|state| self.sighting(&number.attributes, state, at)) {
                Some(sighting) => into.push(sighting),
                None => self.dropped.invalid += 1,
            }
        }
    }

    /// Reads what describes a circuit.
    pub(super) fn sighting(&mut self, pairs: &[KeyValue], state: State, at: Timestamp) -> Option<Sighting> {
        let pairs = Pairs(pairs);
        let kind = Kind::from_word(pairs.text(attribute::CIRCUIT_KIND)?)?;
        let cluster = pairs.text(attribute::CIRCUIT_CLUSTER)?;
        let endpoint = match kind {
            Kind::Endpoint => Some(pairs.address()?),
            Kind::Limit | Kind::Service => None,
        };
        let workload = pairs.text(attribute::PEER_WORKLOAD).and_then(|name| {
            let namespace = pairs.text(attribute::PEER_NAMESPACE).unwrap_or("default");
            WorkloadId::new(namespace, name).ok()
        });
        let moment = |key| pairs.number(key).filter(|nanos| *nanos > 0).map(Timestamp::from_nanos);
        let mut plain = |key| -> Option<Arc<str>> { pairs.text(key).map(|text| self.intern(text)) };
        Some(Sighting {
            callee: Callee {
                workload,
                version: plain(attribute::PEER_VERSION),
                pod: plain(attribute::K8S_POD_NAME),
            },
            cause: plain(attribute::CIRCUIT_CAUSE),
            id: Id { kind, cluster: self.intern(cluster), endpoint },
            state,
            threshold: pairs.number(attribute::CIRCUIT_THRESHOLD),
            since: moment(attribute::CIRCUIT_SINCE),
            next_probe: moment(attribute::CIRCUIT_NEXT_PROBE).filter(|_| state != State::Closed),
            calls: pairs.number(attribute::CIRCUIT_CALLS).unwrap_or_default(),
            errors: pairs.number(attribute::CIRCUIT_ERRORS).unwrap_or_default(),
            slow: pairs.number(attribute::CIRCUIT_SLOW).unwrap_or_default(),
            at,
        })
    }
}

/// The attributes of one point or record.
pub(super) struct Pairs<'a>(pub(super) &'a [KeyValue]);

impl<'a> Pairs<'a> {
    fn value(&self, key: &str) -> Option<&'a Any> {
        let pair = self.0.iter().take(ATTRIBUTES_MAX).find(|pair| pair.key == key)?;
        pair.value.as_ref()?.value.as_ref()
    }

    /// A text that is one: not empty, not too long, without control characters.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match self.value(key)? {
            Any::StringValue(text) if !text.is_empty() && is_plain(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number that is not negative.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Any::IntValue(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        let address: IpAddr = self.text(attribute::NETWORK_PEER_ADDRESS)?.parse().ok()?;
        let port = u16::try_from(self.number(attribute::NETWORK_PEER_PORT)?).ok()?;
        Some(SocketAddr::new(address.to_canonical(), port))
    }
}
