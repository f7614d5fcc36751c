//! The cluster that a kubeconfig names, and ways through it to ports of its pods.
//!
//! In: `KUBECONFIG`, `~/.kube/config` or a pod's own credentials, as `kubectl` reads them. Out: a client, and [`forward`]s: byte
//! streams to a port of a pod, which the API server and the kubelet carry. Invariant: every question has a deadline, because a
//! cluster that is switched off must not keep a terminal.

pub(crate) mod find;
pub(crate) mod forward;

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Where the control plane lives, and what its Deployment, ServiceAccount and Lease are called, and the Service of the replica that
/// leads and has the live graph.
pub(crate) use weft_control_plane::install::{NAME as CONTROL_PLANE, NAMESPACE};

/// How long the API server may take to be reached.
const CONNECT: Duration = Duration::from_secs(4);
/// How long it may take to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

/// A cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// What the kubeconfig calls it; `None` within a pod.
    pub(crate) context: Option<String>,
    /// The API server's address.
    pub(crate) server: String,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody said that there is a cluster.
    #[error("there is no kubeconfig (KUBECONFIG, ~/.kube/config)")]
    None,
    #[error("the kubeconfig cannot be used{}", .context.as_deref().map(|name| format!(" (context {name})")).unwrap_or_default())]
    Config { context: Option<String>, source: Box<dyn std::error::Error + Send + Sync> },
}

impl Cluster {
    /// The cluster of `context`, else of the current one. Asks it nothing yet.
    pub(crate) async fn open(context: Option<&str>) -> Result<Self, Error> {
        // Several libraries of this program could each bring one; the first to say so decides.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| Error::Config {
            context: context.map(str::to_owned),
            source,
        };
        let (mut config, context) = match (Kubeconfig::read(), context) {
            (Ok(file), context) => {
                let name = context.map(str::to_owned).or_else(|| file.current_context.clone());
                let options = KubeConfigOptions { context: context.map(str::to_owned), ..Default::default() };
                let config = Config::from_custom_kubeconfig(file, &options).await;
                (config.map_err(|error| broken(error.into()))?, name)
            }
            (Err(error), context) if context.is_some() || is_there() => return Err(broken(error.into())),
            (Err(_), _) => (Config::incluster().map_err(|_| Error::None)?, None),
        };
        config.connect_timeout = Some(CONNECT);
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| broken(error.into()))?;
        Ok(Self { client, context, server })
    }

    /// `context kind-dev`, for people.
    pub(crate) fn words(&self) -> String {
        match &self.context {
            Some(context) => format!("context {context}"),
            None => format!("the cluster at {}", self.server),
        }
    }
}

/// Whether there is a file, readable or not.
fn is_there() -> bool {
    if std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty()) {
        return true;
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    home.is_some_and(|home| home.join(".kube/config").exists())
}

/// Why the API server did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// There is no such thing.
    #[error("it is not there")]
    Missing,
    /// Whoever asks may not know.
    #[error("you may not ask for it: {0}")]
    Forbidden(String),
    /// Nobody answered, or not in time.
    #[error("{0}")]
    Unreachable(String),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// Asks, but not for ever.
pub(crate) async fn ask<T>(asking: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer.map_err(Trouble::from),
        Err(_) => Err(Trouble::Unreachable(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                404 => Self::Missing,
                401 | 403 => Self::Forbidden(status.message.clone()),
                code => Self::Refused(format!("{} ({code})", status.message)),
            },
            error => Self::Unreachable(chain(&error)),
        }
    }
}

/// An error and what it came of, in one line, without saying anything twice.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
pub(crate) mod tests;
