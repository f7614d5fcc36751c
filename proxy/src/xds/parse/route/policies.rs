//! Policies of a route: retries, hashing, mirrors, faults, rate limits.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::{
    self as proto, rate_limit::action::ActionSpecifier, retry_policy, route_action,
    route_action::hash_policy::PolicySpecifier,
};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{
    FaultDelay, fault_delay::FaultDelaySecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{
    FaultAbort, HttpFault, fault_abort::ErrorType,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::r#type::v3::TokenBucket as ProtoBucket;
use envoy_types::pb::google::protobuf::Duration as ProtoDuration;
use http::StatusCode;

use super::matches::{header_name, percent, plain_headers, runtime_fraction};
use super::{Invalid, refuse};
use crate::http::class::GrpcStatus;
use crate::policy::fault::{Abort, FaultPolicy};
use crate::policy::limit::TokenBucket;
use crate::policy::retry::{Backoff, RetryOn, RetryPolicy};
use crate::route::fraction::Fraction;
use crate::route::hash::{Cookie, HashOn, HashPolicy};
use crate::route::policies::LimitSpec;
use crate::route::rule::MirrorDraft;

/// Envoy's shortest interval between fills of a token bucket.
const FILL_MIN: Duration = Duration::from_millis(50);
/// Callers that Envoy tells apart where nothing is said.
const CALLERS_DEFAULT: u32 = 20;
/// The predicate that keeps a retry away from where the request has been, which this proxy does anyway.
const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";

/// A duration that may be absent but not nonsense.
pub(in super::super) fn duration(
    value: Option<&ProtoDuration>,
    place: &str,
) -> Result<Option<Duration>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Some(Duration::new(seconds, nanos))),
        _ => {
            let text = format!("{}s {}ns", value.seconds, value.nanos);
            Err(Invalid::value(place, &text, "is not a duration"))
        }
    }
}

pub(super) fn status(code: u32, place: &str) -> Result<StatusCode, Invalid> {
    let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    // A status below 200 would not be an answer.
    status
        .filter(|status| (200..600).contains(&status.as_u16()))
        .ok_or_else(|| Invalid::value(place, &code.to_string(), "is not the status of an answer"))
}

/// `None` when the policy asks for no retry.
pub(super) fn retry(policy: &proto::RetryPolicy, place: &str) -> Result<Option<RetryPolicy>, Invalid> {
    let elsewhere = policy.retry_host_predicate.iter().all(|predicate| match &predicate.config_type {
        Some(retry_policy::retry_host_predicate::ConfigType::TypedConfig(config)) => {
            config.type_url.ends_with(PREVIOUS_HOSTS)
        }
        None => false,
    });
    refuse(
        place,
        &[
            (policy.per_try_idle_timeout.is_some(), "per_try_idle_timeout", "a time limit on silence"),
            (policy.retry_priority.is_some(), "retry_priority", "a plugin"),
            (!elsewhere, "retry_host_predicate", "a plugin"),
            (!policy.retry_options_predicates.is_empty(), "retry_options_predicates", "a plugin"),
            (
                policy.rate_limited_retry_back_off.is_some(),
                "rate_limited_retry_back_off",
                "a back-off by header",
            ),
            (!policy.retriable_headers.is_empty(), "retriable_headers", "a retry by header"),
            (!policy.retriable_request_headers.is_empty(), "retriable_request_headers", "a retry by header"),
            (policy.refresh_cluster_on_retry, "refresh_cluster_on_retry", "another cluster for a retry"),
        ],
    )?;
    let on = RetryOn::parse(&policy.retry_on)
        .map_err(|unknown| Invalid::unsupported(format!("{place}.retry_on"), unknown.to_string()))?;
    let codes = policy.retriable_status_codes.iter().enumerate();
    let codes =
        codes.map(|(position, code)| status(*code, &format!("{place}.retriable_status_codes[{position}]")));
    let status_codes = codes.collect::<Result<_, _>>()?;
    let per_try_timeout = duration(policy.per_try_timeout.as_ref(), &format!("{place}.per_try_timeout"))?;
    let retries = policy.num_retries.as_ref().map_or(1, |retries| retries.value);
    Ok((on != RetryOn::NONE && retries > 0).then_some(RetryPolicy {
        on,
        status_codes,
        retries,
        per_try_timeout: per_try_timeout.filter(|timeout| !timeout.is_zero()),
        backoff: backoff(policy, &format!("{place}.retry_back_off"))?,
    }))
}

