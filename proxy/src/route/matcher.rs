//! Which route a request takes: a compiled table, first match wins.
//!
//! In: virtual hosts in the control plane's order (it has already applied HTTPRoute's precedence, so order *is*
//! precedence). Out: the [`Route`] of a request. Pure; built once per configuration, read by every request.
//!
//! Invariant: a table with one catch-all route costs one comparison; in a large one only routes whose path may fit are
//! looked at ([`Index`]), in order.
//! Surprise: authority is compared with its port first, then without, because xDS domains may carry one.
//! Non-goal: what a route does. [`super::rule`] has that.

mod condition;
mod index;
mod needs;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use http::request::Parts;

use super::rule::Route;
use crate::http::headers;
use crate::xds::Cluster;
use condition::Draw;
use index::Index;
use needs::Needs;

pub use condition::{Field, HeaderMatch, Matches, PathMatch, QueryMatch, Text, ValueMatch};

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

/// The routes of one virtual host.
struct Host {
    routes: Vec<Arc<Route>>,
    index: Index,
    needs: Needs,
}

impl Host {
    fn new(routes: Vec<Arc<Route>>) -> Self {
        let index = Index::new(routes.iter().map(|route| &route.matches().path));
        let needs = Needs::new(routes.iter().map(|route| route.matches().required()));
        Self { routes, index, needs }
    }

    fn pick(&self, request: &Parts) -> Option<&Arc<Route>> {
        let mut draw = Draw::default();
        let mut missing = needs::Missing::default();
        let mut holds = |position: usize| {
            if self.needs.lacks(position, &request.headers, &mut missing) {
                return None;
            }
            let route = self.routes.get(position)?;
            (route.is_catch_all() || route.matches().hold(request, &mut draw)).then_some(route)
        };
        match self.index.candidates(request.uri.path()) {
            None => (0..self.routes.len()).find_map(holds),
            Some(candidates) => candidates.iter().find_map(|position| holds(*position as usize)),
        }
    }
}

/// Routes of one listener, compiled.
#[derive(Default)]
pub struct RouteTable {
    hosts: Vec<Host>,
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
        Self { hosts: vec![Host::new(vec![route])], any: Some(0), ..Self::default() }
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
            table.hosts.push(Host::new(host.routes));
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
        self.hosts.iter().all(|host| host.routes.is_empty())
    }

    /// Every route, in order of precedence within its host.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.hosts.iter().flat_map(|host| &host.routes)
    }

    /// The route of a request; `None` = no route of this service matches.
    #[must_use]
    pub fn pick(&self, request: &Parts) -> Option<&Arc<Route>> {
        let host = if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            self.any?
        } else {
            headers::authority(request).and_then(|authority| self.host(authority.as_bytes())).or(self.any)?
        };
        self.hosts.get(host)?.pick(request)
    }

    fn host(&self, authority: &[u8]) -> Option<usize> {
        // A name longer than DNS allows is in no table.
        let mut buffer = [0; AUTHORITY_MAX];
        let lower = buffer.get_mut(..authority.len())?;
        lower.copy_from_slice(authority);
        lower.make_ascii_lowercase();
        let full = std::str::from_utf8(lower).ok()?;
        let spellings = [Some(full), without_port(full)];
        let spellings = || spellings.iter().flatten();
        let exact = || spellings().find_map(|host| self.exact.get(*host).copied());
        let ending = |host: &str| self.suffixes.iter().find(|(suffix, _)| host.ends_with(&**suffix));
        let beginning = |host: &str| self.prefixes.iter().find(|(prefix, _)| host.starts_with(&**prefix));
        let wild = || {
            spellings().find_map(|host| ending(host)).or_else(|| spellings().find_map(|host| beginning(host)))
        };
        exact().or_else(|| Some(wild()?.1))
    }
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.routes()).finish()
    }
}

/// Longest authority looked at: 253 bytes of DNS name and `:65535`.
const AUTHORITY_MAX: usize = 260;

