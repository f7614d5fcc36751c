//! The sidecar from start to end, on one page; the only file that knows all others.
//!
//! Boot order: log → descriptor limit → listening sockets → telemetry → identity → control plane → workers → admin →
//! ready. Then it waits for a signal and drains. Threads: one for each worker, and this one, which runs
//! everything that is not traffic, so that a scrape never delays a request. Invariant: a worker that ends
//! before its time ends the process; a sidecar that serves with fewer workers than it says helps nobody.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use weft_wire::annotation::Sidecar;
use weft_wire::node::{NodeMetadata, Registration};

use crate::accept::{self, Bound, Listeners};
use crate::admin::{self, Admin};
use crate::balance::Circuits;
use crate::check;
use crate::config::Config;
use crate::connect::{self, ConnectOptions, Dialer};
use crate::drain::{Phase, Trigger, Watch};
use crate::identity::{Identity, Show};
use crate::probe::Asker;
use crate::record::{self, Telemetry};
use crate::report;
use crate::tls::Mesh;
use crate::worker::{self, Common, Worker};
use crate::xds::{self, Directory};

mod limits;
mod log;

pub use log::LogLevel;

/// A worker's stack. What polling one request through hyper needs is a small part of it, and only touched pages
/// count.
const STACK_SIZE: usize = 1024 * 1024;

/// Threads that tokio may start for what blocks, which is writing the access log: one at a time.
const BLOCKING_THREADS_MAX: usize = 1;

/// How long such a thread stays when it is idle.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// How long the control plane may take to accept a connection.
const CONTROL_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long leaving the control plane in an orderly way may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Runs the sidecar until a signal and its drain have ended. The process is its own: it sets up the log and listens
/// for signals.
///
/// # Errors
/// When it cannot start, or a worker broke.
pub fn run(config: Config) -> anyhow::Result<()> {
    let level = log::install(&config.log)?;
    limits::refuse_huge_pages();
    start(config, level, || Ok(Owner::Operator(Signals::new()?)))
}

/// Runs a sidecar on a thread of a program that has its own log and signals, beside others of its kind. It drains
/// when `end`'s sender speaks or is dropped; where it listens is in `config.ready_file`.
///
/// # Errors
/// As [`run`].
pub fn run_embedded(config: Config, end: oneshot::Receiver<()>) -> anyhow::Result<()> {
    start(config, LogLevel::foreign(), || Ok(Owner::Program(Some(end))))
}

fn start(
    config: Config,
    level: LogLevel,
    owner: impl FnOnce() -> anyhow::Result<Owner>,
) -> anyhow::Result<()> {
    let descriptors = limits::raise_descriptors();
    let connections_max = limits::connections_per_worker(&config, descriptors);
    if let Some(mark) = config.socket_mark {
        connect::try_mark(mark).with_context(|| {
            format!("WEFT_SOCKET_MARK={mark:#x} cannot be set; grant CAP_NET_ADMIN, or run as a uid of its own instead")
        })?;
    }
    let sockets = accept::bind(&config)?;
    let config = Arc::new(config);
    let telemetry = Telemetry::new(config.record.clone(), speaks_for(&config));
    runtime_builder().build().context("cannot start the runtime")?.block_on(async {
        // Signals belong to a runtime, so they are asked for inside of it.
        serve(config, sockets, telemetry, connections_max, level, owner()?).await
    })
}

