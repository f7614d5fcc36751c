//! The peers: how each is configured and started for one hop `load -> peer -> backend`.

use std::fmt;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use weft_tests::binary::{self, Profile};
use weft_tests::client::{self, Ask};
use weft_tests::process::{self, Guarded};
use weft_tests::{package, poll};

use crate::load::Protocol;
use crate::objects::{self, Setting};
use crate::pki::Pki;
use crate::{envoy, handshakes};

/// The core that every proxy is pinned to.
const PROXY_CORE: &str = "0";
/// The core that load and backend share.
pub(crate) const LOAD_CORE: &str = "1";
const START: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// The callee's sidecar, nothing configured.
    Weft,
    /// The callee's sidecar with 100 routes and rate limits.
    WeftLimited,
    /// The caller's sidecar, nothing configured.
    WeftOutbound,
    /// The caller's sidecar with 100 routes and every policy there is.
    WeftPolicies,
    Envoy,
    Haproxy,
    Nginx,
    /// Two sidecars that speak mutual TLS to each other: the caller's and the callee's.
    WeftPair,
    /// Two Envoys that do.
    EnvoyPair,
}

impl Peer {
    pub(crate) const ALL: [Self; 9] = [
        Self::Weft,
        Self::WeftLimited,
        Self::WeftOutbound,
        Self::WeftPolicies,
        Self::Envoy,
        Self::Haproxy,
        Self::Nginx,
        Self::WeftPair,
        Self::EnvoyPair,
    ];

    /// The same without what the other has configured, for those that have something.
    pub(crate) fn plain(self) -> Option<Self> {
        match self {
            Self::WeftLimited => Some(Self::Weft),
            Self::WeftPolicies => Some(Self::WeftOutbound),
            _ => None,
        }
    }

    /// Whether it is two proxies.
    pub(crate) fn is_pair(self) -> bool {
        matches!(self, Self::WeftPair | Self::EnvoyPair)
    }

    /// What a sidecar's control plane is told of its service; `None`: this is no sidecar.
    fn setting(self) -> Option<Setting> {
        match self {
            Self::Weft => Some(Setting::InboundPlain),
            Self::WeftLimited => Some(Setting::InboundLimited),
            Self::WeftOutbound => Some(Setting::OutboundPlain),
            Self::WeftPolicies => Some(Setting::OutboundPolicies),
            Self::Envoy | Self::Haproxy | Self::Nginx | Self::WeftPair | Self::EnvoyPair => None,
        }
    }

    /// Whether it can speak the protocol on both sides; nginx speaks only HTTP/1 to a plain backend.
    pub(crate) fn speaks(self, protocol: Protocol) -> bool {
        self != Self::Nginx || protocol == Protocol::H1
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weft => "weft",
            Self::WeftLimited => "weft-limited",
            Self::WeftOutbound => "weft-outbound",
            Self::WeftPolicies => "weft-policies",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::WeftPair => "weft-pair",
            Self::EnvoyPair => "envoy-pair",
        })
    }
}

impl FromStr for Peer {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        match Self::ALL.into_iter().find(|peer| peer.to_string() == text) {
            Some(peer) => Ok(peer),
            None => {
                bail!("unknown peer {text}; known: {}", Self::ALL.map(|peer| peer.to_string()).join(", "))
            }
        }
    }
}

/// A started peer; ends when dropped.
pub(crate) struct Running {
    pub(crate) port: u16,
    /// Where the callee of a pair takes TLS.
    pub(crate) callee: Option<u16>,
    /// The processes that serve: for nginx the worker, not the master; for a pair both.
    pids: Vec<u32>,
    _processes: Vec<Guarded>,
    _folder: tempfile::TempDir,
}

impl Running {
    /// CPU time used so far, nanoseconds.
    pub(crate) fn cpu_nanos(&self) -> anyhow::Result<u64> {
        self.pids.iter().map(|pid| process::cpu_nanos(*pid)).sum()
    }

    /// Memory, bytes.
    pub(crate) fn rss_bytes(&self) -> anyhow::Result<u64> {
        self.pids.iter().map(|pid| process::rss_bytes(*pid)).sum()
    }
}

/// The backend, weft's control plane and the installed peers.
pub(crate) struct Stage {
    programs: Programs,
    backend_h1: u16,
    backend_h2: u16,
    control: Option<ControlPlane>,
    pki: Pki,
    _backend: Guarded,
    _folder: tempfile::TempDir,
}

struct Programs {
    weft: Option<PathBuf>,
    envoy: Option<PathBuf>,
    haproxy: Option<PathBuf>,
    nginx: PathBuf,
}

