//! One stream's state: what was asked for, what was sent, what is due.
//!
//! In: requests, word of changes. Out: responses, one at a time, when [`Session::next`] is asked. No IO and no
//! clock, and no compiled resource is kept: only names and versions, so a stream costs little however slow its
//! client is, and what is sent late is sent in its latest state.
//!
//! Invariants: at most one response per kind is outstanding; a resource is sent only if its version differs
//! from the one the client has; clusters and endpoints are sent before listeners and routes, and taken away
//! after them, so that a reference is good when it arrives and until it is gone.
//!
//! Surprise: while the control plane *warms up* (it has just started, and sidecars that register themselves
//! have not all come back) nothing provisional is changed that a client brought along. Otherwise every
//! restart would take away the endpoints of whoever reconnects late.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as DiscoveryResource,
};

use super::{Kind, KindStatus, Refusal, Running};
use crate::compile::Resource;
use crate::world::{Key, Touched};

/// Names one stream may subscribe to, per kind. A sidecar asks for what its pod calls: tens, a crawler
/// thousands. About 150 bytes each, so a hostile stream costs 6 MB at most.
pub(super) const SUBSCRIPTIONS_MAX: usize = 10_000;
/// Longest name: a DNS name, a prefix and a port fit. Who asks for a longer one is not asking for a resource.
const NAME_MAX: usize = 300;
/// A response is closed when its resources exceed this; what is left goes into the next one. gRPC clients
/// accept 4 MiB by default, and a single large service (5,000 endpoints) is below 1 MiB.
const RESPONSE_BYTES: usize = 1024 * 1024;
/// Resources named in one response, sent or removed.
const RESPONSE_NAMES: usize = 1000;
/// How much of a client's complaint is kept.
const NACK_MAX: usize = 1000;

/// A sidecar that refuses several resources of one response names this many of them at most.
const COMPLAINTS_TOLD: usize = 8;

/// Asks for everything, by the protocol.
const WILDCARD: &str = "*";

/// What the client did that the protocol does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// A type of resource that is not served here.
    #[error(
        "type_url {0:?} is not served here: only listeners, routes, clusters, endpoints, secrets and runtime layers are"
    )]
    UnknownType(String),
    /// A name that is too long to be one.
    #[error("a {kind} resource name of {length} bytes: at most {NAME_MAX} are allowed")]
    NameTooLong {
        /// Of which kind.
        kind: Kind,
        /// How long it is.
        length: usize,
    },
    /// Too many names.
    #[error("more than {SUBSCRIPTIONS_MAX} {kind} subscriptions on one stream")]
    TooMany {
        /// Of which kind.
        kind: Kind,
    },
}

/// Where a stream's resources come from: the world, seen through one asker's eyes.
pub(super) trait Source {
    /// The key that a name depends on.
    fn depends_on(&self, kind: Kind, name: &str) -> Option<Key>;
    /// The resource, if there is one.
    fn resource(&self, kind: Kind, name: &str) -> Option<Resource>;
    /// The names a wildcard covers.
    fn every_name(&self, kind: Kind) -> Vec<String>;
    /// Whether the control plane has just started.
    fn warming_up(&self) -> bool;
}

/// What the client has, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sent {
    /// Nothing was said yet.
    Nothing,
    /// It was told that there is no such thing.
    Absent,
    /// It came with this version from an earlier stream, perhaps to another control plane.
    Brought(Box<str>),
    /// It was sent this version on this stream, or came with what is current.
    Version(Box<str>),
}

struct Subscription {
    key: Option<Key>,
    sent: Sent,
    /// Asked for by name. What only a wildcard covers goes away with the resource.
    named: bool,
    /// The version that the client said it runs.
    acked: Option<Arc<str>>,
    /// The version that it refused after that.
    refused: Option<Arc<Refusal>>,
}

#[derive(Default)]
struct KindState {
    subscriptions: HashMap<Arc<str>, Subscription>,
    due: BTreeSet<Arc<str>>,
    /// Due again when the control plane is warm.
    held: BTreeSet<Arc<str>>,
    wildcard: bool,
    relist: bool,
    /// The client waits for an answer even if there is nothing to say.
    answer: bool,
    seen: bool,
    outstanding: Option<Box<str>>,
    /// Names in the response that is outstanding; at most [`RESPONSE_NAMES`].
    flying: Vec<Arc<str>>,
    acked: u64,
    nacked: u64,
    last_nack: Option<String>,
    /// What `status` tells of each name; made anew when something about one of them has changed.
    running: Option<Arc<[Running]>>,
}

