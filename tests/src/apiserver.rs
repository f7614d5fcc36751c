//! A small Kubernetes API server on a real socket, for tests: what clients of the API have to cope with, at will.
//!
//! In: objects, by its own methods or over HTTP; faults, by its methods. Out: what a client of the API sees: lists in pages,
//! watches with bookmarks, 410 for what is too old, conflicts, discovery, CustomResourceDefinitions that come and go,
//! subresources, TokenReviews. Invariants: whatever is stopped and resumed keeps its objects and its port; nothing is
//! answered that a real server would not.
//!
//! Non-goals: validation, defaulting, admission (but of pods that are not really created), authorization (but when asked about it),
//! controllers (nobody makes Pods or EndpointSlices of what is
//! written), field ownership: a server-side apply is a merge.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinSet;

mod resource;
mod selector;
mod serve;
mod store;
mod write;

pub use resource::Resource;
pub use store::Refusal;
use store::{Part, Store};

/// A server; ends with its value.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    serving: Option<JoinSet<()>>,
}

/// What all connections share.
struct Shared {
    store: Mutex<Store>,
    faults: Mutex<Vec<Fault>>,
    asked: Mutex<BTreeMap<(String, String), u64>>,
    tokens: Mutex<BTreeMap<String, Account>>,
    denied: Mutex<Vec<(String, String)>>,
    minor: AtomicU64,
    admission: Mutex<Option<Box<Admission>>>,
    watches: broadcast::Sender<End>,
    watching: AtomicU64,
    bookmarks: Mutex<Duration>,
}

/// What becomes of a pod on its way in.
type Admission = dyn Fn(&mut Value) + Send;

/// How watches are ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// In good order, as after their time.
    Closed,
    /// With the word that their version is too old.
    Expired,
}

/// Requests that are refused, without a look at what they ask.
#[derive(Debug, Clone)]
pub struct Fault {
    /// `list`, `watch`, `get`, `create`, `update`, `patch`, `delete`; every one, if `None`.
    pub verb: Option<&'static str>,
    /// The plural name of the kind; every one, if `None`.
    pub resource: Option<&'static str>,
    /// The status of the answer.
    pub code: u16,
    /// Seconds in `Retry-After`.
    pub retry_after: Option<u64>,
    /// How often; afterwards requests are answered again.
    pub times: usize,
}

/// Whose a token is.
#[derive(Debug, Clone)]
struct Account {
    user: String,
    audiences: Vec<String>,
}

