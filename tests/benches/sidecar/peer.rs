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
use weft_tests::process::{self, Guarded};
use weft_tests::{package, poll};

use crate::load::Protocol;
use crate::objects::{self, Setting};

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
}

impl Peer {
    pub(crate) const ALL: [Self; 7] = [
        Self::Weft,
        Self::WeftLimited,
        Self::WeftOutbound,
        Self::WeftPolicies,
        Self::Envoy,
        Self::Haproxy,
        Self::Nginx,
    ];

    /// The same without what the other has configured, for those that have something.
    pub(crate) fn plain(self) -> Option<Self> {
        match self {
            Self::WeftLimited => Some(Self::Weft),
            Self::WeftPolicies => Some(Self::WeftOutbound),
            _ => None,
        }
    }

    /// What a sidecar's control plane is told of its service; `None`: this is no sidecar.
    fn setting(self) -> Option<Setting> {
        match self {
            Self::Weft => Some(Setting::InboundPlain),
            Self::WeftLimited => Some(Setting::InboundLimited),
            Self::WeftOutbound => Some(Setting::OutboundPlain),
            Self::WeftPolicies => Some(Setting::OutboundPolicies),
            Self::Envoy | Self::Haproxy | Self::Nginx => None,
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
    /// The process that serves: for nginx the worker, not the master.
    pub(crate) pid: u32,
    _process: Guarded,
    _folder: tempfile::TempDir,
}

/// The backend, weft's control plane and the installed peers.
pub(crate) struct Stage {
    programs: Programs,
    backend_h1: u16,
    backend_h2: u16,
    control: Option<ControlPlane>,
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
    _process: Guarded,
}

impl ControlPlane {
    fn start(folder: &Path, objects: &str) -> anyhow::Result<Self> {
        let program = binary::build("weft-control-plane", "weft-control-plane", Profile::Release);
        let (control, api) = (free_port()?, free_port()?);
        let source = folder.join("source");
        fs::create_dir(&source)?;
        fs::write(source.join("bench.yaml"), objects)?;
        let process = Guarded::spawn(
            pinned(LOAD_CORE, &program)
                .args(["--insecure", "--otlp-grpc-listen", "off", "--otlp-http-listen", "off", "--source"])
                .arg(&source)
                .args(["--control-listen", &format!("127.0.0.1:{control}")])
                .args(["--control-tls-listen", "off"])
                .args(["--api-listen", &format!("127.0.0.1:{api}")])
                .stderr(Stdio::null()),
        )?;
        listening(control)?;
        Ok(Self { url: format!("http://127.0.0.1:{control}"), _process: process })
    }
}

impl Stage {
    pub(crate) fn set_up(peers: &[Peer]) -> anyhow::Result<Self> {
        raise_open_files()?;
        let target = binary::target();
        let with_weft = peers.iter().any(|peer| peer.setting().is_some());
        let programs = Programs {
            weft: with_weft.then(|| binary::build("weft-proxy", "weft-proxy", Profile::Release)),
            envoy: peers.contains(&Peer::Envoy).then(|| package::envoy(&target)).transpose()?,
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
        let control = with_weft.then(|| ControlPlane::start(folder.path(), &objects)).transpose()?;
        Ok(Self { programs, backend_h1, backend_h2, control, _backend: backend, _folder: folder })
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
                fs::write(&conf, envoy_conf(port, backend, protocol))?;
                let mut command =
                    pinned(PROXY_CORE, self.programs.envoy.as_deref().context("envoy was not set up")?);
                command.args(["--concurrency", "1", "--log-level", "error", "--disable-hot-restart", "-c"]);
                command.arg(&conf);
                command
            }
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
        let said = folder.path().join("said");
        let process = Guarded::spawn(command.stdout(Stdio::null()).stderr(fs::File::create(&said)?))?;
        listening(port).with_context(|| {
            format!("start {peer}, which said: {}", fs::read_to_string(&said).unwrap_or_default())
        })?;
        let pid = if peer == Peer::Nginx {
            *process::children(process.pid())?.first().context("nginx has no worker")?
        } else {
            process.pid()
        };
        Ok(Running { port, pid, _process: process, _folder: folder })
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

fn envoy_conf(port: u16, backend: u16, protocol: Protocol) -> String {
    let upstream = match protocol {
        Protocol::H1 => "http_protocol_options: {}",
        Protocol::H2 => "http2_protocol_options: {}",
    };
    format!(
        r#"
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: AUTO
          common_http_protocol_options: {{ idle_timeout: 3600s }}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: backend, timeout: 0s }} }}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: backend
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 20000, max_pending_requests: 20000, max_requests: 20000 }}] }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {upstream} }}
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {backend} }} }} }}
"#
    )
}
