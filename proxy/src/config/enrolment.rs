//! How a sidecar becomes somebody: what proves who it is, and whom it believes before it knows the mesh's bundle.
//!
//! In: the texts of five settings and the control plane's address. Out: an [`Enrolment`] for an `https` address, none for any
//! other. Invariant: what cannot work is an error now and not a line in the log later: an address that wants a proof and
//! has none, a proof that nobody asks for, a proof without anybody to believe. Surprise: files are not read here; they may
//! come later, and change.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use weft_wire::ca::JoinToken;
use weft_wire::{SpiffeId, WorkloadId, tls};

use super::Error;

/// A text that no log, error or dump repeats.
#[derive(Clone)]
pub struct Secret(String);

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What clap reads.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Proofs {
    /// Proves once who this sidecar is: what `weft token create` printed. Anybody who sees the
    /// command line sees it; prefer the environment or a file
    #[arg(long, env = "WEFT_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub join_token: Option<Secret>,
    /// A file that holds the join token
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", value_name = "PATH")]
    pub join_token_file: Option<PathBuf>,
    /// A file that holds a Kubernetes service account token, renewed by whoever made it
    #[arg(long, env = "WEFT_IDENTITY_TOKEN_FILE", value_name = "PATH")]
    pub identity_token_file: Option<PathBuf>,
    /// The roots that the control plane's certificate may come from, PEM; read again when the file changes
    #[arg(long, env = "WEFT_TRUST_BUNDLE", value_name = "PATH")]
    pub trust_bundle: Option<PathBuf>,
    /// A directory with tls.crt, tls.key and ca.crt. With a token: where the identity is kept across restarts.
    /// Without: an identity that somebody else makes and renews
    #[arg(long, env = "WEFT_IDENTITY_DIR", value_name = "PATH")]
    pub identity_dir: Option<PathBuf>,
    /// The trust domain of this mesh
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "DOMAIN", default_value = tls::TRUST_DOMAIN_DEFAULT)]
    pub trust_domain: String,
}

/// What proves who this sidecar is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A join token.
    JoinToken(JoinToken),
    /// A file with a join token.
    JoinTokenFile(PathBuf),
    /// A file with a service account token.
    ServiceAccount(PathBuf),
    /// Nothing: somebody else puts certificate and key into the directory.
    Directory,
}

/// How this sidecar gets its identity. Exists iff the control plane is asked over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// The namespace that the identity must be of.
    pub namespace: String,
    /// What proves it.
    pub proof: Proof,
    /// The operator's own list of roots.
    pub trust_bundle: Option<PathBuf>,
    /// Where the identity is kept, or found.
    pub directory: Option<PathBuf>,
}

impl Enrolment {
    /// Who the control plane must be.
    #[must_use]
    pub fn control_plane(&self) -> SpiffeId {
        let (namespace, account) = tls::CONTROL_PLANE;
        // The trust domain was parsed; the rest is constant.
        SpiffeId::new(&self.trust_domain, namespace, account).expect("names of an identity")
    }

    /// For people; without secrets.
    pub(super) fn describe(&self) -> serde_json::Value {
        let proof = match &self.proof {
            Proof::JoinToken(token) => format!("join token {}", token.id),
            Proof::JoinTokenFile(path) => format!("join token in {}", path.display()),
            Proof::ServiceAccount(path) => format!("service account token in {}", path.display()),
            Proof::Directory => "none: the directory holds the identity".to_owned(),
        };
        serde_json::json!({
            "trust_domain": self.trust_domain,
            "proof": proof,
            "trust_bundle": self.trust_bundle,
            "directory": self.directory,
        })
    }
}

/// Reads the settings; `None` without TLS.
pub(super) fn parse(
    arguments: Proofs,
    control_plane: Option<&http::Uri>,
    workload: &WorkloadId,
) -> Result<Option<Enrolment>, Error> {
    let Proofs { join_token, join_token_file, identity_token_file, trust_bundle, identity_dir, trust_domain } =
        arguments;
    let path = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
    let (join_token, join_token_file) =
        (join_token.filter(|secret| !secret.0.is_empty()), path(join_token_file));
    let (identity_token_file, trust_bundle, directory) =
        (path(identity_token_file), path(trust_bundle), path(identity_dir));
    if control_plane.and_then(http::Uri::scheme_str) != Some("https") {
        // A bundle alone does no harm: one template may serve both.
        let unused = [
            ("WEFT_JOIN_TOKEN", join_token.is_some()),
            ("WEFT_JOIN_TOKEN_FILE", join_token_file.is_some()),
            ("WEFT_IDENTITY_TOKEN_FILE", identity_token_file.is_some()),
            ("WEFT_IDENTITY_DIR", directory.is_some()),
        ];
        return match unused.into_iter().find(|(_, is_set)| *is_set) {
            Some((variable, _)) => Err(Error::Unused {
                variable,
                fix: "an identity is only had over TLS: write the control plane's address as https://HOST:15012, or leave this out",
            }),
            None => Ok(None),
        };
    }
    if SpiffeId::new(&trust_domain, "x", "x").is_err() {
        return Err(Error::Invalid {
            variable: "WEFT_TRUST_DOMAIN",
            text: trust_domain,
            expected: "a trust domain",
            fix: "use a-z, 0-9, '-', '_' and '.', for instance cluster.local",
        });
    }
    let given = [join_token.is_some(), join_token_file.is_some(), identity_token_file.is_some()];
    if given.into_iter().filter(|is_set| *is_set).count() > 1 {
        return Err(Error::Unused {
            variable: if join_token.is_some() { "WEFT_JOIN_TOKEN" } else { "WEFT_JOIN_TOKEN_FILE" },
            fix: "one proof is enough: keep one of WEFT_JOIN_TOKEN, WEFT_JOIN_TOKEN_FILE and WEFT_IDENTITY_TOKEN_FILE",
        });
    }
    let proof = match (join_token, join_token_file, identity_token_file) {
        (Some(Secret(text)), _, _) => Proof::JoinToken(text.parse().map_err(|_| Error::Secret {
            variable: "WEFT_JOIN_TOKEN",
            expected: "a join token",
            fix: "write all of what `weft token create` printed: weft1.<id>.<secret>.<pin>",
        })?),
        (_, Some(path), _) => Proof::JoinTokenFile(path),
        (_, _, Some(path)) if trust_bundle.is_some() => Proof::ServiceAccount(path),
        (_, _, Some(_)) => {
            return Err(Error::Missing {
                variable: "WEFT_TRUST_BUNDLE",
                fix: "a service account token says nothing about whom to believe: name a file with the mesh's roots (PEM)",
            });
        }
        (None, None, None) if directory.is_some() => Proof::Directory,
        (None, None, None) => {
            return Err(Error::Missing {
                variable: "WEFT_JOIN_TOKEN",
                fix: "a control plane at https:// wants to know who asks: set WEFT_JOIN_TOKEN or WEFT_JOIN_TOKEN_FILE (from `weft token create`), WEFT_IDENTITY_TOKEN_FILE, or WEFT_IDENTITY_DIR with an identity in it",
            });
        }
    };
    let namespace = workload.namespace().to_owned();
    Ok(Some(Enrolment { trust_domain, namespace, proof, trust_bundle, directory }))
}
