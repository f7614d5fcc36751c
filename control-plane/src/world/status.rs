//! How objects fare: whether they are attached to anything, whether what they refer to is there, who overrides them.
//!
//! In: the world. Out: one [`ObjectStatus`] per route and policy, made when it is asked for: people ask, requests
//! do not. Conditions and reasons are those of the Gateway API and of GEP-713. Non-goal: whether sidecars have it
//! yet; that is known by the xDS server, and [`ObjectStatus::services`] says which resources to ask about.

use std::collections::BTreeSet;
use std::fmt;

use weft_wire::{ServiceId, ServicePort};

use super::World;
use super::policy::{Conflict, PolicyId, PolicySpec, Target};
use super::route::{Parent, Referrer, RouteId, RouteKind, RouteSpec};
use super::traffic::{Unresolved, concerns, speaks_http};
use super::view::{Port, Service};

/// A route or a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// An AccessPolicy, a CircuitBreaker or a TrafficPolicy.
    Policy(PolicyId),
    /// An HTTPRoute or a GRPCRoute.
    Route(RouteId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(id) => id.fmt(f),
            Self::Route(id) => id.fmt(f),
        }
    }
}

/// How an object fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectStatus {
    /// The object.
    pub subject: Subject,
    /// The version of its spec, where an API server counts it.
    pub generation: Option<i64>,
    /// What it is attached to, as the object says, in its order: `Service shop/orders`.
    pub targets: Vec<String>,
    /// Of each of them, in this order, whether it is attached to it. Empty where the object names none.
    pub attached: Vec<Condition>,
    /// The service ports whose configuration it has a part in, in order.
    pub services: BTreeSet<ServicePort>,
    /// Its conditions: `Accepted` always, `ResolvedRefs` for what refers, `Conflicted` for a policy that is overridden.
    pub conditions: Vec<Condition>,
}

/// One statement about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What is stated.
    pub kind: ConditionKind,
    /// Whether it is so.
    pub holds: bool,
    /// Why, in one CamelCase word.
    pub reason: &'static str,
    /// Why, for people; may be empty.
    pub message: String,
}

/// What a condition states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionKind {
    /// It is attached to what it names.
    Accepted,
    /// Some of it does not count, because an equal object says otherwise.
    Conflicted,
    /// Everything it refers to is there and may be referred to.
    ResolvedRefs,
}

impl ConditionKind {
    /// The `type` of the condition.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Conflicted => "Conflicted",
            Self::ResolvedRefs => "ResolvedRefs",
        }
    }
}

