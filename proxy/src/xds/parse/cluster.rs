//! Cluster and ClusterLoadAssignment → how to talk to a backend and where it is.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType},
};
use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, lb_endpoint::HostIdentifier,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
};
use envoy_types::pb::google::protobuf::Any;
use weft_wire::xds::field;

use super::super::CONNECT_TIMEOUT_DEFAULT;
use super::super::model::{ClusterSpec, Endpoint};
use super::{Invalid, Labels, decode, same_name, socket_address};

/// A cluster that says where its endpoints stand.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct ClusterDraft {
    pub(in super::super) spec: ClusterSpec,
    pub(in super::super) endpoints: EndpointSource,
}

/// Where a cluster's endpoints stand.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum EndpointSource {
    /// In the assignment of this name.
    Assignment(Arc<str>),
    /// In the cluster.
    Inline(Vec<Endpoint>),
}

/// Key of [`HttpProtocolOptions`] in a cluster.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Reads a Cluster.
pub(in super::super) fn cluster(name: &str, any: &Any) -> Result<ClusterDraft, Invalid> {
    let cluster: Cluster = decode(any, "resource")?;
    same_name("name", &cluster.name, name)?;
    if cluster.transport_socket.is_some() || !cluster.transport_socket_matches.is_empty() {
        return Err(Invalid::unsupported("transport_socket", "TLS towards endpoints"));
    }
    let labels = Labels::of(cluster.metadata.as_ref(), "cluster");
    let spec = ClusterSpec {
        name: name.into(),
        service: labels.service_port()?,
        protocol: labels.protocol()?,
        http2: speaks_http2(&cluster)?,
        connect_timeout: connect_timeout(&cluster)?,
    };
    Ok(ClusterDraft { spec, endpoints: endpoint_source(&cluster)? })
}

fn connect_timeout(cluster: &Cluster) -> Result<Duration, Invalid> {
    let Some(timeout) = &cluster.connect_timeout else { return Ok(CONNECT_TIMEOUT_DEFAULT) };
    let text = || format!("{}s {}ns", timeout.seconds, timeout.nanos);
    match (u64::try_from(timeout.seconds), u32::try_from(timeout.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && (seconds, nanos) != (0, 0) => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => Err(Invalid::value("connect_timeout", &text(), "is not a positive duration")),
    }
}

fn speaks_http2(cluster: &Cluster) -> Result<bool, Invalid> {
    let Some(options) = cluster.typed_extension_protocol_options.get(HTTP_OPTIONS) else {
        #[expect(deprecated, reason = "older control planes still write it")]
        return Ok(cluster.http2_protocol_options.is_some());
    };
    let place = format!("typed_extension_protocol_options[{HTTP_OPTIONS}]");
    let options: HttpProtocolOptions = decode(options, &place)?;
    match options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(_)) => Ok(true),
            Some(ProtocolConfig::HttpProtocolOptions(_)) => Ok(false),
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => Err(Invalid::unsupported(place, "HTTP/3")),
            None => Err(Invalid::missing(format!("{place}.explicit_http_config.protocol_config"))),
        },
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) | None => Ok(false),
        Some(UpstreamProtocolOptions::AutoConfig(_)) => Err(Invalid::unsupported(place, "ALPN")),
    }
}

fn endpoint_source(cluster: &Cluster) -> Result<EndpointSource, Invalid> {
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
pub(in super::super) fn endpoints(name: &str, any: &Any) -> Result<Vec<Endpoint>, Invalid> {
    let assignment: ClusterLoadAssignment = decode(any, "resource")?;
    same_name("cluster_name", &assignment.cluster_name, name)?;
    read_assignment(&assignment, "")
}

fn read_assignment(assignment: &ClusterLoadAssignment, place: &str) -> Result<Vec<Endpoint>, Invalid> {
    let mut list = vec![];
    for (position, locality) in assignment.endpoints.iter().enumerate() {
        if locality.priority != 0 {
            let place = format!("{place}endpoints[{position}].priority");
            return Err(Invalid::unsupported(place, "a priority other than 0"));
        }
        for (index, endpoint) in locality.lb_endpoints.iter().enumerate() {
            list.push(read_endpoint(
                endpoint,
                &format!("{place}endpoints[{position}].lb_endpoints[{index}]"),
            )?);
        }
    }
    Ok(list)
}

fn read_endpoint(endpoint: &LbEndpoint, place: &str) -> Result<Endpoint, Invalid> {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
        return Err(Invalid::missing(format!("{place}.endpoint")));
    };
    let weight = endpoint.load_balancing_weight.as_ref().map_or(1, |weight| weight.value);
    if weight == 0 {
        return Err(Invalid::value(format!("{place}.load_balancing_weight"), "0", "is not a weight"));
    }
    let healthy = match HealthStatus::try_from(endpoint.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => true,
        Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) => false,
        Err(_) => {
            let text = endpoint.health_status.to_string();
            return Err(Invalid::value(format!("{place}.health_status"), &text, "is not a health status"));
        }
    };
    let labels = Labels::of(endpoint.metadata.as_ref(), place);
    Ok(Endpoint {
        address: socket_address(host.address.as_ref(), &format!("{place}.endpoint.address"))?,
        workload: labels.workload()?,
        version: labels.shared(field::VERSION),
        pod: labels.shared(field::POD),
        weight,
        healthy,
    })
}
