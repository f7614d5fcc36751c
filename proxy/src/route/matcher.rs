//! Which route a request takes: a compiled table, first match wins.
//!
//! In: virtual hosts in the control plane's order (it has already applied HTTPRoute's precedence, so order *is*
//! precedence). Out: the [`Route`] of a request. Pure; built once per configuration, read by every request.
//!
//! Invariant: picking allocates nothing, and a table with one catch-all route costs one comparison.
//! Surprise: authority is compared with its port first, then without, because xDS domains may carry one.
//! Non-goal: regular expressions. The control plane does not send them and [`crate::xds`] refuses them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, Method};

use crate::xds::Cluster;

/// How a path must look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// Equal, byte by byte, without the query.
    Exact(Box<str>),
    /// Starts with these bytes. `Prefix("/")` matches everything, `*` of `OPTIONS` included.
    Prefix(Box<str>),
    /// Starts with these whole segments: `/a` matches `/a` and `/a/b` but not `/ab` (HTTPRoute's `PathPrefix`).
    Segments(Box<str>),
}

/// How a header's or query parameter's value must look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    /// Equal.
    Exact(Box<str>),
    /// Starts with.
    Prefix(Box<str>),
    /// Ends with.
    Suffix(Box<str>),
    /// Contains.
    Contains(Box<str>),
    /// Is there at all.
    Present,
}

/// One condition on a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The header.
    pub name: HeaderName,
    /// What its value must be. Several lines of one header are compared one by one: any may match.
    pub value: ValueMatch,
    /// Whether the condition is turned round.
    pub invert: bool,
}

/// One condition on a query parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryMatch {
    /// The parameter, as it stands in the URL (no percent decoding).
    pub name: Box<str>,
    /// What its first value must be.
    pub value: ValueMatch,
}

/// All conditions of one route; all must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matches {
    /// The path.
    pub path: PathMatch,
    /// The method; `None` = any.
    pub method: Option<Method>,
    /// Headers.
    pub headers: Box<[HeaderMatch]>,
    /// Query parameters.
    pub query: Box<[QueryMatch]>,
}

impl Matches {
    /// Matches every request.
    #[must_use]
    pub fn all() -> Self {
        Self { path: PathMatch::Prefix("/".into()), method: None, headers: [].into(), query: [].into() }
    }

    /// Whether the conditions hold for every request, so that nothing needs to be looked at.
    fn is_all(&self) -> bool {
        matches!(&self.path, PathMatch::Prefix(prefix) if &**prefix == "/" || prefix.is_empty())
            && self.method.is_none()
            && self.headers.is_empty()
            && self.query.is_empty()
    }

    fn hold(&self, request: &Parts) -> bool {
        self.path.holds(request.uri.path())
            && self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.headers.iter().all(|header| header.holds(request))
            && self.query.iter().all(|query| query.holds(request.uri.query().unwrap_or_default()))
    }
}

impl PathMatch {
    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => &**prefix == "/" || path.starts_with(&**prefix),
            Self::Segments(prefix) => path
                .strip_prefix(prefix.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }
}

impl ValueMatch {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == text.as_bytes(),
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
            Self::Contains(text) => {
                text.is_empty() || value.windows(text.len()).any(|window| window == text.as_bytes())
            }
            Self::Present => true,
        }
    }
}

impl HeaderMatch {
    fn holds(&self, request: &Parts) -> bool {
        let mut values = request.headers.get_all(&self.name).iter();
        values.any(|value| self.value.holds(value.as_bytes())) != self.invert
    }
}

impl QueryMatch {
    fn holds(&self, query: &str) -> bool {
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs
            .find(|(name, _)| **name == *self.name)
            .is_some_and(|(_, value)| self.value.holds(value.as_bytes()))
    }
}

/// One cluster that a route sends to, with its share.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Share relative to its siblings.
    pub weight: u32,
}

