//! B3, single header and several. Source: <https://github.com/openzipkin/b3-propagation>.

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use opentelemetry::{SpanId, TraceId};
use weft_wire::header;

use super::{TraceContext, hex};

const B3: HeaderName = HeaderName::from_static(header::B3);
const TRACE_ID: HeaderName = HeaderName::from_static(header::B3_TRACE_ID);
const SPAN_ID: HeaderName = HeaderName::from_static(header::B3_SPAN_ID);
const PARENT_SPAN_ID: HeaderName = HeaderName::from_static(header::B3_PARENT_SPAN_ID);
const SAMPLED: HeaderName = HeaderName::from_static(header::B3_SAMPLED);

/// The caller's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
}

/// What the headers said, part by part. The first value of a repeated header counts.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    single: Option<Resolved>,
    trace_id: Option<u128>,
    span_id: Option<u64>,
    sampled: Option<bool>,
    debug: bool,
}

/// What the headers meant together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Absent when there were no ids, or bad ones.
    pub(super) parent: Option<Parent>,
    /// Absent when the caller left the decision to us.
    pub(super) sampled: Option<bool>,
    /// Sampled, and somebody is watching.
    pub(super) debug: bool,
}

impl Incoming {
    pub(super) fn single(&mut self, value: &[u8]) {
        self.single.get_or_insert_with(|| parse_single(value));
    }

    pub(super) fn trace_id(&mut self, value: &[u8]) {
        self.trace_id = self.trace_id.or_else(|| trace_id(value));
    }

    pub(super) fn span_id(&mut self, value: &[u8]) {
        self.span_id = self.span_id.or_else(|| span_id(value));
    }

    pub(super) fn sampled(&mut self, value: &[u8]) {
        self.sampled = self.sampled.or(match value {
            b"1" | b"true" => Some(true),
            b"0" | b"false" => Some(false),
            _ => None,
        });
    }

    pub(super) fn flags(&mut self, value: &[u8]) {
        self.debug |= value == b"1";
    }

    /// The single header wins, as the specification asks.
    pub(super) fn resolve(&self) -> Resolved {
        if let Some(single) = self.single
            && (single.parent.is_some() || single.sampled.is_some())
        {
            return single;
        }
        let parent = match (self.trace_id, self.span_id) {
            (Some(trace), Some(span)) => {
                Some(Parent { trace_id: TraceId::from(trace), span_id: SpanId::from(span) })
            }
            _ => None,
        };
        let sampled = if self.debug { Some(true) } else { self.sampled };
        Resolved { parent, sampled, debug: self.debug }
    }
}

fn parse_single(value: &[u8]) -> Resolved {
    let decision = |word: &[u8]| match word {
        b"1" => (Some(true), false),
        b"0" => (Some(false), false),
        b"d" => (Some(true), true),
        _ => (None, false),
    };
    let mut parts = value.split(|&byte| byte == b'-');
    let first = parts.next().unwrap_or_default();
    let Some(second) = parts.next() else {
        let (sampled, debug) = decision(first);
        return Resolved { parent: None, sampled, debug };
    };
    let (sampled, debug) = parts.next().map_or((None, false), decision);
    let parent = match (trace_id(first), span_id(second)) {
        (Some(trace), Some(span)) => {
            Some(Parent { trace_id: TraceId::from(trace), span_id: SpanId::from(span) })
        }
        _ => None,
    };
    Resolved { parent, sampled, debug }
}

fn trace_id(value: &[u8]) -> Option<u128> {
    if !matches!(value.len(), 16 | 32) {
        return None;
    }
    hex::read_any(value).filter(|&id| id != 0)
}

fn span_id(value: &[u8]) -> Option<u64> {
    if value.len() != 16 {
        return None;
    }
    hex::read_any(value).map(|id| id as u64).filter(|&id| id != 0)
}

/// Writes this hop's context in the forms that came in.
pub(super) fn write(
    headers: &mut HeaderMap,
    context: &TraceContext,
    incoming: &Resolved,
    single: bool,
    multi: bool,
) {
    let mut trace = [0; 32];
    hex::write(&context.trace_id.to_bytes(), &mut trace);
    // A caller with 64-bit ids gets them back at their own length.
    let trace = if trace.starts_with(b"0000000000000000") { &trace[16..] } else { &trace[..] };
    let (mut span, mut parent) = ([0; 16], [0; 16]);
    hex::write(&context.span_id.to_bytes(), &mut span);
    hex::write(&context.parent_id.to_bytes(), &mut parent);
    let has_parent = context.parent_id != SpanId::INVALID;
    // A decision that the caller left open stays open.
    let decided = incoming.sampled.is_some();
    let word: &[u8] = match (incoming.debug, context.sampled) {
        (true, _) => b"d",
        (false, true) => b"1",
        (false, false) => b"0",
    };
    if single {
        let mut text = Vec::with_capacity(68);
        text.extend_from_slice(trace);
        text.push(b'-');
        text.extend_from_slice(&span);
        if decided {
            text.push(b'-');
            text.extend_from_slice(word);
            if has_parent {
                text.push(b'-');
                text.extend_from_slice(&parent);
            }
        }
        headers.insert(B3, hex::header(&text));
    }
    if multi {
        headers.insert(TRACE_ID, hex::header(trace));
        headers.insert(SPAN_ID, hex::header(&span));
        if has_parent {
            headers.insert(PARENT_SPAN_ID, hex::header(&parent));
        } else {
            headers.remove(PARENT_SPAN_ID);
        }
        // `x-b3-flags: 1` says "sampled" by itself and stays as it came.
        if decided && !incoming.debug {
            headers.insert(SAMPLED, HeaderValue::from_static(if context.sampled { "1" } else { "0" }));
        }
    }
}
