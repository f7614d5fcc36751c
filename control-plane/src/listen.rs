//! Opening listening sockets: bound by address, or inherited from whoever started the program.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, OwnedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;

use crate::config::Listen;

/// Connections that wait to be accepted: a thousand sidecars that reconnect in the same moment.
const BACKLOG: i32 = 1024;

/// A socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be bound.
    #[error("listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The inherited descriptor cannot be used.
    #[error("use inherited socket fd:{number}")]
    Inherit {
        /// The descriptor.
        number: i32,
        /// Why.
        source: io::Error,
    },
}

/// Opens a listener; `None` for `off`.
///
/// # Errors
/// When it cannot be opened.
pub fn open(listen: &Listen) -> Result<Option<TcpListener>, Error> {
    match *listen {
        Listen::Off => Ok(None),
        Listen::Address(address) => {
            let bound = bind(address).or_else(|source| {
                // A machine without IPv6 cannot bind [::], and means the same by 0.0.0.0.
                let no_ipv6 = matches!(source.raw_os_error(), Some(code) if code == EAFNOSUPPORT);
                if no_ipv6 && address.ip().is_unspecified() {
                    bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
                } else {
                    Err(source)
                }
            });
            bound.map(Some).map_err(|source| Error::Bind { address, source })
        }
        Listen::Inherited(number) => {
            inherit(number).map(Some).map_err(|source| Error::Inherit { number, source })
        }
    }
}

/// "Address family not supported by protocol" on Linux.
const EAFNOSUPPORT: i32 = 97;

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of the last run to be forgotten.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    adopt(socket.into())
}

fn inherit(number: i32) -> io::Result<TcpListener> {
    let owned: OwnedFd = if number == 0 {
        io::stdin().as_fd().try_clone_to_owned()?
    } else {
        // A number is not a descriptor that safe code may own; asking the kernel for a copy of our own is.
        let own =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?;
        rustix::process::pidfd_getfd(own, number, rustix::process::PidfdGetfdFlags::empty())?
    };
    if !SockRef::from(&owned).is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening socket"));
    }
    adopt(StdListener::from(owned))
}

fn adopt(listener: StdListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_inherited_by_number() {
        let parent = StdListener::bind("127.0.0.1:0").unwrap();
        let listener = open(&Listen::Inherited(parent.as_raw_fd())).unwrap().unwrap();
        assert_eq!(listener.local_addr().unwrap(), parent.local_addr().unwrap());
    }

    #[tokio::test]
    async fn what_is_no_listening_socket_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let error = open(&Listen::Inherited(file.as_raw_fd())).unwrap_err();
        assert_eq!(error.to_string(), format!("use inherited socket fd:{}", file.as_raw_fd()));
        assert!(open(&Listen::Inherited(99_999)).is_err());
    }

    #[tokio::test]
    async fn port_zero_is_any_port() {
        let listener = open(&Listen::Address("127.0.0.1:0".parse().unwrap())).unwrap().unwrap();
        assert_ne!(listener.local_addr().unwrap().port(), 0);
        assert!(open(&Listen::Off).unwrap().is_none());
    }
}
