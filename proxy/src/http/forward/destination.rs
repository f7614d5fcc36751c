//! What a connection's requests are addressed to, resolved once and kept with the connection.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderValue, Method};
use weft_wire::xds::{Destination as Asked, ListenerName};
use weft_wire::{Host, Reason};

use super::Refusal;
use crate::balance::Cluster;
use crate::config::DefaultAccess;
use crate::connect;
use crate::http::concurrency::Port;
use crate::http::headers;
use crate::http::server::{Session, Target};
use crate::record::{Direction, Edge, EdgeSpec};
use crate::reply;
use crate::route::filter::{self, Passage};
use crate::worker::Worker;
use crate::xds::{self, Listener, Lookup};

/// Destinations that one connection remembers. A forward-proxy client may name many; beyond this the oldest is
/// forgotten and found again when needed.
const DESTINATIONS_MAX: usize = 16;

/// Port of an authority that names none.
const HTTP_PORT: u16 = 80;

/// One destination.
pub(in crate::http) struct Destination {
    /// The authority it was found by; `None`: whatever the requests say, it is this one.
    authority: Option<Box<str>>,
    /// Its name in telemetry.
    pub(super) edge: Rc<Edge>,
    host: Box<str>,
    backend: Backend,
    /// The question whose answer may put something else in its place.
    asked: Option<Box<ListenerName>>,
}

enum Backend {
    /// By route; the cluster that was last routed to is at hand.
    Routed { listener: Arc<Listener>, last: RefCell<Option<(Arc<xds::Cluster>, Rc<Cluster>)>> },
    /// This sidecar's app, guarded by rules.
    Own { listener: Arc<Listener>, app: Rc<Cluster>, address: SocketAddr, port: RefCell<Option<Rc<Port>>> },
    /// Always this one.
    Direct(Rc<Cluster>),
    /// This sidecar's app, until somebody has said who may call it.
    Closed,
    /// None.
    Nowhere(Reason),
}

impl Destination {
    /// The passage of one request through its rule; `None` where there are no rules.
    ///
    /// What no rule of the app's own port fits goes to the app all the same: rules guard it there, they do not choose.
    pub(super) fn passage(&self, parts: &Parts) -> Result<Option<Passage>, Reason> {
        let (listener, chooses) = match &self.backend {
            Backend::Direct(_) => return Ok(None),
            Backend::Closed => return Err(Reason::PolicyDenied),
            Backend::Nowhere(reason) => return Err(*reason),
            Backend::Routed { listener, .. } => (listener, true),
            Backend::Own { listener, .. } => (listener, false),
        };
        let routes = listener.routes();
        match routes.pick(parts) {
            Some(route) => Ok(Some(Passage::new(Arc::clone(route)))),
            // A port that was declared to be opaque has no routes, only a cluster.
            None if chooses && !(routes.is_empty() && listener.cluster().is_some()) => {
                Err(Reason::RouteNotFound)
            }
            None => Ok(None),
        }
    }

    /// The cluster for one request.
    pub(super) fn cluster(
        &self,
        session: &Session,
        passage: Option<&Passage>,
    ) -> Result<Rc<Cluster>, Refusal> {
        match &self.backend {
            Backend::Direct(cluster) | Backend::Own { app: cluster, .. } => Ok(Rc::clone(cluster)),
            Backend::Closed => Err(Reason::PolicyDenied.into()),
            Backend::Nowhere(reason) => Err((*reason).into()),
            Backend::Routed { listener, .. } => match passage {
                // A rule that forwards has a backend, and any other has answered.
                Some(passage) => {
                    let backend = passage.backend().ok_or(Reason::RouteNotFound)?;
                    if backend.cluster.absent {
                        let told = reply::absent(filter::cluster_not_found(passage.route()));
                        return Err(Refusal::telling(Reason::NoReadyEndpoint, told));
                    }
                    Ok(self.recall(session, &backend.cluster))
                }
                None => Ok(self.recall(session, &listener.cluster().ok_or(Reason::RouteNotFound)?)),
            },
        }
    }

    /// The bound on concurrency of the app's port, if it has one.
    pub(super) fn port(&self, worker: &Worker, now: Instant) -> Option<Rc<Port>> {
        let Backend::Own { listener, address, port, .. } = &self.backend else { return None };
        let settings = listener.gradient();
        let mut port = port.borrow_mut();
        *port = settings.as_deref().map(|settings| match port.take() {
            Some(same) if same.is(settings) => same,
            _ => worker.http.ports.of(*address, settings, now),
        });
        port.clone()
    }

