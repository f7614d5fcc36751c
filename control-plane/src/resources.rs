//! Kubernetes-style YAML, read strictly: text in, typed objects out, and a place for everything that is wrong.
//!
//! In: the text of one file, with any number of documents. Out: one [`Document`] per non-empty document,
//! either an [`Object`] in the world's own terms or the [`Flaw`]s that stop it, each with line and field.
//!
//! Invariants: an unknown field is an error that names it (a misspelt field that is silently dropped is the
//! worst kind of configuration); nothing here panics on any text. Surprise: documents are walked twice, first
//! leniently for `apiVersion`, `kind` and name, so that even a broken document can be called by its name.
//! Non-goal: kinds that the mesh has no use for; they are reported as unsupported and left alone.

/// A field's path: `path!["spec", "ports", 0]`, or further down from another: `path![@at; "port"]`.
macro_rules! path {
    (@ $at:expr; $($segment:expr),+) => {{
        let mut path: Vec<$crate::resources::Segment> = $at.to_vec();
        $(path.push($crate::resources::Segment::from($segment));)+
        path
    }};
    ($($segment:expr),+) => { vec![$($crate::resources::Segment::from($segment)),+] };
}

mod core;
mod gateway;
mod locate;
pub mod policy;
mod protocol;
pub(crate) mod served;
mod weight;
pub(crate) mod workload;

use std::fmt;
use std::sync::Arc;

use gateway_api::apis::experimental::grpcroutes::GrpcRoute;
use gateway_api::apis::experimental::httproutes::HttpRoute;
use gateway_api::apis::experimental::referencegrants::ReferenceGrant;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Deserialize;
use weft_wire::ServiceId;

use crate::world::{
    AccessSpec, Event, GrantSpec, NamespaceSpec, ObjectName, PodSpec, PolicyId, PolicySpec, RouteId,
    RouteSpec, ServiceSpec, SliceSpec,
};

use policy::Manifest;
use policy::access_policy::AccessPolicySpec;
use policy::circuit_breaker::CircuitBreakerSpec;
use policy::traffic_policy::TrafficPolicySpec;

pub use locate::{Lines, Segment};
pub use workload::workload_name;

/// The kinds that are read, as people are told.
pub const KINDS: &str = "Namespace, Service, EndpointSlice, Pod, HTTPRoute, GRPCRoute, ReferenceGrant, AccessPolicy, \
     CircuitBreaker and TrafficPolicy";

/// Unknown fields reported for one file.
const FLAWS_MAX: usize = 50;

/// Something the mesh has a use for.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// An AccessPolicy.
    Access(Box<AccessSpec>),
    /// A ReferenceGrant.
    Grant(GrantSpec),
    /// A Namespace.
    Namespace(NamespaceSpec),
    /// A Pod.
    Pod(PodSpec),
    /// A CircuitBreaker or a TrafficPolicy.
    Policy(Box<PolicySpec>),
    /// An HTTPRoute or a GRPCRoute.
    Route(RouteSpec),
    /// A Service.
    Service(ServiceSpec),
    /// An EndpointSlice.
    Slice(SliceSpec),
}

/// What an object is called, across files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectId {
    /// A ReferenceGrant.
    Grant(ObjectName),
    /// A Namespace.
    Namespace(Arc<str>),
    /// A Pod.
    Pod(ObjectName),
    /// An AccessPolicy, a CircuitBreaker or a TrafficPolicy.
    Policy(PolicyId),
    /// An HTTPRoute or a GRPCRoute.
    Route(RouteId),
    /// A Service.
    Service(ServiceId),
    /// An EndpointSlice.
    Slice(ObjectName),
}

impl Object {
    /// The object's name.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        match self {
            Self::Access(policy) => ObjectId::Policy(policy.id.clone()),
            Self::Grant(grant) => ObjectId::Grant(grant.name.clone()),
            Self::Namespace(namespace) => ObjectId::Namespace(Arc::clone(&namespace.name)),
            Self::Pod(pod) => ObjectId::Pod(pod.name.clone()),
            Self::Policy(policy) => ObjectId::Policy(policy.id.clone()),
            Self::Route(route) => ObjectId::Route(route.id.clone()),
            Self::Service(service) => ObjectId::Service(service.id.clone()),
            Self::Slice(slice) => ObjectId::Slice(slice.name.clone()),
        }
    }

    /// The event that tells the world of it.
    #[must_use]
    pub fn set(self) -> Event {
        match self {
            Self::Access(policy) => Event::AccessSet(policy),
            Self::Grant(grant) => Event::GrantSet(grant),
            Self::Namespace(namespace) => Event::NamespaceSet(namespace),
            Self::Pod(pod) => Event::PodSet(pod),
            Self::Policy(policy) => Event::PolicySet(policy),
            Self::Route(route) => Event::RouteSet(route),
            Self::Service(service) => Event::ServiceSet(service),
            Self::Slice(slice) => Event::SliceSet(slice),
        }
    }
}

