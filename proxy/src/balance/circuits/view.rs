//! Circuits at one moment, for whoever tells of them: reports, `/metrics`, the admin page, the log.
//!
//! In: the shared state and `now`. Out: plain values by the wall clock, with everything one needs to explain them. A
//! circuit that is closed and had no call in its window is left out: there is nothing to say, and a sidecar may know
//! thousands. Invariant: at most [`SHOWN_MAX`] circuits, those that are not closed first; the rest is counted.
//! Surprise: this reads while workers write; counts of one circuit may be a call apart.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use weft_wire::WorkloadId;

use super::super::breaker::window::Tally;
use super::super::breaker::{self, Cause, Kind, Position};
use super::cluster::{ClusterState, Core, Gauge};
use super::endpoint::{EndpointState, WINDOW};
use super::journal::Transition;
use super::{Circuits, Clock};
use crate::xds;

/// Circuits that are told of at most, at some 500 bytes in a report: a pod that calls fifty services of ten endpoints
/// has half of it.
pub const SHOWN_MAX: usize = 1000;

/// One circuit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circuit {
    /// What it guards.
    pub kind: Kind,
    /// The cluster it belongs to.
    pub cluster: Arc<str>,
    /// The endpoint, for [`Kind::Endpoint`].
    pub address: Option<SocketAddr>,
    /// Who runs there.
    pub callee: Callee,
    /// Where it is.
    pub position: Position,
    /// Why it is, or last was, open.
    pub cause: Option<Cause>,
    /// What the cause's measure was compared with.
    pub threshold: Option<u64>,
    /// When it came there, Unix nanoseconds; `None` = it never was anywhere else.
    pub since: Option<u64>,
    /// When it lets something through again, Unix nanoseconds.
    pub next_probe: Option<u64>,
    /// Calls in its window. Of a limit: those in progress, and as errors those refused within the last second.
    pub tally: Tally,
}

/// Who runs at an endpoint, as far as the control plane said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Callee {
    /// The workload.
    pub workload: Option<WorkloadId>,
    /// Its version.
    pub version: Option<Arc<str>>,
    /// The pod's name.
    pub pod: Option<Arc<str>>,
}

/// A circuit went from one position to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where it was.
    pub from: Position,
    /// The circuit just after.
    pub circuit: Circuit,
    /// When, Unix nanoseconds.
    pub at: u64,
}

/// All circuits there is something to say about.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Those that are not closed first; otherwise in no order.
    pub circuits: Vec<Circuit>,
    /// Those for which there was no room.
    pub left_out: u64,
}

impl Circuits {
    /// Every circuit that is not closed, has calls in its window or has just closed.
    #[must_use]
    pub fn view(&self, now: Instant) -> View {
        let clock = self.shared().clock;
        let now = clock.millis(now);
        let (mut notable, mut closed) = (View::default(), View::default());
        for cluster in self.all() {
            view_cluster(&cluster, &clock, now, &mut |circuit| {
                let view = if circuit.position == Position::Closed { &mut closed } else { &mut notable };
                view.put(circuit);
            });
        }
        for circuit in closed.circuits {
            notable.put(circuit);
        }
        notable.left_out += closed.left_out;
        notable
    }
}

impl View {
    fn put(&mut self, circuit: Circuit) {
        if self.circuits.len() < SHOWN_MAX {
            self.circuits.push(circuit);
        } else {
            self.left_out += 1;
        }
    }
}

fn view_cluster(cluster: &ClusterState, clock: &Clock, now: u64, put: &mut impl FnMut(Circuit)) {
    let core = cluster.core();
    let origin = core.origin();
    let Some(origin) = &*origin else { return };
    let is_recent = |since: u64| since > 0 && now.saturating_sub(since) < WINDOW.as_millis() as u64;
    let is_used = core.idle_for(now).is_some_and(|idle| idle < WINDOW.as_millis() as u64);

    if let Some(settings) = &origin.breaking.circuit {
        let circuit = of_service(core, settings, clock, now);
        if circuit.position != Position::Closed || is_used || is_recent(core.circuit.since()) {
            put(circuit);
        }
    }
    let limit = of_limit(core, &origin.breaking, clock);
    if limit.position != Position::Closed || is_used || is_recent(core.limit.since()) {
        put(limit);
    }

    // Made only where an endpoint is worth telling of; most are closed and idle.
    let mut names = None;
    let list = origin.endpoints();
    for endpoint in cluster.endpoints() {
        let tally = endpoint.tally(now);
        if endpoint.available() && tally.calls == 0 && !is_recent(endpoint.since()) {
            continue;
        }
        let names = names.get_or_insert_with(|| {
            list.list.iter().map(|named| (named.address, named)).collect::<HashMap<_, _>>()
        });
        let callee = names.get(&endpoint.address()).copied().map(Callee::of).unwrap_or_default();
        put(of_endpoint(&endpoint, &origin.breaking, callee, tally, clock));
    }
}

