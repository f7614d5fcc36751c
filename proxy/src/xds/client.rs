//! The xDS client without sockets and clock: one step function.
//!
//! In: an [`Input`] and the time. Out: an [`Output`] for the shell to carry out, and requests to be fetched with
//! [`Client::next_request`] when the stream has room. Everything is decided here; [`super::task`] only moves bytes.
//!
//! Invariant: every list in here has a bound, and whoever waits is let go when waiting has become pointless.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use tokio::sync::oneshot;
use weft_wire::node::{NodeMetadata, USER_AGENT};
use weft_wire::tls::TRUST_BUNDLE;
use weft_wire::xds::ListenerName;

use super::directory::{Interest, Map, Status, TypeStatus};
use super::parse;
use super::store::{Needs, Store};
use super::subscription::Subscription;
use crate::identity::Bundle;

/// A destination that nobody used for this long is unsubscribed: longer than any usual keep-alive or cron minute,
/// short enough that a scan's traces are gone soon.
const IDLE: Duration = Duration::from_secs(600);
/// How often to look for idle destinations.
const SWEEP: Duration = Duration::from_secs(60);
/// When all places are taken, a destination idle for this long may be displaced by a new one.
const IDLE_DISPLACED: Duration = Duration::from_secs(10);
/// Most connections that wait for an answer: beyond, new ones pass through without waiting. One costs about 100 bytes
/// here and a connection in a worker, whose own bound is of this order.
const WAITERS_MAX: usize = 4096;
/// For this long after a stream broke it is worth waiting for the next one: a control plane that restarts. Later,
/// waiting would only delay every new connection.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(5);
/// Answers owed before no further response is read.
const ANSWERS_MAX: usize = 16;
/// Most complaints repeated in one NACK.
const COMPLAINTS_MAX: usize = 8;

/// What happens to the client.
#[derive(Debug)]
pub(super) enum Input {
    /// A worker wants to know a destination.
    Want(Interest),
    /// A stream is being opened; nothing has been said on it.
    Opening,
    /// The server has taken the stream.
    Up,
    /// The stream, or an attempt at one, ended.
    Down {
        /// Why.
        reason: String,
    },
    /// The server said something.
    Response(Box<DeltaDiscoveryResponse>),
    /// The deadline has passed.
    Tick,
}

/// The time, as the client needs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Since the directory's birth.
    pub(super) age: Duration,
    /// For people.
    pub(super) wall: SystemTime,
}

/// What the shell must do, in this order.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Publish this map of listeners.
    pub(super) publish: Option<Map>,
    /// Let these waiters look again.
    pub(super) wake: Vec<oneshot::Sender<()>>,
    /// Trust these roots from now.
    pub(super) trust: Option<Bundle>,
    /// The app of this pod has ended.
    pub(super) app_ended: bool,
}

/// The six types, in the order in which they depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Listeners,
    Tables,
    Clusters,
    Endpoints,
    /// Nothing depends on it, nor it on anything.
    Secrets,
    /// Likewise.
    Runtime,
}

const KINDS: [Kind; 6] =
    [Kind::Listeners, Kind::Tables, Kind::Clusters, Kind::Endpoints, Kind::Secrets, Kind::Runtime];

impl Kind {
    fn type_url(self) -> &'static str {
        match self {
            Self::Listeners => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Tables => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Clusters => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Secrets => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
        }
    }

    fn of(type_url: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// The whole client.
#[derive(Debug)]
pub(super) struct Client {
    node: Node,
    listeners_max: usize,
    store: Store,
    /// By [`Kind`].
    subscriptions: [Subscription; 6],
    waiting: HashMap<Arc<ListenerName>, Vec<oneshot::Sender<()>>>,
    waiters: usize,
    status: Status,
    link: Link,
    /// Whether this stream's first request, which carries the node, has been sent.
    introduced: bool,
    swept: Duration,
}

/// State of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    /// Since this age.
    Down(Duration),
}

