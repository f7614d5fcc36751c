//! What the operator asked for: flags, each also an environment variable, parsed once.
//!
//! After [`Config::parse`] nobody reads the environment. Addresses may have port 0; what was really bound is
//! logged and, if asked for, written to the ready file.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use weft_wire::tls::TRUST_DOMAIN_DEFAULT;

use crate::{auth, inject};

/// Weft's control plane: configures the sidecars and draws the live call graph from what they report.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "weft-control-plane",
    version,
    after_help = "Examples:\n  \
        weft-control-plane --source ./mesh --data-dir /var/lib/weft\n  \
        weft-control-plane --kubernetes --data-dir /var/lib/weft\n  \
        weft-control-plane --source ./mesh --ca-dir /etc/weft/ca --trust-domain example.org\n  \
        weft-control-plane --kubernetes --api-tokens /etc/weft/tokens --api-listen :8080\n  \
        weft-control-plane --insecure --source ./mesh --api-listen 127.0.0.1:9000"
)]
pub struct Config {
    /// Directory of Kubernetes-style YAML (Service, EndpointSlice, Pod), read recursively and hot reloaded.
    /// Without it and without --kubernetes only programs that register themselves are known
    #[arg(long, env = "WEFT_SOURCE", value_name = "DIR")]
    pub source: Option<PathBuf>,

    /// Follow a Kubernetes cluster, and write to it what it must know: with the credentials of the pod, else those of KUBECONFIG
    /// or ~/.kube/config
    #[arg(long, env = "WEFT_KUBERNETES", conflicts_with = "source")]
    pub kubernetes: bool,

    /// The kubeconfig for --kubernetes, instead of what KUBECONFIG names
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// The control plane's own namespace: its Lease and its Secrets are there
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", default_value = "weft-system")]
    pub namespace: String,

    /// The control plane's own pod, which is labelled while it leads
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,

    /// Directory for history. Without it history lives in memory and ends with the process
    #[arg(long, env = "WEFT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Serve sidecars in plain text, without proof of who they are; and the API to everybody who reaches it, unless a way
    /// to sign in is configured
    #[arg(long, env = "WEFT_INSECURE")]
    pub insecure: bool,

    /// Where sidecars fetch configuration and send reports in plain text; only with --insecure
    #[arg(long, env = "WEFT_CONTROL_LISTEN", value_name = "ADDR", default_value = "[::]:15010")]
    pub control_listen: Listen,

    /// Where sidecars fetch certificates and configuration and send reports, by mutual TLS; `off` for nowhere
    #[arg(long, env = "WEFT_CONTROL_TLS_LISTEN", value_name = "ADDR", default_value = "[::]:15012")]
    pub control_tls_listen: Listen,

    /// The mesh's name in every identity: spiffe://NAME/ns/…/sa/…
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "NAME", default_value = TRUST_DOMAIN_DEFAULT)]
    pub trust_domain: String,

    /// Directory of an issuing certificate of your own, as cert-manager writes it: tls.crt, tls.key, ca.crt. Read
    /// again when it changes. Without it a root is made, and kept in a Secret (--kubernetes) or in --data-dir
    #[arg(long, env = "WEFT_CA_DIR", value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,

    /// How long certificates of sidecars live at most; they are renewed at half of it
    #[arg(long, env = "WEFT_LEAF_LIFETIME", value_name = "TIME", default_value = "24h", value_parser = leaf_lifetime)]
    pub leaf_lifetime: Duration,

    /// Kubernetes API server that is asked whose a service account token is, for instance `https://kubernetes.default.svc`.
    /// Without it, or --kubernetes, only join tokens are taken
    #[arg(long, env = "WEFT_TOKEN_REVIEW", value_name = "URL")]
    pub token_review: Option<String>,

    /// Directory with the credentials to ask it with: token and ca.crt
    #[arg(
        long,
        env = "WEFT_TOKEN_REVIEW_CREDENTIALS",
        value_name = "DIR",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    pub token_review_credentials: PathBuf,

    /// For whom service account tokens must have been made
    #[arg(long, env = "WEFT_TOKEN_AUDIENCE", value_name = "NAME", default_value = "weft")]
    pub token_audience: String,

    /// Where the API and the dashboard are served: host:port, or fd:N for an inherited listening socket. Other addresses
    /// than loopback need a way to sign in
    #[arg(long, env = "WEFT_API_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub api_listen: Listen,

    /// Where apps send OTLP over gRPC; `off` for nowhere
    #[arg(long, env = "WEFT_OTLP_GRPC_LISTEN", value_name = "ADDR", default_value = "[::]:4317")]
    pub otlp_grpc_listen: Listen,

    /// Where apps send OTLP over HTTP; `off` for nowhere
    #[arg(long, env = "WEFT_OTLP_HTTP_LISTEN", value_name = "ADDR", default_value = "[::]:4318")]
    pub otlp_http_listen: Listen,

    /// Where /live, /ready and /metrics are served besides the API's address; `off` for nowhere else
    #[arg(long, env = "WEFT_METRICS_LISTEN", value_name = "ADDR", default_value = "off")]
    pub metrics_listen: Listen,

    /// Where the API server asks about new pods, with --kubernetes; `off` for nowhere
    #[arg(long, env = "WEFT_INJECT_LISTEN", value_name = "ADDR", default_value = "[::]:9443")]
    pub inject_listen: Listen,

    #[command(flatten)]
    pub inject: inject::Options,

    /// Restart the owners of pods that should have a sidecar and have none, one at a time, as `kubectl rollout restart` would.
    /// Without it only where pod or namespace says `weft.dev/restart: enabled`
    #[arg(long, env = "WEFT_RESTART_UNINJECTED")]
    pub restart_uninjected: bool,

    #[command(flatten)]
    pub auth: auth::Options,

    /// Written when everything listens: JSON with the addresses really bound
    #[arg(long, env = "WEFT_READY_FILE", value_name = "FILE")]
    pub ready_file: Option<PathBuf>,

    /// How long to wait for requests in flight after SIGTERM
    #[arg(long, env = "WEFT_DRAIN_DEADLINE", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub drain_deadline: Duration,

    /// What to log, for instance `info` or `info,weft_control_plane::xds=debug`
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

