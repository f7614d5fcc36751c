//! Who asks the API, and what they may do.
//!
//! In: a request's headers, and the ways to sign in that are configured. Out: a [`Principal`] with a [`Role`], or a
//! [`Refusal`] that says why not. The API's guard asks here for every request; nothing else decides who may do what.
//!
//! Invariants: if any way to sign in is configured, a request without proof is refused, on whatever address it comes; a
//! secret is never kept or written, only its digest; whatever is kept for strangers is bounded.
//! Surprise: without any way to sign in everybody is an operator. `app` allows that only on loopback or with `--insecure`.

pub mod oidc;
pub mod options;
pub mod review;
pub mod sessions;
pub mod tokens;

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use jiff::Timestamp;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use oidc::Oidc;
pub use options::Options;
use review::Reviews;
use sessions::{LIFE, Proof, Sessions, Way};
use tokens::Tokens;

/// What somebody may do. The later may do everything that the earlier may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything that reads.
    Viewer,
    /// Everything.
    Operator,
}

impl Role {
    /// The word in files and answers.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let role = [Self::Viewer, Self::Operator].into_iter().find(|role| role.word() == text);
        role.ok_or("a role is viewer or operator")
    }
}

/// How somebody proved who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Not at all: nothing is configured that could be asked for.
    Open,
    /// By a token of `--api-tokens`.
    Token,
    /// By an OpenID Connect provider.
    Oidc,
    /// By a token of the cluster.
    TokenReview,
}

/// Somebody who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// For people and the audit log.
    pub name: Arc<str>,
    /// What they may do.
    pub role: Role,
    /// How they proved it.
    pub how: How,
    /// Whether a browser's cookie stands for that proof.
    pub session: bool,
}

impl Principal {
    fn anybody() -> Self {
        Self { name: "anybody".into(), role: Role::Operator, how: How::Open, session: false }
    }
}

/// Why somebody may not come in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No proof came.
    #[error("you are not signed in")]
    Nobody,
    /// `Authorization` is not what is understood here.
    #[error("the authorization header is not `Bearer` and a token")]
    Scheme,
    /// The token means nothing here, or no longer.
    #[error("this token is not known here, or it has expired")]
    Unknown,
    /// The cookie means nothing here, or no longer.
    #[error("your session is over")]
    SessionOver,
    /// Who knows whose token it is cannot be asked.
    #[error(
        "the Kubernetes API server cannot be asked whose this token is; try again in a moment, or see the log"
    )]
    Unavailable,
}

impl Refusal {
    const ALL: [Self; 5] = [Self::Nobody, Self::Scheme, Self::Unknown, Self::SessionOver, Self::Unavailable];

    const fn word(&self) -> &'static str {
        match self {
            Self::Nobody => "no_proof",
            Self::Scheme => "bad_header",
            Self::Unknown => "unknown_token",
            Self::SessionOver => "session_over",
            Self::Unavailable => "review_unavailable",
        }
    }
}

/// Longer ones are not looked at: a service account's token has about 1 kB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// A session that a token of the cluster began: as long as such tokens live, if nobody asks for another life.
const CLUSTER_LIFE: Duration = Duration::from_secs(60 * 60);

/// Who knows people.
#[derive(Default)]
struct Providers {
    tokens: Option<Tokens>,
    reviews: Option<Reviews>,
    oidc: Option<Arc<Oidc>>,
}

/// The ways to sign in.
#[derive(Clone)]
pub struct Auth(Arc<Ways>);

struct Ways {
    tokens: Option<Tokens>,
    reviews: Option<Reviews>,
    oidc: Option<Arc<Oidc>>,
    sessions: Sessions,
    /// `https://weft.example.com`, as browsers write it.
    public_origin: Option<String>,
    /// Whether a session may travel by plain HTTP beyond loopback.
    insecure: bool,
    refused: [IntCounter; Refusal::ALL.len()],
    open_sessions: IntGauge,
}

/// What can be configured to sign in with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignIn {
    /// A token, sent to `POST /api/session`.
    pub token: bool,
    /// An OpenID Connect provider.
    pub oidc: Option<Elsewhere>,
}

