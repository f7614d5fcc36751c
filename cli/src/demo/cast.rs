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
    /// Its versions, and how much of the traffic each gets. More than one make a canary.
    pub(super) versions: &'static [(&'static str, u32)],
    /// Copies of each version.
    pub(super) replicas: u8,
    /// Whether the last replica fails in regular phases. Its callers are told what to do about it.
    pub(super) frail: bool,
}

/// The one version of a program that has no others.
const ONLY: &[(&str, u32)] = &[("v1", 1)];

const HTTP: Port = Port { number: 8080, name: "http", protocol: Some("http") };

const fn role(name: &'static str, part: Part, port: Option<Port>) -> Role {
    Role { name, part, port, versions: ONLY, replicas: 1, frail: false }
}

const fn service(name: &'static str, port: Port) -> Role {
    role(name, Part::Meshed, Some(port))
}

/// Everyone, callees before callers. `catalog` and `cache` do not say what they speak, so detection has work.
pub(super) const CAST: &[Role] = &[
    role("bank", Part::External, Some(Port { number: 80, name: "http", protocol: None })),
    service("cache", Port { number: 6379, name: "data", protocol: None }),
    Role {
        versions: &[("v1", 90), ("v2", 10)],
        ..service("catalog", Port { number: 8080, name: "main", protocol: None })
    },
    service("inventory", HTTP),
    service("notifications", HTTP),
    service("payments", Port { number: 50051, name: "grpc", protocol: Some("grpc") }),
    service("recommendations", HTTP),
    Role { replicas: 3, frail: true, ..service("cart", HTTP) },
    service("orders", HTTP),
    service("web", HTTP),
    role("cron", Part::Unmeshed, None),
    role("shopper", Part::Meshed, None),
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

/// Every copy: who, which version, and the name of its pod.
pub(super) fn copies() -> impl Iterator<Item = (&'static Role, &'static str, String)> {
    CAST.iter().flat_map(|role| {
        role.versions.iter().flat_map(move |(version, _)| {
            (1..=role.replicas).map(move |replica| {
                let version_of = if role.versions.len() > 1 { format!("-{version}") } else { String::new() };
                let number = if role.replicas > 1 { format!("-{replica}") } else { String::new() };
                (role, *version, format!("{}{version_of}{number}", role.name))
            })
        })
    })
}

/// Whether this copy is the one of its program that fails in phases.
pub(super) fn is_frail(copy: &Copy) -> bool {
    copy.role.frail && copy.pod == format!("{}-{}", copy.role.name, copy.role.replicas)
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
