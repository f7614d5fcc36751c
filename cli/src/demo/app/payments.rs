//! `payments`, a gRPC service, and the `bank` outside of the shop that it asks.
//!
//! The service is small enough to be written by hand, which keeps a protobuf compiler out of the build:
//!
//! ```proto
//! package shop;
//! service Payments { rpc Charge(Charge) returns (Receipt); }
//! ```

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use http::{HeaderMap, Request, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::{Client, told_to_end, trace, work};

/// The method's path on the wire.
const CHARGE: &str = "/shop.Payments/Charge";
/// How often the bank says no, in percent.
const DECLINED_PERCENT: u32 = 2;

/// A charge for one order.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Charge {
    #[prost(string, tag = "1")]
    pub(super) order: String,
    #[prost(uint32, tag = "2")]
    pub(super) cents: u32,
    #[prost(string, tag = "3")]
    pub(super) currency: String,
}

/// The bank's consent.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Receipt {
    #[prost(string, tag = "1")]
    pub(super) authorization: String,
}

// === the client, used by orders ===

/// A client of the service; connects when first used.
#[derive(Debug, Clone)]
pub(super) struct Payments(Channel);

impl Payments {
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(url.to_owned())?;
        Ok(Self(endpoint.timeout(Duration::from_secs(5)).connect_lazy()))
    }

    pub(super) async fn charge(&self, charge: Charge, trace: &HeaderMap) -> Result<Receipt, Status> {
        let mut client = tonic::client::Grpc::new(self.0.clone());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = tonic::Request::new(charge);
        *request.metadata_mut() = MetadataMap::from_headers(trace.clone());
        let codec = ProstCodec::<Charge, Receipt>::default();
        let path = http::uri::PathAndQuery::from_static(CHARGE);
        client.unary(request, path, codec).await.map(tonic::Response::into_inner)
    }
}

// === the server ===

#[derive(Debug, Clone)]
struct Desk {
    client: Client,
    bank: String,
}

pub(super) async fn serve(listener: TcpListener, client: Client, bank: String) -> anyhow::Result<()> {
    Server::builder()
        .add_service(Desk { client, bank })
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), told_to_end())
        .await?;
    Ok(())
}

impl NamedService for Desk {
    const NAME: &'static str = "shop.Payments";
}

impl Service<Request<Body>> for Desk {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let desk = self.clone();
        Box::pin(async move {
            if request.uri().path() != CHARGE {
                return Ok(Status::unimplemented("only Charge").into_http());
            }
            let codec = ProstCodec::<Receipt, Charge>::default();
            Ok(Grpc::new(codec).unary(desk, request).await)
        })
    }
}

impl UnaryService<Charge> for Desk {
    type Response = Receipt;
    type Future = BoxFuture<tonic::Response<Receipt>, Status>;

    fn call(&mut self, request: tonic::Request<Charge>) -> Self::Future {
        let desk = self.clone();
        Box::pin(async move {
            let trace = trace(&request.metadata().clone().into_headers());
            let charge = request.into_inner();
            let body = json!({ "amount": charge.cents, "currency": charge.currency }).to_string();
            let url = format!("{}/v1/charges", desk.bank);
            let (status, body) = desk
                .client
                .post(&url, &trace, body)
                .await
                .map_err(|error| Status::unavailable(format!("bank: {error}")))?;
            if !status.is_success() {
                return Err(Status::new(Code::FailedPrecondition, "the bank declined"));
            }
            let answer: Value =
                serde_json::from_slice(&body).map_err(|error| Status::internal(error.to_string()))?;
            let authorization = answer["authorization"].as_str().unwrap_or_default().to_owned();
            Ok(tonic::Response::new(Receipt { authorization }))
        })
    }
}

// === the bank ===

pub(super) fn bank() -> Router {
    Router::new().route("/v1/charges", post(consent))
}

async fn consent() -> Result<Json<Value>, StatusCode> {
    work(Duration::from_millis(35), 0.3).await;
    if fastrand::u32(0..100) < DECLINED_PERCENT {
        return Err(StatusCode::PAYMENT_REQUIRED);
    }
    Ok(Json(json!({ "authorization": format!("{:08x}", fastrand::u32(..)) })))
}
