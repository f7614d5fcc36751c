//! The writing side: one worker's edges and the series behind them.
//!
//! In: events with their labels as small integers. Out: additions to cells. Invariant: recording an event that
//! has been seen before takes no lock and allocates nothing. Creating a series takes a lock for as long as a
//! push takes; everything that can be created is bounded by a constant here, with a [`Limit`] that counts.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http::request::Parts;
use opentelemetry::SpanId;

use super::access::AccessSeries;
use super::cell::{Counter, Histogram};
use super::guard::{ConnectionRecord, RequestRecord};
use super::handshake::Handshake;
use super::rules::RuleSeries;
use super::series::{
    ConnectionLabels, ConnectionSeries, FlowLabels, FlowSeries, Outcome, RequestKey, RequestSeries, Series,
};
use super::trace::{Ratio, TraceContext};
use super::{
    Detected, Direction, EdgeSpec, Limit, Origin, PeerIndex, PeerSpec, Protocol, Telemetry, Tls, access_log,
};
use crate::route::template::{Cache, RouteId};
use weft_wire::{Reason, attribute};

/// Most series per worker, at about 2 kB each together with the ledger's side: 8 MB when full. A service with
/// 200 routes, three statuses and six peers stays below it.
pub(crate) const SERIES_MAX: usize = 4096;

/// Most edges per worker. Inbound edges are as many as there are callers' addresses.
const EDGES_MAX: usize = 1024;

/// A series, edge or route that nothing has been recorded for this long is let go.
const IDLE: Duration = Duration::from_secs(600);

/// Series that a worker has created and the ledger has not seen yet.
pub(crate) type Fresh<S> = Mutex<Vec<Arc<S>>>;

/// What a worker writes and the admin thread reads.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    pub(crate) requests: Fresh<RequestSeries>,
    pub(crate) flows: Fresh<FlowSeries>,
    pub(crate) connections: Fresh<ConnectionSeries>,
    pub(crate) rules: Fresh<RuleSeries>,
    pub(crate) access: Fresh<AccessSeries>,
    pub(crate) limits: [Counter; Limit::ALL.len()],
    pub(crate) traces: [Counter; Origin::ALL.len()],
    pub(crate) panics: Counter,
    pub(crate) handshakes: [[Counter; Handshake::COUNT]; 2],
    pub(crate) detected: [OnceLock<Box<Histogram>>; Detected::ALL.len()],
}

/// One worker's telemetry: written by this thread only, read by the admin thread.
#[derive(Debug)]
pub struct Shard {
    core: Rc<Core>,
    edges: RefCell<HashMap<EdgeSpec, Rc<Edge>>>,
    /// One view of a service's routes per worker, so that idle edges do not keep old trees.
    routes: RefCell<HashMap<Box<str>, Weak<RefCell<Cache>>>>,
}

/// What edges need of their shard.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) cells: Arc<Cells>,
    pub(crate) ratio: Ratio,
    pub(crate) access_log: access_log::Handle,
    telemetry: Arc<Telemetry>,
    peers: RefCell<Peers>,
    series: Cell<usize>,
}

#[derive(Debug, Default)]
struct Peers {
    specs: Vec<Arc<PeerSpec>>,
    indices: HashMap<Arc<PeerSpec>, PeerIndex>,
}

// === impl Shard ===

impl Shard {
    pub(crate) fn new(telemetry: &Arc<Telemetry>, cells: Arc<Cells>) -> Rc<Self> {
        let unknown = Arc::new(PeerSpec::default());
        let peers = Peers {
            specs: vec![Arc::clone(&unknown)],
            indices: HashMap::from([(unknown, PeerIndex::UNKNOWN)]),
        };
        let core = Core {
            cells,
            ratio: telemetry.ratio(),
            access_log: telemetry.access_log(),
            telemetry: Arc::clone(telemetry),
            peers: RefCell::new(peers),
            series: Cell::new(0),
        };
        Rc::new(Self { core: Rc::new(core), edges: RefCell::default(), routes: RefCell::default() })
    }

