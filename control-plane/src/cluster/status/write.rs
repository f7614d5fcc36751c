//! One object: read it, see what its status should be, and write that over the version that was read.

use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::Key;
use super::merge::{self, Wanted};
use crate::cluster::{ApiError, Cluster, MANAGER, ask};

/// A kind whose status is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// Its name.
    pub(super) kind: &'static str,
    /// Its API group.
    pub(super) group: &'static str,
    /// Its version.
    pub(super) version: &'static str,
    /// Its name in URLs.
    pub(super) plural: &'static str,
}

const GATEWAY: (&str, &str) = ("gateway.networking.k8s.io", "v1");
const WEFT: (&str, &str) = ("weft.dev", "v1alpha1");

const fn of(
    (group, version): (&'static str, &'static str),
    kind: &'static str,
    plural: &'static str,
) -> Kind {
    Kind { kind, group, version, plural }
}

/// The kinds whose status is written.
pub(super) const KINDS: [Kind; 5] = [
    of(WEFT, "AccessPolicy", "accesspolicies"),
    of(WEFT, "CircuitBreaker", "circuitbreakers"),
    of(GATEWAY, "GRPCRoute", "grpcroutes"),
    of(GATEWAY, "HTTPRoute", "httproutes"),
    of(WEFT, "TrafficPolicy", "trafficpolicies"),
];

/// How often an object that others write at the same time is read again.
const CONFLICTS_MAX: usize = 3;

/// What became of a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was written; the object's uid.
    Written(String),
    /// It says that already.
    Same,
    /// The object is gone.
    Gone,
    /// The object is of another version than what is to be said of it.
    Ahead,
}

impl Outcome {
    pub(super) const WORDS: [&'static str; 4] = ["written", "same", "gone", "ahead"];

    /// For counting.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Written(_) => Self::WORDS[0],
            Self::Same => Self::WORDS[1],
            Self::Gone => Self::WORDS[2],
            Self::Ahead => Self::WORDS[3],
        }
    }

    pub(super) const fn is_written(&self) -> bool {
        matches!(self, Self::Written(_))
    }

    pub(super) fn uid(&self) -> Option<&str> {
        match self {
            Self::Written(uid) => Some(uid),
            _ => None,
        }
    }
}

impl Kind {
    /// For asking about it.
    pub(super) fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            api_version: format!("{}/{}", self.group, self.version),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// Whether its status lists parents.
    pub(super) fn is_route(&self) -> bool {
        self.group == GATEWAY.0
    }
}

/// Writes what `wanted` says; nothing is what is said of an object that is not ours any more.
///
/// # Errors
/// When the API server does not do it.
pub(super) async fn write(
    cluster: &Cluster,
    key: &Key,
    wanted: Option<&Wanted>,
    now: Timestamp,
) -> Result<Outcome, ApiError> {
    let Some(kind) = KINDS.iter().find(|kind| kind.kind == key.kind) else { return Ok(Outcome::Gone) };
    let api: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), &key.namespace, &kind.resource());
    let mut conflicts = 0;
    loop {
        let Some(object) = ask(api.get_opt(&key.name)).await? else { return Ok(Outcome::Gone) };
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let Some(patch) = patch(kind, object, wanted, now) else { return Ok(Outcome::Ahead) };
        let Some(patch) = patch else { return Ok(Outcome::Same) };
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
        match ask(api.patch_status(&key.name, &params, &Patch::Merge(patch))).await {
            Ok(_) => return Ok(Outcome::Written(uid)),
            Err(error) if error.is_not_found() => return Ok(Outcome::Gone),
            Err(error) if error.is_conflict() && conflicts < CONFLICTS_MAX => conflicts += 1,
            Err(error) => return Err(error),
        }
    }
}

/// The patch to send; within, `None` if nothing is to be changed. `None` if what is wanted is of another version.
fn patch(
    kind: &Kind,
    object: DynamicObject,
    wanted: Option<&Wanted>,
    now: Timestamp,
) -> Option<Option<Value>> {
    let version = object.metadata.resource_version.clone();
    let generation = object.metadata.generation;
    let nothing = Wanted { generation: None, attached: Vec::new(), conditions: Vec::new(), counted: true };
    let mut wanted = wanted.unwrap_or(&nothing).clone();
    if wanted.generation.is_some() && wanted.generation != generation {
        return None;
    }
    // What could not be read is not known by its version: it is this one that could not be read.
    wanted.generation = generation;
    let object = json!({ "metadata": object.metadata, "spec": object.data.get("spec"), "status": object.data.get("status") });
    let status = match kind.is_route() {
        true => merge::route(&object, &wanted, now),
        false => merge::policy(&object, &wanted, now),
    };
    Some(status.map(|status| json!({ "metadata": { "resourceVersion": version }, "status": status })))
}
