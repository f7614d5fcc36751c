//! A sidecar's reporting half, and readers for what the API answers.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, Metric, ResourceMetrics,
    ScopeMetrics, metric::Data,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde_json::Value;
use weft_control_plane::graph::Timestamp;
use weft_control_plane::ingest::{Envelope, Ingest};
use weft_control_plane::store::Outcome;
use weft_wire::{attribute, header, histogram};

/// Requests of one kind in one report.
#[derive(Clone)]
pub(crate) struct Call {
    count: u64,
    error: Option<&'static str>,
    /// The callee's name, or the caller's address when the callee reports.
    other: Result<&'static str, &'static str>,
}

impl Call {
    pub(crate) fn to(workload: &'static str, count: u64) -> Self {
        Self { count, error: None, other: Ok(workload) }
    }

    pub(crate) fn failing(workload: &'static str, count: u64, error: &'static str) -> Self {
        Self { count, error: Some(error), other: Ok(workload) }
    }

    pub(crate) fn from(address: &'static str, count: u64) -> Self {
        Self { count, error: None, other: Err(address) }
    }

    fn metric(&self, start: u64, end: u64) -> Metric {
        let mut attributes = vec![
            text(attribute::HTTP_REQUEST_METHOD, "GET"),
            text(attribute::HTTP_ROUTE, "/orders/{id}"),
            number(attribute::HTTP_RESPONSE_STATUS_CODE, if self.error.is_some() { 503 } else { 200 }),
            number(attribute::SERVER_PORT, 8080),
            text(attribute::NETWORK_PROTOCOL_NAME, "http"),
            text(attribute::TLS, "none"),
        ];
        attributes.extend(self.error.map(|error| text(attribute::ERROR_TYPE, error)));
        let name = match self.other {
            Ok(workload) => {
                attributes.extend([
                    text(attribute::PEER_SERVICE, &format!("{workload}.shop")),
                    text(attribute::PEER_WORKLOAD, workload),
                    text(attribute::PEER_NAMESPACE, "shop"),
                    text(attribute::SERVER_ADDRESS, &format!("{workload}.shop")),
                ]);
                attribute::HTTP_CLIENT_REQUEST_DURATION
            }
            Err(address) => {
                attributes.push(text(attribute::CLIENT_ADDRESS, address));
                attribute::HTTP_SERVER_REQUEST_DURATION
            }
        };
        let point = ExponentialHistogramDataPoint {
            attributes,
            start_time_unix_nano: start,
            time_unix_nano: end,
            count: self.count,
            sum: Some(0.005 * self.count as f64),
            scale: histogram::SCALE,
            positive: Some(Buckets { offset: histogram::bucket(0.005), bucket_counts: vec![self.count] }),
            ..ExponentialHistogramDataPoint::default()
        };
        let data = ExponentialHistogram {
            data_points: vec![point],
            aggregation_temporality: AggregationTemporality::Delta as i32,
        };
        let data = Some(Data::ExponentialHistogram(data));
        Metric { name: name.to_owned(), unit: "s".to_owned(), data, ..Metric::default() }
    }
}

pub(crate) fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Any::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

pub(crate) fn number(key: &str, value: i64) -> KeyValue {
    let value = Some(AnyValue { value: Some(Any::IntValue(value)) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_nanos()).expect("before 2500")
}

/// A report of `workload` (`namespace/name`) for one second.
pub(crate) fn request(
    workload: &str,
    calls: &[Call],
    delay_seconds: u64,
    clock_off_seconds: i64,
) -> ExportMetricsServiceRequest {
    let (namespace, name) = workload.split_once('/').expect("namespace/name");
    let end = now().saturating_add_signed(clock_off_seconds * 1_000_000_000) - delay_seconds * 1_000_000_000;
    let metrics = calls.iter().map(|call| call.metric(end - 1_000_000_000, end)).collect();
    let attributes = vec![
        text(attribute::SERVICE_NAME, name),
        text(attribute::SERVICE_NAMESPACE, namespace),
        text(attribute::SERVICE_VERSION, "v1"),
    ];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_metrics: vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }],
            ..ResourceMetrics::default()
        }],
    }
}

/// A reporting sidecar.
pub(crate) struct Sidecar {
    workload: &'static str,
    instance: &'static str,
    address: &'static str,
    sequence: u64,
    pub(crate) clock_off_seconds: i64,
    pub(crate) delay_seconds: u64,
}

impl Sidecar {
    pub(crate) fn new(workload: &'static str, instance: &'static str, address: &'static str) -> Self {
        Self { workload, instance, address, sequence: 0, clock_off_seconds: 0, delay_seconds: 0 }
    }

