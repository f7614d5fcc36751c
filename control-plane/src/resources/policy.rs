//! Policies of the group weft.dev: AccessPolicy, CircuitBreaker and TrafficPolicy.
//!
//! In: objects, already read strictly into the types of [`access_policy`], [`circuit_breaker`] and [`traffic_policy`], which are the API:
//! every field optional, numbers and texts as people write them. Out: the world's settings, in which every value is in
//! range, or the first thing that is not, with its field and the range.
//!
//! Invariant: a setting is obeyed or refused. What is meant for a service is refused on a route, and what excludes each
//! other is refused together. Non-goal: defaults; what is absent stays absent, so that policies can be laid over each
//! other.

pub mod access_policy;
mod balancing;
pub mod circuit_breaker;
#[cfg(test)]
pub(crate) mod fixtures;
mod probing;
pub(super) mod schema;
pub mod traffic_policy;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_wire::ServiceId;

use super::core::{created, object_name};
use super::gateway;
use super::{Object, Refusal, Segment};
use crate::world::policy::{PolicyId, PolicyKind, PolicySpec, Settings, Share, Target};
use crate::world::{AccessSpec, ObjectName, RouteId, RouteKind};

/// The API group of policies.
pub(super) const GROUP: &str = "weft.dev";

/// Targets of one policy: the limit of the Gateway API for its own policies.
const TARGETS_MAX: usize = 16;

/// Longest name of a part of an object: the limit of the Gateway API.
const SECTION_MAX: usize = 253;

/// A policy object as it stands in a file.
#[derive(Debug, Clone, Deserialize)]
pub struct Manifest<S> {
    /// Name, namespace, age.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: S,
}

/// What a policy is for: an object in the policy's own namespace (GEP-713).
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(TARGET)))]
pub struct TargetRef {
    /// `""` for a Service, `gateway.networking.k8s.io` for a route.
    #[serde(default)]
    #[schemars(extend("enum" = ["", gateway::GROUP]))]
    pub group: String,
    /// `Service`, `HTTPRoute` or `GRPCRoute`.
    #[schemars(extend("enum" = ["Service", "HTTPRoute", "GRPCRoute"]))]
    pub kind: String,
    /// The object's name.
    #[schemars(with = "schema::Name")]
    pub name: String,
    /// Only a part of it: a Service's port or a route's rule, by its name.
    #[serde(default)]
    #[schemars(with = "Option<schema::Section>")]
    pub section_name: Option<String>,
}

/// What the schema says of a target.
const TARGET: &[schema::Rule] = &[(
    "kind",
    "(self.kind == 'Service') == (!has(self.group) || self.group == '')",
    "is of another group: \"\" has Services, gateway.networking.k8s.io has HTTPRoutes and GRPCRoutes",
)];

/// What the schema says of a policy's targets.
const TARGETS: &[schema::Rule] = &[(
    "",
    "self.all(a, self.exists_one(b, a.kind == b.kind && a.name == b.name && \
     (has(a.sectionName) ? a.sectionName : '') == (has(b.sectionName) ? b.sectionName : '')))",
    "has an entry twice",
)];

/// What to write instead of a field that one might expect and that there cannot be.
pub(super) fn instead_of(path: &[Segment]) -> Option<&'static str> {
    access_policy::instead_of(path).or_else(|| traffic_policy::instead_of(path))
}

pub(super) fn access_policy(
    manifest: Manifest<access_policy::AccessPolicySpec>,
) -> Result<Option<Object>, Refusal> {
    let name = object_name(&manifest.metadata)?;
    let Manifest { metadata, spec } = manifest;
    // Without a target it is for every workload of its namespace.
    let targets = match spec.target_refs.as_deref() {
        Some(refs) => targets(refs, &name)?,
        None => Vec::new(),
    };
    if let Some(at) = targets.iter().position(|target| matches!(target, Target::Route(..))) {
        let reason = "access is decided where a Service's workloads are: name a Service, and paths in rules";
        return Err((path!["spec", "targetRefs", at, "kind"], reason.into()));
    }
    let (access, mtls) = access_policy::read(spec, &name.namespace, &[Segment::from("spec")])?;
    let id = PolicyId { kind: PolicyKind::AccessPolicy, name };
    let (created, generation) = (created(&metadata), metadata.generation);
    Ok(Some(Object::Access(Box::new(AccessSpec { id, created, generation, targets, access, mtls }))))
}

pub(super) fn circuit_breaker(
    manifest: Manifest<circuit_breaker::CircuitBreakerSpec>,
) -> Result<Option<Object>, Refusal> {
    let name = object_name(&manifest.metadata)?;
    let targets = targets(&manifest.spec.target_refs, &name)?;
    if let Some(at) = targets.iter().position(|target| matches!(target, Target::Route(..))) {
        let reason = "a circuit belongs to a Service: a route has no endpoints";
        return Err((path!["spec", "targetRefs", at, "kind"], reason.into()));
    }
    let settings = circuit_breaker::settings(&manifest.spec, &[Segment::from("spec")])?;
    Ok(Some(policy(PolicyKind::CircuitBreaker, &manifest.metadata, name, targets, settings)))
}

pub(super) fn traffic_policy(
    manifest: Manifest<traffic_policy::TrafficPolicySpec>,
) -> Result<Option<Object>, Refusal> {
    let name = object_name(&manifest.metadata)?;
    let targets = targets(&manifest.spec.target_refs, &name)?;
    let on_route = targets.iter().any(|target| matches!(target, Target::Route(..)));
    let settings =
        traffic_policy::settings(&manifest.spec, &name.namespace, on_route, &[Segment::from("spec")])?;
    Ok(Some(policy(PolicyKind::TrafficPolicy, &manifest.metadata, name, targets, settings)))
}

