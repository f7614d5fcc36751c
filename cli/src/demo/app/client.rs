//! An HTTP/1.1 client with keep-alive, as every web framework has one.
//!
//! In: method, URL, headers, body. Out: a response. Honours `http_proxy` like curl does, which is how the
//! shop joins the mesh on machines without network namespaces.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Idle connections kept per peer: the shop's concurrency per peer is below that.
const IDLE_MAX: usize = 8;
/// The longest response the shop's programs read.
const BODY_MAX: usize = 64 * 1024;
/// Patience of one program with another.
const PATIENCE: Duration = Duration::from_secs(5);

type Connection = SendRequest<Full<Bytes>>;

/// A shared client; clones share the connections.
#[derive(Debug, Clone)]
pub(super) struct Client {
    proxy: Option<SocketAddr>,
    idle: Arc<Mutex<HashMap<String, Vec<Connection>>>>,
}

impl Client {
    pub(super) fn from_environment() -> anyhow::Result<Self> {
        let proxy = match std::env::var("http_proxy") {
            Ok(url) => Some(url.trim_start_matches("http://").parse().context("http_proxy")?),
            Err(_) => None,
        };
        Ok(Self { proxy, idle: Arc::default() })
    }

    pub(super) async fn get(&self, url: &str, trace: &HeaderMap) -> anyhow::Result<(StatusCode, Bytes)> {
        self.call(Method::GET, url, trace, Bytes::new()).await
    }

    pub(super) async fn post(
        &self,
        url: &str,
        trace: &HeaderMap,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        self.call(Method::POST, url, trace, body.into()).await
    }

    async fn call(
        &self,
        method: Method,
        url: &str,
        trace: &HeaderMap,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let exchange = async {
            let uri: Uri = url.parse()?;
            let (mut connection, response) = self.exchange(method, &uri, trace, body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            if connection.ready().await.is_ok() {
                self.keep(&uri, connection);
            }
            Ok((status, body))
        };
        tokio::time::timeout(PATIENCE, exchange).await.with_context(|| format!("no answer from {url}"))?
    }

    /// Opens a connection of its own and leaves the response's body, or the upgrade, to the caller.
    pub(super) async fn open(&self, url: &str, headers: &HeaderMap) -> anyhow::Result<Response<Incoming>> {
        let uri: Uri = url.parse()?;
        let mut connection = self.connect(&uri).await?;
        let request = self.request(Method::GET, &uri, headers, Bytes::new())?;
        let response = tokio::time::timeout(PATIENCE, connection.send_request(request)).await??;
        Ok(response)
    }

    async fn exchange(
        &self,
        method: Method,
        uri: &Uri,
        trace: &HeaderMap,
        body: Bytes,
    ) -> anyhow::Result<(Connection, Response<Incoming>)> {
        // A kept connection may have been closed by the peer meanwhile; then nothing was sent and a new one
        // is used.
        while let Some(mut connection) = self.kept(uri) {
            if connection.ready().await.is_err() {
                continue;
            }
            let request = self.request(method.clone(), uri, trace, body.clone())?;
            match connection.try_send_request(request).await {
                Ok(response) => return Ok((connection, response)),
                Err(error) if error.message().is_some() => {}
                Err(error) => return Err(error.into_error().into()),
            }
        }
        let mut connection = self.connect(uri).await?;
        let response = connection.send_request(self.request(method, uri, trace, body)?).await?;
        Ok((connection, response))
    }

    fn request(
        &self,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let target = match (self.proxy, uri.path_and_query()) {
            (None, Some(path)) => path.as_str().to_owned(),
            _ => uri.to_string(),
        };
        let host = uri.authority().context("a URL with a host")?.as_str();
        let mut request = Request::builder().method(method).uri(target).header(header::HOST, host);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        Ok(request.header(header::USER_AGENT, "weft-shop").body(Full::new(body))?)
    }

    async fn connect(&self, uri: &Uri) -> anyhow::Result<Connection> {
        let stream = match self.proxy {
            Some(proxy) => TcpStream::connect(proxy).await?,
            None => {
                let host = uri.host().context("a URL with a host")?;
                weft_dns::connect(host, uri.port_u16().unwrap_or(80)).await?
            }
        };
        stream.set_nodelay(true)?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the connection, which ends when `connection` is dropped or the peer closes it.
        tokio::spawn(driver.with_upgrades());
        Ok(connection)
    }

    fn kept(&self, uri: &Uri) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.get_mut(uri.authority()?.as_str())?.pop()
    }

    fn keep(&self, uri: &Uri, connection: Connection) {
        let Some(authority) = uri.authority() else { return };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.entry(authority.as_str().to_owned()).or_default();
        if connections.len() < IDLE_MAX {
            connections.push(connection);
        }
    }
}
