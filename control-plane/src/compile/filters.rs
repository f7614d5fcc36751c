//! HTTP filters: what stands in front of the router, and what routes say to it.
//!
//! Every filter but the router is inert by itself. A route, or a virtual host for all its routes, speaks to it by name.

use envoy_types::pb::envoy::config::core::v3::RuntimeFeatureFlag;
use envoy_types::pb::envoy::config::route::v3::{RateLimit as RateLimitActions, rate_limit};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{
    LocalRateLimitDescriptor, rate_limit_descriptor,
};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay};
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::{
    AdaptiveConcurrency, GradientControllerConfig, adaptive_concurrency, gradient_controller_config,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::{Cors as CorsFilter, CorsPolicy};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use envoy_types::pb::envoy::r#type::v3::TokenBucket;
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use gradient_controller_config::{ConcurrencyLimitCalculationParams, MinimumRttCalculationParams};
use prost::{Message, Name};

use super::defaults;
use super::proto::{any, duration, fraction, percent, runtime_fraction, uint32};
use super::route::matching;
use crate::world::Cors;
use crate::world::policy::{AbortStatus, Concurrency, Fault, RateKey, RateLimit};

/// Who may call from a page of another origin.
pub(super) const CORS: &str = "envoy.filters.http.cors";
/// Failures made on purpose.
pub(super) const FAULT: &str = "envoy.filters.http.fault";
/// How many requests are let in.
pub(super) const RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";
const CONCURRENCY: &str = "envoy.filters.http.adaptive_concurrency";
const ROUTER: &str = "envoy.filters.http.router";

/// What a caller's requests pass.
pub(super) fn outbound() -> Vec<HttpFilter> {
    vec![
        filter(CORS, &CorsFilter {}),
        filter(FAULT, &HttpFault::default()),
        filter(RATE_LIMIT, &inert_rate_limit()),
        filter(ROUTER, &Router::default()),
    ]
}

/// What requests to one's own app pass: first of all who may call.
pub(super) fn inbound(access: Vec<HttpFilter>, concurrency: Option<&Concurrency>) -> Vec<HttpFilter> {
    let mut filters = access;
    filters.push(filter(RATE_LIMIT, &inert_rate_limit()));
    filters.extend(concurrency.map(|limit| filter(CONCURRENCY, &adaptive_concurrency(limit))));
    filters.push(filter(ROUTER, &Router::default()));
    filters
}

fn filter<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    named(name, any(config))
}

pub(super) fn named(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// Prefix of the filter's counters, which it must have.
fn stat_prefix() -> String {
    "local_rate_limit".to_owned()
}

fn inert_rate_limit() -> LocalRateLimit {
    LocalRateLimit { stat_prefix: stat_prefix(), ..Default::default() }
}

/// A token bucket for whoever the limit tells apart, beside the route that it stands on.
pub(super) fn rate_limit(limit: &RateLimit) -> LocalRateLimit {
    let bucket = TokenBucket {
        max_tokens: limit.burst,
        tokens_per_fill: Some(uint32(limit.requests)),
        fill_interval: Some(duration(limit.per)),
    };
    let all = LocalRateLimit {
        stat_prefix: stat_prefix(),
        token_bucket: Some(bucket),
        filter_enabled: Some(runtime_fraction(1, 1)),
        filter_enforced: Some(runtime_fraction(1, 1)),
        rate_limited_as_resource_exhausted: true,
        ..Default::default()
    };
    if !limit.by.contains(&RateKey::Caller) {
        return all;
    }
    let address = rate_limit::action::ActionSpecifier::RemoteAddress(rate_limit::action::RemoteAddress {});
    let action = rate_limit::Action { action_specifier: Some(address) };
    let entry = rate_limit_descriptor::Entry { key: "remote_address".to_owned(), value: String::new() };
    LocalRateLimit {
        // A descriptor without a value stands for each value there is.
        descriptors: vec![LocalRateLimitDescriptor {
            entries: vec![entry],
            token_bucket: Some(bucket),
            ..Default::default()
        }],
        rate_limits: vec![RateLimitActions { actions: vec![action], ..Default::default() }],
        max_dynamic_descriptors: Some(uint32(defaults::CALLERS_MAX)),
        // The callers' buckets are all there is; the common one would be a second limit for all together.
        always_consume_default_token_bucket: Some(BoolValue { value: false }),
        ..all
    }
}

pub(super) fn fault(fault: &Fault) -> HttpFault {
    let delay = fault.delay.as_ref().map(|delay| FaultDelay {
        percentage: Some(fraction(delay.share.0, defaults::MILLION)),
        fault_delay_secifier: Some(fault_delay::FaultDelaySecifier::FixedDelay(duration(delay.fixed))),
    });
    let abort = fault.abort.as_ref().map(|abort| FaultAbort {
        percentage: Some(fraction(abort.share.0, defaults::MILLION)),
        error_type: Some(match abort.status {
            AbortStatus::Http(status) => fault_abort::ErrorType::HttpStatus(status.into()),
            AbortStatus::Grpc(status) => fault_abort::ErrorType::GrpcStatus(status),
        }),
        ..Default::default()
    });
    HttpFault { delay, abort, headers: matching::headers(&fault.headers).collect(), ..Default::default() }
}

pub(super) fn cors(cors: &Cors) -> CorsPolicy {
    let list = |names: &[Box<str>]| names.join(",");
    CorsPolicy {
        allow_origin_string_match: cors.origins.iter().map(|origin| origin_match(origin)).collect(),
        allow_methods: list(&cors.methods),
        allow_headers: list(&cors.headers),
        expose_headers: list(&cors.expose),
        max_age: cors.max_age.as_secs().to_string(),
        allow_credentials: Some(BoolValue { value: cors.credentials }),
        // By the API the mesh answers such a preflight itself, without a word of CORS.
        forward_not_matching_preflights: Some(BoolValue { value: false }),
        ..Default::default()
    }
}

/// An origin; a star in it is any number of characters, dots included.
fn origin_match(origin: &str) -> StringMatcher {
    let pattern = if origin.contains('*') {
        let parts: Vec<String> = origin.split('*').map(regex::escape).collect();
        string_matcher::MatchPattern::SafeRegex(matching::regex(parts.join(".*")))
    } else {
        string_matcher::MatchPattern::Exact(origin.to_owned())
    };
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

fn adaptive_concurrency(limit: &Concurrency) -> AdaptiveConcurrency {
    let gradient = GradientControllerConfig {
        sample_aggregate_percentile: Some(percent(limit.sample_percentile)),
        concurrency_limit_params: Some(ConcurrencyLimitCalculationParams {
            max_concurrency_limit: Some(uint32(limit.max)),
            concurrency_update_interval: Some(duration(limit.interval)),
            ..Default::default()
        }),
        min_rtt_calc_params: Some(MinimumRttCalculationParams {
            interval: Some(duration(limit.min_rtt_interval)),
            request_count: Some(uint32(limit.min_rtt_requests)),
            jitter: Some(percent(limit.jitter_percent)),
            min_concurrency: Some(uint32(limit.min_concurrency)),
            buffer: Some(percent(limit.buffer_percent)),
            ..Default::default()
        }),
    };
    AdaptiveConcurrency {
        enabled: Some(RuntimeFeatureFlag {
            default_value: Some(BoolValue { value: true }),
            // The field is required, the key is not looked up here.
            runtime_key: "weft.adaptive_concurrency".to_owned(),
        }),
        concurrency_controller_config: Some(
            adaptive_concurrency::ConcurrencyControllerConfig::GradientControllerConfig(gradient),
        ),
        ..Default::default()
    }
}
