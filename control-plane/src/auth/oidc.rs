//! Signing in by another authority: OpenID Connect, authorization code with PKCE.
//!
//! In: a browser that wants to sign in. Out: [`Oidc::begin`], where to send it; [`Oidc::finish`], who came back. Between the two
//! the provider asks for whatever it asks for.
//!
//! Invariants: a login that comes back was begun here, by the same browser, less than [`logins::LIFE`] ago, and comes back once
//! (`state`, and a cookie that stands for the browser); the code is worth something only to who began it (PKCE, S256); the ID
//! token is signed by the issuer for us, now, for this login (`nonce`); without a group that is mapped to a role nobody comes
//! in. Nothing is asked of the provider before somebody wants to sign in, so that it may start later than we do.

mod claims;
mod id_token;
mod logins;
mod provider;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use axum::http::{HeaderMap, Uri, header};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use prometheus::{IntCounterVec, Opts, Registry};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use self::claims::Mapping;
use self::id_token::Expected;
use self::logins::{Attempt, Logins};
use self::provider::Provider;
use super::sessions::Way;
use super::tokens::hex;
use super::{How, Principal, random};
use crate::fetch::{Fetch, Question};

pub use self::id_token::Unfit;

/// Where the provider sends browsers back to.
pub const CALLBACK: &str = "/api/session/oidc/callback";
/// Names of the cookie that stands for a browser between begin and end of a login.
const COOKIES: [&str; 2] = ["__Host-weft-login", "weft-login"];
/// Longer values from a provider or browser are not looked at.
const VALUE_MAX: usize = 4_096;

/// What is configured.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The issuer, exactly as it calls itself.
    pub issuer: String,
    /// Who we are to it.
    pub client_id: String,
    /// How we prove that, if it wants to know.
    pub client_secret: Option<PathBuf>,
    /// Where it sends browsers back to.
    pub redirect_url: String,
    /// Roots to trust instead of the public ones.
    pub roots: Option<PathBuf>,
    /// Scopes beside `openid`.
    pub scopes: Vec<String>,
    /// The claim that names somebody.
    pub name_claim: Option<String>,
    /// The claim with somebody's groups.
    pub groups_claim: String,
    /// Groups of operators.
    pub operators: Vec<String>,
    /// Groups of viewers; `*`: everybody who can sign in.
    pub viewers: Vec<String>,
}

impl Settings {
    /// How the session's cookie will travel, and what people call the provider. `insecure`: also by plain HTTP over a network.
    pub(super) fn check(&self, insecure: bool) -> anyhow::Result<(Way, String)> {
        let redirect: Uri = self.redirect_url.parse().context("--oidc-redirect-url is not a URL")?;
        let way = match redirect.scheme_str() {
            Some("https") => Way::Protected,
            Some("http") => Way::Plain,
            _ => anyhow::bail!("--oidc-redirect-url begins with https://"),
        };
        let host = redirect.authority().map(|authority| authority.as_str());
        ensure!(
            insecure || way == Way::Protected || host.is_some_and(crate::api::is_loopback),
            "--oidc-redirect-url must begin with https://, because a session that travels by plain HTTP can be taken over; \
             accept that with --insecure"
        );
        ensure!(redirect.path().ends_with(CALLBACK), "--oidc-redirect-url ends in {CALLBACK}");
        ensure!(
            !self.operators.is_empty() || !self.viewers.is_empty(),
            "nobody could sign in: say who may by --oidc-viewer-group or --oidc-operator-group ('*': everybody whom the \
             provider knows)"
        );
        let issuer: Uri = self.issuer.parse().context("--oidc-issuer is not a URL")?;
        let name = issuer.host().context("--oidc-issuer has no host")?.to_owned();
        Ok((way, name))
    }
}

/// Why somebody could not sign in. For the log; the browser is told little.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It was not begun here, or too long ago, or has come back before.
    #[error("this login was not begun here, or too long ago, or it has come back before")]
    State,
    /// It was begun by another browser.
    #[error("this login was begun by another browser")]
    Browser,
    /// The provider says no.
    #[error("the provider refuses: {0}")]
    Provider(String),
    /// Another provider answers than was asked.
    #[error("the answer comes from {0:?}, who was not asked")]
    Issuer(String),
    /// What came back is not complete.
    #[error("the provider sent the browser back without a code")]
    NoCode,
    /// The provider cannot be asked, or answers nonsense.
    #[error("ask the provider")]
    Asking(#[source] anyhow::Error),
    /// The ID token is not one for us.
    #[error("the ID token: {0}")]
    IdToken(#[from] Unfit),
    /// No role.
    #[error("{0} is in no group that has a role here")]
    NoRole(String),
}

impl Failure {
    /// The word in the metric.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Browser => "browser",
            Self::Provider(_) => "provider",
            Self::Issuer(_) => "issuer",
            Self::NoCode => "no_code",
            Self::Asking(_) => "asking",
            Self::IdToken(unfit) => unfit.word(),
            Self::NoRole(_) => "no_role",
        }
    }
}

