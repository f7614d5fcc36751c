//! Asking other servers over HTTP(S): one connection, one question.
//!
//! In: a URL, what goes there, and whom to trust. Out: status and body. For the few questions that the control plane asks others
//! (who somebody is), not for traffic. Invariants: every question has a deadline, every answer a size; plain HTTP goes to
//! this machine only; redirects are not followed, because the next server may be another one's.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// How long a whole exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer; keys and tokens have some kilobytes.
const ANSWER_MAX: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a URL to ask.
    #[error("{0:?} is not an https:// URL (http:// only on this machine)")]
    Url(String),
    /// No connection.
    #[error("connect to {host}")]
    Connect {
        /// Whom.
        host: String,
        /// Why.
        source: std::io::Error,
    },
    /// It broke off, or was too long.
    #[error("the conversation with {host} broke off")]
    Broken {
        /// With whom.
        host: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("no answer from {host} within {PATIENCE:?}")]
    Timeout {
        /// From whom.
        host: String,
    },
}

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// A body and its type makes it a POST.
    pub body: Option<(&'static str, String)>,
    /// The value of `Authorization`.
    pub authorization: Option<String>,
}

/// Asks others, and knows whom to trust.
#[derive(Clone)]
pub struct Fetch {
    tls: TlsConnector,
}

impl Fetch {
    /// Trusts the roots in the file `roots`, or the public ones.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn new(roots: Option<&Path>) -> anyhow::Result<Self> {
        let mut store = RootCertStore::empty();
        match roots {
            None => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                let read = || -> anyhow::Result<()> {
                    for root in CertificateDer::pem_file_iter(path)? {
                        store.add(root?)?;
                    }
                    anyhow::ensure!(!store.is_empty(), "there is no certificate in it");
                    Ok(())
                };
                let mut read = read;
                read().with_context(|| format!("read the roots in {}", path.display()))?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(store).with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    /// The answer to `question` at `url`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ask(&self, url: &str, question: Question) -> Result<(StatusCode, Bytes), Error> {
        let target = Target::read(url).ok_or_else(|| Error::Url(url.to_owned()))?;
        let host = target.host.clone();
        let asked = tokio::time::timeout(PATIENCE, self.exchange(target, question));
        asked.await.unwrap_or(Err(Error::Timeout { host }))
    }

    async fn exchange(&self, target: Target, question: Question) -> Result<(StatusCode, Bytes), Error> {
        let connect = |source| Error::Connect { host: target.host.clone(), source };
        let stream = weft_dns::connect(&target.host, target.port).await.map_err(connect)?;
        if !target.tls {
            return converse(stream, &target, question).await;
        }
        let name = ServerName::try_from(target.host.clone()).map_err(|_| Error::Url(target.host.clone()))?;
        let stream = self.tls.connect(name, stream).await.map_err(connect)?;
        converse(stream, &target, question).await
    }
}

/// A URL in the parts that are needed.
struct Target {
    host: String,
    port: u16,
    tls: bool,
    authority: String,
    path: String,
}

impl Target {
    fn read(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let host = uri.host()?.trim_matches(['[', ']']).to_owned();
        let tls = match uri.scheme_str()? {
            "https" => true,
            "http" if host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) => false,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let authority = uri.authority()?.as_str().rsplit('@').next()?.to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Some(Self { host, port, tls, authority, path })
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
    question: Question,
) -> Result<(StatusCode, Bytes), Error> {
    let broken = |source: Box<dyn std::error::Error + Send + Sync>| Error::Broken {
        host: target.host.clone(),
        source,
    };
    let (kind, body) = question.body.map_or((None, String::new()), |(kind, body)| (Some(kind), body));
    let mut request = Request::builder()
        .method(if kind.is_some() { Method::POST } else { Method::GET })
        .uri(&target.path)
        .header(header::HOST, &target.authority)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("weft/", env!("CARGO_PKG_VERSION")));
    if let Some(kind) = kind {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    if let Some(authorization) = question.authorization {
        let mut value = HeaderValue::from_str(&authorization).map_err(|error| broken(error.into()))?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|error| broken(error.into()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(error.into()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| broken(error.into()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(broken)?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The answer may be complete although the connection has ended.
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(broken(error.into())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_goes_to_this_machine_only() {
        for (url, port, tls) in [
            ("https://login.example.com/x?y=1", 443, true),
            ("https://login.example.com:8443", 8443, true),
            ("http://127.0.0.1:5556/dex", 5556, false),
            ("http://[::1]/", 80, false),
            ("http://localhost", 80, false),
        ] {
            let target = Target::read(url).expect(url);
            assert_eq!((target.port, target.tls), (port, tls), "{url}");
        }
        for url in ["http://login.example.com", "ftp://localhost", "", "/x", "http://localhost.example.com"] {
            assert!(Target::read(url).is_none(), "{url:?}");
        }
        assert_eq!(Target::read("https://a:b@c.example/").expect("a URL").authority, "c.example");
    }
}
