//! Counts by small key, and latency distributions made of them.
//!
//! A [`Histogram`] is a sparse exponential histogram at [`wire::histogram::SCALE`](weft_wire::histogram::SCALE):
//! merging is exact and commutative, so a quantile over a hundred sidecars is as good as over one. Sums are kept
//! in whole microseconds because adding floats depends on the order.
//! Invariant: keys are sorted and no count is zero, so equal contents are equal values.

use weft_wire::histogram as shape;

/// Counts by key, sorted by key. Additions saturate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally<K>(Vec<(K, u32)>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord + Copy> Tally<K> {
    /// Adds `count` to `key`.
    pub fn add(&mut self, key: K, count: u32) {
        if count == 0 {
            return;
        }
        match self.0.binary_search_by_key(&key, |entry| entry.0) {
            Ok(position) => self.0[position].1 = self.0[position].1.saturating_add(count),
            Err(position) => self.0.insert(position, (key, count)),
        }
    }

    /// Takes `count` from `key`, at most what is there.
    pub fn take(&mut self, key: K, count: u32) {
        if let Ok(position) = self.0.binary_search_by_key(&key, |entry| entry.0) {
            self.0[position].1 = self.0[position].1.saturating_sub(count);
            if self.0[position].1 == 0 {
                self.0.remove(position);
            }
        }
    }

    /// Adds everything in `other`.
    pub fn merge(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        for &(key, count) in &other.0 {
            self.add(key, count);
        }
    }

    /// Takes everything in `other`.
    pub fn subtract(&mut self, other: &Self) {
        for &(key, count) in &other.0 {
            self.take(key, count);
        }
    }

    /// The sum of all counts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|&(_, count)| u64::from(count)).sum()
    }

    /// Keys and counts, by key.
    pub fn iter(&self) -> impl Iterator<Item = (K, u32)> + '_ {
        self.0.iter().copied()
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A distribution of durations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: Tally<i16>,
    sum_micros: u64,
}

impl Histogram {
    /// A distribution of `count` durations in bucket `index`, which is clamped to the range of the shape.
    pub fn add(&mut self, index: i32, count: u32) {
        const LOWEST: i32 = shape::EXPONENT_MIN << shape::SCALE;
        const HIGHEST: i32 = (shape::EXPONENT_MAX << shape::SCALE) - 1;
        let index = index.clamp(LOWEST, HIGHEST);
        // The clamp makes the conversion lossless: -272 ..= 143.
        self.buckets.add(i16::try_from(index).unwrap_or_default(), count);
    }

    /// Adds to the sum of all durations; what is not a sane number of seconds adds nothing.
    pub fn add_sum(&mut self, seconds: f64) {
        if seconds.is_finite() && seconds > 0.0 {
            // Saturating float-to-int conversion.
            self.sum_micros = self.sum_micros.saturating_add((seconds * 1e6).round() as u64);
        }
    }

    /// Adds everything in `other`.
    pub fn merge(&mut self, other: &Self) {
        self.buckets.merge(&other.buckets);
        self.sum_micros = self.sum_micros.saturating_add(other.sum_micros);
    }

    /// Takes everything in `other`.
    pub fn subtract(&mut self, other: &Self) {
        self.buckets.subtract(&other.buckets);
        self.sum_micros = self.sum_micros.saturating_sub(other.sum_micros);
    }

    /// Number of durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.total()
    }

    /// Buckets and counts, by bucket.
    pub fn buckets(&self) -> impl Iterator<Item = (i16, u32)> + '_ {
        self.buckets.iter()
    }

    /// The sum of all durations in microseconds.
    #[must_use]
    pub const fn sum_micros(&self) -> u64 {
        self.sum_micros
    }

    /// Sets the sum of all durations in microseconds, when reading back what was stored.
    pub const fn set_sum_micros(&mut self, micros: u64) {
        self.sum_micros = micros;
    }

    /// The mean in seconds.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum_micros as f64 / 1e6 / count as f64)
    }

    /// The duration in seconds that `quantile` (0 to 1) of all durations do not exceed.
    ///
    /// Within a bucket durations are taken to be spread evenly over its *logarithm*, the same assumption that
    /// made the bucket; the error is at most half a bucket, 2.2 %.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = quantile.clamp(0.0, 1.0) * count as f64;
        let mut below = 0.0;
        let mut last = None;
        for (index, in_bucket) in self.buckets.iter() {
            let in_bucket = f64::from(in_bucket);
            if below + in_bucket >= rank {
                let fraction = ((rank - below) / in_bucket).clamp(0.0, 1.0);
                let exponent = (f64::from(index) + fraction) / f64::from(1 << shape::SCALE);
                return Some(exponent.exp2());
            }
            below += in_bucket;
            last = Some(index);
        }
        last.map(|index| shape::upper_bound(i32::from(index)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(seconds: &[f64]) -> Histogram {
        let mut histogram = Histogram::default();
        for &value in seconds {
            histogram.add(shape::bucket(value), 1);
            histogram.add_sum(value);
        }
        histogram
    }

    #[test]
    fn an_empty_distribution_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(Histogram::default().mean(), None);
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_a_bucket_of_the_exact_one(
            mut seconds in proptest::collection::vec(1e-4f64..100.0, 1..400),
            quantile in 0.01f64..1.0,
        ) {
            let estimate = of(&seconds).quantile(quantile).expect("not empty");
            seconds.sort_by(f64::total_cmp);
            let rank = (quantile * seconds.len() as f64).ceil() as usize;
            let exact = seconds[rank.clamp(1, seconds.len()) - 1];
            let width = f64::exp2(1.0 / f64::from(1 << shape::SCALE)) * (1.0 + 1e-9);
            prop_assert!(estimate <= exact * width && estimate >= exact / width, "{estimate} {exact}");
        }

        #[test]
        fn merging_is_counting_together_and_subtracting_undoes_it(
            left in proptest::collection::vec(1e-4f64..100.0, 0..50),
            right in proptest::collection::vec(1e-4f64..100.0, 0..50),
        ) {
            let both: Vec<f64> = left.iter().chain(&right).copied().collect();
            let mut merged = of(&left);
            merged.merge(&of(&right));
            prop_assert_eq!(&merged, &of(&both));
            let mut swapped = of(&right);
            swapped.merge(&of(&left));
            prop_assert_eq!(&swapped, &merged);
            merged.subtract(&of(&right));
            prop_assert_eq!(merged, of(&left));
        }
    }
}
