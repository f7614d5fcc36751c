//! Receives telemetry: OTLP over gRPC (from sidecars and apps) and over HTTP (from apps).
//!
//! In: `ExportMetricsServiceRequest`s. Out: samples on the edges of the graph, journaled before they are
//! answered; and, beside them, what a counted report says of circuits and rules. From sidecars also
//! `ExportLogsServiceRequest`s with transitions of circuits. The steps, each its own module: [`decode`] reads a request into observations, `resolve` names both
//! ends and decides who counts, [`store`] journals, and `count` applies to the graph what was
//! committed.
//!
//! **Who counts.** A call is counted once although both sides report it. The caller's report always counts. The
//! callee's counts only where nobody reports for the caller's address at that moment: no connected sidecar has
//! it, and no instance whose reports cover that time. Such samples stay provisional for two minutes: every report
//! of an instance takes back what callees counted from its addresses over the time that its reports cover. So
//! neither the order of the first reports, nor late ones, nor a restart of this program makes a call count twice.
//! If a sidecar dies with unsent reports, what was in them is missing; its callees' view of it is not used,
//! because nobody could say which part would then be counted twice.
//!
//! Callers on loopback (several sidecars on one machine, each an explicit proxy) cannot be told apart by
//! address. They count as reporting for themselves when another live instance shares the callee's machine.
//!
//! **When.** A report's clock is set right by the distance between its `weft-report-sent-at` and its arrival, and
//! its samples go to the slot in which they happened, even when they come late.
//!
//! Invariant: nothing a sender writes can panic or grow anything without bound; what is not taken is counted by
//! cause and said in the answer. Non-goals: traces, and other logs than Weft's own, until they are stored.

pub mod decode;
pub mod habits;
pub mod metrics;

mod callers;
mod circuits;
mod count;
mod grpc;
mod http;
mod resolve;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::LogsServiceServer;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::MetricsServiceServer;
use prometheus::IntCounter;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

use crate::circuits::{self as circuit_table, SharedCircuits};
use crate::graph::{Limits, Mesh, SharedGraph, Timestamp};
use crate::lead::Lead;
use crate::rules::SharedRules;
use crate::store::{self, Outcome, Report, Store, Unavailable};
use callers::Callers;
pub use callers::Reporter;
pub use decode::Dropped;
pub use grpc::{Guard, Receiver};
pub use metrics::Metrics;

/// A service that only those reach who have proved who they are, where anybody has to.
pub type Guarded<S> =
    InterceptedService<S, fn(tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status>>;

/// The largest request, before and after decompression. A sidecar's report of 200 routes on 20 edges takes about
/// 1 MiB.
pub const REQUEST_BYTES_MAX: usize = 8 << 20;

/// How often the graph and the journal forget what is too old.
const MAINTENANCE: Duration = Duration::from_secs(5);

/// What ingest needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the journal lies; `None` keeps counts in memory only.
    pub data_dir: Option<std::path::PathBuf>,
}

/// The ingest: one per program, shared by all listeners.
#[derive(Clone)]
pub struct Ingest(Arc<Inner>);

struct Inner {
    graph: SharedGraph,
    circuits: SharedCircuits,
    /// What rules of access said, by what they said in place of a backend.
    access: SharedRules,
    rules: SharedRules,
    mesh: Arc<dyn Mesh>,
    callers: Arc<Callers>,
    store: Store,
    metrics: Metrics,
}

/// Which report of which instance this is, from its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The reporting instance.
    pub instance: Arc<str>,
    /// The position in its series.
    pub sequence: u64,
    /// Its clock when it sent.
    pub sent_at: Timestamp,
}

/// How a request came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// `None` for foreign senders.
    pub identity: Option<Identity>,
    /// This program's clock when it arrived.
    pub received_at: Timestamp,
    /// The other end of the connection.
    pub peer: Option<IpAddr>,
}

/// The metadata of a report contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEnvelope {
    /// One of the three fields is missing or is no number.
    #[error(
        "metadata {0:?} is missing or not readable; a report bears all of weft-report-{{instance,sequence,sent-at}}"
    )]
    Field(&'static str),
}