fn backoff(policy: &proto::RetryPolicy, place: &str) -> Result<Backoff, Invalid> {
    let Some(backoff) = &policy.retry_back_off else { return Ok(Backoff::default()) };
    let base = duration(backoff.base_interval.as_ref(), &format!("{place}.base_interval"))?;
    let base = base.ok_or_else(|| Invalid::missing(format!("{place}.base_interval")))?;
    let max = duration(backoff.max_interval.as_ref(), &format!("{place}.max_interval"))?;
    if max.is_some_and(|max| max < base) {
        let text = format!("{max:?}");
        return Err(Invalid::value(format!("{place}.max_interval"), &text, "is less than base_interval"));
    }
    Ok(Backoff::new(base, max))
}

pub(super) fn hash(policies: &[route_action::HashPolicy], place: &str) -> Result<Box<[HashPolicy]>, Invalid> {
    let mut read = Vec::with_capacity(policies.len());
    for (position, policy) in policies.iter().enumerate() {
        let place = format!("{place}[{position}]");
        let on = match &policy.policy_specifier {
            Some(PolicySpecifier::Header(header)) => {
                let rewrite = header.regex_rewrite.is_some();
                refuse(&place, &[(rewrite, "header.regex_rewrite", "a part of a header")])?;
                HashOn::Header(header_name(&header.header_name, &format!("{place}.header.header_name"))?)
            }
            Some(PolicySpecifier::Cookie(cookie)) if !cookie.name.is_empty() => {
                HashOn::Cookie(read_cookie(cookie, &format!("{place}.cookie"))?)
            }
            // Without the source there is nothing to hash, and Envoy does not either.
            Some(PolicySpecifier::ConnectionProperties(properties)) if !properties.source_ip => continue,
            Some(PolicySpecifier::ConnectionProperties(_)) => HashOn::Source,
            Some(PolicySpecifier::QueryParameter(parameter)) => HashOn::Query(parameter.name.as_str().into()),
            Some(PolicySpecifier::Cookie(_)) => return Err(Invalid::missing(format!("{place}.cookie.name"))),
            Some(PolicySpecifier::FilterState(_)) => {
                return Err(Invalid::unsupported(format!("{place}.filter_state"), "a hash of filter state"));
            }
            None => return Err(Invalid::missing(format!("{place}.header"))),
        };
        read.push(HashPolicy { on, terminal: policy.terminal });
    }
    Ok(read.into())
}

fn read_cookie(cookie: &route_action::hash_policy::Cookie, place: &str) -> Result<Cookie, Invalid> {
    let attribute = |attribute: &route_action::hash_policy::CookieAttribute| {
        (attribute.name.as_str().into(), attribute.value.as_str().into())
    };
    Ok(Cookie {
        name: cookie.name.as_str().into(),
        ttl: duration(cookie.ttl.as_ref(), &format!("{place}.ttl"))?,
        path: cookie.path.as_str().into(),
        attributes: cookie.attributes.iter().map(attribute).collect(),
    })
}

pub(super) fn mirrors(
    policies: &[route_action::RequestMirrorPolicy],
    place: &str,
) -> Result<Vec<MirrorDraft>, Invalid> {
    let mut read = Vec::with_capacity(policies.len());
    for (position, policy) in policies.iter().enumerate() {
        let place = format!("{place}[{position}]");
        refuse(
            &place,
            &[
                (!policy.cluster_header.is_empty(), "cluster_header", "a cluster named by a header"),
                (
                    !policy.request_headers_mutations.is_empty(),
                    "request_headers_mutations",
                    "other headers for a copy",
                ),
                (!policy.host_rewrite_literal.is_empty(), "host_rewrite_literal", "another host for a copy"),
            ],
        )?;
        if policy.cluster.is_empty() {
            return Err(Invalid::missing(format!("{place}.cluster")));
        }
        let share = runtime_fraction(
            policy.runtime_fraction.as_ref(),
            Fraction::ALL,
            &format!("{place}.runtime_fraction"),
        )?;
        read.push(MirrorDraft {
            cluster: policy.cluster.as_str().into(),
            share,
            plain_host: policy.disable_shadow_host_suffix_append,
        });
    }
    Ok(read)
}

