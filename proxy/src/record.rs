//! Records what happened: one guard per request or connection, recorded exactly once, on drop.
//!
//! In: what the pipelines know of a request as it passes. Out: `/metrics` ([`Telemetry::encode`]), differences
//! for reports (`crate::report`), access log lines. A worker writes its own [`Shard`]; the admin thread reads
//! all of them into one ledger and adds them up by name.
//!
//! Invariants: recording takes no lock and allocates nothing once a combination of labels has been seen; every
//! event is counted exactly once on each of the ways out; every table is bounded and says so when it is full
//! ([`Limit`]). Surprise: labels are small integers until somebody reads, and a request's whole label set is one
//! `u64`. Non-goal: deciding who counts when both sides of an edge report; that is the control plane's part.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Encoder as _, Registry, TextEncoder};
use weft_wire::{ServiceId, SpiffeId, WorkloadId};

pub(crate) mod access;
pub mod access_log;
pub(crate) mod cell;
mod guard;
pub(crate) mod handshake;
mod heard;
mod ledger;
pub mod limit;
mod metrics;
pub(crate) mod rules;
pub(crate) mod series;
mod shard;
pub mod trace;

pub use guard::{ConnectionRecord, RequestRecord};
pub use limit::Limit;
pub use rules::RuleName;
pub use shard::{Edge, Shard};

use crate::route::template::Learner;
use access::AccessSeries;
use handshake::Handshake;
use ledger::Ledger;
use rules::RuleSeries;
use series::{ConnectionSeries, FlowSeries, RequestSeries};
use shard::Cells;

/// Settings of this module: flatten into the program's options (`#[command(flatten)]`).
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Most path templates per service; further paths are recorded as `__other__`
    #[arg(long, env = "WEFT_ROUTE_CAP", value_name = "N", default_value_t = Self::standard().route_cap)]
    pub route_cap: u16,
    /// Share of new traces that are sampled, 0 to 1
    #[arg(long, env = "WEFT_TRACE_RATIO", value_name = "SHARE", default_value_t = Self::standard().trace_ratio)]
    pub trace_ratio: f64,
    /// Which requests get an access log line; `errors` means failed ones, slow ones and a share of the rest
    #[arg(long, env = "WEFT_ACCESS_LOG", value_name = "MODE", value_enum, default_value_t = Self::standard().access_log)]
    pub access_log: access_log::Mode,
    /// Requests that take this long are slow, in milliseconds
    #[arg(long, env = "WEFT_ACCESS_LOG_SLOW_MS", value_name = "MS", default_value_t = Self::standard().access_log_slow_ms)]
    pub access_log_slow_ms: u64,
    /// Share of requests that are neither failed nor slow that get a line all the same, 0 to 1
    #[arg(long, env = "WEFT_ACCESS_LOG_SHARE", value_name = "SHARE", default_value_t = Self::standard().access_log_share)]
    pub access_log_share: f64,
}

impl Config {
    /// What applies where nothing is said.
    #[must_use]
    pub const fn standard() -> Self {
        Self {
            route_cap: 200,
            trace_ratio: 0.01,
            access_log: access_log::Mode::Errors,
            access_log_slow_ms: 1000,
            access_log_share: 0.001,
        }
    }
}

/// Who this proxy speaks for: the resource of its reports.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The workload.
    pub workload: WorkloadId,
    /// Its version, when known.
    pub version: Option<Arc<str>>,
    /// The pod's name, when there is a pod.
    pub pod: Option<Arc<str>>,
    /// This start of this proxy.
    pub instance: Arc<str>,
}

/// Which side of an edge this proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The callee's sidecar.
    Inbound,
    /// The caller's sidecar.
    Outbound,
}

/// How the bytes of an edge are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tls {
    /// Mesh mTLS.
    Mutual,
    /// TLS of the app's own.
    Simple,
    /// Plain.
    None,
}

