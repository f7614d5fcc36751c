//! Keeps the webhook's certificate: in its Secret, on its listener, and in the webhook configuration.
//!
//! In: Secret `weft-injector-certificate`, MutatingWebhookConfiguration `weft-injector`, who leads. Out: what the listener
//! serves with ([`Served`]); both objects as they should be, by the leader alone. [`super::certificate`] decides; this asks and
//! writes. Looks when either object changes, and every [`PERIOD`].
//!
//! Invariants: every replica serves what the Secret holds, so the API server may ask any of them; a Secret is written over the
//! version that was read and no other; the API server hears of a root before anything of it is served. Surprise: the
//! configuration is not made here but by the installation, so that uninstalling leaves nothing; without it nobody asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PartialObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use prometheus::{Gauge, IntCounter, Registry};
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::certificate::{Material, Next, next};

/// The Secret.
pub const SECRET: &str = "weft-injector-certificate";
/// The webhook configuration.
pub const CONFIGURATION: &str = "weft-injector";

/// How often it is looked whether all is well.
const PERIOD: Duration = Duration::from_secs(60);
/// How soon, when it was not.
const RETRY: Duration = Duration::from_secs(2);
/// How long the API server may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after the configuration changed the API server's own caches may need.
const SPREAD: Duration = Duration::from_secs(3);

/// What the listener serves with. Cheap to clone.
#[derive(Clone, Default)]
pub struct Served(Arc<Inner>);

#[derive(Default)]
struct Inner {
    config: ArcSwapOption<ServerConfig>,
    /// Whether the API server asks here and trusts what is served, as far as we saw.
    trusted: AtomicBool,
}

impl Served {
    /// For the next connection; `None` as long as there is no certificate.
    #[must_use]
    pub fn current(&self) -> Option<Arc<ServerConfig>> {
        self.0.config.load_full()
    }

