//! Listening sockets, and where an accepted connection really wanted to go.
//!
//! In: listen addresses. Out: [`Accepted`] connections with their original destination, each holding a permit.
//! Invariants: every worker has its own listening socket (`SO_REUSEPORT`), so the kernel spreads connections
//! and no thread wakes another; every accepted connection has `TCP_NODELAY`; the number of open connections is
//! bounded, and a refusal is counted. Surprise: one dual-stack socket serves both families, so addresses are
//! made canonical here and nobody behind sees `::ffff:10.0.0.1`. Non-goal: what happens on a connection.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use weft_wire::xds::Destination;

use crate::config::Config;
use crate::record::{Direction, Limit};
use crate::tls::Stream;
use crate::worker::{Permit, Worker};

/// Connections that the kernel holds for a listener until its worker accepts them: a burst of one per client in
/// a large cluster. The kernel clips it to `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;

/// Pause after `accept` failed for want of descriptors or memory: trying again at once would only burn CPU.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(20);

/// Where the sidecar really listens: the configured addresses with ports filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Bound {
    /// Redirected inbound connections.
    pub inbound: Option<SocketAddr>,
    /// Redirected outbound connections and the forward proxy.
    pub outbound: Option<SocketAddr>,
    /// Extra outbound listeners, in the order of the configuration.
    pub forwards: Vec<SocketAddr>,
    /// `/live`, `/ready`, `/metrics`.
    pub metrics: Option<SocketAddr>,
    /// Admin.
    pub admin: Option<SocketAddr>,
}

/// What a listener is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Connections to the app.
    Inbound,
    /// Connections of the app: redirected, or of a forward-proxy client.
    Outbound,
    /// Connections of the app to one explicit destination.
    Forward(Destination),
}

impl Role {
    /// Which side of an edge the sidecar is on this listener.
    #[must_use]
    pub fn direction(&self) -> Direction {
        match self {
            Self::Inbound => Direction::Inbound,
            Self::Outbound | Self::Forward(_) => Direction::Outbound,
        }
    }
}

/// One worker's listening sockets.
#[derive(Debug, Default)]
pub struct Listeners(pub Vec<(Role, StdListener)>);

/// All sockets of the process.
#[derive(Debug)]
pub struct Sockets {
    /// Where they listen.
    pub bound: Bound,
    /// One set for each worker.
    pub workers: Vec<Listeners>,
    /// `/live`, `/ready`, `/metrics`.
    pub metrics: Option<StdListener>,
    /// Admin.
    pub admin: Option<StdListener>,
}

/// A listen address could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{variable}: cannot listen on {address}{hint}")]
pub struct BindError {
    /// The variable that holds the address.
    variable: &'static str,
    address: SocketAddr,
    hint: &'static str,
    source: io::Error,
}

/// Opens every listening socket before any thread starts, so that a taken port ends the start with one clear
/// error.
///
/// # Errors
/// [`BindError`], naming variable and address.
pub fn bind(config: &Config) -> Result<Sockets, BindError> {
    let mut workers: Vec<Listeners> = (0..config.workers.get()).map(|_| Listeners::default()).collect();
    let mut spread = |variable, address: Option<SocketAddr>, role: Role| {
        let Some(mut address) = address else { return Ok(None) };
        for worker in &mut workers {
            let listener = listen(variable, address, true)?;
            // The first socket chooses the port when it was 0, the others share it.
            address = local(variable, address, &listener)?;
            worker.0.push((role.clone(), listener));
        }
        Ok(Some(address))
    };
    let mut bound = Bound {
        inbound: spread("WEFT_INBOUND_LISTEN", config.listen.inbound, Role::Inbound)?,
        outbound: spread("WEFT_OUTBOUND_LISTEN", config.listen.outbound, Role::Outbound)?,
        ..Bound::default()
    };
    for forward in &config.outbound_forward {
        let role = Role::Forward(forward.destination.clone());
        bound.forwards.extend(spread("WEFT_OUTBOUND_FORWARD", Some(forward.listen), role)?);
    }
    let single = |variable, address: Option<SocketAddr>| {
        let Some(address) = address else { return Ok(None) };
        let listener = listen(variable, address, false)?;
        Ok(Some((local(variable, address, &listener)?, listener)))
    };
    let metrics = single("WEFT_METRICS_LISTEN", config.listen.metrics)?;
    let admin = single("WEFT_ADMIN_LISTEN", config.listen.admin)?;
    bound.metrics = metrics.as_ref().map(|(address, _)| *address);
    bound.admin = admin.as_ref().map(|(address, _)| *address);
    Ok(Sockets { bound, workers, metrics: metrics.map(|(_, l)| l), admin: admin.map(|(_, l)| l) })
}

fn listen(variable: &'static str, address: SocketAddr, shared: bool) -> Result<StdListener, BindError> {
    let listener = match try_listen(address, shared) {
        // A host without IPv6 still has all addresses of IPv4.
        Err(error) if address.ip().is_unspecified() && address.is_ipv6() && lacks_family(&error) => {
            try_listen(SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), address.port()), shared)
        }
        result => result,
    };
    listener.map_err(|source| BindError { variable, address, hint: hint(&source), source })
}

fn lacks_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(nix::errno::Errno::from_raw),
        Some(nix::errno::Errno::EAFNOSUPPORT | nix::errno::Errno::EADDRNOTAVAIL)
    )
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program has this port: choose another, or 0 for a free one",
        io::ErrorKind::AddrNotAvailable => "; no interface has this address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: choose a higher one",
        _ => "",
    }
}

