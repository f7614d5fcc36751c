//! A sidecar that is told to stop finishes what it has.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use weft_tests::{mesh, package, poll};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn an_endpoint_that_is_removed_and_stopped_costs_no_request() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    package::debian("h2load", "nghttp2-client")?;
    mesh.start_control_plane()?;
    for pod in ["client", "back-1", "back-2"] {
        mesh.meshed_pod(pod)?;
    }
    mesh.service("back", 8080, None, &["back-1", "back-2"])?;
    crate::echo(&mut mesh, "back-1", 8080, "")?;
    crate::echo(&mut mesh, "back-2", 8080, "")?;

    let load = mesh.spawn(
        "client",
        "load",
        &["h2load", "--h1", "-n", "6000", "-c", "8", "-t", "1", "http://back:8080/"],
    )?;
    let served = |mesh: &mesh::Mesh, pod: &str| -> anyhow::Result<u64> {
        let metrics = mesh.metrics(pod)?;
        let counts =
            metrics.lines().filter(|line| line.starts_with("http_server_request_duration_seconds_count"));
        Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
    };
    poll::until_blocking("both endpoints serve", DEADLINE, || {
        for pod in ["back-1", "back-2"] {
            ensure!(served(&mesh, pod)? > 50, "{pod} has hardly served");
        }
        Ok(())
    })
    .with_context(|| ["load", "client", "control-plane"].map(|name| mesh.log(name)).join("\n"))?;
    mesh.set_endpoints("back", &["back-2"])?;
    let sidecar = mesh.signal_sidecar("back-1", Signal::SIGTERM)?;
    let stopped =
        sidecar.wait_until(std::time::Instant::now() + DEADLINE).context("the sidecar still runs")?;
    ensure!(stopped.success(), "{}", mesh.log("back-1"));

    let status = load.wait();
    let said = mesh.log("load");
    ensure!(status.success() && said.contains("6000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    Ok(())
}