impl Config {
    /// Whether the options go together; opens nothing and asks nobody.
    ///
    /// # Errors
    /// When they do not: which, and what to do.
    pub fn check(&self) -> anyhow::Result<()> {
        self.inject.check()?;
        self.auth.check(self.insecure)
    }
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// `host:port`, already resolved; the first address is bound.
    Address(SocketAddr),
    /// `fd:N`: a listening socket inherited from the parent process.
    Inherited(i32),
    /// `off`.
    Off,
}

/// The text does not say where to listen.
#[derive(Debug, thiserror::Error)]
pub enum InvalidListen {
    /// Neither of the three forms.
    #[error("{0:?} is not host:port, fd:N or off")]
    Form(String),
    /// The host has no address.
    #[error("{host:?} has no address")]
    NoAddress {
        /// The host and port asked for.
        host: String,
    },
    /// The host could not be looked up.
    #[error("look up {host:?}")]
    LookUp {
        /// The host and port asked for.
        host: String,
        /// Why.
        source: std::io::Error,
    },
}

impl FromStr for Listen {
    type Err = InvalidListen;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Some(number) = text.strip_prefix("fd:") {
            let number = number.parse().ok().filter(|number| *number >= 0);
            return number.map(Self::Inherited).ok_or_else(|| InvalidListen::Form(text.into()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if !text.contains(':') {
            return Err(InvalidListen::Form(text.into()));
        }
        // `:8080` is short for every address, as elsewhere.
        let host = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
        let found = host.to_socket_addrs();
        match found.map(|mut addresses| addresses.next()) {
            Ok(Some(address)) => Ok(Self::Address(address)),
            Ok(None) => Err(InvalidListen::NoAddress { host }),
            Err(source) => Err(InvalidListen::LookUp { host, source }),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Inherited(number) => write!(f, "fd:{number}"),
            Self::Off => f.write_str("off"),
        }
    }
}

/// Reads `250ms`, `10s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60 * 1000),
        "h" => number.checked_mul(60 * 60 * 1000),
        _ => return Err(format!("{text:?} does not end in ms, s, m or h")),
    };
    milliseconds.map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long"))
}

/// Shorter is only noise: a certificate is back-dated by a minute, and renewing takes a moment.
const LEAF_LIFETIME_MIN: Duration = Duration::from_secs(2);
/// Longer would make a stolen key a lasting one.
const LEAF_LIFETIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

fn leaf_lifetime(text: &str) -> Result<Duration, String> {
    let life = duration(text)?;
    if (LEAF_LIFETIME_MIN..=LEAF_LIFETIME_MAX).contains(&life) {
        return Ok(life);
    }
    Err(format!("{text:?} is not between 2s and 720h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_has_three_forms() {
        assert_eq!("off".parse::<Listen>().expect("valid"), Listen::Off);
        assert_eq!("fd:3".parse::<Listen>().expect("valid"), Listen::Inherited(3));
        assert_eq!(
            "127.0.0.1:0".parse::<Listen>().expect("valid"),
            Listen::Address("127.0.0.1:0".parse().expect("valid"))
        );
        assert_eq!(
            ":80".parse::<Listen>().expect("valid"),
            Listen::Address("[::]:80".parse().expect("valid"))
        );
        for text in ["", "8080", "fd:", "fd:-1", "fd:x"] {
            assert!(text.parse::<Listen>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "10", "s", "1d", "99999999999999999h"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn there_is_one_source_of_objects() {
        let both = Config::try_parse_from(["weft-control-plane", "--kubernetes", "--source", "."]);
        let error = both.expect_err("one or the other").to_string();
        assert!(error.contains("--kubernetes") && error.contains("--source"), "{error}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Config::command().debug_assert();
    }
}
