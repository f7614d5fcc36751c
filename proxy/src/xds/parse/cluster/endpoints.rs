//! Where a cluster's endpoints stand: in the cluster itself or in a ClusterLoadAssignment.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType},
};
use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, cluster_load_assignment::Policy, lb_endpoint::HostIdentifier,
};
use envoy_types::pb::google::protobuf::Any;
use weft_wire::SpiffeId;
use weft_wire::tls::{MODE, MODE_MUTUAL};
use weft_wire::xds::field;

use super::super::super::model::{Assignment, Endpoint, Health};
use super::super::{Invalid, Labels, decode, same_name, socket_address};
use crate::balance::spread::OVERPROVISIONING_DEFAULT;

/// Metadata by which an endpoint chooses among its cluster's transport sockets, as Envoy spells it.
const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// Priorities go up to this, as in Envoy.
const PRIORITY_MAX: u32 = 128;

/// Where a cluster's endpoints stand.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::xds) enum EndpointSource {
    /// In the assignment of this name.
    Assignment(Arc<str>),
    /// In the cluster.
    Inline(Assignment),
}

pub(super) fn endpoint_source(cluster: &Cluster) -> Result<EndpointSource, Invalid> {
    let kind = match &cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind).ok(),
        // An unset type is STATIC, proto3's zero.
        None => Some(DiscoveryType::Static),
        Some(ClusterDiscoveryType::ClusterType(_)) => None,
    };
    match kind {
        Some(DiscoveryType::Eds) => {
            let named = cluster.eds_cluster_config.as_ref().map_or("", |config| config.service_name.as_str());
            Ok(EndpointSource::Assignment(
                if named.is_empty() { cluster.name.as_str() } else { named }.into(),
            ))
        }
        Some(DiscoveryType::Static) => {
            let assignment =
                cluster.load_assignment.as_ref().ok_or_else(|| Invalid::missing("load_assignment"))?;
            Ok(EndpointSource::Inline(read_assignment(assignment, "load_assignment.")?))
        }
        Some(other) => Err(Invalid::unsupported("type", other.as_str_name())),
        None => Err(Invalid::unsupported("type", "a custom cluster type")),
    }
}

/// Reads a ClusterLoadAssignment.
pub(in crate::xds) fn endpoints(name: &str, any: &Any) -> Result<Assignment, Invalid> {
    let assignment: ClusterLoadAssignment = decode(any, "resource")?;
    same_name("cluster_name", &assignment.cluster_name, name)?;
    read_assignment(&assignment, "")
}

fn read_assignment(assignment: &ClusterLoadAssignment, place: &str) -> Result<Assignment, Invalid> {
    let mut list = vec![];
    for (position, locality) in assignment.endpoints.iter().enumerate() {
        let place = format!("{place}endpoints[{position}]");
        if locality.priority > PRIORITY_MAX {
            let text = locality.priority.to_string();
            return Err(Invalid::value(format!("{place}.priority"), &text, "is more than 128"));
        }
        if locality.lb_config.is_some() {
            return Err(Invalid::unsupported(format!("{place}.lb_config"), "a list of endpoints of its own"));
        }
        let zone = locality.locality.as_ref().map(|locality| locality.zone.as_str());
        let zone: Option<Arc<str>> = zone.filter(|zone| !zone.is_empty()).map(Arc::from);
        for (index, endpoint) in locality.lb_endpoints.iter().enumerate() {
            let endpoint = read_endpoint(endpoint, &format!("{place}.lb_endpoints[{index}]"))?;
            list.push(Endpoint { zone: zone.clone(), priority: locality.priority, ..endpoint });
        }
    }
    let policy = assignment.policy.as_ref();
    Ok(Assignment { list, overprovisioning: overprovisioning(policy, &format!("{place}policy"))? })
}

fn overprovisioning(policy: Option<&Policy>, place: &str) -> Result<u32, Invalid> {
    let Some(policy) = policy else { return Ok(OVERPROVISIONING_DEFAULT) };
    if !policy.drop_overloads.is_empty() {
        return Err(Invalid::unsupported(format!("{place}.drop_overloads"), "dropping a share of requests"));
    }
    if policy.endpoint_stale_after.is_some() {
        return Err(Invalid::unsupported(format!("{place}.endpoint_stale_after"), "forgetting endpoints"));
    }
    if policy.weighted_priority_health {
        let place = format!("{place}.weighted_priority_health");
        return Err(Invalid::unsupported(place, "health by weight"));
    }
    match &policy.overprovisioning_factor {
        None => Ok(OVERPROVISIONING_DEFAULT),
        Some(factor) if factor.value == 0 => {
            Err(Invalid::value(format!("{place}.overprovisioning_factor"), "0", "is not positive"))
        }
        Some(factor) => Ok(factor.value),
    }
}

fn read_endpoint(endpoint: &LbEndpoint, place: &str) -> Result<Endpoint, Invalid> {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
        return Err(Invalid::missing(format!("{place}.endpoint")));
    };
    let weight = endpoint.load_balancing_weight.as_ref().map_or(1, |weight| weight.value);
    if weight == 0 {
        return Err(Invalid::value(format!("{place}.load_balancing_weight"), "0", "is not a weight"));
    }
    let health = match HealthStatus::try_from(endpoint.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Health::Healthy,
        Ok(HealthStatus::Degraded) => Health::Degraded,
        Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) => Health::Unhealthy,
        Err(_) => {
            let text = endpoint.health_status.to_string();
            return Err(Invalid::value(format!("{place}.health_status"), &text, "is not a health status"));
        }
    };
    let labels = Labels::of(endpoint.metadata.as_ref(), place);
    Ok(Endpoint {
        workload: labels.workload()?,
        version: labels.shared(field::VERSION),
        pod: labels.shared(field::POD),
        weight,
        health,
        identity: identity(&labels)?,
        hash_key: labels.foreign("envoy.lb", "hash_key").map(Arc::from),
        ..Endpoint::new(socket_address(host.address.as_ref(), &format!("{place}.endpoint.address"))?)
    })
}

/// Whom an endpoint's certificate must name: of use where its transport socket match says mutual TLS.
fn identity(labels: &Labels<'_>) -> Result<Option<Arc<SpiffeId>>, Invalid> {
    if labels.foreign(TRANSPORT_SOCKET_MATCH, MODE) != Some(MODE_MUTUAL) {
        return Ok(None);
    }
    let id = labels.text(field::IDENTITY).ok_or_else(|| labels.absent(field::IDENTITY))?;
    let id = id.parse().map_err(|_| labels.nonsense(field::IDENTITY, id, "is not a SPIFFE id"))?;
    Ok(Some(Arc::new(id)))
}
