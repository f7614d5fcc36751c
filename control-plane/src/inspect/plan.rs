//! What a change of the configuration would do, found out by doing it to a copy.
//!
//! In: the world, the connected proxies, YAML. Out: a [`Plan`]: which objects are new or different, which
//! resources change and how, and which proxies run those.
//! Invariants: pure; nothing is applied; the answer is bounded however large the change is, and says what it
//! leaves out.
//! Surprise: one broken document and nothing changes, because a file with one keeps its last good state as a
//! whole.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

use serde::Serialize;
use weft_wire::ServicePort;

use super::{namespace_of, print};
use crate::compile::{self, Resource};
use crate::resources::{self, Content, Document, Flaw, Lines};
use crate::world::{Event, Novelty, Touched, World};
use crate::xds::{Kind, ProxyStatus};

/// Resources in an answer: what a person reads. With sixty lines each, 500 KiB at most.
const RESOURCES_MAX: usize = 100;
/// Lines of one resource's difference.
const LINES_MAX: usize = 60;
/// Proxies in an answer.
const PROXIES_MAX: usize = 200;

/// What would change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// What is wrong with the text; while there is something, nothing changes.
    pub problems: Vec<Problem>,
    /// The objects of the text.
    pub objects: Vec<Planned>,
    /// The resources that change.
    pub resources: Vec<Changed>,
    /// How many more change.
    pub resources_left_out: usize,
    /// The proxies that run any of those.
    pub sidecars: Vec<Concerned>,
    /// How many more do.
    pub sidecars_left_out: usize,
}

/// Something wrong with the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line, from 1.
    pub line: Option<usize>,
    /// Position of the document in the text, from 1.
    pub document: Option<usize>,
    /// The object, as `Kind namespace/name`, as far as it could be read.
    pub object: Option<String>,
    /// Path of the field.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
}

/// One object of the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// `HTTPRoute shop/orders`.
    pub object: String,
    /// What becomes of it.
    pub change: ObjectChange,
}

/// What becomes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectChange {
    /// There is none of this name yet.
    Create,
    /// It is there like this.
    Unchanged,
    /// It is there and different.
    Update,
}

/// One resource that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// `Listener`, `Route`, `Cluster` or `Endpoint`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What becomes of it.
    pub change: ResourceChange,
    /// How it changes: lines that begin with `+`, `-` or a space.
    pub diff: Vec<String>,
}

/// What becomes of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceChange {
    /// There was none.
    Add,
    /// There is none any more.
    Remove,
    /// It is different.
    Update,
}

/// A proxy that would get something new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Concerned {
    /// The instance.
    pub instance: String,
    /// What it stands in front of.
    pub workload: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// What it would get, as `Kind name`.
    pub resources: Vec<String>,
}

/// A resource as one asker sees it: kind, name, and the namespace that short names are read in.
type Seen = (Kind, String, String);

/// Finds out what applying `text` would change.
#[must_use]
pub fn plan(before: &World, proxies: &[ProxyStatus], text: &str, now: Instant) -> Plan {
    let documents = resources::parse(text);
    let mut problems: Vec<Problem> = documents.iter().flat_map(problems_of).collect();
    let broken = documents.iter().any(|document| matches!(document.content, Content::Broken(_)));
    let mut plan = Plan {
        problems: Vec::new(),
        objects: Vec::new(),
        resources: Vec::new(),
        resources_left_out: 0,
        sidecars: Vec::new(),
        sidecars_left_out: 0,
    };
    if !broken {
        let events = objects(before, documents, text, &mut plan.objects, &mut problems);
        let mut after = before.clone();
        let touched = after.apply_all(events, now);
        changes(before, &after, &touched, proxies, &mut plan);
    }
    plan.problems = problems;
    plan
}

fn problems_of(document: &Document) -> Vec<Problem> {
    let problem = |flaw: &Flaw| Problem {
        line: flaw.line,
        document: Some(document.position),
        object: document.label.clone(),
        field: Some(flaw.field.clone()).filter(|field| !field.is_empty()),
        message: flaw.reason.clone(),
    };
    match &document.content {
        Content::Broken(flaws) => flaws.iter().map(problem).collect(),
        Content::Unsupported { line, kind } => {
            let reason = format!("{kind} is not supported, and is left alone");
            vec![problem(&Flaw { line: *line, field: "kind".into(), reason })]
        }
        Content::Object(_) | Content::Unneeded => Vec::new(),
    }
}

