//! A connection of the app, stage by stage.
//!
//! accept → where to? → what stands behind it? → what does it speak? → serve it. In: a connection that the
//! kernel redirected here, one to an explicit listener that stands for a destination, or one of a client that
//! uses the sidecar as its HTTP forward proxy. Out: the destination, measured. Invariants: only this file
//! decides the order; a destination that the control plane does not know is passed through to where it was
//! going. Surprise: the last stage is a task of its own, so that the state of detection does not stay in
//! memory for as long as the connection. Non-goal: requests; `http::server` has those.

use std::rc::Rc;
use std::sync::Arc;

use weft_wire::xds::{Destination, ListenerName};
use weft_wire::{Host, Reason};

use crate::accept::{Accepted, Role};
use crate::connect;
use crate::detect::{self, Detected, Prefixed, Sniff};
use crate::http;
use crate::record::{self, Direction, EdgeSpec, Tls};
use crate::tcp::{self, Target};
use crate::worker::Worker;
use crate::xds::Listener;

/// Serves one outbound connection.
pub async fn serve(worker: Rc<Worker>, role: Role, accepted: Accepted) {
    // Where to? An explicit listener's destination, else where the kernel redirected it from.
    let destination = match (role, accepted.original) {
        (Role::Forward(destination), _) => destination,
        (_, Some(original)) => Destination::Address(original),
        (_, None) => return forward_proxy(worker, accepted).await,
    };
    if let Destination::Address(address) = destination
        && worker.loops(Direction::Outbound, address)
    {
        return refuse(&worker, &accepted, &destination, Reason::RequestLoop);
    }

    // What stands behind it?
    let asked = ListenerName::Outbound(destination.clone());
    let listener = worker.discover(asked.clone()).await;
    let asked = (listener.is_none() && worker.awaits(&asked)).then(|| Box::new(asked));
    let target = match &listener {
        Some(listener) => match listener.cluster() {
            Some(cluster) => Target::Cluster(cluster),
            // Declared to speak HTTP, so nothing opaque will be asked for; routes have the clusters.
            None => Target::Nowhere(Reason::RouteNotFound),
        },
        None => pass_through(&worker, &destination).await,
    };

    // What does it speak?
    let Accepted { stream, client: _, local: _, original: _, permit } = accepted;
    let declared = listener.as_ref().and_then(|listener| listener.protocol);
    let open = || tcp::open(Rc::clone(&worker), target.clone(), None);
    let Ok(detected) = detect::identify(&worker, &stream, declared, open).await else {
        // The client reset the connection before it said what it wanted.
        return;
    };
    let Detected { sniff, mut prefix, opened, failed, how: _ } = detected;

    // Serve it, in a task that no longer holds the state of these stages.
    let version = match sniff {
        Sniff::Http1 => http::Version::Http1,
        Sniff::Http2 => http::Version::Http2,
        Sniff::Tls => {
            let sni = detect::server_name(&stream, &mut prefix, worker.config.detect_timeout).await;
            let edge = edge(listener.as_ref(), &destination, sni, Tls::Simple);
            let scope = tcp::Scope { edge, protocol: record::Protocol::Tls, target, opened, failed };
            tokio::task::spawn_local(permit.during(tcp::serve(worker, Prefixed::new(stream, prefix), scope)));
            return;
        }
        Sniff::Opaque | Sniff::NeedMore => {
            let edge = edge(listener.as_ref(), &destination, None, Tls::None);
            let scope = tcp::Scope { edge, protocol: record::Protocol::Tcp, target, opened, failed };
            tokio::task::spawn_local(permit.during(tcp::serve(worker, Prefixed::new(stream, prefix), scope)));
            return;
        }
    };
    let scope = http::Scope {
        edge: edge(listener.as_ref(), &destination, None, Tls::None),
        target: match (listener, target) {
            (Some(listener), _) => http::Target::Listener(listener),
            (None, Target::Address(address)) => http::Target::PassThrough(address),
            (None, Target::Nowhere(reason)) => http::Target::Nowhere(reason),
            // Not reached: clusters come from listeners only.
            (None, Target::Cluster(_)) => http::Target::Nowhere(Reason::RouteNotFound),
        },
        asked,
        opened,
        client: accepted.client.ip(),
    };
    tokio::task::spawn_local(permit.during(http::serve(
        worker,
        Prefixed::new(stream, prefix),
        version,
        scope,
    )));
}

