//! From OTLP to what Weft understands: a pure function over bytes from strangers.
//!
//! In: an `ExportMetricsServiceRequest` or an `ExportLogsServiceRequest`. Out: observations, rules' durations,
//! circuits and transitions grouped by who reports them, and counts of what was not taken, by cause.
//! Invariants: never panics; never keeps more than [`POINTS_MAX`] points of a request, [`ATTRIBUTES_MAX`]
//! attributes of a point and [`TEXT_MAX`] bytes of a text, and no text with control characters; a request whose
//! *route* or *error* is no such text still counts, under the overflow word, so that totals stay right.
//! Surprise: points of foreign senders are taken only when they carry a `weft.` attribute. Apps instrumented with
//! OpenTelemetry send the same metric names, and their calls are already counted by their sidecars.
//! Non-goal: cumulative temporality. It needs state per series; a sender is told to switch to delta.

mod access;
mod circuit;
mod habit;
mod logs;
mod point;
mod rule;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric, metric::Data};
use weft_wire::{Host, ServiceId, SpiffeId, WorkloadId, attribute};

use crate::circuits::Sighting;
use crate::graph::{Measure, Protocol, Status, Tls};
use crate::ingest::habits::Habits;
pub use access::Decision;
pub use logs::{Told, decode_logs};
use point::{Point, Reading};
pub use rule::Rule;

/// Points of one request: 200 routes with five outcomes on 20 edges.
pub const POINTS_MAX: usize = 20_000;
/// Attributes of one point or resource; Weft's own points have fewer than twenty.
pub const ATTRIBUTES_MAX: usize = 48;
/// Bytes of one text.
pub const TEXT_MAX: usize = 256;

/// Who reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reporting {
    /// The workload.
    pub workload: WorkloadId,
    /// Its version, when known.
    pub version: Option<Arc<str>>,
    /// Its pod's name, when there is a pod.
    pub pod: Option<Arc<str>>,
    /// One start of it, when it says so itself.
    pub instance: Option<Arc<str>>,
}

/// Which side of an edge reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The caller.
    Client,
    /// The callee.
    Server,
}

/// One point, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Which side reports.
    pub side: Side,
    /// When its interval began, in Unix nanoseconds of the sender's clock.
    pub start: u64,
    /// When its interval ended, in Unix nanoseconds of the sender's clock.
    pub end: u64,
    /// The service that was called, if known.
    pub service: Option<ServiceId>,
    /// The workload on the other side, if known.
    pub peer: Option<WorkloadId>,
    /// Its version, if known.
    pub peer_version: Option<Arc<str>>,
    /// The host that was asked for.
    pub host: Option<Host>,
    /// The port that was asked for.
    pub port: u16,
    /// The caller's address, when the callee reports.
    pub client: Option<IpAddr>,
    /// Who the other side is, verified by its certificate.
    pub identity: Option<SpiffeId>,
    /// How the bytes were protected.
    pub tls: Tls,
    /// What was spoken.
    pub protocol: Protocol,
    /// What was observed.
    pub measure: Measure,
}

/// The observations of one reporter.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Who reports.
    pub reporter: Reporting,
    /// What it observed.
    pub observations: Vec<Observation>,
    /// What rules of access said to calls.
    pub access: Vec<Decision>,
    /// How long calls took by the rule that routed them.
    pub rules: Vec<Rule>,
    /// Circuits that it keeps; every time is still the sender's.
    pub circuits: Vec<Sighting>,
    /// How its app behaves.
    pub habits: Habits,
}

/// What one resource's metrics say.
#[derive(Default)]
struct Found {
    observations: Vec<Observation>,
    access: Vec<Decision>,
    rules: Vec<Rule>,
    circuits: Vec<Sighting>,
    habits: Habits,
}

impl Found {
    fn len(&self) -> usize {
        self.observations.len() + self.access.len() + self.rules.len() + self.circuits.len()
    }
}

