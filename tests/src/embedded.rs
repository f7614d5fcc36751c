//! The mesh in this process: the control plane and sidecars by their libraries, on loopback, without privileges.
//!
//! In: objects as YAML or an API server, and a sidecar's flags. Out: where each listens. Invariant: a [`Plane`] keeps its
//! files in a directory of its own, which ends with it; a [`Sidecar`] ends with its value. Non-goal: interception, which needs a
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

use crate::apiserver::ApiServer;
use crate::client::{self, Ask};
use crate::poll;

/// Longest wait for anything; only reached when the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How sidecars speak with a control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trust {
    /// In plain text, without proof.
    Insecure,
    /// By mutual TLS, with these flags more; keys are kept in the plane's directory.
    Mutual(Vec<String>),
}

/// Where its objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    /// A directory of its own.
    Directory,
    /// The cluster of a kubeconfig, with the plane's own namespace in it.
    Cluster(PathBuf, String),
}

/// The control plane on free ports.
pub struct Plane {
    app: App,
    directory: tempfile::TempDir,
    origin: Origin,
    trust: Trust,
    /// Where sidecars go.
    pub control: SocketAddr,
    /// Where the API is.
    pub api: SocketAddr,
}

impl Plane {
    /// Starts it on `objects`, YAML documents, for sidecars that speak plain text.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(objects: &str) -> anyhow::Result<Self> {
        Self::run(directory(objects)?, Origin::Directory, Trust::Insecure, "127.0.0.1:0").await
    }

    /// Starts it on the objects of an API server, for sidecars that speak plain text; waits until the server has listed all.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn follow(server: &ApiServer) -> anyhow::Result<Self> {
        let directory = directory("")?;
        let origin = Origin::Cluster(server.kubeconfig(directory.path())?, "weft-system".to_owned());
        Self::run(directory, origin, Trust::Insecure, "127.0.0.1:0").await
    }

    /// As [`Plane::follow`], on the cluster that a kubeconfig names. It leads in `namespace`, where no other does: of two in one
    /// the second would serve no sidecar.
    ///
    /// # Errors
    /// As [`Plane::follow`].
    pub async fn follow_at(kubeconfig: &Path, namespace: &str) -> anyhow::Result<Self> {
        let origin = Origin::Cluster(kubeconfig.to_owned(), namespace.to_owned());
        Self::run(directory("")?, origin, Trust::Insecure, "127.0.0.1:0").await
    }

    /// Starts it on `objects` for sidecars that have an identity, with more `flags` of its own.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_mutual(objects: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self::run(directory(objects)?, Origin::Directory, Trust::Mutual(flags), "127.0.0.1:0").await
    }

    async fn run(
        directory: tempfile::TempDir,
        origin: Origin,
        trust: Trust,
        control: &str,
    ) -> anyhow::Result<Self> {
        let mut words = vec![
            "weft-control-plane".to_owned(),
            "--api-listen=127.0.0.1:0".to_owned(),
            "--otlp-grpc-listen=off".to_owned(),
            "--otlp-http-listen=off".to_owned(),
            "--drain-deadline=1s".to_owned(),
        ];
        match &origin {
            Origin::Directory => {
                words.push(format!("--source={}", directory.path().join("source").display()));
            }
            Origin::Cluster(kubeconfig, namespace) => {
                words.push("--kubernetes".to_owned());
                words.push(format!("--namespace={namespace}"));
                words.push(format!("--kubeconfig={}", kubeconfig.display()));
                // Planes of several tests would ask for one port.
                words.push("--inject-listen=off".to_owned());
            }
        }
        match &trust {
            Trust::Insecure => words.extend([
                "--insecure".to_owned(),
                format!("--control-listen={control}"),
                "--control-tls-listen=off".to_owned(),
            ]),
            Trust::Mutual(flags) => {
                words.extend([
                    "--control-listen=off".to_owned(),
                    format!("--control-tls-listen={control}"),
                    format!("--data-dir={}", directory.path().join("data").display()),
                ]);
                words.extend(flags.iter().cloned());
            }
        }
        let app = App::start(weft_control_plane::config::Config::try_parse_from(words)?).await?;
        let bound = app.bound();
        let control = match &trust {
            Trust::Insecure => bound.control,
            Trust::Mutual(_) => bound.control_tls,
        };
        let (control, api) = (control.context("bound")?, bound.api.context("bound")?);
        Ok(Self { app, directory, origin, trust, control, api })
    }

    /// Makes a join token for the workload `shop/<workload>`.
    ///
    /// # Errors
    /// When the control plane does not.
    pub async fn token(&self, workload: &str) -> anyhow::Result<String> {
        let wanted = serde_json::json!({ "name": workload, "namespace": "shop" });
        let mut ask = Ask::get("/api/tokens", "localhost").header("content-type", "application/json");
        (ask.method, ask.body) = (http::Method::POST, wanted.to_string().into());
        let answer = client::once(self.api, &ask).await?;
        let made: Value = serde_json::from_slice(&answer.body).with_context(|| format!("{answer:?}"))?;
        let token = made["token"].as_str().with_context(|| format!("no token in {made}"))?;
        Ok(token.to_owned())
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
        let Self { app, directory, origin, trust, control, api: _ } = self;
        app.stop(std::future::pending()).await;
        Paused { directory, origin, trust, control }
    }
}

fn directory(objects: &str) -> anyhow::Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    let source = directory.path().join("source");
    std::fs::create_dir(&source)?;
    std::fs::write(source.join("objects.yaml"), objects)?;
    Ok(directory)
}

/// A control plane that is not there for a while.
pub struct Paused {
    directory: tempfile::TempDir,
    origin: Origin,
    trust: Trust,
    control: SocketAddr,
}

impl Paused {
    /// Starts it again; the API may be elsewhere.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn resume(self) -> anyhow::Result<Plane> {
        Plane::run(self.directory, self.origin, self.trust, &self.control.to_string()).await
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
        Self::run(directory, &format!("--control-plane=http://{control}"), workload, flags).await
    }

    /// As [`Sidecar::start`], with an identity: joins `plane`, which speaks mutual TLS.
    ///
    /// # Errors
    /// As [`Sidecar::start`], or when there is no token.
    pub async fn join(
        directory: &Path,
        plane: &Plane,
        workload: &str,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let token = format!("--join-token={}", plane.token(workload).await?);
        let flags: Vec<&str> = flags.iter().copied().chain([&*token]).collect();
        let control = format!("--control-plane=https://{}", plane.control);
        Self::run(directory, &control, workload, &flags).await
    }

    /// As [`Sidecar::start`], with the flag that says where the control plane is.
    ///
    /// # Errors
    /// As [`Sidecar::start`].
    pub async fn run(
        directory: &Path,
        control: &str,
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
            control.to_owned(),
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
