//! What names a node and an edge of the graph.
//!
//! In: names that are right by construction. Out: ids that are stable over restarts (they are derived from the
//! names alone), so that a screen can keep a node's position and a bookmark of an edge stays good.
//! Invariant: two keys are equal iff their ids are.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use weft_wire::{ServiceId, WorkloadId};

/// The host of the node that stands for everything beyond a limit of the graph.
pub const OVERFLOW_HOST: &str = "__other__";

/// Who calls or is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeKey {
    /// A workload with a sidecar, or one that a sidecar named as the endpoint it chose.
    Workload(WorkloadId),
    /// A service that was called without reaching an endpoint.
    Service(ServiceId),
    /// A destination outside the mesh: a host or an address, and a port.
    External {
        /// Lower-case host name or address.
        host: Arc<str>,
        /// The port that was asked for.
        port: u16,
    },
    /// A caller without a sidecar whose address belongs to a known pod.
    UnmeshedWorkload(WorkloadId),
    /// A caller without a sidecar of which only the address is known.
    UnmeshedAddress(IpAddr),
}

/// The kind of a node, as the API spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// See [`NodeKey::External`].
    External,
    /// See [`NodeKey::Service`].
    Service,
    /// See [`NodeKey::UnmeshedWorkload`] and [`NodeKey::UnmeshedAddress`].
    Unmeshed,
    /// See [`NodeKey::Workload`].
    Workload,
}

impl NodeKey {
    /// The node that stands for everything beyond a limit.
    #[must_use]
    pub fn overflow() -> Self {
        Self::External { host: OVERFLOW_HOST.into(), port: 0 }
    }

    /// The node's kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Workload(_) => Kind::Workload,
            Self::Service(_) => Kind::Service,
            Self::External { .. } => Kind::External,
            Self::UnmeshedWorkload(_) | Self::UnmeshedAddress(_) => Kind::Unmeshed,
        }
    }

    /// The short name that people know the node by.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Workload(id) | Self::UnmeshedWorkload(id) => id.name().to_owned(),
            Self::Service(id) => id.name().to_owned(),
            Self::External { host, port: 0 } => host.to_string(),
            Self::External { host, port } => HostPort(host, *port).to_string(),
            Self::UnmeshedAddress(address) => address.to_string(),
        }
    }

    /// The namespace, for nodes that live in one.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Workload(id) | Self::UnmeshedWorkload(id) => Some(id.namespace()),
            Self::Service(id) => Some(id.namespace()),
            Self::External { .. } | Self::UnmeshedAddress(_) => None,
        }
    }
}

/// Writes IPv6 hosts in brackets.
struct HostPort<'a>(&'a str, u16);

impl fmt::Display for HostPort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') {
            write!(f, "[{}]:{}", self.0, self.1)
        } else {
            write!(f, "{}:{}", self.0, self.1)
        }
    }
}

impl fmt::Display for NodeKey {
    /// The id: `workload:shop/orders`, `service:shop/orders`, `external:api.example.com:443`,
    /// `unmeshed:shop/cron`, `unmeshed:10.0.0.9`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(id) => write!(f, "workload:{id}"),
            Self::Service(id) => write!(f, "service:{}/{}", id.namespace(), id.name()),
            Self::External { host, port } => write!(f, "external:{}", HostPort(host, *port)),
            Self::UnmeshedWorkload(id) => write!(f, "unmeshed:{id}"),
            Self::UnmeshedAddress(address) => write!(f, "unmeshed:{address}"),
        }
    }
}

/// The text is not the id of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of a node")]
pub struct InvalidNodeKey(String);

impl FromStr for NodeKey {
    type Err = InvalidNodeKey;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidNodeKey(text.chars().take(300).collect());
        let (kind, rest) = text.split_once(':').ok_or_else(invalid)?;
        match kind {
            "workload" => Ok(Self::Workload(rest.parse().map_err(|_| invalid())?)),
            "service" => {
                let (namespace, name) = rest.split_once('/').ok_or_else(invalid)?;
                Ok(Self::Service(ServiceId::new(namespace, name).map_err(|_| invalid())?))
            }
            "external" => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(invalid)?;
                let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                Ok(Self::External { host: host.into(), port: port.parse().map_err(|_| invalid())? })
            }
            "unmeshed" => match rest.parse() {
                Ok(address) => Ok(Self::UnmeshedAddress(address)),
                Err(_) => Ok(Self::UnmeshedWorkload(rest.parse().map_err(|_| invalid())?)),
            },
            _ => Err(invalid()),
        }
    }
}

/// What an edge speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// HTTP of any version, gRPC excepted.
    Http,
    /// Opaque bytes.
    Tcp,
    /// TLS that the app terminates.
    Tls,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 4] = [Self::Grpc, Self::Http, Self::Tcp, Self::Tls];

    /// The word in ids and in the API.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// Whether the edge has requests (or only connections).
    #[must_use]
    pub const fn has_requests(self) -> bool {
        matches!(self, Self::Grpc | Self::Http)
    }
}

/// How an edge's bytes were protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tls {
    /// Both sides proved who they are.
    Mutual,
    /// Not at all.
    None,
    /// Only the server proved who it is.
    Simple,
}

impl Tls {
    /// The word in reports and in the API.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Mutual => "mutual",
            Self::None => "none",
            Self::Simple => "simple",
        }
    }

    /// Reads the word; anything unknown counts as unprotected, the careful reading.
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        match word {
            "mutual" => Self::Mutual,
            "simple" => Self::Simple,
            _ => Self::None,
        }
    }
}

/// The id of an edge: 32 hex digits, fit for a URL.
///
/// It is the 128-bit FNV-1a hash of source id, target id and protocol. The hash is written out here because the
/// standard library's hashers promise no stable result between releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeId(u128);

impl EdgeId {
    /// The id of the edge between `source` and `target`.
    #[must_use]
    pub fn new(source: &NodeKey, target: &NodeKey, protocol: Protocol) -> Self {
        const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let text = format!("{source}\n{target}\n{}", protocol.word());
        Self(text.bytes().fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME)))
    }
}

impl fmt::Display for EdgeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for EdgeId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

impl Serialize for EdgeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_round_trip() {
        for text in [
            "workload:shop/orders",
            "service:shop/orders",
            "external:api.example.com:443",
            "external:[fd00::1]:443",
            "external:10.0.0.1:80",
            "unmeshed:10.0.0.9",
            "unmeshed:fd00::9",
            "unmeshed:shop/cron",
        ] {
            assert_eq!(text.parse::<NodeKey>().map(|key| key.to_string()), Ok(text.to_owned()));
        }
        assert!("planet:mars".parse::<NodeKey>().is_err());
    }

    #[test]
    fn edge_ids_never_change() {
        let (web, orders) =
            ("workload:shop/web".parse().expect("valid"), "workload:shop/orders".parse().expect("valid"));
        let id = EdgeId::new(&web, &orders, Protocol::Http);
        // Written down: bookmarks and stored layouts refer to it.
        assert_eq!(id.to_string(), "916f2399ddab4961bb091c8c4ce75582");
        assert_eq!(id.to_string().parse::<EdgeId>(), Ok(id));
        assert_ne!(id, EdgeId::new(&orders, &web, Protocol::Http));
        assert_ne!(id, EdgeId::new(&web, &orders, Protocol::Grpc));
    }
}
