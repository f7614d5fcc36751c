//! Who may call what: AccessPolicies as the world is told of them, and what they come to at an address.
//!
//! In: [`AccessSpec`]s that `resources` has parsed, and the posture of namespaces. Out: [`AccessView`]: every policy that
//! selects an address, in order of name, and whether mutual TLS is asked for there. What a request may do is said by
//! [`judge`](AccessView::judge), and by `compile` to sidecars.
//!
//! Invariants: a policy counts only in its own namespace; deny wins; where any enforced policy allows, what none allows is
//! denied; a condition on identity never lets a plain caller in, and one that excludes never lets a plain caller off.
//! Surprise: conditions on HTTP do not hold for bytes where they would allow, and hold where they would deny, so
//! that nobody gets around a policy by not speaking HTTP.

mod judge;
mod status;
mod tables;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use weft_wire::ServiceId;
use weft_wire::tls::Mode;

use super::World;
use super::policy::{PolicyId, Target};
use super::route::{Created, PathMatch, Pattern, ValueMatch};

pub use judge::{Ask, Audit, Cause, Judgement, Speaks};
pub(super) use tables::{Scope, Tables};

/// An AccessPolicy.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessSpec {
    /// The policy.
    pub id: PolicyId,
    /// When it was created: the older of two that set mutual TLS differently wins.
    pub created: Created,
    /// The version of its spec, where an API server counts it.
    pub generation: Option<i64>,
    /// The services, or their ports, that it is for; empty is every workload of its namespace.
    pub targets: Vec<Target>,
    /// Who may call, or may not. Absent: it says nothing about that.
    pub access: Option<Access>,
    /// Whether mutual TLS is asked for.
    pub mtls: Mtls,
}

/// What a policy does with those whom its rules name.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// Whether they may, or may not.
    pub action: Action,
    /// Whether it is only counted what would be denied.
    pub audit: bool,
    /// Whom and what it names: any of these. No rule names nobody.
    pub rules: Vec<AccessRule>,
}

/// Whether a rule lets in or keeps out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Lets in; all others stay out.
    Allow,
    /// Keeps out.
    Deny,
}

/// One rule: any of the sources, with any of the operations.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AccessRule {
    /// Who calls; empty is anybody.
    pub from: Vec<Source>,
    /// What is asked; empty is anything.
    pub to: Vec<Operation>,
}

/// Who calls. Everything that is set must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// This service account.
    pub service_account: Option<AccountName>,
    /// A service account of this namespace.
    pub namespace: Option<Box<str>>,
    /// None of this namespace.
    pub not_namespace: Option<Box<str>>,
    /// Not this service account.
    pub not_service_account: Option<AccountName>,
    /// Of this trust domain instead of the mesh's own.
    pub trust_domain: Option<Box<str>>,
    /// `Some(true)`: anybody with an identity. `Some(false)`: nobody with one; then nothing else is set.
    pub authenticated: Option<bool>,
}

impl Source {
    /// Whether only a caller with an identity can be meant.
    #[must_use]
    pub fn needs_identity(&self) -> bool {
        self.service_account.is_some()
            || self.namespace.is_some()
            || self.trust_domain.is_some()
            || self.authenticated == Some(true)
    }
}

/// A service account. `Display` is `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountName {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is asked. Everything that is set must hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Operation {
    /// One of these methods; empty is any.
    pub methods: Vec<Box<str>>,
    /// One of these paths, gRPC calls included; empty is any.
    pub paths: Vec<PathMatch>,
    /// All of these headers.
    pub headers: Vec<ValueMatch>,
    /// At one of these ports, as the app listens; empty is any.
    pub ports: Vec<u16>,
}

impl Operation {
    /// Whether it looks at what only HTTP has.
    #[must_use]
    pub fn is_http(&self) -> bool {
        !(self.methods.is_empty() && self.paths.is_empty() && self.headers.is_empty())
    }

