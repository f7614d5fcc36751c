//! A control plane that follows a large cluster: how long from a cold start until it serves, what it holds, and what one
//! change of an endpoint costs.
//!
//! The API server is the tests' own, in this process; the control plane is the release binary, in its own, so that its
//! memory and CPU time are its own. Sidecars are streams that ask for endpoints. Figures are printed as `name=value`.
//!
//! `cargo bench -p weft-tests --bench cluster [-- --services 5000 --pods 20000 --history 1 --sidecars 200 --binary PATH]`

#![expect(clippy::print_stdout, reason = "the figures are this program's purpose")]

#[path = "cluster/objects.rs"]
mod objects;
#[path = "cluster/sidecars.rs"]
mod sidecars;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use objects::Size;
use serde_json::Value;
use sidecars::Stream;
use weft_tests::apiserver::ApiServer;
use weft_tests::client::{self, Ask};
use weft_tests::process::{Guarded, cpu_nanos, rss_bytes};
use weft_tests::{binary, poll};

/// A debug build of everything on a busy machine is in time.
const PATIENCE: Duration = Duration::from_secs(600);
/// Services that each sidecar calls.
const CALLED: usize = 20;
/// Changes of single endpoints.
const CHANGES: usize = 50;

struct Plan {
    size: Size,
    sidecars: usize,
    binary: Option<PathBuf>,
}

impl Plan {
    fn from_args(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let size = Size { services: 5000, pods: 20_000, history: 1 };
        let mut plan = Self { size, sidecars: 200, binary: None };
        while let Some(arg) = args.next() {
            // cargo passes `--bench` to every bench.
            if arg == "--bench" {
                continue;
            }
            let value = args.next().with_context(|| format!("{arg} wants a value"))?;
            match arg.as_str() {
                "--services" => plan.size.services = value.parse()?,
                "--pods" => plan.size.pods = value.parse()?,
                "--history" => plan.size.history = value.parse()?,
                "--sidecars" => plan.sidecars = value.parse()?,
                "--binary" => plan.binary = Some(value.into()),
                _ => anyhow::bail!(
                    "unknown option {arg}; known: --services --pods --history --sidecars --binary"
                ),
            }
        }
        Ok(plan)
    }
}

/// A running control plane.
struct Plane {
    process: Guarded,
    control: SocketAddr,
    metrics: SocketAddr,
}

impl Plane {
    async fn start(
        binary: &PathBuf,
        server: &ApiServer,
        directory: &std::path::Path,
    ) -> anyhow::Result<Self> {
        let ready = directory.join("ready.json");
        let log = std::fs::File::create(directory.join("log"))?;
        let mut command = Command::new(binary);
        command
            .args(["--kubernetes", "--insecure", "--control-listen=127.0.0.1:0", "--control-tls-listen=off"])
            .args(["--api-listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"])
            .args(["--otlp-grpc-listen=off", "--otlp-http-listen=off", "--inject-listen=off"])
            .arg(format!("--kubeconfig={}", server.kubeconfig(directory)?.display()))
            .arg(format!("--ready-file={}", ready.display()))
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null());
        let process = Guarded::spawn(&mut command)?;
        let bound: Value = poll::until("the control plane serves", PATIENCE, async || {
            anyhow::Ok(serde_json::from_slice(&tokio::fs::read(&ready).await?)?)
        })
        .await
        .with_context(|| std::fs::read_to_string(directory.join("log")).unwrap_or_default())?;
        let address = |name: &str| bound[name].as_str().context("bound").and_then(|text| Ok(text.parse()?));
        Ok(Self { process, control: address("control")?, metrics: address("metrics")? })
    }

    async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let page = client::once(self.metrics, &Ask::get("/metrics", "localhost")).await?;
        let page = String::from_utf8(page.body.to_vec())?;
        let lines = page.lines().filter(|line| line.starts_with(name));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let plan = Plan::from_args(std::env::args().skip(1))?;
    let build = || binary::build("weft-control-plane", "weft-control-plane", binary::Profile::Release);
    let binary = plan.binary.clone().unwrap_or_else(build);
    let (server, directory) = (ApiServer::start().await?, tempfile::tempdir()?);
    server.define_gateway_api()?;
    server.define_weft()?;
    objects::fill(&server, plan.size)?;
    println!("services={} pods={} sidecars={}", plan.size.services, plan.size.pods, plan.sidecars);

    let begun = Instant::now();
    let plane = Plane::start(&binary, &server, directory.path()).await?;
    let pid = plane.process.pid();
    println!("settled_s={:.2} settled_cpu_s={:.2}", begun.elapsed().as_secs_f64(), seconds(pid)?);
    println!("settled_rss_mb={}", rss_bytes(pid)? >> 20);
    ensure!(plane.metric("weft_world_services ").await? as usize == plan.size.services, "the world is whole");

    let mut streams = connect(&plane, &plan).await?;
    println!("with_sidecars_rss_mb={}", rss_bytes(pid)? >> 20);
    change(&plan, &server, &plane, &mut streams).await?;
    relist(&plan, &server, &plane).await
}