/// A page that signs somebody in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Elsewhere {
    /// Whose it is.
    pub name: String,
    /// Where, from the dashboard's own address.
    pub href: &'static str,
}

impl Auth {
    /// No way to sign in: everybody may do everything.
    #[must_use]
    pub fn open() -> Self {
        Self::with(Providers::default(), None, false, &Registry::new())
    }

    /// What `options` configure; `credentials` is where we find our own for the Kubernetes API server, unless it is asked through
    /// `cluster`; counters are shown in `registry`.
    ///
    /// # Errors
    /// When an option, or a file that is named, cannot be used.
    pub fn new(
        options: Options,
        credentials: &Path,
        cluster: Option<kube::Client>,
        insecure: bool,
        registry: &Registry,
    ) -> anyhow::Result<Self> {
        // All fields by name: an option that nothing uses is a compiler warning. The audit log is `app`'s.
        let public = options.public_origin()?;
        let Options { api_tokens, api_public_url: _, audit_log: _, oidc, review } = options;
        let tokens = api_tokens.as_deref().map(|path: &Path| Tokens::open(path, registry)).transpose()?;
        let reviews = review.settings(credentials, cluster).map(Reviews::new).transpose()?;
        let oidc = oidc.settings()?.map(|settings| Oidc::new(settings, insecure, registry)).transpose()?;
        Ok(Self::with(Providers { tokens, reviews, oidc }, public, insecure, registry))
    }

    fn with(
        providers: Providers,
        public_origin: Option<String>,
        insecure: bool,
        registry: &Registry,
    ) -> Self {
        let help = "Requests to the API that were not let in, by why.";
        let refused = IntCounterVec::new(Opts::new("weft_api_refused_total", help), &["reason"]);
        let refused = refused.expect("a valid name");
        let open_sessions = IntGauge::new("weft_api_sessions", "Browsers that are signed in.");
        let open_sessions = open_sessions.expect("a valid name");
        // Registered twice only in tests that share a registry; then it is only not exported twice.
        drop(registry.register(Box::new(refused.clone())));
        drop(registry.register(Box::new(open_sessions.clone())));
        let refused = Refusal::ALL.map(|refusal| refused.with_label_values(&[refusal.word()]));
        let sessions = Sessions::default();
        let Providers { tokens, reviews, oidc } = providers;
        let ways = Ways { tokens, reviews, oidc, sessions, public_origin, insecure, refused, open_sessions };
        Self(Arc::new(ways))
    }