impl Tls {
    /// The word in metrics, reports and logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Mutual => "mutual",
            Self::Simple => "simple",
            Self::None => "none",
        }
    }
}

/// What a connection speaks, as `network.protocol.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP of any version, gRPC included.
    Http,
    /// TLS passed through.
    Tls,
    /// Bytes.
    Tcp,
}

impl Protocol {
    /// The word in metrics, reports and logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

/// How protocol detection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Detected {
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// A TLS ClientHello.
    Tls,
    /// Other bytes from the client.
    Opaque,
    /// The server spoke first.
    ServerFirst,
    /// Nobody spoke in time.
    Timeout,
    /// The client left before it said anything.
    Closed,
}

impl Detected {
    /// Every result, in declaration order.
    pub const ALL: [Self; 7] =
        [Self::Http1, Self::Http2, Self::Tls, Self::Opaque, Self::ServerFirst, Self::Timeout, Self::Closed];

    /// The word in metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Opaque => "opaque",
            Self::ServerFirst => "server_first",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
        }
    }
}

/// Where the trace of an outbound request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From a request that the app was sent: it carried the trace on.
    Carried,
    /// From the app itself, or from somewhere else than a request that came in lately.
    Own,
    /// From here: the app said nothing of a trace.
    New,
    /// Nobody has called the app yet, so there was nothing to carry on.
    Unprompted,
}

impl Origin {
    /// All, in declaration order.
    pub const ALL: [Self; 4] = [Self::Carried, Self::Own, Self::New, Self::Unprompted];

    /// The word in metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Own => "own",
            Self::New => "new",
            Self::Unprompted => "unprompted",
        }
    }
}

/// One edge as this proxy sees it: the labels that are the same for all its requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EdgeSpec {
    /// Which side this proxy is.
    pub direction: Direction,
    /// The service that was called, when known (inbound: the own service).
    pub service: Option<ServiceId>,
    /// What was asked for: a service's name, an SNI, an authority or an address.
    pub server_address: Arc<str>,
    /// The port that was asked for.
    pub server_port: u16,
    /// How the bytes are protected.
    pub tls: Tls,
    /// Inbound only: the caller's address.
    pub client: Option<IpAddr>,
    /// Inbound only: who the caller is, verified by its certificate.
    pub caller: Option<Arc<SpiffeId>>,
}

/// The endpoint that was chosen, as far as it has a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PeerSpec {
    /// Its workload.
    pub workload: Option<WorkloadId>,
    /// Its workload's version.
    pub version: Option<Arc<str>>,
    /// Who it is, verified by its certificate. Then the bytes are [protected](Tls::Mutual), whatever the edge says.
    pub identity: Option<Arc<SpiffeId>>,
}

impl PeerSpec {
    /// How the bytes of `edge` to this peer are protected.
    #[must_use]
    pub fn tls(&self, edge: &EdgeSpec) -> Tls {
        if self.identity.is_some() { Tls::Mutual } else { edge.tls }
    }
}

/// A [`PeerSpec`] resolved on one worker by [`Shard::peer`]; keep it with the endpoint's own state.
/// Valid for every edge of that worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PeerIndex(u16);

impl PeerIndex {
    /// No endpoint was chosen, or nothing is known about it.
    pub const UNKNOWN: Self = Self(0);
    /// Bits in a packed key.
    const BITS: u32 = 14;
    /// The largest index: 16,383 named peers per worker.
    const MAX: u16 = (1 << Self::BITS) - 1;
}

/// Most services whose routes are learned apart. Beyond it all paths are `__other__`.
const LEARNERS_MAX: usize = 1024;

