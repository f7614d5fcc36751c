//! Trace context: W3C and B3 in, the same formats out, a root where none came.
//!
//! In: a request's headers. Out: the same headers with this hop's span id in every format that came in (none:
//! a new `traceparent`), exactly one of each, and one `x-request-id`. `traceparent` wins over B3 when both
//! came and disagree, so that one request has one trace.
//!
//! Invariant: what leaves is valid whatever came. A malformed or repeated `traceparent` starts a new trace and
//! takes `tracestate` with it, as W3C Trace Context, sections 3.2 and 4.2 ask; an invalid `tracestate` is
//! dropped alone. Surprise: one pass over the headers instead of a lookup per name; a lookup hashes its name,
//! and most requests carry none of the nine. Non-goal: exporting spans.

use std::cell::RefCell;

use http::header::{Entry, HeaderName};
use http::{HeaderMap, HeaderValue};
use opentelemetry::{SpanId, TraceId};
use weft_wire::header;

mod b3;
mod hex;
mod w3c;

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

/// A share of all traces, decided by the trace id alone: every hop with the same ratio keeps the same traces,
/// and a hop with a larger one keeps those and more.
///
/// Source: OpenTelemetry, "TraceState: Probability Sampling": the last 56 bits of a trace id are its random
/// value, and a trace is kept iff that is not below the rejection threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio {
    rejected_below: u64,
}

impl Ratio {
    /// A ratio between 0 and 1; values outside are clamped, NaN keeps nothing.
    #[must_use]
    pub fn new(share: f64) -> Self {
        let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
        Self { rejected_below: ((1.0 - share) * RANDOM_RANGE as f64) as u64 }
    }

    /// Whether the trace is in the share.
    #[must_use]
    pub fn keeps(self, trace_id: TraceId) -> bool {
        let random = u128::from_be_bytes(trace_id.to_bytes()) as u64 & (RANDOM_RANGE - 1);
        random >= self.rejected_below
    }
}

/// Size of the random part of a trace id: 56 bits.
const RANDOM_RANGE: u64 = 1 << 56;

/// Reads the trace context of a request and writes this hop's in its place.
///
/// Afterwards there is exactly one `traceparent`, or the B3 headers if only those came, and one `x-request-id`.
pub fn propagate(headers: &mut HeaderMap, ratio: Ratio) -> TraceContext {
    let seen = Seen::read(headers);
    let w3c = seen.w3c();
    let b3 = seen.b3();
    let span_id = SpanId::from(Random::span());
    let context = if let Some(parent) = w3c {
        TraceContext {
            trace_id: parent.trace_id,
            span_id,
            parent_id: parent.span_id,
            sampled: parent.sampled,
        }
    } else if let Some(parent) = b3.parent {
        let sampled = b3.sampled.unwrap_or_else(|| ratio.keeps(parent.trace_id));
        TraceContext { trace_id: parent.trace_id, span_id, parent_id: parent.span_id, sampled }
    } else {
        let trace_id = TraceId::from(Random::trace());
        let sampled = b3.sampled.unwrap_or_else(|| ratio.keeps(trace_id));
        TraceContext { trace_id, span_id, parent_id: SpanId::INVALID, sampled }
    };
    if seen.traceparents > 0 || !seen.any_b3() {
        // `insert` replaces all that came.
        headers.insert(TRACEPARENT, w3c::format(&context));
    }
    if seen.tracestates > 0 && (w3c.is_none() || !w3c::tracestate_is_valid(headers.get_all(TRACESTATE))) {
        headers.remove(TRACESTATE);
    }
    if seen.any_b3() {
        b3::write(headers, &context, &b3, seen.b3_single, seen.b3_multi);
    }
    if seen.request_ids != 1 {
        keep_one_request_id(headers);
    }
    context
}

