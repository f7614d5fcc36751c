//! `weft run`: any program in the mesh, with a sidecar of its own, without any privilege.
//!
//! In: a name, perhaps a port, and a command line. Out: the program, in this terminal, with its exit code.
//! Its sidecar is an explicit proxy on loopback: what calls the service arrives at the sidecar's inbound
//! listener and is passed to the program's port; what the program calls by HTTP goes through `http_proxy`. Towards a
//! control plane at `https` the sidecar joins with a token that is made for it, unless the environment brings a proof.
//!
//! Invariants: the service has this endpoint exactly as long as the sidecar's stream to the control plane
//! lives, and the sidecar outlives the program, so that what is in flight when the program ends is still
//! answered in words. Non-goal: capturing what does not honour `http_proxy`; that needs a network namespace
//! (`weft demo` shows it).

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use console::style;
use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use weft_wire::port;
use weft_wire::{ServiceId, xds::Protocol};

use crate::api::{self, Api};
use crate::fabric::{Launcher, Process};
use crate::{args, join, output};

/// How long the sidecar may take to start.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How often its ready file is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// What the sidecar gets to answer what is in flight when the program has ended.
const DRAIN: Duration = Duration::from_secs(2);
/// How long to look for the control plane before the program starts anyway.
const REACH_PATIENCE: Duration = Duration::from_millis(500);
/// The control plane of this machine, and how it is asked if it serves plain text only.
const LOCAL: [&str; 2] = ["https://127.0.0.1:15012", "http://127.0.0.1:15010"];
/// What an operator proves a sidecar's identity with; without any of them a join token is made.
const PROOFS: [&str; 4] =
    ["WEFT_JOIN_TOKEN", "WEFT_JOIN_TOKEN_FILE", "WEFT_IDENTITY_TOKEN_FILE", "WEFT_IDENTITY_DIR"];
/// How often the API is asked for a join token until it answers.
const ASK: Duration = Duration::from_secs(1);
/// The namespace of names that have none.
const DEFAULT_NAMESPACE: &str = "default";

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft run --name orders --port 8080 -- ./orders             a service that others call as http://orders:8080
  weft run --name orders.shop --port 8080 -- python3 app.py  in the namespace shop
  weft run --name payments --port 50051 --protocol http2 -- ./payments
  weft run --name cli -- curl http://orders:8080/health      a program that only calls

Calls are seen by the mesh when the program honours http_proxy and https_proxy, as most HTTP libraries do.")]
pub(crate) struct RunArgs {
    /// The service's and workload's name, with its namespace behind a dot
    #[arg(long, value_name = "NAME[.NAMESPACE]", value_parser = service)]
    name: ServiceId,
    /// The port that the program listens on (it is told by PORT in the environment); none if it only calls
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// What the port speaks: http, http2 (also gRPC), tls or tcp; detected if not given
    #[arg(long, value_parser = protocol, requires = "port")]
    protocol: Option<&'static str>,
    /// The version to show, for instance v2
    #[arg(long)]
    version: Option<String>,
    /// Where sidecars find the control plane: https://HOST:15012, or http://HOST:15010 if it is insecure; the
    /// one of this machine if not given
    #[arg(long, env = "WEFT_CONTROL_PLANE", value_name = "URL")]
    control_plane: Option<String>,
    #[command(flatten)]
    api: args::ApiArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    program: Vec<std::ffi::OsString>,
}

/// What the sidecar writes when it serves.
#[derive(Debug, Deserialize)]
struct Bound {
    #[serde(default)]
    inbound: Option<SocketAddr>,
    outbound: SocketAddr,
}

pub(crate) fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(accompany(arguments))?;
    Ok(ExitCode::from(code))
}

