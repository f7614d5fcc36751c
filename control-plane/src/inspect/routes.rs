//! The tree of what callers go by: services, their rules, the backends of each, and how all of it does.
//!
//! In: the world, the figures by rule, the circuits. Out: [`Routes`] as the API shows them.
//! Surprise: time limits and retries are read from the compiled route table and not from the objects, so what is
//! shown is what sidecars are told, defaults included.
//! Invariant: services are in order of namespace, name and port, rules in the order in which they are tried.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::{Route as XdsRoute, RouteAction, RouteConfiguration, route};
use envoy_types::pb::google::protobuf::Duration as XdsDuration;
use prost::Message as _;
use serde::Serialize;
use weft_wire::{ServicePort, attribute};

use crate::circuits::{Circuits, Kind as CircuitKind, State};
use crate::compile;
use crate::graph::circuit::Tally;
use crate::graph::{Histogram, Timestamp, Window};
use crate::rules::{Figures, Series};
use crate::world::{Backend, BackendRef, EffectiveRule, PortTraffic, Service, Table, World};
use crate::xds::Kind;

/// Service ports in one answer; filters find the others.
pub const SERVICES_MAX: usize = 500;

/// What callers go by.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Routes {
    /// When it was made.
    pub at: Timestamp,
    /// What the figures are of.
    pub window: Window,
    /// How many service ports there are of what was asked for.
    pub services_total: usize,
    /// The first [`SERVICES_MAX`] of them.
    pub services: Vec<ServiceRoutes>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceRoutes {
    /// `orders.shop:8080`.
    pub service: String,
    /// What it is declared to speak; `null` is detected.
    pub protocol: Option<&'static str>,
    /// The worst state of the circuit of the whole service; `null` without one.
    pub circuit: Option<State>,
    /// The policies that have a say.
    pub policies: Vec<String>,
    /// The rules, in the order in which they are tried.
    pub routes: Vec<Route>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Route {
    /// `HTTPRoute/shop/orders/0`, or `default`.
    pub name: String,
    /// The namespace whose callers alone go by it; `null` is all others.
    pub callers: Option<String>,
    /// What it matches, any of it.
    pub matches: Vec<String>,
    /// Longest time for the whole exchange; `null` is without limit.
    pub timeout_ms: Option<u64>,
    /// Longest time for one try; `null` is without limit.
    pub backend_timeout_ms: Option<u64>,
    /// When it is tried again; `null` is never.
    pub retry: Option<Retry>,
    /// Requests per second.
    pub requests_per_second: f64,
    /// Share that did not fail; `null` without requests.
    pub success_rate: Option<f64>,
    /// `null` without requests.
    pub latency_ms: Option<Latency>,
    /// Where its requests go.
    pub backends: Vec<RouteBackend>,
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// How often.
    pub attempts: u32,
    /// For what.
    pub on: Vec<String>,
}

/// Where a share of a rule's requests goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteBackend {
    /// The cluster: `orders-v2.shop:8080`.
    pub cluster: String,
    /// Why it leads nowhere; `null` when it is there.
    pub problem: Option<String>,
    /// Its weight.
    pub weight: u32,
    /// The share that it should have.
    pub share: f64,
    /// The share that it had; `null` without requests.
    pub observed_share: Option<f64>,
    /// Requests per second.
    pub requests_per_second: f64,
    /// Share that did not fail; `null` without requests.
    pub success_rate: Option<f64>,
    /// `null` without requests.
    pub latency_ms: Option<Latency>,
    /// `open` when nothing reaches it, `half_open` when only some can; `null` when nobody watches it.
    pub circuit: Option<State>,
    /// The circuits of its endpoints.
    pub circuits: Tally,
}

/// Quantiles in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// Ninety-ninth percentile.
    pub p99: f64,
}

/// Which services are wanted; `None` is any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// In this namespace.
    pub namespace: Option<String>,
    /// `orders.shop:8080`, `orders.shop`, or `orders`.
    pub service: Option<String>,
}

impl Filter {
    fn admits(&self, port: &ServicePort) -> bool {
        let id = &port.service;
        self.namespace.as_deref().is_none_or(|namespace| namespace == id.namespace())
            && self.service.as_deref().is_none_or(|service| {
                service == id.name() || service == id.to_string() || service == port.to_string()
            })
    }
}

/// The states of the circuits of each cluster.
#[derive(Default)]
struct Circuit {
    service: Option<State>,
    endpoints: Vec<State>,
}

/// What the figures are looked up in.
struct Live {
    figures: BTreeMap<Series, Figures>,
    covered: Duration,
    circuits: HashMap<String, Circuit>,
}