impl ObjectId {
    /// The event that tells the world that it is gone.
    #[must_use]
    pub fn gone(self) -> Event {
        match self {
            Self::Grant(name) => Event::GrantGone(name),
            Self::Namespace(name) => Event::NamespaceGone(name),
            Self::Pod(name) => Event::PodGone(name),
            Self::Policy(id) => Event::PolicyGone(id),
            Self::Route(id) => Event::RouteGone(id),
            Self::Service(id) => Event::ServiceGone(id),
            Self::Slice(name) => Event::SliceGone(name),
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grant(name) => write!(f, "ReferenceGrant {name}"),
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::Policy(id) => id.fmt(f),
            Self::Route(id) => id.fmt(f),
            Self::Service(id) => write!(f, "Service {}/{}", id.namespace(), id.name()),
            Self::Slice(name) => write!(f, "EndpointSlice {name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Line in the file, from 1, when known.
    pub line: Option<usize>,
    /// Path of the field; empty for the document itself.
    pub field: String,
    /// What is wrong, in words.
    pub reason: String,
}

/// One document of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Position in the file, from 1; empty documents count.
    pub position: usize,
    /// The object as `Kind namespace/name`, as far as it could be read.
    pub label: Option<String>,
    /// What it says.
    pub content: Content,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// It cannot be read.
    Broken(Vec<Flaw>),
    /// An object.
    Object(Object),
    /// An object the mesh has no use for by design (a Service that is only a DNS alias).
    Unneeded,
    /// A kind the mesh does not know.
    Unsupported {
        /// The line that says so, when known.
        line: Option<usize>,
        /// `apiVersion kind`.
        kind: String,
    },
}

/// Reads one file.
#[must_use]
pub fn parse(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut budget = FLAWS_MAX;
    let lines = Lines::of(text);
    let scale = weight::Scale::new(text);
    let mut heavy = weight::may_have_aliases(text).then(|| serde_yaml::Deserializer::from_str(text));
    let mut typed = serde_yaml::Deserializer::from_str(text);
    for (index, lenient) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let strict = typed.next();
        let position = index + 1;
        let weighed = heavy.as_mut().and_then(Iterator::next).map_or(Ok(()), |whole| scale.weigh(whole));
        let header = weighed.and_then(|()| Option::<Header>::deserialize(lenient));
        let (label, content) = match (header, strict) {
            (Ok(None), _) => continue,
            (Ok(Some(header)), Some(strict)) => {
                let place = Place { lines: &lines, index };
                (header.label(), read(&header, strict, &place, &mut budget))
            }
            (Ok(Some(_)), None) => break,
            (Err(error), _) => {
                // Where the text is not YAML the reader would repeat this error for ever; and the file is broken
                // anyway, whatever follows.
                let content = Content::Broken(vec![flaw_of(&error, String::new())]);
                documents.push(Document { position, label: None, content });
                break;
            }
        };
        documents.push(Document { position, label, content });
    }
    documents
}

fn read(
    header: &Header,
    document: serde_yaml::Deserializer<'_>,
    place: &Place<'_>,
    budget: &mut usize,
) -> Content {
    let (Some(version), Some(kind)) = (&header.api_version, &header.kind) else {
        let missing = if header.kind.is_none() { "kind" } else { "apiVersion" };
        return Content::Broken(vec![Flaw {
            line: place.line(&[]),
            field: missing.into(),
            reason: "is missing".into(),
        }]);
    };
    match (version.as_str(), kind.as_str()) {
        ("v1", "Namespace") => typed::<Namespace>(document, place, budget, core::namespace),
        ("v1", "Pod") => typed::<Pod>(document, place, budget, core::pod),
        ("v1", "Service") => typed::<Service>(document, place, budget, core::service),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            typed::<EndpointSlice>(document, place, budget, core::endpoint_slice)
        }
        ("gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", "HTTPRoute") => {
            typed::<HttpRoute>(document, place, budget, gateway::http_route)
        }
        ("gateway.networking.k8s.io/v1", "GRPCRoute") => {
            typed::<GrpcRoute>(document, place, budget, gateway::grpc_route)
        }
        ("gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", "ReferenceGrant") => {
            typed::<ReferenceGrant>(document, place, budget, gateway::reference_grant)
        }
        ("weft.dev/v1alpha1", "AccessPolicy") => {
            typed::<Manifest<AccessPolicySpec>>(document, place, budget, policy::access_policy)
        }
        ("weft.dev/v1alpha1", "CircuitBreaker") => {
            typed::<Manifest<CircuitBreakerSpec>>(document, place, budget, policy::circuit_breaker)
        }
        ("weft.dev/v1alpha1", "TrafficPolicy") => {
            typed::<Manifest<TrafficPolicySpec>>(document, place, budget, policy::traffic_policy)
        }
        _ => Content::Unsupported {
            line: place.line(&[Segment::from("kind")]),
            kind: format!("{version} {kind}"),
        },
    }
}

