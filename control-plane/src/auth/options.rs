//! The settings of authentication, as flags and environment variables.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{oidc, review};
use crate::audit::Target;
use crate::ca::Reviewer;

/// The claim with somebody's groups, where nobody says otherwise.
pub(crate) const GROUPS_CLAIM: &str = "groups";
/// What is asked for beside `openid`, where nobody says otherwise.
pub(crate) const SCOPES: &str = "profile,email";

/// How people and programs sign in to the API.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Who may use the API and the dashboard")]
pub struct Options {
    /// File of tokens, one a line, as `weft auth token` prints them: {name: …, role: viewer|operator, sha256: …, expires: …}.
    /// Must not be readable by everybody; hot reloaded
    #[arg(long, env = "WEFT_API_TOKENS", value_name = "FILE")]
    pub api_tokens: Option<PathBuf>,

    /// How browsers reach the dashboard, where something in front of it changes the Host header or speaks TLS for it, for
    /// instance `https://weft.example.com`
    #[arg(long, env = "WEFT_API_PUBLIC_URL", value_name = "URL")]
    pub api_public_url: Option<String>,

    /// Where every call that changes something is written down, as JSON lines: a file, or stderr. What cannot be written
    /// down is not done
    #[arg(long, env = "WEFT_AUDIT_LOG", value_name = "FILE|stderr", default_value = "stderr")]
    pub audit_log: Target,

    #[command(flatten)]
    pub oidc: OidcOptions,

    #[command(flatten)]
    pub review: ReviewOptions,
}

/// Signing in to the dashboard by OpenID Connect.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Signing in to the dashboard by OpenID Connect")]
pub struct OidcOptions {
    /// The provider, exactly as it calls itself, for instance `https://login.example.com/realms/main`
    #[arg(long, env = "WEFT_OIDC_ISSUER", value_name = "URL")]
    pub oidc_issuer: Option<String>,

    /// Who the dashboard is to the provider
    #[arg(long, env = "WEFT_OIDC_CLIENT_ID", value_name = "ID", requires = "oidc_issuer")]
    pub oidc_client_id: Option<String>,

    /// File with the client's secret, if the provider gave it one; read for every login
    #[arg(long, env = "WEFT_OIDC_CLIENT_SECRET_FILE", value_name = "FILE", requires = "oidc_issuer")]
    pub oidc_client_secret_file: Option<PathBuf>,

    /// Where the provider sends browsers back to: the dashboard's address with /api/session/oidc/callback
    #[arg(long, env = "WEFT_OIDC_REDIRECT_URL", value_name = "URL", requires = "oidc_issuer")]
    pub oidc_redirect_url: Option<String>,

    /// A group whose members are operators; may be given several times
    #[arg(long, env = "WEFT_OIDC_OPERATOR_GROUP", value_name = "GROUP", value_delimiter = ',')]
    pub oidc_operator_group: Vec<String>,

    /// A group whose members are viewers; may be given several times. `*`: everybody whom the provider signs in
    #[arg(long, env = "WEFT_OIDC_VIEWER_GROUP", value_name = "GROUP", value_delimiter = ',')]
    pub oidc_viewer_group: Vec<String>,

    /// The claim with the groups; `a.b` for b within a
    #[arg(long, env = "WEFT_OIDC_GROUPS_CLAIM", value_name = "CLAIM", default_value = GROUPS_CLAIM)]
    pub oidc_groups_claim: String,

    /// The claim with the name; without it preferred_username, email or sub
    #[arg(long, env = "WEFT_OIDC_NAME_CLAIM", value_name = "CLAIM")]
    pub oidc_name_claim: Option<String>,

    /// Scopes to ask for beside openid; some providers tell groups only for one of them
    #[arg(
        long,
        env = "WEFT_OIDC_SCOPES",
        value_name = "SCOPE",
        value_delimiter = ',',
        default_value = SCOPES
    )]
    pub oidc_scopes: Vec<String>,

    /// Roots (PEM) to trust at the provider instead of the public ones
    #[arg(long, env = "WEFT_OIDC_CA", value_name = "FILE", requires = "oidc_issuer")]
    pub oidc_ca: Option<PathBuf>,
}