/// Each sidecar calls some services; the first is everybody's.
async fn connect(plane: &Plane, plan: &Plan) -> anyhow::Result<Vec<Stream>> {
    let mut streams = Vec::new();
    for number in 0..plan.sidecars {
        let called =
            (0..CALLED).map(|at| if at == 0 { 0 } else { (number * CALLED + at) % plan.size.services });
        let name = |service: usize| format!("service-{service:05}.{}:80", objects::namespace(service));
        let mut names: Vec<String> = called.map(name).collect();
        names.sort();
        names.dedup();
        streams.push(Stream::open(plane.control, number, names).await?);
    }
    Ok(streams)
}

/// One endpoint changes, again and again; everybody calls that service.
async fn change(
    plan: &Plan,
    server: &ApiServer,
    plane: &Plane,
    streams: &mut [Stream],
) -> anyhow::Result<()> {
    let (pid, sent) = (plane.process.pid(), plane.metric("weft_xds_resources_total").await?);
    let cpu = seconds(pid)?;
    let mut times = Vec::new();
    for at in 0..CHANGES {
        let unready = (at % 2 == 0).then_some(0);
        let begun = Instant::now();
        server.set(objects::slice(0, plan.size.replicas(), unready))?;
        for stream in streams.iter_mut() {
            ensure!(stream.next().await? == 1, "only what has changed is sent");
        }
        times.push(begun.elapsed());
    }
    times.sort();
    let cpu_us = (seconds(pid)? - cpu) * 1e6 / CHANGES as f64;
    let resources = (plane.metric("weft_xds_resources_total").await? - sent) / CHANGES as f64;
    let milliseconds = times[times.len() / 2].as_secs_f64() * 1e3;
    println!("change_ms={milliseconds:.1} change_resources={resources} change_cpu_us={cpu_us:.0}");
    // Some services that nobody asks for: nothing is compiled.
    let cpu = seconds(pid)?;
    let sent = plane.metric("weft_xds_resources_total").await?;
    let events = plane.metric("weft_kubernetes_events_total").await?;
    for at in 0..CHANGES {
        let service = plan.size.services - 1 - at;
        server.set(objects::slice(service, plan.size.replicas(), Some(0)))?;
    }
    poll::until("the changes are heard", PATIENCE, async || {
        let heard = plane.metric("weft_kubernetes_events_total").await? - events;
        ensure!(heard as usize >= CHANGES, "{heard} events");
        anyhow::Ok(())
    })
    .await?;
    let resources = plane.metric("weft_xds_resources_total").await? - sent;
    let cpu_us = (seconds(pid)? - cpu) * 1e6 / CHANGES as f64;
    println!("unwatched_change_resources={resources} unwatched_change_cpu_us={cpu_us:.0}");
    Ok(())
}

/// Every watch is too old: everything is listed again, and nothing has changed.
async fn relist(plan: &Plan, server: &ApiServer, plane: &Plane) -> anyhow::Result<()> {
    let pid = plane.process.pid();
    let lists = || {
        server.asked().iter().filter(|((verb, _), _)| verb == "watch").map(|(_, count)| *count).sum::<u64>()
    };
    let (cpu, before, begun) = (seconds(pid)?, lists(), Instant::now());
    let watching = server.watching();
    server.compact();
    server.expire_watches();
    poll::until("everything is watched again", PATIENCE, async || {
        let again = lists() - before;
        ensure!(again >= watching && server.watching() >= watching, "{again} of {watching}");
        anyhow::Ok(())
    })
    .await?;
    println!("relist_s={:.2} relist_cpu_s={:.2}", begun.elapsed().as_secs_f64(), seconds(pid)? - cpu);
    println!("relist_rss_mb={} sidecars={}", rss_bytes(pid)? >> 20, plan.sidecars);
    Ok(())
}

fn seconds(pid: u32) -> anyhow::Result<f64> {
    Ok(Duration::from_nanos(cpu_nanos(pid)?).as_secs_f64())
}
