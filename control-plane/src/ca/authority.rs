//! Who issues, whom everybody trusts, and how a mesh goes from one root to the next. Pure: time and randomness are passed in.
//!
//! A rotation has three phases, and each begins only when nobody can be hurt by it:
//!
//! 1. **Distributing**: both roots are in the bundle, the old one issues. Ends when every connected sidecar has acknowledged
//!    the bundle (or by force).
//! 2. **Replacing**: the new root issues, and stands first in the bundle, which tells sidecars to renew. Both are trusted.
//!    Chains also carry the new root signed by the old one, so that a sidecar that was away all the time, or holds a join
//!    token that pins the old root, can still follow. Ends when no certificate of the old root can be valid any more.
//! 3. The old root is dropped.
//!
//! Invariant: there is always exactly one issuer, and its root is the first of the bundle.
//! Surprise: an issuer that the operator brings (`--ca-dir`) goes the same way when it hangs from another root.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use weft_wire::SpiffeId;

use super::issue::{self, Certificate, Error, Key, Life, Serial};

/// How long the new bundle is out at least before the new root issues: sidecars that are just connecting.
pub const SETTLE: Duration = Duration::from_secs(5);
/// The first part of an intermediate's or root's life, after which it is replaced.
const USED_UP: u32 = 3;

/// Randomness, from whoever has some.
pub type Random<'a> = &'a mut dyn FnMut() -> Serial;

/// A root that is trusted.
#[derive(Debug, Clone)]
pub struct Root {
    /// Its certificate.
    pub certificate: Certificate,
    /// Its key, when this program made it.
    pub key: Option<Key>,
}

/// What leaves are signed with.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// The certificate, usually an intermediate.
    pub certificate: Certificate,
    /// What is between it and its root.
    pub above: Vec<Certificate>,
    /// Its key.
    pub key: Key,
    /// The root it hangs from, by its pin.
    pub root: [u8; 32],
}

/// An issuer and its roots, to begin with or to go over to.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The issuer.
    pub issuer: Issuer,
    /// Roots to be trusted; one of them is the issuer's.
    pub roots: Vec<Root>,
}

impl Offer {
    /// A root and an intermediate that are made here.
    ///
    /// # Errors
    /// When keys cannot be made.
    pub fn make(domain: &str, now: SystemTime, random: Random<'_>) -> Result<Self, Error> {
        let key = Key::generate()?;
        let certificate = issue::root(domain, &key, now, random())?;
        let issuer = Issuer::below(domain, (&certificate, &key), now, random)?;
        Ok(Self { issuer, roots: vec![Root { certificate, key: Some(key) }] })
    }
}

impl Issuer {
    fn below(
        domain: &str,
        root: (&Certificate, &Key),
        now: SystemTime,
        random: Random<'_>,
    ) -> Result<Self, Error> {
        let key = Key::generate()?;
        let certificate = issue::intermediate(domain, &key, root, now, random())?;
        Ok(Self { certificate, above: Vec::new(), key, root: root.0.pin })
    }

    /// What stands between a leaf and the root.
    fn between(&self) -> impl Iterator<Item = &Certificate> {
        let own = (self.certificate.pin != self.root).then_some(&self.certificate);
        own.into_iter().chain(&self.above)
    }
}

/// How far a rotation is.
#[derive(Debug, Clone)]
pub enum Phase {
    /// Both roots are trusted, the old one issues.
    Distributing {
        /// What will issue.
        next: Issuer,
    },
    /// The new root issues.
    Replacing {
        /// When the last certificate of the old root is over.
        until: SystemTime,
    },
}

/// A rotation that is going on.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// How far it is.
    pub phase: Phase,
    /// When the phase began.
    pub since: SystemTime,
    /// The old root.
    pub old: [u8; 32],
    /// The new root.
    pub new: [u8; 32],
    /// The new root signed by the old one, where the old one's key is here.
    pub cross: Option<Certificate>,
}

/// What the connected sidecars have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Adoption {
    /// Sidecars with an identity that are connected.
    pub connected: usize,
    /// Those that acknowledged the current bundle.
    pub trusting: usize,
    /// Those whose certificate is of the issuing root.
    pub renewed: usize,
}

/// What a step changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The intermediate was renewed.
    Intermediate,
    /// A rotation began.
    Began,
    /// The new root issues.
    Issuing,
    /// The old root is gone.
    Dropped,
}

