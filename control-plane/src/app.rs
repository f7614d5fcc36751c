//! The program: starts everything in order, and ends it in order.
//!
//! The only file that knows all others. Order of the start: read the sources (so that the first answer is
//! complete), replay the journal (so that the first view is), bind every listener, serve, and only then say
//! so. Order of the end: stop accepting, end streams, finish requests, close the journal last, because what
//! was acknowledged must be in it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use prometheus::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tracing::{error, info, warn};

use crate::api::{Api, Gate, HostPolicy};
use crate::auth::Auth;
use crate::config::{Config, Listen};
use crate::drain::{Drain, Signals};
use crate::ingest::{self, Ingest};
use crate::inspect::Configuration;
use crate::mesh::CurrentMesh;
use crate::sources::{Problems, Report, files};
use crate::world::Live;
use crate::xds::{self, Status};
use crate::{admin, listen, serve};

/// Where the program really listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// Sidecars: configuration and reports.
    pub control: Option<SocketAddr>,
    /// API and dashboard.
    pub api: Option<SocketAddr>,
    /// OTLP over gRPC from apps.
    pub otlp_grpc: Option<SocketAddr>,
    /// OTLP over HTTP from apps.
    pub otlp_http: Option<SocketAddr>,
    /// `/live`, `/ready`, `/metrics`.
    pub metrics: Option<SocketAddr>,
}

/// A running control plane.
pub struct App {
    bound: Bound,
    drain: Drain,
    ingest: Ingest,
    deadline: Duration,
}

/// Runs until a signal, then drains.
///
/// # Errors
/// When the start fails.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("listen for signals")?;
    let app = App::start(config).await?;
    signals.next().await;
    info!("shutting down");
    app.stop(signals.next()).await;
    Ok(())
}

impl App {
    /// Starts everything.
    ///
    /// # Errors
    /// When the configuration is not allowed, or something cannot be read or bound.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        // All fields by name: an option that nothing uses is a compiler warning.
        let Config {
            source,
            data_dir,
            insecure,
            control_listen,
            api_listen,
            otlp_grpc_listen,
            otlp_http_listen,
            metrics_listen,
            auth,
            ready_file,
            drain_deadline,
            log: _,
        } = config;
        ensure_allowed(insecure, &control_listen)?;

        let (live, drain, registry) = (Live::default(), Drain::default(), Registry::new());
        let problems = follow(source, &live, &drain).await?;
        let status = Status::default();
        let mesh = Arc::new(CurrentMesh::new(live.clone(), status.clone(), problems.clone()));
        let configuration = Configuration::new(live.clone(), status.clone(), problems.clone());
        let ingest = open_ingest(data_dir, &mesh, &registry).await?;
        admin::show(&registry, live.clone(), problems);

        let listeners = Listeners {
            control: listen::open(&control_listen)?,
            api: listen::open(&api_listen)?,
            otlp_grpc: listen::open(&otlp_grpc_listen)?,
            otlp_http: listen::open(&otlp_http_listen)?,
            metrics: listen::open(&metrics_listen)?,
        };
        let bound = listeners.bound()?;
        let auth = Auth::new(&auth, &registry)?;
        ensure_guarded(&auth, insecure, bound.api)?;

        background(&live, &ingest, &auth, &drain);
        let metrics = xds::Metrics::new(&registry);
        let xds = xds::Server::new(live, status, metrics, drain.token.clone(), drain.tasks.clone());
        let api = Api::new(ingest.clone(), mesh, configuration, registry.clone(), drain.token.clone());
        listeners.serve(xds, &ingest, (api, auth), &registry, &drain)?;
        announce(&bound, ready_file.as_deref())?;
        Ok(Self { bound, drain, ingest, deadline: drain_deadline })
    }

    /// Where it listens.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// Ends in order; at once when `hurry` completes.
    pub async fn stop(self, hurry: impl Future<Output = ()>) {
        self.drain.drain(self.deadline, hurry).await;
        let ingest = self.ingest;
        if let Err(error) = tokio::task::spawn_blocking(move || ingest.close()).await {
            error!(%error, "the journal was not closed in order");
        }
    }
}

/// The open sockets, before anything is served on them.
struct Listeners {
    control: Option<TcpListener>,
    api: Option<TcpListener>,
    otlp_grpc: Option<TcpListener>,
    otlp_http: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

impl Listeners {
    fn bound(&self) -> std::io::Result<Bound> {
        let at = |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        Ok(Bound {
            control: at(&self.control)?,
            api: at(&self.api)?,
            otlp_grpc: at(&self.otlp_grpc)?,
            otlp_http: at(&self.otlp_http)?,
            metrics: at(&self.metrics)?,
        })
    }

