//! An ordinary gRPC server and its client, for scenarios: what tonic makes of gRPC, and no proxy in sight.
//!
//! `grpc-peer serve PORT` runs until it is killed; `grpc-peer call URL` makes every kind of call there is, checks what
//! comes back, and fails when anything is not as the server sent it. Both in one file, so that nobody has to look for
//! the other half of an expectation. Written by hand, which keeps a protobuf compiler out of the build:
//!
//! ```proto
//! package weft.test;
//! service Numbers {
//!   rpc Double(Number) returns (Number);                 // NOT_FOUND for 13
//!   rpc Count(Number) returns (stream Number);           // counts down to 0, breaks with INTERNAL at 13
//!   rpc Sum(stream Number) returns (stream Number);      // each sum before the next summand
//! }
//! ```

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, bail, ensure};
use futures_util::{Stream, StreamExt as _, stream};
use http::uri::PathAndQuery;
use http::{Request, Response};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::{Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

const DOUBLE: &str = "/weft.test.Numbers/Double";
const COUNT: &str = "/weft.test.Numbers/Count";
const SUM: &str = "/weft.test.Numbers/Sum";
/// The number that nothing good comes of.
const UNLUCKY: u64 = 13;
/// Metadata that comes with an error, and so in the trailers.
const OMEN: &str = "x-omen";

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct Number {
    #[prost(uint64, tag = "1")]
    value: u64,
}

type Codec = ProstCodec<Number, Number>;
type Numbers = Pin<Box<dyn Stream<Item = Result<Number, Status>> + Send>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", port] => serve(port.parse().context("PORT")?).await,
        ["call", url] => call(url).await,
        _ => bail!("usage: grpc-peer serve PORT | grpc-peer call URL"),
    }
}

fn omen(code: Code, message: &str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(OMEN, MetadataValue::from_static("black cat"));
    Status::with_metadata(code, message, metadata)
}

// === the server ===

#[derive(Debug, Clone, Copy)]
struct Calculator;

async fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let incoming = TcpListenerStream::new(listener);
    Ok(Server::builder().add_service(Calculator).serve_with_incoming(incoming).await?)
}

impl NamedService for Calculator {
    const NAME: &'static str = "weft.test.Numbers";
}

impl Service<Request<Body>> for Calculator {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = Grpc::new(Codec::default());
            Ok(match request.uri().path() {
                DOUBLE => grpc.unary(Self, request).await,
                COUNT => grpc.server_streaming(Self, request).await,
                SUM => grpc.streaming(Self, request).await,
                path => Status::unimplemented(path).into_http(),
            })
        })
    }
}

impl UnaryService<Number> for Calculator {
    type Response = Number;
    type Future = BoxFuture<tonic::Response<Number>, Status>;

    fn call(&mut self, request: tonic::Request<Number>) -> Self::Future {
        Box::pin(async move {
            match request.into_inner().value {
                UNLUCKY => Err(omen(Code::NotFound, "there is no such number")),
                value => Ok(tonic::Response::new(Number { value: value * 2 })),
            }
        })
    }
}

impl ServerStreamingService<Number> for Calculator {
    type Response = Number;
    type ResponseStream = Numbers;
    type Future = BoxFuture<tonic::Response<Numbers>, Status>;

    fn call(&mut self, request: tonic::Request<Number>) -> Self::Future {
        Box::pin(async move {
            let numbers = (0..=request.into_inner().value).rev().map(|value| match value {
                UNLUCKY => Err(omen(Code::Internal, "stumbled")),
                value => Ok(Number { value }),
            });
            Ok(tonic::Response::new(stream::iter(numbers).boxed()))
        })
    }
}

impl StreamingService<Number> for Calculator {
    type Response = Number;
    type ResponseStream = Numbers;
    type Future = BoxFuture<tonic::Response<Numbers>, Status>;

    fn call(&mut self, request: tonic::Request<Streaming<Number>>) -> Self::Future {
        Box::pin(async move {
            let summands = request.into_inner();
            let sums = summands.scan(0, |sum, summand| {
                std::future::ready(Some(summand.map(|summand| {
                    *sum += summand.value;
                    Number { value: *sum }
                })))
            });
            Ok(tonic::Response::new(sums.boxed()))
        })
    }
}

// === the client ===

async fn call(url: &str) -> anyhow::Result<()> {
    let channel = Endpoint::from_shared(url.to_owned())?.connect().await?;
    let mut client = tonic::client::Grpc::new(channel);
    double(&mut client).await.context("Double")?;
    count(&mut client).await.context("Count")?;
    sum(&mut client).await.context("Sum")
}

async fn double(client: &mut tonic::client::Grpc<Channel>) -> anyhow::Result<()> {
    let path = PathAndQuery::from_static(DOUBLE);
    client.ready().await?;
    let request = tonic::Request::new(Number { value: 21 });
    let response = client.unary(request, path.clone(), Codec::default()).await?;
    ensure!(response.into_inner().value == 42, "wrong number");

    // The server answers with trailers and nothing else.
    client.ready().await?;
    let request = tonic::Request::new(Number { value: UNLUCKY });
    let refusal = client.unary(request, path, Codec::default()).await.err().context("no error")?;
    ensure!(refusal.code() == Code::NotFound && refusal.message() == "there is no such number", "{refusal}");
    ensure!(refusal.metadata().get(OMEN).is_some_and(|omen| omen == "black cat"), "{refusal:?}");
    Ok(())
}

async fn count(client: &mut tonic::client::Grpc<Channel>) -> anyhow::Result<()> {
    let path = PathAndQuery::from_static(COUNT);
    client.ready().await?;
    let request = tonic::Request::new(Number { value: 9 });
    let mut numbers = client.server_streaming(request, path.clone(), Codec::default()).await?.into_inner();
    let mut heard = Vec::new();
    while let Some(number) = numbers.message().await? {
        heard.push(number.value);
    }
    ensure!(heard == (0..10).rev().collect::<Vec<_>>(), "{heard:?}");

    // Two numbers arrive, then the error in the trailers, on a response whose HTTP status is 200.
    client.ready().await?;
    let request = tonic::Request::new(Number { value: UNLUCKY + 2 });
    let mut numbers = client.server_streaming(request, path, Codec::default()).await?.into_inner();
    for expected in [UNLUCKY + 2, UNLUCKY + 1] {
        ensure!(numbers.message().await? == Some(Number { value: expected }), "no {expected}");
    }
    let broken = numbers.message().await.err().context("no error")?;
    ensure!(broken.code() == Code::Internal && broken.message() == "stumbled", "{broken}");
    ensure!(broken.metadata().get(OMEN).is_some_and(|omen| omen == "black cat"), "{broken:?}");
    Ok(())
}

/// Both directions at once: a proxy that waits for the end of either would wait for ever.
async fn sum(client: &mut tonic::client::Grpc<Channel>) -> anyhow::Result<()> {
    let (summands, outgoing) = mpsc::channel(1);
    client.ready().await?;
    let request = tonic::Request::new(ReceiverStream::new(outgoing));
    let mut sums =
        client.streaming(request, PathAndQuery::from_static(SUM), Codec::default()).await?.into_inner();
    let mut expected = 0;
    for value in 1..=100 {
        summands.send(Number { value }).await?;
        expected += value;
        ensure!(sums.message().await? == Some(Number { value: expected }), "no {expected}");
    }
    drop(summands);
    ensure!(sums.message().await?.is_none(), "more sums than summands");
    Ok(())
}
