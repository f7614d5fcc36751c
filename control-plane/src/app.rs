//! The program: starts everything in order, and ends it in order.
//!
//! The only file that knows all others. Order of the start: read the sources (so that the first answer is
//! complete), replay the journal (so that the first view is), bind every listener, serve, and only then say
//! so. Order of the end: stop accepting, end streams, finish requests, close the journal last, because what
//! was acknowledged must be in it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use prometheus::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tracing::{error, info, warn};

use crate::admit::Admission;
use crate::api::{Api, Gate, HostPolicy};
use crate::audit::{Audit, Target};
use crate::auth::Auth;
use crate::ca::{self, Ca};
use crate::cluster::bundle::Bundles;
use crate::cluster::event::{self, Events};
use crate::cluster::leader::Leader;
use crate::cluster::secret::Secrets;
use crate::cluster::status::Writer;
use crate::cluster::{Cluster, lease};
use crate::config::{Config, Listen};
use crate::drain::{Drain, Signals};
use crate::ingest::{self, Guard, Ingest};
use crate::inject;
use crate::inject::reconcile::Latest;
use crate::inspect::Configuration;
use crate::lead::Lead;
use crate::mesh::CurrentMesh;
use crate::sources::kubernetes::{self, Connection};
use crate::sources::{Problems, Report, files};
use crate::world::Live;
use crate::xds::{self, Status};
use crate::{admin, listen, serve};

