//! OTLP over gRPC. Where senders prove who they are, they report only of themselves.

use std::time::SystemTime;

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
use opentelemetry_proto::tonic::resource::v1::Resource;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};

use super::{Accepted, Envelope, Ingest, REQUEST_BYTES_MAX, decode};
use crate::admit::{Admission, Mismatch, Report};
use crate::graph::Timestamp;
use crate::serve::Peer;
use crate::world::Live;

/// The `MetricsService`, and for sidecars the `LogsService`.
#[derive(Clone)]
pub struct Receiver {
    ingest: Ingest,
    guard: Option<Guard>,
}

/// Who may report what, on connections where senders prove who they are.
#[derive(Clone)]
pub struct Guard {
    /// Decides.
    pub admission: Admission,
    /// What is known.
    pub live: Live,
}

impl Guard {
    /// Whether `peer` may send what `resources` say.
    fn admit<'a>(
        &self,
        peer: Option<&Peer>,
        instance: Option<&str>,
        resources: impl Iterator<Item = &'a Option<Resource>>,
    ) -> Result<(), Status> {
        let verified = peer.map(|peer| peer.identity(SystemTime::now())).transpose()?.flatten();
        // In plain text nobody proves anything.
        let Some(verified) = verified else { return Ok(()) };
        let attributes = resources.flatten().map(|resource| resource.attributes.as_slice());
        let from = peer.map(|peer| peer.address.ip());
        let world = self.live.read();
        if let Some(instance) = instance {
            // Also of a report that says nothing else: its sequence would count as that instance's.
            let admitted = self.admission.instance(&verified.id, instance, &world);
            admitted.map_err(|mismatch| Status::permission_denied(mismatch.to_string()))?;
        }
        for reporter in decode::reporters(attributes) {
            for instance in [instance, reporter.instance.as_deref()] {
                let report = Report { instance, workload: &reporter.workload, from };
                self.admission.report(&verified.id, &report, &world).map_err(|mismatch| {
                    // Its stream may be on its way, and vouch for it.
                    let known = instance.is_some_and(|instance| world.is_connected(instance));
                    match mismatch {
                        Mismatch::Workload { .. } if !known => Status::unavailable(mismatch.to_string()),
                        _ => Status::permission_denied(mismatch.to_string()),
                    }
                })?;
            }
        }
        Ok(())
    }
}

pub(super) fn service(ingest: Ingest, guard: Option<Guard>) -> MetricsServiceServer<Receiver> {
    MetricsServiceServer::new(Receiver { ingest, guard })
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_BYTES_MAX)
}

pub(super) fn logs_service(ingest: Ingest, guard: Option<Guard>) -> LogsServiceServer<Receiver> {
    LogsServiceServer::new(Receiver { ingest, guard })
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_BYTES_MAX)
}

/// Lets nobody through who has to be known and is not, before anything of a body is read.
///
/// # Errors
/// When somebody on TLS has shown no certificate that is valid.
pub(super) fn known(request: Request<()>) -> Result<Request<()>, Status> {
    request.extensions().get::<Peer>().map(|peer| peer.identity(SystemTime::now())).transpose()?;
    Ok(request)
}

#[tonic::async_trait]
impl LogsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        if let Some(guard) = &self.guard {
            let resources = request.get_ref().resource_logs.iter().map(|logs| &logs.resource);
            guard.admit(request.extensions().get(), None, resources)?;
        }
        let dropped = self.ingest.accept_logs(request.get_ref(), Timestamp::now());
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
            self.ingest.0.metrics.invalid();
            Status::invalid_argument(error.to_string())
        })?;
        if let Some(guard) = &self.guard {
            let instance = envelope.identity.as_ref().map(|identity| &*identity.instance);
            let resources = request.get_ref().resource_metrics.iter().map(|metrics| &metrics.resource);
            guard.admit(request.extensions().get(), instance, resources)?;
        }
        let accepted = self.ingest.accept(envelope, request.get_ref()).await;
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
