//! A count is exact, whatever happens to the control plane.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use weft_tests::{mesh, package, poll};

/// Requests sent in one test.
const REQUESTS: u64 = 10_000;
/// How long the last reports may take to arrive, back-off after the restart included.
const ARRIVES: Duration = Duration::from_secs(30);

#[test]
fn ten_thousand_requests_stay_ten_thousand_across_a_control_plane_restart() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    package::debian("h2load", "nghttp2-client")?;
    mesh.start_control_plane()?;
    mesh.meshed_pod("client")?;
    mesh.meshed_pod("back")?;
    mesh.service("back", 8080, None, &["back"])?;
    crate::echo(&mut mesh, "back", 8080, "")?;

    let total = REQUESTS.to_string();
    let load = mesh.spawn(
        "client",
        "load",
        &["h2load", "--h1", "-n", &total, "-c", "8", "-t", "1", "http://back:8080/orders/7"],
    )?;
    // Somewhere in the middle of the load, seen by its own effect.
    let counted = |mesh: &mesh::Mesh| -> anyhow::Result<u64> {
        let edge = mesh.edge("workload:shop/client", "workload:shop/back")?;
        edge["requests_total"].as_u64().context("requests_total is a number")
    };
    poll::until_blocking("the load is under way", ARRIVES, || {
        let now = counted(&mesh)?;
        ensure!(now > 0, "nothing counted yet");
        Ok(())
    })?;
    mesh.kill_control_plane();
    mesh.start_control_plane()?;

    let status = load.wait();
    let said = mesh.log("load");
    ensure!(status.success(), "{said}");
    ensure!(said.contains(&format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout")), "{said}");
    poll::until_blocking("all are counted", ARRIVES, || {
        let now = counted(&mesh)?;
        ensure!(now == REQUESTS, "{now} counted");
        Ok(())
    })
    .with_context(|| mesh.log("control-plane"))?;
    // A resent report would be counted late: look again after the sidecars have certainly reported again.
    let version = mesh.get("/api/graph?window=1m")?["version"].clone();
    poll::until_blocking("another report", ARRIVES, || {
        ensure!(mesh.get("/api/graph?window=1m")?["version"] != version, "same version");
        Ok(())
    })?;
    assert_eq!(counted(&mesh)?, REQUESTS);
    Ok(())
}
