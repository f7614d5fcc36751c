//! A TCP relay, for what stands between two programs: a Service, a network that is cut.
//!
//! In: where to lead, as it changes. Out: an address. As with a Service, connections that are open stay where they are when new
//! ones are led elsewhere. Everything ends with the value.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A relay.
pub struct Relay {
    /// Where it is.
    pub address: SocketAddr,
    /// Where it leads; nowhere, when it is cut.
    leads: watch::Sender<Option<SocketAddr>>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// One that leads to `target`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (leads, led) = watch::channel(Some(target));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, led));
        Ok(Self { address, leads, _tasks: tasks })
    }

    /// Leads new connections to `target`.
    pub fn lead_to(&self, target: SocketAddr) {
        self.leads.send_replace(Some(target));
    }

    /// Breaks every connection off, and closes new ones at once, until [`Relay::lead_to`].
    pub fn cut(&self) {
        self.leads.send_replace(None);
    }
}

async fn accept(listener: TcpListener, led: watch::Receiver<Option<SocketAddr>>) {
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let target = *led.borrow();
                if let (Ok((stream, _)), Some(target)) = (accepted, target) {
                    carried.spawn(carry(stream, target, led.clone()));
                }
            }
            Some(_) = carried.join_next() => {}
        }
    }
}

async fn carry(mut near: TcpStream, target: SocketAddr, mut led: watch::Receiver<Option<SocketAddr>>) {
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    tokio::select! {
        // However it ends, both sides are closed.
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = led.wait_for(Option::is_none) => {}
    }
}
