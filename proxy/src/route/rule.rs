//! One rule of a route table: which requests, where they go, and what happens to them on the way.
//!
//! In: a [`Rule`] as configured, and the clusters it names. Out: a [`Route`], which answers every question about a request
//! that fell under it without looking anything up. Immutable; made once per configuration, shared by all workers.
//!
//! Invariant: a route that forwards has a backend with a weight above zero.
//! Surprise: a rule is apart from its clusters, because clusters change more often: a route is remade around the same rule.
//! Non-goal: acting. [`super::filter`] changes heads, [`crate::policy`] does the rest.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::request::Parts;

use super::cors::Cors;
use super::fraction::Fraction;
use super::hash::{self, Affinity, HashPolicy};
use super::matcher::{InvalidTable, Matches};
use super::mutation::Mutations;
use super::policies::{Direct, RateLimit};
use super::redirect::Redirect;
use super::rewrite::PathRewrite;
use crate::policy::fault::FaultPolicy;
use crate::policy::mirror::Mirror;
use crate::policy::retry::RetryPolicy;
use crate::record::RuleName;
use crate::xds::Cluster;

/// A rule as configured, without the clusters it leads to.
#[derive(Debug, PartialEq)]
pub struct Rule {
    /// Its name; empty when it has none.
    pub name: Arc<str>,
    /// Which requests.
    pub matches: Matches,
    /// What becomes of them.
    pub action: Action,
    /// What changes in them.
    pub filters: Filters,
    /// Faults on purpose.
    pub fault: Option<FaultPolicy>,
    /// How many are admitted.
    pub rate_limit: Option<RateLimit>,
    /// What browsers may do with the answers.
    pub cors: Option<Cors>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// It goes to a backend.
    Forward(Forward),
    /// Its client is sent elsewhere.
    Redirect(Redirect),
    /// The proxy answers.
    Direct(Direct),
}

/// How a request is forwarded.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// How long it may take; `None` = as long as it takes.
    pub timeout: Option<Duration>,
    /// When it is sent again.
    pub retry: Option<RetryPolicy>,
    /// What requests that belong together have in common.
    pub hash: Box<[HashPolicy]>,
    /// The status when its cluster does not exist.
    pub cluster_not_found: StatusCode,
}

impl Default for Forward {
    /// What xDS means where nothing is said: 15 seconds, no retry, 503 without a cluster.
    fn default() -> Self {
        Self {
            timeout: Some(TIMEOUT_DEFAULT),
            retry: None,
            hash: [].into(),
            cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// What xDS means by an unset `timeout`.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

/// What a rule changes in the heads that pass.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filters {
    /// The request's headers.
    pub request: Mutations,
    /// The response's headers, the proxy's own answers included.
    pub response: Mutations,
    /// The request's host.
    pub host: Option<HostRewrite>,
    /// The request's path.
    pub path: Option<PathRewrite>,
}

/// Another host for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRewrite {
    /// The new one; `None` only notes the present one.
    pub host: http::HeaderValue,
    /// Whether the former one is appended to `x-forwarded-host`.
    pub append_forwarded_host: bool,
}

/// What one backend of a rule changes, before the rule itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BackendFilters {
    /// The request's headers.
    pub request: Mutations,
    /// The response's headers.
    pub response: Mutations,
    /// The request's host.
    pub host: Option<http::HeaderValue>,
}

/// One cluster that a route sends to, with its share.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Share relative to its siblings.
    pub weight: u32,
    /// What it changes.
    pub filters: Arc<BackendFilters>,
}

impl Backend {
    /// A backend that changes nothing.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, weight: u32) -> Self {
        Self { cluster, weight, filters: Arc::default() }
    }
}