    /// Whether anybody is asked for anything.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.takes_tokens() || self.0.oidc.is_some()
    }

    fn takes_tokens(&self) -> bool {
        self.0.tokens.is_some() || self.0.reviews.is_some()
    }

    /// The OpenID Connect provider.
    #[must_use]
    pub fn oidc(&self) -> Option<&Oidc> {
        self.0.oidc.as_deref()
    }

    /// How one can sign in.
    #[must_use]
    pub fn ways(&self) -> SignIn {
        let oidc = self.0.oidc.as_ref();
        let oidc = oidc.map(|oidc| Elsewhere { name: oidc.name().to_owned(), href: "api/session/oidc" });
        SignIn { token: self.takes_tokens(), oidc }
    }

    /// The origin that browsers know this program by, where that is configured.
    #[must_use]
    pub fn public_origin(&self) -> Option<&str> {
        self.0.public_origin.as_deref()
    }

    /// Whether a session may travel by plain HTTP beyond loopback.
    #[must_use]
    pub fn is_insecure(&self) -> bool {
        self.0.insecure
    }

    /// Keeps what comes from files current, until `end`.
    pub async fn run(&self, end: CancellationToken) {
        if let Some(tokens) = &self.0.tokens {
            end.run_until_cancelled(tokens.follow()).await;
        }
    }

    /// Who sends `headers`: whose the token is, or else the session.
    ///
    /// # Errors
    /// When nobody does who may come in.
    pub async fn authenticate(&self, headers: &HeaderMap, now: Timestamp) -> Result<Principal, Refusal> {
        if !self.is_configured() {
            return Ok(Principal::anybody());
        }
        let principal = match bearer(headers) {
            Ok(Some(token)) => self.prove(token, now).await.map(|(principal, _)| principal),
            Ok(None) => self.of_session(headers, true, now),
            Err(refusal) => Err(refusal),
        };
        self.counted(principal)
    }

    /// Whether whoever once sent `headers` could still come in as `role`. Keeps no session alive.
    pub async fn still_admits(&self, headers: &HeaderMap, role: Role, now: Timestamp) -> bool {
        if !self.is_configured() {
            return true;
        }
        let principal = match bearer(headers) {
            Ok(Some(token)) => self.prove(token, now).await.map(|(principal, _)| principal),
            Ok(None) => self.of_session(headers, false, now),
            Err(refusal) => Err(refusal),
        };
        principal.is_ok_and(|principal| principal.role >= role)
    }

    /// Begins a session for the bearer of the token in `headers`; the cookie's value beside who that is.
    ///
    /// # Errors
    /// When nobody is, or there are no random numbers.
    pub async fn sign_in(
        &self,
        headers: &HeaderMap,
        way: Way,
        now: Timestamp,
    ) -> Result<anyhow::Result<(Principal, String)>, Refusal> {
        let proven = match bearer(headers) {
            Ok(Some(token)) => self.prove(token, now).await,
            Ok(None) => Err(Refusal::Nobody),
            Err(refusal) => Err(refusal),
        };
        let (principal, proof) = self.counted(proven)?;
        Ok(self.begin(principal, proof, way, now))
    }

    /// Begins a session for somebody whom the OpenID Connect provider vouches for; gives the cookie back.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn welcome(&self, principal: &Principal, way: Way, now: Timestamp) -> anyhow::Result<String> {
        let proof = Proof::Vouched(principal.clone(), LIFE);
        self.begin(principal.clone(), proof, way, now).map(|(_, cookie)| cookie)
    }

    fn begin(
        &self,
        mut principal: Principal,
        proof: Proof,
        way: Way,
        now: Timestamp,
    ) -> anyhow::Result<(Principal, String)> {
        principal.session = true;
        let name = self.0.sessions.begin(proof, way, &random()?, now);
        self.show_sessions();
        Ok((principal, way.set_cookie(&name)))
    }

    /// Ends the session in `headers`, if there is one; gives the cookies back that must go.
    pub fn sign_out(&self, headers: &HeaderMap) -> Vec<String> {
        let sent: Vec<(Way, &str)> = session_names(headers).collect();
        for (_, name) in &sent {
            self.0.sessions.end(name);
        }
        self.show_sessions();
        sent.into_iter().map(|(way, _)| way.set_cookie("")).collect()
    }

    fn show_sessions(&self) {
        self.0.open_sessions.set(i64::try_from(self.0.sessions.count()).unwrap_or(i64::MAX));
    }

    fn counted<T>(&self, proven: Result<T, Refusal>) -> Result<T, Refusal> {
        if let Err(refusal) = &proven
            && let Some(at) = Refusal::ALL.iter().position(|one| one == refusal)
        {
            self.0.refused[at].inc();
        }
        proven
    }

    /// Whose token it is, and what a session would rest on.
    async fn prove(&self, token: &str, now: Timestamp) -> Result<(Principal, Proof), Refusal> {
        let digest = tokens::digest(token.as_bytes());
        let known = self.0.tokens.as_ref().and_then(|tokens| tokens.holder(&digest, now));
        if let Some(principal) = known {
            return Ok((principal, Proof::Token(digest)));
        }
        let Some(reviews) = &self.0.reviews else { return Err(Refusal::Unknown) };
        let found = reviews.find(token, &digest, now).await.map_err(|_| Refusal::Unavailable)?;
        let principal = found.ok_or(Refusal::Unknown)?;
        Ok((principal.clone(), Proof::Vouched(principal, CLUSTER_LIFE)))
    }

    fn of_session(&self, headers: &HeaderMap, touch: bool, now: Timestamp) -> Result<Principal, Refusal> {
        let mut refusal = Refusal::Nobody;
        for (way, name) in session_names(headers) {
            let rests_on = self.0.sessions.find(name, way, touch, now);
            let principal = rests_on.and_then(|proof| match proof {
                Proof::Token(digest) => self.0.tokens.as_ref()?.holder(&digest, now),
                Proof::Vouched(principal, _) => Some(principal),
            });
            match principal {
                Some(principal) => return Ok(Principal { session: true, ..principal }),
                None => refusal = Refusal::SessionOver,
            }
        }
        Err(refusal)
    }
}

