//! What a sidecar says of itself when it opens an xDS stream: the `Node` message's metadata.
//!
//! `node.id` is the proxy instance (equal to `service.instance.id` in its reports), `node.cluster` the
//! workload as `namespace/name`. Registrations let a program without Kubernetes be an endpoint of a service
//! for exactly as long as its sidecar's stream lives.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3::Locality;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};

use crate::{InvalidName, ServicePort, WorkloadId, xds::Protocol};

/// Value of `user_agent_name`.
pub const USER_AGENT: &str = "weft-proxy";

const WORKLOAD: &str = "weft.workload";
const VERSION: &str = "weft.version";
const POD: &str = "weft.pod";
const ADDRESSES: &str = "weft.addresses";
const REGISTER: &str = "weft.register";

/// A program that is an endpoint of a service for as long as its sidecar lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The service and the port that callers use.
    pub service: ServicePort,
    /// Where callers' sidecars connect to: this sidecar's inbound address.
    pub address: SocketAddr,
    /// The declared protocol, or `None` to detect it.
    pub protocol: Option<Protocol>,
}

/// A sidecar's description of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeMetadata {
    /// The workload.
    pub workload: WorkloadId,
    /// The workload's version, when known.
    pub version: Option<String>,
    /// The pod's name, when there is a pod.
    pub pod: Option<String>,
    /// The zone it runs in, when known. Travels as the node's locality, where every xDS server looks for it.
    pub zone: Option<String>,
    /// The pod's addresses: what its peers see as the source of its connections.
    pub addresses: Vec<IpAddr>,
    /// Services that this program is an endpoint of.
    pub registrations: Vec<Registration>,
}

/// Why a `Node`'s metadata cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNode {
    /// A field is missing or is not of the right type.
    #[error("node metadata field {0:?} is missing or has the wrong type")]
    Field(&'static str),
    /// A field holds a text that is not a name.
    #[error("node metadata field {field:?}")]
    Name {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: InvalidName,
    },
    /// A field holds a text that is not an address.
    #[error("node metadata field {field:?}: {text:?} is not an address")]
    Address {
        /// The field.
        field: &'static str,
        /// The rejected text.
        text: String,
    },
}

fn text(value: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

fn as_text(value: &Value) -> Option<&str> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

fn as_list(value: Option<&Value>) -> Option<&[Value]> {
    match value.map(|v| &v.kind) {
        None => Some(&[]),
        Some(Some(Kind::ListValue(list))) => Some(&list.values),
        Some(_) => None,
    }
}

impl NodeMetadata {
    /// The `locality` field of the `Node` message.
    #[must_use]
    pub fn locality(&self) -> Option<Locality> {
        self.zone.clone().map(|zone| Locality { zone, ..Locality::default() })
    }

    /// The same, in the zone that a `Node` message's `locality` says.
    #[must_use]
    pub fn located(self, locality: Option<&Locality>) -> Self {
        let zone = locality.map(|locality| locality.zone.clone()).filter(|zone| !zone.is_empty());
        Self { zone, ..self }
    }

    /// The `metadata` field of the `Node` message.
    #[must_use]
    pub fn to_struct(&self) -> Struct {
        let mut fields = HashMap::new();
        fields.insert(WORKLOAD.into(), text(self.workload.to_string()));
        if let Some(version) = &self.version {
            fields.insert(VERSION.into(), text(version));
        }
        if let Some(pod) = &self.pod {
            fields.insert(POD.into(), text(pod));
        }
        fields.insert(ADDRESSES.into(), list(self.addresses.iter().map(|a| text(a.to_string())).collect()));
        let registrations = self.registrations.iter().map(|registration| {
            let mut fields = HashMap::new();
            fields.insert("service".into(), text(registration.service.to_string()));
            fields.insert("address".into(), text(registration.address.to_string()));
            if let Some(protocol) = registration.protocol {
                fields.insert("protocol".into(), text(protocol.word()));
            }
            Value { kind: Some(Kind::StructValue(Struct { fields })) }
        });
        fields.insert(REGISTER.into(), list(registrations.collect()));
        Struct { fields }
    }

    /// Reads the `metadata` field of a `Node` message; the zone is [elsewhere](Self::located).
    ///
    /// # Errors
    /// When a field is missing, has the wrong type or holds a bad name or address; the error names the field.
    pub fn from_struct(metadata: &Struct) -> Result<Self, InvalidNode> {
        let optional = |key: &str| metadata.fields.get(key).and_then(as_text).map(str::to_owned);
        let workload = metadata.fields.get(WORKLOAD).and_then(as_text).ok_or(InvalidNode::Field(WORKLOAD))?;
        let workload = workload.parse().map_err(|source| InvalidNode::Name { field: WORKLOAD, source })?;
        let addresses = as_list(metadata.fields.get(ADDRESSES)).ok_or(InvalidNode::Field(ADDRESSES))?;
        let addresses = addresses
            .iter()
            .map(|value| {
                let text = as_text(value).ok_or(InvalidNode::Field(ADDRESSES))?;
                text.parse().map_err(|_| InvalidNode::Address { field: ADDRESSES, text: text.into() })
            })
            .collect::<Result<_, _>>()?;
        let registrations = as_list(metadata.fields.get(REGISTER)).ok_or(InvalidNode::Field(REGISTER))?;
        let registrations = registrations.iter().map(registration).collect::<Result<_, _>>()?;
        let (version, pod) = (optional(VERSION), optional(POD));
        Ok(Self { workload, version, pod, zone: None, addresses, registrations })
    }
}

fn registration(value: &Value) -> Result<Registration, InvalidNode> {
    let Some(Kind::StructValue(Struct { fields })) = &value.kind else {
        return Err(InvalidNode::Field(REGISTER));
    };
    let required = |key: &'static str| fields.get(key).and_then(as_text).ok_or(InvalidNode::Field(REGISTER));
    let address = required("address")?;
    Ok(Registration {
        service: required("service")?
            .parse()
            .map_err(|source| InvalidNode::Name { field: REGISTER, source })?,
        address: address
            .parse()
            .map_err(|_| InvalidNode::Address { field: REGISTER, text: address.into() })?,
        protocol: match fields.get("protocol").and_then(as_text) {
            None => None,
            Some(word) => Some(Protocol::from_word(word).ok_or(InvalidNode::Field(REGISTER))?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_round_trips() {
        let node = NodeMetadata {
            workload: "shop/orders".parse().expect("valid"),
            version: Some("v2".into()),
            pod: Some("orders-7c4f".into()),
            zone: Some("eu-1a".into()),
            addresses: vec!["10.0.0.7".parse().expect("valid"), "fd00::7".parse().expect("valid")],
            registrations: vec![Registration {
                service: "orders.shop:8080".parse().expect("valid"),
                address: "127.0.0.1:40123".parse().expect("valid"),
                protocol: Some(Protocol::Http),
            }],
        };
        let read = NodeMetadata::from_struct(&node.to_struct());
        assert_eq!(read.map(|read| read.located(node.locality().as_ref())), Ok(node));
    }

    #[test]
    fn a_missing_workload_is_named() {
        let error = NodeMetadata::from_struct(&Struct::default()).expect_err("no workload");
        assert_eq!(
            error.to_string(),
            "node metadata field \"weft.workload\" is missing or has the wrong type"
        );
    }
}
