//! What one worker thread owns.
//!
//! Shared-nothing: each worker is one thread with its own runtime, listeners, upstream connections and metric
//! shard, so the request path takes no lock and needs no `Send`. A [`Worker`] is passed around as `Rc<Worker>`;
//! everything shared with other threads ([`Config`], [`Directory`], [`Bound`]) is immutable or behind
//! `arc-swap`. Non-goal: balancing between workers; the kernel spreads connections (`SO_REUSEPORT`).

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project::pin_project;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use weft_wire::annotation::Sidecar;
use weft_wire::xds::ListenerName;
use weft_wire::{Reason, SpiffeId};

use crate::accept::{self, Bound, Role};
use crate::balance::{Circuits, Clusters, Endpoint};
use crate::config::Config;
use crate::connect::{ConnectOptions, connect};
use crate::record::{Direction, Limit, Shard};
use crate::tls::{self, Alpn, HANDSHAKES_MAX, Mesh, Stream};
use crate::xds::{Directory, Listener, Lookup};
use crate::{drain, http, inbound, outbound};

/// Size of the buffer that all opaque connections of a worker share. What a socket's receive buffer usually
/// holds after one round trip at full speed; bigger ones showed no gain for loopback and veth.
const SCRATCH_SIZE: usize = 64 * 1024;

/// How long callers may need to hear that an endpoint is leaving: the control plane pushes within a fraction of
/// a second.
const LINGER: Duration = Duration::from_secs(1);

/// The same beside an app that got its signal at the same time: Kubernetes takes its address out of the Service only then, and
/// whoever does not ask the control plane hears of it by other ways.
const LINGER_CLASSIC: Duration = Duration::from_secs(5);

/// How long nothing may be open before a draining worker says that it is done.
const QUIET: Duration = Duration::from_millis(100);

/// Share of a TLS connection's time that chance may take away.
const AGE_JITTER: f64 = 0.2;

/// How often idle telemetry is looked for; what is idle is so for minutes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// What all workers share.
#[derive(Clone)]
pub struct Common {
    /// The sidecar's settings.
    pub config: Arc<Config>,
    /// Where the sidecar listens.
    pub bound: Arc<Bound>,
    /// What the control plane said.
    pub directory: Arc<Directory>,
    /// What is known of upstream clusters.
    pub circuits: Arc<Circuits>,
    /// Who this sidecar is in the mesh.
    pub mesh: Arc<Mesh>,
}

/// One worker's possessions.
pub struct Worker {
    /// The sidecar's settings.
    pub config: Arc<Config>,
    /// Where the sidecar listens.
    pub bound: Arc<Bound>,
    /// What the control plane said.
    pub directory: Arc<Directory>,
    /// This worker's telemetry.
    pub shard: Rc<Shard>,
    /// Upstream clusters: what was learned about endpoints, and open connections to them.
    pub clusters: Rc<Clusters>,
    /// What HTTP connections share.
    pub http: http::Shared,
    /// Who this sidecar is in the mesh.
    pub mesh: Arc<Mesh>,
    /// Handshakes under way as a server.
    pub handshakes: Permits,
    /// This worker's view of the shutdown.
    pub drain: drain::Watch,
    /// Callers refused for want of configuration.
    pub(crate) unheard: inbound::unheard::Unheard,
    /// Connections of the inbound listener.
    pub inbound_permits: Permits,
    /// Connections of the outbound listeners.
    pub outbound_permits: Permits,
    /// Bytes in transit between two sockets; borrowed only between two awaits.
    pub(crate) scratch: RefCell<Box<[u8]>>,
}

impl Worker {
    /// Assembles a worker on its own thread. `connections_max` bounds each direction.
    #[must_use]
    pub fn new(common: Common, shard: Rc<Shard>, drain: drain::Watch, connections_max: usize) -> Rc<Self> {
        let Common { config, bound, directory, circuits, mesh } = common;
        Rc::new(Self {
            mesh,
            handshakes: Permits::new(HANDSHAKES_MAX),
            clusters: Clusters::new(Rc::clone(&shard), circuits, config.identity.zone.clone()),
            config,
            bound,
            directory,
            http: http::Shared::default(),
            shard,
            drain,
            unheard: inbound::unheard::Unheard::default(),
            inbound_permits: Permits::new(connections_max),
            outbound_permits: Permits::new(connections_max),
            scratch: RefCell::new(vec![0; SCRATCH_SIZE].into()),
        })
    }

