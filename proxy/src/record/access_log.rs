//! Access log: JSON lines on standard output, numbers as numbers, for the requests worth a line.
//!
//! `errors` (the default) writes every failed request, every slow one, and a small share of the rest that is
//! decided by the trace id, so that all sidecars log the same requests. `all` writes every request, `off`
//! none. In: what a guard knows when it drops. Out: one line. Keys are the attribute names of metrics and
//! spans. Invariant: a worker never waits for the writer; when the queue is full the line is dropped and
//! counted (`access_log` among the limits). Surprise: nothing wakes the writer, it looks ten times a second; a
//! wake-up would be a system call on the request path. Non-goals: query strings and header values, which hold
//! secrets.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::uri::PathAndQuery;
use opentelemetry::SpanId;
use serde::ser::{Serialize, SerializeMap, Serializer};
use tokio::sync::mpsc;
use weft_wire::{DecidedBy, attribute};

use super::series::Outcome;
use super::trace::{Ratio, TraceContext};
use super::{Config, Direction, EdgeSpec, PeerSpec};
use crate::route::template::Route;

/// Which requests get a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// None.
    Off,
    /// Failed ones, slow ones, and a share of the rest.
    Errors,
    /// Every one.
    All,
}

/// Lines that may wait: a tenth of a second's worth at 40,000 a second, at about 250 bytes each: 1 MB.
const QUEUE: usize = 4096;

/// How often the writer writes, at most.
const INTERVAL: Duration = Duration::from_millis(100);

/// One request, as it is written.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) ended: SystemTime,
    pub(crate) elapsed: Duration,
    pub(crate) edge: Arc<EdgeSpec>,
    pub(crate) peer: Arc<PeerSpec>,
    pub(crate) route: Arc<Route>,
    pub(crate) path: Option<PathAndQuery>,
    pub(crate) outcome: Outcome,
    pub(crate) decided_by: Option<DecidedBy>,
    /// How often it was sent.
    pub(crate) attempts: u32,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) trace: Option<TraceContext>,
}

/// A worker's end of the log.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    mode: Mode,
    slow: Duration,
    share: Ratio,
    queue: mpsc::Sender<Entry>,
}

/// Makes both ends.
pub(crate) fn channel(config: &Config) -> (Handle, mpsc::Receiver<Entry>) {
    // Off needs no queue; the channel allocates in blocks as it fills.
    let (queue, receiver) = mpsc::channel(QUEUE);
    let handle = Handle {
        mode: config.access_log,
        slow: Duration::from_millis(config.access_log_slow_ms),
        share: Ratio::new(config.access_log_share),
        queue,
    };
    (handle, receiver)
}

impl Handle {
    pub(crate) fn is_off(&self) -> bool {
        self.mode == Mode::Off
    }

    /// Whether a request gets a line.
    pub(crate) fn wants(&self, outcome: Outcome, elapsed: Duration, trace: Option<TraceContext>) -> bool {
        match self.mode {
            Mode::Off => false,
            Mode::All => true,
            Mode::Errors => {
                outcome.failed()
                    || elapsed >= self.slow
                    || trace.is_some_and(|trace| self.share.keeps(trace.trace_id))
            }
        }
    }

    /// Queues a line, or says that there is no space for it.
    pub(crate) fn send(&self, entry: impl FnOnce(SystemTime) -> Entry) -> bool {
        match self.queue.try_reserve() {
            Ok(permit) => {
                permit.send(entry(SystemTime::now()));
                true
            }
            Err(_) => false,
        }
    }
}

