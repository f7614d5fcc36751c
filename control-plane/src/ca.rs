//! The certificate authority: who is who in the mesh.
//!
//! In: requests for certificates with proofs of identity (`service`), wishes of operators (tokens, rotation). Out: short-lived
//! certificates, the trust bundle (as a world event, so that it travels like all configuration), and the control plane's own
//! identity for its listener.
//!
//! `authority` is the pure core: who issues, and how one root follows another; `issue` makes certificates, `csr` reads
//! requests, `token` keeps join tokens. Around it: `store`, `disk` and `kept` (what outlives the program), `brought` (an issuer
//! of the operator's), `proof` and `review` (who is it), `keep` (the task that renews and rotates), `follow` (what others who
//! share the place have written).
//!
//! Invariants: a private key leaves this module only to its [`Store`] and to the listener's TLS; what was promised (a used
//! token, a new root) is kept before anybody hears of it; without a place to keep it everything is in memory, and said so.
//! Several control planes may share a place: each change says which version it replaces, and whoever comes second takes over
//! what the first wrote and tries again.
//! Non-goal: revocation. Certificates live for a day; who must be shut out at once is denied by an `AccessPolicy`.

pub mod authority;
pub mod brought;
pub mod csr;
pub mod issue;
pub mod proof;
pub mod store;
pub mod token;

mod disk;
mod follow;
mod keep;
mod kept;
mod metrics;
mod refusal;
mod review;
mod service;
mod view;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use prometheus::Registry;
use tracing::{info, warn};
use weft_wire::ca::JoinToken;
use weft_wire::tls::CONTROL_PLANE;
use weft_wire::{SpiffeId, WorkloadId};

use crate::serve::tls;
use crate::world::{Event, Live, Trust};
use authority::{Authority, Issued, Offer, Step};
pub use disk::Disk;
use issue::{Key, Serial};
pub use issue::{fingerprint, hex};
pub use keep::{Leads, alone};
use metrics::Metrics;
use proof::{Proof, Shown};
pub use refusal::Refusal;
pub use review::{InvalidServer, Reviewer, TokenReviews};
pub use service::Service;
use store::{Document, Failure, Store, Version, WriteError};
use token::{Tokens, Wish};
pub use view::{Clock, Overview, Progress, clock_in_words};

/// How long a change may take to be kept; what waits for it longer is refused, and finds out by asking again.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often a change is tried again because somebody else was quicker. Each of them has carried a change through.
const CONFLICTS_MAX: usize = 8;

/// What the operator decides.
pub struct Options {
    /// The trust domain.
    pub domain: String,
    /// How long leaves live at most.
    pub leaf_life: Duration,
    /// Where keys and tokens are kept; `None`: in memory.
    pub store: Option<Arc<dyn Store>>,
    /// An issuer that the operator brings.
    pub brought: Option<PathBuf>,
    /// Who knows service account tokens.
    pub accounts: Option<Arc<dyn Proof>>,
    /// Who hears of steps, beside the log.
    pub hears: Option<Hears>,
}

/// Hears of a step, and in words what it was. Must not wait.
pub type Hears = Box<dyn Fn(Step, &str) + Send + Sync>;

