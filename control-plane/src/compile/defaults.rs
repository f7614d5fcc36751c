//! What is in force where no policy says otherwise. `docs/resilience.md` gives the reasons at length; the two must agree.

use std::time::Duration;

/// How long a connection may take to be made. A pod that has gone without a word must not hold a request
/// for longer than a person waits; across zones a handshake takes milliseconds.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Retries of one request, where some are asked for but not how many: a second replica that fails too is news that
/// the caller should hear.
pub(super) const RETRY_ATTEMPTS: u32 = 2;
/// What is tried again, where retries are asked for but not for what: the answers that say that nobody served the
/// request, and broken connections.
pub(super) const RETRY_ON: [&str; 3] = ["gateway-error", "connect-failure", "reset"];
/// Shortest wait before a retry: Envoy's default, about the time of a quick restart of a connection.
pub(super) const BACKOFF: Duration = Duration::from_millis(25);
/// The longest wait is this many times the shortest.
pub(super) const BACKOFF_GROWTH: u32 = 10;
/// How often another endpoint is looked for before a retry goes to one that was tried: two in three replicas are
/// found at the first look, and a look is cheap.
pub(super) const OTHER_ENDPOINT_ATTEMPTS: i64 = 5;
/// Retries as a share of the requests under way: a dead service is asked a fifth more than a living one, not three
/// times as much.
pub(super) const BUDGET_PERCENT: u8 = 20;
/// Retries that are always allowed at once, or a quiet service would never be asked again.
pub(super) const BUDGET_MIN: u32 = 3;

/// Failures in a row that eject an endpoint, of each kind: by chance it happens to an endpoint that fails one call in
/// ten once in 100,000.
pub(super) const CONSECUTIVE: u32 = 5;
/// How often ejected endpoints are looked at.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// How long the first ejection lasts: about a restart.
pub(super) const BASE_EJECTION: Duration = Duration::from_secs(30);
/// How long an ejection lasts at most.
pub(super) const MAX_EJECTION: Duration = Duration::from_secs(300);
/// Share of the endpoints that may be ejected at once. Envoy's 10 % would never eject one of three replicas; beyond a
/// half the others would not carry the load.
pub(super) const MAX_EJECTION_PERCENT: u8 = 50;
/// Share of healthy endpoints below which all are called.
pub(super) const PANIC_PERCENT: u8 = 50;

/// Connections to a service from one sidecar: beyond its file descriptors' share for any one callee.
pub(super) const CONNECTIONS_MAX: u32 = 4096;
/// Requests that wait for a connection: more than this are a queue that hides an outage.
pub(super) const PENDING_MAX: u32 = 1024;
/// Requests under way to a service from one sidecar: at 10 ms each, 400,000 a second.
pub(super) const REQUESTS_MAX: u32 = 4096;

/// Service circuit, where there is one: length of its window.
pub(super) const CIRCUIT_WINDOW: Duration = Duration::from_secs(10);
/// Calls in the window below which it never opens.
pub(super) const CIRCUIT_MINIMUM_CALLS: u32 = 20;
/// Share of failures at which it opens.
pub(super) const CIRCUIT_ERROR_PERCENT: u8 = 50;
/// How long it stays open the first time.
pub(super) const CIRCUIT_OPEN: Duration = Duration::from_secs(5);
/// How long it stays open at most.
pub(super) const CIRCUIT_OPEN_MAX: Duration = Duration::from_secs(60);
/// Calls let through while it is half open, all of which must succeed: one may be luck.
pub(super) const CIRCUIT_PROBES: u32 = 3;

/// Callers that a limit by caller tells apart, 100 bytes each. A mesh that has more of them for one pod has the limit
/// of the service beside it.
pub(super) const CALLERS_MAX: u32 = 4096;
/// In what policies count shares.
pub(super) const MILLION: u32 = 1_000_000;
/// Random part of an interval between probes, so that the sidecars of a deployment do not ask in step.
pub(super) const PROBE_JITTER_PERCENT: u32 = 10;

/// What the name of a cluster that does not exist begins with. No service's name has a slash.
pub(super) const UNRESOLVED: &str = "unresolved/";