    /// Whether it is meant for a port at all.
    #[must_use]
    pub fn is_at(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

/// Whether mutual TLS is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mtls {
    /// At every port.
    pub mode: Option<Mode>,
    /// At these ports, as the app listens, instead.
    pub ports: BTreeMap<u16, Mode>,
}

impl Mtls {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mode.is_none() && self.ports.is_empty()
    }
}

/// What happens where no policy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Posture {
    /// Everybody may.
    #[default]
    Allow,
    /// Nobody may.
    Deny,
}

impl Posture {
    /// The word in annotations.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// A namespace, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceSpec {
    /// Its name.
    pub name: Arc<str>,
    /// What happens in it where no policy speaks.
    pub posture: Posture,
    /// Whether its pods get sidecars, as far as it says.
    pub inject: Option<bool>,
    /// Whether owners of pods that lack one may be restarted, as far as it says.
    pub restart: Option<bool>,
}

/// One rule of a policy, as xDS and telemetry call it: `AccessPolicy/shop/orders/0`.
#[must_use]
pub fn rule_name(id: &PolicyId, index: usize) -> String {
    format!("{}/{}/{index}", id.kind.word(), id.name)
}

/// What policies come to at one address.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessView<'a> {
    /// The port that the app listens on.
    pub port: u16,
    /// What happens where no policy speaks.
    pub posture: Posture,
    /// The policies that have a say, in order of name.
    pub policies: Vec<(&'a PolicyId, &'a Access)>,
    /// The trust domain whose identities count unless a rule names another.
    pub trust_domain: &'a str,
}

impl<'a> AccessView<'a> {
    /// The policies of one kind.
    pub fn of(&self, action: Action, audit: bool) -> impl Iterator<Item = (&'a PolicyId, &'a Access)> + '_ {
        self.policies.iter().copied().filter(move |(_, it)| it.action == action && it.audit == audit)
    }

    /// Whether who is not allowed is denied.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.posture == Posture::Deny || self.of(Action::Allow, false).next().is_some()
    }

    /// Whether nobody has to be looked at, neither to be refused nor to be counted.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.policies.is_empty() && self.posture == Posture::Allow
    }

    /// Whether an enforced policy looks at paths.
    #[must_use]
    pub fn looks_at_paths(&self) -> bool {
        let enforced = self.policies.iter().filter(|(_, access)| !access.audit);
        let mut operations = enforced.flat_map(|(_, access)| &access.rules).flat_map(|rule| &rule.to);
        operations.any(|operation| operation.is_at(self.port) && !operation.paths.is_empty())
    }
}

