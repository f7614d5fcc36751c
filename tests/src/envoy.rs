//! A real Envoy on the mesh's own configuration: static listeners that each follow one route table of a control plane,
//! clusters and endpoints over the same incremental ADS stream.
//!
//! In: the names of route tables. Out: an address for each, and what Envoy says about its configuration. Invariant: it
//! ends with this value, and never listens but on loopback. Surprise: it is up only when it has every route table
//! and cluster, because its listeners wait for them. Non-goal: listeners over xDS; a sidecar's are answers to
//! questions that Envoy does not ask.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, SocketAddress, TransportSocket, address, transport_socket,
};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use prost::{Message as _, Name as _};
use serde_json::{Value, json};
use weft_wire::tls::{
    CONTROL_PLANE, OWN_CERTIFICATE, TRUST_BUNDLE, TRUST_DOMAIN_DEFAULT, server_name_suffix,
};

use crate::client::{self, Ask};
use crate::member::Papers;
use crate::process::Guarded;
use crate::{binary, package, poll};

/// Longest wait for the first configuration: Envoy itself gives up on a resource after 15 s.
const START: Duration = Duration::from_secs(30);
/// How much of its log is shown.
const LOG_LINES: usize = 40;

/// A running Envoy.
pub struct Envoy {
    // The process first: it ends before its directory does.
    _process: Guarded,
    directory: tempfile::TempDir,
    admin: SocketAddr,
    listeners: Vec<SocketAddr>,
    /// Listeners of the control plane's own making, by name.
    served: HashMap<String, SocketAddr>,
}

/// What a static listener follows.
#[derive(Debug, Clone)]
pub struct Follow {
    /// The route table's name.
    pub routes: String,
    /// Clusters that the table names and the control plane's wildcard does not cover, each with its one address.
    pub clusters: Vec<(String, SocketAddr)>,
}

impl From<String> for Follow {
    fn from(routes: String) -> Self {
        Self { routes, clusters: Vec::new() }
    }
}

/// Envoy's binary, or `None` where this machine cannot have one: the reason is printed, and CI fails.
///
/// # Panics
/// When there is none although `CI` is set.
#[must_use]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn available() -> Option<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FOUND.get_or_init(|| package::envoy(&binary::target()).map_err(|error| format!("{error:#}"))) {
        Ok(path) => Some(path),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to run this: {error}");
            eprintln!("skipped: no Envoy on this machine: {error}");
            None
        }
    }
}

impl Envoy {
    /// Starts one that follows the control plane at `control`, and waits until its listeners serve.
    ///
    /// # Errors
    /// When it does not come up in time; the message has its log.
    pub async fn start(binary: &Path, control: SocketAddr, follow: &[Follow]) -> anyhow::Result<Self> {
        Self::serving(binary, control, follow, Vec::new(), None).await
    }

    /// The same, with listeners as the control plane compiles them for sidecars: here they are bound, to any port, and
    /// known by their names. With `papers` it is a member of the mesh: it speaks mutual TLS with the control plane, and answers
    /// callers with the same certificate.
    ///
    /// # Errors
    /// When it does not come up in time; the message has its log.
    pub async fn serving(
        binary: &Path,
        control: SocketAddr,
        follow: &[Follow],
        listeners: Vec<Listener>,
        papers: Option<&Papers>,
    ) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = |name: &str| directory.path().join(name);
        let names: Vec<String> = listeners.iter().map(|listener| listener.name.clone()).collect();
        fs::write(file("listeners.pb"), discovered(listeners)?.encode_to_vec())?;
        let bootstrap = bootstrap(control, follow, &file("listeners.pb"), papers);
        fs::write(file("envoy.json"), bootstrap.to_string())?;
        let log = fs::File::create(file("log"))?;
        let mut command = Command::new(binary);
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
        command.arg("-c").arg(file("envoy.json")).arg("--admin-address-path").arg(file("admin"));
        let process = Guarded::spawn(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?;
        let unplaced = SocketAddr::from(([127, 0, 0, 1], 0));
        let served = HashMap::new();
        let mut envoy = Self { _process: process, directory, admin: unplaced, listeners: Vec::new(), served };
        envoy.come_up(follow.len(), &names).await.with_context(|| envoy.log())?;
        Ok(envoy)
    }