/// The names of sessions in `Cookie` headers.
fn session_names(headers: &HeaderMap) -> impl Iterator<Item = (Way, &str)> {
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter_map(|(cookie, name)| {
        let way = [Way::Protected, Way::Plain].into_iter().find(|way| way.cookie() == cookie)?;
        Some((way, name))
    })
}

/// Scheme and authority of `url`, as browsers write them in `Origin`.
fn origin(url: &str) -> anyhow::Result<String> {
    let uri: Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
    let parts = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https")).zip(uri.authority());
    let (scheme, authority) =
        parts.with_context(|| format!("{url:?} is not like https://weft.example.com"))?;
    let authority = authority.as_str().to_ascii_lowercase();
    // Browsers leave out the port that a scheme implies.
    let implied = if scheme == "https" { ":443" } else { ":80" };
    Ok(format!("{scheme}://{}", authority.strip_suffix(implied).unwrap_or(&authority)))
}

/// Bytes that nobody can guess.
///
/// # Errors
/// When the system has none.
pub fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
    Ok(bytes)
}

/// The token of `Authorization: Bearer`; `None` without that header.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter().map(HeaderValue::to_str);
    let Some(value) = values.next() else { return Ok(None) };
    // Of two, each party would believe another one.
    if values.next().is_some() {
        return Err(Refusal::Scheme);
    }
    let (scheme, token) = value.ok().and_then(|text| text.split_once(' ')).ok_or(Refusal::Scheme)?;
    let token = token.trim();
    let usable = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_BYTES_MAX;
    if usable { Ok(Some(token)) } else { Err(Refusal::Scheme) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn one_bearer_token_is_read_and_nothing_else() {
        for text in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(bearer(&headers(&[text])), Ok(Some("abc")), "{text}");
        }
        assert_eq!(bearer(&headers(&[])), Ok(None));
        for text in ["abc", "Bearer", "Bearer ", "Basic YTpi", "Bearer\tabc", ""] {
            assert_eq!(bearer(&headers(&[text])), Err(Refusal::Scheme), "{text:?}");
        }
        assert_eq!(bearer(&headers(&["Bearer a", "Bearer b"])), Err(Refusal::Scheme), "two of them");
    }

    #[tokio::test]
    async fn without_any_way_to_sign_in_everybody_is_an_operator() {
        let anybody =
            Auth::open().authenticate(&HeaderMap::new(), Timestamp::UNIX_EPOCH).await.expect("let in");
        assert_eq!((anybody.role, anybody.how), (Role::Operator, How::Open));
    }

    #[test]
    fn cookies_of_others_are_passed_over() {
        let mut headers = HeaderMap::new();
        let cookies = ["a=b; weft=one; weftx=no", "__Host-weft=two;__host-weft=no; =; weft"];
        for cookie in cookies {
            headers.append(header::COOKIE, HeaderValue::from_static(cookie));
        }
        let names: Vec<_> = session_names(&headers).collect();
        assert_eq!(names, [(Way::Plain, "one"), (Way::Protected, "two")]);
    }

    #[test]
    fn an_origin_is_written_as_browsers_write_it() {
        for (url, expected) in [
            ("https://Weft.example.com/", "https://weft.example.com"),
            ("https://weft.example.com:443/ui", "https://weft.example.com"),
            ("http://weft.example.com:8080", "http://weft.example.com:8080"),
        ] {
            assert_eq!(origin(url).expect("a URL"), expected);
        }
        for url in ["", "weft.example.com", "ftp://weft.example.com", "/"] {
            assert!(origin(url).is_err(), "{url:?}");
        }
    }
}
