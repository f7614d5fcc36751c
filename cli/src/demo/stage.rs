//! Setting the shop up on the ground that the machine offers, and striking it again.
//!
//! In: the cast, and either a fabric (every copy in a pod of its own, traffic intercepted) or loopback
//! (everything on addresses in 127.77.0.0/16, programs told where their sidecar is). Out: running processes
//! in groups, so that they can be ended in the order that loses no request: callers, programs, sidecars,
//! control plane.
//!
//! Invariant: whatever is started here is owned by [`Stage`] from the moment it exists.

mod loopback;
mod namespaces;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use weft_wire::port::CONTROL_TLS;

use super::cast::{self, Copy, NAMESPACE, Part};
use super::manifest;
use crate::api::Api;
use crate::fabric::{Command, Fabric, Isolation, Launcher, Pod, Process};
use crate::join;

/// How long a program or sidecar may take to start on a slow machine.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How often files and programs are looked at while waiting for them.
const LOOK: Duration = Duration::from_millis(20);
/// Grace of each group when the shop closes. Requests take below a second; open streams are cut.
const GRACE: Duration = Duration::from_secs(2);
/// The sidecars' own drain deadline: a little less than what they are given.
const DRAIN: &str = "1500ms";
/// The user that the shop's programs run as, where there are users.
const APP_UID: u32 = 1000;

/// Where the demo plays.
#[derive(Debug)]
pub(super) enum Ground {
    /// Every copy has its own network namespace.
    Namespaces(Fabric),
    /// Nothing but loopback, and the reason for it.
    Loopback { launcher: Launcher, why: String },
}

/// A process with a name to speak of, and its last words.
#[derive(Debug)]
struct Actor {
    title: String,
    log: PathBuf,
    process: Process,
}

/// The shop, as far as it is set up. Field order is drop order: processes, then pods, then the ground.
#[derive(Debug)]
pub(super) struct Stage {
    load: Vec<Actor>,
    programs: Vec<Actor>,
    sidecars: Vec<Actor>,
    control_plane: Vec<Actor>,
    copies: Vec<Copy>,
    pods: Vec<Pod>,
    logs: PathBuf,
    ground: Ground,
}

/// Whether traffic can be intercepted in a pod, tried on one that is thrown away.
pub(super) fn try_interception(fabric: &Fabric) -> anyhow::Result<()> {
    let pod = fabric.pod("attempt").start()?;
    namespaces::sidecar(fabric, &pod).map(drop)
}

