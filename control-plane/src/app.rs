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
use axum::Router;
use prometheus::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tracing::{error, info, warn};

use crate::api::{Api, HostPolicy};
use crate::config::{Config, Listen};
use crate::drain::{Drain, Signals};
use crate::ingest::{self, Ingest};
use crate::mesh::CurrentMesh;
use crate::sources::{Problems, Report, files};
use crate::world::Live;
use crate::xds::{self, Status};
use crate::{admin, listen};

/// A connection that is silent for this long is asked whether it is still there …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and given up after this: a sidecar whose machine died is lost after 15 s at most.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams on one connection: a sidecar has one for configuration and one per report in flight.
const STREAMS_PER_CONNECTION: u32 = 64;

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
            ready_file,
            drain_deadline,
            log: _,
        } = config;
        ensure_allowed(insecure, &control_listen)?;

        let (live, drain, registry) = (Live::default(), Drain::default(), Registry::new());
        let problems = follow(source, &live, &drain).await?;
        let status = Status::default();
        let mesh = Arc::new(CurrentMesh::new(live.clone(), status.clone(), problems));
        let ingest = open_ingest(data_dir, &mesh, &registry).await?;

        let control = listen::open(&control_listen)?;
        let api = listen::open(&api_listen)?;
        let otlp_grpc = listen::open(&otlp_grpc_listen)?;
        let otlp_http = listen::open(&otlp_http_listen)?;
        let metrics = listen::open(&metrics_listen)?;
        let at = |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        let bound = Bound {
            control: at(&control)?,
            api: at(&api)?,
            otlp_grpc: at(&otlp_grpc)?,
            otlp_http: at(&otlp_http)?,
            metrics: at(&metrics)?,
        };
        let reachable = bound.api.filter(|address| !address.ip().is_loopback());
        if let Some(address) = reachable {
            ensure!(insecure, NO_AUTHENTICATION);
            warn!(%address, "the API asks nobody for a password, and this address is not loopback");
        }

        background(&live, &ingest, &drain);
        if let Some(listener) = control {
            let metrics = xds::Metrics::new(&registry);
            let server =
                xds::Server::new(live, status, metrics, drain.token.clone(), drain.tasks.clone()).service();
            let router = grpc().add_service(server).add_service(ingest.grpc_service());
            serve_grpc("control", listener, router, &drain);
        }
        if let Some(listener) = otlp_grpc {
            serve_grpc("otlp_grpc", listener, grpc().add_service(ingest.grpc_service()), &drain);
        }
        if let Some(listener) = otlp_http {
            serve_http("otlp_http", listener, ingest.http_router(), &drain);
        }
        if let (Some(listener), Some(address)) = (api, bound.api) {
            let api = Api::new(ingest.clone(), mesh, registry.clone(), drain.token.clone());
            let views = api.live();
            drain.tasks.spawn(async move { views.run().await });
            let router =
                api.router(HostPolicy::for_listener(address)).merge(admin::ready(drain.token.clone()));
            serve_http("api", listener, router, &drain);
        }
        if let Some(listener) = metrics {
            let refreshed = ingest.clone();
            let refresh = Arc::new(move || refreshed.refresh_metrics());
            serve_http("metrics", listener, admin::router(registry, refresh, drain.token.clone()), &drain);
        }
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

const NO_AUTHENTICATION: &str = "\
the API would be reachable from other machines, and it asks nobody for a password. Bind it to loopback \
(--api-listen 127.0.0.1:8080, and reach it through `kubectl port-forward` or ssh), or accept that with --insecure";

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

fn background(live: &Live, ingest: &Ingest, drain: &Drain) {
    let (token, expiry) = (drain.token.clone(), live.clone());
    drain.tasks.spawn(async move { token.run_until_cancelled(expiry.expire()).await });
    let (token, maintained) = (drain.token.clone(), ingest.clone());
    drain.tasks.spawn(async move { maintained.run(token).await });
}

fn grpc() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
}

fn serve_grpc(
    name: &'static str,
    listener: TcpListener,
    router: tonic::transport::server::Router,
    drain: &Drain,
) {
    let incoming =
        TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE_INTERVAL));
    let token = drain.token.clone();
    drain.tasks.spawn(async move {
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, token.cancelled()).await {
            error!(listener = name, error = &error as &dyn std::error::Error, "listener ended");
        }
    });
}

fn serve_http(name: &'static str, listener: TcpListener, router: Router, drain: &Drain) {
    let token = drain.token.clone();
    drain.tasks.spawn(async move {
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let served = axum::serve(listener, service).with_graceful_shutdown(token.cancelled_owned());
        if let Err(error) = served.await {
            error!(listener = name, %error, "listener ended");
        }
    });
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
