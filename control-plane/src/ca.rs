//! The certificate authority: who is who in the mesh.
//!
//! In: requests for certificates with proofs of identity (`service`), wishes of operators (tokens, rotation). Out: short-lived
//! certificates, the trust bundle (as a world event, so that it travels like all configuration), and the control plane's own
//! identity for its listener.
//!
//! `authority` is the pure core: who issues, and how one root follows another; `issue` makes certificates, `csr` reads
//! requests, `token` keeps join tokens. Around it: `disk` and `kept` (what outlives the program), `brought` (an issuer of the
//! operator's), `proof` and `review` (who is it), `keep` (the task that renews and rotates).
//!
//! Invariants: a private key leaves this module only to the disk (0600) and to the listener's TLS; what was promised (a used
//! token, a new root) is on the disk before anybody hears of it; without a data directory everything is in memory, and said so.
//! Non-goal: revocation. Certificates live for a day; who must be shut out at once is denied by an `AccessPolicy`.

pub mod authority;
pub mod brought;
pub mod csr;
pub mod issue;
pub mod proof;
pub mod token;

mod disk;
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
use authority::{Authority, Issued, Offer};
use disk::Disk;
use issue::{Key, Serial};
pub use issue::{fingerprint, hex};
use metrics::Metrics;
use proof::{Proof, Shown};
pub use refusal::Refusal;
pub use review::{InvalidServer, TokenReviews};
pub use service::Service;
use token::{Tokens, Wish};
pub use view::{Clock, Overview, Progress, clock_in_words};

const AUTHORITY: &str = "authority.json";
const TOKENS: &str = "tokens.json";
/// The trust bundle for people and for sidecars that are given it as a file; nothing reads it back.
const BUNDLE: &str = "bundle.pem";

/// How long the disk may take; what waits for it longer is refused, and finds out by asking again.
const DISK_PATIENCE: Duration = Duration::from_secs(4);

/// What the operator decides.
pub struct Options {
    /// The trust domain.
    pub domain: String,
    /// How long leaves live at most.
    pub leaf_life: Duration,
    /// Where keys and tokens are kept; `None`: in memory.
    pub directory: Option<PathBuf>,
    /// An issuer that the operator brings.
    pub brought: Option<PathBuf>,
    /// Who knows service account tokens.
    pub accounts: Option<Arc<dyn Proof>>,
}