    /// Who is answered by whom.
    fn serve(
        self,
        xds: xds::Server,
        ingest: &Ingest,
        (api, auth): (Api, Auth),
        registry: &Registry,
        drain: &Drain,
    ) -> std::io::Result<()> {
        let metrics = serve::Metrics::new(registry);
        if let Some(listener) = self.control {
            let router = serve::grpc_server()
                .add_service(xds.service())
                .add_service(ingest.grpc_service())
                .add_service(ingest.grpc_logs_service());
            serve::grpc("control", listener, router, &metrics, drain);
        }
        if let Some(listener) = self.otlp_grpc {
            let router = serve::grpc_server().add_service(ingest.grpc_service());
            serve::grpc("otlp_grpc", listener, router, &metrics, drain);
        }
        if let Some(listener) = self.otlp_http {
            serve::http("otlp_http", listener, ingest.http_router(), &metrics, drain);
        }
        if let Some(listener) = self.api {
            let views = api.live();
            drain.tasks.spawn(async move { views.run().await });
            let hosts = HostPolicy::for_listener(listener.local_addr()?);
            let router = api.router(Gate { hosts, auth }).merge(admin::ready(drain.token.clone()));
            serve::http("api", listener, router, &metrics, drain);
        }
        if let Some(listener) = self.metrics {
            let refreshed = ingest.clone();
            let refresh = Arc::new(move || refreshed.refresh_metrics());
            let router = admin::router(registry.clone(), refresh, drain.token.clone());
            serve::http("metrics", listener, router, &metrics, drain);
        }
        Ok(())
    }
}

const NO_AUTHENTICATION: &str = "\
the API would be reachable from other machines, and it asks nobody who they are. Say who may come in (--api-tokens FILE; make \
a token with `weft auth token --name NAME --role viewer`), or bind it to loopback (--api-listen 127.0.0.1:8080, and reach it \
through `kubectl port-forward` or ssh), or accept that with --insecure";

fn ensure_guarded(auth: &Auth, insecure: bool, api: Option<SocketAddr>) -> anyhow::Result<()> {
    let Some(address) = api.filter(|address| !address.ip().is_loopback()) else { return Ok(()) };
    if auth.is_configured() {
        info!(%address, "the API speaks plain HTTP: let something in front of it speak TLS, or tokens can be read on the way");
        return Ok(());
    }
    ensure!(insecure, NO_AUTHENTICATION);
    warn!(%address, "the API asks nobody who they are, and this address is not loopback");
    Ok(())
}

fn ensure_allowed(insecure: bool, control: &Listen) -> anyhow::Result<()> {
    if !insecure && *control != Listen::Off {
        bail!(
            "sidecars would be served in plain text on {control}, without proof of who they are, and mutual TLS \
             (port {}) is not part of this version yet. Accept that with --insecure (WEFT_INSECURE=true) on a \
             network you trust, or serve no sidecars with --control-listen off",
            weft_wire::port::CONTROL_TLS
        );
    }
    Ok(())
}

async fn follow(source: Option<std::path::PathBuf>, live: &Live, drain: &Drain) -> anyhow::Result<Problems> {
    let Some(directory) = source else {
        info!("no source directory: only programs that register themselves are known");
        let (_, problems) = tokio::sync::watch::channel(Report::default());
        return Ok(problems);
    };
    let opened = live.clone();
    let (files, problems) = tokio::task::spawn_blocking(move || files::open(directory, &opened)).await??;
    let token = drain.token.clone();
    drain.tasks.spawn(async move { token.run_until_cancelled(files.run()).await });
    Ok(problems)
}

async fn open_ingest(
    data_dir: Option<std::path::PathBuf>,
    mesh: &Arc<CurrentMesh>,
    registry: &Registry,
) -> anyhow::Result<Ingest> {
    let (mesh, registry) = (Arc::clone(mesh), registry.clone());
    // Replaying an hour of reports takes a moment and reads a disk.
    let opening =
        tokio::task::spawn_blocking(move || Ingest::open(&ingest::Config { data_dir }, mesh, &registry));
    opening.await?.context("open the journal")
}

fn background(live: &Live, ingest: &Ingest, auth: &Auth, drain: &Drain) {
    let (token, followed) = (drain.token.clone(), auth.clone());
    drain.tasks.spawn(async move { followed.run(token).await });
    let (token, expiry) = (drain.token.clone(), live.clone());
    drain.tasks.spawn(async move { token.run_until_cancelled(expiry.expire()).await });
    let (token, maintained) = (drain.token.clone(), ingest.clone());
    drain.tasks.spawn(async move { maintained.run(token).await });
}

fn announce(bound: &Bound, ready_file: Option<&Path>) -> anyhow::Result<()> {
    let shown = |address: Option<SocketAddr>| address.map(tracing::field::display);
    info!(
        control = shown(bound.control),
        api = shown(bound.api),
        otlp_grpc = shown(bound.otlp_grpc),
        otlp_http = shown(bound.otlp_http),
        metrics = shown(bound.metrics),
        "serving"
    );
    let Some(path) = ready_file else { return Ok(()) };
    // Renamed into place, so that nobody reads half a file.
    let unfinished = path.with_extension("tmp");
    std::fs::write(&unfinished, serde_json::to_vec(bound)?)
        .and_then(|()| std::fs::rename(&unfinished, path))
        .with_context(|| format!("write ready file {}", path.display()))
}