impl Client {
    pub(super) fn new(
        instance: String,
        node: &NodeMetadata,
        control_plane: String,
        listeners_max: usize,
    ) -> Self {
        Self {
            node: node_message(instance, node),
            listeners_max,
            store: Store::default(),
            subscriptions: KINDS.map(|kind| Subscription::new(kind.type_url())),
            waiting: HashMap::new(),
            waiters: 0,
            status: Status { configured: true, control_plane, ..Status::default() },
            link: Link::Down(Duration::ZERO),
            introduced: false,
            swept: Duration::ZERO,
        }
    }

    /// Asks for the roots of the mesh, from the next stream on.
    pub(super) fn want_trust_bundle(&mut self) {
        self.subscriptions[Kind::Secrets as usize].want(&TRUST_BUNDLE.into());
    }

    /// Asks for the layer of this name, from the next stream on.
    pub(super) fn want_runtime(&mut self, layer: &str) {
        self.subscriptions[Kind::Runtime as usize].want(&layer.into());
    }

    /// What the node says of itself from the next stream on.
    pub(super) fn set_node(&mut self, node: &NodeMetadata) {
        self.node = node_message(std::mem::take(&mut self.node.id), node);
    }

    pub(super) fn step(&mut self, input: Input, now: Now) -> Output {
        let mut output = Output::default();
        match input {
            Input::Want(interest) => self.want(interest, now, &mut output),
            Input::Opening => self.opening(),
            Input::Up => self.up(now),
            Input::Down { reason } => self.down(reason, now),
            Input::Response(response) => self.response(*response, now, &mut output),
            Input::Tick => {}
        }
        self.sweep(now, &mut output);
        self.release(now, &mut output);
        output
    }

    /// When to call [`Client::step`] with [`Input::Tick`] at the latest.
    pub(super) fn deadline(&self) -> Duration {
        let sweep = self.swept + SWEEP;
        match self.link {
            Link::Down(since) if self.waiters > 0 => sweep.min(since + OUTAGE_PATIENCE),
            Link::Down(_) | Link::Up => sweep,
        }
    }

    /// Whether the next response may be read.
    pub(super) fn takes_responses(&self) -> bool {
        self.subscriptions.iter().map(Subscription::owes).sum::<usize>() < ANSWERS_MAX
    }

    pub(super) fn has_request(&self) -> bool {
        !self.introduced || self.subscriptions.iter().any(Subscription::has_request)
    }

