//! Routes as the world is told of them: HTTPRoutes and GRPCRoutes without their Kubernetes clothes.
//!
//! In: values that `resources` has parsed, so every regular expression compiles, every name is a name and every
//! header is lower case. Out: what `traffic` attaches to services and `compile` turns into route tables.
//! Non-goal: parents of other kinds than Service; a Gateway's routes are another controller's business.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use weft_wire::{ServiceId, ServicePort};

use super::spec::ObjectName;

/// What kind of object a route is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// A GRPCRoute.
    Grpc,
    /// An HTTPRoute.
    Http,
}

impl RouteKind {
    /// The kind as Kubernetes spells it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
        }
    }
}

/// A route object. `Display` is `HTTPRoute shop/orders`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId {
    /// What kind of object it is.
    pub kind: RouteKind,
    /// Its name.
    pub name: ObjectName,
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.word(), self.name)
    }
}

/// One rule of a route, as xDS and telemetry call it. `Display` is `HTTPRoute/shop/orders/0`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleName {
    /// The route.
    pub route: RouteId,
    /// Position of the rule in it, from 0.
    pub index: usize,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.route.kind.word(), self.route.name, self.index)
    }
}

/// When an object was created, seconds since the Unix epoch, as its metadata says; files rarely say.
pub type Created = Option<i64>;

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// The route.
    pub id: RouteId,
    /// When it was created: the older of two that are otherwise equal wins.
    pub created: Created,
    /// The version of its spec, where an API server counts it.
    pub generation: Option<i64>,
    /// The services whose callers it concerns.
    pub parents: Vec<Parent>,
    /// Whether it names hosts. A service's callers are found by address, so hosts mean nothing there.
    pub names_hosts: bool,
    /// Its rules, in the order of the object.
    pub rules: Vec<Arc<Rule>>,
}

/// A service that a route is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The service.
    pub service: ServiceId,
    /// Only this port of it.
    pub port: Option<u16>,
    /// Only the port of this name.
    pub section: Option<Box<str>>,
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}/{}", self.service.namespace(), self.service.name())?;
        if let Some(port) = self.port {
            write!(f, " port {port}")?;
        }
        match &self.section {
            Some(section) => write!(f, " port {section}"),
            None => Ok(()),
        }
    }
}

/// One rule: what it matches and what happens then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The rule's own name, by which a policy can target it.
    pub name: Option<Box<str>>,
    /// Any of these is enough. Never empty.
    pub matches: Vec<Match>,
    /// What is changed on the way.
    pub filters: Filters,
    /// Where requests go, by weight.
    pub backends: Vec<Backend>,
    /// Longest time for the whole exchange; zero is without limit.
    pub request_timeout: Option<Duration>,
    /// Longest time for one try; zero is without limit.
    pub backend_timeout: Option<Duration>,
    /// Whether requests are tried again.
    pub retry: Option<RuleRetry>,
}

/// What a request must be like: all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Its path.
    pub path: PathMatch,
    /// Its method; `None` is any.
    pub method: Option<Box<str>>,
    /// Its headers.
    pub headers: Vec<ValueMatch>,
    /// Its query parameters.
    pub query: Vec<ValueMatch>,
}

/// What a path must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// This path.
    Exact(Box<str>),
    /// This path or anything below it, by whole segments; no slash at the end, except that `/` is everything.
    Prefix(Box<str>),
    /// The whole path matches this expression.
    Regex(Box<str>),
    /// The path of a gRPC call: this service and this method; `None` is any.
    Grpc {
        /// The service, with its package.
        service: Option<Pattern>,
        /// The method.
        method: Option<Pattern>,
    },
}

/// What a value must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// This text.
    Exact(Box<str>),
    /// The whole text matches this expression.
    Regex(Box<str>),
}

/// A header or a query parameter, and what its value must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueMatch {
    /// Its name; headers in lower case.
    pub name: Box<str>,
    /// Its value.
    pub value: Pattern,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Regex(text) => write!(f, "~{text}"),
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_any = |pattern: &Option<Pattern>| pattern.as_ref().map_or("*".to_owned(), ToString::to_string);
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(path) if &**path == "/" => f.write_str("/**"),
            Self::Prefix(path) => write!(f, "{path}/**"),
            Self::Regex(expression) => write!(f, "~{expression}"),
            Self::Grpc { service, method } => write!(f, "{}/{}", or_any(service), or_any(method)),
        }
    }
}