pub(in super::super) fn fault(fault: &HttpFault, place: &str) -> Result<FaultPolicy, Invalid> {
    refuse(
        place,
        &[
            (!fault.upstream_cluster.is_empty(), "upstream_cluster", "a fault for one cluster"),
            (!fault.downstream_nodes.is_empty(), "downstream_nodes", "a fault for some nodes"),
            (fault.response_rate_limit.is_some(), "response_rate_limit", "a slow response"),
            (fault.max_active_faults.is_some(), "max_active_faults", "a bound on faults of its own"),
        ],
    )?;
    Ok(FaultPolicy {
        delay: fault.delay.as_ref().map(|delay| read_delay(delay, &format!("{place}.delay"))).transpose()?,
        abort: fault.abort.as_ref().map(|abort| read_abort(abort, &format!("{place}.abort"))).transpose()?,
        headers: plain_headers(&fault.headers, &format!("{place}.headers"))?,
    })
}

fn read_delay(delay: &FaultDelay, place: &str) -> Result<(Duration, Fraction), Invalid> {
    let share = percent(delay.percentage.as_ref(), Fraction::NONE, &format!("{place}.percentage"))?;
    match &delay.fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(fixed)) => {
            let fixed = duration(Some(fixed), &format!("{place}.fixed_delay"))?.unwrap_or_default();
            Ok((fixed, share))
        }
        Some(FaultDelaySecifier::HeaderDelay(_)) => {
            Err(Invalid::unsupported(format!("{place}.header_delay"), "a fault that the caller asks for"))
        }
        None => Err(Invalid::missing(format!("{place}.fixed_delay"))),
    }
}

fn read_abort(abort: &FaultAbort, place: &str) -> Result<(Abort, Fraction), Invalid> {
    refuse(place, &[(!abort.response_body.is_empty(), "response_body", "a body of its own")])?;
    let share = percent(abort.percentage.as_ref(), Fraction::NONE, &format!("{place}.percentage"))?;
    let how = match &abort.error_type {
        Some(ErrorType::HttpStatus(code)) => Abort::Http(status(*code, &format!("{place}.http_status"))?),
        Some(ErrorType::GrpcStatus(code)) => match u8::try_from(*code) {
            Ok(code) if code <= 16 => Abort::Grpc(GrpcStatus::from_code(code)),
            _ => {
                let field = format!("{place}.grpc_status");
                return Err(Invalid::value(field, &code.to_string(), "is not a gRPC status"));
            }
        },
        Some(ErrorType::HeaderAbort(_)) => {
            let field = format!("{place}.header_abort");
            return Err(Invalid::unsupported(field, "a fault that the caller asks for"));
        }
        None => return Err(Invalid::missing(format!("{place}.http_status"))),
    };
    Ok((how, share))
}

/// A rate limit that does not know yet whether the route tells callers apart.
#[derive(Debug, Clone)]
pub(in super::super) struct LimitDraft {
    limit: LimitSpec,
    /// The filter says itself what callers are told apart by.
    by_caller: bool,
}

impl LimitDraft {
    pub(super) fn join(&self, route_by_caller: bool, place: &str) -> Result<LimitSpec, Invalid> {
        let field = || format!("{place}.route.rate_limits");
        match (&self.limit.caller, self.by_caller || route_by_caller) {
            (Some(_), true) | (None, false) => Ok(self.limit),
            (Some(_), false) => Err(Invalid::missing(field())),
            (None, true) => Err(Invalid::unsupported(field(), "an action without a descriptor")),
        }
    }
}

