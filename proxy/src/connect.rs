//! Opening upstream connections: the only place that calls `connect(2)`.
//!
//! In: an address and [`ConnectOptions`]. Out: a non-blocking stream with `TCP_NODELAY` and the sidecar's
//! mark, or a [`ConnectError`] that knows its [`Reason`]. Invariant: every attempt has a deadline. Non-goal:
//! choosing the address (balancer) and keeping the connection (pool).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use weft_wire::Reason;

mod dialer;

pub use dialer::{DialError, Dialer};

/// How to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectOptions {
    /// The attempt's deadline.
    pub timeout: Duration,
    /// `SO_MARK`, so that interception leaves the sidecar's own connections alone.
    pub mark: Option<u32>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("connection to {address} refused")]
    Refused {
        /// Where to.
        address: SocketAddr,
    },
    /// No answer within the deadline.
    #[error("connection to {address} not accepted within {after:?}")]
    Timeout {
        /// Where to.
        address: SocketAddr,
        /// The deadline.
        after: Duration,
    },
    /// Another cause: no route, out of local ports or descriptors, mark not permitted, …
    #[error("connection to {address} failed")]
    Failed {
        /// Where to.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The name has no address.
    #[error("name {host:?} not resolved")]
    Unresolved {
        /// The name.
        host: Box<str>,
        /// What the resolver said; `None` when it did not within the deadline.
        source: Option<io::Error>,
    },
}

impl ConnectError {
    /// The word for it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { .. } => Reason::ConnectRefused,
            Self::Timeout { .. } => Reason::ConnectTimeout,
            Self::Failed { .. } | Self::Unresolved { .. } => Reason::ConnectFailed,
        }
    }
}

/// Connects to `address`.
///
/// Cancel safe: dropping the future closes the socket.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(address: SocketAddr, options: &ConnectOptions) -> Result<TcpStream, ConnectError> {
    let failed = |source| ConnectError::Failed { address, source };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    if let Some(mark) = options.mark {
        SockRef::from(&socket).set_mark(mark).map_err(failed)?;
    }
    match tokio::time::timeout(options.timeout, socket.connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.kind() {
            io::ErrorKind::ConnectionRefused => ConnectError::Refused { address },
            io::ErrorKind::TimedOut => ConnectError::Timeout { address, after: options.timeout },
            _ => failed(error),
        }),
        Err(_elapsed) => Err(ConnectError::Timeout { address, after: options.timeout }),
    }
}

/// Whether this process may mark its sockets: better known at the start than with the first connection.
///
/// # Errors
/// What the kernel says; without `CAP_NET_ADMIN`, that it is not permitted.
pub fn try_mark(mark: u32) -> io::Result<()> {
    SockRef::from(&std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?).set_mark(mark)
}

/// Resolves a name as the pod's files and name servers say: IPv4 first, at most eight addresses, within `timeout`.
///
/// Only for destinations that the control plane does not know; services come as addresses.
///
/// # Errors
/// [`ConnectError::Unresolved`].
pub async fn resolve(host: &str, port: u16, timeout: Duration) -> Result<Vec<SocketAddr>, ConnectError> {
    let unresolved = |source| ConnectError::Unresolved { host: host.into(), source };
    // On the heap: connections that ask for no name, which is nearly all, need not have room for it.
    match tokio::time::timeout(timeout, Box::pin(weft_dns::lookup(host))).await {
        Ok(Ok(found)) => Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()),
        Ok(Err(error)) => Err(unresolved(Some(error))),
        Err(_elapsed) => Err(unresolved(None)),
    }
}

/// Connects to the first of a name's addresses that accepts.
///
/// # Errors
/// The last address's failure, or that there is none.
pub async fn connect_host(
    host: &str,
    port: u16,
    options: &ConnectOptions,
) -> Result<TcpStream, ConnectError> {
    let mut failed = ConnectError::Unresolved { host: host.into(), source: None };
    for address in resolve(host, port, options.timeout).await? {
        match connect(address, options).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: ConnectOptions = ConnectOptions { timeout: Duration::from_secs(5), mark: None };

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = connect(address, &OPTIONS).await.expect_err("nobody listens");
        assert_eq!(error.reason(), Reason::ConnectRefused);
    }

    #[tokio::test]
    async fn a_connection_has_no_delay() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(listener.local_addr().unwrap(), &OPTIONS).await.expect("listens");
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn addresses_need_no_resolver() {
        let timeout = Duration::from_secs(1);
        assert_eq!(resolve("10.0.0.7", 80, timeout).await.unwrap(), ["10.0.0.7:80".parse().unwrap()]);
        assert_eq!(resolve("[fd00::7]", 80, timeout).await.unwrap(), ["[fd00::7]:80".parse().unwrap()]);
    }
}