fn policy(
    kind: PolicyKind,
    metadata: &ObjectMeta,
    name: ObjectName,
    targets: Vec<Target>,
    settings: Settings,
) -> Object {
    let (created, generation) = (created(metadata), metadata.generation);
    Object::Policy(Box::new(PolicySpec {
        id: PolicyId { kind, name },
        created,
        generation,
        targets,
        settings,
    }))
}

fn targets(refs: &[TargetRef], policy: &ObjectName) -> Result<Vec<Target>, Refusal> {
    let at = path!["spec", "targetRefs"];
    if refs.is_empty() {
        return Err((at, "is empty: what is the policy for?".into()));
    }
    if refs.len() > TARGETS_MAX {
        return Err((at, format!("has {} entries: at most {TARGETS_MAX} are allowed", refs.len())));
    }
    let mut targets = Vec::with_capacity(refs.len());
    for (index, reference) in refs.iter().enumerate() {
        let at = path![@at; index];
        let section: Option<Box<str>> = reference.section_name.as_deref().map(Into::into);
        if section.as_ref().is_some_and(|section| section.len() > SECTION_MAX) {
            return Err((path![@at; "sectionName"], format!("is longer than {SECTION_MAX} bytes")));
        }
        // A route's name is of the same kind as a Service's.
        let id = ServiceId::new(&policy.namespace, &reference.name)
            .map_err(|error| (path![@at; "name"], error.to_string()))?;
        let route = |kind| {
            let name = ObjectName { namespace: policy.namespace.clone(), name: id.name().into() };
            Target::Route(RouteId { kind, name }, None)
        };
        let target = match (reference.group.as_str(), reference.kind.as_str()) {
            ("", "Service") => Target::Service(id, section),
            (gateway::GROUP, "HTTPRoute") => sectioned(route(RouteKind::Http), section),
            (gateway::GROUP, "GRPCRoute") => sectioned(route(RouteKind::Grpc), section),
            (group, kind) => {
                let reason = format!("{group}/{kind} is not a Service, an HTTPRoute or a GRPCRoute");
                return Err((path![@at; "kind"], reason));
            }
        };
        if targets.contains(&target) {
            return Err((at, "is there twice".into()));
        }
        targets.push(target);
    }
    Ok(targets)
}

fn sectioned(target: Target, section: Option<Box<str>>) -> Target {
    match target {
        Target::Route(id, _) => Target::Route(id, section),
        Target::Service(id, _) => Target::Service(id, section),
    }
}

/// A place in an object, from which values are read with their ranges.
#[derive(Clone, Copy)]
struct At<'a>(&'a [Segment]);

impl At<'_> {
    fn field(self, field: &str) -> Vec<Segment> {
        path![@self.0; field]
    }

    /// A duration that may be zero.
    fn time(self, field: &str, text: Option<&String>) -> Result<Option<Duration>, Refusal> {
        text.map(|text| gateway::duration(text, self.field(field))).transpose()
    }

    /// A duration that is not zero.
    fn span(self, field: &str, text: Option<&String>) -> Result<Option<Duration>, Refusal> {
        match self.time(field, text)? {
            Some(Duration::ZERO) => Err((self.field(field), "must be longer than zero".into())),
            span => Ok(span),
        }
    }

    /// A whole number within bounds, both included.
    fn number(self, field: &str, number: Option<i64>, min: u32, max: u32) -> Result<Option<u32>, Refusal> {
        let Some(number) = number else { return Ok(None) };
        let fits = u32::try_from(number).ok().filter(|number| (min..=max).contains(number));
        let reason = || match max {
            u32::MAX => format!("{number} is not {min} or more"),
            max => format!("{number} is not between {min} and {max}"),
        };
        fits.map(Some).ok_or_else(|| (self.field(field), reason()))
    }

    /// A whole percentage, from `min`.
    fn percent(self, field: &str, number: Option<i64>, min: u32) -> Result<Option<u8>, Refusal> {
        let percent = self.number(field, number, min, 100)?;
        Ok(percent.and_then(|percent| u8::try_from(percent).ok()))
    }

    /// A percentage with a fraction.
    fn share(self, field: &str, percent: f64) -> Result<Share, Refusal> {
        /// Millionths in a percent.
        const MILLIONTHS: f64 = 10_000.0;
        if (0.0..=100.0).contains(&percent) {
            // In range, and finer than a millionth nobody can tell.
            return Ok(Share((percent * MILLIONTHS).round() as u32));
        }
        Err((self.field(field), format!("{percent} is not between 0 and 100")))
    }

    /// A positive number with a fraction, in thousandths.
    fn thousandths(self, field: &str, number: f64, max: f64) -> Result<u32, Refusal> {
        if number >= 0.001 && number <= max {
            return Ok((number * 1000.0).round() as u32);
        }
        Err((self.field(field), format!("{number} is not between 0.001 and {max}")))
    }
}

/// Refuses a later time that is shorter than an earlier one.
fn not_shorter(
    at: Vec<Segment>,
    long: Option<Duration>,
    short: Option<Duration>,
    than: &str,
) -> Result<(), Refusal> {
    match (long, short) {
        (Some(long), Some(short)) if long < short => Err((at, format!("is shorter than {than}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