/// The live half of the tree, taken from its tables while their locks are held, and nothing more.
pub struct Observed(Live);

impl Observed {
    /// What `rules` and `circuits` say in `window` at `now`.
    #[must_use]
    pub fn take(figures: BTreeMap<Series, Figures>, covered: Duration, circuits: &Circuits) -> Self {
        let mut by_cluster: HashMap<String, Circuit> = HashMap::new();
        for (id, state) in circuits.states() {
            let circuit = by_cluster.entry(id.cluster.to_string()).or_default();
            match id.kind {
                CircuitKind::Endpoint => circuit.endpoints.push(state),
                CircuitKind::Service => circuit.service = circuit.service.max(Some(state)),
                CircuitKind::Limit => {}
            }
        }
        Self(Live { figures, covered, circuits: by_cluster })
    }
}

/// The tree of the services that `filter` admits.
#[must_use]
pub fn routes(
    world: &World,
    Observed(live): &Observed,
    window: Window,
    now: Timestamp,
    filter: &Filter,
) -> Routes {
    let ports = world.services().flat_map(|service| {
        service
            .ports
            .iter()
            .map(move |port| (service, ServicePort { service: service.id.clone(), port: port.number }))
    });
    let mut ports: Vec<(&Service, ServicePort)> = ports.filter(|(_, port)| filter.admits(port)).collect();
    ports.sort_by(|(_, one), (_, other)| {
        let order = |port: &ServicePort| {
            (port.service.namespace().to_owned(), port.service.name().to_owned(), port.port)
        };
        order(one).cmp(&order(other))
    });
    let services_total = ports.len();
    let shown = ports.into_iter().take(SERVICES_MAX);
    let services = shown.map(|(service, port)| of_service(world, live, service, &port)).collect();
    Routes { at: now, window, services_total, services }
}

fn of_service(world: &World, live: &Live, service: &Service, port: &ServicePort) -> ServiceRoutes {
    let name = port.to_string();
    let traffic = world.port_traffic(port);
    let mut policies: Vec<String> = traffic.into_iter().flat_map(policies_of).collect();
    policies.sort();
    policies.dedup();
    let own = service.id.namespace();
    let mut routes = of_table(world, live, port, traffic.map(|traffic| &traffic.table), own);
    for (namespace, table) in traffic.into_iter().flat_map(|traffic| &traffic.consumers) {
        let consumers = of_table(world, live, port, Some(table), namespace);
        routes.extend(
            consumers.into_iter().map(|route| Route { callers: Some(namespace.to_string()), ..route }),
        );
    }
    ServiceRoutes {
        protocol: service.port(port.port).and_then(|port| port.protocol).map(|protocol| protocol.word()),
        circuit: live.circuits.get(&name).and_then(|circuit| circuit.service),
        service: name,
        policies,
        routes,
    }
}

fn policies_of(traffic: &PortTraffic) -> Vec<String> {
    let tables = std::iter::once(&traffic.table).chain(traffic.consumers.values());
    let rules = tables.flat_map(Table::policies);
    traffic.policy.policies().into_iter().chain(rules).map(ToString::to_string).collect()
}

/// The rules that callers in `namespace` go by.
fn of_table(
    world: &World,
    live: &Live,
    port: &ServicePort,
    table: Option<&Table>,
    namespace: &str,
) -> Vec<Route> {
    let told = compiled(world, port, namespace);
    match table.filter(|table| table.attached) {
        Some(table) => table.rules.iter().map(|rule| of_rule(live, port, rule, &told)).collect(),
        None => vec![default_route(live, port, &told)],
    }
}

/// What sidecars are told, by the rule's name. All matches of a rule have the same action.
fn compiled(world: &World, port: &ServicePort, namespace: &str) -> HashMap<String, RouteAction> {
    let resource = compile::resource(world, Kind::Route, &port.to_string(), namespace);
    let table = resource.and_then(|resource| RouteConfiguration::decode(resource.body.value.as_slice()).ok());
    let routes = table.into_iter().flat_map(|table| table.virtual_hosts).flat_map(|host| host.routes);
    let actions = routes.filter_map(|XdsRoute { name, action, .. }| match action {
        Some(route::Action::Route(action)) => Some((name, action)),
        _ => None,
    });
    actions.collect()
}

