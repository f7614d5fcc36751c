//! The sidecar's settings, parsed once.
//!
//! In: flags and `WEFT_…` environment variables ([`Arguments`], what clap reads). Out: a [`Config`] whose
//! values are right by construction; after that nobody reads the environment. Invariant: an error names the
//! variable, the rejected text and what to write instead. Surprise: addresses here may hold port 0; what was
//! really bound is in [`accept::Bound`](crate::accept::Bound). Non-goal: settings that the control plane sends.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use weft_wire::annotation::Sidecar;
use weft_wire::xds::{Destination, Protocol, RuntimeLayer};
use weft_wire::{ServicePort, WorkloadId};

use self::parse::{
    entries, parse_address, parse_admin, parse_control_plane, parse_default_access, parse_duration,
    parse_inbound_protocols, parse_listen, parse_mark, parse_number, parse_outbound_forward, parse_pod_ips,
    parse_probes, parse_register, parse_sidecar, parse_workers, parse_workload,
};
use crate::probe::Probes;
use crate::record;

mod enrolment;
mod parse;

pub use enrolment::{Enrolment, Proof, Secret};
pub(crate) use parse::duration;

/// Workers by default: a sidecar shares its pod's CPUs with the app, and one worker saturates a core at tens of
/// thousands of requests per second.
const WORKERS_DEFAULT_MAX: usize = 2;

/// Workers at most: each costs a thread, a metric shard and its own upstream connections.
const WORKERS_MAX: usize = 64;

/// Explicit outbound listeners at most: each is a socket per worker.
const OUTBOUND_FORWARDS_MAX: usize = 64;

