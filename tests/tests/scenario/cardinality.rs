//! A stranger who invents paths cannot grow the mesh's memory.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use weft_tests::{mesh, poll, process};

/// The default cap on route templates per service.
const CAP: usize = 200;
const DEADLINE: Duration = Duration::from_secs(30);
/// What 100,000 paths may add to a sidecar's memory: far below 100 bytes a path.
const GROWTH_MAX: u64 = 8 << 20;

/// Distinct paths that no rule folds: words, no segment with many siblings. 18^4 = 104,976 of them.
const PATHS: &str = r#"
import http.client, itertools, sys
words = "amber birch cedar delta ember fable grove haven inlet jolly knoll lemon mango noble ocean pearl quartz river".split()
connection = http.client.HTTPConnection("back", 8080)
for number, path in enumerate(itertools.product(words, repeat=4)):
    if number == int(sys.argv[1]):
        break
    connection.request("GET", "/" + "/".join(path))
    connection.getresponse().read()
"#;

#[test]
fn a_hundred_thousand_distinct_paths_stop_at_the_cap() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    mesh.start_control_plane()?;
    mesh.meshed_pod("client")?;
    mesh.meshed_pod("back")?;
    mesh.service("back", 8080, None, &["back"])?;
    crate::echo(&mut mesh, "back", 8080, "")?;
    let script = mesh.file("paths.py", PATHS)?.display().to_string();

    // The first thousand fill the cap and the allocator's pools; the memory is looked at after them.
    mesh.succeed("client", &["python3", &script, "1000"])?;
    let before = process::rss_bytes(mesh.sidecar_pid("client")?)?;
    mesh.succeed("client", &["python3", &script, "100000"])?;
    let after = process::rss_bytes(mesh.sidecar_pid("client")?)?;
    ensure!(after < before + GROWTH_MAX, "memory went from {before} to {after} bytes");

    let metrics = mesh.metrics("client")?;
    let mut routes: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("http_client_request_duration_seconds_count{"))
        .filter_map(|line| line.split("http_route=\"").nth(1)?.split('"').next())
        .collect();
    routes.sort_unstable();
    routes.dedup();
    ensure!(routes.contains(&"__other__"), "no overflow among {routes:?}");
    // The overflow series stands beside the cap.
    ensure!((CAP / 2..=CAP + 1).contains(&routes.len()), "{} routes", routes.len());

    poll::until_blocking("the overflow shows on the edge", DEADLINE, || {
        let edge = mesh.edge("workload:shop/client", "workload:shop/back")?;
        ensure!(edge["requests_total"] == 101_000, "{} counted", edge["requests_total"]);
        let routes = edge["routes"].as_array().context("no routes")?;
        ensure!(routes.iter().any(|route| route["route"] == "__other__"), "no overflow route");
        Ok(())
    })
    .with_context(|| mesh.log("control-plane"))
}