async fn serve(
    config: Arc<Config>,
    sockets: accept::Sockets,
    telemetry: Arc<Telemetry>,
    connections_max: usize,
    level: LogLevel,
    mut owner: Owner,
) -> anyhow::Result<()> {
    let accept::Sockets { bound, workers, metrics, admin } = sockets;
    let bound = Arc::new(bound);
    let trigger = Trigger::default();

    // Who this sidecar is.
    let identity = config.enrolment.clone().map(Identity::new);
    let mesh = Mesh::new(identity.as_ref().map(|identity| identity.slot()).unwrap_or_default());
    let (forget, forgetting) = oneshot::channel::<()>();
    let mut enrolling = None;
    if let (Some(identity), Some(address)) = (&identity, &config.control_plane) {
        telemetry.registry().register(Box::new(identity.metrics())).context("metrics of the same name")?;
        let task = identity.enrol(address.clone(), dialer(&config, None));
        enrolling = Some(tokio::spawn(task.run(async { drop(forgetting.await) })));
    }

    // What the control plane says.
    let (node, following) = watch::channel(describe(&config, &bound));
    let (stop, stopped) = oneshot::channel::<()>();
    let (directory, asking) = match &config.control_plane {
        None => (Directory::standalone(), None),
        Some(address) => {
            let (directory, task) = xds::spawn(xds::Options {
                control_plane: address.clone(),
                instance: config.identity.instance.to_string(),
                node: node.borrow().clone(),
                listeners_max: xds::LISTENERS_MAX_DEFAULT,
                identity: identity.clone(),
                runtime: config.identity.layer().filter(|_| is_classic(&config)),
            });
            let asking = task
                .follow(following)
                .dial(dialer(&config, identity.as_ref()))
                .run(async { drop(stopped.await) });
            (directory, Some(tokio::spawn(asking)))
        }
    };
    telemetry.registry().register(Box::new(directory.metrics())).context("metrics of the same name")?;

    let circuits = Circuits::new();
    telemetry.registry().register(Box::new(circuits.metrics())).context("metrics of the same name")?;

    // What the control plane, and whoever reads logs, is told.
    let (flush, flushing) = oneshot::channel::<()>();
    let reporting = tokio::spawn(report::run(
        Arc::clone(&telemetry),
        Arc::clone(&circuits),
        config
            .control_plane
            .clone()
            .map(|address| report::Link::new(address, dialer(&config, identity.as_ref()), identity.clone())),
        async { drop(flushing.await) },
    ));
    let (rest_checks, no_more_checks) = oneshot::channel::<()>();
    let checking = tokio::spawn(check::run(
        Arc::clone(&circuits),
        Arc::clone(&telemetry),
        Arc::clone(&mesh),
        config.socket_mark,
        async { drop(no_more_checks.await) },
    ));
    let (close_log, closing_log) = oneshot::channel::<()>();
    let log = Arc::clone(&telemetry);
    let logging = tokio::spawn(async move { log.write_access_log(async { drop(closing_log.await) }).await });

    // What time changes in circuits.
    let (rest, resting) = oneshot::channel::<()>();
    let tending = tokio::spawn(Arc::clone(&circuits).tend(async { drop(resting.await) }));

    // Traffic.
    let (event, mut events) = mpsc::channel(2 * workers.len().max(1));
    let common = Common {
        config: Arc::clone(&config),
        bound: Arc::clone(&bound),
        directory: Arc::clone(&directory),
        circuits: Arc::clone(&circuits),
        mesh,
    };
    for (index, listeners) in workers.into_iter().enumerate() {
        let seed = Seed {
            common: common.clone(),
            telemetry: Arc::clone(&telemetry),
            phase: trigger.subscribe(),
            connections_max,
            event: event.clone(),
        };
        thread::Builder::new()
            .name(format!("worker-{index}"))
            .stack_size(STACK_SIZE)
            .spawn(move || seed.grow(listeners))
            .context("cannot start a worker thread")?;
    }
    drop(event);

    // Those who watch.
    let admin_state = Arc::new(Admin {
        config: Arc::clone(&config),
        bound: Arc::clone(&bound),
        directory: Arc::clone(&directory),
        circuits: Arc::clone(&circuits),
        identity: identity.clone(),
        probes: Asker {
            probes: Arc::clone(&config.probes),
            // Never empty.
            address: config.identity.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            mark: config.socket_mark,
        },
        telemetry: Arc::clone(&telemetry),
        trigger: trigger.clone(),
        level,
    });
    for (listener, face) in [(metrics, admin::Face::Metrics), (admin, admin::Face::Admin)] {
        if let Some(listener) = listener {
            tokio::spawn(admin::serve(Arc::clone(&admin_state), listener, face)?);
        }
    }

    announce(&config, &bound)?;
    // Nobody tells a native sidecar that its app has ended but the kubelet, by a signal, and then it has.
    let app = App { directory: Arc::clone(&directory), is_classic: is_classic(&config) };
    until_draining(&trigger, &mut owner, &mut events, &app).await?;
    // No longer an endpoint of anything, from now on and not only when the process is gone.
    node.send_modify(|node| node.registrations.clear());
    if until_drained(&config, &trigger, &mut owner, &mut events, &app).await? == Patience::Spent {
        return Ok(());
    }
    // The last numbers first, while the control plane still knows who sends them.
    drop((rest, rest_checks, flush, close_log));
    let ends = async { drop(tokio::join!(tending, checking, reporting, logging)) };
    drop(tokio::time::timeout(GOODBYE, ends).await);
    drop((stop, forget));
    for task in [asking, enrolling].into_iter().flatten() {
        drop(tokio::time::timeout(GOODBYE, task).await);
    }
    tracing::info!("drained");
    Ok(())
}

