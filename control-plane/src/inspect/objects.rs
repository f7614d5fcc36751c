//! Every object and how it fares: attached, resolved, overridden, in force.
//!
//! In: the world's own conditions, and who runs what. Out: [`Object`]s as the API shows them.
//! Invariant: objects are in order of kind, namespace and name.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use weft_wire::ServicePort;

use super::programmed::{Programmed, Runs};
use crate::world::policy::RateKey;
use crate::world::{Effective, ObjectStatus, PolicyId, PolicyKind, Service, Subject, World};
use crate::xds::{Kind, ProxyStatus};

/// Objects in one answer: more than a person reads, and half a megabyte. Filters find the others.
pub const OBJECTS_MAX: usize = 2_000;

/// The kinds that are shown.
pub const KINDS: [&str; 6] =
    ["AccessPolicy", "CircuitBreaker", "GRPCRoute", "HTTPRoute", "Service", "TrafficPolicy"];

/// Objects that were asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Objects {
    /// How many there are of what was asked for.
    pub objects_total: usize,
    /// The first [`OBJECTS_MAX`] of them.
    pub objects: Vec<Object>,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Object {
    /// Its kind.
    pub kind: &'static str,
    /// Its API group; empty for Kubernetes' own.
    pub group: &'static str,
    /// Its API version.
    pub version: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The file that it is in; `null` for what sidecars registered.
    pub file: Option<String>,
    /// The version of its spec, where somebody counts it.
    pub generation: Option<i64>,
    /// What it is attached to.
    pub targets: Vec<String>,
    /// What is to say of it.
    pub conditions: Vec<Condition>,
}

/// One statement about an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// What is stated.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

/// Which objects are wanted; `None` is any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Of this kind.
    pub kind: Option<String>,
    /// In this namespace.
    pub namespace: Option<String>,
    /// Of this name.
    pub name: Option<String>,
}

impl Filter {
    fn admits(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let is =
            |wanted: &Option<String>, given: &str| wanted.as_deref().is_none_or(|wanted| wanted == given);
        is(&self.kind, kind) && is(&self.namespace, namespace) && is(&self.name, name)
    }
}

/// An object before it is known who runs it.
struct Draft<'a> {
    kind: &'static str,
    namespace: &'a str,
    name: &'a str,
    of: Of<'a>,
}

enum Of<'a> {
    Service(&'a Service),
    Other(&'a ObjectStatus),
}

/// The objects that `filter` admits. `files` says where each is written.
#[must_use]
pub fn objects(
    world: &World,
    proxies: &[ProxyStatus],
    files: &HashMap<String, Arc<str>>,
    filter: &Filter,
) -> Objects {
    let statuses = world.statuses();
    let services = world.services().map(|service| Draft {
        kind: "Service",
        namespace: service.id.namespace(),
        name: service.id.name(),
        of: Of::Service(service),
    });
    let mut drafts: Vec<Draft<'_>> = services.chain(statuses.iter().map(draft_of)).collect();
    drafts.retain(|draft| filter.admits(draft.kind, draft.namespace, draft.name));
    drafts.sort_by_key(|draft| (draft.kind, draft.namespace, draft.name));
    let objects_total = drafts.len();
    let mut runs = Runs::new(world, proxies);
    let shown = drafts.into_iter().take(OBJECTS_MAX);
    let objects = shown.map(|draft| finish(world, &mut runs, files, &draft)).collect();
    Objects { objects_total, objects }
}

/// How a route or a policy fares, for whoever writes it down where its author looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// The version of its spec that this is said of, where somebody counts it.
    pub generation: Option<i64>,
    /// Of each of its targets, in its order, whether it is attached to it.
    pub attached: Vec<Condition>,
    /// What is to say of the whole object.
    pub conditions: Vec<Condition>,
}

/// How every route and policy fares. Compiles what they have a part in: some milliseconds for each thousand.
#[must_use]
pub fn told(world: &World, proxies: &[ProxyStatus]) -> Vec<Told> {
    let mut runs = Runs::new(world, proxies);
    let told = |status: ObjectStatus| {
        let Draft { kind, namespace, name, .. } = draft_of(&status);
        let mut conditions: Vec<Condition> = status.conditions.iter().map(condition).collect();
        conditions.push(programmed(&runs.programmed(&resources_of(world, &status))));
        Told {
            kind,
            namespace: namespace.into(),
            name: name.into(),
            generation: status.generation,
            attached: status.attached.iter().map(condition).collect(),
            conditions,
        }
    };
    world.statuses().into_iter().map(told).collect()
}

fn draft_of(status: &ObjectStatus) -> Draft<'_> {
    let (kind, name) = match &status.subject {
        Subject::Policy(id) => (id.kind.word(), &id.name),
        Subject::Route(id) => (id.kind.word(), &id.name),
    };
    Draft { kind, namespace: &name.namespace, name: &name.name, of: Of::Other(status) }
}

