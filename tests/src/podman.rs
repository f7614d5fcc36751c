//! Debian's podman as a kubelet of sorts: pods from manifests, with images that were built on this machine.
//!
//! In: images' programs, manifests as `kubectl apply` takes them. Out: pods in network namespaces of their own on a common
//! bridge, as a node has them. Everything of it is in namespaces that one process holds (mounts, network, processes), with the
//! storage in memory there: whoever uses podman on this machine sees none of it.
//!
//! Invariant: nothing is left behind, because the kernel ends that process with the test's, and takes the rest along; only
//! empty control groups are removed by hand. Surprise: containers and API are reached by `nsenter`, not over the network:
//! from outside there is no way in.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Guarded;
use crate::{binary, poll};

/// What is needed, and Debian's package of it. Netavark programs the bridge with iptables.
const PROGRAMS: [(&str, &str); 9] = [
    ("podman", "podman"),
    ("buildah", "buildah"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("/usr/lib/podman/netavark", "netavark"),
    ("/usr/lib/podman/aardvark-dns", "aardvark-dns"),
    ("/usr/bin/catatonit", "catatonit"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
];

/// Where Debian has programs that an ordinary user's `PATH` may lack.
const SEARCHED: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Holds the namespaces. What podman writes goes to memory, what it reads is as on this machine.
const HOLDER: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir -p "$1/storage"
mount -t tmpfs -o mode=755 tmpfs "$1/storage"
ip link set lo up
: > "$1/ready"
exec sleep infinity
"#;

/// How long the namespaces, or a command in them, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pods' network.
const NETWORK: &str = "weft";
const SUBNET: &str = "10.89.77.0/24";

/// Podman in namespaces of its own.
#[derive(Debug)]
pub struct Podman {
    // Before the directory: the mounts in it end with it.
    holder: Option<Guarded>,
    init: u32,
    groups: Vec<String>,
    directory: TempDir,
}

impl Podman {
    /// Starts it; `None` where this machine cannot: the reason is printed, and CI fails.
    ///
    /// # Panics
    /// When it cannot although `CI` is set.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    pub fn start() -> Option<Self> {
        match Self::try_start() {
            Ok(podman) => Some(podman),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "CI must be able to run pods: {error:#}");
                eprintln!("skipped: no pods on this machine: {error:#}");
                None
            }
        }
    }

    fn try_start() -> anyhow::Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "it takes root");
        let there =
            |program: &str| SEARCHED.split(':').any(|folder| Path::new(folder).join(program).is_file());
        let missing = PROGRAMS.iter().find(|(program, _)| !there(program));
        if let Some((program, package)) = missing {
            bail!("{program} is missing (Debian's package {package}; `make setup` installs it)");
        }
        let directory = TempDir::with_prefix("weft-pods-")?;
        configure(directory.path())?;
        // The kernel ends `unshare` with this thread, and `unshare` what it started.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
        ]);
        command.args(["--mount-proc", "--propagation", "unchanged", "sh", "-c", HOLDER, "holder"]);
        command.arg(directory.path()).env("PATH", SEARCHED).stdin(Stdio::null());
        let holder = Guarded::spawn(&mut command)?;
        let init = poll::until_blocking("namespaces", PATIENCE, || {
            fs::metadata(directory.path().join("ready")).map_err(|error| error.to_string())?;
            child_of(holder.pid()).ok_or_else(|| "no process in them".to_owned())
        })?;
        let podman = Self { holder: Some(holder), init, groups: Vec::new(), directory };
        podman.run("podman", ["network", "create", "--subnet", SUBNET, NETWORK])?;
        Ok(podman)
    }

    /// Runs a program beside podman, and answers what it printed.
    ///
    /// # Errors
    /// When it fails; with what it complained of.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<String> {
        output(self.command(program).args(arguments))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.init.to_string();
        command.args(["--target", &target, "--mount", "--net", "--pid"]);
        let mut here = OsString::from("--wd=");
        here.push(binary::workspace());
        // The directory belongs to the mounts outside: whoever asks where it is must be told.
        command.env("PWD", binary::workspace());
        command.arg(here).arg(program).env("PATH", SEARCHED).stdin(Stdio::null());
        for (variable, file) in [
            ("CONTAINERS_CONF", "containers.conf"),
            ("CONTAINERS_STORAGE_CONF", "storage.conf"),
            ("CONTAINERS_REGISTRIES_CONF", "registries.conf"),
        ] {
            command.env(variable, self.directory.path().join(file));
        }
        command
    }

    /// Makes images of programs that `k8s/image/build.sh` has built into `programs`; prints their sizes.
    ///
    /// # Errors
    /// When it does not work out.
    #[expect(clippy::print_stderr, reason = "sizes belong into CI's log")]
    pub fn images(&self, programs: &Path, names: &[&str]) -> anyhow::Result<()> {
        let mut build = self.command("k8s/image/build.sh");
        build.env("STEP", "images").env("PROFILE", "dev").env("OUT", programs).args(names);
        eprint!("{}", output(&mut build).context("build images")?);
        Ok(())
    }

    /// Plays a manifest: its pod gets this address. Unless `start`, its containers are made and none is started.
    ///
    /// # Errors
    /// When podman does not take it.
    pub fn play(&mut self, name: &str, manifest: &str, address: &str, start: bool) -> anyhow::Result<()> {
        let file = self.directory.path().join(format!("{name}.yaml"));
        fs::write(&file, manifest)?;
        let mut play = self.command("podman");
        play.args(["kube", "play", "--network", NETWORK, "--ip", address, &format!("--start={start}")])
            .arg(&file);
        let played = output(&mut play).with_context(|| format!("play {name}"));
        let id = self.run("podman", ["pod", "inspect", "--format", "{{.ID}}", name]);
        self.groups.extend(id.map(|id| id.trim().to_owned()));
        played.map(drop)
    }

    /// What podman knows of a container: `POD-CONTAINER`.
    ///
    /// # Errors
    /// When there is none.
    pub fn inspect(&self, container: &str) -> anyhow::Result<Value> {
        let found: Vec<Value> =
            serde_json::from_str(&self.run("podman", ["container", "inspect", container])?)?;
        found.into_iter().next().with_context(|| format!("no container {container}"))
    }

    /// What a container has said.
    ///
    /// # Errors
    /// When there is none.
    pub fn log(&self, container: &str) -> anyhow::Result<String> {
        let mut logs = self.command("podman");
        // In order, whichever stream it was.
        let logs = logs.args(["logs", container]).stderr(Stdio::piped()).output()?;
        Ok(String::from_utf8_lossy(&logs.stdout).into_owned() + &String::from_utf8_lossy(&logs.stderr))
    }

    /// Runs a program of this machine in the network of a container's pod, as `kubectl port-forward` reaches it.
    ///
    /// # Errors
    /// When it fails; with what it complained of.
    pub fn beside<A: AsRef<OsStr>>(
        &self,
        container: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<String> {
        let pid = self.inspect(container)?["State"]["Pid"].as_u64().filter(|pid| *pid != 0);
        let pid = pid.with_context(|| format!("{container} does not run"))?;
        let mut enter = self.command("nsenter");
        enter.args(["--target", &pid.to_string(), "--net"]).arg(program).args(arguments);
        output(&mut enter)
    }

    /// Everything that helps to see what went wrong.
    #[must_use]
    pub fn account(&self) -> String {
        let mut account = self.run("podman", ["ps", "--all", "--pod"]).unwrap_or_default();
        let names = self.run("podman", ["ps", "--all", "--format", "{{.Names}}"]).unwrap_or_default();
        for name in names.lines().filter(|name| !name.ends_with("-infra")) {
            account += &format!("\n--- {name}\n{}", self.log(name).unwrap_or_default());
        }
        account
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test's own message comes first; this is what it cannot know.
            #[expect(clippy::print_stderr, reason = "a failing test tells what its pods said")]
            {
                eprintln!("{}", self.account());
            }
        }
        // It heeds no other signal while it waits for what it started.
        if let Some(holder) = self.holder.take() {
            holder.signal(nix::sys::signal::Signal::SIGKILL).ok();
        }
        sweep(&self.groups);
    }
}

