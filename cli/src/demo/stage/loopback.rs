//! The shop where no namespace is allowed: every copy has a loopback address, programs use their sidecar as
//! `http_proxy`, and what is not HTTP/1 goes through a listener that stands for one service.

use std::net::Ipv4Addr;

use weft_wire::port::{ADMIN, CONTROL_TLS, INBOUND, METRICS, OUTBOUND};

use super::at;
use crate::demo::cast::{self, Copy, NAMESPACE, Part};
use crate::fabric::{Command, Launcher};

/// The control plane's address.
pub(super) const HUB: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
/// Programs listen this much above their usual port, because other programs of this machine may listen on the
/// usual one at every address.
const PORT_OFFSET: u16 = 10_000;
/// Local port that stands for the cache.
const CACHE_FORWARD: u16 = 26_379;
/// Local port that stands for payments.
const PAYMENTS_FORWARD: u16 = 25_051;

pub(super) fn copies() -> Vec<Copy> {
    cast::copies()
        // Without namespaces a caller without a sidecar looks like every other program of this machine.
        .filter(|(role, ..)| role.part != Part::Unmeshed)
        .zip(2..)
        .map(|((role, version, pod), number)| Copy {
            role,
            version,
            pod,
            address: Ipv4Addr::new(127, 77, 0, number),
            port: match role.part {
                Part::Meshed => role.port.map(|_| INBOUND),
                Part::Unmeshed | Part::External => role.port.map(|port| own_port(port.number)),
            },
        })
        .collect()
}

fn own_port(port: u16) -> u16 {
    port.wrapping_add(PORT_OFFSET)
}

pub(super) fn sidecar(launcher: &Launcher, copy: &Copy) -> Command {
    let address = copy.address;
    let forwards = format!(
        "{}=cache.{NAMESPACE}:6379,{}=payments.{NAMESPACE}:50051",
        at(address, CACHE_FORWARD),
        at(address, PAYMENTS_FORWARD)
    );
    let sidecar = launcher
        .weft(&copy.pod)
        .arg("proxy")
        .env("WEFT_CONTROL_PLANE", format!("https://{}", at(HUB, CONTROL_TLS)))
        .env("WEFT_POD_IPS", address.to_string())
        .env("WEFT_OUTBOUND_LISTEN", at(address, OUTBOUND))
        .env("WEFT_OUTBOUND_FORWARD", forwards)
        .env("WEFT_METRICS_LISTEN", at(address, METRICS))
        .env("WEFT_ADMIN_LISTEN", at(address, ADMIN));
    match copy.role.port {
        Some(port) => sidecar
            .env("WEFT_INBOUND_LISTEN", at(address, INBOUND))
            .env("WEFT_INBOUND_FORWARD", at(address, own_port(port.number))),
        None => sidecar.env("WEFT_INBOUND_LISTEN", "off"),
    }
}

pub(super) fn program(launcher: &Launcher, copy: &Copy, copies: &[Copy]) -> Command {
    let mut program = launcher.weft(&copy.pod);
    if let Some(port) = copy.role.port {
        program = program.env("WEFT_DEMO_LISTEN", at(copy.address, own_port(port.number)));
    }
    if copy.role.part != Part::Meshed {
        return program;
    }
    if let Some(bank) = copies.iter().find(|copy| copy.role.part == Part::External).and_then(Copy::endpoint) {
        program = program.env("WEFT_DEMO_BANK", format!("http://{bank}"));
    }
    program
        .env("http_proxy", format!("http://{}", at(copy.address, OUTBOUND)))
        .env("WEFT_DEMO_CACHE", at(copy.address, CACHE_FORWARD))
        .env("WEFT_DEMO_PAYMENTS", format!("http://{}", at(copy.address, PAYMENTS_FORWARD)))
}
