//! Makes views from the graph.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use petgraph::stable_graph::{EdgeIndex, NodeIndex};
use petgraph::visit::{EdgeRef as _, IntoEdgeReferences as _};

use super::super::analysis::{self, Health, Outcomes};
use super::super::window::{Cell, RouteIndex, Slot};
use super::super::{EdgeId, Graph, Histogram, Kind, NodeKey, Protocol, Proxy, Timestamp, Tls, Window, edge};
use super::{
    Connections, Detail, Edge, Failure, Flow, Latency, Node, Retries, Route, Series, StatusCount, TlsCalls,
    View,
};

/// Routes per edge in a whole view: enough for a side panel's first look. All of them are in the detail.
const ROUTES_SHOWN: usize = 10;

/// How many routes of an edge a view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutesShown {
    /// The busiest ones.
    Busiest,
    /// All.
    All,
}

/// An edge's traffic in the window being viewed.
struct Active {
    index: EdgeIndex,
    source: NodeIndex,
    target: NodeIndex,
    slot: Slot,
    outcomes: Outcomes,
}

impl Graph {
    /// The graph in `window` at `now`; workloads of `proxies` are shown even without traffic. Its version is 0:
    /// whoever publishes it numbers it.
    #[must_use]
    pub fn view(&self, window: Window, now: Timestamp, proxies: &[Proxy]) -> View {
        let covered = self.covered(window, now);
        let active = self.active(window, now);
        let edges = active.iter().filter_map(|one| self.edge_view(one, covered, RoutesShown::Busiest));
        let mut edges: Vec<Edge> = edges.collect();
        edges.sort_by_key(|edge| edge.id);
        let nodes = self.node_views(&active, window, covered, proxies);
        let diagnosis =
            edges.iter().all(|edge| edge.idle).then(|| analysis::diagnose(proxies, now, window.seconds()));
        View {
            version: 0,
            at: now,
            window,
            window_seconds: window.seconds(),
            covered_seconds: rounded(covered.as_secs_f64(), 1),
            diagnosis,
            nodes,
            edges,
        }
    }

    /// Everything about one edge; `None` when there is no such edge.
    #[must_use]
    pub fn detail(&self, id: EdgeId, window: Window, now: Timestamp) -> Option<Detail> {
        let covered = self.covered(window, now);
        let index = *self.edges.get(&id)?;
        let active = self.active(window, now).into_iter().find(|one| one.index == index)?;
        Some(Detail {
            at: now,
            window,
            window_seconds: window.seconds(),
            covered_seconds: rounded(covered.as_secs_f64(), 1),
            edge: self.edge_view(&active, covered, RoutesShown::All)?,
            series: series(self.graph.edge_weight(index)?, window, now),
        })
    }

    /// How much of the window the graph has seen. The interval before its first report counts as seen.
    fn covered(&self, window: Window, now: Timestamp) -> Duration {
        const INTERVAL: Duration = Duration::from_secs(1);
        let seen = self.since.map_or(Duration::ZERO, |since| now.since(since)) + INTERVAL;
        window.span(now).covered().min(seen)
    }

    /// Every edge with its sum over the window, HTTP bytes of gRPC edges put where they belong.
    fn active(&self, window: Window, now: Timestamp) -> Vec<Active> {
        let mut strays = HashMap::new();
        let mut active = Vec::with_capacity(self.graph.edge_count());
        for reference in self.graph.edge_references() {
            let (edge, source, target) = (reference.weight(), reference.source(), reference.target());
            let slot = edge.timeline.sum(window, now);
            if edge.protocol == Protocol::Http && edge.requests_total == 0 {
                strays.insert((source, target), (reference.id(), slot));
                continue;
            }
            active.push(Active {
                index: reference.id(),
                source,
                target,
                slot,
                outcomes: Outcomes::default(),
            });
        }
        for one in &mut active {
            if self.graph[one.index].protocol == Protocol::Grpc
                && let Some((_, stray)) = strays.remove(&(one.source, one.target))
            {
                one.slot.merge(&stray);
            }
        }
        // Without gRPC beside it, it is a first request that is still running: an event stream, a WebSocket.
        active.extend(strays.into_iter().map(|((source, target), (index, slot))| Active {
            index,
            source,
            target,
            slot,
            outcomes: Outcomes::default(),
        }));
        for one in &mut active {
            one.outcomes = outcomes(&one.slot, self.graph[one.index].protocol);
        }
        active
    }

