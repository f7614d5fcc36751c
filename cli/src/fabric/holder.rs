//! The process that a namespace lives in.
//!
//! In: orders, one JSON line each, on standard input. Out: one JSON line per order. One holder is the hub,
//! whose network namespace has the bridge; every pod has one too.
//!
//! Invariants: a holder makes its namespaces before it does anything else, while it has one thread. It ends
//! when its standard input ends or its parent dies, whichever is noticed first.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use super::process::{Process, Spawner};
use super::{Error, launch, link};

/// What a holder can be told to do in its network namespace.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Make the bridge and give it these addresses.
    Bridge { addresses: Vec<(IpAddr, u8)> },
    /// Make a cable: one end, named `interface`, on the bridge, the other as `eth0` with the process `pid`.
    Attach { interface: String, pid: u32 },
    /// Bring up `eth0` with these addresses and send everything there.
    Configure { addresses: Vec<(IpAddr, u8)> },
}

/// What `weft fabric-hold` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct HoldArgs {
    /// Process whose death must end this one.
    #[arg(long)]
    parent: u32,
    /// Holder whose namespaces to start from.
    #[arg(long)]
    enter: Option<i32>,
    /// Make a user namespace as well.
    #[arg(long)]
    user_namespace: bool,
    /// `SOURCE=TARGET` files to mount over others.
    #[arg(long)]
    mount: Vec<String>,
}

// === the side that gives orders ===

/// A holder as seen by the fabric.
#[derive(Debug)]
pub(super) struct Holder {
    process: Process,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Holder {
    pub(super) fn start(
        name: &str,
        mut command: std::process::Command,
        spawner: &Spawner,
    ) -> Result<Self, Error> {
        launch::detach(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = spawner
            .spawn(command)
            .map_err(|source| Error::Spawn { program: "the namespace holder".into(), source })?;
        let mut process = Process::adopt(name, child, spawner.clone());
        let stdin = process.stdin.take().expect("asked to be piped");
        let stdout = BufReader::new(process.stdout.take().expect("asked to be piped"));
        let holder = Self { process, pipes: Mutex::new((stdin, stdout)) };
        holder.answer()?;
        Ok(holder)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(super) fn order(&self, order: &Order) -> Result<(), Error> {
        let line = serde_json::to_string(order).expect("orders have no maps with strange keys");
        {
            let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(pipes.0, "{line}").map_err(|error| self.failed(error.to_string()))?;
        }
        self.answer()
    }

    fn answer(&self) -> Result<(), Error> {
        let mut line = String::new();
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        pipes.1.read_line(&mut line).map_err(|error| self.failed(error.to_string()))?;
        match serde_json::from_str::<Result<(), String>>(&line) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(cause)) => Err(self.failed(cause)),
            Err(_) => Err(self.failed("the holder ended without an answer".into())),
        }
    }

    fn failed(&self, cause: String) -> Error {
        Error::Namespace { name: self.process.name().into(), cause }
    }
}

// === the side that carries them out ===

/// The whole life of `weft fabric-hold`.
pub(crate) fn run(arguments: &HoldArgs) -> io::Result<()> {
    crate::inner::title("weft-pod");
    let mut stdout = io::stdout().lock();
    let mut reply = |result: Result<(), String>| -> io::Result<()> {
        writeln!(stdout, "{}", serde_json::to_string(&result)?)?;
        stdout.flush()
    };
    if let Err(error) = make_namespaces(arguments) {
        return reply(Err(error));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(link::up("lo")) {
        Ok(()) => reply(Ok(()))?,
        Err(error) => return reply(Err(format!("loopback: {error}"))),
    }
    for line in io::stdin().lock().lines() {
        let result = match serde_json::from_str::<Order>(&line?) {
            Ok(order) => runtime.block_on(carry_out(order)),
            Err(error) => Err(error.to_string()),
        };
        reply(result)?;
    }
    Ok(())
}

async fn carry_out(order: Order) -> Result<(), String> {
    match order {
        Order::Bridge { addresses } => link::bridge(&addresses).await.map_err(|e| format!("bridge: {e}")),
        Order::Attach { interface, pid } => {
            link::attach(&interface, pid).await.map_err(|e| format!("interface {interface}: {e}"))
        }
        Order::Configure { addresses } => {
            link::configure("eth0", &addresses).await.map_err(|e| format!("interface eth0: {e}"))
        }
    }
}

fn make_namespaces(arguments: &HoldArgs) -> Result<(), String> {
    let HoldArgs { parent, enter, user_namespace, mount: mounts } = arguments;
    launch::die_with(*parent).map_err(|error| error.to_string())?;
    if let Some(pid) = enter {
        launch::enter_namespaces(*pid).map_err(|error| format!("enter the hub: {error}"))?;
    }
    if *user_namespace {
        become_root_of_a_user_namespace()?;
    }
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| format!("network namespace: {}", errno.desc()))?;
    // Nothing mounted from here on may travel back to the host.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|errno| format!("private mounts: {}", errno.desc()))?;
    for pair in mounts {
        let (source, target) = pair.split_once('=').ok_or_else(|| format!("mount {pair:?}: no target"))?;
        // A machine without the file has nothing that could be in the way.
        if Path::new(target).exists() {
            mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|errno| format!("mount {target}: {}", errno.desc()))?;
        }
    }
    // Credentials have changed since the first call, which makes the kernel forget it.
    launch::die_with(*parent).map_err(|error| error.to_string())
}

fn become_root_of_a_user_namespace() -> Result<(), String> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| format!("user namespace: {}", errno.desc()))?;
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(|error| format!("{file}: {error}"))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))
}
