//! One data point of any kind: a whole number, or durations in our buckets.
//!
//! Histograms of any scale, and such with explicit bounds, are converted to the one shape that the graph merges.

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint, number_data_point,
};
use weft_wire::histogram as shape;

use crate::graph::Histogram;

/// Buckets of one histogram. Ours have at most 416, the OpenTelemetry SDKs' 160.
const BUCKETS_MAX: usize = 1_024;

/// A point of any kind.
pub(super) struct Point<'a> {
    pub(super) attributes: &'a [KeyValue],
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) value: Reading,
}

/// What a point says; `None` where the value makes no sense.
pub(super) enum Reading {
    Number(Option<u64>),
    Durations(Option<Histogram>),
}

impl<'a> Point<'a> {
    pub(super) fn of_exponential(point: &'a ExponentialHistogramDataPoint) -> Self {
        let value = Reading::Durations(exponential(point));
        Self {
            attributes: &point.attributes,
            start: point.start_time_unix_nano,
            end: point.time_unix_nano,
            value,
        }
    }

    pub(super) fn of_explicit(point: &'a HistogramDataPoint) -> Self {
        let value = Reading::Durations(explicit(point));
        Self {
            attributes: &point.attributes,
            start: point.start_time_unix_nano,
            end: point.time_unix_nano,
            value,
        }
    }

    pub(super) fn of_number(point: &'a NumberDataPoint) -> Self {
        let value = Reading::Number(whole_number(point));
        Self {
            attributes: &point.attributes,
            start: point.start_time_unix_nano,
            end: point.time_unix_nano,
            value,
        }
    }
}

pub(super) fn whole_number(point: &NumberDataPoint) -> Option<u64> {
    match point.value? {
        number_data_point::Value::AsInt(value) => u64::try_from(value).ok(),
        // Saturating float-to-int conversion.
        number_data_point::Value::AsDouble(value) => {
            (value.is_finite() && value >= 0.0).then_some(value as u64)
        }
    }
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Any scale to ours. A finer one merges exactly; the buckets of a coarser one count in their middle.
fn exponential(point: &ExponentialHistogramDataPoint) -> Option<Histogram> {
    // OpenTelemetry's range of scales.
    let scale = Some(point.scale).filter(|scale| (-10..=20).contains(scale))?;
    let mut durations = Histogram::default();
    durations.add(i32::MIN, small(point.zero_count));
    if let Some(positive) = &point.positive {
        if positive.bucket_counts.len() > BUCKETS_MAX {
            return None;
        }
        for (position, &count) in positive.bucket_counts.iter().enumerate() {
            let index = i64::from(positive.offset) + position as i64;
            let index = if scale >= shape::SCALE {
                index >> (scale - shape::SCALE)
            } else {
                let width = 1i64 << (shape::SCALE - scale);
                index.saturating_mul(width).saturating_add(width / 2)
            };
            let index = i32::try_from(index).unwrap_or(if index < 0 { i32::MIN } else { i32::MAX });
            durations.add(index, small(count));
        }
    }
    durations.add_sum(point.sum.unwrap_or_default());
    Some(durations)
}

/// Explicit bounds to exponential buckets: each count goes to the middle of its bucket.
fn explicit(point: &HistogramDataPoint) -> Option<Histogram> {
    let (counts, bounds) = (&point.bucket_counts, &point.explicit_bounds);
    if counts.len() > BUCKETS_MAX
        || counts.len() != bounds.len() + 1
        || bounds.iter().any(|bound| !bound.is_finite())
    {
        return None;
    }
    let mut durations = Histogram::default();
    for (position, &count) in counts.iter().enumerate() {
        let lower = position.checked_sub(1).map(|below| bounds[below]);
        let middle = match (lower, bounds.get(position)) {
            (Some(lower), Some(&upper)) if lower > 0.0 => (lower * upper.max(lower)).sqrt(),
            (_, Some(&upper)) => upper / 2.0,
            (Some(lower), None) => lower,
            (None, None) => point.sum.unwrap_or_default() / point.count.max(1) as f64,
        };
        durations.add(shape::bucket(middle), small(count));
    }
    durations.add_sum(point.sum.unwrap_or_default());
    Some(durations)
}
