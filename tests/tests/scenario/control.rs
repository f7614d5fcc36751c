//! What people and machines do to the configuration, and what becomes of the traffic meanwhile: nothing bad.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use weft_tests::{mesh, poll};

const DEADLINE: Duration = Duration::from_secs(30);
/// How fast a change in the source must reach the traffic: the watcher's pause, a compilation, a push.
const CHANGED: Duration = Duration::from_secs(3);

/// One request from `client`, which must succeed; answers which pod served it.
fn asked(mesh: &mesh::Mesh, url: &str) -> anyhow::Result<Value> {
    let answer = mesh
        .succeed("client", &["curl", "-sSf", "--max-time", "5", url])
        .with_context(|| ["client", "control-plane"].map(|name| mesh.log(name)).join("\n"))?;
    Ok(serde_json::from_str::<Value>(&answer)?["pod"].clone())
}

fn problems(mesh: &mesh::Mesh) -> anyhow::Result<Vec<Value>> {
    Ok(mesh.get("/api/config/errors")?["errors"].as_array().context("no list of errors")?.clone())
}

#[test]
fn a_broken_file_is_reported_by_line_and_changes_nothing() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    mesh.start_control_plane()?;
    mesh.meshed_pod("client")?;
    mesh.meshed_pod("back")?;
    mesh.service("back", 8080, None, &["back"])?;
    crate::echo(&mut mesh, "back", 8080, "")?;
    assert_eq!(asked(&mesh, "http://back:8080/before")?, "back");
    assert_eq!(problems(&mesh)?, Vec::<Value>::new());

    let mut line = 0;
    mesh.edit_source(|text| {
        let broken = text.replacen("\n    port: 8080\n", "\n    port: eighty\n", 1);
        // Whatever the order of fields, the test knows where it made the mistake.
        line = 1 + broken.lines().position(|line| line.contains("port: eighty")).unwrap_or(usize::MAX - 1);
        broken
    })?;
    let found = poll::until_blocking("the mistake is reported", CHANGED, || {
        problems(&mesh)?.into_iter().next().context("no problem")
    })
    .with_context(|| mesh.log("control-plane"))?;
    assert_eq!(found["file"], "shop.yaml", "{found:#}");
    assert_eq!(found["line"], line, "{found:#}");
    assert_eq!(found["field"], "spec.ports[0].port", "{found:#}");
    assert_eq!(found["object"], "Service shop/back", "{found:#}");

    // Still routed, and not passed through: the answer names the service that was asked for.
    assert_eq!(asked(&mesh, "http://back:8080/during")?, "back");
    poll::until_blocking("it counts for the service", DEADLINE, || {
        let edge = mesh.edge("workload:shop/client", "workload:shop/back")?;
        ensure!(edge["requests_total"] == 2, "{edge:#}");
        ensure!(edge["services"].to_string().contains("back.shop:8080"), "{edge:#}");
        Ok(())
    })?;

    mesh.edit_source(|text| text.replace("port: eighty", "port: 8080"))?;
    poll::until_blocking("the report goes with the mistake", CHANGED, || {
        let left = problems(&mesh)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

#[test]
#[expect(clippy::print_stderr, reason = "how long it took is for people")]
fn a_change_of_endpoints_reaches_the_traffic_at_once_and_costs_no_request() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    mesh.start_control_plane()?;
    for pod in ["client", "blue", "green"] {
        mesh.meshed_pod(pod)?;
    }
    mesh.service("back", 8080, None, &["blue"])?;
    crate::echo(&mut mesh, "blue", 8080, "")?;
    crate::echo(&mut mesh, "green", 8080, "")?;
    assert_eq!(asked(&mesh, "http://back:8080/")?, "blue");

    for next in ["green", "blue", "green"] {
        mesh.set_endpoints("back", &[next])?;
        let changed = Instant::now();
        loop {
            // Both pods serve all the time, so no request may fail, whoever answers.
            let served = asked(&mesh, "http://back:8080/")?;
            let took = changed.elapsed();
            if served == next {
                eprintln!("{next} serves {took:.0?} after the file was written");
                break;
            }
            ensure!(took < CHANGED, "still {served}; {}", mesh.log("control-plane"));
        }
    }
    Ok(())
}

#[test]
fn traffic_outlives_the_control_plane_and_what_it_never_knew_passes_through() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    mesh.start_control_plane()?;
    mesh.meshed_pod("client")?;
    mesh.meshed_pod("back")?;
    mesh.outsider("internet")?;
    mesh.service("back", 8080, None, &["back"])?;
    crate::echo(&mut mesh, "back", 8080, "")?;
    crate::echo(&mut mesh, "internet", 8081, "")?;
    assert_eq!(asked(&mesh, "http://back:8080/")?, "back");
    mesh.kill_control_plane();

    // What is known goes on, by service address.
    for _ in 0..10 {
        assert_eq!(asked(&mesh, "http://back:8080/")?, "back");
    }
    // What was never asked about passes through, in both directions, also from a sidecar that knows nothing at all.
    assert_eq!(asked(&mesh, &format!("http://{}:8081/", mesh.address("internet")?))?, "internet");
    mesh.cut_off_pod("late")?;
    crate::echo(&mut mesh, "late", 8080, "")?;
    assert_eq!(asked(&mesh, &format!("http://{}:8080/", mesh.address("late")?))?, "late");
    let direct = format!("http://{}:8080/", mesh.address("back")?);
    mesh.succeed("late", &["curl", "-sSf", "--max-time", "5", &direct])?;

    // Nothing of it is lost: reports wait.
    mesh.start_control_plane()?;
    poll::until_blocking("all of it is counted", DEADLINE, || {
        for (source, target, requests) in [
            ("workload:shop/client", "workload:shop/back", 11),
            ("workload:shop/client", "workload:shop/late", 1),
            ("workload:shop/late", "workload:shop/back", 1),
        ] {
            let edge = mesh.edge(source, target)?;
            ensure!(edge["requests_total"] == requests, "{edge:#}");
        }
        Ok(())
    })
    .with_context(|| format!("{}\n{}", mesh.log("late"), mesh.log("control-plane")))
}