/// Points that were not taken, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Cumulative sums and histograms.
    pub cumulative: u64,
    /// A foreign sender's points that carry no `weft.` attribute.
    pub foreign: u64,
    /// Values that make no sense: negative, not finite, names that are no names.
    pub invalid: u64,
    /// Neither side could tell who called.
    pub no_caller: u64,
    /// Beyond [`POINTS_MAX`].
    pub too_many: u64,
    /// Points that the sender itself lost before it could send them.
    pub by_sender: u64,
}

impl Dropped {
    /// Points of this request that were not taken although they were meant for the graph.
    #[must_use]
    pub const fn rejected(&self) -> u64 {
        self.cumulative + self.invalid + self.no_caller + self.too_many + self.foreign
    }

    /// What to tell the sender; empty when everything was taken.
    #[must_use]
    pub fn message(&self) -> String {
        let mut said = Vec::new();
        let mut say = |count: u64, text: &str| {
            if count > 0 {
                said.push(format!("{count} {text}"));
            }
        };
        say(self.cumulative, "cumulative (set OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta)");
        say(self.foreign, "without a weft.* attribute");
        say(self.invalid, "with a value or name that is not valid");
        say(self.no_caller, "without client.address");
        say(self.too_many, "beyond the limit of points per request");
        if said.is_empty() { String::new() } else { format!("data points not taken: {}", said.join(", ")) }
    }
}

/// A request, understood.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decoded {
    /// By reporter.
    pub groups: Vec<Group>,
    /// What was not taken.
    pub dropped: Dropped,
}

/// Reads `request`. `sidecar` says that it bears a sidecar's report metadata.
#[must_use]
pub fn decode(request: &ExportMetricsServiceRequest, sidecar: bool) -> Decoded {
    let mut decoder = Decoder::new(sidecar);
    let mut groups = Vec::new();
    for resource in &request.resource_metrics {
        let attributes = resource.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
        let reporter = decoder.reporter(attributes);
        let mut found = Found::default();
        for metric in resource.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
            decoder.metric(metric, &mut found);
        }
        match reporter {
            Some(_) if found.len() == 0 && found.habits == Habits::default() => {}
            Some(reporter) => {
                let Found { observations, access, rules, circuits, habits } = found;
                groups.push(Group { reporter, observations, access, rules, circuits, habits });
            }
            None => decoder.dropped.invalid += found.len() as u64,
        }
    }
    Decoded { groups, dropped: decoder.dropped }
}

/// Who reports, as each resource's attributes say; those that say nothing readable are left out.
pub fn reporters<'a>(resources: impl Iterator<Item = &'a [KeyValue]>) -> Vec<Reporting> {
    let mut decoder = Decoder::new(true);
    let mut reporters: Vec<Reporting> = Vec::new();
    for reporter in resources.filter_map(|attributes| decoder.reporter(attributes)) {
        // Thousands of resources of one sender are one sender.
        if reporters.last() != Some(&reporter) {
            reporters.push(reporter);
        }
    }
    reporters
}

/// What a metric's points are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metering {
    Requests,
    Closed,
    Opened,
    Io,
    Folded,
    Retries,
    /// Of a rule of access.
    Access,
    /// Not of an edge, but of a rule.
    Rule,
}

fn metering(name: &str) -> Option<(Metering, Option<Side>)> {
    Some(match name {
        attribute::HTTP_CLIENT_REQUEST_DURATION => (Metering::Requests, Some(Side::Client)),
        attribute::HTTP_SERVER_REQUEST_DURATION => (Metering::Requests, Some(Side::Server)),
        attribute::CLIENT_CONNECTION_DURATION => (Metering::Closed, Some(Side::Client)),
        attribute::SERVER_CONNECTION_DURATION => (Metering::Closed, Some(Side::Server)),
        attribute::CLIENT_CONNECTIONS => (Metering::Opened, Some(Side::Client)),
        attribute::SERVER_CONNECTIONS => (Metering::Opened, Some(Side::Server)),
        attribute::CLIENT_IO => (Metering::Io, Some(Side::Client)),
        attribute::SERVER_IO => (Metering::Io, Some(Side::Server)),
        attribute::CLIENT_RETRIES => (Metering::Retries, Some(Side::Client)),
        attribute::CLIENT_ROUTE_DURATION => (Metering::Rule, Some(Side::Client)),
        attribute::ACCESS_DECISIONS => (Metering::Access, Some(Side::Server)),
        // On either side; the callee's carry the caller's address.
        attribute::ROUTE_FOLDED => (Metering::Folded, None),
        _ => return None,
    })
}

