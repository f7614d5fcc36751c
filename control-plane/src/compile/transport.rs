//! Transport sockets: where mutual TLS is spoken, with whom, and with which secrets.
//!
//! A Weft sidecar knows by itself who it is and takes whom it must meet from each endpoint's metadata. What stands here beside
//! is for an Envoy: it gets its own certificate under [`OWN_CERTIFICATE`], the roots under [`TRUST_BUNDLE`], and accepts as
//! a service whoever is of the service's namespace, which is as close as a cluster can say it.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use envoy_types::pb::envoy::config::core::v3::{ConfigSource, TransportSocket, transport_socket};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext, common_tls_context, subject_alt_name_matcher,
    tls_parameters,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Struct};
use weft_wire::tls::{
    ALPN_H2, ALPN_HTTP11, ALPN_OPAQUE, MODE, MODE_MUTUAL, OWN_CERTIFICATE, TRUST_BUNDLE, server_name_suffix,
};

use super::proto::{ads, any, duration, text};
use crate::world::World;

/// How long a client waits for a secret before it makes do without: one that has no certificate still calls in plain text.
const SECRET_TIMEOUT: Duration = Duration::from_secs(1);

/// How the endpoints of `service`, which are of `namespace`, are called: by mutual TLS where they say so.
pub(super) fn upstream(world: &World, service: &str, namespace: Option<&str>) -> Vec<TransportSocketMatch> {
    let Some(trust) = world.trust() else { return Vec::new() };
    let members = match namespace {
        Some(namespace) => format!("spiffe://{}/ns/{namespace}/sa/", trust.domain),
        None => format!("spiffe://{}/", trust.domain),
    };
    let context = UpstreamTlsContext {
        // It only has to look like one of the mesh, and to be the same for all connections of the cluster.
        sni: format!("{service}{}", server_name_suffix(&trust.domain)),
        common_tls_context: Some(common(members, &[])),
        ..Default::default()
    };
    let wants = Struct { fields: [(MODE.to_owned(), text(MODE_MUTUAL))].into() };
    vec![
        entry("mutual", wants, socket("envoy.transport_sockets.tls", any(&context))),
        entry("plain", Struct::default(), socket("envoy.transport_sockets.raw_buffer", any(&RawBuffer {}))),
    ]
}

/// How a sidecar takes connections of the mesh.
pub(super) fn downstream(domain: &str) -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(format!("spiffe://{domain}/"), &[ALPN_H2, ALPN_HTTP11, ALPN_OPAQUE])),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    };
    socket("envoy.transport_sockets.tls", any(&context))
}

/// Every SNI of the mesh.
pub(super) fn server_names(domain: &str) -> String {
    format!("*{}", server_name_suffix(domain))
}

fn entry(name: &str, wants: Struct, socket: TransportSocket) -> TransportSocketMatch {
    TransportSocketMatch { name: name.to_owned(), r#match: Some(wants), transport_socket: Some(socket) }
}

fn socket(name: &str, config: Any) -> TransportSocket {
    let config_type = Some(transport_socket::ConfigType::TypedConfig(config));
    TransportSocket { name: name.to_owned(), config_type }
}

fn common(members: String, alpn: &[&[u8]]) -> CommonTlsContext {
    let only = tls_parameters::TlsProtocol::TlSv13 as i32;
    let prefix = StringMatcher {
        match_pattern: Some(string_matcher::MatchPattern::Prefix(members)),
        ..Default::default()
    };
    let name = SubjectAltNameMatcher {
        san_type: subject_alt_name_matcher::SanType::Uri as i32,
        matcher: Some(prefix),
        ..Default::default()
    };
    let validation =
        CertificateValidationContext { match_typed_subject_alt_names: vec![name], ..Default::default() };
    let combined = common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(validation),
        validation_context_sds_secret_config: Some(secret(TRUST_BUNDLE)),
        ..Default::default()
    };
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: only,
            tls_maximum_protocol_version: only,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret(OWN_CERTIFICATE)],
        validation_context_type: Some(common_tls_context::ValidationContextType::CombinedValidationContext(
            combined,
        )),
        alpn_protocols: alpn.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect(),
        ..Default::default()
    }
}

fn secret(name: &str) -> SdsSecretConfig {
    let source = ConfigSource { initial_fetch_timeout: Some(duration(SECRET_TIMEOUT)), ..ads() };
    SdsSecretConfig { name: name.to_owned(), sds_config: Some(source) }
}

#[cfg(test)]
mod tests;
