//! A mesh in network namespaces: pods with unmodified programs, each with its own real sidecar, and one control plane.
//!
//! In: a list of pods and services as a test tells its story. Out: processes in namespaces, and what the control plane's API
//! says about them. The namespaces are those of the demo ([`weft_cli::fabric`]).
//!
//! Every sidecar joins by a token of its own, and speaks mutual TLS from its first connection; its service account is called
//! like its workload. The API is for everybody in the fabric, which nobody else reaches.
//!
//! Invariant: nothing is left behind, because the fabric's namespaces live only in processes that die with the test.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_cli::fabric::{self, Fabric, Pod, Process};
use weft_wire::port;

mod api;
mod objects;

use crate::{binary, poll};
use objects::{Service, pod_object, workload};

/// The user that apps run as, where users can be told apart.
const APP_UID: u32 = 1000;
/// How long a program has to come up in a debug build on a busy machine.
const START: Duration = Duration::from_secs(30);
/// Where services get their cluster addresses.
const CLUSTER: [u8; 2] = [10, 96];

/// A mesh that a test plays in.
#[derive(Debug)]
pub struct Mesh {
    // Processes before the fabric: they end before their namespaces do.
    control_plane: Option<Process>,
    sidecars: Vec<(String, Process)>,
    /// Pods whose sidecars wait for a token.
    shut_out: Vec<String>,
    /// What sidecars are told beyond what all are.
    settings: Vec<(&'static str, &'static str)>,
    apps: Vec<Process>,
    pods: Vec<(String, Pod)>,
    outsiders: Vec<String>,
    services: Vec<Service>,
    fabric: Fabric,
}

/// The mesh for a test, or `None` where this machine allows no network namespaces: the reason is printed, and CI fails.
///
/// # Panics
/// When there are none although `CI` is set, or when something else goes wrong.
#[must_use]
pub fn mesh() -> Option<Mesh> {
    build(Fabric::builder())
}