/// Weft's control plane, so that weft-proxy measures and reports as it would in a mesh.
struct ControlPlane {
    url: String,
    tls_url: String,
    api: u16,
    _process: Guarded,
}

impl ControlPlane {
    fn start(folder: &Path, objects: &str, pki: &Pki) -> anyhow::Result<Self> {
        let program = binary::build("weft-control-plane", "weft-control-plane", Profile::Release);
        let (control, control_tls, api) = (free_port()?, free_port()?, free_port()?);
        let source = folder.join("source");
        fs::create_dir(&source)?;
        fs::write(source.join("bench.yaml"), objects)?;
        let process = Guarded::spawn(
            pinned(LOAD_CORE, &program)
                .args(["--insecure", "--otlp-grpc-listen", "off", "--otlp-http-listen", "off", "--source"])
                .arg(&source)
                .args(["--control-listen", &format!("127.0.0.1:{control}")])
                .args(["--control-tls-listen", &format!("127.0.0.1:{control_tls}")])
                .args(["--api-listen", &format!("127.0.0.1:{api}")])
                .arg("--ca-dir")
                .arg(&pki.issuer)
                .stderr(Stdio::null()),
        )?;
        listening(control)?;
        listening(control_tls)?;
        let url = format!("http://127.0.0.1:{control}");
        Ok(Self { url, tls_url: format!("https://127.0.0.1:{control_tls}"), api, _process: process })
    }

    /// A join token for a workload.
    fn token(&self, workload: &str) -> anyhow::Result<String> {
        let mut ask = Ask::get("/api/tokens", "localhost").header("content-type", "application/json");
        ask.method = http::Method::POST;
        ask.body = serde_json::to_vec(&serde_json::json!({"name": workload, "namespace": "bench"}))?.into();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(client::once(([127, 0, 0, 1], self.api).into(), &ask))?;
        let made: serde_json::Value = serde_json::from_slice(&answer.body)?;
        Ok(made["token"].as_str().with_context(|| format!("no token in {made}"))?.to_owned())
    }
}

impl Stage {
    pub(crate) fn set_up(peers: &[Peer]) -> anyhow::Result<Self> {
        raise_open_files()?;
        let target = binary::target();
        let with_weft = peers.iter().any(|peer| peer.setting().is_some() || *peer == Peer::WeftPair);
        let with_envoy = peers.iter().any(|peer| matches!(peer, Peer::Envoy | Peer::EnvoyPair));
        let programs = Programs {
            weft: with_weft.then(|| binary::build("weft-proxy", "weft-proxy", Profile::Release)),
            envoy: with_envoy.then(|| package::envoy(&target)).transpose()?,
            haproxy: peers
                .contains(&Peer::Haproxy)
                .then(|| package::debian("haproxy", "haproxy"))
                .transpose()?,
            nginx: package::debian("nginx", "nginx-light")?,
        };
        let folder = tempfile::tempdir()?;
        let (backend_h1, backend_h2) = (free_port()?, free_port()?);
        let conf = folder.path().join("backend.conf");
        fs::write(&conf, nginx_backend(folder.path(), backend_h1, backend_h2))?;
        let backend = Guarded::spawn(nginx(LOAD_CORE, &programs.nginx, &conf).stderr(Stdio::null()))?;
        listening(backend_h1)?;

        let objects = objects::all(backend_h1, backend_h2);
        let pki = Pki::make(folder.path())?;
        let control = with_weft.then(|| ControlPlane::start(folder.path(), &objects, &pki)).transpose()?;
        Ok(Self { programs, backend_h1, backend_h2, control, pki, _backend: backend, _folder: folder })
    }

    /// Starts one peer in front of the backend, on core 0, with one worker.
    pub(crate) fn start(&self, peer: Peer, protocol: Protocol) -> anyhow::Result<Running> {
        let folder = tempfile::tempdir()?;
        let port = free_port()?;
        let backend = match protocol {
            Protocol::H1 => self.backend_h1,
            Protocol::H2 => self.backend_h2,
        };
        // The ending tells Envoy that it is YAML; the others do not mind.
        let conf = folder.path().join("peer.yaml");
        let mut command = match peer {
            Peer::Weft | Peer::WeftLimited | Peer::WeftOutbound | Peer::WeftPolicies => {
                self.weft(peer.setting().context("a sidecar has a setting")?, port, backend, protocol)?
            }
            Peer::Envoy => {
                fs::write(&conf, envoy::plain(port, backend, protocol))?;
                self.envoy(&conf)?
            }
            Peer::WeftPair | Peer::EnvoyPair => return self.pair(peer, port, backend, protocol, folder),
            Peer::Haproxy => {
                fs::write(&conf, haproxy_conf(port, backend, protocol))?;
                let mut command =
                    pinned(PROXY_CORE, self.programs.haproxy.as_deref().context("haproxy was not set up")?);
                command.arg("-f").arg(&conf);
                command
            }
            Peer::Nginx => {
                fs::write(&conf, nginx_proxy(folder.path(), port, backend))?;
                nginx(PROXY_CORE, &self.programs.nginx, &conf)
            }
        };
        let process = spoken(peer, &mut command, port, folder.path())?;
        let pid = if peer == Peer::Nginx {
            *process::children(process.pid())?.first().context("nginx has no worker")?
        } else {
            process.pid()
        };
        Ok(Running { port, callee: None, pids: vec![pid], _processes: vec![process], _folder: folder })
    }

