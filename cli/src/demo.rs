//! `weft demo`: a whole mesh on one machine, with a shop in it, some load, a canary, and three faults to find.
//!
//! In: how long, where the dashboard listens, whether there is load. Out: a screen of text, a line for each change of
//! a circuit, a dashboard, and in the end nothing: no process, namespace, rule or file is left behind.
//!
//! Invariant: the dashboard's socket is opened first and outside of all namespaces, so a port in use is
//! reported before anything has been started.

pub(crate) mod app;
mod cast;
mod manifest;
mod news;
#[cfg(test)]
mod shop;
mod stage;

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum;
use console::style;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::Api;
use crate::fabric::{self, Fabric, Launcher};
use crate::output;
use news::News;
use stage::{Ground, Stage};

/// How long the control plane may take to answer for the first time.
const CONTROL_PLANE_PATIENCE: Duration = Duration::from_secs(20);
/// How long the first picture may take before the demo goes on without having seen it.
const PICTURE_PATIENCE: Duration = Duration::from_secs(20);
/// How often the demo looks whether everything is still running.
const LOOK: Duration = Duration::from_millis(250);
/// How often it asks for news: the server writes a new document at most once a second.
const NEWS: Duration = Duration::from_secs(1);

/// How programs are separated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IsolationChoice {
    /// The best this machine allows
    Auto,
    /// Network namespaces made by root
    Root,
    /// Network namespaces inside a user namespace
    User,
    /// None: explicit proxies on loopback addresses
    Loopback,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft demo                            until Ctrl-C, dashboard on http://127.0.0.1:8080
  weft demo --for 30s                  ends by itself
  weft demo --listen 127.0.0.1:9000    dashboard elsewhere
  weft demo --no-load                  a quiet shop; send your own requests
  weft demo --logs ./logs              keep what sidecars and programs have to say")]
pub(crate) struct DemoArgs {
    /// End after this long (30s, 5m, 1h); until Ctrl-C by default
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::args::duration)]
    duration: Option<Duration>,
    /// Where the dashboard and the API listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// No shoppers
    #[arg(long)]
    no_load: bool,
    /// How the services are separated
    #[arg(long, value_enum, default_value = "auto")]
    isolation: IsolationChoice,
    /// Write logs into this directory and keep them
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// Runs the demo to its end.
pub(crate) fn run(arguments: DemoArgs) -> anyhow::Result<()> {
    // One thread: it only waits. The work is done by other processes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(play(arguments))
}

async fn play(arguments: DemoArgs) -> anyhow::Result<()> {
    let DemoArgs { duration, listen, no_load, isolation, logs } = arguments;
    let dashboard = bind(listen)?;
    let address = dashboard.local_addr()?;
    let mut interrupts = Interrupts::new()?;
    output::line(format_args!(
        "{} a shop of {} services, each with its own sidecar",
        style("weft demo:").bold(),
        cast::services()
    ));
    let mut stage = Stage::new(ground(isolation)?, logs)?;
    let result = async {
        tokio::select! {
            result = set_up(&mut stage, dashboard, address, !no_load) => result?,
            () = interrupts.any() => return Ok(()),
        }
        explain(&stage, address, !no_load, duration);
        tokio::select! {
            result = watch(&stage, address, duration) => result,
            () = interrupts.any() => Ok(()),
        }
    }
    .await;
    strike(stage, &mut interrupts).await;
    result
}

/// The ground to play on.
fn ground(choice: IsolationChoice) -> anyhow::Result<Ground> {
    let loopback = |why: String| anyhow::Ok(Ground::Loopback { launcher: Launcher::new()?, why });
    let fabric = match choice {
        IsolationChoice::Loopback => return loopback("as you asked".into()),
        IsolationChoice::Auto => Fabric::new(),
        IsolationChoice::Root => Fabric::builder().isolation(fabric::Isolation::Root).build(),
        IsolationChoice::User => Fabric::builder().isolation(fabric::Isolation::User).build(),
    };
    let fabric = fabric.map_err(anyhow::Error::from).and_then(|fabric| {
        // Namespaces are of no use where the kernel has no nftables.
        stage::try_interception(&fabric)?;
        Ok(fabric)
    });
    match fabric {
        Ok(fabric) => Ok(Ground::Namespaces(fabric)),
        Err(error) if choice == IsolationChoice::Auto => loopback(error.to_string()),
        Err(error) => {
            Err(error.context("no such isolation here; `weft demo --isolation loopback` does without"))
        }
    }
}

/// Everything up to the first picture.
async fn set_up(
    stage: &mut Stage,
    dashboard: TcpListener,
    address: SocketAddr,
    load: bool,
) -> anyhow::Result<()> {
    output::step("isolation").done(format_args!("isolation: {}", stage.isolation()));

    let step = output::step("starting the control plane");
    stage.start_control_plane(dashboard)?;
    let api = Api::new(&reachable(address).to_string())?;
    answering(stage, &api).await?;
    step.done("control plane and dashboard");

    let step = output::step("starting the sidecars");
    stage.start_sidecars(&api).await?;
    stage.sidecars_ready().await?;
    let how = if stage.intercepts() { "intercepting all traffic" } else { "as explicit proxies" };
    step.done(format_args!("{} sidecars with an identity each, {how}", stage.sidecar_count()));

    let step = output::step("starting the shop");
    let opened = Instant::now();
    stage.start_programs(load)?;
    let how = if stage.intercepts() { "none of which knows of a mesh" } else { "which know only http_proxy" };
    step.done(format_args!("{} programs, {how}", stage.program_count()));

    if load {
        let step = output::step("waiting for the first picture");
        match picture(stage, &api).await? {
            Some((nodes, edges)) => step.done(format_args!(
                "the graph shows {nodes} nodes and {edges} kinds of calls, {:.1} s after opening",
                opened.elapsed().as_secs_f64()
            )),
            None => drop(step),
        }
    }
    Ok(())
}

