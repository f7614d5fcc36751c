//! Gateway API routes, as the mesh uses them: attached to Services (GAMMA).
//!
//! In: HTTPRoute, GRPCRoute and ReferenceGrant objects, already read strictly. Out: routes and grants in the
//! world's own terms, or the first thing that cannot mean anything, with its field.
//!
//! Invariants: what is accepted is obeyed. A filter, a match or a setting that the mesh does not have is refused by
//! name; none is dropped. Only two things are passed over, because they are not ours: parents that are not Services
//! (their own controllers act on them), and `hostnames`, which GAMMA gives no meaning behind a Service.
//! Surprise: whether a backend exists is not asked here. It may come later; see `world::traffic`.

mod filter;
mod matches;
mod shape;

use std::sync::Arc;
use std::time::Duration;

use gateway_api::apis::experimental::grpcroutes::GrpcRoute;
use gateway_api::apis::experimental::httproutes::HttpRoute;
use gateway_api::apis::experimental::referencegrants::ReferenceGrant;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_wire::{ServiceId, ServicePort};

use super::core::{created, object_name};
use super::{Object, Refusal, Segment};
use crate::world::{
    Backend, BackendRef, GrantSpec, HeaderEdit, Match, ObjectName, Parent, PathMatch, Referrer, RouteId,
    RouteKind, RouteSpec, Rule, RuleRetry,
};
use filter::Place;
pub(super) use filter::header_name;
pub(super) use matches::{call, headers, path_match};
pub(super) use shape::{MethodMatch as CallShape, PathMatch as PathShape, ValueMatch as ValueShape};
use shape::{Reference, Spec};

/// The API group of routes.
pub(super) const GROUP: &str = "gateway.networking.k8s.io";

/// The limits that the API's own schema sets; an API server would refuse more.
const PARENTS_MAX: usize = 32;
/// See [`PARENTS_MAX`].
const RULES_MAX: usize = 16;
/// See [`PARENTS_MAX`].
const MATCHES_MAX: usize = 64;
/// See [`PARENTS_MAX`]. Also of header and query matches, and of headers in a filter.
const ITEMS_MAX: usize = 16;
/// See [`PARENTS_MAX`].
const WEIGHT_MAX: i32 = 1_000_000;

pub(super) fn http_route(route: HttpRoute) -> Result<Option<Object>, Refusal> {
    let spec: Spec<shape::HttpMatch> = shape::carry(&route.spec)?;
    convert(RouteKind::Http, &route.metadata, spec, matches::http)
}

pub(super) fn grpc_route(route: GrpcRoute) -> Result<Option<Object>, Refusal> {
    let spec: Spec<shape::GrpcMatch> = shape::carry(&route.spec)?;
    convert(RouteKind::Grpc, &route.metadata, spec, matches::grpc)
}

type Convert<M> = fn(M, &[Segment]) -> Result<Match, Refusal>;

fn convert<M: Default>(
    kind: RouteKind,
    metadata: &ObjectMeta,
    spec: Spec<M>,
    matching: Convert<M>,
) -> Result<Option<Object>, Refusal> {
    let name = object_name(metadata)?;
    let at = path!["spec", "parentRefs"];
    bounded(&spec.parent_refs, PARENTS_MAX, &at)?;
    let mut parents = Vec::new();
    for (index, reference) in spec.parent_refs.iter().enumerate() {
        parents.extend(parent(reference, &name, &path![@at; index])?);
    }
    if parents.is_empty() {
        return Ok(None);
    }
    let at = path!["spec", "rules"];
    // An API server fills in the one rule that an HTTPRoute without any has; in a file nobody does.
    let implied = || if kind == RouteKind::Http { vec![shape::Rule::default()] } else { Vec::new() };
    let shapes = spec.rules.unwrap_or_else(implied);
    bounded(&shapes, RULES_MAX, &at)?;
    let mut rules: Vec<Arc<Rule>> = Vec::with_capacity(shapes.len());
    for (index, shape) in shapes.into_iter().enumerate() {
        let at = path![@at; index];
        let rule = rule(kind, shape, &name, &at, matching)?;
        if rule.name.is_some() && rules.iter().any(|other| other.name == rule.name) {
            return Err((path![@at; "name"], "is there twice".into()));
        }
        rules.push(Arc::new(rule));
    }
    Ok(Some(Object::Route(RouteSpec {
        id: RouteId { kind, name },
        created: created(metadata),
        generation: metadata.generation,
        parents,
        names_hosts: !spec.hostnames.is_empty(),
        rules,
    })))
}

