//! How xDS resources are named and what Weft writes in their metadata.
//!
//! A sidecar subscribes by name to what its pod really calls, so the name carries the question: "what is
//! behind this destination?". Route tables, clusters and endpoint assignments bear the name of the
//! [`ServicePort`](crate::ServicePort) they belong to (`orders.shop:8080`), or `endpoint/<ip>:<port>` when a
//! pod was called directly.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Key under which Weft's own metadata stands in `filter_metadata` of listeners, clusters and endpoints.
pub const METADATA_NAMESPACE: &str = "weft.dev";

/// Metadata fields inside [`METADATA_NAMESPACE`]; all values are strings.
pub mod field {
    /// The workload of an endpoint, or of an inbound listener.
    pub const WORKLOAD: &str = "workload";
    /// The namespace of `workload`.
    pub const NAMESPACE: &str = "namespace";
    /// The version of an endpoint's workload.
    pub const VERSION: &str = "version";
    /// The pod's name.
    pub const POD: &str = "pod";
    /// Whom the certificate of an endpoint's sidecar names: a [`SpiffeId`](crate::SpiffeId). Where it speaks mutual TLS.
    pub const IDENTITY: &str = "identity";
    /// The service a listener or cluster stands for: `name.namespace`.
    pub const SERVICE: &str = "service";
    /// The service's port, decimal.
    pub const PORT: &str = "port";
    /// The declared protocol, one of [`Protocol`](super::Protocol); absent when it must be detected.
    pub const PROTOCOL: &str = "protocol";
    /// How a cluster's endpoints are chosen where xDS has no word for it: [`PEAK_EWMA`](super::PEAK_EWMA).
    pub const BALANCER: &str = "balancer";
    /// Zone preference: share of the own zone's endpoints that must be available for it to serve alone, percent. Absent:
    /// [`ZONE_MIN_HEALTHY_PERCENT`](super::ZONE_MIN_HEALTHY_PERCENT). Counts where the cluster has a `zone_aware_lb_config`.
    pub const ZONE_MIN_HEALTHY_PERCENT: &str = "zone_min_healthy_percent";
    /// Service circuit of a cluster: length of its rolling window, milliseconds. Absent: the service has no circuit.
    pub const CIRCUIT_WINDOW_MS: &str = "circuit_window_ms";
    /// Service circuit: calls in the window below which it never opens.
    pub const CIRCUIT_MINIMUM_CALLS: &str = "circuit_minimum_calls";
    /// Service circuit: share of failures at which it opens, percent.
    pub const CIRCUIT_ERROR_PERCENT: &str = "circuit_error_percent";
    /// Service circuit: a call that takes at least this long is slow, milliseconds. Absent: none is.
    pub const CIRCUIT_SLOW_MS: &str = "circuit_slow_ms";
    /// Service circuit: share of slow calls at which it opens, percent.
    pub const CIRCUIT_SLOW_PERCENT: &str = "circuit_slow_percent";
    /// Service circuit: how long it stays open the first time, milliseconds.
    pub const CIRCUIT_OPEN_MS: &str = "circuit_open_ms";
    /// Service circuit: how long it stays open at most; doubled by every probe that fails, milliseconds.
    pub const CIRCUIT_OPEN_MAX_MS: &str = "circuit_open_max_ms";
    /// Service circuit: probes that are let through while it is half open.
    pub const CIRCUIT_PROBES: &str = "circuit_probes";
}

/// Bytes of a request's body that are kept to send it again. Route tables say so, lest an Envoy keep more than a sidecar and
/// retry what a sidecar does not; a table that says something else is refused.
pub const REPLAY_BYTES: u64 = 64 * 1024;

/// Value of [`field::BALANCER`]: power of two choices on peak EWMA. A client that does not know it uses the cluster's
/// `lb_policy`.
pub const PEAK_EWMA: &str = "peak_ewma";

/// What an absent [`field::ZONE_MIN_HEALTHY_PERCENT`] means: below this, what is left of a zone would have to carry half
/// as much again as it should.
pub const ZONE_MIN_HEALTHY_PERCENT: u32 = 70;

/// Field of a pod's `Runtime` layer (RTDS): true when every container of the app has ended and none will start again. A classic
/// sidecar, which nobody else tells, then ends too.
pub const APP_ENDED: &str = "weft.app_ended";

/// A pod as its `Runtime` resource is named: `pod/<namespace>/<name>/<uid>`. Not by its address, nor by its name alone: the next
/// pod may have the same, and would hear of this one's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeLayer<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// Its name.
    pub pod: &'a str,
    /// Which of all pods of that name. Empty, and not in the name, where nobody knows it: a pod that no API server has.
    pub uid: &'a str,
}

