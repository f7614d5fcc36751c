//! Asks for the facts, all at once, each with its own deadline.
//!
//! In: a cluster, or the control plane's API, or both. Out: [`Facts`]. Invariant: nothing is changed anywhere; the one pod that is
//! sent is sent as a dry run. A question that fails leaves a hole of its own, never more.

mod cluster;
mod installed;
mod mesh;
mod objects;
mod pods;
mod rights;

use super::facts::Facts;
use super::judge::Plan;
use crate::api::Api;
use crate::kubernetes::{Cluster, Trouble};

/// Whom to ask, and for what.
pub(super) struct Wish<'a> {
    pub(super) plan: Plan,
    pub(super) cluster: Option<&'a Cluster>,
    /// The control plane, or why there is none to ask; `None`: not wanted.
    pub(super) api: Option<Result<&'a Api, Trouble>>,
    pub(super) namespace: Option<&'a str>,
}

/// Asks.
pub(super) async fn gather(wish: Wish<'_>) -> Facts {
    let Wish { plan, cluster, api, namespace } = wish;
    let of_cluster = async {
        match cluster {
            Some(cluster) => Some(cluster::ask_all(cluster, plan, namespace).await),
            None => None,
        }
    };
    let of_mesh = async {
        match api {
            Some(Ok(api)) => Some(mesh::ask_all(api, plan.proxy).await),
            Some(Err(trouble)) => Some(mesh::unknown(&trouble)),
            None => None,
        }
    };
    let (cluster, mesh) = tokio::join!(of_cluster, of_mesh);
    Facts { cluster, mesh, namespace: namespace.map(str::to_owned) }
}
