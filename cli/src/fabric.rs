//! A small network of namespaces on one machine: pods that believe they are alone, and one bridge between
//! them.
//!
//! In: names of pods and the programs to run in them. Out: processes with an address each, a network that
//! exists only as long as they do. The demo builds its shop on it, the tests build their scenarios on it.
//!
//! Invariants: no namespace, interface or rule outlives the [`Fabric`], not even after `SIGKILL`, because
//! every namespace is anonymous (it lives in processes, not in files) and every process dies with its parent.
//! Nothing is ever configured in the host's own network namespace.
//!
//! Surprise: this process never changes its own namespaces. `unshare` and `setns` work on threads, and a
//! user namespace demands a process with a single one, so the work is done by small copies of this program
//! (`fabric/holder.rs`, `fabric/launch.rs`) that do it first thing in `main`. A program that embeds the
//! fabric therefore has to be the `weft` binary, or call [`crate::main`] early in its own, or name one by
//! [`Builder::helper`].
//!
//! Non-goal: routing. All pods share one layer-2 segment; a pod reaches any address on it directly.

pub(crate) mod holder;
pub(crate) mod launch;
pub(crate) mod launcher;
mod link;
mod process;

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::unistd::geteuid;

pub use launch::{Command, HELPER_VARIABLE};
pub use launcher::Launcher;
pub use process::Process;

use holder::{Holder, Order};

/// The hub's address: the bridge itself. What listens here is reachable from every pod.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The hub's IPv6 address.
pub const HUB_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// Prefix length of the pods' IPv4 network, 10.77.0.0/16.
const PREFIX: u8 = 16;
/// Prefix length of the pods' IPv6 network, fd77::/64.
const PREFIX_V6: u8 = 64;
/// Most pods in one fabric: what a Linux bridge takes (1,024 ports), with room to spare.
const PODS_MAX: u16 = 1000;

/// How well the pods are separated from the rest of the machine, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Network and mount namespaces made by root; programs run as users of their own.
    Root,
    /// The same inside a user namespace made without privilege; every program runs as its "root".
    User,
}

impl Isolation {
    /// Whether programs can run as different users: only where more than one user id is mapped.
    #[must_use]
    pub const fn has_users(self) -> bool {
        matches!(self, Self::Root)
    }
}

/// Why there is no fabric, or why something in it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine allows neither kind of namespace.
    #[error("this machine allows no network namespaces ({})", .attempts.join("; "))]
    Forbidden {
        /// What was tried and how the kernel answered.
        attempts: Vec<String>,
    },
    /// A namespace holder did not do what it was told.
    #[error("namespace of {name}: {cause}")]
    Namespace {
        /// The pod, or `hub`.
        name: String,
        /// What the holder answered.
        cause: String,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A file of the fabric could not be written.
    #[error("{}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No room for another pod.
    #[error("a fabric holds at most {PODS_MAX} pods")]
    Full,
}

/// The network: a hub with a bridge, and the pods that were attached to it.
///
/// Dropping it ends every process in it and with them the namespaces.
#[derive(Debug)]
pub struct Fabric {
    shared: Arc<Shared>,
    isolation: Isolation,
    pods: AtomicU16,
}

/// Field order is drop order: holders end before the files that are mounted in their namespaces are removed.
#[derive(Debug)]
struct Shared {
    hub: Holder,
    launcher: Launcher,
}

/// Choices made before a fabric exists.
#[derive(Debug, Default)]
pub struct Builder {
    helper: Option<PathBuf>,
    isolation: Option<Isolation>,
}

impl Builder {
    /// The `weft` binary to use as helper; by default the one in `WEFT_FABRIC_HELPER`, else this very
    /// program.
    #[must_use]
    pub fn helper(mut self, path: impl Into<PathBuf>) -> Self {
        self.helper = Some(path.into());
        self
    }

    /// Insists on one kind of isolation instead of taking the best there is.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// Makes the hub.
    ///
    /// # Errors
    /// [`Error::Forbidden`] when the machine allows no such namespaces.
    pub fn build(self) -> Result<Fabric, Error> {
        let Self { helper, isolation } = self;
        let helper = helper.unwrap_or_else(launch::default_helper);
        let candidates: &[Isolation] = match isolation {
            Some(Isolation::Root) => &[Isolation::Root],
            Some(Isolation::User) => &[Isolation::User],
            None if geteuid().is_root() => &[Isolation::Root, Isolation::User],
            None => &[Isolation::User],
        };
        let mut attempts = Vec::new();
        for &isolation in candidates {
            match Fabric::attempt(&helper, isolation) {
                Ok(fabric) => return Ok(fabric),
                Err(Error::Namespace { cause, .. }) => attempts.push(cause),
                Err(error) => return Err(error),
            }
        }
        Err(Error::Forbidden { attempts })
    }
}

impl Fabric {
    /// A fabric with the best isolation this machine allows.
    ///
    /// # Errors
    /// [`Error::Forbidden`] when it allows none.
    pub fn new() -> Result<Self, Error> {
        Builder::default().build()
    }