async fn accompany(arguments: RunArgs) -> anyhow::Result<u8> {
    let control_plane = find(arguments.control_plane.as_deref()).await?;
    let launcher = Launcher::new()?;
    let log = launcher.directory().join("sidecar.log");
    let token = launcher.directory().join("join-token");
    let joins = control_plane.starts_with("https://")
        && PROOFS.iter().all(|name| std::env::var_os(name).is_none_or(|value| value.is_empty()));
    if joins {
        join(arguments.api.clone().open_here()?, arguments.name.clone(), token.clone()).await?;
    }
    let token = joins.then_some(&*token);
    let sidecar = start_sidecar(&launcher, &arguments, &control_plane, token, &log)?;
    let bound = ready(&sidecar, &launcher.directory().join("ready.json"), &log).await?;
    announce(&arguments, &bound);

    let proxy = format!("http://{}", bound.outbound);
    let mut words = arguments.program.iter();
    let mut program =
        launcher.command("program", words.next().map(std::ffi::OsString::as_os_str).unwrap_or_default());
    for variable in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"] {
        program = program.env(variable, &proxy);
    }
    if let Some(port) = arguments.port {
        program = program.env("PORT", port.to_string());
    }
    let program = Arc::new(program.args(words).foreground().spawn()?);
    let status = attend(&program).await?;

    sidecar.signal(Signal::SIGTERM);
    let deadline = Instant::now() + DRAIN;
    tokio::task::spawn_blocking(move || {
        if sidecar.wait_until(deadline).is_none() {
            sidecar.kill();
        }
    })
    .await?;
    Ok(exit_code(status))
}

/// Where the control plane is, with a remark if it is not there, or serves plain text although nobody asked for that.
async fn find(given: Option<&str>) -> anyhow::Result<String> {
    let [secure, plain] = LOCAL;
    let address = given.unwrap_or(secure);
    if reachable(address).await? {
        return Ok(address.to_owned());
    }
    if given.is_none() && reachable(plain).await? {
        output::note(format_args!(
            "the control plane at {plain} serves plain text only: this program has no identity, and its calls are not encrypted"
        ));
        return Ok(plain.to_owned());
    }
    output::note(format_args!(
        "no control plane at {address} yet: calls work, but nobody sees them; start one with `weft control-plane`"
    ));
    Ok(address.to_owned())
}

/// Whether something listens there now. The sidecar keeps trying, so this only decides about a remark.
async fn reachable(control_plane: &str) -> anyhow::Result<bool> {
    let uri: http::Uri =
        control_plane.parse().with_context(|| format!("--control-plane {control_plane:?}"))?;
    let (Some(host), Some(scheme @ ("http" | "https"))) = (uri.host(), uri.scheme_str()) else {
        anyhow::bail!(
            "--control-plane {control_plane:?}: write it like https://127.0.0.1:15012 or http://127.0.0.1:15010"
        );
    };
    let usual = if scheme == "https" { port::CONTROL_TLS } else { port::CONTROL_PLAIN };
    let connect = weft_dns::connect(host, uri.port_u16().unwrap_or(usual));
    Ok(matches!(tokio::time::timeout(REACH_PATIENCE, connect).await, Ok(Ok(_))))
}

/// Gets a join token into `file`: at once, or as soon as the API answers; the sidecar waits for it, the program does not.
async fn join(api: Api, name: ServiceId, file: PathBuf) -> anyhow::Result<()> {
    let attempt = async move |api: &Api| match join::token(api, name.namespace(), name.name()).await {
        Ok(token) => join::keep(&token, &file).context("cannot keep the join token").map(|()| true),
        // It will say the same again.
        Err(error @ api::Error::Refused { .. }) => {
            Err(error).context("no join token; make one with `weft token create` and set WEFT_JOIN_TOKEN")
        }
        Err(_) => Ok(false),
    };
    if attempt(&api).await? {
        return Ok(());
    }
    // Ends with the program.
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(ASK).await;
            match attempt(&api).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => return output::note(format_args!("{error:#}")),
            }
        }
    });
    Ok(())
}