    fn key(&self, node: NodeIndex) -> &NodeKey {
        &self.graph[node].key
    }

    fn edge_view(&self, active: &Active, covered: Duration, shown: RoutesShown) -> Option<Edge> {
        let edge = self.graph.edge_weight(active.index)?;
        let slot = &active.slot;
        let requests = slot.requests();
        let ends = if edge.protocol.has_requests() { &requests } else { &slot.closed };
        let source = self.key(active.source);
        let per_second = |count: u64| rounded(count as f64 / covered.as_secs_f64(), 3);
        let mut routes: Vec<Route> =
            slot.routes().filter_map(|(route, cell)| self.route_view(edge, route, cell, covered)).collect();
        routes.sort_by(|left, right| {
            let busiest = right.requests.cmp(&left.requests);
            busiest.then_with(|| (&left.route, &left.method).cmp(&(&right.route, &right.method)))
        });
        let routes_total = routes.len();
        if shown == RoutesShown::Busiest {
            routes.truncate(ROUTES_SHOWN);
        }
        Some(Edge {
            id: edge.id,
            source: source.to_string(),
            target: self.key(active.target).to_string(),
            protocol: edge.protocol,
            services: edge.services.iter().map(ToString::to_string).collect(),
            reported_by: if source.kind() == Kind::Unmeshed { "server" } else { "client" },
            idle: slot.is_idle(),
            health: active.outcomes.health(),
            tls: tls_word(slot, requests.count() > 0),
            tls_calls: tls_calls(slot),
            requests: requests.count(),
            requests_total: edge.requests_total,
            requests_per_second: per_second(requests.count()),
            success_rate: active.outcomes.success_rate().map(|rate| rounded(rate, 6)),
            latency_ms: latency(&ends.durations),
            failures: self.failures(ends),
            cancelled: ends.cancelled(),
            outcomes: active.outcomes,
            connections: (!edge.protocol.has_requests()).then(|| Connections {
                opened: slot.opened,
                ended: slot.closed.count(),
                failed: slot.closed.failed(),
                opened_total: edge.connections_total,
                opened_per_second: per_second(slot.opened),
            }),
            retries: edge.protocol.has_requests().then(|| retries(slot, requests.count())),
            circuits: None,
            bytes_sent_per_second: per_second(slot.sent),
            bytes_received_per_second: per_second(slot.received),
            first_seen: edge.first_seen,
            last_seen: edge.last_seen,
            routes,
            routes_total,
            routes_folded: slot.folded,
        })
    }

    fn route_view(
        &self,
        edge: &edge::Edge,
        route: RouteIndex,
        cell: &Cell,
        covered: Duration,
    ) -> Option<Route> {
        let (method, path) = edge.route(route)?;
        let outcomes = outcomes_of(cell, true);
        let mut statuses: Vec<StatusCount> = cell
            .statuses
            .iter()
            .map(|(status, count)| StatusCount { status: status.word(), count: count.into() })
            .collect();
        statuses
            .sort_by(|left, right| right.count.cmp(&left.count).then_with(|| left.status.cmp(&right.status)));
        Some(Route {
            method: method.to_string(),
            route: path.to_string(),
            requests: cell.count(),
            requests_per_second: rounded(cell.count() as f64 / covered.as_secs_f64(), 3),
            success_rate: outcomes.success_rate().map(|rate| rounded(rate, 6)),
            latency_ms: latency(&cell.durations),
            failures: self.failures(cell),
            cancelled: cell.cancelled(),
            statuses,
        })
    }

    fn failures(&self, cell: &Cell) -> Vec<Failure> {
        let mut failures: Vec<Failure> = cell
            .errors
            .iter()
            .map(|(reason, count)| Failure {
                reason: self.reasons.word(reason).to_owned(),
                count: count.into(),
            })
            .collect();
        failures
            .sort_by(|left, right| right.count.cmp(&left.count).then_with(|| left.reason.cmp(&right.reason)));
        failures
    }