/// Why a rotation cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// It goes on already.
    #[error("a rotation is going on already")]
    GoingOn,
    /// There is none.
    #[error("no rotation is going on: there is nothing to force")]
    NothingToForce,
    /// The root is not ours.
    #[error(
        "the root was brought with --ca-dir: put the new intermediate, its key and its root into that directory, and the \
         rotation begins by itself"
    )]
    Brought,
    /// Keys or certificates cannot be made.
    #[error("make a new root")]
    Make(#[from] Error),
}

/// The authority.
#[derive(Debug, Clone)]
pub struct Authority {
    pub(super) domain: Box<str>,
    /// Whom everybody trusts; the issuer's root first.
    pub(super) roots: Vec<Root>,
    pub(super) issuer: Issuer,
    pub(super) rotation: Option<Rotation>,
    /// How long leaves live at most.
    pub(super) leaf_life: Duration,
    /// No leaf that was issued under an earlier setting lives longer.
    pub(super) leaves_until: SystemTime,
}

/// A certificate that was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The leaf.
    pub leaf: Certificate,
    /// The leaf, what is between, and last the root.
    pub chain: Vec<Certificate>,
}

impl Issued {
    /// The chain for a TLS library.
    #[must_use]
    pub fn der(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().map(|certificate| certificate.der.clone()).collect()
    }
}

impl Authority {
    /// Begins with `offer`.
    #[must_use]
    pub fn new(domain: &str, offer: Offer, leaf_life: Duration) -> Self {
        let Offer { issuer, mut roots } = offer;
        roots.sort_by_key(|root| root.certificate.pin != issuer.root);
        let leaves_until = SystemTime::UNIX_EPOCH;
        Self { domain: domain.into(), roots, issuer, rotation: None, leaf_life, leaves_until }
    }

    /// The trust domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Whom everybody trusts, the issuer's root first.
    #[must_use]
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// What signs leaves.
    #[must_use]
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// The rotation that is going on.
    #[must_use]
    pub fn rotation(&self) -> Option<&Rotation> {
        self.rotation.as_ref()
    }

    /// How long leaves live at most.
    #[must_use]
    pub fn leaf_life(&self) -> Duration {
        self.leaf_life
    }

    /// The trust bundle, PEM.
    #[must_use]
    pub fn bundle(&self) -> String {
        self.roots.iter().map(|root| root.certificate.to_pem()).collect()
    }

    /// Issues a leaf for the key `spki`, for as long as is asked for and allowed. `behind` is how far the clock of whoever
    /// asked is behind.
    ///
    /// # Errors
    /// When the key cannot be signed for, or the issuer has expired.
    pub fn issue(
        &self,
        id: &SpiffeId,
        spki: &[u8],
        asked: Option<Duration>,
        behind: Duration,
        now: SystemTime,
        serial: Serial,
    ) -> Result<Issued, Error> {
        let life = asked.map_or(self.leaf_life, |asked| asked.min(self.leaf_life));
        let life = Life { from: now - issue::BACKDATED - behind, until: now + life };
        let issuer = (&self.issuer.certificate, &self.issuer.key);
        let leaf = issue::leaf(id, spki, issuer, life, serial)?;
        let mut chain = vec![leaf.clone()];
        chain.extend(self.issuer.between().cloned());
        let root = |pin| self.roots.iter().find(|root| root.certificate.pin == pin);
        if let Some(Rotation { phase: Phase::Replacing { .. }, cross: Some(cross), old, .. }) = &self.rotation
        {
            chain.push(cross.clone());
            // For whoever knows of it no more than its pin.
            chain.extend(root(*old).map(|root| root.certificate.clone()));
        }
        chain.extend(root(self.issuer.root).map(|root| root.certificate.clone()));
        Ok(Issued { leaf, chain })
    }

    /// Goes on: renews what is used up, and takes a rotation's next step if everybody is ready for it.
    ///
    /// # Errors
    /// When keys or certificates cannot be made; nothing is changed then.
    pub fn tick(
        &mut self,
        adoption: Adoption,
        now: SystemTime,
        random: Random<'_>,
    ) -> Result<Option<Step>, Error> {
        if let Some(rotation) = &self.rotation {
            let ready = match &rotation.phase {
                Phase::Distributing { .. } => {
                    now >= rotation.since + SETTLE && adoption.trusting >= adoption.connected
                }
                Phase::Replacing { until } => now >= *until,
            };
            if ready {
                return Ok(Some(self.advance(now)));
            }
        }
        let root = self.roots.iter().find(|root| root.certificate.pin == self.issuer.root);
        let Some(Root { certificate, key: Some(key) }) = root else { return Ok(None) };
        if self.rotation.is_none() && used_up(certificate, now, 9, 10) {
            self.begin(now, random)?;
            return Ok(Some(Step::Began));
        }
        if used_up(&self.issuer.certificate, now, USED_UP - 1, USED_UP) {
            self.issuer = Issuer::below(&self.domain, (certificate, key), now, random)?;
            return Ok(Some(Step::Intermediate));
        }
        Ok(None)
    }

