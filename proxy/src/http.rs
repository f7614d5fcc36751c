//! HTTP: requests in on one side, out on the other, each exactly as the hop may change it and no more.
//!
//! ```text
//! server ── one client connection: engine, parking, drain, upgrade
//!   └ forward ── one request: destination → record → hygiene → trace → route → endpoint → send → body
//!       ├ headers   what may cross a hop
//!       ├ client    the upstream connection
//!       └ body      bytes both ways, and the record's last word
//! park ── the one clock of all connections        upgrade ── two sockets, no HTTP any more
//! class ── did it work?                           (reply ── the proxy's own answers)
//! ```
//!
//! Invariants: the request path takes no lock, formats no URI, rebuilds no header map and spawns no task; what it
//! allocates is what hyper allocates plus nothing per header. Surprise: `hyper` is used below its comfortable
//! interfaces (`conn::http1` polled by hand, `h2` directly), because a sidecar's price is paid on every call of
//! every pod. Non-goal: knowing what the control plane means by a route or how an endpoint is chosen.

use std::rc::Rc;

pub mod body;
pub mod class;
pub mod client;
pub mod clock;
pub mod concurrency;
mod forward;
pub mod headers;
pub mod park;
pub mod server;
mod socket;
mod upgrade;

pub use server::{Scope, Target, Version, serve};

use crate::policy::{REQUESTS_MAX, Shed, fault, mirror, timeout};
use crate::worker::{Permits, Worker};

/// Bytes that an HTTP/1 engine reads ahead or holds for writing on one connection. Twice the largest header section,
/// so that a request just below the limit still fits with its first bytes of body.
const BUFFER_MAX: usize = 128 * 1024;

/// HTTP/2 window of a stream: 256 kB carry 2 Gbit/s at 1 ms.
const H2_STREAM_WINDOW: u32 = 256 * 1024;

/// HTTP/2 window of a connection: four streams at full speed. This is what one connection may make us hold.
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;

/// HTTP/2 frame size; the protocol's default.
const H2_FRAME_MAX: u32 = 16 * 1024;

/// What one worker's HTTP connections share.
#[derive(Debug)]
pub struct Shared {
    /// The clock that parks connections.
    pub lot: Rc<park::Lot>,
    /// The bound on requests in flight.
    pub shed: Shed,
    /// The bounds on concurrency of the app's ports.
    pub ports: concurrency::Ports,
    /// Requests that an injected fault is delaying.
    pub delayed: Permits,
    /// Copies on their way to mirrors.
    pub mirrors: Permits,
    /// Timers for timeouts.
    pub timers: Rc<clock::Timers>,
    /// What next hops were told last about the time that is left.
    pub announced: timeout::Announced,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            lot: Rc::default(),
            shed: Shed::new(REQUESTS_MAX),
            ports: concurrency::Ports::default(),
            delayed: Permits::new(fault::DELAYED_MAX),
            mirrors: Permits::new(mirror::MIRRORS_MAX),
            timers: Rc::default(),
            announced: timeout::Announced::default(),
        }
    }
}

/// Tends a worker's idle connections for ever: spawn it once, when the worker starts.
pub async fn tend(worker: Rc<Worker>) {
    worker.http.lot.tend(&worker.clusters, &worker.shard, &worker.http.shed, &worker.drain).await;
}