/// Where a browser is sent.
#[derive(Debug)]
pub struct Away {
    /// The provider's page.
    pub url: String,
    /// `Set-Cookie`: what stands for this browser until it comes back.
    pub cookie: String,
}

/// What a browser brings back.
#[derive(Debug, Default, Deserialize)]
pub struct Back {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
    /// RFC 9207.
    iss: Option<String>,
}

/// A provider, and the logins under way.
pub struct Oidc {
    settings: Settings,
    mapping: Mapping,
    way: Way,
    name: String,
    provider: Provider,
    fetch: Fetch,
    logins: Logins,
    results: IntCounterVec,
}

impl Oidc {
    /// Checks `settings`; asks nobody yet.
    ///
    /// # Errors
    /// When they cannot work.
    pub fn new(settings: Settings, insecure: bool, registry: &Registry) -> anyhow::Result<Arc<Self>> {
        let (way, name) = settings.check(insecure)?;
        let fetch = Fetch::new(settings.roots.as_deref()).context("use --oidc-ca")?;
        let help = "Logins by OpenID Connect, by how they ended.";
        let results = IntCounterVec::new(Opts::new("weft_api_oidc_logins_total", help), &["result"]);
        let results = results.expect("a valid name");
        // Registered twice only in tests that share a registry; then it is only not exported twice.
        drop(registry.register(Box::new(results.clone())));
        let provider = Provider::new(settings.issuer.clone());
        let mapping = Mapping::new(&settings);
        Ok(Arc::new(Self {
            settings,
            mapping,
            way,
            name,
            provider,
            fetch,
            logins: Logins::default(),
            results,
        }))
    }

    /// What people call the provider: its host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the session's cookie will travel.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// Begins a login.
    ///
    /// # Errors
    /// When the provider cannot be asked.
    pub async fn begin(&self, now: Timestamp) -> Result<Away, Failure> {
        let begun = self.try_begin(now).await;
        if let Err(failure) = &begun {
            self.results.with_label_values(&[failure.word()]).inc();
        }
        begun
    }

