//! How long a request may take, whoever says so: the route, the caller's sidecar, the caller's gRPC library.
//!
//! In: the route's timeout and the request's headers. Out: the shortest of them, and what the next hop is told. Pure.
//! Invariant: what a caller grants is only ever shortened. Surprise: a timeout runs from the end of the request, not from
//! its beginning, as Envoy counts it: how long an upload takes is the caller's affair. Non-goal: keeping time.

use std::cell::RefCell;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use weft_wire::header::DEADLINE;

/// gRPC's own deadline.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Digits that gRPC allows in a timeout.
const GRPC_DIGITS_MAX: usize = 8;

/// The longest that a header can grant. Longer is as good as no bound, and must not overflow a clock.
const TIMEOUT_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// The units of `grpc-timeout`, finest first.
const GRPC_UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// The shortest of what the route and the caller allow; `None` = as long as it takes.
#[must_use]
pub fn shortest(route: Option<Duration>, headers: &HeaderMap, grpc: bool) -> Option<Duration> {
    let deadline = headers.get(DEADLINE).and_then(|value| read_deadline(value.as_bytes()));
    let grpc = headers.get(GRPC_TIMEOUT).filter(|_| grpc).and_then(|value| read_grpc(value.as_bytes()));
    [route, deadline, grpc].into_iter().flatten().min()
}

/// What was announced last, kept because most requests of a rule are told the same: a number is dearer to write than
/// a value is to share.
#[derive(Debug)]
pub struct Announced(RefCell<(u64, HeaderValue)>);

impl Default for Announced {
    fn default() -> Self {
        Self(RefCell::new((0, HeaderValue::from(0))))
    }
}

impl Announced {
    fn value(&self, millis: u64) -> HeaderValue {
        let mut last = self.0.borrow_mut();
        if last.0 != millis {
            *last = (millis, HeaderValue::from(millis));
        }
        last.1.clone()
    }
}

/// Tells the next hop what is left.
pub fn announce(headers: &mut HeaderMap, left: Duration, grpc: bool, last: &Announced) {
    let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    headers.insert(HeaderName::from_static(DEADLINE), last.value(millis));
    if grpc
        && let Some(value) = headers.get_mut(GRPC_TIMEOUT)
        && read_grpc(value.as_bytes()).is_none_or(|asked| left < asked)
    {
        *value = write_grpc(left);
    }
}

/// Whole milliseconds.
fn read_deadline(digits: &[u8]) -> Option<Duration> {
    Some(Duration::from_millis(number(digits)?).min(TIMEOUT_MAX))
}

/// `250m`: up to eight digits and a unit.
fn read_grpc(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.len() > GRPC_DIGITS_MAX {
        return None;
    }
    let (_, nanos) = GRPC_UNITS.iter().find(|(letter, _)| letter == unit)?;
    Some(Duration::from_nanos(number(digits)?.saturating_mul(*nanos)).min(TIMEOUT_MAX))
}

/// The finest unit in which eight digits are enough; rounded down, because a deadline only shrinks.
fn write_grpc(left: Duration) -> HeaderValue {
    let nanos = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
    let fits = |(_, unit): &&(u8, u64)| nanos / unit < 10_u64.pow(GRPC_DIGITS_MAX as u32);
    let (letter, unit) = GRPC_UNITS.iter().find(fits).unwrap_or(&GRPC_UNITS[GRPC_UNITS.len() - 1]);
    let text = format!("{}{}", nanos / unit, char::from(*letter));
    // Digits and a letter are always a header value.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("0n"))
}

/// Decimal digits and nothing else; saturating.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, &digit| {
        digit.is_ascii_digit().then(|| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_shortest_wins() {
        let both = headers(&[("x-weft-deadline", "300"), ("grpc-timeout", "200m")]);
        assert_eq!(shortest(Some(MS(500)), &both, true), Some(MS(200)));
        assert_eq!(shortest(Some(MS(500)), &both, false), Some(MS(300)), "not a gRPC call");
        assert_eq!(shortest(Some(MS(100)), &both, true), Some(MS(100)));
        assert_eq!(shortest(None, &headers(&[("x-weft-deadline", "300")]), false), Some(MS(300)));
        assert_eq!(shortest(None, &headers(&[]), true), None);
    }

    #[test]
    fn what_is_no_time_grants_nothing_and_takes_nothing() {
        for bad in ["", "m", "1", "1x", "-1S", "123456789S", " 1S", "1.5S"] {
            assert_eq!(read_grpc(bad.as_bytes()), None, "{bad}");
        }
        for bad in ["", "1.5", "-1", "1s", "+1"] {
            assert_eq!(read_deadline(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(read_deadline(b"99999999999999999999999"), Some(TIMEOUT_MAX));
    }

    #[test]
    fn the_next_hop_hears_what_is_left_and_never_more() {
        let last = Announced::default();
        let mut told = headers(&[("grpc-timeout", "5S")]);
        announce(&mut told, MS(1500), true, &last);
        assert_eq!(told["x-weft-deadline"], "1500");
        assert_eq!(told["grpc-timeout"], "1500000u");
        announce(&mut told, MS(4000), true, &last);
        assert_eq!(told["grpc-timeout"], "1500000u", "only ever shorter");
        let mut plain = headers(&[]);
        announce(&mut plain, MS(7), false, &last);
        assert!(!plain.contains_key("grpc-timeout"), "who did not speak gRPC does not begin to");
    }

    proptest! {
        #[test]
        fn a_written_timeout_reads_as_no_longer_and_hardly_shorter(nanos in 0_u64..20_000_000_000_000_000) {
            let left = Duration::from_nanos(nanos);
            let read = read_grpc(write_grpc(left).as_bytes()).unwrap();
            prop_assert!(read <= left);
            prop_assert!((left - read).as_nanos() <= left.as_nanos() / 100_000, "{left:?} as {read:?}");
        }
    }
}