/// How long serving waits for the first look at the Lease. An API server that has just listed everything answers sooner.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// Where the program really listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// Sidecars in plain text: configuration and reports.
    pub control: Option<SocketAddr>,
    /// Sidecars by mutual TLS: certificates, configuration and reports.
    pub control_tls: Option<SocketAddr>,
    /// API and dashboard.
    pub api: Option<SocketAddr>,
    /// OTLP over gRPC from apps.
    pub otlp_grpc: Option<SocketAddr>,
    /// OTLP over HTTP from apps.
    pub otlp_http: Option<SocketAddr>,
    /// `/live`, `/ready`, `/metrics`.
    pub metrics: Option<SocketAddr>,
    /// The injector's webhook.
    pub inject: Option<SocketAddr>,
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
    // A start may wait for an API server, and be told not to.
    let app = tokio::select! {
        app = App::start(config) => app?,
        () = signals.next() => return Ok(()),
    };
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
        config.check()?;
        // All fields by name: an option that nothing uses is a compiler warning.
        let Config {
            source,
            kubernetes,
            kubeconfig,
            namespace,
            pod_name,
            data_dir,
            insecure,
            control_listen,
            control_tls_listen,
            trust_domain,
            ca_dir,
            leaf_lifetime,
            token_review,
            token_review_credentials,
            token_audience,
            api_listen,
            otlp_grpc_listen,
            otlp_http_listen,
            metrics_listen,
            inject_listen,
            inject: injecting,
            restart_uninjected,
            auth,
            ready_file,
            drain_deadline,
            log: _,
        } = config;
        // In plain text only by wish.
        let control_listen = if insecure { control_listen } else { Listen::Off };

        let (live, drain, registry) = (Live::default(), Drain::default(), Registry::new());
        let connection = match kubernetes {
            true => Some(Connection::find(kubeconfig.as_deref()).await.context("use --kubernetes")?),
            false => None,
        };
        let cluster = connection.as_ref().map(|connection| Cluster::new(connection, &namespace, pod_name));
        let problems = match &connection {
            Some(connection) => follow_cluster(connection, &live, &registry, &drain).await,
            None => follow(source, &live, &drain).await?,
        };
        let status = Status::default();
        let census = Latest::default();
        let mesh = CurrentMesh::new(live.clone(), status.clone(), problems.clone(), census.clone());
        let mesh = Arc::new(mesh);
        let configuration = Configuration::new(live.clone(), status.clone(), problems.clone());
        let credentials = token_review_credentials.clone();
        let events = cluster.as_ref().map(|cluster| tell(cluster, &registry, &drain));
        let heard = events.clone();
        let options = ca::Options {
            domain: trust_domain.clone(),
            leaf_life: leaf_lifetime,
            store: ca_store(cluster.as_ref(), data_dir.as_deref(), &drain).await?,
            brought: ca_dir,
            accounts: accounts(token_review, token_review_credentials, cluster.as_ref(), &token_audience)?,
            hears: heard
                .map(|events| Box::new(move |step, text: &str| events.stepped(step, text)) as ca::Hears),
        };
        let ca = (control_tls_listen != Listen::Off).then(|| open_ca(options, live.clone(), &registry));
        let ca = match ca {
            Some(opening) => Some(opening.await?),
            None => None,
        };
        let ingest = open_ingest(data_dir, &mesh, &registry).await?;
        admin::show(&registry, live.clone(), problems.clone());

        let mut listeners = Listeners {
            control: listen::open(&control_listen)?,
            control_tls: listen::open(&control_tls_listen)?,
            api: listen::open(&api_listen)?,
            otlp_grpc: listen::open(&otlp_grpc_listen)?,
            otlp_http: listen::open(&otlp_http_listen)?,
            metrics: listen::open(&metrics_listen)?,
            inject: cluster.as_ref().map(|_| listen::open(&inject_listen)).transpose()?.flatten(),
        };
        let bound = listeners.bound()?;
        let audit = open_audit(&auth.audit_log, &registry)?;
        let client = cluster.as_ref().map(|cluster| cluster.client.clone());
        let auth = Auth::new(auth, &credentials, client, insecure, &registry)?;
        ensure_guarded(&auth, insecure, bound.api)?;

        let (leads, lead) = lead(cluster.as_ref(), &registry, &drain);
        background(&live, &ingest, &auth, &drain);
        let metrics = xds::Metrics::new(&registry);
        let statuses = status.clone();
        if let Some(ca) = &ca {
            let (ca, status, token) = (ca.clone(), status.clone(), drain.token.clone());
            drain.tasks.spawn(ca.run(status, leads.clone(), token));
        }
        if let (Some(cluster), Some(events)) = (&cluster, events) {
            let (world, status, token) = (live.clone(), status.clone(), drain.token.clone());
            let writer = Writer::new(cluster, world, status, problems, events, &registry);
            drain.tasks.spawn(writer.run(leads.clone(), token));
            if let Some(ca) = &ca {
                let bundles = Bundles::new(cluster, live.clone(), ca.clone(), &registry);
                drain.tasks.spawn(bundles.run(leads.clone(), drain.token.clone()));
            }
        }
        let known = ca.clone();
        let bindings: crate::admit::Bound =
            Arc::new(move |id, workload| known.as_ref().is_some_and(|ca| ca.is_bound(id, workload)));
        let admission = Admission::new(bindings, &registry);
        let guard = Guard { admission: admission.clone(), live: live.clone() };
        let xds = xds::Server::new(
            live.clone(),
            status,
            admission,
            metrics,
            lead.clone(),
            drain.token.clone(),
            drain.tasks.clone(),
        );
        let api = Api::new(ingest.clone(), mesh, configuration, registry.clone(), drain.token.clone())
            .with_census(census.clone());
        let api = match &ca {
            Some(ca) => api.with_authority(ca.clone(), statuses),
            None => api,
        };
        let secure = ca.as_ref().map(|ca| (ca, guard));
        let metrics = serve::Metrics::new(&registry);
        // A sidecar that is taken before the first look could be of another's, and what it reports missing there.
        let kind = async {
            match (&cluster, &listeners.inject) {
                (Some(cluster), Some(_)) => {
                    Some(inject::run::settings(&cluster.client, &injecting, &trust_domain).await)
                }
                _ => None,
            }
        };
        let (settings, looked) = tokio::join!(kind, tokio::time::timeout(FIRST_LOOK, lead.looked()));
        if looked.is_err() {
            warn!(
                "nobody knows who leads: the Lease could not be read within {FIRST_LOOK:?}; sidecars are served until it is"
            );
        }
        if let (Some(cluster), Some(settings), Some(listener)) = (&cluster, settings, listeners.inject.take())
        {
            let program = inject::run::Program {
                client: cluster.client.clone(),
                namespace: &cluster.namespace,
                pod: cluster.pod.as_deref(),
                leads,
                live: live.clone(),
                latest: census.clone(),
                restart_all: restart_uninjected,
                metrics: &metrics,
                registry: &registry,
                drain: &drain,
            };
            inject::run::start(program, settings, listener);
        }
        listeners.serve(xds, secure, (&ingest, &lead), (api, auth, audit), (&registry, &metrics), &drain)?;
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
    control_tls: Option<TcpListener>,
    api: Option<TcpListener>,
    otlp_grpc: Option<TcpListener>,
    otlp_http: Option<TcpListener>,
    metrics: Option<TcpListener>,
    inject: Option<TcpListener>,
}