impl World {
    /// The policies that select an address, and what holds without them.
    #[must_use]
    pub fn access_at(&self, address: SocketAddr) -> AccessView<'_> {
        let policies = self.selecting_access(address);
        let policies = policies.filter_map(|spec| Some((&spec.id, spec.access.as_ref()?)));
        let mut policies: Vec<_> = policies.collect();
        policies.sort_by_key(|(id, _)| *id);
        policies.dedup_by_key(|(id, _)| *id);
        let namespace = self.namespace_at(address);
        let posture = namespace.map_or(Posture::default(), |namespace| self.access.posture(&namespace));
        AccessView { port: address.port(), posture, policies, trust_domain: self.trust_domain() }
    }

    /// Whether at every port of a namespace's pods those are kept out whom no policy lets in.
    #[must_use]
    pub fn is_closed(&self, namespace: &str) -> bool {
        if self.access.posture(namespace) == Posture::Deny {
            // It said so itself, whatever policies open later.
            return true;
        }
        let mut is_closed = false;
        for access in self.access.in_namespace(namespace).filter_map(|spec| spec.access.as_ref()) {
            if access.action == Action::Allow && !access.audit {
                // A rule that names nobody and nothing is about everybody and everything.
                if access.rules.iter().any(|rule| rule.from.is_empty() && rule.to.is_empty()) {
                    return false;
                }
                is_closed = true;
            }
        }
        is_closed
    }

    /// Every policy on access, in order of name.
    #[must_use]
    pub fn access_policies(&self) -> Vec<&AccessSpec> {
        let mut policies: Vec<_> = self.access.policies().collect();
        policies.sort_by_key(|spec| &spec.id);
        policies
    }

    /// Whether mutual TLS is asked for at an address.
    #[must_use]
    pub fn mtls_at(&self, address: SocketAddr) -> Mode {
        self.mtls_winner(address).map_or(Mode::default(), |(_, mode)| mode)
    }

    /// The policy that says so. The most specific counts, then one that names the port, then the oldest.
    pub(super) fn mtls_winner(&self, address: SocketAddr) -> Option<(&PolicyId, Mode)> {
        let port = address.port();
        let candidates = self.selecting_access(address).filter_map(|spec| {
            let named = spec.mtls.ports.get(&port);
            let mode = named.copied().or(spec.mtls.mode)?;
            let level = self.level_at(spec, address);
            let rank = (level, named.is_none(), spec.created.is_none(), spec.created, &spec.id.name);
            Some((rank, &spec.id, mode))
        });
        candidates.min_by(|a, b| a.0.cmp(&b.0)).map(|(_, id, mode)| (id, mode))
    }

    /// How specific a policy is for an address; the lower, the more.
    fn level_at(&self, spec: &AccessSpec, address: SocketAddr) -> u8 {
        let level = |target: &Target| match target {
            Target::Service(_, Some(_)) => Some(0),
            Target::Service(_, None) => Some(1),
            Target::Route(..) => None,
        };
        let here = spec.targets.iter().filter(|target| self.is_at(target, address));
        here.filter_map(level).min().unwrap_or(2)
    }

    /// Every policy that selects an address; one that selects it twice may come twice.
    ///
    /// A service of another namespace may have the address too, because whoever writes its slices says so. Its policies say
    /// nothing here: they would let in whom the address's own namespace keeps out.
    fn selecting_access(&self, address: SocketAddr) -> impl Iterator<Item = &AccessSpec> {
        let namespace = self.namespace_at(address);
        let own = namespace.clone();
        let by_service = self.by_endpoint(address).flat_map(|port| self.access.on_service(&port.service));
        let by_service = by_service.filter(move |spec| {
            own.as_ref() == Some(&spec.id.name.namespace)
                && spec.targets.iter().any(|target| self.is_at(target, address))
        });
        by_service.chain(namespace.into_iter().flat_map(|namespace| self.access.in_namespace(&namespace)))
    }

    /// Whether an address belongs to what a policy is for.
    fn is_at(&self, target: &Target, address: SocketAddr) -> bool {
        let Target::Service(id, section) = target else { return false };
        let mut ports = self.by_endpoint(address).filter(|port| port.service == *id);
        ports.any(|port| section.as_deref().is_none_or(|name| self.port_name(id, port.port) == Some(name)))
    }

    fn port_name(&self, id: &ServiceId, number: u16) -> Option<&str> {
        self.services.get(id)?.port(number).map(|port| &*port.name)
    }

    /// The namespace of whoever is at an address: of its pods, else of the workload that a program says it is, else of the
    /// first service by name.
    #[must_use]
    pub fn namespace_at(&self, address: SocketAddr) -> Option<Arc<str>> {
        if let Some(namespace) = self.pods.namespace_on(address.ip()) {
            return Some(namespace);
        }
        let mut ports = self.by_endpoint(address);
        let first = ports.next();
        let known = first.and_then(|port| {
            let port = self.services.get(&port.service)?.port(port.port)?;
            port.endpoints.iter().find(|endpoint| endpoint.address == address)?.peer.clone()
        });
        let known = known.or_else(|| self.peer_at(address.ip()));
        let namespace = known.as_ref().map(|peer| peer.workload.namespace());
        namespace.or(first.map(|port| port.service.namespace())).map(Arc::from)
    }
}

/// Whether a text is what a pattern says. Expressions have been compiled before; one that cannot be holds for nothing.
fn matches(pattern: &Pattern, text: &str) -> bool {
    match pattern {
        Pattern::Exact(exact) => **exact == *text,
        Pattern::Regex(expression) => regex::Regex::new(&format!("^(?:{expression})$"))
            .is_ok_and(|expression| expression.is_match(text)),
    }
}

#[cfg(test)]
mod tests;