/// Flags and environment as clap reads them. Everything is text here; [`Config::try_from`] gives it meaning.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The control plane's address: `https://HOST:15012`, or `http://HOST:15010` if it is insecure. Without
    /// it every connection passes through to where it was going, still measured
    #[arg(long, env = "WEFT_CONTROL_PLANE", value_name = "URL")]
    pub control_plane: Option<String>,
    /// What runs here: the Deployment's, StatefulSet's or program's name
    #[arg(long, env = "WEFT_WORKLOAD", value_name = "NAME")]
    pub workload: Option<String>,
    /// The workload's namespace
    #[arg(long, env = "WEFT_NAMESPACE", value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// The workload's version
    #[arg(long, env = "WEFT_VERSION", value_name = "VERSION")]
    pub workload_version: Option<String>,
    /// The pod's name
    #[arg(long, env = "WEFT_POD", value_name = "NAME")]
    pub pod: Option<String>,
    /// The pod's uid, which no other pod of its name has
    #[arg(long, env = "WEFT_POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,
    /// The zone it runs in, as `topology.kubernetes.io/zone` says it
    #[arg(long, env = "WEFT_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// Names this start of this sidecar; a random UUID by default
    #[arg(long, env = "WEFT_INSTANCE", value_name = "ID")]
    pub instance: Option<String>,
    /// The pod's addresses, comma separated; by default the host's addresses that are not loopback
    #[arg(long, env = "WEFT_POD_IPS", value_name = "IP,…")]
    pub pod_ips: Option<String>,

    /// Where redirected inbound connections arrive, or `off`
    #[arg(long, env = "WEFT_INBOUND_LISTEN", value_name = "ADDRESS", default_value = "[::]:15006")]
    pub inbound_listen: String,
    /// Where redirected outbound connections arrive, or `off`. A connection that was not redirected finds an
    /// HTTP forward proxy here
    #[arg(long, env = "WEFT_OUTBOUND_LISTEN", value_name = "ADDRESS", default_value = "[::]:15001")]
    pub outbound_listen: String,
    /// Where /live, /ready and /metrics are served, or `off`
    #[arg(long, env = "WEFT_METRICS_LISTEN", value_name = "ADDRESS", default_value = "[::]:15020")]
    pub metrics_listen: String,
    /// Where the admin interface is served (loopback only), or `off`
    #[arg(long, env = "WEFT_ADMIN_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    pub admin_listen: String,
    /// The app's address, for inbound connections that come to the inbound listener itself
    #[arg(long, env = "WEFT_INBOUND_FORWARD", value_name = "ADDRESS")]
    pub inbound_forward: Option<String>,
    /// Extra outbound listeners, each standing for one destination: 127.0.0.1:9001=orders.shop:8080
    #[arg(long, env = "WEFT_OUTBOUND_FORWARD", value_name = "LISTEN=AUTHORITY,…")]
    pub outbound_forward: Option<String>,
    /// Services that the app is an endpoint of while this sidecar lives: orders.shop:8080/http
    #[arg(long, env = "WEFT_REGISTER", value_name = "SERVICE.NAMESPACE:PORT[/PROTOCOL],…")]
    pub register: Option<String>,

    /// Worker threads; by default the CPUs this process may use, at most 2
    #[arg(long, env = "WEFT_WORKERS", value_name = "N")]
    pub workers: Option<String>,
    /// Mark for the sidecar's own upstream sockets, where interception excludes a mark and not a uid
    #[arg(long, env = "WEFT_SOCKET_MARK", value_name = "N")]
    pub socket_mark: Option<String>,
    /// Connections at most, for each direction; by default what the file descriptor limit carries
    #[arg(long, env = "WEFT_CONNECTIONS_MAX", value_name = "N")]
    pub connections_max: Option<String>,
    /// Log filter: off, error, warn, info, debug, trace, or target=level,…
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How long connections may take to finish after SIGTERM
    #[arg(long, env = "WEFT_DRAIN_DEADLINE", value_name = "DURATION", default_value = "30s")]
    pub drain_deadline: String,
    /// How long bytes that may or may not be HTTP or TLS are held back until they count as neither
    #[arg(long, env = "WEFT_DETECT_TIMEOUT", value_name = "DURATION", default_value = "1s")]
    pub detect_timeout: String,
    /// How long a new destination waits for the control plane's answer until it passes through
    #[arg(long, env = "WEFT_DISCOVERY_TIMEOUT", value_name = "DURATION", default_value = "500ms")]
    pub discovery_timeout: String,
    /// Whether callers are let in, allow or deny, while the control plane has not said who may call a port: because it has been
    /// away since this sidecar's start, or does not know the port
    #[arg(long, env = "WEFT_DEFAULT_ACCESS", value_name = "allow|deny", default_value = "allow")]
    pub default_access: String,
    /// How long connecting to an endpoint may take, where its cluster does not say
    #[arg(long, env = "WEFT_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "5s")]
    pub connect_timeout: String,
    /// How long an opaque connection may be silent in both directions
    #[arg(long, env = "WEFT_TCP_IDLE_TIMEOUT", value_name = "DURATION", default_value = "1h")]
    pub tcp_idle_timeout: String,
    /// How long a connection of mutual TLS is used at most, so that renewed certificates come into use; it then ends when
    /// its requests have, and opaque ones are left alone
    #[arg(long, env = "WEFT_CONNECTION_AGE_MAX", value_name = "DURATION", default_value = "1h")]
    pub connection_age_max: String,
    /// What the kubelet may ask at `/probe/<container>/<kind>`, and what the app is asked then, as JSON; the injector
    /// writes it
    #[arg(long, env = "WEFT_PROBES", value_name = "JSON")]
    pub probes: Option<String>,
    /// What the app speaks at its ports where the control plane does not say: 3306=tcp,9000=http2
    #[arg(long, env = "WEFT_INBOUND_PROTOCOLS", value_name = "PORT=PROTOCOL,…")]
    pub inbound_protocols: Option<String>,
    /// How this sidecar stands beside its app: native ends after it; classic gets SIGTERM with it, and so stays until the
    /// control plane has said that the app has ended, or the drain deadline
    #[arg(long, env = "WEFT_SIDECAR", value_name = "native|classic", default_value = "native")]
    pub sidecar: String,
    /// A file that receives the bound addresses as JSON once the sidecar serves
    #[arg(long, env = "WEFT_READY_FILE", value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
    /// How the sidecar gets its identity.
    #[command(flatten)]
    pub enrolment: enrolment::Proofs,
    /// Telemetry.
    #[command(flatten)]
    pub record: record::Config,
}

