//! The injector as it runs in a control plane: everything started, in order.
//!
//! In: the API server's client, who leads, settings, an open listener. Out: tasks in the [`Drain`]: the watch of namespaces, the
//! keeper of the certificate, the webhook's listener, the reconciler.

use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace as NamespaceObject;
use kube::api::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Settings;
use super::keeper::{Keeper, Served};
use super::reconcile::{Latest, Needs, Reconciler};
use super::webhook::{Namespaces, Webhook};
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
