//! What a provider says of itself: its endpoints and its keys.
//!
//! In: the issuer. Out: cached answers of `/.well-known/openid-configuration` and of the key set. Invariants: a provider that calls itself
//! otherwise than it was configured is not believed; a key that is not known makes us ask again, but at most once every [`AGAIN`],
//! however many strangers send tokens with keys that nobody has.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::JwkSet;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::fetch::{Fetch, Question};

/// How long an answer is believed.
const LIFE: Duration = Duration::from_secs(60 * 60);
/// How soon the keys are asked for again because of one that is not known.
const AGAIN: Duration = Duration::from_secs(10);
/// Keys in a set; providers have a handful.
const KEYS_MAX: usize = 64;

/// Where what is asked.
#[derive(Debug)]
pub(super) struct Endpoints {
    pub(super) authorization: String,
    pub(super) token: String,
    /// Whether the client's secret goes into the header.
    pub(super) takes_basic: bool,
    keys: String,
}

/// The document, as far as it is needed.
#[derive(Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

/// A provider.
pub(super) struct Provider {
    issuer: String,
    endpoints: Mutex<Option<(Arc<Endpoints>, Timestamp)>>,
    keys: Mutex<Option<(Arc<JwkSet>, Timestamp)>>,
}

impl Provider {
    pub(super) fn new(issuer: String) -> Self {
        Self { issuer, endpoints: Mutex::default(), keys: Mutex::default() }
    }

    pub(super) async fn endpoints(&self, fetch: &Fetch, now: Timestamp) -> anyhow::Result<Arc<Endpoints>> {
        // Held while it is asked, so that a crowd asks once.
        let mut known = self.endpoints.lock().await;
        if let Some((endpoints, at)) = &*known
            && is_younger(*at, LIFE, now)
        {
            return Ok(Arc::clone(endpoints));
        }
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let document: Document = json(fetch, &url).await?;
        ensure!(
            document.issuer == self.issuer,
            "{url} calls itself {:?}, not {:?} (--oidc-issuer)",
            document.issuer,
            self.issuer
        );
        // Not said means basic: OpenID Connect Discovery 1.0, 3.
        let methods = document.token_endpoint_auth_methods_supported;
        let takes_basic =
            methods.is_none_or(|methods| methods.iter().any(|one| one == "client_secret_basic"));
        let endpoints = Arc::new(Endpoints {
            authorization: document.authorization_endpoint,
            token: document.token_endpoint,
            keys: document.jwks_uri,
            takes_basic,
        });
        *known = Some((Arc::clone(&endpoints), now));
        Ok(endpoints)
    }

    /// The keys; newer ones if `anew`.
    pub(super) async fn keys(
        &self,
        fetch: &Fetch,
        anew: bool,
        now: Timestamp,
    ) -> anyhow::Result<Arc<JwkSet>> {
        let endpoints = self.endpoints(fetch, now).await?;
        let mut known = self.keys.lock().await;
        if let Some((keys, at)) = &*known
            && is_younger(*at, if anew { AGAIN } else { LIFE }, now)
        {
            return Ok(Arc::clone(keys));
        }
        let mut keys: JwkSet = json(fetch, &endpoints.keys).await?;
        keys.keys.truncate(KEYS_MAX);
        let keys = Arc::new(keys);
        *known = Some((Arc::clone(&keys), now));
        Ok(keys)
    }
}

fn is_younger(at: Timestamp, age: Duration, now: Timestamp) -> bool {
    let since = now.duration_since(at);
    !since.is_negative() && since < SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX)
}

async fn json<T: serde::de::DeserializeOwned>(fetch: &Fetch, url: &str) -> anyhow::Result<T> {
    let (status, body) = fetch.ask(url, Question::default()).await?;
    ensure!(status.is_success(), "{url} answers {status}");
    serde_json::from_slice(&body).with_context(|| format!("read what {url} answers"))
}