impl Listeners {
    fn bound(&self) -> std::io::Result<Bound> {
        let at = |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        Ok(Bound {
            control: at(&self.control)?,
            control_tls: at(&self.control_tls)?,
            api: at(&self.api)?,
            otlp_grpc: at(&self.otlp_grpc)?,
            otlp_http: at(&self.otlp_http)?,
            metrics: at(&self.metrics)?,
            inject: at(&self.inject)?,
        })
    }

    /// Who is answered by whom.
    fn serve(
        self,
        xds: xds::Server,
        secure: Option<(&Ca, Guard)>,
        (ingest, lead): (&Ingest, &Lead),
        (api, auth, audit): (Api, Auth, Audit),
        (registry, metrics): (&Registry, &serve::Metrics),
        drain: &Drain,
    ) -> std::io::Result<()> {
        if let Some(listener) = self.control {
            let name = "control";
            let router = serve::grpc_server()
                .add_service(metrics.led(name, lead, xds.clone().service()))
                .add_service(metrics.led(name, lead, ingest.grpc_service()))
                .add_service(metrics.led(name, lead, ingest.grpc_logs_service()));
            serve::grpc(name, listener, router, lead, metrics, drain);
        }
        if let (Some(listener), Some((ca, guard))) = (self.control_tls, secure) {
            let name = "control_tls";
            let router = serve::grpc_server()
                .add_service(metrics.led(name, lead, ca.service()))
                .add_service(metrics.led(name, lead, xds.service()))
                .add_service(metrics.led(name, lead, ingest.guarded_grpc_service(guard.clone())))
                .add_service(metrics.led(name, lead, ingest.guarded_grpc_logs_service(guard)));
            serve::grpc_tls(name, listener, ca.listener().clone(), router, lead, metrics, drain);
        }
        if let Some(listener) = self.otlp_grpc {
            let name = "otlp_grpc";
            let router = serve::grpc_server().add_service(metrics.led(name, lead, ingest.grpc_service()));
            serve::grpc(name, listener, router, lead, metrics, drain);
        }
        if let Some(listener) = self.otlp_http {
            let router = ingest.http_router(lead.clone(), metrics.requests_sent_away("otlp_http"));
            serve::http("otlp_http", listener, router, metrics, drain);
        }
        if let Some(listener) = self.api {
            let views = api.live();
            drain.tasks.spawn(async move { views.run().await });
            let hosts = HostPolicy::for_listener(listener.local_addr()?);
            let router = api.router(Gate { hosts, auth, audit }).merge(admin::ready(drain.token.clone()));
            serve::http("api", listener, router, metrics, drain);
        }
        if let Some(listener) = self.metrics {
            let refreshed = ingest.clone();
            let refresh = Arc::new(move || refreshed.refresh_metrics());
            let router = admin::router(registry.clone(), refresh, drain.token.clone());
            serve::http("metrics", listener, router, metrics, drain);
        }
        Ok(())
    }
}

