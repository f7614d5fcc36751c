//! `MetricsService/Export` with a message that is already encoded.

use bytes::{BufMut as _, Bytes};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

const PATH: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// Exports one encoded `ExportMetricsServiceRequest`.
pub(super) async fn export(channel: Channel, request: Request<Bytes>) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(chain(&error)))?;
    let answer = grpc.unary(request, PathAndQuery::from_static(PATH), Encoded).await?.into_inner();
    if let Some(partial) = answer.partial_success
        && partial.rejected_data_points > 0
    {
        // Rejected for good: sending the same again would change nothing.
        tracing::warn!(
            points = partial.rejected_data_points,
            message = partial.error_message,
            "control plane rejected part of a report"
        );
    }
    Ok(())
}

/// An error and its causes: a transport error alone says "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Passes bytes through on the way out.
#[derive(Debug, Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = ExportMetricsServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(bytes);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = ExportMetricsServiceResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        match ExportMetricsServiceResponse::decode(buffer) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}
