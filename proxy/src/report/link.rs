//! The connection that reports are sent over.
//!
//! In: the control plane's address and how to get there. Out: a channel for the next report, or none while this sidecar is
//! still nobody: reports wait in their queue. Invariant: a report goes over a connection of the certificate of the moment;
//! one that is under way when the certificate is renewed ends on the connection that it began on.

use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::ANSWER_TIMEOUT;
use crate::connect::Dialer;
use crate::identity::Identity;

/// How long the connection may be silent until it is probed; a dead one would hold every report for
/// [`ANSWER_TIMEOUT`].
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Where reports go.
#[derive(Debug)]
pub struct Link {
    endpoint: Endpoint,
    dialer: Dialer,
    identity: Option<Arc<Identity>>,
    /// With which certificate it was opened.
    open: Option<(u64, Channel)>,
}

impl Link {
    /// Nothing is opened until there is something to send.
    #[must_use]
    pub fn new(control_plane: http::Uri, dialer: Dialer, identity: Option<Arc<Identity>>) -> Self {
        let endpoint = Endpoint::from(control_plane)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(ANSWER_TIMEOUT);
        Self { endpoint, dialer, identity, open: None }
    }

    /// The channel for the next report. Call inside a runtime.
    pub(super) fn channel(&mut self) -> Option<Channel> {
        let certificate = match &self.identity {
            None => 0,
            Some(identity) => identity.certificate()?,
        };
        match &self.open {
            Some((of, channel)) if *of == certificate => Some(channel.clone()),
            _ => {
                let channel = self.endpoint.connect_with_connector_lazy(self.dialer.clone());
                self.open = Some((certificate, channel.clone()));
                Some(channel)
            }
        }
    }
}
