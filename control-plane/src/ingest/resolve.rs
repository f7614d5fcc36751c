//! Names both ends of an observation and decides whether it counts.
//!
//! In: an observation, who reports it, what the mesh and earlier reports say of addresses. Out: a sample, or why
//! there is none. The rule is written down in [`super`].

use std::net::IpAddr;
use std::time::Duration;

use weft_wire::SpiffeId;

use super::Envelope;
use super::callers::Callers;
use super::decode::{Observation, Reporting, Side};
use crate::circuits::Skew;
use crate::graph::{Mesh, NodeKey, Sample, Timestamp};
use crate::store::Report;

/// What is known of addresses.
pub(super) struct View<'a> {
    pub(super) mesh: &'a dyn Mesh,
    pub(super) callers: &'a Callers,
}

/// Why an observation is no sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skipped {
    /// The caller reports it itself.
    CallerReports,
    /// The callee does not say who called.
    NoCaller,
}

/// The distance between the sender's clock and this program's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    sent_at: Timestamp,
    received_at: Timestamp,
}

impl Clock {
    pub(super) fn of(envelope: &Envelope) -> Self {
        let received_at = envelope.received_at;
        let sent_at = envelope.identity.as_ref().map_or(received_at, |identity| identity.sent_at);
        Self { sent_at, received_at }
    }

    /// The sender's clock when it sent, in nanoseconds.
    pub(super) const fn sent(&self) -> u64 {
        self.sent_at.millis().saturating_mul(1_000_000)
    }

    /// The distance itself.
    pub(super) const fn skew(&self) -> Skew {
        Skew::between(self.sent_at, self.received_at)
    }

    /// Where `nanos` of the sender's clock lies on this program's: as long before the arrival as it lies before the
    /// sending, never in the future. A sender whose clock is years off is thereby set right; the way through the
    /// network counts as distance, which makes it at most late.
    pub(super) fn place(&self, nanos: u64) -> Timestamp {
        let before_sending: Duration = self.sent_at.since(Timestamp::from_nanos(nanos));
        self.received_at.minus(before_sending)
    }
}

/// Makes a sample of `observation` in `report`, which `reporter` sent.
pub(super) fn resolve(
    view: &View<'_>,
    reporter: &Reporting,
    report: &Report,
    observation: Observation,
    clock: &Clock,
) -> Result<Sample, Skipped> {
    let at = clock.place(observation.end);
    let own = NodeKey::Workload(reporter.workload.clone());
    let service =
        observation.service.as_ref().map(|service| format!("{service}:{}", observation.port).into());
    let (source, target, provisional) = match observation.side {
        Side::Client => (own, callee(view.mesh, &observation), None),
        Side::Server => {
            let address = observation.client.ok_or(Skipped::NoCaller)?.to_canonical();
            if view.mesh.has_sidecar(address) && !address.is_loopback()
                || view.callers.reports_for(address, report, at)
            {
                return Err(Skipped::CallerReports);
            }
            (caller(view.mesh, observation.identity.as_ref(), address), own, Some(address))
        }
    };
    let (source_version, target_version) = match observation.side {
        Side::Client => (reporter.version.clone(), observation.peer_version),
        Side::Server => (None, reporter.version.clone()),
    };
    Ok(Sample {
        source,
        target,
        protocol: observation.protocol,
        tls: observation.tls,
        at,
        service,
        source_version,
        target_version,
        provisional,
        measure: observation.measure,
    })
}

/// The endpoint that was chosen; else the service, which then had none; else whoever has the address.
fn callee(mesh: &dyn Mesh, observation: &Observation) -> NodeKey {
    if let Some(peer) = &observation.peer {
        return NodeKey::Workload(peer.clone());
    }
    if let Some(service) = &observation.service {
        return NodeKey::Service(service.clone());
    }
    let Some(host) = &observation.host else {
        return NodeKey::External { host: "unknown".into(), port: observation.port };
    };
    let address =
        host.as_str().trim_matches(['[', ']']).parse::<IpAddr>().map(|address| address.to_canonical());
    match address {
        Ok(address) => match mesh.workload_at(address) {
            Some(workload) => NodeKey::Workload(workload),
            None => NodeKey::External { host: address.to_string().into(), port: observation.port },
        },
        Err(_) => NodeKey::External { host: host.as_str().into(), port: observation.port },
    }
}

/// The workload that the caller proved to be; its address says which, where several run as the same account. Else whoever
/// has the address.
fn caller(mesh: &dyn Mesh, identity: Option<&SpiffeId>, address: IpAddr) -> NodeKey {
    // On loopback every program of a machine looks the same.
    let workload = if address.is_loopback() { None } else { mesh.workload_at(address) };
    let proved = identity.map(|identity| mesh.workloads_as(identity)).unwrap_or_default();
    match (proved.as_slice(), &workload) {
        ([only], _) => return NodeKey::Workload(only.clone()),
        (several, Some(workload)) if several.contains(workload) => {
            return NodeKey::Workload(workload.clone());
        }
        _ => {}
    }
    workload.map_or(NodeKey::UnmeshedAddress(address), NodeKey::UnmeshedWorkload)
}