/// All telemetry of this proxy; shared with the admin thread.
#[derive(Debug)]
pub struct Telemetry {
    config: Config,
    identity: Identity,
    shards: Mutex<Vec<Arc<Cells>>>,
    books: Mutex<Books>,
    learners: Mutex<HashMap<Box<str>, Weak<Learner>>>,
    /// Traces that came in.
    pub(crate) heard: heard::Heard,
    /// Bounds that bit outside workers.
    limits: [AtomicU64; Limit::ALL.len()],
    access_log: access_log::Handle,
    access_log_queue: Mutex<Option<tokio::sync::mpsc::Receiver<access_log::Entry>>>,
    registry: Registry,
    /// Whether somebody takes differences.
    reporting: AtomicBool,
    /// Unix nanoseconds.
    started: AtomicU64,
}

/// The ledgers of all kinds of series.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) requests: Ledger<RequestSeries>,
    pub(crate) flows: Ledger<FlowSeries>,
    pub(crate) connections: Ledger<ConnectionSeries>,
    pub(crate) rules: Ledger<RuleSeries>,
    pub(crate) access: Ledger<AccessSeries>,
    /// Label sets that were dropped unreported.
    pub(crate) dropped: u64,
}

impl Telemetry {
    /// Starts with no series.
    #[must_use]
    pub fn new(config: Config, identity: Identity) -> Arc<Self> {
        let (access_log, queue) = access_log::channel(&config);
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        Arc::new_cyclic(|this| {
            let registry = Registry::new();
            if let Err(error) = registry.register(Box::new(metrics::Collector::new(Weak::clone(this)))) {
                // Only a duplicate name or a bad one is refused, and both are constants of ours.
                tracing::error!(%error, "metrics cannot be registered");
            }
            Self {
                config,
                identity,
                shards: Mutex::default(),
                books: Mutex::default(),
                learners: Mutex::default(),
                heard: heard::Heard::default(),
                limits: [const { AtomicU64::new(0) }; Limit::ALL.len()],
                access_log,
                access_log_queue: Mutex::new(Some(queue)),
                registry,
                reporting: AtomicBool::new(false),
                started: AtomicU64::new(started),
            }
        })
    }

    /// A worker's own part. Call once, on the worker's thread.
    #[must_use]
    pub fn shard(self: &Arc<Self>) -> Rc<Shard> {
        let cells = Arc::new(Cells::default());
        lock(&self.shards).push(Arc::clone(&cells));
        Shard::new(self, cells)
    }

    /// Who this proxy speaks for.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Counts a bound that bit outside a worker (xDS, reports, admin).
    pub fn limit(&self, limit: Limit) {
        self.limits_reached(limit, 1);
    }

    /// As [`limit`](Self::limit), so many times at once.
    pub(crate) fn limits_reached(&self, limit: Limit, times: u64) {
        self.limits[limit as usize].fetch_add(times, Ordering::Relaxed);
    }