fn start_sidecar(
    launcher: &Launcher,
    arguments: &RunArgs,
    control_plane: &str,
    token: Option<&Path>,
    log: &Path,
) -> anyhow::Result<Process> {
    let RunArgs { name, port, protocol, version, control_plane: _, api: _, program: _ } = arguments;
    let mut sidecar = launcher
        .weft("sidecar")
        .arg("proxy")
        .env("WEFT_CONTROL_PLANE", control_plane)
        .env("WEFT_WORKLOAD", name.name())
        .env("WEFT_NAMESPACE", name.namespace())
        .env("WEFT_OUTBOUND_LISTEN", "127.0.0.1:0")
        .env("WEFT_METRICS_LISTEN", "127.0.0.1:0")
        .env("WEFT_ADMIN_LISTEN", "127.0.0.1:0")
        .env("WEFT_WORKERS", "1")
        .env("WEFT_LOG", "warn")
        .env("WEFT_DRAIN_DEADLINE", format!("{}ms", DRAIN.as_millis()))
        .env("WEFT_READY_FILE", launcher.directory().join("ready.json"));
    if let Some(token) = token {
        sidecar = sidecar.env("WEFT_JOIN_TOKEN_FILE", token);
    }
    if let Some(version) = version {
        sidecar = sidecar.env("WEFT_VERSION", version);
    }
    sidecar = match port {
        None => sidecar.env("WEFT_INBOUND_LISTEN", "off"),
        Some(port) => {
            let protocol = protocol.map(|protocol| format!("/{protocol}")).unwrap_or_default();
            sidecar
                .env("WEFT_INBOUND_LISTEN", "127.0.0.1:0")
                .env("WEFT_INBOUND_FORWARD", format!("127.0.0.1:{port}"))
                .env("WEFT_REGISTER", format!("{name}:{port}{protocol}"))
        }
    };
    let file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    Ok(sidecar.stdout(Stdio::null()).stderr(file).spawn()?)
}

/// Waits for the sidecar's addresses.
async fn ready(sidecar: &Process, file: &Path, log: &Path) -> anyhow::Result<Bound> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        // Read and parse together: a file that is still being written is not complete JSON.
        if let Ok(text) = std::fs::read_to_string(file)
            && let Ok(bound) = serde_json::from_str(&text)
        {
            return Ok(bound);
        }
        if let Some(status) = sidecar.status() {
            let words = std::fs::read_to_string(log).unwrap_or_default();
            anyhow::bail!("the sidecar ended ({status})\n  {}", words.trim().replace('\n', "\n  "));
        }
        anyhow::ensure!(Instant::now() < deadline, "the sidecar does not become ready");
        tokio::time::sleep(LOOK).await;
    }
}

fn announce(arguments: &RunArgs, bound: &Bound) {
    let name = style(&arguments.name).bold().for_stderr();
    let place = match (arguments.port, bound.inbound) {
        (Some(port), Some(inbound)) => format!(":{port} is in the mesh: calls to it arrive at {inbound}"),
        _ => " is in the mesh as a caller".into(),
    };
    output::note(format_args!("{name}{place}, its own calls leave by http_proxy=http://{}", bound.outbound));
}

/// Passes signals on until the program has ended.
async fn attend(program: &Arc<Process>) -> anyhow::Result<ExitStatus> {
    let waiting = Arc::clone(program);
    let mut ended = tokio::task::spawn_blocking(move || waiting.wait());
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut user1 = signal(SignalKind::user_defined1())?;
    let mut user2 = signal(SignalKind::user_defined2())?;
    // On a terminal, Ctrl-C has reached the program already: it is in the same foreground group.
    let terminal = console::user_attended_stderr();
    loop {
        let signal = tokio::select! {
            status = &mut ended => return Ok(status?),
            _ = interrupt.recv() => if terminal { continue } else { Signal::SIGINT },
            _ = terminate.recv() => Signal::SIGTERM,
            _ = hangup.recv() => Signal::SIGHUP,
            _ = user1.recv() => Signal::SIGUSR1,
            _ = user2.recv() => Signal::SIGUSR2,
        };
        program.signal(signal);
    }
}

/// As shells do it: the program's own code, or 128 and the signal that ended it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn service(text: &str) -> Result<ServiceId, String> {
    match text.contains('.') {
        true => text.parse().map_err(|error: weft_wire::InvalidName| error.to_string()),
        false => ServiceId::new(DEFAULT_NAMESPACE, text).map_err(|error| error.to_string()),
    }
}

fn protocol(text: &str) -> Result<&'static str, String> {
    let word = if text == "grpc" { "http2" } else { text };
    Protocol::from_word(word)
        .map(Protocol::word)
        .ok_or_else(|| "it is one of http, http2, grpc, tls, tcp".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_have_a_namespace() {
        assert_eq!(service("orders").expect("valid").to_string(), "orders.default");
        assert_eq!(service("orders.shop").expect("valid").to_string(), "orders.shop");
        assert!(service("Orders").is_err());
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
    }
}
