//! How an app behaves, in numbers that belong to no edge: how its connections begin, and where its traces do.

use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, metric::Data};
use weft_wire::attribute;

use super::circuit::Pairs;
use super::{Decoder, point};
use crate::ingest::habits::Habits;

/// Whether a metric is of an app's habits.
pub(super) fn is_habit(name: &str) -> bool {
    matches!(name, attribute::DETECT_DURATION | attribute::TRACE_REQUESTS)
}

impl Decoder {
    /// Reads the points of such a metric. Nothing is said of foreign senders' points: they mean other things by them.
    pub(super) fn habits(&mut self, data: &Data, into: &mut Habits) {
        if !self.sidecar {
            return;
        }
        match data {
            Data::ExponentialHistogram(histogram) if is_delta(histogram.aggregation_temporality) => {
                let taken = self.take(histogram.data_points.len());
                for number in histogram.data_points.iter().take(taken) {
                    let timeout = Pairs(&number.attributes).text(attribute::DETECT_RESULT) == Some("timeout");
                    let timeouts = if timeout { number.count } else { 0 };
                    *into = into.and(Habits {
                        detected: number.count,
                        detect_timeouts: timeouts,
                        ..Habits::default()
                    });
                }
            }
            Data::Sum(sum) if is_delta(sum.aggregation_temporality) => {
                let taken = self.take(sum.data_points.len());
                for number in sum.data_points.iter().take(taken) {
                    let Some(count) = point::whole_number(number) else {
                        self.dropped.invalid += 1;
                        continue;
                    };
                    let origin = Pairs(&number.attributes).text(attribute::TRACE_ORIGIN);
                    // Who has not been called has nothing to carry on.
                    if origin == Some("unprompted") {
                        continue;
                    }
                    let of = |wanted| if origin == Some(wanted) { count } else { 0 };
                    let (carried, own) = (of("carried"), of("own"));
                    *into = into.and(Habits {
                        outbound: count,
                        outbound_carried: carried,
                        outbound_own: own,
                        ..Habits::default()
                    });
                }
            }
            _ => self.dropped.invalid += 1,
        }
    }
}

fn is_delta(temporality: i32) -> bool {
    temporality == AggregationTemporality::Delta as i32
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::metrics::v1::{
        ExponentialHistogram, ExponentialHistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, Sum, number_data_point,
    };
    use opentelemetry_proto::tonic::resource::v1::Resource;

    use super::*;
    use crate::ingest::decode::decode;

    fn text(key: &str, value: &str) -> KeyValue {
        let value = AnyValue { value: Some(Value::StringValue(value.into())) };
        KeyValue { key: key.into(), value: Some(value), ..KeyValue::default() }
    }

    fn metric(name: &str, data: Data) -> Metric {
        Metric { name: name.into(), data: Some(data), ..Metric::default() }
    }

    fn request() -> ExportMetricsServiceRequest {
        let looked = |result: &str, count| ExponentialHistogramDataPoint {
            attributes: vec![text(attribute::DETECT_RESULT, result)],
            count,
            ..ExponentialHistogramDataPoint::default()
        };
        let sent = |origin: &str, count| NumberDataPoint {
            attributes: vec![text(attribute::TRACE_ORIGIN, origin)],
            value: Some(number_data_point::Value::AsInt(count)),
            ..NumberDataPoint::default()
        };
        let delta = AggregationTemporality::Delta as i32;
        let detected = ExponentialHistogram {
            data_points: vec![looked("http1", 7), looked("timeout", 2)],
            aggregation_temporality: delta,
        };
        let traces = Sum {
            data_points: vec![sent("carried", 9), sent("own", 2), sent("new", 1), sent("unprompted", 5)],
            aggregation_temporality: delta,
            is_monotonic: true,
        };
        let metrics = vec![
            metric(attribute::DETECT_DURATION, Data::ExponentialHistogram(detected)),
            metric(attribute::TRACE_REQUESTS, Data::Sum(traces)),
        ];
        let resource = Resource {
            attributes: vec![
                text(attribute::SERVICE_NAMESPACE, "shop"),
                text(attribute::SERVICE_NAME, "web"),
            ],
            ..Resource::default()
        };
        let scope = ScopeMetrics { metrics, ..ScopeMetrics::default() };
        let of = ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![scope],
            ..ResourceMetrics::default()
        };
        ExportMetricsServiceRequest { resource_metrics: vec![of] }
    }

    #[test]
    fn a_sidecar_tells_its_apps_habits() {
        let decoded = decode(&request(), true);
        let habits: Vec<Habits> = decoded.groups.iter().map(|group| group.habits).collect();
        let wanted =
            Habits { detected: 9, detect_timeouts: 2, outbound: 12, outbound_carried: 9, outbound_own: 2 };
        assert_eq!((habits, decoded.dropped), (vec![wanted], Default::default()));
    }

    #[test]
    fn others_do_not() {
        let decoded = decode(&request(), false);
        assert_eq!((decoded.groups, decoded.dropped), (Vec::new(), Default::default()));
    }
}