/// The authority cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Where it is kept.
    #[error("use {place}")]
    Store {
        /// Which document.
        place: String,
        /// Why.
        source: Failure,
    },
    /// What was kept makes no sense. Nothing is made up instead.
    #[error("use {place}")]
    Kept {
        /// Which document.
        place: String,
        /// Why.
        source: Failure,
    },
    /// The issuer that was brought.
    #[error("use --ca-dir")]
    Brought(#[from] brought::BroughtError),
    /// The trust domain is no name.
    #[error("use --trust-domain")]
    Domain(#[from] weft_wire::InvalidName),
    /// Keys cannot be made.
    #[error("make the authority's keys")]
    Make(#[from] issue::Error),
    /// TLS cannot be set up with them.
    #[error("use the control plane's own certificate")]
    Tls(#[from] tls::SetupError),
}

/// The authority. Cheap to clone.
#[derive(Clone)]
pub struct Ca(Arc<Inner>);

struct Inner {
    own_id: SpiffeId,
    authority: ArcSwap<Authority>,
    /// Which version of the authority is in use. Held by whoever changes it, over the time it takes to write it down.
    changing: tokio::sync::Mutex<Option<Version>>,
    tokens: ArcSwap<Tokens>,
    /// Likewise, and also when nobody waits for it any more.
    changing_tokens: Arc<tokio::sync::Mutex<Option<Version>>>,
    own: ArcSwap<Own>,
    listener: tls::Settings,
    live: Live,
    store: Option<Arc<dyn Store>>,
    brought: Option<PathBuf>,
    accounts: Option<Arc<dyn Proof>>,
    hears: Option<Hears>,
    metrics: Metrics,
    /// Sidecars whose clock was found to differ, for people.
    clocks: Mutex<view::Clocks>,
}

/// The control plane's own certificate.
struct Own {
    issued: Issued,
    root: [u8; 32],
}

impl Ca {
    /// Opens what is kept, or makes a new authority.
    ///
    /// # Errors
    /// When what is kept cannot be used, or nothing can be made.
    pub async fn open(
        options: Options,
        live: Live,
        registry: &Registry,
        now: SystemTime,
    ) -> Result<Self, OpenError> {
        let Options { domain, leaf_life, store, brought, accounts, hears } = options;
        let own_id = SpiffeId::new(&domain, CONTROL_PLANE.0, CONTROL_PLANE.1)?;
        let offer = match brought.clone() {
            // Reads a disk.
            Some(directory) => {
                let read = tokio::task::spawn_blocking(move || brought::read(&directory, now)).await;
                Some(read.unwrap_or_else(|broken| std::panic::resume_unwind(broken.into_panic()))?)
            }
            None => None,
        };
        let (authority, version) = begin(store.as_deref(), &domain, leaf_life, offer, now).await?;
        let (tokens, tokens_version) = match &store {
            Some(store) => read_tokens(&**store).await?,
            None => (Tokens::default(), None),
        };
        let (own, material) = own(&authority, &own_id, now)?;
        let ca = Self(Arc::new(Inner {
            own_id,
            authority: ArcSwap::from_pointee(authority),
            changing: tokio::sync::Mutex::new(version),
            tokens: ArcSwap::from_pointee(tokens),
            changing_tokens: Arc::new(tokio::sync::Mutex::new(tokens_version)),
            own: ArcSwap::from_pointee(own),
            listener: tls::Settings::new(&domain, material),
            live,
            store,
            brought,
            accounts,
            hears,
            metrics: Metrics::new(registry),
            clocks: Mutex::default(),
        }));
        ca.announce();
        Ok(ca)
    }

    /// What the listener for sidecars speaks TLS with; follows every change.
    #[must_use]
    pub fn listener(&self) -> &tls::Settings {
        &self.0.listener
    }

    /// The gRPC service that sidecars ask for certificates.
    #[must_use]
    pub fn service(&self) -> Service {
        Service::new(self.clone())
    }

    /// The authority as it is now.
    #[must_use]
    pub fn authority(&self) -> Arc<Authority> {
        self.0.authority.load_full()
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// When there are too many, or it cannot be kept.
    pub async fn create_token(&self, wish: &Wish, now: SystemTime) -> Result<JoinToken, Refusal> {
        let authority = self.authority();
        let (namespace, account) = (wish.workload.namespace(), &*wish.service_account);
        if (namespace, account) == CONTROL_PLANE {
            return Err(Refusal::OwnIdentity(self.0.own_id.to_string()));
        }
        let pin = authority.issuer().root;
        let mut random = [0; token::RANDOM];
        fill(&mut random);
        let wanted = wish.clone();
        let token = self.change_tokens(move |tokens| tokens.create(&wanted, pin, now, random)).await?;
        info!(token = &*token.id, workload = %wish.workload, service_account = &*wish.service_account, "join token made");
        Ok(token)
    }

    /// Takes a join token back. `false`: there is none of this id.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn revoke_token(&self, id: &str, now: SystemTime) -> Result<bool, Refusal> {
        let named = id.to_owned();
        let found = self.change_tokens(move |tokens| Ok(tokens.revoke(&named, now))).await?;
        info!(token = id, found, "join token revoked");
        Ok(found)
    }

    /// Every join token.
    #[must_use]
    pub fn tokens(&self, now: SystemTime) -> Vec<token::Listed> {
        self.0.tokens.load().list(now)
    }

    /// Whether `id` was given out for `workload`, whose name is another.
    #[must_use]
    pub fn is_bound(&self, id: &SpiffeId, workload: &WorkloadId) -> bool {
        self.0.tokens.load().is_bound(id, workload)
    }

    /// Who `shown` proves to be, for the key `key`. A join token is not used up yet.
    async fn prove(
        &self,
        shown: &Shown,
        connection: Option<&SpiffeId>,
        key: &[u8; 32],
        now: SystemTime,
    ) -> Result<SpiffeId, Refusal> {
        let authority = self.authority();
        match shown {
            Shown::Join(token) => {
                if authority.roots().iter().all(|root| root.certificate.pin != token.pin) {
                    return Err(Refusal::TokenForeign { id: token.id.clone() });
                }
                Ok(self.0.tokens.load().check(token, key, authority.domain(), now)?.id)
            }
            Shown::Account(token) => {
                let accounts = self.0.accounts.as_ref().ok_or(Refusal::ReviewOff)?;
                let account = accounts.account(token).await?;
                SpiffeId::new(authority.domain(), &account.namespace, &account.name)
                    .map_err(|error| Refusal::AccountRejected(error.to_string()))
            }
            Shown::Nothing => connection.cloned().ok_or(Refusal::NoProof),
        }
    }

    async fn redeem(&self, token: &JoinToken, key: &[u8; 32], now: SystemTime) -> Result<(), Refusal> {
        let (authority, token, key) = (self.authority(), token.clone(), *key);
        self.change_tokens(move |tokens| tokens.redeem(&token, &key, authority.domain(), now)).await.map(drop)
    }

    /// Changes the tokens and keeps them before anybody hears of it.
    ///
    /// Whoever asked may go away at any moment, as callers do, and a disk may hang. The change is carried through regardless:
    /// one that ended in the middle would let a later one be written before it, and undone by it.
    async fn change_tokens<T: Send + 'static>(
        &self,
        change: impl Fn(&mut Tokens) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let lock = Arc::clone(&self.0.changing_tokens).lock_owned();
        let mut changing =
            tokio::time::timeout(PATIENCE, lock).await.map_err(|_| self.hangs(Document::Tokens))?;
        let ca = self.clone();
        let keeping = tokio::spawn(async move { ca.keep_tokens(&mut changing, change).await });
        match tokio::time::timeout(PATIENCE, keeping).await {
            Ok(kept) => kept.unwrap_or(Err(Refusal::Internal)),
            Err(_) => Err(self.hangs(Document::Tokens)),
        }
    }

    async fn keep_tokens<T>(
        &self,
        version: &mut Option<Version>,
        change: impl Fn(&mut Tokens) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        for _ in 0..CONFLICTS_MAX {
            let tokens = self.0.tokens.load_full();
            let mut changed = Tokens::clone(&tokens);
            let result = change(&mut changed)?;
            if changed == *tokens {
                return Ok(result);
            }
            let bytes = serde_json::to_vec(&changed).map_err(|_| Refusal::Internal)?;
            if self.write(Document::Tokens, bytes, None, version).await? {
                self.0.tokens.store(Arc::new(changed));
                return Ok(result);
            }
            self.reread_tokens(version).await?;
        }
        tracing::error!("join tokens are changed by others all the time: nothing is changed");
        Err(Refusal::Internal)
    }

    /// Keeps a document in place of `version`, and notes the new one. `false`: somebody else was quicker.
    async fn write(
        &self,
        document: Document,
        bytes: Vec<u8>,
        public: Option<String>,
        version: &mut Option<Version>,
    ) -> Result<bool, Refusal> {
        let Some(store) = &self.0.store else { return Ok(true) };
        match store.write(document, bytes, public, version.as_ref()).await {
            Ok(written) => {
                *version = Some(written);
                Ok(true)
            }
            Err(WriteError::Conflict) => {
                info!(place = store.place(document), "somebody else has changed it meanwhile");
                Ok(false)
            }
            Err(error) => {
                let place = store.place(document);
                tracing::error!(place, error = &error as &dyn std::error::Error, "nothing is changed");
                self.0.metrics.store_failed();
                Err(Refusal::Internal)
            }
        }
    }

    fn hangs(&self, document: Document) -> Refusal {
        let place = self.0.store.as_ref().map(|store| store.place(document));
        tracing::error!(place, "no answer within {PATIENCE:?}");
        Refusal::Internal
    }

    /// Tells the world whom to trust.
    fn announce(&self) {
        let authority = self.authority();
        let trust = Trust { domain: authority.domain().into(), roots: authority.bundle().into() };
        let now: Instant = tokio::time::Instant::now().into_std();
        self.0.live.apply([Event::TrustSet(trust)], now);
    }

    fn clocks(&self) -> std::sync::MutexGuard<'_, view::Clocks> {
        self.0.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is kept, or something new; kept before it is used.
async fn begin(
    store: Option<&dyn Store>,
    domain: &str,
    leaf_life: Duration,
    offer: Option<Offer>,
    now: SystemTime,
) -> Result<(Authority, Option<Version>), OpenError> {
    let make = || Offer::make(domain, now, &mut serial);
    let Some(store) = store else {
        if offer.is_none() {
            warn!(
                "no --data-dir: the root of the mesh is in memory, and a restart makes a new one that no sidecar trusts"
            );
        }
        return Ok((Authority::new(domain, offer.map_or_else(make, Ok)?, leaf_life), None));
    };
    let place = || store.place(Document::Authority);
    let unusable = |source| OpenError::Store { place: place(), source };
    let senseless = |source| OpenError::Kept { place: place(), source };
    for _ in 0..CONFLICTS_MAX {
        let kept = store.read(Document::Authority).await.map_err(unusable)?;
        let authority = match kept.as_ref().filter(|kept| !kept.bytes.is_empty()) {
            Some(kept) => kept::read(&kept.bytes, domain, leaf_life, now, offer.clone(), make)
                .map_err(|error| senseless(error.into()))?,
            None => {
                info!(place = place(), "a new authority");
                Authority::new(domain, offer.clone().map_or_else(make, Ok)?, leaf_life)
            }
        };
        let document = kept::write(&authority).map_err(|error| senseless(error.into()))?;
        let (known, version) = kept.map(|kept| (kept.bytes, kept.version)).unzip();
        if known.as_ref() == Some(&document) {
            return Ok((authority, version));
        }
        let public = Some(authority.bundle());
        match store.write(Document::Authority, document, public, version.as_ref()).await {
            Ok(version) => return Ok((authority, Some(version))),
            // Another control plane starts at the same moment: its root is everybody's.
            Err(WriteError::Conflict) => info!(place = place(), "somebody else was quicker: theirs is taken"),
            Err(WriteError::Failed(source)) => return Err(unusable(source)),
        }
    }
    Err(unusable("it is changed by others all the time".into()))
}

async fn read_tokens(store: &dyn Store) -> Result<(Tokens, Option<Version>), OpenError> {
    let place = || store.place(Document::Tokens);
    let kept = store.read(Document::Tokens).await;
    let kept = kept.map_err(|source| OpenError::Store { place: place(), source })?;
    let Some(kept) = kept else { return Ok((Tokens::default(), None)) };
    if kept.bytes.is_empty() {
        return Ok((Tokens::default(), Some(kept.version)));
    }
    let tokens = serde_json::from_slice(&kept.bytes)
        .map_err(|source| OpenError::Kept { place: place(), source: source.into() })?;
    Ok((tokens, Some(kept.version)))
}

/// A fresh certificate of the control plane's own, and the TLS to serve with it.
fn own(authority: &Authority, id: &SpiffeId, now: SystemTime) -> Result<(Own, tls::Material), OpenError> {
    let key = Key::generate()?;
    let issued = authority.issue(id, &key.to_spki(), None, Duration::ZERO, now, serial())?;
    let roots = authority.roots().iter().map(|root| &root.certificate.der);
    let material = tls::Material::new(issued.der(), key.to_pkcs8(), roots)?;
    Ok((Own { issued, root: authority.issuer().root }, material))
}

/// A new serial number.
fn serial() -> Serial {
    let mut serial = Serial::default();
    fill(&mut serial);
    serial
}

/// The system's randomness.
///
/// # Panics
/// When it has none: nothing that is made from here on would be a secret.
pub(crate) fn fill(bytes: &mut [u8]) {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(bytes).expect("the system has randomness");
}

#[cfg(test)]
mod tests;