/// Writes what workers queue until `stop`, then what is left.
pub(crate) async fn run(mut queue: mpsc::Receiver<Entry>, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    let mut stopped = false;
    while !stopped {
        // Sleeps until there is something to write, and then a moment more: nobody waits for the queue meanwhile, so
        // a worker pays for waking this thread at most once an interval, and an idle sidecar never.
        let first = tokio::select! {
            entry = queue.recv() => entry,
            () = &mut stop => None,
        };
        tokio::select! {
            () = tokio::time::sleep(INTERVAL), if first.is_some() => {}
            () = &mut stop, if first.is_some() => stopped = true,
            else => stopped = true,
        }
        let mut lines = Vec::new();
        for entry in first.into_iter().chain(std::iter::from_fn(|| queue.try_recv().ok())) {
            // A line that cannot be written as JSON does not exist: every value is a string or a number.
            if serde_json::to_writer(&mut lines, &entry).is_ok() {
                lines.push(b'\n');
            }
        }
        if lines.is_empty() {
            continue;
        }
        // Standard output can block for as long as its reader likes; this thread has other things to do. While
        // it blocks, the queue fills and then drops.
        let written = tokio::task::spawn_blocking(move || std::io::stdout().lock().write_all(&lines)).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!("access log cannot be written");
        }
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("time", &timestamp(self.ended))?;
        map.serialize_entry("log", "access")?;
        map.serialize_entry("direction", self.edge.direction.word())?;
        map.serialize_entry(attribute::HTTP_REQUEST_METHOD, self.outcome.method())?;
        map.serialize_entry(attribute::HTTP_ROUTE, &**self.route.name())?;
        if let Some(path) = &self.path {
            map.serialize_entry("url.path", path.path())?;
        }
        if let Some(status) = self.outcome.status() {
            map.serialize_entry(attribute::HTTP_RESPONSE_STATUS_CODE, &status)?;
        }
        if let Some(status) = self.outcome.grpc() {
            map.serialize_entry(attribute::RPC_GRPC_STATUS_CODE, &status.code())?;
        }
        if let Some(error) = self.outcome.error() {
            map.serialize_entry(attribute::ERROR_TYPE, &error)?;
        }
        if let Some(reason) = self.outcome.reason() {
            map.serialize_entry("reason", reason.word())?;
        }
        if let Some(by) = self.decided_by {
            map.serialize_entry("decided_by", by.word())?;
        }
        // Microseconds are as far as the clock is worth reading.
        map.serialize_entry("duration_ms", &(self.elapsed.as_micros() as f64 / 1e3))?;
        map.serialize_entry("attempts", &self.attempts)?;
        map.serialize_entry("request_bytes", &self.request_bytes)?;
        map.serialize_entry("response_bytes", &self.response_bytes)?;
        map.serialize_entry(attribute::NETWORK_PROTOCOL_VERSION, self.outcome.version())?;
        map.serialize_entry(attribute::SERVER_ADDRESS, &*self.edge.server_address)?;
        map.serialize_entry(attribute::SERVER_PORT, &self.edge.server_port)?;
        map.serialize_entry(attribute::TLS, self.peer.tls(&self.edge).word())?;
        if let Some(client) = self.edge.client {
            map.serialize_entry(attribute::CLIENT_ADDRESS, &client)?;
        }
        if let Some(identity) = self.edge.caller.as_ref().or(self.peer.identity.as_ref()) {
            map.serialize_entry(attribute::PEER_IDENTITY, &format_args!("{identity}"))?;
        }
        if let Some(service) = &self.edge.service {
            map.serialize_entry(attribute::PEER_SERVICE, &service.to_string())?;
        }
        if let Some(workload) = &self.peer.workload {
            map.serialize_entry(attribute::PEER_WORKLOAD, workload.name())?;
            map.serialize_entry(attribute::PEER_NAMESPACE, workload.namespace())?;
        }
        if let Some(version) = &self.peer.version {
            map.serialize_entry(attribute::PEER_VERSION, &**version)?;
        }
        if let Some(trace) = &self.trace {
            map.serialize_entry("trace_id", &trace.trace_id.to_string())?;
            map.serialize_entry("span_id", &trace.span_id.to_string())?;
            if trace.parent_id != SpanId::INVALID {
                map.serialize_entry("parent_span_id", &trace.parent_id.to_string())?;
            }
        }
        map.end()
    }
}

impl Direction {
    /// The word in logs.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// `2026-01-31T10:00:00.123Z` (RFC 3339).
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let mut text = String::with_capacity(24);
    // Writing to a string does not fail.
    let _ok = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    );
    text
}