    fn node_views(
        &self,
        active: &[Active],
        window: Window,
        covered: Duration,
        proxies: &[Proxy],
    ) -> Vec<Node> {
        let mut sidecars: BTreeMap<NodeKey, Vec<&Proxy>> = BTreeMap::new();
        for proxy in proxies {
            if let Some(workload) = &proxy.workload {
                sidecars.entry(NodeKey::Workload(workload.clone())).or_default().push(proxy);
            }
        }
        let mut sums: HashMap<NodeIndex, (Sum, Sum)> = HashMap::new();
        for one in active {
            sums.entry(one.source).or_default().1.add(one);
            sums.entry(one.target).or_default().0.add(one);
        }
        let causes = self.causes(active);
        let mut nodes = Vec::with_capacity(sums.len() + sidecars.len());
        for (index, (incoming, outgoing)) in sums {
            let node = &self.graph[index];
            let proxies = sidecars.remove(&node.key).unwrap_or_default();
            let mut view = node_view(&node.key, (incoming, outgoing), window, covered, &proxies);
            view.cause = causes.get(&index).map(|&cause| self.key(cause).to_string());
            view.versions.extend(node.versions.keys().map(ToString::to_string));
            view.versions.sort();
            view.versions.dedup();
            nodes.push(view);
        }
        for (key, proxies) in sidecars {
            let mut view = node_view(&key, Default::default(), window, covered, &proxies);
            view.versions.sort();
            view.versions.dedup();
            nodes.push(view);
        }
        nodes.sort_by(|left, right| left.id.cmp(&right.id));
        nodes
    }

    /// For each node with unhealthy calls: the node at the end of the chain of its worst calls.
    fn causes(&self, active: &[Active]) -> HashMap<NodeIndex, NodeIndex> {
        let mut worst: HashMap<usize, (Rank, usize)> = HashMap::new();
        for one in active {
            let health = one.outcomes.health();
            // A node's calls to itself explain nothing.
            if health < Health::Degraded || one.source == one.target {
                continue;
            }
            // The id decides between equals, so that the answer does not flicker.
            let rank = (health, one.outcomes.failed, self.graph[one.index].id);
            let entry = worst.entry(one.source.index()).or_insert((rank, one.target.index()));
            if rank > entry.0 {
                *entry = (rank, one.target.index());
            }
        }
        let next = |at: usize| worst.get(&at).map(|(_, target)| *target);
        let causes = worst.keys().filter_map(|&start| Some((start, analysis::culprit(start, next)?)));
        causes.map(|(start, end)| (NodeIndex::new(start), NodeIndex::new(end))).collect()
    }
}

/// How bad a call is, worst last.
type Rank = (Health, u64, EdgeId);

/// What a node's edges add up to in one direction.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    outcomes: Outcomes,
    requests: u64,
}

impl Sum {
    fn add(&mut self, one: &Active) {
        self.outcomes = self.outcomes.and(one.outcomes);
        self.requests += one.slot.routes().map(|(_, cell)| cell.count()).sum::<u64>();
    }

    fn flow(self, covered: Duration) -> Flow {
        Flow {
            requests_per_second: rounded(self.requests as f64 / covered.as_secs_f64(), 3),
            success_rate: self.outcomes.success_rate().map(|rate| rounded(rate, 6)),
        }
    }
}

fn node_view(
    key: &NodeKey,
    (incoming, outgoing): (Sum, Sum),
    window: Window,
    covered: Duration,
    proxies: &[&Proxy],
) -> Node {
    let calls = outgoing.outcomes.health() != Health::Idle;
    let health = match incoming.outcomes.health() {
        // It works, as far as anyone can tell from outside.
        Health::Idle if calls => Health::Healthy,
        health => health,
    };
    Node {
        id: key.to_string(),
        kind: key.kind(),
        name: key.name(),
        namespace: key.namespace().map(ToOwned::to_owned),
        versions: proxies.iter().filter_map(|proxy| proxy.version.clone()).collect(),
        sidecars: proxies.len(),
        // Only who sees all pods knows.
        uninjected: 0,
        health,
        health_reason: analysis::reason(incoming.outcomes, calls, window.seconds()),
        cause: None,
        idle: health == Health::Idle,
        circuits: None,
        incoming: incoming.flow(covered),
        outgoing: outgoing.flow(covered),
    }
}

