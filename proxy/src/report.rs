//! Reports to the control plane: OTLP metrics and transitions of circuits over gRPC, every event exactly once.
//!
//! In: the ledgers of `record`, circuits of `balance`. Out: every second the differences to the last time and how circuits
//! stand, as one report with a sequence number; transitions as log records, and as lines in the log at once. Reports are sent in order, one at a time, and sent again, the same bytes under the same
//! number, until the receiver says that it has them; a receiver that has counted a number says so again without
//! counting it. That makes an acknowledgement that was lost harmless.
//!
//! Invariant: an event is in exactly one place: in a worker's cells, in one report of the queue, or counted by
//! the receiver. An outage of any length loses nothing: up to [`QUEUE_MAX`] reports keep their place in time;
//! after that no more differences are taken, the cells go on counting, and the first report after the outage
//! covers the rest of it. Only label sets that come and go in great numbers during an outage can be lost, and
//! that is counted (`weft.report.dropped`).
//!
//! Surprise: reports are encoded once, when they are taken, and queued as bytes: that is smaller than the
//! messages, and a resend cannot differ. How circuits *stand* is said only while reports get through: of the past it
//! would say nothing that transitions do not. Without a control plane there is the log. Non-goal: traces, other logs.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{IntCounter, IntGauge, Registry};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::transport::Channel;
use weft_wire::header;

use crate::balance::Circuits;
use crate::balance::circuits::Transition;
use crate::record::{Limit, Telemetry};
use queue::{Queue, Report, Signal};
use transition::{Numbered, Transitions};

mod circuit;
mod client;
mod encode;
mod link;
mod queue;
mod snapshot;
mod transition;

pub use link::Link;

/// How often differences are taken.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Reports that wait at most: a minute of an outage keeps its place in time.
pub const QUEUE_MAX: usize = 60;

/// Bytes that wait at most, whatever their number; a second of a busy sidecar is some 20 kB.
pub const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// With this many reports waiting nobody hears how circuits stand now; they would fill the queue with what is over
/// when it is read. One is under way, one may be late.
const FRESH_MAX: usize = 3;

/// How long a receiver may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last reports may take when the proxy ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Failures after which the last reports are given up: whoever stops a whole mesh at once waits for nobody.
const FLUSH_FAILURES_MAX: u32 = 3;

/// Intervals between two rounds of [`Telemetry::tidy`].
const TIDY_EVERY: u32 = 60;

/// Reports until `stop`, then once more what is left, with a short deadline. Run it once, on the admin thread.
///
/// Without a `channel` nothing is reported, and transitions of circuits are in the log only.
pub async fn run(
    telemetry: Arc<Telemetry>,
    circuits: Arc<Circuits>,
    channel: Option<Link>,
    stop: impl Future<Output = ()>,
) {
    let watch = Watch::new(circuits);
    let Some(mut channel) = channel else { return tidy(&telemetry, watch, stop).await };
    telemetry.report_differences();
    let mut reporter = Reporter::new(telemetry, watch);
    reporter.report(&mut channel, stop).await;
    reporter.take(true);
    if tokio::time::timeout(FLUSH_TIMEOUT, reporter.flush(&mut channel)).await.is_err() {
        tracing::warn!(
            reports = reporter.queue.len(),
            "control plane does not answer, last reports are lost"
        );
    }
}

async fn tidy(telemetry: &Telemetry, mut watch: Watch, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0_u32;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                round = round.wrapping_add(1);
                if round.is_multiple_of(TIDY_EVERY) {
                    telemetry.tidy();
                }
                watch.tick();
                // Nobody else is told.
                drop(watch.transitions.take());
            }
            transition = watch.next() => watch.hear(&transition),
            () = &mut stop => return,
        }
    }
}

/// Circuits, and what they told since the last report.
struct Watch {
    circuits: Arc<Circuits>,
    /// `None`: somebody else listens.
    told: Option<mpsc::Receiver<Transition>>,
    transitions: Transitions,
}

impl Watch {
    fn new(circuits: Arc<Circuits>) -> Self {
        let told = circuits.listen();
        Self { circuits, told, transitions: Transitions::default() }
    }