    async fn come_up(&mut self, listeners: usize, served: &[String]) -> anyhow::Result<()> {
        let file = self.directory.path().join("admin");
        self.admin = poll::until("Envoy's admin listens", START, async || {
            anyhow::Ok(fs::read_to_string(&file)?.trim().parse()?)
        })
        .await?;
        poll::until("Envoy has its configuration", START, async || {
            let answer = client::once(self.admin, &Ask::get("/ready", "localhost")).await?;
            let text = String::from_utf8_lossy(&answer.body);
            ensure!(answer.status.is_success(), "{text}");
            anyhow::Ok(())
        })
        .await?;
        let said = client::json(self.admin, "/listeners?format=json").await?;
        let said = said["listener_statuses"].as_array().context("no listeners")?;
        let address = |name: &str| {
            let status = said.iter().find(|status| status["name"] == name);
            let socket = &status.with_context(|| format!("no {name}"))?["local_address"]["socket_address"];
            let port = socket["port_value"].as_u64().context("no port")?;
            anyhow::Ok(SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?)))
        };
        let followed = (0..listeners).map(|index| address(&format!("listener-{index}")));
        self.listeners = followed.collect::<anyhow::Result<_>>()?;
        let served = served.iter().map(|name| Ok((name.clone(), address(name)?)));
        self.served = served.collect::<anyhow::Result<_>>()?;
        Ok(())
    }

    /// Where the listener that follows the table with this index serves.
    #[must_use]
    pub fn listener(&self, index: usize) -> SocketAddr {
        self.listeners[index]
    }

    /// Where a listener of the control plane's own making serves.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn served(&self, name: &str) -> anyhow::Result<SocketAddr> {
        self.served.get(name).copied().with_context(|| format!("no {name}"))
    }

    /// Asks the admin interface for JSON.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn admin(&self, path: &str) -> anyhow::Result<Value> {
        client::json(self.admin, path).await
    }

    /// Makes sure that Envoy took everything it was sent, and has every table it follows.
    ///
    /// # Errors
    /// What it refused, in its words.
    pub async fn accepted(&self) -> anyhow::Result<()> {
        let stats =
            self.admin("/stats?format=json&filter=(update_rejected|config_reload|update_success)$").await?;
        let stats = stats["stats"].as_array().context("no stats")?;
        let value = |stat: &Value| stat["value"].as_u64().unwrap_or_default();
        let name = |stat: &Value| stat["name"].as_str().unwrap_or_default().to_owned();
        let refused: Vec<String> = stats
            .iter()
            .filter(|stat| name(stat).ends_with("update_rejected") && value(stat) > 0)
            .map(name)
            .collect();
        ensure!(refused.is_empty(), "Envoy refused configuration: {refused:?}\n{}", self.log());
        let tables = stats.iter().filter(|stat| name(stat).contains(".rds."));
        let missing: Vec<String> = tables
            .filter(|stat| name(stat).ends_with("update_success") && value(stat) == 0)
            .map(name)
            .collect();
        ensure!(missing.is_empty(), "Envoy never got {missing:?}\n{}", self.log());
        Ok(())
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("Envoy's log:\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
    }
}

/// A file from which Envoy takes its listeners.
fn discovered(listeners: Vec<Listener>) -> anyhow::Result<DiscoveryResponse> {
    let bound = listeners.into_iter().map(|mut listener| {
        let socket = SocketAddress {
            address: "127.0.0.1".to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(0)),
            ..Default::default()
        };
        for chain in listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain) {
            if let Some(socket) = &mut chain.transport_socket {
                with_static_secrets(socket)?;
            }
        }
        let bound = Listener {
            address: Some(Address { address: Some(address::Address::SocketAddress(socket)) }),
            bind_to_port: Some(BoolValue { value: true }),
            ..listener
        };
        Ok(Any { type_url: Listener::type_url(), value: bound.encode_to_vec() })
    });
    let resources = bound.collect::<anyhow::Result<_>>()?;
    Ok(DiscoveryResponse {
        version_info: "1".to_owned(),
        resources,
        type_url: Listener::type_url(),
        ..Default::default()
    })
}

/// Makes secrets those of the bootstrap that have the same names: nobody hands out a key by xDS.
fn with_static_secrets(socket: &mut TransportSocket) -> anyhow::Result<()> {
    let Some(transport_socket::ConfigType::TypedConfig(config)) = &mut socket.config_type else {
        anyhow::bail!("no configuration: {socket:?}");
    };
    let mut context = DownstreamTlsContext::decode(config.value.as_slice())?;
    let common = context.common_tls_context.as_mut().context("no common_tls_context")?;
    for own in &mut common.tls_certificate_sds_secret_configs {
        own.sds_config = None;
    }
    match &mut common.validation_context_type {
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let roots = combined.validation_context_sds_secret_config.as_mut().context("no roots")?;
            roots.sds_config = None;
        }
        other => anyhow::bail!("another way to validate: {other:?}"),
    }
    config.value = context.encode_to_vec();
    Ok(())
}