/// One stream.
pub(super) struct Session {
    kinds: [KindState; 6],
    nonce: u64,
    /// Whether a first request without names means "everything", as the protocol has it for listeners and
    /// clusters. Our own sidecars are lazy and say `*` if they ever mean it.
    implicit_wildcard: bool,
}

/// What may go into a response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Everything but taking away what the client has.
    Add,
    /// Everything.
    Any,
}

impl Session {
    /// A stream on which nothing has been said.
    #[must_use]
    pub(super) fn new(implicit_wildcard: bool) -> Self {
        Self { kinds: Default::default(), nonce: 0, implicit_wildcard }
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// When the client violates the protocol; the stream must end.
    pub(super) fn request(
        &mut self,
        request: DeltaDiscoveryRequest,
        source: &impl Source,
    ) -> Result<(), Violation> {
        let kind = Kind::from_type_url(&request.type_url)
            .ok_or_else(|| Violation::UnknownType(request.type_url.chars().take(NAME_MAX).collect()))?;
        let implicit_wildcard = self.implicit_wildcard;
        let state = &mut self.kinds[kind as usize];
        state.acknowledge(&request);

        let first = !std::mem::replace(&mut state.seen, true);
        let wild = |names: &[String]| names.iter().any(|name| name == WILDCARD);
        let can_be_wild = matches!(kind, Kind::Cluster | Kind::Listener);
        let nothing_named = request.resource_names_subscribe.is_empty();
        if can_be_wild
            && (wild(&request.resource_names_subscribe) || first && nothing_named && implicit_wildcard)
        {
            state.wildcard = true;
            state.relist = true;
            state.answer = true;
        }
        if wild(&request.resource_names_unsubscribe) {
            state.wildcard = false;
            state.keep_named();
        }
        for name in request.resource_names_unsubscribe {
            state.unsubscribe(&name);
        }
        let mut versions = if first { request.initial_resource_versions } else { HashMap::new() };
        if state.wildcard {
            // What it has and is not asked about by name: either current, or to be taken away.
            for (name, version) in versions.drain().filter(|(name, _)| name.len() <= NAME_MAX) {
                state.subscribe(kind, name.into(), Some(version), false, source)?;
            }
        }
        for name in request.resource_names_subscribe {
            if name != WILDCARD {
                let version = versions.remove(&name);
                state.subscribe(kind, name.into(), version, true, source)?;
            }
        }
        Ok(())
    }

    /// Marks what a change touched as due.
    pub(super) fn touched(&mut self, touched: &Touched) {
        for state in &mut self.kinds {
            state.relist |= state.wildcard && touched.any_service();
            let hit = |subscription: &Subscription| {
                subscription.key.as_ref().is_some_and(|key| touched.contains(key))
            };
            let due = state.subscriptions.iter().filter(|(_, subscription)| hit(subscription));
            state.due.extend(due.map(|(name, _)| Arc::clone(name)));
        }
    }

    /// Marks everything as due: some word of changes was lost.
    pub(super) fn all_touched(&mut self) {
        for state in &mut self.kinds {
            state.relist |= state.wildcard;
            state.due.extend(state.subscriptions.keys().cloned());
        }
    }

    /// Marks what was held back as due: the control plane is warm now.
    pub(super) fn warmed_up(&mut self) {
        for state in &mut self.kinds {
            state.due.append(&mut state.held);
        }
    }

    /// Whether [`Session::next`] could have something to send now.
    #[must_use]
    pub(super) fn is_due(&self) -> bool {
        self.kinds.iter().any(|state| state.outstanding.is_none() && state.is_due())
    }

    /// The next response, if one may be sent now.
    pub(super) fn next(&mut self, source: &impl Source) -> Option<DeltaDiscoveryResponse> {
        for kind in Kind::ALL {
            // Clusters and endpoints are taken away last: see below.
            let pass = if matches!(kind, Kind::Cluster | Kind::Endpoint) { Pass::Add } else { Pass::Any };
            if let Some(response) = self.next_of(kind, pass, source) {
                return Some(response);
            }
        }
        let refers = |state: &KindState| state.is_due() || state.outstanding.is_some();
        if refers(&self.kinds[Kind::Listener as usize]) || refers(&self.kinds[Kind::Route as usize]) {
            return None;
        }
        [Kind::Endpoint, Kind::Cluster].into_iter().find_map(|kind| self.next_of(kind, Pass::Any, source))
    }

    /// How each kind that was ever asked for fares.
    #[must_use]
    pub(super) fn status(&mut self) -> BTreeMap<Kind, KindStatus> {
        let seen = Kind::ALL.into_iter().zip(&mut self.kinds).filter(|(_, state)| state.seen);
        seen.map(|(kind, state)| (kind, state.status())).collect()
    }

    fn next_of(&mut self, kind: Kind, pass: Pass, source: &impl Source) -> Option<DeltaDiscoveryResponse> {
        let state = &mut self.kinds[kind as usize];
        if state.outstanding.is_some() {
            return None;
        }
        if std::mem::take(&mut state.relist) {
            state.cover(kind, source);
        }
        let (resources, removed_resources) = state.collect(kind, pass, source);
        let answer = state.due.is_empty() && std::mem::take(&mut state.answer);
        if resources.is_empty() && removed_resources.is_empty() && !answer {
            return None;
        }
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        state.outstanding = Some(nonce.as_str().into());
        Some(DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            resources,
            removed_resources,
            nonce,
            ..Default::default()
        })
    }
}