/// A rule: which requests, and where they go.
#[derive(Debug)]
pub struct Route {
    name: Arc<str>,
    matches: Matches,
    catch_all: bool,
    /// Never empty.
    backends: Box<[Backend]>,
    /// Sum of the weights, at least 1.
    weight_total: u64,
}

impl Route {
    /// A route to one cluster.
    #[must_use]
    pub fn new(name: &str, matches: Matches, cluster: Arc<Cluster>) -> Arc<Self> {
        let backends = [Backend { cluster, weight: 1 }].into();
        Arc::new(Self { name: name.into(), catch_all: matches.is_all(), matches, backends, weight_total: 1 })
    }

    /// A route that splits among clusters by weight.
    ///
    /// # Errors
    /// When there is no backend or all weights are zero.
    pub fn split(name: &str, matches: Matches, backends: Vec<Backend>) -> Result<Arc<Self>, InvalidTable> {
        let weight_total = backends.iter().map(|backend| u64::from(backend.weight)).sum();
        if weight_total == 0 {
            return Err(InvalidTable::NoBackend { route: name.into() });
        }
        let catch_all = matches.is_all();
        Ok(Arc::new(Self { name: name.into(), catch_all, matches, backends: backends.into(), weight_total }))
    }

    /// The route's name as configured; empty when it has none.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The cluster for one request: drawn by weight where there are several, so ask once per request.
    #[must_use]
    pub fn cluster(&self) -> &Arc<Cluster> {
        match &*self.backends {
            [only] => &only.cluster,
            several => {
                let draw = fastrand::u64(..self.weight_total);
                &several[pick_weighted(several.iter().map(|backend| backend.weight), draw)].cluster
            }
        }
    }

    /// Every cluster the route can send to.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }
}

/// Position of the weight interval that holds `draw`, which is less than the sum of the weights.
fn pick_weighted(weights: impl Iterator<Item = u32>, mut draw: u64) -> usize {
    for (position, weight) in weights.enumerate() {
        match draw.checked_sub(u64::from(weight)) {
            Some(rest) => draw = rest,
            None => return position,
        }
    }
    0
}

/// A set of domains and the routes for them.
#[derive(Debug)]
pub struct VirtualHost {
    /// The name as configured.
    pub name: Box<str>,
    /// `*`, `orders.shop`, `*.shop`, `orders.*`, each optionally with `:port`.
    pub domains: Vec<Box<str>>,
    /// In order of precedence.
    pub routes: Vec<Arc<Route>>,
}

/// Why virtual hosts do not make a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTable {
    /// Two virtual hosts claim one domain, so which one wins would be chance.
    #[error("domain {domain:?} is claimed by more than one virtual host")]
    DomainTwice {
        /// The domain.
        domain: Box<str>,
    },
    /// A `*` that is neither the whole domain nor its first or last character.
    #[error("domain {domain:?}: a wildcard stands alone, first or last")]
    Wildcard {
        /// The domain.
        domain: Box<str>,
    },
    /// A route that leads nowhere.
    #[error("route {route:?} has no backend with a weight above zero")]
    NoBackend {
        /// The route's name.
        route: Box<str>,
    },
}

/// Routes of one listener, compiled.
#[derive(Default)]
pub struct RouteTable {
    hosts: Vec<Vec<Arc<Route>>>,
    /// Host behind `*`.
    any: Option<usize>,
    exact: HashMap<Box<str>, usize>,
    /// `*.shop` as `.shop`, longest first.
    suffixes: Vec<(Box<str>, usize)>,
    /// `orders.*` as `orders.`, longest first.
    prefixes: Vec<(Box<str>, usize)>,
}

impl RouteTable {
    /// A table without a route: every request is `route_not_found`.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Everything goes to one cluster.
    #[must_use]
    pub fn to(cluster: Arc<Cluster>) -> Self {
        let route = Route::new(&cluster.name, Matches::all(), Arc::clone(&cluster));
        Self { hosts: vec![vec![route]], any: Some(0), ..Self::default() }
    }

