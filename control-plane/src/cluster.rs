//! What the control plane writes to the Kubernetes API server.
//!
//! In: the program's one client. Out: the authority's Secret (`secret`), who of several control planes leads (`lease`, pure, and
//! `leader`), how objects fare (`status`), what people should hear of (`event`), and whom to trust, for pods that are about to
//! start (`bundle`).
//!
//! Invariants: every request has a deadline ([`ask`]); what is written names the version that it replaces or is owned by us
//! alone; what others wrote beside it stays. Non-goal: reading the mesh's configuration, which is `sources`.
//!
//! What it needs the right to, and no more:
//!
//! | where | what | verbs | for |
//! |---|---|---|---|
//! | own namespace | Secrets | create | the first start, the first join token |
//! | own namespace | Secrets `weft-ca`, `weft-join-tokens` | get, list, watch, patch | keeping the authority; list and watch by name |
//! | own namespace | Leases | create | the first start |
//! | own namespace | Lease `weft-control-plane` | get, update | leading |
//! | own namespace | Pods | list, patch | the label of the one that leads, taken from one that was cut off |
//! | everywhere | Namespaces | list, watch | which want sidecars; the owner of the bundles |
//! | everywhere | ConfigMaps `weft-trust-bundle` | create, list, watch, patch, delete | bundles; applied, so that create may be held to the name |
//! | everywhere | HTTPRoutes, GRPCRoutes and `weft.dev` | get, list | what is said of them already |
//! | everywhere | `/status` of these | patch | how they fare |
//! | everywhere | Events of `events.k8s.io` | create, patch | news, and what is told again |
//! | everywhere | TokenReviews | create | whose a token is |

pub mod bundle;
pub mod event;
pub mod leader;
pub mod lease;
pub mod secret;
pub mod status;
pub mod version;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::ca::Leads;

use crate::sources::kubernetes::Connection;

/// How long the API server may take to answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Who we are to the API server where fields have owners, and in `app.kubernetes.io/managed-by`.
pub const MANAGER: &str = "weft-control-plane";

/// The cluster, as those see it who write to it. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// Asks and tells.
    pub client: Client,
    /// The control plane's own namespace.
    pub namespace: Arc<str>,
    /// The control plane's own pod; `None` where it runs in none.
    pub pod: Option<Arc<str>>,
}

impl Cluster {
    /// The cluster at the other end of a connection. Asks it nothing yet.
    #[must_use]
    pub fn new(connection: &Connection, namespace: &str, pod: Option<String>) -> Self {
        Self { client: connection.client.clone(), namespace: namespace.into(), pod: pod.map(Into::into) }
    }

    /// A name for this run of the program, which no other has or had: a pod's containers may start anew under its name.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{}_{}", self.name(), random())
    }

    /// The name of the pod, or of the machine.
    #[must_use]
    pub fn name(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.pod.as_deref().map_or_else(host, str::to_owned)
    }
}

fn random() -> String {
    let mut bytes = [0; 8];
    crate::ca::fill(&mut bytes);
    crate::ca::hex(&bytes)
}

/// The API server did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It said why.
    #[error("the API server answered {} {}: {}", .0.code, .0.reason, .0.message)]
    Refused(Box<kube::core::Status>),
    /// It was not reached, or was not understood.
    #[error("the conversation with the API server failed")]
    Broken(#[source] kube::Error),
    /// It took too long.
    #[error("no answer from the API server within {0:?}")]
    Timeout(Duration),
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
            error => Self::Broken(error),
        }
    }
}

impl ApiError {
    /// Whether somebody else was quicker: it is there already, or it is another version.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 409)
    }

    /// Whether it is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 404)
    }
}

/// Waits for an answer, but not for ever.
///
/// # Errors
/// When there is none, or it is no.
pub async fn ask<T>(asking: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, asking).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(_) => Err(ApiError::Timeout(REQUEST_TIMEOUT)),
    }
}

/// What only whoever leads does.
pub trait Leading: Sync {
    /// Does it. May be dropped at any moment.
    fn lead(&self) -> impl Future<Output = ()> + Send;
}

/// Lets something be done while this control plane leads, until `shutdown`.
pub async fn while_leading(mut leads: Leads, shutdown: CancellationToken, task: &impl Leading) {
    loop {
        let led = shutdown.run_until_cancelled(leads.wait_for(|leads| *leads)).await;
        if led.is_none_or(|led| led.is_err()) {
            return;
        }
        let mut ends = leads.clone();
        tokio::select! {
            () = shutdown.cancelled() => return,
            ended = ends.wait_for(|leads| !*leads) => if ended.is_err() { return },
            () = task.lead() => {}
        }
    }
}

/// Labels of what we make.
#[must_use]
pub fn labels(component: &str) -> std::collections::BTreeMap<String, String> {
    let label = |key: &str, value: &str| (format!("app.kubernetes.io/{key}"), value.to_owned());
    [label("name", "weft"), label("component", component), label("managed-by", MANAGER)].into()
}