impl Envelope {
    /// Reads the metadata through `field`, which gives the text of a header.
    ///
    /// # Errors
    /// When an instance is named but the rest is not there: counting it without a sequence could count it twice.
    pub fn read<'a>(
        field: impl Fn(&'static str) -> Option<&'a str>,
        received_at: Timestamp,
        peer: Option<IpAddr>,
    ) -> Result<Self, InvalidEnvelope> {
        use weft_wire::header::{REPORT_INSTANCE, REPORT_SENT_AT, REPORT_SEQUENCE};
        const INSTANCE_LENGTH_MAX: usize = 128;
        let Some(instance) = field(REPORT_INSTANCE) else {
            return Ok(Self { identity: None, received_at, peer });
        };
        if instance.is_empty() || instance.len() > INSTANCE_LENGTH_MAX {
            return Err(InvalidEnvelope::Field(REPORT_INSTANCE));
        }
        let number = |name| {
            let value = field(name).and_then(|text| text.parse::<u64>().ok());
            // SQLite's integers are signed.
            value.filter(|&value| value <= i64::MAX as u64).ok_or(InvalidEnvelope::Field(name))
        };
        let identity = Identity {
            instance: instance.into(),
            sequence: number(REPORT_SEQUENCE)?,
            sent_at: Timestamp::from_nanos(number(REPORT_SENT_AT)?),
        };
        Ok(Self { identity: Some(identity), received_at, peer })
    }
}

/// What became of a request that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Whether it was counted now or before.
    pub outcome: Outcome,
    /// What of it was not taken.
    pub dropped: Dropped,
}

impl Ingest {
    /// Opens the journal, replays it into a new graph, and is then ready for listeners.
    ///
    /// # Errors
    /// When the journal cannot be opened.
    pub fn open(
        config: &Config,
        mesh: Arc<dyn Mesh>,
        registry: &prometheus::Registry,
    ) -> Result<Self, store::OpenError> {
        let graph = SharedGraph::new(Limits::STANDARD);
        let callers = Arc::new(Callers::default());
        let metrics = Metrics::new(registry);
        let counter = count::IntoGraph::new(graph.clone(), callers.clone());
        let store_config =
            store::Config { data_dir: config.data_dir.clone(), bytes_max: store::Config::BYTES_MAX };
        let store = Store::open(&store_config, counter)?;
        let circuits = SharedCircuits::new(circuit_table::Limits::STANDARD);
        let (access, rules) = (SharedRules::default(), SharedRules::default());
        Ok(Self(Arc::new(Inner { graph, circuits, access, rules, mesh, callers, store, metrics })))
    }

    /// The OTLP/gRPC service, for any number of listeners.
    #[must_use]
    pub fn grpc_service(&self) -> MetricsServiceServer<Receiver> {
        grpc::service(self.clone(), None)
    }

    /// The same for senders that prove who they are.
    #[must_use]
    pub fn guarded_grpc_service(&self, guard: Guard) -> Guarded<MetricsServiceServer<Receiver>> {
        InterceptedService::new(grpc::service(self.clone(), Some(guard)), grpc::known)
    }

    /// OTLP/gRPC for log records, for the listener of the sidecars.
    #[must_use]
    pub fn grpc_logs_service(&self) -> LogsServiceServer<Receiver> {
        grpc::logs_service(self.clone(), None)
    }

    /// The same for sidecars that prove who they are.
    #[must_use]
    pub fn guarded_grpc_logs_service(&self, guard: Guard) -> Guarded<LogsServiceServer<Receiver>> {
        InterceptedService::new(grpc::logs_service(self.clone(), Some(guard)), grpc::known)
    }

    /// OTLP/HTTP: `POST /v1/metrics`, as long as no other control plane leads; what is refused then is counted by `sent_away`.
    pub fn http_router(&self, lead: Lead, sent_away: IntCounter) -> axum::Router {
        http::router(self.clone(), lead, sent_away)
    }

    /// The graph that is fed.
    #[must_use]
    pub fn graph(&self) -> &SharedGraph {
        &self.0.graph
    }

    /// The circuits of all sidecars.
    #[must_use]
    pub fn circuits(&self) -> &SharedCircuits {
        &self.0.circuits
    }

    /// What rules of access said: of each series the backend is the verdict, and only requests are counted.
    #[must_use]
    pub fn access(&self) -> &SharedRules {
        &self.0.access
    }

    /// How the configured rules do.
    #[must_use]
    pub fn rules(&self) -> &SharedRules {
        &self.0.rules
    }

    /// What `instance` has reported; `None` when it never has.
    #[must_use]
    pub fn reporter(&self, instance: &str) -> Option<Reporter> {
        self.0.callers.reporter(instance, Timestamp::now())
    }