impl KindState {
    fn is_due(&self) -> bool {
        !self.due.is_empty() || self.relist || self.answer
    }

    fn acknowledge(&mut self, request: &DeltaDiscoveryRequest) {
        // A nonce that is not the outstanding one answers something older: nothing to learn from it.
        if request.response_nonce.is_empty() || self.outstanding.as_deref() != Some(&request.response_nonce) {
            return;
        }
        self.outstanding = None;
        self.running = None;
        let flown = std::mem::take(&mut self.flying);
        let Some(error) = &request.error_detail else {
            self.acked += 1;
            for name in flown {
                self.accepted(&name);
            }
            return;
        };
        self.nacked += 1;
        let message: Arc<str> = error.message.chars().take(NACK_MAX).collect::<String>().into();
        self.last_nack = Some(message.to_string());
        // By the protocol a response is refused as a whole; ours, and Envoy, take what is good and name the rest.
        let (named, others): (Vec<_>, Vec<_>) =
            flown.into_iter().partition(|name| is_named(&error.message, name));
        if named.is_empty() {
            others.iter().for_each(|name| self.refused(name, &message));
        } else if named.len() < COMPLAINTS_TOLD {
            others.iter().for_each(|name| self.accepted(name));
        }
        named.iter().for_each(|name| self.refused(name, &message));
    }

    fn accepted(&mut self, name: &str) {
        let Some(subscription) = self.subscriptions.get_mut(name) else { return };
        subscription.acked = match &subscription.sent {
            Sent::Version(version) => Some((**version).into()),
            Sent::Absent | Sent::Brought(_) | Sent::Nothing => None,
        };
        subscription.refused = None;
    }

    fn refused(&mut self, name: &str, message: &Arc<str>) {
        let Some(subscription) = self.subscriptions.get_mut(name) else { return };
        if let Sent::Version(version) = &subscription.sent {
            let refusal = Refusal { version: (**version).into(), message: message.clone() };
            subscription.refused = Some(refusal.into());
        }
    }

    fn subscribe(
        &mut self,
        kind: Kind,
        name: Arc<str>,
        version: Option<String>,
        named: bool,
        source: &impl Source,
    ) -> Result<(), Violation> {
        if name.len() > NAME_MAX {
            return Err(Violation::NameTooLong { kind, length: name.len() });
        }
        if self.subscriptions.len() >= SUBSCRIPTIONS_MAX && !self.subscriptions.contains_key(&name) {
            return Err(Violation::TooMany { kind });
        }
        let key = source.depends_on(kind, &name);
        // Asking again for a name means "tell me again", by the protocol.
        let sent = version.map_or(Sent::Nothing, |version| Sent::Brought(version.into()));
        self.due.insert(Arc::clone(&name));
        // Who asks again still runs what it runs.
        let known = self.subscriptions.remove(&name).filter(|_| matches!(sent, Sent::Nothing));
        let (acked, refused) = known.map(|known| (known.acked, known.refused)).unwrap_or_default();
        self.subscriptions.insert(name, Subscription { key, sent, named, acked, refused });
        self.running = None;
        Ok(())
    }

    fn unsubscribe(&mut self, name: &str) {
        if self.wildcard
            && let Some(subscription) = self.subscriptions.get_mut(name)
        {
            subscription.named = false;
        } else if self.subscriptions.remove(name).is_some() {
            self.due.remove(name);
            self.held.remove(name);
            self.running = None;
        }
    }