impl Options {
    /// Whether the options can be used; opens no file and asks nobody.
    ///
    /// # Errors
    /// When one cannot, or what another needs is missing.
    pub fn check(&self, insecure: bool) -> anyhow::Result<()> {
        self.public_origin()?;
        let oidc = self.oidc.clone().settings()?;
        oidc.map_or(Ok(()), |settings| settings.check(insecure).map(drop))
    }

    /// The origin that browsers know the dashboard by, if that is said.
    pub(super) fn public_origin(&self) -> anyhow::Result<Option<String>> {
        // Browsers come back from a provider to where they came from.
        let public = self.api_public_url.as_ref().or(self.oidc.oidc_redirect_url.as_ref());
        public.map(|url| super::origin(url)).transpose().context("use --api-public-url")
    }
}

impl OidcOptions {
    /// What is configured, if anything.
    pub(super) fn settings(self) -> anyhow::Result<Option<oidc::Settings>> {
        // All fields by name: an option that nothing uses is a compiler warning.
        let Self {
            oidc_issuer,
            oidc_client_id,
            oidc_client_secret_file,
            oidc_redirect_url,
            oidc_operator_group,
            oidc_viewer_group,
            oidc_groups_claim,
            oidc_name_claim,
            oidc_scopes,
            oidc_ca,
        } = self;
        let Some(issuer) = oidc_issuer else { return Ok(None) };
        Ok(Some(oidc::Settings {
            issuer,
            client_id: oidc_client_id.context("--oidc-issuer needs --oidc-client-id")?,
            client_secret: oidc_client_secret_file,
            redirect_url: oidc_redirect_url.context("--oidc-issuer needs --oidc-redirect-url")?,
            roots: oidc_ca,
            scopes: oidc_scopes,
            name_claim: oidc_name_claim,
            groups_claim: oidc_groups_claim,
            operators: oidc_operator_group,
            viewers: oidc_viewer_group,
        }))
    }
}

/// Tokens of the cluster as tokens of the API.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Using the API with tokens of the cluster")]
pub struct ReviewOptions {
    /// Kubernetes API server that is asked (TokenReview) whose a bearer token is, for instance `https://kubernetes.default.svc`.
    /// It is asked with the credentials in --token-review-credentials. Not needed with --kubernetes
    #[arg(long, env = "WEFT_API_TOKEN_REVIEW", value_name = "URL")]
    pub api_token_review: Option<String>,

    /// For whom such a token must have been made: kubectl create token NAME --audience weft-api
    #[arg(long, env = "WEFT_API_TOKEN_AUDIENCE", value_name = "AUDIENCE", default_value = "weft-api")]
    pub api_token_audience: String,

    /// A group whose members are operators; may be given several times
    #[arg(long, env = "WEFT_API_TOKEN_REVIEW_OPERATOR_GROUP", value_name = "GROUP", value_delimiter = ',')]
    pub api_token_review_operator_group: Vec<String>,

    /// A group whose members are viewers, for instance system:serviceaccounts:monitoring; may be given several times
    #[arg(long, env = "WEFT_API_TOKEN_REVIEW_VIEWER_GROUP", value_name = "GROUP", value_delimiter = ',')]
    pub api_token_review_viewer_group: Vec<String>,
}

impl ReviewOptions {
    /// What is configured, if anything. With a cluster's client no address is needed: that somebody may come in is enough.
    pub(super) fn settings(
        self,
        credentials: &Path,
        cluster: Option<kube::Client>,
    ) -> Option<review::Settings> {
        // All fields by name: an option that nothing uses is a compiler warning.
        let Self {
            api_token_review,
            api_token_audience: audience,
            api_token_review_operator_group: operators,
            api_token_review_viewer_group: viewers,
        } = self;
        let somebody = !operators.is_empty() || !viewers.is_empty();
        let reviewer = match (api_token_review, cluster) {
            (Some(url), _) => Reviewer::At(url, credentials.to_owned()),
            (None, Some(client)) if somebody => Reviewer::Cluster(client),
            (None, _) => return None,
        };
        Some(review::Settings { reviewer, audience, operators, viewers })
    }
}