/// A rule with its clusters.
#[derive(Debug)]
pub struct Route {
    rule: Arc<Rule>,
    catch_all: bool,
    /// Empty iff the rule does not forward.
    backends: Box<[Backend]>,
    /// Sum of the weights.
    weight_total: u64,
    mirrors: Box<[Mirror]>,
    /// The backends' names in telemetry.
    names: Box<[Arc<RuleName>]>,
}

impl Route {
    /// A plain route to one cluster.
    #[must_use]
    pub fn new(name: &str, matches: Matches, cluster: Arc<Cluster>) -> Arc<Self> {
        let rule = Arc::new(Rule::to_backend(name, matches));
        Arc::new(Self::joined(rule, [Backend::new(cluster, 1)].into(), 1, [].into()))
    }

    /// A plain route that splits among clusters by weight.
    ///
    /// # Errors
    /// When there is no backend or all weights are zero.
    pub fn split(name: &str, matches: Matches, backends: Vec<Backend>) -> Result<Arc<Self>, InvalidTable> {
        Self::of(Arc::new(Rule::to_backend(name, matches)), backends, vec![])
    }

    /// A rule with its clusters.
    ///
    /// # Errors
    /// When it forwards and there is no backend, or all weights are zero.
    pub fn of(
        rule: Arc<Rule>,
        backends: Vec<Backend>,
        mirrors: Vec<Mirror>,
    ) -> Result<Arc<Self>, InvalidTable> {
        let weight_total = backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let forwards = matches!(rule.action, Action::Forward(_));
        if forwards && weight_total == 0 {
            return Err(InvalidTable::NoBackend { route: (&*rule.name).into() });
        }
        let backends = if forwards { backends.into() } else { [].into() };
        Ok(Arc::new(Self::joined(rule, backends, weight_total, mirrors.into())))
    }

    fn joined(rule: Arc<Rule>, backends: Box<[Backend]>, weight_total: u64, mirrors: Box<[Mirror]>) -> Self {
        let name = |backend: &Backend| RuleName::resolve(&rule.name, &backend.cluster.name);
        let names = backends.iter().map(name).collect();
        Self { catch_all: rule.matches.is_all(), rule, backends, weight_total, mirrors, names }
    }

    /// What a backend is called in telemetry.
    #[must_use]
    pub fn name_of(&self, backend: usize) -> Option<&Arc<RuleName>> {
        self.names.get(backend)
    }

