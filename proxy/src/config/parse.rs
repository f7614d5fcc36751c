//! From the text of a setting to its meaning, one function for each kind.
//!
//! In: text from flags or the environment. Out: values, or an [`Error`] that names the variable, what it holds and what to
//! write instead. Pure, but for the host's own addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use weft_wire::annotation::{self, Sidecar};
use weft_wire::xds::{Destination, Protocol};
use weft_wire::{Host, WorkloadId};

use super::{
    DefaultAccess, Error, OUTBOUND_FORWARDS_MAX, OutboundForward, Register, WORKERS_DEFAULT_MAX, WORKERS_MAX,
};
use crate::probe::Probes;

pub(super) fn parse_workload(
    name: Option<String>,
    namespace: &str,
    needed: bool,
) -> Result<WorkloadId, Error> {
    let name = match name.filter(|text| !text.is_empty()) {
        Some(name) => name,
        None if needed => {
            return Err(Error::Missing {
                variable: "WEFT_WORKLOAD",
                fix: "a sidecar with a control plane must say what it speaks for: write the Deployment's or program's name",
            });
        }
        None => "standalone".to_owned(),
    };
    WorkloadId::new(namespace, &name).map_err(|_| {
        let namespace_is_wrong = WorkloadId::new(namespace, "x").is_err();
        Error::Invalid {
            variable: if namespace_is_wrong { "WEFT_NAMESPACE" } else { "WEFT_WORKLOAD" },
            text: if namespace_is_wrong { namespace.to_owned() } else { name },
            expected: "a name",
            fix: "use a-z, 0-9, '-', '_' (and '.' in a workload)",
        }
    })
}

pub(super) fn parse_control_plane(text: String) -> Result<http::Uri, Error> {
    let uri = text.parse::<http::Uri>().ok().filter(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    });
    uri.ok_or(Error::Invalid {
        variable: "WEFT_CONTROL_PLANE",
        text,
        expected: "a URL",
        fix: "write it as https://HOST:15012, or as http://HOST:15010 if it is insecure",
    })
}