/// The events that the documents would be; the first of several of the same name counts.
fn objects(
    before: &World,
    documents: Vec<Document>,
    text: &str,
    planned: &mut Vec<Planned>,
    problems: &mut Vec<Problem>,
) -> Vec<Event> {
    let (mut events, mut known) = (Vec::new(), HashSet::new());
    let lines = Lines::of(text);
    for document in documents {
        let Content::Object(object) = document.content else { continue };
        let id = object.id();
        let name = id.to_string();
        if !known.insert(id) {
            problems.push(Problem {
                line: lines.name(document.position),
                document: Some(document.position),
                object: Some(name),
                field: Some("metadata.name".into()),
                message: "is defined by an earlier document already".into(),
            });
            continue;
        }
        let event = object.set();
        let change = match before.novelty(&event) {
            Novelty::New => ObjectChange::Create,
            Novelty::Different => ObjectChange::Update,
            Novelty::Known => ObjectChange::Unchanged,
        };
        planned.push(Planned { object: name, change });
        events.push(event);
    }
    events
}

fn changes(before: &World, after: &World, touched: &Touched, proxies: &[ProxyStatus], plan: &mut Plan) {
    // Each resource is compiled once per namespace, however many proxies run it.
    let mut changed: BTreeMap<Seen, bool> = BTreeMap::new();
    let mut is_changed = |seen: Seen| -> bool {
        if let Some(known) = changed.get(&seen) {
            return *known;
        }
        let (old, new) = (compiled(before, &seen), compiled(after, &seen));
        let differs = old.map(|old| old.version) != new.map(|new| new.version);
        changed.insert(seen, differs);
        differs
    };
    let touches = |(kind, name, namespace): &Seen| {
        compile::depends_on(*kind, name, namespace).is_some_and(|key| touched.contains(&key))
    };
    for proxy in proxies {
        let namespace = namespace_of(proxy);
        let names = proxy.kinds.iter().flat_map(|(kind, status)| {
            status.subscriptions.iter().map(move |running| (*kind, running.name.to_string()))
        });
        let gets: BTreeSet<(Kind, String)> = names
            .filter(|(kind, name)| {
                let seen = (*kind, name.clone(), namespace.to_owned());
                touches(&seen) && is_changed(seen)
            })
            .collect();
        if gets.is_empty() {
            continue;
        }
        if plan.sidecars.len() >= PROXIES_MAX {
            plan.sidecars_left_out += 1;
            continue;
        }
        plan.sidecars.push(Concerned {
            instance: proxy.instance.to_string(),
            workload: proxy.workload.as_ref().map(|workload| workload.name().to_owned()),
            namespace: proxy.workload.as_ref().map(|workload| workload.namespace().to_owned()),
            resources: gets.iter().map(|(kind, name)| format!("{} {name}", print::word(*kind))).collect(),
        });
    }
    // What nobody asks for yet changes as well; whoever calls it next gets it.
    for seen in every_name(before).chain(every_name(after)).filter(touches) {
        is_changed(seen);
    }
    let mut shown: BTreeSet<(Kind, String)> = BTreeSet::new();
    for seen in changed.into_iter().filter_map(|(seen, differs)| differs.then_some(seen)) {
        if !shown.insert((seen.0, seen.1.clone())) {
            continue;
        }
        if plan.resources.len() >= RESOURCES_MAX {
            plan.resources_left_out += 1;
        } else {
            plan.resources.push(describe(before, after, &seen));
        }
    }
}

fn compiled(world: &World, (kind, name, namespace): &Seen) -> Option<Resource> {
    compile::resource(world, *kind, name, namespace)
}

/// What there is to ask for: each service's resources, through the eyes of its own namespace.
fn every_name(world: &World) -> impl Iterator<Item = Seen> {
    let services = compile::every_name(world, Kind::Cluster).into_iter().flat_map(|name| {
        let namespace = name.parse::<ServicePort>().map(|port| port.service.namespace().to_owned());
        let namespace = namespace.unwrap_or_default();
        [Kind::Cluster, Kind::Endpoint, Kind::Route].map(|kind| (kind, name.clone(), namespace.clone()))
    });
    let listeners = compile::every_name(world, Kind::Listener).into_iter();
    services.chain(listeners.map(|name| (Kind::Listener, name, "default".to_owned())))
}

fn describe(before: &World, after: &World, seen: &Seen) -> Changed {
    let (old, new) = (compiled(before, seen), compiled(after, seen));
    let change = match (&old, &new) {
        (None, _) => ResourceChange::Add,
        (Some(_), None) => ResourceChange::Remove,
        (Some(_), Some(_)) => ResourceChange::Update,
    };
    let lines = |resource: &Option<Resource>| {
        resource.as_ref().map(|resource| print::lines(&resource.body)).unwrap_or_default()
    };
    let diff = print::diff(&lines(&old), &lines(&new), LINES_MAX);
    Changed { kind: print::word(seen.0), name: seen.1.clone(), change, diff }
}
