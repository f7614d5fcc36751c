//! What a port was declared to speak: `appProtocol`, else the port name's prefix.

use weft_wire::xds::Protocol;

/// The declared protocol; `None` is detected. An `appProtocol` we do not know says nothing, so that the port's
/// name may still speak.
pub(super) fn declared(app_protocol: Option<&str>, port_name: Option<&str>) -> Option<Protocol> {
    app_protocol.and_then(word).or_else(|| {
        let name = port_name?;
        // `http`, `http-metrics`; also words that have a dash themselves (`grpc-web-public`).
        let mut ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]).rev();
        ends.find_map(|end| word(name.get(..end)?))
    })
}

/// Words from the Kubernetes standard (`kubernetes.io/…`), IANA service names, and those in common use.
fn word(word: &str) -> Option<Protocol> {
    Some(match word.to_ascii_lowercase().as_str() {
        "http" | "http1" | "http/1.1" | "kubernetes.io/ws" | "ws" | "websocket" | "grpc-web" => {
            Protocol::Http
        }
        "http2" | "h2c" | "kubernetes.io/h2c" | "grpc" => Protocol::Http2,
        "https" | "tls" | "kubernetes.io/wss" | "wss" => Protocol::Tls,
        "tcp" | "redis" | "mysql" | "mariadb" | "postgres" | "postgresql" | "mongo" | "mongodb" | "amqp"
        | "kafka" | "mqtt" | "nats" | "smtp" | "imap" | "ldap" | "ssh" | "ftp" | "cassandra"
        | "memcached" | "zookeeper" | "thrift" => Protocol::Tcp,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocol_wins_over_the_name() {
        assert_eq!(declared(Some("tcp"), Some("http")), Some(Protocol::Tcp));
        assert_eq!(declared(Some("kubernetes.io/h2c"), None), Some(Protocol::Http2));
        assert_eq!(declared(Some("example.com/own"), Some("grpc-api")), Some(Protocol::Http2));
    }

    #[test]
    fn names_speak_by_their_prefix() {
        for (name, protocol) in [
            ("http", Some(Protocol::Http)),
            ("http-metrics", Some(Protocol::Http)),
            ("http2-api", Some(Protocol::Http2)),
            ("grpc-web-public", Some(Protocol::Http)),
            ("grpc-public", Some(Protocol::Http2)),
            ("https-public", Some(Protocol::Tls)),
            ("redis", Some(Protocol::Tcp)),
            ("httpd", None),
            ("metrics-http", None),
            ("", None),
        ] {
            assert_eq!(declared(None, Some(name)), protocol, "{name:?}");
        }
    }
}
