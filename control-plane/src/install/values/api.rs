//! Who may use the API and the dashboard, and from where.
//!
//! Invariant: what other machines can reach asks who is there. Surprise: a way to sign in counts on loopback, too; so tokens make sense
//! where the API is reached by `kubectl port-forward` alone: then the right to forward ports makes nobody an operator.

use anyhow::Context as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::patterns;
use crate::auth;
use crate::auth::oidc::CALLBACK;
use crate::auth::options::{GROUPS_CLAIM, OidcOptions, SCOPES};

/// The key of [`Api::tokens_secret`].
pub const TOKENS_KEY: &str = "tokens.yaml";
/// The key of [`Oidc::client_secret`].
pub const CLIENT_SECRET_KEY: &str = "client-secret";

/// The API and the dashboard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Api {
    /// Reachable in the cluster, for an Ingress, instead of by kubectl port-forward only. Needs tokens or OpenID Connect
    pub expose: bool,
    /// How browsers reach it, where something in front of it speaks TLS: https and a host, without a path; empty for nothing
    #[schemars(regex(pattern = patterns::ORIGIN))]
    pub public_url: String,
    /// A Secret in weft-system whose key tokens.yaml has the lines that weft auth token prints; empty for none. With it the API
    /// asks who is there, also by port-forward
    #[schemars(regex(pattern = patterns::NAME), length(max = patterns::NAME_MAX))]
    pub tokens_secret: String,
    /// Signing in to the dashboard by OpenID Connect
    pub oidc: Oidc,
}

/// Signing in by OpenID Connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Oidc {
    /// The provider, exactly as it calls itself; empty for none. Needs publicUrl, to which it sends browsers back
    #[schemars(regex(pattern = patterns::ISSUER))]
    pub issuer: String,
    /// The name under which the dashboard is registered as a client at the provider
    #[schemars(regex(pattern = patterns::CLIENT))]
    pub client_id: String,
    /// A Secret in weft-system with the client's secret under the key client-secret; empty for a client without one
    #[schemars(regex(pattern = patterns::NAME), length(max = patterns::NAME_MAX))]
    pub client_secret: String,
    /// Groups whose members are operators, parted by commas
    #[schemars(regex(pattern = patterns::GROUPS))]
    pub operator_groups: String,
    /// Groups whose members are viewers, parted by commas; * for everybody whom the provider signs in
    #[schemars(regex(pattern = patterns::GROUPS))]
    pub viewer_groups: String,
    /// The claim with the groups, a.b for b within a: realm_access.roles for the roles of Keycloak
    #[schemars(regex(pattern = patterns::CLAIM))]
    pub groups_claim: String,
    /// What is asked for beside openid, parted by commas; some providers tell groups only for a scope of their own
    #[schemars(regex(pattern = patterns::SCOPES))]
    pub scopes: String,
}

impl Default for Oidc {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            client_id: String::new(),
            client_secret: String::new(),
            operator_groups: String::new(),
            viewer_groups: String::new(),
            groups_claim: GROUPS_CLAIM.to_owned(),
            scopes: SCOPES.to_owned(),
        }
    }
}

impl Oidc {
    /// Where the provider sends browsers back to.
    pub(in crate::install) fn redirect_url(public_url: &str) -> String {
        format!("{public_url}{CALLBACK}")
    }
}

impl Api {
    /// Whether the control plane would start with it.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let Self { expose: _, public_url, tokens_secret: _, oidc } = self;
        let Oidc { issuer, client_id, operator_groups, viewer_groups, .. } = oidc;
        let some = |text: &String| Some(text).filter(|text| !text.is_empty()).cloned();
        let groups =
            |text: &String| text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect();
        let oidc = OidcOptions {
            oidc_issuer: some(issuer),
            oidc_client_id: some(client_id),
            oidc_redirect_url: some(issuer).map(|_| Oidc::redirect_url(public_url)),
            oidc_operator_group: groups(operator_groups),
            oidc_viewer_group: groups(viewer_groups),
            ..OidcOptions::default()
        };
        let options = auth::Options { api_public_url: some(public_url), oidc, ..auth::Options::default() };
        options
            .check(false)
            .with_context(|| format!("api: with publicUrl {public_url:?} and oidc.issuer {issuer:?} the control plane would not start"))
    }
}
