//! Every check: its name, which is its anchor in `docs/checks.md`, its sentence, and what must hold before it makes sense.
//!
//! Invariant: the order is the order in which they are shown, and whatever a check needs stands before it.

use std::fmt;

/// What a check belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// The cluster itself.
    Kubernetes,
    /// What an installation needs.
    BeforeInstall,
    /// What an installation made.
    Installation,
    /// The programs of it.
    ControlPlane,
    /// What brings sidecars into pods.
    Injector,
    /// What the control plane says of itself.
    Api,
    /// What it says of the mesh's configuration.
    Configuration,
    /// The sidecars.
    DataPlane,
}

impl Group {
    /// Its heading.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::BeforeInstall => "before-install",
            Self::Installation => "installation",
            Self::ControlPlane => "control-plane",
            Self::Injector => "injector",
            Self::Api => "api",
            Self::Configuration => "configuration",
            Self::DataPlane => "data-plane",
        }
    }
}

/// When a check is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Before an installation and after it.
    Always,
    /// Before it only.
    Before,
    /// After it.
    After,
    /// After it, where the data plane is asked for.
    Proxy,
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    /// The API server of a cluster.
    Cluster,
    /// The control plane's API.
    Api,
    /// Both.
    Both,
    /// The API server; the control plane's API where no cluster is looked at.
    Either,
}

impl Asks {
    /// Whether there is nothing to say without a cluster.
    pub(crate) const fn needs_cluster(self) -> bool {
        matches!(self, Self::Cluster | Self::Both)
    }
}

macro_rules! checks {
    ($($variant:ident $id:literal $group:ident $when:ident $asks:ident $patient:literal [$($need:ident)*] $sentence:literal;)+) => {
        /// A check.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Check { $($variant,)+ }

        impl Check {
            /// All of them, in the order in which they are shown.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name, and its anchor in the documentation.
            pub(crate) const fn id(self) -> &'static str {
                match self { $(Self::$variant => $id,)+ }
            }

            /// What it finds when all is well.
            pub(crate) const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)+ }
            }

            pub(crate) const fn group(self) -> Group {
                match self { $(Self::$variant => Group::$group,)+ }
            }

            pub(crate) const fn when(self) -> When {
                match self { $(Self::$variant => When::$when,)+ }
            }

            pub(crate) const fn asks(self) -> Asks {
                match self { $(Self::$variant => Asks::$asks,)+ }
            }

            /// Whether waiting may help.
            pub(crate) const fn is_patient(self) -> bool {
                match self { $(Self::$variant => $patient,)+ }
            }

            /// What must hold before it makes sense.
            pub(crate) const fn needs(self) -> &'static [Self] {
                match self { $(Self::$variant => &[$(Self::$need,)*],)+ }
            }
        }
    };
}