/// The authority cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk.
    #[error("use {path}")]
    Disk {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What was kept makes no sense. Nothing is made up instead.
    #[error("use {path}")]
    Kept {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
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
    /// Held by whoever changes the authority, over the time it takes to write it down.
    changing: tokio::sync::Mutex<()>,
    tokens: ArcSwap<Tokens>,
    /// Held by whoever changes the tokens, likewise, and also when nobody waits for it any more.
    changing_tokens: Arc<tokio::sync::Mutex<()>>,
    own: ArcSwap<Own>,
    listener: tls::Settings,
    live: Live,
    disk: Option<Disk>,
    brought: Option<PathBuf>,
    accounts: Option<Arc<dyn Proof>>,
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
    pub fn open(
        options: Options,
        live: Live,
        registry: &Registry,
        now: SystemTime,
    ) -> Result<Self, OpenError> {
        let Options { domain, leaf_life, directory, brought, accounts } = options;
        let own_id = SpiffeId::new(&domain, CONTROL_PLANE.0, CONTROL_PLANE.1)?;
        let disk =
            directory.map(|path| Disk::open(path.clone()).map_err(|source| OpenError::Disk { path, source }));
        let disk = disk.transpose()?;
        let offer = brought.as_deref().map(|directory| brought::read(directory, now)).transpose()?;
        let authority = begin(disk.as_ref(), &domain, leaf_life, offer, now)?;
        let tokens = match &disk {
            Some(disk) => read_tokens(disk)?,
            None => Tokens::default(),
        };
        let (own, material) = own(&authority, &own_id, now)?;
        let ca = Self(Arc::new(Inner {
            own_id,
            authority: ArcSwap::from_pointee(authority),
            changing: tokio::sync::Mutex::new(()),
            tokens: ArcSwap::from_pointee(tokens),
            changing_tokens: Arc::default(),
            own: ArcSwap::from_pointee(own),
            listener: tls::Settings::new(&domain, material),
            live,
            disk,
            brought,
            accounts,
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
        let token = self.change_tokens(|tokens| tokens.create(wish, pin, now, random)).await?;
        info!(token = &*token.id, workload = %wish.workload, service_account = &*wish.service_account, "join token made");
        Ok(token)
    }

    /// Takes a join token back. `false`: there is none of this id.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn revoke_token(&self, id: &str, now: SystemTime) -> Result<bool, Refusal> {
        let found = self.change_tokens(|tokens| Ok(tokens.revoke(id, now))).await?;
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
        let authority = self.authority();
        self.change_tokens(|tokens| tokens.redeem(token, key, authority.domain(), now)).await.map(drop)
    }

    /// Changes the tokens and writes them down before anybody hears of it.
    ///
    /// Whoever asked may go away at any moment, as callers do, and a disk may hang. The change is carried through regardless:
    /// one that ended in the middle would let a later one be written before it, and undone by it.
    async fn change_tokens<T>(
        &self,
        change: impl FnOnce(&mut Tokens) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let lock = Arc::clone(&self.0.changing_tokens).lock_owned();
        let changing = tokio::time::timeout(DISK_PATIENCE, lock).await.map_err(|_| disk_hangs())?;
        let tokens = self.0.tokens.load_full();
        let mut changed = Tokens::clone(&tokens);
        let result = change(&mut changed)?;
        if changed == *tokens {
            return Ok(result);
        }
        let ca = self.clone();
        let keeping = tokio::spawn(async move {
            let _changing = changing;
            ca.write(TOKENS, serde_json::to_vec(&changed).map_err(|_| Refusal::Internal)?).await?;
            ca.0.tokens.store(Arc::new(changed));
            Ok(())
        });
        match tokio::time::timeout(DISK_PATIENCE, keeping).await {
            Ok(kept) => kept.unwrap_or(Err(Refusal::Internal)).map(|()| result),
            Err(_) => Err(disk_hangs()),
        }
    }

    async fn write(&self, name: &'static str, bytes: Vec<u8>) -> Result<(), Refusal> {
        let Some(disk) = self.0.disk.clone() else { return Ok(()) };
        let written = tokio::task::spawn_blocking(move || disk.write(name, &bytes)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::error!(file = name, %error, "cannot be written: nothing is changed");
                Err(Refusal::Internal)
            }
            Err(_) => Err(Refusal::Internal),
        }
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

fn disk_hangs() -> Refusal {
    tracing::error!(file = TOKENS, "the disk has not answered within {DISK_PATIENCE:?}");
    Refusal::Internal
}

/// What is kept, or something new; written down before it is used.
fn begin(
    disk: Option<&Disk>,
    domain: &str,
    leaf_life: Duration,
    offer: Option<Offer>,
    now: SystemTime,
) -> Result<Authority, OpenError> {
    let make = || Offer::make(domain, now, &mut serial);
    let Some(disk) = disk else {
        if offer.is_none() {
            warn!(
                "no --data-dir: the root of the mesh is in memory, and a restart makes a new one that no sidecar trusts"
            );
        }
        return Ok(Authority::new(domain, offer.map_or_else(make, Ok)?, leaf_life));
    };
    let on_disk = |source| OpenError::Disk { path: disk.path(AUTHORITY), source };
    let authority = match disk.read(AUTHORITY).map_err(on_disk)? {
        Some(kept) => kept::read(&kept, domain, leaf_life, now, offer, make)
            .map_err(|source| OpenError::Kept { path: disk.path(AUTHORITY), source: source.into() })?,
        None => {
            info!(directory = %disk.path("").display(), "a new authority");
            Authority::new(domain, offer.map_or_else(make, Ok)?, leaf_life)
        }
    };
    let document = kept::write(&authority)
        .map_err(|source| OpenError::Kept { path: disk.path(AUTHORITY), source: source.into() })?;
    disk.write(AUTHORITY, &document).map_err(on_disk)?;
    disk.write(BUNDLE, authority.bundle().as_bytes()).map_err(on_disk)?;
    Ok(authority)
}

fn read_tokens(disk: &Disk) -> Result<Tokens, OpenError> {
    let path = || disk.path(TOKENS);
    let kept = disk.read(TOKENS).map_err(|source| OpenError::Disk { path: path(), source })?;
    kept.map_or_else(|| Ok(Tokens::default()), |kept| serde_json::from_slice(&kept))
        .map_err(|source| OpenError::Kept { path: path(), source: source.into() })
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
fn fill(bytes: &mut [u8]) {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(bytes).expect("the system has randomness");
}

#[cfg(test)]
mod tests;
