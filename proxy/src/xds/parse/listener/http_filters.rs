//! The HTTP filters of a listener: which are known, and what they say for all routes.
//!
//! What a route says to a filter stands with the route. Here a filter is accepted if it is silent by itself, which is what
//! makes room for the routes to speak, or refused by the field that is not.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::{
    AdaptiveConcurrency, GradientControllerConfig, adaptive_concurrency::ConcurrencyControllerConfig,
    gradient_controller_config::MinimumRttCalculationParams,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter::ConfigType,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use http::StatusCode;

use super::super::{AGE, Invalid, decode};
use super::{access, is, route};
use crate::route::policies::{Gradient, MinRtt};

/// What a filter says by itself.
pub(super) enum Said {
    /// Who may call.
    Access(access::Filter),
    /// A limit on concurrency.
    Gradient(Gradient),
}

/// Reads one filter; few have something to say by themselves.
pub(super) fn read(filter: &HttpFilter, place: &str) -> Result<Option<Said>, Invalid> {
    let unknown = || Err(Invalid::unsupported(place, format!("HTTP filter {:?}", filter.name)));
    if filter.disabled {
        return Ok(None);
    }
    let config = match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        Some(ConfigType::ConfigDiscovery(_)) | None if filter.is_optional => return Ok(None),
        Some(ConfigType::ConfigDiscovery(_)) | None => return unknown(),
    };
    let place = format!("{place}.typed_config");
    if is::<Router>(config) || is::<Cors>(config) {
        Ok(None)
    } else if is::<HttpFault>(config) {
        let fault = route::fault(&decode(config, &place)?, &place)?;
        for (share, field) in
            [(fault.delay.map(|(_, share)| share), "delay"), (fault.abort.map(|(_, share)| share), "abort")]
        {
            if share.is_some_and(|share| !share.is_none()) {
                return Err(Invalid::unsupported(format!("{place}.{field}"), "a fault for all routes"));
            }
        }
        Ok(None)
    } else if is::<LocalRateLimit>(config) {
        match route::rate_limit(&decode(config, &place)?, &place)? {
            None => Ok(None),
            Some(_) => Err(Invalid::unsupported(format!("{place}.token_bucket"), "a limit for all routes")),
        }
    } else if is::<AdaptiveConcurrency>(config) {
        Ok(gradient(&decode(config, &place)?, &place)?.map(Said::Gradient))
    } else if is::<Rbac>(config) {
        Ok(Some(Said::Access(access::http(&decode(config, &place)?, &place)?)))
    } else if filter.is_optional {
        Ok(None)
    } else {
        unknown()
    }
}

fn gradient(filter: &AdaptiveConcurrency, place: &str) -> Result<Option<Gradient>, Invalid> {
    let enabled = filter.enabled.as_ref().and_then(|flag| flag.default_value.as_ref());
    if enabled.is_some_and(|enabled| !enabled.value) {
        return Ok(None);
    }
    let Some(ConcurrencyControllerConfig::GradientControllerConfig(config)) =
        &filter.concurrency_controller_config
    else {
        return Err(Invalid::missing(format!("{place}.gradient_controller_config")));
    };
    let place = format!("{place}.gradient_controller_config");
    let status = filter.concurrency_limit_exceeded_status.as_ref();
    let status = status.and_then(|status| u16::try_from(status.code).ok()).filter(|code| *code >= 400);
    let limits = config.concurrency_limit_params.as_ref();
    let limits = limits.ok_or_else(|| Invalid::missing(format!("{place}.concurrency_limit_params")))?;
    let interval = format!("{place}.concurrency_limit_params.concurrency_update_interval");
    let update_interval = positive(limits.concurrency_update_interval.as_ref(), &interval)?
        .ok_or_else(|| Invalid::missing(interval))?;
    let calculation = config.min_rtt_calc_params.as_ref();
    let calculation = calculation.ok_or_else(|| Invalid::missing(format!("{place}.min_rtt_calc_params")))?;
    let limit_max = limits.max_concurrency_limit.as_ref().map_or(1000, |max| max.value);
    let limit_min = calculation.min_concurrency.as_ref().map_or(3, |min| min.value);
    if limit_min == 0 || limit_max < limit_min {
        let field = format!("{place}.concurrency_limit_params.max_concurrency_limit");
        return Err(Invalid::value(
            field,
            &limit_max.to_string(),
            "is less than the least, or that is nothing",
        ));
    }
    Ok(Some(Gradient {
        percentile_per_mille: percentile(config),
        limit_max,
        update_interval,
        min_rtt: min_rtt(calculation, &format!("{place}.min_rtt_calc_params"))?,
        limit_min,
        buffer_per_mille: per_mille(calculation.buffer.as_ref(), 250),
        status: status
            .and_then(|code| StatusCode::from_u16(code).ok())
            .unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
    }))
}

fn percentile(config: &GradientControllerConfig) -> u16 {
    per_mille(config.sample_aggregate_percentile.as_ref(), 500)
}

fn min_rtt(params: &MinimumRttCalculationParams, place: &str) -> Result<MinRtt, Invalid> {
    if let Some(fixed) = positive(params.fixed_value.as_ref(), &format!("{place}.fixed_value"))? {
        return Ok(MinRtt::Fixed(fixed));
    }
    let interval = format!("{place}.interval");
    Ok(MinRtt::Measured {
        interval: positive(params.interval.as_ref(), &interval)?.ok_or_else(|| Invalid::missing(interval))?,
        requests: params.request_count.as_ref().map_or(50, |count| count.value.max(1)),
        jitter_per_mille: per_mille(params.jitter.as_ref(), 150),
    })
}

fn positive(
    value: Option<&envoy_types::pb::google::protobuf::Duration>,
    place: &str,
) -> Result<Option<Duration>, Invalid> {
    match route::duration(value, place)? {
        Some(duration) if duration.is_zero() => {
            Err(Invalid::value(place, "0s", "is not a positive duration"))
        }
        duration => Ok(duration.map(|duration| duration.min(AGE))),
    }
}

/// Whole thousandths; finer steps make no difference to a controller.
fn per_mille(percent: Option<&Percent>, unset: u16) -> u16 {
    percent.map_or(unset, |percent| (percent.value * 10.0).round().clamp(0.0, 1000.0) as u16)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::gradient_controller_config::ConcurrencyLimitCalculationParams;
    use envoy_types::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};

    use super::*;
    use crate::policy::adaptive::Adaptive;

    #[test]
    fn an_interval_without_end_is_one_that_can_be_reckoned_with() {
        let endless = Some(ProtoDuration { seconds: i64::MAX, nanos: 0 });
        let config = GradientControllerConfig {
            concurrency_limit_params: Some(ConcurrencyLimitCalculationParams {
                concurrency_update_interval: endless,
                ..Default::default()
            }),
            min_rtt_calc_params: Some(MinimumRttCalculationParams {
                interval: endless,
                request_count: Some(UInt32Value { value: 1 }),
                jitter: Some(Percent { value: f64::INFINITY }),
                buffer: Some(Percent { value: f64::NAN }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let filter = AdaptiveConcurrency {
            concurrency_controller_config: Some(ConcurrencyControllerConfig::GradientControllerConfig(
                config,
            )),
            ..Default::default()
        };
        let settings = gradient(&filter, "").expect("odd, but allowed").expect("on");
        let now = Instant::now();
        let mut adaptive = Adaptive::new(settings, now);
        for _ in 0..3 {
            let begun = adaptive.begin(now).expect("room");
            adaptive.end(begun, now, 0.99);
        }
    }
}
