//! Envoy's configurations: one hop in plain text, and the two ends of mutual TLS.

use std::fmt::Write as _;

use crate::load::Protocol;
use crate::pki::{Leaf, Pki};

/// One hop, plain on both sides.
pub(crate) fn plain(port: u16, backend: u16, protocol: Protocol) -> String {
    hop(port, "", backend, protocol, "")
}

/// The callee's: takes only who shows the caller's certificate.
pub(crate) fn callee(port: u16, backend: u16, protocol: Protocol, pki: &Pki) -> String {
    let tls = format!(
        r#"
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context: {}"#,
        common(&pki.server, &pki.client, pki, "h2, http/1.1")
    );
    hop(port, &tls, backend, protocol, "")
}

/// The caller's: calls only who shows the callee's certificate.
pub(crate) fn caller(port: u16, callee: u16, protocol: Protocol, pki: &Pki) -> String {
    let alpn = match protocol {
        Protocol::H1 => "http/1.1",
        Protocol::H2 => "h2",
    };
    let tls = format!(
        r#"
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: server.bench.sa.cluster.local
        common_tls_context: {}"#,
        common(&pki.client, &pki.server, pki, alpn)
    );
    hop(port, "", callee, protocol, &tls)
}

/// TLS 1.3, an own certificate, and the one identity that the other side may have.
fn common(own: &Leaf, other: &Leaf, pki: &Pki, alpn: &str) -> String {
    format!(
        "{{ alpn_protocols: [{alpn}], tls_params: {{ tls_minimum_protocol_version: TLSv1_3, \
         tls_maximum_protocol_version: TLSv1_3 }}, tls_certificates: [{{ certificate_chain: {{ filename: {} }}, \
         private_key: {{ filename: {} }} }}], validation_context: {{ trusted_ca: {{ filename: {} }}, \
         match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: {:?} }} }}] }} }}",
        own.chain.display(),
        own.key.display(),
        pki.root.display(),
        other.id,
    )
}

fn hop(port: u16, downstream: &str, backend: u16, protocol: Protocol, upstream: &str) -> String {
    let speaks = match protocol {
        Protocol::H1 => "http_protocol_options: {}",
        Protocol::H2 => "http2_protocol_options: {}",
    };
    let mut yaml = format!(
        r#"
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: AUTO
          common_http_protocol_options: {{ idle_timeout: 3600s }}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: backend, timeout: 0s }} }}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router{downstream}
  clusters:
  - name: backend
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 20000, max_pending_requests: 20000, max_requests: 20000 }}] }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {speaks} }}
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {backend} }} }} }}"#
    );
    // Written into a string, which cannot fail.
    let _written = writeln!(yaml, "{upstream}");
    yaml
}