/// Attributes of a point that mean something here; everything else is not looked at.
#[derive(Debug, Default)]
struct Attributes<'a> {
    texts: HashMap<&'static str, &'a str>,
    port: i64,
    status: Option<i64>,
    grpc_status: Option<i64>,
    is_weft: bool,
}

const TEXTS: [&str; 18] = [
    attribute::ACCESS_RULE,
    attribute::ACCESS_VERDICT,
    attribute::HTTP_REQUEST_METHOD,
    attribute::HTTP_ROUTE,
    attribute::ERROR_TYPE,
    attribute::NETWORK_PROTOCOL_NAME,
    attribute::NETWORK_IO_DIRECTION,
    attribute::RPC_SYSTEM,
    attribute::SERVER_ADDRESS,
    attribute::CLIENT_ADDRESS,
    attribute::PEER_WORKLOAD,
    attribute::PEER_NAMESPACE,
    attribute::PEER_VERSION,
    attribute::PEER_SERVICE,
    attribute::RETRY_OUTCOME,
    attribute::ROUTE_BACKEND,
    attribute::ROUTE_NAME,
    attribute::TLS,
];

impl<'a> Attributes<'a> {
    fn read(pairs: &'a [KeyValue]) -> Self {
        let mut read = Self::default();
        for pair in pairs.iter().take(ATTRIBUTES_MAX) {
            read.is_weft |= pair.key.starts_with("weft.");
            let Some(value) = pair.value.as_ref().and_then(|value| value.value.as_ref()) else { continue };
            match (pair.key.as_str(), value) {
                (attribute::SERVER_PORT, Any::IntValue(port)) => read.port = *port,
                (attribute::HTTP_RESPONSE_STATUS_CODE, Any::IntValue(status)) => read.status = Some(*status),
                (attribute::RPC_GRPC_STATUS_CODE, Any::IntValue(status)) => read.grpc_status = Some(*status),
                (key, Any::StringValue(text)) => {
                    if let Some(known) = TEXTS.iter().find(|known| **known == key) {
                        read.texts.insert(known, text);
                    }
                }
                _ => {}
            }
        }
        read
    }

    /// A text, unless it is missing or empty.
    fn text(&self, key: &'static str) -> Option<&'a str> {
        self.texts.get(key).copied().filter(|text| !text.is_empty())
    }
}

/// Short enough, and without control characters, which would reach somebody's terminal.
fn is_plain(text: &str) -> bool {
    text.len() <= TEXT_MAX && !text.chars().any(char::is_control)
}

struct Decoder {
    sidecar: bool,
    dropped: Dropped,
    points: usize,
    /// Texts repeat on most points of a report; each is kept once.
    texts: HashMap<String, Arc<str>>,
}

impl Decoder {
    fn new(sidecar: bool) -> Self {
        Self { sidecar, dropped: Dropped::default(), points: 0, texts: HashMap::new() }
    }

    fn reporter(&mut self, attributes: &[KeyValue]) -> Option<Reporting> {
        let text = |wanted: &str| {
            let pair = attributes.iter().take(ATTRIBUTES_MAX).find(|pair| pair.key == wanted)?;
            match pair.value.as_ref()?.value.as_ref()? {
                Any::StringValue(text) if !text.is_empty() => Some(text.as_str()),
                _ => None,
            }
        };
        let namespace = text(attribute::SERVICE_NAMESPACE).unwrap_or("default");
        let workload = WorkloadId::new(namespace, text(attribute::SERVICE_NAME)?).ok()?;
        let mut plain = |key| text(key).filter(|text| is_plain(text)).map(|text| self.intern(text));
        let version = plain(attribute::SERVICE_VERSION);
        let (pod, instance) = (plain(attribute::K8S_POD_NAME), plain(attribute::SERVICE_INSTANCE_ID));
        Some(Reporting { workload, version, pod, instance })
    }