    /// The next report as a gRPC request.
    pub(crate) fn report(&mut self, calls: &[Call]) -> tonic::Request<ExportMetricsServiceRequest> {
        self.sequence += 1;
        self.again(calls)
    }

    /// The same report once more.
    pub(crate) fn again(&self, calls: &[Call]) -> tonic::Request<ExportMetricsServiceRequest> {
        let body = request(self.workload, calls, self.delay_seconds, self.clock_off_seconds);
        let mut request = tonic::Request::new(body);
        let metadata = request.metadata_mut();
        metadata.insert(header::REPORT_INSTANCE, self.instance.parse().expect("ASCII"));
        metadata.insert(header::REPORT_SEQUENCE, self.sequence.into());
        metadata.insert(
            header::REPORT_SENT_AT,
            now().saturating_add_signed(self.clock_off_seconds * 1_000_000_000).into(),
        );
        request
    }

    /// Hands the next report over without a socket, as coming from this sidecar's address.
    pub(crate) async fn deliver(&mut self, ingest: &Ingest, calls: &[Call]) -> Outcome {
        self.sequence += 1;
        self.deliver_again(ingest, calls).await
    }

    /// The same with more metrics in the report.
    pub(crate) async fn deliver_with(
        &mut self,
        ingest: &Ingest,
        calls: &[Call],
        more: Vec<Metric>,
    ) -> Outcome {
        self.sequence += 1;
        let mut request = self.again(calls);
        request.get_mut().resource_metrics[0].scope_metrics[0].metrics.extend(more);
        self.hand_over(ingest, &request).await
    }

    pub(crate) async fn deliver_again(&self, ingest: &Ingest, calls: &[Call]) -> Outcome {
        self.hand_over(ingest, &self.again(calls)).await
    }

    async fn hand_over(
        &self,
        ingest: &Ingest,
        request: &tonic::Request<ExportMetricsServiceRequest>,
    ) -> Outcome {
        let field = |name: &'static str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let peer = Some(self.address.parse().expect("an address"));
        let envelope = Envelope::read(field, Timestamp::now(), peer).expect("complete");
        ingest.accept(envelope, request.get_ref()).await.expect("journaled").outcome
    }
}

/// `data` in gzip's format, not compressed: one stored block per 64 KiB.
pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut chunks = data.chunks(65_535).peekable();
    while let Some(chunk) = chunks.next() {
        let length = u16::try_from(chunk.len()).expect("at most 65,535");
        packed.push(u8::from(chunks.peek().is_none()));
        packed.extend(length.to_le_bytes());
        packed.extend((!length).to_le_bytes());
        packed.extend(chunk);
    }
    let crc = data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 },
        )
    });
    packed.extend((!crc).to_le_bytes());
    packed.extend(u32::try_from(data.len()).expect("small").to_le_bytes());
    packed
}

/// Server-sent events as (name, JSON); comments are skipped.
pub(crate) fn events(
    body: BoxStream<'static, Result<Bytes, axum::Error>>,
) -> BoxStream<'static, (String, Value)> {
    let state = (body, String::new());
    stream::unfold(state, |(mut body, mut text)| async move {
        loop {
            if let Some((event, rest)) = text.split_once("\n\n") {
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let read = field("event:")
                    .zip(field("data:"))
                    .map(|(kind, data)| (kind.to_owned(), serde_json::from_str(data).expect("JSON")));
                text = rest.to_owned();
                match read {
                    Some(read) => return Some((read, (body, text))),
                    None => continue,
                }
            }
            let more = body.next().await?.ok()?;
            text.push_str(std::str::from_utf8(&more).expect("text"));
        }
    })
    .boxed()
}

/// Checks `value` against a schema of the API's description: types, and exactly the properties that are described.
pub(crate) fn conforms(description: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.trim_start_matches('#');
        let schema = description.pointer(pointer).unwrap_or_else(|| panic!("{reference} is not described"));
        return conforms(description, schema, value, place);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        conforms(description, part, value, place);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        // Only "this or null" is used.
        if !value.is_null() {
            conforms(description, &choices[0], value, place);
        }
        return;
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return,
    };
    let fits = kinds.iter().any(|kind| match *kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is not a type"),
    });
    assert!(fits, "{place} is {value}, described as {kinds:?}");
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{place} is {value}, described as one of {words:?}");
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        conforms(description, &schema["items"], item, &format!("{place}[{index}]"));
    }
    if let (Some(properties), Some(object)) = (schema["properties"].as_object(), value.as_object()) {
        let described: BTreeSet<&String> = properties.keys().collect();
        let given: BTreeSet<&String> = object.keys().collect();
        assert_eq!(given, described, "{place}");
        for (name, schema) in properties {
            conforms(description, schema, &object[name], &format!("{place}.{name}"));
        }
    }
}
