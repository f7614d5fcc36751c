//! What of the authority outlives the program: one JSON document, `authority.json`.
//!
//! One document, so that keys and the phase of a rotation are never out of step. Invariant: the key of an issuer that the
//! operator brought is not copied into it.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::authority::{Authority, Issuer, Offer, Phase, Root, Rotation};
use super::issue::{Certificate, Error, Key, hex};
use super::token::unix;

const VERSION: u32 = 1;

/// Why the document cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// Not JSON, or not of this form.
    #[error("read the document")]
    Form(#[from] serde_json::Error),
    /// Written by a newer version.
    #[error("the document is of version {0}, this program reads {VERSION}: was it written by a newer one?")]
    Version(u32),
    /// Of another trust domain.
    #[error(
        "the authority is of the trust domain {kept:?}, not {asked:?}. Start with --trust-domain {kept}, or with another \
         --data-dir for a new authority"
    )]
    Domain {
        /// What it is.
        kept: Box<str>,
        /// What was asked for.
        asked: Box<str>,
    },
    /// A key or certificate in it.
    #[error("a key or certificate in it")]
    Material(#[from] Error),
    /// It contradicts itself.
    #[error("it does not hold the root of its issuer")]
    Rootless,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    domain: Box<str>,
    roots: Vec<KeptRoot>,
    /// Absent of an issuer that was brought.
    issuer: Option<KeptIssuer>,
    /// The pin of the issuer's root.
    issuing: String,
    rotation: Option<KeptRotation>,
    leaf_seconds: u64,
    leaves_until: u64,
}