    /// How many of `count` points may still be taken; the rest is counted as too many.
    fn take(&mut self, count: usize) -> usize {
        let taken = count.min(POINTS_MAX - self.points);
        self.points += taken;
        self.dropped.too_many += (count - taken) as u64;
        taken
    }

    fn metric(&mut self, metric: &Metric, into: &mut Found) {
        let Some(data) = &metric.data else { return };
        if metric.name == attribute::REPORT_DROPPED {
            if let Data::Sum(sum) = data {
                let lost = sum.data_points.iter().take(POINTS_MAX).filter_map(point::whole_number);
                self.dropped.by_sender = lost.fold(self.dropped.by_sender, u64::saturating_add);
            }
            return;
        }
        if metric.name == attribute::CIRCUIT_STATE {
            if let Data::Gauge(gauge) = data {
                self.circuits(gauge, &mut into.circuits);
            }
            return;
        }
        if habit::is_habit(&metric.name) {
            return self.habits(data, &mut into.habits);
        }
        let Some((metering, side)) = metering(&metric.name) else { return };
        let (temporality, count) = match data {
            Data::ExponentialHistogram(histogram) => {
                (histogram.aggregation_temporality, histogram.data_points.len())
            }
            Data::Histogram(histogram) => (histogram.aggregation_temporality, histogram.data_points.len()),
            Data::Sum(sum) => (sum.aggregation_temporality, sum.data_points.len()),
            Data::Gauge(_) | Data::Summary(_) => return,
        };
        if temporality != AggregationTemporality::Delta as i32 {
            self.dropped.cumulative += count as u64;
            return;
        }
        for position in 0..self.take(count) {
            let point = match data {
                Data::ExponentialHistogram(histogram) => {
                    Point::of_exponential(&histogram.data_points[position])
                }
                Data::Histogram(histogram) => Point::of_explicit(&histogram.data_points[position]),
                Data::Sum(sum) => Point::of_number(&sum.data_points[position]),
                Data::Gauge(_) | Data::Summary(_) => return,
            };
            let attributes = Attributes::read(point.attributes);
            if !self.sidecar && !attributes.is_weft {
                self.dropped.foreign += 1;
                continue;
            }
            let taken = match metering {
                Metering::Rule => self.rule(&point, &attributes).map(|rule| into.rules.push(rule)),
                Metering::Access => self.decision(&point, &attributes).map(|one| into.access.push(one)),
                _ => {
                    let observation = self.observation(metering, side, &point, &attributes);
                    observation.map(|observation| into.observations.push(observation))
                }
            };
            self.dropped.invalid += u64::from(taken.is_none());
        }
    }

