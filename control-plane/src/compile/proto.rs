//! Small pieces of protobuf that several resources need.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, Percent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf::{self, Any, Struct, UInt32Value, Value, value};
use prost::{Message, Name};
use sha2::{Digest, Sha256};
use weft_wire::SpiffeId;
use weft_wire::tls::{MODE, MODE_MUTUAL};
use weft_wire::xds::{METADATA_NAMESPACE, field};

use super::Mark;
use crate::world::{Peer, Port, Service};

pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(super) fn duration(duration: Duration) -> protobuf::Duration {
    // Our own constants: far below the range of either field.
    protobuf::Duration {
        seconds: duration.as_secs().cast_signed(),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

pub(super) fn address(address: SocketAddr) -> core::Address {
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
        ..Default::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

/// "Fetch it over this same stream."
pub(super) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}

pub(super) fn text(text: impl Into<String>) -> Value {
    Value { kind: Some(value::Kind::StringValue(text.into())) }
}

/// Metadata by which an endpoint chooses among its cluster's transport sockets, as Envoy spells it.
const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// Weft's own metadata: strings under one key, ordered, absent ones left out.
#[derive(Default)]
pub(super) struct Fields(Vec<(&'static str, String)>);

impl Fields {
    pub(super) fn service(mut self, service: &Service, port: &Port) -> Self {
        self.0.push((field::SERVICE, service.id.to_string()));
        self.0.push((field::PORT, port.number.to_string()));
        if let Some(protocol) = port.protocol {
            self.0.push((field::PROTOCOL, protocol.word().to_owned()));
        }
        self
    }

    pub(super) fn peer(mut self, peer: &Peer) -> Self {
        self.0.push((field::WORKLOAD, peer.workload.name().to_owned()));
        self.0.push((field::NAMESPACE, peer.workload.namespace().to_owned()));
        if let Some(version) = &peer.version {
            self.0.push((field::VERSION, version.to_string()));
        }
        if let Some(pod) = &peer.pod {
            self.0.push((field::POD, pod.to_string()));
        }
        self
    }

    /// Whom its certificate must name; then it is called by mutual TLS.
    pub(super) fn identity(self, identity: &SpiffeId) -> Self {
        self.with(field::IDENTITY, identity)
    }

    pub(super) fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.0.push((key, value.to_string()));
        self
    }

    pub(super) fn metadata(self) -> Option<core::Metadata> {
        if self.0.is_empty() {
            return None;
        }
        let is_proven = self.0.iter().any(|(key, _)| *key == field::IDENTITY);
        let fields = self.0.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect();
        let mut filter_metadata = HashMap::from([(METADATA_NAMESPACE.to_owned(), Struct { fields })]);
        if is_proven {
            let fields = [(MODE.to_owned(), text(MODE_MUTUAL))].into();
            filter_metadata.insert(TRANSPORT_SOCKET_MATCH.to_owned(), Struct { fields });
        }
        Some(core::Metadata { filter_metadata, ..Default::default() })
    }
}

impl Mark for Fields {
    fn digest(&self, digest: &mut Sha256) {
        pairs(digest, self.0.iter().map(|(key, value)| (*key, value.as_bytes())));
    }
}

/// What a route or a virtual host says to filters, by the filters' names.
#[derive(Default)]
pub(super) struct PerFilter(BTreeMap<&'static str, Any>);

impl PerFilter {
    pub(super) fn with<M: Message + Name>(mut self, filter: &'static str, config: Option<&M>) -> Self {
        self.0.extend(config.map(|config| (filter, any(config))));
        self
    }

    pub(super) fn into_map(self) -> HashMap<String, Any> {
        self.0.into_iter().map(|(filter, config)| (filter.to_owned(), config)).collect()
    }
}

impl Mark for PerFilter {
    fn digest(&self, digest: &mut Sha256) {
        pairs(digest, self.0.iter().map(|(filter, config)| (*filter, config.value.as_slice())));
    }
}

fn pairs<'a>(digest: &mut Sha256, pairs: impl Iterator<Item = (&'a str, &'a [u8])>) {
    for bytes in pairs.flat_map(|(key, value)| [key.as_bytes(), value]) {
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    }
    // Ends the list, so that a field cannot move from one place to the next unseen.
    digest.update(u64::MAX.to_be_bytes());
}

pub(super) fn uint32(value: u32) -> UInt32Value {
    UInt32Value { value }
}

/// A share of all requests, in the millionths that Envoy can count at most.
pub(super) fn fraction(numerator: u32, denominator: u32) -> FractionalPercent {
    const MILLION: u64 = 1_000_000;
    let millionths = u64::from(numerator) * MILLION / u64::from(denominator.max(1));
    FractionalPercent {
        numerator: u32::try_from(millionths).unwrap_or(u32::MAX),
        denominator: DenominatorType::Million.into(),
    }
}

/// The same, where it could be changed at run time.
pub(super) fn runtime_fraction(numerator: u32, denominator: u32) -> core::RuntimeFractionalPercent {
    let default_value = Some(fraction(numerator, denominator));
    core::RuntimeFractionalPercent { default_value, ..Default::default() }
}

pub(super) fn percent(value: u8) -> Percent {
    Percent { value: value.into() }
}