/// Removes the control groups of pods, which outlive their processes.
fn sweep(pods: &[String]) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    for parent in hierarchies
        .map(|entry| entry.path().join("libpod_parent"))
        .chain(["/sys/fs/cgroup/libpod_parent".into()])
    {
        for pod in pods {
            let group = parent.join(pod);
            // The kernel may still be busy with the dead.
            poll::until_blocking("empty control group", Duration::from_secs(5), || remove(&group)).ok();
        }
        // Only if nobody else's is in it.
        fs::remove_dir(&parent).ok();
    }
}

fn remove(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Podman's settings. runc, because crun refuses machines that have both kinds of control groups; no limit higher than
/// this process may give.
fn configure(directory: &Path) -> anyhow::Result<()> {
    let limit = |resource| -> anyhow::Result<u64> { Ok(nix::sys::resource::getrlimit(resource)?.1) };
    let files = limit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.min(20_000);
    let processes = limit(nix::sys::resource::Resource::RLIMIT_NPROC)?.min(4_096);
    let at = directory.display();
    let containers = format!(
        "[containers]\n\
         default_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\n\
         log_driver = \"k8s-file\"\n\
         [engine]\n\
         runtime = \"runc\"\n\
         cgroup_manager = \"cgroupfs\"\n\
         events_logger = \"file\"\n\
         [network]\n\
         network_backend = \"netavark\"\n\
         network_config_dir = \"{at}/storage/networks\"\n"
    );
    fs::write(directory.join("containers.conf"), containers)?;
    let storage = format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{at}/storage\"\nrunroot = \"/run/containers/storage\"\n"
    );
    fs::write(directory.join("storage.conf"), storage)?;
    // Nothing comes from a registry.
    fs::write(directory.join("registries.conf"), "unqualified-search-registries = []\n")?;
    Ok(())
}

fn child_of(parent: u32) -> Option<u32> {
    let wanted = format!("PPid:\t{parent}");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        status.lines().any(|line| line == wanted).then_some(pid)
    })
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let done = command.output().with_context(|| format!("start {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.success(),
        "{:?}: {}: {}",
        command.get_args().collect::<Vec<_>>(),
        done.status,
        said.trim()
    );
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
