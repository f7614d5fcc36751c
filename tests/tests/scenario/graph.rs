//! The main job: a request between two unmodified programs becomes an edge.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use weft_tests::{mesh, poll};

/// The time in which an edge must appear after the first request.
const APPEARS: Duration = Duration::from_secs(3);

#[test]
fn curl_to_app_to_app_shows_as_two_edges_within_three_seconds() -> anyhow::Result<()> {
    mesh::mesh().map_or(Ok(()), curl_to_app_to_app)
}

#[test]
fn nobody_needs_to_be_root_for_it() -> anyhow::Result<()> {
    mesh::unprivileged().map_or(Ok(()), curl_to_app_to_app)
}

fn curl_to_app_to_app(mut mesh: mesh::Mesh) -> anyhow::Result<()> {
    mesh.start_control_plane()?;
    for pod in ["client", "front", "back"] {
        mesh.meshed_pod(pod)?;
    }
    mesh.service("front", 8080, None, &["front"])?;
    mesh.service("back", 8080, None, &["back"])?;
    crate::echo(&mut mesh, "back", 8080, "")?;
    crate::echo(&mut mesh, "front", 8080, "http://back:8080")?;

    let answer =
        mesh.succeed("client", &["curl", "-sS", "--max-time", "10", "http://front:8080/users/42"])?;
    let (first, second) = poll::until_blocking("both edges appear", APPEARS, || {
        let first = mesh.edge("workload:shop/client", "workload:shop/front")?;
        let second = mesh.edge("workload:shop/front", "workload:shop/back")?;
        anyhow::Ok((first, second))
    })
    .with_context(|| {
        ["client", "front", "front-app", "control-plane"].map(|name| mesh.log(name)).join("\n")
    })?;

    assert_eq!(first["protocol"], "http");
    assert_eq!(first["requests_total"], 1);
    assert_eq!(second["requests_total"], 1);
    let routes: Vec<&Value> = second["routes"].as_array().context("no routes")?.iter().collect();
    assert_eq!(routes.len(), 1, "{routes:?}");
    assert_eq!(routes[0]["route"], "/users/{id}");

    let seen: Value = serde_json::from_str(&answer)?;
    for hop in [&seen, &seen["following"]] {
        let headers = hop["headers"].as_array().context("no headers")?;
        let count = |name: &str| headers.iter().filter(|header| header[0] == name).count();
        assert_eq!(count("traceparent"), 1, "{headers:?}");
        assert_eq!(count("x-request-id"), 1, "{headers:?}");
        assert_eq!(count("connection"), 0, "hop-by-hop headers end at the proxy: {headers:?}");
    }
    Ok(())
}

#[test]
fn callers_without_a_sidecar_and_external_hosts_are_drawn_as_such() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    mesh.start_control_plane()?;
    mesh.pod("stranger")?;
    mesh.outsider("internet")?;
    mesh.meshed_pod("back")?;
    mesh.service("back", 8080, None, &["back"])?;
    crate::echo(&mut mesh, "back", 8080, "")?;
    crate::echo(&mut mesh, "internet", 8081, "")?;

    let pod = format!("http://{}:8080/", mesh.address("back")?);
    mesh.succeed("stranger", &["curl", "-sS", "--max-time", "10", &pod])?;
    let outside = format!("http://{}:8081/rates", mesh.address("internet")?);
    mesh.succeed("back", &["curl", "-sS", "--max-time", "10", "-H", "Host: rates.example", &outside])?;

    // A stranger cannot call in the name of a workload by using its sidecar as a proxy.
    let sidecar = format!("http://{}:{}", mesh.address("back")?, weft_wire::port::OUTBOUND);
    let borrowed =
        mesh.run("stranger", &["curl", "-sS", "--max-time", "5", "--proxy", &sidecar, &outside])?;
    anyhow::ensure!(!borrowed.status.success(), "the sidecar served a stranger as a proxy");

    poll::until_blocking("unmeshed caller", APPEARS, || {
        mesh.edge("unmeshed:shop/stranger", "workload:shop/back").map(drop)
    })
    .with_context(|| mesh.log("control-plane"))?;
    poll::until_blocking("external host", APPEARS, || {
        mesh.edge("workload:shop/back", "external:rates.example:8081").map(drop)
    })
    .with_context(|| mesh.log("back"))?;
    Ok(())
}

#[test]
fn interception_works_over_ipv6() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    mesh.start_control_plane()?;
    mesh.meshed_pod("client")?;
    mesh.meshed_pod("back")?;
    mesh.app("back", &["python3", "-m", "http.server", "--bind", "::", "8080"])?;
    mesh.listening("back", 8080)?;
    let url = format!("http://[{}]:8080/", mesh.address_v6("back")?);
    mesh.succeed("client", &["curl", "-sSf", "-o", "/dev/null", "--max-time", "10", &url])?;
    poll::until_blocking("edge over IPv6", APPEARS, || {
        mesh.edge("workload:shop/client", "workload:shop/back").map(drop)
    })
    .with_context(|| mesh.log("client"))?;
    Ok(())
}