#[derive(Serialize, Deserialize)]
struct KeptRoot {
    certificate: String,
    key: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct KeptIssuer {
    certificate: String,
    key: String,
    root: String,
}

#[derive(Serialize, Deserialize)]
struct KeptRotation {
    since: u64,
    old: String,
    new: String,
    cross: Option<String>,
    /// While the new root is being distributed and was made here.
    next: Option<KeptIssuer>,
    /// While certificates are being replaced.
    until: Option<u64>,
}

impl Document {
    fn check(&self, domain: &str) -> Result<(), ReadError> {
        if self.version != VERSION {
            return Err(ReadError::Version(self.version));
        }
        if *self.domain != *domain {
            return Err(ReadError::Domain { kept: self.domain.clone(), asked: domain.into() });
        }
        Ok(())
    }
}

/// Writes the document. It holds keys.
///
/// # Errors
/// Never for what this program made.
pub(super) fn write(authority: &Authority) -> Result<Vec<u8>, serde_json::Error> {
    let own = |issuer: &Issuer| {
        let made =
            authority.roots.iter().any(|root| root.certificate.pin == issuer.root && root.key.is_some());
        made.then(|| KeptIssuer {
            certificate: issuer.certificate.to_pem(),
            key: issuer.key.to_pem(),
            root: hex(&issuer.root),
        })
    };
    let rotation = authority.rotation.as_ref().map(|rotation| {
        let (next, until) = match &rotation.phase {
            Phase::Distributing { next } => (own(next), None),
            Phase::Replacing { until } => (None, Some(unix(*until))),
        };
        let cross = rotation.cross.as_ref().map(Certificate::to_pem);
        let (old, new) = (hex(&rotation.old), hex(&rotation.new));
        KeptRotation { since: unix(rotation.since), old, new, cross, next, until }
    });
    let roots = authority.roots.iter().map(|root| KeptRoot {
        certificate: root.certificate.to_pem(),
        key: root.key.as_ref().map(Key::to_pem),
    });
    serde_json::to_vec_pretty(&Document {
        version: VERSION,
        domain: authority.domain.clone(),
        roots: roots.collect(),
        issuer: own(&authority.issuer),
        issuing: hex(&authority.issuer.root),
        rotation,
        leaf_seconds: authority.leaf_life.as_secs(),
        leaves_until: unix(authority.leaves_until),
    })
}

/// Reads the document of an authority for `domain`, whose leaves live for `leaf_life` from now on. `brought` is the issuer that
/// the operator brings, if one; `make` makes one where nothing else can issue.
///
/// # Errors
/// When it cannot be taken; nothing is made up instead, because a new root would cut off every sidecar.
pub(super) fn read(
    document: &[u8],
    domain: &str,
    leaf_life: Duration,
    now: SystemTime,
    brought: Option<Offer>,
    make: impl FnOnce() -> Result<Offer, Error>,
) -> Result<Authority, ReadError> {
    let kept: Document = serde_json::from_slice(document)?;
    kept.check(domain)?;
    let roots = kept.roots.iter().map(root).collect::<Result<Vec<Root>, ReadError>>()?;
    let leaves_until = at(kept.leaves_until).max(now + Duration::from_secs(kept.leaf_seconds));
    let shorter = leaf_life.as_secs() < kept.leaf_seconds;
    let leaves_until = if shorter { leaves_until } else { at(kept.leaves_until) };
    let own = kept.issuer.as_ref().map(|issuer| self::issuer(issuer, &roots)).transpose()?;
    let rotation = kept.rotation.as_ref().map(|kept| rotation(kept, &roots)).transpose()?.flatten();

    if let Some(issuer) = own {
        let domain = kept.domain;
        let mut authority = Authority { domain, roots, issuer, rotation, leaf_life, leaves_until };
        if let Some(offer) = brought {
            // A rotation that goes on is asked again when it is over.
            drop(authority.adopt(offer, now));
        }
        return Ok(authority);
    }
    // The issuer was brought, and its key is not here: whoever comes now issues.
    let offer = brought.map_or_else(make, Ok)?;
    let moved = hex(&offer.issuer.root) != kept.issuing;
    let old = roots.iter().find(|root| hex(&root.certificate.pin) == kept.issuing);
    let old = old.ok_or(ReadError::Rootless)?.certificate.pin;
    let mut authority = Authority::new(domain, offer, leaf_life);
    authority.leaves_until = leaves_until;
    let new = authority.issuer.root;
    if moved {
        let until = leaves_until.max(now + Duration::from_secs(kept.leaf_seconds));
        let phase = Phase::Replacing { until };
        authority.rotation = Some(Rotation { phase, since: now, old, new, cross: None });
    } else {
        authority.rotation = rotation;
    }
    if authority.rotation.is_some() {
        let known: Vec<[u8; 32]> = authority.roots.iter().map(|root| root.certificate.pin).collect();
        authority.roots.extend(roots.into_iter().filter(|root| !known.contains(&root.certificate.pin)));
    }
    Ok(authority)
}

/// Reads the document that another control plane has written, in place of `current`. `brought` is what the operator brings to
/// this one: where the issuer is brought its key is not in the document, and the directory of this one may be older or newer
/// than that of the other.
///
/// # Errors
/// When it cannot be taken.
pub(super) fn follow(
    document: &[u8],
    current: &Authority,
    brought: Option<Offer>,
    now: SystemTime,
) -> Result<Authority, ReadError> {
    let kept: Document = serde_json::from_slice(document)?;
    kept.check(&current.domain)?;
    let leaf_life = current.leaf_life;
    if kept.issuer.is_some() {
        let none = || Err(Error::IssuerExpired);
        return read(document, &current.domain, leaf_life, now, None, none);
    }
    let mut roots = kept.roots.iter().map(root).collect::<Result<Vec<Root>, ReadError>>()?;
    let (offered, known) = brought.map(|offer| (offer.issuer, offer.roots)).unzip();
    let next = current.rotation.as_ref().and_then(|rotation| match &rotation.phase {
        Phase::Distributing { next } => Some(next.clone()),
        Phase::Replacing { .. } => None,
    });
    let issuers = || offered.iter().chain(&next).chain([&current.issuer]);
    let of_root = |root: &str| issuers().find(|issuer| hex(&issuer.root) == *root).cloned();
    let issuer = of_root(&kept.issuing).unwrap_or_else(|| current.issuer.clone());
    // What is issued here must be trusted here, also if the others know no more, or not yet, of its root.
    let own = current.roots.iter().chain(known.iter().flatten());
    let missing = own.filter(|root| root.certificate.pin == issuer.root).take(1);
    if roots.iter().all(|root| root.certificate.pin != issuer.root) {
        roots.extend(missing.cloned());
    }
    let rotation = kept.rotation.as_ref().map(|rotating| match (&rotating.next, rotating.until) {
        (None, None) => Ok(of_root(&rotating.new).and_then(|next| {
            let (old, new) = (pin(&rotating.old, &roots).ok()?, next.root);
            let phase = Phase::Distributing { next };
            Some(Rotation { phase, since: at(rotating.since), old, new, cross: None })
        })),
        _ => rotation(rotating, &roots),
    });
    let rotation = rotation.transpose()?.flatten();
    let leaves_until = at(kept.leaves_until).max(current.leaves_until);
    let mut authority = Authority { domain: kept.domain, roots, issuer, rotation, leaf_life, leaves_until };
    authority.order();
    Ok(authority)
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn one(pem: &str) -> Result<Certificate, ReadError> {
    Certificate::read_all(pem)?.into_iter().next().ok_or(ReadError::Rootless)
}

fn root(kept: &KeptRoot) -> Result<Root, ReadError> {
    let key = kept.key.as_deref().map(Key::from_pem).transpose()?;
    Ok(Root { certificate: one(&kept.certificate)?, key })
}

fn pin(text: &str, roots: &[Root]) -> Result<[u8; 32], ReadError> {
    let known = roots.iter().map(|root| root.certificate.pin).find(|pin| hex(pin) == *text);
    known.ok_or(ReadError::Rootless)
}

fn issuer(kept: &KeptIssuer, roots: &[Root]) -> Result<Issuer, ReadError> {
    let (certificate, key) = (one(&kept.certificate)?, Key::from_pem(&kept.key)?);
    Ok(Issuer { certificate, above: Vec::new(), key, root: pin(&kept.root, roots)? })
}

/// `None` of a rotation to an issuer that was brought and is not here: it begins anew when it comes again.
fn rotation(kept: &KeptRotation, roots: &[Root]) -> Result<Option<Rotation>, ReadError> {
    let phase = match (&kept.next, kept.until) {
        (Some(next), _) => Phase::Distributing { next: issuer(next, roots)? },
        (None, Some(until)) => Phase::Replacing { until: at(until) },
        (None, None) => return Ok(None),
    };
    let cross = kept.cross.as_deref().map(one).transpose()?;
    let (old, new) = (pin(&kept.old, roots)?, pin(&kept.new, roots)?);
    Ok(Some(Rotation { phase, since: at(kept.since), old, new, cross }))
}