/// As people read it: `GET /orders/** [x-user: 7] [?debug=1]`.
impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.method {
            write!(f, "{method} ")?;
        }
        self.path.fmt(f)?;
        for header in &self.headers {
            write!(f, " [{}: {}]", header.name, header.value)?;
        }
        for parameter in &self.query {
            write!(f, " [?{}={}]", parameter.name, parameter.value)?;
        }
        Ok(())
    }
}

/// What is changed on the way, or done instead of going there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filters {
    /// Changes of the request's headers.
    pub request: HeaderEdit,
    /// Changes of the response's headers.
    pub response: HeaderEdit,
    /// The caller is sent elsewhere.
    pub redirect: Option<Redirect>,
    /// Host and path are changed.
    pub rewrite: Option<Rewrite>,
    /// Who gets a copy.
    pub mirrors: Vec<Mirror>,
    /// Who may call from a page of another origin.
    pub cors: Option<Cors>,
}

/// Changes of headers; names in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdit {
    /// Headers that get this value, whatever was there.
    pub set: Vec<(Box<str>, Box<str>)>,
    /// Headers that get this value besides what was there.
    pub add: Vec<(Box<str>, Box<str>)>,
    /// Headers that go.
    pub remove: Vec<Box<str>>,
}

impl HeaderEdit {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// A change of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathEdit {
    /// The whole path becomes this one.
    Full(Box<str>),
    /// The matched prefix becomes this one.
    Prefix(Box<str>),
}

/// An answer that sends the caller elsewhere. What is absent stays as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Box<str>>,
    /// The host.
    pub hostname: Option<Box<str>>,
    /// The port.
    pub port: Option<u16>,
    /// The path.
    pub path: Option<PathEdit>,
    /// The status: 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A change of host and path on the way to the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// The host.
    pub hostname: Option<Box<str>>,
    /// The path.
    pub path: Option<PathEdit>,
}

/// A copy of a share of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Who gets it.
    pub to: BackendRef,
    /// How many of [`Mirror::denominator`] requests.
    pub numerator: u32,
    /// Never zero.
    pub denominator: u32,
}

/// Who may call from a page of another origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins: `*`, `https://shop.example`, `https://*.example`.
    pub origins: Vec<Box<str>>,
    /// Methods; `*` is every one.
    pub methods: Vec<Box<str>>,
    /// Request headers; `*` is every one.
    pub headers: Vec<Box<str>>,
    /// Response headers that the page may read.
    pub expose: Vec<Box<str>>,
    /// Whether requests may carry credentials.
    pub credentials: bool,
    /// How long a browser may remember the answer.
    pub max_age: Duration,
}

/// Where a share of the requests goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Where.
    pub to: BackendRef,
    /// Its share, relative to the sum of all.
    pub weight: u32,
    /// Changes of headers for this share only.
    pub filters: Filters,
}

/// What a route refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendRef {
    /// A service's port. Whether there is one, and whether it may be referred to, is found out later.
    Service(ServicePort),
    /// Something the mesh cannot send requests to.
    Unsupported {
        /// `group/Kind namespace/name`.
        what: Box<str>,
    },
}

/// When a rule's requests are tried again. What is absent has a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleRetry {
    /// How often.
    pub attempts: Option<u32>,
    /// Shortest wait before it.
    pub backoff: Option<Duration>,
    /// The answers that are a reason to.
    pub statuses: Vec<u16>,
}

/// Permission for routes of other namespaces to refer to services of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantSpec {
    /// The grant.
    pub name: ObjectName,
    /// Who may refer: a kind of object in a namespace.
    pub from: Vec<(Referrer, Box<str>)>,
    /// To what: a service by name, or `None` for all of them.
    pub to: Vec<Option<Box<str>>>,
}

/// A kind of object that can refer to a service of another namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Referrer {
    /// A TrafficPolicy, for its mirror.
    Policy,
    /// A route.
    Route(RouteKind),
}