/// Why an object is not attached to one of its targets: reason and message.
pub(super) type Rejection = (&'static str, String);

impl World {
    /// How every route and policy fares, in order.
    #[must_use]
    pub fn statuses(&self) -> Vec<ObjectStatus> {
        let policies = self.tables.policies().map(|policy| self.policy_status(policy));
        let routes = self.tables.routes().map(|route| self.route_status(route));
        let access = self.access.policies().map(|policy| self.access_status(policy));
        let mut all: Vec<_> = policies.chain(routes).chain(access).collect();
        all.sort_by(|a, b| a.subject.cmp(&b.subject));
        all
    }

    fn route_status(&self, route: &RouteSpec) -> ObjectStatus {
        let mut services = BTreeSet::new();
        let outcomes = route.parents.iter().map(|parent| {
            let ports = self.parent_ports(route, parent);
            ports.map(|ports| services.extend(ports)).map_err(|rejection| (parent.to_string(), rejection))
        });
        let outcomes: Vec<_> = outcomes.collect();
        let note = if route.names_hosts { "hostnames have no meaning behind a Service" } else { "" };
        let attached = attached(&outcomes, note);
        let conditions = vec![accepted(outcomes, note), self.resolved_refs(route)];
        let targets = route.parents.iter().map(ToString::to_string).collect();
        ObjectStatus {
            subject: Subject::Route(route.id.clone()),
            generation: route.generation,
            targets,
            attached,
            services,
            conditions,
        }
    }

    /// The ports of a parent that a route is attached to.
    fn parent_ports(&self, route: &RouteSpec, parent: &Parent) -> Result<Vec<ServicePort>, Rejection> {
        let id = &parent.service;
        let absent = |what: &str| ("NoMatchingParent", format!("there is no {what}"));
        let service = self.services.get(id).ok_or_else(|| absent(&format!("Service {id}")))?;
        let ports: Vec<&Port> = service.ports.iter().filter(|port| concerns(parent, id, port)).collect();
        if ports.is_empty() {
            return Err(absent(&format!("such port of Service {id}")));
        }
        let http: Vec<&Port> = ports.into_iter().filter(|port| speaks_http(port)).collect();
        if http.is_empty() {
            return Err((
                "UnsupportedProtocol",
                "the port is declared to speak something else than HTTP".into(),
            ));
        }
        let shadowed = route.id.kind == RouteKind::Http;
        let free: Vec<&Port> =
            http.into_iter().filter(|port| !(shadowed && self.has_grpc(route, service, port))).collect();
        if free.is_empty() {
            return Err((
                "Conflicted",
                "a GRPCRoute is attached to the same port, and kinds do not mix".into(),
            ));
        }
        Ok(ports_of(id, free.into_iter()))
    }

    /// Whether GRPCRoutes of the same namespace take a port, so that HTTPRoutes do not count.
    fn has_grpc(&self, route: &RouteSpec, service: &Service, port: &Port) -> bool {
        let mut routes = self.tables.attached_to(&service.id);
        routes.any(|other| {
            other.id.kind == RouteKind::Grpc
                && other.id.name.namespace == route.id.name.namespace
                && other.parents.iter().any(|parent| concerns(parent, &service.id, port))
        })
    }

    fn resolved_refs(&self, route: &RouteSpec) -> Condition {
        let who = Referrer::Route(route.id.kind);
        let references = route.rules.iter().flat_map(|rule| {
            let mirrors = rule.filters.mirrors.iter().map(|mirror| &mirror.to);
            rule.backends.iter().map(|backend| &backend.to).chain(mirrors)
        });
        let problems =
            references.filter_map(|to| self.resolve(to, who, &route.id.name.namespace).err()).collect();
        resolved(problems)
    }

    fn policy_status(&self, policy: &PolicySpec) -> ObjectStatus {
        let mut services = BTreeSet::new();
        let outcomes = policy.targets.iter().map(|target| {
            let ports = self.target_ports(target);
            ports.map(|ports| services.extend(ports)).map_err(|rejection| (target.to_string(), rejection))
        });
        let outcomes: Vec<_> = outcomes.collect();
        let note = self.unlimited(policy).unwrap_or_default();
        let attached = attached(&outcomes, note);
        let mut conditions = vec![accepted(outcomes, note)];
        if let Some(mirror) = &policy.settings.mirror {
            let problem = self.resolve(&mirror.to, Referrer::Policy, &policy.id.name.namespace).err();
            conditions.push(resolved(problem.into_iter().collect()));
        }
        conditions.extend(self.conflicted(policy, &services));
        let targets = policy.targets.iter().map(ToString::to_string).collect();
        ObjectStatus {
            subject: Subject::Policy(policy.id.clone()),
            generation: policy.generation,
            targets,
            attached,
            services,
            conditions,
        }
    }

    /// What to say of a limit of rate that nobody can keep.
    fn unlimited(&self, policy: &PolicySpec) -> Option<&'static str> {
        policy.settings.rate_limit.as_ref()?;
        let mut routes = policy.targets.iter().filter_map(|target| match target {
            Target::Route(id, _) => self.tables.route(id),
            Target::Service(..) => None,
        });
        let elsewhere = |route: &RouteSpec| {
            let mut parents = route.parents.iter();
            parents.any(|parent| parent.service.namespace() != &*route.id.name.namespace)
        };
        routes.any(elsewhere).then_some(
            "rateLimit does not count for a route on another namespace's Service: \
             its sidecars cannot tell these callers from others",
        )
    }

    pub(super) fn target_ports(&self, target: &Target) -> Result<Vec<ServicePort>, Rejection> {
        let absent = |what: String| ("TargetNotFound", format!("there is no {what}"));
        match target {
            Target::Service(id, section) => {
                let service = self.services.get(id).ok_or_else(|| absent(format!("Service {id}")))?;
                let named = |port: &&Port| section.as_deref().is_none_or(|name| *name == *port.name);
                let ports = ports_of(id, service.ports.iter().filter(named));
                if ports.is_empty() { Err(absent(format!("such port of Service {id}"))) } else { Ok(ports) }
            }
            Target::Route(id, section) => {
                let route = self.tables.route(id).ok_or_else(|| absent(id.to_string()))?;
                let named = section.as_ref();
                if named.is_some() && route.rules.iter().all(|rule| rule.name.as_ref() != named) {
                    return Err(absent(format!("such rule of {id}")));
                }
                let ports = route.parents.iter().filter_map(|parent| self.parent_ports(route, parent).ok());
                Ok(ports.flatten().collect())
            }
        }
    }

    fn conflicted(&self, policy: &PolicySpec, services: &BTreeSet<ServicePort>) -> Option<Condition> {
        let ids: BTreeSet<&ServiceId> = services.iter().map(|port| &port.service).collect();
        let conflicts = ids.into_iter().filter_map(|id| self.traffic.get(id)).flat_map(|t| &t.conflicts);
        let lost: BTreeSet<String> = conflicts
            .filter(|conflict| conflict.loser == policy.id)
            .map(|Conflict { field, by, winner, .. }| match by == field {
                true => format!("{field} is set by {winner}"),
                false => format!("{field} does not count beside {by} of {winner}"),
            })
            .collect();
        (!lost.is_empty()).then(|| Condition {
            kind: ConditionKind::Conflicted,
            holds: true,
            reason: "Conflicted",
            message: lost.into_iter().collect::<Vec<_>>().join("; "),
        })
    }
}