/// What one pass over the headers found.
#[derive(Default)]
struct Seen {
    traceparents: u32,
    traceparent: Option<w3c::Parent>,
    tracestates: u32,
    b3_single: bool,
    b3_multi: bool,
    b3: b3::Incoming,
    request_ids: u32,
}

impl Seen {
    fn read(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            let value = value.as_bytes();
            match name.as_str() {
                header::TRACEPARENT => {
                    seen.traceparents += 1;
                    seen.traceparent = w3c::parse(value);
                }
                header::TRACESTATE => seen.tracestates += 1,
                header::REQUEST_ID if !value.is_empty() => seen.request_ids += 1,
                header::REQUEST_ID => seen.request_ids += 2,
                header::B3 => {
                    seen.b3_single = true;
                    seen.b3.single(value);
                }
                header::B3_TRACE_ID => {
                    seen.b3_multi = true;
                    seen.b3.trace_id(value);
                }
                header::B3_SPAN_ID => {
                    seen.b3_multi = true;
                    seen.b3.span_id(value);
                }
                header::B3_SAMPLED => {
                    seen.b3_multi = true;
                    seen.b3.sampled(value);
                }
                header::B3_FLAGS => {
                    seen.b3_multi = true;
                    seen.b3.flags(value);
                }
                _ => {}
            }
        }
        seen
    }

    /// The W3C parent, unless the header is malformed or came more than once.
    fn w3c(&self) -> Option<w3c::Parent> {
        if self.traceparents == 1 { self.traceparent } else { None }
    }

    fn b3(&self) -> b3::Resolved {
        self.b3.resolve()
    }

    fn any_b3(&self) -> bool {
        self.b3_single || self.b3_multi
    }
}

const TRACEPARENT: HeaderName = HeaderName::from_static(header::TRACEPARENT);
const TRACESTATE: HeaderName = HeaderName::from_static(header::TRACESTATE);
const REQUEST_ID: HeaderName = HeaderName::from_static(header::REQUEST_ID);

/// Creates the id where none came (or an empty one); of several, the first stays.
fn keep_one_request_id(headers: &mut HeaderMap) {
    match headers.entry(REQUEST_ID) {
        Entry::Vacant(vacant) => {
            vacant.insert(new_request_id());
        }
        Entry::Occupied(mut occupied) => {
            let first = occupied.get().clone();
            occupied.insert(if first.is_empty() { new_request_id() } else { first });
        }
    }
}

/// A random UUID (version 4), which is what other proxies put there.
fn new_request_id() -> HeaderValue {
    let mut id = Random::trace().to_be_bytes();
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    hex::write(&id[0..4], &mut text[0..8]);
    hex::write(&id[4..6], &mut text[9..13]);
    hex::write(&id[6..8], &mut text[14..18]);
    hex::write(&id[8..10], &mut text[19..23]);
    hex::write(&id[10..16], &mut text[24..36]);
    hex::header(&text)
}

/// Fast random ids. Two generators per thread, each seeded with its own 64 bits from the operating system: a
/// single 64-bit state would let two of many proxies walk the same sequence of 128-bit trace ids.
struct Random;

thread_local! {
    static RANDOM: RefCell<[fastrand::Rng; 2]> = {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        // A UUID fixes six bits; the second one fills them in.
        let (more, again) = uuid::Uuid::new_v4().as_u64_pair();
        RefCell::new([
            fastrand::Rng::with_seed(high ^ more.rotate_left(32)),
            fastrand::Rng::with_seed(low ^ again.rotate_left(32)),
        ])
    };
}

impl Random {
    fn trace() -> u128 {
        RANDOM.with_borrow_mut(|[high, low]| {
            // Zero is not a valid id.
            (u128::from(high.u64(..)) << 64 | u128::from(low.u64(..))).max(1)
        })
    }

    fn span() -> u64 {
        RANDOM.with_borrow_mut(|[high, _]| high.u64(1..))
    }
}

#[cfg(test)]
mod tests;