/// Until the control plane answers.
async fn answering(stage: &Stage, api: &Api) -> anyhow::Result<()> {
    let deadline = Instant::now() + CONTROL_PLANE_PATIENCE;
    loop {
        stage.check()?;
        match api.graph("1m").await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("the control plane does not come up");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Until every service has been called by someone; `None` when that takes too long to wait for.
async fn picture(stage: &Stage, api: &Api) -> anyhow::Result<Option<(usize, usize)>> {
    let deadline = Instant::now() + PICTURE_PATIENCE;
    while Instant::now() < deadline {
        stage.check()?;
        if let Ok(graph) = api.graph("1m").await {
            let called: HashSet<&str> = graph.edges.iter().map(|edge| edge.target.as_str()).collect();
            if called.iter().filter(|target| target.starts_with("workload:")).count() >= cast::services() {
                return Ok(Some((graph.nodes.len(), graph.edges.len())));
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(None)
}

/// What to do now.
fn explain(stage: &Stage, address: SocketAddr, load: bool, duration: Option<Duration>) {
    let url = format!("http://{}", reachable(address));
    let key = |text: &str| style(text.to_owned()).bold();
    output::line("");
    output::line(format_args!("  {}  {}", key("Dashboard"), style(&url).cyan().underlined()));
    let cart = "fails for 8 s in every 45: web leaves it alone, the others serve, it comes back";
    for (title, name, what) in [
        ("Look at", "cart-3", cart),
        ("", "catalog", "a canary: v2 gets 10 % of the calls, and takes longer than v1"),
        ("", "inventory", "slow: 90 ms as a rule, now and then most of a second"),
        ("", "recommendations", "failing: one call in five, which no shopper notices"),
        ("", "api.bank.example", "external, and cron: a caller without a sidecar"),
    ] {
        // Without interception nobody else's calls are seen.
        if stage.intercepts() || !name.starts_with("api.") {
            output::line(format_args!("  {}  {name:<16}  {what}", key(&format!("{title:<9}"))));
        }
    }
    output::line(format_args!(
        "  {}      weft circuits -w · the wall: {}",
        key("Watch"),
        style(format!("{url}/?view=circuits")).cyan().underlined()
    ));
    let api = if url == crate::api::DEFAULT { String::new() } else { format!("   (each with --api {url})") };
    output::line(format_args!(
        "  {}        weft routes catalog · weft graph · weft stat --routes · weft get{api}",
        key("Ask")
    ));
    output::line(format_args!(
        "  {}     {}: other weights count at once",
        key("Change"),
        stage.source().join("catalog.yaml").display()
    ));
    if !load {
        output::line(format_args!("  {}      {}", key("Knock"), stage.knock()));
    }
    match duration {
        None => output::line("  Ctrl-C ends it and leaves nothing behind."),
        Some(duration) => output::line(format_args!(
            "  It ends by itself in {} s, or on Ctrl-C, and leaves nothing behind.",
            duration.as_secs()
        )),
    }
}

/// Until the time is up or something breaks. Tells what becomes of circuits meanwhile.
async fn watch(stage: &Stage, address: SocketAddr, duration: Option<Duration>) -> anyhow::Result<()> {
    let end = duration.map(|duration| Instant::now() + duration);
    let api = Api::new(&reachable(address).to_string())?;
    let mut news = News::new(jiff::Timestamp::now());
    let mut asked = Instant::now();
    while end.is_none_or(|end| Instant::now() < end) {
        stage.check()?;
        if asked.elapsed() >= NEWS {
            asked = Instant::now();
            // An answer that fails is asked for again; whether the control plane lives is checked above.
            if let Ok(circuits) = api.json("/api/circuits").await {
                news.fresh(&circuits).iter().for_each(|line| output::line(format_args!("  {line}")));
            }
        }
        let left = end.map_or(LOOK, |end| end.saturating_duration_since(Instant::now()).min(LOOK));
        tokio::time::sleep(left).await;
    }
    Ok(())
}

/// Ends everything; a second Ctrl-C stops being polite about it.
async fn strike(stage: Stage, interrupts: &mut Interrupts) {
    let step = output::step("closing the shop");
    let directory = stage.temporary_directory().to_owned();
    let closing = tokio::task::spawn_blocking(move || stage.strike());
    tokio::select! {
        _ = closing => step.done("everything is gone"),
        () = interrupts.any() => {
            // The processes die with this one; only the files would stay.
            std::fs::remove_dir_all(directory).ok();
            drop(step);
            std::process::exit(130);
        }
    }
}

/// Where a browser on this machine finds what listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], v6.port())),
        other => other,
    }
}

fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            let other = SocketAddr::new(listen.ip(), listen.port().checked_add(1).unwrap_or(0));
            anyhow::anyhow!(
                "{listen} is in use by another program (another demo?)\n  choose an address for the dashboard: weft demo --listen {other}"
            )
        }
        _ => anyhow::Error::new(error).context(format!("cannot listen on {listen}")),
    })
}

/// Every way a terminal or an init system asks a program to end.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn new() -> io::Result<Self> {
        let of = signal;
        Ok(Self([of(SignalKind::interrupt())?, of(SignalKind::terminate())?, of(SignalKind::hangup())?]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_reported_with_the_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let error = bind(taken.local_addr().expect("an address")).expect_err("in use");
        assert!(error.to_string().contains("weft demo --listen 127.0.0.1:"), "{error}");
    }
}