    /// Compiles virtual hosts.
    ///
    /// # Errors
    /// When a domain is claimed twice or is not a domain.
    pub fn new(hosts: Vec<VirtualHost>) -> Result<Self, InvalidTable> {
        let mut table = Self::default();
        for (index, host) in hosts.into_iter().enumerate() {
            for domain in host.domains {
                table.claim(&domain.to_ascii_lowercase(), index)?;
            }
            table.hosts.push(host.routes);
        }
        let longest_first = |(a, _): &(Box<str>, usize), (b, _): &(Box<str>, usize)| b.len().cmp(&a.len());
        table.suffixes.sort_by(longest_first);
        table.prefixes.sort_by(longest_first);
        Ok(table)
    }

    fn claim(&mut self, domain: &str, host: usize) -> Result<(), InvalidTable> {
        let twice = || InvalidTable::DomainTwice { domain: domain.into() };
        let wildcard = || InvalidTable::Wildcard { domain: domain.into() };
        if domain == "*" {
            return if self.any.replace(host).is_none() { Ok(()) } else { Err(twice()) };
        }
        let list = match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
            (Some(suffix), None) => Some((suffix, &mut self.suffixes)),
            (None, Some(prefix)) => Some((prefix, &mut self.prefixes)),
            (None, None) => None,
            (Some(_), Some(_)) => return Err(wildcard()),
        };
        match list {
            None if domain.is_empty() || domain.contains('*') => Err(wildcard()),
            None => match self.exact.insert(domain.into(), host) {
                None => Ok(()),
                Some(_) => Err(twice()),
            },
            Some((rest, _)) if rest.contains('*') => Err(wildcard()),
            Some((rest, list)) if list.iter().any(|(known, _)| **known == *rest) => Err(twice()),
            Some((rest, list)) => {
                list.push((rest.into(), host));
                Ok(())
            }
        }
    }

    /// Whether the table has no route at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.iter().all(Vec::is_empty)
    }

    /// Every route, in order of precedence within its host.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.hosts.iter().flatten()
    }

    /// The route of a request; `None` = no route of this service matches.
    #[must_use]
    pub fn pick(&self, request: &Parts) -> Option<&Arc<Route>> {
        let host = if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            self.any?
        } else {
            authority(request).and_then(|authority| self.host(authority.as_bytes())).or(self.any)?
        };
        self.hosts.get(host)?.iter().find(|route| route.catch_all || route.matches.hold(request))
    }

    fn host(&self, authority: &[u8]) -> Option<usize> {
        // A name longer than DNS allows is in no table.
        let mut buffer = [0; AUTHORITY_MAX];
        let lower = buffer.get_mut(..authority.len())?;
        lower.copy_from_slice(authority);
        lower.make_ascii_lowercase();
        let full = std::str::from_utf8(lower).ok()?;
        self.named(full).or_else(|| self.named(without_port(full)?))
    }

    fn named(&self, host: &str) -> Option<usize> {
        let suffix = || self.suffixes.iter().find(|(suffix, _)| host.ends_with(&**suffix));
        let prefix = || self.prefixes.iter().find(|(prefix, _)| host.starts_with(&**prefix));
        self.exact.get(host).copied().or_else(|| Some(suffix().or_else(prefix)?.1))
    }
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.routes()).finish()
    }
}

/// Longest authority looked at: 253 bytes of DNS name and `:65535`.
const AUTHORITY_MAX: usize = 260;

/// `:authority` or absolute form first, else `Host`; RFC 9112 §3.2.2 in that order.
fn authority(request: &Parts) -> Option<&str> {
    match request.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers.get(http::header::HOST)?.to_str().ok(),
    }
}

/// The host of `host:port` or `[v6]:port`; `None` when there is no port.
fn without_port(authority: &str) -> Option<&str> {
    let (host, port) = authority.rsplit_once(':')?;
    (!port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(host)
}
