//! Why a pod stays without a sidecar, in words.
//!
//! In: a pod, its namespace, what they wish. Out: the first reason that holds, from the broadest (a namespace that is never
//! injected) to the narrowest (a port that is taken); or a [`Refusal`] for what nobody can do. Pure.

use std::fmt;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use weft_wire::{pod as names, port};

use super::wishes::Wish;
use super::{Namespace, Settings, Subject};

/// Namespaces of Kubernetes itself: what runs there must not wait for a mesh.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// Containers of other meshes, and whose they are.
const FOREIGN_SIDECARS: [(&str, &str); 5] = [
    ("istio-proxy", "Istio"),
    ("linkerd-proxy", "Linkerd"),
    ("kuma-sidecar", "Kuma"),
    ("consul-dataplane", "Consul"),
    ("envoy-sidecar", "Consul"),
];

/// Annotations that the injectors of other meshes leave.
const FOREIGN_ANNOTATIONS: [(&str, &str); 4] = [
    ("sidecar.istio.io/status", "Istio"),
    ("linkerd.io/proxy-version", "Linkerd"),
    ("kuma.io/sidecar-injected", "Kuma"),
    ("consul.hashicorp.com/connect-inject-status", "Consul"),
];

/// Ports that the sidecar listens on.
const OWN_PORTS: [u16; 4] = [port::ADMIN, port::OUTBOUND, port::INBOUND, port::METRICS];

/// Why a pod stays without a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Its namespace belongs to Kubernetes or to the control plane.
    Namespace(String),
    /// Nobody asked for one.
    NotAsked,
    /// Somebody asked for none.
    OptedOut(&'static str),
    /// It has no network of its own.
    HostNetwork,
    /// It does not run on Linux.
    Windows,
    /// Another mesh has it already.
    Foreign(&'static str),
    /// Something of ours has the name of something of its own.
    NameTaken(String),
    /// A container listens where the sidecar does.
    PortTaken {
        /// The container.
        container: String,
        /// The port.
        port: u16,
    },
}

impl Reason {
    /// A word for metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "namespace",
            Self::NotAsked => "not_asked",
            Self::OptedOut(_) => "opted_out",
            Self::HostNetwork => "host_network",
            Self::Windows => "windows",
            Self::Foreign(_) => "foreign_mesh",
            Self::NameTaken(_) => "name_taken",
            Self::PortTaken { .. } => "port_taken",
        }
    }

    /// Whether somebody may wonder: not where nobody asked for a sidecar.
    pub(super) fn is_worth_a_warning(&self, wish: Wish) -> bool {
        match self {
            Self::NotAsked => false,
            Self::Namespace(_) => wish == Wish::OfPod(true),
            _ => true,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "pods of namespace {name} never get one"),
            Self::NotAsked => write!(f, "neither the pod nor its namespace has weft.dev/inject: enabled"),
            Self::OptedOut(what) => write!(f, "the {what} has weft.dev/inject: disabled"),
            Self::HostNetwork => write!(
                f,
                "the pod uses its node's network (hostNetwork), and its connections cannot be told from the node's"
            ),
            Self::Windows => write!(f, "the pod runs on Windows, and the sidecar on Linux only"),
            Self::Foreign(mesh) => write!(
                f,
                "the pod is in another mesh ({mesh}), and two cannot capture the same connections; take it out of that one first"
            ),
            Self::NameTaken(name) => {
                write!(
                    f,
                    "the pod has a container or volume of its own that is called {name}; give it another name"
                )
            }
            Self::PortTaken { container, port } => write!(
                f,
                "container {container} listens on port {port}, which the sidecar needs (15000, 15001, 15006, 15020); move it to another"
            ),
        }
    }
}

/// What nobody can do: the place, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fix}")]
pub struct Refusal {
    /// Path of the field.
    pub place: String,
    /// What is wrong and what to write.
    pub fix: String,
}

impl Refusal {
    pub(super) fn new(place: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { place: place.into(), fix: fix.into() }
    }

    /// The pod cannot be read.
    pub(super) fn shape(error: serde_path_to_error::Error<serde_json::Error>) -> Self {
        Self { place: error.path().to_string(), fix: error.into_inner().to_string() }
    }
}

