//! `MetricsService/Export` and `LogsService/Export` with a message that is already encoded.

use bytes::{Buf as _, BufMut as _, Bytes};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::queue::Signal;

const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
const LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// Exports one encoded request.
pub(super) async fn export(channel: Channel, signal: Signal, request: Request<Bytes>) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(chain(&error)))?;
    let path = match signal {
        Signal::Metrics => METRICS,
        Signal::Transitions(_) => LOGS,
    };
    let answer = grpc.unary(request, PathAndQuery::from_static(path), Encoded).await?.into_inner();
    let (rejected, message) = rejected(signal, answer)?;
    if rejected > 0 {
        // Rejected for good: sending the same again would change nothing.
        tracing::warn!(rejected, message, "control plane rejected part of a report");
    }
    Ok(())
}

/// What an answer says was not taken, and why.
fn rejected(signal: Signal, answer: Bytes) -> Result<(i64, String), Status> {
    let invalid = |error: prost::DecodeError| Status::internal(error.to_string());
    let said = match signal {
        Signal::Metrics => {
            let answer = ExportMetricsServiceResponse::decode(answer).map_err(invalid)?;
            answer.partial_success.map(|partial| (partial.rejected_data_points, partial.error_message))
        }
        Signal::Transitions(_) => {
            let answer = ExportLogsServiceResponse::decode(answer).map_err(invalid)?;
            answer.partial_success.map(|partial| (partial.rejected_log_records, partial.error_message))
        }
    };
    Ok(said.unwrap_or_default())
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

/// Passes bytes through, both ways.
#[derive(Debug, Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
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
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