    /// Starts a caller's and a callee's proxy, both on core 0.
    fn pair(
        &self,
        peer: Peer,
        port: u16,
        backend: u16,
        protocol: Protocol,
        folder: tempfile::TempDir,
    ) -> anyhow::Result<Running> {
        let inner = free_port()?;
        let at = folder.path();
        let mut commands = match peer {
            Peer::EnvoyPair => {
                let (callee, caller) = (at.join("callee.yaml"), at.join("caller.yaml"));
                fs::write(&callee, envoy::callee(inner, backend, protocol, &self.pki))?;
                fs::write(&caller, envoy::caller(port, inner, protocol, &self.pki))?;
                [(self.envoy(&callee)?, inner), (self.envoy(&caller)?, port)]
            }
            _ => {
                let service = objects::pair(protocol);
                let mut callee = self.sidecar("server")?;
                callee
                    .env("WEFT_INBOUND_LISTEN", format!("127.0.0.1:{inner}"))
                    .env("WEFT_INBOUND_FORWARD", format!("127.0.0.1:{backend}"))
                    .env("WEFT_REGISTER", format!("{service}/{}", protocol.declared()))
                    .env("WEFT_OUTBOUND_LISTEN", "off");
                let mut caller = self.sidecar("client")?;
                caller
                    .env("WEFT_INBOUND_LISTEN", "off")
                    .env("WEFT_OUTBOUND_LISTEN", "127.0.0.1:0")
                    .env("WEFT_OUTBOUND_FORWARD", format!("127.0.0.1:{port}={service}"));
                [(callee, inner), (caller, port)]
            }
        };
        let mut processes = Vec::new();
        for (command, port) in &mut commands {
            processes.push(spoken(peer, command, *port, at)?);
        }
        let pids = processes.iter().map(Guarded::pid).collect();
        let running = Running { port, callee: Some(inner), pids, _processes: processes, _folder: folder };
        if peer == Peer::WeftPair {
            self.until_mutual(&running)?;
        }
        Ok(running)
    }

