//! In which cover a cluster's endpoints are called: plain, or mutual TLS where the endpoint says so.
//!
//! The names and keys in a TLS context are for clients that are told by xDS who they are. A sidecar knows that by itself, and an
//! endpoint's own metadata names whom it must meet there, which is stricter than any list of a cluster.

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster::TransportSocketMatch};
use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket::ConfigType};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use envoy_types::pb::google::protobuf::value::Kind;
use prost::Name;
use weft_wire::tls::{MODE, MODE_MUTUAL};

use super::super::{Invalid, decode};

/// Whether endpoints that say so are called by mutual TLS.
pub(super) fn mutual(cluster: &Cluster) -> Result<bool, Invalid> {
    if let Some(socket) = &cluster.transport_socket
        && is_tls(socket, "transport_socket")?
    {
        return Err(Invalid::unsupported("transport_socket", "TLS towards endpoints that have no identity"));
    }
    let mut mutual = false;
    for (position, entry) in cluster.transport_socket_matches.iter().enumerate() {
        let place = format!("transport_socket_matches[{position}]");
        let socket = entry.transport_socket.as_ref();
        let socket = socket.ok_or_else(|| Invalid::missing(format!("{place}.transport_socket")))?;
        let is_tls = is_tls(socket, &format!("{place}.transport_socket"))?;
        let is_mutual = asks_for_mutual(entry);
        if is_tls != is_mutual {
            return Err(Invalid::unsupported(
                format!("{place}.match"),
                format!("TLS for anything but {MODE}: {MODE_MUTUAL}"),
            ));
        }
        mutual |= is_mutual;
    }
    Ok(mutual)
}

fn asks_for_mutual(entry: &TransportSocketMatch) -> bool {
    let fields = entry.r#match.as_ref().map(|criteria| &criteria.fields);
    fields.is_some_and(|fields| {
        let mode = fields.get(MODE).and_then(|mode| mode.kind.as_ref());
        fields.len() == 1 && matches!(mode, Some(Kind::StringValue(mode)) if mode == MODE_MUTUAL)
    })
}

fn is_tls(socket: &TransportSocket, place: &str) -> Result<bool, Invalid> {
    let place = format!("{place}.typed_config");
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else {
        return Err(Invalid::missing(place));
    };
    match config.type_url.rsplit('/').next() {
        Some(name) if name == UpstreamTlsContext::full_name() => {
            let _: UpstreamTlsContext = decode(config, &place)?;
            Ok(true)
        }
        Some(name) if name == RawBuffer::full_name() => Ok(false),
        _ => Err(Invalid::unsupported(place, format!("transport socket {:?}", socket.name))),
    }
}
