//! The sidecar's own connections to the control plane, plain or over TLS.
//!
//! In: a URI of tonic's. Out: a stream that HTTP/2 is spoken on. With the mark, like every connection of the sidecar's: an
//! intercepted one would come back to it. Invariant: connecting and the handshake have a deadline each.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{ConnectError, ConnectOptions, connect_host};

/// Opens connections.
#[derive(Debug, Clone)]
pub struct Dialer {
    options: ConnectOptions,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// Why there is no connection to the control plane.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody accepted.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The handshake failed: the other side is not who it should be, or does not take us.
    #[error("TLS with the control plane")]
    Tls(#[source] io::Error),
    /// No handshake within the deadline.
    #[error("no TLS handshake within {0:?}")]
    Silent(std::time::Duration),
    /// The address is `https://`, and this sidecar has no identity to speak TLS with.
    #[error("the control plane's address is https, but there is no identity")]
    Unidentified,
}

impl Dialer {
    /// Connects with these options.
    #[must_use]
    pub fn new(options: ConnectOptions) -> Self {
        Self { options, tls: None }
    }

    /// Speaks TLS with whoever is asked for as `https`.
    #[must_use]
    pub fn secured(self, tls: Arc<ClientConfig>, server_name: ServerName<'static>) -> Self {
        Self { tls: Some((tls, server_name)), ..self }
    }

    async fn dial(self, uri: http::Uri) -> Result<Stream, DialError> {
        let https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let stream = connect_host(uri.host().unwrap_or_default(), port, &self.options).await?;
        if !https {
            return Ok(Stream::Plain(stream));
        }
        let (config, name) = self.tls.ok_or(DialError::Unidentified)?;
        let handshake = TlsConnector::from(config).connect(name, stream);
        match tokio::time::timeout(self.options.timeout, handshake).await {
            Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
            Ok(Err(error)) => Err(DialError::Tls(error)),
            Err(_elapsed) => Err(DialError::Silent(self.options.timeout)),
        }
    }
}

impl tower::Service<http::Uri> for Dialer {
    type Response = TokioIo<Stream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { dialer.dial(uri).await.map(TokioIo::new) })
    }
}

/// A connection to the control plane.
#[derive(Debug)]
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
