//! The mesh in this process: the control plane and sidecars by their libraries, on loopback, without privileges.
//!
//! In: objects as YAML, and a sidecar's flags. Out: where each listens. Invariant: a [`Plane`] keeps its source in a
//! directory of its own, which ends with it; a [`Sidecar`] ends with its value. Non-goal: interception, which needs a
//! kernel; see [`crate::mesh`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use serde_json::Value;
use tokio::sync::oneshot;
use weft_control_plane::app::App;

use crate::poll;

/// Longest wait for anything; only reached when the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The control plane on free ports, reading a directory of its own.
pub struct Plane {
    app: App,
    directory: tempfile::TempDir,
    /// Where sidecars go.
    pub control: SocketAddr,
    /// Where the API is.
    pub api: SocketAddr,
}

impl Plane {
    /// Starts it on `objects`, YAML documents.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(objects: &str) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let source = directory.path().join("source");
        std::fs::create_dir(&source)?;
        std::fs::write(source.join("objects.yaml"), objects)?;
        Self::run(directory, "127.0.0.1:0").await
    }

    async fn run(directory: tempfile::TempDir, control: &str) -> anyhow::Result<Self> {
        let control = format!("--control-listen={control}");
        let flags = ["--insecure", &control, "--control-tls-listen=127.0.0.1:0", "--api-listen=127.0.0.1:0"];
        let off = ["--otlp-grpc-listen=off", "--otlp-http-listen=off", "--drain-deadline=1s"];
        let source = format!("--source={}", directory.path().join("source").display());
        let program = ["weft-control-plane", &source];
        let words = program.iter().chain(&flags).chain(&off);
        let app = App::start(weft_control_plane::config::Config::try_parse_from(words)?).await?;
        let control = app.bound().control.context("bound")?;
        let api = app.bound().api.context("bound")?;
        Ok(Self { app, directory, control, api })
    }

    /// Replaces the objects; a reader sees the old ones or the new ones, never half.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn apply(&self, objects: &str) -> anyhow::Result<()> {
        let fresh = self.directory.path().join("objects.new");
        std::fs::write(&fresh, objects)?;
        Ok(std::fs::rename(fresh, self.source().join("objects.yaml"))?)
    }

    /// The directory that it reads.
    #[must_use]
    pub fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    /// Drains it.
    pub async fn stop(self) {
        self.app.stop(std::future::pending()).await;
    }

    /// Drains it and says how it is started again: where sidecars know it, with the same objects and an empty memory.
    pub async fn pause(self) -> Paused {
        let Self { app, directory, control, api: _ } = self;
        app.stop(std::future::pending()).await;
        Paused { directory, control }
    }
}

/// A control plane that is not there for a while.
pub struct Paused {
    directory: tempfile::TempDir,
    control: SocketAddr,
}

impl Paused {
    /// Starts it again; the API may be elsewhere.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn resume(self) -> anyhow::Result<Plane> {
        Plane::run(self.directory, &self.control.to_string()).await
    }
}

/// A sidecar on a thread of this process; it ends with this value.
pub struct Sidecar {
    bound: Value,
    thread: Option<(oneshot::Sender<()>, JoinHandle<anyhow::Result<()>>)>,
}

impl Sidecar {
    /// Starts one for the workload `shop/<workload>` and waits until it serves; its ready file is kept in `directory`.
    ///
    /// # Errors
    /// When a flag is wrong or it does not serve in time.
    pub async fn start(
        directory: &Path,
        control: SocketAddr,
        workload: &str,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        #[derive(clap::Parser)]
        struct CommandLine {
            #[command(flatten)]
            arguments: weft_proxy::config::Arguments,
        }
        let ready = directory.join(format!("{workload}.json"));
        let own = [
            "weft-proxy".to_owned(),
            format!("--control-plane=http://{control}"),
            format!("--workload={workload}"),
            format!("--ready-file={}", ready.display()),
        ];
        let fixed = [
            "--namespace=shop",
            "--inbound-listen=127.0.0.1:0",
            "--outbound-listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0",
            "--workers=1",
        ];
        let admin = flags.iter().all(|flag| !flag.starts_with("--admin-listen"));
        let admin = admin.then_some("--admin-listen=off");
        let words = own.iter().map(String::as_str).chain(fixed).chain(admin).chain(flags.iter().copied());
        let config = weft_proxy::config::Config::try_from(CommandLine::try_parse_from(words)?.arguments)?;
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(workload.to_owned())
            .spawn(move || weft_proxy::app::run_embedded(config, ended))?;
        let bound = poll::until("the sidecar serves", PATIENCE, async || {
            anyhow::Ok(serde_json::from_slice(&tokio::fs::read(&ready).await?)?)
        });
        Ok(Self { bound: bound.await?, thread: Some((end, thread)) })
    }

    /// The address of a listener, by its place in the ready file: `/outbound`, `/forwards/0`.
    ///
    /// # Errors
    /// When there is no such listener.
    pub fn address(&self, listener: &str) -> anyhow::Result<SocketAddr> {
        let address = self.bound.pointer(listener).and_then(Value::as_str);
        Ok(address.with_context(|| format!("no {listener} in {}", self.bound))?.parse()?)
    }

    /// Drains it.
    ///
    /// # Errors
    /// What its end says.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let (end, thread) = self.thread.take().context("it runs")?;
        drop(end);
        let joined = tokio::task::spawn_blocking(move || thread.join());
        let ended = tokio::time::timeout(PATIENCE, joined).await.context("the sidecar does not end")??;
        ended.map_err(|_| anyhow::anyhow!("the sidecar panicked"))?
    }
}