fn of_rule(
    live: &Live,
    port: &ServicePort,
    rule: &EffectiveRule,
    told: &HashMap<String, RouteAction>,
) -> Route {
    let name = rule.name.to_string();
    let weights: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let pairs = rule.rule.backends.iter().zip(&rule.backends);
    let backends = pairs.map(|(asked, resolved)| {
        let problem = resolved.to.as_ref().err().map(ToString::to_string);
        (cluster_of(asked), problem, resolved.weight)
    });
    let mut route = route_of(live, port, name, told, backends.collect(), weights);
    route.matches = rule.rule.matches.iter().map(ToString::to_string).collect();
    let one_try = rule.policy.settings.timeouts.backend_request.filter(|limit| !limit.is_zero());
    route.backend_timeout_ms = one_try.map(millis).or(route.backend_timeout_ms);
    route
}

fn cluster_of(backend: &Backend) -> String {
    match &backend.to {
        BackendRef::Service(port) => port.to_string(),
        BackendRef::Unsupported { what } => what.to_string(),
    }
}

fn default_route(live: &Live, port: &ServicePort, told: &HashMap<String, RouteAction>) -> Route {
    let backends = vec![(port.to_string(), None, 1)];
    let mut route = route_of(live, port, attribute::ROUTE_DEFAULT.to_owned(), told, backends, 1);
    route.matches = vec!["/**".to_owned()];
    route
}

/// A route with what is known of every one of them.
fn route_of(
    live: &Live,
    port: &ServicePort,
    name: String,
    told: &HashMap<String, RouteAction>,
    backends: Vec<(String, Option<String>, u32)>,
    weights: u64,
) -> Route {
    let service = port.to_string();
    let of_rule =
        || live.figures.iter().filter(|(series, _)| *series.service == *service && *series.rule == *name);
    let mut all = Figures::default();
    of_rule().for_each(|(_, figures)| all.merge(figures));
    let backends = backends.into_iter().map(|(cluster, problem, weight)| {
        let figures = of_rule().find(|(series, _)| *series.backend == *cluster).map(|(_, figures)| figures);
        let figures = figures.cloned().unwrap_or_default();
        let circuit = live.circuits.get(&cluster);
        RouteBackend {
            problem,
            weight,
            share: share(weight.into(), weights).unwrap_or_default(),
            observed_share: share(figures.requests, all.requests),
            requests_per_second: per_second(figures.requests, live.covered),
            success_rate: figures.success_rate().map(rounded),
            latency_ms: latency(&figures.durations),
            circuit: circuit.and_then(Circuit::state),
            circuits: Tally::of(circuit.into_iter().flat_map(|circuit| circuit.endpoints.iter().copied())),
            cluster,
        }
    });
    let backends = backends.collect();
    let action = told.get(&name);
    let policy = action.and_then(|action| action.retry_policy.as_ref());
    Route {
        callers: None,
        matches: Vec::new(),
        timeout_ms: action.and_then(|action| limit(action.timeout.as_ref())),
        backend_timeout_ms: policy.and_then(|policy| limit(policy.per_try_timeout.as_ref())),
        retry: policy.map(|policy| Retry {
            attempts: policy.num_retries.as_ref().map_or(1, |number| number.value),
            on: policy.retry_on.split(',').filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect(),
        }),
        requests_per_second: per_second(all.requests, live.covered),
        success_rate: all.success_rate().map(rounded),
        latency_ms: latency(&all.durations),
        backends,
        name,
    }
}

impl Circuit {
    /// Whether anything gets through: an open circuit of the service, or of every endpoint, lets nothing.
    fn state(&self) -> Option<State> {
        let best = self.endpoints.iter().min().copied();
        let worst = self.endpoints.iter().max().copied();
        let of_endpoints = match (best, worst) {
            (Some(State::Open), _) => Some(State::Open),
            (Some(_), Some(State::Closed)) => Some(State::Closed),
            (Some(_), Some(_)) => Some(State::HalfOpen),
            _ => None,
        };
        self.service.max(of_endpoints)
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| rounded(part as f64 / whole as f64))
}

fn per_second(count: u64, covered: Duration) -> f64 {
    (count as f64 / covered.as_secs_f64() * 1e3).round() / 1e3
}

fn rounded(share: f64) -> f64 {
    (share * 1e6).round() / 1e6
}

fn latency(durations: &Histogram) -> Option<Latency> {
    let at = |quantile| durations.quantile(quantile).map(|seconds| (seconds * 1e6).round() / 1e3);
    Some(Latency { p50: at(0.5)?, p99: at(0.99)? })
}

/// A limit that is one: zero is none.
fn limit(duration: Option<&XdsDuration>) -> Option<u64> {
    let duration = duration?;
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos).ok()?;
    Some(millis(Duration::new(seconds, nanos))).filter(|millis| *millis > 0)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
