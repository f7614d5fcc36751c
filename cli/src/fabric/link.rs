//! Links, addresses and routes of the current network namespace, spoken to the kernel in netlink.
//!
//! In: names and addresses. Out: their existence. No `ip` binary is needed, so the demo runs on machines
//! that have none. Every function opens its own connection, because holders do a handful of such things in
//! their life.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

/// The bridge's name in the hub.
const BRIDGE: &str = "weft0";
/// Its hardware address, locally administered. Left to itself a bridge takes the lowest of its ports', so it changes
/// when a pod is added, and pods that knew the old one cannot reach the hub for seconds.
const BRIDGE_ADDRESS: [u8; 6] = [0x02, b'w', b'e', b'f', b't', 0];

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no netlink socket ({0})")]
    Socket(#[source] std::io::Error),
    #[error("{0}")]
    Refused(std::io::Error),
    #[error("{0}")]
    Netlink(String),
    #[error("no interface {0}")]
    Missing(String),
}

impl From<rtnetlink::Error> for Error {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Refused(message.to_io()),
            other => Self::Netlink(other.to_string()),
        }
    }
}

/// Makes the bridge, with addresses.
pub(super) async fn bridge(addresses: &[(IpAddr, u8)]) -> Result<(), Error> {
    let handle = connect()?;
    handle
        .link()
        .add(LinkBridge::new(BRIDGE).address(BRIDGE_ADDRESS.to_vec()).up().build())
        .execute()
        .await?;
    let index = index_of(&handle, BRIDGE).await?;
    add_addresses(&handle, index, addresses).await
}

/// Makes a cable between the bridge and the network namespace of process `pid`.
pub(super) async fn attach(interface: &str, pid: u32) -> Result<(), Error> {
    let handle = connect()?;
    let bridge = index_of(&handle, BRIDGE).await?;
    let peer = LinkMessageBuilder::<LinkUnspec>::new().name("eth0").setns_by_pid(pid).build();
    let cable = LinkVeth::new(interface, "eth0")
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .controller(bridge)
        .up()
        .build();
    Ok(handle.link().add(cable).execute().await?)
}

/// Brings an interface up, with addresses and the default routes.
pub(super) async fn configure(interface: &str, addresses: &[(IpAddr, u8)]) -> Result<(), Error> {
    let handle = connect()?;
    let index = index_of(&handle, interface).await?;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    add_addresses(&handle, index, addresses).await?;
    // On-link: whoever has the address answers on the bridge, which lets a pod stand for a host on the
    // internet.
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
        .output_interface(index)
        .scope(RouteScope::Link)
        .build();
    handle.route().add(v4).execute().await?;
    if addresses.iter().any(|(address, _)| address.is_ipv6()) {
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .output_interface(index)
            .build();
        // A machine with IPv6 switched off still has a fabric, only with one family.
        handle.route().add(v6).execute().await.ok();
    }
    Ok(())
}

/// Brings an interface up.
pub(super) async fn up(interface: &str) -> Result<(), Error> {
    let handle = connect()?;
    let index = index_of(&handle, interface).await?;
    Ok(handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?)
}

fn connect() -> Result<Handle, Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn index_of(handle: &Handle, interface: &str) -> Result<u32, Error> {
    let mut links = std::pin::pin!(handle.link().get().match_name(interface).execute());
    match links.try_next().await? {
        Some(link) => Ok(link.header.index),
        None => Err(Error::Missing(interface.into())),
    }
}

async fn add_addresses(handle: &Handle, index: u32, addresses: &[(IpAddr, u8)]) -> Result<(), Error> {
    for &(address, prefix) in addresses {
        let mut request = handle.address().add(index, address, prefix);
        if address.is_ipv6() {
            // Nobody else can have it, so there is no need to wait a second for an objection.
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        }
        match request.execute().await {
            Err(_) if address.is_ipv6() => {}
            result => result?,
        }
    }
    Ok(())
}