    /// Where other modules register their own metrics (the state of the xDS stream, for instance); they appear
    /// on the same page.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The `/metrics` page: Prometheus text format, content type `text/plain; version=0.0.4; charset=utf-8`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut page = Vec::new();
        // One family at a time, so that page and families are not in memory together.
        for family in self.registry.gather() {
            if let Err(error) = TextEncoder::new().encode(&[family], &mut page) {
                tracing::error!(%error, "metrics cannot be written");
            }
        }
        page
    }

    /// Writes the access log until `stop`, then what is left. Run it once, on the admin thread.
    pub async fn write_access_log(&self, stop: impl Future<Output = ()>) {
        let queue = lock(&self.access_log_queue).take();
        if let Some(queue) = queue {
            access_log::run(queue, stop).await;
        }
    }

    /// Chores of about once a minute: forgets routes that nobody records any more where space is needed, and
    /// takes over what workers have let go of. The reporter does them; without a reporter, nobody else may.
    pub fn tidy(&self) {
        drop(self.settle());
        let learners: Vec<_> = lock(&self.learners).values().filter_map(Weak::upgrade).collect();
        for learner in learners {
            learner.forget_idle();
        }
    }

    /// From now on differences are kept until somebody has taken them.
    pub(crate) fn report_differences(&self) {
        self.reporting.store(true, Ordering::Relaxed);
    }

    /// The ledgers, up to date with what workers have created and let go of.
    pub(crate) fn settle(&self) -> MutexGuard<'_, Books> {
        let shards = lock(&self.shards).clone();
        let mut books = lock(&self.books);
        let reporting = self.reporting.load(Ordering::Relaxed);
        for cells in &shards {
            let Books { requests, flows, connections, rules, access, dropped } = &mut *books;
            *dropped += access.settle(std::mem::take(&mut lock(&cells.access)), reporting);
            *dropped += rules.settle(std::mem::take(&mut lock(&cells.rules)), reporting);
            *dropped += requests.settle(std::mem::take(&mut lock(&cells.requests)), reporting);
            *dropped += flows.settle(std::mem::take(&mut lock(&cells.flows)), reporting);
            *dropped += connections.settle(std::mem::take(&mut lock(&cells.connections)), reporting);
        }
        books
    }

    /// Detection times by result.
    pub(crate) fn detected(&self) -> [cell::Totals; Detected::ALL.len()] {
        let mut totals: [cell::Totals; Detected::ALL.len()] = Default::default();
        for cells in lock(&self.shards).iter() {
            for (total, cell) in totals.iter_mut().zip(&cells.detected) {
                if let Some(histogram) = cell.get() {
                    histogram.add_to(total);
                }
            }
        }
        totals
    }

    /// Outbound requests by where their trace came from.
    pub(crate) fn traces(&self) -> [u64; Origin::ALL.len()] {
        let mut counts = [0; Origin::ALL.len()];
        for cells in lock(&self.shards).iter() {
            for (count, cell) in counts.iter_mut().zip(&cells.traces) {
                *count += cell.get();
            }
        }
        counts
    }

    /// How often each bound bit.
    pub(crate) fn limits(&self) -> [u64; Limit::ALL.len()] {
        let mut counts = [0; Limit::ALL.len()];
        for (count, outside) in counts.iter_mut().zip(&self.limits) {
            *count = outside.load(Ordering::Relaxed);
        }
        for cells in lock(&self.shards).iter() {
            for (count, cell) in counts.iter_mut().zip(&cells.limits) {
                *count += cell.get();
            }
        }
        counts
    }

    /// How often TLS handshakes ended in each way: as a client, and as a server.
    pub(crate) fn handshakes(&self) -> [[u64; Handshake::COUNT]; 2] {
        let mut counts = [[0; Handshake::COUNT]; 2];
        for cells in lock(&self.shards).iter() {
            for (counts, cells) in counts.iter_mut().zip(&cells.handshakes) {
                for (count, cell) in counts.iter_mut().zip(cells) {
                    *count += cell.get();
                }
            }
        }
        counts
    }

    /// How often an endpoint was chosen whatever its health.
    pub(crate) fn panics(&self) -> u64 {
        lock(&self.shards).iter().map(|cells| cells.panics.get()).sum()
    }

    pub(crate) fn ratio(&self) -> trace::Ratio {
        trace::Ratio::new(self.config.trace_ratio)
    }

    pub(crate) fn access_log(&self) -> access_log::Handle {
        self.access_log.clone()
    }

    /// The routes of one service, shared by all workers that call or serve it.
    pub(crate) fn learner(&self, scope: &str) -> Arc<Learner> {
        let mut learners = lock(&self.learners);
        if let Some(learner) = learners.get(scope).and_then(Weak::upgrade) {
            return learner;
        }
        if learners.len() >= LEARNERS_MAX {
            learners.retain(|_, learner| learner.strong_count() > 0);
        }
        if learners.len() >= LEARNERS_MAX {
            self.limit(Limit::RouteScopes);
            return Arc::new(Learner::new(0));
        }
        let learner = Arc::new(Learner::new(usize::from(self.config.route_cap)));
        learners.insert(scope.into(), Arc::downgrade(&learner));
        learner
    }
}

/// Telemetry goes on after a panic elsewhere: the data behind these locks is valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