/// Opens connections to the control plane, as somebody if there is an identity.
fn dialer(config: &Config, identity: Option<&Arc<Identity>>) -> Dialer {
    let dialer = Dialer::new(ConnectOptions { timeout: CONTROL_CONNECT_TIMEOUT, mark: config.socket_mark });
    match identity {
        Some(identity) => identity.secure(dialer, Show::Certificate),
        None => dialer,
    }
}

fn is_classic(config: &Config) -> bool {
    config.sidecar == Sidecar::Classic
}

/// What is known of the app beside a sidecar.
struct App {
    directory: Arc<Directory>,
    is_classic: bool,
}

impl App {
    /// Completes when a classic sidecar's app has ended; a native one's has when it is told to end.
    async fn ended(&self) {
        if self.is_classic {
            self.directory.app_ended().await;
        } else {
            std::future::pending().await
        }
    }
}

/// Waits for a signal, `POST /drain`, or the end of a classic sidecar's app.
async fn until_draining(
    trigger: &Trigger,
    owner: &mut Owner,
    events: &mut mpsc::Receiver<worker::Event>,
    app: &App,
) -> anyhow::Result<()> {
    let mut phase = trigger.subscribe();
    loop {
        tokio::select! {
            name = owner.asks_to_end() => {
                tracing::info!(signal = name, "draining");
                trigger.advance(Phase::Draining);
            }
            turned = phase.wait_for(|phase| *phase != Phase::Serving) => if turned.is_ok() { return Ok(()) },
            () = app.ended() => {
                tracing::info!("the app has ended: draining");
                trigger.advance(Phase::Draining);
                return Ok(());
            }
            event = events.recv() => broken(event)?,
        }
    }
}

/// Whether whoever asked for the end still has time for an orderly goodbye.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    Left,
    Spent,
}

/// Waits for the last connection, the deadline, or a second signal; then lets go. A classic sidecar got its signal together
/// with its app, whose way out it is: it also waits until the app has ended, however quiet it is.
async fn until_drained(
    config: &Config,
    trigger: &Trigger,
    owner: &mut Owner,
    events: &mut mpsc::Receiver<worker::Event>,
    app: &App,
) -> anyhow::Result<Patience> {
    let mut patience = Patience::Left;
    let deadline = tokio::time::sleep(config.drain_deadline);
    tokio::pin!(deadline);
    let mut busy = config.workers.get();
    let mut app_runs = app.is_classic;
    while busy > 0 || app_runs {
        tokio::select! {
            () = app.ended(), if app_runs => app_runs = false,
            event = events.recv() => match event {
                Some(worker::Event::Idle) => busy -= 1,
                other => broken(other)?,
            },
            () = &mut deadline => {
                if busy > 0 {
                    tracing::warn!(deadline = ?config.drain_deadline, "drain deadline passed with connections still open");
                } else {
                    tracing::info!(deadline = ?config.drain_deadline, "drain deadline passed; nobody said that the app has ended");
                }
                break;
            }
            name = owner.asks_to_end() => {
                tracing::warn!(signal = name, "second signal: not waiting any longer");
                patience = Patience::Spent;
                break;
            }
        }
    }
    trigger.advance(Phase::Expired);
    // Workers let go of what is left and end; that takes no time that depends on anybody else.
    while events.recv().await.is_some() {}
    Ok(patience)
}

/// What the sidecar says of itself to the control plane.
fn describe(config: &Config, bound: &Bound) -> NodeMetadata {
    let registered = |inbound| {
        config.register.iter().map(move |register| Registration {
            service: register.service.clone(),
            address: reachable(inbound, &config.identity.addresses),
            protocol: register.protocol,
        })
    };
    NodeMetadata {
        workload: config.identity.workload.clone(),
        version: config.identity.version.as_deref().map(str::to_owned),
        pod: config.identity.pod.as_deref().map(str::to_owned),
        zone: config.identity.zone.as_deref().map(str::to_owned),
        addresses: config.identity.addresses.clone(),
        registrations: bound.inbound.into_iter().flat_map(registered).collect(),
    }
}