    /// The edge for `spec`: a hash lookup, so once per connection (forward proxy: once per request), never more.
    ///
    /// Beyond the bound on edges the caller's address, or what was asked for, is left out.
    #[must_use]
    pub fn edge(&self, spec: &EdgeSpec) -> Rc<Edge> {
        let mut edges = self.edges.borrow_mut();
        if let Some(edge) = edges.get(spec) {
            return Rc::clone(edge);
        }
        let mut spec = spec.clone();
        if edges.len() >= EDGES_MAX {
            self.limit(Limit::Edges);
            spec = overflow(spec);
            // Few enough (own services, and one for all of outbound) to stay beyond the bound.
            if let Some(edge) = edges.get(&spec) {
                return Rc::clone(edge);
            }
        }
        let edge = Rc::new(Edge {
            routes: self.routes(&spec),
            spec: Arc::new(spec.clone()),
            core: Rc::clone(&self.core),
            requests: RefCell::default(),
            flows: RefCell::default(),
            connections: RefCell::default(),
            rules: RefCell::default(),
            access: RefCell::default(),
        });
        edges.insert(spec, Rc::clone(&edge));
        edge
    }

    /// Resolves an endpoint's name; keep the result with the endpoint's own state. Valid on every edge of this
    /// worker, for good.
    #[must_use]
    pub fn peer(&self, spec: &PeerSpec) -> PeerIndex {
        self.core.resolve(spec)
    }

    /// How detection ended and how long it took.
    pub fn detected(&self, result: Detected, elapsed: Duration) {
        self.core.cells.detected[result as usize].get_or_init(Box::default).record(elapsed);
    }

    /// Counts a bound that bit.
    pub fn limit(&self, limit: Limit) {
        self.core.limit(limit);
    }

    /// How a TLS handshake ended: whether a session was resumed, or why there is no connection.
    pub fn handshake(&self, direction: Direction, result: Result<bool, Reason>) {
        let at = Handshake::from(result).position();
        self.core.cells.handshakes[usize::from(direction == Direction::Inbound)][at].add(1);
    }

    /// Counts an endpoint chosen whatever its health, because too few were available.
    pub fn panic(&self) {
        self.core.cells.panics.add(1);
    }

    /// Lets go of what has been idle for ten minutes. Call about once a minute from the worker.
    pub fn sweep(&self) {
        self.sweep_at(Instant::now());
    }

    /// [`sweep`](Self::sweep) with the time passed in.
    pub(crate) fn sweep_at(&self, now: Instant) {
        let mut kept = 0;
        self.edges.borrow_mut().retain(|_, edge| {
            let series = edge.requests.borrow_mut().sweep(now)
                + edge.flows.borrow_mut().sweep(now)
                + edge.connections.borrow_mut().sweep(now)
                + edge.rules.borrow_mut().sweep(now)
                + edge.access.borrow_mut().sweep(now);
            kept += series;
            series > 0 || Rc::strong_count(edge) > 1
        });
        self.core.series.set(kept);
        self.routes.borrow_mut().retain(|_, cache| cache.strong_count() > 0);
    }

    /// This worker's view of the routes of the service behind `spec`.
    fn routes(&self, spec: &EdgeSpec) -> Rc<RefCell<Cache>> {
        let direction = match spec.direction {
            Direction::Inbound => "in",
            Direction::Outbound => "out",
        };
        let scope = match &spec.service {
            Some(service) => format!("{direction} {service}"),
            // Who calls a pod by its address calls another server on another port.
            None => format!("{direction} {}:{}", spec.server_address, spec.server_port),
        };
        let mut routes = self.routes.borrow_mut();
        if let Some(cache) = routes.get(&*scope).and_then(Weak::upgrade) {
            return cache;
        }
        let cache = Rc::new(RefCell::new(Cache::new(self.core.telemetry.learner(&scope))));
        routes.insert(scope.into(), Rc::downgrade(&cache));
        cache
    }
}

/// The edge that stands for all edges beyond the bound.
fn overflow(spec: EdgeSpec) -> EdgeSpec {
    match spec.direction {
        Direction::Inbound => EdgeSpec { client: None, caller: None, ..spec },
        Direction::Outbound => EdgeSpec {
            direction: Direction::Outbound,
            service: None,
            server_address: attribute::ROUTE_OVERFLOW.into(),
            server_port: 0,
            tls: Tls::None,
            client: None,
            caller: None,
        },
    }
}

impl Core {
    pub(crate) fn limit(&self, limit: Limit) {
        self.cells.limits[limit as usize].add(1);
    }

