//! Cluster and ClusterLoadAssignment → how to talk to a backend and where it is.
//!
//! This file: how to connect. [`transport`]: in which cover. [`endpoints`]: where to. [`balancing`]: which of them. [`breaking`]: when not to.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
};
use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration};

use super::super::CONNECT_TIMEOUT_DEFAULT;
use super::super::model::ClusterSpec;
use super::{AGE, Invalid, Labels, decode, same_name};

mod balancing;
mod breaking;
mod endpoints;
mod transport;

pub(in crate::xds) use endpoints::{EndpointSource, endpoints};

/// A cluster that says where its endpoints stand.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::xds) struct ClusterDraft {
    pub(in crate::xds) spec: ClusterSpec,
    pub(in crate::xds) endpoints: EndpointSource,
}

/// Key of [`HttpProtocolOptions`] in a cluster.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Reads a Cluster.
pub(in crate::xds) fn cluster(name: &str, any: &Any) -> Result<ClusterDraft, Invalid> {
    let cluster: Cluster = decode(any, "resource")?;
    same_name("name", &cluster.name, name)?;
    let labels = Labels::of(cluster.metadata.as_ref(), "cluster");
    let spec = ClusterSpec {
        name: name.into(),
        service: labels.service_port()?,
        protocol: labels.protocol()?,
        mutual: transport::mutual(&cluster)?,
        http2: speaks_http2(&cluster)?,
        connect_timeout: connect_timeout(&cluster)?,
        breaking: breaking::settings(&cluster, &labels)?,
        balancing: balancing::policy(&cluster, &labels)?,
        absent: false,
    };
    Ok(ClusterDraft { spec, endpoints: endpoints::endpoint_source(&cluster)? })
}

fn connect_timeout(cluster: &Cluster) -> Result<Duration, Invalid> {
    let Some(timeout) = &cluster.connect_timeout else { return Ok(CONNECT_TIMEOUT_DEFAULT) };
    positive(timeout, "connect_timeout")
}

/// A duration that is one, and not zero; at most [`AGE`].
fn positive(value: &ProtoDuration, field: &str) -> Result<Duration, Invalid> {
    match duration(value) {
        Some(duration) if !duration.is_zero() => Ok(duration.min(AGE)),
        _ => {
            let text = format!("{}s {}ns", value.seconds, value.nanos);
            Err(Invalid::value(field, &text, "is not a positive duration"))
        }
    }
}

/// A duration, unless it is negative or nonsense.
fn duration(value: &ProtoDuration) -> Option<Duration> {
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Some(Duration::new(seconds, nanos)),
        _ => None,
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