/// Why nobody wants a sidecar in the pod, whatever is in it.
pub(super) fn unwanted(subject: &Subject<'_>, wish: Wish, settings: &Settings) -> Option<Reason> {
    let namespace = subject.namespace.name.as_str();
    if is_never_injected(namespace, &settings.namespace) {
        return Some(Reason::Namespace(namespace.to_owned()));
    }
    match wish {
        Wish::Silent if !subject.asked => Some(Reason::NotAsked),
        Wish::OfPod(false) => Some(Reason::OptedOut("pod")),
        // Whoever did not ask need not hear of it.
        Wish::OfNamespace(false) if subject.asked => Some(Reason::OptedOut("namespace")),
        Wish::OfNamespace(false) => Some(Reason::NotAsked),
        Wish::OfPod(true) | Wish::OfNamespace(true) | Wish::Silent => None,
    }
}

/// Whether a namespace's pods are left alone whatever they say; `own` is the control plane's.
pub(super) fn is_never_injected(namespace: &str, own: &str) -> bool {
    namespace == own || SYSTEM_NAMESPACES.contains(&namespace)
}

/// Why a pod cannot have a sidecar, however much it wishes for one.
pub(super) fn blocked(pod: &Pod, namespace: Option<&Namespace>) -> Option<Reason> {
    let spec = pod.spec.as_ref()?;
    if spec.host_network == Some(true) {
        return Some(Reason::HostNetwork);
    }
    if is_windows(spec) {
        return Some(Reason::Windows);
    }
    foreign(pod, spec, namespace).map(Reason::Foreign).or_else(|| taken(spec))
}

fn is_windows(spec: &PodSpec) -> bool {
    const KEYS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return true;
    }
    let selected = spec.node_selector.iter().flatten();
    if selected.into_iter().any(|(key, value)| KEYS.contains(&key.as_str()) && value == "windows") {
        return true;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    // The terms are alternatives: all of them must lead to Windows.
    required.is_some_and(|required| {
        let terms = &required.node_selector_terms;
        !terms.is_empty()
            && terms.iter().all(|term| {
                term.match_expressions.iter().flatten().any(|expression| {
                    KEYS.contains(&expression.key.as_str())
                        && expression.operator == "In"
                        && expression.values.as_deref().is_some_and(|values| values == ["windows"])
                })
            })
    })
}

fn foreign(pod: &Pod, spec: &PodSpec, namespace: Option<&Namespace>) -> Option<&'static str> {
    let mut found = containers(spec).filter_map(|container| {
        FOREIGN_SIDECARS.iter().find(|(name, _)| *name == container.name).map(|(_, mesh)| *mesh)
    });
    if let Some(mesh) = found.next() {
        return Some(mesh);
    }
    let annotations = pod.metadata.annotations.as_ref();
    let mut left = FOREIGN_ANNOTATIONS.iter();
    let marked = left.find(|(key, _)| annotations.is_some_and(|all| all.contains_key(*key)));
    if let Some((_, mesh)) = marked {
        return Some(mesh);
    }
    // Ambient mode adds nothing to the pod: its node captures the connections.
    const AMBIENT: &str = "istio.io/dataplane-mode";
    let own = pod.metadata.labels.as_ref().and_then(|labels| labels.get(AMBIENT));
    let mode = own.or_else(|| namespace?.labels.get(AMBIENT));
    mode.is_some_and(|mode| mode == "ambient").then_some("Istio")
}

fn taken(spec: &PodSpec) -> Option<Reason> {
    const OURS: [&str; 2] = [names::PROXY, names::INTERCEPT];
    const VOLUMES: [&str; 2] = [names::TOKEN_VOLUME, names::TRUST_VOLUME];
    let containers = || containers(spec);
    let volumes = spec.volumes.iter().flatten().map(|volume| volume.name.as_str());
    let mut clash = containers()
        .map(|container| container.name.as_str())
        .filter(|name| OURS.contains(name))
        .chain(volumes.filter(|name| VOLUMES.contains(name)));
    if let Some(name) = clash.next() {
        return Some(Reason::NameTaken(name.to_owned()));
    }
    containers().find_map(|container| {
        let mut ports = container.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
        let port = ports
            .find_map(|port| OWN_PORTS.into_iter().find(|own| i32::from(*own) == port.container_port))?;
        Some(Reason::PortTaken { container: container.name.clone(), port })
    })
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// All containers that are there when the app is.
pub(super) fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}