/// `None` when the limit is switched off.
pub(in super::super) fn rate_limit(
    limit: &LocalRateLimit,
    place: &str,
) -> Result<Option<LimitDraft>, Invalid> {
    let share = |share, field| runtime_fraction(share, Fraction::NONE, &format!("{place}.{field}"));
    let enabled = share(limit.filter_enabled.as_ref(), "filter_enabled")?;
    let enforced = share(limit.filter_enforced.as_ref(), "filter_enforced")?;
    if enabled.is_none() {
        return Ok(None);
    }
    refuse(
        place,
        &[
            (!enforced.is_all(), "filter_enforced", "a limit that is not enforced"),
            (limit.stage != 0, "stage", "a stage"),
            (
                limit.local_rate_limit_per_downstream_connection,
                "local_rate_limit_per_downstream_connection",
                "a limit per connection",
            ),
            (limit.local_cluster_rate_limit.is_some(), "local_cluster_rate_limit", "a shared limit"),
            (limit.enable_x_ratelimit_headers != 0, "enable_x_ratelimit_headers", "headers on the limit"),
            (limit.enable_retry_after_header, "enable_retry_after_header", "a Retry-After header"),
            (!limit.response_headers_to_add.is_empty(), "response_headers_to_add", "headers of a refusal"),
        ],
    )?;
    let everybody = limit.token_bucket.as_ref();
    let everybody = everybody.ok_or_else(|| Invalid::missing(format!("{place}.token_bucket")))?;
    let everybody = token_bucket(everybody, &format!("{place}.token_bucket"))?;
    let callers = limit.max_dynamic_descriptors.as_ref().map_or(CALLERS_DEFAULT, |max| max.value.max(1));
    let caller = per_caller(&limit.descriptors, &format!("{place}.descriptors"))?;
    // Every request has a caller, so what is not taken beside the caller's tokens is not taken at all.
    let beside = limit.always_consume_default_token_bucket.as_ref().is_none_or(|always| always.value);
    // Statuses below 400 are not accepted, as in Envoy: a refusal must read as one.
    let status = limit.status.as_ref().and_then(|status| u16::try_from(status.code).ok());
    let status = status.filter(|code| *code >= 400).and_then(|code| StatusCode::from_u16(code).ok());
    Ok(Some(LimitDraft {
        limit: LimitSpec {
            everybody: (caller.is_none() || beside).then_some(everybody),
            caller: caller.map(|bucket| (bucket, callers as usize)),
            status: status.unwrap_or(StatusCode::TOO_MANY_REQUESTS),
            enabled,
        },
        by_caller: rate_limits(&limit.rate_limits, &format!("{place}.rate_limits"))?,
    }))
}

fn token_bucket(bucket: &ProtoBucket, place: &str) -> Result<TokenBucket, Invalid> {
    let interval = duration(bucket.fill_interval.as_ref(), &format!("{place}.fill_interval"))?;
    let interval = interval.ok_or_else(|| Invalid::missing(format!("{place}.fill_interval")))?;
    if interval < FILL_MIN {
        let text = format!("{interval:?}");
        return Err(Invalid::value(format!("{place}.fill_interval"), &text, "is less than 50 ms"));
    }
    let fill = bucket.tokens_per_fill.as_ref().map_or(1, |tokens| tokens.value);
    TokenBucket::new(bucket.max_tokens, fill, interval).ok_or_else(|| {
        Invalid::value(format!("{place}.max_tokens"), &bucket.max_tokens.to_string(), "never holds a token")
    })
}

/// The bucket of each caller: one descriptor, of one entry, that any address fits.
fn per_caller(descriptors: &[LocalRateLimitDescriptor], place: &str) -> Result<Option<TokenBucket>, Invalid> {
    match descriptors {
        [] => Ok(None),
        [LocalRateLimitDescriptor { entries, token_bucket: Some(bucket), shadow_mode: false }] => {
            match entries.as_slice() {
                [entry] if entry.key == "remote_address" && entry.value.is_empty() => {
                    token_bucket(bucket, &format!("{place}[0].token_bucket")).map(Some)
                }
                _ => Err(Invalid::unsupported(
                    format!("{place}[0].entries"),
                    "a descriptor that is not any remote_address",
                )),
            }
        }
        _ => Err(Invalid::unsupported(place, "more than one descriptor, or one without a bucket of its own")),
    }
}

/// Whether the actions tell callers apart, which is the only thing they can do here.
pub(super) fn rate_limits(limits: &[proto::RateLimit], place: &str) -> Result<bool, Invalid> {
    match limits {
        [] => Ok(false),
        [limit] => {
            let by_address = matches!(
                limit.actions.as_slice(),
                [proto::rate_limit::Action { action_specifier: Some(ActionSpecifier::RemoteAddress(_)) }]
            );
            let stage = limit.stage.as_ref().is_some_and(|stage| stage.value != 0);
            refuse(
                &format!("{place}[0]"),
                &[
                    (!by_address, "actions", "anything but one remote_address"),
                    (stage, "stage", "a stage"),
                    (limit.limit.is_some(), "limit", "a limit of its own"),
                    (limit.hits_addend.is_some(), "hits_addend", "a cost of its own"),
                    (limit.apply_on_stream_done, "apply_on_stream_done", "counting at the end"),
                ],
            )?;
            Ok(true)
        }
        _ => Err(Invalid::unsupported(place, "more than one rate limit")),
    }
}
