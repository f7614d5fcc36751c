//! When a cluster or one of its endpoints gets no request.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;

use super::super::Invalid;
use crate::balance::breaker::Settings;

/// Reads what guards a cluster.
pub(super) fn settings(_cluster: &Cluster) -> Result<Settings, Invalid> {
    Ok(Settings::default())
}