fn of_service(core: &Core, settings: &breaker::circuit::Settings, clock: &Clock, now: u64) -> Circuit {
    let state = core.circuit.state();
    let cause = core.circuit.cause();
    Circuit {
        kind: Kind::Service,
        cluster: Arc::clone(&core.name),
        address: None,
        callee: Callee::default(),
        position: state.position,
        cause,
        threshold: cause.and_then(|cause| threshold(core, cause)),
        since: at(clock, core.circuit.since()),
        next_probe: (state.position == Position::Open).then(|| clock.unix_nanos(state.until)),
        tally: core.circuit.tally(settings, now),
    }
}

fn of_limit(core: &Core, settings: &breaker::Settings, clock: &Clock) -> Circuit {
    let state = core.limit.state();
    let held = core.held(state.gauge.unwrap_or(Gauge::Requests));
    let cause = state.gauge.map(Gauge::cause);
    let threshold = match cause {
        Some(cause) => threshold(core, cause),
        None => Some(settings.limits.max_requests.into()),
    };
    Circuit {
        kind: Kind::Limit,
        cluster: Arc::clone(&core.name),
        address: None,
        callee: Callee::default(),
        position: state.position,
        cause,
        threshold,
        since: at(clock, core.limit.since()),
        // It lets something through as soon as something ends.
        next_probe: None,
        tally: core.limit.tally(held),
    }
}

fn of_endpoint(
    endpoint: &EndpointState,
    settings: &breaker::Settings,
    callee: Callee,
    tally: Tally,
    clock: &Clock,
) -> Circuit {
    let state = endpoint.state();
    Circuit {
        kind: Kind::Endpoint,
        cluster: Arc::clone(&endpoint.core().name),
        address: Some(endpoint.address()),
        callee,
        position: if state.is_available() { Position::Closed } else { Position::Open },
        cause: state.cause,
        threshold: state.cause.and_then(|cause| endpoint_threshold(settings, cause)),
        since: at(clock, endpoint.since()),
        next_probe: endpoint.next_probe(state).map(|millis| clock.unix_nanos(millis)),
        tally,
    }
}

impl Callee {
    fn of(endpoint: &xds::Endpoint) -> Self {
        let xds::Endpoint { workload, version, pod, .. } = endpoint.clone();
        Self { workload, version, pod }
    }
}

impl Transition {
    /// What happened, by the wall clock and with the names that are known now.
    #[must_use]
    pub fn change(&self) -> Change {
        let core = &self.core;
        let clock = &core.shared.clock;
        let origin = core.origin();
        let endpoints = origin.as_ref().map(|origin| origin.endpoints());
        let named = endpoints.as_ref().zip(self.address).and_then(|(endpoints, address)| {
            endpoints.list.iter().find(|endpoint| endpoint.address == address).map(Callee::of)
        });
        let at = clock.unix_nanos(self.at);
        let circuit = Circuit {
            kind: self.kind,
            cluster: Arc::clone(&core.name),
            address: self.address,
            callee: named.unwrap_or_default(),
            position: self.to,
            cause: self.cause,
            threshold: self.cause.and_then(|cause| threshold(core, cause)),
            since: Some(at),
            next_probe: self.next_probe.map(|millis| clock.unix_nanos(millis)),
            tally: self.tally,
        };
        Change { from: self.from, circuit, at }
    }
}

/// What the measure of `cause` is compared with, by the settings of now.
fn threshold(core: &Core, cause: Cause) -> Option<u64> {
    let origin = core.origin();
    let settings = &origin.as_ref()?.breaking;
    let limits = &settings.limits;
    match cause {
        Cause::ErrorRatio => settings.circuit.map(|circuit| circuit.error_percent.into()),
        Cause::SlowCalls => settings.circuit?.slow.map(|slow| slow.percent.into()),
        Cause::MaxConnections => Some(Gauge::Connections.max(core, limits).into()),
        Cause::MaxPendingRequests => Some(Gauge::Pending.max(core, limits).into()),
        Cause::MaxRequests => Some(Gauge::Requests.max(core, limits).into()),
        Cause::MaxRetries => Some(Gauge::Retries.max(core, limits).into()),
        _ => endpoint_threshold(settings, cause),
    }
}

fn endpoint_threshold(settings: &breaker::Settings, cause: Cause) -> Option<u64> {
    let outlier = settings.outlier;
    match cause {
        Cause::Consecutive5xx => outlier.map(|outlier| outlier.consecutive_5xx.into()),
        Cause::ConsecutiveGatewayFailure => outlier.map(|outlier| outlier.consecutive_gateway_failure.into()),
        Cause::ConsecutiveLocalOriginFailure => {
            outlier.map(|outlier| outlier.consecutive_local_origin_failure.into())
        }
        Cause::FailurePercentage | Cause::FailurePercentageLocalOrigin => {
            outlier.map(|outlier| outlier.failure_percentage.threshold.into())
        }
        // With several checks nobody knows whose it was.
        Cause::HealthCheck => match &*settings.checks {
            [only] => Some(only.unhealthy_threshold.into()),
            _ => None,
        },
        _ => None,
    }
}

/// A moment that was; the circuits' clock begins with 0, which stands for never.
fn at(clock: &Clock, millis: u64) -> Option<u64> {
    (millis > 0).then(|| clock.unix_nanos(millis))
}