    /// Choices before it is made.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// How well pods are isolated.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// A directory that goes away with the fabric; any user may enter it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.shared.launcher.directory()
    }

    /// The `weft` binary itself, to run in the hub.
    #[must_use]
    pub fn weft(&self) -> Command {
        self.command(launch::SELF)
    }

    /// Starts programs outside of all namespaces, which still end with the fabric.
    #[must_use]
    pub fn outside(&self) -> &Launcher {
        &self.shared.launcher
    }

    /// A program to run in the hub's namespace, next to the bridge ([`HUB`]).
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.shared.command("hub", self.shared.hub.pid(), program.as_ref())
    }

    /// Describes a pod; [`PodBuilder::start`] makes it.
    #[must_use]
    pub fn pod(&self, name: impl Into<String>) -> PodBuilder<'_> {
        PodBuilder { fabric: self, name: name.into(), address: None, hosts: Vec::new() }
    }

    fn attempt(helper: &Path, isolation: Isolation) -> Result<Self, Error> {
        let launcher = Launcher::with_helper(helper.to_owned())?;
        let mut command = launch::helper_command(helper, "fabric-hold");
        if isolation == Isolation::User {
            command.arg("--user-namespace");
        }
        let hub = Holder::start("hub", command, launcher.spawner())?;
        hub.order(&Order::Bridge { addresses: vec![(HUB.into(), PREFIX), (HUB_V6.into(), PREFIX_V6)] })?;
        Ok(Self { shared: Arc::new(Shared { hub, launcher }), isolation, pods: AtomicU16::new(2) })
    }
}

/// A pod to be.
#[derive(Debug)]
pub struct PodBuilder<'a> {
    fabric: &'a Fabric,
    name: String,
    address: Option<Ipv4Addr>,
    hosts: Vec<(IpAddr, String)>,
}

impl PodBuilder<'_> {
    /// An address of its own choice, for instance outside of the pods' network: a host on the internet.
    #[must_use]
    pub fn address(mut self, address: Ipv4Addr) -> Self {
        self.address = Some(address);
        self
    }

    /// A line in the pod's own `/etc/hosts`.
    #[must_use]
    pub fn host(mut self, name: impl Into<String>, address: impl Into<IpAddr>) -> Self {
        self.hosts.push((address.into(), name.into()));
        self
    }

    /// Makes the pod's namespaces and plugs it into the bridge.
    ///
    /// # Errors
    /// When the fabric is full or the kernel refuses.
    pub fn start(self) -> Result<Pod, Error> {
        let Self { fabric, name, address, hosts } = self;
        let shared = Arc::clone(&fabric.shared);
        let number = fabric.pods.fetch_add(1, Ordering::Relaxed);
        if number > PODS_MAX {
            return Err(Error::Full);
        }
        let [high, low] = number.to_be_bytes();
        let address_v4 = address.unwrap_or_else(|| Ipv4Addr::new(10, 77, high, low));
        let address_v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number);

        let hosts_path = shared.launcher.directory().join(format!("hosts-{number}"));
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for (address, host) in &hosts {
            text.push_str(&format!("{address} {host}\n"));
        }
        text.push_str(&format!("{address_v4} {name}-pod\n"));
        write_public(&hosts_path, &text)?;
        let resolver_path = shared.launcher.directory().join("resolv.conf");
        // Names come from /etc/hosts; a query for any other is refused at once instead of leaving the
        // machine.
        write_public(&resolver_path, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;

        let mut command = launch::helper_command(shared.launcher.helper(), "fabric-hold");
        command.arg("--enter").arg(shared.hub.pid().to_string());
        command.arg("--mount").arg(format!("{}=/etc/hosts", hosts_path.display()));
        command.arg("--mount").arg(format!("{}=/etc/resolv.conf", resolver_path.display()));
        let holder = Holder::start(&name, command, shared.launcher.spawner())?;
        shared.hub.order(&Order::Attach { interface: format!("pod{number}"), pid: holder.pid() })?;
        let prefix = if address.is_some() { 32 } else { PREFIX };
        holder.order(&Order::Configure {
            addresses: vec![(address_v4.into(), prefix), (address_v6.into(), PREFIX_V6)],
        })?;
        Ok(Pod { name, address: address_v4, address_v6, hosts_path, holder, shared })
    }
}

/// One pod: a network and mount namespace with an address.
///
/// Dropping it takes the namespace from under programs that still run in it only when they end as well.
#[derive(Debug)]
pub struct Pod {
    name: String,
    address: Ipv4Addr,
    address_v6: Ipv6Addr,
    hosts_path: PathBuf,
    holder: Holder,
    shared: Arc<Shared>,
}

impl Pod {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn address_v6(&self) -> Ipv6Addr {
        self.address_v6
    }

    /// The process that holds its namespaces: `nsenter -t ID -n -m` goes in from outside.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.holder.pid()
    }

    /// A program to run in this pod.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.shared.command(&self.name, self.holder.pid(), program.as_ref())
    }

    /// The `weft` binary itself, to run in this pod.
    #[must_use]
    pub fn weft(&self) -> Command {
        self.command(launch::SELF)
    }

    /// Adds a line to the pod's `/etc/hosts`; programs in it see the change at once.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add_host(&self, name: &str, address: impl Into<IpAddr>) -> Result<(), Error> {
        // In place: the pod has this very file mounted, a new one under the old name would stay invisible.
        let append = || {
            let mut file = fs::OpenOptions::new().append(true).open(&self.hosts_path)?;
            writeln!(file, "{} {name}", address.into())
        };
        append().map_err(|source| Error::File { path: self.hosts_path.clone(), source })
    }
}

impl Shared {
    fn command(&self, name: &str, pid: u32, program: &std::ffi::OsStr) -> Command {
        Command::new(name, self.launcher.helper(), Some(pid), program, self.launcher.spawner().clone())
    }
}

/// A `TempDir` is private to its owner, but programs in pods run as other users.
fn open_to_all(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(|source| Error::File { path: path.to_owned(), source })
}

fn write_public(path: &Path, text: &str) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
        .map_err(|source| Error::File { path: path.to_owned(), source })
}
