//! The kinds that are followed, and how each is asked for.

use std::fmt;

use crate::resources::served::Served;
use crate::resources::workload::Between;

/// A kind that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// It is something to the mesh.
    Object(Served),
    /// Only its metadata is asked for: it says what a pod is called.
    Owner(Between),
}

/// Whether the mesh can do without a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// No.
    Always,
    /// As long as the server does not know it. If it does, what is written there must be known before anybody is served: it
    /// may forbid calls.
    IfInstalled,
    /// Yes: some names are less good.
    Never,
}

const CORE: &str = "/api/v1";
const GATEWAY: &str = "/apis/gateway.networking.k8s.io";
const WEFT: &str = "/apis/weft.dev/v1alpha1";

impl Kind {
    pub(super) const ALL: [Self; 12] = [
        Self::Object(Served::Namespace),
        Self::Object(Served::Service),
        Self::Object(Served::EndpointSlice),
        Self::Object(Served::Pod),
        Self::Owner(Between::ReplicaSet),
        Self::Owner(Between::Job),
        Self::Object(Served::HttpRoute),
        Self::Object(Served::GrpcRoute),
        Self::Object(Served::ReferenceGrant),
        Self::Object(Served::AccessPolicy),
        Self::Object(Served::CircuitBreaker),
        Self::Object(Served::TrafficPolicy),
    ];

    /// As people know it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Object(Served::AccessPolicy) => "AccessPolicy",
            Self::Object(Served::CircuitBreaker) => "CircuitBreaker",
            Self::Object(Served::EndpointSlice) => "EndpointSlice",
            Self::Object(Served::GrpcRoute) => "GRPCRoute",
            Self::Object(Served::HttpRoute) => "HTTPRoute",
            Self::Object(Served::Namespace) => "Namespace",
            Self::Object(Served::Pod) => "Pod",
            Self::Object(Served::ReferenceGrant) => "ReferenceGrant",
            Self::Object(Served::Service) => "Service",
            Self::Object(Served::TrafficPolicy) => "TrafficPolicy",
            Self::Owner(Between::Job) => "Job",
            Self::Owner(Between::ReplicaSet) => "ReplicaSet",
        }
    }

    pub(super) const fn need(self) -> Need {
        match self {
            Self::Object(Served::Namespace | Served::Service | Served::EndpointSlice | Served::Pod) => {
                Need::Always
            }
            Self::Object(_) => Need::IfInstalled,
            Self::Owner(_) => Need::Never,
        }
    }

    /// Where all of them are, the version that is preferred first. The shapes of the versions do not differ in what the
    /// mesh reads.
    pub(super) fn paths(self) -> Vec<String> {
        let gateway = |versions: &[&str], plural: &str| {
            versions.iter().map(|version| format!("{GATEWAY}/{version}/{plural}")).collect()
        };
        match self {
            Self::Object(Served::AccessPolicy) => vec![format!("{WEFT}/accesspolicies")],
            Self::Object(Served::CircuitBreaker) => vec![format!("{WEFT}/circuitbreakers")],
            Self::Object(Served::EndpointSlice) => vec!["/apis/discovery.k8s.io/v1/endpointslices".into()],
            Self::Object(Served::GrpcRoute) => gateway(&["v1"], "grpcroutes"),
            Self::Object(Served::HttpRoute) => gateway(&["v1", "v1beta1"], "httproutes"),
            Self::Object(Served::Namespace) => vec![format!("{CORE}/namespaces")],
            Self::Object(Served::Pod) => vec![format!("{CORE}/pods")],
            Self::Object(Served::ReferenceGrant) => gateway(&["v1", "v1beta1"], "referencegrants"),
            Self::Object(Served::Service) => vec![format!("{CORE}/services")],
            Self::Object(Served::TrafficPolicy) => vec![format!("{WEFT}/trafficpolicies")],
            Self::Owner(Between::Job) => vec!["/apis/batch/v1/jobs".into()],
            Self::Owner(Between::ReplicaSet) => vec!["/apis/apps/v1/replicasets".into()],
        }
    }

    /// Which of them are wanted.
    pub(super) const fn fields(self) -> Option<&'static str> {
        match self {
            // A finished pod's address is given to the next one, and there may be thousands of them.
            Self::Object(Served::Pod) => Some("status.phase!=Succeeded,status.phase!=Failed"),
            _ => None,
        }
    }

    /// Whether their metadata is enough.
    pub(super) const fn is_metadata(self) -> bool {
        matches!(self, Self::Owner(_))
    }

    /// What lacks while nobody has installed it.
    pub(super) const fn absence(self) -> &'static str {
        match self {
            Self::Object(Served::HttpRoute | Served::GrpcRoute | Served::ReferenceGrant) => {
                "the Gateway API's"
            }
            _ => "Weft's",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
