//! Who should have a sidecar and has none: the injector's view of pods that exist.
//!
//! In: a pod as it is read from a source ([`of`]), the world with all of them ([`Census::take`]). Out: pods without a sidecar
//! that should have one, and those whose sidecar is of another version. Pure. Needed because the webhook's failure policy is
//! `Ignore`: while it is away, pods start without.
//!
//! Invariant: a pod is missed only if the webhook would inject it now: the same wishes and the same reasons. Surprise: what a
//! pod's spec says is reduced to a word when it is read, because twenty thousand specs are a lot of memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use weft_wire::WorkloadId;
use weft_wire::annotation as keys;

use super::Namespace;
use super::reason::{self, blocked};
use super::wishes;
use crate::world::{ControllerRef, Injection, PodSpec, World};

/// Pods that are told of one by one; of more, the number is told.
pub const LISTED_MAX: usize = 1000;

/// What is kept of a pod.
#[must_use]
pub fn of(pod: &Pod) -> Injection {
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    let annotations = pod.metadata.annotations.as_ref();
    let annotation = |key: &str| annotations.and_then(|annotations| annotations.get(key)).map(String::as_str);
    let restart = restart([annotations, pod.metadata.labels.as_ref()]);
    if let Some(status) = annotation(keys::STATUS) {
        // What nobody can read is of a version that nobody knows.
        let version =
            serde_json::from_str(status).map_or_else(|_| "unknown".to_owned(), |Version { version }| version);
        return Injection { sidecar: Some(version.into()), restart, ..Injection::default() };
    }
    let wish = match wishes::inject(pod, &Namespace::default(), &mut Vec::new()) {
        // The webhook would refuse it: whoever wrote that will hear of it with the next pod.
        (_, wrong) if !wrong.is_empty() => Some(false),
        (wishes::Wish::OfPod(wish), _) => Some(wish),
        _ => None,
    };
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let controller = owners.find(|owner| owner.controller != Some(false)).map(|owner| {
        Arc::new(ControllerRef { kind: owner.kind.as_str().into(), name: owner.name.as_str().into() })
    });
    Injection {
        sidecar: None,
        wish,
        blocked: blocked(pod, None).map(|reason| reason.word()),
        controller,
        restart,
    }
}

/// Whether annotations and labels allow that an owner is restarted; `disabled` wins.
#[must_use]
pub fn restart(said: [Option<&BTreeMap<String, String>>; 2]) -> Option<bool> {
    let said = said.into_iter().flatten().filter_map(|said| said.get(keys::RESTART));
    said.filter_map(|text| keys::switch(text).ok()).min()
}

/// Whether the namespace's labels and annotations ask for sidecars.
#[must_use]
pub fn of_namespace(namespace: &Namespace) -> Option<bool> {
    // What the webhook would leave alone is not missed.
    if namespace.labels.get("istio.io/dataplane-mode").is_some_and(|mode| mode == "ambient") {
        return Some(false);
    }
    match wishes::inject(&Pod::default(), namespace, &mut Vec::new()) {
        (wishes::Wish::OfNamespace(wish), _) => Some(wish),
        _ => None,
    }
}

/// A pod, and what is wrong with its sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// What it is of.
    pub workload: String,
    /// The version of its sidecar; `None` if it has none.
    pub sidecar: Option<String>,
    /// What made it, which may be restarted.
    #[serde(skip)]
    pub controller: Option<Arc<ControllerRef>>,
    /// Whether somebody allowed that, or forbade it.
    #[serde(skip)]
    pub restart: Option<bool>,
}

/// All pods at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Census {
    /// Whether anybody looked: where objects are files nobody injects, and nobody looks.
    pub taken: bool,
    /// Pods with a sidecar.
    pub injected: usize,
    /// Pods without one that should have it.
    pub uninjected: usize,
    /// Pods with one of another version.
    pub outdated: usize,
    /// Both of them, by name; at most [`LISTED_MAX`].
    pub pods: Vec<Found>,
}

impl Census {
    /// Looks at everybody. `own` is the control plane's namespace, `version` the injector's.
    #[must_use]
    pub fn take(world: &World, own: &str, version: &str) -> Self {
        let mut census = Self { taken: true, ..Self::default() };
        let mut found: Vec<&PodSpec> = Vec::new();
        for pod in world.pods() {
            match &pod.injection.sidecar {
                Some(sidecar) => {
                    census.injected += 1;
                    if **sidecar != *version {
                        census.outdated += 1;
                        found.push(pod);
                    }
                }
                None if is_missed(world, pod, own) => {
                    census.uninjected += 1;
                    found.push(pod);
                }
                None => {}
            }
        }
        // Those without first, then by name.
        found.sort_by(|a, b| {
            (a.injection.sidecar.is_some(), &a.name).cmp(&(b.injection.sidecar.is_some(), &b.name))
        });
        census.pods = found.into_iter().take(LISTED_MAX).map(|pod| row(world, pod)).collect();
        census
    }