    /// Waits until a pair has its certificates and uses them: the callee takes nothing else.
    fn until_mutual(&self, running: &Running) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        poll::until_blocking("the pair talks mutual TLS", START, || {
            handshakes::once(running, &self.pki).map_err(|error| format!("{error:#}"))?;
            let ask = Ask::get("/", "bench");
            let answer = runtime.block_on(client::once(([127, 0, 0, 1], running.port).into(), &ask));
            let answer = answer.map_err(|error| format!("{error:#}"))?;
            if answer.status == http::StatusCode::OK { Ok(()) } else { Err(format!("{answer:?}")) }
        })
    }

    /// What shakes hands with pairs.
    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// A sidecar with an identity.
    fn sidecar(&self, workload: &str) -> anyhow::Result<Command> {
        let program = self.programs.weft.as_deref().context("weft was not set up")?;
        let control = self.control.as_ref().context("the control plane was not set up")?;
        let mut command = pinned(PROXY_CORE, program);
        command
            .env("WEFT_WORKERS", "1")
            .env("WEFT_WORKLOAD", workload)
            .env("WEFT_NAMESPACE", "bench")
            .env("WEFT_POD_IPS", "127.0.0.1")
            .env("WEFT_CONTROL_PLANE", &control.tls_url)
            .env("WEFT_JOIN_TOKEN", control.token(workload)?)
            .env("WEFT_METRICS_LISTEN", "127.0.0.1:0")
            .env("WEFT_ADMIN_LISTEN", "127.0.0.1:0");
        Ok(command)
    }

    fn envoy(&self, conf: &Path) -> anyhow::Result<Command> {
        let program = self.programs.envoy.as_deref().context("envoy was not set up")?;
        let mut command = pinned(PROXY_CORE, program);
        command.args([
            "--concurrency",
            "1",
            "--log-level",
            "error",
            "--disable-hot-restart",
            "--base-id-path",
        ]);
        command.arg(conf.with_extension("base-id")).arg("--use-dynamic-base-id").arg("-c").arg(conf);
        Ok(command)
    }

    /// Everything on: telemetry, trace headers, access-log policy, reports to a live control plane.
    fn weft(&self, setting: Setting, port: u16, backend: u16, protocol: Protocol) -> anyhow::Result<Command> {
        let program = self.programs.weft.as_deref().context("weft was not set up")?;
        let control = self.control.as_ref().context("the control plane was not set up")?;
        let mut command = pinned(PROXY_CORE, program);
        command
            .env("WEFT_WORKERS", "1")
            .env("WEFT_WORKLOAD", "bench")
            .env("WEFT_POD_IPS", "127.0.0.1")
            .env("WEFT_CONTROL_PLANE", &control.url)
            .env("WEFT_METRICS_LISTEN", "127.0.0.1:0")
            .env("WEFT_ADMIN_LISTEN", "127.0.0.1:0");
        let service = objects::service(setting, protocol);
        match setting {
            // An address that no service has, so that nothing is configured for it.
            Setting::InboundPlain => command
                .env("WEFT_INBOUND_LISTEN", format!("127.0.0.1:{port}"))
                .env("WEFT_INBOUND_FORWARD", format!("127.0.0.1:{backend}"))
                .env("WEFT_OUTBOUND_LISTEN", "off"),
            // Registered: its inbound listener is an endpoint of the service with the limits.
            Setting::InboundLimited => command
                .env("WEFT_INBOUND_LISTEN", format!("127.0.0.1:{port}"))
                .env("WEFT_INBOUND_FORWARD", format!("127.0.0.1:{backend}"))
                .env("WEFT_REGISTER", format!("{service}/{}", protocol.declared()))
                .env("WEFT_OUTBOUND_LISTEN", "off"),
            Setting::OutboundPlain | Setting::OutboundPolicies => command
                .env("WEFT_INBOUND_LISTEN", "off")
                .env("WEFT_OUTBOUND_LISTEN", "127.0.0.1:0")
                .env("WEFT_OUTBOUND_FORWARD", format!("127.0.0.1:{port}={service}")),
        };
        Ok(command)
    }
}

/// Starts a program and waits until it listens; what it says meanwhile explains why it does not.
fn spoken(peer: Peer, command: &mut Command, port: u16, folder: &Path) -> anyhow::Result<Guarded> {
    let said = folder.join("said");
    let process = Guarded::spawn(command.stdout(Stdio::null()).stderr(fs::File::create(&said)?))?;
    listening(port).with_context(|| {
        format!("start {peer}, which said: {}", fs::read_to_string(&said).unwrap_or_default())
    })?;
    Ok(process)
}

fn pinned(core: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(program);
    command
}

fn nginx(core: &str, program: &Path, conf: &Path) -> Command {
    let mut command = pinned(core, program);
    command.arg("-c").arg(conf).arg("-e").arg("/dev/null");
    command
}

/// 3,000 idle connections need two descriptors each, in this process and in every peer.
fn raise_open_files() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn listening(port: u16) -> anyhow::Result<()> {
    poll::until_blocking("port listens", START, || TcpStream::connect(("127.0.0.1", port)).map(drop))
}

const NGINX_COMMON: &str = "daemon off; worker_processes 1; events { worker_connections 20000; }";

fn nginx_backend(folder: &Path, h1: u16, h2: u16) -> String {
    let body = "x".repeat(128);
    format!(
        "{NGINX_COMMON} pid {folder}/backend.pid;
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{h1} backlog=4096; location / {{ return 200 '{body}'; }} }}
  server {{ listen 127.0.0.1:{h2} http2 backlog=4096; http2_max_concurrent_streams 1000; location / {{ return 200 '{body}'; }} }}
}}",
        folder = folder.display()
    )
}

fn nginx_proxy(folder: &Path, port: u16, backend: u16) -> String {
    format!(
        "{NGINX_COMMON} pid {folder}/proxy.pid;
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ''; }}
  }}
}}",
        folder = folder.display()
    )
}

fn haproxy_conf(port: u16, backend: u16, protocol: Protocol) -> String {
    let proto = if protocol == Protocol::H2 { " proto h2" } else { "" };
    format!(
        "global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
  http-reuse always
frontend in
  bind 127.0.0.1:{port}{proto}
  default_backend out
backend out
  server backend 127.0.0.1:{backend}{proto}
"
    )
}