    /// Whether a pod that is made now would be injected, as far as this control plane can tell.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.0.config.load().is_some() && self.0.trusted.load(Ordering::Relaxed)
    }

    /// Serves with `material` from the next connection on.
    ///
    /// # Errors
    /// When certificate and key do not fit.
    pub fn serve(&self, material: &Material) -> Result<(), rustls::Error> {
        let (chain, key) =
            material.tls().ok_or_else(|| rustls::Error::General("no certificate and key".into()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![weft_wire::tls::ALPN_HTTP11.to_vec()];
        self.0.config.store(Some(Arc::new(config)));
        Ok(())
    }
}

/// Why it is not as it should be.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server did not do it")]
    Api(#[from] kube::Error),
    #[error("no answer from the API server within {REQUEST_TIMEOUT:?}")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error(transparent)]
    Certificate(#[from] super::certificate::Error),
    #[error("use the certificate")]
    Tls(#[from] rustls::Error),
    #[error("there is no certificate yet; whoever leads will make one")]
    NotYet,
}

/// The task.
pub struct Keeper {
    secrets: Api<Secret>,
    /// The same without what is secret.
    changes: Api<PartialObjectMeta<Secret>>,
    configurations: Api<MutatingWebhookConfiguration>,
    leads: watch::Receiver<bool>,
    served: Served,
    current: Option<Material>,
    expires: Gauge,
    failures: IntCounter,
}

impl Keeper {
    /// Writes as long as `leads` says so.
    #[must_use]
    pub fn new(
        client: &Client,
        namespace: &str,
        leads: watch::Receiver<bool>,
        served: Served,
        registry: &Registry,
    ) -> Self {
        let expires = Gauge::new(
            "weft_injector_certificate_expires_timestamp_seconds",
            "When the webhook's certificate ends.",
        );
        let failures = IntCounter::new(
            "weft_injector_certificate_failures_total",
            "Times the webhook's certificate could not be kept.",
        );
        let (expires, failures) = (expires.expect("a valid name"), failures.expect("a valid name"));
        drop(registry.register(Box::new(expires.clone())));
        drop(registry.register(Box::new(failures.clone())));
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            changes: Api::namespaced(client.clone(), namespace),
            configurations: Api::all(client.clone()),
            leads,
            served,
            current: None,
            expires,
            failures,
        }
    }

    /// Keeps it until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let secret = watcher(self.changes.clone(), named(SECRET)).default_backoff();
        let configuration = watcher(self.configurations.clone(), named(CONFIGURATION)).default_backoff();
        let changes = futures_util::stream::select(secret.map(drop), configuration.map(drop));
        let mut changes = std::pin::pin!(changes);
        let mut leads = self.leads.clone();
        loop {
            let wait = match self.look(SystemTime::now()).await {
                Ok(()) => PERIOD,
                Err(Error::NotYet) => RETRY,
                Err(error) => {
                    self.failures.inc();
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "the webhook's certificate could not be kept"
                    );
                    RETRY
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                // Several at once, as a first list brings them, are one reason to look.
                Some(()) = changes.next() => tokio::time::sleep(Duration::from_millis(200)).await,
                changed = leads.changed() => if changed.is_err() { tokio::time::sleep(RETRY).await },
            }
        }
    }

    /// Looks, and does what is to be done.
    async fn look(&mut self, now: SystemTime) -> Result<(), Error> {
        let found = within(self.secrets.get_opt(SECRET)).await?;
        let kept = found.as_ref().and_then(|secret| Material::read(secret.data.as_ref()?));
        let leads = *self.leads.borrow();
        let material = match (next(kept.as_ref(), now)?, kept) {
            (Next::Keep, Some(kept)) => kept,
            (_, Some(kept)) if !leads => kept,
            (_, None) if !leads => return Err(Error::NotYet),
            (Next::Announce(material), _) => {
                self.tell(&material).await?;
                // Who asks with the old bundle in mind must not meet the new certificate.
                tokio::time::sleep(SPREAD).await;
                self.write(found, material).await?
            }
            (Next::Write(material), _) => self.write(found, material).await?,
            // Kept without anything that is kept: cannot be.
            (Next::Keep, None) => return Err(Error::NotYet),
        };
        if leads {
            self.tell(&material).await?;
        }
        if self.current.as_ref() != Some(&material) {
            self.served.serve(&material)?;
            let ends = material.ends.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.expires.set(ends.as_secs_f64());
            info!(expires = %jiff::Timestamp::try_from(material.ends).unwrap_or_default(), "serving with the webhook's certificate");
            self.current = Some(material);
        }
        Ok(())
    }

    /// Writes the Secret over what was read.
    async fn write(&self, found: Option<Secret>, material: Material) -> Result<Material, Error> {
        let data: std::collections::BTreeMap<String, ByteString> = material.data();
        match found {
            Some(mut secret) => {
                secret.data = Some(data);
                let name = secret.name_any();
                within(self.secrets.replace(&name, &PostParams::default(), &secret)).await?;
            }
            None => {
                let labels = [
                    ("app.kubernetes.io/name", "weft-control-plane"),
                    ("app.kubernetes.io/part-of", "weft"),
                    ("app.kubernetes.io/managed-by", "weft-control-plane"),
                ];
                let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
                let metadata = ObjectMeta {
                    name: Some(SECRET.into()),
                    labels: Some(labels.into()),
                    ..ObjectMeta::default()
                };
                let secret =
                    Secret { metadata, data: Some(data), type_: Some("Opaque".into()), ..Secret::default() };
                within(self.secrets.create(&PostParams::default(), &secret)).await?;
            }
        }
        Ok(material)
    }

    /// Lets the API server trust our roots, wherever the configuration does not yet.
    async fn tell(&self, material: &Material) -> Result<(), Error> {
        let Some(mut configuration) = within(self.configurations.get_opt(CONFIGURATION)).await? else {
            // Not installed, or not any more.
            self.served.0.trusted.store(false, Ordering::Relaxed);
            return Ok(());
        };
        let mut is_new = false;
        for webhook in configuration.webhooks.iter_mut().flatten() {
            let bundle = webhook.client_config.ca_bundle.as_ref().map(|bundle| bundle.0.as_slice());
            let bundle = bundle.and_then(|bundle| std::str::from_utf8(bundle).ok()).unwrap_or_default();
            if !material.is_trusted_by(bundle) {
                webhook.client_config.ca_bundle = Some(ByteString(material.roots.clone().into_bytes()));
                is_new = true;
            }
        }
        if is_new {
            // Over the version that was read: somebody may be upgrading.
            within(self.configurations.replace(CONFIGURATION, &PostParams::default(), &configuration))
                .await?;
            info!(configuration = CONFIGURATION, "the API server trusts the webhook");
        }
        self.served.0.trusted.store(true, Ordering::Relaxed);
        Ok(())
    }
}

async fn within<T>(asking: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    Ok(tokio::time::timeout(REQUEST_TIMEOUT, asking).await??)
}