pub(super) fn parse_pod_ips(text: Option<String>) -> Result<Vec<IpAddr>, Error> {
    let text = text.unwrap_or_default();
    let given = entries(&text)
        .map(|entry| {
            entry.parse::<IpAddr>().map(|ip| ip.to_canonical()).map_err(|_| Error::Invalid {
                variable: "WEFT_POD_IPS",
                text: entry.to_owned(),
                expected: "an IP address",
                fix: "write addresses separated by commas, or leave it out to use the host's",
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(if given.is_empty() { host_addresses() } else { given })
}

/// The host's addresses that a peer could see; loopback when there is no other.
fn host_addresses() -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(|ip| !ip.is_loopback() && !is_link_local(*ip))
        .collect();
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
    } else {
        found
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

pub(super) fn parse_listen(variable: &'static str, text: &str) -> Result<Option<SocketAddr>, Error> {
    if text == "off" {
        return Ok(None);
    }
    parse_address(variable, text, "write IP:PORT, [IPv6]:PORT or off").map(Some)
}

pub(super) fn parse_admin(text: &str) -> Result<Option<SocketAddr>, Error> {
    let address = parse_listen("WEFT_ADMIN_LISTEN", text)?;
    match address {
        // It can drain the sidecar and shows its configuration, and asks nobody who they are.
        Some(address) if !address.ip().is_loopback() => Err(Error::Invalid {
            variable: "WEFT_ADMIN_LISTEN",
            text: text.to_owned(),
            expected: "a loopback address",
            fix: "write 127.0.0.1:15000, [::1]:15000 or off: the admin interface has no authentication",
        }),
        address => Ok(address),
    }
}

pub(super) fn parse_default_access(text: &str, has_control_plane: bool) -> Result<DefaultAccess, Error> {
    const VARIABLE: &str = "WEFT_DEFAULT_ACCESS";
    match text {
        "allow" => Ok(DefaultAccess::Allow),
        "deny" if has_control_plane => Ok(DefaultAccess::Deny),
        "deny" => Err(Error::Unused {
            variable: VARIABLE,
            fix: "without a control plane nobody would ever be let in: set WEFT_CONTROL_PLANE, or write allow",
        }),
        other => Err(Error::Invalid {
            variable: VARIABLE,
            text: other.to_owned(),
            expected: "allow or deny",
            fix: "write deny to refuse callers until the control plane has said who may call",
        }),
    }
}

pub(super) fn parse_address(
    variable: &'static str,
    text: &str,
    fix: &'static str,
) -> Result<SocketAddr, Error> {
    text.parse().map_err(|_| Error::Invalid { variable, text: text.to_owned(), expected: "an address", fix })
}

pub(super) fn parse_outbound_forward(text: &str) -> Result<Vec<OutboundForward>, Error> {
    let invalid = |text: &str| Error::Invalid {
        variable: "WEFT_OUTBOUND_FORWARD",
        text: text.to_owned(),
        expected: "LISTEN=AUTHORITY",
        fix: "write for instance 127.0.0.1:9001=orders.shop:8080, separated by commas, at most 64",
    };
    if entries(text).count() > OUTBOUND_FORWARDS_MAX {
        return Err(invalid(text));
    }
    entries(text)
        .map(|entry| {
            let (listen, authority) = entry.split_once('=').ok_or_else(|| invalid(entry))?;
            let listen = listen.trim().parse().map_err(|_| invalid(entry))?;
            let destination = parse_destination(authority.trim()).ok_or_else(|| invalid(entry))?;
            Ok(OutboundForward { listen, destination })
        })
        .collect()
}

/// Reads `ip:port` or `host:port`.
pub(super) fn parse_destination(authority: &str) -> Option<Destination> {
    if let Ok(address) = authority.parse() {
        return Some(Destination::Address(address));
    }
    let (host, port) = authority.rsplit_once(':')?;
    let host = host.parse::<Host>().ok()?;
    let port = port.parse().ok().filter(|&port| port != 0)?;
    Some(Destination::Name { host: host.as_str().into(), port })
}

pub(super) fn parse_register(text: &str) -> Result<Register, Error> {
    let invalid = || Error::Invalid {
        variable: "WEFT_REGISTER",
        text: text.to_owned(),
        expected: "SERVICE.NAMESPACE:PORT[/PROTOCOL]",
        fix: "write for instance orders.shop:8080/http (protocols: http, http2, tls, tcp)",
    };
    let (service, protocol) = match text.split_once('/') {
        None => (text, None),
        Some((service, word)) => (service, Some(Protocol::from_word(word).ok_or_else(invalid)?)),
    };
    Ok(Register { service: service.parse().map_err(|_| invalid())?, protocol })
}

pub(super) fn parse_workers(text: Option<String>) -> Result<NonZeroUsize, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        // Knows the affinity mask and the cgroup's quota.
        let available = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        return Ok(NonZeroUsize::new(available.min(WORKERS_DEFAULT_MAX)).unwrap_or(NonZeroUsize::MIN));
    };
    text.parse().ok().filter(|workers: &NonZeroUsize| workers.get() <= WORKERS_MAX).ok_or(Error::Invalid {
        variable: "WEFT_WORKERS",
        text,
        expected: "a number of threads",
        fix: "write a number from 1 to 64, or leave it out",
    })
}

pub(super) fn parse_mark(text: String) -> Result<u32, Error> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    parsed.filter(|&mark| mark != 0).ok_or(Error::Invalid {
        variable: "WEFT_SOCKET_MARK",
        text,
        expected: "a mark",
        fix: "write a number that is not 0, for instance 0x2102",
    })
}

pub(super) fn parse_number<N: FromStr>(variable: &'static str, text: &str) -> Result<N, Error> {
    text.parse().map_err(|_| Error::Invalid {
        variable,
        text: text.to_owned(),
        expected: "a number above 0",
        fix: "write decimal digits",
    })
}

pub(super) fn parse_duration(variable: &'static str, text: &str) -> Result<Duration, Error> {
    duration(text).ok_or_else(|| Error::Invalid {
        variable,
        text: text.to_owned(),
        expected: "a duration",
        fix: "write a number and a unit: 500ms, 30s, 5m, 1h (at most 24h)",
    })
}

pub(super) fn parse_probes(text: String) -> Result<Probes, Error> {
    text.parse().map_err(|error: crate::probe::Invalid| Error::Invalid {
        variable: "WEFT_PROBES",
        text: error.to_string(),
        expected: "what the injector writes",
        fix: "leave the variable to the injector, or take the pod's sidecar out and in again: weft uninject, weft inject",
    })
}

pub(super) fn parse_inbound_protocols(text: String) -> Result<Vec<(u16, Protocol)>, Error> {
    annotation::protocols(&text).map_err(|_| Error::Invalid {
        variable: "WEFT_INBOUND_PROTOCOLS",
        text,
        expected: "ports and protocols",
        fix: "write for instance 3306=tcp,9000=http2 (protocols: http, http2, tls, tcp)",
    })
}

pub(super) fn parse_sidecar(text: String) -> Result<Sidecar, Error> {
    annotation::sidecar(&text).map_err(|_| Error::Invalid {
        variable: "WEFT_SIDECAR",
        text,
        expected: "native or classic",
        fix: "write classic for an ordinary container beside the app's, else native",
    })
}

/// Reads `500ms`, `1.5s`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    const DAY: f64 = 86_400.0;
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let seconds = number.parse::<f64>().ok()? * factor;
    (0.0..=DAY).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

pub(super) fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}