/// Who this sidecar speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The workload.
    pub workload: WorkloadId,
    /// Its version, when known.
    pub version: Option<Arc<str>>,
    /// The pod's name, when there is a pod.
    pub pod: Option<Arc<str>>,
    /// The pod's uid, when known.
    pub pod_uid: Option<Arc<str>>,
    /// The zone it runs in, when known.
    pub zone: Option<Arc<str>>,
    /// One start of one sidecar.
    pub instance: Arc<str>,
    /// The pod's addresses, never empty.
    pub addresses: Vec<IpAddr>,
}

impl Identity {
    /// The name of what the control plane says of this pod; `None` where there is none.
    #[must_use]
    pub fn layer(&self) -> Option<String> {
        let uid = self.pod_uid.as_deref().unwrap_or_default();
        let layer = RuntimeLayer { namespace: self.workload.namespace(), pod: self.pod.as_deref()?, uid };
        Some(layer.to_string())
    }
}

/// Listen addresses; `None` is `off`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Redirected inbound connections.
    pub inbound: Option<SocketAddr>,
    /// Redirected outbound connections and the forward proxy.
    pub outbound: Option<SocketAddr>,
    /// `/live`, `/ready`, `/metrics`.
    pub metrics: Option<SocketAddr>,
    /// Admin, loopback only.
    pub admin: Option<SocketAddr>,
}

/// An extra outbound listener that stands for one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundForward {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it stands for.
    pub destination: Destination,
}

/// A service that the app is an endpoint of. The address is the inbound listener's, known once it is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// The service and the port callers use.
    pub service: ServicePort,
    /// The declared protocol, or `None` to detect it.
    pub protocol: Option<Protocol>,
}

/// Who may call a port of which the control plane has said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultAccess {
    /// Everybody.
    Allow,
    /// Nobody.
    Deny,
}

/// Everything the sidecar was told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The control plane; `None` is stand-alone.
    pub control_plane: Option<http::Uri>,
    /// How the sidecar gets its identity; `None` without a control plane at `https://`.
    pub enrolment: Option<Enrolment>,
    /// Who this sidecar speaks for.
    pub identity: Identity,
    /// Where it listens.
    pub listen: Listen,
    /// Where unredirected inbound connections go.
    pub inbound_forward: Option<SocketAddr>,
    /// Extra outbound listeners.
    pub outbound_forward: Vec<OutboundForward>,
    /// Services that the app is an endpoint of.
    pub register: Vec<Register>,
    /// Number of worker threads.
    pub workers: NonZeroUsize,
    /// Mark of the sidecar's own upstream sockets.
    pub socket_mark: Option<u32>,
    /// Connections at most for each direction; `None`: what the file descriptor limit carries.
    pub connections_max: Option<NonZeroUsize>,
    /// Log filter.
    pub log: String,
    /// Time from SIGTERM to the end, at most.
    pub drain_deadline: Duration,
    /// How long ambiguous first bytes are held back.
    pub detect_timeout: Duration,
    /// How long a new destination waits for the control plane.
    pub discovery_timeout: Duration,
    /// Who may call a port of which the control plane has said nothing.
    pub default_access: DefaultAccess,
    /// How long connecting may take where the cluster does not say.
    pub connect_timeout: Duration,
    /// How long an opaque connection may be silent in both directions.
    pub tcp_idle_timeout: Duration,
    /// How long a connection of mutual TLS is used at most.
    pub connection_age_max: Duration,
    /// What the kubelet may ask.
    pub probes: Arc<Probes>,
    /// What the app speaks at its ports where the control plane does not say.
    pub inbound_protocols: Vec<(u16, Protocol)>,
    /// How this sidecar stands beside its app.
    pub sidecar: Sidecar,
    /// Receives the bound addresses as JSON.
    pub ready_file: Option<PathBuf>,
    /// Telemetry.
    pub record: record::Config,
}