fn ports_of<'a>(id: &ServiceId, ports: impl Iterator<Item = &'a Port>) -> Vec<ServicePort> {
    ports.map(|port| ServicePort { service: id.clone(), port: port.number }).collect()
}

/// Whether an object is attached to one target: if not, which it is and why not.
pub(super) type Outcome = Result<(), (String, Rejection)>;

/// Each outcome by itself.
pub(super) fn attached(outcomes: &[Outcome], note: &str) -> Vec<Condition> {
    let one = |outcome: &Outcome| {
        let outcome = outcome.clone().map_err(|(_, rejection)| (String::new(), rejection));
        let mut condition = accepted(vec![outcome], note);
        // Which target it is says the place where it stands.
        condition.message = condition.message.trim_start_matches(": ").to_owned();
        condition
    };
    outcomes.iter().map(one).collect()
}

pub(super) fn accepted(outcomes: Vec<Outcome>, note: &str) -> Condition {
    let mut reason = "Accepted";
    let mut messages = Vec::new();
    for (target, (why, message)) in outcomes.into_iter().filter_map(Result::err) {
        if messages.is_empty() {
            reason = why;
        }
        messages.push(format!("{target}: {message}"));
    }
    let holds = messages.is_empty();
    messages.extend((!note.is_empty()).then(|| note.to_owned()));
    Condition { kind: ConditionKind::Accepted, holds, reason, message: messages.join("; ") }
}

fn resolved(problems: Vec<Unresolved>) -> Condition {
    Condition {
        kind: ConditionKind::ResolvedRefs,
        holds: problems.is_empty(),
        reason: problems.first().map_or("ResolvedRefs", Unresolved::reason),
        message: problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}