/// Where others reach a listener: its address, or the pod's when it listens on all.
fn reachable(listener: SocketAddr, addresses: &[IpAddr]) -> SocketAddr {
    // A listener on all IPv6 addresses takes IPv4 as well.
    match addresses.iter().find(|ip| listener.is_ipv6() || ip.is_ipv4()) {
        Some(ip) if listener.ip().is_unspecified() => SocketAddr::new(*ip, listener.port()),
        _ => listener,
    }
}

fn broken(event: Option<worker::Event>) -> anyhow::Result<()> {
    match event {
        Some(worker::Event::Failed(error)) => Err(error).context("a worker failed"),
        // Idle reports come only while draining; anything else means that a thread died.
        Some(worker::Event::Idle) => Ok(()),
        None => anyhow::bail!("the workers ended before their time"),
    }
}

/// What a worker thread needs to build its own, thread-bound parts.
struct Seed {
    common: Common,
    telemetry: Arc<Telemetry>,
    phase: watch::Receiver<Phase>,
    connections_max: usize,
    event: mpsc::Sender<worker::Event>,
}

impl Seed {
    /// The whole life of a worker thread.
    fn grow(self, listeners: Listeners) {
        let Self { common, telemetry, phase, connections_max, event } = self;
        let failed = event.clone();
        let outcome = runtime_builder().build_local(tokio::runtime::LocalOptions::default()).map(|runtime| {
            let drain = Watch::default();
            runtime.block_on(async {
                tokio::task::spawn_local(drain.clone().follow(phase));
                let shard = telemetry.shard();
                let worker = Worker::new(common, shard, drain, connections_max);
                worker::run(worker, listeners.0, event).await
            })
        });
        if let Ok(Err(error)) | Err(error) = outcome {
            // When the receiver is gone, the process is ending already.
            drop(failed.blocking_send(worker::Event::Failed(error)));
        }
    }
}

fn runtime_builder() -> tokio::runtime::Builder {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .thread_stack_size(STACK_SIZE);
    builder
}

fn speaks_for(config: &Config) -> record::Identity {
    let crate::config::Identity { workload, version, pod, instance, pod_uid: _, zone: _, addresses: _ } =
        config.identity.clone();
    record::Identity { workload, version, pod, instance }
}

/// Says where it listens: in the log, and in the file that whoever started it waits for.
fn announce(config: &Config, bound: &Bound) -> anyhow::Result<()> {
    tracing::info!(
        workload = %config.identity.workload,
        instance = %config.identity.instance,
        control_plane = config.control_plane.as_ref().map(tracing::field::display),
        inbound = bound.inbound.map(tracing::field::display),
        outbound = bound.outbound.map(tracing::field::display),
        forwards = ?bound.forwards,
        metrics = bound.metrics.map(tracing::field::display),
        admin = bound.admin.map(tracing::field::display),
        workers = config.workers,
        "serving"
    );
    let Some(path) = &config.ready_file else { return Ok(()) };
    // Renamed into place, so that nobody reads half a file.
    let unfinished = path.with_extension("tmp");
    std::fs::write(&unfinished, serde_json::to_vec(bound)?)
        .and_then(|()| std::fs::rename(&unfinished, path))
        .with_context(|| format!("WEFT_READY_FILE: cannot write {}", path.display()))
}

/// Who ends the sidecar.
enum Owner {
    /// A person or an orchestrator, by signals.
    Operator(Signals),
    /// The program around it, once.
    Program(Option<oneshot::Receiver<()>>),
}

impl Owner {
    /// Each time it asks; what it said, for the log.
    async fn asks_to_end(&mut self) -> &'static str {
        match self {
            Self::Operator(signals) => signals.next().await,
            Self::Program(end) => {
                let Some(receiver) = end else { return std::future::pending().await };
                // Spoken or dropped is the same wish. Kept until then, so that this future can be dropped and made anew.
                drop(receiver.await);
                *end = None;
                "owner"
            }
        }
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_reached_at_the_pods() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let pod = ["fd00::7", "10.0.0.7"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(reachable(address("[::]:15006"), &pod), address("[fd00::7]:15006"));
        assert_eq!(reachable(address("0.0.0.0:15006"), &pod), address("10.0.0.7:15006"));
        assert_eq!(reachable(address("127.0.0.1:4000"), &pod), address("127.0.0.1:4000"));
    }
}
