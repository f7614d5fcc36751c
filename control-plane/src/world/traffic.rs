//! What routes and policies mean for a service: the tables that its callers go by, and the settings in force.
//!
//! In: the services, and the routes, policies and grants that name them. Out: one [`Traffic`] per service that
//! anything is attached to. It is derived and compared like everything the world answers, so a route that is
//! written again without a change touches nothing.
//!
//! Invariants: matches are in the order in which they must be tried, so a table is read from the top; a backend is
//! either resolved or says why not; equal objects give equal traffic whatever the order of events.
//! Surprise: a route in another namespace than its service (a *consumer route* of GAMMA) is for callers of its own
//! namespace only, and where there is one, they do not see the producer's routes at all.

mod order;
mod resolve;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_wire::xds::Protocol;
use weft_wire::{ServiceId, ServicePort};

use super::World;
use super::policy::{
    Conflict, Effective, HashOn, Layer, Level, PolicyId, PolicySpec, RetryOn, Target, merge,
};
use super::route::{Parent, RouteId, RouteKind, RouteSpec, Rule, RuleName};
use super::view::{Port, Service};

pub use resolve::Unresolved;

/// Everything that routes and policies say about one service.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Traffic {
    /// One per port of the service, in the same order.
    pub ports: Vec<PortTraffic>,
    /// Fields that do not count because an equal policy sets them too.
    pub(super) conflicts: BTreeSet<Conflict>,
}

impl Traffic {
    /// The port callers know by this number.
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&PortTraffic> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Every service port that a rule leads to, with repetitions.
    pub(super) fn backends(&self) -> impl Iterator<Item = &ServicePort> {
        let tables =
            self.ports.iter().flat_map(|port| [&port.table].into_iter().chain(port.consumers.values()));
        let backends = tables.flat_map(|table| &table.rules).flat_map(|rule| &rule.backends);
        backends.filter_map(|backend| backend.to.as_ref().ok())
    }
}

/// What routes and policies say about one port.
#[derive(Debug, Clone, PartialEq)]
pub struct PortTraffic {
    /// The port callers use.
    pub number: u16,
    /// The policies on the service and on this port.
    pub policy: Effective,
    /// Who gets copies, by those policies, as far as it could be resolved.
    pub mirror: Option<ResolvedMirror>,
    /// What callers go by.
    pub table: Table,
    /// What callers of these namespaces go by instead.
    pub consumers: BTreeMap<Box<str>, Table>,
}

impl PortTraffic {
    /// What a caller in `namespace` goes by.
    #[must_use]
    pub fn table_for(&self, namespace: &str) -> &Table {
        self.consumers.get(namespace).unwrap_or(&self.table)
    }
}

/// The rules that requests are matched with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// Whether any route is attached: if so, what matches none of its rules is answered with 404.
    pub attached: bool,
    /// The rules, by the best of their matches.
    pub rules: Vec<EffectiveRule>,
    /// Every match of every rule (positions in `rules` and in the rule's `matches`), in the order of precedence.
    pub order: Vec<(usize, usize)>,
}

/// A rule of a route with everything that concerns it.
#[derive(Debug, Clone, PartialEq)]
pub struct EffectiveRule {
    /// What xDS and telemetry call it.
    pub name: RuleName,
    /// The rule itself.
    pub rule: Arc<Rule>,
    /// Where its requests go: one per backend of the rule, in the same order.
    pub backends: Vec<ResolvedBackend>,
    /// Who gets copies, as far as it could be resolved.
    pub mirrors: Vec<ResolvedMirror>,
    /// The settings in force: of the policies on rule, route, port and service, and the rule's own.
    pub policy: Effective,
}

/// A backend that was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedBackend {
    /// The service's port, or why there is none: such a share is answered with 500.
    pub to: Result<ServicePort, Unresolved>,
    /// Its share, relative to the sum of all.
    pub weight: u32,
    /// What of a request the backend's own policy chooses endpoints by.
    pub hash_on: Option<HashOn>,
}

