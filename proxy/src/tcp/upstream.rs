//! The server's end of an opaque connection: chosen, connected, counted.

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use weft_wire::{Reason, SpiffeId};

use crate::balance::circuits::ConnectionPermit;
use crate::balance::{Ask, Outcome, Working};
use crate::connect::connect;
use crate::record::PeerIndex;
use crate::tls::{Alpn, Stream};
use crate::worker::Worker;
use crate::xds::Cluster;

/// Endpoints of one cluster that are tried for one connection. Nothing has been sent yet, so trying another is
/// safe; more than three in a row that do not accept is not bad luck any more.
const ATTEMPTS_MAX: usize = 3;

/// Where an opaque connection goes.
#[derive(Debug, Clone)]
pub enum Target {
    /// To one of a cluster's endpoints.
    Cluster(Arc<Cluster>),
    /// To this address and no other.
    Address(SocketAddr),
    /// Nowhere, and this is why.
    Nowhere(Reason),
}

/// A connection to a server.
pub struct Upstream {
    /// The connection.
    pub stream: Stream,
    /// Where it goes.
    pub address: SocketAddr,
    /// Who that is.
    pub peer: PeerIndex,
    /// Whom the certificate at the other end had to name; `None`: it is in plain text.
    pub identity: Option<Arc<SpiffeId>>,
    /// Counts as work in flight at its endpoint for as long as this lives; `None` outside of clusters.
    pub working: Option<Working>,
    /// Counts as open at its cluster; `None` outside of clusters.
    pub permit: Option<ConnectionPermit>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("address", &self.address).finish_non_exhaustive()
    }
}

impl AsRef<Stream> for Upstream {
    fn as_ref(&self) -> &Stream {
        &self.stream
    }
}

/// Connects to `target`. `alpn` is what is known of what will be spoken, should the connection be mutual TLS.
///
/// # Errors
/// The reason of the last attempt.
pub async fn open(worker: Rc<Worker>, target: Target, alpn: Option<Alpn>) -> Result<Upstream, Reason> {
    match target {
        Target::Nowhere(reason) => Err(reason),
        Target::Address(address) => {
            let stream = connect(address, &worker.connect_options(None)).await.map_err(|error| {
                tracing::debug!(%address, %error, "upstream connection");
                error.reason()
            })?;
            let stream = stream.into();
            let peer = PeerIndex::UNKNOWN;
            Ok(Upstream { stream, address, peer, identity: None, working: None, permit: None })
        }
        // Boxed: detection waits with this for hours, and mostly for nothing.
        Target::Cluster(cluster) => Box::pin(open_cluster(&worker, &cluster, alpn)).await,
    }
}

async fn open_cluster(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    alpn: Option<Alpn>,
) -> Result<Upstream, Reason> {
    let options = worker.connect_options(Some(cluster.connect_timeout));
    let state = worker.clusters.of(cluster);
    let mut reason = Reason::NoReadyEndpoint;
    let permit = state.circuit().connection().ok_or(Reason::ConcurrencyLimited)?;
    let mut failed = None;
    for _ in 0..ATTEMPTS_MAX {
        let endpoint = worker.clusters.choose(&state, Ask::except(failed.as_slice()))?;
        let working = endpoint.start();
        let (address, begun) = (endpoint.address, Instant::now());
        let peer = endpoint.enter(&worker.mesh);
        let identity = endpoint.identity(&worker.mesh);
        match worker.reach(&endpoint, &options, alpn).await {
            Ok(stream) => {
                let (working, permit) = (Some(working), Some(permit));
                return Ok(Upstream { stream, address, peer, identity, working, permit });
            }
            Err(why) => {
                tracing::debug!(%address, reason = %why, cluster = %cluster.name, "upstream connection");
                reason = why;
                let now = Instant::now();
                let elapsed = now.saturating_duration_since(begun);
                endpoint.report(Outcome::LocalOrigin(reason), elapsed, now);
                failed = Some(endpoint);
            }
        }
    }
    Err(reason)
}