    /// The next transition; cancel safe.
    async fn next(&mut self) -> Transition {
        let next = match &mut self.told {
            Some(told) => told.recv().await,
            None => None,
        };
        match next {
            Some(transition) => transition,
            // Circuits keep the other end for as long as they live, and this keeps them.
            None => std::future::pending().await,
        }
    }

    fn hear(&mut self, transition: &Transition) {
        self.transitions.add(transition.change(), now());
    }

    /// An interval has passed.
    fn tick(&mut self) {
        self.circuits.look_at_limits(std::time::Instant::now());
        self.transitions.tick();
    }

    /// Everything that was told and is in no report.
    fn take(&mut self) -> Vec<Numbered> {
        while let Some(Ok(transition)) = self.told.as_mut().map(mpsc::Receiver::try_recv) {
            self.hear(&transition);
        }
        self.transitions.take()
    }

    /// Transitions that nobody will be told of.
    fn dropped(&self) -> u64 {
        self.transitions.dropped() + self.circuits.untold()
    }
}

struct Reporter {
    telemetry: Arc<Telemetry>,
    queue: Queue,
    taken: snapshot::Taken,
    watch: Watch,
    /// Transitions that were counted as dropped.
    dropped: u64,
    reachable: bool,
    metrics: Metrics,
}

/// What the reporter says of itself on `/metrics`.
#[derive(Clone)]
struct Metrics {
    waiting: IntGauge,
    acknowledged: IntCounter,
    failed: IntCounter,
    untold: IntCounter,
}

impl Metrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let waiting =
            IntGauge::new("weft_report_waiting", "Reports that the control plane has not acknowledged.")?;
        let acknowledged = IntCounter::new(
            "weft_report_acknowledged_total",
            "Reports that the control plane has acknowledged.",
        )?;
        let failed = IntCounter::new("weft_report_failed_total", "Attempts to send a report that failed.")?;
        let untold = IntCounter::new(
            "weft_circuit_transitions_untold_total",
            "Transitions of circuits that the control plane was not told of, for want of room.",
        )?;
        registry.register(Box::new(untold.clone()))?;
        registry.register(Box::new(waiting.clone()))?;
        registry.register(Box::new(acknowledged.clone()))?;
        registry.register(Box::new(failed.clone()))?;
        Ok(Self { waiting, acknowledged, failed, untold })
    }
}

impl Reporter {
    fn new(telemetry: Arc<Telemetry>, watch: Watch) -> Self {
        let metrics = Metrics::register(telemetry.registry()).expect("constant names, registered once");
        Self {
            telemetry,
            queue: Queue::default(),
            taken: snapshot::Taken::new(now()),
            watch,
            dropped: 0,
            reachable: true,
            metrics,
        }
    }

    /// The loop: takes a report every second; sends one at a time, with a pause after a failure.
    async fn report(&mut self, link: &mut Link, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut ticks = tokio::time::interval(INTERVAL);
        // After a stall one long interval says the same as many short ones.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = 0_u32;
        let mut sending: Option<Sending> = None;
        let mut not_before = Instant::now();
        loop {
            if sending.is_none()
                && let Some(channel) = link.channel()
                && let Some(report) = self.queue.next()
            {
                sending = Some(Box::pin(send(channel, self.instance(), report, not_before)));
            }
            tokio::select! {
                _ = ticks.tick() => {
                    round = round.wrapping_add(1);
                    if round.is_multiple_of(TIDY_EVERY) {
                        self.telemetry.tidy();
                    }
                    self.watch.tick();
                    self.take(false);
                }
                transition = self.watch.next() => self.watch.hear(&transition),
                outcome = finished(&mut sending) => {
                    sending = None;
                    not_before = Instant::now() + self.settle(outcome);
                }
                () = &mut stop => return,
            }
        }
    }

    /// Sends everything that waits, or gives up.
    async fn flush(&mut self, link: &mut Link) {
        let mut not_before = Instant::now();
        self.queue.start_over();
        while let Some(report) = self.queue.next()
            && let Some(channel) = link.channel()
            && self.queue.failures() < FLUSH_FAILURES_MAX
        {
            let outcome = send(channel, self.instance(), report, not_before).await;
            not_before = Instant::now() + self.settle(outcome);
        }
    }