    /// How this sidecar connects: with its mark, within `timeout` or else the configured default.
    #[must_use]
    pub fn connect_options(&self, timeout: Option<Duration>) -> ConnectOptions {
        ConnectOptions {
            timeout: timeout.unwrap_or(self.config.connect_timeout),
            mark: self.config.socket_mark,
        }
    }

    /// When a TLS connection that begins now has had its time: a little earlier for some than for others, so that those
    /// that began together do not end together.
    #[must_use]
    pub fn connection_end(&self) -> Instant {
        Instant::now() + self.config.connection_age_max.mul_f64(1.0 - AGE_JITTER * fastrand::f64())
    }

    /// A connection to an endpoint: mutual TLS, if it has an identity and so has this sidecar. The time to connect is for
    /// both.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn reach(
        &self,
        endpoint: &Endpoint,
        options: &ConnectOptions,
        alpn: Option<Alpn>,
    ) -> Result<Stream, Reason> {
        let begun = Instant::now();
        let socket = connect(endpoint.address, options).await.map_err(|error| {
            tracing::debug!(address = %endpoint.address, %error, "upstream connection");
            error.reason()
        })?;
        match endpoint.identity(&self.mesh) {
            None => Ok(Stream::Plain(socket)),
            Some(id) => {
                let left = options.timeout.saturating_sub(begun.elapsed());
                Box::pin(self.secure(socket, &id, alpn, left)).await
            }
        }
    }

    /// Makes sure that a connected socket leads to `id`, within `timeout`.
    async fn secure(
        &self,
        socket: TcpStream,
        id: &SpiffeId,
        alpn: Option<Alpn>,
        timeout: Duration,
    ) -> Result<Stream, Reason> {
        let Some(credentials) = self.mesh.credentials() else { return Err(Reason::TlsHandshakeFailed) };
        let secured = tls::connect::connect(&credentials, socket, id, alpn, timeout).await;
        self.shard
            .handshake(Direction::Outbound, secured.as_ref().map(|secured| secured.resumed).map_err(|r| *r));
        secured.map(|secured| secured.stream)
    }

    /// What stands behind a destination, as far as the control plane knows and says in time.
    pub async fn discover(&self, name: ListenerName) -> Option<Arc<Listener>> {
        let lookup = match self.directory.lookup(&name) {
            Lookup::Unasked => self.directory.discover(name, self.config.discovery_timeout).await,
            answered => answered,
        };
        if matches!(lookup, Lookup::Unasked) && self.config.control_plane.is_some() {
            self.shard.limit(Limit::DiscoveryTimeout);
        }
        lookup.known()
    }

    /// Whether the control plane may describe the destination, now or later: unless it said that it is none of its services.
    #[must_use]
    pub fn awaits(&self, name: &ListenerName) -> bool {
        self.config.control_plane.is_some() && !matches!(self.directory.lookup(name), Lookup::Absent)
    }

    /// Whether an address is this pod itself, as the far end of a connection or as its near end.
    #[must_use]
    pub fn is_own(&self, ip: std::net::IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_loopback() || ip.is_unspecified() || self.config.identity.addresses.contains(&ip)
    }

    /// Whether a connection of `direction` to `address` would come straight back to this sidecar.
    ///
    /// Outbound to the own inbound listener is no loop: that is an app calling its own service.
    #[must_use]
    pub fn loops(&self, direction: Direction, address: SocketAddr) -> bool {
        let outbound = || self.bound.outbound.iter().chain(&self.bound.forwards);
        let is = |listener: &SocketAddr| {
            listener.port() == address.port()
                && if listener.ip().is_unspecified() {
                    self.is_own(address.ip())
                } else {
                    listener.ip() == address.ip().to_canonical()
                }
        };
        match direction {
            Direction::Outbound => outbound().any(is),
            Direction::Inbound => outbound().chain(&self.bound.inbound).any(is),
        }
    }

    /// How long the inbound listener goes on after draining began: until callers have heard that this endpoint
    /// is gone. Stand-alone, nobody hears anything.
    fn linger(&self) -> Duration {
        if self.config.control_plane.is_some() {
            let linger = match self.config.sidecar {
                Sidecar::Native => LINGER,
                Sidecar::Classic => LINGER_CLASSIC,
            };
            linger.min(self.config.drain_deadline / 2)
        } else {
            Duration::ZERO
        }
    }

    /// Completes when no connection is left and none comes for a moment: between two calls of an app that is
    /// finishing its work, there may be none.
    async fn quiet(&self) {
        loop {
            self.inbound_permits.idle().await;
            self.outbound_permits.idle().await;
            let seen = self.inbound_permits.issued() + self.outbound_permits.issued();
            tokio::time::sleep(QUIET).await;
            if seen == self.inbound_permits.issued() + self.outbound_permits.issued() {
                return;
            }
        }
    }

    /// The permits of `direction`.
    #[must_use]
    pub fn permits(&self, direction: Direction) -> &Permits {
        match direction {
            Direction::Inbound => &self.inbound_permits,
            Direction::Outbound => &self.outbound_permits,
        }
    }
}

