//! What an injected pod looks like: the names that injector, sidecar, source and manifests must spell alike.
//!
//! The injector writes them into pods; the sidecar answers what is asked at them; the control plane tells by them what is
//! the app's and what is ours. The paths are where volumes are mounted, so that an image needs to hold nothing but its
//! program.

/// The sidecar: an init container that stays (native), or a container (classic).
pub const PROXY: &str = "weft-proxy";
/// The init container that redirects the pod's connections.
pub const INTERCEPT: &str = "weft-intercept";
/// Volume with the token that proves the service account.
pub const TOKEN_VOLUME: &str = "weft-token";
/// Volume with the mesh's roots.
pub const TRUST_VOLUME: &str = "weft-trust";
/// ConfigMap with the mesh's roots, in every namespace that has injected pods.
pub const TRUST_CONFIG_MAP: &str = "weft-trust-bundle";
/// Key in it, and the file's name.
pub const TRUST_KEY: &str = "ca.crt";
/// Where [`TRUST_VOLUME`] is mounted.
pub const TRUST_DIRECTORY: &str = "/var/run/secrets/weft/trust";
/// Where [`TOKEN_VOLUME`] is mounted.
pub const TOKEN_DIRECTORY: &str = "/var/run/secrets/weft/token";
/// The file in it.
pub const TOKEN_FILE: &str = "token";
/// For whom the token is made.
pub const TOKEN_AUDIENCE: &str = "weft";
/// The sidecar's program inside of its image, which has no shell and no search path.
pub const PROGRAM: &str = "/weft-proxy";
/// The sidecar's repository, where no other is configured.
pub const IMAGE: &str = "weft-proxy";
/// How the paths begin at which the sidecar answers the kubelet for the app: `/probe/<container>/<kind>`.
pub const PROBE_PATH: &str = "/probe/";

/// What the kubelet may ask of a pod at most, if the sidecar is to ask it: a handful of containers have five each.
pub const PROBES_MAX: usize = 256;
/// Bytes of all that, as JSON in one variable: Linux starts no program with a longer one than 128 KiB.
pub const PROBES_BYTES_MAX: usize = 120 * 1024;

/// What the kubelet asks of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Whether to restart it.
    Liveness,
    /// Whether to send it requests.
    Readiness,
    /// Whether it has started.
    Startup,
    /// Hook after its start.
    PostStart,
    /// Hook before its end.
    PreStop,
}

impl ProbeKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Liveness, Self::Readiness, Self::Startup, Self::PostStart, Self::PreStop];

    /// The last segment of the path.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
            Self::PostStart => "post-start",
            Self::PreStop => "pre-stop",
        }
    }

    /// Whether the kubelet looks at nothing but whether there was an answer.
    #[must_use]
    pub const fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
    }
}

/// Whether the kubelet sends this header of an `httpGet` as it is written there: not what an HTTP client writes itself, nor
/// what is empty. Of a hook the sidecar wants to see each of these before it asks the app, so that a secret in it stays one.
#[must_use]
pub fn is_sent_as_written(header: &str, value: &str) -> bool {
    const CLIENTS: [&str; 5] = ["host", "connection", "content-length", "trailer", "transfer-encoding"];
    !value.trim().is_empty() && !CLIENTS.iter().any(|own| own.eq_ignore_ascii_case(header))
}

/// Where the sidecar answers for `container`.
#[must_use]
pub fn probe_path(container: &str, kind: ProbeKind) -> String {
    format!("{PROBE_PATH}{container}/{}", kind.word())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_writes_itself_is_not_asked_for() {
        assert!(is_sent_as_written("X-Token", "1") && is_sent_as_written("User-Agent", "me"));
        assert!(!is_sent_as_written("HOST", "a.example") && !is_sent_as_written("Accept", " "));
    }

    #[test]
    fn paths_of_probes_begin_alike_and_differ() {
        let paths = ProbeKind::ALL.map(|kind| probe_path("app", kind));
        assert_eq!(paths[0], "/probe/app/liveness");
        assert!(paths.iter().all(|path| path.starts_with(PROBE_PATH)));
        let unique: std::collections::BTreeSet<_> = paths.iter().collect();
        assert_eq!(unique.len(), paths.len());
    }
}
