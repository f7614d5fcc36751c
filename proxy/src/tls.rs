//! TLS on the data path: mutual between sidecars, and a look at what passes through.
//!
//! ```text
//! verify ── is the other side who it must be?
//! accept, connect ── a handshake, on either side
//!   └ session ── bytes in, bytes out, no socket
//! stream ── plain or TLS, as the rest of the data path sees it
//! hello ── the name in a ClientHello         failure ── what went wrong, as a reason
//! ```
//!
//! In: what [`identity`](crate::identity) says this sidecar is. Out: connections whose other side is verified. Invariants: TLS 1.3
//! and nothing else, both sides show a certificate; new material is used by the next handshake, and what is open goes on.
//! Surprise: configurations are made once for each material, with the keys of its tickets: a session that began under other
//! roots is not resumed.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use weft_wire::SpiffeId;
use weft_wire::tls::{ALPN_H2, ALPN_HTTP11, ALPN_OPAQUE};

use crate::identity::{Material, Slot};

pub mod accept;
pub mod connect;
mod failure;
#[cfg(test)]
pub(crate) mod fixture;
mod handshake;
pub mod hello;
mod session;
mod stream;
pub mod verify;

pub use failure::reason;
pub use stream::Stream;

/// Handshakes that one worker has under way as a server: each is a few kilobytes, and a millisecond of its core.
pub const HANDSHAKES_MAX: usize = 1024;

/// How long a client may take for its handshake. What Envoy allows.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// Identities whose sessions are remembered for the next connection, with up to eight tickets each.
const SESSIONS_MAX: usize = 1024;

/// Tickets that a client is given with each handshake: one for the next connection, and one for another beside it.
const TICKETS: usize = 2;

/// What both sides agree to speak inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes that no sidecar looks into.
    Opaque,
}

impl Alpn {
    const ALL: [Self; 3] = [Self::Http2, Self::Http1, Self::Opaque];

    /// Its name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::Http1 => ALPN_HTTP11,
            Self::Http2 => ALPN_H2,
            Self::Opaque => ALPN_OPAQUE,
        }
    }

    fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.name() == name)
    }
}

/// What one sidecar is in the mesh, for all its threads.
#[derive(Debug)]
pub struct Mesh {
    slot: Slot,
    credentials: ArcSwapOption<Credentials>,
}

impl Mesh {
    /// What `slot` says, now and later.
    #[must_use]
    pub fn new(slot: Slot) -> Arc<Self> {
        Arc::new(Self { slot, credentials: ArcSwapOption::empty() })
    }

    /// The credentials of this moment; `None` until there is a certificate.
    #[must_use]
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        let material = self.slot.load();
        let material = material.as_ref()?;
        let known = self.credentials.load();
        if let Some(known) = &*known
            && Arc::ptr_eq(&known.material, material)
        {
            return Some(Arc::clone(known));
        }
        // Two workers may make them at once; the last one's stay, and the other's tickets buy nothing.
        match Credentials::new(Arc::clone(material)) {
            Ok(made) => {
                let made = Arc::new(made);
                self.credentials.store(Some(Arc::clone(&made)));
                Some(made)
            }
            Err(error) => {
                tracing::error!(%error, id = %material.id, "the certificate cannot be used");
                None
            }
        }
    }

    /// Whether there is a certificate.
    #[must_use]
    pub fn has_identity(&self) -> bool {
        self.slot.load().is_some()
    }
}

/// Configurations for both sides, made of one [`Material`].
#[derive(Debug)]
pub struct Credentials {
    material: Arc<Material>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Credentials {
    /// Makes both configurations.
    ///
    /// # Errors
    /// When the provider of cryptography cannot serve.
    pub fn new(material: Arc<Material>) -> Result<Self, rustls::Error> {
        let provider = Arc::new(provider());
        let verifier = Arc::new(verify::Verifier::new(
            Arc::clone(&material.roots),
            material.id.trust_domain(),
            provider.signature_verification_algorithms,
        ));
        let own = Arc::new(SingleCertAndKey::from(Arc::clone(&material.key)));
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::clone(&verifier) as _)
            .with_cert_resolver(Arc::clone(&own) as _);
        server.alpn_protocols = Alpn::ALL.map(|alpn| alpn.name().to_vec()).to_vec();
        // Tickets hold the whole session, so that nothing is kept here for a client that does not come again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.ticketer = aws_lc_rs::Ticketer::new()?;
        server.send_tls13_tickets = TICKETS;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(own);
        client.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Ok(Self { material, server: Arc::new(server), client: Arc::new(client) })
    }

    /// Who this sidecar is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.material.id
    }
}

/// AES-128 first: it is as good as any for a day's keys, and the cheapest where there are instructions for it.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    }
}