/// What a worker tells the admin thread.
#[derive(Debug)]
pub enum Event {
    /// Draining, and no connection is left.
    Idle,
    /// The worker cannot go on.
    Failed(io::Error),
}

/// Serves until draining has ended. Call inside a `LocalRuntime` or `LocalSet`.
///
/// Draining: the inbound listener goes on for a moment, because callers have not heard yet, and then closes;
/// outbound listeners stay until the end, because an app that finishes its work may still need others.
///
/// # Errors
/// When a listening socket breaks.
pub async fn run(
    worker: Rc<Worker>,
    listeners: Vec<(Role, std::net::TcpListener)>,
    event: mpsc::Sender<Event>,
) -> io::Result<()> {
    tokio::task::spawn_local(http::tend(Rc::clone(&worker)));
    tokio::task::spawn_local(sweep(Rc::clone(&worker)));
    let mut accepting = JoinSet::new();
    for (role, socket) in listeners {
        accepting.spawn_local(accept_for(Rc::clone(&worker), role, socket));
    }
    tokio::select! {
        () = worker.drain.signaled() => {}
        Some(ended) = accepting.join_next() => return Err(ended_early(ended)),
    }
    tokio::time::sleep(worker.linger()).await;
    tokio::select! {
        () = worker.quiet() => {}
        () = worker.drain.expired() => {}
    }
    // Full or closed only when the process is ending anyway.
    drop(event.try_send(Event::Idle));
    worker.drain.expired().await;
    // Lets connections that wait for this see it before the runtime drops them.
    tokio::task::yield_now().await;
    Ok(())
}

/// Lets go of telemetry that nobody has added to for long.
async fn sweep(worker: Rc<Worker>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        worker.shard.sweep();
    }
}

async fn accept_for(worker: Rc<Worker>, role: Role, socket: std::net::TcpListener) -> io::Result<()> {
    let drain = worker.drain.clone();
    let linger = worker.linger();
    let here = Rc::clone(&worker);
    match role {
        Role::Inbound => {
            let stop = async move {
                drain.signaled().await;
                tokio::time::sleep(linger).await;
            };
            let serve = move |accepted| inbound::serve(Rc::clone(&here), accepted);
            accept::run(worker, socket, Direction::Inbound, stop, serve).await
        }
        role => {
            let stop = async move { drain.expired().await };
            let serve = move |accepted| outbound::serve(Rc::clone(&here), role.clone(), accepted);
            accept::run(worker, socket, Direction::Outbound, stop, serve).await
        }
    }
}

fn ended_early(ended: Result<io::Result<()>, tokio::task::JoinError>) -> io::Error {
    match ended {
        Ok(Ok(())) => io::Error::other("a listener closed"),
        Ok(Err(error)) => error,
        Err(panicked) => io::Error::other(panicked),
    }
}

/// A bound on open connections and the means to wait for the last one. Worker-local: a `Cell`, not a semaphore.
#[derive(Debug, Clone)]
pub struct Permits(Rc<Counter>);

#[derive(Debug)]
struct Counter {
    used: Cell<usize>,
    issued: Cell<u64>,
    max: usize,
    changed: Notify,
}