    /// The route's name as configured; empty when it has none.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.rule.name
    }

    /// What the route asks of a request.
    #[must_use]
    pub fn matches(&self) -> &Matches {
        &self.rule.matches
    }

    /// Whether it takes every request.
    pub(super) fn is_catch_all(&self) -> bool {
        self.catch_all
    }

    /// What becomes of a request.
    #[must_use]
    pub fn action(&self) -> &Action {
        &self.rule.action
    }

    /// What changes in a request and its response.
    #[must_use]
    pub fn filters(&self) -> &Filters {
        &self.rule.filters
    }

    /// How long a request may take; `None` = as long as it takes.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.forward()?.timeout
    }

    /// When a request is sent again.
    #[must_use]
    pub fn retry(&self) -> Option<&RetryPolicy> {
        self.forward()?.retry.as_ref()
    }

    /// What ring hash and maglev send a request by. A client that has to get a cookie does not have one yet:
    /// [`affinity`](Self::affinity) makes it.
    #[must_use]
    pub fn hash(&self, request: &Parts, client: IpAddr) -> Option<u64> {
        self.affinity(request, Some(client)).hash
    }

    /// The hash of a request, and the cookie that its client gets so that the next request has the same one.
    #[must_use]
    pub fn affinity(&self, request: &Parts, client: Option<IpAddr>) -> Affinity {
        match self.forward() {
            Some(Forward { hash, .. }) if !hash.is_empty() => {
                hash::affinity(hash, request, client, fastrand::u64(..))
            }
            _ => Affinity::default(),
        }
    }

    /// Whether anything stands in front of it: a fault, a limit.
    #[must_use]
    pub fn is_fronted(&self) -> bool {
        self.rule.fault.is_some() || self.rule.rate_limit.is_some()
    }

    /// Whether anything guards its requests once they are under way: a timeout, retries, a mirror.
    #[must_use]
    pub fn guards(&self) -> bool {
        !self.mirrors.is_empty()
            || self.forward().is_some_and(|forward| forward.timeout.is_some() || forward.retry.is_some())
    }

    /// Where copies of a request go.
    #[must_use]
    pub fn mirrors(&self) -> &[Mirror] {
        &self.mirrors
    }

    /// Faults on purpose.
    #[must_use]
    pub fn fault(&self) -> Option<&FaultPolicy> {
        self.rule.fault.as_ref()
    }

    /// How many requests are admitted.
    #[must_use]
    pub fn rate_limit(&self) -> Option<&RateLimit> {
        self.rule.rate_limit.as_ref()
    }

    /// What browsers may do with the answers.
    #[must_use]
    pub fn cors(&self) -> Option<&Cors> {
        self.rule.cors.as_ref()
    }

    /// The rule, by identity the same as long as its configuration does not change: what state of a rule, such as the
    /// tokens of its rate limit, can be kept by.
    #[must_use]
    pub fn rule(&self) -> &Arc<Rule> {
        &self.rule
    }

    /// The position of the backend for one request: drawn by weight where there are several, so ask once per request.
    /// `None` when the route does not forward.
    #[must_use]
    pub fn draw(&self) -> Option<usize> {
        match &*self.backends {
            [] => None,
            [_] => Some(0),
            several => {
                let draw = fastrand::u64(..self.weight_total);
                Some(pick_weighted(several.iter().map(|backend| backend.weight), draw))
            }
        }
    }

    /// Every cluster the route can send to; empty when it does not forward.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    fn forward(&self) -> Option<&Forward> {
        match &self.rule.action {
            Action::Forward(forward) => Some(forward),
            Action::Redirect(_) | Action::Direct(_) => None,
        }
    }
}

impl Rule {
    /// A rule that forwards and does nothing else: no time limit, no retries.
    #[must_use]
    pub fn to_backend(name: &str, matches: Matches) -> Self {
        Self {
            name: name.into(),
            matches,
            action: Action::Forward(Forward { timeout: None, ..Forward::default() }),
            filters: Filters::default(),
            fault: None,
            rate_limit: None,
            cors: None,
        }
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

/// A copy of requests whose cluster is a name, as the parser reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct MirrorDraft {
    /// Where to.
    pub cluster: Arc<str>,
    /// Which share.
    pub share: Fraction,
    /// Whether the copy's host gets no `-shadow`.
    pub plain_host: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::xds::ClusterSpec;

    #[test]
    fn a_route_that_forwards_has_somewhere_to_go() {
        assert!(Route::split("none", Matches::all(), vec![]).is_err());
        let idle = Backend::new(Cluster::new(ClusterSpec::new("a"), vec![]), 0);
        assert!(Route::split("zero", Matches::all(), vec![idle]).is_err());
        let direct = Direct { status: StatusCode::IM_A_TEAPOT, body: bytes::Bytes::new() };
        let rule = Rule { action: Action::Direct(direct), ..Rule::to_backend("direct", Matches::all()) };
        let direct = Route::of(Arc::new(rule), vec![], vec![]).expect("needs no backend");
        assert_eq!((direct.draw(), direct.timeout(), direct.backends().len()), (None, None, 0));
    }

    proptest! {
        #[test]
        fn weights_are_honoured_exactly(weights in proptest::collection::vec(0..50_u32, 1..6)) {
            let total: u32 = weights.iter().sum();
            let mut drawn = vec![0; weights.len()];
            for draw in 0..u64::from(total) {
                drawn[pick_weighted(weights.iter().copied(), draw)] += 1;
            }
            prop_assert_eq!(drawn, weights);
        }
    }
}