impl Stage {
    /// Makes the ground: pods with addresses, or just addresses.
    pub(super) fn new(ground: Ground, logs: Option<PathBuf>) -> anyhow::Result<Self> {
        let directory = match &ground {
            Ground::Namespaces(fabric) => fabric.directory(),
            Ground::Loopback { launcher, .. } => launcher.directory(),
        };
        let logs = logs.unwrap_or_else(|| directory.join("logs"));
        for directory in [&logs, &directory.join("source"), &directory.join("data"), &directory.join("ready")]
        {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let (copies, pods) = match &ground {
            Ground::Namespaces(fabric) => namespaces::pods(fabric)?,
            Ground::Loopback { .. } => (loopback::copies(), Vec::new()),
        };
        for (name, text) in manifest::manifests(&copies)? {
            fs::write(directory.join("source").join(name), text)?;
        }
        let (load, programs, sidecars, control_plane) = Default::default();
        Ok(Self { load, programs, sidecars, control_plane, copies, pods, logs, ground })
    }

    /// What the reader should know about where this plays.
    pub(super) fn isolation(&self) -> String {
        match &self.ground {
            Ground::Namespaces(fabric) => match fabric.isolation() {
                Isolation::Root => "network namespaces (as root); nothing outside of them is touched".into(),
                Isolation::User => "network namespaces in a user namespace, no privilege needed".into(),
            },
            Ground::Loopback { why, .. } => format!("none, only explicit proxies on loopback: {why}"),
        }
    }

    pub(super) fn intercepts(&self) -> bool {
        matches!(self.ground, Ground::Namespaces(_))
    }

    /// A command line that calls the shop from inside, for demos without load.
    pub(super) fn knock(&self) -> String {
        let shopper = self.copies.iter().position(|copy| copy.role.name == "shopper").unwrap_or_default();
        match (&self.ground, self.pods.get(shopper)) {
            (Ground::Namespaces(fabric), Some(pod)) => {
                let user = if fabric.isolation().has_users() { "" } else { " -U --preserve-credentials" };
                format!("nsenter -t {}{user} -n -m curl http://web:8080/products/7", pod.id())
            }
            _ => format!(
                "curl -x http://{}:15001 http://web.shop:8080/products/7",
                self.copies[shopper].address
            ),
        }
    }

    /// Where the objects are that the control plane reads.
    pub(super) fn source(&self) -> PathBuf {
        self.directory().join("source")
    }

    pub(super) fn temporary_directory(&self) -> &Path {
        self.directory()
    }

    pub(super) fn sidecar_count(&self) -> usize {
        self.sidecars.len()
    }

    pub(super) fn program_count(&self) -> usize {
        self.programs.len() + self.load.len()
    }

    /// Starts the control plane with the dashboard's socket, which was opened outside.
    pub(super) fn start_control_plane(&mut self, dashboard: TcpListener) -> anyhow::Result<()> {
        let (hub, command) = match &self.ground {
            Ground::Namespaces(fabric) => (crate::fabric::HUB, fabric.weft()),
            Ground::Loopback { launcher, .. } => (loopback::HUB, launcher.weft("control-plane")),
        };
        let directory = self.directory().to_owned();
        let mut command = command.arg("control-plane");
        if !dashboard.local_addr()?.ip().is_loopback() {
            // The shop is for everybody to see who reaches the address that was asked for.
            command = command.arg("--insecure");
        }
        let command = command
            .arg("--source")
            .arg(directory.join("source"))
            .arg("--data-dir")
            .arg(directory.join("data"))
            // The socket comes as standard input: a file descriptor that may be handed on without `unsafe`.
            .args(["--api-listen", "fd:0"])
            .args(["--control-listen", "off"])
            .args(["--control-tls-listen".to_owned(), format!("{hub}:{CONTROL_TLS}")])
            .args(["--otlp-grpc-listen".to_owned(), format!("{hub}:4317")])
            .args(["--otlp-http-listen".to_owned(), format!("{hub}:4318")])
            .stdin(Stdio::from(OwnedFd::from(dashboard)));
        let actor = self.act("control-plane", command)?;
        self.control_plane.push(actor);
        Ok(())
    }

    /// Intercepts, and starts every sidecar with a token of its own.
    pub(super) async fn start_sidecars(&mut self, api: &Api) -> anyhow::Result<()> {
        for index in 0..self.copies.len() {
            let copy = self.copies[index].clone();
            if copy.role.part != Part::Meshed {
                continue;
            }
            let command = match &self.ground {
                Ground::Namespaces(fabric) => namespaces::sidecar(fabric, &self.pods[index])?,
                Ground::Loopback { launcher, .. } => loopback::sidecar(launcher, &copy),
            };
            let token = join::token(api, NAMESPACE, copy.role.name).await;
            let command = command
                .env("WEFT_JOIN_TOKEN", token.context("cannot let a sidecar into the mesh")?)
                .env("WEFT_WORKLOAD", copy.role.name)
                .env("WEFT_NAMESPACE", NAMESPACE)
                .env("WEFT_VERSION", copy.version)
                .env("WEFT_POD", &copy.pod)
                .env("WEFT_WORKERS", "1")
                .env("WEFT_LOG", "warn")
                .env("WEFT_DRAIN_DEADLINE", DRAIN)
                .env("WEFT_READY_FILE", self.ready_file(&copy)?);
            let actor = self.act(&format!("{}-sidecar", copy.pod), command)?;
            self.sidecars.push(actor);
        }
        Ok(())
    }

    /// Waits until every sidecar has said that it serves.
    pub(super) async fn sidecars_ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        for copy in self.copies.iter().filter(|copy| copy.role.part == Part::Meshed) {
            let file = self.ready_file(copy)?;
            while !file.exists() {
                self.check()?;
                anyhow::ensure!(
                    Instant::now() < deadline,
                    "the sidecar of {} does not become ready",
                    copy.pod
                );
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Starts the programs, callees first; the shoppers only when there shall be load.
    pub(super) fn start_programs(&mut self, load: bool) -> anyhow::Result<()> {
        for index in 0..self.copies.len() {
            let copy = self.copies[index].clone();
            let is_load = copy.role.name == "shopper";
            if is_load && !load {
                continue;
            }
            let command = match &self.ground {
                Ground::Namespaces(fabric) => {
                    let command = self.pods[index].weft();
                    // The bank has a privileged port, as web servers have.
                    let privileged = copy.role.part == Part::External;
                    if privileged { command } else { command.uid(fabric.isolation(), APP_UID) }
                }
                Ground::Loopback { launcher, .. } => loopback::program(launcher, &copy, &self.copies),
            };
            let mut command = command.arg("demo-app").arg(copy.role.name);
            command = command.env("WEFT_DEMO_VERSION", copy.version);
            if cast::is_frail(&copy) {
                command = command.env("WEFT_DEMO_FRAIL", "1");
            }
            let actor = self.act(&copy.pod, command)?;
            if is_load { self.load.push(actor) } else { self.programs.push(actor) }
        }
        Ok(())
    }

    /// An error if anything has ended that should be running.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let everyone = [&self.control_plane, &self.sidecars, &self.programs, &self.load];
        for actor in everyone.into_iter().flatten() {
            if let Some(status) = actor.process.status() {
                let words = last_words(&actor.log);
                anyhow::bail!("{} ended unexpectedly ({status}){words}", actor.title);
            }
        }
        Ok(())
    }

    /// Ends everything, in order. Blocks for as long as the slowest of each group takes.
    pub(super) fn strike(self) {
        let Self { load, programs, sidecars, control_plane, copies: _, pods, logs: _, ground } = self;
        for group in [load, programs, sidecars, control_plane] {
            for actor in &group {
                actor.process.signal(Signal::SIGTERM);
            }
            let deadline = Instant::now() + GRACE;
            for actor in &group {
                if actor.process.wait_until(deadline).is_none() {
                    actor.process.kill();
                }
            }
        }
        drop(pods);
        drop(ground);
    }

    fn act(&self, title: &str, command: Command) -> anyhow::Result<Actor> {
        let log = self.logs.join(format!("{title}.log"));
        let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let process = command.stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Actor { title: title.into(), log, process })
    }

    fn directory(&self) -> &Path {
        match &self.ground {
            Ground::Namespaces(fabric) => fabric.directory(),
            Ground::Loopback { launcher, .. } => launcher.directory(),
        }
    }

    /// In a directory of its own that belongs to the sidecar's user.
    fn ready_file(&self, copy: &Copy) -> anyhow::Result<PathBuf> {
        let directory = self.directory().join("ready").join(&copy.pod);
        if !directory.exists() {
            fs::create_dir(&directory)?;
            if matches!(&self.ground, Ground::Namespaces(fabric) if fabric.isolation().has_users()) {
                std::os::unix::fs::chown(&directory, Some(weft_wire::port::PROXY_UID), None)?;
            }
        }
        Ok(directory.join("ready.json"))
    }
}

/// The end of a log, indented, for an error message.
fn last_words(log: &Path) -> String {
    const LINES: usize = 5;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(LINES);
    lines[first..].iter().map(|line| format!("\n    {line}")).collect()
}

fn at(address: Ipv4Addr, port: u16) -> String {
    SocketAddr::from((address, port)).to_string()
}