fn bootstrap(control: SocketAddr, follow: &[Follow], served: &Path, papers: Option<&Papers>) -> Value {
    let listeners: Vec<Value> =
        follow.iter().enumerate().map(|(index, follow)| listener(index, &follow.routes)).collect();
    let mut plane =
        cluster("control_plane", control, json!({"explicit_http_config": {"http2_protocol_options": {}}}));
    if let Some(papers) = papers {
        plane["transport_socket"] = to_the_control_plane(papers);
    }
    let named = follow.iter().flat_map(|follow| &follow.clusters);
    // An app is spoken to as its caller speaks.
    let alike = json!({"use_downstream_protocol_config": {"http2_protocol_options": {}}});
    let named = named.map(|(name, address)| cluster(name, *address, alike.clone()));
    let clusters: Vec<Value> = std::iter::once(plane).chain(named).collect();
    json!({
        "node": {"id": "envoy", "cluster": "shop/envoy"},
        "admin": {"address": socket(([127, 0, 0, 1], 0).into())},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "control_plane"}}],
            },
            "cds_config": ads(),
            "lds_config": {"path_config_source": {"path": served}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "listeners": listeners,
            "clusters": clusters,
            "secrets": papers.map(secrets).unwrap_or_default(),
        },
    })
}

fn certificate(papers: &Papers) -> Value {
    json!({
        "certificate_chain": {"inline_string": papers.chain},
        "private_key": {"inline_string": papers.key},
    })
}

fn secrets(papers: &Papers) -> Vec<Value> {
    let roots = json!({"trusted_ca": {"inline_string": papers.roots}});
    vec![
        json!({"name": OWN_CERTIFICATE, "tls_certificate": certificate(papers)}),
        json!({"name": TRUST_BUNDLE, "validation_context": roots}),
    ]
}

/// Mutual TLS, as a sidecar speaks it with the control plane.
fn to_the_control_plane(papers: &Papers) -> Value {
    let (namespace, account) = CONTROL_PLANE;
    let id = format!("spiffe://{TRUST_DOMAIN_DEFAULT}/ns/{namespace}/sa/{account}");
    let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("type.googleapis.com/{kind}"),
            "sni": format!("{account}.{namespace}{}", server_name_suffix(TRUST_DOMAIN_DEFAULT)),
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificates": [certificate(papers)],
                "validation_context": {
                    "trusted_ca": {"inline_string": papers.roots},
                    "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": id}}],
                },
            },
        },
    })
}

/// As the control plane's own outbound listeners are, but bound and following its table by name.
fn listener(index: usize, routes: &str) -> Value {
    let empty = |name: &str, kind: &str| {
        let kind = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}");
        json!({"name": format!("envoy.filters.http.{name}"), "typed_config": {"@type": kind}})
    };
    let mut limit = empty("local_ratelimit", "local_ratelimit.v3.LocalRateLimit");
    limit["typed_config"]["stat_prefix"] = "local_rate_limiter".into();
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": format!("listener-{index}"),
        "codec_type": "AUTO",
        "rds": {"route_config_name": routes, "config_source": ads()},
        "stream_idle_timeout": "0s",
        "server_header_transformation": "PASS_THROUGH",
        // Who says to come from there is obeyed, which one row of the differences is about.
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
        "http_filters": [
            empty("cors", "cors.v3.Cors"),
            empty("fault", "fault.v3.HTTPFault"),
            limit,
            empty("router", "router.v3.Router"),
        ],
        "upgrade_configs": [{"upgrade_type": "websocket"}],
    });
    json!({
        "name": format!("listener-{index}"),
        "address": socket(([127, 0, 0, 1], 0).into()),
        "filter_chains": [{
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        }],
    })
}

fn cluster(name: &str, address: SocketAddr, mut protocol: Value) -> Value {
    let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    protocol["@type"] = format!("type.googleapis.com/{kind}").into();
    let endpoint = json!({"endpoint": {"address": socket(address)}});
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {kind: protocol},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    })
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn ads() -> Value {
    json!({"ads": {}, "resource_api_version": "V3"})
}
