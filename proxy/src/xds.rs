//! What the control plane says: an incremental ADS client and the directory it fills.
//!
//! In: destinations that connections ask for ([`Directory::discover`]) and the control plane's answers. Out:
//! [`Listener`]s with their routes, clusters and endpoints, complete or not at all, readable by every worker
//! without a lock ([`Directory::lookup`]).
//!
//! ```text
//! worker ── lookup ──► ArcSwap<map>  ◄── publish ── client (pure) ◄── messages ── task (admin thread)
//!        └─ discover ─► bounded channel ───────────► client       ── requests ──►
//! ```
//!
//! - [`model`]: what workers see. [`directory`]: the map and the waiting room.
//! - [`dump`]: the map for people; [`metrics`]: numbers for machines. [`backoff`]: when to try again.
//! - [`parse`]: one resource → draft, or an error that names the field (becomes a NACK).
//! - [`subscription`]: the protocol of one resource type. [`store`]: drafts → compiled objects, in order.
//! - [`client`]: the two together as one step function. [`task`]: its sockets and clock.
//!
//! Invariant: stale beats none. Nothing that was known is forgotten because a stream ended; only the control
//! plane's own word (`removed_resources`) or ten idle minutes take a destination away.
//! Surprise: a listener is visible only when its route table, clusters *and* endpoints have been answered, so a
//! worker never meets half a configuration.
//! Non-goal: wildcard subscriptions. A sidecar's memory must not grow with the cluster.

use std::sync::Arc;
use std::time::Duration;

use weft_wire::node::NodeMetadata;

mod backoff;
mod client;
mod directory;
mod dump;
mod metrics;
mod model;
mod parse;
#[cfg(test)]
mod plane;
mod store;
mod subscription;
mod task;

pub use directory::{Directory, Lookup, Status, TypeStatus};
pub use metrics::Metrics;
pub use model::{
    Assignment, Cluster, ClusterSpec, Endpoint, Endpoints, Guard, Health, Listener, ListenerSpec,
};
pub use task::Task;

use crate::identity::Identity;

pub use crate::route::matcher::RouteTable;
pub use crate::route::rule::Route;

/// What xDS means by an unset `connect_timeout`.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// Who the client is and whom it asks.
#[derive(Debug, Clone)]
pub struct Options {
    /// The control plane: `http://host:15010`.
    pub control_plane: http::Uri,
    /// This start of this proxy; `node.id`.
    pub instance: String,
    /// The rest of the node; its workload is `node.cluster`.
    pub node: NodeMetadata,
    /// Most destinations subscribed at a time.
    pub listeners_max: usize,
    /// Who the stream is opened as, and who is told of a new trust bundle; `None` without TLS.
    pub identity: Option<Arc<Identity>>,
    /// The layer that says whether this pod's app has ended, where nobody else tells the sidecar: a classic one.
    pub runtime: Option<String>,
}

/// Destinations subscribed at a time unless said otherwise: a pod that calls more than this many at once is a gateway
/// and should say so. One costs about 2 kB with its share of routes and clusters.
pub const LISTENERS_MAX_DEFAULT: usize = 2000;

/// A directory, and the task that fills it: run it on the admin thread.
#[must_use]
pub fn spawn(options: Options) -> (Arc<Directory>, Task) {
    let Options { control_plane, instance, node, listeners_max, identity, runtime } = options;
    let (directory, interests) = Directory::connected();
    let mut client = client::Client::new(instance, &node, control_plane.to_string(), listeners_max.max(1));
    if identity.is_some() {
        client.want_trust_bundle();
    }
    if let Some(layer) = &runtime {
        client.want_runtime(layer);
    }
    directory.set_status(client.status());
    let task = Task::new(Arc::clone(&directory), client, control_plane, interests, identity);
    (directory, task)
}