    /// Takes the differences since the last time, unless too much waits already.
    fn take(&mut self, whatever_waits: bool) {
        if !self.queue.has_room() && !whatever_waits {
            // This interval will be part of the next one that is taken.
            self.telemetry.limit(Limit::ReportQueue);
            return;
        }
        let now = now();
        let mut snapshot = self.taken.snapshot(&self.telemetry, now);
        if self.queue.len() < FRESH_MAX {
            let view = self.watch.circuits.view(std::time::Instant::now());
            self.telemetry.limits_reached(Limit::Circuits, view.left_out);
            snapshot.circuits = view.circuits;
        }
        let transitions = self.watch.take();
        let dropped = self.watch.dropped() - self.dropped;
        self.dropped += dropped;
        self.metrics.untold.inc_by(dropped);
        snapshot.dropped += dropped;
        for bytes in encode::encode(&snapshot, self.telemetry.identity()) {
            self.queue.push(Signal::Metrics, bytes);
        }
        for circuit::Encoded { bytes, records } in
            circuit::records(&transitions, now, self.telemetry.identity())
        {
            self.queue.push(Signal::Transitions(records), bytes);
        }
        self.metrics.waiting.set(self.queue.len() as i64);
    }

    /// Learns from an attempt to send; returns how long to wait before the next.
    fn settle(&mut self, outcome: Result<u64, tonic::Status>) -> Duration {
        match outcome {
            Ok(sequence) => {
                self.queue.acknowledged(sequence);
                self.metrics.acknowledged.inc();
                self.metrics.waiting.set(self.queue.len() as i64);
                if !self.reachable {
                    tracing::info!(waiting = self.queue.len(), "control plane takes reports again");
                }
                self.reachable = true;
                Duration::ZERO
            }
            Err(status) => {
                self.metrics.failed.inc();
                if let Some(pause) = self.give_up(&status) {
                    return pause;
                }
                if self.reachable {
                    tracing::warn!(code = ?status.code(), message = status.message(), "control plane does not take reports");
                }
                self.reachable = false;
                self.queue.failed(fastrand::f64())
            }
        }
    }

    /// A receiver that knows no log records must not keep measurements waiting behind them for ever.
    fn give_up(&mut self, status: &tonic::Status) -> Option<Duration> {
        let Report { sequence, signal: Signal::Transitions(records), .. } = self.queue.next()? else {
            return None;
        };
        if !matches!(status.code(), tonic::Code::Unimplemented | tonic::Code::InvalidArgument) {
            return None;
        }
        tracing::warn!(records, code = ?status.code(), message = status.message(), "control plane takes no transitions of circuits");
        self.watch.transitions.drop_for_good(records as u64);
        self.queue.acknowledged(sequence);
        Some(Duration::ZERO)
    }

    fn instance(&self) -> Arc<str> {
        Arc::clone(&self.telemetry.identity().instance)
    }
}

type Sending = std::pin::Pin<Box<dyn Future<Output = Result<u64, tonic::Status>> + Send>>;

/// The end of the attempt under way; never, when there is none.
async fn finished(sending: &mut Option<Sending>) -> Result<u64, tonic::Status> {
    match sending {
        Some(sending) => sending.await,
        None => std::future::pending().await,
    }
}

/// One attempt. Returns the sequence that the receiver has.
async fn send(
    channel: Channel,
    instance: Arc<str>,
    report: Report,
    not_before: Instant,
) -> Result<u64, tonic::Status> {
    tokio::time::sleep_until(not_before).await;
    let Report { sequence, signal, bytes } = report;
    let mut request = tonic::Request::new(bytes);
    let metadata = request.metadata_mut();
    let number = |value: u64| tonic::metadata::MetadataValue::from(value);
    metadata.insert(header::REPORT_SEQUENCE, number(sequence));
    metadata.insert(header::REPORT_SENT_AT, number(now()));
    match instance.parse() {
        Ok(instance) => drop(metadata.insert(header::REPORT_INSTANCE, instance)),
        Err(_) => return Err(tonic::Status::invalid_argument("the instance's name is not ASCII")),
    }
    match tokio::time::timeout(ANSWER_TIMEOUT, client::export(channel, signal, request)).await {
        Ok(answer) => answer.map(|()| sequence),
        Err(_) => Err(tonic::Status::deadline_exceeded("no answer")),
    }
}

/// Unix nanoseconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

#[cfg(test)]
mod tests;
