//! Small pieces of protobuf that several resources need.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{self, Any, Struct, Value, value};
use prost::{Message, Name};
use sha2::{Digest, Sha256};
use weft_wire::xds::{METADATA_NAMESPACE, field};

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

    /// Adds everything to a hash, unambiguously.
    pub(super) fn digest(&self, digest: &mut Sha256) {
        for text in self.0.iter().flat_map(|(key, value)| [*key, value.as_str()]) {
            digest.update((text.len() as u64).to_be_bytes());
            digest.update(text);
        }
        // Ends the list, so that a field cannot move from one endpoint to the next unseen.
        digest.update(u64::MAX.to_be_bytes());
    }

    pub(super) fn metadata(self) -> Option<core::Metadata> {
        if self.0.is_empty() {
            return None;
        }
        let text = |text| Value { kind: Some(value::Kind::StringValue(text)) };
        let fields = self.0.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect();
        let filter_metadata = HashMap::from([(METADATA_NAMESPACE.to_owned(), Struct { fields })]);
        Some(core::Metadata { filter_metadata, ..Default::default() })
    }
}
