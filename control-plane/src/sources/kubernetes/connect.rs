//! The way to the API server, for everything that reads from it or writes to it.
//!
//! In: a kubeconfig or a pod's own credentials. Out: two clients to the same server. They differ in who copes with
//! refusals: [`Connection::client`] repeats what the server throttles by itself, and is for single requests;
//! [`Connection::follower`] tells, because conversations have their own back-off and people are to see it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, ServiceBuilder};

/// How long a connection may take to be made.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A connection on which nothing is said is asked after this time whether somebody is still there …
const KEEPALIVE: Duration = Duration::from_secs(15);
/// … and after this time again …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// … this often, before it counts as dead. A watch would otherwise wait for minutes on a server that lost its power.
const KEEPALIVE_TRIES: u32 = 3;

/// There is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a pod's credentials nor a kubeconfig.
    #[error(
        "find the Kubernetes API server: neither a kubeconfig (KUBECONFIG, ~/.kube/config) nor a pod's credentials"
    )]
    Infer(#[source] kube::config::InferConfigError),
    /// The kubeconfig that was named is none.
    #[error("read the kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// They are there and cannot be used.
    #[error("use the credentials for the Kubernetes API server")]
    Credentials(#[source] kube::Error),
}

/// A way to an API server. Cheap to clone. Making one connects to nobody.
#[derive(Clone)]
pub struct Connection {
    /// For single requests.
    pub client: kube::Client,
    /// For lists and watches.
    pub(super) follower: kube::Client,
    url: String,
}

impl Connection {
    /// Finds the server in a kubeconfig, or, if none is named, as every client of Kubernetes does.
    ///
    /// # Errors
    /// When there are no credentials, or they cannot be used.
    pub async fn find(kubeconfig: Option<&Path>) -> Result<Self, Error> {
        let config = match kubeconfig {
            None => kube::Config::infer().await.map_err(Error::Infer)?,
            Some(path) => {
                let unusable = |source| Error::Kubeconfig { path: path.to_owned(), source };
                let file = Kubeconfig::read_from(path).map_err(unusable)?;
                let options = KubeConfigOptions::default();
                kube::Config::from_custom_kubeconfig(file, &options).await.map_err(unusable)?
            }
        };
        Self::new(config).map_err(Error::Credentials)
    }

    /// To the server of a configuration.
    ///
    /// # Errors
    /// When its credentials cannot be used.
    pub fn new(mut config: kube::Config) -> kube::Result<Self> {
        config.connect_timeout = Some(CONNECT_TIME);
        let url = config.cluster_url.to_string();
        let follower = follower(&config)?;
        Ok(Self { client: kube::Client::try_from(config)?, follower, url })
    }

    /// Where the server is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

fn follower(config: &kube::Config) -> kube::Result<kube::Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIME));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_TRIES));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}