/// The host of `host:port` or `[v6]:port`; `None` when there is no port.
fn without_port(authority: &str) -> Option<&str> {
    let (host, port) = authority.rsplit_once(':')?;
    (!port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::ClusterSpec;
    use http::Method;
    use proptest::prelude::*;

    fn cluster(name: &str) -> Arc<Cluster> {
        Cluster::new(ClusterSpec::new(name), vec![])
    }

    fn route(name: &str, matches: Matches) -> Arc<Route> {
        Route::new(name, matches, cluster(name))
    }

    fn path(path: PathMatch) -> Matches {
        Matches { path, ..Matches::all() }
    }

    fn host(domains: &[&str], routes: Vec<Arc<Route>>) -> VirtualHost {
        VirtualHost {
            name: "".into(),
            domains: domains.iter().map(|&domain| domain.into()).collect(),
            routes,
        }
    }

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn picked(table: &RouteTable, request: &Parts) -> Option<String> {
        table.pick(request).map(|route| route.name().to_string())
    }

    #[test]
    fn one_cluster_takes_every_request() {
        let table = RouteTable::to(cluster("a"));
        for request in
            [request("GET", "/", &[]), request("OPTIONS", "*", &[]), request("CONNECT", "a:443", &[])]
        {
            assert_eq!(picked(&table, &request).as_deref(), Some("a"), "{request:?}");
        }
        assert_eq!(picked(&RouteTable::empty(), &request("GET", "/", &[])), None);
    }

    #[test]
    fn the_first_match_wins() {
        let table = RouteTable::new(vec![host(
            &["*"],
            vec![
                route("exact", path(PathMatch::Exact("/a".into()))),
                route("segments", path(PathMatch::Segments("/a".into()))),
                route("prefix", path(PathMatch::Prefix("/ab".into()))),
                route("post", Matches { method: Some(Method::POST), ..Matches::all() }),
            ],
        )]);
        let table = table.expect("valid");
        for (method, uri, expected) in [
            ("GET", "/a?x=1", Some("exact")),
            ("GET", "/a/", Some("segments")),
            ("GET", "/a/b", Some("segments")),
            ("GET", "/abc", Some("prefix")),
            ("POST", "/z", Some("post")),
            ("GET", "/z", None),
        ] {
            assert_eq!(picked(&table, &request(method, uri, &[])).as_deref(), expected, "{method} {uri}");
        }
    }

    #[test]
    fn the_most_specific_domain_wins_with_or_without_a_port() {
        let named = |domain: &str| host(&[domain], vec![route(domain, Matches::all())]);
        let domains =
            ["*", "*.shop", "*.eu.shop", "orders.*", "orders.shop", "orders.shop:9090", "[fd00::1]"];
        let table = RouteTable::new(domains.into_iter().map(named).collect()).expect("valid");
        for (authority, expected) in [
            ("Orders.Shop", "orders.shop"),
            ("orders.shop:80", "orders.shop"),
            ("orders.shop:9090", "orders.shop:9090"),
            ("a.shop", "*.shop"),
            ("a.eu.shop:80", "*.eu.shop"),
            ("orders.test", "orders.*"),
            ("[fd00::1]:80", "[fd00::1]"),
            ("elsewhere", "*"),
        ] {
            let request = request("GET", "/", &[("host", authority)]);
            assert_eq!(picked(&table, &request).as_deref(), Some(expected), "{authority}");
        }
        assert_eq!(
            picked(&table, &request("GET", "http://a.shop/", &[("host", "b.test")])).as_deref(),
            Some("*.shop")
        );
        assert_eq!(picked(&table, &request("GET", "/", &[])).as_deref(), Some("*"));
        let long = "x".repeat(300);
        assert_eq!(picked(&table, &request("GET", "/", &[("host", &long)])).as_deref(), Some("*"));
    }

    #[test]
    fn contradictions_are_refused() {
        for domains in [&["*", "*"][..], &["a", "A"], &["*.a", "*.a"], &["a*b"], &["*a*"], &[""], &["**"]] {
            assert!(RouteTable::new(vec![host(domains, vec![])]).is_err(), "{domains:?}");
        }
    }

    proptest! {
        #[test]
        fn any_request_is_answered_without_panic(uri in "[/a-z?&=%*]{0,40}", authority in "[a-z:.\\[\\]0-9]{0,40}") {
            let table = RouteTable::new(vec![host(&["a.b", "*.c"], vec![route("r", path(PathMatch::Segments("/a".into())))])]);
            if let Ok(request) = http::Request::builder().uri(uri).header("host", authority).body(()) {
                let _route = table.expect("valid").pick(&request.into_parts().0);
            }
        }
    }
}
