//! Who asks the API, and what they may do.
//!
//! In: a request's headers, and the ways to sign in that are configured. Out: a [`Principal`] with a [`Role`], or a
//! [`Refusal`] that says why not. The API's guard asks here for every request; nothing else decides who may do what.
//!
//! Invariants: if any way to sign in is configured, a request without proof is refused, on whatever address it comes; a
//! secret is never kept or written, only its digest; whatever is kept for strangers is bounded.
//! Surprise: without any way to sign in everybody is an operator. `app` allows that only on loopback or with `--insecure`.

pub mod options;
pub mod tokens;

use std::borrow::Cow;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use jiff::Timestamp;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use options::Options;
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
}

impl Principal {
    fn anybody() -> Self {
        Self { name: "anybody".into(), role: Role::Operator, how: How::Open }
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
}

impl Refusal {
    const ALL: [Self; 3] = [Self::Nobody, Self::Scheme, Self::Unknown];

    const fn word(&self) -> &'static str {
        match self {
            Self::Nobody => "no_proof",
            Self::Scheme => "bad_header",
            Self::Unknown => "unknown_token",
        }
    }
}

/// Longer ones are not looked at: a service account's token has about 1 kB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The ways to sign in.
#[derive(Clone)]
pub struct Auth(Arc<Ways>);

struct Ways {
    tokens: Option<Tokens>,
    refused: [IntCounter; Refusal::ALL.len()],
}

impl Auth {
    /// No way to sign in: everybody may do everything.
    #[must_use]
    pub fn open() -> Self {
        Self::with(None, &Registry::new())
    }

    /// What `options` configure; counters are shown in `registry`.
    ///
    /// # Errors
    /// When a file that is named cannot be used.
    pub fn new(options: &Options, registry: &Registry) -> anyhow::Result<Self> {
        // All fields by name: an option that nothing uses is a compiler warning.
        let Options { api_tokens } = options;
        let tokens = api_tokens.as_deref().map(|path: &Path| Tokens::open(path, registry)).transpose()?;
        Ok(Self::with(tokens, registry))
    }

    fn with(tokens: Option<Tokens>, registry: &Registry) -> Self {
        let help = "Requests to the API that were not let in, by why.";
        let refused = IntCounterVec::new(Opts::new("weft_api_refused_total", help), &["reason"]);
        let refused = refused.expect("a valid name");
        // Registered twice only in tests that share a registry; then it is only not exported twice.
        drop(registry.register(Box::new(refused.clone())));
        let refused = Refusal::ALL.map(|refusal| refused.with_label_values(&[refusal.word()]));
        Self(Arc::new(Ways { tokens, refused }))
    }

    /// Whether anybody is asked for anything.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.0.tokens.is_some()
    }

    /// Keeps what comes from files current, until `end`.
    pub async fn run(&self, end: CancellationToken) {
        if let Some(tokens) = &self.0.tokens {
            end.run_until_cancelled(tokens.follow()).await;
        }
    }

    /// Who sends `headers`.
    ///
    /// # Errors
    /// When nobody does who may come in.
    pub fn authenticate(&self, headers: &HeaderMap, now: Timestamp) -> Result<Principal, Refusal> {
        if !self.is_configured() {
            return Ok(Principal::anybody());
        }
        let principal = self.proven(headers, now);
        if let Err(refusal) = &principal
            && let Some(at) = Refusal::ALL.iter().position(|one| one == refusal)
        {
            self.0.refused[at].inc();
        }
        principal
    }

    fn proven(&self, headers: &HeaderMap, now: Timestamp) -> Result<Principal, Refusal> {
        let token = bearer(headers)?.ok_or(Refusal::Nobody)?;
        let known = self.0.tokens.as_ref().and_then(|tokens| tokens.find(token.as_bytes(), now));
        known.ok_or(Refusal::Unknown)
    }
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
fn bearer(headers: &HeaderMap) -> Result<Option<Cow<'_, str>>, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    // Of two, each party would believe another one.
    if values.next().is_some() {
        return Err(Refusal::Scheme);
    }
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Refusal::Scheme)?;
    let token = token.trim();
    let usable = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_BYTES_MAX;
    if usable { Ok(Some(token.into())) } else { Err(Refusal::Scheme) }
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
            assert_eq!(bearer(&headers(&[text])).expect("read").as_deref(), Some("abc"), "{text}");
        }
        assert_eq!(bearer(&headers(&[])), Ok(None));
        for text in ["abc", "Bearer", "Bearer ", "Basic YTpi", "Bearer\tabc", ""] {
            assert_eq!(bearer(&headers(&[text])), Err(Refusal::Scheme), "{text:?}");
        }
        assert_eq!(bearer(&headers(&["Bearer a", "Bearer b"])), Err(Refusal::Scheme), "two of them");
    }

    #[test]
    fn without_any_way_to_sign_in_everybody_is_an_operator() {
        let anybody = Auth::open().authenticate(&HeaderMap::new(), Timestamp::UNIX_EPOCH).expect("let in");
        assert_eq!((anybody.role, anybody.how), (Role::Operator, How::Open));
    }
}
