//! What a cluster has of an installation.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, ObjectMeta, PartialObjectMeta};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;
use weft_control_plane::cluster::MANAGER;
use weft_control_plane::install::NAMESPACE;
use weft_control_plane::install::change::Named;
use weft_wire::annotation::STATUS;

use crate::kubernetes;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pods in one answer.
const PAGE: u32 = 500;

/// A cluster. Only asks.
pub(super) struct Cluster(Client);

/// Pods with a sidecar, by namespace and the sidecar's version.
pub(super) type Injected = BTreeMap<(String, String), usize>;

impl Cluster {
    /// Finds it as `kubectl` would.
    pub(super) async fn find() -> anyhow::Result<Self> {
        let found = kubernetes::Cluster::open(None).await;
        let found = found.context("cannot find a cluster: KUBECONFIG or ~/.kube/config says where it is")?;
        Ok(Self(found.client))
    }

    /// An object; `None` if it is not there, or its kind is not.
    pub(super) async fn get(&self, named: &Named) -> anyhow::Result<Option<Value>> {
        let found = timeout(PATIENCE, self.of(named).get_opt(&named.name)).await;
        let found = found.context("the cluster does not answer")?;
        match found.with_context(|| format!("cannot look at {named}"))? {
            Some(object) => Ok(Some(serde_json::to_value(object)?)),
            None => Ok(None),
        }
    }

    /// What an object says of itself, without what is in it; `None` if it is not there.
    pub(super) async fn metadata(&self, named: &Named) -> anyhow::Result<Option<ObjectMeta>> {
        let found = timeout(PATIENCE, self.of(named).get_metadata_opt(&named.name)).await;
        let found = found.context("the cluster does not answer")?;
        Ok(found.with_context(|| format!("cannot look at {named}"))?.map(|one| one.metadata))
    }

    fn of(&self, named: &Named) -> Api<DynamicObject> {
        let (group, version) = named.api_version.split_once('/').unwrap_or(("", &named.api_version));
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &named.kind));
        match &named.namespace {
            Some(namespace) => Api::namespaced_with(self.0.clone(), namespace, &kind),
            None => Api::all_with(self.0.clone(), &kind),
        }
    }

    /// The trust bundles that the control plane has written beside injected pods.
    pub(super) async fn bundles(&self) -> anyhow::Result<Vec<Named>> {
        let ours = ListParams::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
        let found = names(&Api::<ConfigMap>::all(self.0.clone()), &ours).await;
        found.context("cannot look for trust bundles")
    }

    /// What holds data in Weft's namespace: claims, and Secrets but those of service accounts. A page of each, which is enough to
    /// know that there are some.
    pub(super) async fn holders(&self) -> anyhow::Result<Vec<Named>> {
        let page = ListParams::default().limit(PAGE);
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.0.clone(), NAMESPACE);
        let secrets = Api::<Secret>::namespaced(self.0.clone(), NAMESPACE);
        let mut found = names(&claims, &page).await?;
        let people = page.fields("type!=kubernetes.io/service-account-token");
        found.extend(names(&secrets, &people).await?);
        Ok(found)
    }

    /// Pods that have a sidecar.
    pub(super) async fn injected(&self) -> anyhow::Result<Injected> {
        let api: Api<PartialObjectMeta<Pod>> = Api::all(self.0.clone());
        // What has ended needs no restart.
        let mut page =
            ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed").limit(PAGE);
        let mut injected = Injected::new();
        loop {
            let found = timeout(PATIENCE, api.list(&page)).await.context("the cluster does not answer")?;
            let found = found.context("cannot look for pods with sidecars")?;
            for pod in found.items {
                let annotations = pod.metadata.annotations.unwrap_or_default();
                let Some(status) = annotations.get(STATUS) else { continue };
                let status: Value = serde_json::from_str(status).unwrap_or_default();
                let version = status["version"].as_str().unwrap_or("?").to_owned();
                let namespace = pod.metadata.namespace.unwrap_or_default();
                *injected.entry((namespace, version)).or_default() += 1;
            }
            match found.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(injected),
            }
        }
    }
}

/// The names of what is there, without what is in it.
async fn names<K>(api: &Api<K>, which: &ListParams) -> anyhow::Result<Vec<Named>>
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let (api_version, kind) = (K::api_version(&()), K::kind(&()));
    let found = timeout(PATIENCE, api.list_metadata(which)).await.context("the cluster does not answer")?;
    let found = found.with_context(|| format!("cannot list each {kind} ({})", api.resource_url()))?;
    let named = |one: PartialObjectMeta<K>| Named {
        api_version: api_version.to_string(),
        kind: kind.to_string(),
        namespace: one.metadata.namespace,
        name: one.metadata.name.unwrap_or_default(),
    };
    Ok(found.items.into_iter().map(named).collect())
}