const NO_AUTHENTICATION: &str = "\
the API would be reachable from other machines, and it asks nobody who they are. Say who may come in (--api-tokens FILE; make \
a token with `weft auth token --name NAME --role viewer`), or bind it to loopback (--api-listen 127.0.0.1:8080, and reach it \
through `kubectl port-forward` or ssh), or accept that with --insecure";

fn open_audit(target: &Target, registry: &Registry) -> anyhow::Result<Audit> {
    let opened = Audit::open(target.clone(), registry);
    opened.with_context(|| format!("write the audit log {} (--audit-log)", target.shown()))
}

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

/// Where people hear of things.
fn tell(cluster: &Cluster, registry: &Registry, drain: &Drain) -> Events {
    let (events, publisher) = event::events(cluster, registry);
    drain.tasks.spawn(publisher.run(drain.token.clone()));
    events
}

/// Stands for election where there may be others.
fn lead(cluster: Option<&Cluster>, registry: &Registry, drain: &Drain) -> (ca::Leads, Lead) {
    let Some(cluster) = cluster else { return (ca::alone(), Lead::alone()) };
    let (leader, leads, lead) =
        Leader::new(cluster, &cluster.identity(), lease::Settings::default(), registry);
    drain.tasks.spawn(leader.run(drain.token.clone()));
    (leads, lead)
}

/// Who knows service account tokens.
fn accounts(
    server: Option<String>,
    credentials: std::path::PathBuf,
    cluster: Option<&Cluster>,
    audience: &str,
) -> anyhow::Result<Option<Arc<dyn ca::proof::Proof>>> {
    let reviewer = match (server, cluster) {
        (Some(server), _) => ca::Reviewer::At(server, credentials),
        (None, Some(cluster)) => ca::Reviewer::Cluster(cluster.client.clone()),
        (None, None) => return Ok(None),
    };
    let reviews = ca::TokenReviews::new(reviewer, audience).context("use --token-review")?;
    Ok(Some(Arc::new(reviews)))
}

/// Where the authority keeps its keys.
async fn ca_store(
    cluster: Option<&Cluster>,
    data_dir: Option<&Path>,
    drain: &Drain,
) -> anyhow::Result<Option<Arc<dyn ca::store::Store>>> {
    if let Some(cluster) = cluster {
        let secrets = Secrets::new(cluster);
        secrets.follow(drain);
        return Ok(Some(Arc::new(secrets)));
    }
    let Some(directory) = data_dir.map(|directory| directory.join("ca")) else { return Ok(None) };
    let shown = directory.display().to_string();
    let opened = tokio::task::spawn_blocking(move || ca::Disk::open(directory)).await?;
    Ok(Some(Arc::new(opened.with_context(|| format!("use {shown}"))?)))
}

async fn open_ca(options: ca::Options, live: Live, registry: &Registry) -> anyhow::Result<Ca> {
    let opening = Ca::open(options, live, registry, SystemTime::now());
    opening.await.context("open the certificate authority")
}

async fn follow_cluster(to: &Connection, live: &Live, registry: &Registry, drain: &Drain) -> Problems {
    let (source, problems) = kubernetes::open(to, live, registry).await;
    let token = drain.token.clone();
    drain.tasks.spawn(async move { token.run_until_cancelled(source.run()).await });
    problems
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
        control_tls = shown(bound.control_tls),
        api = shown(bound.api),
        otlp_grpc = shown(bound.otlp_grpc),
        otlp_http = shown(bound.otlp_http),
        metrics = shown(bound.metrics),
        inject = shown(bound.inject),
        "serving"
    );
    let Some(path) = ready_file else { return Ok(()) };
    // Renamed into place, so that nobody reads half a file.
    let unfinished = path.with_extension("tmp");
    std::fs::write(&unfinished, serde_json::to_vec(bound)?)
        .and_then(|()| std::fs::rename(&unfinished, path))
        .with_context(|| format!("write ready file {}", path.display()))
}