    /// A request came for the app, or one of the app's was sent on, in this trace.
    pub(crate) fn traced(&self, direction: Direction, context: &TraceContext) {
        let heard = &self.telemetry.heard;
        if direction == Direction::Inbound {
            return heard.note(context.trace_id);
        }
        let origin = match (heard.knows(context.trace_id), context.parent_id == SpanId::INVALID) {
            (None, _) => Origin::Unprompted,
            (Some(true), false) => Origin::Carried,
            (Some(false), false) => Origin::Own,
            (Some(_), true) => Origin::New,
        };
        self.cells.traces[origin as usize].add(1);
    }

    fn resolve(&self, spec: &PeerSpec) -> PeerIndex {
        let mut peers = self.peers.borrow_mut();
        if let Some(index) = peers.indices.get(spec) {
            return *index;
        }
        let Some(index) = u16::try_from(peers.specs.len()).ok().filter(|&index| index <= PeerIndex::MAX)
        else {
            self.limit(Limit::Peers);
            return PeerIndex::UNKNOWN;
        };
        let spec = Arc::new(spec.clone());
        peers.specs.push(Arc::clone(&spec));
        peers.indices.insert(spec, PeerIndex(index));
        PeerIndex(index)
    }

    pub(crate) fn peer(&self, index: PeerIndex) -> Arc<PeerSpec> {
        let peers = self.peers.borrow();
        Arc::clone(peers.specs.get(usize::from(index.0)).unwrap_or(&peers.specs[0]))
    }

    /// Whether one more series fits.
    pub(super) fn has_room(&self) -> bool {
        self.series.get() < SERIES_MAX
    }

    pub(super) fn publish<S: Series>(&self, fresh: &Fresh<S>, series: &Arc<S>) {
        self.series.set(self.series.get() + 1);
        fresh.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(series));
    }
}

// === impl Edge ===

/// One edge on one worker.
#[derive(Debug)]
pub struct Edge {
    pub(crate) spec: Arc<EdgeSpec>,
    pub(crate) core: Rc<Core>,
    pub(crate) routes: Rc<RefCell<Cache>>,
    requests: RefCell<Table<RequestSeries>>,
    flows: RefCell<Table<FlowSeries>>,
    connections: RefCell<Table<ConnectionSeries>>,
    pub(super) rules: RefCell<Table<RuleSeries>>,
    pub(super) access: RefCell<Table<AccessSeries>>,
}

impl Edge {
    /// What the edge is.
    #[must_use]
    pub fn spec(&self) -> &Arc<EdgeSpec> {
        &self.spec
    }

    /// As [`Shard::peer`].
    #[must_use]
    pub fn peer(&self, spec: &PeerSpec) -> PeerIndex {
        self.core.resolve(spec)
    }

    /// Starts recording a request. Reads method, path, version and content type; call before headers change.
    pub fn request(self: &Rc<Self>, parts: &Parts) -> RequestRecord {
        RequestRecord::start(Rc::clone(self), parts)
    }

    /// Starts recording a connection that is not HTTP (or no longer: upgrades, CONNECT).
    pub fn connection(self: &Rc<Self>, protocol: Protocol) -> ConnectionRecord {
        ConnectionRecord::start(Rc::clone(self), protocol)
    }

    pub(crate) fn record_request(
        &self,
        route: RouteId,
        peer: PeerIndex,
        outcome: Outcome,
        elapsed: Duration,
    ) {
        let mut table = self.requests.borrow_mut();
        let key = RequestKey::new(route, peer, outcome).0;
        if let Some(series) = table.get(key) {
            return series.duration.record(elapsed);
        }
        let (mut key, mut route, mut peer, mut outcome) = (key, route, peer, outcome);
        if !self.core.has_room() {
            self.core.limit(Limit::Series);
            (route, peer, outcome) = (RouteId::OTHER, PeerIndex::UNKNOWN, outcome.folded());
            key = RequestKey::new(route, peer, outcome).0;
        }
        table
            .get_or_insert(key, || {
                let series = Arc::new(RequestSeries {
                    edge: Arc::clone(&self.spec),
                    peer: self.core.peer(peer),
                    route: self.routes.borrow().learner().route(route),
                    outcome,
                    duration: Histogram::default(),
                });
                self.core.publish(&self.core.cells.requests, &series);
                series
            })
            .duration
            .record(elapsed);
    }