    /// The port's rules and its number, where the app behind it is this sidecar's own.
    pub(super) fn own(&self) -> Option<(&Listener, u16)> {
        match &self.backend {
            Backend::Own { listener, address, .. } => Some((listener, address.port())),
            Backend::Routed { .. } | Backend::Direct(_) | Backend::Closed | Backend::Nowhere(_) => None,
        }
    }

    /// Whether nobody may call it, because nobody has said who may.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.backend, Backend::Closed)
    }

    /// Whether the control plane has said meanwhile what stands behind it.
    fn is_outdated(&self, worker: &Worker) -> bool {
        self.asked.as_ref().is_some_and(|asked| matches!(worker.directory.lookup(asked), Lookup::Known(_)))
    }

    /// Whether the other side is in the mesh, as far as a route says.
    pub(super) fn is_routed(&self) -> bool {
        matches!(self.backend, Backend::Routed { .. })
    }

    fn recall(&self, session: &Session, cluster: &Arc<xds::Cluster>) -> Rc<Cluster> {
        let Backend::Routed { last, .. } = &self.backend else { return session.worker.clusters.of(cluster) };
        let mut last = last.borrow_mut();
        match &*last {
            Some((same, state)) if Arc::ptr_eq(same, cluster) => Rc::clone(state),
            _ => {
                let state = session.worker.clusters.of(cluster);
                *last = Some((Arc::clone(cluster), Rc::clone(&state)));
                state
            }
        }
    }

    /// A `Host` for a request that has none (HTTP/1.0).
    pub(super) fn host(&self) -> HeaderValue {
        HeaderValue::try_from(&*self.host).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

impl Session {
    /// The destination of a request, if this connection has met it before and that is no older than the control plane's
    /// answer.
    pub(super) fn known(&self, parts: &Parts) -> Option<Rc<Destination>> {
        let destinations = self.destinations.borrow();
        // Connections of all but forward-proxy clients have one; mostly it fits any request.
        let found = match destinations.as_slice() {
            [only] if only.authority.is_none() => only,
            several => {
                let authority = headers::authority(parts).unwrap_or_default();
                several.iter().find(|known| known.authority.as_deref() == Some(authority))?
            }
        };
        (!found.is_outdated(&self.worker)).then(|| Rc::clone(found))
    }

    /// Finds the destination of a request and remembers it.
    pub(super) async fn find(&self, parts: &Parts) -> Rc<Destination> {
        let answer = self.asked.as_ref().and_then(|asked| self.worker.directory.lookup(asked).known());
        let found = Rc::new(match (answer, &self.target) {
            (Some(listener), Target::App(app)) => self.heard(*app, listener),
            (Some(listener), _) => self.routed(None, self.edge.clone(), listener),
            (None, _) => self.targeted(parts).await,
        });
        let mut destinations = self.destinations.borrow_mut();
        destinations.retain(|known| !known.is_outdated(&self.worker));
        if destinations.len() >= DESTINATIONS_MAX {
            destinations.remove(0);
        }
        destinations.push(Rc::clone(&found));
        found
    }

    async fn targeted(&self, parts: &Parts) -> Destination {
        match &self.target {
            Target::Listener(listener) => {
                self.fixed(Backend::Routed { listener: Arc::clone(listener), last: RefCell::new(None) })
            }
            Target::Own { app, listener } => self.fixed(self.guarded(*app, Arc::clone(listener))),
            Target::App(address) => self.fixed(match self.worker.config.default_access {
                DefaultAccess::Allow => Backend::Direct(self.worker.clusters.at(*address)),
                DefaultAccess::Deny => Backend::Closed,
            }),
            Target::Nowhere(reason) => self.fixed(Backend::Nowhere(*reason)),
            Target::PassThrough(address) => {
                self.named(parts, Backend::Direct(self.worker.clusters.at(*address)))
            }
            Target::ForwardProxy => self.proxied(parts).await,
        }
    }

    fn guarded(&self, app: SocketAddr, listener: Arc<Listener>) -> Backend {
        let port = RefCell::default();
        Backend::Own { listener, app: self.worker.clusters.at(app), address: app, port }
    }

    fn fixed(&self, backend: Backend) -> Destination {
        self.destination(None, self.edge.clone(), backend)
    }

    fn destination(&self, authority: Option<&str>, spec: EdgeSpec, backend: Backend) -> Destination {
        Destination {
            authority: authority.map(Box::from),
            edge: self.worker.shard.edge(&spec),
            host: format!("{}:{}", spec.server_address, spec.server_port).into(),
            backend,
            asked: self.asked.clone(),
        }
    }

    /// The app behind a port that the control plane has described meanwhile.
    fn heard(&self, app: SocketAddr, listener: Arc<Listener>) -> Destination {
        let spec = called(self.edge.clone(), &listener);
        Destination { asked: None, ..self.destination(None, spec, self.guarded(app, listener)) }
    }

    /// What the control plane described.
    fn routed(&self, authority: Option<&str>, spec: EdgeSpec, listener: Arc<Listener>) -> Destination {
        let spec = called(spec, &listener);
        let backend = Backend::Routed { listener, last: RefCell::new(None) };
        Destination { asked: None, ..self.destination(authority, spec, backend) }
    }

    /// Somewhere outside the mesh: called by the name its requests use, if that is one.
    fn named(&self, parts: &Parts, backend: Backend) -> Destination {
        let authority = headers::authority(parts).unwrap_or_default();
        let mut spec = self.edge.clone();
        // An address says no more than where the connection went, which is known already, without brackets.
        if let Some((host, _)) = split(authority).filter(|(host, _)| bare(host).parse::<IpAddr>().is_err()) {
            spec.server_address = host.as_str().into();
        }
        self.destination(Some(authority), spec, backend)
    }

    /// Wherever the request says.
    async fn proxied(&self, parts: &Parts) -> Destination {
        let authority = headers::authority(parts).unwrap_or_default();
        let nowhere = |reason| self.destination(Some(authority), self.edge.clone(), Backend::Nowhere(reason));
        // Origin form addresses the proxy itself, which has nothing to offer.
        let absolute = parts.uri.authority().is_some();
        let Some((host, port)) = split(authority).filter(|_| absolute) else {
            return nowhere(Reason::ProtocolError);
        };
        let port = match port {
            Some(port) => port,
            None if parts.method == Method::CONNECT => return nowhere(Reason::ProtocolError),
            None => HTTP_PORT,
        };
        let bare = bare(&host);
        let asked = match bare.parse() {
            Ok(ip) => Asked::Address(SocketAddr::new(ip, port)),
            Err(_) => Asked::Name { host: host.as_str().into(), port },
        };
        let spec =
            EdgeSpec { server_address: bare.into(), server_port: port, service: None, ..self.edge.clone() };
        let question = ListenerName::Outbound(asked.clone());
        if let Some(listener) = self.worker.discover(question.clone()).await {
            return self.routed(Some(authority), spec, listener);
        }
        let question = self.worker.awaits(&question).then(|| Box::new(question));
        let backend = match asked {
            Asked::Address(address) if self.worker.loops(Direction::Outbound, address) => {
                Backend::Nowhere(Reason::RequestLoop)
            }
            Asked::Address(address) => Backend::Direct(self.worker.clusters.at(address)),
            Asked::Name { host, port } => self.resolved(authority, &host, port).await,
        };
        Destination { asked: question, ..self.destination(Some(authority), spec, backend) }
    }

    async fn resolved(&self, authority: &str, host: &str, port: u16) -> Backend {
        match connect::resolve(host, port, self.worker.config.connect_timeout).await {
            Ok(mut addresses) => {
                addresses.retain(|address| !self.worker.loops(Direction::Outbound, *address));
                if addresses.is_empty() {
                    return Backend::Nowhere(Reason::RequestLoop);
                }
                Backend::Direct(self.worker.clusters.resolved(authority, addresses))
            }
            Err(error) => {
                tracing::debug!(%authority, %error, "forward proxy");
                Backend::Nowhere(error.reason())
            }
        }
    }
}

/// The same by the name of the service, if the control plane knows one.
fn called(mut spec: EdgeSpec, listener: &Listener) -> EdgeSpec {
    if let Some(service) = &listener.service {
        spec.server_address = service.service.to_string().into();
        spec.server_port = service.port;
        spec.service = Some(service.service.clone());
    }
    spec
}

/// The host without the brackets of an IPv6 address.
fn bare(host: &Host) -> &str {
    host.as_str().trim_start_matches('[').trim_end_matches(']')
}

/// Host and port of an authority.
fn split(authority: &str) -> Option<(Host, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of a bare IPv6 address are inside brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    Some((host.parse().ok()?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_split_at_the_port() {
        let of = |text| split(text).map(|(host, port)| (host.to_string(), port));
        assert_eq!(of("Orders.shop:8080"), Some(("orders.shop".into(), Some(8080))));
        assert_eq!(of("orders"), Some(("orders".into(), None)));
        assert_eq!(of("[fd00::1]:80"), Some(("[fd00::1]".into(), Some(80))));
        assert_eq!(of("[fd00::1]"), Some(("[fd00::1]".into(), None)));
        for bad in ["", ":80", "orders:", "orders:x", "orders:99999", "a b:80"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