    fn observation(
        &mut self,
        metering: Metering,
        side: Option<Side>,
        point: &Point<'_>,
        attributes: &Attributes<'_>,
    ) -> Option<Observation> {
        let client = attributes.text(attribute::CLIENT_ADDRESS).and_then(|text| text.parse().ok());
        let side = side.unwrap_or(if client.is_some() { Side::Server } else { Side::Client });
        let protocol = match (attributes.text(attribute::NETWORK_PROTOCOL_NAME), metering) {
            _ if attributes.text(attribute::RPC_SYSTEM) == Some("grpc") => Protocol::Grpc,
            (Some("http"), _) | (_, Metering::Requests | Metering::Folded | Metering::Retries) => {
                Protocol::Http
            }
            (Some("tls"), _) => Protocol::Tls,
            _ => Protocol::Tcp,
        };
        let measure = self.measure(metering, side, point, attributes)?;
        let peer =
            match (attributes.text(attribute::PEER_NAMESPACE), attributes.text(attribute::PEER_WORKLOAD)) {
                (namespace, Some(name)) => Some(WorkloadId::new(namespace.unwrap_or("default"), name).ok()?),
                (_, None) => None,
            };
        let service = attributes.text(attribute::PEER_SERVICE).map(str::parse).transpose().ok()?;
        let host = attributes.text(attribute::SERVER_ADDRESS).and_then(|text| text.parse().ok());
        let version = attributes.text(attribute::PEER_VERSION).filter(|text| is_plain(text));
        Some(Observation {
            side,
            start: if point.start == 0 { point.end } else { point.start.min(point.end) },
            end: point.end,
            service,
            peer,
            peer_version: version.map(|text| self.intern(text)),
            host,
            port: u16::try_from(attributes.port).unwrap_or_default(),
            client,
            identity: attributes.text(attribute::PEER_IDENTITY).and_then(|text| text.parse().ok()),
            tls: attributes.text(attribute::TLS).map_or(Tls::None, Tls::from_word),
            protocol,
            measure,
        })
    }

    fn measure(
        &mut self,
        metering: Metering,
        side: Side,
        point: &Point<'_>,
        attributes: &Attributes<'_>,
    ) -> Option<Measure> {
        let number = || match point.value {
            Reading::Number(number) => number,
            Reading::Durations(_) => None,
        };
        let durations = || match &point.value {
            Reading::Durations(durations) => durations.clone().filter(|durations| durations.count() > 0),
            Reading::Number(_) => None,
        };
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Some(match metering {
            Metering::Requests => {
                let route = attributes.text(attribute::HTTP_ROUTE).unwrap_or("/");
                let method =
                    attributes.text(attribute::HTTP_REQUEST_METHOD).unwrap_or(attribute::METHOD_OTHER);
                Measure::Requests {
                    method: self.short(method, attribute::METHOD_OTHER),
                    route: self.short(route, attribute::ROUTE_OVERFLOW),
                    status: match (attributes.grpc_status, attributes.status) {
                        (Some(code), _) => Status::grpc(code),
                        (None, Some(code)) => Status::http(code),
                        (None, None) => Status::NONE,
                    },
                    error: self.error(attributes),
                    durations: durations()?,
                }
            }
            Metering::Closed => Measure::Closed { error: self.error(attributes), durations: durations()? },
            Metering::Opened => Measure::Opened(small(number()?)),
            Metering::Folded => Measure::Folded(small(number()?)),
            Metering::Retries => match attributes.text(attribute::RETRY_OUTCOME)? {
                attribute::RETRY_SENT => Measure::Retries { sent: small(number()?), denied: 0 },
                attribute::RETRY_BUDGET_EXHAUSTED => Measure::Retries { sent: 0, denied: small(number()?) },
                _ => return None,
            },
            Metering::Access | Metering::Rule => return None,
            Metering::Io => {
                let bytes = number()?;
                let transmit = attributes.text(attribute::NETWORK_IO_DIRECTION)? == attribute::IO_TRANSMIT;
                // As the caller sees it: what the callee transmits, the caller receives.
                match transmit == (side == Side::Client) {
                    true => Measure::Bytes { sent: bytes, received: 0 },
                    false => Measure::Bytes { sent: 0, received: bytes },
                }
            }
        })
    }

    fn error(&mut self, attributes: &Attributes<'_>) -> Option<Arc<str>> {
        attributes.text(attribute::ERROR_TYPE).map(|text| self.short(text, attribute::ROUTE_OVERFLOW))
    }

    /// `text`, or `instead` when it cannot be what it claims.
    fn short(&mut self, text: &str, instead: &str) -> Arc<str> {
        let text = if is_plain(text) { text } else { instead };
        self.intern(text)
    }

    fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(text.to_owned(), shared.clone());
        shared
    }
}

#[cfg(test)]
mod tests;
