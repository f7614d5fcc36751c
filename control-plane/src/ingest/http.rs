//! OTLP over HTTP: `POST /v1/metrics` with protobuf or JSON, plain or gzip.
//!
//! Traces and logs are not taken yet, and their paths answer 404 as the OTLP specification asks of a receiver
//! that does not know a signal.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::FromRequest as _;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use prometheus::IntCounter;
use prost::Message;
use serde::Serialize;
use tokio::sync::Semaphore;
use tower_http::decompression::RequestDecompressionLayer;

use super::{Envelope, Ingest, REQUEST_BYTES_MAX, grpc};
use crate::graph::Timestamp;
use crate::lead::Lead;

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

pub(super) fn router(ingest: Ingest, lead: Lead, sent_away: IntCounter) -> Router {
    Router::new()
        .route("/v1/metrics", post(metrics))
        // Inside the decompression, so that it bounds what a small compressed body can grow to.
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .layer(RequestDecompressionLayer::new())
        .with_state(Intake { ingest, lead, sent_away, places: Arc::new(Semaphore::new(PLACES)) })
}

/// Requests read at a time: with bodies of 8 MiB, half a gigabyte at worst.
const PLACES: usize = 64;
/// How long a request waits for its turn.
const PLACE_WAIT: Duration = Duration::from_secs(1);
/// How long its body may take, so that slow senders do not hold the places of all others.
const BODY_WAIT: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Intake {
    ingest: Ingest,
    lead: Lead,
    sent_away: IntCounter,
    places: Arc<Semaphore>,
}

/// The body's encoding; the answer has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Json,
    Protobuf,
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        match kind.split(';').next()?.trim() {
            JSON => Some(Self::Json),
            PROTOBUF => Some(Self::Protobuf),
            _ => None,
        }
    }

    fn respond(self, status: StatusCode, message: &(impl Message + Serialize)) -> Response {
        let (kind, body) = match self {
            Self::Protobuf => (PROTOBUF, message.encode_to_vec()),
            // Plain structs of texts and numbers always have a JSON form.
            Self::Json => (JSON, serde_json::to_vec(message).unwrap_or_default()),
        };
        let mut response = (status, [(header::CONTENT_TYPE, kind)], body).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// An error as OTLP wants it: a `google.rpc.Status`.
    fn refuse(self, status: StatusCode, code: i32, message: String) -> Response {
        self.respond(status, &RpcStatus { code, message })
    }
}

/// `google.rpc.Status` without its details.
#[derive(Clone, PartialEq, Message, Serialize)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

const INVALID_ARGUMENT: i32 = 3;
const UNAVAILABLE: i32 = 14;

async fn metrics(State(intake): State<Intake>, request: Request) -> Response {
    let received_at = Timestamp::now();
    let Intake { ingest, lead, sent_away, places } = intake;
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let headers = request.headers().clone();
    let Some(encoding) = Encoding::of(&headers) else {
        let text = format!("content-type is neither {PROTOBUF} nor {JSON}");
        return Encoding::Json.refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_ARGUMENT, text);
    };
    if let Some(other) = lead.other() {
        sent_away.inc();
        let mut response = encoding.refuse(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, other.to_string());
        // On this connection it would never come to the other.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    let invalid = |status, text: String| {
        ingest.0.metrics.invalid();
        encoding.refuse(status, INVALID_ARGUMENT, text)
    };
    let field = |name: &'static str| headers.get(name).and_then(|value| value.to_str().ok());
    let envelope = match Envelope::read(field, received_at, peer) {
        Ok(envelope) => envelope,
        Err(error) => return invalid(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let Ok(Ok(_place)) = tokio::time::timeout(PLACE_WAIT, places.acquire()).await else {
        let text = "too many requests at a time".to_owned();
        return encoding.refuse(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, text);
    };
    let body: Result<Result<Bytes, BytesRejection>, _> =
        tokio::time::timeout(BODY_WAIT, Bytes::from_request(request, &())).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) => return invalid(rejection.status(), rejection.body_text()),
        Err(_) => return invalid(StatusCode::REQUEST_TIMEOUT, format!("no whole body within {BODY_WAIT:?}")),
    };
    let decoded: Result<ExportMetricsServiceRequest, String> = match encoding {
        Encoding::Protobuf => ExportMetricsServiceRequest::decode(body).map_err(|error| error.to_string()),
        Encoding::Json => serde_json::from_slice(&body).map_err(|error| error.to_string()),
    };
    let decoded = match decoded {
        Ok(decoded) => decoded,
        Err(error) => return invalid(StatusCode::BAD_REQUEST, error),
    };
    match ingest.accept(envelope, &decoded).await {
        Ok(accepted) => encoding.respond(StatusCode::OK, &grpc::response(&accepted)),
        Err(error) => encoding.refuse(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, error.to_string()),
    }
}