    /// How many pods of a workload should have a sidecar and have none.
    #[must_use]
    pub fn missing_of(&self, workload: &WorkloadId) -> usize {
        let name = workload.to_string();
        self.pods.iter().filter(|pod| pod.sidecar.is_none() && pod.workload == name).count()
    }
}

fn is_missed(world: &World, pod: &PodSpec, own: &str) -> bool {
    let namespace = &*pod.name.namespace;
    // A pod without an address has ended, or does not run yet.
    if pod.addresses.is_empty()
        || pod.injection.blocked.is_some()
        || reason::is_never_injected(namespace, own)
    {
        return false;
    }
    let of_namespace = world.namespace(namespace).and_then(|namespace| namespace.inject);
    pod.injection.wish.or(of_namespace).unwrap_or(false)
}

fn row(world: &World, pod: &PodSpec) -> Found {
    let of_namespace = world.namespace(&pod.name.namespace).and_then(|namespace| namespace.restart);
    Found {
        namespace: pod.name.namespace.to_string(),
        pod: pod.name.name.to_string(),
        workload: pod.workload.to_string(),
        sidecar: pod.injection.sidecar.as_deref().map(str::to_owned),
        controller: pod.injection.controller.clone(),
        restart: pod.injection.restart.or(of_namespace),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::resources::{Content, parse};

    fn census(yaml: &str) -> Census {
        let mut world = World::default();
        let events = parse(yaml).into_iter().filter_map(|document| match document.content {
            Content::Object(object) => Some(object.set()),
            _ => None,
        });
        world.apply_all(events, Instant::now());
        Census::take(&world, "weft-system", "2.0.0")
    }

    fn pod(name: &str, namespace: &str, metadata: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}{metadata}}}\n\
             spec: {{containers: [{{name: app}}]{spec}}}\nstatus: {{podIP: 10.0.0.{}}}\n",
            name.len()
        )
    }

    const SHOP: &str = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {weft.dev/inject: enabled}, annotations: {weft.dev/restart: enabled}}\n";

    fn names(census: &Census) -> Vec<&str> {
        census.pods.iter().map(|found| found.pod.as_str()).collect()
    }

    #[test]
    fn a_restart_is_allowed_by_annotation_or_label_and_forbidden_by_either() {
        let said = |annotation: Option<&str>, label: Option<&str>| {
            let map =
                |word: Option<&str>| word.map(|word| BTreeMap::from([(keys::RESTART.into(), word.into())]));
            restart([map(annotation).as_ref(), map(label).as_ref()])
        };
        assert_eq!(said(None, None), None);
        assert_eq!(said(None, Some("enabled")), Some(true));
        assert_eq!(said(Some("enabled"), Some("disabled")), Some(false));
        assert_eq!(said(Some("perhaps"), None), None);
        let labelled = SHOP
            .replace(
                "annotations: {weft.dev/restart",
                "annotations: {}, labels: {weft.dev/inject: enabled, weft.dev/restart",
            )
            .replace("labels: {weft.dev/inject: enabled}, ", "");
        let census = census(&(labelled + &pod("missing", "shop", "", "")));
        assert_eq!(census.pods[0].restart, Some(true));
    }

    #[test]
    fn only_who_would_be_injected_now_is_missed() {
        let done = ", annotations: {weft.dev/status: '{\"version\": \"2.0.0\", \"sidecar\": \"native\"}'}";
        let old = done.replace("2.0.0", "1.0.0");
        let yaml = [
            SHOP.to_owned(),
            pod("missing", "shop", "", ""),
            pod("injected", "shop", done, ""),
            pod("outdated1", "shop", &old, ""),
            pod("opted-out1", "shop", ", labels: {weft.dev/inject: disabled}", ""),
            pod("host-network", "shop", "", ", hostNetwork: true"),
            pod("windows", "shop", "", ", nodeSelector: {kubernetes.io/os: windows}"),
            pod("elsewhere", "tools", "", ""),
            pod("asks-itself", "tools", ", annotations: {weft.dev/inject: enabled}", ""),
            pod("system", "kube-system", ", annotations: {weft.dev/inject: enabled}", ""),
            pod("own", "weft-system", ", annotations: {weft.dev/inject: enabled}", ""),
        ];
        let census = census(&yaml.concat());
        assert_eq!((census.injected, census.uninjected, census.outdated), (2, 2, 1));
        assert_eq!(names(&census), ["missing", "asks-itself", "outdated1"]);
        assert_eq!(census.pods[0].restart, Some(true), "the namespace allows it");
        assert_eq!(census.pods[1].restart, None);
        assert_eq!(census.missing_of(&WorkloadId::new("shop", "missing").expect("a name")), 1);
    }

    #[test]
    fn a_pod_that_has_ended_is_not_missed() {
        let ended = pod("job", "shop", "", "").replace("podIP", "phase: Succeeded, podIP");
        assert_eq!(census(&format!("{SHOP}{ended}")).uninjected, 0);
    }
}