checks! {
    ApiServer "api-server" Kubernetes Always Cluster true [] "the API server answers";
    Version "kubernetes-version" Kubernetes Always Cluster false [ApiServer] "Kubernetes is recent enough";
    OtherMeshes "other-meshes" Kubernetes Always Cluster false [ApiServer] "no other mesh injects into our pods";
    Rights "rights" BeforeInstall Before Cluster false [ApiServer] "you may create everything that an installation consists of";
    NotInstalled "not-installed" BeforeInstall Before Cluster false [ApiServer] "Weft is not installed yet";
    GatewayApi "gateway-api" Kubernetes Always Cluster false [ApiServer] "the Gateway API's HTTPRoute and GRPCRoute are there";
    Namespace "namespace" Installation After Cluster true [ApiServer] "the control plane's namespace is there";
    Crds "crds" Installation After Cluster true [Namespace] "the mesh's own kinds are there, as this version knows them";
    Rbac "rbac" Installation After Cluster true [Namespace] "the control plane has every right that it needs";
    Deployment "deployment" ControlPlane After Cluster true [Namespace] "the control plane's Deployment is there";
    Pods "control-plane-pods" ControlPlane After Cluster true [Deployment] "its pods are ready";
    Restarts "control-plane-restarts" ControlPlane After Cluster false [Deployment] "its pods do not start again and again";
    Lease "lease" ControlPlane After Cluster true [Deployment] "one replica leads, and says so in time";
    Leader "leader" ControlPlane After Cluster true [Lease] "the leader's pod is marked, so that sidecars and the API are led to it";
    CaSecret "ca-secret" ControlPlane After Cluster true [Deployment] "the certificate authority's keys are kept in a Secret";
    Webhook "webhook" Injector After Cluster true [Namespace] "the injector is registered with the API server";
    CaBundle "webhook-ca" Injector After Cluster true [Webhook] "the API server trusts the injector's certificate";
    Injects "webhook-serves" Injector After Cluster true [CaBundle] "a new pod would get a sidecar (tried without making one)";
    Api "api" Api After Api true [] "the control plane's API answers";
    SameVersion "same-version" Api After Api false [Api] "this program and the control plane are of one version";
    Authority "certificate-authority" Api After Api false [Api] "the certificate authority's certificates are valid";
    Problems "configuration" Configuration After Api true [Api] "everything in the configuration could be read";
    Objects "objects" Configuration After Api true [Api] "every object is accepted, and what it refers to exists";
    Connected "sidecars" DataPlane Proxy Api true [Api] "sidecars are connected";
    Uninjected "uninjected" DataPlane Proxy Either false [ApiServer] "every pod that should have a sidecar has one";
    InjectedConnected "injected-connected" DataPlane Proxy Both true [ApiServer Api] "every sidecar in a running pod is connected to the control plane";
    ProxyVersion "proxy-version" DataPlane Proxy Api false [Connected] "sidecars are of the control plane's version";
    Nacked "config-nacked" DataPlane Proxy Api true [Connected] "no sidecar refused its configuration";
    Stale "config-stale" DataPlane Proxy Api true [Connected] "no sidecar runs an old configuration";
    Certificates "proxy-certificates" DataPlane Proxy Api false [Connected] "sidecars' certificates are valid, and renewed in time";
    TrustBundle "trust-bundle" DataPlane Proxy Api true [Connected] "sidecars trust the current roots";
    Clocks "clocks" DataPlane Proxy Api false [Connected] "sidecars' clocks are right";
    Reports "reports" DataPlane Proxy Api true [Connected] "sidecars report what they measure";
    Stalls "detection-stalls" DataPlane Proxy Api false [Connected] "no connection waits for its protocol to be detected";
    Propagation "propagation" DataPlane Proxy Api false [Connected] "apps carry traces on";
}

impl fmt::Display for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.id())
    }
}

/// Where each check is explained.
const DOCUMENT: &str = include_str!("../../../docs/checks.md");

/// What the documentation says of a check: from its heading to the next.
pub(crate) fn explain(check: Check) -> Option<&'static str> {
    let heading = format!("\n### {}\n", check.id());
    let begin = DOCUMENT.find(&heading)? + 1;
    let rest = &DOCUMENT[begin..];
    let end = rest[4..].find("\n#").map_or(rest.len(), |end| end + 5);
    Some(rest[..end].trim_end())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_check_has_its_anchor_and_every_anchor_its_check() {
        let headings: BTreeSet<&str> =
            DOCUMENT.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        let ids: BTreeSet<&str> = Check::ALL.iter().map(|check| check.id()).collect();
        assert_eq!(ids.len(), Check::ALL.len(), "names differ");
        assert_eq!(headings, ids);
        for check in Check::ALL {
            let text = explain(*check).unwrap_or_else(|| panic!("{check}"));
            assert!(text.lines().count() > 2 && !text[4..].contains("\n#"), "{check}: {text}");
            assert!(text.contains(check.sentence()), "{check}: the documentation has the sentence");
        }
    }

    #[test]
    fn what_a_check_needs_stands_before_it_and_is_made_whenever_it_is() {
        for check in Check::ALL {
            for need in check.needs() {
                assert!(need < check, "{check} needs {need}");
                let made = matches!(
                    (need.when(), check.when()),
                    (When::Always, _) | (When::After, When::After | When::Proxy) | (When::Proxy, When::Proxy)
                );
                assert!(made || need.when() == check.when(), "{check} needs {need}");
            }
            assert!(!check.sentence().ends_with('.'));
            assert!(check.id().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{check}");
        }
    }
}
