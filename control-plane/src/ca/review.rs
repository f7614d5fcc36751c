//! Whose a service account token is: asked of the Kubernetes API server by `TokenReview`.
//!
//! In: a token. Out: the account, or why not. Within a cluster the program's one client asks. Elsewhere it is plain HTTPS, one
//! connection per question: sidecars come at most once when they start and once per half life; the server is checked against
//! the `ca.crt` it gave us, and the own token is read for each question, because the kubelet replaces it.
//!
//! Invariants: every question has a deadline, every answer a size; at most [`PLACES`] sidecars are asked about at a time, so that
//! strangers cannot press the API server.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::issue::Certificate;
use super::proof::{Account, Proof};
use super::refusal::Refusal;

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// How long the API server may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Sidecars' questions at a time; the others wait. At 20 ms each that is 3,000 sidecars a second.
const PLACES: usize = 64;
/// Largest answer; one takes 1 KiB.
const ANSWER_MAX: usize = 64 * 1024;
/// How the cluster names service accounts.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// The address is none of an API server.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not of the form https://HOST:PORT")]
pub struct InvalidServer(String);

/// Who is asked.
#[derive(Clone)]
pub enum Reviewer {
    /// The API server at an address of the form `https://HOST:PORT`, with the credentials (`token`, `ca.crt`) in a directory.
    At(String, PathBuf),
    /// The API server that the control plane follows.
    Cluster(kube::Client),
}

/// Asks an API server.
pub struct TokenReviews {
    way: Way,
    audience: Box<str>,
    places: Semaphore,
}

enum Way {
    Direct(Direct),
    Client(Api<TokenReview>),
}

/// A connection per question.
struct Direct {
    host: Box<str>,
    port: u16,
    credentials: PathBuf,
}

/// Why there is no answer. Told to the log, not to whoever asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReviewError {
    #[error("read {path}")]
    Credentials { path: PathBuf, source: std::io::Error },
    #[error("the API server's ca.crt")]
    Roots(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("connect to the API server")]
    Connect(#[source] std::io::Error),
    #[error("the conversation with the API server broke off")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "the API server answered {0}: may this service account create tokenreviews (system:auth-delegator)?"
    )]
    Status(StatusCode),
    #[error("the API server's answer")]
    Answer(#[from] serde_json::Error),
    #[error("no answer from the API server within {TIMEOUT:?}")]
    Timeout,
}

impl TokenReviews {
    /// Asks `reviewer` about tokens made for `audience`.
    ///
    /// # Errors
    /// When its address is none.
    pub fn new(reviewer: Reviewer, audience: &str) -> Result<Self, InvalidServer> {
        let way = match reviewer {
            Reviewer::Cluster(client) => Way::Client(Api::all(client)),
            Reviewer::At(url, credentials) => Way::Direct(Direct::new(&url, credentials)?),
        };
        Ok(Self { way, audience: audience.into(), places: Semaphore::new(PLACES) })
    }

    /// What the server says of `token`. Whether it was made for us is for the caller to see.
    pub(crate) async fn review(&self, token: &str) -> Result<TokenReviewStatus, ReviewError> {
        let audiences = Some(vec![self.audience.to_string()]);
        let spec = TokenReviewSpec { token: token.to_owned(), audiences };
        let review = TokenReview { spec, ..Default::default() };
        let asking = async {
            match &self.way {
                Way::Direct(direct) => direct.ask(&review).await,
                Way::Client(api) => ask(api, &review).await,
            }
        };
        tokio::time::timeout(TIMEOUT, asking).await.unwrap_or(Err(ReviewError::Timeout))
    }
}

async fn ask(api: &Api<TokenReview>, review: &TokenReview) -> Result<TokenReviewStatus, ReviewError> {
    match api.create(&PostParams::default(), review).await {
        Ok(review) => Ok(review.status.unwrap_or_default()),
        Err(kube::Error::Api(status)) => {
            let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Err(ReviewError::Status(code))
        }
        Err(error) => Err(ReviewError::Broken(error.into())),
    }
}

impl Direct {
    fn new(url: &str, credentials: PathBuf) -> Result<Self, InvalidServer> {
        let invalid = || InvalidServer(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(invalid)?;
        let host = host.trim_matches(['[', ']']).into();
        Ok(Self { host, port: uri.port_u16().unwrap_or(443), credentials })
    }

    async fn ask(&self, review: &TokenReview) -> Result<TokenReviewStatus, ReviewError> {
        let read = async |name: &str| {
            let path = self.credentials.join(name);
            tokio::fs::read_to_string(&path).await.map_err(|source| ReviewError::Credentials { path, source })
        };
        let (own, roots) = (read("token").await?, read("ca.crt").await?);
        let config = client(&roots).map_err(ReviewError::Roots)?;
        let name =
            ServerName::try_from(self.host.to_string()).map_err(|error| ReviewError::Roots(error.into()))?;
        let stream = weft_dns::connect(&self.host, self.port).await.map_err(ReviewError::Connect)?;
        let stream =
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(ReviewError::Connect)?;
        let request = Request::post(PATH)
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::AUTHORIZATION, format!("Bearer {}", own.trim()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(review)?)))
            .map_err(|error| ReviewError::Broken(error.into()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ReviewError::Broken(error.into()))?;
        let exchange = async {
            let response =
                sender.send_request(request).await.map_err(|error| ReviewError::Broken(error.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX);
            let body = body.collect().await.map_err(ReviewError::Broken)?.to_bytes();
            if !status.is_success() {
                return Err(ReviewError::Status(status));
            }
            let review: TokenReview = serde_json::from_slice(&body)?;
            Ok(review.status.unwrap_or_default())
        };
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(ReviewError::Broken(error.into())),
            },
        }
    }
}

#[tonic::async_trait]
impl Proof for TokenReviews {
    async fn account(&self, token: &str) -> Result<Account, Refusal> {
        let _place = self.places.acquire().await.map_err(|_| Refusal::ReviewUnavailable)?;
        let status = self.review(token).await.map_err(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a service account token could not be checked"
            );
            Refusal::ReviewUnavailable
        })?;
        account(status, &self.audience)
    }
}

/// What the API server's answer means.
fn account(status: TokenReviewStatus, audience: &str) -> Result<Account, Refusal> {
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "it says no more".to_owned());
        return Err(Refusal::AccountRejected(why.chars().take(300).collect()));
    }
    // A server that does not know audiences says nothing of them, and would take a token for anybody.
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.iter().any(|found| found == audience) {
        let found =
            if audiences.is_empty() { "nobody in particular".to_owned() } else { audiences.join(", ") };
        return Err(Refusal::AccountAudience {
            found: found.chars().take(300).collect(),
            wanted: audience.into(),
        });
    }
    let user = status.user.and_then(|user| user.username).unwrap_or_default();
    let account = user.strip_prefix(ACCOUNT_PREFIX).and_then(|account| account.split_once(':'));
    match account {
        Some((namespace, name)) => Ok(Account { namespace: namespace.into(), name: name.into() }),
        None => Err(Refusal::AccountOther(user.chars().take(300).collect())),
    }
}

fn client(roots: &str) -> Result<ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let mut store = RootCertStore::empty();
    for root in Certificate::read_all(roots)? {
        store.add(root.der)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(store).with_no_client_auth())
}
