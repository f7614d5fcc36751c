//! HTTP header and gRPC metadata names that Weft reads or writes. All lower case, as HTTP/2 wants them.

/// Why a proxy answered by itself and which one: `circuit_open; by=client_proxy`.
pub const REASON: &str = "x-weft-reason";
/// How much time the caller has left for this call, in whole milliseconds; between sidecars.
pub const DEADLINE: &str = "x-weft-deadline";
/// Marks a copy of a request that nobody waits for the answer of; such a request is not counted as a call.
pub const MIRRORED: &str = "x-weft-mirrored";
/// Request id, kept or created.
pub const REQUEST_ID: &str = "x-request-id";
/// W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";
/// W3C Trace Context.
pub const TRACESTATE: &str = "tracestate";
/// B3 single-header form.
pub const B3: &str = "b3";
/// B3 multi-header form.
pub const B3_TRACE_ID: &str = "x-b3-traceid";
/// B3 multi-header form.
pub const B3_SPAN_ID: &str = "x-b3-spanid";
/// B3 multi-header form.
pub const B3_PARENT_SPAN_ID: &str = "x-b3-parentspanid";
/// B3 multi-header form.
pub const B3_SAMPLED: &str = "x-b3-sampled";
/// B3 multi-header form.
pub const B3_FLAGS: &str = "x-b3-flags";

/// gRPC metadata on an OTLP export: the reporting proxy instance (equals the resource's `service.instance.id`).
pub const REPORT_INSTANCE: &str = "weft-report-instance";
/// gRPC metadata on an OTLP export: position of this report in the instance's series, from 1, without gaps
/// except where the instance dropped reports. A receiver that has counted a sequence acknowledges it again
/// without counting it again, which makes delivery exactly-once.
pub const REPORT_SEQUENCE: &str = "weft-report-sequence";
/// gRPC metadata on an OTLP export: the sender's clock when it sent, in Unix nanoseconds. The receiver uses it
/// only to measure the distance between the two clocks.
pub const REPORT_SENT_AT: &str = "weft-report-sent-at";