/// What is wrong with a setting: names the variable, what it holds, and what to write instead.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The text does not parse.
    #[error("{variable}={text:?} is not {expected}; {fix}")]
    Invalid {
        /// The environment variable (its flag has the same name in kebab case).
        variable: &'static str,
        /// The rejected text.
        text: String,
        /// What it should be.
        expected: &'static str,
        /// An example or instruction.
        fix: &'static str,
    },
    /// Needed, because of another setting, and not there.
    #[error("{variable} is not set; {fix}")]
    Missing {
        /// The environment variable.
        variable: &'static str,
        /// Why it is needed and what to write.
        fix: &'static str,
    },
    /// Set, but nothing could come of it.
    #[error("{variable} cannot be used; {fix}")]
    Unused {
        /// The environment variable.
        variable: &'static str,
        /// Why, and what to write instead.
        fix: &'static str,
    },
    /// A secret that does not parse; it is not repeated.
    #[error("{variable} is not {expected}; {fix}")]
    Secret {
        /// The environment variable.
        variable: &'static str,
        /// What it should be.
        expected: &'static str,
        /// An example or instruction.
        fix: &'static str,
    },
}

impl TryFrom<Arguments> for Config {
    type Error = Error;

    fn try_from(arguments: Arguments) -> Result<Self, Error> {
        // Destructured without `..`, so that an option nobody uses is a compiler warning.
        let Arguments {
            control_plane,
            workload,
            namespace,
            workload_version,
            pod,
            pod_uid,
            zone,
            instance,
            pod_ips,
            inbound_listen,
            outbound_listen,
            metrics_listen,
            admin_listen,
            inbound_forward,
            outbound_forward,
            register,
            workers,
            socket_mark,
            connections_max,
            log,
            drain_deadline,
            detect_timeout,
            discovery_timeout,
            default_access,
            connect_timeout,
            tcp_idle_timeout,
            connection_age_max,
            probes,
            inbound_protocols,
            sidecar,
            ready_file,
            enrolment,
            record,
        } = arguments;

        let control_plane = control_plane.filter(|text| !text.is_empty());
        let identity = Identity {
            workload: parse_workload(workload, &namespace, control_plane.is_some())?,
            version: workload_version.filter(|text| !text.is_empty()).map(Arc::from),
            pod: pod.filter(|text| !text.is_empty()).map(Arc::from),
            pod_uid: pod_uid.filter(|text| !text.is_empty()).map(Arc::from),
            zone: zone.filter(|text| !text.is_empty()).map(Arc::from),
            instance: instance
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
                .into(),
            addresses: parse_pod_ips(pod_ips)?,
        };
        let control_plane = control_plane.map(parse_control_plane).transpose()?;
        let config = Self {
            enrolment: enrolment::parse(enrolment, control_plane.as_ref(), &identity.workload)?,
            default_access: parse_default_access(&default_access, control_plane.is_some())?,
            control_plane,
            identity,
            listen: Listen {
                inbound: parse_listen("WEFT_INBOUND_LISTEN", &inbound_listen)?,
                outbound: parse_listen("WEFT_OUTBOUND_LISTEN", &outbound_listen)?,
                metrics: parse_listen("WEFT_METRICS_LISTEN", &metrics_listen)?,
                admin: parse_admin(&admin_listen)?,
            },
            inbound_forward: inbound_forward
                .filter(|text| !text.is_empty())
                .map(|text| {
                    parse_address(
                        "WEFT_INBOUND_FORWARD",
                        &text,
                        "write the app's address, for instance 127.0.0.1:8080",
                    )
                })
                .transpose()?,
            outbound_forward: parse_outbound_forward(outbound_forward.as_deref().unwrap_or_default())?,
            register: entries(register.as_deref().unwrap_or_default())
                .map(parse_register)
                .collect::<Result<_, _>>()?,
            workers: parse_workers(workers)?,
            socket_mark: socket_mark.filter(|text| !text.is_empty()).map(parse_mark).transpose()?,
            connections_max: connections_max
                .filter(|text| !text.is_empty())
                .map(|text| parse_number("WEFT_CONNECTIONS_MAX", &text))
                .transpose()?,
            log,
            drain_deadline: parse_duration("WEFT_DRAIN_DEADLINE", &drain_deadline)?,
            detect_timeout: parse_duration("WEFT_DETECT_TIMEOUT", &detect_timeout)?,
            discovery_timeout: parse_duration("WEFT_DISCOVERY_TIMEOUT", &discovery_timeout)?,
            connect_timeout: parse_duration("WEFT_CONNECT_TIMEOUT", &connect_timeout)?,
            tcp_idle_timeout: parse_duration("WEFT_TCP_IDLE_TIMEOUT", &tcp_idle_timeout)?,
            connection_age_max: parse_duration("WEFT_CONNECTION_AGE_MAX", &connection_age_max)?,
            probes: parse_probes(probes.unwrap_or_default())?.into(),
            inbound_protocols: parse_inbound_protocols(inbound_protocols.unwrap_or_default())?,
            sidecar: parse_sidecar(sidecar)?,
            ready_file,
            record,
        };
        if config.sidecar == Sidecar::Classic
            && config.control_plane.is_some()
            && config.identity.pod.is_none()
        {
            return Err(Error::Missing {
                variable: "WEFT_POD",
                fix: "a classic sidecar is told by the control plane when its app has ended, by its pod's name: set it from metadata.name",
            });
        }
        if !config.register.is_empty() && config.listen.inbound.is_none() {
            return Err(Error::Missing {
                variable: "WEFT_INBOUND_LISTEN",
                fix: "WEFT_REGISTER announces the inbound listener, so it cannot be off",
            });
        }
        Ok(config)
    }
}

