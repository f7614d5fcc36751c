//! The shop in network namespaces: names resolve to services, and traffic is intercepted unseen.

use anyhow::Context as _;
use weft_wire::port::{CONTROL_TLS, PROXY_MARK, PROXY_UID};

use crate::demo::cast::{self, BANK_ADDRESS, BANK_HOST, CAST, Copy, NAMESPACE, Part, virtual_address};
use crate::fabric::{Command, Fabric, HUB, Pod};

/// A pod for every copy.
pub(super) fn pods(fabric: &Fabric) -> anyhow::Result<(Vec<Copy>, Vec<Pod>)> {
    let (mut copies, mut pods): (Vec<Copy>, Vec<Pod>) = Default::default();
    for (role, version, name) in cast::copies() {
        let mut builder = fabric.pod(&name).host(BANK_HOST, BANK_ADDRESS);
        match role.part {
            Part::External => builder = builder.address(BANK_ADDRESS),
            Part::Meshed => {
                for service in CAST.iter().filter(|role| role.part == Part::Meshed && role.port.is_some()) {
                    builder = builder
                        .host(service.name, virtual_address(service))
                        .host(format!("{}.{NAMESPACE}", service.name), virtual_address(service));
                }
            }
            // Nobody intercepts, so virtual addresses lead nowhere: it knows pods.
            Part::Unmeshed => {
                for copy in copies.iter().filter(|copy| copy.role.part == Part::Meshed) {
                    builder = builder.host(copy.role.name, copy.address);
                }
            }
        }
        let pod = builder.start().with_context(|| format!("cannot make a pod for {name}"))?;
        copies.push(Copy {
            role,
            version,
            pod: name,
            address: pod.address(),
            port: role.port.map(|port| port.number),
        });
        pods.push(pod);
    }
    Ok((copies, pods))
}

/// Intercepts the pod's traffic, and returns the sidecar's command.
pub(super) fn sidecar(fabric: &Fabric, pod: &Pod) -> anyhow::Result<Command> {
    let users = fabric.isolation().has_users();
    let mut intercept = pod.weft().args(["proxy", "intercept"]);
    if !users {
        intercept = intercept.args(["--exclude-mark".to_owned(), PROXY_MARK.to_string()]);
    }
    let output = intercept.output()?;
    if !output.status.success() {
        anyhow::bail!(
            "cannot intercept the traffic of {}: {}",
            pod.name(),
            String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: ")
        );
    }
    let sidecar = pod
        .weft()
        .arg("proxy")
        .env("WEFT_CONTROL_PLANE", format!("https://{HUB}:{CONTROL_TLS}"))
        .env("WEFT_POD_IPS", format!("{},{}", pod.address(), pod.address_v6()));
    Ok(if users {
        sidecar.uid(fabric.isolation(), PROXY_UID)
    } else {
        sidecar.env("WEFT_SOCKET_MARK", PROXY_MARK.to_string())
    })
}
