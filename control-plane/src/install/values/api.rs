//! Who may use the API and the dashboard, and from where.
//!
//! Invariant: what other machines can reach asks who is there. Surprise: a way to sign in counts on loopback, too; so tokens make sense
//! where the API is reached by `kubectl port-forward` alone: then the right to forward ports makes nobody an operator.

use anyhow::ensure;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text;

/// The key of [`Api::tokens_secret`].
pub const TOKENS_KEY: &str = "tokens.yaml";
/// The key of [`Oidc::client_secret`].
pub const CLIENT_SECRET_KEY: &str = "client-secret";
/// Why an API that asks nobody is not exposed; the chart says the same.
pub const UNGUARDED: &str = "api.expose: whoever reaches the API would be an operator: name a Secret with tokens (api.tokensSecret) or an \
                             OpenID provider (api.oidc.issuer) first; see docs/install.md";

/// The API and the dashboard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Api {
    /// Reachable in the cluster, for an Ingress, instead of by kubectl port-forward only. Needs tokens or OpenID Connect
    pub expose: bool,
    /// How browsers reach it, where something in front of it speaks TLS: https://weft.example.com; empty for nothing
    #[schemars(regex(pattern = r"^(https?://[A-Za-z0-9._:-]+)?$"))]
    pub public_url: String,
    /// A Secret in weft-system whose key tokens.yaml has the lines that weft auth token prints; empty for none. With it the API
    /// asks who is there, also by port-forward
    #[schemars(regex(pattern = r"^[a-z0-9.-]*$"))]
    pub tokens_secret: String,
    /// Signing in to the dashboard by OpenID Connect
    pub oidc: Oidc,
}

/// Signing in by OpenID Connect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Oidc {
    /// The provider, exactly as it calls itself; empty for none. Needs publicUrl, to which it sends browsers back
    #[schemars(regex(pattern = r"^(https?://[A-Za-z0-9._:/-]+)?$"))]
    pub issuer: String,
    /// Who the dashboard is to the provider
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:/-]*$"))]
    pub client_id: String,
    /// A Secret in weft-system with the client's secret under the key client-secret; empty for a client without one
    #[schemars(regex(pattern = r"^[a-z0-9.-]*$"))]
    pub client_secret: String,
    /// Groups whose members are operators, parted by commas
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:/@*,-]*$"))]
    pub operator_groups: String,
    /// Groups whose members are viewers, parted by commas; * for everybody whom the provider signs in
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:/@*,-]*$"))]
    pub viewer_groups: String,
}

impl Api {
    /// Whether every value can be used, and no door is left open.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let Self { expose, public_url, tokens_secret, oidc } = self;
        let Oidc { issuer, client_id, client_secret, operator_groups, viewer_groups } = oidc;
        text("api.tokensSecret", tokens_secret, ".-", true)?;
        text("api.oidc.clientId", client_id, "._:/-", true)?;
        text("api.oidc.clientSecret", client_secret, ".-", true)?;
        text("api.oidc.operatorGroups", operator_groups, "._:/@*,-", true)?;
        text("api.oidc.viewerGroups", viewer_groups, "._:/@*,-", true)?;
        for (path, url, more) in
            [("api.publicUrl", public_url, "._:/-"), ("api.oidc.issuer", issuer, "._:/-")]
        {
            text(path, url, more, true)?;
            let is_url = url.starts_with("https://") || url.starts_with("http://");
            ensure!(url.is_empty() || is_url, "{path}: {url:?} does not begin with https:// or http://");
        }
        ensure!(!public_url.ends_with('/'), "api.publicUrl: {public_url:?} ends with a slash");
        if issuer.is_empty() {
            let rest = [client_id, client_secret, operator_groups, viewer_groups];
            ensure!(
                rest.iter().all(|value| value.is_empty()),
                "api.oidc: nothing of it counts without api.oidc.issuer"
            );
        } else {
            ensure!(!client_id.is_empty(), "api.oidc.clientId: the provider must be told who asks");
            ensure!(
                !public_url.is_empty(),
                "api.publicUrl: the provider must be told where to send browsers back to"
            );
            ensure!(
                !operator_groups.is_empty() || !viewer_groups.is_empty(),
                "api.oidc: without operatorGroups or viewerGroups nobody would come in"
            );
        }
        ensure!(!expose || self.is_guarded(), "{UNGUARDED}");
        Ok(())
    }

    /// Whether it asks who is there.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        !self.tokens_secret.is_empty() || !self.oidc.issuer.is_empty()
    }
}