    /// What to say next on the stream.
    pub(super) fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        let request = self.subscriptions.iter_mut().find_map(Subscription::next_request);
        if self.introduced {
            return request;
        }
        self.introduced = true;
        // The node introduces itself even when it has nothing to ask yet: its registrations count from then on. No
        // names in a first request for endpoints means "none"; for listeners or clusters it would mean "all".
        let mut request = request.unwrap_or_else(|| DeltaDiscoveryRequest {
            type_url: Kind::Endpoints.type_url().into(),
            ..DeltaDiscoveryRequest::default()
        });
        request.node = Some(self.node.clone());
        Some(request)
    }

    /// The state for people and metrics.
    pub(super) fn status(&self) -> Status {
        let [listeners, routes, clusters, endpoints] = self.store.counts();
        let count = |kind: Kind, (present, absent): (usize, usize)| TypeStatus {
            subscribed: self.subscriptions[kind as usize].len(),
            present,
            absent,
        };
        Status {
            listeners: count(Kind::Listeners, listeners),
            routes: count(Kind::Tables, routes),
            clusters: count(Kind::Clusters, clusters),
            endpoints: count(Kind::Endpoints, endpoints),
            ..self.status.clone()
        }
    }

    fn want(&mut self, Interest { name, answered }: Interest, now: Now, output: &mut Output) {
        let name = Arc::new(name);
        if self.store.is_answered(&name) {
            output.wake.push(answered);
            return;
        }
        if !self.store.contains(&name) && !self.admit(&name, now, output) {
            self.status.refused += 1;
            output.wake.push(answered);
            return;
        }
        if self.waiters >= WAITERS_MAX {
            self.prune();
        }
        if self.waiters >= WAITERS_MAX {
            self.status.refused += 1;
            output.wake.push(answered);
            return;
        }
        self.waiters += 1;
        self.waiting.entry(name).or_default().push(answered);
    }

    /// Subscribes to a destination if there is a place for it.
    fn admit(&mut self, name: &Arc<ListenerName>, now: Now, output: &mut Output) -> bool {
        if self.store.len() >= self.listeners_max {
            if self.link != Link::Up {
                // What would be taken away cannot be asked for again, and what would take its place is not answered.
                return false;
            }
            let idle = self.store.idle(now.age.saturating_sub(IDLE_DISPLACED).as_secs());
            let Some(oldest) = idle.first() else { return false };
            self.status.expired += 1;
            self.forget(oldest);
            self.reconcile(output);
            // A place was made by taking a name off the map.
            output.publish = Some(self.store.map());
        }
        self.store.want(name, now.age.as_secs());
        self.subscriptions[Kind::Listeners as usize].want(&name.to_string().into());
        true
    }

    fn forget(&mut self, name: &Arc<ListenerName>) {
        self.store.forget(name);
        self.subscriptions[Kind::Listeners as usize].forget(&name.to_string());
        if let Some(waiters) = self.waiting.remove(name) {
            self.waiters -= waiters.len();
        }
    }

    /// Drops waiters who have given up.
    fn prune(&mut self) {
        self.waiting.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
        self.waiters = self.waiting.values().map(Vec::len).sum();
    }

    fn opening(&mut self) {
        self.introduced = false;
        for subscription in &mut self.subscriptions {
            subscription.start_over();
        }
    }

    fn up(&mut self, now: Now) {
        self.link = Link::Up;
        self.status.connected_since = Some(now.wall);
        self.status.streams += 1;
    }

    fn down(&mut self, reason: String, now: Now) {
        if self.link == Link::Up {
            self.link = Link::Down(now.age);
        }
        self.status.connected_since = None;
        self.status.failures += 1;
        self.status.last_error = Some(reason);
    }

    fn response(&mut self, response: DeltaDiscoveryResponse, now: Now, output: &mut Output) {
        if let Some(server) = &response.control_plane {
            let version = &response.system_version_info;
            let space = if version.is_empty() { "" } else { " " };
            self.status.server = Some(format!("{}{space}{version}", server.identifier));
        }
        self.status.failures = 0;
        let Some(kind) = Kind::of(&response.type_url) else {
            // A type never asked for has no subscription whose nonce could be answered.
            self.status.nacks += 1;
            self.status.last_nack = Some(format!("a response of type {:?}", response.type_url));
            return;
        };
        let mut complaints = vec![];
        for resource in response.resources {
            self.resource(kind, resource, &mut complaints, output);
        }
        for name in &response.removed_resources {
            self.subscriptions[kind as usize].took(name, None);
            self.removed(kind, name);
        }
        let refusal = (!complaints.is_empty()).then(|| summary(&complaints));
        match &refusal {
            None => {
                self.status.acks += 1;
                self.status.updated_at = Some(now.wall);
            }
            Some(refusal) => {
                self.status.nacks += 1;
                self.status.last_nack = Some(refusal.clone());
                tracing::warn!(resource_type = kind.type_url(), %refusal, "configuration refused");
            }
        }
        self.subscriptions[kind as usize].answer(response.nonce, refusal);
        self.reconcile(output);
    }

    /// Takes one resource, or complains about it and keeps what was there. The rest of the response is taken anyway:
    /// one team's mistake must not hold up another's change.
    fn resource(
        &mut self,
        kind: Kind,
        resource: Resource,
        complaints: &mut Vec<String>,
        output: &mut Output,
    ) {
        let Resource { name, version, resource: body, .. } = resource;
        // Without a body it is a heartbeat; a name that is not wanted crossed our unsubscription.
        let Some(body) = body else { return };
        if !self.subscriptions[kind as usize].wants(&name) {
            return;
        }
        let outcome = match kind {
            Kind::Listeners => parse::listener(&name, &body).map(|draft| {
                let key = draft.spec.name.clone();
                self.store.listener(&key, Ok(Some(draft)));
            }),
            Kind::Tables => parse::routes(&name, &body).map(|draft| self.store.table(&name, Ok(Some(draft)))),
            Kind::Clusters => {
                parse::cluster(&name, &body).map(|draft| self.store.cluster(&name, Ok(Some(draft))))
            }
            Kind::Endpoints => {
                parse::endpoints(&name, &body).map(|list| self.store.assignment(&name, Ok(Some(list))))
            }
            Kind::Secrets => parse::trust_bundle(&name, &body).map(|bundle| output.trust = Some(bundle)),
            Kind::Runtime => parse::app_ended(&name, &body).map(|ended| output.app_ended = ended),
        };
        match outcome {
            Ok(()) => self.subscriptions[kind as usize].took(&name, Some(version)),
            Err(error) => {
                complaints.push(format!("{name}: {}", parse::explain(&error)));
                self.refused(kind, &name);
            }
        }
    }

    fn refused(&mut self, kind: Kind, name: &str) {
        match kind {
            Kind::Listeners => {
                if let Ok(name) = name.parse() {
                    self.store.listener(&name, Err(()));
                }
            }
            Kind::Tables => self.store.table(name, Err(())),
            Kind::Clusters => self.store.cluster(name, Err(())),
            Kind::Endpoints => self.store.assignment(name, Err(())),
            // The roots that were known stay; and an app that has ended has.
            Kind::Secrets | Kind::Runtime => {}
        }
    }

    fn removed(&mut self, kind: Kind, name: &str) {
        match kind {
            Kind::Listeners => {
                if let Ok(name) = name.parse() {
                    self.store.listener(&name, Ok(None));
                }
            }
            Kind::Tables => self.store.table(name, Ok(None)),
            Kind::Clusters => self.store.cluster(name, Ok(None)),
            Kind::Endpoints => self.store.assignment(name, Ok(None)),
            // Nothing is said of the pod.
            Kind::Runtime => {}
            // Trusting nobody would cut every connection of the mesh; nobody means that.
            Kind::Secrets => tracing::warn!(name, "the control plane has no trust bundle; keeping the last"),
        }
    }

    /// Lets the store repair itself and subscribes to what it turns out to need.
    fn reconcile(&mut self, output: &mut Output) {
        let (Needs { tables, clusters, endpoints }, map) = self.store.reconcile();
        for (kind, names) in
            [(Kind::Tables, tables), (Kind::Clusters, clusters), (Kind::Endpoints, endpoints)]
        {
            self.subscriptions[kind as usize].replace(&names);
        }
        if map.is_some() {
            output.publish = map;
        }
    }

    fn sweep(&mut self, now: Now, output: &mut Output) {
        if now.age < self.swept + SWEEP {
            return;
        }
        self.swept = now.age;
        self.prune();
        if self.link != Link::Up {
            return;
        }
        let Some(before) = now.age.checked_sub(IDLE) else { return };
        let idle = self.store.idle(before.as_secs());
        if idle.is_empty() {
            return;
        }
        for name in &idle {
            self.status.expired += 1;
            self.forget(name);
        }
        self.reconcile(output);
        output.publish = Some(self.store.map());
    }

    /// Lets go of waiters whose destination is answered, and of all when waiting has become pointless.
    fn release(&mut self, now: Now, output: &mut Output) {
        let pointless = matches!(self.link, Link::Down(since) if now.age >= since + OUTAGE_PATIENCE);
        let (store, wake) = (&self.store, &mut output.wake);
        self.waiting.retain(|name, waiters| {
            let go = pointless || store.is_answered(name);
            if go {
                wake.append(waiters);
            }
            !go
        });
        self.waiters = self.waiting.values().map(Vec::len).sum();
    }
}

fn node_message(instance: String, node: &NodeMetadata) -> Node {
    Node {
        id: instance,
        cluster: node.workload.to_string(),
        metadata: Some(node.to_struct()),
        locality: node.locality(),
        user_agent_name: USER_AGENT.into(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").into(),
        )),
        ..Node::default()
    }
}

/// Complaints in one text; a server logs it, so it has a bound.
fn summary(complaints: &[String]) -> String {
    let mut text = complaints.iter().take(COMPLAINTS_MAX).map(String::as_str).collect::<Vec<_>>().join("; ");
    if complaints.len() > COMPLAINTS_MAX {
        text.push_str(&format!("; and {} more", complaints.len() - COMPLAINTS_MAX));
    }
    text
}

#[cfg(test)]
mod tests;