/// The forward proxy: a client that was told to use the sidecar as its HTTP proxy names the destination in
/// each request.
///
/// Only for programs beside the sidecar: the port is reachable from the pod's network, and a stranger must not
/// borrow this workload's name.
async fn forward_proxy(worker: Rc<Worker>, accepted: Accepted) {
    if !worker.is_own(accepted.client.ip()) {
        return refuse(&worker, &accepted, &Destination::Address(accepted.local), Reason::PolicyDenied);
    }
    let timeout = worker.config.detect_timeout;
    let Ok(detected) = detect::client_only::<tcp::Upstream>(&accepted.stream, timeout, &worker.drain).await
    else {
        return;
    };
    let destination = Destination::Address(accepted.local);
    let version = match detected.sniff {
        Sniff::Http1 => http::Version::Http1,
        Sniff::Http2 => http::Version::Http2,
        // Not redirected and naming no destination: it can only have meant the sidecar itself.
        Sniff::Tls | Sniff::Opaque | Sniff::NeedMore => {
            return refuse(&worker, &accepted, &destination, Reason::RequestLoop);
        }
    };
    let scope = http::Scope {
        edge: edge(None, &destination, None, Tls::None),
        target: http::Target::ForwardProxy,
        asked: None,
        opened: None,
        client: accepted.client.ip(),
    };
    let io = Prefixed::new(accepted.stream, detected.prefix);
    tokio::task::spawn_local(accepted.permit.during(http::serve(worker, io, version, scope)));
}

/// Where a destination goes that the control plane does not know: where it was going.
async fn pass_through(worker: &Worker, destination: &Destination) -> Target {
    let address = match destination {
        Destination::Address(address) => Ok(*address),
        Destination::Name { host, port } => {
            let resolved = connect::resolve(host, *port, worker.config.connect_timeout).await;
            resolved
                .map_err(|error| {
                    tracing::debug!(%destination, %error, "pass through");
                    error.reason()
                })
                .and_then(|addresses| addresses.first().copied().ok_or(Reason::ConnectFailed))
        }
    };
    match address {
        Ok(address) if worker.loops(Direction::Outbound, address) => Target::Nowhere(Reason::RequestLoop),
        Ok(address) => Target::Address(address),
        Err(reason) => Target::Nowhere(reason),
    }
}

/// Resets a connection that cannot be served, and counts it.
fn refuse(worker: &Worker, accepted: &Accepted, destination: &Destination, reason: Reason) {
    let edge = worker.shard.edge(&edge(None, destination, None, Tls::None));
    edge.connection(record::Protocol::Tcp).failed(reason);
    tracing::debug!(client = %accepted.client, %destination, %reason, "refused");
    tcp::reset(accepted.stream.socket());
}

/// What an outbound connection is called: the service when it is known, else what the client asked for, as
/// precisely as it said it: SNI, name, address.
fn edge(listener: Option<&Arc<Listener>>, asked: &Destination, sni: Option<Host>, tls: Tls) -> EdgeSpec {
    let service = listener.and_then(|listener| listener.service.clone());
    let (asked_host, asked_port): (Arc<str>, u16) = match asked {
        Destination::Address(address) => (address.ip().to_string().into(), address.port()),
        Destination::Name { host, port } => (Arc::from(&**host), *port),
    };
    EdgeSpec {
        direction: Direction::Outbound,
        server_address: match (&service, sni) {
            (Some(port), _) => port.service.to_string().into(),
            (None, Some(host)) => host.as_str().into(),
            (None, None) => asked_host,
        },
        server_port: service.as_ref().map_or(asked_port, |port| port.port),
        service: service.map(|port| port.service),
        tls,
        client: None,
        caller: None,
    }
}