    async fn try_begin(&self, now: Timestamp) -> Result<Away, Failure> {
        let endpoints = self.provider.endpoints(&self.fetch, now).await.map_err(Failure::Asking)?;
        let secret = || random::<32>().map(|bytes| hex(&bytes)).map_err(Failure::Asking);
        let (state, nonce, verifier, browser) = (secret()?, secret()?, secret()?, secret()?);
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
        let mut scope = "openid".to_owned();
        for one in self.settings.scopes.iter().filter(|one| *one != "openid") {
            scope.push(' ');
            scope.push_str(one);
        }
        let query = form(&[
            ("response_type", "code"),
            ("client_id", &self.settings.client_id),
            ("redirect_uri", &self.settings.redirect_url),
            ("scope", &scope),
            ("state", &state),
            ("nonce", &nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ]);
        let joint = if endpoints.authorization.contains('?') { '&' } else { '?' };
        let url = format!("{}{joint}{query}", endpoints.authorization);
        let cookie = self.cookie(&browser);
        self.logins.begin(&state, Attempt { nonce, verifier, browser, begun: now }, now);
        Ok(Away { url, cookie })
    }

    /// Who came back.
    ///
    /// # Errors
    /// When nobody did who may come in.
    pub async fn finish(
        &self,
        back: Back,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<Principal, Failure> {
        let finished = self.try_finish(back, headers, now).await;
        let word = finished.as_ref().map_or_else(Failure::word, |_| "signed_in");
        self.results.with_label_values(&[word]).inc();
        finished
    }

    async fn try_finish(
        &self,
        back: Back,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<Principal, Failure> {
        let state = back.state.filter(|state| state.len() <= VALUE_MAX).ok_or(Failure::State)?;
        // Taken out before anything else, so that it comes back once whatever happens.
        let attempt = self.logins.take(&state, now).ok_or(Failure::State)?;
        if !self.is_browser(&attempt, headers) {
            return Err(Failure::Browser);
        }
        if let Some(issuer) = back.iss.filter(|issuer| *issuer != self.settings.issuer) {
            return Err(Failure::Issuer(cut(&issuer)));
        }
        if let Some(error) = back.error {
            let more = back.error_description.map(|text| format!(": {text}")).unwrap_or_default();
            return Err(Failure::Provider(cut(&format!("{error}{more}"))));
        }
        let code =
            back.code.filter(|code| !code.is_empty() && code.len() <= VALUE_MAX).ok_or(Failure::NoCode)?;
        let id_token = self.exchange(&code, &attempt.verifier, now).await?;
        let expected = Expected {
            issuer: &self.settings.issuer,
            client_id: &self.settings.client_id,
            nonce: &attempt.nonce,
        };
        let claims = self.verified(&id_token, &expected, now).await?;
        let (name, role) = self.mapping.read(&claims).map_err(Failure::NoRole)?;
        Ok(Principal { name: name.into(), role, how: How::Oidc, session: true })
    }

    /// The ID token for a code.
    async fn exchange(&self, code: &str, verifier: &str, now: Timestamp) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Tokens {
            id_token: Option<String>,
        }
        let endpoints = self.provider.endpoints(&self.fetch, now).await.map_err(Failure::Asking)?;
        let mut fields = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &self.settings.redirect_url),
            ("code_verifier", verifier),
        ];
        let secret = self.secret().map_err(Failure::Asking)?;
        let authorization = match &secret {
            // Each is encoded as in a form before they are joined: RFC 6749, 2.3.1.
            Some(secret) if endpoints.takes_basic => {
                let (id, secret) = (encoded(&self.settings.client_id), encoded(secret));
                Some(format!("Basic {}", STANDARD.encode(format!("{id}:{secret}"))))
            }
            Some(secret) => {
                fields.extend([("client_id", self.settings.client_id.as_str()), ("client_secret", secret)]);
                None
            }
            None => {
                fields.push(("client_id", &self.settings.client_id));
                None
            }
        };
        let body = Some(("application/x-www-form-urlencoded", form(&fields)));
        let asked = self.fetch.ask(&endpoints.token, Question { body, authorization }).await;
        let (status, answer) = asked.map_err(|error| Failure::Asking(error.into()))?;
        if !status.is_success() {
            let said = String::from_utf8_lossy(&answer);
            return Err(Failure::Provider(cut(&format!("{status} for the code: {said}"))));
        }
        let tokens: Tokens =
            serde_json::from_slice(&answer).map_err(|error| Failure::Asking(anyhow::Error::new(error)))?;
        tokens.id_token.ok_or_else(|| Failure::Asking(anyhow::anyhow!("there is no id_token in its answer")))
    }

    async fn verified(
        &self,
        token: &str,
        expected: &Expected<'_>,
        now: Timestamp,
    ) -> Result<serde_json::Map<String, serde_json::Value>, Failure> {
        let keys = self.provider.keys(&self.fetch, false, now).await.map_err(Failure::Asking)?;
        match id_token::verify(token, &keys, expected, now) {
            // The provider may have a new key since we asked.
            Err(Unfit::Key) => {
                let keys = self.provider.keys(&self.fetch, true, now).await.map_err(Failure::Asking)?;
                Ok(id_token::verify(token, &keys, expected, now)?)
            }
            verified => Ok(verified?),
        }
    }

    /// Read each time: whoever replaces the file needs to tell nobody.
    fn secret(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.settings.client_secret else { return Ok(None) };
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("read --oidc-client-secret-file {}", path.display()))?;
        Ok(Some(text.trim().to_owned()))
    }

    fn cookie_name(&self) -> &'static str {
        if self.way == Way::Protected { COOKIES[0] } else { COOKIES[1] }
    }

    /// Lax, not strict: it has to come along when the provider sends the browser back.
    fn cookie(&self, browser: &str) -> String {
        let secure = if self.way == Way::Protected { "; Secure" } else { "" };
        let age = logins::LIFE.as_secs();
        let name = self.cookie_name();
        format!("{name}={browser}; Path=/; HttpOnly; SameSite=Lax; Max-Age={age}{secure}")
    }

    fn is_browser(&self, attempt: &Attempt, headers: &HeaderMap) -> bool {
        let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.any(|(name, value)| {
            let same = aws_lc_rs::constant_time::verify_slices_are_equal(
                value.as_bytes(),
                attempt.browser.as_bytes(),
            );
            name == self.cookie_name() && same.is_ok()
        })
    }
}

/// `a=b&c=d`, encoded.
fn form(fields: &[(&str, &str)]) -> String {
    let pairs = fields.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

fn cut(text: &str) -> String {
    text.chars().filter(|one| !one.is_control()).take(300).collect()
}
