//! Which traces came in lately: so that it can be told whether what an app sends carries one of them on.
//!
//! In: the trace of every inbound request. Out: whether the trace of an outbound one is among them. One table for all workers,
//! because the call that an app makes may reach another worker than the one that it was called through: atomics, no lock.
//!
//! Invariant: bounded at [`PLACES`]. Surprise: a trace keeps its place until another one needs it; then what carries it on is no
//! longer known as such. At a thousand requests in a second and a tenth of a second until the app's own call that happens to one in
//! eighty. Non-goal: certainty about one request; this is for shares of many.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry::TraceId;

/// Traces that are remembered: 64 KiB, taken when the first one comes.
const PLACES: usize = 8192;

/// The traces.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// By their last bits; 0 is nobody.
    places: OnceLock<Box<[AtomicU64]>>,
}

impl Heard {
    /// A request of this trace came in.
    pub(crate) fn note(&self, trace: TraceId) {
        let places = self.places.get_or_init(|| (0..PLACES).map(|_| AtomicU64::new(0)).collect());
        let mark = mark(trace);
        places[place(mark)].store(mark, Ordering::Relaxed);
    }

    /// Whether one of this trace did; `None` if none has come at all, so that there was nothing to carry on.
    pub(crate) fn knows(&self, trace: TraceId) -> Option<bool> {
        let mark = mark(trace);
        let places = self.places.get()?;
        Some(places[place(mark)].load(Ordering::Relaxed) == mark)
    }
}

/// The half of a trace id that is random in every format.
fn mark(trace: TraceId) -> u64 {
    (u128::from_be_bytes(trace.to_bytes()) as u64).max(1)
}

fn place(mark: u64) -> usize {
    (mark % PLACES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(id: u128) -> TraceId {
        TraceId::from(id)
    }

    #[test]
    fn what_came_in_is_known_until_its_place_is_needed() {
        let heard = Heard::default();
        assert_eq!(heard.knows(trace(7)), None, "nothing has come");
        heard.note(trace(7));
        assert_eq!(heard.knows(trace(7)), Some(true));
        assert_eq!(heard.knows(trace(8)), Some(false));
        heard.note(trace(7 + PLACES as u128));
        assert_eq!(heard.knows(trace(7)), Some(false), "another one has its place");
        assert_eq!(heard.knows(trace(0)), Some(false), "an empty place is nobody's");
    }
}