impl Config {
    /// The settings for people: the admin's dump. Without secrets.
    #[must_use]
    pub fn describe(&self) -> serde_json::Value {
        let text = |value: &dyn fmt::Display| value.to_string();
        serde_json::json!({
            "control_plane": self.control_plane.as_ref().map(|uri| text(uri)),
            "enrolment": self.enrolment.as_ref().map(Enrolment::describe),
            "workload": text(&self.identity.workload),
            "version": self.identity.version.as_deref(),
            "pod": self.identity.pod.as_deref(),
            "pod_uid": self.identity.pod_uid.as_deref(),
            "zone": self.identity.zone.as_deref(),
            "instance": &*self.identity.instance,
            "addresses": self.identity.addresses,
            "inbound_forward": self.inbound_forward,
            "outbound_forward": self.outbound_forward.iter()
                .map(|forward| format!("{}={}", forward.listen, forward.destination)).collect::<Vec<_>>(),
            "register": self.register.iter().map(|register| text(&register.service)).collect::<Vec<_>>(),
            "workers": self.workers,
            "socket_mark": self.socket_mark,
            "connections_max": self.connections_max,
            "log": self.log,
            "drain_deadline_seconds": self.drain_deadline.as_secs_f64(),
            "detect_timeout_seconds": self.detect_timeout.as_secs_f64(),
            "discovery_timeout_seconds": self.discovery_timeout.as_secs_f64(),
            "default_access": match self.default_access {
                DefaultAccess::Allow => "allow",
                DefaultAccess::Deny => "deny",
            },
            "connect_timeout_seconds": self.connect_timeout.as_secs_f64(),
            "tcp_idle_timeout_seconds": self.tcp_idle_timeout.as_secs_f64(),
            "sidecar": self.sidecar.word(),
            "probes": self.probes.names(),
            "inbound_protocols": self.inbound_protocols.iter()
                .map(|(port, protocol)| format!("{port}={}", protocol.word())).collect::<Vec<_>>(),
            "connection_age_max_seconds": self.connection_age_max.as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests;
