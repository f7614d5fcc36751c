//! Records what happened: one guard per request or connection, recorded exactly once, on drop.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, StatusCode};
use weft_wire::{DecidedBy, Reason, ServiceId, WorkloadId};

mod cell;
pub mod limit;
pub mod trace;

pub use limit::Limit;
use trace::TraceContext;

/// Settings of this module: flatten into the program's options (`#[command(flatten)]`).
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Most path templates per service; further paths are recorded as `__other__`.
    #[arg(long, env = "WEFT_ROUTE_CAP", default_value_t = 200)]
    pub route_cap: u16,
    /// Share of new traces that are sampled (0 to 1).
    #[arg(long, env = "WEFT_TRACE_RATIO", default_value_t = 0.01)]
    pub trace_ratio: f64,
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
}

/// The endpoint that was chosen, as far as it has a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PeerSpec {
    /// Its workload.
    pub workload: Option<WorkloadId>,
    /// Its workload's version.
    pub version: Option<Arc<str>>,
}

/// A [`PeerSpec`] resolved on one worker by [`Shard::peer`]; keep it with the endpoint's own state.
/// Valid for every edge of that worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PeerIndex(u16);

impl PeerIndex {
    /// No endpoint was chosen, or nothing is known about it.
    pub const UNKNOWN: Self = Self(0);
}

/// All telemetry of this proxy; shared with the admin thread.
#[derive(Debug)]
pub struct Telemetry;

impl Telemetry {
    /// Starts with no series.
    #[must_use]
    pub fn new(_config: Config, _identity: Identity) -> Arc<Self> {
        Arc::new(Self)
    }

    /// A worker's own part. Call once, on the worker's thread.
    #[must_use]
    pub fn shard(self: &Arc<Self>) -> Rc<Shard> {
        Rc::new(Shard)
    }

    /// Counts a bound that bit outside a worker (xDS, reports, admin).
    pub fn limit(&self, _limit: Limit) {}

    /// The `/metrics` page: Prometheus text format, content type `text/plain; version=0.0.4; charset=utf-8`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// One worker's telemetry: written by this thread only, read by the admin thread.
#[derive(Debug)]
pub struct Shard;

impl Shard {
    /// The edge for `spec`: a hash lookup, so once per connection (forward proxy: once per request), never more.
    #[must_use]
    pub fn edge(self: &Rc<Self>, _spec: &EdgeSpec) -> Rc<Edge> {
        Rc::new(Edge)
    }

    /// Resolves an endpoint's name; keep the result with the endpoint's own state.
    #[must_use]
    pub fn peer(&self, _spec: &PeerSpec) -> PeerIndex {
        PeerIndex::UNKNOWN
    }

    /// How detection ended and how long it took.
    pub fn detected(&self, _result: Detected, _elapsed: Duration) {}

    /// Counts a bound that bit.
    pub fn limit(&self, _limit: Limit) {}

    /// Lets go of what has been idle for ten minutes. Call about once a minute from the worker.
    pub fn sweep(&self) {}
}

/// One edge on one worker.
#[derive(Debug)]
pub struct Edge;

impl Edge {
    /// Starts recording a request. Reads method, path, version and content type; call before headers change.
    pub fn request(self: &Rc<Self>, _parts: &Parts) -> RequestRecord {
        RequestRecord
    }

    /// Starts recording a connection that is not HTTP (or no longer: upgrades, CONNECT).
    pub fn connection(self: &Rc<Self>, _protocol: Protocol) -> ConnectionRecord {
        ConnectionRecord
    }
}

/// One request. Records itself exactly once, on drop; dropped before [`complete`](Self::complete) or
/// [`failed`](Self::failed) it records `client_cancelled`.
#[derive(Debug)]
#[must_use = "dropping the record ends the request as client_cancelled"]
pub struct RequestRecord;

impl RequestRecord {
    /// Rewrites trace headers and the request id, and remembers the trace for the access log.
    pub fn propagate(&mut self, headers: &mut HeaderMap) -> TraceContext {
        trace::propagate(headers, trace::Ratio::new(0.0))
    }

    /// The endpoint that was chosen; call again when a retry chooses another.
    pub fn peer(&mut self, _peer: PeerIndex) {}

    /// The response's head as the client will see it. `failed` wins over what the status says.
    pub fn response(&mut self, _status: StatusCode, _headers: &HeaderMap) {}

    /// The response's trailers (gRPC status).
    pub fn trailers(&mut self, _trailers: &HeaderMap) {}

    /// The request failed for a reason that a proxy decided, or the connection broke.
    pub fn failed(&mut self, _reason: Reason, _by: DecidedBy) {}

    /// Counts request body bytes, as they pass.
    pub fn request_bytes(&mut self, _bytes: u64) {}

    /// Counts response body bytes, as they pass.
    pub fn response_bytes(&mut self, _bytes: u64) {}

    /// The response ended cleanly.
    pub fn complete(&mut self) {}
}

/// One connection that is not HTTP. Dropping it records its end.
#[derive(Debug)]
#[must_use = "dropping the record ends the connection"]
pub struct ConnectionRecord;

impl ConnectionRecord {
    /// The endpoint that was chosen.
    pub fn peer(&mut self, _peer: PeerIndex) {}

    /// Bytes from the client to the server, as they pass.
    pub fn to_server(&self, _bytes: u64) {}

    /// Bytes from the server to the client, as they pass.
    pub fn to_client(&self, _bytes: u64) {}

    /// The connection ended badly; the first call counts.
    pub fn failed(&mut self, _reason: Reason) {}
}
