//! One xDS resource → a draft of what it asks for, or why it cannot be had.
//!
//! In: the `Any` of a resource. Out: a draft that names other resources by name; [`super::store`] joins them. Pure.
//!
//! Attitude: a field that cannot change what traffic does may be ignored; one that does and that this proxy cannot
//! honour is an error that names the field. A wrong answer given silently is worse than a NACK, because the last
//! good configuration stays in force.
//! Non-goal: judging cross references. Whether a named cluster exists is known only later.

mod cluster;
mod listener;
mod route;
mod runtime;
mod secret;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{Address, Metadata, address, socket_address};
use envoy_types::pb::google::protobuf::{Any, value::Kind};
use prost::{Message, Name};
use weft_wire::xds::{METADATA_NAMESPACE, Protocol, field};
use weft_wire::{ServiceId, ServicePort, WorkloadId};

pub(super) use cluster::{ClusterDraft, EndpointSource, cluster, endpoints};
pub(super) use listener::{ListenerDraft, RouteSource, listener};
pub(super) use route::{TableDraft, routes};
pub(super) use runtime::app_ended;
pub(super) use secret::trust_bundle;

use crate::identity::InvalidBundle;
use crate::route::matcher::InvalidTable;
use crate::route::pattern::InvalidPattern;

/// Longest time that is reckoned with: what takes a year may as well take for ever, and sums of such times stay times.
const AGE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why a resource is refused. Becomes the NACK's text, so it names the place.
#[derive(Debug, thiserror::Error)]
pub(super) enum Invalid {
    /// The bytes are not the message.
    #[error("{field} is not a valid {message}")]
    Decode { field: String, message: &'static str, source: prost::DecodeError },
    /// A message of another type.
    #[error("{field} is a {found:?}, expected {expected}")]
    Type { field: String, found: String, expected: &'static str },
    /// A field without which there is no meaning.
    #[error("{field} is missing")]
    Missing { field: String },
    /// A value that makes no sense.
    #[error("{field}: {text:?} {problem}")]
    Value { field: String, text: String, problem: &'static str },
    /// A meaning this proxy cannot honour.
    #[error("{field}: {what} is not supported by this proxy")]
    Unsupported { field: String, what: String },
    /// A regular expression that is none.
    #[error("{field}")]
    Pattern { field: String, source: InvalidPattern },
    /// Roots that are none.
    #[error("{field}")]
    Bundle { field: &'static str, source: InvalidBundle },
    /// Routes that contradict each other.
    #[error("virtual_hosts")]
    Table { source: InvalidTable },
}

impl Invalid {
    fn missing(field: impl Into<String>) -> Self {
        Self::Missing { field: field.into() }
    }

    fn unsupported(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), what: what.into() }
    }

    /// Texts from the wire are repeated up to this many characters.
    fn value(field: impl Into<String>, text: &str, problem: &'static str) -> Self {
        const TEXT_MAX: usize = 200;
        Self::Value { field: field.into(), text: text.chars().take(TEXT_MAX).collect(), problem }
    }
}

/// The error and its causes in one line, for `error_detail`.
pub(super) fn explain(error: &Invalid) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Reads the message of type `M` out of an `Any`.
fn decode<M: Message + Name + Default>(any: &Any, field: &str) -> Result<M, Invalid> {
    if any.type_url.rsplit('/').next() != Some(M::full_name().as_str()) {
        let found = any.type_url.chars().take(200).collect();
        return Err(Invalid::Type { field: field.into(), found, expected: M::NAME });
    }
    M::decode(any.value.as_slice()).map_err(|source| Invalid::Decode {
        field: field.into(),
        message: M::NAME,
        source,
    })
}

/// A resource's own name must be the name it was asked for by.
fn same_name(field: &str, found: &str, asked: &str) -> Result<(), Invalid> {
    if found == asked { Ok(()) } else { Err(Invalid::value(field, found, "is not the resource's name")) }
}

/// An IP socket address.
fn socket_address(address: Option<&Address>, field: &str) -> Result<SocketAddr, Invalid> {
    let Some(address::Address::SocketAddress(socket)) = address.and_then(|address| address.address.as_ref())
    else {
        return Err(Invalid::missing(format!("{field}.socket_address")));
    };
    let ip = socket.address.parse().map_err(|_| {
        Invalid::value(format!("{field}.socket_address.address"), &socket.address, "is not an IP address")
    })?;
    let port = match &socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
        Some(socket_address::PortSpecifier::NamedPort(_)) | None => None,
    };
    let port = port.ok_or_else(|| Invalid::missing(format!("{field}.socket_address.port_value")))?;
    Ok(SocketAddr::new(ip, port))
}

/// Weft's own metadata of a resource; every field is optional, none may be nonsense.
struct Labels<'a> {
    metadata: Option<&'a Metadata>,
    field: &'a str,
}

impl<'a> Labels<'a> {
    fn of(metadata: Option<&'a Metadata>, field: &'a str) -> Self {
        Self { metadata, field }
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.foreign(METADATA_NAMESPACE, key)
    }

    /// A field that others write.
    fn foreign(&self, namespace: &str, key: &str) -> Option<&'a str> {
        let fields = &self.metadata?.filter_metadata.get(namespace)?.fields;
        match fields.get(key)?.kind.as_ref()? {
            Kind::StringValue(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    fn nonsense(&self, key: &str, text: &str, problem: &'static str) -> Invalid {
        Invalid::value(format!("{}.metadata[{METADATA_NAMESPACE}].{key}", self.field), text, problem)
    }

    fn absent(&self, key: &str) -> Invalid {
        Invalid::missing(format!("{}.metadata[{METADATA_NAMESPACE}].{key}", self.field))
    }

    fn service_port(&self) -> Result<Option<ServicePort>, Invalid> {
        let (Some(service), Some(port)) = (self.text(field::SERVICE), self.text(field::PORT)) else {
            return Ok(None);
        };
        let id: ServiceId =
            service.parse().map_err(|_| self.nonsense(field::SERVICE, service, "is not a service"))?;
        let port = port.parse().map_err(|_| self.nonsense(field::PORT, port, "is not a port"))?;
        Ok(Some(ServicePort { service: id, port }))
    }

    fn protocol(&self) -> Result<Option<Protocol>, Invalid> {
        let Some(word) = self.text(field::PROTOCOL) else { return Ok(None) };
        let protocol = Protocol::from_word(word);
        protocol.map(Some).ok_or_else(|| self.nonsense(field::PROTOCOL, word, "is not a protocol"))
    }

    fn workload(&self) -> Result<Option<WorkloadId>, Invalid> {
        let (Some(name), Some(namespace)) = (self.text(field::WORKLOAD), self.text(field::NAMESPACE)) else {
            return Ok(None);
        };
        let id = WorkloadId::new(namespace, name);
        id.map(Some).map_err(|_| self.nonsense(field::WORKLOAD, name, "is not a workload"))
    }

    fn shared(&self, key: &str) -> Option<Arc<str>> {
        self.text(key).map(Arc::from)
    }
}

#[cfg(test)]
mod tests;