    /// Begins a rotation to a root that is made now; with `force`, takes the next step of the one that goes on, whoever is not
    /// ready for it.
    ///
    /// # Errors
    /// When it cannot.
    pub fn rotate(&mut self, force: bool, now: SystemTime, random: Random<'_>) -> Result<Step, RotateError> {
        match (self.rotation.is_some(), force) {
            (true, true) => Ok(self.advance(now)),
            (true, false) => Err(RotateError::GoingOn),
            (false, true) => Err(RotateError::NothingToForce),
            (false, false) if self.roots.iter().all(|root| root.key.is_none()) => Err(RotateError::Brought),
            (false, false) => {
                self.begin(now, random)?;
                Ok(Step::Began)
            }
        }
    }

    /// Takes an issuer that the operator brought. `None`: it is the one that issues already.
    ///
    /// # Errors
    /// When a rotation is going on that leads elsewhere: try again when it is over.
    pub fn adopt(&mut self, offer: Offer, now: SystemTime) -> Result<Option<Step>, RotateError> {
        let Offer { issuer, roots } = offer;
        if issuer.root == self.issuer.root {
            let same = issuer.certificate == self.issuer.certificate;
            let known = |root: &Root| self.roots.iter().any(|known| known.certificate == root.certificate);
            let whole =
                roots.iter().all(known) && (self.rotation.is_some() || roots.len() == self.roots.len());
            if same && whole {
                return Ok(None);
            }
            self.issuer = issuer;
            if self.rotation.is_none() {
                self.roots = roots;
            } else {
                self.trust(roots);
            }
            self.order();
            return Ok(Some(Step::Intermediate));
        }
        match &mut self.rotation {
            Some(Rotation { phase: Phase::Distributing { next }, .. }) if next.root == issuer.root => {
                let changed = next.certificate != issuer.certificate;
                *next = issuer;
                Ok(changed.then_some(Step::Intermediate))
            }
            Some(_) => Err(RotateError::GoingOn),
            None => {
                self.go_over(Offer { issuer, roots }, None, now);
                Ok(Some(Step::Began))
            }
        }
    }

    fn begin(&mut self, now: SystemTime, random: Random<'_>) -> Result<(), Error> {
        let offer = Offer::make(&self.domain, now, random)?;
        let old = self.roots.iter().find(|root| root.certificate.pin == self.issuer.root);
        let cross =
            match (old.and_then(|old| Some((&old.certificate, old.key.as_ref()?))), offer.roots.first()) {
                (Some(old), Some(new)) => Some(issue::cross_sign(&new.certificate, old, now, random())?),
                _ => None,
            };
        self.go_over(offer, cross, now);
        Ok(())
    }

    fn go_over(&mut self, offer: Offer, cross: Option<Certificate>, now: SystemTime) {
        let Offer { issuer: next, roots } = offer;
        let (old, new) = (self.issuer.root, next.root);
        self.trust(roots);
        self.rotation = Some(Rotation { phase: Phase::Distributing { next }, since: now, old, new, cross });
    }

    fn advance(&mut self, now: SystemTime) -> Step {
        let Some(rotation) = self.rotation.take() else { return Step::Dropped };
        match rotation.phase {
            Phase::Distributing { next } => {
                self.issuer = next;
                let until = self.leaves_until.max(now + self.leaf_life);
                self.rotation = Some(Rotation { phase: Phase::Replacing { until }, since: now, ..rotation });
                self.order();
                Step::Issuing
            }
            Phase::Replacing { .. } => {
                self.roots.retain(|root| root.certificate.pin != rotation.old);
                Step::Dropped
            }
        }
    }

    /// Adds roots to those that are trusted.
    fn trust(&mut self, roots: Vec<Root>) {
        for root in roots {
            if self.roots.iter().all(|known| known.certificate.pin != root.certificate.pin) {
                self.roots.push(root);
            }
        }
    }

    pub(super) fn order(&mut self) {
        let first = self.issuer.root;
        self.roots.sort_by_key(|root| root.certificate.pin != first);
    }
}

/// Whether `part`/`of` of a certificate's life is over.
fn used_up(certificate: &Certificate, now: SystemTime, part: u32, of: u32) -> bool {
    let life = certificate.not_after.duration_since(certificate.not_before).unwrap_or_default();
    now >= certificate.not_before + life * part / of
}

#[cfg(test)]
mod tests;
