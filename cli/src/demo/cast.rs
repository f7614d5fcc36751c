//! Who plays in the demo: pure data, and the addresses that follow from it.

use std::net::{Ipv4Addr, SocketAddr};

/// The namespace of everything in the shop.
pub(super) const NAMESPACE: &str = "shop";

/// How a program takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// With a sidecar.
    Meshed,
    /// In the cluster, without a sidecar.
    Unmeshed,
    /// Somewhere on the internet: not in the cluster at all.
    External,
}

/// A port that a service offers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Port {
    pub(super) number: u16,
    /// The port's name as in a Service.
    pub(super) name: &'static str,
    /// Declared protocol; `None` leaves it to detection.
    pub(super) protocol: Option<&'static str>,
}

/// One program of the shop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Role {
    pub(super) name: &'static str,
    pub(super) part: Part,
    pub(super) port: Option<Port>,
    pub(super) versions: &'static [&'static str],
}

const HTTP: Port = Port { number: 8080, name: "http", protocol: Some("http") };

const fn service(name: &'static str, port: Port) -> Role {
    Role { name, part: Part::Meshed, port: Some(port), versions: &["v1"] }
}

/// Everyone, callees before callers. `catalog` and `cache` do not say what they speak, so detection has work.
pub(super) const CAST: &[Role] = &[
    Role {
        name: "bank",
        part: Part::External,
        port: Some(Port { number: 80, name: "http", protocol: None }),
        versions: &["v1"],
    },
    service("cache", Port { number: 6379, name: "data", protocol: None }),
    Role {
        name: "catalog",
        part: Part::Meshed,
        port: Some(Port { number: 8080, name: "main", protocol: None }),
        versions: &["v1", "v2"],
    },
    service("inventory", HTTP),
    service("notifications", HTTP),
    service("payments", Port { number: 50051, name: "grpc", protocol: Some("grpc") }),
    service("recommendations", HTTP),
    service("cart", HTTP),
    service("orders", HTTP),
    service("web", HTTP),
    Role { name: "cron", part: Part::Unmeshed, port: None, versions: &["v1"] },
    Role { name: "shopper", part: Part::Meshed, port: None, versions: &["v1"] },
];

/// The bank's name and address: documentation names and addresses that exist nowhere (RFC 2606, RFC 5737).
pub(super) const BANK_HOST: &str = "api.bank.example";
pub(super) const BANK_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// One running copy of a program.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) role: &'static Role,
    pub(super) version: &'static str,
    /// The pod's name.
    pub(super) pod: String,
    /// The address that others see.
    pub(super) address: Ipv4Addr,
    /// Where calls to it arrive: its own port, or its sidecar's on loopback.
    pub(super) port: Option<u16>,
}

impl Copy {
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from((self.address, self.port?)))
    }
}

/// Every copy, with the address that `address` gives it.
pub(super) fn copies() -> impl Iterator<Item = (&'static Role, &'static str, String)> {
    CAST.iter().flat_map(|role| {
        role.versions.iter().map(move |version| {
            let pod = match role.versions {
                [_] => role.name.to_owned(),
                _ => format!("{}-{version}", role.name),
            };
            (role, *version, pod)
        })
    })
}

/// The service's virtual address: distinct, and routed nowhere, because every call to it is intercepted.
pub(super) fn virtual_address(role: &Role) -> Ipv4Addr {
    let position = CAST.iter().position(|other| other.name == role.name).unwrap_or_default();
    Ipv4Addr::new(10, 96, 0, 10 + u8::try_from(position).unwrap_or_default())
}

/// How many services have a sidecar and offer something.
pub(super) fn services() -> usize {
    CAST.iter().filter(|role| role.part == Part::Meshed && role.port.is_some()).count()
}