fn finish(
    world: &World,
    runs: &mut Runs<'_>,
    files: &HashMap<String, Arc<str>>,
    draft: &Draft<'_>,
) -> Object {
    let (group, version) = match draft.kind {
        "Service" => ("", "v1"),
        "HTTPRoute" | "GRPCRoute" => ("gateway.networking.k8s.io", "v1"),
        _ => ("weft.dev", "v1alpha1"),
    };
    let file = files.get(&format!("{} {}/{}", draft.kind, draft.namespace, draft.name));
    let (generation, targets, mut conditions) = match draft.of {
        Of::Service(service) => (None, Vec::new(), vec![accepted_service(service, file.is_some())]),
        Of::Other(status) => {
            (status.generation, status.targets.clone(), status.conditions.iter().map(condition).collect())
        }
    };
    let resources = match draft.of {
        Of::Service(service) => resources_of_service(service),
        Of::Other(status) => resources_of(world, status),
    };
    conditions.push(programmed(&runs.programmed(&resources)));
    Object {
        kind: draft.kind,
        group,
        version,
        namespace: draft.namespace.to_owned(),
        name: draft.name.to_owned(),
        file: file.map(ToString::to_string),
        generation,
        targets,
        conditions,
    }
}

fn accepted_service(service: &Service, written: bool) -> Condition {
    let endpoints: usize = service.ports.iter().map(|port| port.endpoints.len()).sum();
    // In a cluster nothing is written in a file, and only what sidecars register is not declared.
    let by = if written || !service.registered { "declared" } else { "registered by its sidecars" };
    let message = format!("{by}; {} ports, {endpoints} endpoints", service.ports.len());
    Condition { kind: "Accepted", status: "True", reason: "Accepted", message }
}

fn condition(told: &crate::world::Condition) -> Condition {
    Condition {
        kind: told.kind.word(),
        status: if told.holds { "True" } else { "False" },
        reason: told.reason,
        message: told.message.clone(),
    }
}

/// What callers ask for when they call a service.
fn resources_of_service(service: &Service) -> Vec<(Kind, String)> {
    let ports =
        service.ports.iter().map(|port| ServicePort { service: service.id.clone(), port: port.number });
    let kinds = [Kind::Cluster, Kind::Endpoint, Kind::Route];
    ports.flat_map(|port| kinds.map(|kind| (kind, port.to_string()))).collect()
}

/// The resources that a route or a policy has a part in.
fn resources_of(world: &World, status: &ObjectStatus) -> Vec<(Kind, String)> {
    let mut resources = Vec::new();
    if let Subject::Policy(PolicyId { kind: PolicyKind::AccessPolicy, .. }) = &status.subject {
        let own = status.services.iter().flat_map(|port| endpoints_of(world, port));
        return own.map(|address| (Kind::Listener, format!("inbound/{address}"))).collect();
    }
    for port in &status.services {
        resources.push((Kind::Route, port.to_string()));
        let Subject::Policy(policy) = &status.subject else { continue };
        resources.push((Kind::Cluster, port.to_string()));
        for guarded in guarded_by(world, port, policy) {
            // The adaptive limit is in the listener, a limit of rate in the table.
            resources.extend(endpoints_of(world, &guarded).flat_map(|address| {
                [Kind::Listener, Kind::Route].map(|kind| (kind, format!("inbound/{address}")))
            }));
        }
    }
    resources
}

fn endpoints_of<'a>(world: &'a World, port: &ServicePort) -> impl Iterator<Item = SocketAddr> + use<'a> {
    let known = world.service(&port.service).and_then(|service| service.port(port.port));
    known.into_iter().flat_map(|port| port.endpoints.iter().map(|endpoint| endpoint.address))
}

/// The service ports whose own sidecars enforce something that a policy sets for callers of `port`.
fn guarded_by(world: &World, port: &ServicePort, policy: &PolicyId) -> BTreeSet<ServicePort> {
    let Some(traffic) = world.port_traffic(port) else { return BTreeSet::new() };
    let sets = |effective: &Effective, field: &str| effective.origins.get(field) == Some(policy);
    let mut guarded = BTreeSet::new();
    if sets(&traffic.policy, "rateLimit") || sets(&traffic.policy, "concurrency") {
        guarded.insert(port.clone());
    }
    for rule in traffic.table.rules.iter().filter(|rule| sets(&rule.policy, "rateLimit")) {
        let limit = rule.policy.settings.rate_limit.as_ref();
        // A limit that tells routes apart stands wherever they lead.
        if limit.is_some_and(|limit| limit.by.contains(&RateKey::Route)) {
            guarded.extend(rule.backends.iter().filter_map(|backend| backend.to.clone().ok()));
        }
    }
    guarded
}

fn programmed(count: &Programmed) -> Condition {
    let Programmed { asked, running, refused } = count;
    let on = format!("on {running} of {asked} sidecars");
    let (status, reason, message) = match (asked, refused.as_slice()) {
        (0, _) => ("Unknown", "NotAskedFor", "no connected sidecar asks for it".to_owned()),
        (_, []) if running == asked => ("True", "Programmed", on),
        (_, []) => ("False", "Pending", on),
        (_, refused) => ("False", "Invalid", format!("{on}; {}", refused.join("; "))),
    };
    Condition { kind: "Programmed", status, reason, message }
}