/// Why an object that is well-formed cannot be used.
type Refusal = (Vec<Segment>, String);

fn typed<T: for<'de> Deserialize<'de>>(
    document: serde_yaml::Deserializer<'_>,
    place: &Place<'_>,
    budget: &mut usize,
    convert: fn(T) -> Result<Option<Object>, Refusal>,
) -> Content {
    let value = match strictly(document, budget, |path| place.line(path)) {
        Ok(value) => value,
        Err(flaws) => return Content::Broken(flaws),
    };
    match convert(value) {
        Ok(Some(object)) => Content::Object(object),
        Ok(None) => Content::Unneeded,
        Err((path, reason)) => {
            let field = locate::display(&path);
            Content::Broken(vec![Flaw { line: place.line(&path), field, reason }])
        }
    }
}

/// Reads a value in which every field is known; at most `budget` of the others are reported.
fn strictly<'de, T, D>(
    document: D,
    budget: &mut usize,
    line: impl Fn(&[Segment]) -> Option<usize>,
) -> Result<T, Vec<Flaw>>
where
    T: Deserialize<'de>,
    D: serde::Deserializer<'de, Error: Wrong>,
{
    let mut track = serde_path_to_error::Track::new();
    let mut unknown = Vec::new();
    let tracked = serde_path_to_error::Deserializer::new(document, &mut track);
    let read: Result<T, D::Error> = serde_ignored::deserialize(tracked, |path| {
        let path = locate::segments(&path);
        // The header has read the first two, and what a controller writes is no setting; not every type repeats them.
        if matches!(path.as_slice(), [Segment::Key(key), ..] if key == "apiVersion" || key == "kind" || key == "status")
        {
            return;
        }
        // One at least, or a document late in a bad file would pass for good.
        if unknown.len() < (*budget).max(1) {
            unknown.push(path);
        }
    });
    let value = match read {
        Ok(value) => value,
        Err(error) => return Err(vec![flaw_of(&error, field_path(&track.path()))]),
    };
    if unknown.is_empty() {
        return Ok(value);
    }
    *budget = budget.saturating_sub(unknown.len());
    let flaw = |path: Vec<Segment>| Flaw {
        line: line(&path),
        field: locate::display(&path),
        reason: match policy::instead_of(&path) {
            Some(advice) => format!("unknown field: {advice}"),
            None => "unknown field".into(),
        },
    };
    Err(unknown.into_iter().map(flaw).collect())
}

/// What readers of both languages say when they cannot read.
trait Wrong: std::error::Error {
    /// The line, where the text has lines.
    fn line(&self) -> Option<usize>;
}

impl Wrong for serde_yaml::Error {
    fn line(&self) -> Option<usize> {
        self.location().map(|location| location.line())
    }
}

impl Wrong for serde_json::Error {
    /// What a server sends has none that anybody could look at.
    fn line(&self) -> Option<usize> {
        None
    }
}

/// Which document of which text.
struct Place<'a> {
    lines: &'a Lines<'a>,
    index: usize,
}

impl Place<'_> {
    fn line(&self, path: &[Segment]) -> Option<usize> {
        self.lines.field(self.index, path)
    }
}

fn field_path(path: &serde_path_to_error::Path) -> String {
    // An error at the top level has the path ".".
    let text = path.to_string();
    if text == "." { String::new() } else { text }
}

fn flaw_of(error: &impl Wrong, field: String) -> Flaw {
    let line = error.line();
    // The library writes the place into the text as well ("… at line 3 column 5"); ours is a field.
    let text = error.to_string();
    let reason = match text.rfind(" at line ") {
        Some(at) => text.get(..at).unwrap_or(&text).to_owned(),
        None => text,
    };
    // "spec.ports[0].port: invalid type …": the path is a field of ours too.
    let reason = match field.as_str() {
        "" => reason,
        field => reason.strip_prefix(&format!("{field}: ")).map(str::to_owned).unwrap_or(reason),
    };
    Flaw { line, field, reason }
}

/// Just enough of a document to call it by its name. Everything is optional and loosely typed.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(default)]
    metadata: Option<serde_yaml::Value>,
}

impl Header {
    fn label(&self) -> Option<String> {
        let kind = self.kind.as_deref()?;
        let field = |name: &str| self.metadata.as_ref()?.get(name)?.as_str();
        let name = field("name").unwrap_or("?");
        if kind == "Namespace" {
            return Some(format!("{kind} {name}"));
        }
        Some(format!("{kind} {}/{name}", field("namespace").unwrap_or(core::DEFAULT_NAMESPACE)))
    }
}

#[cfg(test)]
mod tests;