/// A mirror that was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedMirror {
    /// Who gets the copies.
    pub to: ServicePort,
    /// How many of `denominator` requests.
    pub numerator: u32,
    /// Never zero.
    pub denominator: u32,
}

/// Whether a route's parent means this port.
pub(super) fn concerns(parent: &Parent, service: &ServiceId, port: &Port) -> bool {
    parent.service == *service
        && parent.port.is_none_or(|number| number == port.number)
        && parent.section.as_deref().is_none_or(|section| *section == *port.name)
}

/// Whether requests on the port can be matched at all.
pub(super) fn speaks_http(port: &Port) -> bool {
    !matches!(port.protocol, Some(Protocol::Tcp | Protocol::Tls))
}

impl World {
    /// What routes and policies say about a service; `None` where none says anything.
    #[must_use]
    pub fn traffic(&self, service: &ServiceId) -> Option<&Traffic> {
        self.traffic.get(service)
    }

    /// What routes and policies say about a service's port.
    #[must_use]
    pub fn port_traffic(&self, port: &ServicePort) -> Option<&PortTraffic> {
        self.traffic(&port.service)?.port(port.port)
    }

    /// The services whose routes refer to this one.
    pub fn parents_of(&self, service: &ServiceId) -> impl Iterator<Item = &ServiceId> {
        let routes = self.tables.referring_to(service);
        routes.flat_map(|route| route.parents.iter().map(|parent| &parent.service))
    }

    pub(super) fn compose_traffic(&self, id: &ServiceId) -> Option<Traffic> {
        let service = self.services.get(id)?;
        let anything =
            self.tables.attached_to(id).next().is_some() || self.tables.on_service(id).next().is_some();
        if !anything {
            return None;
        }
        let mut conflicts = BTreeSet::new();
        let ports = service.ports.iter().map(|port| self.port_of(service, port, &mut conflicts)).collect();
        Some(Traffic { ports, conflicts })
    }

    fn port_of(&self, service: &Service, port: &Port, conflicts: &mut BTreeSet<Conflict>) -> PortTraffic {
        let policy = self.service_policy(&service.id, &port.name, conflicts);
        let mut by_namespace: BTreeMap<&str, Vec<&RouteSpec>> = BTreeMap::new();
        if speaks_http(port) {
            for route in self.tables.attached_to(&service.id) {
                if route.parents.iter().any(|parent| concerns(parent, &service.id, port)) {
                    by_namespace.entry(&route.id.name.namespace).or_default().push(route);
                }
            }
        }
        let mut tables: BTreeMap<Box<str>, Table> = by_namespace
            .into_iter()
            .map(|(namespace, routes)| (namespace.into(), self.table(routes, &policy, conflicts)))
            .collect();
        let table = tables.remove(service.id.namespace()).unwrap_or_default();
        let mirror = self.policy_mirror(&policy);
        PortTraffic { number: port.number, policy, mirror, table, consumers: tables }
    }

    /// The policies on a service and its port, laid over each other.
    fn service_policy(
        &self,
        service: &ServiceId,
        port_name: &str,
        conflicts: &mut BTreeSet<Conflict>,
    ) -> Effective {
        let layers = self.tables.on_service(service).flat_map(|policy| {
            policy.targets.iter().filter_map(move |target| match target {
                Target::Service(other, None) if other == service => {
                    Some(Layer { level: Level::Service, policy })
                }
                Target::Service(other, Some(name)) if other == service && **name == *port_name => {
                    Some(Layer { level: Level::Port, policy })
                }
                Target::Service(..) | Target::Route(..) => None,
            })
        });
        laid(&Effective::default(), layers.collect(), conflicts)
    }