impl ApiServer {
    /// A cluster with the kinds of Kubernetes itself, two namespaces, and nothing in them.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> anyhow::Result<Self> {
        let (watches, _) = broadcast::channel(16);
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new()),
            faults: Mutex::default(),
            asked: Mutex::default(),
            tokens: Mutex::default(),
            denied: Mutex::default(),
            minor: AtomicU64::new(36),
            admission: Mutex::default(),
            watches,
            watching: AtomicU64::new(0),
            bookmarks: Mutex::new(Duration::from_secs(1)),
        });
        let mut server = Self { shared, address: (Ipv4Addr::LOCALHOST, 0).into(), serving: None };
        server.resume().await?;
        Ok(server)
    }

    /// Answers again, where it did before and with what it had. Without effect while it answers.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        if self.serving.is_some() {
            return Ok(());
        }
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.address).with_context(|| format!("bind {}", self.address))?;
        let listener: TcpListener = socket.listen(1024)?;
        self.address = listener.local_addr()?;
        let mut serving = JoinSet::new();
        serving.spawn(serve::run(Arc::clone(&self.shared), listener));
        self.serving = Some(serving);
        Ok(())
    }

    /// Breaks every connection off and takes no more, until [`ApiServer::resume`].
    pub async fn stop(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.shutdown().await;
        }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig for it into a directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig(&self, directory: &Path) -> anyhow::Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": self.url() } }],
            "users": [{ "name": "test", "user": { "token": "test" } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        let path = directory.join("kubeconfig");
        std::fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    // === objects ===

    /// Creates or replaces objects, YAML documents, each with its status in one change, and creates the namespaces they
    /// are in.
    ///
    /// # Errors
    /// When a document is none, or of a kind that is not installed.
    pub fn apply(&self, documents: &str) -> anyhow::Result<()> {
        for document in serde_yaml::Deserializer::from_str(documents) {
            let object = Value::deserialize(document)?;
            if !object.is_null() {
                self.set(object)?;
            }
        }
        Ok(())
    }

    /// [`ApiServer::apply`] for one object.
    ///
    /// # Errors
    /// As [`ApiServer::apply`].
    pub fn set(&self, object: Value) -> anyhow::Result<()> {
        let kind = object["kind"].as_str().context("no kind")?.to_owned();
        let version = object["apiVersion"].as_str().context("no apiVersion")?;
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let mut store = self.store();
        let found = store.resources().find(|resource| resource.group == group && resource.kind == kind);
        let resource = found.cloned().with_context(|| format!("{version} {kind} is not installed"))?;
        let namespace = match (resource.namespaced, object["metadata"]["namespace"].as_str()) {
            (true, named) => named.unwrap_or("default").to_owned(),
            (false, _) => String::new(),
        };
        let name = object["metadata"]["name"].as_str().context("no name")?;
        let name = (namespace, name.to_owned());
        let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
        let failed = |refusal: Refusal| anyhow::anyhow!("{kind} {name:?}: {}", refusal.message);
        if store.table(group, plural).is_some_and(|table| table.get(&name).is_some()) {
            store.replace(group, plural, &name, Part::Whole, object).map_err(failed)?;
        } else {
            let space = json!({ "metadata": { "name": name.0 } });
            if !name.0.is_empty() {
                // Already there is as good.
                store.create("", "namespaces", "", Part::Main, space).ok();
            }
            store.create(group, plural, &name.0, Part::Whole, object).map_err(failed)?;
        }
        Ok(())
    }

    /// An object as it is now; `namespace` is empty for those without one.
    #[must_use]
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let store = self.store();
        let object = store.of_kind(kind)?.get(&(namespace.to_owned(), name.to_owned()))?;
        Some(store::value(&object.text))
    }

    /// Every object of a kind, in order of namespace and name.
    #[must_use]
    pub fn list(&self, kind: &str) -> Vec<Value> {
        let (store, all) = (self.store(), selector::Selector::default());
        let table = store.of_kind(kind);
        table.into_iter().flat_map(|table| table.select(None, &all)).map(|o| store::value(&o.text)).collect()
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        let mut store = self.store();
        let resource = store.of_kind(kind).map(|table| table.resource.clone());
        let resource = resource.with_context(|| format!("{kind} is not installed"))?;
        let deleted =
            store.delete(&resource.group, &resource.plural, &(namespace.to_owned(), name.to_owned()));
        deleted.map(drop).map_err(|refusal| anyhow::anyhow!("{}", refusal.message))
    }

    /// Installs kinds of one group, by a CustomResourceDefinition each: plural name and kind.
    ///
    /// # Errors
    /// When a definition cannot be stored.
    pub fn define(&self, group: &str, versions: &[&str], kinds: &[(&str, &str)]) -> anyhow::Result<()> {
        for (plural, kind) in kinds {
            let resource = Resource {
                group: group.to_owned(),
                versions: versions.iter().map(|&version| version.to_owned()).collect(),
                plural: (*plural).to_owned(),
                kind: (*kind).to_owned(),
                namespaced: true,
                status: true,
            };
            self.set(resource.definition())?;
        }
        Ok(())
    }

    /// Installs what the Gateway API has of use to the mesh.
    ///
    /// # Errors
    /// As [`ApiServer::define`].
    pub fn define_gateway_api(&self) -> anyhow::Result<()> {
        let routes = [("httproutes", "HTTPRoute"), ("grpcroutes", "GRPCRoute")];
        self.define("gateway.networking.k8s.io", &["v1", "v1beta1"], &routes)?;
        self.define("gateway.networking.k8s.io", &["v1beta1"], &[("referencegrants", "ReferenceGrant")])
    }

    /// Installs the mesh's own kinds, as loosely as can be.
    ///
    /// # Errors
    /// As [`ApiServer::define`].
    pub fn define_weft(&self) -> anyhow::Result<()> {
        let kinds = [
            ("accesspolicies", "AccessPolicy"),
            ("circuitbreakers", "CircuitBreaker"),
            ("trafficpolicies", "TrafficPolicy"),
        ];
        self.define("weft.dev", &["v1alpha1"], &kinds)
    }

    /// Lets a TokenReview find out that `token` is the service account's, made for `audience`.
    pub fn know_token(&self, token: &str, namespace: &str, account: &str, audience: &str) {
        let account = Account {
            user: format!("system:serviceaccount:{namespace}:{account}"),
            audiences: vec![audience.to_owned()],
        };
        lock(&self.shared.tokens).insert(token.to_owned(), account);
    }

    /// Answers reviews of access that nobody may do this.
    pub fn deny(&self, verb: &str, resource: &str) {
        lock(&self.shared.denied).push((verb.to_owned(), resource.to_owned()));
    }

    /// Says that it is Kubernetes 1.`minor`. What it does stays the same.
    pub fn claim(&self, minor: u32) {
        self.shared.minor.store(minor.into(), Ordering::Relaxed);
    }

    /// Denies nothing any more.
    pub fn allow_all(&self) {
        lock(&self.shared.denied).clear();
    }

    /// What a webhook would make of pods that are created by `dryRun`.
    pub fn admit(&self, change: impl Fn(&mut Value) + Send + 'static) {
        *lock(&self.shared.admission) = Some(Box::new(change));
    }

    // === faults ===

    /// Refuses some requests; see [`Fault`].
    pub fn refuse(&self, fault: Fault) {
        lock(&self.shared.faults).push(fault);
    }

    /// How many kinds of trouble are not used up.
    #[must_use]
    pub fn faults(&self) -> usize {
        lock(&self.shared.faults).iter().filter(|fault| fault.times > 0).count()
    }

    /// Refuses nothing any more.
    pub fn forgive(&self) {
        lock(&self.shared.faults).clear();
    }

    /// Forgets every change so far: a watch from an older version, or the next page of an older list, is a 410.
    pub fn compact(&self) {
        self.store().compact();
    }

    /// Ends every watch in good order.
    pub fn close_watches(&self) {
        // Nobody watching is no error.
        self.shared.watches.send(End::Closed).ok();
    }

    /// Ends every watch with the word that its version is too old.
    pub fn expire_watches(&self) {
        self.shared.watches.send(End::Expired).ok();
    }

    /// How often a watch that asked for it is told how far it is although nothing happens.
    pub fn bookmark_every(&self, time: Duration) {
        *lock(&self.shared.bookmarks) = time;
    }

    // === what was asked ===

    /// How many watches are open.
    #[must_use]
    pub fn watching(&self) -> u64 {
        self.shared.watching.load(Ordering::Relaxed)
    }

    /// How often each verb was asked of each kind: (`list`, `pods`), (`patch`, `pods/status`).
    #[must_use]
    pub fn asked(&self) -> BTreeMap<(String, String), u64> {
        lock(&self.shared.asked).clone()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.shared.store)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
