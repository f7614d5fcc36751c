//! The injector: pods get a sidecar, or a reason why not.
//!
//! In: a pod (or a template of pods) as JSON, what its namespace says, the injector's [`Settings`]. Out: an [`Answer`]: the pod
//! with a sidecar, or left alone with a [`Reason`], and warnings in words. [`webhook`] asks on behalf of the API server, `weft
//! inject` on behalf of people, with the same result; [`patch`] turns before and after into a JSON Patch; [`strip`] is the way
//! back.
//!
//! Invariants: pure; what is injected and injected again stays as it is; what is injected and stripped is what it was; nothing
//! of a pod is touched but what this module's names say (`wire::pod`), its probes, and one annotation. Surprise: the pod is
//! edited as JSON and not as a typed object, because a field that is newer than our types must survive. An older sidecar is
//! stripped and injected anew, so there is no other path for upgrades. Non-goal: whether a pod that exists should have been
//! injected; [`reconcile`] asks that.

pub mod census;
pub mod certificate;
pub mod keeper;
pub mod manifest;
pub mod patch;
mod probes;
mod reason;
pub mod reconcile;
pub mod review;
pub mod run;
mod settings;
mod shape;
mod strip;
pub mod webhook;
mod wishes;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use weft_wire::annotation::Sidecar;
use weft_wire::pod as names;

pub use probes::ENVIRONMENT as PROBES_VARIABLE;
pub use reason::{Reason, Refusal};
pub(crate) use settings::exceeds;
pub use settings::{Options, Settings};
pub use strip::{Status, status, strip};

/// What the pod's namespace says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Whether policies keep out whom none lets in, at every port of its pods. Only who follows the cluster knows.
    pub closed: bool,
}

/// What is to be injected.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The pod, or the template of one.
    pub pod: &'a Value,
    /// Its namespace.
    pub namespace: &'a Namespace,
    /// What the pod is of, where the pod itself does not say so: a template's owner, as kind and name.
    pub owner: Option<(&'a str, &'a str)>,
    /// Whether it is injected where nobody says anything.
    pub asked: bool,
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It has a sidecar now.
    Injected {
        /// The pod.
        pod: Value,
        /// The version that it had before.
        replaced: Option<String>,
    },
    /// It is as it should be.
    Unchanged,
    /// It stays without.
    LeftAlone(Reason),
}

/// A verdict, and what people should know.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What became of the pod.
    pub verdict: Verdict,
    /// For whoever made it; each a sentence.
    pub warnings: Vec<String>,
}

impl Answer {
    /// The pod as it should be, if it should change.
    #[must_use]
    pub fn pod(&self) -> Option<&Value> {
        match &self.verdict {
            Verdict::Injected { pod, .. } => Some(pod),
            Verdict::Unchanged | Verdict::LeftAlone(_) => None,
        }
    }
}

/// Decides about a pod, and makes what it should be.
///
/// # Errors
/// When the pod asks for something impossible; says where and what to write instead.
pub fn inject(subject: Subject<'_>, settings: &Settings) -> Result<Answer, Refusal> {
    let (bare, unread) = match strip(subject.pod) {
        Ok(bare) => (bare, None),
        Err(refusal) => (subject.pod.clone(), Some(refusal)),
    };
    let typed: Pod = serde_path_to_error::deserialize(&bare).map_err(Refusal::shape)?;
    let mut warnings = Vec::new();
    let (wish, wrong) = wishes::inject(&typed, subject.namespace, &mut warnings);
    let reason = reason::unwanted(&subject, wish, settings).or_else(|| {
        // What is in the pod can be told only where what was injected can be.
        if unread.is_some() { None } else { reason::blocked(&typed, Some(subject.namespace)) }
    });
    let mut wrong = unread.into_iter().chain(wrong);
    if let Some(reason) = reason {
        warnings.extend(reason.is_worth_a_warning(wish).then(|| format!("no sidecar: {reason}")));
        warnings.extend(wrong.map(|wrong| format!("{wrong} (it does nothing here)")));
        return Ok(Answer { verdict: Verdict::LeftAlone(reason), warnings });
    }
    if let Some(wrong) = wrong.next() {
        return Err(wrong);
    }
    let wishes = wishes::Wishes::read(&typed, subject.namespace, settings, &mut warnings)?;
    let pod = shape::inject(bare, &typed, &subject, &wishes, settings, &mut warnings)?;
    let verdict = if pod == *subject.pod {
        Verdict::Unchanged
    } else {
        let replaced = status(subject.pod).map(|status| status.version);
        Verdict::Injected { pod, replaced }
    };
    Ok(Answer { verdict, warnings })
}

/// The sidecar's image where nothing else is configured: of the same version as this program.
#[must_use]
pub fn default_image() -> String {
    format!("{}:{}", names::IMAGE, env!("CARGO_PKG_VERSION"))
}

/// Which kind of sidecar an injected pod has.
#[must_use]
pub fn sidecar_of(pod: &Value) -> Option<Sidecar> {
    status(pod).map(|status| status.sidecar)
}

#[cfg(test)]
mod tests;