fn retries(slot: &Slot, requests: u64) -> Retries {
    // A request that is still being tried has not ended, so it is not among the requests yet.
    let amplification = match requests {
        0 => 1.0,
        requests => rounded(requests.saturating_add(slot.retried) as f64 / requests as f64, 3),
    };
    Retries { sent: slot.retried, denied: slot.retry_denied, amplification }
}

fn outcomes(slot: &Slot, protocol: Protocol) -> Outcomes {
    let active = !slot.is_idle();
    if protocol.has_requests() {
        outcomes_of(&slot.requests(), active)
    } else {
        outcomes_of(&slot.closed, active)
    }
}

fn outcomes_of(cell: &Cell, active: bool) -> Outcomes {
    let given_up = cell.given_up();
    Outcomes { count: cell.count().saturating_sub(given_up), failed: cell.failed(), given_up, active }
}

/// Calls are the better witnesses; of a connection that lives long there may be nothing but bytes. Those of requests that
/// failed within the caller's sidecar are no witness at all.
fn tls_word(slot: &Slot, failed_here: bool) -> Option<&'static str> {
    let witnesses = match slot.secured().is_empty() {
        true if failed_here => return None,
        true => slot.traces(),
        false => slot.secured(),
    };
    let mut words = witnesses.iter().map(|(tls, _)| tls);
    let first = words.next()?;
    Some(if words.next().is_some() { "mixed" } else { first.word() })
}

fn tls_calls(slot: &Slot) -> TlsCalls {
    let of = |wanted: Tls| {
        slot.secured().iter().find(|(tls, _)| *tls == wanted).map_or(0, |(_, count)| count.into())
    };
    TlsCalls { mutual: of(Tls::Mutual), simple: of(Tls::Simple), none: of(Tls::None) }
}

fn latency(durations: &Histogram) -> Option<Latency> {
    let at = |quantile| durations.quantile(quantile).map(|seconds| rounded(seconds * 1e3, 3));
    Some(Latency {
        p50: at(0.5)?,
        p90: at(0.9)?,
        p95: at(0.95)?,
        p99: at(0.99)?,
        mean: rounded(durations.mean()? * 1e3, 3),
    })
}

fn series(edge: &edge::Edge, window: Window, now: Timestamp) -> Series {
    let slots = edge.timeline.series(window, now);
    let span = window.span(now);
    let step = span.covered().as_secs_f64() - (span.len() - 1) as f64 * window.step_seconds() as f64;
    let ends = |slot: &Slot| if edge.protocol.has_requests() { slot.requests() } else { slot.closed.clone() };
    let last = slots.len() - 1;
    let rate = |count: fn(&Slot, Protocol) -> u64| {
        let rates = slots.iter().enumerate().map(|(position, slot)| {
            // The last slot is still filling: divide by the part of it that has passed, but not by almost nothing.
            let seconds = window.step_seconds() as f64;
            let seconds = if position == last { step.clamp(seconds.min(1.0), seconds) } else { seconds };
            slot.map_or(0.0, |slot| rounded(count(slot, edge.protocol) as f64 / seconds, 3))
        });
        rates.collect()
    };
    let quantile = |quantile: f64| {
        let of =
            |slot: &&Slot| ends(slot).durations.quantile(quantile).map(|seconds| rounded(seconds * 1e3, 3));
        slots.iter().map(|slot| slot.as_ref().and_then(of)).collect()
    };
    let success = |slot: &&Slot| outcomes(slot, edge.protocol).success_rate().map(|rate| rounded(rate, 6));
    Series {
        start: span.start(),
        step_seconds: window.step_seconds(),
        requests_per_second: rate(|slot, _| slot.requests().count()),
        failures_per_second: rate(|slot, protocol| outcomes(slot, protocol).failed),
        success_rate: slots.iter().map(|slot| slot.as_ref().and_then(success)).collect(),
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        bytes_sent_per_second: rate(|slot, _| slot.sent),
        bytes_received_per_second: rate(|slot, _| slot.received),
    }
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}