    /// Forgets what only the wildcard covered, also where it is due: while a response is outstanding nothing else
    /// would empty these sets.
    fn keep_named(&mut self) {
        self.subscriptions.retain(|_, subscription| subscription.named);
        self.due.retain(|name| self.subscriptions.contains_key(name));
        self.held.retain(|name| self.subscriptions.contains_key(name));
        self.running = None;
    }

    /// Brings a wildcard's subscriptions in line with what there is.
    fn cover(&mut self, kind: Kind, source: &impl Source) {
        for name in source.every_name(kind) {
            let name: Arc<str> = name.into();
            if !self.subscriptions.contains_key(&name) {
                // The bound holds here too; a client that wants more than that is not served whole.
                let _too_many = self.subscribe(kind, name, None, false, source);
            }
        }
    }

    /// Resources and removed names for one response; what does not fit stays due.
    fn collect(
        &mut self,
        kind: Kind,
        pass: Pass,
        source: &impl Source,
    ) -> (Vec<DiscoveryResource>, Vec<String>) {
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        let mut later = BTreeSet::new();
        let mut bytes = 0;
        while bytes < RESPONSE_BYTES && resources.len() + removed.len() < RESPONSE_NAMES {
            let Some(name) = self.due.pop_first() else { break };
            let Some(subscription) = self.subscriptions.get_mut(&name) else { continue };
            let resource = if subscription.key.is_some() { source.resource(kind, &name) } else { None };
            let (has, brought) = match &subscription.sent {
                Sent::Absent | Sent::Nothing => (None, false),
                Sent::Brought(version) => (Some(version), true),
                Sent::Version(version) => (Some(version), false),
            };
            let provisional = resource.as_ref().is_none_or(|resource| resource.provisional);
            match resource {
                Some(resource) if has == Some(&resource.version) => {
                    if brought {
                        subscription.acked = Some((*resource.version).into());
                        self.running = None;
                    }
                    subscription.sent = Sent::Version(resource.version);
                }
                _ if brought && provisional && source.warming_up() => {
                    self.held.insert(name);
                }
                Some(resource) => {
                    bytes += resource.body.value.len();
                    subscription.sent = Sent::Version(resource.version.clone());
                    self.flying.push(Arc::clone(&name));
                    resources.push(DiscoveryResource {
                        name: name.to_string(),
                        version: resource.version.into(),
                        resource: Some(resource.body),
                        ..Default::default()
                    });
                }
                None if subscription.sent == Sent::Absent => {}
                None if has.is_some() && pass == Pass::Add => {
                    later.insert(name);
                }
                None => {
                    removed.push(name.to_string());
                    subscription.sent = Sent::Absent;
                    self.flying.push(Arc::clone(&name));
                    if !subscription.named {
                        self.subscriptions.remove(&name);
                        self.running = None;
                    }
                }
            }
        }
        self.due.append(&mut later);
        (resources, removed)
    }

    fn status(&mut self) -> KindStatus {
        let running = self.running.get_or_insert_with(|| {
            let of = |(name, subscription): (&Arc<str>, &Subscription)| Running {
                name: name.clone(),
                acked: subscription.acked.clone(),
                refused: subscription.refused.clone(),
            };
            let mut running: Vec<Running> = self.subscriptions.iter().map(of).collect();
            running.sort_unstable_by(|one, other| one.name.cmp(&other.name));
            running.into()
        });
        KindStatus {
            subscriptions: Arc::clone(running),
            acked: self.acked,
            nacked: self.nacked,
            outstanding: self.outstanding.is_some(),
            last_nack: self.last_nack.clone(),
        }
    }
}

/// Whether a complaint is about `name`: `orders.shop:8080: no such field`.
fn is_named(complaint: &str, name: &str) -> bool {
    let mut rest = complaint;
    while let Some((before, after)) = rest.split_once(name) {
        let begins = before
            .chars()
            .next_back()
            .is_none_or(|c| c.is_whitespace() || matches!(c, '"' | '\'' | ';' | ','));
        let ends = after
            .chars()
            .next()
            .is_none_or(|c| matches!(c, ':' | '"' | '\'' | ',' | ';') || c.is_whitespace());
        if begins && ends {
            return true;
        }
        rest = after;
    }
    false
}

#[cfg(test)]
mod tests;
