//! The injector as it runs in a control plane: everything started, in order.
//!
//! In: the API server's client, who leads, settings, an open listener. Out: tasks in the [`Drain`]: the watch of namespaces, the
//! keeper of the certificate, the webhook's listener, the reconciler.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace as NamespaceObject;
use kube::api::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};
use weft_wire::annotation::Sidecar;

use super::keeper::{Keeper, Served};
use super::reconcile::{Latest, Needs, Reconciler};
use super::webhook::{Namespaces, Webhook};
use super::{Options, Settings};
use crate::cluster::version::{NATIVE_SIDECARS, number};
use crate::drain::Drain;
use crate::serve;
use crate::world::Live;

/// What the injector needs of the program.
pub struct Program<'a> {
    /// The API server.
    pub client: Client,
    /// The control plane's namespace.
    pub namespace: &'a str,
    /// The control plane's pod.
    pub pod: Option<&'a str>,
    /// Whether this control plane writes.
    pub leads: watch::Receiver<bool>,
    /// All pods.
    pub live: Live,
    /// Where the census is read.
    pub latest: Latest,
    /// Whether owners of pods without a sidecar may be restarted, all of them.
    pub restart_all: bool,
    /// What listeners count.
    pub metrics: &'a serve::Metrics,
    /// Where numbers are shown.
    pub registry: &'a Registry,
    /// What everything ends with.
    pub drain: &'a Drain,
}

/// How long the API server may take to say its version, and how often it is asked.
const VERSION_PATIENCE: Duration = Duration::from_secs(3);
const VERSION_TRIES: usize = 3;

/// How sidecars are in this cluster: of the kind that its version knows, where nobody has chosen one. An older API server would
/// drop the field that makes an init container stay, and the pod would wait for its end for ever. (A kubelet may be older than
/// its API server: until the last node is at 1.29, the operator must say `classic`.)
pub async fn settings(client: &Client, options: &Options, trust_domain: &str) -> Settings {
    let mut settings = Settings::new(options, trust_domain);
    if options.sidecar.is_some() {
        return settings;
    }
    for _ in 0..VERSION_TRIES {
        match tokio::time::timeout(VERSION_PATIENCE, client.apiserver_version()).await {
            Ok(Ok(version)) => {
                settings.sidecar = kind(&version.major, &version.minor);
                let kind = settings.sidecar.word();
                info!(
                    kubernetes = version.git_version,
                    kind, "the kind of sidecars, where nobody says another"
                );
                return settings;
            }
            Ok(Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, "the API server does not say its version")
            }
            Err(_) => warn!("the API server does not say its version within {VERSION_PATIENCE:?}"),
        }
    }
    warn!("sidecars are native, as from Kubernetes 1.29 on; an older cluster needs --sidecar=classic");
    settings
}

/// The kind of sidecar for a version of Kubernetes.
fn kind(major: &str, minor: &str) -> Sidecar {
    match (number(major), number(minor)) {
        (Some(major), Some(minor)) if (major, minor) < NATIVE_SIDECARS => Sidecar::Classic,
        _ => Sidecar::Native,
    }
}

/// Serves the webhook on `listener`, and looks after pods that it missed.
pub fn start(program: Program<'_>, settings: Settings, listener: TcpListener) {
    let Program { client, namespace, pod, leads, live, latest, restart_all, metrics, registry, drain } =
        program;
    let (seen, writer) = reflector::store();
    let api: Api<PartialObjectMeta<NamespaceObject>> = Api::all(client.clone());
    let watching = watcher(api, watcher::Config::default()).default_backoff();
    let watching = reflector(writer, watching.modify(slim));
    let token = drain.token.clone();
    // What fails is tried again; until then, namespaces are asked for one by one.
    drain.tasks.spawn(async move {
        let following = watching.for_each(|event| {
            if let Err(error) = event {
                tracing::debug!(error = &error as &dyn std::error::Error, "watch of namespaces");
            }
            std::future::ready(())
        });
        token.run_until_cancelled(following).await
    });
    let served = Served::default();
    let keeper = Keeper::new(&client, namespace, leads.clone(), served.clone(), registry);
    drain.tasks.spawn(keeper.run(drain.token.clone()));
    let in_use = served.clone();
    let webhook = Arc::new(move || in_use.is_in_use());
    let namespaces = Namespaces::new(seen, live.clone(), Some(client.clone()));
    let needs = Needs { live, client, namespace, pod, leads, webhook, restart_all, latest };
    drain.tasks.spawn(Reconciler::new(needs, registry).run(drain.token.clone()));
    let webhook = Webhook::new(namespaces, settings, registry);
    serve::https("injector", listener, move || served.current(), webhook.router(), metrics, drain);
}

/// What nobody asks for is not kept.
fn slim(namespace: &mut PartialObjectMeta<NamespaceObject>) {
    namespace.metadata.managed_fields = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_cluster_gets_sidecars_that_it_knows() {
        for (major, minor, expected) in [
            ("1", "36", Sidecar::Native),
            ("1", "29", Sidecar::Native),
            ("1", "28+", Sidecar::Classic),
            ("1", "27", Sidecar::Classic),
            ("2", "0", Sidecar::Native),
            ("one", "", Sidecar::Native),
        ] {
            assert_eq!(kind(major, minor), expected, "{major}.{minor}");
        }
    }
}