impl<'a> RuntimeLayer<'a> {
    /// The pod in a resource's name.
    #[must_use]
    pub fn parse(name: &'a str) -> Option<Self> {
        let mut segments = name.strip_prefix("pod/")?.split('/');
        let (namespace, pod, uid) = (segments.next()?, segments.next()?, segments.next());
        let is_pod = !namespace.is_empty() && !pod.is_empty() && uid != Some("") && segments.next().is_none();
        is_pod.then_some(Self { namespace, pod, uid: uid.unwrap_or_default() })
    }
}

impl fmt::Display for RuntimeLayer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, pod, uid } = self;
        write!(f, "pod/{namespace}/{pod}")?;
        if uid.is_empty() { Ok(()) } else { write!(f, "/{uid}") }
    }
}

/// What a port was declared to speak (`appProtocol`, or the port's name).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, or HTTP/2 when the bytes say so.
    Http,
    /// HTTP/2 with prior knowledge, gRPC included.
    Http2,
    /// TLS that the app terminates: passed through by SNI.
    Tls,
    /// Bytes.
    Tcp,
}

impl Protocol {
    /// The word in metadata.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }

    /// Reads the word in metadata.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "http" => Some(Self::Http),
            "http2" => Some(Self::Http2),
            "tls" => Some(Self::Tls),
            "tcp" => Some(Self::Tcp),
            _ => None,
        }
    }
}

/// Where a connection was going: by address as the kernel tells it, or by name as a forward-proxy client says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// `10.96.0.12:8080` or `[fd00::1]:8080`.
    Address(SocketAddr),
    /// `orders:8080`, `orders.shop:8080`, `example.org:443`: lower case. The control plane resolves short
    /// names in the asking workload's namespace.
    Name {
        /// The host, lower case.
        host: Box<str>,
        /// The port.
        port: u16,
    },
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The name of a Listener resource: the question a sidecar asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenerName {
    /// `outbound/<destination>`: what stands behind this destination?
    Outbound(Destination),
    /// `inbound/<ip>:<port>`: what is this port of mine?
    Inbound(SocketAddr),
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outbound(destination) => write!(f, "outbound/{destination}"),
            Self::Inbound(address) => write!(f, "inbound/{address}"),
        }
    }
}

/// The text is not the name of a Listener resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form outbound/<host>:<port> or inbound/<ip>:<port>")]
pub struct InvalidListenerName(String);

impl FromStr for ListenerName {
    type Err = InvalidListenerName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidListenerName(text.chars().take(300).collect());
        let (direction, rest) = text.split_once('/').ok_or_else(invalid)?;
        match (direction, rest.parse::<SocketAddr>()) {
            ("inbound", Ok(address)) => Ok(Self::Inbound(address)),
            ("outbound", Ok(address)) => Ok(Self::Outbound(Destination::Address(address))),
            ("outbound", Err(_)) => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(invalid)?;
                let host: crate::Host = host.parse().map_err(|_| invalid())?;
                let port = port.parse().map_err(|_| invalid())?;
                Ok(Self::Outbound(Destination::Name { host: host.as_str().into(), port }))
            }
            _ => Err(invalid()),
        }
    }
}

/// The name of the cluster for a pod that was called directly, by its own address.
#[must_use]
pub fn endpoint_cluster(address: SocketAddr) -> String {
    format!("endpoint/{address}")
}

/// The address in a cluster name made by [`endpoint_cluster`].
#[must_use]
pub fn parse_endpoint_cluster(name: &str) -> Option<SocketAddr> {
    name.strip_prefix("endpoint/")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_after_their_pod() {
        for (uid, name) in [("", "pod/shop/db-0"), ("6f1c", "pod/shop/db-0/6f1c")] {
            let layer = RuntimeLayer { namespace: "shop", pod: "db-0", uid };
            assert_eq!(layer.to_string(), name);
            assert_eq!(RuntimeLayer::parse(name), Some(layer));
        }
        for name in
            ["pod/10.0.0.7", "pod/shop/", "pod//db-0", "pod/shop/db-0/", "pod/shop/db-0/6f1c/x", "shop/db-0"]
        {
            assert_eq!(RuntimeLayer::parse(name), None, "{name}");
        }
    }

    #[test]
    fn listener_names_round_trip() {
        for text in [
            "outbound/10.0.0.1:80",
            "outbound/[fd00::1]:80",
            "outbound/orders.shop:8080",
            "inbound/10.0.0.1:8080",
            "inbound/[fd00::1]:8080",
        ] {
            assert_eq!(text.parse::<ListenerName>().map(|n| n.to_string()), Ok(text.to_string()));
        }
        for text in ["", "outbound", "outbound/", "outbound/x", "inbound/orders:80", "sideways/1.2.3.4:5"] {
            assert!(text.parse::<ListenerName>().is_err(), "{text:?}");
        }
    }
}