impl Permits {
    /// At most `max` at a time.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self(Rc::new(Counter { used: Cell::new(0), issued: Cell::new(0), max, changed: Notify::new() }))
    }

    /// One permit, given back on drop; `None` when all are out.
    #[must_use]
    pub fn acquire(&self) -> Option<Permit> {
        let used = self.0.used.get();
        (used < self.0.max).then(|| {
            self.0.used.set(used + 1);
            self.0.issued.set(self.0.issued.get() + 1);
            Permit(Rc::clone(&self.0))
        })
    }

    /// Permits that are out.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.get()
    }

    /// Permits given out so far.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.0.issued.get()
    }

    /// Completes when no permit is out. Cancel safe.
    pub async fn idle(&self) {
        while self.0.used.get() > 0 {
            self.0.changed.notified().await;
        }
    }
}

/// One open connection.
#[derive(Debug)]
#[must_use = "the connection is counted for as long as its permit lives"]
pub struct Permit(Rc<Counter>);

impl Permit {
    /// Holds the permit until `stage` has ended.
    pub fn during<F: Future<Output = ()>>(self, stage: F) -> Permitted<F> {
        Permitted { stage, _permit: self }
    }
}

/// A stage of a connection with the permit that it holds. Not an `async` block: that would keep room for `stage` twice.
#[pin_project]
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Permitted<F> {
    #[pin]
    stage: F,
    _permit: Permit,
}

impl<F: Future<Output = ()>> Future for Permitted<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.project().stage.poll(context)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let used = self.0.used.get() - 1;
        self.0.used.set(used);
        if used == 0 {
            self.0.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Arguments;
    use crate::record::{Identity, Telemetry};

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// A stand-alone worker with these flags, for the tests of everything that takes one.
    pub(crate) fn worker(flags: &[&str]) -> Rc<Worker> {
        worker_with(flags, Bound::default(), Directory::standalone())
    }

    pub(crate) fn worker_with(flags: &[&str], bound: Bound, directory: Arc<Directory>) -> Rc<Worker> {
        assemble(flags, bound, directory, Mesh::new(crate::identity::Slot::default()))
    }

    /// A stand-alone worker that is somebody.
    pub(crate) fn worker_of(mesh: Arc<Mesh>) -> Rc<Worker> {
        assemble(&[], Bound::default(), Directory::standalone(), mesh)
    }

    fn assemble(flags: &[&str], bound: Bound, directory: Arc<Directory>, mesh: Arc<Mesh>) -> Rc<Worker> {
        let command = Command::parse_from(std::iter::once("weft-proxy").chain(flags.iter().copied()));
        let config = Config::try_from(command.arguments).expect("valid flags");
        let identity = Identity {
            workload: config.identity.workload.clone(),
            version: None,
            pod: None,
            instance: "test".into(),
        };
        let shard = Telemetry::new(config.record.clone(), identity).shard();
        let drain = drain::Watch::default();
        let common =
            Common { config: config.into(), bound: bound.into(), directory, circuits: Circuits::new(), mesh };
        Worker::new(common, shard, drain, 100)
    }

    #[test]
    fn own_listeners_are_loops_in_the_right_direction() {
        let bound = Bound {
            inbound: Some("[::]:15006".parse().unwrap()),
            outbound: Some("[::]:15001".parse().unwrap()),
            forwards: vec!["127.0.0.1:9001".parse().unwrap()],
            ..Bound::default()
        };
        let worker = worker_with(&["--pod-ips=10.0.0.7"], bound, Directory::standalone());
        let loops = |direction, address: &str| worker.loops(direction, address.parse().unwrap());
        assert!(loops(Direction::Inbound, "10.0.0.7:15006"));
        assert!(loops(Direction::Inbound, "127.0.0.1:15001"));
        assert!(loops(Direction::Outbound, "[::1]:15001"));
        assert!(loops(Direction::Outbound, "127.0.0.1:9001"));
        assert!(!loops(Direction::Outbound, "10.0.0.7:15006"), "an app may call its own service");
        assert!(!loops(Direction::Outbound, "10.0.0.8:15001"), "somebody else's sidecar");
        assert!(!loops(Direction::Outbound, "10.0.0.7:9001"), "bound to loopback only");
        assert!(!loops(Direction::Inbound, "10.0.0.7:8080"));
    }

    #[tokio::test]
    async fn permits_are_bounded_and_come_back() {
        let permits = Permits::new(2);
        let first = permits.acquire().expect("free");
        let second = permits.acquire().expect("free");
        assert!(permits.acquire().is_none());
        drop(first);
        assert_eq!(permits.used(), 1);
        let waiting = permits.idle();
        drop(second);
        waiting.await;
        drop(permits.acquire().expect("free again"));
    }
}
