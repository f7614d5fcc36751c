//! What is known when judging begins: answers of the API server and of the control plane, each with its own failure.
//!
//! Invariant: plain data, no client and no clock; times are as those who were asked told them.

use jiff::Timestamp;

use crate::kubernetes::Trouble;
use crate::proxies::Sidecar;

/// An answer, or why there is none.
pub(crate) type Fact<T> = Result<T, Trouble>;

/// Everything.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// What the API server said; `None` where no cluster is looked at.
    pub(crate) cluster: Option<Cluster>,
    /// What the control plane said; `None` before an installation.
    pub(crate) mesh: Option<Mesh>,
    /// Only this namespace's pods and sidecars.
    pub(crate) namespace: Option<String>,
}

/// Of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// Where the API server is.
    pub(crate) server: String,
    pub(crate) version: Fact<ServerVersion>,
    /// Rights that are needed to install and are not there, as `create clusterroles`; `None`: not asked.
    pub(crate) missing_rights: Option<Fact<Vec<String>>>,
    /// Kinds of `gateway.networking.k8s.io` that are served, with their versions.
    pub(crate) gateway: Fact<Vec<String>>,
    pub(crate) webhooks: Fact<Vec<Webhook>>,
    pub(crate) namespaces: Fact<Vec<Namespace>>,
    /// Of the control plane's namespace: what is there.
    pub(crate) installed: Option<Installed>,
    /// Pods of the data plane; `None`: not asked.
    pub(crate) pods: Option<Fact<Vec<Pod>>>,
}

/// What an installation made.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    pub(crate) crds: Fact<Vec<Crd>>,
    pub(crate) deployment: Fact<Deployment>,
    pub(crate) pods: Fact<Vec<Replica>>,
    pub(crate) lease: Fact<Lease>,
    pub(crate) secret: Fact<()>,
    /// Rights that the control plane needs and has not, as `update leases`.
    pub(crate) missing_rights: Fact<Vec<String>>,
    /// What came of a pod that asked for a sidecar and was not really made.
    pub(crate) dry_run: Fact<DryRun>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerVersion {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// As it calls itself: `v1.36.3`.
    pub(crate) text: String,
    /// What time it is there.
    pub(crate) now: Option<Timestamp>,
}

/// A configuration of mutating webhooks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Webhook {
    pub(crate) name: String,
    /// The `caBundle`s of its webhooks, PEM.
    pub(crate) bundles: Vec<Vec<u8>>,
    /// Where they are served: `weft-system/weft-injector:443`, or a URL.
    pub(crate) served_by: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Namespace {
    pub(crate) name: String,
    /// What it says of our sidecars.
    pub(crate) inject: Option<String>,
    /// Other meshes that it asks for sidecars of.
    pub(crate) others: Vec<&'static str>,
}

#[derive(Debug, Clone)]
pub(crate) struct Crd {
    /// `trafficpolicies.weft.dev`.
    pub(crate) name: String,
    pub(crate) established: bool,
    /// Versions that are served.
    pub(crate) served: Vec<String>,
    /// Whether its schema is the one that this program knows; `None` when this program knows no such kind.
    pub(crate) ours: Option<bool>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Deployment {
    pub(crate) replicas: i32,
    pub(crate) image: Option<String>,
}

/// A pod of the control plane.
#[derive(Debug, Clone, Default)]
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) ready: bool,
    /// Why it is not ready, in words.
    pub(crate) why: Option<String>,
    pub(crate) restarts: i32,
    /// When it last began anew.
    pub(crate) restarted: Option<Timestamp>,
    /// Whether it is marked as the one who leads.
    pub(crate) leads: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Lease {
    pub(crate) holder: Option<String>,
    pub(crate) renewed: Option<Timestamp>,
    pub(crate) seconds: i64,
}

/// What came of a pod that was not really made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DryRun {
    /// It would have a sidecar.
    Injected,
    /// It would have none.
    Plain {
        /// Where.
        namespace: String,
        /// What the API server remarked.
        warnings: Vec<String>,
    },
}

/// A pod of the data plane.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Whether it is at work: neither done nor about to go.
    pub(crate) runs: bool,
    /// The sidecar it has, by its version; `None`: it has none.
    pub(crate) sidecar: Option<Option<String>>,
    /// Whether its sidecar is ready.
    pub(crate) sidecar_ready: bool,
    /// Whether the injector would give it a sidecar if it were made now.
    pub(crate) wanted: bool,
}

/// Of the control plane.
#[derive(Debug, Clone)]
pub(crate) struct Mesh {
    /// Where it was asked.
    pub(crate) at: String,
    /// Its version.
    pub(crate) version: Fact<String>,
    pub(crate) authority: Fact<Option<Authority>>,
    /// What could not be read: one line each.
    pub(crate) problems: Fact<Vec<String>>,
    /// Objects with a condition that is not as it should be: one line each.
    pub(crate) objects: Fact<Vec<String>>,
    /// `None`: not asked.
    pub(crate) sidecars: Option<Fact<Sidecars>>,
    /// `None`: not asked.
    pub(crate) injection: Option<Fact<Injection>>,
}

/// The control plane's census of pods.
#[derive(Debug, Clone, Default)]
pub(crate) struct Injection {
    /// Whether pods are looked at there at all.
    pub(crate) taken: bool,
    /// Pods with a sidecar.
    pub(crate) injected: usize,
    /// Pods that should have one and have none, as `shop/web-1`.
    pub(crate) missed: Vec<String>,
    /// How many of them are not listed.
    pub(crate) unlisted: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct Sidecars {
    /// What time it is at the control plane.
    pub(crate) at: Timestamp,
    pub(crate) all: Vec<Sidecar>,
    /// Replicas of the control plane that could not be asked.
    pub(crate) silent: Vec<String>,
}

/// The certificate authority.
#[derive(Debug, Clone, Default)]
pub(crate) struct Authority {
    /// What time it is there, Unix seconds.
    pub(crate) at: i64,
    /// Whether a restart keeps it.
    pub(crate) kept: bool,
    /// What a certificate is, and until when.
    pub(crate) certificates: Vec<(String, i64)>,
    /// What a rotation of the root that goes on waits for, in words.
    pub(crate) rotation: Option<String>,
}