fn parent(reference: &Reference, route: &ObjectName, at: &[Segment]) -> Result<Option<Parent>, Refusal> {
    let group = reference.group.as_deref().unwrap_or(GROUP);
    let kind = reference.kind.as_deref().unwrap_or("Gateway");
    if (group, kind) != ("", "Service") {
        return Ok(None);
    }
    let namespace = reference.namespace.as_deref().unwrap_or(&route.namespace);
    let service = ServiceId::new(namespace, &reference.name)
        .map_err(|error| (path![@at; "name"], error.to_string()))?;
    let port = reference.port.map(|number| port(number, path![@at; "port"])).transpose()?;
    let section = reference.section_name.as_deref().map(Into::into);
    Ok(Some(Parent { service, port, section }))
}

fn rule<M: Default>(
    kind: RouteKind,
    shape: shape::Rule<M>,
    route: &ObjectName,
    at: &[Segment],
    matching: Convert<M>,
) -> Result<Rule, Refusal> {
    if shape.session_persistence.is_some() {
        let reason = "is not supported: set loadBalancer.hashOn in a TrafficPolicy";
        return Err((path![@at; "sessionPersistence"], reason.into()));
    }
    bounded(&shape.matches, MATCHES_MAX, &path![@at; "matches"])?;
    let mut matches = Vec::with_capacity(shape.matches.len().max(1));
    for (index, one) in shape.matches.into_iter().enumerate() {
        matches.push(matching(one, &path![@at; "matches", index])?);
    }
    if matches.is_empty() {
        matches.push(matching(M::default(), &path![@at; "matches"])?);
    }
    let prefixes = matches.iter().all(|one| matches!(one.path, PathMatch::Prefix(_)));
    let place = Place::Rule { namespace: &route.namespace, http: kind == RouteKind::Http, prefixes };
    let filters = filter::read(shape.filters, &path![@at; "filters"], &place)?;
    if filters.redirect.is_some() && !shape.backend_refs.is_empty() {
        let reason = "must be empty beside a RequestRedirect filter";
        return Err((path![@at; "backendRefs"], reason.into()));
    }
    bounded(&shape.backend_refs, ITEMS_MAX, &path![@at; "backendRefs"])?;
    let mut backends = Vec::with_capacity(shape.backend_refs.len());
    for (index, one) in shape.backend_refs.into_iter().enumerate() {
        backends.push(backend(one, route, &path![@at; "backendRefs", index])?);
    }
    let (request_timeout, backend_timeout) = timeouts(&shape.timeouts, &path![@at; "timeouts"])?;
    let retry = shape.retry.map(|one| retry(&one, &path![@at; "retry"])).transpose()?;
    let name = shape.name.map(Into::into);
    Ok(Rule { name, matches, filters, backends, request_timeout, backend_timeout, retry })
}

fn backend(shape: shape::BackendRef, route: &ObjectName, at: &[Segment]) -> Result<Backend, Refusal> {
    let to = reference(&shape.to, &route.namespace, at)?;
    let weight = shape.weight.unwrap_or(1);
    if weight > WEIGHT_MAX {
        return Err((path![@at; "weight"], format!("{weight} is more than {WEIGHT_MAX}")));
    }
    let weight =
        u32::try_from(weight).map_err(|_| (path![@at; "weight"], format!("{weight} is negative")))?;
    let filters = filter::read(shape.filters, &path![@at; "filters"], &Place::Backend)?;
    Ok(Backend { to, weight, filters })
}

/// What a backend or a mirror refers to. Another kind than Service is kept as something that never resolves:
/// by the API such a share of the requests is answered with 500, and the rest of the route works.
fn reference(shape: &Reference, namespace: &str, at: &[Segment]) -> Result<BackendRef, Refusal> {
    let group = shape.group.as_deref().unwrap_or_default();
    let kind = shape.kind.as_deref().unwrap_or("Service");
    let namespace = shape.namespace.as_deref().unwrap_or(namespace);
    if (group, kind) != ("", "Service") {
        let what = format!("{group}/{kind} {namespace}/{}", shape.name).into();
        return Ok(BackendRef::Unsupported { what });
    }
    let service =
        ServiceId::new(namespace, &shape.name).map_err(|error| (path![@at; "name"], error.to_string()))?;
    let number =
        shape.port.ok_or_else(|| (path![@at; "port"], "is missing: which port of the Service?".into()))?;
    let port = port(number, path![@at; "port"])?;
    Ok(BackendRef::Service(ServicePort { service, port }))
}

