//! Histogram shapes that both sides must agree on.
//!
//! `/metrics` uses [`BOUNDS_SECONDS`]; reports use exponential histograms at [`SCALE`], whose buckets merge
//! exactly, so a quantile over a hundred sidecars is as good as one over a single sidecar.

/// OpenTelemetry's advised bounds for HTTP durations plus 1 ms and 2.5 ms, in seconds.
/// Source: OpenTelemetry semantic conventions, "HTTP metrics".
pub const BOUNDS_SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Scale of exponential histograms: base = 2^(2^-SCALE) ≈ 1.0443, so a bucket's midpoint is within 2.2 % of
/// any value in it. Source: OpenTelemetry metrics data model, "ExponentialHistogram".
pub const SCALE: i32 = 4;

/// Durations are clamped to this range before they are put in a bucket: 2^-17 s ≈ 7.6 µs …
pub const EXPONENT_MIN: i32 = -17;
/// … to 2^9 s = 512 s. Together with [`SCALE`] this bounds a histogram to 416 buckets.
pub const EXPONENT_MAX: i32 = 9;

/// Index of the bucket `(base^index, base^(index+1)]` that holds `seconds`.
///
/// Values outside the clamp range fall in the first or last bucket, so a histogram never loses a count.
#[must_use]
pub fn bucket(seconds: f64) -> i32 {
    let per_octave = 1 << SCALE;
    let lowest = EXPONENT_MIN * per_octave;
    let highest = EXPONENT_MAX * per_octave - 1;
    if seconds.is_nan() || seconds <= 0.0 {
        return lowest;
    }
    // The upper bound is inclusive, hence ceil - 1.
    let index = (seconds.log2() * f64::from(per_octave)).ceil() - 1.0;
    // Saturating float-to-int conversion, then the clamp.
    (index as i32).clamp(lowest, highest)
}

/// Upper bound of bucket `index`, in seconds.
#[must_use]
pub fn upper_bound(index: i32) -> f64 {
    f64::exp2(f64::from(index + 1) / f64::from(1 << SCALE))
}

/// Number of buckets between the clamps.
pub const BUCKETS: usize = ((EXPONENT_MAX - EXPONENT_MIN) as usize) << SCALE;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_duration_lies_within_its_bucket(seconds in 1e-5f64..500.0) {
            let index = bucket(seconds);
            prop_assert!(seconds <= upper_bound(index) * (1.0 + 1e-12));
            prop_assert!(seconds > upper_bound(index - 1) * (1.0 - 1e-12));
        }
    }

    #[test]
    fn values_outside_the_range_are_clamped_not_lost() {
        assert_eq!(bucket(0.0), EXPONENT_MIN << SCALE);
        assert_eq!(bucket(f64::NAN), EXPONENT_MIN << SCALE);
        assert_eq!(bucket(1e9), (EXPONENT_MAX << SCALE) - 1);
    }
}
