//! The configuration server: incremental aggregated discovery (xDS v3) for sidecars.
//!
//! In: subscriptions by name, acknowledgements, and word of what changed in the world. Out: exactly the
//! subscribed resources that changed, in an order in which every reference is good when it arrives.
//!
//! `session` is the pure state of one stream; `server` is the shell that owns streams; `status` tells people
//! who runs what, and `whole` whether all are there who could. Non-goal: the state-of-the-world variant of the protocol, which resends everything.

mod metrics;
mod server;
mod session;
mod status;
mod whole;

use std::fmt;

pub use metrics::Metrics;
pub use server::Server;
pub use status::{KindStatus, ProxyStatus, Refusal, Running, Status};
pub use whole::{COME_BACK, WARM_UP, is_whole};

/// The kinds of resource, in the order in which they are pushed: what is referred to goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Secrets: the roots that everybody trusts. What certificates are checked against goes before what needs them.
    Secret,
    /// Clusters.
    Cluster,
    /// Endpoints of clusters.
    Endpoint,
    /// Listeners: what stands behind a destination.
    Listener,
    /// Route tables.
    Route,
    /// What is said of a pod to its own sidecar. Nothing refers to it.
    Runtime,
}

impl Kind {
    /// Every kind, in push order; `ALL[kind as usize] == kind`.
    pub const ALL: [Self; 6] =
        [Self::Secret, Self::Cluster, Self::Endpoint, Self::Listener, Self::Route, Self::Runtime];

    /// The short name people use: `SDS`, `CDS`, `EDS`, `LDS`, `RDS`, `RTDS`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Secret => "SDS",
            Self::Cluster => "CDS",
            Self::Endpoint => "EDS",
            Self::Listener => "LDS",
            Self::Route => "RDS",
            Self::Runtime => "RTDS",
        }
    }

    /// The type URL on the wire.
    #[must_use]
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
        }
    }

    /// The kind with this type URL.
    #[must_use]
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