    /// Instances that reported within the last few seconds.
    #[must_use]
    pub fn reporting(&self, now: Timestamp) -> usize {
        self.0.callers.reporting(now)
    }

    /// This part at a glance.
    #[must_use]
    pub fn totals(&self) -> metrics::Totals {
        self.0.metrics.totals()
    }

    /// Brings the gauges of graph and journal up to date; called when somebody asks for `/metrics`.
    pub fn refresh_metrics(&self) {
        let (counters, nodes, edges, cells) = self
            .0
            .graph
            .with(|graph| (graph.counters(), graph.node_count(), graph.edge_count(), graph.cell_count()));
        self.0.metrics.show_graph(counters, nodes, edges, cells, self.0.store.queued());
        self.0.circuits.with(|circuits| self.0.metrics.show_circuits(circuits));
        self.0.rules.with(|rules| self.0.metrics.show_rules(rules));
        self.0.access.with(|rules| self.0.metrics.show_access(rules));
    }

    /// Forgets what is too old, until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(MAINTENANCE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let now = Timestamp::now();
            self.0.store.prune(now);
            let ingest = self.clone();
            let expired = tokio::task::spawn_blocking(move || {
                ingest.0.graph.with(|graph| graph.expire(now));
                ingest.0.callers.expire(now);
                ingest.0.access.with(|rules| rules.expire(now));
                ingest.0.rules.with(|rules| rules.expire(now));
                ingest.expire_circuits(now);
            });
            if expired.await.is_err() {
                tracing::error!("the graph could not be pruned");
            }
        }
    }

    /// Writes what is waiting and closes the journal. Blocks; reports that come later are refused.
    pub fn close(&self) {
        self.0.store.close();
    }

    /// Takes one request: decodes, decides who counts, journals, counts.
    ///
    /// # Errors
    /// When the journal does not take it; the sender should keep it.
    pub async fn accept(
        &self,
        envelope: Envelope,
        request: &ExportMetricsServiceRequest,
    ) -> Result<Accepted, Unavailable> {
        let mut decoded = decode::decode(request, envelope.identity.is_some());
        let mut dropped = decoded.dropped;
        let aside = circuits::Aside::take(&mut decoded.groups);
        let report = self.resolve(&envelope, decoded.groups, &mut dropped);
        self.0.metrics.dropped(&dropped);
        let samples = report.samples.len();
        let outcome = self.0.store.append(report).await;
        self.0.metrics.report(outcome, samples);
        if let Some(Identity { instance, sent_at, .. }) = &envelope.identity {
            let (sent, received) = (sent_at.millis(), envelope.received_at.millis());
            self.0
                .callers
                .clock(instance, i64::try_from(i128::from(received) - i128::from(sent)).unwrap_or(i64::MAX));
        }
        if outcome == Ok(Outcome::Counted) {
            let instance = envelope.identity.as_ref().map(|identity| &identity.instance);
            self.note(aside, instance, &resolve::Clock::of(&envelope), envelope.received_at);
        }
        Ok(Accepted { outcome: outcome?, dropped })
    }

    fn resolve(&self, envelope: &Envelope, groups: Vec<decode::Group>, dropped: &mut Dropped) -> Report {
        let inner = &self.0;
        let clock = resolve::Clock::of(envelope);
        let mut report = Report { received_at: envelope.received_at, ..Report::default() };
        let mut ends = groups.iter().flat_map(|group| &group.observations).map(|one| (one.start, one.end));
        let first = ends.next().unwrap_or((clock.sent(), clock.sent()));
        let (start, end) = ends.fold(first, |(start, end), next| (start.min(next.0), end.max(next.1)));
        (report.start, report.end) = (clock.place(start), clock.place(end));
        if let Some(group) = groups.first() {
            report.workload = group.reporter.workload.to_string();
        }
        if let Some(identity) = &envelope.identity {
            report.instance = Some(identity.instance.clone());
            report.sequence = identity.sequence;
            report.addresses = inner.callers.addresses(&identity.instance, &*inner.mesh, envelope.peer);
        }
        let view = resolve::View { mesh: &*inner.mesh, callers: &inner.callers };
        for group in groups {
            for observation in group.observations {
                match resolve::resolve(&view, &group.reporter, &report, observation, &clock) {
                    Ok(sample) => report.samples.push(sample),
                    Err(resolve::Skipped::CallerReports) => inner.metrics.deduplicated(),
                    Err(resolve::Skipped::NoCaller) => dropped.no_caller += 1,
                }
            }
        }
        report
    }
}