/// As [`mesh()`], inside a user namespace as anybody may make it.
///
/// # Panics
/// As [`mesh()`].
#[must_use]
pub fn unprivileged() -> Option<Mesh> {
    build(Fabric::builder().isolation(fabric::Isolation::User))
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn build(builder: fabric::Builder) -> Option<Mesh> {
    match builder.helper(binary::weft()).build() {
        Ok(fabric) => Some(Mesh::on(fabric)),
        Err(error @ fabric::Error::Forbidden { .. }) => {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to run this: {error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("fabric: {error}"),
    }
}

impl Mesh {
    fn on(fabric: Fabric) -> Self {
        Self {
            control_plane: None,
            sidecars: Vec::new(),
            shut_out: Vec::new(),
            settings: Vec::new(),
            apps: Vec::new(),
            pods: Vec::new(),
            outsiders: Vec::new(),
            services: Vec::new(),
            fabric,
        }
    }

    /// Starts the control plane, or starts it again with the same data; pods that were cut off are let in.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn start_control_plane(&mut self) -> anyhow::Result<()> {
        let directory = self.fabric.directory();
        let source = directory.join("source");
        fs::create_dir_all(&source)?;
        let log = fs::File::options().create(true).append(true).open(directory.join("control-plane.log"))?;
        let process = self
            .fabric
            .command(binary::weft())
            .args(["control-plane", "--insecure", "--source"])
            .arg(&source)
            .arg("--data-dir")
            .arg(directory.join("data"))
            .args(["--control-listen", "off"])
            .args(["--control-tls-listen", &format!("{}:{}", fabric::HUB, port::CONTROL_TLS)])
            .args(["--api-listen", &format!("{}:{}", fabric::HUB, port::API)])
            .args(["--otlp-grpc-listen", "off", "--otlp-http-listen", "off"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.control_plane = Some(process);
        poll::until_blocking("control plane answers", START, || self.get("/api/overview").map(drop))
            .with_context(|| self.log("control-plane"))?;
        for pod in std::mem::take(&mut self.shut_out) {
            self.let_in(&pod)?;
        }
        Ok(())
    }

    /// Kills the control plane without warning.
    pub fn kill_control_plane(&mut self) {
        if let Some(process) = self.control_plane.take() {
            process.kill();
        }
    }

    /// A setting (`WEFT_…`) of every sidecar from now on.
    pub fn sidecars_have(&mut self, name: &'static str, value: &'static str) {
        self.settings.push((name, value));
    }

    /// A pod without a sidecar.
    ///
    /// # Errors
    /// When the namespace cannot be made.
    pub fn pod(&mut self, name: &str) -> anyhow::Result<()> {
        let pod = self.fabric.pod(name).start()?;
        for service in &self.services {
            pod.add_host(&service.name, service.address)?;
        }
        self.pods.push((name.to_owned(), pod));
        self.write_source()
    }

    /// A host that no source of objects knows: for the mesh it is the world outside.
    ///
    /// # Errors
    /// When the namespace cannot be made.
    pub fn outsider(&mut self, name: &str) -> anyhow::Result<()> {
        self.pod(name)?;
        self.outsiders.push(name.to_owned());
        self.write_source()
    }

    /// A pod with interception and a sidecar that is ready.
    ///
    /// # Errors
    /// When the sidecar does not get ready in time; the message has its log.
    pub fn meshed_pod(&mut self, name: &str) -> anyhow::Result<()> {
        self.pod(name)?;
        self.start_sidecar(name)
    }

    /// A pod whose sidecar cannot reach the control plane and has no token, and so does not get ready; it serves all the
    /// same.
    ///
    /// # Errors
    /// When the sidecar does not come to life in time; the message has its log.
    pub fn cut_off_pod(&mut self, name: &str) -> anyhow::Result<()> {
        self.pod(name)?;
        self.shut_out.push(name.to_owned());
        self.spawn_sidecar(name)?;
        self.answers(name, "/live")
    }

    fn start_sidecar(&mut self, name: &str) -> anyhow::Result<()> {
        self.let_in(name)?;
        self.spawn_sidecar(name)?;
        self.answers(name, "/ready")
    }

    /// Puts a token where a pod's sidecar looks for it.
    fn let_in(&self, pod: &str) -> anyhow::Result<()> {
        let wanted = json!({ "name": workload(pod), "namespace": "shop" });
        let made = self.ask("/api/tokens", Some(&wanted))?;
        let token = made["token"].as_str().with_context(|| format!("no token in {made}"))?;
        // Whoever finds the file finds all of it.
        let fresh = self.file(&format!("{pod}.token.new"), token)?;
        Ok(fs::rename(fresh, self.token_file(pod))?)
    }

    fn token_file(&self, pod: &str) -> PathBuf {
        self.fabric.directory().join(format!("{pod}.token"))
    }

    fn spawn_sidecar(&mut self, name: &str) -> anyhow::Result<()> {
        let isolation = self.fabric.isolation();
        let pod = self.find(name)?;
        let mut intercept = pod.weft().args(["proxy", "intercept"]);
        if !isolation.has_users() {
            intercept = intercept.args(["--exclude-mark", &port::PROXY_MARK.to_string()]);
        }
        let output = intercept.output()?;
        ensure!(output.status.success(), "intercept: {}", String::from_utf8_lossy(&output.stderr));
        let log = fs::File::create(self.fabric.directory().join(format!("{name}.log")))?;
        let mut sidecar = pod
            .weft()
            .arg("proxy")
            .env("WEFT_WORKLOAD", workload(name))
            .env("WEFT_NAMESPACE", "shop")
            .env("WEFT_POD", name)
            .env("WEFT_POD_IPS", format!("{},{}", pod.address(), pod.address_v6()))
            .env("WEFT_CONTROL_PLANE", format!("https://{}:{}", fabric::HUB, port::CONTROL_TLS))
            .env("WEFT_JOIN_TOKEN_FILE", self.token_file(name))
            .uid(isolation, port::PROXY_UID)
            .stdout(log.try_clone()?)
            .stderr(log);
        for (name, value) in &self.settings {
            sidecar = sidecar.env(name, value);
        }
        if !isolation.has_users() {
            sidecar = sidecar.env("WEFT_SOCKET_MARK", port::PROXY_MARK.to_string());
        }
        self.sidecars.push((name.to_owned(), sidecar.spawn()?));
        Ok(())
    }

    fn answers(&self, name: &str, probe: &str) -> anyhow::Result<()> {
        let url = format!("http://127.0.0.1:{}{probe}", port::METRICS);
        poll::until_blocking("sidecar answers", START, || {
            let output = self.run(name, &["curl", "-sf", &url]).map_err(|error| error.to_string())?;
            if output.status.success() { Ok(()) } else { Err(output.status.to_string()) }
        })
        .with_context(|| self.log(name))
    }

    /// A service on a cluster address of its own; every pod can resolve its name from now on, and the control plane, if
    /// there is one, knows it.
    ///
    /// # Errors
    /// When a hosts file cannot be written, or the control plane does not read the new source in time.
    pub fn service(
        &mut self,
        name: &str,
        port: u16,
        app_protocol: Option<&'static str>,
        pods: &[&str],
    ) -> anyhow::Result<()> {
        let number = u8::try_from(self.services.len() + 1)?;
        let address = Ipv4Addr::new(CLUSTER[0], CLUSTER[1], 0, number);
        for (_, pod) in &self.pods {
            pod.add_host(name, address)?;
        }
        let ready = pods.iter().map(|&pod| pod.to_owned()).collect();
        self.services.push(Service { name: name.into(), address, port, app_protocol, ready });
        self.write_source()?;
        if self.control_plane.is_none() {
            return Ok(());
        }
        // A sidecar that asks before would be told that there is no such service, and pass through to nowhere.
        poll::until_blocking("the service is known", START, || {
            let known = self.get("/api/overview")?["inventory"]["services"].as_u64();
            ensure!(known == Some(u64::from(number)), "{known:?} services are known, not {number}");
            Ok(())
        })
        .with_context(|| self.log("control-plane"))
    }

    /// Changes which pods are ready endpoints of a service.
    ///
    /// # Errors
    /// When there is no such service.
    pub fn set_endpoints(&mut self, service: &str, pods: &[&str]) -> anyhow::Result<()> {
        let found = self.services.iter_mut().find(|s| s.name == service);
        found.with_context(|| format!("no service {service}"))?.ready =
            pods.iter().map(|&pod| pod.to_owned()).collect();
        self.write_source()
    }

    /// Starts an unmodified program in a pod; it runs until the mesh ends.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn app(&mut self, pod: &str, program: &[&str]) -> anyhow::Result<()> {
        let log = fs::File::create(self.fabric.directory().join(format!("{pod}-app.log")))?;
        let command = self.find(pod)?.command(program[0]).args(&program[1..]);
        let process =
            command.uid(self.fabric.isolation(), APP_UID).stdout(log.try_clone()?).stderr(log).spawn()?;
        self.apps.push(process);
        Ok(())
    }

    /// Runs a program in a pod to its end, as the app's user.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, pod: &str, program: &[&str]) -> anyhow::Result<std::process::Output> {
        let command = self.find(pod)?.command(program[0]).args(&program[1..]);
        Ok(command.uid(self.fabric.isolation(), APP_UID).output()?)
    }

    /// As [`Mesh::run`], without waiting; the program's output goes to a file that [`Mesh::log`] reads.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, pod: &str, log: &str, program: &[&str]) -> anyhow::Result<Process> {
        let log = fs::File::create(self.fabric.directory().join(format!("{log}.log")))?;
        let command = self.find(pod)?.command(program[0]).args(&program[1..]);
        Ok(command.uid(self.fabric.isolation(), APP_UID).stdout(log.try_clone()?).stderr(log).spawn()?)
    }

    /// Standard output of a program that must succeed.
    ///
    /// # Errors
    /// When it fails; the message has what it said.
    pub fn succeed(&self, pod: &str, program: &[&str]) -> anyhow::Result<String> {
        let output = self.run(pod, program)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program:?} in {pod}: {}\n{text}\n{said}", output.status);
        Ok(text)
    }

    /// Runs a program beside the wire between pods, with every right there; it runs until the mesh ends, and its output goes
    /// to a file that [`Mesh::log`] reads. What pods say to each other goes past it, what they say to themselves does not.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn beside_the_wire(&mut self, log: &str, program: &[&str]) -> anyhow::Result<()> {
        let log = fs::File::create(self.fabric.directory().join(format!("{log}.log")))?;
        let command = self.fabric.command(program[0]).args(&program[1..]);
        self.apps.push(command.stdout(log.try_clone()?).stderr(log).spawn()?);
        Ok(())
    }

    /// Waits until something listens on a TCP port inside a pod.
    ///
    /// # Errors
    /// When nothing does within half a minute; the message has the app's log.
    pub fn listening(&self, pod: &str, port: u16) -> anyhow::Result<()> {
        // Looks at the kernel's table, not by connecting, so that nothing of it shows in the graph.
        poll::until_blocking("app listens", START, || {
            let tables = self
                .succeed(pod, &["cat", "/proc/net/tcp", "/proc/net/tcp6"])
                .map_err(|error| error.to_string())?;
            let suffix = format!(":{port:04X}");
            let listens = tables.lines().any(|line| {
                let mut fields = line.split_whitespace();
                fields.nth(1).is_some_and(|local| local.ends_with(&suffix)) && fields.nth(1) == Some("0A")
            });
            if listens { Ok(()) } else { Err(format!("nothing on port {port}")) }
        })
        .with_context(|| self.log(&format!("{pod}-app")))
    }

    /// Sends a signal to a pod's sidecar and answers its process.
    ///
    /// # Errors
    /// When the pod has none.
    pub fn signal_sidecar(&self, pod: &str, signal: Signal) -> anyhow::Result<&Process> {
        let found = self.sidecars.iter().find(|(name, _)| name == pod);
        let (_, process) = found.with_context(|| format!("{pod} has no sidecar"))?;
        process.signal(signal);
        Ok(process)
    }

    /// Process id of a pod's sidecar.
    ///
    /// # Errors
    /// When the pod has none.
    pub fn sidecar_pid(&self, pod: &str) -> anyhow::Result<u32> {
        let found = self.sidecars.iter().find(|(name, _)| name == pod);
        Ok(found.with_context(|| format!("{pod} has no sidecar"))?.1.id())
    }

    /// `/metrics` of a pod's sidecar.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self, pod: &str) -> anyhow::Result<String> {
        self.succeed(pod, &["curl", "-sf", &format!("http://127.0.0.1:{}/metrics", port::METRICS)])
    }

    /// What a sidecar (`<pod>`), an app (`<pod>-app`) or the `control-plane` has written.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let path = self.fabric.directory().join(format!("{name}.log"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
        format!("--- {name} ---\n{text}")
    }

    /// A file that programs in pods can read.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.fabric.directory().join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }

    /// A program of the tests' own, where every user may start it.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn program(&self, path: &str) -> anyhow::Result<String> {
        let name = Path::new(path).file_name().context("a program has a name")?;
        let copy = self.fabric.directory().join(name);
        // Permissions go along.
        fs::copy(path, &copy)?;
        Ok(copy.display().to_string())
    }

    /// Replaces the file of objects by what `edit` makes of it, as an operator's editor would.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn edit_source(&self, edit: impl FnOnce(String) -> String) -> anyhow::Result<()> {
        let path = self.fabric.directory().join("source/shop.yaml");
        replace(&path, &edit(fs::read_to_string(&path)?))
    }

    /// A directory that the app's user may write in.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn app_directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.fabric.directory().join(name);
        fs::create_dir_all(&path)?;
        if self.fabric.isolation().has_users() {
            std::os::unix::fs::chown(&path, Some(APP_UID), Some(APP_UID))?;
        }
        Ok(path)
    }

    /// A pod's address.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn address(&self, pod: &str) -> anyhow::Result<IpAddr> {
        Ok(self.find(pod)?.address().into())
    }

    /// A pod's IPv6 address.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn address_v6(&self, pod: &str) -> anyhow::Result<IpAddr> {
        Ok(self.find(pod)?.address_v6().into())
    }

    fn find(&self, pod: &str) -> anyhow::Result<&Pod> {
        let found = self.pods.iter().find(|(name, _)| name == pod);
        Ok(&found.with_context(|| format!("no pod {pod}"))?.1)
    }

    /// Writes what Kubernetes would hold about these pods and services.
    fn write_source(&self) -> anyhow::Result<()> {
        let source = self.fabric.directory().join("source");
        fs::create_dir_all(&source)?;
        let known = self.pods.iter().filter(|(name, _)| !self.outsiders.contains(name));
        let mut documents: Vec<Value> = known.map(|(name, pod)| pod_object(name, pod)).collect();
        for service in &self.services {
            documents.push(service.object());
            let ready = service.ready.iter().map(|name| Ok((&**name, self.find(name)?.address())));
            documents.push(service.endpoint_slice(ready.collect::<anyhow::Result<_>>()?));
        }
        let text = documents.iter().map(serde_yaml::to_string).collect::<Result<Vec<_>, _>>()?.join("---\n");
        replace(&source.join("shop.yaml"), &text)
    }
}

/// A reader sees the old text or the new one, never half of one.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    Ok(fs::rename(fresh, path)?)
}