/// Year, month and day of a day counted from 1970-01-01.
///
/// Years are counted from March, so that the leap day is the last; 400 years have 146,097 days. Source: Howard
/// Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use opentelemetry::TraceId;
    use weft_wire::Reason;

    use super::super::series::{Method, Rpc};
    use super::super::{Protocol, Tls};
    use super::*;

    fn outcome(status: u16, reason: Option<Reason>) -> Outcome {
        Outcome::new(Method::Get, 1, status, Rpc::None, reason)
    }

    fn trace() -> TraceContext {
        TraceContext {
            trace_id: TraceId::from(1_u128),
            span_id: SpanId::from(2_u64),
            parent_id: SpanId::INVALID,
            sampled: false,
        }
    }

    #[test]
    fn dates_are_right() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_millis(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(at(1_772_323_199_999), "2026-02-28T23:59:59.999Z");
        assert_eq!(at(1_772_323_200_000), "2026-03-01T00:00:00.000Z");
        assert_eq!(at(4_102_444_800_000), "2100-01-01T00:00:00.000Z");
    }

    #[test]
    fn errors_and_slow_requests_get_a_line_and_the_rest_a_share() {
        let config = Config { access_log_share: 0.0, ..Config::standard() };
        let (handle, _queue) = channel(&config);
        let fast = Duration::from_millis(1);
        assert!(!handle.wants(outcome(200, None), fast, Some(trace())));
        assert!(handle.wants(outcome(500, None), fast, None));
        assert!(handle.wants(outcome(0, Some(Reason::ClientCancelled)), fast, None));
        assert!(handle.wants(outcome(200, None), Duration::from_secs(1), None));
        let (handle, _queue) = channel(&Config { access_log_share: 1.0, ..Config::standard() });
        assert!(handle.wants(outcome(200, None), fast, Some(trace())));
        let (handle, _queue) = channel(&Config { access_log: Mode::Off, ..Config::standard() });
        assert!(!handle.wants(outcome(500, None), fast, Some(trace())));
    }

    #[test]
    fn a_full_queue_says_so_and_does_not_block() {
        let (handle, queue) = channel(&Config::standard());
        for _ in 0..QUEUE {
            assert!(handle.send(entry));
        }
        assert!(!handle.send(entry));
        drop(queue);
    }

    fn entry(ended: SystemTime) -> Entry {
        let edge = EdgeSpec {
            direction: Direction::Outbound,
            service: "orders.shop".parse().ok(),
            server_address: "orders.shop".into(),
            server_port: 8080,
            tls: Tls::None,
            client: None,
            caller: None,
        };
        Entry {
            ended,
            elapsed: Duration::from_micros(1500),
            edge: Arc::new(edge),
            peer: Arc::new(PeerSpec { workload: "shop/orders".parse().ok(), version: None, identity: None }),
            route: Route::other(),
            path: Some(PathAndQuery::from_static("/a?secret=1")),
            outcome: outcome(503, Some(Reason::CircuitOpen)),
            decided_by: Some(DecidedBy::ClientProxy),
            attempts: 2,
            request_bytes: 3,
            response_bytes: 4,
            trace: Some(trace()),
        }
    }

    #[test]
    fn a_line_has_numbers_names_and_no_query() {
        let line = serde_json::to_value(entry(UNIX_EPOCH)).expect("json");
        assert_eq!(line["http.response.status_code"], 503);
        assert_eq!(line["duration_ms"], 1.5);
        assert_eq!(line["attempts"], 2);
        assert_eq!(line["reason"], "circuit_open");
        assert_eq!(line["decided_by"], "client_proxy");
        assert_eq!(line["weft.peer.workload"], "orders");
        assert_eq!(line["url.path"], "/a");
        assert_eq!(line["trace_id"], "00000000000000000000000000000001");
        assert!(!line.to_string().contains("secret"));
        assert_eq!(Protocol::Http.word(), "http");
    }
}
