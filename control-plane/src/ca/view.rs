//! The authority for people: `/api/ca`, in numbers and in words.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;
use weft_wire::SpiffeId;
use weft_wire::tls::TRUST_BUNDLE;

use super::Ca;
use super::authority::{Adoption, Phase};
use super::issue::{Certificate, fingerprint};
use super::token::unix;
use crate::xds::{Kind, Status};

/// A clock that differs by less is right enough: the time on the way is in what is measured.
const CLOCK_NOTABLE_MS: u64 = 2_000;
/// Clocks that are remembered.
const CLOCKS_MAX: usize = 1_000;
/// Sidecars that are named because a rotation waits for them.
const WAITING_TOLD: usize = 20;

/// `/api/ca`.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// Unix seconds.
    pub at: u64,
    /// The trust domain.
    pub trust_domain: String,
    /// Whether a restart keeps it all.
    pub kept: bool,
    /// Whether the issuer is the operator's.
    pub brought: bool,
    /// Whom everybody trusts, the issuing root first.
    pub roots: Vec<Shown>,
    /// What signs leaves.
    pub issuer: Shown,
    /// The control plane's own certificate.
    pub own: Shown,
    /// How long leaves live at most.
    pub leaf_seconds: u64,
    /// What the connected sidecars have.
    pub sidecars: Adoption,
    /// The rotation that is going on.
    pub rotation: Option<Progress>,
    /// Clocks that differ, in words.
    pub clocks: Vec<Clock>,
}

/// A certificate.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The subject; of a leaf its identity.
    pub subject: String,
    /// The key's hash, first eight digits.
    pub fingerprint: String,
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
}

/// How far a rotation is.
#[derive(Debug, Serialize)]
pub struct Progress {
    /// `distributing` or `replacing`.
    pub phase: &'static str,
    /// When the phase began, Unix seconds.
    pub since: u64,
    /// The old root.
    pub old: String,
    /// The new root.
    pub new: String,
    /// When the old root is dropped, Unix seconds; unknown before it is replaced.
    pub until: Option<u64>,
    /// In words.
    pub text: String,
    /// Sidecars that the phase waits for, some of them.
    pub waiting: Vec<String>,
}

/// A clock that differs from ours.
#[derive(Debug, Clone, Serialize)]
pub struct Clock {
    /// Whose.
    pub identity: String,
    /// Milliseconds; negative: ahead.
    pub behind_ms: i64,
    /// In words.
    pub text: String,
}

/// Clocks that differ, by whose they are.
#[derive(Default)]
pub(super) struct Clocks(BTreeMap<String, Clock>);

impl Clocks {
    /// Notes how far a clock is behind. In words if that is worth a word.
    pub(super) fn note(&mut self, id: &SpiffeId, behind_ms: i64) -> Option<String> {
        let identity = id.to_string();
        let Some(text) = clock_in_words(id.service_account(), behind_ms) else {
            self.0.remove(&identity);
            return None;
        };
        if self.0.len() < CLOCKS_MAX || self.0.contains_key(&identity) {
            self.0.insert(identity.clone(), Clock { identity, behind_ms, text: text.clone() });
        }
        Some(text)
    }
}

/// `orders' clock is 7 s behind`; `None` if it is right enough.
#[must_use]
pub fn clock_in_words(name: &str, behind_ms: i64) -> Option<String> {
    if behind_ms.unsigned_abs() < CLOCK_NOTABLE_MS {
        return None;
    }
    let seconds = behind_ms.unsigned_abs() / 1_000;
    let far = match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    };
    let owner = if name.ends_with('s') { format!("{name}'") } else { format!("{name}'s") };
    Some(format!("{owner} clock is {far} {}", if behind_ms > 0 { "behind" } else { "ahead" }))
}

impl Ca {
    /// The authority as it is now.
    #[must_use]
    pub fn overview(&self, status: &Status, now: SystemTime) -> Overview {
        let authority = self.authority();
        let sidecars = self.adoption(status);
        let own = self.0.own.load();
        let own = Shown { subject: self.0.own_id.to_string(), ..shown(&own.issued.leaf) };
        Overview {
            at: unix(now),
            trust_domain: authority.domain().to_owned(),
            kept: self.0.store.is_some(),
            brought: self.0.brought.is_some(),
            roots: authority.roots().iter().map(|root| shown(&root.certificate)).collect(),
            issuer: shown(&authority.issuer().certificate),
            own,
            leaf_seconds: authority.leaf_life().as_secs(),
            sidecars,
            rotation: self.progress(sidecars, status),
            clocks: self.clocks().0.values().cloned().collect(),
        }
    }

    fn progress(&self, sidecars: Adoption, status: &Status) -> Option<Progress> {
        let authority = self.authority();
        let rotation = authority.rotation()?;
        let Adoption { connected, trusting, renewed } = sidecars;
        let (phase, until, text, missing) = match &rotation.phase {
            Phase::Distributing { .. } => {
                let text = format!("{trusting} of {connected} sidecars trust the new root");
                ("distributing", None, text, Missing::Bundle)
            }
            Phase::Replacing { until } => {
                let text = format!("{renewed} of {connected} sidecars have a certificate of the new root");
                ("replacing", Some(unix(*until)), text, Missing::Certificate)
            }
        };
        Some(Progress {
            phase,
            since: unix(rotation.since),
            old: fingerprint(&rotation.old),
            new: fingerprint(&rotation.new),
            until,
            text,
            waiting: self.waiting(missing, status),
        })
    }

    fn waiting(&self, missing: Missing, status: &Status) -> Vec<String> {
        let current = self.bundle_version();
        let issuing = self.authority().issuer().root;
        let proxies = status.proxies();
        let waiting = proxies.iter().filter(|proxy| match (missing, &proxy.verified) {
            (_, None) => false,
            (Missing::Certificate, Some(verified)) => verified.root != Some(issuing),
            (Missing::Bundle, Some(_)) => {
                let bundle = proxy.kinds.get(&Kind::Secret).and_then(|kind| kind.running(TRUST_BUNDLE));
                bundle.and_then(|running| running.acked.as_deref()) != current.as_deref()
            }
        });
        waiting.take(WAITING_TOLD).map(|proxy| proxy.instance.to_string()).collect()
    }
}

#[derive(Clone, Copy)]
enum Missing {
    Bundle,
    Certificate,
}

fn shown(certificate: &Certificate) -> Shown {
    Shown {
        subject: certificate.subject.to_string(),
        fingerprint: certificate.fingerprint(),
        not_before: unix(certificate.not_before),
        not_after: unix(certificate.not_after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_told_in_words() {
        assert_eq!(clock_in_words("orders", 7_400).as_deref(), Some("orders' clock is 7 s behind"));
        assert_eq!(clock_in_words("web", -180_000).as_deref(), Some("web's clock is 3 min ahead"));
        assert_eq!(clock_in_words("web", 1_999), None);
        assert_eq!(
            clock_in_words("web", i64::MIN).as_deref(),
            Some("web's clock is 106751991167 days ahead")
        );
    }

    #[test]
    fn a_clock_that_is_right_again_is_forgotten() {
        let (mut clocks, id) = (Clocks::default(), "spiffe://x/ns/shop/sa/web".parse().unwrap());
        assert!(clocks.note(&id, 9_000).is_some());
        assert_eq!(clocks.0.len(), 1);
        assert_eq!(clocks.note(&id, 20), None);
        assert!(clocks.0.is_empty());
    }
}
