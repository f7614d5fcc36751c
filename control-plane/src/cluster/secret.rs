//! The authority's documents in Secrets of the control plane's namespace: `weft-ca` and `weft-join-tokens`.
//!
//! In: documents as bytes. Out: the same bytes; word of changes that anybody makes. Invariants: a Secret is written only over
//! the version that was read (the API server refuses anything else), or made if it is not there; what others put beside our key
//! stays. Surprise: `ca.crt` in `weft-ca` is for people. Nothing reads it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::json;
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::{Cluster, MANAGER, ask, labels};
use crate::ca::store::{Document, Failure, Kept, Store, Version, WriteError};
use crate::drain::Drain;

/// The authority.
pub const AUTHORITY: &str = "weft-ca";
/// Join tokens, which programs outside the cluster need.
pub const TOKENS: &str = "weft-join-tokens";
/// The roots, for people.
const BUNDLE: &str = "ca.crt";
/// Largest document. A Secret may hold 1 MiB, and the bundle is in it too.
const BYTES_MAX: usize = 960 * 1024;

/// Secrets as a place. Cheap to clone.
#[derive(Clone)]
pub struct Secrets(Arc<Inner>);

struct Inner {
    api: Api<Secret>,
    namespace: Arc<str>,
    changed: Notify,
}

const fn name(document: Document) -> &'static str {
    match document {
        Document::Authority => AUTHORITY,
        Document::Tokens => TOKENS,
    }
}

impl Secrets {
    /// The Secrets of the control plane's namespace.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        let (client, namespace) = (cluster.client.clone(), Arc::clone(&cluster.namespace));
        let api = Api::namespaced(client, &namespace);
        Self(Arc::new(Inner { api, namespace, changed: Notify::new() }))
    }

    /// Hears of changes from now on, until `drain` ends it.
    pub fn follow(&self, drain: &Drain) {
        for document in [Document::Authority, Document::Tokens] {
            let (token, inner) = (drain.token.clone(), Arc::clone(&self.0));
            drain.tasks.spawn(async move { token.run_until_cancelled(inner.hear(document)).await });
        }
    }
}

impl Inner {
    async fn hear(&self, document: Document) {
        // By its name, so that no other Secret need be readable.
        let only = watcher::Config::default().fields(&format!("metadata.name={}", name(document)));
        let mut events = watcher(self.api.clone(), only).default_backoff().boxed();
        let mut is_well = true;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => {}
                Ok(_) => {
                    is_well = true;
                    self.changed.notify_one();
                }
                Err(error) if is_well => {
                    is_well = false;
                    warn!(secret = name(document), %error, "cannot be watched; it is tried again");
                }
                Err(error) => debug!(secret = name(document), %error, "still cannot be watched"),
            }
        }
    }

    async fn make(&self, name: &str, data: BTreeMap<String, ByteString>) -> Result<Version, WriteError> {
        let component = "certificate-authority";
        let metadata =
            ObjectMeta { name: Some(name.to_owned()), labels: Some(labels(component)), ..Default::default() };
        let secret =
            Secret { metadata, data: Some(data), type_: Some("Opaque".to_owned()), ..Default::default() };
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
        written(ask(self.api.create(&params, &secret)).await)
    }
}

#[tonic::async_trait]
impl Store for Secrets {
    fn place(&self, document: Document) -> String {
        format!("Secret {}/{}", self.0.namespace, name(document))
    }

    async fn read(&self, document: Document) -> Result<Option<Kept>, Failure> {
        let Some(secret) = ask(self.0.api.get_opt(name(document))).await? else { return Ok(None) };
        let version = version(&secret).ok_or("the API server gave it no version")?;
        // Whoever made it empty wanted it filled: it is written over this version.
        let bytes = secret.data.and_then(|mut data| data.remove(document.file())).unwrap_or_default().0;
        Ok(Some(Kept { bytes, version }))
    }

    async fn write(
        &self,
        document: Document,
        bytes: Vec<u8>,
        public: Option<String>,
        over: Option<&Version>,
    ) -> Result<Version, WriteError> {
        if bytes.len() > BYTES_MAX {
            let why = format!("{} bytes are more than a Secret holds ({BYTES_MAX})", bytes.len());
            return Err(WriteError::Failed(why.into()));
        }
        let mut data = BTreeMap::from([(document.file().to_owned(), ByteString(bytes))]);
        data.extend(public.map(|public| (BUNDLE.to_owned(), ByteString(public.into_bytes()))));
        let name = name(document);
        let Some(over) = over else { return self.0.make(name, data).await };
        let patch = json!({ "metadata": { "resourceVersion": over.0 }, "data": data });
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
        written(ask(self.0.api.patch(name, &params, &Patch::Merge(patch))).await)
    }

    async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

fn version(secret: &Secret) -> Option<Version> {
    secret.metadata.resource_version.as_deref().map(|version| Version(version.into()))
}

fn written(answer: Result<Secret, super::ApiError>) -> Result<Version, WriteError> {
    match answer {
        Ok(secret) => {
            version(&secret).ok_or_else(|| WriteError::Failed("the API server gave it no version".into()))
        }
        // It is gone: who reads it again sees that.
        Err(error) if error.is_conflict() || error.is_not_found() => Err(WriteError::Conflict),
        Err(error) => Err(WriteError::Failed(error.into())),
    }
}