    fn table(
        &self,
        mut routes: Vec<&RouteSpec>,
        policy: &Effective,
        conflicts: &mut BTreeSet<Conflict>,
    ) -> Table {
        only_one_kind(&mut routes);
        routes.sort_by_key(|route| order::seniority(route));
        let mut rules = Vec::new();
        for route in routes {
            let layers = self.route_layers(&route.id);
            let over =
                |level| layers.iter().copied().filter(|layer: &Layer<'_>| layer.level == level).collect();
            let below = laid(policy, over(Level::Route), conflicts);
            for (index, rule) in route.rules.iter().enumerate() {
                let own = inline(below.clone(), rule);
                let named =
                    layers.iter().filter(|layer| names(layer.policy, &route.id, rule)).copied().collect();
                let policy = laid(&own, named, conflicts);
                let name = RuleName { route: route.id.clone(), index };
                let backends = self.backends(route, rule);
                let mirrors = self.mirrors(route, rule, &policy);
                rules.push(EffectiveRule { name, rule: Arc::clone(rule), backends, mirrors, policy });
            }
        }
        order::table(rules)
    }

    fn route_layers(&self, id: &RouteId) -> Vec<Layer<'_>> {
        let layers = self.tables.on_route(id).flat_map(|policy| {
            let targets = policy.targets.iter().filter_map(|target| match target {
                Target::Route(other, None) if other == id => Some(Level::Route),
                Target::Route(other, Some(_)) if other == id => Some(Level::Rule),
                Target::Service(..) | Target::Route(..) => None,
            });
            targets.map(move |level| Layer { level, policy })
        });
        layers.collect()
    }
}

fn laid(base: &Effective, layers: Vec<Layer<'_>>, conflicts: &mut BTreeSet<Conflict>) -> Effective {
    let (effective, found) = merge(base, layers);
    conflicts.extend(found);
    effective
}

/// Whether a policy targets this rule by its name.
fn names(policy: &PolicySpec, route: &RouteId, rule: &Rule) -> bool {
    policy.targets.iter().any(|target| match target {
        Target::Route(other, Some(section)) => other == route && rule.name.as_ref() == Some(section),
        Target::Route(_, None) | Target::Service(..) => false,
    })
}

/// Where both kinds of route are attached only GRPCRoutes count: the API forbids to merge them, and the more
/// specific kind is the one that was meant.
fn only_one_kind(routes: &mut Vec<&RouteSpec>) {
    if routes.iter().any(|route| route.id.kind == RouteKind::Grpc) {
        routes.retain(|route| route.id.kind == RouteKind::Grpc);
    }
}

/// What a rule says itself, over the policies on its route and service.
fn inline(mut below: Effective, rule: &Rule) -> Effective {
    let Effective { settings, origins } = &mut below;
    if let Some(timeout) = rule.request_timeout {
        settings.timeouts.request = Some(timeout);
        origins.remove("timeouts.request");
    }
    if let Some(timeout) = rule.backend_timeout {
        settings.timeouts.backend_request = Some(timeout);
        origins.remove("timeouts.backendRequest");
        // The other word for the same limit, which would win, is a less specific object's here.
        settings.retry.per_try_timeout = None;
        origins.remove("retry.perTryTimeout");
    }
    if let Some(retry) = &rule.retry {
        // Broken connections are always a reason where retries are asked for; the API leaves no word for them.
        let on = BTreeSet::from([RetryOn::ConnectFailure, RetryOn::Reset, RetryOn::RetriableStatusCodes]);
        settings.retry.on = Some(on);
        settings.retry.statuses = Some(retry.statuses.iter().copied().collect());
        origins.remove("retry.retryOn");
        origins.remove("retry.statusCodes");
        if let Some(attempts) = retry.attempts {
            settings.retry.attempts = Some(attempts);
            origins.remove("retry.attempts");
        }
        if let Some(backoff) = retry.backoff {
            settings.retry.backoff = Some(backoff);
            origins.remove("retry.backoff");
        }
    }
    below
}

impl Table {
    /// The policies on its rules and routes, in order.
    #[must_use]
    pub fn policies(&self) -> BTreeSet<&PolicyId> {
        self.rules.iter().flat_map(|rule| rule.policy.origins.values()).collect()
    }
}

#[cfg(test)]
mod tests;
