//! What injected sidecars are like where neither pod nor namespace says otherwise.
//!
//! In: options of the control plane, or of `weft inject`: the same ones, so that both inject the same. Out: [`Settings`].

use anyhow::ensure;
use weft_wire::annotation::{self as keys, Sidecar};
use weft_wire::{port, tls};

/// What a sidecar asks for: an idle one uses 8 MiB, and hardly any CPU.
const CPU_REQUEST: &str = "10m";
const MEMORY_REQUEST: &str = "32Mi";

/// How injected sidecars are, as the operator says it.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "injected")]
pub struct Options {
    /// The sidecar's image; by default weft-proxy of this program's version
    #[arg(long, env = "WEFT_PROXY_IMAGE", value_name = "IMAGE", value_parser = checked(keys::IMAGE))]
    pub proxy_image: Option<String>,
    /// When it is pulled: Always, IfNotPresent or Never; by default as Kubernetes does it
    #[arg(long, env = "WEFT_PROXY_IMAGE_PULL_POLICY", value_name = "POLICY", value_parser = checked(keys::IMAGE_PULL_POLICY))]
    pub proxy_image_pull_policy: Option<String>,
    /// native: an init container that stays, which starts before and ends after the app (Kubernetes 1.29 and later).
    /// classic: an ordinary container beside the app's. By default what the cluster's version knows; native without one
    #[arg(long, env = "WEFT_SIDECAR", value_name = "KIND", value_parser = keys::sidecar)]
    pub sidecar: Option<Sidecar>,
    /// What sidecars log
    #[arg(long, env = "WEFT_PROXY_LOG", value_name = "FILTER", value_parser = checked(keys::LOG_LEVEL))]
    pub proxy_log: Option<String>,
    /// CPU that a sidecar asks for
    #[arg(long, env = "WEFT_PROXY_CPU_REQUEST", value_name = "CPU", default_value = CPU_REQUEST, value_parser = checked(keys::CPU_REQUEST))]
    pub proxy_cpu_request: String,
    /// CPU that a sidecar may use; by default what its node has. A sidecar has as many workers as this is whole CPUs
    #[arg(long, env = "WEFT_PROXY_CPU_LIMIT", value_name = "CPU", value_parser = checked(keys::CPU_LIMIT))]
    pub proxy_cpu_limit: Option<String>,
    /// Memory that a sidecar asks for
    #[arg(long, env = "WEFT_PROXY_MEMORY_REQUEST", value_name = "BYTES", default_value = MEMORY_REQUEST, value_parser = checked(keys::MEMORY_REQUEST))]
    pub proxy_memory_request: String,
    /// Memory that a sidecar may use; by default what its node has
    #[arg(long, env = "WEFT_PROXY_MEMORY_LIMIT", value_name = "BYTES", value_parser = checked(keys::MEMORY_LIMIT))]
    pub proxy_memory_limit: Option<String>,
    /// Where sidecars find the control plane
    #[arg(long, env = "WEFT_PROXY_CONTROL_PLANE", value_name = "URL", default_value_t = control_plane())]
    pub proxy_control_plane: String,
}

/// Whether a request is more than its limit, as far as both can be read.
pub(crate) fn exceeds(request: &str, limit: &str) -> bool {
    matches!((keys::quantity(request), keys::quantity(limit)), (Ok(request), Ok(limit)) if request > limit)
}

impl Options {
    /// Whether the options go together.
    ///
    /// # Errors
    /// When every sidecar would ask for more than it may use.
    pub fn check(&self) -> anyhow::Result<()> {
        for (request, limit, what) in [
            (&self.proxy_cpu_request, &self.proxy_cpu_limit, "cpu"),
            (&self.proxy_memory_request, &self.proxy_memory_limit, "memory"),
        ] {
            let Some(limit) = limit else { continue };
            ensure!(
                !exceeds(request, limit),
                "--proxy-{what}-limit {limit} is less than --proxy-{what}-request {request}, which no sidecar can have: raise \
                 the limit, or say a lower request too"
            );
        }
        Ok(())
    }
}

/// As the key's row judges it.
fn checked(key: &'static str) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |text| {
        let row = keys::find(key).ok_or_else(|| format!("{key} is not in the table"))?;
        row.check(text).map(|()| text.to_owned())
    }
}

/// `https://weft-control-plane.weft-system.svc:15012`: of several control planes the one that leads, because graph, rotation
/// and statuses are made of what is connected to it. Another one is found there when it goes.
fn control_plane() -> String {
    let (namespace, name) = tls::CONTROL_PLANE;
    format!("https://{name}.{namespace}.svc:{}", port::CONTROL_TLS)
}

impl Default for Options {
    fn default() -> Self {
        Self {
            proxy_image: None,
            proxy_image_pull_policy: None,
            sidecar: None,
            proxy_log: None,
            proxy_cpu_request: CPU_REQUEST.to_owned(),
            proxy_cpu_limit: None,
            proxy_memory_request: MEMORY_REQUEST.to_owned(),
            proxy_memory_limit: None,
            proxy_control_plane: control_plane(),
        }
    }
}

/// How injected sidecars are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which kind.
    pub sidecar: Sidecar,
    /// The image.
    pub image: String,
    /// When it is pulled.
    pub image_pull_policy: Option<String>,
    /// What they log.
    pub log_level: Option<String>,
    /// CPU they ask for.
    pub cpu_request: Option<String>,
    /// CPU they may use.
    pub cpu_limit: Option<String>,
    /// Memory they ask for.
    pub memory_request: Option<String>,
    /// Memory they may use.
    pub memory_limit: Option<String>,
    /// Where they find the control plane.
    pub control_plane: String,
    /// The mesh's name in identities.
    pub trust_domain: String,
    /// The control plane's namespace, whose pods are never injected.
    pub namespace: String,
}

impl Settings {
    /// What the options say.
    #[must_use]
    pub fn new(options: &Options, trust_domain: &str) -> Self {
        let Options {
            proxy_image,
            proxy_image_pull_policy,
            sidecar,
            proxy_log,
            proxy_cpu_request,
            proxy_cpu_limit,
            proxy_memory_request,
            proxy_memory_limit,
            proxy_control_plane,
        } = options.clone();
        Self {
            sidecar: sidecar.unwrap_or(Sidecar::Native),
            image: proxy_image.unwrap_or_else(super::default_image),
            image_pull_policy: proxy_image_pull_policy,
            log_level: proxy_log,
            cpu_request: Some(proxy_cpu_request),
            cpu_limit: proxy_cpu_limit,
            memory_request: Some(proxy_memory_request),
            memory_limit: proxy_memory_limit,
            control_plane: proxy_control_plane,
            trust_domain: trust_domain.to_owned(),
            namespace: tls::CONTROL_PLANE.0.to_owned(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(&Options::default(), tls::TRUST_DOMAIN_DEFAULT)
    }
}
