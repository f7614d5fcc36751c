//! One HTTP question as the kubelet asks it: HTTP/1.1, its headers, TLS without a look at the certificate, redirects within
//! the same host.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::Get;
use crate::connect::{ConnectError, ConnectOptions, connect};

/// Bytes of an answer that are read at most; the kubelet reads no more either.
pub const ANSWER_MAX: usize = 10 * 1024;

/// Redirects at most, as the kubelet counts them.
const REDIRECTS_MAX: usize = 10;

/// Headers of the kubelet that the app sees where the probe names no others.
const PASSED_ON: [header::HeaderName; 2] = [header::USER_AGENT, header::ACCEPT];

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("not connected")]
    Connect(#[from] ConnectError),
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    #[error("no whole answer from {address}")]
    Http { address: SocketAddr, source: hyper::Error },
    #[error("no TLS with {address}")]
    Tls { address: SocketAddr, source: std::io::Error },
    #[error("TLS cannot be used")]
    Provider(#[from] rustls::Error),
    #[error("{REDIRECTS_MAX} redirects and no end")]
    Redirects,
}

/// The status of the app's answer, behind redirects.
pub(super) async fn ask(
    get: &Get,
    address: SocketAddr,
    options: &ConnectOptions,
    from: &HeaderMap,
) -> Result<StatusCode, Broken> {
    let mut place = Place { tls: get.tls, port: address.port(), path: get.path.clone() };
    for _ in 0..REDIRECTS_MAX {
        let at = SocketAddr::new(address.ip(), place.port);
        let request = request(get, &place, at, from)?;
        let socket = connect(at, options).await?;
        let response = if place.tls {
            let connector = TlsConnector::from(Arc::new(anybody()?));
            let name = ServerName::IpAddress(at.ip().into());
            let stream = connector.connect(name, socket).await;
            send(stream.map_err(|source| Broken::Tls { address: at, source })?, request).await
        } else {
            send(socket, request).await
        };
        let head = response.map_err(|source| Broken::Http { address: at, source })?;
        match head.location.and_then(|location| place.follow(&location, address)) {
            Some(next) if head.status.is_redirection() => place = next,
            _ => return Ok(head.status),
        }
    }
    Err(Broken::Redirects)
}

/// Where the next request goes.
struct Place {
    tls: bool,
    port: u16,
    path: String,
}

impl Place {
    /// Where a `Location` leads, if it is this host.
    fn follow(&self, location: &HeaderValue, address: SocketAddr) -> Option<Self> {
        let uri: Uri = location.to_str().ok()?.parse().ok()?;
        let path = path(uri.path_and_query().map_or("/", |path| path.as_str()));
        let Some(authority) = uri.authority() else {
            return Some(Self { tls: self.tls, port: self.port, path });
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.parse() != Ok(address.ip()) {
            return None;
        }
        let tls = uri.scheme_str().map_or(self.tls, |scheme| scheme == "https");
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Some(Self { tls, port, path })
    }
}

fn request(
    get: &Get,
    place: &Place,
    at: SocketAddr,
    from: &HeaderMap,
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let mut request = Request::get(&place.path).body(Empty::new())?;
    let headers = request.headers_mut();
    for name in PASSED_ON {
        if let Some(value) = from.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    for name in get.headers.keys() {
        headers.remove(name);
        for value in get.headers.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    let host = match &get.host {
        Some(host) => host.clone(),
        None => HeaderValue::from_str(&at.to_string())?,
    };
    headers.insert(header::HOST, host);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

/// What is looked at of an answer.
struct Head {
    status: StatusCode,
    location: Option<HeaderValue>,
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> hyper::Result<Head>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Dropped with this future, and the connection with it.
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let mut response: Response<Incoming> = sender.send_request(request).await?;
    let mut left = ANSWER_MAX;
    while let Some(frame) = response.body_mut().frame().await {
        match left.checked_sub(frame?.data_ref().map_or(0, Bytes::len)) {
            Some(less) => left = less,
            None => break,
        }
    }
    let location = response.headers().get(header::LOCATION).cloned();
    Ok(Head { status: response.status(), location })
}

/// A path that can be sent: begins with a slash, and what no path may have in it is escaped.
pub(super) fn path(text: &str) -> String {
    use std::fmt::Write as _;
    let mut path = String::with_capacity(text.len() + 1);
    if !text.starts_with('/') {
        path.push('/');
    }
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !br##""<>\^`{|}#"##.contains(&byte) {
            path.push(char::from(byte));
        } else {
            // A text takes everything.
            write!(path, "%{byte:02X}").ok();
        }
    }
    path
}

/// TLS with whoever answers, as the kubelet does it: a probe asks how the app is, not who.
fn anybody() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Anybody(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    // The name is an address, and not to be told to anybody.
    config.enable_sni = false;
    Ok(config)
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
