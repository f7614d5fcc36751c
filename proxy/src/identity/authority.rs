//! Asking the certificate authority, over gRPC.
//!
//! In: a [`Question`]. Out: the PEM of a chain, or a [`Failure`] that knows its word. Every question has a connection of its
//! own: it is asked twice a day, and the certificate that proves it is that of the connection. Invariant: no failure repeats
//! the proof, even if the authority does.

use std::error::Error as _;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::{CertificateError, OtherError};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use weft_wire::ca::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse, SENT_AT};

use super::bundle::TEXT_MAX;
use crate::connect::Dialer;

/// How long an answer may take, with connecting.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked.
pub(super) struct Question {
    /// PKCS #10, PEM.
    pub(super) csr: String,
    /// What proves who asks; `None`: the connection's certificate does.
    pub(super) bearer: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// There is nothing to prove anything with.
    #[error("{0}")]
    Proof(String),
    /// Nobody answers.
    #[error("no answer from the control plane: {0}")]
    Unreachable(String),
    /// It is not the control plane.
    #[error("whoever answers at the control plane's address is not it: {0}")]
    Untrusted(String),
    /// The authority says no.
    #[error("the control plane refuses: {0}")]
    Refused(String),
    /// The answer does not hold.
    #[error("the control plane's answer is not taken: {0}")]
    Answer(String),
    /// A file of the operator's cannot be read, written or taken.
    #[error("{0}")]
    File(String),
}

impl Failure {
    /// The word in metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Proof(_) => "proof",
            Self::Unreachable(_) => "unreachable",
            Self::Untrusted(_) => "untrusted",
            Self::Refused(_) => "refused",
            Self::Answer(_) => "answer",
            Self::File(_) => "file",
        }
    }
}

/// Somebody who signs requests.
pub(super) trait Authority: Send + Sync {
    /// Asks. Has a deadline of its own.
    fn ask(&self, question: Question) -> impl Future<Output = Result<Vec<u8>, Failure>> + Send;
}

/// The control plane.
#[derive(Debug)]
pub(super) struct ControlPlane {
    endpoint: Endpoint,
    /// Shows our certificate.
    known: Dialer,
    /// Shows none.
    stranger: Dialer,
}

impl ControlPlane {
    pub(super) fn new(address: http::Uri, known: Dialer, stranger: Dialer) -> Self {
        Self { endpoint: Endpoint::from(address), known, stranger }
    }

    async fn exchange(&self, csr: String, bearer: Option<&str>) -> Result<CertificateResponse, Failure> {
        let dialer = if bearer.is_some() { &self.stranger } else { &self.known };
        let channel = self.endpoint.connect_with_connector(dialer.clone()).await;
        let channel = channel.map_err(|error| classify(&error))?;
        let mut request = tonic::Request::new(CertificateRequest { csr, validity_duration: 0 });
        let sent = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let sent = u64::try_from(sent.as_nanos()).unwrap_or(u64::MAX);
        request.metadata_mut().insert(SENT_AT, MetadataValue::from(sent));
        if let Some(bearer) = bearer {
            let mut value: MetadataValue<_> = format!("Bearer {bearer}")
                .parse()
                .map_err(|_| Failure::Proof("the token is not printable ASCII".to_owned()))?;
            // Neither in a log of headers nor in the connection's header table.
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(TEXT_MAX);
        grpc.ready().await.map_err(|error| classify(&error))?;
        let path = PathAndQuery::from_static(CREATE_CERTIFICATE);
        let answer = grpc.unary(request, path, ProstCodec::default()).await;
        answer.map(tonic::Response::into_inner).map_err(|status| said(&status))
    }
}

impl Authority for ControlPlane {
    async fn ask(&self, question: Question) -> Result<Vec<u8>, Failure> {
        let Question { csr, bearer } = question;
        let exchange = self.exchange(csr, bearer.as_deref());
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(CertificateResponse { cert_chain })) => Ok(cert_chain.join("\n").into_bytes()),
            Ok(Err(Failure::Refused(text))) => Err(Failure::Refused(without(&text, bearer.as_deref()))),
            Ok(Err(failure)) => Err(failure),
            Err(_elapsed) => Err(Failure::Unreachable(format!("nothing within {PATIENCE:?}"))),
        }
    }
}

/// A text in which a secret is not repeated.
fn without(text: &str, secret: Option<&str>) -> String {
    match secret {
        Some(secret) if !secret.is_empty() => text.replace(secret, "…"),
        _ => text.to_owned(),
    }
}

/// What a status means.
fn said(status: &Status) -> Failure {
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::AlreadyExists
        | Code::Unimplemented => {
            Failure::Refused(format!("{} ({})", status.message(), status.code().description()))
        }
        _ => match status.source() {
            Some(cause) => classify(cause),
            None => Failure::Unreachable(status.message().to_owned()),
        },
    }
}

/// What broke a connection, or an attempt at one.
fn classify(error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut text = String::new();
    let mut cause = Some(error);
    let (mut of_tls, mut not_taken) = (None, false);
    while let Some(error) = cause {
        let says = error.to_string();
        if !text.ends_with(&says) {
            text = if text.is_empty() { says } else { format!("{text}: {says}") };
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
            of_tls = of_tls.or(tls);
            // In TLS 1.3 a server judges our certificate after the handshake. What it says then comes through HTTP/2,
            // which keeps only the text of it.
            not_taken |= error.kind() == io::ErrorKind::InvalidData && text.contains("received fatal alert");
        }
        cause = error.source();
    }
    match of_tls {
        Some(rustls::Error::AlertReceived(_)) => Failure::Refused(text),
        // The transport around it says nothing that this does not say better.
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => {
            Failure::Untrusted(why.to_string())
        }
        Some(_) => Failure::Untrusted(text),
        None if not_taken => Failure::Refused(text),
        None => Failure::Unreachable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_repeated() {
        assert_eq!(without("token abc is used", Some("abc")), "token … is used");
        assert_eq!(without("no", Some("")), "no");
        assert_eq!(without("no", None), "no");
    }
}
