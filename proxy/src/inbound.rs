//! A connection to the app, stage by stage.
//!
//! accept → where to? → whose port is it? → what does it speak? → serve it. In: a connection that the kernel
//! redirected here, or that came to the inbound listener itself (explicit mode). Out: the app, measured.
//! Invariants: only this file decides the order; whatever the control plane does not know still goes to where
//! it was going. Surprise: the last stage is a task of its own, so that the state of detection does not stay
//! in memory for as long as the connection. Non-goal: requests; `http::server` has those.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use weft_wire::Reason;
use weft_wire::xds::ListenerName;

use crate::accept::Accepted;
use crate::detect::{self, Detected, Prefixed, Sniff};
use crate::http;
use crate::record::{self, Direction, EdgeSpec, Tls};
use crate::tcp::{self, Target};
use crate::worker::Worker;
use crate::xds::Listener;

/// Serves one inbound connection.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { stream, client, local, original, permit } = accepted;

    // Where to? The original destination; or, for a connection that was not redirected, the app we were told of.
    let asked = original.unwrap_or(local);
    let app = match original.or(worker.config.inbound_forward) {
        Some(app) if !worker.loops(Direction::Inbound, app) => app,
        _ => {
            let mut record =
                worker.shard.edge(&edge(None, asked, client, Tls::None)).connection(record::Protocol::Tcp);
            record.failed(Reason::RequestLoop);
            tracing::debug!(%client, %asked, "refused a connection that would come back to this sidecar");
            return tcp::reset(&stream);
        }
    };

    // Whose port is it? Names, declares and guards; the app is where it is in any case.
    let listener = worker.discover(ListenerName::Inbound(asked)).await;

    // What does it speak?
    let declared = listener.as_ref().and_then(|listener| listener.protocol);
    let open = || tcp::open(Rc::clone(&worker), Target::Address(app));
    let Ok(detected) = detect::identify(&worker, &stream, declared, open).await else {
        // The client reset the connection before it said what it wanted.
        return;
    };

    // Serve it, in a task that no longer holds the state of these stages. A TLS connection is the app's own: it is
    // named by its port, whatever its SNI.
    let Detected { sniff, prefix, opened, failed, how: _ } = detected;
    let io = Prefixed::new(stream, prefix);
    let edge =
        edge(listener.as_ref(), app, client, if sniff == Sniff::Tls { Tls::Simple } else { Tls::None });
    let version = match sniff {
        Sniff::Http1 => http::Version::Http1,
        Sniff::Http2 => http::Version::Http2,
        Sniff::Tls | Sniff::Opaque | Sniff::NeedMore => {
            let protocol = if sniff == Sniff::Tls { record::Protocol::Tls } else { record::Protocol::Tcp };
            let scope = tcp::Scope { edge, protocol, target: Target::Address(app), opened, failed };
            tokio::task::spawn_local(permit.during(tcp::serve(worker, io, scope)));
            return;
        }
    };
    let target = match listener {
        Some(listener) => http::Target::Own { app, listener },
        None => http::Target::App(app),
    };
    let scope = http::Scope { edge, target, asked: None, opened, client: client.ip() };
    tokio::task::spawn_local(permit.during(http::serve(worker, io, version, scope)));
}

/// What an inbound connection is called: the own service when it is known, else the address that was called.
fn edge(listener: Option<&Arc<Listener>>, asked: SocketAddr, client: SocketAddr, tls: Tls) -> EdgeSpec {
    let service = listener.and_then(|listener| listener.service.clone());
    EdgeSpec {
        direction: Direction::Inbound,
        server_address: match &service {
            Some(port) => port.service.to_string().into(),
            None => asked.ip().to_string().into(),
        },
        server_port: service.as_ref().map_or(asked.port(), |port| port.port),
        service: service.map(|port| port.service),
        tls,
        client: Some(client.ip()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::tests::worker;

    /// What a connection costs while nobody knows yet what it speaks: a client that connects ahead of time may wait
    /// here for hours. What comes after is a task of its own.
    #[tokio::test]
    async fn a_connection_that_says_nothing_is_small() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        let (stream, peer) = accepted.unwrap();
        let worker = worker(&[]);
        let permit = worker.inbound_permits.acquire().unwrap();
        let accepted = Accepted { stream, client: peer, local: address, original: None, permit };
        let inbound = size_of_val(&serve(Rc::clone(&worker), accepted));
        assert!(inbound <= 2048, "{inbound} bytes");
        drop(client);
    }
}
