//! The gRPC service `istio.v1.auth.IstioCertificateService`, served by hand: one unary method.
//!
//! In: a request for a certificate and a proof. Out: a chain, or a status that says what is wrong. Order of the checks: the
//! request itself (so that a bad one does not use a token up), the proof, whether they are of the same identity, and only then
//! is a token used up.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tonic::codegen::{Body, StdError};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Code, Request, Response, Status, body};
use tonic_prost::ProstCodec;
use tracing::{info, warn};
use weft_wire::SpiffeId;
use weft_wire::ca::{self, CertificateRequest, CertificateResponse};

use super::issue::Certificate;
use super::proof::{Shown, same};
use super::{Ca, Refusal, csr, serial};
use crate::serve::Peer;

/// Largest message. Beyond [`csr::BYTES_MAX`], so that a request that is too large is told so in words.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// How long an answer may take: the cluster may have to be asked.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A clock that is further behind is not helped by back-dating: its owner has to set it.
const BEHIND_MAX: Duration = Duration::from_secs(3600);

/// The service to mount.
#[derive(Clone)]
pub struct Service {
    ca: Ca,
}

impl Service {
    pub(super) fn new(ca: Ca) -> Self {
        Self { ca }
    }
}

impl NamedService for Service {
    const NAME: &'static str = ca::SERVICE;
}

impl<B> tower::Service<http::Request<B>> for Service
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let ca = self.ca.clone();
        Box::pin(async move {
            if request.uri().path() != ca::CREATE_CERTIFICATE {
                return Ok(Status::unimplemented("the service has one method: CreateCertificate").into_http());
            }
            let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
            let mut grpc = Grpc::new(codec).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let response = grpc.unary(CreateCertificate(ca.clone()), request).await;
            // Refused before it could be read.
            let status = Status::from_header_map(response.headers());
            if status.is_some_and(|status| status.code() == Code::OutOfRange) {
                warn!(reason = "csr_too_large", "certificate refused");
                ca.0.metrics.refused("csr_too_large");
            }
            Ok(response)
        })
    }
}

struct CreateCertificate(Ca);

impl UnaryService<CertificateRequest> for CreateCertificate {
    type Response = CertificateResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<CertificateResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let ca = self.0.clone();
        Box::pin(async move {
            ca.create(request, SystemTime::now()).await.map(Response::new).map_err(Status::from)
        })
    }
}

impl Ca {
    async fn create(
        &self,
        request: Request<CertificateRequest>,
        now: SystemTime,
    ) -> Result<CertificateResponse, Refusal> {
        let peer = request.extensions().get::<Peer>().cloned();
        let verified = peer.as_ref().and_then(|peer| peer.verified.clone());
        let from = peer.map(|peer| peer.address);
        let connection =
            verified.as_ref().filter(|verified| verified.expires > now).map(|verified| &verified.id);
        let field = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let sent_at = field(ca::SENT_AT).and_then(|text| text.parse::<u64>().ok());
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.map(|value| value.to_str().unwrap_or_default());
        let shown = Shown::read(authorization);
        let behind = sent_at.map(|sent_at| behind(sent_at, now));
        let giving = self.give(shown, connection, request.get_ref(), behind.unwrap_or(0), now);
        let given = tokio::time::timeout(TIMEOUT, giving).await.unwrap_or(Err(Refusal::ReviewUnavailable));
        match &given {
            Ok(given) => {
                self.0.metrics.issued(given.proof);
                let leaf = &given.chain[0];
                info!(identity = %given.id, proof = given.proof, serial = &*leaf.serial, "certificate issued");
                if let Some(words) = behind.and_then(|behind| self.clocks().note(&given.id, behind)) {
                    warn!(identity = %given.id, "{words}");
                }
            }
            Err(refusal) => {
                self.0.metrics.refused(refusal.word());
                let from = from.map(tracing::field::display);
                warn!(reason = refusal.word(), from, error = %refusal, "certificate refused");
            }
        }
        let cert_chain = given?.chain.iter().map(Certificate::to_pem).collect();
        Ok(CertificateResponse { cert_chain })
    }

    async fn give(
        &self,
        shown: Result<Shown, Refusal>,
        connection: Option<&SpiffeId>,
        asked: &CertificateRequest,
        behind: i64,
        now: SystemTime,
    ) -> Result<Given, Refusal> {
        let request = csr::read(&asked.csr)?;
        let shown = shown?;
        let id = self.prove(&shown, connection, &request.key, now).await?;
        same(request.wanted.as_ref(), &id)?;
        if id == self.0.own_id {
            return Err(Refusal::OwnIdentity(id.to_string()));
        }
        let proof = match &shown {
            Shown::Join(token) => {
                self.redeem(token, &request.key, now).await?;
                "join_token"
            }
            Shown::Account(_) => "service_account",
            Shown::Nothing => "certificate",
        };
        let life = u64::try_from(asked.validity_duration).ok().filter(|seconds| *seconds > 0);
        let back = u64::try_from(behind).map_or(Duration::ZERO, Duration::from_millis).min(BEHIND_MAX);
        let issued =
            self.authority().issue(&id, &request.spki, life.map(Duration::from_secs), back, now, serial());
        let issued = issued.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot issue");
            Refusal::Internal
        })?;
        Ok(Given { id, proof, chain: issued.chain })
    }
}

struct Given {
    id: SpiffeId,
    proof: &'static str,
    chain: Vec<Certificate>,
}

/// By how many milliseconds a clock is behind ours; negative: ahead. The time on the way is in it.
fn behind(sent_at_nanos: u64, now: SystemTime) -> i64 {
    let ours = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let ours = i64::try_from(ours).unwrap_or(i64::MAX);
    ours.saturating_sub(i64::try_from(sent_at_nanos / 1_000_000).unwrap_or(i64::MAX))
}
