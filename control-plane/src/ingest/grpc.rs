//! OTLP over gRPC.

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};

use super::{Accepted, Envelope, Ingest, REQUEST_BYTES_MAX};
use crate::graph::Timestamp;
use crate::serve::Peer;

/// The `MetricsService`, and for sidecars the `LogsService`.
#[derive(Clone)]
pub struct Receiver(Ingest);

pub(super) fn service(ingest: Ingest) -> MetricsServiceServer<Receiver> {
    MetricsServiceServer::new(Receiver(ingest))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_BYTES_MAX)
}

pub(super) fn logs_service(ingest: Ingest) -> LogsServiceServer<Receiver> {
    LogsServiceServer::new(Receiver(ingest))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_BYTES_MAX)
}

#[tonic::async_trait]
impl LogsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let dropped = self.0.accept_logs(request.get_ref(), Timestamp::now());
        let rejected = i64::try_from(dropped.rejected()).unwrap_or(i64::MAX);
        let partial_success = (rejected > 0).then(|| ExportLogsPartialSuccess {
            rejected_log_records: rejected,
            error_message: "only whole records of weft.circuit.transition are taken".to_owned(),
        });
        Ok(Response::new(ExportLogsServiceResponse { partial_success }))
    }
}

#[tonic::async_trait]
impl MetricsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let metadata = request.metadata();
        let field = |name: &'static str| metadata.get(name).and_then(|value| value.to_str().ok());
        let peer = request.extensions().get::<Peer>().map(|peer| peer.address.ip());
        let envelope = Envelope::read(field, Timestamp::now(), peer).map_err(|error| {
            self.0.0.metrics.invalid();
            Status::invalid_argument(error.to_string())
        })?;
        let accepted = self.0.accept(envelope, request.get_ref()).await;
        // The one code that tells a sender to keep the report and come again.
        let accepted = accepted.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(response(&accepted)))
    }
}

/// The answer, with what was not taken.
pub(super) fn response(accepted: &Accepted) -> ExportMetricsServiceResponse {
    let rejected = i64::try_from(accepted.dropped.rejected()).unwrap_or(i64::MAX);
    let partial_success = (rejected > 0).then(|| ExportMetricsPartialSuccess {
        rejected_data_points: rejected,
        error_message: accepted.dropped.message(),
    });
    ExportMetricsServiceResponse { partial_success }
}