/// Longest times for the whole exchange and for one try.
type Timeouts = (Option<Duration>, Option<Duration>);

fn timeouts(shape: &shape::Timeouts, at: &[Segment]) -> Result<Timeouts, Refusal> {
    let read = |text: &Option<String>, field: &str| {
        text.as_deref().map(|text| duration(text, path![@at; field])).transpose()
    };
    let request = read(&shape.request, "request")?;
    let backend = read(&shape.backend_request, "backendRequest")?;
    match (request, backend) {
        (Some(whole), Some(one)) if !whole.is_zero() && one > whole => {
            Err((path![@at; "backendRequest"], "is longer than request, which it is part of".into()))
        }
        limits => Ok(limits),
    }
}

fn retry(shape: &shape::Retry, at: &[Segment]) -> Result<RuleRetry, Refusal> {
    let attempts = match shape.attempts {
        None => None,
        Some(number) => {
            Some(u32::try_from(number).ok().filter(|number| *number <= ATTEMPTS_MAX).ok_or_else(|| {
                (path![@at; "attempts"], format!("{number} is not between 0 and {ATTEMPTS_MAX}"))
            })?)
        }
    };
    let mut statuses = Vec::with_capacity(shape.codes.len());
    for (index, code) in shape.codes.iter().enumerate() {
        let status = u16::try_from(*code).ok().filter(|status| (400..600).contains(status));
        let reason = || format!("{code} is not an error status (400 to 599)");
        statuses.push(status.ok_or_else(|| (path![@at; "codes", index], reason()))?);
    }
    let backoff = shape.backoff.as_deref().map(|text| duration(text, path![@at; "backoff"])).transpose()?;
    Ok(RuleRetry { attempts, backoff, statuses })
}

/// Retries of one request. Each multiplies the load of a service that already fails; whoever needs more than this
/// needs a queue.
pub(super) const ATTEMPTS_MAX: u32 = 10;

pub(super) fn reference_grant(grant: ReferenceGrant) -> Result<Option<Object>, Refusal> {
    let name = object_name(&grant.metadata)?;
    let from = grant.spec.from.into_iter().filter_map(|from| {
        let kind = match (from.group.as_str(), from.kind.as_str()) {
            (GROUP, "HTTPRoute") => Referrer::Route(RouteKind::Http),
            (GROUP, "GRPCRoute") => Referrer::Route(RouteKind::Grpc),
            (super::policy::GROUP, "TrafficPolicy") => Referrer::Policy,
            // Other kinds' references are not the mesh's to check.
            _ => return None,
        };
        Some((kind, from.namespace.into()))
    });
    let to = grant.spec.to.into_iter().filter(|to| (to.group.as_str(), to.kind.as_str()) == ("", "Service"));
    let to: Vec<_> = to.map(|to| to.name.map(Into::into)).collect();
    let from: Vec<_> = from.collect();
    if from.is_empty() || to.is_empty() {
        return Ok(None);
    }
    Ok(Some(Object::Grant(GrantSpec { name, from, to })))
}

/// Reads a duration as the Gateway API writes them (GEP-2257).
pub(super) fn duration(text: &str, at: Vec<Segment>) -> Result<Duration, Refusal> {
    let read: Result<gateway_api::Duration, _> = text.parse();
    let form = "is not a duration such as 1h30m, 10s or 250ms";
    let millis = read.ok().and_then(|read| u64::try_from(read.as_millis()).ok());
    millis.map(Duration::from_millis).ok_or_else(|| (at, format!("{text:?} {form}")))
}

pub(super) fn port(number: i32, at: Vec<Segment>) -> Result<u16, Refusal> {
    super::core::port_number(number, at)
}

fn bounded<T>(items: &[T], max: usize, at: &[Segment]) -> Result<(), Refusal> {
    if items.len() <= max {
        return Ok(());
    }
    Err((at.to_vec(), format!("has {} entries: at most {max} are allowed", items.len())))
}

#[cfg(test)]
mod tests;