fn try_listen(address: SocketAddr, shared: bool) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn local(
    variable: &'static str,
    address: SocketAddr,
    listener: &StdListener,
) -> Result<SocketAddr, BindError> {
    listener.local_addr().map_err(|source| BindError { variable, address, hint: "", source })
}

/// A connection on its way into a pipeline.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: Stream,
    /// Who opened it.
    pub client: SocketAddr,
    /// Where it arrived: the listener's address as the client's packets named it.
    pub local: SocketAddr,
    /// Where the client wanted to go, when the kernel redirected it here.
    pub original: Option<SocketAddr>,
    /// Counts the connection for as long as it lives.
    pub permit: Permit,
}

/// Accepts until `stop` completes, then once more whatever the kernel has already queued, and hands each
/// connection to `serve` as a task of its own.
pub async fn run<S, F>(
    worker: Rc<Worker>,
    listener: StdListener,
    direction: Direction,
    stop: impl Future<Output = ()>,
    serve: S,
) -> io::Result<()>
where
    S: Fn(Accepted) -> F,
    F: Future<Output = ()> + 'static,
{
    let listener = TcpListener::from_std(listener)?;
    let start = |stream: TcpStream, client: SocketAddr| {
        if let Some(accepted) = admit(&worker, direction, stream, client) {
            tokio::task::spawn_local(serve(accepted));
        }
    };
    tokio::pin!(stop);
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => start(stream, client),
                Err(error) => after_error(&worker, &error).await,
            },
            () = &mut stop => break,
        }
    }
    // Closing a listening socket resets what is queued on it: these clients have been told "connected".
    let listener = listener.into_std()?;
    while let Ok((stream, client)) = listener.accept() {
        stream.set_nonblocking(true)?;
        start(TcpStream::from_std(stream)?, client);
    }
    Ok(())
}

async fn after_error(worker: &Worker, error: &io::Error) {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
            worker.shard.limit(Limit::Connections);
            tracing::warn!(%error, "cannot accept connections");
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
        }
        // The client went away while it was queued, or the network failed for it alone.
        _ => tracing::debug!(%error, "a connection was gone before it was accepted"),
    }
}

fn admit(worker: &Worker, direction: Direction, stream: TcpStream, client: SocketAddr) -> Option<Accepted> {
    let Some(permit) = worker.permits(direction).acquire() else {
        worker.shard.limit(Limit::Connections);
        return None;
    };
    // Both fail only on a connection that is already dead; the pipeline will find out.
    let nodelay = stream.set_nodelay(true);
    let local = stream.local_addr();
    let (Ok(()), Ok(local)) = (nodelay, local) else { return None };
    let (client, local) = (canonical(client), canonical(local));
    let original = original_destination(&stream, client).filter(|original| *original != local);
    Some(Accepted { stream: stream.into(), client, local, original, permit })
}

/// The destination before the kernel's redirect; `None` when there was no redirect.
fn original_destination(stream: &TcpStream, client: SocketAddr) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    // An IPv4 connection on a dual-stack socket still answers the IPv4 question.
    let address = if client.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    address.ok()?.as_socket().map(canonical)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::io::AsyncReadExt as _;
    use tokio::sync::oneshot;

    use super::*;
    use crate::worker::tests::worker;

    #[test]
    fn addresses_are_canonical() {
        let mapped: SocketAddr = "[::ffff:10.0.0.7]:80".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.7:80".parse().unwrap());
    }

    #[test]
    fn workers_share_a_port_that_the_kernel_chose() {
        let any: SocketAddr = "[::]:0".parse().unwrap();
        let mut workers = [Listeners::default(), Listeners::default()];
        let mut first = None;
        for worker in &mut workers {
            let listener = listen("TEST", first.unwrap_or(any), true).unwrap();
            first = Some(local("TEST", any, &listener).unwrap());
            worker.0.push((Role::Inbound, listener));
        }
        let ports = workers.each_ref().map(|worker| worker.0[0].1.local_addr().unwrap().port());
        assert_eq!(ports[0], ports[1]);
    }

    #[test]
    fn a_taken_port_names_its_variable() {
        let taken = StdListener::bind("127.0.0.1:0").unwrap();
        let error = listen("WEFT_INBOUND_LISTEN", taken.local_addr().unwrap(), true).expect_err("taken");
        let text = error.to_string();
        assert!(text.starts_with("WEFT_INBOUND_LISTEN: cannot listen on 127.0.0.1:"), "{text}");
        assert!(text.contains("another program has this port"), "{text}");
    }

    #[tokio::test]
    async fn what_the_kernel_has_queued_is_served_after_the_stop() {
        let worker = worker(&[]);
        let listener = try_listen("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut queued = TcpStream::connect(address).await.unwrap();
        drop(stop);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let serving = {
            let seen = Rc::clone(&seen);
            let serve = move |accepted: Accepted| {
                let seen = Rc::clone(&seen);
                async move { seen.borrow_mut().push((accepted.local, accepted.original)) }
            };
            let stop = async { drop(stopped.await) };
            run(Rc::clone(&worker), listener, Direction::Inbound, stop, serve)
        };
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                serving.await.unwrap();
                assert_eq!(queued.read(&mut [0; 1]).await.unwrap(), 0, "served and closed");
            })
            .await;
        assert_eq!(*seen.borrow(), [(address, None)]);
        assert_eq!(worker.inbound_permits.used(), 0);
        assert!(TcpStream::connect(address).await.is_err(), "closed");
    }
}