    pub(crate) fn record_flow(&self, peer: PeerIndex, protocol: Protocol, add: impl FnOnce(&FlowSeries)) {
        let mut table = self.flows.borrow_mut();
        let key = u64::from(peer.0) << 2 | protocol as u64;
        if let Some(series) = table.get(key) {
            return add(series);
        }
        let (mut key, mut peer) = (key, peer);
        if !self.core.has_room() {
            self.core.limit(Limit::Series);
            (key, peer) = (protocol as u64, PeerIndex::UNKNOWN);
        }
        add(table.get_or_insert(key, || {
            let series = Arc::new(FlowSeries::new(self.flow_labels(peer, protocol)));
            self.core.publish(&self.core.cells.flows, &series);
            series
        }));
    }

    pub(crate) fn record_connection(
        &self,
        peer: PeerIndex,
        protocol: Protocol,
        reason: Option<Reason>,
        elapsed: Duration,
    ) {
        let mut table = self.connections.borrow_mut();
        let key = |peer: PeerIndex| {
            (u64::from(peer.0) << 8 | reason.map_or(0, |reason| reason as u64 + 1)) << 2 | protocol as u64
        };
        let mut peer = peer;
        if table.get(key(peer)).is_none() && !self.core.has_room() {
            self.core.limit(Limit::Series);
            peer = PeerIndex::UNKNOWN;
        }
        table
            .get_or_insert(key(peer), || {
                let labels = ConnectionLabels { flow: self.flow_labels(peer, protocol), reason };
                let series = Arc::new(ConnectionSeries { labels, duration: Histogram::default() });
                self.core.publish(&self.core.cells.connections, &series);
                series
            })
            .duration
            .record(elapsed);
    }

    fn flow_labels(&self, peer: PeerIndex, protocol: Protocol) -> FlowLabels {
        FlowLabels { edge: Arc::clone(&self.spec), peer: self.core.peer(peer), protocol }
    }
}

// === impl Table ===

/// The series of one edge by their packed keys.
#[derive(Debug)]
pub(super) struct Table<S> {
    positions: HashMap<u64, usize, BuildHasherDefault<KeyHasher>>,
    entries: Vec<Row<S>>,
    /// Most requests are like the one before.
    last: usize,
}

#[derive(Debug)]
struct Row<S> {
    key: u64,
    series: Arc<S>,
    /// Activity when it was last seen to change, and when that was.
    activity: u64,
    changed: Option<Instant>,
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self { positions: HashMap::default(), entries: Vec::new(), last: 0 }
    }
}

impl<S: Series> Table<S> {
    pub(super) fn get(&mut self, key: u64) -> Option<&S> {
        if self.entries.get(self.last).is_none_or(|row| row.key != key) {
            self.last = *self.positions.get(&key)?;
        }
        self.entries.get(self.last).map(|row| &*row.series)
    }

    pub(super) fn get_or_insert(&mut self, key: u64, create: impl FnOnce() -> Arc<S>) -> &S {
        let position = *self.positions.entry(key).or_insert_with(|| {
            self.entries.push(Row { key, series: create(), activity: 0, changed: None });
            self.entries.len() - 1
        });
        self.last = position;
        &self.entries[position].series
    }

    /// Lets go of idle series and says how many are left.
    fn sweep(&mut self, now: Instant) -> usize {
        let before = self.entries.len();
        self.entries.retain_mut(|row| {
            let activity = row.series.activity();
            let changed = *row.changed.get_or_insert(now);
            if activity != row.activity {
                row.activity = activity;
                row.changed = Some(now);
                return !row.series.closed();
            }
            !row.series.closed() && now.saturating_duration_since(changed) < IDLE
        });
        if self.entries.len() != before {
            self.positions.clear();
            self.positions.extend(self.entries.iter().enumerate().map(|(position, row)| (row.key, position)));
            self.entries.shrink_to_fit();
            self.positions.shrink_to_fit();
            self.last = 0;
        }
        self.entries.len()
    }
}

/// Spreads packed keys over a table. Keys are ours, so nobody can choose them to collide.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        // Fibonacci hashing; the fold brings the good high bits down, where hash tables look.
        let product = (self.0 ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}
