//! Mutual TLS between sidecars, and between sidecars and the control plane: the names that both ends must spell alike.
//!
//! A sidecar's certificate is an X.509-SVID: its only URI name is a [`SpiffeId`]. Whoever calls says by SNI whom it means
//! ([`server_name`]), which is how the callee's sidecar tells a connection of the mesh from TLS that its app speaks
//! itself, and by ALPN what it will speak. Sources: the SPIFFE X.509-SVID specification; RFC 7301 for ALPN.

use crate::SpiffeId;

/// ALPN: HTTP/1.1 (RFC 7301).
pub const ALPN_HTTP11: &[u8] = b"http/1.1";
/// ALPN: HTTP/2 (RFC 9113).
pub const ALPN_H2: &[u8] = b"h2";
/// ALPN: bytes that no sidecar looks into. Not registered; only between sidecars. Without any ALPN the bytes are looked at.
pub const ALPN_OPAQUE: &[u8] = b"weft-opaque";

/// Name of the xDS `Secret` (SDS) that holds the roots every member of the mesh trusts, PEM.
///
/// Order matters to a sidecar: the first root is the one that the authority issues from now. A sidecar whose own chain
/// ends at another one renews its certificate soon, with jitter: that is how a rotation of the root reaches everybody.
pub const TRUST_BUNDLE: &str = "trust-bundle";
/// Name of the xDS `Secret` (SDS) by which a client of the control plane that is no Weft sidecar names its own certificate.
pub const OWN_CERTIFICATE: &str = "identity";

/// Trust domain unless another is configured.
pub const TRUST_DOMAIN_DEFAULT: &str = "cluster.local";
/// Service account of a pod that names none.
pub const SERVICE_ACCOUNT_DEFAULT: &str = "default";
/// Namespace and service account of the control plane's own identity.
pub const CONTROL_PLANE: (&str, &str) = ("weft-system", "weft-control-plane");

/// Key in an endpoint's `envoy.transport_socket_match` metadata; its only value is [`MODE_MUTUAL`]. Absent: plain.
pub const MODE: &str = "tls_mode";
/// Value of [`MODE`]: the endpoint's sidecar speaks mutual TLS.
pub const MODE_MUTUAL: &str = "mutual";

/// What comes between names and trust domain in an SNI of the mesh.
const MARK: &str = ".sa.";

/// The SNI that stands for an identity: `<service-account>.<namespace>.sa.<trust-domain>`.
#[must_use]
pub fn server_name(id: &SpiffeId) -> String {
    format!("{}.{}{}", id.service_account(), id.namespace(), server_name_suffix(id.trust_domain()))
}

/// How the SNI of every identity of a trust domain ends: `.sa.<trust-domain>`.
#[must_use]
pub fn server_name_suffix(trust_domain: &str) -> String {
    format!("{MARK}{trust_domain}")
}

/// Which certificates a port takes, and whether it takes anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Mutual TLS only.
    Strict,
    /// Mutual TLS from whoever offers it, and whatever else comes.
    #[default]
    Permissive,
    /// No TLS of the mesh: nobody offers it, and what comes is the app's.
    Disabled,
}

impl Mode {
    /// The word in metadata and on screens.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
            Self::Disabled => "disabled",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Strict, Self::Permissive, Self::Disabled].into_iter().find(|mode| mode.word() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_one_server_name() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/orders".parse().expect("valid");
        assert_eq!(server_name(&id), "orders.shop.sa.cluster.local");
        assert!(server_name(&id).ends_with(&server_name_suffix("cluster.local")));
    }

    #[test]
    fn modes_round_trip() {
        for mode in [Mode::Strict, Mode::Permissive, Mode::Disabled] {
            assert_eq!(Mode::from_word(mode.word()), Some(mode));
        }
    }
}
